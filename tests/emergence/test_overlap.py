"""Overlaps of the sets of highest NRN by hand, and their spread over seeds."""

import numpy as np

from mechprobe.emergence.overlap import chance_overlap, churn, jaccard_matrix, over_seeds, overlap_matrix, top_sets


def test_overlaps_by_hand() -> None:
    sets = [[1, 2, 3, 4], [3, 4, 5, 6], [3, 4, 5, 6]]
    assert overlap_matrix(sets, 4).tolist() == [[1.0, 0.5, 0.5], [0.5, 1.0, 1.0], [0.5, 1.0, 1.0]]
    assert jaccard_matrix(sets)[0].tolist() == [1.0, 2 / 6, 2 / 6]
    assert churn(sets, 4) == [0.5, 0.0]
    assert chance_overlap(50, 400) == 0.125
    values = np.array([[0.9, 0.1], [0.8, 0.9], [0.7, 0.8], [np.nan, 1.0]])
    assert top_sets(values, np.array([True, True, True, True]), 2) == [[0, 1], [1, 2]]
    assert top_sets(values, np.array([False, True, True, True]), 2) == [[1, 2], [1, 2]]


def test_seeds_spread_by_hand_and_one_seed_has_no_interval() -> None:
    found = over_seeds([[[1.0, 0.5], [0.5, 1.0]], [[1.0, 0.8], [0.8, 1.0]], [[1.0, 0.2], [0.2, 1.0]]])
    assert found.at(0, 1) == (0.5, 0.2, 0.8, 3)
    assert found.at(1, 1) == (1.0, 1.0, 1.0, 3)  # the same for every seed
    one = over_seeds([[0.25]]).at(0)
    assert (one.value, one.n) == (0.25, 1)
    assert np.isnan([one.low, one.high]).all()
