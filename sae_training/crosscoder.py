"""The crosscoder: one dictionary, one encoder and one decoder per model (DESIGN.md, section 4)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from sae_training import export, permutation, storage
from sae_training.config import CrosscoderConfig
from sae_training.errors import SaeTrainingError
from sae_training.variants import VARIANTS
from sae_training.weights import column_scale, initial_decoder, sum_of_norms

if TYPE_CHECKING:
    from sae_lens import SAE

Activations = Float[Tensor, "batch source d_model"] | Float[Tensor, "batch d_all"]


class Crosscoder(nn.Module):
    """One dictionary over the activations of M models.

    With x_m the activation of model m divided by its scale s_m::

        h = sum_m x_m W_enc[m] + b_enc;   f = act(h);   x_hat_m = sum_k f_k W_dec[k, m] + b_dec[m]

    Activations go in and come out in each model's own units: `encode` divides by `scale`, `decode` multiplies back.
    Models of one width are stacked, ``[batch model d_model]``; models of different widths are put side by side,
    ``[batch d_all]``, here and in every method. Encoding a row never depends on the other rows.

    With several sites (``CrosscoderConfig.sites``) m runs over the sources, the pairs of model and site, and the model
    axis becomes the source axis: ``base/site_0, base/site_1, ..., rl/site_0, ...``. With one site the sources are the
    models.

    The weights are stored fused, one row per feature: `encoder` and `decoder` are ``[d_sae d_all]``, so that encoding
    is one matrix product and no tensor has a feature axis and a model axis at once.

    Example:
        >>> crosscoder = Crosscoder(CrosscoderConfig(n_models=3, d_model=8, d_sae=16, k=4))
        >>> crosscoder.encode(torch.zeros(5, 3, 8)).shape
        torch.Size([5, 16])
    """

    scale: Tensor
    threshold: Tensor

    def __init__(self, config: CrosscoderConfig) -> None:
        super().__init__()
        self.config = config
        self.variant = VARIANTS[config.variant]
        start = initial_decoder(config)
        has_own = self.variant.has_feature_threshold
        self.encoder = nn.Parameter(start.clone())
        self.decoder = nn.Parameter(start)
        self.b_enc = nn.Parameter(torch.zeros(config.d_sae))
        self.b_dec_flat = nn.Parameter(torch.zeros(config.d_all))
        self.register_buffer("scale", torch.full((config.n_sources,), float("nan")))
        cut = torch.full((config.d_sae,), config.initial_threshold) if has_own else torch.zeros(())
        self.register_buffer("threshold", cut.double())

    @property
    def n_models(self) -> int:
        """M, the number of models."""
        return self.config.n_models

    @property
    def d_sae(self) -> int:
        """F, the number of features."""
        return self.config.d_sae

    @property
    def model_names(self) -> tuple[str, ...]:
        """The models, in the order of the model axis."""
        return self.config.model_names

    @property
    def source_names(self) -> tuple[str, ...]:
        """The models for one site, ``model/site`` for several, in the order of the source axis."""
        return self.config.source_names

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.decoder.device

    @property
    def W_enc(self) -> Float[Tensor, "source d_model d_sae"]:
        """A view of the encoders of the scaled activations (models of one width; see `encoder_of` otherwise)."""
        self._require_same_width("W_enc", "encoder_of(model)")
        return rearrange(self.encoder, "d_sae (source d) -> source d d_sae", source=self.config.n_sources)

    @property
    def W_dec(self) -> Float[Tensor, "d_sae source d_model"]:
        """A view of the decoders of the scaled activations (models of one width; see `decoder_of` otherwise)."""
        self._require_same_width("W_dec", "decoder_of(model)")
        return rearrange(self.decoder, "d_sae (source d) -> d_sae source d", source=self.config.n_sources)

    @property
    def b_dec(self) -> Float[Tensor, "source d_model"]:
        """A view of the decoder biases (models of one width)."""
        self._require_same_width("b_dec", "b_dec_flat")
        return rearrange(self.b_dec_flat, "(source d) -> source d", source=self.config.n_sources)

    def require_one_site(self) -> None:
        """See `CrosscoderConfig.require_one_site`."""
        self.config.require_one_site()

    def model_index(self, model: str | int) -> int:
        """The place of a model, given by name or place, on the model axis of a dictionary of one site."""
        self.config.require_one_site()
        return self.config.source_index(model)

    def columns(self, source: str | int) -> slice:
        """The columns of one source, given by name or place, in the fused weights."""
        return self.config.columns(source)

    def encoder_of(self, source: str | int) -> Float[Tensor, "d_sae d_model"]:
        """A view of the encoder of one source's scaled activation."""
        return self.encoder[:, self.columns(source)]

    def decoder_of(self, source: str | int) -> Float[Tensor, "d_sae d_model"]:
        """A view of the decoder of one source's scaled activation."""
        return self.decoder[:, self.columns(source)]

    def set_scale(self, scale: Float[Tensor, " source"] | Sequence[float]) -> None:
        """Set the divisor of each source's activations: the mean norm over sqrt(d_model), see `mean_norm_scale`."""
        values = torch.as_tensor(scale, dtype=torch.float32)
        if values.shape != (self.config.n_sources,):
            kind = "sources" if self.config.sites else "models"
            raise SaeTrainingError(
                f"scale has shape {tuple(values.shape)}; give one number for each of {self.config.n_sources} {kind}."
            )
        if not bool((torch.isfinite(values) & (values > 0)).all()):
            raise SaeTrainingError(
                f"scale = {values.tolist()} is not positive and finite; are the activations all zero?"
            )
        self.scale.copy_(values)

    @property
    def has_scale(self) -> bool:
        """Whether the scale was set or estimated; until then it counts as 1."""
        return not bool(torch.isnan(self.scale).any())

    def column_scale(self) -> Float[Tensor, " d_all"]:
        """The scale of each column of the fused weights."""
        return column_scale(self.scale, self.config.widths)

    def flatten(self, x: Activations) -> Float[Tensor, "batch d_all"]:
        """Activations side by side, whichever of the two layouts they came in; the shape is checked."""
        config = self.config
        if x.ndim == 3 and config.same_width and tuple(x.shape[1:]) == (config.n_sources, config.widths[0]):
            return rearrange(x, "batch source d -> batch (source d)")
        if x.ndim == 2 and x.shape[1] == config.d_all:
            return x
        expected = f"[batch, {config.d_all}]"
        if config.same_width:
            expected = f"[batch, {config.n_sources}, {config.widths[0]}]"
        raise SaeTrainingError(
            f"activations have shape {list(x.shape)} where the crosscoder of {', '.join(self.source_names)} "
            f"takes {expected}; give the activations of every {'source' if config.sites else 'model'} in that order."
        )

    def unflatten(self, x: Float[Tensor, "batch d_all"]) -> Activations:
        """Stack the sources again where they have one width."""
        if not self.config.same_width:
            return x
        return rearrange(x, "batch (source d) -> batch source d", source=self.config.n_sources)

    def scaled(self, x: Activations) -> Float[Tensor, "batch d_all"]:
        """Activations side by side, each divided by its model's scale."""
        return self.flatten(x).to(self.decoder.dtype) / self.column_scale()

    def hidden_pre(self, x: Activations) -> Float[Tensor, "batch d_sae"]:
        """h: the features before the nonlinearity."""
        return torch.addmm(self.b_enc, self.scaled(x), self.encoder.T)

    def feature_norm(self) -> Float[Tensor, " d_sae"]:
        """sum_m ||W_dec[k, m]||_2 of the scaled decoders: a feature's weight in selection and in the L1 penalty."""
        return sum_of_norms(self.decoder, self.config.widths)

    def activate(self, hidden_pre: Float[Tensor, "batch d_sae"]) -> Float[Tensor, "batch d_sae"]:
        """The nonlinearity at inference; each row by itself."""
        feature_acts = torch.relu(hidden_pre)
        norm = self.feature_norm().detach()
        mask = self.variant.inference_mask(feature_acts.detach() * norm, k=self.config.k, threshold=self.threshold)
        return feature_acts * mask

    def encode(self, x: Activations) -> Float[Tensor, "batch d_sae"]:
        """Features of raw activations, at inference: a row's features never depend on its batch."""
        return self.activate(self.hidden_pre(x))

    def decode(self, feature_acts: Float[Tensor, "batch d_sae"]) -> Activations:
        """Reconstructed activations of every model, in the models' own units."""
        x_hat = torch.addmm(self.b_dec_flat, feature_acts, self.decoder)
        return self.unflatten(x_hat * self.column_scale())

    def decode_model(
        self, feature_acts: Float[Tensor, "batch d_sae"], model: str | int
    ) -> Float[Tensor, "batch d_model"]:
        """Reconstructed activations of one model (of one source, with several sites), in its own units."""
        columns = self.columns(model)
        x_hat = torch.addmm(self.b_dec_flat[columns], feature_acts, self.decoder[:, columns])
        return x_hat * self.column_scale()[columns]

    def own_decoder(self, model: str | int, ids: Tensor | None = None) -> Float[Tensor, "feature d_model"]:
        """s_m W_dec[k, m], detached: what a unit of each feature writes into a model (or source), in its own units.

        Args:
            model: Whose decoder.
            ids: Features, in the order wanted; None for all.
        """
        columns = self.columns(model)
        rows = self.decoder if ids is None else self.decoder[ids]
        return (rows[:, columns] * self.column_scale()[columns]).detach()

    def own_bias(self, model: str | int) -> Float[Tensor, " d_model"]:
        """s_m b_dec[m], detached: the reconstruction without any feature, in the model's own units."""
        columns = self.columns(model)
        return (self.b_dec_flat[columns] * self.column_scale()[columns]).detach()

    def forward(self, x: Activations) -> Activations:
        """Reconstruct: ``decode(encode(x))``."""
        return self.decode(self.encode(x))

    def decoder_norm(self, p: int) -> Float[Tensor, "d_sae source"]:
        """Norm of each decoder in the source's own units; over sqrt(d_model) where the widths differ.

        A model's share of a row's sum is the feature's MAS (arXiv 2604.25011); see `model_norm` for several sites.

        Args:
            p: 1 or 2. The papers' MAS and NRN take 1; the training penalty takes 2.
        """
        if p not in (1, 2):
            raise SaeTrainingError(f"decoder_norm: p = {p} is not defined here; take 1 or 2.")
        decoder = self.decoder.detach() * self.column_scale()
        parts = decoder.split(list(self.config.widths), dim=1)
        norms = torch.stack([torch.linalg.vector_norm(part, ord=p, dim=1) for part in parts], dim=1)
        if self.config.same_width:
            return norms
        return norms / torch.tensor(self.config.widths, dtype=norms.dtype, device=norms.device).sqrt()

    def model_norm(self, p: int) -> Float[Tensor, "d_sae model"]:
        """`decoder_norm` pooled over the sites of each model: the p-norm over them; equal to it for one site.

        Sites with larger activations weigh more; for shares that do not depend on that, pool
        ``decoder_norm(p) / scale``.
        """
        by_site = rearrange(self.decoder_norm(p), "d_sae (model site) -> d_sae model site", model=self.n_models)
        return by_site.squeeze(2) if self.config.n_sites == 1 else torch.linalg.vector_norm(by_site, ord=p, dim=2)

    def permuted(self, order: Sequence[int]) -> Crosscoder:
        """The same dictionary with the models in another order: place i takes model ``order[i]``.

        Encoding, decoding and training commute with it up to the rounding of sums over the models, whose order a matrix
        product and a sum of norms fix: exactly where those sums are exact, to about 1e-15 relative in float64. The
        features keep their places, but for dedicated ones, which follow the order of the models.

        Raises:
            SaeTrainingError: ``order`` does not name every model once.
        """
        config, tensors = permutation.permuted(self.config, self.tensors(), order)
        return type(self).from_tensors(config, tensors).to(self.device)

    def tensors(self) -> dict[str, Tensor]:
        """All weights by the names of a weights file, detached and on the CPU.

        ``W_enc`` ``[d_all d_sae]``, ``W_dec`` ``[d_sae d_all]``, ``b_enc`` ``[d_sae]``, ``b_dec`` ``[d_all]``, ``scale``
        ``[source]``, and ``threshold``, which is one number, or ``[d_sae]`` for jumprelu.
        """
        named = {
            "W_enc": self.encoder.T,
            "W_dec": self.decoder,
            "b_enc": self.b_enc,
            "b_dec": self.b_dec_flat,
            "scale": self.scale,
            "threshold": self.threshold,
        }
        return {name: tensor.detach().cpu().contiguous() for name, tensor in named.items()}

    @torch.no_grad()
    def _copy_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy what `tensors` gave, and take its dtype; the threshold stays float64."""
        self.to(tensors["W_dec"].dtype)
        self.threshold.data = self.threshold.data.double()
        self.encoder.copy_(tensors["W_enc"].T)
        self.decoder.copy_(tensors["W_dec"])
        self.b_enc.copy_(tensors["b_enc"])
        self.b_dec_flat.copy_(tensors["b_dec"])
        self.scale.copy_(tensors["scale"])
        self.threshold.copy_(tensors["threshold"])

    @classmethod
    def from_tensors(cls, config: CrosscoderConfig, tensors: Mapping[str, Tensor]) -> Crosscoder:
        """A crosscoder on the CPU with given weights.

        Args:
            config: Its configuration.
            tensors: Its weights, as `tensors` names them; ``W_dec`` decides the dtype.
        """
        crosscoder = cls(config)
        crosscoder._copy_tensors(tensors)
        return crosscoder

    @property
    def fingerprint(self) -> str:
        """sha256 over the configuration and the weights."""
        return storage.fingerprint(self.config, self.tensors())

    def save(self, folder: str | Path) -> None:
        """Write ``config.json`` and ``weights.safetensors`` into a folder, each atomically."""
        storage.save_crosscoder(self.config, self.tensors(), Path(folder))

    @classmethod
    def load(cls, folder: str | Path, device: str | torch.device = "cpu") -> Crosscoder:
        """Read a folder written by `save`.

        Raises:
            SaeTrainingError: The folder does not hold a crosscoder, or a file is damaged.
        """
        crosscoder = cls(storage.read_config(Path(folder)))
        crosscoder.load_weights(folder)
        return crosscoder.to(device)

    def load_weights(self, folder: str | Path) -> None:
        """Replace the weights by those in a folder written by `save`.

        Raises:
            SaeTrainingError: The file is damaged, or its tensors have other shapes.
        """
        self._copy_tensors(storage.read_weights(Path(folder), self.tensors()))

    def to_sae(
        self, model: str | int, *, readout: export.Readout = "single", out: str | Path | None = None
    ) -> SAE[Any]:
        """One model's slice as a sae-lens SAE over raw activations; see `sae_training.export.to_sae`.

        Args:
            model: Name or place of the model.
            readout: What fills the slots of the other models.
            out: Folder to save the SAE to, for ``sae_lens.SAE.load_from_disk``.

        Raises:
            SaeTrainingError: The model or the read-out does not exist, ``swap`` is given for models of different widths,
                or the crosscoder has several sites.
        """
        sae = export.to_sae(self.config, self.tensors(), self.model_index(model), readout)
        if out is not None:
            sae.save_model(Path(out))
        return sae

    def _require_same_width(self, name: str, instead: str) -> None:
        if not self.config.same_width:
            raise SaeTrainingError(f"{name} needs models of one width, these have {self.config.widths}; use {instead}.")
