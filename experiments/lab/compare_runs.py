"""Compare the results of two runs: every value of their JSON files, and every number in their sentences.

``python experiments/lab/compare_runs.py runs/before runs/after`` prints each difference and exits with 1 where a value differs. Sentences
may differ in wording as long as their numbers are the same; such sentences are counted.
"""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FILES = (
    "report/report.json",
    "localize/ceilings.json",
    "crosscoder/metrics.json",
    "features/summary.json",
    "features/quality.json",
    "evals/summary.json",
    "selection/selection.json",
    "interventions/results.json",
)
_NUMBER = re.compile(r"-?\d+(?:[.,]\d+)*(?:e-?\d+)?")
_VOLATILE = {"seconds", "git_commit", "commit", "digest"}
"""Keys whose values change from run to run."""


def leaves(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """Every value of a JSON document with its place, as ``conditions.3.accuracy.pooled.0``."""
    if isinstance(value, dict):
        for key, item in value.items():
            if key not in _VOLATILE:
                yield from leaves(item, f"{place}.{key}" if place else key)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from leaves(item, f"{place}.{index}")
    else:
        yield place, value


def same(old: Any, new: Any) -> bool:
    """Whether two values agree; text agrees where its numbers do."""
    if isinstance(old, str) and isinstance(new, str):
        return sorted(_NUMBER.findall(old)) == sorted(_NUMBER.findall(new))
    return type(old) is type(new) and old == new


def compare(before: Path, after: Path) -> tuple[list[str], int, int]:
    """Differences of one file, how many values were compared, and how many sentences differ in wording alone."""
    old, new = (dict(leaves(json.loads(path.read_text(encoding="utf-8")))) for path in (before, after))
    found = [f"{place}: only in {'the first' if place in old else 'the second'}" for place in old.keys() ^ new.keys()]
    shared = [place for place in old if place in new]
    found += [f"{place}: {old[place]!r} -> {new[place]!r}" for place in shared if not same(old[place], new[place])]
    reworded = sum(same(old[place], new[place]) and old[place] != new[place] for place in shared)
    return sorted(found), len(shared), reworded


def main() -> int:
    """Compare two run folders."""
    before, after = map(Path, sys.argv[1:3])
    n_different = 0
    for name in FILES:
        found, n, reworded = compare(before / name, after / name)
        n_different += len(found)
        print(
            f"{name}: {n:,} values, {len(found)} differences, {reworded} sentences with other words and the same numbers"
        )
        for line in found:
            print(f"  {line[:400]}")
    return int(n_different > 0)


if __name__ == "__main__":
    sys.exit(main())
