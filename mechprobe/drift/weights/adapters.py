"""LoRA adapters as factors of an update, ΔW = scaling · B A, without the model that they adapt."""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mechprobe.drift.weights.stored import View, read_block, views
from mechprobe.errors import ModelError
from mechprobe.models.checkpoint import read_header
from mechprobe.models.folder import ADAPTER_CONFIG, adapter_config, adapter_weights

_FACTOR = re.compile(r"(?P<module>.+)\.lora_(?P<embedding>embedding_)?(?P<side>[AB])(\.default)?(\.weight)?")
_WRAPPERS = ("modules_to_save.", "modules_to_save.default.", "base_layer.")
_CHANGES_BASE = ("pissa", "olora", "corda", "lora_ga", "loftq")
"""Ways to initialise LoRA that change the weights of the base, so that B A is not the update."""


@dataclass(frozen=True)
class Factors:
    """A matrix ``left @ right`` of low rank, in float64."""

    left: Float[Tensor, "row rank"]
    right: Float[Tensor, "rank column"]

    def block(self, start: int, stop: int, *, tall: bool) -> Float[Tensor, "place short"]:
        """Rows of the matrix, or columns of one that is not tall; the longer side comes first."""
        return self.left[start:stop] @ self.right if tall else self.right[:, start:stop].T @ self.left.T

    def plus(self, other: "Factors | None") -> "Factors":
        """The sum of two products, as one product of the joined factors."""
        if other is None:
            return self
        return Factors(torch.cat([self.left, other.left], dim=1), torch.cat([self.right, other.right], dim=0))


@dataclass
class Adapter:
    """One LoRA adapter.

    Attributes:
        path: Its folder.
        pairs: Module → views of A and of B.
        whole: Parameter → the view that replaces the base's.
    """

    path: Path
    role: str
    config: Mapping[str, Any]
    pairs: dict[str, dict[str, View]] = field(default_factory=dict)
    embeddings: set[str] = field(default_factory=set)
    whole: dict[str, View] = field(default_factory=dict)

    def check(self, module: str, shape: tuple[int, ...], name: str) -> None:
        """Raise `ModelError` if a module's factors do not give a matrix of the shape that its base has."""
        product = self._product(module)
        if shape not in (product, product[::-1]):
            raise ModelError(
                f"Model {self.role}: the adapter in {self.path} changes {name} by a matrix of {list(product)}, but its base has "
                f"{list(shape)} there; give the base that it was trained on as base_model_name_or_path."
            )

    def factors(self, module: str, shape: tuple[int, ...]) -> Factors:
        """The update of a module's matrix of the given shape."""
        a, b = (_whole(self.pairs[module][side]) for side in "AB")
        b = b * self._scaling(module, len(a))
        product = self._product(module)
        transposed = module in self.embeddings or bool(self.config.get("fan_in_fan_out"))
        if product != shape or (
            transposed and product[::-1] == shape
        ):  # old versions of peft did not record it for Conv1D
            return Factors(a.T, b.T)
        return Factors(b, a)

    def _product(self, module: str) -> tuple[int, ...]:
        """Shape of B A, from the headers; () if they do not belong together."""
        a, b = (self.pairs[module][side].shape for side in "AB")
        return (b[0], a[1]) if len(a) == len(b) == 2 and a[0] == b[1] else ()

    def _scaling(self, module: str, rank: int) -> float:
        alpha = _by_pattern(self.config.get("alpha_pattern"), module, self.config.get("lora_alpha", 8))
        return float(alpha) / (math.sqrt(rank) if self.config.get("use_rslora") else rank)


def _whole(view: View) -> Float[Tensor, "row column"]:
    block = read_block(view, 0, view.long).double()
    return block if view.tall else block.T


def _by_pattern(patterns: Any, module: str, default: Any) -> Any:
    """The value of the first pattern that ends the name of a module, as peft reads rank and alpha patterns."""
    found = (value for key, value in (patterns or {}).items() if re.fullmatch(rf"(.*\.)?({key})", module))
    return next(found, default)


def read_adapter(path: Path, *, role: str) -> Adapter:
    """Read which parameters a LoRA adapter changes, from the header of its file.

    Raises:
        ModelError: The adapter is of another kind, whose update is not the product of two factors, or lacks a factor.
    """
    config = adapter_config(path, role)
    _refuse_kind(config, path, role)
    file = adapter_weights(path)
    adapter = Adapter(path, role, config)
    for key, stored in read_header(file, role=role).items():
        name = key.removeprefix("base_model.model.")
        match = _FACTOR.fullmatch(name)
        (view, *_) = views(file, key, stored)
        if match:
            adapter.pairs.setdefault(match["module"], {})[match["side"]] = view
            if match["embedding"]:
                adapter.embeddings.add(match["module"])
        elif "lora_" in name or "trainable_tokens" in name:
            raise _other_kind(path, role, f"the tensor {name}")
        else:
            for part in _WRAPPERS:
                name = name.replace(part, "")
            adapter.whole[name] = view
    lacking = next((module for module, pair in adapter.pairs.items() if len(pair) < 2), None)
    if lacking is not None:
        raise ModelError(
            f"Model {role}: the adapter in {path} has one factor of {lacking} but not the other; save the adapter again."
        )
    return adapter


def _refuse_kind(config: Mapping[str, Any], path: Path, role: str) -> None:
    kind = config.get("peft_type")
    if kind != "LORA":
        raise _other_kind(path, role, f"peft_type {kind}")
    if config.get("use_dora"):
        raise _other_kind(path, role, "DoRA")
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_CHANGES_BASE):
        raise _other_kind(path, role, f"init_lora_weights {start}, which changes the base")


def _other_kind(path: Path, role: str, what: str) -> ModelError:
    return ModelError(
        f"Model {role}: the adapter in {path} is no plain LoRA ({what} in {ADAPTER_CONFIG} or its weights), so its update is "
        "not the product of two factors; merge it (merge_and_unload of peft) and give the merged folder."
    )


def matching(name: str, names: Iterable[str]) -> str | None:
    """The one of ``names`` that is ``name``, up to a prefix on either side; None if none or several are."""
    names = list(names)
    if name in names:
        return name
    found = [each for each in names if name.endswith(f".{each}") or each.endswith(f".{name}")]
    return found[0] if len(found) == 1 else None
