"""Behaviour, divergence and weights over all checkpoints of the lab, and whether they go together.

    python experiments/paper_b/run.py --out runs/paper_b

The script runs evaluate, cache, drift, weights and probe on ``lab.toml``, and evaluate and probe again on items of levels 2 to 5
of the lab's families, which no model was trained on. Finished stages are reused. It prints what came out by rules that it does
not choose after the fact, and writes ``paper_b.json`` and the figures. It expects no outcome.
"""

import argparse
from collections.abc import Mapping
from math import isfinite
from pathlib import Path
from typing import Any

from paper_b_figures import draw_all

import mechprobe as mp
from mechprobe.cli.probe_lines import norm_text
from mechprobe.drift.divergence.result import DivergenceResult
from mechprobe.drift.probe.behaviour_result import NO_FALL, Behaviour
from mechprobe.drift.probe.result import CLAIM_NOTE, Correlation, ProbeResult
from mechprobe.drift.weights.result import WeightsResult
from mechprobe.evals import skills
from mechprobe.evals.tasks import load_tasks
from mechprobe.files import write_json
from mechprobe.formatting import bracketed, estimate, p_value, same_decimals
from mechprobe.lab.items import build_items
from mechprobe.lab.recipe import RECIPES
from mechprobe.records import read_jsonl, write_jsonl

HERE = Path(__file__).parent
LEVELS = (2, 3, 4, 5)
LAST = ("sft", "sft_instyle", "rl")


def arguments() -> argparse.Namespace:
    """Options of the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=HERE / "lab.toml")
    parser.add_argument("--out", type=Path, default=Path("runs/paper_b"))
    parser.add_argument("--set", nargs="*", default=[], metavar="SECTION.KEY=VALUE", help="Override settings.")
    parser.add_argument(
        "--per-level", type=int, default=64, help="Items of each family and level beyond the first; 0 for none."
    )
    return parser.parse_args()


def with_chance(tasks: str, path: Path) -> Path:
    """Write the lab's tasks again with what their items say beside prompt and answer, the chance rate among it."""
    known = {item.id: item for items in build_items(RECIPES["shared-marker"]).eval.values() for item in items}
    lines = [line for _, line in read_jsonl(tasks)]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_jsonl(path, [known[line["id"]].to_json() | line if line["id"] in known else line for line in lines])
    return path


def level_items(path: Path, n: int, seed: int) -> Path:
    """Write n items of each of the lab's families at every level beyond the first."""
    found = [
        item.to_json() | {"task": f"{skill}, level {level}"}
        for skill in skills.SKILLS
        for level in LEVELS
        for item in skills.generate(skill, n=n, seed=seed, level=level)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_jsonl(path, found)
    return path


def beyond(run: mp.Run, n: int) -> ProbeResult:
    """Profiles on items of levels 2 to 5."""
    config, folder = run.config, run.folder / "levels"
    file = level_items(folder / "tasks.jsonl", n, config.seed)
    tasks = load_tasks(file, scorer_spec=config.tasks.scorer, max_new_tokens=config.tasks.max_new_tokens)
    mp.evaluate_outcomes(run.family, tasks, folder / "evals", config.evaluate)
    settings = config.probe.replace(trained=())
    return mp.drift.probe(folder / "evals", out=folder / "probe", config=settings, tasks_file=file)


def behaviour_lines(found: Behaviour, where: str) -> list[str]:
    """Whether an arm is stable: what falls below base at any checkpoint, by the rule of the probe stage."""
    lines = [f"Behaviour on {where} (n = {sum(found.skills.values())} items, {len(found.skills)} skills)"]
    for model in (next(iter(found.profiles)), *(course.points[-1].model for course in found.arms.values())):
        cells = [f"{skill} {bracketed(score.corrected)}" for skill, score in found.profiles[model].items()]
        lines.append(f"  {model}, score in %: {', '.join(cells)}")
    for model, transfer in found.transfer.items():
        if isfinite(transfer.absolute.value) and model in LAST:
            gains = ", ".join(
                estimate(part, factor=100, decimals=0, signed=True) for part in (transfer.trained, transfer.other)
            )
            ratio = estimate(transfer.absolute, decimals=0, unit=" %")
            lines.append(
                f"  {model}, mean gain in points on trained and on other tasks: {gains}; ratio {ratio}; index: {transfer.reason or round(transfer.index.value)}"
            )
    for name, course in found.arms.items():
        last = course.points[-1]
        lines.append(
            f"  {name}: drift at the end {norm_text(last.drift_l1)} (noise alone < {last.drift_l1.null:.2f}), of it lost "
            f"{norm_text(last.lost)}; imbalance {norm_text(last.imbalance)}, jaggedness {norm_text(last.jaggedness)}"
        )
        lines += [f"    {line}" for line in course.falls() or [NO_FALL]]
    for contrast in found.contrasts:
        drift = estimate(contrast.drift, decimals=2, signed=True)
        lines.append(f"  drift of {contrast.first} minus that of {contrast.second}: {drift}")
        gains = [
            f"{skill} {estimate(gain, factor=100, decimals=0, signed=True)}" for skill, gain in contrast.gains.items()
        ]
        lines.append(f"    score, in points: {', '.join(gains)}")
    return lines


def divergence_table(found: DivergenceResult) -> dict[str, dict[str, dict[str, list[float]]]]:
    """Source → skill → model → KL(tuned ‖ base) with its interval, at the end of every arm."""
    table: dict[str, dict[str, dict[str, list[float]]]] = {}
    for by in ("skill", "all"):
        for row in found.find(metric="kl", by=by):
            if row.model in LAST:
                groups = table.setdefault(row.source, {}).setdefault(row.group, {})
                groups[row.model] = [row.value, row.low, row.high, row.n_sequences]
    return table


def divergence_lines(table: Mapping[str, Mapping[str, Mapping[str, list[float]]]]) -> list[str]:
    """One line per source and skill."""
    lines = ["KL(tuned ‖ base), nats per token"]
    for source, groups in table.items():
        for group, models in groups.items():
            cells = ", ".join(f"{name} {estimate(v)}" for name, v in models.items())
            lines.append(f"  {source} text, {group}: {cells} (n = {max(v[3] for v in models.values()):.0f} sequences)")
    return lines


def weights_table(found: WeightsResult) -> dict[str, Any]:
    """Norm and spectrum of every update, and the overlap of the last ones of the arms."""
    updates = {
        name: {"relative_norm": update.total.relative_norm, "unchanged": update.total.unchanged}
        | {
            number: [each.value, each.null]
            for number, each in update.total.spectral.items()
            if number in ("stable_rank", "effective_rank", "sv_change", "angle_left", "inside")
        }
        for name, update in found.models.items()
    }
    pairs = [
        {"first": pair.first, "second": pair.second, "cosine": pair.cosine, "cosine_null": pair.cosine_null}
        | {f"overlap_{side}": [each.value, each.null] for side, each in pair.overlap.items()}
        for pair in found.pairs
        if pair.first in LAST and pair.second in LAST
    ]
    return {"updates": updates, "pairs": pairs}


def weights_lines(table: Mapping[str, Any]) -> list[str]:
    """The updates at the end of the arms, each spectral number with its null in brackets."""
    lines = ["Weight updates (random update of equal norm in brackets)"]
    for name in LAST:
        numbers = table["updates"].get(name, {})
        spectral = [f"{key} {_beside(*value)}" for key, value in numbers.items() if isinstance(value, list)]
        if numbers:
            lines.append(f"  {name}: ‖ΔW‖/‖W‖ {numbers['relative_norm']:.3g}, {', '.join(spectral)}")
    for pair in table["pairs"]:
        overlap = ", ".join(f"{key} {_beside(*value)}" for key, value in pair.items() if isinstance(value, list))
        lines.append(
            f"  {pair['first']} and {pair['second']}: cosine {pair['cosine']:+.3f} (± {pair['cosine_null']:.4f}), {overlap}"
        )
    return lines


def _beside(value: float, null: float) -> str:
    """A number with its null in brackets."""
    shown, beside, _ = same_decimals(value, null, null)
    return f"{shown} ({beside})"


def correlation_lines(found: ProbeResult) -> list[str]:
    """One line per arm and kind of correlation, with what is not claimed."""
    lines = ["Does drift (L1) go along with divergence or weights? Spearman over checkpoints, permutation p and Holm's"]
    for arm, detrended in dict.fromkeys((each.arm, each.detrended) for each in found.correlations):
        rows = [each for each in found.correlations if (each.arm, each.detrended) == (arm, detrended)]
        cells = [f"{each.number} {each.rho:+.2f}{_test(each)}" for each in rows if isfinite(each.rho)]
        still = [each.number for each in rows if not isfinite(each.rho)]
        text = "; ".join(
            cells + ([f"rising or falling at every step, so that nothing is left: {', '.join(still)}"] if still else [])
        )
        lines.append(
            f"  {arm}, {'given the step' if detrended else 'raw'} (n = {max(each.n for each in rows)}): {text}"
        )
    return lines


def _test(found: Correlation) -> str:
    return f" (p {p_value(found.p)}, Holm {p_value(found.p_holm)})" if isfinite(found.p) else " (no claim)"


def main() -> None:
    """Run, print and draw."""
    given = arguments()
    tasks = with_chance(mp.RunConfig.build(given.config).tasks.file, given.out.absolute() / "items" / "tasks.jsonl")
    run = mp.Run(mp.RunConfig.build(given.config, [*given.set, f"tasks.file={tasks}"]), given.out)
    run.save_config()
    run.evaluate()
    run.cache()
    divergence, weights = run.drift(), run.weights()
    probe = run.probe()
    levels = beyond(run, given.per_level) if given.per_level else None
    tables = {"divergence": divergence_table(divergence), "weights": weights_table(weights)}
    lines = behaviour_lines(probe.behaviour["right"], "the lab's items")
    if levels is not None:
        lines += behaviour_lines(
            levels.behaviour["right"], f"levels {LEVELS[0]} to {LEVELS[-1]}, which no model was trained on"
        )
    lines += divergence_lines(tables["divergence"]) + weights_lines(tables["weights"]) + correlation_lines(probe)
    print("\n".join([*lines, CLAIM_NOTE]))
    write_json(
        given.out / "paper_b.json",
        {"probe": probe.to_dict(), "levels": None if levels is None else levels.to_dict(), **tables, "lines": lines},
    )
    print(f"Written to {given.out}: paper_b.json, {', '.join(draw_all(probe, levels, tables, given.out))}")


if __name__ == "__main__":
    main()
