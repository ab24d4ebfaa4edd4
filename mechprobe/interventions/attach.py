"""`edited`: a context in which a model runs with some of its features edited."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from mechprobe.errors import ConfigError, ModelError, SelectionError
from mechprobe.features.readout import Readout
from mechprobe.interventions.edits import Edit, edited_acts, feature_acts_of, own_decoder, without_span
from mechprobe.interventions.shadow import Positions, Rewrite, rewriting
from mechprobe.models.family import ModelFamily
from mechprobe.models.load import LanguageModel
from mechprobe.types import Site
from sae_training import Crosscoder


@runtime_checkable
class HasFeatures(Protocol):
    """Anything that names features and the site they belong to, such as a `Selection`."""

    @property
    def features(self) -> Sequence[int]:
        """Feature indices."""
        ...

    @property
    def site(self) -> str:
        """Site name, ``resid_post.<layer>``."""
        ...


AnyModel = LanguageModel | nn.Module
Siblings = ModelFamily | Mapping[str, Any]


def plain_module(model: AnyModel) -> Any:
    """The transformers module on which hooks act: of a `LanguageModel`, of a bridge, or the model itself."""
    if isinstance(model, LanguageModel):
        return model.hf
    return getattr(model, "original_model", model)


def check_ids(ids: Sequence[int], d_sae: int) -> list[int]:
    """The ids as given; `SelectionError` for one that is out of range or named twice."""
    for feature in ids:
        if not 0 <= feature < d_sae:
            raise SelectionError(f"Feature {feature} does not exist: the crosscoder has features 0 to {d_sae - 1}.")
    if len(set(ids)) != len(ids):
        twice = next(feature for feature in ids if list(ids).count(feature) > 1)
        raise SelectionError(f"Feature {twice} is named twice; name each feature once.")
    return list(ids)


def build_rewrite(
    crosscoder: Crosscoder,
    ids: Sequence[int],
    edit: Edit,
    *,
    host: str,
    donor: str | None,
    readout: Readout,
    write_ids: Sequence[int] | None = None,
) -> Rewrite:
    """The edit as a function of the models' residuals; with no features to edit it returns the host's own tensor.

    ``write_ids`` puts other features' decoder directions in the place of the edited ones (the shuffled control).
    """
    features = _index(crosscoder, ids)
    written = features if write_ids is None else _index(crosscoder, write_ids)
    if edit.kind == "replace":
        return _replacement(crosscoder, features, host, readout)
    if not len(features):
        return lambda x: x[host]
    if edit.kind == "project":
        directions = own_decoder(crosscoder, features, host)
        return lambda x: without_span(x[host], directions)
    if edit.kind == "transplant":
        giver = _require_donor(crosscoder, donor, host)
        return _transplant(crosscoder, features, written, host=host, donor=giver, readout=readout)

    directions = own_decoder(crosscoder, written, host)

    def rewrite(x: Mapping[str, Tensor]) -> Tensor:
        acts = _acts(crosscoder, features, x, host, readout)
        return _add(x[host], (edited_acts(acts, edit) - acts) @ directions)

    return rewrite


def _index(crosscoder: Crosscoder, ids: Sequence[int]) -> Tensor:
    return torch.tensor(check_ids(ids, crosscoder.d_sae), dtype=torch.int64, device=crosscoder.device)


def _require_donor(crosscoder: Crosscoder, donor: str | None, host: str) -> str:
    if donor is None:
        raise ConfigError("A transplant needs a donor; name the model whose features are put in.")
    if crosscoder.model_index(donor) == crosscoder.model_index(host):
        raise ConfigError(f"A transplant from {donor} into {host} changes nothing; name two different models.")
    return donor


def _acts(crosscoder: Crosscoder, ids: Tensor, x: Mapping[str, Tensor], model: str, readout: Readout) -> Tensor:
    slots = readout.slots(crosscoder, {name: resid.float() for name, resid in x.items()}, model)
    return feature_acts_of(crosscoder, slots.reshape(-1, *slots.shape[-2:]), ids)


def _add(resid: Tensor, flat_delta: Tensor) -> Tensor:
    return resid + flat_delta.reshape(resid.shape).to(resid.dtype)


def _transplant(
    crosscoder: Crosscoder, ids: Tensor, written: Tensor, *, host: str, donor: str, readout: Readout
) -> Rewrite:
    from_donor, from_host = own_decoder(crosscoder, written, donor), own_decoder(crosscoder, written, host)
    if from_donor.shape != from_host.shape:
        raise ModelError(f"Models {donor} and {host} differ in width; their features cannot be transplanted.")

    def rewrite(x: Mapping[str, Tensor]) -> Tensor:
        acts = _acts(crosscoder, ids, x, host, readout)
        donor_acts = acts if readout.mode == "joint" else _acts(crosscoder, ids, x, donor, readout)
        return _add(x[host], donor_acts @ from_donor - acts @ from_host)

    return rewrite


def _replacement(crosscoder: Crosscoder, ids: Tensor, host: str, readout: Readout) -> Rewrite:
    def rewrite(x: Mapping[str, Tensor]) -> Tensor:
        acts = readout.feature_acts(crosscoder, {name: resid.float() for name, resid in x.items()}, host)
        flat = acts.reshape(-1, acts.shape[-1]).index_fill(1, ids, 0.0)
        return crosscoder.decode_model(flat, host).reshape(x[host].shape).to(x[host].dtype)

    return rewrite


def needed_siblings(crosscoder: Crosscoder, host: str, edit: Edit, donor: str | None, readout: Readout) -> list[str]:
    """The models whose residuals an edit of ``host`` reads beside the host's own."""
    if edit.kind == "project":
        return []
    names = list(crosscoder.model_names)
    needed: set[str] = set()
    for model in [host] if edit.kind != "transplant" else [host, donor or host]:
        if readout.mode == "joint":
            needed |= set(names)
        elif readout.mode == "swap" and readout.near is not None:
            group = set(readout.near) if model in readout.near else {model}
            needed |= {model} | (set(names) - group)
        else:
            needed.add(model)
    return [name for name in names if name in needed and name != host]


@contextmanager
def edited(  # noqa: PLR0913 - the promised entry point; all but four are keyword options
    model: AnyModel,
    crosscoder: Crosscoder,
    selection: HasFeatures | Sequence[int],
    edit: str | Edit = "ablate",
    *,
    site: Site | str | None = None,
    host: str | None = None,
    donor: str | None = None,
    siblings: Siblings | None = None,
    readout: Readout | None = None,
    positions: Positions = "all",
) -> Iterator[Any]:
    """Run ``model`` with features edited, in forward and in generation (greedy or sampled, KV cache, left padding).

    Args:
        model: A `LanguageModel`, a plain transformers model, or a TransformerBridge.
        crosscoder: The dictionary the features belong to.
        selection: A `Selection`, or feature indices (then ``site`` is needed).
        edit: ``ablate``, ``clamp:V``, ``scale:A``, ``transplant``, ``replace`` or ``project``.
        site: Where; by default the selection's.
        host: The model's name in the crosscoder; by default the `LanguageModel`'s own name.
        donor: For a transplant, whose features are put in.
        siblings: The other models, by name; needed by a transplant and by the ``joint`` read-out.
        readout: How features are read; by default ``joint`` for a transplant with all siblings at hand, else ``swap``.
        positions: ``all``, ``prompt`` or ``response``.

    Yields:
        The plain transformers model with the edit in force; no hook is left on it on any exit.

    Raises:
        ConfigError: The edit or the site is missing or contradictory.
        SelectionError: A feature does not exist.
        ModelError: A sibling that the edit reads is not given.
    """
    parsed = edit if isinstance(edit, Edit) else Edit.parse(edit)
    name = host or (model.name if isinstance(model, LanguageModel) else None)
    if name is None:
        raise ConfigError("Say which of the crosscoder's models this is: edited(..., host=NAME).")
    crosscoder.model_index(name)
    ids = list(selection.features) if isinstance(selection, HasFeatures) else [int(k) for k in selection]
    place = site or (selection.site if isinstance(selection, HasFeatures) else None)
    if place is None:
        raise ConfigError("Say where the features live: edited(..., site='resid_post.<layer>').")
    where = place if isinstance(place, Site) else Site.parse(place)
    reader = readout or _default_readout(crosscoder, parsed, siblings, name)
    rewrite = build_rewrite(crosscoder, ids, parsed, host=name, donor=donor, readout=reader)
    empty = not ids and parsed.kind != "replace"
    others = [] if empty else needed_siblings(crosscoder, name, parsed, donor, reader)
    plain = {other: plain_module(_sibling(siblings, other, parsed)) for other in others}
    module = plain_module(model)
    with torch.no_grad(), rewriting(module, where, rewrite, host_name=name, siblings=plain, positions=positions):
        yield module


def _default_readout(crosscoder: Crosscoder, edit: Edit, siblings: Siblings | None, host: str) -> Readout:
    given = siblings or {}
    complete = all(name == host or name in given for name in crosscoder.model_names)
    return Readout("joint") if edit.kind == "transplant" and complete else Readout("swap")


def _sibling(siblings: Siblings | None, name: str, edit: Edit) -> AnyModel:
    if siblings is None or name not in siblings:
        raise ModelError(f"The edit '{edit}' reads model '{name}' on the same tokens; pass it in siblings.")
    return siblings[name]
