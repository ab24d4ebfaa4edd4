"""Which weights of the models belong together, and why models cannot be compared."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mechprobe.drift.weights.checkpoints import Checkpoint, Weight, equal_weights, open_checkpoint
from mechprobe.drift.weights.naming import Place, place_of
from mechprobe.drift.weights.stored import View
from mechprobe.errors import ConfigError, ModelError
from mechprobe.json_fields import printable_models
from mechprobe.models.checkpoint_fit import named_tensors, why_missing


@dataclass(frozen=True)
class Update:
    """What post-training added to one weight, ΔW = W_tuned - W_base."""

    base: Weight
    tuned: Weight

    @property
    def low_rank(self) -> bool:
        """Whether ΔW is the product of an adapter's factors, or nothing: both models hold the same stored weight."""
        return self.base.stored == self.tuned.stored and self.base.factors is None

    @property
    def untouched(self) -> bool:
        """Whether both models hold the same stored weight, without factors."""
        return self.low_rank and self.tuned.factors is None

    def block(self, start: int, stop: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Blocks ``[place]`` or ``[place, short]`` of W_base and ΔW."""
        weight = self.base.block(start, stop, dtype)
        if self.untouched:
            return weight, torch.zeros_like(weight)
        if self.low_rank and self.tuned.factors is not None:
            return weight, self.tuned.factors.block(start, stop, tall=self.base.stored.tall).to(dtype)
        return weight, self.tuned.block(start, stop, dtype) - weight

    def blocks(self, dtype: torch.dtype = torch.float64) -> Iterator[tuple[Tensor, Tensor]]:
        """All blocks in order."""
        for start, stop in self.base.stored.spans:
            yield self.block(start, stop, dtype)


@dataclass(frozen=True)
class Comparison:
    """The models to compare.

    Attributes:
        base: The model before post-training.
        tuned: Name → model.
        names: The weights that are compared, in the order of layers.
        left_out: Model → its tensors that base lacks and that are not compared.
        tied: Whether the head of every model is its embedding, which counts once.
    """

    base: Checkpoint
    tuned: dict[str, Checkpoint]
    names: tuple[str, ...]
    left_out: dict[str, tuple[str, ...]]
    tied: bool

    def updates(self, name: str) -> dict[str, Update]:
        """Model → its update of one weight."""
        base = self.base.weight(name)
        return {role: Update(base, model.weight(name)) for role, model in self.tuned.items()}

    def view(self, name: str) -> View:
        """The stored weight of base."""
        return self.base.views[name]


def compare(models: Mapping[str, str | Path], base: str) -> Comparison:
    """Open the models and match their weights by name. Only headers are read, and heads that may be embeddings.

    Raises:
        ConfigError: ``base`` is not among the models, or there is no other.
        ModelError: A model cannot be used, or its weights are not those of base.
    """
    printable_models(models, "models")
    if base not in models:
        raise ConfigError(f"weights.base is '{base}', but the models are {', '.join(models)}; name one of them.")
    if len(models) < 2:
        raise ConfigError(f"There is no model beside {base}; give the tuned ones too, --models {base}=PATH rl=PATH.")
    opened = {role: open_checkpoint(role, path) for role, path in models.items()}
    first = opened.pop(base)
    _share_base(first, opened.values())
    for model in opened.values():
        _same_architecture(first, model)
    tied = _match_heads([first, *opened.values()])
    left_out = {role: _same_names(first, model) for role, model in opened.items()}
    for model in opened.values():
        _same_shapes(first, model)
    names = sorted(first.views, key=_order)
    return Comparison(first, opened, tuple(names), {k: v for k, v in left_out.items() if v}, tied)


def _share_base(base: Checkpoint, others: Iterable[Checkpoint]) -> None:
    """Let adapters on a copy of base's weights read base's own, so that their update is known to be of low rank."""
    for model in others:
        copied = model.adapters and not base.adapters and model.folder.root.path != base.path
        if copied and model.folder.root.fingerprint == base.folder.fingerprint:
            model.views = {name: base.views.get(name, view) for name, view in model.views.items()}


def _same_architecture(base: Checkpoint, model: Checkpoint) -> None:
    kinds = [str(each.config.get("model_type")) for each in (base, model)]
    if kinds[0] != kinds[1]:
        raise ModelError(
            f"Model {model.role}: {model.path} is a {kinds[1]}, and {base.role} is a {kinds[0]}; weights are compared between "
            "models of one architecture."
        )


def _match_heads(models: Sequence[Checkpoint]) -> bool:
    """Drop heads that are the embedding, or give every model one where a model has a head of its own; whether all are tied."""
    tied = {model.role: _drop_tied(model) for model in models}
    heads = [head for model in models if (head := model.one_of("lm_head")) is not None]
    if not heads:
        return True
    for model in models:
        embedding = model.one_of("embed")
        known = tied[model.role] or model.tied_by_config or model is models[0]
        if model.one_of("lm_head") is None and embedding is not None and known:
            model.views[heads[0]] = model.views[embedding]
    return False


def _drop_tied(model: Checkpoint) -> bool:
    """Drop a stored head that is the embedding. True also where there is none."""
    head, embedding = model.one_of("lm_head"), model.one_of("embed")
    if head is None:
        return model.tied_by_config
    if embedding is None or model.changes(head) or model.changes(embedding):
        return False
    if model.views[head] == model.views[embedding] or not equal_weights(model.weight(head), model.weight(embedding)):
        return False
    del model.views[head]
    return True


def _same_names(base: Checkpoint, model: Checkpoint) -> tuple[str, ...]:
    """The tensors that only ``model`` has; `ModelError` if it lacks some of base's, or has further ones inside its blocks."""
    missing = sorted((name for name in base.views if name not in model.views), key=_order)
    unused = sorted((name for name in model.views if name not in base.views), key=_order)
    where = f"Model {model.role}: {model.path}"
    if missing:
        kept = set(model.views)
        reason = why_missing(missing, unused, kept) if unused else "; save the whole model again with save_pretrained"
        raise ModelError(f"{where} lacks {named_tensors(missing)} of {base.role}{reason}.")
    inside = [name for name in unused if place_of(name).layer is not None]
    if inside:
        raise ModelError(
            f"{where} holds {named_tensors(inside)}, which {base.role} does not have; weights are compared between models of one "
            "architecture."
        )
    return tuple(unused)


def _same_shapes(base: Checkpoint, model: Checkpoint) -> None:
    for name in base.views:
        own, wanted = model.shape(name), base.shape(name)
        if own != wanted:
            raise ModelError(
                f"Model {model.role}: {model.path}: {name} has shape {list(own)}, and {base.role} has {list(wanted)}; weights "
                "are compared between models of one shape."
            )


def _order(name: str) -> tuple[bool, int, str]:
    place: Place = place_of(name)
    return (place.layer is None, place.layer or 0, re.sub(r"\d+", lambda number: number[0].zfill(9), name))
