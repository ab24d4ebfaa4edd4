"""Sibling models that run on the host's tokens, each with KV caches of its own, up to the deepest site read.

Siblings are clean: nothing of the edit reaches them. An edit at the shallowest site leaves the host's residual there
untouched, given the tokens, so what an edit reads at that site is what clean models compute on the same tokens; at a
deeper site the host's residual carries the shallower edits and the siblings' do not.
"""

import inspect
import weakref
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache, StaticCache

from mechprobe.errors import ModelError
from mechprobe.interventions.hooks.positions import CallTokens
from mechprobe.models.devices import input_device
from mechprobe.models.residuals import StopForwardError, splice
from mechprobe.types import Site

_PASSED_ON = ("attention_mask", "position_ids", "cache_position")
_OTHER_STATES = {"cache_params", "mems", "past_buckets_states", "state"}


class Shadow:
    """One sibling as it runs beside the host, and its residuals in the current call."""

    def __init__(self, name: str, model: nn.Module, sites: Iterable[Site]) -> None:
        self.name = name
        self.model: Any = model
        self.sites = sorted(sites)
        self._found: dict[Site, Tensor] | None = None  # a dict while a call of ours is under way
        self._device = input_device(self.model)

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Keep a reader on every site while the block runs; it does nothing in calls that are not ours."""
        with ExitStack() as stack:
            for site in self.sites:
                stack.enter_context(splice(self.model, site, partial(self._read, site)))
            yield

    def _read(self, site: Site, resid: Tensor) -> Tensor:
        if self._found is not None:
            self._found[site] = resid
            if site == self.sites[-1]:
                raise StopForwardError
        return resid

    def new_cache(self) -> DynamicCache:
        """An empty KV cache with the layers that the model's own generation would make."""
        return DynamicCache(config=self.model.config)

    @torch.no_grad()
    def run(self, inputs: Mapping[str, Any], cache: DynamicCache | None) -> dict[Site, Tensor]:
        """Residuals at all sites, up to the deepest; without a cache the model keeps none."""
        placed = {key: value.to(self._device) if isinstance(value, Tensor) else value for key, value in inputs.items()}
        self._found = found = {}
        try:
            with suppress(StopForwardError):
                self.model(**placed, past_key_values=cache, use_cache=cache is not None)
        finally:
            self._found = None
        return found


@dataclass
class _Companions:
    """The siblings' caches that go with one cache of the host, and how the host's looked when it was last seen."""

    caches: dict[str, DynamicCache | None] = field(default_factory=dict)
    keys: "weakref.ref[Tensor] | None" = None


class CacheFollower:
    """Finds the companions of the host's cache, and refuses caches that were changed between two calls.

    Any change of a KV cache from outside the model (beams reordered, drafted tokens taken back, rows dropped) puts
    another tensor in the place of its keys, which is how it is noticed. Nothing is put on the cache itself.
    """

    def __init__(self) -> None:
        self._companions: weakref.WeakKeyDictionary[Cache, _Companions] = weakref.WeakKeyDictionary()

    def enter(self, past: Cache | None, *, first: bool, strict: bool) -> _Companions:
        """The companions of ``past``: new ones in a first call.

        Args:
            past: The cache that the host is called with.
            first: Whether the cache is empty.
            strict: Refuse a cache that no earlier call inside the edit has filled.
        """
        if first or past is None:
            return _Companions()
        known = self._companions.get(past)
        if known is None:
            if strict:
                raise ModelError(
                    "The edited model is given a KV cache that was begun outside the edit, where its siblings did not "
                    "follow; begin inside it."
                )
            return _Companions()
        if known.keys is None or known.keys() is not _keys(past):
            raise ModelError(
                "The edited model's KV cache was changed between two calls, as beam search and assisted decoding do, "
                "and the edit cannot follow; use greedy or sampled decoding."
            )
        return known

    def leave(self, cache: Any, companions: _Companions) -> None:
        """Note what belongs to the host's cache after a call, and how the cache looks."""
        if isinstance(cache, Cache):
            keys = _keys(cache)
            companions.keys = None if keys is None else weakref.ref(keys)
            self._companions[cache] = companions


class Shadows:
    """All shadows of an edited model."""

    def __init__(self, host: nn.Module, shadows: Iterable[Shadow]) -> None:
        self._all = {shadow.name: shadow for shadow in shadows}
        for shadow in self._all.values():
            if shadow.model is host:
                raise ModelError(
                    f"Sibling {shadow.name} is the edited model itself, which is not clean; load it a second time."
                )
            require_kv_cache(shadow.model, shadow.name)
        if self._all:
            require_kv_cache(host, "the edited model")

    def __bool__(self) -> bool:
        return bool(self._all)

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Readers on all of them while the block runs."""
        with ExitStack() as stack:
            for shadow in self._all.values():
                stack.enter_context(shadow.attached())
            yield

    def run(
        self, names: Iterable[str], given: Mapping[str, Any], call: CallTokens, companions: _Companions
    ) -> dict[str, dict[Site, Tensor]]:
        """Residuals of the named siblings on the tokens of one call of the host.

        Raises:
            ModelError: The host is given embeddings in place of tokens, or a cache that they cannot follow.
        """
        if call.ids is None:
            raise ModelError("An edit that reads sibling models needs input_ids; it cannot follow inputs_embeds.")
        if isinstance(given.get("past_key_values"), StaticCache):
            raise ModelError(
                "An edit that reads sibling models follows no static KV cache; leave cache_implementation unset."
            )
        inputs = {name: given[name] for name in _PASSED_ON if given.get(name) is not None} | {"input_ids": call.ids}
        found = {}
        for name in names:
            shadow = self._all[name]
            if name not in companions.caches:
                companions.caches[name] = shadow.new_cache() if given.get("use_cache") is not False else None
            found[name] = shadow.run(inputs, companions.caches[name])
        return found


def require_kv_cache(model: nn.Module, name: str) -> None:
    """Raise `ModelError` for a model that keeps another state than ``past_key_values``, or none: its calls do not tell what went before."""
    parameters = inspect.signature(model.forward).parameters
    open_ended = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    if "past_key_values" not in parameters and (not open_ended or _OTHER_STATES & parameters.keys()):
        raise ModelError(
            f"{type(model).__name__} ({name}) has no KV cache, so an edit that reads sibling models, or prompt and "
            "response apart, cannot follow its generation."
        )


def _keys(cache: Cache) -> Tensor | None:
    """The keys of the first layer that has any."""
    found = (getattr(layer, "keys", None) for layer in getattr(cache, "layers", ()))
    return next((keys for keys in found if isinstance(keys, Tensor)), None)
