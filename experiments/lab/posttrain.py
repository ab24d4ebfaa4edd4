"""Post-train the lab's base again with ``mechprobe posttrain``, and compare the accuracies with those of the shipped lab.

    python experiments/lab/posttrain.py [--out runs/posttrain] [--arms sft sft_instyle rl] [--further]
    python experiments/lab/posttrain.py --finished      # prints artifacts/benchmarks/posttrain_lab.json and computes nothing

Every arm has the settings of the recipe ``shared-marker``. The order of the prompts and the sampling differ from those of the
shipped lab, so the bytes do, too. The script exits with 1 if an accuracy differs by more than 3 standard errors of the difference,
√(se₁² + se₂²), on any skill. ``--further`` trains arms that the lab has not: SFT that stops at RL's divergence from base, on
off-policy and on in-style traces, and SFT on right samples of the base. Finished arms are reused, and killed ones resume.
"""

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

import mechprobe as mp
from mechprobe.cli.printing import table_lines
from mechprobe.evals.skills import SkillItem
from mechprobe.lab.items import build_items
from mechprobe.lab.measure import MAX_NEW_TOKENS, SCORER
from mechprobe.lab.recipe import Recipe, SftConfig, get_recipe
from mechprobe.lab.summary import read_lab, shipped

LAB = "shared-marker"
RESULT = Path("artifacts/benchmarks/posttrain_lab.json")
FROZEN = ("model.embed_tokens.*", "model.norm.*", "lm_head.*")
LIMIT = 3.0
FURTHER = ("matched_off", "matched_in", "onpolicy")


def write_prompts(file: Path, items: list[SkillItem]) -> Path:
    """Write the items of a lab as a prompts file."""
    rows = [{"id": i.id, "prompt": i.prompt, "answer": i.answer, "response": i.trace} for i in items]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def train(arm: str, recipe: Recipe, base: Path, out: Path) -> mp.posttrain.PosttrainResult:
    """Train one arm with the settings of the recipe."""
    items = build_items(recipe)
    shared: dict[str, Any] = {"freeze": FROZEN, "shuffle": True}
    if arm == "rl":
        rl = recipe.rl
        config = mp.posttrain.GrpoConfig(
            **shared,
            scorer=SCORER,
            steps=rl.steps,
            prompts_per_step=rl.n_prompts,
            n_generations=rl.n_generations,
            lr=rl.lr,
            warmup=rl.warmup_steps,
            max_new_tokens=rl.max_new_tokens,
            checkpoints=rl.checkpoints,
            score_cut=True,
        )
        return mp.posttrain.grpo(base, write_prompts(out / "prompts.jsonl", items.posttrain), out, config, arm=arm)
    chosen = recipe.sft if arm in ("sft", "matched_off") else recipe.sft_instyle
    assert isinstance(chosen, SftConfig)
    traces = items.posttrain_off_policy if chosen.style == "off-policy" else items.posttrain
    prompts = write_prompts(out / f"prompts_{chosen.style}.jsonl", traces)
    settings = mp.posttrain.SftConfig(
        **shared, epochs=chosen.epochs, prompts_per_step=chosen.batch_size, lr=chosen.lr, warmup=0
    )
    if arm not in FURTHER:
        settings = settings.replace(checkpoints=chosen.checkpoints)
    elif arm == "onpolicy":
        settings = settings.replace(on_policy={"n": 8}, scorer=SCORER, max_new_tokens=recipe.rl.max_new_tokens)
    else:
        settings = settings.replace(match_kl={"run": str(out / "rl")}, max_new_tokens=recipe.rl.max_new_tokens)
    return mp.posttrain.sft(base, prompts, out, settings, arm=arm)


def cells(arm: str, base: Path, tasks: Path, out: Path) -> dict[str, list[float]]:
    """Share of right greedy responses of an arm and n, for every skill."""
    family = mp.ModelFamily.load({"base": base, arm: out / arm})
    outcomes = mp.evaluate_outcomes(
        family, mp.load_tasks(tasks, scorer_spec=SCORER, max_new_tokens=MAX_NEW_TOKENS), out / "evals" / arm
    )
    found: dict[str, list[int]] = {}
    for outcome in outcomes.records:
        if outcome.model == arm:
            found.setdefault(outcome.task, []).append(outcome.outcome == "right")
    return {skill: [sum(right) / len(right), len(right)] for skill, right in found.items()}


def in_se(ours: list[float], theirs: dict[str, float]) -> float:
    """Difference of two accuracies in standard errors of the difference."""
    difference = ours[0] - theirs["accuracy"]
    se = math.sqrt(ours[0] * (1 - ours[0]) / ours[1] + theirs["se"] ** 2)
    return difference / se if se else math.copysign(math.inf, difference) if difference else 0.0


def show(result: dict[str, Any]) -> int:
    """Print the tables, and return 1 if a difference is beyond the limit."""
    rows, worst = {}, 0.0
    for arm, skills in result["arms"].items():
        for skill, cell in skills.items():
            rows[f"{arm}  {skill}"] = {
                "shipped": f"{100 * cell['shipped']:.1f}",
                "posttrain": f"{100 * cell['posttrain']:.1f}",
                "n": f"{cell['n']:.0f}",
                "difference in SE": f"{cell['z']:+.2f}",
            }
            worst = max(worst, abs(cell["z"]))
    lines = table_lines(rows, ["shipped", "posttrain", "n", "difference in SE"])
    print("Greedy accuracy on held-out items, in %", *lines, sep="\n")
    print(f"Largest difference: {worst:.2f} standard errors (limit {LIMIT:g})")
    further = {
        arm: {skill: f"{100 * share:.0f}" for skill, (share, _) in found["accuracy"].items()}
        | {"steps": str(found["steps"]), "KL": " ".join(f"{value:.4f}" for value in (found["kl"] or [])[:3])}
        for arm, found in result.get("further", {}).items()
    }
    if further:
        print("\nArms that the lab has not; KL from base with interval", end="\n")
        print(*table_lines(further, ["steps", "KL", *next(iter(result["arms"].values()))]), sep="\n")
    return int(worst > LIMIT)


def further_arm(arm: str, recipe: Recipe, lab: Path, out: Path) -> dict[str, Any]:
    """Steps, divergence from base and accuracies of an arm that the lab has not."""
    result = train(arm, recipe, lab / "base", out)
    kl = None if result.kl is None else list(result.kl.course[-1][1])
    target = None if result.kl is None else list(result.kl.target)
    accuracy = cells(arm, lab / "base", lab / "tasks.jsonl", out)
    return {"steps": result.steps, "kl": kl, "target": target, "accuracy": accuracy}


def main() -> int:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/posttrain"))
    parser.add_argument("--arms", nargs="+", default=["sft", "sft_instyle", "rl"])
    parser.add_argument("--further", action="store_true")
    parser.add_argument("--finished", action="store_true")
    options = parser.parse_args()
    if options.finished:
        return show(json.loads(RESULT.read_text(encoding="utf-8")))
    lab, recipe = shipped(LAB), get_recipe(LAB)
    accuracy = read_lab(lab)["results"]["accuracy"]
    result: dict[str, Any] = {"arms": {}, "seconds": {}}
    for arm in options.arms:
        train(arm, recipe, lab / "base", options.out)
        manifest = json.loads((options.out / arm / "manifest.json").read_text(encoding="utf-8"))
        result["seconds"][arm] = manifest["seconds"]
        result["arms"][arm] = {
            skill: {
                "shipped": accuracy[arm][skill]["accuracy"],
                "posttrain": cell[0],
                "n": cell[1],
                "z": in_se(cell, accuracy[arm][skill]),
            }
            for skill, cell in cells(arm, lab / "base", lab / "tasks.jsonl", options.out).items()
        }
    if options.further:
        result["further"] = {arm: further_arm(arm, recipe, lab, options.out) for arm in FURTHER}
    RESULT.write_text(json.dumps(result, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return show(result)


if __name__ == "__main__":
    sys.exit(main())
