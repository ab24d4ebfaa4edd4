"""Recall and precision of the causal set on compiled labs, whose mechanisms are known.

    python experiments/lab/compiled_truth.py --ranks 1 2 4 10 --seeds 6 7 8

For every rank and seed, the script builds the lab and runs localize, cache, train-sae, evaluate and select. It compares the
task-agnostic set by integrated gradients with the truth. Then it transplants that set both ways, as many of the strongest decoy
features, and as many of the first features by J. A finished lab is one JSON file under ``--out``; an interrupted one resumes from
``--work``. The script exits with 1 if a bar of `checks` is missed.

A feature is *causal* if more than half of the squared norm of its decoder difference, tuned minus base, lies in the causal
subspace. It *counts* if it writes at least a fifth of what the strongest feature writes there: mean activation times the norm of
the difference within the subspace. Decoy features are defined alike, by the subspace of the decoys. Precision is the share of the
chosen features that are causal. Recall is the share of the causal features that count which are chosen. An op is *found* if more
than half of the squared norm of the difference of a chosen feature lies along the direction of that op. All rules are our own.
"""

import argparse
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

import mechprobe as mp
from mechprobe.cli.printing import table_lines
from mechprobe.environment import environment
from mechprobe.files import read_json, write_json
from mechprobe.interventions.verdicts.verdict import SUPPORTED
from mechprobe.lab.compiled.build import build_compiled
from mechprobe.lab.compiled.design import BEFORE, SITE, Design
from mechprobe.selection.rules import resolve
from mechprobe.stage_folder import read_manifest
from sae_training import Crosscoder

BAR = 0.95
SHARE, FLOOR = 0.5, 0.2
"""Share of a decoder difference that a subspace must hold, and share of the largest contribution from which a feature counts."""
_FEW = {"n_random": 50, "n_rescaled": 0, "n_shuffled": 19, "n_shifted": 0}
CONTROLS: dict[str, dict[str, Any]] = {
    "causal": _FEW,
    "decoys": {**_FEW, "rivals": ()},
    "joint": {**_FEW, "n_random": 0, "n_shuffled": 1, "rivals": ()},
}
"""Controls of each judged set, few to save time: in dictionaries of this size, 50 random sets of a dozen features are worth the 19
independent draws that a verdict needs. The set by J is run for its effect alone."""
N_JUDGED = 20
"""Samples of each untrained skill on which sets are judged."""
RANKINGS = ("ig", "relie", "joint", "score")


def share_in(
    differences: Float[np.ndarray, "feature d_model"], directions: Float[np.ndarray, "direction d_model"]
) -> Float[np.ndarray, " feature"]:
    """Share of the squared norm of each decoder difference that lies in the span of the directions."""
    inside = np.linalg.norm(differences @ np.linalg.qr(directions.T)[0], axis=1)
    return (inside / np.maximum(np.linalg.norm(differences, axis=1), 1e-12)) ** 2


def counting(
    differences: Float[np.ndarray, "feature d_model"],
    mean_act: Float[np.ndarray, " feature"],
    directions: Float[np.ndarray, "direction d_model"],
) -> Bool[np.ndarray, " feature"]:
    """Features whose decoder difference lies mostly in the span of the directions, and that write much there."""
    share = share_in(differences, directions)
    written = mean_act * np.sqrt(share) * np.linalg.norm(differences, axis=1)
    return (share > SHARE) & (written >= FLOOR * written.max())


def spanned(
    differences: Float[np.ndarray, "feature d_model"], directions: Float[np.ndarray, "direction d_model"]
) -> float:
    """Share of the span of the directions that the differences span: the mean squared cosine of the principal angles."""
    target = np.linalg.qr(directions.T)[0]
    basis, strength, _ = np.linalg.svd(differences.T, full_matrices=False)
    basis = basis[:, strength > 1e-3 * strength.max()]
    return float((np.linalg.norm(basis.T @ target) ** 2) / target.shape[1])


def against_truth(crosscoder: Crosscoder, selection: mp.Selection, design: Design) -> dict[str, Any]:
    """Precision, recall and ops found of the set, and the precision of as many first features by every ranking as count."""
    names = list(crosscoder.model_names)
    decoders = crosscoder.W_dec.detach().double().numpy()
    differences = decoders[:, names.index("rl")] - decoders[:, names.index("base")]
    chosen, scores = list(selection.features), selection.scores
    mean_act = np.asarray(scores.density) * np.asarray(scores.mean_act)  # over all positions
    causal = share_in(differences, design.causal) > SHARE
    counted, decoys = (counting(differences, mean_act, kind) for kind in (design.causal, design.decoys))
    order = np.argsort(-mean_act * np.linalg.norm(differences, axis=1))
    heads = {
        ranking: list(resolve(f"top:{max(int(counted.sum()), 1)}", scores.values(ranking), live=scores.live).ids)
        for ranking in RANKINGS
    }
    found = [(share_in(differences[chosen], op[None]) > SHARE).any() for op in design.causal]
    return {
        "n_causal": int(counted.sum()),
        "n_decoys": int(decoys.sum()),
        "chosen": chosen,
        "precision": float(causal[chosen].mean()),
        "recall": float(counted[chosen].sum() / max(counted.sum(), 1)),
        "ops_found": float(np.mean(found)),
        "subspace": spanned(differences[chosen], design.causal),
        "precision_of_head": {ranking: float(causal[ids].mean()) for ranking, ids in heads.items()},
        "first_by_joint": heads["joint"],
        "decoy_features": [int(feature) for feature in order if decoys[feature]][: len(chosen)],
    }


def judge(chain: mp.Run, selection: mp.Selection, name: str, features: Sequence[int]) -> dict[str, Any]:
    """Effect and verdict of a transplant of features in both directions, on the untrained skills."""
    config = chain.config.intervene.replace(
        features="ids:" + ",".join(map(str, features)), compare=(), edits_base=("transplant",), edits_tuned=("transplant",),
        doses=(), sizes=(), leave_one_out=False, n_per_task=N_JUDGED, collateral_texts=0, **CONTROLS[name],
    )  # fmt: skip
    selecting, judging = zip(*(pair for pair in chain.halves() if pair[0].name not in config.trained), strict=True)
    given = chain.family, chain.crosscoder(), selection, judging
    found = mp.intervene(*given, chain.folder / f"judged_{name}", config, selecting=selecting)
    keys = ("effect", "n", "ceiling", "verdict", "one_vector", "random_max", "equal_norm_max")
    sides = {row.model: {key: row.to_dict()[key] for key in keys} for row in found.pooled_verdicts}
    for row in found.comparisons:
        sides[row.model] |= {"against_rivals": row.verdict, "best_rival": row.best}
    return sides


def measure(lab: Path, design: Design, overrides: Sequence[str]) -> dict[str, Any]:
    """Build one lab, run the chain on it, and compare with the truth."""
    build_compiled(lab, rank=design.rank, seed=design.seed)
    also = "select.also=['relie']"
    chain = mp.Run(mp.RunConfig.build(lab / "run.toml", [also, *overrides]), lab / "run")
    chain.save_config()
    ceilings = chain.localize()
    chain.cache()
    crosscoder = chain.train_sae()
    chain.evaluate()
    selection = chain.select()
    truth = against_truth(crosscoder, selection, design)
    sets = {"causal": truth["chosen"], "decoys": truth["decoy_features"], "joint": truth["first_by_joint"]}
    return {
        "rank": design.rank,
        "seed": design.seed,
        "site": {"chosen": ceilings.chosen, "shares": {site: row.shares for site, row in ceilings.sites.items()}},
        "fve": read_manifest(lab / "run" / "crosscoder")["results"]["fve"],
        "truth": truth,
        "sets": {name: judge(chain, selection, name, ids) for name, ids in sets.items()},
        "environment": environment(),
    }


def checks(record: Mapping[str, Any]) -> dict[str, bool]:
    """The bars, each by name."""
    truth, shares = record["truth"], record["site"]["shares"]
    causal, decoys = record["sets"]["causal"], record["sets"]["decoys"]
    return {
        "precision": truth["precision"] >= BAR,
        "recall": truth["recall"] >= BAR,
        "ops found": truth["ops_found"] == 1,
        "site": record["site"]["chosen"] == SITE and max(map(abs, shares[BEFORE])) == 0 and min(shares[SITE]) == 1,
        "set supported": all(row["verdict"] == SUPPORTED for row in causal.values()),
        "decoys refused": all(row["effect"][0] == 0 and row["verdict"] != SUPPORTED for row in decoys.values()),
    }


def row(record: Mapping[str, Any]) -> dict[str, str]:
    """One row of the table."""
    truth, sets = record["truth"], record["sets"]
    heads = truth["precision_of_head"]
    effects = {name: ", ".join(f"{100 * side['effect'][0]:.0f}" for side in sets[name].values()) for name in sets}
    vector = max(value for side in sets["causal"].values() for value in side["one_vector"].values())
    missed = [name for name, passed in checks(record).items() if not passed]
    return {
        "site": record["site"]["chosen"],
        "causal, chosen": f"{truth['n_causal']}, {len(truth['chosen'])}",
        "precision": f"{truth['precision']:.2f}",
        "recall": f"{truth['recall']:.2f}",
        "ops": f"{truth['ops_found']:.2f}",
        "subspace": f"{truth['subspace']:.2f}",
        "precision by " + ", ".join(heads): ", ".join(f"{value:.2f}" for value in heads.values()),
        "set into base, rl": effects["causal"],
        "decoys into base, rl": effects["decoys"],
        "first by joint into base, rl": effects["joint"],
        "best mean vector": f"{100 * vector:.0f}",
        "set against rivals, into base": sets["causal"]["base"].get("against_rivals", ""),
        "missed": ", ".join(missed) or "none",
    }


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Options of the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4, 10], help="Ranks of the labs.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[6, 7, 8], help="Seeds of the labs.")
    parser.add_argument("--work", type=Path, default=Path("runs/compiled"), help="Folder of labs and runs.")
    parser.add_argument("--out", type=Path, default=Path("artifacts/compiled"), help="Folder of the results.")
    parser.add_argument("--set", action="append", default=[], dest="overrides", help="Override a setting of the runs.")
    parser.add_argument("--keep", action="store_true", help="Keep the labs and runs of finished results.")
    parser.add_argument("--finished", action="store_true", help="Print finished results only.")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure the labs that have no file yet, and print all."""
    given = arguments(argv)
    try:
        for design in () if given.finished else (Design(r, s) for s in given.seeds for r in given.ranks):
            name = f"rank{design.rank:02}-seed{design.seed}"
            if not (given.out / f"{name}.json").is_file():
                write_json(given.out / f"{name}.json", measure(given.work / name, design, given.overrides))
            if not given.keep:
                shutil.rmtree(given.work / name, ignore_errors=True)
        records = [read_json(path) for path in sorted(given.out.glob("rank*.json"))]
    except mp.MechprobeError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    if not records:
        print(f"{given.out} holds no results; run without --finished.", file=sys.stderr)
        return 2
    rows = {f"rank {record['rank']}, seed {record['seed']}": row(record) for record in records}
    print("\n".join(table_lines(rows, list(next(iter(rows.values()))), corner="lab")))
    return 0 if all(all(checks(record).values()) for record in records) else 1


if __name__ == "__main__":
    sys.exit(main())
