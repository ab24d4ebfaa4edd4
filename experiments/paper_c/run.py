"""The experiments of arXiv 2604.06628 on the lab, one command each.

    python -m experiments.paper_c.run coverage          # also: cot, dip, quality, game, sizes, stress; several, or all
    python -m experiments.paper_c.run select            # the learning rate of all of them, on the dev split
    python -m experiments.paper_c.run coverage --finished   # prints artifacts/paper_c/coverage.json; trains and writes nothing
    python -m experiments.paper_c.run coverage --draw       # also draws its figure anew
    python -m experiments.paper_c.run coverage --quick --out runs/quick   # two seeds, few items and steps, no evidence

A design is a TOML file beside this one, and verdicts.py has the rule of the verdict. Finished runs in ``--out`` are reused, and
killed ones resume. The script writes ``artifacts/paper_c/<name>.json`` and ``docs/figures/paper_c_<name>.png``, and prints every
claim with its interval. With ``--quick`` it writes both into ``--out``.
"""

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from experiments.paper_c import verdicts
from experiments.paper_c.design import Experiment, Selection, load, load_selection, names
from experiments.paper_c.figure import draw
from experiments.paper_c.tables import lines
from experiments.paper_c.traces import N_DEV_PER_SKILL
from experiments.paper_c.training import Run, do_run
from mechprobe.cli.printing import table_lines
from mechprobe.errors import MechprobeError
from mechprobe.files import read_json, write_bytes, write_json

RESULTS, FIGURES = Path("artifacts/paper_c"), Path("docs/figures")
QUICK_LR, QUICK_ITEMS = 4e-4, 4
TINY = {"n_items": 16, "prompts_per_step": 4, "epochs": 3}


def select(options: argparse.Namespace) -> None:
    """Choose the learning rate on the dev items of all skills, or print the finished choice."""
    file = (options.out if options.quick else RESULTS) / "select.json"
    if not options.finished:
        write_json(file, tried(quick_selection() if options.quick else load_selection(), options))
    print("\n".join(selection_lines(read_json(file))))


def tried(design: Selection, options: argparse.Namespace) -> dict[str, Any]:
    """Train every arm at every learning rate, and choose one."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for lr in design.lrs:
        n_per_task = QUICK_ITEMS if options.quick else N_DEV_PER_SKILL
        runs = {
            name: do_run(arm, design.seed, lr, options.out, n_per_task=n_per_task, dev=True)
            for name, arm in design.arms.items()
        }
        found[f"{lr:g}"] = {
            name: {skill: float(run.scores(skill)[-1].mean()) for skill in run.right} for name, run in runs.items()
        }
        print(f"select: learning rate {lr:g} is finished", flush=True)
    return {"lr": choose(arm_means(found), design.within), "dev_accuracy": found}


def arm_means(found: dict[str, dict[str, dict[str, float]]]) -> dict[float, dict[str, float]]:
    """Learning rate → arm → mean accuracy over skills."""
    return {
        float(lr): {name: float(np.mean(list(scores.values()))) for name, scores in arms.items()}
        for lr, arms in found.items()
    }


def selection_lines(result: dict[str, Any]) -> list[str]:
    """Mean accuracy on the dev items at every learning rate, and the choice."""
    rows = {
        f"{lr:g}": {
            name: f"{100 * value:.1f}" for name, value in (arms | {"mean": float(np.mean(list(arms.values())))}).items()
        }
        for lr, arms in arm_means(result["dev_accuracy"]).items()
    }
    columns = list(next(iter(rows.values())))
    return ["Mean accuracy in % on dev items of all skills:", *table_lines(rows, columns), f"chosen: {result['lr']:g}"]


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
    arms = {name: arm.model_copy(update=TINY) for name, arm in design.arms.items()}
    sizes = {name: size.model_copy(update={"steps": 4, "batch_size": 8}) for name, size in design.sizes.items()}
    return design.model_copy(update={"arms": arms, "sizes": sizes, "seeds": (0, 1), "n_per_task": QUICK_ITEMS})


def quick_selection() -> Selection:
    """Two learning rates and tiny arms."""
    design = load_selection()
    arms = {name: arm.model_copy(update=TINY) for name, arm in design.arms.items()}
    return design.model_copy(update={"arms": arms, "lrs": design.lrs[:2]})


def conduct(name: str, options: argparse.Namespace) -> None:
    """Run one experiment, or read its result, and print it."""
    results = options.out if options.quick else RESULTS
    file = results / f"{name}.json"
    read = options.finished or options.draw
    if read:
        result = read_json(file)
        design = Experiment(**result["design"])
        runs = read_runs(result)
    else:
        design = quick(load(name)) if options.quick else load(name)
        lr = QUICK_LR if options.quick else float(read_json(RESULTS / "select.json")["lr"])
        runs = measure(design, lr, options.out)
        result = record(design, lr, runs)
        write_json(file, result)
    if options.draw or not read:
        write_bytes((results if options.quick else FIGURES) / f"paper_c_{name}.png", draw(design, runs, result))
    print("\n".join(lines(design, runs, result)))


def main() -> None:
    """Parse the options and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiments", nargs="+", choices=[*names(), "select", "all"])
    parser.add_argument("--out", type=Path, default=Path("runs/paper_c"))
    parser.add_argument("--finished", action="store_true", help="print the finished result; train and write nothing")
    parser.add_argument("--draw", action="store_true", help="print the finished result, and write its figure anew")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    if options.draw and "select" in options.experiments:
        parser.error("select has no figure; give --finished to print it")
    try:
        for name in names() if "all" in options.experiments else options.experiments:
            (select if name == "select" else partial(conduct, name))(options)
    except MechprobeError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
