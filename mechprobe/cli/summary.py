"""The main numbers of each stage as lines of text."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mechprobe.cli.printing import percent, table_lines
from mechprobe.cli.selection_lines import selection_lines

if TYPE_CHECKING:
    from mechprobe.localization.stage import SiteCeilings


def accuracy_lines(summary: Mapping[str, Any]) -> list[str]:
    """Accuracy of every model on every task, and the forced-prefix baseline."""
    rows = {model: {task: percent(cell) for task, cell in row.items()} for model, row in summary["accuracy"].items()}
    tasks = summary.get("tasks") or list(next(iter(summary["accuracy"].values())))
    n = max(cell[3] for row in summary["accuracy"].values() for cell in row.values())
    forced = summary.get("force_prefix")
    if forced:
        label = f"{forced['model']}, forced '{forced['prefix']}'"
        rows[label] = {task: percent(cell) for task, cell in forced["accuracy"].items()}
    return [f"Accuracy in % with 95 % interval (n up to {n:.0f} a task)", *table_lines(rows, tasks)]


def ceiling_lines(ceilings: "SiteCeilings | Mapping[str, Any]") -> list[str]:
    """Both ceilings of every site, and the choice."""
    data = ceilings if isinstance(ceilings, Mapping) else asdict(ceilings)
    base, tuned = data["pair"]
    rows = {
        f"{model}, clean": {task: percent(cell) for task, cell in data["clean"][model].items()}
        for model in (base, tuned)
    }
    for site, row in data["sites"].items():
        for side, label in (("sufficiency", f"{base} ← {tuned}"), ("necessity", f"{tuned} ← {base}")):
            share = row[f"{side}_share"]
            cells = {task: percent(cell) for task, cell in row[side].items()}
            rows[f"{site}  {label}"] = {**cells, "share of gain": "-" if share is None else f"{round(100 * share)} %"}
    n = max(data["n"].values())
    lines = table_lines(rows, [*data["tasks"], "share of gain"])
    return [f"Accuracy in % under whole-residual patching (n up to {n} a task)", *lines, data["reason"]]


def quality_lines(quality: Mapping[str, Any]) -> list[str]:
    """FVE, L0, dead share and cross-entropy recovered, per model."""
    rows = {}
    for name, model in quality["models"].items():
        recovered = model.get("ce_recovered")
        rows[name] = {
            "FVE": f"{model['fve']:.3f}",
            "own read-out": f"{model['fve_readout']:.3f}" if "fve_readout" in model else "-",
            "L0": f"{model['l0']:.1f}",
            "dead": f"{100 * model['dead_share']:.0f} %" if "dead_share" in model else "-",
            "CE recovered": "-" if recovered is None else f"{recovered:.3f}",
        }
    trusted = "passed" if quality["trusted"] else f"FAILED: {' '.join(map(str, quality['failures']))}"
    return [
        "Crosscoder on held-out tokens",
        *table_lines(rows, ["FVE", "own read-out", "L0", "dead", "CE recovered"]),
        f"Gate: {trusted}",
    ]


def _share(row: Mapping[str, Any]) -> str:
    share = row["share_of_ceiling"].get("pooled")
    return "-" if share is None else f"{round(100 * share)} %"


def intervention_lines(data: Mapping[str, Any]) -> list[str]:
    """Accuracy under every edit of the selected set and its controls, flips with n, and the verdicts."""
    rows: dict[str, dict[str, str]] = {}
    for row in data["conditions"]:
        if row["set_kind"] == "random":
            continue
        cells = {task: percent(row["accuracy"][task]) for task in [*data["tasks"], "pooled"]}
        rows[f"{row['model']}  {row['edit']}  {row['features']}"] = {**cells, "share of ceiling": _share(row)}
    lines = [
        f"Accuracy in % with 95 % interval at {data['site']} (n {_n_text(data)}; pooled = {', '.join(data['held_out'])})",
        *table_lines(rows, [*data["tasks"], "pooled", "share of ceiling"]),
        "",
        *flip_lines(data["conditions"]),
        "",
        "Verdicts",
        *verdict_lines(data),
        f"Rule: {data['rule']}",
    ]
    if data.get("note"):
        lines.append(f"Note: {data['note']}.")
    return lines


def verdict_lines(data: Mapping[str, Any]) -> list[str]:
    """The pooled verdicts, and what else is to be said: single tasks, smallest sets, tasks left out, doses, collateral."""
    from mechprobe.report.tables.interventions import sentences

    pooled = [row["sentence"] for row in data["verdicts"] if row["task"] == "pooled"]
    return [f"  {text}" for text in [*pooled, *sentences(data)]]


def flip_lines(conditions: Sequence[Mapping[str, Any]]) -> list[str]:
    """Flip rates of the selected sets on the pooled held-out tasks, beside the mean of their random sets."""
    rows = {}
    for row in conditions:
        if row["set_kind"] not in ("selected", "opposite", "recon", "compare"):
            continue
        draws = [
            r
            for r in conditions
            if r["set_kind"] == "random" and (r["model"], r["edit"]) == (row["model"], row["edit"])
        ]
        cells = {}
        for kind in ("flip_rate_of_right", "flip_rate_of_wrong"):
            cell = row[kind]["pooled"]
            cells[kind] = f"{percent(cell)}, n {cell[3]:.0f}"
            values = [r[kind]["pooled"][0] for r in draws if r[kind]["pooled"][0] is not None]
            if row["set_kind"] == "selected" and values:
                cells[kind] += f"; random {100 * sum(values) / len(values):.0f}"
        rows[f"{row['model']}  {row['edit']}  {row['features']}"] = cells
    return ["Flip rates in % on the pooled tasks", *table_lines(rows, ["flip_rate_of_right", "flip_rate_of_wrong"])]


def _n_text(data: Mapping[str, Any]) -> str:
    counts = sorted(set(data["n_per_task"].values()))
    return f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"


def summary_lines(folder: Path) -> list[str]:
    """The main numbers of a run folder, whatever of it is there, and where the report is."""
    from mechprobe.files import read_json

    def section(path: Path, make: Any) -> list[str]:
        return ["", *make(read_json(path))] if path.is_file() else []

    lines = section(folder / "evals" / "summary.json", accuracy_lines)
    lines += section(folder / "localize" / "ceilings.json", ceiling_lines)
    lines += section(folder / "features" / "quality.json", quality_lines)
    lines += section(folder / "selection" / "selection.json", selection_lines)
    lines += section(folder / "interventions" / "results.json", _short_intervention_lines)
    page = folder / "report" / "index.html"
    if page.is_file():
        lines += ["", f"Report: {page}"]
    return lines[1:] if lines else [f"{folder} holds no finished stage."]


def _short_intervention_lines(data: Mapping[str, Any]) -> list[str]:
    shown = ("clean", "ceiling", "selected", "recon", "baseline", "compare")
    rows = {}
    for row in data["conditions"]:
        if row["set_kind"] in shown:
            pooled = percent(row["accuracy"]["pooled"])
            rows[f"{row['model']}  {row['edit']}  {row['features']}"] = {
                "accuracy": pooled,
                "change": percent(row["accuracy_delta"]["pooled"]),
                "share of ceiling": _share(row),
            }
    n = next(iter(data["conditions"]))["accuracy"]["pooled"][3]
    return [
        f"Interventions at {data['site']}, pooled over {', '.join(data['held_out'])} (n = {n:.0f}), in %",
        *table_lines(rows, ["accuracy", "change", "share of ceiling"]),
        *verdict_lines(data),
    ]
