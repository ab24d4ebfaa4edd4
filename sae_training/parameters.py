"""The trained parameters, the coefficients of a step, and the ties that a configuration sets between parameters."""

from dataclasses import dataclass

import torch
from einops import reduce, repeat
from jaxtyping import Float
from torch import Tensor, nn

from sae_training.config import CrosscoderConfig
from sae_training.weights import common, dedicated_mask


@dataclass(frozen=True)
class Parameters:
    """The trained parameters, for scaled and centered activations.

    Attributes:
        encoder: Encoder of the crosscoder.
        decoder: Decoder of the crosscoder.
        b_enc: Encoder bias of the crosscoder plus ``encoder @ center``.
        b_dec: Decoder bias of the crosscoder minus ``center``.
        widths: Width of each source in the columns.
        prefixes: Ends of the nested dictionaries, increasing; ``(d_sae,)`` without nesting.
        log_threshold: Logarithm of the threshold on each latent's score (jumprelu); None for other variants.
    """

    encoder: nn.Parameter
    decoder: nn.Parameter
    b_enc: nn.Parameter
    b_dec: nn.Parameter
    widths: tuple[int, ...]
    prefixes: tuple[int, ...]
    log_threshold: nn.Parameter | None = None

    def all(self) -> tuple[nn.Parameter, ...]:
        """All parameters in the order of the optimizer."""
        weights = (self.encoder, self.decoder, self.b_enc, self.b_dec)
        return weights if self.log_threshold is None else (*weights, self.log_threshold)

    def of_latents(self) -> tuple[nn.Parameter, ...]:
        """The parameters with an axis of latents: all but the decoder bias."""
        return tuple(parameter for parameter in self.all() if parameter is not self.b_dec)


@dataclass(frozen=True)
class StepWeights:
    """Coefficients of one step.

    Attributes:
        l1: Coefficient lambda of the l1 variant.
        aux: Coefficient alpha of the auxiliary loss.
        aux_k: Number of dead latents per token in the auxiliary loss.
        n_dead: Number of dead latents in all processes; None where they are all here.
        aux_stride: The auxiliary loss uses every ``aux_stride``-th token.
        l0: Coefficient lambda of the jumprelu variant.
        bandwidth: Bandwidth eps of the jumprelu variant.
        share: ``[d_sae]``, share of lambda that each latent pays; None if all pay the whole.
        delta: Coefficient of the delta loss.
        units: ``[model site]``, scale of each source over the mean of its site, for the delta loss.
    """

    l1: float
    aux: float
    aux_k: int
    n_dead: int | None = None
    aux_stride: int = 1
    l0: float = 0.0
    bandwidth: float = 1.0
    share: Float[Tensor, " d_sae"] | None = None
    delta: float = 0.0
    units: Float[Tensor, "model site"] | None = None

    def penalty(self, coefficient: float, place: slice) -> float | Float[Tensor, " part"]:
        """The coefficient that the latents of a block pay."""
        return coefficient if self.share is None else coefficient * self.share[place]


class Ties:
    """What a configuration ties.

    Dedicated latents stay at zero in other models, the decoders of shared latents are equal in all models, and the encoders of
    two models are opposite where the dictionary reads their difference.
    """

    def __init__(self, config: CrosscoderConfig, rows: slice, like: Tensor) -> None:
        """Prepare the ties of the latents ``rows``, for gradients of the type and device of ``like``."""
        self._config, self._shared = config, common(rows, config.shared_rows)
        mask = dedicated_mask(config, rows)
        self._mask = None if mask is None else mask.to(like)

    def penalty_share(self, b_enc: Float[Tensor, " latent"], share: float) -> Float[Tensor, " latent"] | None:
        """``share`` for shared latents and 1 for the others; None where no latent is shared."""
        if not self._config.n_shared:
            return None
        shares = torch.ones_like(b_enc.detach())
        shares[self._shared] = share
        return shares

    @torch.no_grad()
    def constrain(self, parameters: Parameters) -> None:
        """Change the gradients so that an update keeps the ties."""
        encoder, decoder, config = parameters.encoder.grad, parameters.decoder.grad, self._config
        assert encoder is not None, "every step sets the gradients"
        assert decoder is not None, "every step sets the gradients"
        if self._mask is not None:
            encoder.mul_(self._mask)
            decoder.mul_(self._mask)
        if config.n_shared:
            tied = decoder[self._shared]
            mean = reduce(tied, "latent (model d) -> latent d", "mean", model=config.n_models)
            tied.copy_(repeat(mean, "latent d -> latent (model d)", model=config.n_models))
        if config.reads == "difference":
            first, second = encoder.chunk(2, dim=1)
            first.copy_(-second)
