"""The configuration of a crosscoder; frozen, and saved beside the weights."""

from collections.abc import Callable
from typing import Any, Literal

from pydantic import Field, model_serializer, model_validator

from sae_training.errors import SaeTrainingError
from sae_training.frozen import FrozenConfig, nearest_name

Variant = Literal["batchtopk", "jumprelu", "l1", "matryoshka", "topk"]
Reads = Literal["activations", "difference"]
FREE_DENSITY = ("jumprelu", "l1")


def unusable_name(name: str) -> bool:
    """Whether a model name cannot name a file or folder, as exports and stores need."""
    too_long = len(name.encode()) > _LONGEST_NAME
    return (
        too_long or not name.strip() or name.startswith(".") or not name.isprintable() or bool({"/", "\\"} & set(name))
    )


_LONGEST_NAME = 200
"""Bytes; file systems allow 255, and files get suffixes."""


class CrosscoderConfig(FrozenConfig):
    """Shape and variant of a crosscoder.

    Attributes:
        n_models: M, the number of models that share the dictionary.
        d_model: Width of the activations: one number, or one per model if widths differ. All sites of a model have its
            width.
        d_sae: F, the number of latents.
        variant: ``batchtopk`` (default), ``topk`` (k latents per token), ``matryoshka`` (batchtopk with nested
            dictionaries), ``l1`` (the preset of arXiv 2604.25011), or ``jumprelu`` (a learned threshold per latent).
        k: Active latents per token, on average (batchtopk, matryoshka) or at most (topk); l1 and jumprelu ignore it.
        model_names: One name per model; ``model_0``, ``model_1``... by default.
        sites: Names of the sites if the dictionary reads several sites of each model; () for one site. The sources of
            the dictionary are then the pairs ``model/site``, with all sites of the first model first.
        decoder_init_norm: Initial L2 norm of each latent's decoder in each source. None means 0.08 for l1, as in
            ckkissane's replication, and 1 / sqrt(n_sources) otherwise, so that the stacked decoder has norm 1.
        shared_init: Whether the decoders of all models start from one direction per latent, so that a latent is shared
            until the data separate it. If widths differ, the initial directions are always independent.
        n_dedicated: Number of latents dedicated to each model; () for none. They come first in the dictionary, in the
            order of the models. Their encoders and decoders stay zero in all other models.
        n_shared: Number of latents designated as shared (l1 and jumprelu), which follow the dedicated ones. Their
            scaled decoders are equal in all models, and they pay ``TrainConfig.shared_penalty`` of the sparsity
            penalty.
        initial_threshold: Initial threshold on the score of each latent (jumprelu).
        prefixes: Ends of the nested dictionaries of matryoshka, increasing up to d_sae; () means an eighth, a quarter,
            a half and all of d_sae.
        seed: Seed of the initial weights.
        reads: ``activations`` of every model, or the ``difference`` of two models (an SAE on activation differences, or
            diff-SAE). See `Crosscoder.target`.
        drop_first_positions: Number of leading tokens of each sequence that the dictionary was not trained on. It describes the
            stream of activations, as does ``norm_limits``; neither changes the training.
        norm_limits: Norm of each source above which a token was left out of training; () without a limit. A token that
            exceeds the limit of one source was left out in all.
    """

    n_models: int = Field(ge=2)
    d_model: int | tuple[int, ...]
    d_sae: int = Field(ge=1)
    variant: Variant = "batchtopk"
    k: int = Field(default=32, ge=1)
    model_names: tuple[str, ...] = ()
    sites: tuple[str, ...] = ()
    decoder_init_norm: float | None = Field(default=None, gt=0)
    shared_init: bool = True
    n_dedicated: tuple[int, ...] = ()
    n_shared: int = Field(default=0, ge=0)
    initial_threshold: float = Field(default=0.1, gt=0)
    prefixes: tuple[int, ...] = ()
    seed: int = 0
    reads: Reads = "activations"
    drop_first_positions: int = Field(default=0, ge=0)
    norm_limits: tuple[float, ...] = ()

    @classmethod
    def paper(cls, **changes: Any) -> "CrosscoderConfig":
        """The settings of arXiv 2604.25011: three models, 32,768 latents, ReLU with an L1 penalty."""
        return cls(**{"n_models": 3, "d_sae": 32768, "variant": "l1", **changes})

    @model_serializer(mode="wrap")
    def _leave_out_unused(self, serialize: Callable[["CrosscoderConfig"], dict[str, Any]]) -> dict[str, Any]:
        """Leave out what is not in use, so that files and fingerprints are those of releases without these settings."""
        data = serialize(self)
        unused = {"drop_first_positions": 0, "norm_limits": (), "reads": "activations"}
        return {key: value for key, value in data.items() if key not in unused or value not in (unused[key], [])}

    @model_validator(mode="before")
    @classmethod
    def _default_names(cls, data: Any) -> Any:
        if isinstance(data, dict) and not data.get("model_names") and isinstance(data.get("n_models"), int):
            return {**data, "model_names": tuple(f"model_{index}" for index in range(data["n_models"]))}
        return data

    @model_validator(mode="after")
    def _check_names(self) -> "CrosscoderConfig":
        if len(self.model_names) != self.n_models:
            raise ValueError(
                f"model_names has {len(self.model_names)} names for n_models = {self.n_models}; give one per model"
            )
        if len(set(self.model_names)) != self.n_models:
            raise ValueError(f"model_names = {list(self.model_names)} repeats a name; give each model its own name")
        for name in self.model_names:
            if unusable_name(name):
                raise ValueError(f"model_names has {name!r}, which cannot name a file; use letters, digits, - and _")
        return self

    @model_validator(mode="after")
    def _check(self) -> "CrosscoderConfig":
        widths = (self.d_model,) if isinstance(self.d_model, int) else self.d_model
        if any(width < 1 for width in widths):
            raise ValueError(f"d_model = {self.d_model} contains a width below 1; give positive widths")
        if not isinstance(self.d_model, int) and len(self.d_model) != self.n_models:
            raise ValueError(
                f"d_model has {len(self.d_model)} widths for n_models = {self.n_models}; give one per model"
            )
        if self.prefixes and self.variant != "matryoshka":
            raise ValueError(f"prefixes apply to variant 'matryoshka', not to {self.variant!r}; remove them")
        if (0, *self.prefix_ends) != tuple(sorted({0, *self.prefix_ends})) or self.prefix_ends[-1] != self.d_sae:
            raise ValueError(f"prefixes = {list(self.prefixes)} must be positive and increase to d_sae = {self.d_sae}")
        if self.n_dedicated and (len(self.n_dedicated) != self.n_models or min(self.n_dedicated) < 0):
            raise ValueError(
                f"n_dedicated = {list(self.n_dedicated)} must have one count for each of {self.n_models} models"
            )
        if sum(self.n_dedicated) > self.d_sae:
            raise ValueError(
                f"n_dedicated adds up to {sum(self.n_dedicated)}, more than d_sae = {self.d_sae}; lower it"
            )
        if self.variant not in FREE_DENSITY and self.k > self.d_sae:
            raise ValueError(f"k = {self.k} exceeds d_sae = {self.d_sae}; lower k or raise d_sae")
        return self

    @model_validator(mode="after")
    def _check_shared(self) -> "CrosscoderConfig":
        if not self.n_shared:
            return self
        if self.variant not in FREE_DENSITY:
            raise ValueError(
                f"n_shared = {self.n_shared} reduces the sparsity penalty, which variant {self.variant!r} does not have; "
                "use l1 or jumprelu"
            )
        if not self.same_width:
            raise ValueError(
                f"n_shared = {self.n_shared} ties the decoders of all models, but they have widths {list(self.widths)}; "
                "use models of one width"
            )
        if self.n_shared + sum(self.n_dedicated) > self.d_sae:
            raise ValueError(
                f"n_shared and n_dedicated add up to {self.n_shared + sum(self.n_dedicated)}, more than d_sae = "
                f"{self.d_sae}; lower one"
            )
        return self

    @model_validator(mode="after")
    def _check_difference(self) -> "CrosscoderConfig":
        if self.reads == "activations":
            return self
        if self.n_models != 2:
            raise ValueError(
                f"reads = 'difference' compares two models, not {', '.join(self.model_names)}; name two, the earlier one first"
            )
        if not self.same_width:
            raise ValueError(f"reads = 'difference' needs models of one width, but they have {list(self.widths)}")
        if self.n_shared or sum(self.n_dedicated):
            raise ValueError("reads = 'difference' has no shared or dedicated latents; remove n_shared and n_dedicated")
        return self

    @model_validator(mode="after")
    def _check_sites(self) -> "CrosscoderConfig":
        if len(self.sites) == 1:
            raise ValueError(f"sites = {list(self.sites)} names a single site; leave sites out for one site")
        names = (*self.source_names, *self.model_names) if self.sites else self.model_names
        if len(set(names)) != len(names):
            raise ValueError(f"sites = {list(self.sites)} gives two sources the same name; give each site its own name")
        return self

    @model_validator(mode="after")
    def _check_limits(self) -> "CrosscoderConfig":
        if self.norm_limits and len(self.norm_limits) != self.n_sources:
            raise ValueError(
                f"norm_limits has {len(self.norm_limits)} numbers for {self.n_sources} sources; give one for each"
            )
        if any(not limit > 0 for limit in self.norm_limits):
            raise ValueError(f"norm_limits = {list(self.norm_limits)} must be positive")
        return self

    @property
    def prefix_ends(self) -> tuple[int, ...]:
        """Ends of the nested dictionaries; ``(d_sae,)`` for all variants except matryoshka."""
        if self.variant != "matryoshka":
            return (self.d_sae,)
        return self.prefixes or tuple(sorted({max(1, self.d_sae // part) for part in (8, 4, 2, 1)}))

    @property
    def n_sites(self) -> int:
        """S, the number of sites of each model."""
        return max(1, len(self.sites))

    @property
    def n_sources(self) -> int:
        """Number of activations of one token that the dictionary reads: M for one site, M * S for several."""
        return self.n_models * self.n_sites

    @property
    def reconstructed(self) -> tuple[str, ...]:
        """The sources that have decoders: all, or those of the second model where the difference is read."""
        return self.source_names[self.n_sites :] if self.reads == "difference" else self.source_names

    @property
    def source_names(self) -> tuple[str, ...]:
        """Names of the sources in the order of the source axis: the models for one site, ``model/site`` for several."""
        if not self.sites:
            return self.model_names
        return tuple(f"{model}/{site}" for model in self.model_names for site in self.sites)

    @property
    def shared_rows(self) -> slice:
        """Rows of the latents designated as shared."""
        first = sum(self.n_dedicated)
        return slice(first, first + self.n_shared)

    @property
    def widths(self) -> tuple[int, ...]:
        """Width of each source."""
        by_model = (self.d_model,) * self.n_models if isinstance(self.d_model, int) else self.d_model
        return tuple(width for width in by_model for _ in range(self.n_sites))

    def require_one_site(self) -> None:
        """Refuse a dictionary of several sites where one residual per model is read.

        Raises:
            SaeTrainingError: The dictionary has several sites.
        """
        if self.sites:
            raise SaeTrainingError(
                f"the crosscoder reads {self.n_sites} sites of each model ({', '.join(self.sites)}), which only training "
                "and evaluation support; train a crosscoder on a single site for everything that follows."
            )

    def require_activations(self, what: str) -> None:
        """Refuse a dictionary of the difference where ``what`` needs the activations of single models.

        Raises:
            SaeTrainingError: The dictionary reads the difference between two models.
        """
        if self.reads == "difference":
            raise SaeTrainingError(
                f"{what} needs a dictionary of the activations of each model, but this one reads the difference between "
                f"{' and '.join(self.model_names)}; take a crosscoder with reads = 'activations'."
            )

    def source_index(self, source: str | int) -> int:
        """The place of a source, given by name or place, on the source axis.

        Raises:
            SaeTrainingError: There is no such source.
        """
        names, kind = self.source_names, "source" if self.sites else "model"
        if isinstance(source, str):
            if source in names:
                return names.index(source)
            nearest = nearest_name(source, names)
            fix = f"did you mean {nearest!r}?" if nearest else f"the {kind}s are {', '.join(names)}."
            raise SaeTrainingError(f"the crosscoder has no {kind} {source!r}; {fix}")
        if not 0 <= source < len(names):
            raise SaeTrainingError(
                f"{kind} {source} is out of range; the crosscoder has {kind}s 0 to {len(names) - 1}."
            )
        return source

    def columns(self, source: str | int) -> slice:
        """The columns of a source, given by name or place, in the fused weights."""
        index = self.source_index(source)
        start = sum(self.widths[:index])
        return slice(start, start + self.widths[index])

    @property
    def same_width(self) -> bool:
        """Whether all sources have one width, so that activations can be stacked as ``[batch source d_model]``."""
        return len(set(self.widths)) == 1

    @property
    def d_all(self) -> int:
        """Sum of the widths: the columns of the fused weights."""
        return sum(self.widths)
