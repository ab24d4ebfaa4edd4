"""Step ``steps``: whole training steps, sparse against dense and against float64, and the waits of a step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu_check.record import Record, relative_error
from benchmarks.waits import count_waits
from sae_training import Crosscoder, CrosscoderConfig, PlantedConfig, PlantedFeatures, TrainConfig
from sae_training.kernels.backend import Kernel
from sae_training.trainer import Trainer

VARIANTS = ("batchtopk", "topk", "l1", "matryoshka")
TOLERANCES = {"float32": (1e-4, 1e-2), "bfloat16": (2e-2, 3e-1)}
"""Largest relative error of the loss and of a gradient. A score that rounds to the other side of the cut exchanges one
active latent for another of almost the same score, which moves a gradient more than rounding does; bfloat16 rounds scores
to 2⁻⁸ of their size, so that many tie at the cut, and the dense step keeps all ties."""
_TINY_ROWS, _ROWS = 6, 2048


def shape_of(record: Record) -> dict[str, int]:
    """Shape of the crosscoder."""
    if record.tiny:
        return {"n_models": 2, "d_model": 6, "d_sae": 20, "k": 3}
    return {"n_models": 3, "d_model": 1024, "d_sae": 16384, "k": 50}


def trainer_of(record: Record, variant: str, kernel: Kernel, precision: str, dtype: torch.dtype) -> Trainer:
    """A trainer before its first step; all have the same weights."""
    crosscoder = Crosscoder(CrosscoderConfig(**shape_of(record), variant=variant)).to(record.device, dtype)  # pyright: ignore[reportArgumentType]
    options: dict[str, Any] = {"lazy": True} if kernel != "sparse" else {}
    config = TrainConfig(
        n_tokens=10**6, batch_size=4096, lr=1e-3, kernel=kernel, precision=precision,  # pyright: ignore[reportArgumentType]
        l1_coefficient=0.1, l1_warmup_frac=0.0, lr_warmup_frac=0.0,
    )  # fmt: skip
    return Trainer(crosscoder, config, **options)


def batches_of(record: Record, n: int) -> list[Tensor]:
    """Batches of planted features on the device."""
    shape = shape_of(record)
    n_shared = 4 * shape["d_model"]
    truth = PlantedFeatures.make(
        PlantedConfig(
            n_models=shape["n_models"], d_model=shape["d_model"], n_shared=n_shared, n_specific=4,
            density=min(0.2, shape["k"] / n_shared), noise=0.05,
        )
    )  # fmt: skip
    return [batch.to(record.device) for batch in truth.batches(_TINY_ROWS if record.tiny else _ROWS, n_batches=n)]


def gradients(trainer: Trainer, batches: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Loss and gradients of the first step after the set-up."""
    dtype = trainer.crosscoder.decoder.dtype
    trainer.set_up([batch.to(dtype) for batch in batches[:1]])
    output = trainer._gradients([batches[1].to(dtype)])[-1]
    found = [parameter.grad for parameter in trainer.state.parameters.all()]
    return output.loss, [gradient for gradient in found if gradient is not None]


def run(record: Record) -> None:
    """Compare the gradients of one step and the losses of several, and count the waits."""
    sparse: Kernel = "triton"
    batches = batches_of(record, 4 if record.tiny else 7)
    for variant in VARIANTS:
        exact = gradients(trainer_of(record, variant, "dense", "float32", torch.float64), batches)
        for precision, (of_loss, of_gradient) in TOLERANCES.items():
            dense = gradients(trainer_of(record, variant, "dense", precision, torch.float32), batches)
            found = gradients(trainer_of(record, variant, sparse, precision, torch.float32), batches)
            for name, expected in (("dense", dense), ("float64", exact)):
                case = f"{variant}, {precision}: sparse against {name}"
                record.check(f"{case}, loss", relative_error(found[0], expected[0]), of_loss)
                worst = max(relative_error(one, other) for one, other in zip(found[1], expected[1], strict=True))
                record.check(f"{case}, gradients", worst, of_gradient)
    for variant in VARIANTS:
        losses = {kernel: _losses(record, variant, kernel, batches) for kernel in ("dense", sparse)}
        record.check(
            f"{variant}: losses of {len(batches) - 1} steps", relative_error(losses[sparse], losses["dense"]), 1e-3
        )
    record.put("waits_of_l1", "one per batch: the number of active latents sizes the arrays of entries")


def _losses(record: Record, variant: str, kernel: Any, batches: Sequence[Tensor]) -> Tensor:
    """Losses of several optimizer steps, in float32; a step with the kernels must not wait for the device."""
    trainer = trainer_of(record, variant, kernel, "float32", torch.float32)
    trainer.set_up(list(batches[:1]))
    losses = [trainer.step(batches[1]).loss]
    with count_waits(record.device) as waits:
        losses += [trainer.step(batch).loss for batch in batches[2:]]
    if record.device == "cuda" or kernel != "dense":  # NumPy finds the cut of a dense step on a CPU
        n_expected = len(batches) - 2 if variant == "l1" and kernel != "dense" else 0
        record.check(f"{variant}, {kernel}: waits of {len(batches) - 2} steps", len(waits.seen), n_expected)
    trainer.look()
    return torch.stack(losses)
