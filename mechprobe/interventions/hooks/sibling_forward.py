"""Runs sibling models on the host's tokens, each with its own KV caches, up to the deepest site that is read.

Siblings stay clean: no edit reaches them. At the shallowest edited site the host's residual is still that of the clean host on
the same tokens, so everything an edit reads there is what clean models compute. At a deeper site the host's residual
carries the shallower edits and the residuals of the siblings do not.
"""

import inspect
import weakref
from collections.abc import Iterable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache, StaticCache

from mechprobe.errors import ModelError, first_line
from mechprobe.interventions.hooks.positions import CallTokens
from mechprobe.models.blocks import StopForwardError, splice
from mechprobe.models.devices import input_device
from mechprobe.types import Site

_PASSED_ON = ("attention_mask", "position_ids", "cache_position")
_OTHER_STATES = {"cache_params", "mems", "past_buckets_states", "state"}


class Sibling:
    """One model that runs beside the host, and its residuals in the current call."""

    def __init__(self, name: str, model: nn.Module, sites: Iterable[Site]) -> None:
        self.name = name
        self.model: Any = model
        self.sites = sorted(sites)
        self._found: dict[Site, Tensor] | None = None  # a dict during a call of `run`
        self._device = input_device(self.model)

    def attach(self, stack: ExitStack) -> None:
        """Keep a hook on every site until ``stack`` closes; it acts only in calls of `run`."""
        for site in self.sites:
            stack.enter_context(splice(self.model, site, partial(self._record, site)))

    def _record(self, site: Site, resid: Tensor) -> Tensor:
        if self._found is not None:
            self._found[site] = resid
            if site == self.sites[-1]:
                raise StopForwardError
        return resid

    @torch.no_grad()
    def run(self, inputs: Mapping[str, Any], cache: DynamicCache | None) -> dict[Site, Tensor]:
        """Residuals ``[batch pos d_model]`` at all sites; the forward pass stops at the deepest.

        ``inputs`` are keyword arguments of the model's forward. ``cache`` is the KV cache to extend; None runs without one.
        """
        placed = {key: value.to(self._device) if isinstance(value, Tensor) else value for key, value in inputs.items()}
        self._found = found = {}
        try:
            with suppress(StopForwardError):
                self.model(**placed, past_key_values=cache, use_cache=cache is not None)
        except ValueError as error:  # MiniMax takes a cache class of its own only
            raise ModelError(
                f"Sibling {self.name} ({type(self.model).__name__}) cannot run beside the edited model ({first_line(error)}), "
                "so edits that read it are not supported."
            ) from error
        finally:
            self._found = None
        return found


@dataclass
class SiblingCaches:
    """The siblings' caches that belong to one cache of the host.

    ``caches`` maps a sibling to its cache, or to None where the call keeps none. ``keys`` are the host's keys after its last
    call, by which a changed cache is recognized.
    """

    caches: dict[str, DynamicCache | None] = field(default_factory=dict)
    keys: "weakref.ref[Tensor] | None" = None


class CacheFollower:
    """Finds the siblings' caches for the host's cache, and refuses caches that were changed between two calls.

    Every change of a KV cache from outside the model (reordered beams, rejected draft tokens, dropped rows) replaces the tensor
    of its keys, so a new tensor reveals the change. Nothing is attached to the cache itself.
    """

    def __init__(self) -> None:
        self._known: weakref.WeakKeyDictionary[Cache, SiblingCaches] = weakref.WeakKeyDictionary()

    def enter(self, past: Cache | None, *, first: bool, strict: bool) -> SiblingCaches:
        """The siblings' caches for a call; new ones in a first call.

        ``first`` says whether ``past``, the host's cache, is empty. ``strict`` refuses a cache that no earlier call inside the
        edit has filled.

        Raises:
            ModelError: The siblings cannot follow the cache.
        """
        if first or past is None:
            return SiblingCaches()
        known = self._known.get(past)
        if known is None:
            if strict:
                raise ModelError(
                    "The edited model was called with a KV cache that was begun outside the edit, so its siblings have no "
                    "cache for the earlier tokens; start the sequence inside the edit."
                )
            return SiblingCaches()
        if known.keys is None or known.keys() is not _keys(past):
            raise ModelError(
                "The edited model's KV cache was changed between two calls, as beam search and assisted decoding do; "
                "use greedy or sampled decoding."
            )
        return known

    def leave(self, cache: Any, siblings: SiblingCaches) -> None:
        """Record after a call which siblings' caches belong to the host's cache."""
        if isinstance(cache, Cache):
            keys = _keys(cache)
            siblings.keys = None if keys is None else weakref.ref(keys)
            self._known[cache] = siblings


class SiblingForward:
    """All siblings of an edited model.

    Raises:
        ModelError: A sibling is the host itself, or one of the models has no KV cache.
    """

    def __init__(self, host: nn.Module, siblings: Iterable[Sibling]) -> None:
        self._all = {sibling.name: sibling for sibling in siblings}
        for sibling in self._all.values():
            if sibling.model is host:
                raise ModelError(
                    f"Sibling {sibling.name} is the edited model itself, which is not clean; load it a second time."
                )
            require_kv_cache(sibling.model, sibling.name)
        if self._all:
            require_kv_cache(host, "the edited model")

    def __bool__(self) -> bool:
        return bool(self._all)

    def attach(self, stack: ExitStack) -> None:
        """Keep hooks on all siblings until ``stack`` closes."""
        for sibling in self._all.values():
            sibling.attach(stack)

    def run(
        self, names: Iterable[str], given: Mapping[str, Any], call: CallTokens, siblings: SiblingCaches
    ) -> dict[str, dict[Site, Tensor]]:
        """Sibling → site → residual ``[batch pos d_model]`` of the named siblings on the tokens of one call of the host.

        ``given`` are the arguments of the host's call, and ``call`` its tokens. Caches that ``siblings`` lacks are added.

        Raises:
            ModelError: The host is called with embeddings instead of tokens, or with a static cache.
        """
        if call.ids is None:
            raise ModelError("An edit that reads sibling models needs input_ids; it cannot use inputs_embeds.")
        if isinstance(given.get("past_key_values"), StaticCache):
            raise ModelError(
                "An edit that reads sibling models cannot follow a static KV cache; leave cache_implementation unset."
            )
        inputs = {name: given[name] for name in _PASSED_ON if given.get(name) is not None} | {"input_ids": call.ids}
        found = {}
        for name in names:
            sibling = self._all[name]
            if name not in siblings.caches:
                kept = given.get("use_cache") is not False
                siblings.caches[name] = DynamicCache(config=sibling.model.config) if kept else None
            found[name] = sibling.run(inputs, siblings.caches[name])
        return found


def require_kv_cache(model: nn.Module, name: str) -> None:
    """Raise `ModelError` for a model without ``past_key_values``, whose calls do not show which tokens came before."""
    parameters = inspect.signature(model.forward).parameters
    open_ended = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    if "past_key_values" not in parameters and (not open_ended or _OTHER_STATES & parameters.keys()):
        raise ModelError(
            f"{type(model).__name__} ({name}) has no KV cache, so edits that read sibling models or distinguish prompt from "
            "response cannot follow its generation."
        )


def _keys(cache: Cache) -> Tensor | None:
    found = (getattr(layer, "keys", None) for layer in getattr(cache, "layers", ()))
    return next((keys for keys in found if isinstance(keys, Tensor)), None)
