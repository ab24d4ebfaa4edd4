"""The experiments of arXiv 2604.06628 on the lab, one command each.

    python -m experiments.paper_c.run coverage          # also: cot, dip, quality, game, sizes, stress; several, or all
    python -m experiments.paper_c.run select            # the learning rate of all of them, on the dev split
    python -m experiments.paper_c.run coverage --finished   # prints artifacts/paper_c/coverage.json and trains nothing
    python -m experiments.paper_c.run coverage --quick --out runs/quick   # two seeds, few items and steps, no evidence

A design is a TOML file beside this one, and verdicts.py has the rule of the verdict. Finished runs in ``--out`` are reused, and
killed ones resume. The script writes ``artifacts/paper_c/<name>.json`` and ``docs/figures/paper_c_<name>.png``, and prints every
claim with its interval. With ``--quick`` it writes both into ``--out``.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from experiments.paper_c import verdicts
from experiments.paper_c.design import Experiment, load, load_selection, names
from experiments.paper_c.figure import draw
from experiments.paper_c.tables import lines
from experiments.paper_c.traces import N_DEV_PER_SKILL
from experiments.paper_c.training import Run, do_run
from mechprobe.files import read_json, write_bytes, write_json

RESULTS, FIGURES = Path("artifacts/paper_c"), Path("docs/figures")
QUICK_LR = 4e-4


def select(out: Path, results: Path) -> None:
    """Choose the learning rate on the dev items of all skills."""
    design, found, skills = load_selection(), {}, {}
    for lr in design.lrs:
        runs = {
            name: do_run(arm, design.seed, lr, out, n_per_task=N_DEV_PER_SKILL, dev=True)
            for name, arm in design.arms.items()
        }
        skills[f"{lr:g}"] = {
            name: {skill: float(run.scores(skill)[-1].mean()) for skill in run.right} for name, run in runs.items()
        }
        found[lr] = {name: float(np.mean(list(scores.values()))) for name, scores in skills[f"{lr:g}"].items()}
        print(f"lr {lr:g}, mean accuracy on dev items: {found[lr]}", flush=True)
    chosen = choose(found, design.within)
    print(f"chosen: {chosen:g}")
    write_json(results / "select.json", {"lr": chosen, "dev_accuracy": skills})


def choose(found: dict[float, dict[str, float]], within: float) -> float:
    """The highest learning rate whose mean accuracy is within the given distance of the best, so that training is not cut short."""
    means = {lr: sum(scores.values()) / len(scores) for lr, scores in found.items()}
    return max(lr for lr, mean in means.items() if mean >= max(means.values()) - within)


def measure(design: Experiment, lr: float, out: Path) -> dict[str, dict[str, Run]]:
    """All runs of an experiment: arm → seed → run. Seeds are the outer loop, so that a stopped experiment has whole seeds."""
    found: dict[str, dict[str, Run]] = {name: {} for name in design.arms}
    for seed in design.seeds:
        for name, arm in design.arms.items():
            size = design.sizes.get(arm.base)
            found[name][str(seed)] = do_run(arm, seed, lr, out, n_per_task=design.n_per_task, size=size)
            print(f"{design.name}: {name}, seed {seed} is finished", flush=True)
    return found


def record(design: Experiment, lr: float, runs: dict[str, dict[str, Run]]) -> dict[str, Any]:
    """The result of an experiment as JSON."""
    claims = {style: verdicts.check(design, style, runs) for style in design.styles}
    by_style = {style: verdicts.verdict(found) for style, found in claims.items()}
    return {
        "experiment": design.name,
        "verdict": by_style[design.styles[0]],
        "verdict_by_style": by_style,
        "claims": {style: [each.to_dict() for each in found] for style, found in claims.items()},
        "lr": lr,
        "design": design.model_dump(mode="json"),
        "labels": {
            name: {seed: verdicts.labels(run) for seed, run in by_seed.items()} for name, by_seed in runs.items()
        },
        "runs": {name: {seed: run.to_dict() for seed, run in by_seed.items()} for name, by_seed in runs.items()},
    }


def read_runs(result: dict[str, Any]) -> dict[str, dict[str, Run]]:
    """The runs of a result file."""
    return {
        name: {seed: Run.model_validate(run) for seed, run in by_seed.items()}
        for name, by_seed in result["runs"].items()
    }


def quick(design: Experiment) -> Experiment:
    """Two seeds, 16 items and 12 steps an arm, for a test that everything runs."""
    tiny = {"n_items": 16, "prompts_per_step": 4, "epochs": 3}
    arms = {name: arm.model_copy(update=tiny) for name, arm in design.arms.items()}
    sizes = {name: size.model_copy(update={"steps": 4, "batch_size": 8}) for name, size in design.sizes.items()}
    return design.model_copy(update={"arms": arms, "sizes": sizes, "seeds": (0, 1), "n_per_task": 4})


def conduct(name: str, options: argparse.Namespace) -> None:
    """Run one experiment, or read its result, and print it."""
    results = options.out if options.quick else RESULTS
    file = results / f"{name}.json"
    if options.finished:
        result = read_json(file)
        design = Experiment(**result["design"])
        runs = read_runs(result)
    else:
        design = quick(load(name)) if options.quick else load(name)
        lr = QUICK_LR if options.quick else float(read_json(RESULTS / "select.json")["lr"])
        runs = measure(design, lr, options.out)
        result = record(design, lr, runs)
        write_json(file, result)
    write_bytes((results if options.quick else FIGURES) / f"paper_c_{name}.png", draw(design, runs, result))
    print("\n".join(lines(design, runs, result)))


def main() -> None:
    """Parse the options and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiments", nargs="+", choices=[*names(), "select", "all"])
    parser.add_argument("--out", type=Path, default=Path("runs/paper_c"))
    parser.add_argument("--finished", action="store_true")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    for name in names() if "all" in options.experiments else options.experiments:
        if name == "select":
            select(options.out, RESULTS)
        else:
            conduct(name, options)


if __name__ == "__main__":
    main()
