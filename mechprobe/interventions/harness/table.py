"""The harness' results as a table, for the terminal and as Markdown."""

from mechprobe.interventions.harness.result import HarnessResults, MetricCell
from mechprobe.markdown import markdown_cell


def harness_table(results: HarnessResults) -> tuple[list[str], dict[str, dict[str, str]]]:
    """``(columns, rows)`` with a column per task and metric; random sets have no row of their own."""
    first = results.conditions[0].metrics
    columns = [f"{task} {metric_title(key)}" for task, metrics in first.items() for key in metrics]
    rows = {
        f"{row.model}  {row.edit}  {row.features}": {
            f"{task} {metric_title(key)}": cell_text(cell)
            for task, metrics in row.metrics.items()
            for key, cell in metrics.items()
        }
        for row in results.conditions
        if row.set_kind != "random"
    }
    return columns, rows


def metric_title(key: str) -> str:
    """``acc`` for ``acc,none``, and ``exact_match (strict)`` for ``exact_match,strict``."""
    name, _, filter_name = key.partition(",")
    return name if filter_name in ("", "none") else f"{name} ({filter_name})"


def cell_text(cell: MetricCell) -> str:
    """One cell as in ``0.438 ± 0.063  -0.310 [-0.440, -0.190]``, with the mean of the random sets where they ran."""
    if cell.value is None:
        return "-"
    text = f"{cell.value:.3f}" + ("" if cell.stderr is None else f" ± {cell.stderr:.3f}")
    if cell.change is None:
        return text
    value, low, high, _ = cell.change
    text += f"  {value:+.3f}" + (f" [{low:+.3f}, {high:+.3f}]" if low == low else "")
    if cell.random_mean is not None:
        p = "" if cell.p_random is None else f", p = {cell.p_random:.3f}"
        text += f" ({cell.n_random} random {cell.random_mean:+.3f}{p})"
    return text


def markdown_table(results: HarnessResults) -> str:
    """The table as Markdown, with the number of documents and a note on what the numbers are."""
    columns, rows = harness_table(results)
    n = ", ".join(f"{markdown_cell(task)} {count}" for task, count in results.n.items())
    lines = [
        f"lm-eval {results.lm_eval} at {markdown_cell(results.site)}; documents: {n}. Cells give the value ± standard error, then "
        "the change against the clean model with its paired 95 % bootstrap interval.",
        "",
        "| condition | " + " | ".join(map(markdown_cell, columns)) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for label, cells in rows.items():
        lines.append("| " + " | ".join([markdown_cell(label), *(cells.get(c, "-") for c in columns)]) + " |")
    never_active = results.silent.sentence
    return "\n".join([*lines, "", *([never_active, ""] if never_active else []), results.note, ""])
