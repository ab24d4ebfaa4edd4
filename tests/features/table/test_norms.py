"""Shares of decoder norms against values computed by hand."""

import doctest

import numpy as np
import pytest

from mechprobe.features.table import norms
from mechprobe.features.table.classes import class_counts, class_name


def test_the_examples_in_the_docstrings_hold() -> None:
    assert doctest.testmod(norms).failed == 0


def test_mas_sums_to_one_and_is_a_third_when_equal() -> None:
    shares = norms.mas(np.array([[2.0, 2.0, 2.0], [1.0, 2.0, 7.0]]))
    np.testing.assert_allclose(shares, [[1 / 3] * 3, [0.1, 0.2, 0.7]])
    np.testing.assert_allclose(shares.sum(1), 1)


def test_nrn_by_hand_and_nan_where_nothing_is() -> None:
    values = norms.nrn(np.array([[1.0, 3.0], [3.0, 1.0], [0.0, 2.0], [0.0, 0.0]]), tuned=1)
    np.testing.assert_allclose(values[:3], [0.75, 0.25, 1.0])
    assert np.isnan(values[3])


def test_a_model_has_a_feature_from_half_of_the_largest_norm_on() -> None:
    has = norms.present(np.array([[1.0, 0.5, 0.49], [0.0, 0.0, 2.0]]), 0.5)
    assert has.tolist() == [[True, True, False], [False, False, True]]


def test_decoder_shift_is_in_the_models_own_units() -> None:
    decoder = np.array([[[3.0, 0.0], [0.0, 2.0]]])
    # base 1·(3, 0); tuned 2·(0, 2) = (0, 4); distance √(9 + 16) = 5
    np.testing.assert_allclose(norms.decoder_shift(decoder, np.array([1.0, 2.0]), tuned=1), [5.0])


@pytest.mark.parametrize(
    ("has", "name"), [((1, 1, 1), "shared"), ((1, 0, 0), "base-only"), ((0, 1, 1), "sft+rl"), ((0, 0, 1), "rl-only")]
)
def test_class_names(has: tuple[int, ...], name: str) -> None:
    assert class_name(["base", "sft", "rl"], [bool(flag) for flag in has]) == name


def test_counts_list_every_common_class() -> None:
    counts = class_counts(["shared", "dead", "shared", "sft+rl"], ["base", "sft", "rl"])
    expected = {
        "shared": 2, "base-only": 0, "sft-only": 0, "rl-only": 0, "sft+rl": 1, "unconfirmed": 0, "dead": 1
    }  # fmt: skip
    assert counts == expected
    assert list(counts) == list(expected)
