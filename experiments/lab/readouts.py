"""What a transplant writes under the joint and the swap read-out, and what it does to behaviour; on the selection half.

    python experiments/lab/readouts.py runs/lab runs/mechanisms

The script takes run folders with a finished selection. For some sets of features it prints, under each read-out, the share of the
squared difference between the models that the transplant writes (see `mechprobe.interventions.conditions.readout_choice`), and
the share of the ceiling that it gives base. The columns ``turn`` and ``move`` are the shares of the two parts of the swap
transplant alone: the decoders turn, the activations move. It writes no file.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import replace
from pathlib import Path

import torch

import mechprobe as mp
from mechprobe.cli.printing import table_lines
from mechprobe.dictionary.readout import Readout
from mechprobe.interventions.conditions.fitting import fitting_tasks
from mechprobe.interventions.conditions.plan import Condition
from mechprobe.interventions.conditions.readout_choice import CANDIDATES, choose_readout, measure_shares
from mechprobe.interventions.conditions.runner import Runner
from mechprobe.interventions.conditions.selection_tokens import SelectionTokens

SIZES = (5, 10, 20)


def sets_of(selection: mp.Selection) -> dict[str, tuple[int, ...]]:
    """Heads of the ranking, the set, the set by Score, a matched random set, and every feature."""
    chosen = selection.features
    found = {f"first {size}": chosen[:size] for size in SIZES if size < len(chosen)}
    found |= {
        selection.rule: chosen,
        "top50 by score": selection.choose("top50", ranking="score", n_controls=0).features,
    }
    found |= {"random set": selection.transplant_controls[0]} if selection.transplant_controls else {}
    return {**found, "every feature": tuple(range(selection.scores.joint.shape[1]))}


def with_set(runner: Runner, ids: Sequence[int]) -> Runner:
    """The runner with another selected set."""
    other = copy(runner)
    other.selection = replace(runner.selection, features=tuple(ids))
    return other


@torch.no_grad()
def parts(runner: Runner, tokens: SelectionTokens) -> tuple[float, float]:
    """Shares of the turn and of the move of the transplant of the set under swap."""
    config, crosscoder, ids = runner.config, runner.crosscoder, list(runner.selection.features)
    tuned, base = (crosscoder.own_decoder(name)[ids] for name in (config.tuned, config.base))
    readout, left, total = Readout("swap", config.near), [0.0, 0.0], 0.0
    for batch in tokens.batches(list(crosscoder.model_names)):
        x = {name: rows[batch.edited] for name, rows in batch.x.items()}
        acts, other = (readout.feature_acts(crosscoder, x, name)[:, ids] for name in (config.tuned, config.base))
        difference = x[config.tuned] - x[config.base]
        written = ((acts + other) / 2 @ (tuned - base), (acts - other) @ (tuned + base) / 2)
        total += float((difference**2).sum())
        left = [a + float(((difference - b) ** 2).sum()) for a, b in zip(left, written, strict=True)]
    return 1 - left[0] / total, 1 - left[1] / total


def n_right(runner: Runner, condition: Condition) -> int:
    """Right responses under a condition, over all tasks of the runner."""
    return "".join(runner.run(condition).values()).count("R")


def rows_of(runner: Runner, tokens: SelectionTokens) -> Mapping[str, dict[str, str]]:
    """One row per set."""
    base, tuned = runner.config.base, runner.config.tuned
    clean = n_right(runner, Condition("clean", base, "clean", "none", "clean", "clean"))
    whole = n_right(runner, Condition("whole", base, "patch", "whole residual", "ceiling", "patch", donor=tuned))
    rows = {}
    for name, ids in sets_of(runner.selection).items():
        chosen = with_set(runner, ids)
        shares, (turn, move) = measure_shares(chosen, tokens)[0], parts(chosen, tokens)
        cells = {f"writes, {mode}": f"{shares[mode].selected:.2f}" for mode in CANDIDATES}
        cells |= {"turn": f"{turn:.2f}", "move": f"{move:.2f}"}
        for mode in CANDIDATES:
            edit = Condition(name, base, "transplant", name, "selected", "edit", tuple(ids), tuned, readout=mode)
            gain = n_right(runner, edit) - clean
            cells[f"gives, {mode}"] = f"{100 * gain / (whole - clean):.0f} %" if whole > clean else "-"
        rows[name] = cells
    return rows


def study(folder: Path) -> list[str]:
    """The table of one run, and the choice that `mechprobe intervene` makes there."""
    chain = mp.Run(mp.RunConfig.of_run(folder), folder)
    given, selection = chain.edits(), mp.Selection.load(folder / "selection")
    runner = Runner(given["family"], given["crosscoder"], selection, [], given["config"])
    runner.tasks = fitting_tasks(runner, given["selecting"])
    tokens = SelectionTokens(runner, runner.tasks)
    rows = rows_of(runner, tokens)
    columns = list(next(iter(rows.values())))
    return [
        f"{folder}: {tokens.n_samples} samples",
        *table_lines(rows, columns),
        choose_readout(runner, tokens).sentence,
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Print one table per run folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="Run folders with a selection.")
    try:
        for folder in parser.parse_args(argv).runs:
            print("\n".join(study(folder)), end="\n\n")
    except mp.MechprobeError as error:
        print(f"readouts: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
