"""The main numbers of each stage as lines of text."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from mechprobe.cli.printing import table_lines
from mechprobe.formatting import MISSING, bracketed, decimal, percent, remark, scored_remark

if TYPE_CHECKING:
    from mechprobe.cache.store.activation_store import ActivationStore
    from mechprobe.dictionary.result import TrainingMetrics
    from mechprobe.evals.result import EvaluationSummary, SampledOutcomes
    from mechprobe.localization.result import SiteCeilings


def accuracy_lines(summary: "EvaluationSummary") -> list[str]:
    """Accuracy of every model on every task, and the forced-prefix baseline."""
    found = {model: (row, *_endings(summary, model)) for model, row in summary.accuracy.items()}
    n = max(cell.n for row in summary.accuracy.values() for cell in row.values())
    if forced := summary.force_prefix:
        found[f"{forced.model}, forced '{forced.prefix}'"] = (forced.accuracy, forced.cut, forced.unparsed)
    rows = {
        label: {
            task: bracketed(cell) + scored_remark(cell, cut.get(task), unparsed.get(task)) for task, cell in row.items()
        }
        for label, (row, cut, unparsed) in found.items()
    }
    draws = max((row.n for tasks in summary.sampled.values() for row in tasks.values()), default=1)
    what = "Accuracy" if draws == 1 else f"Accuracy (avg@{draws})"
    source = [summary.engine.sentence] if summary.engine else []
    return [f"{what} in % with 95 % interval (n up to {n} a task)", *table_lines(rows, summary.tasks), *source]


def sampled_lines(summary: "EvaluationSummary") -> list[str]:
    """What several responses to each sample say, one row per model and task; empty without sampling."""
    rows = {
        f"{model}  {task}": sampled_cells(row) | _length(summary, model, task)
        for model, tasks in summary.sampled.items()
        for task, row in tasks.items()
    }
    if not rows:
        return []
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    lines = [
        "",
        "Sampled responses: pass@k and majority in % with 95 % interval clustered by sample, other shares in %",
    ]
    lines += table_lines(rows, columns)
    curves = {
        f"{model}  {task}": {
            str(point.tokens): f"{percent(point.right)} ({percent(point.ended)})" for point in row.budgets
        }
        for model, tasks in summary.sampled.items()
        for task, row in tasks.items()
    }
    budgets = sorted({int(column) for row in curves.values() for column in row})
    return [
        *lines,
        "",
        "Accuracy against token budget: % of the responses that are right within it (and that end within it)",
        *table_lines(curves, [str(budget) for budget in budgets]),
    ]


def _length(summary: "EvaluationSummary", model: str, task: str) -> dict[str, str]:
    return {
        "cut": percent(summary.cut.get(model, {}).get(task)),
        "mean tokens": decimal(summary.response_tokens.get(model, {}).get(task), 1),
    }


def sampled_cells(row: "SampledOutcomes") -> dict[str, str]:
    """The numbers of one model on one task by column."""
    return {
        **{f"pass@{k}": bracketed(cell) for k, cell in row.pass_at.items() if k > 1},
        f"maj@{row.n}": bracketed(row.majority),
        "repeated 4-grams": percent(row.repetition),
    }


def _endings(summary: "EvaluationSummary", model: str) -> tuple[dict[str, float], dict[str, float]]:
    return summary.cut.get(model, {}), summary.unparsed.get(model, {})


def cut_lines(summary: "EvaluationSummary") -> list[str]:
    """The share of responses that were cut, per model, with the setting to raise; empty if none was."""
    shares = {model: fmean(tasks.values()) for model, tasks in summary.cut.items() if any(tasks.values())}
    if not shares:
        return []
    cut = ", ".join(f"{model} {percent(share) if share >= 0.005 else '< 1'} %" for model, share in shares.items())
    return [
        "",
        f"Cut at the limit or inside the thinking, and therefore not scored (mean over tasks): {cut}. "
        "Raise tasks.max_new_tokens.",
    ]


def _cells(accuracy: Mapping[str, Any], cut: Mapping[str, float] | None) -> dict[str, str]:
    return {task: bracketed(cell) + remark(cut=(cut or {}).get(task)) for task, cell in accuracy.items()}


def ceiling_lines(ceilings: "SiteCeilings | Mapping[str, Any]") -> list[str]:
    """Both ceilings of every site, and the choice."""
    data = ceilings if isinstance(ceilings, Mapping) else ceilings.to_dict()
    base, tuned = data["pair"]
    rows = {
        f"{model}, clean": _cells(data["clean"][model], (data.get("clean_cut") or {}).get(model))
        for model in (base, tuned)
    }
    for site, row in data["sites"].items():
        for side, label in (("sufficiency", f"{base} ← {tuned}"), ("necessity", f"{tuned} ← {base}")):
            share = row[f"{side}_share"]
            cells = _cells(row[side], row.get(f"{side}_cut"))
            rows[f"{site}  {label}"] = {**cells, "share of gain": MISSING if share is None else f"{percent(share)} %"}
    n = max(data["n"].values())
    lines = table_lines(rows, [*data["tasks"], "share of gain"])
    return [f"Accuracy in % under whole-residual patching (n up to {n} a task)", *lines, data["reason"]]


def quality_lines(quality: Mapping[str, Any]) -> list[str]:
    """FVE, L0, dead share and cross-entropy recovered, per model."""
    rows, far = {}, any("fve_readout_ordinary" in model for model in quality["models"].values())
    columns = ["FVE", "own read-out", *(["without far tokens"] if far else []), "L0", "dead", "CE recovered"]
    for name, model in quality["models"].items():
        recovered = model.get("ce_recovered")
        rows[name] = {
            "FVE": f"{model['fve']:.3f}",
            "own read-out": f"{model['fve_readout']:.3f}" if "fve_readout" in model else "-",
            **({"without far tokens": decimal(model["fve_readout_ordinary"], 3)} if far else {}),
            "L0": f"{model['l0']:.1f}",
            "dead": f"{100 * model['dead_share']:.0f} %" if "dead_share" in model else "-",
            "CE recovered": "-" if recovered is None else f"{recovered:.3f}",
        }
    trusted = "passed" if quality["trusted"] else f"FAILED: {' '.join(map(str, quality['failures']))}"
    return ["Crosscoder on held-out tokens", *table_lines(rows, columns), f"Gate: {trusted}"]


def bias_lines(summary: "EvaluationSummary") -> list[str]:
    """Where the chosen options stood, for tasks whose options are shown in several orders; empty without such tasks."""
    from mechprobe.evals.scorers.letters import LETTERS

    rows: dict[str, dict[str, str]] = {}
    for model, tasks in summary.position_bias.items():
        for task, bias in tasks.items():
            shares = {LETTERS[place]: f"{100 * share:.0f}" for place, share in enumerate(bias.chosen)}
            rows[f"{model}  {task}"] = {
                **shares,
                "recall std": f"{100 * bias.recall_std:.0f}",
                "same in every order": f"{100 * bias.consistent:.0f}",
                "n": f"{bias.n_items} items, {bias.n_pairs} orders",
            }
    if not rows:
        return []
    places = sorted({letter for row in rows.values() for letter in row if letter in LETTERS})
    columns = [*places, "recall std", "same in every order", "n"]
    return [
        "",
        "Multiple choice: % of the orders in which the chosen option stood at each place",
        *table_lines(rows, columns),
    ]


def training_lines(metrics: "TrainingMetrics", d_sae: int, sources: Sequence[str]) -> list[str]:
    """Held-out FVE of every model, L0, dead features, and what the training read."""
    columns = {"FVE": metrics.fve, "FVE per token": metrics.fve_per_token}
    if metrics.fve_ordinary is not None:
        columns["FVE without far tokens"] = metrics.fve_ordinary
    rows = {name: {label: decimal(found[name], 3) for label, found in columns.items()} for name in sources}
    held_out = metrics.held_out_tokens
    return [
        f"Held-out prompts, n = {held_out:,} tokens" if held_out else "No prompt was held out, so nothing is measured.",
        *table_lines(rows, list(columns), corner="model"),
        *([metrics.far_sentence] if metrics.far_sentence else []),
        f"L0 {decimal(metrics.l0, 1)}   dead {percent(metrics.dead_frac)} % of {d_sae:,} features",
        f"Trained on {metrics.tokens:,} tokens, {metrics.distinct_tokens:,} distinct, in {metrics.steps:,} steps",
    ]


def store_lines(store: "ActivationStore") -> list[str]:
    """Rows, models, sites and size of an activation store."""
    from mechprobe.cache.result import CacheCounts

    counts = CacheCounts.of(store)
    lines = [f"rows      {counts.rows:,} ({counts.response_rows:,} response, {counts.held_out_rows:,} held out)"]
    if counts.sequences_cut or counts.prompts_dropped:
        lines.append(f"too long  {counts.sequences_cut:,} sequences cut, {counts.prompts_dropped:,} prompts dropped")
    return [
        *lines,
        f"models    {', '.join(f'{name} {width}' for name, width in store.widths.items())}",
        f"sites     {', '.join(str(site) for site in store.sites)} ({store.dtype})",
        f"size      {counts.bytes / 1e6:,.1f} MB in {counts.shards} shards per model",
        f"stream    {store.stream_hash[:16]}",
        *norm_lines(store),
    ]


def norm_lines(store: "ActivationStore") -> list[str]:
    """Quantiles of the norms of every model and site, massive dimensions, and the rule that far rows need."""
    from mechprobe.cache.result import far_sentence

    if store.norms is None:
        return []
    rows = {
        f"{model}  {site}": {
            "median": f"{found.median:.4g}",
            "99 %": f"{found.q99:.4g}",
            "largest": f"{found.largest:.4g}",
            "massive dimensions": _massive(found.massive, found.n_massive),
        }
        for model, sites in store.norms.models.items()
        for site, found in sites.items()
    }
    sentence = far_sentence(store)
    lines = table_lines(rows, ["median", "99 %", "largest", "massive dimensions"], corner="norms of rows")
    return ["", *lines, *([sentence] if sentence else [])]


def _massive(dimensions: Sequence[tuple[int, float]], n: int) -> str:
    """Index and ratio to the rms of the three largest massive dimensions."""
    shown = ", ".join(f"{index} ({ratio:,.0f}x)" for index, ratio in dimensions[:3])
    return f"{shown} and {n - 3} more" if n > 3 else shown or "none"
