"""Tables 2 and 3 of arXiv 2604.25011 on the lab: flips under ablation and amplification, with the paper's numbers.

    python experiments/paper_a/intervene.py --run runs/lab --out runs/paper_a/intervene

Table 2 measures the tasks that select the features. Table 3 measures each of them as an unseen task, with the set that the other
tasks select. The paper's set is ``agnostic:score`` (above 20 % of the highest Score on every task); ``top50:joint`` is our own.
If ``--run`` holds no finished run, the run is made first. Finished parts in ``--out`` are reused.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mechprobe as mp
from mechprobe.errors import SelectionError
from mechprobe.files import write_json, write_text
from mechprobe.records import read_jsonl
from mechprobe.run_config import RUN_FILE, read_run_file
from mechprobe.statistics import wilson_interval

ABLATE, AMPLIFY = "ablate", "clamp:3.0"
PAPER: dict[str, dict[str, Any]] = {
    "table_2": {
        "tasks": ["OBQA", "CSQA", "HeadQA", "SciQ", "ARC-C"],
        "rows": {
            "ablate, Qwen3-4B-RL (50 features)": [-46.2, -43.9, -21.2, -14.0, -33.3],
            "ablate, Qwen2.5-7B-RL (16 features)": [-21.9, -24.4, -23.8, -44.4, -20.0],
            "clamp 3.0, Qwen3-4B-Base": [36.3, 36.0, 21.2, 38.0, 33.3],
            "clamp 3.0, Qwen2.5-7B": [12.5, 24.4, 14.3, 55.6, 40.0],
        },
    },
    "table_3": {
        "tasks": ["LogiQA", "PIQA"],
        "rows": {
            "ablate, Qwen3-4B-RL (50 features)": [-24.5, -17.6],
            "ablate, Qwen2.5-7B-RL (16 features)": [-24.0, -11.8],
            "clamp 3.0, Qwen3-4B-Base": [23.3, 28.2],
            "clamp 3.0, Qwen2.5-7B": [24.0, 32.9],
        },
    },
}
"""The paper's numbers, in %. The paper gives neither n nor denominators; the notes say what is inferred."""
NOTES = (
    "Lab: `flip_rate_of_right` is the share of the samples that the clean tuned model has right and the ablated model has wrong; "
    "`flip_rate_of_wrong` is the share of the samples that the clean base has wrong and the amplified base has right. Intervals are "
    "95 % Wilson intervals, and n is the denominator. `of gained` is restricted to samples that base has wrong and the tuned model "
    "has right. `random` is the mean over matched random sets under the same edit; only an effect beyond it counts.",
    "Lab: samples that select features never judge them. The paper states neither this nor which random sets it compares with.",
    "Paper: percentages on conditional subsets, interpreted as the samples that the RL model has right (ablate) or the base has "
    "wrong (clamp). The paper gives neither n nor intervals.",
    "The lab has a planted mechanism and says nothing about large models. It shows which edits have an effect beyond random sets, "
    "and whether unseen tasks show that effect too.",
)


def split_set(text: str) -> tuple[str, str]:
    """Split ``top50:joint`` into ``("top50", "joint")``; the settings of the selection check the ranking."""
    rule, _, ranking = text.rpartition(":")
    return rule, ranking


def finished_run(run: Path, config: Path, overrides: Sequence[str]) -> mp.Run:
    """The run of a folder with its dictionary and outcomes, which are made where they are missing."""
    begun = (run / RUN_FILE).is_file()
    start = read_run_file(run) if begun else None
    chain = mp.Run(mp.RunConfig.build(None if begun else config, overrides, start=start), run)
    if not begun:
        chain.check()
        chain.save_config()
    if not (run / "crosscoder" / "manifest.json").is_file():
        for stage in (chain.localize, chain.cache, chain.train_sae):
            stage()
    chain.evaluate()
    return chain


def select(chain: mp.Run, rule: str, ranking: str, tasks: Sequence[str] | None, out: Path) -> mp.Selection:
    """The set that a rule chooses from the selection halves of some tasks; None takes all selecting tasks."""
    halves = chain.evaluation_halves()
    settings = chain.config.select
    return mp.select_features(
        chain.crosscoder(),
        chain.family,
        chain.evaluate(),
        site=chain.trained_site(),
        out=out,
        config=settings.replace(
            rule=rule, ranking=ranking, tasks=tuple(tasks) if tasks else settings.tasks, n_controls=1
        ),
        held_out={task.name: [sample.id for sample in task.samples] for task in halves},
        table=chain.table(),
    )


def edit(chain: mp.Run, selection: mp.Selection, tasks: Sequence[str], out: Path, n_random: int) -> Path:
    """Ablate in the tuned model and clamp in the base on the evaluation halves of some tasks, with matched random sets."""
    config = chain.config.intervene.replace(
        features=selection.rule,
        ranking=selection.ranking,
        compare=(),
        edits_tuned=(ABLATE,),
        edits_base=(AMPLIFY,),
        doses=(),
        sizes=(),
        leave_one_out=False,
        collateral_texts=0,
        n_random=n_random,
        n_shuffled=1,
        force_prefix="",
    )
    judging = [task for task in chain.evaluation_halves() if task.name in tasks]
    mp.intervene(chain.family, chain.crosscoder(), selection, judging, out, config, table=chain.table())
    return out


def cells(folder: Path, tasks: Sequence[str]) -> dict[str, dict[str, dict[str, Any]]]:
    """Edit → task → flip rates of a finished stage with their denominators, and the mean of the random sets."""
    found = mp.InterventionResults.load(folder)
    base, tuned = found.pair
    codes = {row["condition"]: row for _, row in read_jsonl(folder / "outcomes.jsonl")}
    result: dict[str, dict[str, dict[str, Any]]] = {}
    for host, text, rate in ((tuned, ABLATE, "flip_rate_of_right"), (base, AMPLIFY, "flip_rate_of_wrong")):
        mine = [row for row in found.conditions if (row.model, row.edit) == (host, text)]
        (main,) = (row for row in mine if row.set_kind == "selected")
        draws = [row for row in mine if row.set_kind == "random"]
        result[text] = {}
        for task in tasks:
            gained = [
                after != "R" if host == tuned else after == "R"
                for before, now, after in zip(
                    codes[f"{base}|clean"][task], codes[f"{tuned}|clean"][task], codes[main.name][task], strict=True
                )
                if before != "R" and now == "R"
            ]
            rates = [value for row in draws if (value := getattr(row, rate)[task].value) == value]
            result[text][task] = {
                "denominator": rate,
                "flips": getattr(main, rate)[task],
                "of_gained": list(wilson_interval(sum(gained), len(gained))),
                "random_mean": sum(rates) / len(rates) if rates else None,
                "n_random": len(rates),
                "accuracy_delta": main.accuracy_delta[task],
            }
    return result


def measured(chain: mp.Run, rule: str, ranking: str, out: Path, n_random: int) -> dict[str, Any]:
    """Both tables for one set; a task without a set has the reason instead."""
    folder = out / f"{rule.replace(':', '-')}_{ranking}"
    try:
        whole = select(chain, rule, ranking, None, folder / "select")
    except SelectionError as error:
        return {"rule": rule, "ranking": ranking, "reason": str(error)}
    tasks = list(whole.scores.tasks)
    table_2 = cells(edit(chain, whole, tasks, folder / "table_2", n_random), tasks)
    table_3: dict[str, dict[str, Any]] = {ABLATE: {}, AMPLIFY: {}}
    sizes = {}
    for task in tasks:
        others = [name for name in tasks if name != task]
        try:
            if not others:
                raise SelectionError("No other task selects.")
            without = select(chain, rule, ranking, others, folder / f"select_without_{task}")
            found = cells(edit(chain, without, [task], folder / f"table_3_{task}", n_random), [task])
        except SelectionError as error:
            found = {text: {task: {"reason": str(error)}} for text in (ABLATE, AMPLIFY)}
            sizes[task] = 0
        else:
            sizes[task] = len(without.features)
        for text in (ABLATE, AMPLIFY):
            table_3[text] |= found[text]
    return {
        "rule": rule,
        "ranking": ranking,
        "features": list(whole.features),
        "tasks": tasks,
        "n_features_without": sizes,
        "table_2": table_2,
        "table_3": table_3,
    }


def percent(item: Sequence[Any], sign: int) -> str:
    """``[value, low, high, n]`` as ``-46 [-60, -33] of 40``."""
    if item[0] is None or item[0] != item[0]:
        return "no sample to flip"
    low, high = sorted(sign * end for end in item[1:3])
    return f"{points(sign * item[0])} [{points(low)}, {points(high)}] of {int(item[3])}"


def points(share: float) -> str:
    """A share as a signed integer percentage; 0 has no sign."""
    rounded = round(100 * share)
    return f"{rounded:+d}" if rounded else "0"


def cell_text(cell: Mapping[str, Any], sign: int) -> str:
    """One cell: flips with their denominator, the mean of the random sets, and the flips of the gained samples."""
    if "reason" in cell:
        return f"no set: {cell['reason']}"
    random = "-" if cell["random_mean"] is None else points(sign * cell["random_mean"])
    return f"{percent(cell['flips'], sign)}; random {random}; of gained {percent(cell['of_gained'], sign)}"


def table(rows: Mapping[str, Sequence[str]], columns: Sequence[str]) -> list[str]:
    """A Markdown table."""
    lines = ["| | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    return lines + [f"| {label} | " + " | ".join(cells) + " |" for label, cells in rows.items()]


def lines_of(found: Sequence[Mapping[str, Any]], pair: Sequence[str]) -> list[str]:
    """The page: both tables of the lab, each followed by the paper's table."""
    base, tuned = pair
    names = {
        "table_2": "Table 2: tasks that select the features",
        "table_3": "Table 3: unseen tasks, each left out of the selection",
    }
    lines = ["# Conditional flips, % (arXiv 2604.25011, tables 2 and 3)"]
    for key, title in names.items():
        lines += ["", f"## {title}", ""]
        measured_sets = [one for one in found if key in one]
        for one in measured_sets:
            rows = {}
            for text, host, sign in ((ABLATE, tuned, -1), (AMPLIFY, base, 1)):
                counts = one["n_features_without"]
                n = (
                    f"{len(one['features'])}"
                    if key == "table_2"
                    else ", ".join(str(counts[task]) for task in one["tasks"])
                )
                label = f"{text} in {host}: {one['rule']} by {one['ranking']} ({n} features)"
                rows[label] = [cell_text(one[key][text][task], sign) for task in one["tasks"]]
            lines += [*table(rows, one["tasks"]), ""]
        lines += [f"{one['rule']} by {one['ranking']}: no set: {one['reason']}" for one in found if "reason" in one]
        paper = PAPER[key]
        rows = {label: [f"{value:+.1f}" for value in values] for label, values in paper["rows"].items()}
        lines += ["", "The paper:", "", *table(rows, paper["tasks"])]
    return [*lines, "", *(f"- {note}" for note in NOTES)]


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Options of the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/lab"), help="Run folder; made if it is not finished.")
    parser.add_argument(
        "--config",
        type=Path,
        default=Path("artifacts/lab/shared-marker/run.toml"),
        help="Configuration of a run that is made here.",
    )
    parser.add_argument("--out", type=Path, default=Path("runs/paper_a/intervene"))
    parser.add_argument("--sets", nargs="+", default=["agnostic:score", "top50:joint"], metavar="RULE:RANKING")
    parser.add_argument("--n-random", type=int, default=20, help="Matched random sets for every edit.")
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="SECTION.KEY=VALUE", help="Override settings of the run."
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, and write ``tables.md`` and ``tables.json``."""
    given = arguments(argv)
    try:
        chain = finished_run(given.run, given.config, given.set)
        found = [measured(chain, *split_set(text), given.out, given.n_random) for text in given.sets]
    except mp.MechprobeError as error:
        print(f"intervene: {error}", file=sys.stderr)
        return 2
    lines = lines_of(found, [chain.config.base, chain.config.tuned])
    write_json(given.out / "tables.json", {"lab": found, "paper": PAPER, "notes": list(NOTES)})
    write_text(given.out / "tables.md", "\n".join(lines) + "\n")
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
