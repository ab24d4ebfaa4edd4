"""The trainers that `benchmarks.train` compares, each as two functions over ``[batch model d_model]``.

All trainers get the same initial weights, learning rate and gradient clipping. dictionary_learning keeps its decoder at norm 1,
so it gets the same directions only. ``objective`` names what each trainer minimizes.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.machinery
import importlib.util
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.dense_crosscoder import DenseCrosscoder
from sae_training import Crosscoder, CrosscoderConfig, TrainConfig, Trainer

N_MODELS = 3
LR = 1e-3
N_TOKENS = 10**9
"""Nominal length of the training: schedules are flat and no feature counts as dead within a benchmark."""

OURS, OURS_DENSE = "sae_training", "sae_training_dense"
SQUARED = "sum of squared errors over all models"
DICTIONARY_LEARNING = "0.1.0"


class AbsentError(Exception):
    """A contestant cannot run here; the result file holds the reason."""


@dataclass(frozen=True)
class Setting:
    """Shape of a dictionary over three models and of its batches."""

    d_model: int
    d_sae: int
    k: int
    batch_size: int
    device: str = "cpu"
    precision: str = "float32"


@dataclass(frozen=True)
class Contestant:
    """One trainer.

    Attributes:
        step: Trains on a batch, and returns the loss that the trainer reports, on its device if possible.
        reconstruct: Reconstructs a batch from the features that training would choose in it.
        modules: Module that holds the weights.
        objective: Quantity that the trainer minimizes.
    """

    step: Callable[[Tensor], Tensor | float]
    reconstruct: Callable[[Tensor], Tensor]
    modules: nn.Module
    objective: str

    @property
    def n_parameters(self) -> int:
        """Number of trained parameters."""
        return sum(parameter.numel() for parameter in self.modules.parameters())


def initial(setting: Setting) -> Crosscoder:
    """Initial weights of all contestants: decoders of norm 0.1 per model, tied encoders and zero biases (sae-lens' default)."""
    config = CrosscoderConfig(
        n_models=N_MODELS, d_model=setting.d_model, d_sae=setting.d_sae, k=setting.k, decoder_init_norm=0.1
    )
    crosscoder = Crosscoder(config).to(setting.device)
    crosscoder.set_scale([1.0] * N_MODELS)
    return crosscoder


def our_trainer(setting: Setting, kernel: str) -> Trainer:
    """Our trainer with the initial weights of `initial`.

    Raises:
        AbsentError: This version of sae_training does not support the precision.
    """
    options: dict[str, Any] = {"kernel": kernel}
    if "precision" in TrainConfig.model_fields:
        options["precision"] = setting.precision
    elif setting.precision != "float32":
        raise AbsentError(f"this version of sae_training has no precision {setting.precision}")
    training = TrainConfig(
        n_tokens=N_TOKENS, batch_size=setting.batch_size, lr=LR, lr_warmup_frac=0.0, lr_decay_frac=0.0, **options
    )
    return Trainer(initial(setting), training)


def _ours(setting: Setting, kernel: str) -> Contestant:
    trainer = our_trainer(setting, kernel)
    crosscoder = trainer.crosscoder

    def step(batch: Tensor) -> Tensor:
        return trainer.step(batch).mse

    def reconstruct(batch: Tensor) -> Tensor:
        hidden_pre = crosscoder.hidden_pre(batch)
        scores = torch.relu(hidden_pre) * crosscoder.feature_norm()
        kept = scores >= crosscoder.variant.training_cut(scores, k=setting.k)
        return crosscoder.decode(torch.relu(hidden_pre) * kept)

    return Contestant(step, reconstruct, crosscoder, SQUARED)


def _sae_lens(setting: Setting) -> Contestant:
    """sae-lens' BatchTopK, trained by the public step of its SAETrainer on the concatenated activations of all models."""
    try:
        with _stand_ins("wandb"):  # which a trainer without logging does not call
            from sae_lens import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
            from sae_lens.config import SAETrainerConfig
            from sae_lens.training.sae_trainer import SAETrainer
    except ImportError as error:
        raise AbsentError(f"sae-lens cannot be imported ({error})") from None

    start = initial(setting)
    config = BatchTopKTrainingSAEConfig(
        d_in=start.config.d_all, d_sae=setting.d_sae, k=setting.k, apply_b_dec_to_input=False, device=setting.device
    )
    sae = BatchTopKTrainingSAE(config)
    with torch.no_grad():
        sae.W_enc.copy_(start.encoder.T)
        sae.W_dec.copy_(start.decoder)
        sae.b_enc.zero_()
        sae.b_dec.zero_()
    training = SAETrainerConfig(
        total_training_samples=N_TOKENS,
        train_batch_size_samples=setting.batch_size,
        lr=LR,
        lr_end=LR,
        device=setting.device,
        autocast=setting.precision == "bfloat16",
    )
    trainer: Any = SAETrainer(training, sae, iter([]))

    def step(batch: Tensor) -> Tensor:
        output = trainer.step(batch.flatten(1))
        trainer.n_training_steps += 1
        trainer.maybe_reset_sparsity()
        return output.losses["mse_loss"].detach()

    def reconstruct(batch: Tensor) -> Tensor:
        feature_acts, _ = sae.encode_with_hidden_pre(batch.flatten(1))
        return sae.decode(feature_acts).reshape(batch.shape)

    return Contestant(step, reconstruct, sae, SQUARED)


def _dictionary_learning(setting: Setting) -> Contestant:
    """dictionary_learning's BatchTopKTrainer on the concatenated activations of all models."""
    trainer_class = _batch_top_k_trainer()
    start = initial(setting)
    trainer: Any = trainer_class(
        steps=N_TOKENS // setting.batch_size,
        activation_dim=start.config.d_all,
        dict_size=setting.d_sae,
        k=setting.k,
        layer=0,
        lm_name="planted",
        lr=LR,
        warmup_steps=0,
        device=setting.device,
    )
    directions = start.decoder.detach() / torch.linalg.vector_norm(start.decoder.detach(), dim=1, keepdim=True)
    with torch.no_grad():
        trainer.ae.decoder.weight.copy_(directions.T)
        trainer.ae.encoder.weight.copy_(directions)
    n_steps = 0

    def step(batch: Tensor) -> float:
        nonlocal n_steps
        with _autocast(setting):
            loss = trainer.update(n_steps, batch.flatten(1))
        n_steps += 1
        return loss

    def reconstruct(batch: Tensor) -> Tensor:
        flat = batch.flatten(1)
        return trainer.ae.decode(trainer.ae.encode(flat, use_threshold=False)).reshape(batch.shape)

    return Contestant(step, reconstruct, trainer.ae, f"{SQUARED}, decoder held at norm 1, median taken off the input")


def _batch_top_k_trainer() -> Any:
    try:
        found = version("dictionary-learning")
    except PackageNotFoundError:
        raise AbsentError("dictionary-learning is not installed; see benchmarks/README.md") from None
    if found != DICTIONARY_LEARNING:
        raise AbsentError(f"dictionary-learning is {found}, the benchmark is written for {DICTIONARY_LEARNING}")
    with _stand_ins("nnsight", "zstandard"):
        return importlib.import_module("dictionary_learning.trainers.batch_top_k").BatchTopKTrainer


@contextlib.contextmanager
def _stand_ins(*names: str) -> Iterator[None]:
    """Install empty modules for packages that a peer imports but its trainer never calls; remove them afterwards.

    The buffer of dictionary_learning (``from nnsight import LanguageModel``), its data tools (zstandard) and the logging of
    sae-lens (wandb) are not part of a step.
    """
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    for name in missing:
        module = types.ModuleType(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
        module.__dict__["LanguageModel"] = type("LanguageModel", (), {})
        sys.modules[name] = module
    try:
        yield
    finally:
        for name in missing:
            sys.modules.pop(name, None)


def _dense_crosscoder(setting: Setting) -> Contestant:
    start = initial(setting)
    crosscoder = DenseCrosscoder(start.W_enc, start.W_dec, setting.k, LR).to(setting.device)

    def step(batch: Tensor) -> Tensor:
        with _autocast(setting):
            return crosscoder.step(batch)

    return Contestant(step, crosscoder.reconstruct, crosscoder, "sum over models of the un-squared error norm")


def _autocast(setting: Setting) -> torch.autocast:
    """Autocast around the whole step, as sae-lens and dictionary_learning use it."""
    return torch.autocast(
        torch.device(setting.device).type, dtype=torch.bfloat16, enabled=setting.precision == "bfloat16"
    )


CONTESTANTS: dict[str, Callable[[Setting], Contestant]] = {
    OURS: lambda setting: _ours(setting, "auto"),
    OURS_DENSE: lambda setting: _ours(setting, "dense"),
    "sae_lens": _sae_lens,
    "dictionary_learning": _dictionary_learning,
    "dense_crosscoder": _dense_crosscoder,
}
"""Contestants, in the order of the tables."""
