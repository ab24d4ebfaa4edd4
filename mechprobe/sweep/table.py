"""The table over all cells, as text and as Markdown. A stand-in has its full name wherever it appears."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeVar

from mechprobe.formatting import interval, markdown_cell
from mechprobe.sweep.result import SafetyPoint, SweepResults

Value = TypeVar("Value")
SAFETY_COLUMNS = ["reasoning gain", "change of attack success", "asymmetry index"]
_MOST_LINES, _MOST_COLUMNS = 34, 5
"""Lines of all tables in the terminal, and checkpoints in one; what does not fit stands in ``table.md``."""


class ArmTable(NamedTuple):
    """A table for the terminal: benchmarks in rows, base and checkpoints in columns, and the change of the last one."""

    title: str
    columns: list[str]
    rows: dict[str, dict[str, str]]


def arm_tables(results: SweepResults) -> tuple[list[ArmTable], bool]:
    """A table for each arm, or one of base and the last checkpoints where those would be too long; whether any is left out."""
    several = {arm: models for arm, models in results.arms.items() if len(models) > 1}
    single = [models[0] for models in results.arms.values() if len(models) == 1]
    tables = [_arm_table(results, arm, models) for arm, models in several.items()]
    if single or not tables:
        tables.append(_models_table(results, "models" if several else "", single))
    if sum(len(table.rows) + 2 for table in tables) > _MOST_LINES:
        last = [models[-1] for models in results.arms.values()]
        return [_models_table(results, "last checkpoints", last)], True
    return tables, any(len(models) > _MOST_COLUMNS for models in several.values())


def safety_table(results: SweepResults) -> dict[str, dict[str, str]]:
    """Model → where it stands against base in the plane of reasoning and safety; the last of each arm, by safety benchmark.

    Below them is the difference of each two arms.
    """
    rows = {}
    for name, path in _in_order(results.safety, results):
        last = [models[-1] for models in results.arms.values() if models[-1] in path.points]
        found: dict[str, SafetyPoint] = {model: path.points[model] for model in last}
        found |= {f"{each.model} − {each.against}": each for each in path.contrasts if each.step is None}
        rows |= {f"{label}, {results.benchmarks[name].title}": _safety_row(point) for label, point in found.items()}
    return rows


def _safety_row(point: SafetyPoint) -> dict[str, str]:
    value, low, high, _ = point.index
    texts = (interval(point.reasoning_gain, signed=True), interval(point.attack_change, signed=True))
    return dict(zip(SAFETY_COLUMNS, (*texts, f"{value:+.2f} ({low:+.2f} to {high:+.2f})"), strict=True))


def _arm_table(results: SweepResults, arm: str, models: Sequence[str]) -> ArmTable:
    places = sorted({round(k * (len(models) - 1) / (_MOST_COLUMNS - 1)) for k in range(_MOST_COLUMNS)})
    shown = {_label(results, models[place], models): models[place] for place in places}
    rows = _rows(results, {results.base: results.base, **shown})
    change = f"{list(shown)[-1]} − {results.base}"
    for name, compared in _in_order(results.comparisons, results):
        if models[-1] in compared:
            rows[heading(results, name)][change] = _change(results, name, models[-1])
    return ArmTable(f"arm {arm}", [results.base, *shown, change], rows)


def _models_table(results: SweepResults, title: str, models: Sequence[str]) -> ArmTable:
    rows, columns = _rows(results, {model: model for model in (results.base, *models)}), [results.base]
    for model in models:
        change = f"{model} − {results.base}"
        columns += [model, change]
        for name, compared in _in_order(results.comparisons, results):
            if model in compared:
                rows[heading(results, name)][change] = _change(results, name, model)
    return ArmTable(title, columns, rows)


def _rows(results: SweepResults, shown: Mapping[str, str]) -> dict[str, dict[str, str]]:
    return {
        heading(results, name): {label: cells[model].text for label, model in shown.items() if model in cells}
        for name, cells in _in_order(results.cells, results)
    }


def _label(results: SweepResults, model: str, models: Sequence[str]) -> str:
    step = results.steps.get(model)
    return f"step {step}" if step is not None else "end" if model == models[-1] else model


def _by_model(results: SweepResults) -> dict[str, dict[str, str]]:
    """Model → benchmark → its value with interval; base first, then arm after arm."""
    return {
        model: {
            heading(results, name): cells[model].text
            for name, cells in _in_order(results.cells, results)
            if model in cells
        }
        for model in results.models
    }


def _in_order(found: Mapping[str, Value], results: SweepResults) -> list[tuple[str, Value]]:
    """The items of a mapping by benchmark, in the order of the settings; JSON keeps keys sorted."""
    return [(name, found[name]) for name in results.order if name in found]


def heading(results: SweepResults, name: str) -> str:
    """The column of a benchmark: its name, the metric, and its direction where lower is better."""
    info = results.benchmarks[name]
    direction = "" if info.higher_is_better else ", lower is better"
    return f"{info.title} ({info.metric}{direction})"


def _change(results: SweepResults, name: str, model: str) -> str:
    compared, info = results.comparisons[name][model], results.benchmarks[name]
    text = info.text(compared.difference, signed=True)
    if compared.bounds is not None:
        low, high = (100 * end for end in compared.bounds)
        text += f" (undecided: {low:+.0f} to {high:+.0f})"
    if compared.win_rate is None:
        return text
    value, low, high, _ = compared.win_rate
    return f"{text}, wins {100 * value:.0f} % [{100 * low:.0f}, {100 * high:.0f}]"


def markdown_table(results: SweepResults) -> str:
    """All cells, then the differences from base of every checkpoint, then lengths and endings, with notes."""
    columns = [heading(results, name) for name in results.order]
    lines = [
        f"Values with 95 % intervals clustered by item; shares in %. Base is {markdown_cell(results.base)}.",
        "",
        *_grid("model", columns, _by_model(results)),
        "",
        f"Difference from {markdown_cell(results.base)}, in points for shares, with paired 95 % intervals:",
        "",
        *_grid("model", columns, _all_changes(results)),
        "",
        "Responses:",
        "",
        *_grid("benchmark, model", _ENDINGS, _endings(results)),
        "",
        *(
            ["Reasoning and safety:", "", *_grid("model", SAFETY_COLUMNS, safety_table(results)), ""]
            if results.safety
            else []
        ),
        *(f"- {markdown_cell(note)}" for note in results.notes),
        "",
    ]
    return "\n".join(lines)


_ENDINGS = ["n", "draws", "cut", "median tokens", "mean tokens", "repeated 4-grams", "metric of those that ended"]


def _endings(results: SweepResults) -> dict[str, dict[str, str]]:
    rows = {}
    for name, cells in _in_order(results.cells, results):
        info = results.benchmarks[name]
        for model in (model for model in results.models if model in cells):
            cell = cells[model]
            texts = (
                str(cell.value.n),
                str(info.n_draws),
                _share(cell.cut),
                "–" if cell.tokens_median is None else f"{cell.tokens_median:g}",
                "–" if cell.tokens_mean is None else f"{cell.tokens_mean:.1f}",
                _share(cell.repetition),
                _share(cell.ended),
            )
            rows[f"{info.title}, {model}"] = dict(zip(_ENDINGS, texts, strict=True))
    return rows


def _share(value: float | None) -> str:
    return "–" if value is None or value != value else f"{100 * value:.0f} %"


def _all_changes(results: SweepResults) -> dict[str, dict[str, str]]:
    return {
        model: {
            heading(results, name): _change(results, name, model)
            for name, compared in _in_order(results.comparisons, results)
            if model in compared
        }
        for model in results.models
        if model != results.base
    }


def _grid(corner: str, columns: Sequence[str], rows: dict[str, dict[str, str]]) -> list[str]:
    lines = [f"| {corner} | " + " | ".join(map(markdown_cell, columns)) + " |", "|---" * (len(columns) + 1) + "|"]
    return lines + [
        "| " + " | ".join([markdown_cell(label), *(cells.get(column, "–") for column in columns)]) + " |"
        for label, cells in rows.items()
    ]
