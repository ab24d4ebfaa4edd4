"""Context managers that run a model with features edited: `edited` at one site, `edited_at` at several."""

import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from mechprobe.dictionary.readout import Readout
from mechprobe.dictionary.token_rule import TokenRule
from mechprobe.errors import ArtifactError, ConfigError, ModelError, SelectionError
from mechprobe.interventions.edits.edit import Edit
from mechprobe.interventions.edits.edit_functions import build_rewrite, read_models
from mechprobe.interventions.hooks.positions import PositionMask, PositionRule, Positions, as_rule
from mechprobe.interventions.hooks.rewriting import SiteRewrite, rewriting_sites
from mechprobe.models.family import ModelFamily
from mechprobe.models.load import LanguageModel
from mechprobe.types import Site
from sae_training import Crosscoder


@runtime_checkable
class _HasFeatures(Protocol):
    """Anything that names features and the site they belong to, such as a `Selection`."""

    @property
    def features(self) -> Sequence[int]: ...

    @property
    def site(self) -> str: ...


AnyModel = LanguageModel | nn.Module
Siblings = ModelFamily | Mapping[str, Any]


@dataclass(frozen=True)
class SiteEdit:
    """One edit of one set of features at one site; the fields are the arguments of `edited` of the same names."""

    crosscoder: Crosscoder
    selection: _HasFeatures | Sequence[int]
    edit: str | Edit = "ablate"
    site: Site | str | None = None
    donor: str | None = None
    readout: Readout | None = None
    positions: Positions = "all"


def plain_module(model: AnyModel) -> Any:
    """The transformers module that hooks act on: that of a `LanguageModel` or of a bridge, or the model itself."""
    if isinstance(model, LanguageModel):
        return model.hf
    return getattr(model, "original_model", model)


@contextmanager
def edited(  # noqa: PLR0913 - the promised entry point; all but four are keyword options
    model: AnyModel,
    crosscoder: Crosscoder,
    selection: _HasFeatures | Sequence[int],
    edit: str | Edit = "ablate",
    *,
    site: Site | str | None = None,
    host: str | None = None,
    donor: str | None = None,
    siblings: Siblings | None = None,
    readout: Readout | None = None,
    positions: Positions = "all",
    special_ids: Sequence[int] | None = None,
) -> Iterator[Any]:
    """Run ``model`` with features edited, in forward and in generation (greedy or sampled, KV cache, left padding).

    Args:
        model: A `LanguageModel`, a plain transformers model, or a TransformerBridge.
        crosscoder: The dictionary that the features belong to, on the model's device.
        selection: A `Selection`, or feature indices (then ``site`` is needed).
        edit: ``ablate``, ``clamp:V``, ``scale:A``, ``steer:V``, ``transplant``, ``replace`` or ``project``.
        site: Where in the model; by default the selection's site.
        host: The model's name in the crosscoder; by default the name of the `LanguageModel`.
        donor: For a transplant, the model whose features are put in.
        siblings: The other models, by name; a transplant and the ``joint`` read-out need them.
        readout: How features are read; by default ``joint`` for a transplant with all siblings given, else ``swap``.
        positions: ``all``, ``prompt``, ``response`` or ``last_prompt_token``, optionally with a class of tokens as in
            ``all:not_special``; see `PositionRule.parse`. Positions that the crosscoder's store dropped, such as attention
            sinks, keep their residual unless ``:with_dropped`` is appended.
        special_ids: Ids of the special tokens, for a class that names them; by default those of the `LanguageModel`'s
            tokenizer.

    Yields:
        The plain transformers model with the edit in force. All hooks are removed on every exit.

    Raises:
        ConfigError: The edit, the site or the positions are missing or contradictory.
        SelectionError: A feature does not exist, or the selection belongs to another site.
        ArtifactError: The selection was made with another crosscoder.
        ModelError: A sibling that the edit reads is missing, a model does not fit the crosscoder, or the edit cannot follow
            its generation (see `rewriting_sites`).
    """
    one = SiteEdit(crosscoder, selection, edit, site, donor, readout, positions)
    with edited_at(model, [one], host=host, siblings=siblings, special_ids=special_ids) as module:
        yield module


@contextmanager
def edited_at(
    model: AnyModel,
    edits: Sequence[SiteEdit],
    *,
    host: str | None = None,
    siblings: Siblings | None = None,
    special_ids: Sequence[int] | None = None,
) -> Iterator[Any]:
    """Run ``model`` with several edits in force, at one site or at several; arguments and errors as for `edited`.

    Siblings are clean at every site. The host's residual at a deeper site carries the shallower edits. Edits of one site act
    one after another in the given order, each on the residual that the previous edit leaves. An empty list leaves the model
    unchanged.
    """
    name = host or (model.name if isinstance(model, LanguageModel) else None)
    if name is None:
        raise ConfigError("The model's name in the crosscoder is missing; pass it as edited(..., host=NAME).")
    named = any(as_rule(one.positions).tokens == "special" for one in edits)
    if special_ids is None and isinstance(model, LanguageModel) and named:
        special_ids = list(model.tokenizer.all_special_ids)
    module = plain_module(model)
    given = siblings or {}
    rewrites = [site_rewrite(one, name, given, special_ids) for one in edits]
    plain = {other: plain_module(given[other]) for other in sorted({read for item in rewrites for read in item.reads})}
    for one in edits:
        _check_widths(one.crosscoder, {name: module, **plain})
    with torch.no_grad(), rewriting_sites(module, rewrites, host_name=name, siblings=plain):
        yield module


def site_rewrite(one: SiteEdit, host: str, siblings: Siblings, special_ids: Sequence[int] | None = None) -> SiteRewrite:
    """The change that an edit makes of the residual of ``host``; arguments and errors as for `edited`."""
    crosscoder = one.crosscoder
    crosscoder.model_index(host)
    edit = one.edit if isinstance(one.edit, Edit) else Edit.parse(one.edit)
    site, ids = _features_of(one)
    complete = all(name == host or name in siblings for name in crosscoder.model_names)
    readout = one.readout or Readout("joint" if edit.kind == "transplant" and complete else "swap")
    rewrite = build_rewrite(crosscoder, ids, edit, host=host, donor=one.donor, readout=readout)
    rule = as_rule(one.positions)
    if not ids and edit.kind != "replace":
        rule, reads = PositionRule(), []
    else:
        reads = read_models(crosscoder, edit, host=host, donor=one.donor, readout=readout)
    for name in reads:
        if name not in siblings:
            raise ModelError(f"The edit '{edit}' reads model '{name}' on the same tokens; pass that model in siblings.")
    shown = f"features {', '.join(map(str, ids[:5]))}" if ids else "no features"
    others = f" and {len(ids) - 5} more" if len(ids) > 5 else ""
    what = f"The edit '{edit}' of {shown}{others} at {site} in {host}"
    leaves = None if rule.with_dropped else TokenRule.of(crosscoder)
    return SiteRewrite(site, rewrite, tuple(reads), PositionMask(rule, special_ids), what, leaves or None)


def _features_of(one: SiteEdit) -> tuple[Site, list[int]]:
    selection, site = one.selection, None if one.site is None else Site.parse(str(one.site))
    if not isinstance(selection, _HasFeatures):
        if site is None:
            raise ConfigError("The site of the features is missing; pass it as edited(..., site='resid_post.<layer>').")
        return site, [int(feature) for feature in selection]
    own = Site.parse(selection.site)
    if site is not None and site != own:
        raise SelectionError(f"The selection's features belong to {own}, but the edit is requested at {site}.")
    made_with = getattr(selection, "crosscoder", None)
    if isinstance(made_with, str) and made_with != (found := _fingerprint(one.crosscoder)):
        raise ArtifactError(
            f"The selection was made with crosscoder {made_with[:12]}, but the edit uses {found[:12]}; select again with that one."
        )
    return own, list(selection.features)


_fingerprints: "weakref.WeakKeyDictionary[Crosscoder, tuple[list[int], str]]" = weakref.WeakKeyDictionary()


def _fingerprint(crosscoder: Crosscoder) -> str:
    """The crosscoder's fingerprint; hashed again only after a weight was modified."""
    versions = [tensor._version for tensor in crosscoder.state_dict(keep_vars=True).values()]
    known = _fingerprints.get(crosscoder)
    if known is None or known[0] != versions:
        known = _fingerprints[crosscoder] = (versions, crosscoder.fingerprint)
    return known[1]


def _check_widths(crosscoder: Crosscoder, modules: Mapping[str, Any]) -> None:
    for name, module in modules.items():
        expected = crosscoder.config.widths[crosscoder.model_index(name)] if name in crosscoder.model_names else None
        width = int(module.config.get_text_config().hidden_size)
        if expected is not None and width != expected:
            raise ModelError(
                f"The crosscoder expects d_model {expected} for {name}, but that model's residual has {width}."
            )
