"""Check the claims about a run on the embedded lab, using only the files of the run folder."""

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

MIN_FVE = 0.90
MIN_RANDOM_SETS = 20


def read(path: Path) -> Any:
    """Parse a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def difference_in_se(first: list[float], second: list[float]) -> float:
    """(p1 − p2) / √(p1 q1 / n1 + p2 q2 / n2) for two cells ``[accuracy, low, high, n]``."""
    variance = sum(p * (1 - p) / n for p, _, _, n in (first, second))
    return (first[0] - second[0]) / math.sqrt(variance) if variance else math.inf * (first[0] - second[0])


def behaviour(run: Path, trained: set[str]) -> list[tuple[bool, str]]:
    """RL exceeds base by more than 3 SE on at least two untrained skills, and SFT is below base on at least one."""
    accuracy = read(run / "evals" / "summary.json")["accuracy"]
    skills = [task for task in accuracy["base"] if task not in trained]
    up = {task: difference_in_se(accuracy["rl"][task], accuracy["base"][task]) for task in skills}
    down = {task: difference_in_se(accuracy["sft"][task], accuracy["base"][task]) for task in skills}
    return [
        (
            sum(value > 3 for value in up.values()) >= 2,
            "rl - base in SE, untrained skills: " + ", ".join(f"{task} {value:+.1f}" for task, value in up.items()),
        ),
        (
            any(value < -3 for value in down.values()),
            "sft - base in SE, untrained skills: " + ", ".join(f"{task} {value:+.1f}" for task, value in down.items()),
        ),
    ]


def dictionary(run: Path) -> list[tuple[bool, str]]:
    """FVE of every model on held-out tokens is high, and L0, dead fraction and CE recovered are reported."""
    models = read(run / "features" / "quality.json")["models"]
    rows = []
    for name, quality in models.items():
        complete = all(isinstance(quality.get(key), int | float) for key in ("l0", "dead_share", "ce_recovered"))
        text = ", ".join(
            f"{key} {quality[key]:.3f}" for key in ("fve", "l0", "dead_share", "ce_recovered") if key in quality
        )
        rows.append((quality["fve"] >= MIN_FVE and complete, f"crosscoder on held-out tokens, {name}: {text}"))
    return rows


def interventions(run: Path) -> list[tuple[bool, str]]:
    """Every control of the selected set is reported, with n."""
    data = read(run / "interventions" / "results.json")
    rows = data["conditions"]
    mains = [row for row in rows if row["set_kind"] == "selected"]
    result = []
    for main in mains:
        same = [row for row in rows if (row["model"], row["edit"]) == (main["model"], main["edit"])]
        n_random = sum(row["set_kind"] == "random" for row in same)
        n_equal = sum(row["set_kind"] == "shuffled" for row in same)
        pooled = main["accuracy_delta"]["pooled"]
        result.append(
            (
                n_random >= MIN_RANDOM_SETS and n_equal > 0 and pooled[3] > 0,
                f"{main['name']}: {n_random} random sets, {n_equal} of equal norm, n = {pooled[3]}",
            )
        )
        collateral = main.get("collateral")
        kl = f"{collateral['kl'][0]:.3g} nats per token, n = {collateral['kl'][3]}" if collateral else "not measured"
        result.append((collateral is not None, f"{main['name']}: collateral {kl}"))
    kinds = {(row["model"], row["set_kind"]) for row in rows}
    for model in data["pair"]:
        for kind in ("clean", "recon", "opposite", "ceiling"):
            result.append(((model, kind) in kinds, f"{model}: condition '{kind}' is reported"))
    return result


def main() -> int:
    """Print every check, and return 1 if one fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", nargs="?", type=Path, default=Path("runs/lab"), help="a finished run folder")
    run = parser.parse_args().run
    trained = set(read(run / "interventions" / "results.json")["trained"])
    checks = behaviour(run, trained) + dictionary(run) + interventions(run)
    page = run / "report" / "index.html"
    checks.append((page.is_file() and page.stat().st_size > 10_000, f"report: {page}"))
    for holds, text in checks:
        print(("holds  " if holds else "FAILS  ") + text)
    print("\nA result, not a check: " + read(run / "interventions" / "results.json")["verdict"])
    return int(not all(holds for holds, _ in checks))


if __name__ == "__main__":
    sys.exit(main())
