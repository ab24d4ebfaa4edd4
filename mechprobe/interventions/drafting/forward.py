"""Forward calls of drafting: a model on new tokens with its cache, and the part of the host above the edited site."""

import copy
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import DynamicCache

from mechprobe.errors import ModelError
from mechprobe.models.blocks import find_blocks, position_ids
from mechprobe.models.head import Head
from mechprobe.models.load import LanguageModel
from mechprobe.types import Site


class DraftError(ModelError):
    """A model whose edited responses cannot be checked in one pass; the message says why."""


class ModelCall:
    """Arguments of forward calls of a model with a cache, as far as its forward takes them."""

    def __init__(self, model: LanguageModel) -> None:
        self.model = model
        self._takes = inspect.signature(model.hf.forward).parameters
        if "past_key_values" not in self._takes:
            raise DraftError(f"{type(model.hf).__name__} ({model.name}) has no KV cache")

    def new_cache(self) -> DynamicCache:
        """An empty cache."""
        return DynamicCache(config=self.model.hf.config)

    def inputs(
        self, ids: Int[Tensor, "batch new"], attention: Int[Tensor, "batch pos"], *, n_logits: int = 0
    ) -> dict[str, Any]:
        """Arguments for the last tokens of a sequence; ``n_logits`` asks for those of the last tokens only."""
        given: dict[str, Any] = {"input_ids": ids, "attention_mask": attention}
        if "position_ids" in self._takes:
            given["position_ids"] = position_ids(attention)[:, -ids.shape[1] :]
        if n_logits and "logits_to_keep" in self._takes:
            given["logits_to_keep"] = n_logits
        return given

    def logits(
        self,
        ids: Int[Tensor, "batch new"],
        attention: Int[Tensor, "batch pos"],
        cache: DynamicCache | None,
        *,
        n_logits: int,
    ) -> Float[Tensor, "batch kept vocab"]:
        """Logits after the last ``n_logits`` tokens, in float32."""
        given = self.inputs(ids, attention, n_logits=n_logits)
        output = self.model.hf(**given, past_key_values=cache, use_cache=cache is not None)
        return output.logits[:, -n_logits:].float()


def rows_of(cache: DynamicCache, rows: Int[Tensor, " row"]) -> DynamicCache:
    """A copy that holds some rows of a cache, in their order."""
    taken = copy.copy(cache)
    taken.layers = [copy.copy(layer) for layer in cache.layers]
    keep_rows(taken, rows)
    return taken


def keep_rows(cache: DynamicCache, rows: Int[Tensor, " row"]) -> None:
    """Leave only some rows in a cache, in their order."""
    for layer in filled(cache):
        layer.batch_select_indices(rows.to(layer.keys.device))


def filled(cache: DynamicCache) -> list[Any]:
    """The layers of a cache that hold keys."""
    layers: list[Any] = cache.layers
    return [layer for layer in layers if layer.keys is not None]


class UpperPart:
    """The host above a site: its blocks up to the site hand on what they get, and the one at the site gives a known residual.

    Raises:
        DraftError: A block gives more than its residual, so that it cannot be left out.
    """

    def __init__(self, host: LanguageModel, site: Site) -> None:
        self.call, self.head = ModelCall(host), Head(host.hf)
        blocks = find_blocks(host.hf)
        self.n_blocks, self._lower = len(blocks), list(blocks[: site.layer + 1])
        self._as_tuple = [self._gives_tuple(host, block) for block in self._lower]

    @property
    def is_empty(self) -> bool:
        """Whether no block follows the site, so that a token's residual alone gives its logits."""
        return len(self._lower) == self.n_blocks

    @torch.no_grad()
    def logits(
        self,
        resid: Float[Tensor, "batch pos d_model"],
        ids: Int[Tensor, "batch pos"],
        attention: Int[Tensor, "batch pos"],
        *,
        n_logits: int,
        cache: DynamicCache | None = None,
    ) -> Float[Tensor, "batch kept vocab"]:
        """Logits after the last ``n_logits`` tokens, from the residual at the site; ``cache`` gets the upper blocks' keys."""
        with self._lower_left_out(resid):
            return self.call.logits(ids, attention, cache, n_logits=n_logits)

    @torch.no_grad()
    def states(
        self,
        resid: Float[Tensor, "batch pos d_model"],
        ids: Int[Tensor, "batch pos"],
        attention: Int[Tensor, "batch pos"],
        *,
        n_last: int,
    ) -> Float[Tensor, "batch kept width"]:
        """What gives the logits after the last ``n_last`` tokens through `head`, from the residual at the site."""
        if not self.head.is_split:
            return self.logits(resid, ids, attention, n_logits=n_last)
        given = self.call.inputs(ids, attention, n_logits=n_last)
        with self._lower_left_out(resid):
            found = self.head.input_in(lambda: self.call.model.hf(**given, use_cache=False))
        assert found is not None, "`Head` has seen that the unembedding is called"
        return found[:, -n_last:]

    def joined(self, lower: DynamicCache, upper: DynamicCache) -> DynamicCache:
        """One cache from the lower blocks of one and the upper blocks of another; both are used up."""
        n = len(self._lower)
        lower.layers = [*lower.layers[:n], *upper.layers[n:]]
        return lower

    @contextmanager
    def _lower_left_out(self, resid: Tensor) -> Iterator[None]:
        own = [block.__dict__.get("forward") for block in self._lower]
        try:
            for block, as_tuple in zip(self._lower, self._as_tuple, strict=True):
                given = resid if block is self._lower[-1] else None
                block.forward = _handing_on(given, as_tuple=as_tuple)
            yield
        finally:
            for block, forward in zip(self._lower, own, strict=True):
                if forward is None:
                    del block.forward
                else:
                    block.forward = forward

    def _gives_tuple(self, host: LanguageModel, block: nn.Module) -> bool:
        found: list[Any] = []
        handle = block.register_forward_hook(lambda _module, _inputs, output: found.append(output))
        try:
            with torch.no_grad():
                host.hf(input_ids=torch.full((1, 1), host.pad_id, device=host.input_device))
        finally:
            handle.remove()
        output = found[0]
        if isinstance(output, Tensor):
            return False
        if type(output) is tuple and all(part is None for part in output[1:]):
            return True
        raise DraftError(f"blocks of {type(host.hf).__name__} ({host.name}) hand on more than one residual")


def _handing_on(given: Tensor | None, *, as_tuple: bool) -> Any:
    def forward(hidden_states: Tensor, *_args: Any, **_kwargs: Any) -> Any:
        handed = hidden_states if given is None else given
        return (handed,) if as_tuple else handed

    return forward
