"""Reading a file of published scores: a CSV table with a column per benchmark, or JSON."""

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mechprobe.dynamics.config import DynamicsConfig
from mechprobe.dynamics.detect import dip_and_recovery
from mechprobe.dynamics.lengths import length_course
from mechprobe.dynamics.result import DipResult
from mechprobe.errors import InputError, MechprobeError
from mechprobe.records import read_lines

_ROWS = ("base", "n", "responses")
_KEYS = {"base", "scores", "n", "responses", "se", "cut", "lengths", "steps"}


def read_published(path: Path | str) -> dict[str, dict[str, Any]]:
    """Curve → ``steps``, ``scores``, ``base``, ``n`` and what else the file gives.

    A CSV file has a first column ``step``, whose rows are ``base``, ``n``, ``responses`` and the steps, and a column for each curve; an empty
    cell leaves the step out of that curve. A JSON file has ``steps`` and ``curves``: name → an object of ``base``, ``scores`` and ``n``,
    and optionally ``responses``, ``se``, ``cut``, ``lengths`` (both base first) and ``steps`` of its own.

    Raises:
        InputError: The file is missing or not of this form; the message names the place.
    """
    path = Path(path)
    lines = [text for _, text in read_lines(path, kind="CSV or JSON file of scores")]
    found = _json("\n".join(lines), path) if path.suffix.lower() == ".json" else _csv(lines, path)
    if not found:
        raise InputError(f"{path} holds no curve; give a column, or an entry of curves, for each benchmark.")
    return found


def published_curves(path: Path | str, config: DynamicsConfig) -> dict[str, DipResult]:
    """The result of every curve of a file, each for itself; `InputError` names the curve that cannot be used."""
    return {name: _curve(f"{path}, curve {name}", values, config) for name, values in read_published(path).items()}


def _curve(place: str, values: Mapping[str, Any], config: DynamicsConfig) -> DipResult:
    try:
        found = dip_and_recovery(
            values["steps"], values["scores"], values["base"], values.get("n"), responses=values.get("responses", 1),
            se=values.get("se"), cut=values.get("cut"), config=config,
        )  # fmt: skip
        if values.get("lengths") is None:
            return found
        length = length_course(found.steps, values["lengths"], found.scores, found.base_score, alpha=config.alpha)
        return found.model_copy(update={"length": length})
    except MechprobeError as error:
        raise InputError(f"{place}: {error}") from None


def _json(text: str, path: Path) -> dict[str, dict[str, Any]]:
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is no JSON ({error}); write an object of steps and curves.") from None
    curves = data.get("curves") if isinstance(data, dict) else None
    if not isinstance(curves, dict):
        raise InputError(f'{path} has no object \'curves\'; write {{"steps": [...], "curves": {{name: {{...}}}}}}.')
    found = {}
    for name, values in curves.items():
        if not isinstance(values, dict) or not {"base", "scores"} <= set(values):
            raise InputError(f"{path}: curve {name} needs base and scores.")
        if set(values) - _KEYS:
            raise InputError(
                f"{path}: curve {name} has the unknown key '{min(set(values) - _KEYS)}'; the keys are {', '.join(sorted(_KEYS))}."
            )
        steps = values.get("steps", data.get("steps"))
        if not isinstance(steps, list) or not all(isinstance(step, int | float) for step in steps):
            raise InputError(f"{path}: curve {name} has no list of steps; write steps beside curves.")
        if not isinstance(values.get("responses", 1), int):
            raise InputError(f"{path}: responses of curve {name} must be a whole number.")
        found[str(name)] = {**values, "steps": steps}
    return found


def _csv(lines: list[str], path: Path) -> dict[str, dict[str, Any]]:
    rows = list(csv.reader(lines))
    head = [cell.strip() for cell in rows[0]] if rows else []
    if not head or head[0] != "step" or len(set(head)) < len(head):
        raise InputError(
            f"The first line of {path} must be step and different names of curves, such as step,MATH500,GPQA."
        )
    table = {row[0].strip(): [cell.strip() for cell in row[1:]] for row in rows[1:]}
    if len(table) < len(rows) - 1 or any(len(row) != len(head) for row in rows):
        raise InputError(f"{path} has a step twice, or a line without {len(head)} cells; write one line for each step.")
    missing = [name for name in ("base", "n") if name not in table]
    if missing:
        raise InputError(
            f"{path} has no line '{missing[0]}'; write base and its scores, and n and the number of problems."
        )
    return {name: _column(table, place, name, path) for place, name in enumerate(head[1:])}


def _column(table: Mapping[str, list[str]], place: int, name: str, path: Path) -> dict[str, Any]:
    def number(row: str, text: str) -> float:
        try:
            return float(text)
        except ValueError:
            raise InputError(f"{path}: '{text}' in line {row}, column {name}, is no number.") from None

    steps = {row: cells[place] for row, cells in table.items() if row not in _ROWS and cells[place]}
    return {
        "steps": [number(row, row) for row in steps],
        "scores": [number(row, text) for row, text in steps.items()],
        "base": number("base", table["base"][place]),
        "n": int(number("n", table["n"][place])),
        "responses": int(number("responses", table["responses"][place])) if "responses" in table else 1,
    }
