"""Intervals of RelIE: samples drawn again by hand, planted effects covered, no interval from a single look, equal bytes."""

import warnings

import numpy as np
import pandas as pd
import pytest

from mechprobe.emergence.arms import Arm
from mechprobe.emergence.causal import causal_course
from mechprobe.files import dump_json
from mechprobe.selection.rankings.indirect_effects import indirect_effects
from mechprobe.selection.rankings.relie import (
    IndirectEffects,
    drawn_effects,
    group_draws,
    relative_effects,
    relie_intervals,
)
from tests.selection.test_relie import SITE, TinyModel, samples, tiny_crosscoder

GROUPS = ("a", "b", "a")
ARM = Arm("rl", ("rl@step_000001", "rl"), (0.0, 0.5, 1.0), "steps")
DRAWS = 100


def made(by_group: np.ndarray, models: tuple[str, ...] | None = None) -> IndirectEffects:
    """Indirect effects that are given outright, one sample a group."""
    n, _, n_models = by_group.shape
    names = models or tuple(f"m{index}" for index in range(n_models))
    nothing = np.zeros(n_models)
    return IndirectEffects(names, nothing, nothing, nothing + 1, n, by_group)


def random_effects(seed: int, n: int = 12, d_sae: int = 30) -> tuple[np.ndarray, np.ndarray]:
    """``(effects [sample d_sae model], NRN [d_sae checkpoint])`` of base and two checkpoints, most of them 0."""
    rng = np.random.default_rng(seed)
    effects = rng.normal(1.0, 0.7, size=(n, d_sae, 3)) * (rng.random((n, d_sae, 1)) < 0.4)
    effects[:, 0] = 0.0  # never fires
    effects[:, 1] = np.where(np.arange(n)[:, None] == 0, 1.0, 0.0)  # in one sample alone
    return effects, rng.random((d_sae, 2))


def frame_of(nrn: np.ndarray) -> pd.DataFrame:
    return pd.DataFrame({f"nrn_{name}": nrn[:, column] for column, name in enumerate(ARM.checkpoints)})


# --- samples drawn again, and measured again ----------------------------------------------------------------------


def test_a_draw_is_what_the_drawn_samples_give_when_they_are_measured_again() -> None:
    crosscoder, models = tiny_crosscoder(2), {f"m{index}": TinyModel(index) for index in range(2)}
    found = indirect_effects(crosscoder, models, SITE, samples(), steps=2, batch_size=2, groups=GROUPS)
    assert (found.n_samples, found.n_groups) == (3, 2)
    alone = indirect_effects(crosscoder, models, SITE, samples(), steps=2, batch_size=2)
    np.testing.assert_allclose(alone.effect, found.effect, rtol=1e-12)
    weights = group_draws(2, 4, seed=1)
    assert len({tuple(row) for row in weights}) > 1
    for weight, sums in zip(weights, drawn_effects(found, weights), strict=True):
        drawn = [
            sample
            for name, times in zip("ab", weight.astype(int), strict=True)
            for _ in range(times)
            for sample, group in zip(samples(), GROUPS, strict=True)
            if group == name
        ]
        again = indirect_effects(crosscoder, models, SITE, drawn, steps=2, batch_size=5)
        np.testing.assert_allclose(relative_effects(sums), again.relie, rtol=1e-6, atol=1e-12)


def test_a_naive_bootstrap_gives_the_same_ends() -> None:
    effects, _ = random_effects(0)
    n, d_sae, n_models = effects.shape
    weights = group_draws(n, 60, seed=5)
    found = relie_intervals(made(effects), weights)
    for k in range(d_sae):
        assert found.n_groups[k] == sum(bool(row.any()) for row in effects[:, k])
        for model in range(n_models):
            draws = []
            for weight in weights:
                rows = np.repeat(np.arange(n), weight.astype(int))
                size = [abs(sum(float(effects[row, k, m]) for row in rows) / len(rows)) for m in range(n_models)]
                if sum(size) > 0:
                    draws.append(size[model] / sum(size))
            wanted = np.quantile(draws, [0.025, 0.975]) if found.n_groups[k] >= 2 else [np.nan, np.nan]
            np.testing.assert_allclose([found.low[k, model], found.high[k, model]], wanted, rtol=1e-6)
    assert found.n_groups[:2].tolist() == [0, 1]


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    effects = made(random_effects(1)[0])
    weights = group_draws(effects.n_groups, 50, seed=0)
    whole, drawn = relie_intervals(effects, weights), list(drawn_effects(effects, weights))
    monkeypatch.setattr("mechprobe.selection.rankings.relie._BLOCK", 7)
    parts = relie_intervals(effects, weights)
    np.testing.assert_allclose(parts.low, whole.low, rtol=1e-12)
    np.testing.assert_allclose(parts.high, whole.high, rtol=1e-12)
    np.testing.assert_allclose(list(drawn_effects(effects, weights)), drawn, rtol=1e-12)


def test_a_naive_bootstrap_gives_the_same_summaries() -> None:
    effects, nrn = random_effects(2)
    weights = group_draws(len(effects), DRAWS, seed=3)
    found = causal_course(ARM, frame_of(nrn), made(effects, ("base", *ARM.checkpoints)), weights)

    def naive(rows: np.ndarray, column: int) -> tuple[float, float]:
        base, own = (np.abs([effects[rows, k, m].mean() for k in range(effects.shape[1])]) for m in (0, column))
        strength = base + own
        used = [k for k in range(len(base)) if strength[k] > 0]
        used = [k for k in used if strength[k] >= np.median(strength[used])]
        ranks = [
            np.argsort(np.argsort(values)) for values in (nrn[used, column - 1], [own[k] / strength[k] for k in used])
        ]
        return float(np.abs(own - base).sum() / strength.sum()), float(np.corrcoef(*ranks)[0, 1])

    for column in (1, 2):
        value = naive(np.arange(len(effects)), column)
        draws = np.array([naive(np.repeat(np.arange(len(effects)), w.astype(int)), column) for w in weights])
        ends = np.quantile(draws, [0.025, 0.975], axis=0)
        for row, cells in enumerate((found.departure, found.rank_correlation)):
            np.testing.assert_allclose(cells[column - 1], [value[row], *ends[:, row], len(effects)], rtol=1e-6)
        bias = [found.departure_bias[column - 1], found.rank_correlation_bias[column - 1]]
        np.testing.assert_allclose(bias, draws.mean(axis=0) - value, rtol=1e-6, atol=1e-12)
    assert (found.n_groups, found.draws) == (len(effects), DRAWS)


# --- planted ------------------------------------------------------------------------------------------------------


def test_the_interval_covers_a_planted_share() -> None:
    """400 features of known RelIE, with effects clear of 0: nominal 95 %, a percentile interval of 60 samples has a little less."""
    rng = np.random.default_rng(0)
    truth = rng.uniform(0.3, 3.0, size=(400, 2)) * rng.choice([-1.0, 1.0], size=(400, 2))
    common, own = rng.normal(size=(60, 400, 1)), rng.normal(size=(60, 400, 2))
    found = relie_intervals(made(truth * (1 + common + 0.5 * own)), group_draws(60, 400, seed=1))
    share = relative_effects(truth)
    covered = ((found.low <= share) & (share <= found.high)).mean()
    assert 0.9 <= covered <= 0.98
    assert (found.high - found.low).max() < 0.5  # not by being all of [0, 1]


def test_more_samples_make_a_smaller_interval() -> None:
    rng = np.random.default_rng(1)
    widths = []
    for n in (20, 320):
        found = relie_intervals(made(1 + 0.5 * rng.normal(size=(n, 50, 2))), group_draws(n, 200, seed=0))
        widths.append(float((found.high - found.low).mean()))
    assert widths[1] == pytest.approx(widths[0] / 4, rel=0.2)


# --- a single look ------------------------------------------------------------------------------------------------


def test_one_sample_has_no_interval_and_says_so() -> None:
    effects, nrn = random_effects(3, n=1)
    one = made(effects, ("base", *ARM.checkpoints))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        weights = group_draws(1, 100, seed=0)
        found = relie_intervals(one, weights)
        course = causal_course(ARM, frame_of(nrn), one, weights)
    assert np.isnan(found.low).all()
    assert np.isnan(found.high).all()
    assert all(np.isfinite(cell.value) and np.isnan([cell.low, cell.high]).all() for cell in course.departure)
    assert (course.draws, course.departure[0].n) == (0, 1)
    assert "no interval" in course.interval_note
    assert "one prompt" in course.interval_note


def test_samples_of_one_prompt_are_one_look() -> None:
    crosscoder, models = tiny_crosscoder(2), {f"m{index}": TinyModel(index) for index in range(2)}
    found = indirect_effects(crosscoder, models, SITE, samples(), steps=1, groups=("p", "p", "p"))
    assert np.isnan(relie_intervals(found, group_draws(found.n_groups, 100, seed=0)).low).all()
    with pytest.raises(ValueError, match="2 names of groups for 3 samples"):
        indirect_effects(crosscoder, models, SITE, samples(), steps=1, groups=("p", "q"))


def test_a_feature_of_one_sample_has_no_interval() -> None:
    effects = made(random_effects(4)[0])
    found = relie_intervals(effects, group_draws(effects.n_groups, 100, seed=0))
    assert np.isfinite(effects.relie[1]).all()
    assert np.isnan(found.low[1]).all()
    several = found.n_groups >= 2
    assert several.sum() > 20
    assert np.isfinite(found.low[several]).all()
    assert (found.low[several] <= found.high[several]).all()


def test_equal_seeds_give_equal_bytes_and_others_do_not() -> None:
    effects, nrn = random_effects(5)
    one, two, other = (
        dump_json(vars(causal_course(ARM, frame_of(nrn), made(effects, ("base", *ARM.checkpoints)), weights)))
        for weights in (group_draws(12, DRAWS, seed) for seed in (3, 3, 4))
    )
    assert one == two != other
    first, second = (relie_intervals(made(effects), group_draws(12, 100, seed=9)) for _ in range(2))
    assert first.low.tobytes() == second.low.tobytes()
    assert first.high.tobytes() == second.high.tobytes()
