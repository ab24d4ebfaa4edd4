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
from mechprobe.dynamics.scores import MIN_CHECKPOINTS, MOST
from mechprobe.errors import InputError, MechprobeError
from mechprobe.json_fields import printable_name
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
    for name in found:
        if not printable_name(name, "curve", str(path)).strip():
            raise InputError(f"{path} has a curve without a name; name every curve.")
    return found


def split_untested(table: Mapping[str, dict[str, Any]]) -> tuple[dict[str, dict[str, Any]], tuple[str, ...]]:
    """The curves with enough checkpoints to be tested, and a sentence on each of the others; `InputError` if there are only others."""
    tested = {name: values for name, values in table.items() if len(values["steps"]) >= MIN_CHECKPOINTS}
    notes = tuple(
        f"{name} is not tested: checkpoints beside base: {len(values['steps'])}, and a curve needs {MIN_CHECKPOINTS}."
        for name, values in table.items()
        if name not in tested
    )
    if not tested:
        raise InputError(" ".join(notes))
    return tested, notes


def published_curves(path: Path | str, config: DynamicsConfig) -> dict[str, DipResult]:
    """The result of every curve of a file that can be tested, each for itself; `InputError` names a curve that cannot be used."""
    tested, _ = split_untested(read_published(path))
    return {name: _curve(f"{path}, curve {name}", values, config) for name, values in tested.items()}


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
        data = json.loads(text, object_pairs_hook=_unique)
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
        if not isinstance(steps, list) or not all(type(step) in (int, float) for step in steps):
            raise InputError(f"{path}: curve {name} has no list of steps; write steps beside curves.")
        n = values.get("n")
        if n is not None and not all(type(count) is int for count in (n if isinstance(n, list) else [n])):
            raise InputError(f"{path}: n of curve {name} must be a whole number, or one for base and each checkpoint.")
        if type(values.get("responses", 1)) is not int:
            raise InputError(f"{path}: responses of curve {name} must be a whole number.")
        if values.get("n") is not None and values.get("se") is not None:
            raise InputError(f"{path}: curve {name} has n and se; give the number of problems or the standard errors.")
        found[str(name)] = {**values, "steps": steps}
    return found


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of some pairs; `ValueError` where a key comes twice, of which JSON readers keep the last without a word."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} comes twice")
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
    if missing == ["base"] and "0" in table:
        raise InputError(
            f"{path} has the step 0 and no line 'base'; name that line base if it is the model before training."
        )
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
            raise InputError(f"{path}: '{text}' in the line '{row}', column {name}, is no number.") from None

    def whole(row: str) -> int:
        found = number(row, table[row][place])
        if not (1 <= found <= MOST and found == int(found)):
            raise InputError(f"{path}: {row} of {name} is {table[row][place]}; give a whole number from 1 to {MOST:,}.")
        return int(found)

    steps = {row: cells[place] for row, cells in table.items() if row not in _ROWS and cells[place]}
    return {
        "steps": [number(row, row) for row in steps],
        "scores": [number(row, text) for row, text in steps.items()],
        "base": number("base", table["base"][place]),
        "n": whole("n"),
        "responses": whole("responses") if "responses" in table else 1,
    }
