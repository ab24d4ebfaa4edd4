"""Time to make items of the atomic-skill benchmark: 20,000 over all cells and levels, in both renderings.

    python -m benchmarks.skills [--n 20000]

Prints the seconds of every family and in all; writes nothing.
"""

import argparse
import time

from mechprobe.evals.skills import FAMILIES, generate
from mechprobe.evals.skills.family import LEVELS
from mechprobe.evals.skills.registry import CHAT, COMPACT


def main() -> None:
    """Make the items family by family."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--n", type=int, default=20_000, help="Items in all, over families, levels and both renderings."
    )
    n = -(-parser.parse_args().n // (len(FAMILIES) * len(LEVELS) * 2))
    n_made, total = 0, 0.0
    for family in FAMILIES.values():
        start, made = time.perf_counter(), 0
        for level in LEVELS:
            wanted = min(n, family.capacity(level) or n)
            for rendering in (COMPACT, CHAT):
                made += len(
                    generate(
                        family.skill, domain=family.domain, family=family.name, level=level, n=wanted, seed=0,
                        rendering=rendering,
                    )
                )  # fmt: skip
        seconds = time.perf_counter() - start
        print(f"{family.name:<24} {made:>6,} items  {seconds:6.2f} s  {1e3 * seconds / made:6.2f} ms an item")
        n_made, total = n_made + made, total + seconds
    print(f"\n{n_made:,} items in {total:.1f} s: 20,000 in {20_000 * total / n_made:.1f} s")


if __name__ == "__main__":
    main()
