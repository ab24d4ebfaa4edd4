"""The figures of arXiv 2604.25011 from a finished run folder, as PNG, with every plotted number in figures.json.

    python experiments/paper_a/figures.py --run runs/lab --emergence runs/emergence/emergence --out runs/paper_a

The figures show NRN and MAS of the live features, the overlap of the top-50 sets between checkpoints (with ``--emergence``), and the
overlap of the generalization features between tasks. No models are needed. The script asserts nothing about the outcome: it
prints the paper's numbers beside the measured ones.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy import ndarray

import mechprobe as mp
from mechprobe.files import write_json
from mechprobe.report.figures.emergence import matrix_panel, overlap_figure
from mechprobe.report.figures.style import GREY, INK, house_style, model_colors, new_figure, plain
from mechprobe.selection.config import Ranking
from mechprobe.stage_folder import read_manifest

N_BINS = 40
RANKINGS: dict[Ranking, str] = {"score": "Score (the paper's)", "joint": "joint attribution (ours)"}


@dataclass(frozen=True)
class TaskOverlap:
    """Generalization features of every selecting task under one ranking, and their overlap between tasks.

    Attributes:
        tasks: Task names, in the order of the selection.
        sizes: Features above the threshold, per task.
        contained: |A ∩ B| / min(|A|, |B|). The paper reports above 80 % without a formula.
        jaccard: |A ∩ B| / |A ∪ B|.
        chance: Expected ``contained`` of random sets of these sizes: max(|A|, |B|) / live features.
        in_all: Features above the threshold on every task.
        n_alive: Live features.
        threshold: Share of a task's largest value above which a feature counts.
    """

    tasks: tuple[str, ...]
    sizes: tuple[int, ...]
    contained: list[list[float]]
    jaccard: list[list[float]]
    chance: list[list[float]]
    in_all: int
    n_alive: int
    threshold: float


def task_overlap(values: ndarray, tasks: Sequence[str], alive: ndarray, *, threshold: float | int = 0.2) -> TaskOverlap:
    """Overlap of {k: v[t, k] > threshold · max_k v[t, k]} between tasks (arXiv 2604.25011), over live features.

    Args:
        values: ``[task d_sae]``.
        tasks: Names of the rows.
        alive: ``[d_sae]``, true for live features.
        threshold: Share of a task's maximum; 0.2 in the paper.
    """
    sets = [set(np.flatnonzero(alive & (row > threshold * row.max()) & (row > 0)).tolist()) for row in values]

    def matrix(measure: Any) -> list[list[float]]:
        return [[measure(a, b) for b in sets] for a in sets]

    n_alive = int(alive.sum())
    return TaskOverlap(
        tasks=tuple(tasks),
        sizes=tuple(len(items) for items in sets),
        contained=matrix(lambda a, b: len(a & b) / min(len(a), len(b)) if a and b else float("nan")),
        jaccard=matrix(lambda a, b: len(a & b) / len(a | b) if a | b else float("nan")),
        chance=matrix(lambda a, b: max(len(a), len(b)) / n_alive if a and b else float("nan")),
        in_all=len(set.intersection(*sets)),
        n_alive=n_alive,
        threshold=float(threshold),
    )


def histogram(values: ndarray) -> dict[str, Any]:
    """Histogram over [0, 1] and quantiles of the finite values."""
    values = values[np.isfinite(values)]
    counts, edges = np.histogram(values, bins=N_BINS, range=(0.0, 1.0))
    at = {f"{q:.2f}": float(np.quantile(values, q)) for q in (0.01, 0.25, 0.5, 0.75, 0.99)} if len(values) else {}
    return {"counts": counts.tolist(), "edges": edges.tolist(), "n": len(values), "quantiles": at}


def shares_panels(
    histograms: Mapping[str, Mapping[str, Any]], *, equal: float | int, xlabel: str, labels: Sequence[str]
) -> Figure:
    """Histograms of one share, one panel per model, on a logarithmic axis that shows the tails."""
    names = list(histograms)
    colors = model_colors(names)
    with house_style():
        figure = new_figure(3.4 * len(names), 3.2)
        panels = np.atleast_1d(figure.subplots(1, len(names), sharey=True))
        for axes, name in zip(panels, names, strict=True):
            found = histograms[name]
            axes.stairs(found["counts"], found["edges"], fill=True, color=colors[name], alpha=0.85)
            axes.axvline(equal, color=INK, linestyle=":", linewidth=1.2)
            axes.set_xlim(0, 1)
            axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "¼", "½", "¾", "1"])
            axes.set_xlabel(xlabel)
            axes.set_title(plain(f"{name} (n = {found['n']:,})"))
            for x, text, side in ((0.02, labels[0], "left"), (0.98, labels[1], "right")):
                axes.text(
                    x, 0.96, plain(text), transform=axes.transAxes, ha=side, va="top", color=GREY, fontsize=8.5
                )  # fmt: skip
        panels[0].set_yscale("log")
        panels[0].set_ylim(0.7, 3 * max(1, *(max(found["counts"]) for found in histograms.values())))
        panels[0].set_ylabel("live features")
        return figure


def tasks_figure(overlaps: Mapping[Ranking, TaskOverlap]) -> Figure:
    """Overlap of the generalization features between tasks, one panel per ranking."""
    with house_style():
        figure = new_figure(5.2 * len(overlaps), 4.9)
        panels = np.atleast_1d(figure.subplots(1, len(overlaps)))
        image = None
        for axes, (ranking, found) in zip(panels, overlaps.items(), strict=True):
            names = [f"{task}\n({size})" for task, size in zip(found.tasks, found.sizes, strict=True)]
            image = matrix_panel(axes, found.contained, names)
            axes.tick_params(axis="x", labelrotation=40)
            axes.set_xlabel("task (features above the threshold)")
            axes.set_title(plain(f"{RANKINGS[ranking]}: {found.in_all} in all tasks"))
        if image is not None:
            figure.colorbar(image, ax=panels, shrink=0.7, label="|A∩B| / min(|A|, |B|)")
        return figure


def share_numbers(table: mp.FeatureTable) -> dict[str, dict[str, dict[str, Any]]]:
    """NRN of every tuned model and MAS of every model, over live features."""
    alive = ~table.dead
    mas = {name: histogram(table.mas[alive, column]) for column, name in enumerate(table.models)}
    return {"nrn": {name: histogram(values[alive]) for name, values in table.nrn.items()}, "mas": mas}


def overlap_numbers(found: mp.Emergence) -> dict[str, list[dict[str, Any]]]:
    """Overlap of top sets between checkpoints for every arm and seed of an emergence stage."""
    keys = ("labels", "checkpoints", "seed", "top", "overlap", "jaccard", "chance", "n_alive")
    return {
        arm: [{key: getattr(course, key) for key in keys} for course in courses] for arm, courses in found.arms.items()
    }


def spoken(numbers: Mapping[str, Any], rankings: Mapping[Ranking, TaskOverlap]) -> list[str]:
    """The numbers in sentences, each followed by what the paper reports."""
    lines = []
    for name, found in numbers["nrn"].items():
        if found["n"]:
            low, middle, high = (found["quantiles"][q] for q in ("0.01", "0.50", "0.99"))
            lines.append(f"NRN {name}: median {middle:.2f}, 1 % to 99 % {low:.2f} to {high:.2f} (n = {found['n']:,})")
    lines.append("  paper: SFT has heavy tails on both sides; RL is concentrated near 0.5 with few extremes")
    for arm, courses in numbers.get("overlap", {}).items():
        for course in courses:
            near = [100 * course["overlap"][k][k + 1] for k in range(len(course["labels"]) - 1)]
            cells = ", ".join(f"{value:.0f}" for value in near)
            lines.append(
                f"top {course['top']} by NRN, {arm}, neighboring checkpoints: {cells} % (chance {100 * course['chance']:.0f})"
            )
    if numbers.get("overlap"):
        lines.append("  paper: SFT above 80 %; RL replaces almost the whole set")
    for ranking, found in rankings.items():
        pairs = [found.contained[a][b] for a in range(len(found.tasks)) for b in range(a)]
        span = f"{100 * min(pairs):.0f} to {100 * max(pairs):.0f} %" if pairs else "one task only"
        random = [found.chance[a][b] for a in range(len(found.tasks)) for b in range(a)]
        by_chance = f", random sets {100 * max(random):.0f} % at most" if random else ""
        lines.append(f"tasks, {RANKINGS[ranking]}: two tasks share {span}{by_chance}; {found.in_all} features in all")
    lines.append("  paper: above 80 %; 50 features (0.15 % of 32,768) in all five tasks for Qwen3-4B")
    return lines


def draw(run: Path, emergence: Path | None, out: Path, *, threshold: float | int = 0.2) -> list[str]:
    """Draw the figures of all finished stages and write figures.json.

    Returns:
        The numbers in sentences.

    Raises:
        MechprobeError: The run folder has no finished features or select stage, or ``emergence`` is not an emergence stage.
    """
    for stage in ("features", "selection"):
        read_manifest(run / stage)
    table, selection = mp.FeatureTable.load(run / "features"), mp.Selection.load(run / "selection")
    scores = selection.scores
    rankings: dict[Ranking, TaskOverlap] = {
        name: task_overlap(scores.values(name), scores.tasks, ~table.dead, threshold=threshold) for name in RANKINGS
    }
    numbers: dict[str, Any] = share_numbers(table)
    numbers["tasks"] = {name: vars(found) for name, found in rankings.items()}
    pictures = {
        "nrn": shares_panels(numbers["nrn"], equal=0.5, xlabel="NRN", labels=("base only", "tuned only")),
        "mas": shares_panels(
            numbers["mas"], equal=1 / len(table.models), xlabel="MAS", labels=("other models", "this model")
        ),
        "tasks": tasks_figure(rankings),
    }
    if emergence is not None:
        found = mp.Emergence.load(emergence)
        numbers["overlap"], numbers["overlap_over_seeds"] = overlap_numbers(found), found.to_dict()["over_seeds"]
        pictures["overlap"] = overlap_figure(found)
    out.mkdir(parents=True, exist_ok=True)
    for name, figure in pictures.items():
        figure.savefig(out / f"{name}.png", dpi=160, metadata={"Software": None})
    write_json(out / "figures.json", numbers)
    return [
        *spoken(numbers, rankings),
        f"Written to {out}: {', '.join(f'{name}.png' for name in pictures)}, figures.json",
    ]


def main() -> None:
    """Draw the figures and print their numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/lab"), help="Folder of `mechprobe run`.")
    parser.add_argument("--emergence", type=Path, help="Folder of `mechprobe emergence`, for the overlap matrices.")
    parser.add_argument("--out", type=Path, default=Path("runs/paper_a"))
    parser.add_argument(
        "--threshold", type=float, default=0.2, help="Share of a task's largest value (0.2 in the paper)."
    )
    given = parser.parse_args()
    try:
        print("\n".join(draw(given.run, given.emergence, given.out, threshold=given.threshold)))
    except mp.MechprobeError as error:
        parser.exit(2, f"figures: {error}\n")


if __name__ == "__main__":
    main()
