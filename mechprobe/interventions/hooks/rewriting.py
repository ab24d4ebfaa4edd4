"""Rewrites a model's residuals while it runs, with sibling models on the same tokens."""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import Cache

from mechprobe.dictionary.token_rule import TokenRule
from mechprobe.errors import ModelError
from mechprobe.interventions.edits.edit_functions import Rewrite
from mechprobe.interventions.hooks.positions import CallTokens, PositionMask, PositionRule, Positions, as_rule
from mechprobe.interventions.hooks.sibling_forward import CacheFollower, Sibling, SiblingForward, require_kv_cache
from mechprobe.models.architectures import require_residual
from mechprobe.models.blocks import splice
from mechprobe.models.sampling import finite_rows
from mechprobe.types import Site


class _Watched(NamedTuple):
    what: str
    before: Tensor
    after: Tensor
    total: Tensor


class NonFiniteCheck:
    """Records the edits of one forward call and checks all of them when the call ends.

    A finite sum has finite terms, so only sums are read while everything is finite. A residual that is not finite before the
    edit, for instance at padding, is not an error.
    """

    def __init__(self) -> None:
        self._watched: list[_Watched] = []

    def watch(self, what: str, before: Tensor, after: Tensor) -> None:
        """Record the residual ``[batch pos d_model]`` before and after the edit ``what``, without waiting for the device."""
        after = after.detach()
        self._watched.append(_Watched(what, before.detach(), after, after.sum(dtype=torch.float32)))

    def check(self, logits: Tensor | None = None) -> None:
        """Check the edits recorded since the last check and the logits that follow from them; then forget them.

        Only the last position of the logits ``[batch pos vocab]`` is read, which depends on all others.

        Raises:
            ModelError: An edit made a finite residual non-finite, or the logits contain NaN or +∞.
        """
        watched, self._watched = self._watched, []
        if not watched:
            return
        device = watched[0].total.device
        sums = [entry.total.to(device) for entry in watched]
        last = None if logits is None else logits[:, -1].detach()
        if last is not None:
            sums.append(last.sum(dtype=torch.float32).to(device))
        if all(torch.isfinite(torch.stack(sums)).tolist()):
            return
        for entry in watched:
            made = (~torch.isfinite(entry.after) & torch.isfinite(entry.before)).nonzero()
            if len(made):
                row, position = made[0, :2].tolist()
                raise ModelError(
                    f"{entry.what} gives values that are not finite (first in row {row}, at position {position} of the call); "
                    "lower its strength, or look for outliers in the residuals that it reads."
                )
        if last is not None and not bool(finite_rows(last).all()):
            raise ModelError(
                f"The logits are not finite after this edit: {' and '.join(entry.what for entry in watched)}. Lower the strength, or "
                "check whether the model gives finite logits without any edit."
            )


@dataclass(frozen=True)
class SiteRewrite:
    """One rewrite of the host's residual.

    Attributes:
        site: Where in the model.
        rewrite: Maps residuals by model name (the host's and those of ``reads``) to the host's new residual. Returning the
            host's own tensor leaves the model bit-identical.
        reads: Names of the siblings whose residuals it takes.
        positions: Where along the sequence.
        what: Its name in messages.
        leaves: Positions that keep the host's residual, whatever ``positions`` says; None for none.
    """

    site: Site
    rewrite: Rewrite
    reads: tuple[str, ...] = ()
    positions: PositionMask = field(default_factory=lambda: PositionMask(PositionRule()))
    what: str = "The rewrite of the residual"
    leaves: TokenRule | None = None


@contextmanager
def rewriting(  # noqa: PLR0913 - all but three are keyword options
    host: nn.Module,
    site: Site,
    rewrite: Rewrite,
    *,
    host_name: str,
    siblings: Mapping[str, nn.Module] | None = None,
    positions: Positions = "all",
    special_ids: Sequence[int] | None = None,
    what: str = "",
    leaves: TokenRule | None = None,
) -> Iterator[None]:
    """Pass the host's residual at one ``site`` through ``rewrite``; see `rewriting_sites`.

    ``rewrite`` reads all ``siblings``, and ``what`` names it in messages. The other arguments are those of `SiteRewrite` and
    `mechprobe.interventions.hooks.positions.PositionMask`.
    """
    others, mask = siblings or {}, PositionMask(as_rule(positions), special_ids)
    what = what or f"The rewrite of {host_name}'s residual at {site}"
    item = SiteRewrite(site, rewrite, tuple(others), mask, what, leaves)
    with rewriting_sites(host, [item], host_name=host_name, siblings=others):
        yield


@contextmanager
def rewriting_sites(
    host: nn.Module, rewrites: Sequence[SiteRewrite], *, host_name: str, siblings: Mapping[str, nn.Module] | None = None
) -> Iterator[None]:
    """Pass the host's residuals through rewrites while the block runs, in forward and in generation.

    Before each forward call of the host, every sibling that a rewrite reads runs on the same tokens, clean and with its own KV
    caches, up to its deepest site. A deeper rewrite takes the host's residual as the shallower rewrites left it; rewrites
    of one site act one after another in the given order. All hooks are removed on every exit.

    Args:
        host: Plain transformers model, or the one inside a bridge.
        rewrites: The rewrites with their sites.
        host_name: Name under which the rewrites find the host.
        siblings: Every other model that a rewrite reads, by name.

    Raises:
        ModelError: On entry: a sibling is the host itself, a model has no KV cache where one is needed, or its blocks give no
            residual ``[batch pos d_model]``. In a forward
            call: the host is called with embeddings instead of tokens, or with a cache that was begun outside the block or
            changed between two calls (beam search, assisted decoding); or a rewrite makes a residual non-finite.
        SiteError: A site does not exist.
    """
    for name, model in {host_name: host, **(siblings or {})}.items():
        require_residual(model, name)
    hooks = _Hooks(host, rewrites, host_name, siblings or {})
    with ExitStack() as stack:
        hooks.siblings.attach(stack)
        stack.callback(host.register_forward_pre_hook(hooks.before, with_kwargs=True).remove)
        stack.callback(host.register_forward_hook(hooks.after, always_call=True).remove)
        for item in rewrites:
            stack.enter_context(splice(host, item.site, partial(hooks.edit, item)))
        yield


class _Hooks:
    """State that the hooks of one block share: the current call, and what must be known of the calls before it."""

    def __init__(
        self, host: nn.Module, rewrites: Sequence[SiteRewrite], host_name: str, siblings: Mapping[str, nn.Module]
    ) -> None:
        sites = {name: {item.site for item in rewrites if name in item.reads} for name in siblings}
        self.siblings = SiblingForward(host, [Sibling(name, siblings[name], at) for name, at in sites.items() if at])
        self._host_name, self._rewrites = host_name, rewrites
        self._boundary = any(item.positions.rule.needs_boundary for item in rewrites)
        if self._boundary:
            require_kv_cache(host, host_name)
        self._needs_call = bool(self.siblings) or any(
            item.positions.rule != PositionRule() or item.leaves for item in rewrites
        )
        self._arguments = tuple(inspect.signature(host.forward).parameters)
        self._finite = NonFiniteCheck()
        self._caches = CacheFollower()
        self._sibling_caches = self._caches.enter(None, first=True, strict=False)
        self._in_call = False
        self._past: Cache | None = None
        self._call: CallTokens | None = None
        self._found: dict[str, dict[Site, Tensor]] = {}

    def before(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Record the tokens of the call and run the siblings on them."""
        self._finite = NonFiniteCheck()
        self._in_call = True
        if not self._needs_call:
            return
        given = dict(zip(self._arguments, args, strict=False)) | kwargs
        past = self._past = _cache_of(given)
        call = self._call = _tokens_of(given, past)
        if self._boundary and given.get("use_cache") is False:
            raise ModelError(
                "Without a KV cache an edit cannot tell prompt from response; enable the cache, or edit all positions."
            )
        self._sibling_caches = self._caches.enter(past, first=call.first, strict=bool(self.siblings))
        acting = [item for item in self._rewrites if call.first or item.positions.rule.part in ("all", "response")]
        names = {name for item in acting for name in item.reads}
        self._found = self.siblings.run(sorted(names), given, call, self._sibling_caches) if names else {}

    def after(self, _module: nn.Module, _args: Any, output: Any) -> None:
        """Check for finite numbers and record which cache the call filled; ``output`` is None where the call failed."""
        call, past = self._call, self._past
        self._call, self._past, self._found, self._in_call = None, None, {}, False
        if output is None:
            return
        self._finite.check(_logits_in(output))
        if call is not None:
            self._caches.leave(past if past is not None else _cache_in(output), self._sibling_caches)

    def edit(self, item: SiteRewrite, resid: Tensor) -> Tensor:
        """Pass the residual ``[batch pos d_model]`` at the item's site through its rewrite."""
        if self._needs_call and self._call is None:
            raise ModelError(
                "A submodule was called inside an edit that reads sibling models or acts on some positions only; call the "
                "model itself instead."
            )
        others = {name: self._found[name][item.site] for name in item.reads if name in self._found}
        changed = rewritten(item, {self._host_name: resid, **others}, self._host_name, self._call)
        if changed is resid:
            return resid
        self._finite.watch(item.what, resid, changed)
        if not self._in_call:
            self._finite.check()
        return changed


def rewritten(item: SiteRewrite, residuals: Mapping[str, Tensor], host: str, call: CallTokens | None) -> Tensor:
    """The host's residual ``[batch pos d_model]`` after a rewrite, which acts on some positions of a call; None acts on all.

    Returns the host's own tensor where the rewrite does not act. ``residuals`` are those of the host and of the siblings.
    """
    resid = residuals[host]
    mask = True if call is None else item.positions.of(call)
    if mask is False:
        return resid
    read = {host: resid, **{name: residuals[name].to(resid.device) for name in item.reads}}
    changed = item.rewrite(read)
    if changed is resid:
        return resid
    if item.leaves and call is not None:
        described = item.leaves.mask(call.position.to(resid.device), read)
        mask = described if mask is True else described & mask.to(resid.device)
    if isinstance(mask, Tensor):
        changed = torch.where(mask.to(resid.device)[..., None], changed, resid)
    return changed


def _cache_of(given: Mapping[str, Any]) -> Cache | None:
    past = given.get("past_key_values")
    if past is not None and not isinstance(past, Cache):
        raise ModelError(
            f"The edited model was called with a KV cache of type {type(past).__name__}, which an edit cannot follow; pass a "
            "transformers Cache."
        )
    return past


def _cache_in(output: Any) -> Any:
    if isinstance(output, tuple):
        return next((part for part in output if isinstance(part, Cache)), None)
    return getattr(output, "past_key_values", None)


def _logits_in(output: Any) -> Tensor | None:
    """Logits ``[batch pos vocab]`` of a forward call; None where it returns something else."""
    logits = getattr(output, "logits", None)
    if logits is None and isinstance(output, tuple) and output:
        logits = output[0]
    return logits if isinstance(logits, Tensor) and logits.ndim == 3 else None


def _tokens_of(given: Mapping[str, Any], past: Cache | None) -> CallTokens:
    ids, attention = given.get("input_ids"), given.get("attention_mask")
    tokens = ids if ids is not None else given.get("inputs_embeds")
    width = 0 if tokens is None else int(tokens.shape[1])
    is_plain = isinstance(attention, Tensor) and attention.ndim == 2
    past_length = 0 if past is None else int(past.get_seq_length())
    new, before = None, None
    if is_plain and attention is not None:
        new = attention[:, -width:]
        whole = attention.shape[1] >= past_length + width  # else the mask is of the new tokens alone
        before = (
            attention[:, :-width].long().sum(1) if whole else attention.new_full((len(attention),), past_length).long()
        )
    return CallTokens(ids=ids, attention=new, past_length=past_length, width=width, before=before)
