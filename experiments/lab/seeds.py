"""Whether the finding of the lab holds over pre-training seeds and recipes, and does not appear on the null.

    python experiments/lab/seeds.py --seeds 0 1 2 3 4

For every seed and recipe, the script builds the lab, runs the pipeline, and judges four sets of features: the first 2, 10 and
50 by joint attribution, and the first 50 by Score. Each is transplanted in both directions, with matched random sets and
changes of equal norm. A finished seed and recipe is one JSON file under ``--out``; an interrupted one resumes from ``--work``.
The script exits with 1 if a verdict calls a set causal on the null recipe.
"""

import argparse
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import mechprobe as mp
from mechprobe.cli.printing import table_lines
from mechprobe.environment import environment
from mechprobe.errors import SelectionError
from mechprobe.files import read_json, write_json
from mechprobe.formatting import bracketed
from mechprobe.interventions.verdicts.rule import CANNOT_TELL, IN_PART, SUPPORTED
from mechprobe.lab.builder import build
from mechprobe.lab.recipe import Recipe, get_recipe
from mechprobe.stage_folder import read_manifest
from mechprobe.types import POOLED

RECIPES = ("shared-marker", "all-weights", "own-markers")
NULL = "own-markers"
"""The null recipe, on which nothing can transfer."""
SHARES_BASE_WITH = {"all-weights": "shared-marker"}
"""Recipes with the same pre-training as another recipe, byte by byte."""
SETS = (("top2", "joint"), ("top10", "joint"), ("top50", "joint"), ("top50", "score"))
MAIN = "top50 by joint"
"""The set for which smallest sets, left-out tasks and collateral effects are measured too."""
N_CONTROLS = 25
"""Number of random sets, and of changes of equal norm, per set and direction. 19 let p reach 0.05, but 19 sets of fifty features
share some in these dictionaries, and are worth 16 independent draws."""
NO_SETS = "nothing to select"


def study_recipe(name: str, scale: str) -> Recipe:
    """The recipe without the in-style arm and the checkpoints, which the study does not use, and without enforced gates.

    It uses one thread, so that two recipes can run on two cores.
    """
    recipe = get_recipe(name, scale)
    return recipe.replace(
        pretrain=recipe.pretrain.replace(max_attempts=1),
        sft=recipe.sft.replace(checkpoints=()),
        sft_instyle=None,
        rl=recipe.rl.replace(checkpoints=()),
        enforce_gates=False,
        n_threads=1,
    )


def build_lab(name: str, seed: int, work: Path, scale: str) -> Path:
    """Build the lab of one recipe and seed, from the base of the recipe with the same pre-training if that exists."""
    folder = work / f"{name}-{seed}" / "lab"
    sister = work / f"{SHARES_BASE_WITH.get(name, name)}-{seed}" / "lab" / "base"
    shared = sister if name in SHARES_BASE_WITH and (sister / "manifest.json").is_file() else None
    build(study_recipe(name, scale), folder, seed=seed, base=shared)
    return folder


def measure(lab: Path, folder: Path, seed: int, overrides: Sequence[str]) -> dict[str, Any]:
    """Run the pipeline on a lab without feature table and report, and judge every set of `SETS`."""
    chain = mp.Run(mp.RunConfig.build(lab / "run.toml", overrides, seed=seed), folder)
    chain.save_config()
    ceilings = chain.localize()
    chain.cache()
    chain.train_sae()
    chain.evaluate()
    used = chain.trained_site()  # differs from the choice of `localize` if cache.sites is set
    site = ceilings.to_dict()["sites"][used]
    record: dict[str, Any] = {
        "site": {
            "chosen": used,
            "able": ceilings.able,
            "sufficiency_share": site["sufficiency_share"],
            "necessity_share": site["necessity_share"],
            "reason": ceilings.reason,
        },
        "crosscoder": read_manifest(folder / "crosscoder")["results"],
        "sets": {},
    }
    try:
        selection = chain.select()
    except SelectionError as error:
        return {**record, NO_SETS: str(error)}
    record["n_gained"] = dict(zip(selection.scores.tasks, selection.scores.n_gained, strict=True))
    for rule, ranking in SETS:
        name = f"{rule} by {ranking}"
        try:
            found = judge(chain, selection, rule, ranking)
        except SelectionError as error:
            record["sets"][name] = {"features": [], "rows": {}, "reason": str(error)}
            continue
        record["sets"][name] = set_record(found)
        if name == MAIN:
            data = found.to_dict()
            record |= {key: data[key] for key in ("sizes", "left_out", "collateral")}
    return record


def judge(chain: mp.Run, selection: mp.Selection, rule: str, ranking: str) -> mp.InterventionResults:
    """Transplant one set in both directions on the untrained tasks, with every control that a verdict requires."""
    settings = chain.config.intervene
    main = f"{rule} by {ranking}" == MAIN
    config = settings.replace(
        features=rule,
        ranking=ranking,
        compare=(),
        edits_base=("transplant",),
        edits_tuned=("transplant",),
        transplant_readout="joint",
        doses=(),
        sizes=settings.sizes if main else (),
        leave_one_out=main,
        n_random=N_CONTROLS,
        n_shuffled=N_CONTROLS,
    )
    return mp.intervene(
        chain.family,
        chain.crosscoder(),
        selection,
        [task for task in chain.evaluation_halves() if task.name not in settings.trained],
        chain.folder / f"judged_{rule}_{ranking}",
        config,
        collateral=chain.collateral_texts() if main else None,
    )


def set_record(found: mp.InterventionResults) -> dict[str, Any]:
    """Effect and verdict of one set in both directions, pooled and by task."""
    keys = ("effect", "n", "ceiling", "ceiling_interval", "random_mean", "p_random", "equal_norm_max", "p_equal_norm",
            "p_mcnemar", "verdict")  # fmt: skip
    rows: dict[str, dict[str, Any]] = {}
    for row in found.to_dict()["verdicts"]:
        rows.setdefault(row["model"], {})[row["task"]] = {key: row[key] for key in keys}
    shares = {row.model: row.share_of_ceiling[POOLED] for row in found.conditions if row.set_kind == "selected"}
    draws: dict[str, dict[str, list[float]]] = {model: {"random": [], "shuffled": []} for model in shares}
    for row in found.conditions:
        if row.set_kind in ("random", "shuffled"):
            draws[row.model][row.set_kind].append(row.accuracy_delta[POOLED].value)
    return {"features": found.features, "note": found.note, "rows": rows, "share": shares, "draws": draws}


def lab_record(lab: Path) -> dict[str, Any]:
    """Accuracies, the forced marker, gates and findings from the manifest of the lab."""
    results = read_manifest(lab)["results"]
    accuracy = {
        model: {skill: [cell["accuracy"], cell["n"]] for skill, cell in row.items()}
        for model, row in {**results["accuracy"], "base, marker forced": results["base_marker_forced"]}.items()
    }
    gates = results["gates"]
    return {
        "accuracy": accuracy,
        "findings": results["findings"],
        "gates": {
            "pretraining": gates["pretraining"]["checks"],
            "sites_with_both_ceilings": gates["ceilings"]["sites_with_both"],
            "frozen_parts_bit_equal": gates["frozen_parts_bit_equal"],
        },
    }


def result_path(name: str, seed: int, given: argparse.Namespace) -> Path:
    """File with the result of one recipe and seed."""
    suffix = "" if given.scale == "full" else f"_{given.scale}"
    return given.out / f"{name}_seed{seed}{suffix}.json"


def study(name: str, seed: int, given: argparse.Namespace) -> dict[str, Any]:
    """Return the result of one recipe and seed, which is computed unless its file exists.

    Raises:
        mp.MechprobeError: The file was made with other settings, or a stage fails.
    """
    path = result_path(name, seed, given)
    settings = {"overrides": list(given.set), "n_controls": N_CONTROLS, "sets": [list(pair) for pair in SETS]}
    if path.is_file():
        found = read_json(path)
        if found["settings"] != settings:
            raise mp.MechprobeError(
                f"{path} was made with other settings ({found['settings']}); move the file, or give these settings."
            )
        return found
    started = time.monotonic()
    work = given.work / f"{name}-{seed}"
    lab = build_lab(name, seed, given.work, given.scale)
    record = {
        "recipe": name,
        "seed": seed,
        "scale": given.scale,
        "settings": settings,
        "lab": lab_record(lab),
        **measure(lab, work / "run", seed, given.set),
        "environment": environment(),
        "seconds": round(time.monotonic() - started),
    }
    write_json(path, record)
    if not given.keep:
        shutil.rmtree(work / "run" / "cache", ignore_errors=True)
    return read_json(path)


def gate_text(record: Mapping[str, Any]) -> str:
    """``passed``, or the names of the gates that failed."""
    failed = [name for name, passed in record["lab"]["gates"]["pretraining"].items() if not passed]
    return "passed" if not failed else "FAILED " + ", ".join(failed)


def overview(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Gates, ceilings, and the smallest set that reaches 90 % of each ceiling; one row per lab."""
    rows = {}
    for record in records:
        site, sizes = record["site"], record.get("sizes", {})
        fve = [value for value in record["crosscoder"]["fve"].values() if value is not None]
        rows[f"{record['recipe']} {record['seed']}"] = {
            "gates": gate_text(record),
            "site": site["chosen"],
            "sufficiency": _share(site["sufficiency_share"]),
            "necessity": _share(site["necessity_share"]),
            "FVE": f"{min(fve):.3f}" if fve else "-",
            "90 % of base ← rl": _smallest(sizes.get("base")),
            "90 % of rl ← base": _smallest(sizes.get("rl")),
        }
    columns = ["gates", "site", "sufficiency", "necessity", "FVE", "90 % of base ← rl", "90 % of rl ← base"]
    return table_lines(rows, columns, corner="lab and seed")


def _share(value: float | None) -> str:
    return "-" if value is None else f"{round(100 * value)} %"


def _smallest(sizes: Mapping[str, Any] | None) -> str:
    if sizes is None:
        return "-"
    if "reason" in sizes:
        return "no ceiling"
    size, low, high = (
        "not reached" if value is None else str(value) for value in map(sizes["90%"].get, ("size", "low", "high"))
    )
    return f"{size} [{low}, {high}]"


def effects(records: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[str]:
    """Effect in points with interval, ceiling and verdict of the named sets; one row per lab and direction."""
    rows: dict[str, dict[str, str]] = {}
    for record in records:
        for host, arrow in (("base", "base ← rl"), ("rl", "rl ← base")):
            cells = {}
            for name in names:
                row = record["sets"].get(name, {}).get("rows", {}).get(host, {}).get(POOLED)
                cells[name] = (
                    "-"
                    if row is None
                    else f"{bracketed(row['effect'])} of {round(100 * row['ceiling'])}, {row['verdict']}"
                )
            rows[f"{record['recipe']} {record['seed']}  {arrow}"] = cells
    return table_lines(rows, names, corner="lab, seed, direction")


def stray_draws(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Sets and hosts for which some control draw reaches half of the ceiling; one line each."""
    found = [
        (
            f"{record['recipe']} {record['seed']}, {name} in {host}",
            rows["rows"][host][POOLED],
            1 if host == "base" else -1,
            kinds,
        )
        for record in records
        for name, rows in record["sets"].items()
        for host, kinds in rows.get("draws", {}).items()
    ]
    lines = []
    for where, row, sign, kinds in found:
        for kind, what in (("random", "random sets"), ("shuffled", "changes of equal norm")):
            points = sorted(round(100 * sign * draw) for draw in kinds[kind] if sign * draw >= row["ceiling"] / 2)
            if points and row["verdict"] != CANNOT_TELL:
                lines.append(
                    f"{where}: {len(points)} of {len(kinds[kind])} {what}, {points[0]} to {points[-1]} of "
                    f"{round(100 * row['ceiling'])} points"
                )
    return lines


def called_causal(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Sets of the null recipe that a verdict supports, pooled, on one task, or on a task left out of their selection."""
    return [
        f"{record['recipe']} {record['seed']}: {name} in {host} on {task}"
        for record in records
        if record["recipe"] == NULL
        for name, host, task, verdict in _verdicts(record)
        if verdict in (SUPPORTED, IN_PART)
    ]


def _verdicts(record: Mapping[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    """Yield ``(set, host, task, verdict)`` of every set of a lab, then of the sets selected without one task."""
    for name, found in record["sets"].items():
        for host, tasks in found["rows"].items():
            for task, row in tasks.items():
                yield name, host, task, row["verdict"]
    for row in record.get("left_out", ()):
        yield row["features"], row["model"], row["task"], row["verdict"]


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Options of the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], help="Pre-training seeds.")
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES), choices=RECIPES)
    parser.add_argument("--out", type=Path, default=Path("artifacts/lab_seeds"), help="Folder of the results.")
    parser.add_argument("--work", type=Path, default=Path("runs/lab_seeds"), help="Folder of labs and runs.")
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="SECTION.KEY=VALUE", help="Override settings of the runs."
    )
    parser.add_argument(
        "--scale", default="full", choices=["full", "small"], help="small runs in seconds, for a trial."
    )
    parser.add_argument("--finished", action="store_true", help="Print finished results only.")
    parser.add_argument("--keep", action="store_true", help="Keep the activation stores (about 0.5 GB each).")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Compute the missing results, and print all."""
    given = arguments(argv)
    records = []
    for seed in given.seeds:
        for name in given.recipes:
            if given.finished and not result_path(name, seed, given).is_file():
                continue
            try:
                records.append(study(name, seed, given))
            except mp.MechprobeError as error:
                print(f"seeds: {name}, seed {seed}: {error}", file=sys.stderr)
                return 2
            print(f"{name} seed {seed}: {records[-1]['seconds']} s", file=sys.stderr)
    print("\n".join(overview(records)))
    print("\nEffects in points with 95 % interval, of the ceiling, pooled over the untrained tasks")
    print("\n".join(effects(records, [f"{rule} by {ranking}" for rule, ranking in SETS])))
    if strays := stray_draws(records):
        print("\n".join(["\nControl draws that give half of the ceiling, or more", *strays]))
    for record in records:
        if NO_SETS in record:
            print(f"{record['recipe']} {record['seed']}: {NO_SETS}: {record[NO_SETS]}")
        for set_name, found in record["sets"].items():
            if "reason" in found:
                print(f"{record['recipe']} {record['seed']}: {set_name}: {found['reason']}")
    wrong = called_causal(records)
    null = sum(record["recipe"] == NULL for record in records)
    print(f"\nNull labs: {null}; sets called causal there: {', '.join(wrong) or 'none'}")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
