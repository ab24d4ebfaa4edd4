"""How often a change of equal norm has the effect of the selected set, and what such changes have in common.

    python experiments/lab/turned.py runs/lab_seeds/shared-marker-2/run --draws 99

The script takes finished run folders with a selection, such as those of ``seeds.py``. It transplants the 50 features by joint
attribution in both directions, and ``--draws`` changes of equal norm; the first draws are those of the study. For every
draw it records the change of accuracy over the untrained tasks, and the direction and size of the change of the residual at the
last prompt token. The direction is the cosine of the mean change with the mean residual difference of the models, which by
itself carries the whole gain. Each run becomes one JSON file under ``--out``; ``--finished`` prints the existing files.
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
from mechprobe.interventions.conditions.plan import Condition
from mechprobe.interventions.conditions.runner import Runner
from mechprobe.interventions.stage import prepare
from mechprobe.models.generation import left_pad
from mechprobe.models.residuals import residuals_plain
from mechprobe.types import POOLED

SET, RANKING = "top50", "joint"
MOST_OF = 0.9
"""A draw counts as having the effect of the set if it reaches this fraction of it."""


def measure(folder: Path, draws: int) -> dict[str, Any]:
    """Measure the effects of the set and of every draw in both hosts, and the directions of their changes."""
    chain = mp.Run(mp.RunConfig.of_run(folder), folder)
    settings = chain.config.intervene
    config = settings.replace(
        features=SET, ranking=RANKING, compare=(), edits_base=("transplant",), edits_tuned=("transplant",), doses=(),
        sizes=(), leave_one_out=False, n_random=1, n_shuffled=draws, transplant_readout="joint",
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
    """Size and direction of the change by each condition of one host, at the last prompt token; see `describe`."""
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
    """Mean norms of the change and the residual, and the cosine of the mean change with the mean difference of the models."""
    mean = change.squeeze(1).mean(0)
    return {
        "norm": float(change.norm(dim=-1).mean()),
        "resid_norm": float(resid.norm(dim=-1).mean()),
        "cosine": float(cosine_similarity(mean, gap, dim=0)),
    }


def row(record: Mapping[str, Any], host: str) -> dict[str, str]:
    """One row of the table."""
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
        "draws with this effect": f"{len(as_much)} of {len(effects)}",
        "p": f"{(1 + least) / (1 + len(effects)):.2f}",
        "median draw": f"{100 * sorted(effects)[len(effects) // 2]:.0f}",
        "cosine: set": f"{found['own']['cosine']:.2f}",
        "draws with this effect, mean": f"{sum(d['cosine'] for d in as_much) / len(as_much):.2f}" if as_much else "-",
        "all draws, mean": f"{sum(d['cosine'] for d in found['draws']) / len(effects):.2f}",
        "rank correlation": f"{order:.2f}",
    }


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Options of the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="*", help="Run folders with a selection.")
    parser.add_argument("--draws", type=int, default=99, help="Number of changes of equal norm in each host.")
    parser.add_argument("--out", type=Path, default=Path("artifacts/lab_seeds/turned"), help="Folder of the results.")
    parser.add_argument("--finished", action="store_true", help="Print finished results only.")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure the runs that have no file yet, and print all."""
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
        print(f"{given.out} holds no results; give run folders.", file=sys.stderr)
        return 2
    print("\n".join(table_lines(rows, list(next(iter(rows.values()))), corner="lab and host")))
    return 0


if __name__ == "__main__":
    sys.exit(main())
