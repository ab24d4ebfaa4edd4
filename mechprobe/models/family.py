"""A model family: a base model and models trained from it, with one tokenizer and one number of layers."""

import copy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from mechprobe.errors import ModelError
from mechprobe.models.devices import DeviceMap
from mechprobe.models.load import LanguageModel, tokenizer_fingerprint
from mechprobe.types import Site
from sae_training.config import unusable_name

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class ModelFamily:
    """Models by name, all with one tokenizer and one number of layers.

    Example:
        >>> family = ModelFamily.load({"base": "lab/base", "rl": "lab/rl"})  # doctest: +SKIP
        >>> family["rl"].n_layers  # doctest: +SKIP
        3
    """

    def __init__(self, models: Mapping[str, LanguageModel]) -> None:
        if not models:
            raise ModelError("No model is given; give them as --models base=PATH rl=PATH.")
        self._models = dict(models)
        self._check()
        self._end_token_ids = tuple(sorted({token for model in self for token in model.own_end_ids}))
        self._n_token_ids = min(model.n_rows for model in self)
        for model in self:
            model.join(end_ids=self._end_token_ids, n_token_ids=self._n_token_ids)

    @classmethod
    def load(
        cls,
        models: Mapping[str, str | Path],
        *,
        device: str = "cpu",
        dtype: str = "float32",
        device_map: DeviceMap | None = None,
        trust_remote_code: bool = False,
    ) -> "ModelFamily":
        """Find every model and check that they form a family. Weights are loaded on first use.

        Args:
            models: Name to local folder or hub name (``org/name``, ``org/name@revision``). The checkpoint of ``rl`` at step 40
                is named ``rl@step_000040``.
            device: torch device of the models.
            dtype: ``float32``, ``bfloat16`` or ``float16``.
            device_map: How accelerate distributes each model over devices, see `DeviceMap`; None places it on ``device``.
            trust_remote_code: Whether Python code in the model folders may run.

        Raises:
            ModelError: A folder is missing or unusable, a name cannot be the name of a folder, a device is unknown, or
                tokenizers or numbers of layers differ.
        """
        loaded = {}
        for name, path in models.items():
            if unusable_name(name):
                raise ModelError(f"A model cannot be named '{name}': stores name a folder after it; rename the model.")
            loaded[name] = LanguageModel(
                name, path, device=device, dtype=dtype, device_map=device_map, trust_remote_code=trust_remote_code
            )
        return cls(loaded)

    def _check(self) -> None:
        first, *others = self._models.values()
        reference = tokenizer_fingerprint(first.tokenizer)
        for model in others:
            found = tokenizer_fingerprint(model.tokenizer)
            if found != reference:
                raise ModelError(
                    f"Models {first.name} and {model.name} have different tokenizers ({reference[:12]} and {found[:12]}); "
                    "give models that share one tokenizer."
                )
            if model.n_layers != first.n_layers:
                raise ModelError(
                    f"Models {first.name} and {model.name} have {first.n_layers} and {model.n_layers} layers; "
                    "give models of the same depth, because a site must exist in all of them."
                )
        self._tokenizer_fingerprint = reference

    def __getitem__(self, name: str) -> LanguageModel:
        if name not in self._models:
            raise ModelError(f"The family has no model '{name}'; it has {', '.join(self._models)}.")
        return self._models[name]

    def __contains__(self, name: object) -> bool:
        return name in self._models

    def __iter__(self) -> Iterator[LanguageModel]:
        return iter(self._models.values())

    def __len__(self) -> int:
        return len(self._models)

    @property
    def names(self) -> tuple[str, ...]:
        """Names in the given order, which is the order of the ``model`` axis of every tensor."""
        return tuple(self._models)

    @property
    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """The tokenizer that all models share."""
        return next(iter(self)).tokenizer

    @property
    def tokenizer_fingerprint(self) -> str:
        """sha256 that all tokenizers of the family share."""
        return self._tokenizer_fingerprint

    @property
    def n_layers(self) -> int:
        """Number of transformer blocks of every model."""
        return next(iter(self)).n_layers

    @property
    def d_model(self) -> dict[str, int]:
        """Width of the residual stream of each model."""
        return {model.name: model.d_model for model in self}

    @property
    def fingerprints(self) -> dict[str, str]:
        """Name to sha256 of weights and config, for manifests."""
        return {model.name: model.fingerprint for model in self}

    @property
    def reduced_dtypes(self) -> dict[str, dict[str, str]]:
        """Entry ``model_dtypes`` of a stage's identity, if any model is not in float32; results depend on the dtype."""
        found = {model.name: model.dtype for model in self if model.dtype != "float32"}
        return {"model_dtypes": found} if found else {}

    @property
    def end_token_ids(self) -> tuple[int, ...]:
        """Ids of the tokens that end a response of any model of the family; they end the responses of all models."""
        return self._end_token_ids

    @property
    def n_token_ids(self) -> int:
        """Ids below this number have a row in the embedding of every model."""
        return self._n_token_ids

    @property
    def max_context(self) -> int:
        """Longest sequence that every model accepts, in tokens."""
        return min(model.max_context for model in self)

    def subset(self, *names: str) -> "ModelFamily":
        """A family of some of the models, which shares their loaded weights, and the end tokens of the whole family."""
        part = copy.copy(self)
        part._models = {name: self[name] for name in names}
        return part

    def sites(self) -> list[Site]:
        """Every site, from the first layer to the last."""
        return [Site(layer=layer) for layer in range(self.n_layers)]

    def release(self) -> None:
        """Free the loaded weights of every model."""
        for model in self:
            model.release()
