"""The smallest effect that a test can find, and the samples that an effect needs, against direct simulation."""

import json

import numpy as np
import pytest

from mechprobe.cli import main
from mechprobe.errors import ConfigError
from mechprobe.power import power, samples_needed, smallest_flips
from mechprobe.statistics import flips_p, mcnemar_exact


@pytest.mark.parametrize(("alpha", "flips"), [(0.05, 6), (0.05 / 4, 8), (0.05 / 5, 8), (0.001, 11)])
def test_the_fewest_one_way_flips(alpha: float, flips: int) -> None:
    assert smallest_flips(64, alpha) == flips
    assert flips_p(0, flips) <= alpha < flips_p(0, flips - 1)
    assert smallest_flips(flips - 1, alpha) is None


@pytest.mark.parametrize(("n", "effect", "one_way"), [(64, 0.1, 1.0), (64, 0.15, 0.8), (200, 0.05, 0.9)])
def test_power_is_that_of_simulated_runs(n: int, effect: float, one_way: float) -> None:
    rng = np.random.default_rng(0)
    changed = effect / (2 * one_way - 1)
    found = 0
    for _ in range(1500):
        moves, toward = rng.random(n) < changed, rng.random(n) < one_way
        before, after = moves & ~toward, moves & toward
        found += mcnemar_exact(before, after) <= 0.05 and after.sum() > before.sum()
    assert power(n, effect, one_way, 0.05) == pytest.approx(found / 1500, abs=0.04)


@pytest.mark.parametrize("effect", [0.05, 0.1, 0.4])
@pytest.mark.parametrize("alpha", [0.05, 0.0125])
def test_the_samples_needed_reach_the_power(effect: float, alpha: float) -> None:
    n = samples_needed(effect, alpha=alpha)
    assert power(n, effect, 0.9, alpha) >= 0.8 > power(n - 1, effect, 0.9, alpha)


def test_impossible_effects_are_refused() -> None:
    for one_way in (0.5, 0.0, 1.2, float("nan")):
        with pytest.raises(ConfigError, match=r"above 0\.5 and at most 1"):
            samples_needed(0.1, one_way=one_way)
    for effect, one_way in ((0.9, 0.9), (0.0, 0.9), (-0.1, 1.0), (float("nan"), 0.9)):
        with pytest.raises(ConfigError, match="points cannot come from"):
            samples_needed(effect, one_way=one_way)
    with pytest.raises(ConfigError, match="between 0 and 1"):
        samples_needed(0.1, target=1.0)
    with pytest.raises(ConfigError, match="more than 1,000,000"):
        samples_needed(1e-6)


def test_the_command_says_how_many_samples(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan-samples", "--effect", "10"]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"{samples_needed(0.1, alpha=0.05 / 4)} samples find an effect of 10 points")
    assert "Holm-adjusted over 4" in said
    assert main(["plan-samples", "--effect", "10", "--tests", "1", "--one-way", "1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["n"], found["smallest_flips"]) == (samples_needed(0.1, one_way=1.0), 6)
    assert main(["plan-samples", "--effect", "95"]) == 2
    assert "at most at 80 points" in capsys.readouterr().err
