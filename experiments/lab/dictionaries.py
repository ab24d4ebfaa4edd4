"""What sets of equal size do when they come from other dictionaries: a crosscoder, one with the delta loss, a diff-SAE.

    python experiments/lab/dictionaries.py runs/lab --sizes 1 10 50

The script takes a finished run folder. On its store it trains three dictionaries of base and the tuned model, with the run's
settings and seed: ``crosscoder``, ``delta`` (its loss has the delta loss of arXiv 2603.04426) and ``difference`` (an SAE on
the difference between the models). Each ranks its features as the run does, on the selection halves. Its first features are
transplanted both ways, on the evaluation halves of the untrained tasks, by the read-out that the run's settings choose.
Everything is kept under ``--work``, and the results are one JSON file; ``--finished`` prints the existing file.

``--delta`` is the weight of the delta loss. The default makes both terms of the loss equal for a dictionary that reconstructs
the mean only, so neither term is negligible. The rule is ours; the paper's weight belongs to other units.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import mechprobe as mp
from mechprobe.cache.store.activation_store import ActivationStore
from mechprobe.cli.printing import table_lines
from mechprobe.dictionary.config import TrainSaeConfig
from mechprobe.dictionary.stage import held_out_metrics, train_crosscoder
from mechprobe.environment import environment
from mechprobe.evals.stage import load_outcomes
from mechprobe.files import read_json, write_json
from mechprobe.types import POOLED
from sae_training import Crosscoder

CROSSCODER, DELTA, DIFFERENCE = KINDS = ("crosscoder", "delta", "difference")


def settings_of(chain: "mp.Run", kind: str, delta: float, tokens: int | None = None) -> TrainSaeConfig:
    """The run's settings of training for one kind of dictionary of base and the tuned model."""
    own, config = chain.config.train_sae, chain.config.select
    shape = {**own.crosscoder, **({"reads": "difference"} if kind == DIFFERENCE else {})}
    training = {**own.training, **({"delta_coefficient": delta} if kind == DELTA else {})}
    n_tokens = own.n_tokens if tokens is None else tokens
    return own.replace(models=(config.base, config.tuned), crosscoder=shape, training=training, n_tokens=n_tokens)


def balanced(chain: "mp.Run", site: str) -> float:
    """The delta coefficient at which both terms of the loss are equal for a dictionary without latents."""
    rows = held_out_rows(chain, site)
    variance = (rows - rows.mean(dim=0)).square().sum(dim=2).mean(dim=0)
    difference = rows[:, 1] - rows[:, 0]
    apart = (difference - difference.mean(dim=0)).square().sum(dim=1).mean()
    return float(variance.sum() / apart)


def held_out_rows(chain: "mp.Run", site: str) -> torch.Tensor:
    """Held-out residuals of base and the tuned model, ``[row model d_model]``, in float64."""
    config = chain.config.select
    store = ActivationStore.open(chain.layout.cache, (config.base, config.tuned))
    batches = store.batches(4096, 0, site=site, split="held_out", epochs=1)
    return torch.cat([batch.double() for batch in batches])


def measure(
    folder: Path, work: Path, *, sizes: Sequence[int], delta: float | None = None, tokens: int | None = None
) -> dict[str, Any]:
    """Train, select and transplant with every kind of dictionary."""
    chain = mp.Run(mp.RunConfig.of_run(folder), folder)
    site = chain.trained_site()
    weight = balanced(chain, site) if delta is None else delta
    settings = {kind: settings_of(chain, kind, weight, tokens) for kind in KINDS}
    found = {kind: measure_kind(chain, settings[kind], work / kind, site, sizes) for kind in KINDS}
    return {
        "run": chain.config.name or folder.name, "site": site, "ranking": chain.config.select.ranking, "delta_coefficient": weight,
        "n_tokens": settings[CROSSCODER].n_tokens,
        "dictionaries": found, "environment": environment(),
    }  # fmt: skip


def measure_kind(
    chain: "mp.Run", settings: TrainSaeConfig, work: Path, site: str, sizes: Sequence[int]
) -> dict[str, Any]:
    """Train one dictionary, select with it, and transplant its set and its first features both ways."""
    store = settings.source(chain.layout.cache, lambda: chain.family, work / "crosscoder")
    dictionary = train_crosscoder(
        store, *settings.resolve(store), work / "crosscoder", site=site, device=chain.config.device,
        pool_rows=settings.pool_rows,
    )  # fmt: skip
    pairs = [pair for pair in chain.halves() if pair[0].name not in chain.config.select.trained]
    family = chain.family.subset(*dictionary.model_names)
    selection = mp.select_features(
        dictionary, family, load_outcomes(chain.layout.evals), site=site, out=work / "selection",
        config=chain.config.select.replace(rule=f"top:{max(sizes)}", n_controls=1, n_bootstrap=0),
        held_out={judging.name: [sample.id for sample in judging.samples] for _, judging in pairs},
        inputs={"crosscoder": work / "crosscoder", "evals": chain.layout.evals},
    )  # fmt: skip
    config = chain.config.intervene.replace(
        features=None, ranking=None, compare=(), edits_base=("transplant",), edits_tuned=("transplant",), doses=(),
        sizes=tuple(size for size in sizes if size < max(sizes)), leave_one_out=False, rivals=(), n_random=1, n_shuffled=1, n_rescaled=0,
        n_shifted=0, collateral_texts=0,
    )  # fmt: skip
    results = mp.intervene(
        family, dictionary, selection, [judging for _, judging in pairs], work / "interventions", config,
        selecting=[selecting for selecting, _ in pairs], inputs={"crosscoder": work / "crosscoder", "selection": work / "selection"},
    )  # fmt: skip
    quality = held_out_metrics(store.kept, dictionary, site)
    return {
        "l0": quality.l0 if quality else None,
        "dead_frac": quality.dead_frac if quality else None,
        "fve_of_difference": explained(dictionary, held_out_rows(chain, site)),
        "hosts": {host: rows_of(results, host) for host in (config.base, config.tuned)},
    }


@torch.no_grad()
def explained(dictionary: Crosscoder, rows: torch.Tensor) -> float:
    """Fraction of the variance of the difference that the reconstructed difference explains."""
    x_hat = torch.cat([dictionary(part) for part in rows.float().split(4096)]).double()
    difference, found = rows[:, 1] - rows[:, 0], x_hat[:, 1] - x_hat[:, 0]
    total = (difference - difference.mean(dim=0)).square().sum()
    return 1 - float((difference - found).square().sum() / total)


def rows_of(results: "mp.InterventionResults", host: str) -> dict[str, Any]:
    """Size → effect with its interval and share of the ceiling, in one host; and the set under the other read-out."""
    ceiling = next(row for row in results.conditions if (row.set_kind, row.model) == ("ceiling", host))
    found: dict[str, Any] = {"ceiling": list(ceiling.accuracy_delta[POOLED]), "sizes": {}}
    for row in results.conditions:
        if row.model != host or row.edit != "transplant" or row.set_kind not in ("selected", "size", "compare"):
            continue
        one = {
            "effect": list(row.accuracy_delta[POOLED]),
            "share": row.share_of_ceiling[POOLED],
            "change_norm": row.change_norm,
        }
        if row.set_kind == "compare":
            found["other_readout"] = {"readout": row.readout, **one}
        else:
            found["readout"] = row.readout
            found["sizes"][str(row.n_features)] = one
    return found


def rows_printed(record: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """The table: one row per dictionary and host, one column per size."""
    rows = {}
    for kind, found in record["dictionaries"].items():
        for host, own in found["hosts"].items():
            sizes = sorted(own["sizes"].items(), key=lambda item: int(item[0]))
            rows[f"{kind}, into {host}"] = {
                "FVE of the difference": f"{found['fve_of_difference']:.2f}",
                "L0": f"{found['l0']:.1f}",
                "read-out": own["readout"],
                **{f"first {size}": share(one) for size, one in sizes},
                f"{sizes[-1][0]}, other read-out": share(own["other_readout"]),
            }
    return rows


def share(row: Mapping[str, Any]) -> str:
    """Share of the ceiling with the effect and its interval in points."""
    value, low, high = (100 * number for number in row["effect"][:3])
    part = "–" if row["share"] is None else f"{row['share']:.0%}"
    return f"{part} ({value:+.0f} [{low:+.0f}, {high:+.0f}])"


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Options of the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="?", help="Finished run folder with its activation store.")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 10, 50], help="Numbers of first features.")
    parser.add_argument("--delta", type=float, help="Weight of the delta loss; balanced by default.")
    parser.add_argument("--tokens", type=int, help="Tokens to train each dictionary on; those of the run by default.")
    parser.add_argument("--work", type=Path, help="Folder of the dictionaries; RUN/dictionaries_compared by default.")
    parser.add_argument(
        "--out", type=Path, default=Path("artifacts/lab_seeds/dictionaries/shipped.json"), help="Results."
    )
    parser.add_argument("--finished", action="store_true", help="Print finished results only.")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, unless ``--finished``, and print."""
    given = arguments(argv)
    try:
        if not given.finished:
            if given.run is None:
                raise mp.MechprobeError("No run folder is given; name a finished run of the lab.")
            work = given.work or given.run / "dictionaries_compared"
            write_json(given.out, measure(given.run, work, sizes=given.sizes, delta=given.delta, tokens=given.tokens))
        record = read_json(given.out)
    except mp.MechprobeError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    rows = rows_printed(record)
    print(f"{record['run']}, {record['site']}, delta coefficient {record['delta_coefficient']:.1f}")
    print("\n".join(table_lines(rows, list(next(iter(rows.values()))), corner="dictionary and host")))
    return 0


if __name__ == "__main__":
    sys.exit(main())
