"""The weights of a crosscoder in memory and on disk."""

from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from sae_training import storage
from sae_training.config import CrosscoderConfig
from sae_training.errors import SaeTrainingError
from sae_training.parallel import ALONE, Division

Made = TypeVar("Made", bound="StoredWeights")


class StoredWeights(nn.Module):
    """The part of a crosscoder that holds, saves and loads its weights.

    Attributes:
        config: Shape and variant.
        rows: The latents that are held here; all of them, except where several processes hold one dictionary.
        encoder: ``[latent d_all]``.
        decoder: ``[latent d_all]``.
        b_enc: ``[latent]``.
        b_dec_flat: ``[d_all]``.
        scale: ``[source]``, divisor of the activations.
        threshold: One number, or ``[latent]`` for jumprelu.
    """

    config: CrosscoderConfig
    rows: slice
    encoder: nn.Parameter
    decoder: nn.Parameter
    b_enc: nn.Parameter
    b_dec_flat: nn.Parameter
    scale: Tensor
    threshold: Tensor

    def __init__(self, config: CrosscoderConfig, rows: slice | None = None) -> None:
        super().__init__()
        self.config = config
        self.rows = slice(0, config.d_sae) if rows is None else rows

    @property
    def is_whole(self) -> bool:
        """Whether all latents are here; otherwise other processes hold the others."""
        return self.rows == slice(0, self.config.d_sae)

    def tensors(self) -> dict[str, Tensor]:
        """All weights by their names in a weights file, detached and on the CPU.

        ``W_enc`` ``[d_all d_sae]``, ``W_dec`` ``[d_sae d_all]``, ``b_enc`` ``[d_sae]``, ``b_dec`` ``[d_all]``,
        ``scale`` ``[source]``, and ``threshold``, which is one number, or ``[d_sae]`` for jumprelu.
        """
        if not self.is_whole:
            raise SaeTrainingError(
                f"this process holds the latents {self.rows.start} to {self.rows.stop - 1} of {self.config.d_sae}; save the "
                "crosscoder in all processes, and load it in one."
            )
        return {name: tensor.cpu().contiguous() for name, tensor in self.views().items()}

    def views(self) -> dict[str, Tensor]:
        """The weights as `tensors` names them, without copies: on their device, and only of the latents held here."""
        named = {
            "W_enc": self.encoder.T,
            "W_dec": self.decoder,
            "b_enc": self.b_enc,
            "b_dec": self.b_dec_flat,
            "scale": self.scale,
            "threshold": self.threshold,
        }
        return {name: tensor.detach() for name, tensor in named.items()}

    @torch.no_grad()
    def _copy_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy what `tensors` gave, and change to its dtype; the threshold stays in float64."""
        self.to(tensors["W_dec"].dtype)
        self.threshold.data = self.threshold.data.double()
        self.encoder.copy_(tensors["W_enc"].T)
        self.decoder.copy_(tensors["W_dec"])
        self.b_enc.copy_(tensors["b_enc"])
        self.b_dec_flat.copy_(tensors["b_dec"])
        self.scale.copy_(tensors["scale"])
        self.threshold.copy_(tensors["threshold"])

    @classmethod
    def from_tensors(cls: type[Made], config: CrosscoderConfig, tensors: Mapping[str, Tensor]) -> Made:
        """Make a crosscoder on the CPU from the weights that `tensors` names; ``W_dec`` decides the dtype."""
        crosscoder = cls(config)
        crosscoder._copy_tensors(tensors)
        return crosscoder

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the configuration and the weights."""
        return storage.fingerprint(self.config, self.tensors())

    def save(self, folder: str | Path, division: Division = ALONE) -> None:
        """Write ``config.json`` and ``weights.safetensors`` into a folder, each atomically.

        Args:
            folder: The folder.
            division: The processes that hold the crosscoder; all of them call this.
        """
        storage.save_crosscoder(self.config, self.views(), Path(folder), division)

    @classmethod
    def load(
        cls: type[Made], folder: str | Path, device: str | torch.device = "cpu", *, division: Division = ALONE
    ) -> Made:
        """Read a folder written by `save`: all latents, or those of one of several processes.

        Raises:
            SaeTrainingError: The folder does not hold a crosscoder, or a file is damaged.
        """
        config = storage.read_config(Path(folder))
        crosscoder = cls(config, division.latents(config.d_sae))
        crosscoder.load_weights(folder)
        return crosscoder.to(device)

    def load_weights(self, folder: str | Path) -> None:
        """Replace the weights by those in a folder written by `save`; the shapes must be equal."""
        rows = None if self.is_whole else self.rows
        self._copy_tensors(storage.read_weights(Path(folder), self.views(), rows, self.config.d_sae))
