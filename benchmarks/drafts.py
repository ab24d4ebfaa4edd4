"""Conditions per second of `intervene`: from drafts, stacked without drafts, and token by token one after another (the old way).

    mechprobe run --to select --out runs/lab
    python -m benchmarks.drafts --run runs/lab --out artifacts/benchmarks/drafts_cpu.json

For every kind of control of every main edit, all draws run from drafts, and the first ``--plain`` draws also run in the two other
ways; the time of more draws follows by proportion. Scoring is part of every time; loading models and the two clean runs are
not, because they do not depend on the draws. CPU seconds are compared, which other work on the machine disturbs least.

Every response of the old way is compared with the drafted one, token by token. Where they differ, the difference between the logits of the
two tokens is printed, under the edit and after the tokens before them.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import RESULTS, add_shared_options, begin, write_report
from mechprobe.evals.answering import Asking
from mechprobe.interventions.conditions.batches import DraftingRunner, Responses, batches
from mechprobe.interventions.conditions.plan import Condition
from mechprobe.interventions.drafting.rules import TIE
from mechprobe.interventions.stage import prepare
from mechprobe.models.generation import forced_log_probs
from mechprobe.pipeline.run import Run
from mechprobe.run_config import RunConfig, read_run_file

KINDS = ("random", "shuffled", "rescaled", "shifted")
OLD_KINDS, OLD_DRAWS = ("random", "shuffled"), 20
"""The controls that a main edit had before drafts, and their number."""


class WithoutDrafts(DraftingRunner):
    """Runs batches whose responses are all decoded."""

    def drafts(self, asking: Asking, model: str) -> list[tuple[int, ...]]:
        """No drafts."""
        return [() for _ in super().drafts(asking, model)]


def measure(drafting: DraftingRunner, conditions: Sequence[Condition], n_plain: int) -> dict[str, Any]:
    """Time every kind of control of every main edit, and compare the responses.

    The runner must have its clean responses.
    """
    groups: dict[tuple[str, str, str], list[Condition]] = defaultdict(list)
    for condition in conditions:
        if condition.set_kind in KINDS:
            groups[condition.model, condition.edit, condition.set_kind].append(condition)
    bare = WithoutDrafts(drafting.runner)
    bare.prepare()
    rows, different, n_compared = [], [], 0
    for (model, edit, kind), members in groups.items():
        some = members[:n_plain]
        drafted, from_drafts = _timed(lambda members=members: _together(drafting, members))
        stacked, _ = _timed(lambda some=some: _together(bare, some))
        plain, expected = _timed(lambda some=some: [_plain(drafting, one) for one in some])
        for condition, old, new in zip(some, expected, from_drafts, strict=False):
            n_compared += sum(map(len, old.values()))
            different += _differences(drafting, condition, old, new)
        row = {"model": model, "edit": edit, "kind": kind, "draws": len(members), "draws_plain": len(some)}
        row |= {f"drafted_{unit}": value for unit, value in drafted.items()}
        row |= {f"stacked_{unit}": value for unit, value in stacked.items()}
        row |= {f"plain_{unit}": value for unit, value in plain.items()}
        rows.append(row)
        print(_line(row), flush=True)
    return {"groups": rows, "responses_compared": n_compared, "different": different, "summary": summary(rows)}


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """CPU seconds of all controls of all main edits, by way."""

    def total(way: str, kinds: Sequence[str], draws: Callable[[dict[str, Any]], int]) -> float:
        each = [row for row in rows if row["kind"] in kinds]
        return sum(
            row[f"{way}_cpu_s"] / row["draws" if way == "drafted" else "draws_plain"] * draws(row) for row in each
        )

    old = total("plain", OLD_KINDS, lambda _row: OLD_DRAWS)
    found: dict[str, Any] = {"old_cpu_s": old}
    for name, kinds in (("matched_and_equal_norm", OLD_KINDS), ("all", KINDS)):
        drafted = total("drafted", kinds, lambda row: row["draws"])
        found[name] = {
            "draws": sum(row["draws"] for row in rows if row["kind"] in kinds),
            "drafted_cpu_s": drafted,
            "stacked_cpu_s": total("stacked", kinds, lambda row: row["draws"]),
            "plain_cpu_s": total("plain", kinds, lambda row: row["draws"]),
            "share_of_old": drafted / old,
        }
    return found


def _together(drafting: DraftingRunner, conditions: Sequence[Condition]) -> list[Responses]:
    found = []
    for batch in batches(drafting.runner, conditions):
        responses = drafting.responses(batch)
        for condition, one in zip(batch, responses, strict=True):
            drafting.codes(condition, one)
        found += responses
    return found


def _plain(drafting: DraftingRunner, condition: Condition) -> Responses:
    """Responses token by token; each is scored, as nothing was remembered."""
    runner = drafting.runner
    found: Responses = {}
    with runner.in_force(condition):
        for asking in drafting.askings(runner.tasks_of(condition)):
            responses = asking.responses(runner.family[condition.model], batch_size=runner.config.batch_size)
            by_sample = asking.by_sample(responses)
            for index, (task, sample) in enumerate(asking.queries):
                asking.outcomes(index, by_sample[task.name, sample.id], condition.name)
            found |= by_sample
    return found


def _timed(call: Callable[[], list[Responses]]) -> tuple[dict[str, float], list[Responses]]:
    wall, cpu = time.perf_counter(), time.process_time()
    found = call()
    return {"cpu_s": time.process_time() - cpu, "wall_s": time.perf_counter() - wall}, found


@torch.no_grad()
def _differences(
    drafting: DraftingRunner, condition: Condition, old: Responses, new: Responses
) -> list[dict[str, Any]]:
    """The responses that differ, with the difference of the logits where they part."""
    runner, found = drafting.runner, []
    prompts = {}
    for asking in drafting.askings(runner.tasks_of(condition)):
        rows = iter(asking.ids)
        for (task, sample), of_sample in zip(asking.queries, asking.prompts, strict=True):
            prompts[task.name, sample.id] = [
                ids for ids in (next(rows) for _ in of_sample) for _ in range(task.n_draws)
            ]
    for key, responses in old.items():
        for prompt, one, other in zip(prompts[key], responses, new[key], strict=True):
            if one.written == other.written:
                continue
            pairs = list(zip(one.written, other.written, strict=False))
            step = next((n for n, (a, b) in enumerate(pairs) if a != b), None)
            gap = None
            if step is not None:
                with runner.in_force(condition):
                    pair, ends = (prompt, one.written[:step]), [one.written[step], other.written[step]]
                    [(_, (first, second))] = forced_log_probs(runner.family[condition.model], [pair], [ends])
                gap = abs(first - second)
            found.append({"condition": condition.name, "sample": key[1], "step": step, "logit_difference": gap})
            print(f"  {condition.name}, sample {key[1]}, token {step}: the logits differ by {gap}")
    return found


def _line(row: dict[str, Any]) -> str:
    speeds = [
        f"{way} {row['draws' if way == 'drafted' else 'draws_plain'] / row[f'{way}_cpu_s']:.2f}"
        for way in ("drafted", "stacked", "plain")
    ]
    return f"{row['model']} {row['edit']} {row['kind']}: {', '.join(speeds)} conditions per CPU second"


def main(argv: Sequence[str] | None = None) -> None:
    """Measure a run and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_shared_options(parser, out=RESULTS / "drafts_cpu.json", rounds=1)
    parser.add_argument("--run", type=Path, required=True, help="run folder that has finished select")
    parser.add_argument("--plain", type=int, default=5, help="draws of each kind that also run the old way")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="settings of the run")
    arguments = parser.parse_args(argv)
    began, _ = begin(arguments)
    sets = ["intervene.n_random=3", "intervene.n_shuffled=3", "intervene.n_per_task=2"] if arguments.quick else []
    config = RunConfig.build(None, [*arguments.set, *sets], start=read_run_file(arguments.run))
    given = {**Run(config, arguments.run).intervention(), "inputs": {}}
    work = prepare(**given)
    drafting = DraftingRunner(work.runner)
    drafting.prepare()
    found = measure(drafting, work.conditions, 1 if arguments.quick else arguments.plain)
    gaps = [one["logit_difference"] for one in found["different"]]
    print(f"{found['responses_compared']:,} responses compared, {len(gaps)} differ")
    print(json.dumps(found["summary"], indent=1))
    if any(gap is None or gap > TIE for gap in gaps):
        raise SystemExit(f"A difference is no tie within {TIE}.")
    packages = ("torch", "transformers")
    write_report(
        arguments, what="conditions of intervene per second", began=began, packages=packages, body={"results": found}
    )


if __name__ == "__main__":
    main()
