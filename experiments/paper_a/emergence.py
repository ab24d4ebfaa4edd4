"""Emergence curves of SFT and RL on the embedded lab, with one dictionary over both arms and with one for each.

    python experiments/paper_a/emergence.py --out runs/emergence

Everything is written to ``--out`` and resumed; both layouts share the store. For each layout the script prints the course
of every arm with intervals, and the claim of arXiv 2604.25011 judged by the rule of `mechprobe.emergence.claim`. It does
not expect an outcome.
"""

import argparse
from pathlib import Path

import mechprobe as mp
from mechprobe.emergence.arms import with_checkpoints
from mechprobe.emergence.config import Layout
from mechprobe.report.pages.emergence import emergence_report, sections
from mechprobe.report.pages.markdown import plain_lines, section_lines

STEPS = {"sft": 512, "rl": 60}
"""Optimizer steps of the shipped arms, from artifacts/lab/shared-marker/manifest.json (8 epochs of 2,048 by 32; RL 60)."""


def arguments() -> argparse.Namespace:
    """Options of the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lab", type=Path, default=Path("artifacts/lab/shared-marker"))
    parser.add_argument("--out", type=Path, default=Path("runs/emergence"))
    parser.add_argument("--prompts", type=int, default=1000, help="Prompts; each gets three responses.")
    parser.add_argument("--tokens", type=int, default=300_000, help="Training tokens of each dictionary.")
    parser.add_argument("--seeds", type=int, default=1, help="Seeds of every dictionary.")
    parser.add_argument("--layouts", nargs="+", default=["together", "arms"], choices=["together", "arms"])
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def measured(given: argparse.Namespace, layout: Layout) -> mp.Emergence:
    """Run the stage in one layout; pairwise dictionaries and RelIE are measured with the first layout only."""
    models = with_checkpoints(
        {name: str(given.lab / name) for name in ("base", "sft", "rl")}, given.lab / "checkpoints"
    )
    first = layout == given.layouts[0]
    responses = ("base@1.0", "sft@0.0", "rl@0.0")
    return mp.emergence(
        mp.ModelFamily.load(models),
        given.lab / "prompts.jsonl",
        out=given.out / f"emergence_{layout}",
        work=given.out / "checkpoints",
        config=mp.EmergenceConfig(
            layout=layout, seeds=given.seeds, final_steps=STEPS, pairs=first, relie=first, seed=given.seed
        ),
        cache=mp.CacheConfig(
            sites=("resid_post.2",), responses=responses, max_prompts=given.prompts, max_new_tokens=48,
            generation_batch=512, seed=given.seed,
        ),
        training=mp.TrainSaeConfig(d_sae=1024, k=24, batch_size=1024, n_tokens=given.tokens, lr=3e-3),
    )  # fmt: skip


def main() -> None:
    """Measure, print and draw every layout."""
    given = arguments()
    for layout in given.layouts:
        found = measured(given, layout)
        print(f"\n=== layout {layout} ===")
        lines = [line for section in sections(found) for line in section_lines(section, set())]
        print("\n".join(plain_lines(lines)))
        for name, quality in found.quality.items():
            fve = ", ".join(f"{model} {value:.3f}" for model, value in quality.fve.items())
            print(f"{name}: L0 {quality.l0:.1f}, dead {quality.dead_frac:.2f}, FVE {fve}")
        print(f"report: {emergence_report(found.folder)}")


if __name__ == "__main__":
    main()
