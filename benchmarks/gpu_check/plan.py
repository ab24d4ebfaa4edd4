"""The steps of the check, with the seconds that each may take on one H100-class card and at tiny sizes on two CPU cores."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Step:
    """One step, which runs in its own process.

    Attributes:
        name: Its module in `benchmarks.gpu_check`, which has a function ``run(record)``.
        does: What it does, for the printed plan.
        expected: Seconds that it should take on the card, from counts of operations; a step with less time left is
            skipped.
        limit: Seconds after which it is killed.
        alone: Whether it measures time, so that no other step may run beside it.
    """

    name: str
    does: str
    expected: int
    limit: int
    alone: bool = False


STEPS = (
    Step("kernels", "every Triton kernel against the float64 dense formula", 40, 100),
    Step("steps", "training steps: sparse against dense and float64; waits for the device", 40, 100),
    Step("models", "harvest and edited generation against the CPU in float32, and in bfloat16", 60, 120),
    Step("lab", "the embedded lab end to end; its verdicts against those of a CPU", 150, 210),
    Step("card", "card, driver and versions; rates of a bfloat16 product and of a copy", 20, 40, alone=True),
    Step("training", "training speed and memory against dense and sae-lens; profile of the step", 90, 130, alone=True),
    Step("family", "a 3 x 4B family: harvest, generation under edits, stream training", 140, 300, alone=True),
)
"""Checks of correctness first, side by side; then the steps that measure time, the cheapest first. The last may take all the time that is left."""

BUDGET_S = 480
"""Seconds of the whole check."""
