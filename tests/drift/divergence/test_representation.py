"""PCA shift and CKA against planted shifts, rotations and numpy."""

import numpy as np
import pytest

from mechprobe.drift.divergence.representation import layer_shift


def residuals(n: int = 200, d: int = 12, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, d)) * np.linspace(4, 0.5, d) + 3.0


CLUSTER = np.arange(200) // 10


def test_a_planted_shift_along_the_first_component() -> None:
    base = residuals()
    _, values, vectors = np.linalg.svd(base - base.mean(0), full_matrices=False)
    direction = vectors[0] * np.sign(vectors[0][np.abs(vectors[0]).argmax()])
    found = layer_shift(base, base + 2.5 * direction, CLUSTER, draws=200, seed=0)
    spread = values[0] / np.sqrt(200)
    assert found.values["pc1_shift"].value == pytest.approx(2.5 / spread)
    assert found.values["pc1_shift"].low == pytest.approx(2.5 / spread)  # the same at every position
    assert found.values["pc2_shift"].value == pytest.approx(0.0, abs=1e-9)
    assert found.explained[0] == pytest.approx(values[0] ** 2 / (values**2).sum())
    assert found.values["distance"].value == pytest.approx(2.5 / np.sqrt((values**2).sum() / 200))
    assert found.values["cka"].value == pytest.approx(1.0)  # it ignores a shift


def test_the_basis_is_of_base_alone_and_equal_models_do_not_move() -> None:
    base = residuals()
    found = layer_shift(base, base.copy(), CLUSTER, draws=100, seed=0)
    assert [found.values[name].value for name in ("pc1_shift", "pc2_shift", "distance")] == [0.0] * 3
    assert found.values["cka"].value == pytest.approx(1.0)
    wide = base.copy()
    wide[:, -1] *= 1e4  # base does not vary so
    assert layer_shift(base, wide, CLUSTER, draws=100, seed=0).explained == found.explained


def test_cka_against_the_formula() -> None:
    base, tuned = residuals(), residuals(seed=1) + 0.5 * residuals()
    x, y = base - base.mean(0), tuned - tuned.mean(0)
    expected = np.linalg.norm(y.T @ x) ** 2 / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y))
    found = layer_shift(base, tuned, CLUSTER, draws=200, seed=0).values["cka"]
    assert found.value == pytest.approx(expected)
    assert found.low < expected < found.high
    rotation = np.linalg.qr(np.random.default_rng(2).normal(size=(12, 12)))[0]
    assert layer_shift(base, 7 * base @ rotation + 1, CLUSTER, draws=100, seed=0).values["cka"].value == pytest.approx(
        1.0
    )


def test_a_bootstrap_draw_equals_cka_of_the_repeated_positions() -> None:
    from mechprobe.drift.divergence.representation import _cka, _gram

    base, tuned = residuals(20), residuals(20, seed=1)
    weights = np.random.default_rng(0).integers(0, 3, 20)
    repeated = [np.repeat(part, weights, axis=0) for part in (base, tuned)]
    x, y = (part - part.mean(0) for part in repeated)
    expected = np.linalg.norm(y.T @ x) ** 2 / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y))
    assert _cka(_gram(base), _gram(tuned), weights[None].astype(float))[0] == pytest.approx(expected)


def test_unbiased_cka_of_unrelated_residuals_is_near_zero() -> None:
    wide, other = (np.random.default_rng(seed).normal(size=(60, 400)) for seed in (0, 1))
    found = layer_shift(wide, other, np.arange(60), draws=100, seed=0).values
    assert found["cka"].value > 0.5  # inflated where width exceeds positions
    assert abs(found["cka_unbiased"].value) < 0.1


def test_other_widths_have_cka_and_no_pca() -> None:
    base = residuals()
    found = layer_shift(base, np.concatenate([base, base], axis=1), CLUSTER, draws=100, seed=0)
    assert set(found.values) == {"cka", "cka_unbiased"}
    assert found.values["cka"].value == pytest.approx(1.0)


def test_one_sequence_has_no_interval() -> None:
    found = layer_shift(residuals(), residuals(seed=1), np.zeros(200, dtype=int), draws=100, seed=0)
    assert all(np.isnan(value.low) for value in found.values.values())
