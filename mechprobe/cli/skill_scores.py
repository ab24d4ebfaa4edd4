"""`mechprobe skills score`: the skill scores of a finished evaluate stage."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mechprobe.cli import options

if TYPE_CHECKING:
    from mechprobe.evals.skills.summary import SkillRow, SkillScores

By = Annotated[str, typer.Option("--by", help="Rows: all, skill, domain, cell, level, family or split.")]


def score(
    evals: Annotated[Path, typer.Argument(help="Folder of a finished evaluate stage.")],
    tasks: Annotated[Path, typer.Option("--tasks", help="The tasks.jsonl that was evaluated.")],
    by: By = "skill",
    as_json: options.Json = False,
) -> None:
    """Score answers and behaviour apart, with intervals, above chance; detection and correction for the skill diagnostic."""
    from mechprobe.cli.printing import note, say, say_json, table_lines
    from mechprobe.evals.skills.registry import check_choice
    from mechprobe.evals.skills.scoring import n_asked_otherwise, read_items, score_items
    from mechprobe.evals.skills.summary import GROUPS
    from mechprobe.evals.stage import load_outcomes

    check_choice("row", by, GROUPS)
    items, outcomes = read_items(tasks), load_outcomes(evals)
    found = {
        model: score_items(items, [record for record in outcomes.records if record.model == model])
        for model in outcomes.models
    }
    if n := n_asked_otherwise(items, outcomes.samples.values()):
        note(
            f"{n} of {len(outcomes.samples)} evaluated items have another prompt than in {tasks} (another rendering?); rules and "
            "steps may be read wrongly, so give the file that was evaluated."
        )
    if as_json:
        say_json({model: scores.to_dict() for model, scores in found.items()})
        return
    say("Right answers (boxed), behaviour asked (rule named, wrong step named), both (strict), in % with 95 % interval")
    rows = {f"{model}  {name}".rstrip(): _cells(row) for model, scores in found.items() for name, row in scores.by(by).items()}  # fmt: skip  # pyright: ignore[reportArgumentType]
    for line in [*table_lines(rows, list(next(iter(rows.values()))), corner="model"), *_diagnostic(found)]:
        say(line)


def _cells(row: "SkillRow") -> dict[str, str]:
    from mechprobe.formatting import MISSING, bracketed, decimal

    return {
        "n": str(row.n),
        "boxed": bracketed(row.boxed),
        "behaviour": MISSING if row.behaviour is None else f"{bracketed(row.behaviour)} n {row.behaviour.n}",
        "strict": bracketed(row.strict),
        "chance": decimal(row.chance, 3),
        "above chance": bracketed(row.corrected),
        "unparsed": str(row.unparsed),
        "cut": str(row.cut),
    }


def _diagnostic(found: "dict[str, SkillScores]") -> list[str]:
    """One row a model: what it finds out about worked steps."""
    from mechprobe.cli.printing import table_lines
    from mechprobe.formatting import bracketed

    parts = {model: scores.by("all")[""].diagnostic for model, scores in found.items()}
    names = {
        "detection": "balanced detection", "error_found": "error found", "clean_found": "clean found",
        "localization": "step right", "correction": "step and value right",
    }  # fmt: skip
    rows = {
        model: {
            title: f"{bracketed(cell)} n {cell.n}" for name, title in names.items() for cell in [getattr(part, name)]
        }
        for model, part in parts.items()
        if part is not None
    }
    return ["", "Diagnostic items, in %", *table_lines(rows, list(names.values()), corner="model")] if rows else []
