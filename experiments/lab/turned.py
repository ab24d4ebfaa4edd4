"""How often does a change of equal norm do what the set does, and what have those that do in common?

    python experiments/lab/turned.py runs/lab_seeds/shared-marker-2/run --draws 99

For a finished run folder (those of ``seeds.py``, or any with a selection): transplants of its 50 features by joint attribution both
ways, and as many changes of equal norm as asked, of which the first are those of the study. For every draw the change of accuracy
over the untrained tasks, and where the change points at the last prompt token, averaged over the prompts: its cosine with the mean
residual difference, which alone carries the whole gain. Beside it the size of the change against the residual. One JSON a run
under ``--out``; ``--finished`` prints what is there.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from scipy.stats import spearmanr
from torch import Tensor
from torch.nn.functional import cosine_similarity

import mechprobe as mp
from mechprobe.cli.printing import table_lines
from mechprobe.environment import environment
from mechprobe.files import read_json, write_json
from mechprobe.interventions.conditions.condition import Condition
from mechprobe.interventions.conditions.runner import Runner
from mechprobe.interventions.stage import prepare
from mechprobe.models.generation import left_pad
from mechprobe.models.residuals import residuals_plain
from mechprobe.types import POOLED

SET, RANKING = "top50", "joint"
MOST_OF = 0.9
"""A draw that gives this share of the set's own effect is counted as one that does what the set does."""


def measure(folder: Path, draws: int) -> dict[str, Any]:
    """Effects of the set and of every draw in both hosts, and where their changes point."""
    chain = mp.Run(mp.RunConfig.of_run(folder), folder)
    settings = chain.config.intervene
    config = settings.replace(
        features=SET, ranking=RANKING, compare=(), edits_base=("transplant",), edits_tuned=("transplant",), doses=(),
        sizes=(), leave_one_out=False, n_random=1, n_shuffled=draws,
    )  # fmt: skip
    selection = mp.Selection.load(folder / "selection")
    judging = (task.take(config.n_per_task) for task in chain.evaluation_halves())
    tasks = [task for task in judging if task.name not in settings.trained]
    given = (chain.family, chain.crosscoder(), selection, tasks)
    found = mp.intervene(*given, folder / f"turned_{draws}", config)
    work = prepare(*given, config)
    conditions = {condition.name: condition for condition in work.conditions}
    hosts = {}
    for host in (config.base, config.tuned):
        own = next(row for row in found.conditions if row.set_kind == "selected" and row.model == host)
        turned = [row for row in found.conditions if row.set_kind == "shuffled" and row.model == host]
        rows = [conditions[row.name] for row in (own, *turned)]
        geometry = changes(work.runner, rows)
        hosts[host] = {
            "effect": own.accuracy_delta[POOLED].value,
            "own": geometry[0],
            "draws": [
                {"effect": row.accuracy_delta[POOLED].value, **where}
                for row, where in zip(turned, geometry[1:], strict=True)
            ],
        }
    return {"run": folder.parent.name, "site": selection.site, "set": f"{SET} by {RANKING}", "hosts": hosts,
            "n": sum(len(task.samples) for task in tasks), "environment": environment()}  # fmt: skip


@torch.no_grad()
def changes(runner: Runner, conditions: Sequence[Condition]) -> list[dict[str, float]]:
    """Of each condition of one host, at the last prompt token: mean norm of its change and of the residual, and where it points.

    ``cosine`` is that of the mean change with the mean residual difference of the two models.
    """
    family, tokenizer, config = runner.family, runner.family.tokenizer, runner.config
    prompts = [tokenizer(sample.prompt).input_ids for task in runner.tasks for sample in task.samples]
    ids, attention = left_pad(prompts, int(str(tokenizer.pad_token_id)), "cpu")
    site = runner.site
    x = {name: residuals_plain(family[name], ids, attention, [site])[site][:, -1:].float() for name in family.names}
    host = conditions[0].model
    other = config.tuned if host == config.base else config.base
    gap = (x[other] - x[host]).squeeze(1).mean(0)
    return [describe(runner.rewrite(condition)(x) - x[host], x[host], gap) for condition in conditions]


def describe(change: Tensor, resid: Tensor, gap: Tensor) -> dict[str, float]:
    """Norms, and the cosine of the mean change with the mean difference."""
    mean = change.squeeze(1).mean(0)
    return {
        "norm": float(change.norm(dim=-1).mean()),
        "resid_norm": float(resid.norm(dim=-1).mean()),
        "cosine": float(cosine_similarity(mean, gap, dim=0)),
    }


def row(record: Mapping[str, Any], host: str) -> dict[str, str]:
    """One line of the table."""
    found = record["hosts"][host]
    sign = 1 if found["effect"] > 0 else -1
    effects = [sign * draw["effect"] for draw in found["draws"]]
    as_much = [
        draw for draw, effect in zip(found["draws"], effects, strict=True) if effect >= MOST_OF * abs(found["effect"])
    ]
    least = sum(effect >= abs(found["effect"]) for effect in effects)
    order = (
        spearmanr([draw["cosine"] for draw in found["draws"]], effects)[0] if len(set(effects)) > 1 else float("nan")
    )
    return {
        "site": record["site"],
        "change / residual": f"{found['own']['norm'] / found['own']['resid_norm']:.0%}",
        "set": f"{100 * found['effect']:.0f}",
        "draws that do it": f"{len(as_much)} of {len(effects)}",
        "p": f"{(1 + least) / (1 + len(effects)):.2f}",
        "median draw": f"{100 * sorted(effects)[len(effects) // 2]:.0f}",
        "cosine: set": f"{found['own']['cosine']:.2f}",
        "draws that do it, mean": f"{sum(d['cosine'] for d in as_much) / len(as_much):.2f}" if as_much else "-",
        "all draws, mean": f"{sum(d['cosine'] for d in found['draws']) / len(effects):.2f}",
        "rank correlation": f"{order:.2f}",
    }


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Options of the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="*", help="Run folders with a selection.")
    parser.add_argument("--draws", type=int, default=99, help="Changes of equal norm in each host.")
    parser.add_argument("--out", type=Path, default=Path("artifacts/lab_seeds/turned"), help="One JSON for each run.")
    parser.add_argument("--finished", action="store_true", help="Print what is finished, make nothing.")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, or read, and print."""
    given = arguments(argv)
    try:
        for folder in [] if given.finished else given.runs:
            path = given.out / f"{folder.parent.name}.json"
            if not path.is_file():
                write_json(path, measure(folder, given.draws))
        records = [read_json(path) for path in sorted(given.out.glob("*.json"))]
    except mp.MechprobeError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    rows = {f"{record['run']}, into {host}": row(record, host) for record in records for host in record["hosts"]}
    if not rows:
        print(f"Nothing is under {given.out}; name run folders.", file=sys.stderr)
        return 2
    print("\n".join(table_lines(rows, list(next(iter(rows.values()))), corner="lab and host")))
    return 0


if __name__ == "__main__":
    sys.exit(main())
