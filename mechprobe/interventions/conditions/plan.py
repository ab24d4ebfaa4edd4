"""The conditions of an intervention run: the selected set, its controls, baselines and ceilings, as a flat list."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from mechprobe.dictionary.readout import Readout
from mechprobe.errors import ConfigError
from mechprobe.interventions.config import InterveneConfig
from mechprobe.interventions.edits.edit import Edit
from mechprobe.interventions.result_rows import ChangeSize, ConditionRow, SetKind
from mechprobe.interventions.rivals.rival import Rival
from mechprobe.selection.config import Ranking
from mechprobe.selection.result import Selection
from mechprobe.types import ReadoutMode

if TYPE_CHECKING:
    import pandas as pd


How = Literal["clean", "edit", "patch", "vector", "rescaled", "shuffled", "shifted", "prefix", "rival"]
TURNED = ("rescaled", "shuffled", "shifted")
"""Controls that read features as the edit does, and whose change has the norm of the selected set's on every token."""
N_RANDOM_HEADS = 3
"""Random sets whose first features are transplanted beside the first of the ranking."""

EVERYWHERE = "mean difference"
LAST_PROMPT_TOKEN = "mean difference, last prompt token"
"""One-vector baselines: the mean residual difference, added at every position or at the last prompt token only."""


@dataclass(frozen=True)
class Condition:
    """One generation run over all tasks.

    Attributes:
        name: Unique and readable, for example ``rl|ablate|top50``.
        model, edit, features: The host, the text of the edit (or a word such as ``patch``), and the name of the feature set.
        set_kind, how: Role of the condition, and the mechanism that runs it.
        ids: Features edited.
        donor: Model whose features or residual are put in.
        draw: Number of a random draw.
        write_ids: Features whose directions an equal-norm control writes along.
        norm_ids: Features whose change under the same edit gives the norm of a rescaled control.
        rank: Independent directions of the change of a rival; None where ranks do not apply.
        readout: Read-out, where it is not the default of the edit (joint for a transplant, the configured one for others).
        tasks: Tasks it runs on; empty for all.
    """

    name: str
    model: str
    edit: str
    features: str
    set_kind: SetKind
    how: How
    ids: tuple[int, ...] = ()
    donor: str | None = None
    draw: int | None = None
    write_ids: tuple[int, ...] = field(default=(), repr=False)
    norm_ids: tuple[int, ...] = field(default=(), repr=False)
    rank: int | None = None
    readout: ReadoutMode | Literal[""] = ""
    tasks: tuple[str, ...] = ()


def readout_of(condition: Condition, config: InterveneConfig) -> Readout:
    """Read-out of a condition: its own, else ``joint`` for a transplant and the configured one for other edits."""
    default = "joint" if condition.edit == "transplant" else config.readout
    return Readout(condition.readout or default, config.near)


def condition_row(condition: Condition, config: InterveneConfig, change_of: Mapping[str, ChangeSize]) -> ConditionRow:
    """What results say of a condition before any outcome; ``change_of`` maps conditions to the sizes of their changes."""
    change = change_of.get(condition.name)
    reads = condition.how in ("edit", *TURNED) and Edit.parse(condition.edit).kind not in ("project", "steer")
    return ConditionRow(
        name=condition.name,
        model=condition.model,
        edit=condition.edit,
        features=condition.features,
        n_features=len(condition.ids),
        readout=str(readout_of(condition, config)) if reads else None,
        set_kind=condition.set_kind,
        draw=condition.draw,
        relative_change=None if change is None else change.largest,
        change_norm=None if change is None else change.norm,
        **({} if condition.rank is None else {"rank": condition.rank}),
    )


def other_readout(config: InterveneConfig) -> ReadoutMode:
    """The second read-out of the transplants, beside that of the verdict."""
    return "swap" if config.readout_of_transplants == "joint" else "joint"


def under_readout(features: str, mode: ReadoutMode) -> str:
    """Label of a set whose transplant uses the second read-out."""
    return f"{features}, {mode} read-out"


def choose_sets(
    selection: Selection, config: InterveneConfig, table: "pd.DataFrame | None"
) -> tuple[Selection, dict[str, Selection]]:
    """The set under test with its random sets, and the sets of the other rankings by name.

    ``features``, ``ranking`` and ``threshold`` of the settings may ask for another set from the scores of a finished selection.
    ``table`` is the feature table, for ``rule:`` specifications.
    """
    rule = config.features or selection.rule

    def choose(ranking: Ranking | None, n_controls: int) -> Selection:
        return selection.choose(
            rule, ranking=ranking, n_controls=n_controls, threshold=config.threshold, seed=config.seed, table=table
        )

    chosen = choose(config.ranking, config.n_random)
    rankings = config.compare if rule.startswith(("top", "agnostic")) else ()
    return chosen, {f"{rule} by {ranking}": choose(ranking, 0) for ranking in rankings if ranking != chosen.ranking}


def plan(
    selection: Selection, others: Mapping[str, Selection], config: InterveneConfig, rivals: Sequence[Rival] = ()
) -> list[Condition]:
    """Every condition of a run; clean runs and ceilings come first.

    ``selection`` is the set under test with its matched random sets. ``others`` holds the sets of other rankings, by the name
    under which results show them. ``rivals`` run beside the transplants of the selected set.
    """
    base, tuned, rule = config.base, config.tuned, selection.rule
    hosts = ((base, tuned, config.edits_base), (tuned, base, config.edits_tuned))
    conditions = [Condition(f"{model}|clean", model, "clean", "none", "clean", "clean") for model in (base, tuned)]
    conditions += [
        _condition(host, "patch", "whole residual", "ceiling", "patch", donor=donor) for host, donor, _ in hosts
    ]
    for host, donor, edits in hosts:
        for edit in edits:
            conditions += _main_edit(selection, others, host, donor, edit, config)
        conditions.append(_condition(host, "replace", "none", "recon", label="reconstruction"))
        for vector in (EVERYWHERE, LAST_PROMPT_TOKEN):
            conditions.append(_condition(host, "vector", vector, "baseline", "vector", donor=donor))
        if "transplant" in edits:
            conditions += _heads(selection, host, donor, config)
            conditions += [
                _condition(host, "rival", rival.name, rival.set_kind, "rival", donor=donor, rank=rival.rank)
                for rival in rivals
                if selection.features
            ]
    for host, edits in ((base, config.edits_tuned), (tuned, config.edits_base)):
        conditions += [
            _condition(host, edit, rule, "opposite", ids=selection.features, label=f"{rule} (opposite)")
            for edit in edits
            if edit != "transplant"
        ]
    for host, donor, edits in hosts:
        if "transplant" in edits and config.leave_one_out:
            conditions += _left_out(selection, host, donor)
    judged = [Edit.parse(edit) for edit in config.edits_base]
    doses = [dose for dose in config.doses if Edit.parse(dose) not in judged]
    conditions += [_condition(base, dose, rule, "dose", ids=selection.features) for dose in doses]
    if config.force_prefix:
        conditions.append(_condition(base, "prefix", config.force_prefix, "baseline", "prefix"))
    mode = config.readout_of_transplants
    if mode == "joint":
        return conditions
    return [replace(c, readout=c.readout or mode) if c.edit == "transplant" else c for c in conditions]


def _condition(
    host: str, edit: str, features: str, set_kind: SetKind, how: How = "edit", *, label: str = "", **more: Any
) -> Condition:
    """A condition whose name ends with ``label``, or with the name of its features."""
    return Condition(f"{host}|{edit}|{label or features}", host, edit, features, set_kind, how, **more)


def _main_edit(
    selection: Selection, others: Mapping[str, Selection], host: str, donor: str, edit: str, config: InterveneConfig
) -> list[Condition]:
    """One edit of the selected set, of the sets of other rankings, and of both kinds of controls."""
    is_transplant = edit == "transplant"

    def row(label: str, set_kind: SetKind, how: How = "edit", **more: Any) -> Condition:
        options = {"ids": selection.features, "donor": donor if is_transplant else None, **more}
        return _condition(host, edit, label, set_kind, how, **options)

    rows = [row(selection.rule, "selected")]
    rows += [row(name, "compare", ids=other.features) for name, other in others.items()]
    if is_transplant:
        mode = other_readout(config)
        rows += [
            row(under_readout(name, mode), "compare", ids=other.features, readout=mode)
            for name, other in [(selection.rule, selection), *others.items()]
        ]
    return rows + _controls(selection, row, is_transplant, config)


def _controls(
    selection: Selection, row: Callable[..., Condition], is_transplant: bool, config: InterveneConfig
) -> list[Condition]:
    """Matched random sets, the same at the norm of the set's change, and changes of equal norm in other directions."""
    sets = (selection.transplant_controls if is_transplant else selection.controls)[: config.n_random]
    rows = [row(f"random {draw}", "random", ids=ids, draw=draw) for draw, ids in enumerate(sets)]
    if selection.features:
        rows += [
            row(f"random {draw}, rescaled", "rescaled", "rescaled", ids=ids, draw=draw, norm_ids=selection.features)
            for draw, ids in enumerate(sets[: config.n_rescaled])
        ]
    n_shifted = config.n_shuffled if config.n_shifted is None else config.n_shifted
    turned: list[tuple[Literal["shuffled", "shifted"], str, int]] = [("shuffled", "directions", config.n_shuffled)]
    if is_transplant and selection.features:
        turned.append(("shifted", "shifts", n_shifted))
    for kind, along, n in turned:
        for draw in range(n):
            write_ids = _shuffled_directions(selection, config.seed, draw)
            # an empty set has no directions to turn, and its edit changes nothing
            how = kind if write_ids else "edit"
            rows.append(row(f"shuffled {along} {draw}", kind, how, draw=draw, write_ids=write_ids))
    return rows


def _shuffled_directions(selection: Selection, seed: int, draw: int) -> tuple[int, ...]:
    """As many live features outside the selection as it has; an equal-norm control writes along their decoder directions.

    Raises:
        ConfigError: There are too few.
    """
    live = (selection.scores.density > 0) & (selection.scores.decoder_norm > 0)
    live[list(selection.features)] = False
    pool, rng = np.flatnonzero(live), np.random.default_rng([seed, 1, draw])
    if len(pool) < len(selection.features):
        raise ConfigError(
            f"The set has {len(selection.features)} features, and only {len(pool)} other live features are left for its controls "
            "of equal norm; select fewer features."
        )
    return tuple(int(feature) for feature in rng.choice(pool, len(selection.features), replace=False))


def _heads(selection: Selection, host: str, donor: str, config: InterveneConfig) -> list[Condition]:
    sizes = [size for size in config.sizes if size < len(selection.features)]
    return [
        _condition(host, "transplant", f"first {size}", "size", ids=selection.features[:size], donor=donor)
        for size in sizes
    ] + [
        _condition(
            host, "transplant", f"first {size} of random {draw}", "random_size", ids=ids[:size], donor=donor, draw=draw
        )
        for size in sizes
        for draw, ids in enumerate(selection.transplant_controls[: min(N_RANDOM_HEADS, config.n_random)])
    ]


def _left_out(selection: Selection, host: str, donor: str) -> list[Condition]:
    """For every selecting task, the set chosen without it: transplanted, and run on that task only."""
    return [
        _condition(
            host,
            "transplant",
            f"{selection.rule} without {task}",
            "left_out",
            ids=tuple(ids),
            donor=donor,
            tasks=(task,),
        )
        for task, ids in selection.left_out.items()
        if ids
    ]
