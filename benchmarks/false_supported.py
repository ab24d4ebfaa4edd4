"""How often the whole rule says *supported* where the selected set is only one more random set.

Outcomes are drawn, not generated. Every set has a tendency: the share of the samples that it turns in the claimed direction, or
against it if negative. A tendency is the sum over the set's features, and under the null the selected set's features are like any
others. The cases differ in the matched random sets: independent ones; ones that reuse features as 99 sets of 50 from 900 must; ones
that share 62 % of their features pairwise; ones that write 0.28 of the selected set's change, so that they do little; and reuse
and too small a dose together. The rescaled sets are the same sets at the selected set's dose. Changes of equal norm are independent.
The table gives the share of simulations with a pooled *supported* (or *supported in part*): by edit, and of any of the main edits.
"""

import argparse
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Literal, NamedTuple, get_args

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
from mechprobe.selection.controls import effective_draws

Controls = Literal["independent", "reused", "overlapping", "under-dosed", "reused, under-dosed"]
N, SIZE, LIVE, POOL, SPREAD, DOSE = 256, 50, 900, 80, 0.12, 0.28
"""Pooled samples; features of a set; live features; features from which overlapping sets are drawn (50 of 80 are shared 62 %
pairwise); standard deviation of tendencies; share of the selected set's change that under-dosed sets write."""
ONE_EDIT = {"edits_base": ("transplant",), "edits_tuned": ()}
NOTHING = Measurements(RelativeChanges(bound=10.0, n_tokens=0, far=[]), {}, None, {})


class Drawn(NamedTuple):
    """Tendencies of the selected set and of its controls; ``worth`` is the number of independent sets that these are worth."""

    own: float
    controls: dict[SetKind, Float[ndarray, " set"]]
    worth: float


def random_sets(kind: Controls, draws: int, rng: np.random.Generator) -> list[list[int]]:
    """Features of the random sets; a feature is used again only after all others, as `mechprobe.selection.controls` does."""
    if kind == "overlapping":
        return [rng.choice(POOL, SIZE, replace=False).tolist() for _ in range(draws)]
    if not kind.startswith("reused"):
        return np.arange(draws * SIZE).reshape(draws, SIZE).tolist()
    per_round = LIVE // SIZE
    rounds = [rng.permutation(LIVE)[: per_round * SIZE].reshape(-1, SIZE) for _ in range(-(-draws // per_round))]
    return np.concatenate(rounds)[:draws].tolist()


def tendencies(kind: Controls, draws: int, rng: np.random.Generator) -> Drawn:
    """Tendencies under the null, in one simulated dictionary."""
    sets = random_sets(kind, draws, rng)
    feature = rng.standard_normal(1 + max(max(ids) for ids in sets)) * SPREAD / SIZE**0.5
    random = feature[np.array(sets)].sum(axis=1)
    own, *turned = SPREAD * rng.standard_normal(1 + 2 * draws)
    controls: dict[SetKind, Float[ndarray, " set"]] = {
        "random": DOSE * random if kind.endswith("under-dosed") else random,
        "rescaled": random,
        "shuffled": np.array(turned[:draws]),
        "shifted": np.array(turned[draws:]),
    }
    return Drawn(own, controls, effective_draws(sets, draws=400))


def main_edits(config: InterveneConfig) -> Iterator[Condition]:
    """Every main edit."""
    for host, donor, edits in (
        (config.base, config.tuned, config.edits_base),
        (config.tuned, config.base, config.edits_tuned),
    ):
        for edit in edits:
            yield Condition(f"{host}|{edit}|S", host, edit, "S", "selected", "edit", (1,), donor)


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
    worth: dict[str, float] = {}
    for main in main_edits(config):
        found = tendencies(kind, config.n_random, rng)
        worth["transplant" if main.edit == "transplant" else "other"] = found.worth
        kinds = {name: each for name, each in found.controls.items() if name != "shifted" or main.edit == "transplant"}
        controls = [
            (replace(main, name=f"{main.name}|{name} {draw}", features=name, set_kind=name, draw=draw), tendency)
            for name, each in kinds.items()
            for draw, tendency in enumerate(each)
        ]
        start = clean[main.model]
        open_to_claim = ~start if main.model == config.base else start
        for condition, tendency in [(main, found.own), *controls]:
            flips = np.where(open_to_claim, max(tendency, 0.0), max(-tendency, 0.0)) + 0.01
            right[condition.name] = start ^ (rng.random((N, 1)) < flips)
            conditions.append(condition)
    outcomes = {
        name: ConditionOutcomes({"task": each}, {"task": np.zeros_like(each)}).with_pooled(["task"])
        for name, each in right.items()
    }
    by_task = {name: {"task": each} for name, each in right.items()}
    rows = condition_results(conditions, by_task, {name: {"task": "W"} for name in right}, ["task"], config, NOTHING)
    found = judge_edits(rows, [], config, compare_mains(conditions, outcomes, config), worth)
    return [row.verdict for row in found]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    print(f"{'edits':>5} {'draws':>5} {'random sets':19} {'by edit':>8} {'any edit':>8}  verdicts")
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
                    f"{len(runs[0]):5} {draws:5} {kind:19} {np.mean(found):8.3f} {np.mean(np.any(found, axis=1)):8.3f}  "
                    f"{dict(counts.most_common())} ({seconds:.0f} s)",
                    flush=True,
                )


if __name__ == "__main__":
    main()
