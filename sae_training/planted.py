"""Synthetic activations with known features, to test whether a crosscoder finds them.

A *feature* here is planted in the data; a *latent* is learned by a crosscoder. Token b of model m is
``scale_m (mean_m + sum_g a_bg strength_gm direction_gm + noise)``. The amount a_bg is zero for most tokens and uniform
in a range otherwise, and direction_gm has norm 1. Strength and direction depend on the model by the kind of feature g:

- shared: strength 1 and one direction in all models,
- specific: strength 1 in one model and 0 in the others,
- rotated: strength 1 and a different direction in each model,
- emerging: one direction; the strength is 0 up to one model, then rises linearly to 1 in the last (models are
  checkpoints).

Dense directions may be added, which all models share. Every token has a normally distributed amount along each of them,
which no sparse feature describes.

With several sites, a feature has the same strength and a different direction at each site of a model. The model axis
becomes the source axis of `CrosscoderConfig.sites`: all sites of the first model, then those of the second, and so on.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from einops import einsum
from jaxtyping import Bool, Float, Int
from pydantic import Field, model_validator
from torch import Tensor

from sae_training.crosscoder import Crosscoder
from sae_training.frozen import FrozenConfig

Kind = Literal["shared", "specific", "rotated", "emerging"]


class PlantedConfig(FrozenConfig):
    """Numbers and statistics of the planted features.

    Attributes:
        n_models: Number of models, or of checkpoints of one model.
        n_sites: Number of sites of each model.
        d_model: Width of the activations.
        n_shared: Number of shared features.
        n_specific: Number of features specific to each model: one number for all, or one per model.
        n_rotated: Number of rotated features.
        n_emerging: Number of emerging features.
        n_dense: Number of dense directions, which are not features and which a crosscoder need not find.
        dense_amplitude: Standard deviation of the amount of a token along each dense direction.
        rotation_cosine: Approximate cosine between the directions of a rotated feature in two models.
        density: Share of tokens on which a feature is active.
        amplitude: Range of the amount of an active feature.
        correlation: Correlation, within a group, of the normal variables that decide whether features are active.
        group_size: Number of features in a group.
        noise: Standard deviation of the noise in each coordinate.
        mean_norm: Norm of the mean activation of each model.
        model_scale: Factor of the activations of each model; () means 1.
        seed: Seed of the features; tokens have their own seeds.
    """

    n_models: int = Field(default=3, ge=2)
    n_sites: int = Field(default=1, ge=1)
    d_model: int = Field(default=32, ge=2)
    n_shared: int = Field(default=36, ge=0)
    n_specific: int | tuple[int, ...] = 4
    n_rotated: int = Field(default=0, ge=0)
    n_emerging: int = Field(default=0, ge=0)
    n_dense: int = Field(default=0, ge=0)
    dense_amplitude: float = Field(default=0.5, gt=0)
    rotation_cosine: float = Field(default=0.0, ge=0, le=1)
    density: float = Field(default=0.1, gt=0, lt=1)
    amplitude: tuple[float, float] = (0.5, 1.5)
    correlation: float = Field(default=0.0, ge=0, lt=1)
    group_size: int = Field(default=4, ge=1)
    noise: float = Field(default=0.0, ge=0)
    mean_norm: float = Field(default=0.0, ge=0)
    model_scale: tuple[float, ...] = ()
    seed: int = 0

    @model_validator(mode="after")
    def _check(self) -> "PlantedConfig":
        for name, value in (("n_specific", self.n_specific), ("model_scale", self.model_scale)):
            if isinstance(value, tuple) and value and len(value) != self.n_models:
                raise ValueError(f"{name} has {len(value)} numbers for n_models = {self.n_models}; give one per model")
        if min(self.specific_counts) < 0 or self.n_features == 0:
            raise ValueError("there are no features; give a positive n_shared, n_specific, n_rotated or n_emerging")
        return self

    @property
    def specific_counts(self) -> tuple[int, ...]:
        """Number of specific features of each model."""
        return (self.n_specific,) * self.n_models if isinstance(self.n_specific, int) else self.n_specific

    @property
    def n_features(self) -> int:
        """Number of all planted features."""
        return self.n_shared + sum(self.specific_counts) + self.n_rotated + self.n_emerging


@dataclass(frozen=True)
class PlantedFeatures:
    """The planted features, and a source of tokens made from them.

    Attributes:
        config: Numbers and statistics of the features.
        kinds: Kind of each feature.
        owner: Model of each specific feature; -1 for other features.
        strength: Strength of each feature in each source, from 0 to 1.
        directions: Direction of each feature in each source, with norm 1.
        mean: Mean activation of each source, before scaling.
        dense: Dense directions in each source, with norm 1.

    Example:
        >>> truth = PlantedFeatures.make(PlantedConfig(n_models=2, d_model=8, n_shared=3, n_specific=(1, 0)))
        >>> truth.kinds
        ('shared', 'shared', 'shared', 'specific')
        >>> truth.tokens(5, seed=0).shape
        torch.Size([5, 2, 8])
    """

    config: PlantedConfig
    kinds: tuple[Kind, ...]
    owner: Int[Tensor, " feature"]
    strength: Float[Tensor, "feature source"]
    directions: Float[Tensor, "feature source d_model"]
    mean: Float[Tensor, "source d_model"]
    dense: Float[Tensor, "dense source d_model"]

    @classmethod
    def make(cls, config: PlantedConfig) -> "PlantedFeatures":
        """Draw the features."""
        generator = torch.Generator().manual_seed(config.seed)
        n, m = config.n_features, config.n_models
        n_owned = sum(config.specific_counts)
        counts: dict[Kind, int] = {"shared": config.n_shared, "specific": n_owned}
        counts.update({"rotated": config.n_rotated, "emerging": config.n_emerging})
        kinds: list[Kind] = [kind for kind, count in counts.items() for _ in range(count)]
        owner = torch.full((n,), -1)
        owner[config.n_shared : config.n_shared + n_owned] = torch.arange(m).repeat_interleave(
            torch.tensor(config.specific_counts)
        )
        strength = torch.ones(n, m)
        for place, kind in enumerate(kinds):
            if kind == "specific":
                strength[place] = (torch.arange(m) == owner[place]).float()
            elif kind == "emerging":
                onset = place % (m - 1)
                strength[place] = ((torch.arange(m) - onset) / (m - 1 - onset)).clamp(min=0)
        sites = [_site_directions(config, kinds, generator) for _ in range(config.n_sites)]
        directions = torch.stack([site for site, _ in sites], dim=2).flatten(1, 2)
        mean = torch.stack([site_mean for _, site_mean in sites], dim=1).flatten(0, 1)
        dense = _unit(torch.randn(config.n_dense, 1, config.n_sites, config.d_model, generator=generator))
        dense = dense.repeat(1, m, 1, 1).flatten(1, 2)
        strength = strength.repeat_interleave(config.n_sites, dim=1)
        return cls(config, tuple(kinds), owner, strength, directions, mean, dense)

    @property
    def decoder(self) -> Float[Tensor, "feature source d_model"]:
        """What one unit of a feature adds to each source: the decoder that a crosscoder should find, up to a factor."""
        return einsum(
            self.directions,
            self.strength,
            self.model_scale,
            "feature source d, feature source, source -> feature source d",
        )

    @property
    def model_scale(self) -> Float[Tensor, " source"]:
        """Factor of the activations of each source."""
        by_model = torch.tensor(self.config.model_scale or (1.0,) * self.config.n_models)
        return by_model.repeat_interleave(self.config.n_sites)

    def feature_acts(self, n_tokens: int, *, seed: int) -> Float[Tensor, "token feature"]:
        """Draw the amounts of all features in ``n_tokens`` tokens."""
        config = self.config
        generator = torch.Generator().manual_seed(seed)
        n = config.n_features
        own = torch.randn(n_tokens, n, generator=generator)
        n_groups = -(-n // config.group_size)
        common = torch.randn(n_tokens, n_groups, generator=generator).repeat_interleave(config.group_size, dim=1)[:, :n]
        level = config.correlation**0.5 * common + (1 - config.correlation) ** 0.5 * own
        cut = torch.special.ndtri(torch.tensor(1 - config.density, dtype=torch.float64)).float()
        low, high = config.amplitude
        amount = low + (high - low) * torch.rand(n_tokens, n, generator=generator)
        return amount * (level > cut)

    def tokens(self, n_tokens: int, *, seed: int) -> Float[Tensor, "token source d_model"]:
        """Draw raw activations; a seed gives the tokens with the `feature_acts` of the same seed."""
        feature_acts = self.feature_acts(n_tokens, seed=seed)
        x = einsum(feature_acts, self.decoder, "token feature, feature source d -> token source d")
        x += self.mean * self.model_scale[:, None]
        if self.config.n_dense:
            generator = torch.Generator().manual_seed(seed + 2_000_003)
            amount = self.config.dense_amplitude * torch.randn(n_tokens, self.config.n_dense, generator=generator)
            x += einsum(amount, self.dense, "token dense, dense source d -> token source d") * self.model_scale[:, None]
        if self.config.noise:
            generator = torch.Generator().manual_seed(seed + 1_000_003)
            noise = self.config.noise * torch.randn(x.shape, generator=generator)
            x += noise * self.model_scale[:, None]
        return x

    def batches(self, batch_size: int, *, seed: int = 0, n_batches: int | None = None) -> "PlantedBatches":
        """A stream of batches whose position can be saved; endless if ``n_batches`` is None."""
        return PlantedBatches(self, batch_size, seed, n_batches)


class PlantedBatches:
    """Batches of planted tokens; batch number i depends only on the seed and i."""

    def __init__(self, truth: PlantedFeatures, batch_size: int, seed: int, n_batches: int | None) -> None:
        self._truth, self._batch_size, self._seed, self._n_batches = truth, batch_size, seed, n_batches
        self._number = 0

    def __iter__(self) -> Iterator[Tensor]:
        while self._n_batches is None or self._number < self._n_batches:
            self._number += 1
            # Streams with neighboring seeds must not share a batch.
            yield self._truth.tokens(self._batch_size, seed=self._seed * 1_000_000_007 + self._number)

    def state_dict(self) -> dict[str, Any]:
        """The number of batches given so far."""
        return {"number": self._number}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue after that number of batches."""
        self._number = state["number"]


@dataclass(frozen=True)
class Recovery:
    """Comparison of a crosscoder with the planted features.

    Attributes:
        cosine: For each feature, the highest cosine of its stacked decoder with that of a latent, after division of
            each model's activations by its factor.
        match: For each feature, the latent with that cosine.
        share: For each feature and model, the share of the model in the L2 decoder norm of the matched latent, over all
            sites of a model (1 / M for shared features).
        said_specific: For each latent and model, whether the latent fires and has at least ``specific_share`` there.
    """

    cosine: Float[Tensor, " feature"]
    match: Int[Tensor, " feature"]
    share: Float[Tensor, "feature model"]
    said_specific: Bool[Tensor, "d_sae model"]

    def found_specific(self, truth: PlantedFeatures, min_cosine: float = 0.9) -> Bool[Tensor, " feature"]:
        """Whether each specific feature was found and classified as specific to its model; False for other kinds."""
        specific = truth.owner >= 0
        right = self.said_specific[self.match, truth.owner.clamp(min=0)]
        return specific & right & (self.cosine >= min_cosine)


def recovery(
    crosscoder: Crosscoder, truth: PlantedFeatures, density: Float[Tensor, " d_sae"], specific_share: float = 0.9
) -> Recovery:
    """Compare a crosscoder with the features in its training data.

    Args:
        crosscoder: A crosscoder trained on `PlantedFeatures.batches`.
        truth: The planted features.
        density: Density of each latent, from `evaluate`; dead latents are never matched.
        specific_share: Share of the decoder norm above which a latent counts as specific to a model.
    """
    # Divide by the factors of the models, or the model with the largest factor would dominate the cosines.
    units = crosscoder.scale / truth.model_scale
    decoder = crosscoder.W_dec.detach() * units[:, None]
    learned, planted = decoder.flatten(1), (truth.directions * truth.strength[:, :, None]).flatten(1)
    cosine = _unit(planted) @ _unit(learned).T
    cosine[:, density.to(cosine.device) == 0] = -1.0
    best = cosine.max(dim=1)
    norm = torch.linalg.vector_norm(decoder.unflatten(1, (truth.config.n_models, -1)).flatten(2), dim=2)
    share = norm / norm.sum(dim=1, keepdim=True)
    said = (share >= specific_share) & (density > 0)[:, None]
    return Recovery(best.values, best.indices, share[best.indices], said)


def _site_directions(
    config: PlantedConfig, kinds: list[Kind], generator: torch.Generator
) -> tuple[Float[Tensor, "feature model d_model"], Float[Tensor, "model d_model"]]:
    """Directions of all features, and mean activations, at one site."""
    n, m, cosine = len(kinds), config.n_models, config.rotation_cosine
    directions = _unit(torch.randn(n, 1, config.d_model, generator=generator)).repeat(1, m, 1)
    own = _unit(torch.randn(n, m, config.d_model, generator=generator))
    for place in (place for place, kind in enumerate(kinds) if kind == "rotated"):
        directions[place] = _unit(cosine**0.5 * directions[place] + (1 - cosine) ** 0.5 * own[place])
    return directions, config.mean_norm * _unit(torch.randn(m, config.d_model, generator=generator))


def _unit(vectors: Tensor) -> Tensor:
    return vectors / torch.linalg.vector_norm(vectors, dim=-1, keepdim=True).clamp(min=1e-12)
