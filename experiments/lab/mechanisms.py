"""What a set of features does on mechanisms labs of several seeds, beside every rival, and whether their nulls stay silent.

    python experiments/lab/mechanisms.py --seeds 10 11 12

For every seed, the script builds the lab with its null (`mechprobe lab build --recipe mechanisms`) and runs the chain on both. It
transplants the selected set both ways with controls, rivals, complements and both read-outs, and then heads of the ranking of up to
400 features. A finished seed is one JSON file under ``--out``; an interrupted one resumes from ``--work``. A seed whose base fails a
gate is judged, too. The script has no expected outcome on the labs: it prints what the verdicts say. It exits with 1 if a verdict
calls a set causal on a null.
"""

import argparse
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mechprobe as mp
from mechprobe.cli.printing import table_lines
from mechprobe.environment import environment
from mechprobe.errors import SelectionError
from mechprobe.files import read_json, write_json
from mechprobe.interventions.rival_rows import Curve
from mechprobe.interventions.verdicts.rule import IN_PART, SUPPORTED
from mechprobe.lab.builder import build
from mechprobe.lab.mechanisms.language import SKILLS
from mechprobe.lab.mechanisms.recipe import MechanismsRecipe, mechanisms_recipe
from mechprobe.stage_folder import read_manifest
from mechprobe.types import POOLED

SETTINGS = [
    "intervene.edits_base=['transplant']", "intervene.edits_tuned=['transplant']", "intervene.compare=[]",
    "intervene.doses=[]", "intervene.leave_one_out=false", "intervene.collateral_texts=0", "intervene.workers=1",
    "intervene.n_random=25", "intervene.n_shuffled=25", "intervene.n_rescaled=0", "intervene.n_shifted=0",
    "intervene.sizes=[]", "select.ranking='joint'",
]  # fmt: skip
"""Settings of the study: features by joint attribution, transplants only, and two kinds of controls. In these dictionaries 19 random sets of 50 features must
share some, and are worth fewer than the 19 independent draws with which p can reach 0.05."""
NULL = ["intervene.rivals=[]"]
"""Further settings on the null."""
LARGEST, SIZES = 400, (10, 20, 50, 100, 200)
"""Heads of the ranking that are transplanted to see at which size the change appears."""
NOTHING = "nothing to select"
ARROWS = {"base": "base ← rl", "rl": "rl ← base"}
RANKS = (1, 2, 5, 10)
"""Ranks whose best rival is printed; rivals of other ranks and complements are in the JSON."""


def study_recipe(scale: str) -> MechanismsRecipe:
    """The recipe without enforced gates, so that no seed is left out; bits are those of ``mechprobe lab build``."""
    recipe = mechanisms_recipe(scale)
    return recipe.replace(enforce_gates=False, pretrain=recipe.pretrain.replace(max_attempts=1))


def measure(lab: Path, config: str, folder: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """Run the chain on one configuration of a lab up to ``intervene``, and keep what the study prints."""
    chain = mp.Run(mp.RunConfig.build(lab / config, [*SETTINGS, *overrides]), folder)
    chain.save_config()
    chain.cache()
    chain.train_sae()
    chain.evaluate()
    fve = read_manifest(folder / "crosscoder")["results"]["fve"]
    try:
        selection = chain.select()
        found = chain.intervene()
    except SelectionError as error:
        return {"fve": fve, NOTHING: str(error)}
    gained = dict(zip(selection.scores.tasks, selection.scores.n_gained, strict=True))
    curves = heads(chain, selection, found) if chain.config.intervene.rivals else []
    hosts = {host: host_record(found, host) | {"sizes": of_host(curves, host)} for host in found.pair}
    return {"fve": fve, "n_gained": gained, "hosts": hosts}


def heads(chain: mp.Run, selection: mp.Selection, found: mp.InterventionResults) -> Sequence[Curve]:
    """Shares of the ceiling that heads of the ranking carry, under the read-out of the main transplants, without controls."""
    readout = "joint" if found.readouts_of_edits["transplant"] == "joint" else "swap"
    most = int(selection.scores.live.sum()) // 2  # the control at equal norm needs as many other features
    config = chain.config.intervene.replace(
        features=f"top:{min(LARGEST, most)}", sizes=SIZES, transplant_readout=readout, rivals=(), n_random=0, n_shuffled=1,
    )  # fmt: skip
    tasks = [task for task in chain.judging_halves() if task.name not in config.trained]
    given = chain.family, chain.crosscoder(), selection, tasks
    return mp.intervene(*given, chain.folder / "heads", config).curves


def of_host(curves: Sequence[Curve], host: str) -> dict[str, list[list[float]]]:
    """Points of the curves of one host by kind."""
    return {curve.kind: [[size, share] for size, share in curve.points] for curve in curves if curve.model == host}


def host_record(found: mp.InterventionResults, host: str) -> dict[str, Any]:
    """Verdicts, controls, read-outs, rivals and sizes of the transplants into one host; shares are of the pooled ceiling."""
    rows = [row for row in found.conditions if row.model == host]
    share = {row.name: row.share_of_ceiling[POOLED] for row in rows}
    sets = [row for row in rows if row.edit == "transplant" and row.set_kind in ("selected", "compare")]
    keys = ("effect", "n", "ceiling", "verdict", "random_mean", "random_max", "equal_norm_max")
    verdicts = {row.task: row.to_dict() for row in found.verdicts if row.model == host}
    comparison = next((row for row in found.comparisons if row.model == host), None)
    return {
        "features": found.features,
        "tasks": {task: {key: row.get(key) for key in keys} for task, row in verdicts.items()},
        "readouts": {row.readout: share[row.name] for row in sets},
        "main_readout": found.readouts_of_edits["transplant"],
        "comparison": comparison and comparison.verdict,
        "better_than": comparison and comparison.better_than,
        "rivals": [
            {
                "name": row.name,
                "rank": row.rank,
                "share": share[row.condition],
                "beaten": row.beaten,
                "damages": row.damages,
            }
            for row in (comparison.rivals if comparison else [])
        ],
    }


def study(seed: int, given: argparse.Namespace) -> dict[str, Any]:
    """Return the record of one seed, which is computed unless its file exists.

    Raises:
        mp.MechprobeError: The file was made with other settings, or a stage fails.
    """
    path, settings = given.out / f"seed{seed}.json", {"overrides": list(given.set), "scale": given.scale}
    if path.is_file():
        if (record := read_json(path))["settings"] != settings:
            raise mp.MechprobeError(
                f"{path} was made with other settings ({record['settings']}); move the file, or give these settings."
            )
        return record
    started, work = time.monotonic(), given.work / f"{seed}"
    results = build(study_recipe(given.scale), work / "lab", seed=seed)["results"]
    accuracy = {
        model: {task: cell["accuracy"] for task, cell in row.items()}
        for model, row in {
            **results["accuracy"],
            **{f"forced: {k}": v for k, v in results["base_forced"].items()},
        }.items()
    }
    record = {
        "seed": seed,
        "settings": settings,
        "lab": {
            "accuracy": accuracy,
            "gates": {name: results["gates"][name] for name in ("pretraining", "outcomes", "ceilings")},
        },
        "main": measure(work / "lab", "run.toml", work / "run", given.set),
        "null": measure(work / "lab", "null.toml", work / "null", [*NULL, *given.set]),
        "environment": environment(),
        "seconds": round(time.monotonic() - started),
    }
    write_json(path, record)
    if not given.keep:
        for name in ("run", "null"):
            shutil.rmtree(work / name / "cache", ignore_errors=True)
    return read_json(path)


def accuracies(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Accuracy in % of base, arms, null and forced base; one row per lab and model."""
    rows = {
        f"{record['seed']} {model}": {task: f"{100 * value:.0f}" for task, value in row.items()}
        for record in records
        for model, row in record["lab"]["accuracy"].items()
        if "@" not in model
    }
    columns = [name for name in SKILLS if name in next(iter(rows.values()))]
    return table_lines(rows, columns, corner="seed, model")


def failed_gates(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Gates of the base and of the outcome that a lab fails; one line per lab, ``none`` where there are none."""
    lines = []
    for record in records:
        gates = record["lab"]["gates"]
        failed = [
            name for name, passed in {**gates["pretraining"]["checks"], **gates["outcomes"]}.items() if not passed
        ]
        lines.append(f"{record['seed']}  {', '.join(failed) or 'none'}")
    return lines


def verdicts(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """The set beside its controls and in both read-outs, in % of the ceiling, and the verdicts; one row per lab and host."""
    rows = {}
    for record in records:
        for host, found in record["main"].get("hosts", {}).items():
            row = found["tasks"][POOLED]
            part = lambda key, row=row: percent(None if row[key] is None else row[key] / row["ceiling"])  # noqa: E731
            rows[f"{record['seed']} {ARROWS[host]}"] = {
                "ceiling": f"{100 * row['ceiling']:.0f} points",
                **{f"{name} read-out": percent(share) for name, share in sorted(found["readouts"].items())},
                "random mean, max": f"{part('random_mean')}, {part('random_max')}",
                "equal norm, max": part("equal_norm_max"),
                "verdict": f"{row['verdict']} ({found['main_readout']})",
                "against rivals": found["comparison"] or "-",
            }
    return table_lines(rows, list(next(iter(rows.values()))), corner="seed, direction") if rows else [NOTHING]


def rivals(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """The best rival of each rank, then those without a rank, in % of the ceiling; one row per lab and host."""
    rows = {}
    for record in records:
        for host, found in record["main"].get("hosts", {}).items():
            cells = {f"rank {rank}": best([r for r in found["rivals"] if r["rank"] == rank]) for rank in RANKS}
            cells["any other rank"] = best([r for r in found["rivals"] if r["rank"] not in (None, *RANKS)])
            cells |= {r["name"]: percent(r["share"]) for r in found["rivals"] if r["rank"] is None}
            rows[f"{record['seed']} {ARROWS[host]}"] = cells
    columns = list(dict.fromkeys(name for cells in rows.values() for name in cells))
    return table_lines(rows, columns, corner="seed, direction") if rows else [NOTHING]


def sizes(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Share of the ceiling by number of features or components, in %; one row per lab, host and kind of set."""
    rows = {
        f"{record['seed']} {ARROWS[host]}, {kind}": {f"{size}": percent(share) for size, share in points}
        for record in records
        for host, found in record["main"].get("hosts", {}).items()
        for kind, points in found["sizes"].items()
    }
    columns = sorted({size for cells in rows.values() for size in cells}, key=int)
    filled = {name: {size: cells.get(size, "") for size in columns} for name, cells in rows.items()}
    return table_lines(filled, columns, corner="seed, direction, kind") if rows else [NOTHING]


def best(found: Sequence[Mapping[str, Any]]) -> str:
    """Share and name of the rival that does most without damage."""
    measured = [row for row in found if row["share"] is not None and not row["damages"]]
    if not measured:
        return "-"
    top = max(measured, key=lambda row: row["share"])
    return f"{percent(top['share'])} {top['name']}"


def percent(share: float | None) -> str:
    """A share in %."""
    return "-" if share is None else f"{100 * share:.0f}"


def called_causal(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Verdicts that support a set on a null, pooled or on one task."""
    return [
        f"seed {record['seed']}, {host}, {task}"
        for record in records
        for host, found in record["null"].get("hosts", {}).items()
        for task, row in found["tasks"].items()
        if row["verdict"] in (SUPPORTED, IN_PART)
    ]


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Options of the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[10, 11, 12], help="Pre-training seeds.")
    parser.add_argument("--out", type=Path, default=Path("artifacts/mechanisms"), help="Folder of the results.")
    parser.add_argument("--work", type=Path, default=Path("runs/mechanisms-seeds"), help="Folder of labs and runs.")
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="SECTION.KEY=VALUE", help="Override settings of the runs."
    )
    parser.add_argument("--scale", default="full", choices=["full", "small"], help="small is for a trial.")
    parser.add_argument("--finished", action="store_true", help="Print finished results only.")
    parser.add_argument("--keep", action="store_true", help="Keep the activation stores.")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Compute the missing results, and print all."""
    given = arguments(argv)
    seeds = [seed for seed in given.seeds if not given.finished or (given.out / f"seed{seed}.json").is_file()]
    try:
        records = [study(seed, given) for seed in seeds]
    except mp.MechprobeError as error:
        print(f"mechanisms: {error}", file=sys.stderr)
        return 2
    if not records:
        print(f"mechanisms: {given.out} holds no results; run without --finished.", file=sys.stderr)
        return 2
    for title, table in (
        ("Accuracy in %", accuracies),
        ("Gates that failed", failed_gates),
        ("The set and its controls, in % of the ceiling", verdicts),
        ("Best rival of each rank that does no damage, and complements, in % of the ceiling", rivals),
        ("Share of the ceiling by size, in %", sizes),
    ):
        print("\n".join([title, *table(records), ""]))
    wrong = called_causal(records)
    print(f"Nulls: {len(records)}; sets called causal there: {', '.join(wrong) or 'none'}")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
