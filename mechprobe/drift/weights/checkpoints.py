"""The weights of a model as its files hold them: whole weights, or whole weights and LoRA adapters on them."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mechprobe.drift.weights.adapters import Adapter, Factors, matching, read_adapter
from mechprobe.drift.weights.naming import place_of
from mechprobe.drift.weights.stored import View, read_block, views
from mechprobe.errors import ModelError
from mechprobe.models.checkpoint import StoredTensor, read_header, weight_files
from mechprobe.models.folder import ModelFolder, find_model

_BUFFER = re.compile(r"(rotary_emb\.inv_freq|\.masked_bias|\.attn\.bias|\.attention\.bias)$")
"""Constants that old checkpoints hold beside the weights; a mask named as a bias has four dimensions."""


@dataclass(frozen=True)
class Weight:
    """A vector or matrix of a model: what a file holds, plus the product of an adapter's factors."""

    stored: View
    factors: Factors | None = None

    def block(self, start: int, stop: int, dtype: torch.dtype) -> Tensor:
        """A block as in `mechprobe.drift.weights.stored.read_block`, in another dtype."""
        block = read_block(self.stored, start, stop).to(dtype)
        if self.factors is None:
            return block
        return block + self.factors.block(start, stop, tall=self.stored.tall).to(dtype)


@dataclass
class Checkpoint:
    """One model.

    Attributes:
        role: Its name in the run.
        folder: Where its files are.
        views: Name → what the file of whole weights holds.
        adapters: The adapters on it, in order.
        config: ``config.json`` of the whole weights.
    """

    role: str
    folder: ModelFolder
    views: dict[str, View]
    config: dict[str, Any]
    adapters: list[Adapter] = field(default_factory=list)
    _changed: dict[str, list[tuple[Adapter, str, View | None]]] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        """Folder of the model, or of its last adapter."""
        return self.folder.path

    @property
    def kind(self) -> str:
        """``adapter`` or ``whole``."""
        return "adapter" if self.adapters else "whole"

    def weight(self, name: str) -> Weight:
        """The weight with this name; an adapter's factors are read now."""
        view, factors = self.views[name], None
        for adapter, module, whole in self._changed.get(name, ()):
            if whole is not None:
                view, factors = whole, None
            else:
                factors = adapter.factors(module, view.shape).plus(factors)
        return Weight(view, factors)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a weight."""
        whole = [view for _, _, view in self._changed.get(name, ()) if view is not None]
        return (whole[-1] if whole else self.views[name]).shape

    def attach(self, adapter: Adapter) -> None:
        """Add an adapter; raise `ModelError` where it changes what its base lacks."""
        self.adapters.append(adapter)
        changes = {f"{module}.weight": (module, None) for module in adapter.pairs}
        for wanted, (module, whole) in [*changes.items(), *((n, ("", view)) for n, view in adapter.whole.items())]:
            name = matching(wanted, self.views) or self._untied(wanted)
            if name is None:
                raise ModelError(
                    f"Model {self.role}: the adapter in {adapter.path} changes {wanted}, which its base does not have; give the "
                    "base that it was trained on as base_model_name_or_path."
                )
            if whole is None:
                adapter.check(module, self.shape(name), name)
            self._changed.setdefault(name, []).append((adapter, module, whole))

    def _untied(self, wanted: str) -> str | None:
        """Give a head that was the embedding weights of its own, because an adapter changes one of the two."""
        embedding = self.one_of("embed")
        if place_of(wanted).kind != "lm_head" or embedding is None:
            return None
        self.views[wanted] = self.views[embedding]
        return wanted

    def one_of(self, kind: str) -> str | None:
        """Name of the only matrix of a module type; None if there is none or several."""
        found = [name for name, view in self.views.items() if place_of(name).kind == kind and len(view.shape) == 2]
        return found[0] if len(found) == 1 else None

    def changes(self, name: str) -> bool:
        """Whether an adapter changes a weight."""
        return name in self._changed

    @property
    def tied_by_config(self) -> bool:
        """Whether ``config.json`` says that head and embedding are one."""
        nested = self.config.get("text_config")
        return any(part.get("tie_word_embeddings") is True for part in (self.config, nested or {}))

    def own_views(self) -> set[View]:
        """The views in the files of the model itself: those of its adapters if it has any."""
        return set(self.stored_views()) - (set(self.views.values()) if self.adapters else set())

    def stored_views(self) -> Iterator[View]:
        """Every view that is read: of the whole weights and of the adapters."""
        yield from self.views.values()
        for adapter in self.adapters:
            yield from adapter.whole.values()
            yield from (view for pair in adapter.pairs.values() for view in pair.values())


def open_checkpoint(role: str, path: Path | str) -> Checkpoint:
    """Find a model and read the headers of its files; no weights are read.

    Raises:
        ModelError: The folder cannot be used, holds quantized weights, or an adapter that is no plain LoRA.
    """
    folder = find_model(path, role=role)
    root = folder.root.path
    config = _config(root, role)
    found: dict[str, View] = {}
    for file in weight_files(root, role=role):
        for name, stored in read_header(file, role=role).items():
            if _is_weight(name, stored, role, root):
                found |= {view.name: view for view in views(file.resolve(), name, stored)}
    checkpoint = Checkpoint(role, folder, found, config)
    chain: list[Path] = []
    place = folder
    while place.base is not None:
        chain.append(place.path)
        place = place.base
    for adapter in reversed(chain):
        checkpoint.attach(read_adapter(adapter, role=role))
    return checkpoint


def _config(root: Path, role: str) -> dict[str, Any]:
    try:
        config = json.loads((root / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        config = None
    if not isinstance(config, dict):
        raise ModelError(f"Model {role}: {root}/config.json cannot be used; copy it again.")
    nested = config.get("text_config")
    parts = [config, nested if isinstance(nested, dict) else {}]
    if any(part.get("quantization_config") for part in parts):
        raise _quantized(role, root, "quantization_config in config.json")
    return config


def _quantized(role: str, root: Path, what: str) -> ModelError:
    return ModelError(
        f"Model {role}: {root} holds quantized weights ({what}), which cannot be subtracted; give the model before quantization."
    )


def _is_weight(name: str, stored: StoredTensor, role: str, root: Path) -> bool:
    """Whether a tensor is a weight, not a constant."""
    if _BUFFER.search(name) and (not name.endswith(("attn.bias", "attention.bias")) or len(stored.shape) == 4):
        return False
    if stored.dtype.is_floating_point and stored.dtype.itemsize == 1:
        raise _quantized(role, root, f"{name} is {str(stored.dtype).removeprefix('torch.')}")
    return stored.dtype.is_floating_point and 0 not in stored.shape


def refuse_non_finite(checkpoint: Checkpoint, known: set[View]) -> None:
    """Read every weight once; raise `ModelError` for NaN and infinities. ``known`` views were read before."""
    for view in checkpoint.stored_views():
        if view in known:
            continue
        known.add(view)
        for start, stop in view.spans:
            block = read_block(view, start, stop)
            # The sum is finite for nearly every tensor of finite weights, and needs no memory for a mask.
            if not (torch.isfinite(block.sum(dtype=torch.float32)) or torch.isfinite(block).all()):
                raise ModelError(
                    f"Model {checkpoint.role}: {checkpoint.path} has NaN or infinite weights in {view.name}; the checkpoint is "
                    "damaged, or training diverged."
                )


def equal_weights(first: Weight, second: Weight) -> bool:
    """Whether two weights without factors hold the same values."""
    if first.stored.shape != second.stored.shape:
        return False
    return all(
        torch.equal(read_block(first.stored, *span), read_block(second.stored, *span)) for span in first.stored.spans
    )
