"""The conditions of an intervention run: the selected set, its controls, baselines and ceilings, as a flat list."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from mechprobe.interventions.conditions.condition import (
    EVERYWHERE,
    LAST_PROMPT_TOKEN,
    Condition,
    How,
    other_readout,
    under_readout,
)
from mechprobe.interventions.config import InterveneConfig
from mechprobe.interventions.edits.edit import Edit
from mechprobe.selection.config import Ranking
from mechprobe.selection.result import Selection

if TYPE_CHECKING:
    import pandas as pd


def choose_sets(
    selection: Selection, config: InterveneConfig, table: "pd.DataFrame | None"
) -> tuple[Selection, dict[str, Selection]]:
    """The set under test with its random sets, and the sets of the other rankings by name.

    Args:
        selection: A finished selection.
        config: ``features``, ``ranking`` and ``threshold`` may ask for another set from its scores.
        table: Feature table, for ``rule:`` specifications.
    """
    rule = config.features or selection.rule

    def choose(ranking: Ranking | None, n_controls: int) -> Selection:
        return selection.choose(
            rule, ranking=ranking, n_controls=n_controls, threshold=config.threshold, seed=config.seed, table=table
        )

    chosen = choose(config.ranking, config.n_random)
    by_ranking = rule.startswith(("top", "agnostic"))
    others = {
        f"{rule} by {ranking}": choose(ranking, 0)
        for ranking in config.compare
        if by_ranking and ranking != chosen.ranking
    }
    return chosen, others


def shuffled_directions(selection: Selection, *, seed: int, draw: int) -> list[int]:
    """As many live features outside the selection as it has; an equal-norm control writes along their decoder directions.

    Args:
        selection: The set under test.
        seed: Seed of the run.
        draw: Number of the control.
    """
    live = (selection.scores.density > 0) & (selection.scores.decoder_norm > 0)
    live[list(selection.features)] = False
    pool = np.flatnonzero(live)
    return [int(k) for k in np.random.default_rng([seed, 1, draw]).choice(pool, len(selection.features), replace=False)]


def plan(selection: Selection, others: Mapping[str, Selection], config: InterveneConfig) -> list[Condition]:
    """Every condition of a run; clean runs and ceilings come first.

    Args:
        selection: The set under test, with its matched random sets.
        others: Sets of other rankings, by the name under which results show them.
        config: Settings.
    """
    base, tuned = config.base, config.tuned
    hosts = ((base, tuned, config.edits_base), (tuned, base, config.edits_tuned))
    conditions = [Condition(f"{model}|clean", model, "clean", "none", "clean", "clean") for model in (base, tuned)]
    conditions += [
        Condition(f"{host}|patch|whole residual", host, "patch", "whole residual", "ceiling", "patch", donor=donor)
        for host, donor, _ in hosts
    ]
    for host, donor, edits in hosts:
        for edit in edits:
            conditions += _main_edit(selection, others, host, donor, edit, config)
        conditions += _baselines(host, donor)
        conditions += _sizes(selection, host, donor, edits, config)
    conditions += [*_opposite(selection, config), *_left_out(selection, config), *_doses(selection, config)]
    if config.force_prefix:
        name = f"{base}|prefix|{config.force_prefix}"
        conditions.append(Condition(name, base, "prefix", config.force_prefix, "baseline", "prefix"))
    if config.transplant_readout == "joint":
        return conditions
    mode = config.transplant_readout
    return [replace(c, readout=c.readout or mode) if c.edit == "transplant" else c for c in conditions]


def _main_edit(
    selection: Selection, others: Mapping[str, Selection], host: str, donor: str, edit: str, config: InterveneConfig
) -> list[Condition]:
    """One edit of the selected set, of the sets of other rankings, and of both kinds of controls."""
    is_transplant = edit == "transplant"
    main = Condition(
        f"{host}|{edit}|{selection.rule}", host, edit, selection.rule, "selected", "edit", selection.features,
        donor if is_transplant else None,
    )  # fmt: skip

    def like_main(label: str, **changes: Any) -> Condition:
        return replace(main, name=f"{host}|{edit}|{label}", features=label, **changes)

    rows = [main, *(like_main(name, set_kind="compare", ids=other.features) for name, other in others.items())]
    if is_transplant:
        mode = other_readout(config)
        rows += [
            like_main(under_readout(name, mode), set_kind="compare", ids=other.features, readout=mode)
            for name, other in [(selection.rule, selection), *others.items()]
        ]
    rows += [
        like_main(f"random {draw}", set_kind="random", ids=tuple(ids), draw=draw)
        for draw, ids in enumerate(selection.controls[: config.n_random])
    ]
    for draw in range(config.n_shuffled):
        write_ids = tuple(shuffled_directions(selection, seed=config.seed, draw=draw))
        label = f"shuffled directions {draw}"
        rows.append(like_main(label, set_kind="shuffled", how=_how_written(write_ids), draw=draw, write_ids=write_ids))
    return rows


def _how_written(write_ids: Sequence[int]) -> How:
    """An empty set has no directions to turn: its control is the edit itself, which changes nothing."""
    return "shuffled" if write_ids else "edit"


def _baselines(host: str, donor: str) -> list[Condition]:
    """The reconstruction in place of the residual, and the mean residual difference as one vector."""
    vectors = (EVERYWHERE, LAST_PROMPT_TOKEN)
    return [
        Condition(f"{host}|replace|reconstruction", host, "replace", "none", "recon", "edit"),
        *(
            Condition(f"{host}|vector|{name}", host, "vector", name, "baseline", "vector", donor=donor)
            for name in vectors
        ),
    ]


def _doses(selection: Selection, config: InterveneConfig) -> list[Condition]:
    """The selected set in base at further strengths, without those that are main edits."""
    base, rule = config.base, selection.rule
    judged = [Edit.parse(edit) for edit in config.edits_base]
    return [
        Condition(f"{base}|{dose}|{rule}", base, dose, rule, "dose", "edit", selection.features)
        for dose in config.doses
        if Edit.parse(dose) not in judged
    ]


def _sizes(
    selection: Selection, host: str, donor: str, edits: Sequence[str], config: InterveneConfig
) -> list[Condition]:
    """Transplants of the first features of the ranking."""
    if "transplant" not in edits:
        return []
    sizes = [size for size in config.sizes if size < len(selection.features)]
    return [
        Condition(
            f"{host}|transplant|first {size}", host, "transplant", f"first {size}", "size", "edit",
            selection.features[:size], donor,
        )
        for size in sizes
    ]  # fmt: skip


def _opposite(selection: Selection, config: InterveneConfig) -> list[Condition]:
    """Every one-model edit in the other model: ablate in base and clamp in tuned."""
    pairs = [(config.base, edit) for edit in config.edits_tuned] + [(config.tuned, edit) for edit in config.edits_base]
    return [
        Condition(
            f"{host}|{edit}|{selection.rule} (opposite)", host, edit, selection.rule, "opposite", "edit",
            selection.features,
        )
        for host, edit in pairs
        if edit != "transplant"
    ]  # fmt: skip


def _left_out(selection: Selection, config: InterveneConfig) -> list[Condition]:
    """For every selecting task, the set chosen without it: transplanted both ways, and run on that task only."""
    chosen = selection.left_out if config.leave_one_out else {}
    pairs = ((config.base, config.tuned, config.edits_base), (config.tuned, config.base, config.edits_tuned))
    return [
        Condition(
            f"{host}|transplant|{selection.rule} without {task}", host, "transplant", f"{selection.rule} without {task}",
            "left_out", "edit", tuple(ids), donor, tasks=(task,),
        )
        for host, donor, edits in pairs
        if "transplant" in edits
        for task, ids in chosen.items()
        if ids
    ]  # fmt: skip
