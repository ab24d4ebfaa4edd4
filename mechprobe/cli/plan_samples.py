"""``mechprobe plan-samples``."""

from typing import Annotated

import typer

Effect = Annotated[float, typer.Option("--effect", help="Expected change of accuracy, in points.")]
OneWay = Annotated[
    float, typer.Option("--one-way", help="Share of the changed samples that change in the direction of the effect.")
]
Tests = Annotated[
    int, typer.Option("--tests", min=1, help="Tests over which p is Holm-adjusted, such as the main edits of a run.")
]
Power = Annotated[float, typer.Option("--power", help="Probability of finding the effect.")]
Alpha = Annotated[float, typer.Option("--alpha", help="Level of the test.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def plan_samples(
    effect: Effect,
    one_way: OneWay = 0.9,
    tests: Tests = 4,
    power: Power = 0.8,
    alpha: Alpha = 0.05,
    as_json: AsJson = False,
) -> None:
    """Say how many samples it takes to find an effect of an edit. Needs no run; nothing is written.

    The samples are those of the row that is judged: of one task, or of all untrained tasks together.
    """
    from mechprobe.cli.printing import say, say_json
    from mechprobe.errors import ConfigError
    from mechprobe.power import samples_needed, smallest_flips

    if not 0 < alpha < 1:
        raise ConfigError(f"--alpha is {alpha:g}, but a level lies between 0 and 1.")
    n = samples_needed(effect / 100, one_way=one_way, alpha=alpha / tests, target=power)
    flips = smallest_flips(n, alpha / tests)
    if as_json:
        given = {"effect": effect, "one_way": one_way, "tests": tests, "power": power, "alpha": alpha}
        say_json({**given, "n": n, "smallest_flips": flips})
        return
    say(
        f"{n:,} samples find an effect of {effect:g} points with probability {power:.10g}, if {100 * one_way:g} % of the changed "
        f"samples change in its direction (exact McNemar test at level {alpha:g}, Holm-adjusted over {tests})."
    )
    say(
        f"Of {n:,} samples, {flips} that all change one way are the smallest effect that this test can call clear of 0."
    )
