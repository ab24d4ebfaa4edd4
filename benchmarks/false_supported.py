"""How often the whole rule says *supported* where the selected set is only one more random set.

Outcomes are drawn, not generated. Every set has a tendency: the share of the samples that it turns in the claimed direction, or
against it if negative. Under the null the selected set's tendency has the same distribution as those of its controls. The cases
differ in the matched random sets: independent ones; ones that share 62 % of their features pairwise, so that they are nearly one
set; and ones that write 0.28 of the selected set's change, so that they do little. Changes of equal norm are independent. The
table gives the share of simulations with a pooled *supported* (or *supported in part*): by edit, and of any of the main edits.
"""

import argparse
import time
from collections import Counter
from collections.abc import Iterator
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from mechprobe.interventions.conditions.plan import Condition
from mechprobe.interventions.config import InterveneConfig
from mechprobe.interventions.result import RelativeChanges
from mechprobe.interventions.result_rows import SetKind
from mechprobe.interventions.verdicts.effects import Measurements, condition_results
from mechprobe.interventions.verdicts.paired import ConditionOutcomes, compare_mains
from mechprobe.interventions.verdicts.rule import IN_PART, SUPPORTED
from mechprobe.interventions.verdicts.verdict import judge_edits

Controls = Literal["independent", "overlapping", "under-dosed", "both"]
N, SIZE, POOL, SPREAD, DOSE = 256, 50, 80, 0.12, 0.28
"""Pooled samples; features of a set; features from which overlapping sets are drawn (50 of 80 are shared 62 % pairwise); standard
deviation of tendencies; share of the selected set's change that under-dosed sets write."""
ONE_EDIT = {"edits_base": ("transplant",), "edits_tuned": ()}
NOTHING = Measurements(RelativeChanges(bound=10.0, n_tokens=0, far=[]), {}, None, {})


def tendencies(kind: Controls, draws: int, rng: np.random.Generator) -> Float[ndarray, " set"]:
    """Tendency of the selected set, of its random sets, and of its changes of equal norm, in this order."""
    own, turned = rng.standard_normal(1), rng.standard_normal(draws)
    random = rng.standard_normal(draws)
    if kind in ("overlapping", "both"):
        feature = rng.standard_normal(POOL) / SIZE**0.5
        random = np.array([feature[rng.choice(POOL, SIZE, replace=False)].sum() for _ in range(draws)])
    if kind in ("under-dosed", "both"):
        random = DOSE * random
    return SPREAD * np.concatenate([own, random, turned])


def main_conditions(config: InterveneConfig) -> Iterator[tuple[Condition, list[Condition]]]:
    """Every main edit with its controls, random sets first."""
    for host, donor, edits in (
        (config.base, config.tuned, config.edits_base),
        (config.tuned, config.base, config.edits_tuned),
    ):
        for edit in edits:
            main = Condition(f"{host}|{edit}|S", host, edit, "S", "selected", "edit", (1,), donor)
            kinds: dict[SetKind, int] = {"random": config.n_random, "shuffled": config.n_shuffled}
            controls = [
                Condition(f"{host}|{edit}|{kind} {draw}", host, edit, kind, kind, "edit", (2,), donor, draw)
                for kind, n in kinds.items()
                for draw in range(n)
            ]
            yield main, controls


def one_run(kind: Controls, config: InterveneConfig, rng: np.random.Generator) -> list[str]:
    """The pooled verdicts of one simulated run: base has 37 % right, and rl most of what base has and 75 % of the rest."""
    base = rng.random((N, 1)) < 0.37
    tuned = (base & (rng.random((N, 1)) < 0.95)) | (rng.random((N, 1)) < 0.75)
    clean = {config.base: base, config.tuned: tuned}
    conditions, right = [], {}
    for host, other in ((config.base, config.tuned), (config.tuned, config.base)):
        conditions.append(Condition(f"{host}|clean", host, "clean", "none", "clean", "clean"))
        conditions.append(Condition(f"{host}|patch", host, "patch", "whole residual", "ceiling", "patch", donor=other))
        right |= {f"{host}|clean": clean[host], f"{host}|patch": clean[other]}
    for main, controls in main_conditions(config):
        found = tendencies(kind, config.n_random, rng)
        start = clean[main.model]
        open_to_claim = ~start if main.model == config.base else start
        for condition, tendency in zip([main, *controls], found, strict=True):
            flips = np.where(open_to_claim, max(tendency, 0.0), max(-tendency, 0.0)) + 0.01
            right[condition.name] = start ^ (rng.random((N, 1)) < flips)
            conditions.append(condition)
    outcomes = {
        name: ConditionOutcomes({"task": each}, {"task": np.zeros_like(each)}).with_pooled(["task"])
        for name, each in right.items()
    }
    by_task = {name: {"task": each} for name, each in right.items()}
    rows = condition_results(conditions, by_task, {name: {"task": "W"} for name in right}, ["task"], config, NOTHING)
    found = judge_edits(rows, [], config, compare_mains(conditions, outcomes, config))
    return [row.verdict for row in found]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    print(f"{'edits':>5} {'draws':>5} {'random sets':12} {'by edit':>8} {'any edit':>8}  verdicts")
    for edits in (ONE_EDIT, {}):
        for draws in (20, 99):
            config = InterveneConfig(n_random=draws, n_shuffled=draws, **edits)
            for place, kind in enumerate(get_args(Controls)):
                rng, begun = np.random.default_rng([given.seed, draws, place]), time.perf_counter()
                runs = [one_run(kind, config, rng) for _ in range(given.runs)]
                found = [[verdict in (SUPPORTED, IN_PART) for verdict in run] for run in runs]
                counts = Counter(verdict for run in runs for verdict in run)
                seconds = time.perf_counter() - begun
                print(
                    f"{len(runs[0]):5} {draws:5} {kind:12} {np.mean(found):8.3f} {np.mean(np.any(found, axis=1)):8.3f}  "
                    f"{dict(counts.most_common())} ({seconds:.0f} s)",
                    flush=True,
                )


if __name__ == "__main__":
    main()
