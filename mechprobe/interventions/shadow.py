"""Sibling models that run on the host's tokens, each with a KV cache of its own, up to one site.

An edit at a site leaves every residual up to that site untouched, given the tokens. So the siblings' residuals, and
the host's own before the edit, are those of clean models on the same tokens, whatever the edit does further on.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import DynamicCache

from mechprobe.errors import ModelError
from mechprobe.models.residuals import reading, splice
from mechprobe.types import Site

Positions = Literal["all", "prompt", "response"]
"""Where an edit acts: every position, those of the first forward call (the prompt), or those of later calls."""

Rewrite = Callable[[Mapping[str, Float[Tensor, "batch pos d_model"]]], Float[Tensor, "batch pos d_model"]]
"""Maps the residuals of all models on the same tokens to the residual with which the host goes on."""

_PASSED_ON = ("attention_mask", "position_ids", "cache_position")


class _Shadow:
    """One sibling: its model, its cache, and its residual at the site in the current call."""

    def __init__(self, model: nn.Module, site: Site) -> None:
        self.model = model
        self.site = site
        self.cache = DynamicCache()

    def run(self, inputs: Mapping[str, Any], *, fresh: bool, past_length: int) -> Tensor:
        if fresh:
            self.cache = DynamicCache()
        elif self.cache.get_seq_length() != past_length:
            raise ModelError(
                f"The edited model's cache holds {past_length} tokens and its sibling's {self.cache.get_seq_length()}; "
                "begin inside the edit, and use greedy or sampled decoding."
            )
        with reading(self.model, [self.site]) as resid:
            self.model(**inputs, past_key_values=self.cache, use_cache=True)
        return resid[self.site]


@contextmanager
def rewriting(
    host: nn.Module,
    site: Site,
    rewrite: Rewrite,
    *,
    host_name: str,
    siblings: Mapping[str, nn.Module] | None = None,
    positions: Positions = "all",
) -> Iterator[None]:
    """Pass the host's residual at ``site`` through ``rewrite`` while the block runs, in forward and in generation.

    Before each forward call of the host every sibling runs on the same tokens up to the site. All hooks are gone on
    every exit.

    Args:
        host: Plain transformers model (or the one inside a bridge).
        site: Where.
        rewrite: Given the residuals by model name (host and siblings); returning the host's tensor itself changes
            nothing, bit for bit.
        host_name: Name under which ``rewrite`` finds the host.
        siblings: Name to model, for read-outs and transplants that need them.
        positions: Where the edit acts.

    Beam search is not supported with siblings: their caches would not follow the beams.

    Raises:
        ModelError: The host is given embeddings in place of tokens, or a cache that was begun outside the block.
    """
    shadows = {name: _Shadow(model, site) for name, model in (siblings or {}).items()}
    current: dict[str, Tensor] = {}
    state = {"fresh": True}

    def before(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        past = kwargs.get("past_key_values")
        past_length = 0 if past is None else int(past.get_seq_length())
        state["fresh"] = past_length == 0
        if positions != "all" and kwargs.get("use_cache") is False:
            raise ModelError(
                "Without a KV cache an edit cannot tell prompt from response; use the cache, or all positions."
            )
        if not shadows:
            return
        ids = args[0] if args else kwargs.get("input_ids")
        if ids is None:
            raise ModelError("An edit that reads sibling models needs input_ids; it cannot follow inputs_embeds.")
        inputs = {name: kwargs[name] for name in _PASSED_ON if kwargs.get(name) is not None} | {"input_ids": ids}
        with torch.no_grad():
            for name, shadow in shadows.items():
                current[name] = shadow.run(inputs, fresh=state["fresh"], past_length=past_length)

    def edit(resid: Tensor) -> Tensor:
        if (positions == "prompt" and not state["fresh"]) or (positions == "response" and state["fresh"]):
            return resid
        return rewrite({host_name: resid, **current})

    handle = host.register_forward_pre_hook(before, with_kwargs=True)
    try:
        with splice(host, site, edit):
            yield
    finally:
        handle.remove()
