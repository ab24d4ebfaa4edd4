"""The crosscoder: one dictionary with one encoder and one decoder per model (formulas: docs/design.md)."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from sae_training import export
from sae_training.config import CrosscoderConfig
from sae_training.errors import SaeTrainingError
from sae_training.parallel import ALONE, Division
from sae_training.stored import StoredWeights
from sae_training.variants import VARIANTS
from sae_training.weights import checked_scale, column_scale, initial_weights, permuted, second_less_first, sum_of_norms

if TYPE_CHECKING:
    from sae_lens import SAE

Activations = Float[Tensor, "batch source d_model"] | Float[Tensor, "batch d_all"]


class Crosscoder(StoredWeights):
    """One dictionary over the activations of M models.

    With x_m the activation of model m divided by its scale s_m::

        h = sum_m x_m W_enc[m] + b_enc;   f = act(h);   x_hat_m = sum_k f_k W_dec[k, m] + b_dec[m]

    All methods take and return activations in the units of each model: `encode` divides by `scale`, and `decode`
    multiplies by it. Activations are stacked as ``[batch model d_model]`` for models of one width, and lie side by side
    as ``[batch d_all]`` otherwise. The encoding of a row does not depend on the other rows.

    With several sites (``CrosscoderConfig.sites``), m runs over the sources, which are the pairs of model and site:
    ``base/site_0, base/site_1, ..., rl/site_0, ...``. With one site, the sources are the models.

    With ``reads = "difference"``, this is an SAE on the difference between two models, see `target`.

    The weights are fused: `encoder` and `decoder` are ``[d_sae d_all]``, with one row per latent. Encoding is then one
    matrix product, and no tensor has both a latent axis and a model axis.

    Example:
        >>> crosscoder = Crosscoder(CrosscoderConfig(n_models=3, d_model=8, d_sae=16, k=4))
        >>> crosscoder.encode(torch.zeros(5, 3, 8)).shape
        torch.Size([5, 16])
    """

    def __init__(self, config: CrosscoderConfig, rows: slice | None = None) -> None:
        """Draw initial weights.

        Args:
            config: Shape and variant.
            rows: The latents of this process where several hold one dictionary (`sae_training.parallel`); None for all. Only
                training, `evaluate`, `save` and `load_weights` support a part of the latents.
        """
        super().__init__(config, rows)
        n_latents = self.rows.stop - self.rows.start
        self.variant = VARIANTS[config.variant]
        has_own = self.variant.has_latent_threshold
        self.encoder, self.decoder = map(nn.Parameter, initial_weights(config, self.rows))
        self.b_enc = nn.Parameter(torch.zeros(n_latents))
        self.b_dec_flat = nn.Parameter(torch.zeros(config.d_all))
        self.register_buffer("scale", torch.full((config.n_sources,), float("nan")))
        cut = torch.full((n_latents,), config.initial_threshold) if has_own else torch.zeros(())
        self.register_buffer("threshold", cut.double())

    @property
    def n_models(self) -> int:
        """M, the number of models."""
        return self.config.n_models

    @property
    def d_sae(self) -> int:
        """F, the number of latents."""
        return self.config.d_sae

    @property
    def model_names(self) -> tuple[str, ...]:
        """Names of the models in the order of the model axis."""
        return self.config.model_names

    @property
    def source_names(self) -> tuple[str, ...]:
        """Names of the sources: the models for one site, ``model/site`` for several."""
        return self.config.source_names

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.decoder.device

    @property
    def W_enc(self) -> Float[Tensor, "source d_model d_sae"]:
        """View of the encoders of scaled activations, for models of one width; otherwise use `encoder_of`."""
        self._require_same_width("W_enc", "encoder_of(model)")
        return rearrange(self.encoder, "d_sae (source d) -> source d d_sae", source=self.config.n_sources)

    @property
    def W_dec(self) -> Float[Tensor, "d_sae source d_model"]:
        """View of the decoders of scaled activations, for models of one width; otherwise use `decoder_of`."""
        self._require_same_width("W_dec", "decoder_of(model)")
        return rearrange(self.decoder, "d_sae (source d) -> d_sae source d", source=self.config.n_sources)

    @property
    def b_dec(self) -> Float[Tensor, "source d_model"]:
        """View of the decoder biases, for models of one width."""
        self._require_same_width("b_dec", "b_dec_flat")
        return rearrange(self.b_dec_flat, "(source d) -> source d", source=self.config.n_sources)

    def require_one_site(self) -> None:
        """Raise `SaeTrainingError` if the dictionary has several sites."""
        self.config.require_one_site()

    def model_index(self, model: str | int) -> int:
        """Place of a model, given by name or place, on the model axis of a dictionary of one site."""
        self.require_one_site()
        return self.config.source_index(model)

    def columns(self, source: str | int) -> slice:
        """Columns of a source, given by name or place, in the fused weights."""
        return self.config.columns(source)

    def encoder_of(self, source: str | int) -> Float[Tensor, "d_sae d_model"]:
        """View of the encoder of a source's scaled activation."""
        return self.encoder[:, self.columns(source)]

    def set_scale(self, scale: Float[Tensor, " source"] | Sequence[float]) -> None:
        """Set the divisor s_m of each source's activations, usually from `mean_norm_scale`.

        Raises:
            SaeTrainingError: The number of values is wrong, or a value is not positive and finite.
        """
        self.scale.copy_(checked_scale(scale, self.config.n_sources))

    @property
    def has_scale(self) -> bool:
        """Whether the scale was set; it counts as 1 until then."""
        return not bool(torch.isnan(self.scale).any())

    def column_scale(self) -> Float[Tensor, " d_all"]:
        """Scale of each column of the fused weights."""
        return column_scale(self.scale, self.config.widths)

    def flatten(self, x: Activations) -> Float[Tensor, "batch d_all"]:
        """Put the activations of all sources side by side.

        Raises:
            SaeTrainingError: The shape is not that of `Activations` for this crosscoder.
        """
        config = self.config
        if x.ndim == 3 and config.same_width and tuple(x.shape[1:]) == (config.n_sources, config.widths[0]):
            return rearrange(x, "batch source d -> batch (source d)")
        if x.ndim == 2 and x.shape[1] == config.d_all:
            return x
        expected = f"{config.n_sources}, {config.widths[0]}" if config.same_width else config.d_all
        raise SaeTrainingError(
            f"activations have shape {list(x.shape)}, but the crosscoder of {', '.join(self.source_names)} takes "
            f"[batch, {expected}]; give the activations of every {'source' if config.sites else 'model'} in that order."
        )

    def unflatten(self, x: Float[Tensor, "batch d_all"]) -> Activations:
        """Stack the sources if they have one width."""
        stacked = "batch (source d) -> batch source d"
        return rearrange(x, stacked, source=self.config.n_sources) if self.config.same_width else x

    def target(self, x: Activations) -> Float[Tensor, "batch d_all"]:
        """What the dictionary reads and reconstructs, side by side, in the units of each model.

        These are the activations. With ``reads = "difference"``, they are 0 for the first model and x_second − x_first for
        the second. The encoders of both are then opposite, so that raw activations encode like this, and only the second
        has decoders. Applying it twice changes nothing.
        """
        flat = self.flatten(x)
        return flat if self.config.reads == "activations" else second_less_first(flat)

    def scaled(self, x: Activations) -> Float[Tensor, "batch d_all"]:
        """`target`, each source divided by its scale."""
        return self.target(x).to(self.decoder.dtype) / self.column_scale()

    def hidden_pre(self, x: Activations) -> Float[Tensor, "batch d_sae"]:
        """h, the pre-activations of the latents."""
        return torch.addmm(self.b_enc, self.scaled(x), self.encoder.T)

    def feature_norm(self) -> Float[Tensor, " d_sae"]:
        """n_k = sum_m ||W_dec[k, m]||_2: the weight of a latent in selection and in the L1 penalty."""
        return sum_of_norms(self.decoder, self.config.widths)

    def activate(
        self, hidden_pre: Float[Tensor, "batch d_sae"], division: Division = ALONE
    ) -> Float[Tensor, "batch d_sae"]:
        """Apply the nonlinearity of inference to each row separately; ``division`` holds the other latents, if not all are here."""
        feature_acts = torch.relu(hidden_pre)
        scores = feature_acts.detach() * self.feature_norm().detach()
        if division.by_latents and self.config.variant == "topk":
            return feature_acts * ((scores >= division.cut(scores, self.config.k)) & (scores > 0))
        return feature_acts * self.variant.inference_mask(scores, k=self.config.k, threshold=self.threshold)

    def encode(self, x: Activations) -> Float[Tensor, "batch d_sae"]:
        """Latent activations f at inference; those of a row do not depend on the other rows."""
        return self.activate(self.hidden_pre(x))

    def decode(self, feature_acts: Float[Tensor, "batch d_sae"]) -> Activations:
        """Reconstruction of `target` of all models, in the units of each model."""
        x_hat = torch.addmm(self.b_dec_flat, feature_acts, self.decoder)
        return self.unflatten(x_hat * self.column_scale())

    def decode_model(
        self, feature_acts: Float[Tensor, "batch d_sae"], model: str | int
    ) -> Float[Tensor, "batch d_model"]:
        """Reconstructed activations of one model, or of one source, in its own units."""
        columns = self.columns(model)
        x_hat = torch.addmm(self.b_dec_flat[columns], feature_acts, self.decoder[:, columns])
        return x_hat * self.column_scale()[columns]

    def own_decoder(self, model: str | int, ids: Tensor | None = None) -> Float[Tensor, "latent d_model"]:
        """s_m W_dec[k, m], detached: what one unit of each latent adds to a model (or source), in its own units.

        Args:
            model: Name or place of the model or source.
            ids: Latents, in the order of the result; None for all.
        """
        columns = self.columns(model)
        rows = self.decoder if ids is None else self.decoder[ids]
        return (rows[:, columns] * self.column_scale()[columns]).detach()

    def own_bias(self, model: str | int) -> Float[Tensor, " d_model"]:
        """s_m b_dec[m], detached: the reconstruction without active latents, in the model's own units."""
        columns = self.columns(model)
        return (self.b_dec_flat[columns] * self.column_scale()[columns]).detach()

    def forward(self, x: Activations) -> Activations:
        """Reconstruct: ``decode(encode(x))``."""
        return self.decode(self.encode(x))

    def decoder_norm(self, p: int) -> Float[Tensor, "d_sae source"]:
        """Norm of each decoder in the source's own units, divided by sqrt(d_model) if the widths differ.

        The share of a model in the sum of a row is the MAS of the latent (arXiv 2604.25011).

        Args:
            p: 1, as MAS and NRN are defined in the papers, or 2, as in the training penalty.
        """
        if p not in (1, 2):
            raise SaeTrainingError(f"decoder_norm: p = {p} is not supported; use 1 or 2.")
        decoder = self.decoder.detach() * self.column_scale()
        parts = decoder.split(list(self.config.widths), dim=1)
        norms = torch.stack([torch.linalg.vector_norm(part, ord=p, dim=1) for part in parts], dim=1)
        if self.config.same_width:
            return norms
        return norms / torch.tensor(self.config.widths, dtype=norms.dtype, device=norms.device).sqrt()

    def model_norm(self, p: int) -> Float[Tensor, "d_sae model"]:
        """The p-norm of `decoder_norm` over the sites of each model.

        Sites with larger activations have more weight; pool ``decoder_norm(p) / scale`` to give all sites equal weight.
        """
        by_site = rearrange(self.decoder_norm(p), "d_sae (model site) -> d_sae model site", model=self.n_models)
        return by_site.squeeze(2) if self.config.n_sites == 1 else torch.linalg.vector_norm(by_site, ord=p, dim=2)

    def permuted(self, order: Sequence[int]) -> "Crosscoder":
        """The same dictionary with the models in another order: place i takes model ``order[i]``.

        Encoding, decoding and training commute with it, up to the rounding of sums over the models (about 1e-15
        relative in float64). Latents keep their places, except dedicated ones, which follow the order of the models.

        Raises:
            SaeTrainingError: ``order`` does not name every model once, or decides the sign of the difference that is read.
        """
        config, tensors = permuted(self.config, self.tensors(), order)
        return type(self).from_tensors(config, tensors).to(self.device)

    def to_sae(
        self, model: str | int, *, readout: export.Readout = "single", out: str | Path | None = None
    ) -> "SAE[Any]":
        """One model's slice as a sae-lens SAE over raw activations, defined in `sae_training.export.to_sae`.

        Args:
            model: Name or place of the model.
            readout: What fills the slots of the other models.
            out: Folder to save the SAE to, for ``sae_lens.SAE.load_from_disk``.
        """
        sae = export.to_sae(self.config, self.tensors(), self.model_index(model), readout)
        if out is not None:
            sae.save_model(Path(out))
        return sae

    def _require_same_width(self, name: str, instead: str) -> None:
        if not self.config.same_width:
            raise SaeTrainingError(
                f"{name} needs models of one width, but they have {self.config.widths}; use {instead}."
            )
