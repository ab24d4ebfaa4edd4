"""An SAE of one model, trained with sae-lens: the baseline for a crosscoder's slice."""

import json
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from einops import rearrange
from pydantic import Field, model_validator
from torch import Tensor

from sae_training import atomic
from sae_training.errors import SaeTrainingError
from sae_training.export import require_sae_lens
from sae_training.importing.single_sae import SingleSae, import_sae
from sae_training.train_config import SharedTrainConfig, TrainConfig

if TYPE_CHECKING:
    from sae_lens import SAETrainer
    from sae_lens.saes.sae import TrainStepOutput

OnStep = Callable[[int, dict[str, float]], None]
"""Called after each step with its number of tokens, and every ``log_every`` steps with the losses (else ``{}``)."""


class SaeBaselineConfig(SharedTrainConfig):
    """Settings of one SAE; `matching` copies from a crosscoder's training those that `SharedTrainConfig` describes.

    Attributes:
        d_sae: Number of latents.
        k: Active latents per token, on average over a batch.
        seed: Seed of the initial weights.
        decoder_init_norm: Initial norm of every decoder, equal to that of the crosscoder's stacked decoders. The
            default of sae-lens, 0.1, gave a weaker baseline on synthetic batches.
        dead_after_tokens: Number of tokens without firing after which a latent is dead.
    """

    d_sae: int = Field(ge=1)
    k: int = Field(ge=1)
    seed: int = Field(default=0, ge=0)
    decoder_init_norm: float = Field(default=1.0, gt=0)
    dead_after_tokens: int = Field(default=1_000_000, ge=1)

    @classmethod
    def matching(cls, training: TrainConfig, **changes: Any) -> "SaeBaselineConfig":
        """Copy all settings that a crosscoder's training shares; ``changes`` sets the others."""
        values = {name: getattr(training, name) for name in SharedTrainConfig.model_fields}
        return cls(**{**values, "dead_after_tokens": training.dead_window, **changes})

    @model_validator(mode="after")
    def _check_k(self) -> "SaeBaselineConfig":
        if self.k > self.d_sae:
            raise ValueError(f"k = {self.k} exceeds d_sae = {self.d_sae}; lower k or raise d_sae")
        return self

    @property
    def n_steps(self) -> int:
        """Number of optimizer steps."""
        return -(-self.n_tokens // self.batch_size)


def train_sae_baseline(
    batches: Iterable[Tensor],
    config: SaeBaselineConfig,
    out: Path | str,
    *,
    scale: float | int,
    metadata: dict[str, Any] | None = None,
    device: str = "cpu",
    on_step: OnStep | None = None,
) -> SingleSae:
    """Train the BatchTopK SAE of sae-lens on one model, with the trainer of sae-lens.

    The activations are divided by ``scale``, the crosscoder's s_m, so that the learning rate has the same meaning. The
    scale is folded into the weights at the end. The caller gives the batches, and so can show an SAE the tokens of the
    crosscoder in the same order. On a CPU, equal seeds and batches give equal bytes.

    Args:
        batches: Raw activations ``[batch d_model]`` or ``[batch 1 d_model]``.
        config: Shape, schedule and seed of the SAE.
        out: Folder for ``cfg.json`` and ``sae_weights.safetensors``, which ``sae_lens.SAE.load_from_disk`` opens.
        scale: Number that divides the activations.
        metadata: Entries for the metadata of sae-lens, for example ``model_name`` and ``hook_name``.
        device: Device to train on.
        on_step: Called after each step, as `OnStep` says.

    Returns:
        The SAE over raw activations, read back from ``out``.

    Raises:
        SaeTrainingError: The stream is empty or ends early, a batch has the wrong shape, or a loss is not finite, or
            sae-lens is not installed.
    """
    require_sae_lens("An SAE baseline")
    if not scale > 0:
        raise SaeTrainingError(
            f"train_sae_baseline: scale = {scale} is not positive; check that the activations are not all zero."
        )
    stream = (_checked(batch, number, config).to(device) / scale for number, batch in enumerate(batches))
    ahead = list(islice(stream, config.n_setup_batches))
    if not ahead:
        raise SaeTrainingError("train_sae_baseline: the stream of activations is empty; give at least one batch.")
    trainer = baseline_trainer(config, torch.cat(ahead).double().mean(dim=0), device)
    _fit(trainer, chain(ahead, stream), config, on_step)
    trainer.sae.fold_activation_norm_scaling_factor(1.0 / scale)
    for name, value in (metadata or {}).items():
        trainer.sae.cfg.metadata[name] = value
    _, settings = trainer.sae.to("cpu").save_inference_model(Path(out))
    # sae-lens writes keys in the order of a set, which differs from process to process
    written = json.loads(settings.read_text(encoding="utf-8"))
    atomic.write_bytes(settings, json.dumps(written, sort_keys=True).encode())
    return import_sae(out)


def _checked(batch: Tensor, number: int, config: SaeBaselineConfig) -> Tensor:
    if batch.ndim == 3 and batch.shape[1] == 1:
        batch = rearrange(batch, "batch 1 d_model -> batch d_model")
    if batch.ndim != 2 or not 1 <= batch.shape[0] <= config.batch_size:
        raise SaeTrainingError(
            f"train_sae_baseline: batch {number} has shape {list(batch.shape)}, but [batch, d_model] with at most "
            f"{config.batch_size} rows is expected; make the stream and the configuration agree."
        )
    return batch.float()


def baseline_trainer(config: SaeBaselineConfig, mean: Tensor, device: str) -> "SAETrainer[Any, Any]":
    """The trainer of sae-lens with initial weights; ``mean`` is the mean activation."""
    from sae_lens import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig, SAETrainer
    from sae_lens.config import LoggingConfig, SAETrainerConfig

    shape = BatchTopKTrainingSAEConfig(
        d_in=len(mean),
        d_sae=config.d_sae,
        k=float(config.k),
        device=device,
        topk_threshold_lr=1.0 - config.threshold_momentum,
        aux_loss_coefficient=config.aux_coefficient,
        decoder_init_norm=config.decoder_init_norm,
    )
    with torch.random.fork_rng(devices=[]):  # sae-lens draws the weights from the global generator
        torch.manual_seed(config.seed)
        sae: BatchTopKTrainingSAE = BatchTopKTrainingSAE(shape)
    sae.b_dec.data.copy_(mean)
    schedule = SAETrainerConfig(
        total_training_samples=config.n_steps * config.batch_size,
        train_batch_size_samples=config.batch_size,
        lr=config.lr,
        lr_end=config.lr,
        lr_warm_up_steps=round(config.lr_warmup_frac * config.n_steps),
        lr_decay_steps=round(config.lr_decay_frac * config.n_steps),
        adam_beta1=config.adam_betas[0],
        adam_beta2=config.adam_betas[1],
        device=device,
        dead_feature_window=max(1, config.dead_after_tokens // config.batch_size),
        logger=LoggingConfig(log_to_wandb=False),
    )
    return SAETrainer(cfg=schedule, sae=sae, data_provider=iter(()))


def _fit(
    trainer: "SAETrainer[Any, Any]", stream: Iterator[Tensor], config: SaeBaselineConfig, on_step: OnStep | None
) -> None:
    for step in range(config.n_steps):
        batch = next(stream, None)
        if batch is None:
            raise SaeTrainingError(
                f"train_sae_baseline: the stream ended after {step} of {config.n_steps} batches; give more activations or "
                "lower n_tokens."
            )
        trainer.maybe_reset_sparsity()
        output = trainer.step(batch)
        trainer.n_training_steps += 1
        logged = step % config.log_every == 0 or step + 1 == config.n_steps
        losses = _losses(output, step) if logged else {}
        if on_step is not None:
            on_step(len(batch), losses)


def _losses(output: "TrainStepOutput", step: int) -> dict[str, float]:
    loss = float(output.loss.detach())
    if loss != loss or loss in (float("inf"), float("-inf")):
        raise SaeTrainingError(
            f"train_sae_baseline: the loss is {loss} at step {step}; check that the activations are finite, or lower lr."
        )
    l0 = float((output.feature_acts > 0).sum(dim=-1).float().mean())
    return {"loss": loss, "l0": l0}
