"""What is run: the selected set, its controls, baselines and ceilings, as a flat list of conditions."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import numpy as np

from mechprobe.dictionary.readout import Readout
from mechprobe.errors import ConfigError
from mechprobe.files import dump_json, sha256_bytes
from mechprobe.interventions.config import InterveneConfig
from mechprobe.interventions.edits.edit import Edit
from mechprobe.selection.stage import Selection
from mechprobe.types import ReadoutMode

SetKind = Literal[
    "clean", "selected", "random", "recon", "opposite", "shuffled", "ceiling", "baseline", "size", "dose", "compare",
    "left_out",
]  # fmt: skip
How = Literal["clean", "edit", "patch", "vector", "shuffled", "prefix"]


EVERYWHERE = "mean difference"
LAST_PROMPT_TOKEN = "mean difference, last prompt token"
"""Baselines of one vector: the mean residual difference, added at every position or at the last of the prompt alone."""


@dataclass(frozen=True)
class Condition:
    """One generation run over all tasks.

    Attributes:
        name: Unique, and readable: ``rl|ablate|top50``.
        model: The host.
        edit: The edit's text, or the name of what is done instead.
        features: Name of the feature set.
        set_kind: Role of the condition.
        how: What machinery runs it.
        ids: Features edited.
        donor: Whose features or residual are put in.
        draw: Number of a random set.
        write_ids: Decoder directions of a shuffled control.
        readout: Read-out that is not the edit's usual one (joint of a transplant, the configured one of others), or empty.
        tasks: Tasks it is run on; empty for all.
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
    readout: ReadoutMode | Literal[""] = ""
    tasks: tuple[str, ...] = ()


def readout_of(condition: Condition, config: InterveneConfig) -> Readout:
    """How a condition reads features: as it says itself, else a transplant jointly and the others as configured."""
    usual = "joint" if condition.edit == "transplant" else config.readout
    return Readout(condition.readout or usual, config.near)


def readout_name(condition: Condition, config: InterveneConfig) -> str | None:
    """The read-out in words, as results have it; None where no feature is read."""
    reads = condition.how in ("edit", "shuffled") and Edit.parse(condition.edit).kind not in ("project", "steer")
    return str(readout_of(condition, config)) if reads else None


def other_readout(config: InterveneConfig) -> ReadoutMode:
    """The read-out that transplants are run under beside that of the verdict."""
    return "swap" if config.transplant_readout == "joint" else "joint"


def under_readout(features: str, mode: ReadoutMode) -> str:
    """Label of a set whose transplant is read otherwise."""
    return f"{features}, {mode} read-out"


def fingerprint(conditions: Sequence[Condition]) -> str:
    """sha256 of everything that is run: what a stage's results hang on."""
    return sha256_bytes(dump_json([asdict(condition) for condition in conditions]).encode())


def row_named(rows: Sequence[dict[str, Any]], name: str) -> dict[str, Any]:
    """The row of one condition, for example ``rl|ablate|top50``; `ConfigError` where there is none."""
    for row in rows:
        if row["name"] == name:
            return row
    raise ConfigError(f"There is no condition '{name}'; there are {', '.join(row['name'] for row in rows)}.")


def plan(selection: Selection, others: dict[str, Selection], config: InterveneConfig) -> list[Condition]:
    """Every condition of an intervention run; clean runs and ceilings come first.

    Args:
        selection: The set under test, with its matched random sets.
        others: Sets of other rankings, by the name they are shown under.
        config: Settings.
    """
    base, tuned = config.base, config.tuned
    conditions = [Condition(f"{model}|clean", model, "clean", "none", "clean", "clean") for model in (base, tuned)]
    conditions += [
        Condition(f"{host}|patch|whole residual", host, "patch", "whole residual", "ceiling", "patch", donor=donor)
        for host, donor in ((base, tuned), (tuned, base))
    ]
    for host, donor, edits in ((base, tuned, config.edits_base), (tuned, base, config.edits_tuned)):
        for edit in edits:
            conditions += _main_edit(selection, others, host, donor, edit, config)
        conditions.append(Condition(f"{host}|replace|reconstruction", host, "replace", "none", "recon", "edit"))
        conditions += [
            Condition(f"{host}|vector|{name}", host, "vector", name, "baseline", "vector", donor=donor)
            for name in (EVERYWHERE, LAST_PROMPT_TOKEN)
        ]
        conditions += _sizes(selection, host, donor, edits, config)
    conditions += _opposite(selection, config)
    conditions += _left_out(selection, config)
    judged = [Edit.parse(edit) for edit in config.edits_base]
    conditions += [
        Condition(f"{base}|{dose}|{selection.rule}", base, dose, selection.rule, "dose", "edit", selection.features)
        for dose in config.doses
        if Edit.parse(dose) not in judged
    ]
    if config.force_prefix:
        name = f"{base}|prefix|{config.force_prefix}"
        conditions.append(Condition(name, base, "prefix", config.force_prefix, "baseline", "prefix"))
    if config.transplant_readout == "joint":
        return conditions
    mine = config.transplant_readout
    return [replace(c, readout=c.readout or mine) if c.edit == "transplant" else c for c in conditions]


def _main_edit(
    selection: Selection, others: dict[str, Selection], host: str, donor: str, edit: str, config: InterveneConfig
) -> list[Condition]:
    giver = donor if edit == "transplant" else None
    rule = selection.rule

    def condition(
        label: str, kind: SetKind, ids: Sequence[int], *, draw: int | None = None, write: Sequence[int] = ()
    ) -> Condition:
        how: How = "shuffled" if write else "edit"
        name = f"{host}|{edit}|{label}"
        return Condition(name, host, edit, label, kind, how, tuple(ids), giver, draw, tuple(write))

    rows = [condition(rule, "selected", selection.features)]
    rows += [condition(name, "compare", other.features) for name, other in others.items()]
    if edit == "transplant":
        mode = other_readout(config)
        pairs = [(under_readout(name, mode), other) for name, other in [(rule, selection), *others.items()]]
        rows += [
            Condition(
                f"{host}|{edit}|{label}", host, edit, label, "compare", "edit", other.features, giver, readout=mode
            )
            for label, other in pairs
        ]
    rows += [
        condition(f"random {draw}", "random", ids, draw=draw)
        for draw, ids in enumerate(selection.controls[: config.n_random])
    ]
    for draw in range(config.n_shuffled):
        write = shuffled_directions(selection, seed=config.seed, draw=draw)
        rows.append(condition(f"shuffled directions {draw}", "shuffled", selection.features, draw=draw, write=write))
    return rows


def _sizes(
    selection: Selection, host: str, donor: str, edits: Sequence[str], config: InterveneConfig
) -> list[Condition]:
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
    """Every one-model edit in the other model: ablate in base, clamp in tuned."""
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
    """For every task that selected, the set chosen without it, transplanted both ways and run on that task alone."""
    chosen = selection.left_out if config.leave_one_out else {}
    pairs = (
        (config.base, config.tuned, config.edits_base),
        (config.tuned, config.base, config.edits_tuned),
    )
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


def shuffled_directions(selection: Selection, *, seed: int, draw: int) -> list[int]:
    """Live features outside the selection, as many as it has, whose decoder directions stand in for its own."""
    live = (selection.scores.density > 0) & (selection.scores.decoder_norm > 0)
    live[list(selection.features)] = False
    pool = np.flatnonzero(live)
    return [int(k) for k in np.random.default_rng([seed, 1, draw]).choice(pool, len(selection.features), replace=False)]
