"""Whether an attention sink changes which features are selected, with and without the rule of the dropped positions.

    python experiments/lab/sinks.py runs/lab --factors 30 100

The lab has no sink, so one is simulated on a finished run: at the site, the residual of the first token behind BOS is multiplied by
a factor in all models alike, as at the first token of models without BOS. The 50 features by joint attribution are selected again,
and those that are also among the 50 without a sink are counted: with a crosscoder that has no rule, with one that drops the first
two positions (BOS and the sink), and with one that drops positions of more than 10 times the median norm of the store.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import mechprobe as mp
from mechprobe.cli.printing import table_lines
from mechprobe.evals.stage import load_outcomes
from mechprobe.models.blocks import splice
from mechprobe.models.family import ModelFamily
from mechprobe.selection.gained import gained_samples, gained_sequences
from mechprobe.selection.rankings.pooled import score_features
from mechprobe.selection.result import choose
from mechprobe.types import Site
from sae_training import Crosscoder
from sae_training.weights import FAR

SET = "top50"


@contextmanager
def sink(family: ModelFamily, site: Site, factor: float, place: int = 1) -> Iterator[None]:
    """Multiply the residual at ``site`` of token number ``place`` of every sequence, in all models, while the block runs."""
    seen: dict[str, Tensor] = {}

    def record(_module: Any, _args: Any, given: dict[str, Any]) -> None:
        seen["position"] = given["attention_mask"].long().cumsum(1) - 1

    def multiply(resid: Tensor) -> Tensor:
        return torch.where((seen["position"] == place)[..., None], factor * resid, resid)

    with ExitStack() as stack:
        for model in family:
            stack.callback(model.hf.register_forward_pre_hook(record, with_kwargs=True).remove)
            stack.enter_context(splice(model.hf, site, multiply))
        yield


def rules(run: mp.Run, crosscoder: Crosscoder, site: Site) -> dict[str, Crosscoder]:
    """The crosscoder without a rule, with that of the first positions, and with that of the norms."""
    store = mp.ActivationStore.open(run.layout.cache, models=crosscoder.model_names)
    medians = [float(store.rows_of(name, 0, store.n_rows, site).norm(dim=1).median()) for name in store.models]
    config, limits = crosscoder.config, tuple(FAR * median for median in medians)
    changed = {
        "no rule": config.replace(drop_first_positions=0, norm_limits=()),
        "drop_first_positions = 2": config.replace(drop_first_positions=2, norm_limits=()),
        f"drop_norm_above = {FAR:g}": config.replace(drop_first_positions=0, norm_limits=limits),
    }
    return {name: Crosscoder.from_tensors(rule, crosscoder.tensors()).eval() for name, rule in changed.items()}


def shared(folder: Path, factors: Sequence[float]) -> dict[str, dict[float, int]]:
    """Rule to factor to the number of features that the selections with and without a sink share."""
    run = mp.Run(mp.RunConfig.of_run(folder), folder)
    crosscoder, site = run.crosscoder(), Site.parse(run.trained_site())
    family, outcomes = run.family.subset(*crosscoder.model_names), load_outcomes(run.layout.evals)
    config = run.config.select.replace(rule=SET, ranking="joint")
    held_out = {task.name: [sample.id for sample in task.samples] for task in run.evaluation_halves()}
    gained = gained_sequences(family, outcomes, gained_samples(outcomes, config, held_out).ids, config)

    def selected(dictionary: Crosscoder) -> set[int]:
        scores, _ = score_features(dictionary, family, gained, site=site, config=config)
        return set(choose(scores, SET, site=str(site), crosscoder="", ranking="joint", n_controls=0).features)

    found: dict[str, dict[float, int]] = {}
    dictionaries = rules(run, crosscoder, site)
    reference = selected(dictionaries["no rule"])
    for name, dictionary in dictionaries.items():
        found[name] = {}
        for factor in factors:
            with sink(family, site, factor):
                found[name][factor] = len(reference & selected(dictionary))
    return found


def main() -> int:
    """Print the numbers; exit with 1 where a rule keeps fewer than 48 of 50."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--factors", type=float, nargs="+", default=[30.0])
    options = parser.parse_args()
    found = shared(options.run, options.factors)
    columns = [f"x{factor:g}" for factor in options.factors]
    rows = {name: {f"x{factor:g}": str(n) for factor, n in kept.items()} for name, kept in found.items()}
    print(f"Of the 50 features selected without a sink, so many are selected with one ({options.run})")
    print("\n".join(table_lines(rows, columns, corner="crosscoder")))
    return 0 if all(n >= 48 for name, kept in found.items() if name != "no rule" for n in kept.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
