"""A model family: a base model and models trained from it, with one vocabulary and one number of layers."""

import copy
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mechprobe.errors import ModelError
from mechprobe.json_fields import printable_models
from mechprobe.models.devices import DeviceMap
from mechprobe.models.load import LanguageModel
from mechprobe.models.tokenizers import Item, SharedTokenizer
from mechprobe.progress import activity
from mechprobe.types import Site
from sae_training.config import unusable_name

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


class ModelFamily:
    """Models by name, all with one vocabulary and one number of layers.

    Example:
        >>> family = ModelFamily.load({"base": "lab/base", "rl": "lab/rl"})  # doctest: +SKIP
        >>> family["rl"].n_layers  # doctest: +SKIP
        3
    """

    def __init__(self, models: Mapping[str, LanguageModel], *, bos_decided: bool = False) -> None:
        if not models:
            raise ModelError("No model is given; give them as --models base=PATH rl=PATH.")
        self._models = dict(models)
        for model in self:
            _ = model.config, model.architecture
        check_depth(self)
        self._tokenizers = {model.name: model.tokenizer for model in self}
        self._shared = SharedTokenizer(self._tokenizers, bos_decided=bos_decided)
        reference = self._shared.reference  # first, because the first encodes plain text
        self._tokenizers = {reference.name: reference.tokenizer, **self._tokenizers}
        self._end_token_ids = tuple(sorted({token for model in self for token in model.own_end_ids}))
        self._n_token_ids = min(model.n_rows for model in self)
        for model in self:
            model.tokenizers = self._tokenizers
            model.join(end_ids=self._end_token_ids, n_token_ids=self._n_token_ids)

    @classmethod
    def load(
        cls,
        models: Mapping[str, str | Path],
        *,
        device: str = "cpu",
        dtype: str = "auto",
        device_map: DeviceMap | None = None,
        attention: str = "eager",
        tf32: bool = False,
        trust_remote_code: bool = False,
        bos_decided: bool = False,
    ) -> "ModelFamily":
        """Find every model and check that they form a family. Weights are loaded on first use.

        Args:
            models: Name to local folder or hub name (``org/name``, ``org/name@revision``). The checkpoint of ``rl`` at step 40
                is named ``rl@step_000040``.
            device: torch device of the models.
            dtype: ``float32``, ``bfloat16``, ``float16``, or ``auto``: that of each model's files on a GPU, float32 on a CPU.
            device_map: How accelerate distributes each model over devices, see `DeviceMap`; None places it on ``device``.
            attention: ``eager``, ``sdpa`` or ``flash``.
            tf32: Whether float32 matrix products of the models use TF32 on NVIDIA cards.
            trust_remote_code: Whether Python code in the model folders may run.
            bos_decided: Whether the run decides that sequences begin with BOS (``text.bos``, or a chat template). Otherwise
                tokenizers that disagree on it are refused.

        Raises:
            ModelError: A folder is missing or unusable, its tensors are not those of its architecture, a name cannot be the
                name of a folder, a device is unknown, numbers of layers differ, or tokenizers give a text other ids.
            DependencyError: A model is an adapter and peft is not installed.
        """
        loaded = {}
        printable_models(models, "models")
        for name, path in models.items():
            if unusable_name(name):
                raise ModelError(f"A model cannot be named '{name}': stores name a folder after it; rename the model.")
            with activity(f"finding model {name}"):
                loaded[name] = LanguageModel(
                    name,
                    path,
                    device=device,
                    dtype=dtype,
                    device_map=device_map,
                    attention=attention,
                    tf32=tf32,
                    trust_remote_code=trust_remote_code,
                )
        with activity("checking the models and their tokenizers"):
            family = cls(loaded, bos_decided=bos_decided)
        for line in family.notes:
            logger.warning("%s", line)
        return family

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know about these models, as sentences: tokenizers that differ, ids without rows, adapters."""
        return (*self._shared.differences, *self._rows(), *self._adapters(), *self._unused(), *self._mixed())

    def _rows(self) -> list[str]:
        """Tokens that the family's tokenizer has, but some model has no embedding row for."""
        few = [model.name for model in self if model.n_rows < len(self._shared.reference.by_id)]
        if not few:
            return []
        return [
            f"Ids from {self._n_token_ids} on have no embedding row in {', '.join(few)}; no model writes them, and a prompt "
            "that has one is refused."
        ]

    def _adapters(self) -> list[str]:
        paths = {model.path.resolve() for model in self}
        outside = {model.name: model.folder.root.path for model in self if model.folder.base is not None}
        return [
            f"{name} is an adapter of {path}, which is not a model of the family."
            for name, path in outside.items()
            if path.resolve() not in paths
        ]

    def _unused(self) -> list[str]:
        found = {model.name: model.architecture.unused for model in self if model.architecture is not None}
        return [
            f"{name} is loaded without the tensors that none of its modules uses ({len(unused)}, such as {unused[0]})."
            for name, unused in found.items()
            if unused
        ]

    def _mixed(self) -> list[str]:
        found = {model.name: model.dtype for model in self}
        if len(set(found.values())) == 1:
            return []
        named = ", ".join(f"{name} in {dtype}" for name, dtype in found.items())
        return [
            f"Models run in the dtypes of their files, {named}, so differences contain rounding; one dtype for all avoids that."
        ]

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
        """The tokenizer that all models share; where they differ in extra tokens, the one that has most."""
        return self._shared.reference.tokenizer

    @property
    def tokenizers(self) -> "dict[str, PreTrainedTokenizerBase]":
        """Name to tokenizer, for every model of the family that was loaded; a subset keeps those of the whole."""
        return self._tokenizers

    @property
    def tokenizer_fingerprint(self) -> str:
        """sha256 of `tokenizer`; where others of the family differ from it, `identity` says how."""
        return self._shared.fingerprint

    def check_ids(
        self,
        used: "PreTrainedTokenizerBase",
        items: Iterable[Item],
        encode: Callable[["PreTrainedTokenizerBase", Item], Sequence[int]],
    ) -> None:
        """Check that every model knows the ids of every prompt, and that its own tokenizer would give the same.

        Takes no time where all tokenizers are equal and every model has a row for each of their tokens.

        Args:
            used: The tokenizer whose ids all models read.
            items: Prompts, or whatever ``encode`` takes.
            encode: Gives the ids of a prompt under a tokenizer.

        Raises:
            InputError: An id has no embedding in some model.
            ModelError: A model lacks a token, or its tokenizer splits a prompt differently; the message names prompt and ids.
        """
        self._shared.check_ids(used, self.n_token_ids, items, encode)

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
    def arithmetic(self) -> dict[str, Any]:
        """What results depend on in the way models are computed: dtypes other than float32, attention other than eager, TF32."""
        first = next(iter(self))
        attention = {"attention": first.attention} if first.attention != "eager" else {}
        tf32 = {"tf32": True} if any(model.tf32 for model in self) else {}
        return {**self.reduced_dtypes, **attention, **tf32}

    @property
    def runs_as(self) -> str:
        """One sentence: dtype, device and attention of the models."""
        first, dtypes = next(iter(self)), {model.name: model.dtype for model in self}
        named = ", ".join(f"{name} in {dtype}" for name, dtype in dtypes.items())
        dtype = named if len(set(dtypes.values())) > 1 else f"in {first.dtype}"
        place = f"with device_map {first.device_map}" if first.device_map is not None else f"on {first.device}"
        tf32 = ", TF32" if any(model.tf32 for model in self) else ""
        return f"Models run {dtype} {place}, {first.attention} attention{tf32}."

    @property
    def tokenizer_identity(self) -> dict[str, list[str]]:
        """Entry ``tokenizers`` of a stage's identity, if they differ: what the others do differently."""
        return {"tokenizers": list(self._shared.differences)} if self._shared.differences else {}

    @property
    def end_token_ids(self) -> tuple[int, ...]:
        """Ids of the tokens that end a response of any model of the family; they end the responses of all models."""
        return self._end_token_ids

    @property
    def n_token_ids(self) -> int:
        """Ids below this number have a row in the embedding of every model."""
        return self._n_token_ids

    @property
    def identity(self) -> dict[str, Any]:
        """What a stage's results depend on besides the weights: dtypes, and tokenizers and end tokens where models differ."""
        differ = len({model.own_end_ids for model in self}) > 1 or self.end_token_ids != next(iter(self)).own_end_ids
        ends = {"end_token_ids": list(self.end_token_ids)} if differ else {}
        return {**self.arithmetic, **self.tokenizer_identity, **ends}

    @property
    def pad_id(self) -> int:
        """Id that fills padding, which is masked."""
        return next(iter(self)).pad_id

    @property
    def max_context(self) -> int:
        """Longest sequence that every model accepts, in tokens."""
        return min(model.max_context for model in self)

    def subset(self, *names: str) -> "ModelFamily":
        """A family of some of the models, which shares their loaded weights, and the tokenizers of the whole family."""
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


def check_depth(models: Iterable[LanguageModel]) -> None:
    """Raise `ModelError` for models of different numbers of layers."""
    first, *others = models
    for model in others:
        if model.n_layers != first.n_layers:
            raise ModelError(
                f"Models {first.name} and {model.name} have {first.n_layers} and {model.n_layers} layers; "
                "give models of the same depth, because a site must exist in all of them."
            )
