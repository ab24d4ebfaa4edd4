"""Numbers as text."""

import doctest

import pytest

from mechprobe import formatting


def test_the_examples_in_the_docstrings_hold() -> None:
    assert doctest.testmod(formatting).failed == 0


@pytest.mark.parametrize(("value", "text"), [(0.0004, "< 0.001"), (0.0476, "0.048"), (None, "–"), (1.0, "1")])
def test_p_values(value: float | None, text: str) -> None:
    assert formatting.p_value(value) == text


def test_missing_numbers_are_dashes() -> None:
    for form in (formatting.interval, formatting.bracketed, formatting.nats):
        assert form(None) == form([None, None, None, 0]) == form([float("nan")] * 3) == "–"
    assert formatting.spread([float("nan")]) == "–"
    assert formatting.points(None) == formatting.decimal(None) == "–"


def test_an_interval_without_bounds_is_the_value_alone() -> None:
    assert formatting.interval([0.5]) == "50"
    assert formatting.interval([0.5, None, None], signed=True) == "+50"
