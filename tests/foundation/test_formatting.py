"""Numbers as text."""

import pytest
from hypothesis import given, strategies as st

from mechprobe import formatting


def test_numbers_have_a_fixed_form() -> None:
    assert (formatting.decimal(0.5), formatting.decimal(0.98765, 3)) == ("0.50", "0.988")
    shares = (
        formatting.percent(0.834),
        formatting.percent(None),
        formatting.percent(0.834, 1),
        formatting.percent(-0.001),
    )
    assert shares == ("83", "–", "83.4", "0")
    assert (formatting.points(0.104), formatting.points(-0.001)) == ("+10", "0")


def test_intervals_have_a_form_for_each_place() -> None:
    assert formatting.interval([0.83, 0.75, 0.89, 64]) == "83 (75 to 89)"
    assert formatting.interval([0.1, -0.02, 0.2, 64], signed=True) == "+10 (-2 to +20)"
    assert formatting.bracketed([0.54, 0.42, 0.66, 64]) == "54 [42, 66]"
    assert formatting.nats([0.01234, 0.01, 0.015, 900]) == "0.0123 (0.0100 to 0.0150)"
    assert formatting.spread([0.0, 0.1, -0.05]) == "0 [-5, +10]"


def test_words_are_listed_as_in_a_sentence() -> None:
    assert (formatting.listing(["a", "b", "c"]), formatting.listing(["a"])) == ("a, b and c", "a")


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


def test_numbers_that_differ_look_different() -> None:
    assert formatting.told_apart(0.017912, 0.017938) == ("0.01791", "0.01794")
    assert formatting.told_apart(0.5, 2.0) == ("0.5", "2")
    assert formatting.told_apart(1.0, 1.0) == ("1", "1")
    assert len(set(formatting.told_apart(0.1, 0.1 + 1e-12))) == 2


@pytest.mark.parametrize(
    ("item", "text"),
    [
        ([0.988, 0.9852, 0.9911], "0.988 [0.985, 0.991]"),
        ([0.999, 0.9985, 0.9995], "0.9990 [0.9985, 0.9995]"),
        ([0.898, 0.8951, 0.9012], "0.898 [0.895, 0.901]"),
        ([12345, 12000, 12700], "12345 [12000, 12700]"),
        ([1e-5, 9e-6, 1.2e-5], "1.00e-05 [9.00e-06, 1.20e-05]"),
        ([0.1, -0.0001, 0.2], "0.100 [0.000, 0.200]"),
        ([0.5, None, None], "0.500"),
        ([1.0, 1.0, 1.0], "1.00 [1.00, 1.00]"),
    ],
)
def test_a_number_and_its_ends_have_the_same_decimals(item: list[float | None], text: str) -> None:
    assert formatting.estimate(item) == text


def test_ends_are_told_from_the_number_in_every_form() -> None:
    assert formatting.bracketed([0.992, 0.986, 0.994]) == "99.2 [98.6, 99.4]"
    assert formatting.interval([0.004, 0.001, 0.006], signed=True) == "+0.4 (+0.1 to +0.6)"
    assert formatting.estimate([0.001, 0.0, 0.3], decimals=2) == "0.001 [0.000, 0.300]"
    assert formatting.estimate([87.2, 80.1, 94.0], decimals=0, unit=" %") == "87 % [80, 94]"
    assert formatting.same_decimals(0.0, 0.0, 0.0) == ("0", "0", "0")


@given(st.floats(-1e9, 1e9), st.floats(0, 1e6), st.floats(0, 1e6))
def test_texts_of_an_interval_keep_its_order(value: float, below: float, above: float) -> None:
    texts = formatting.same_decimals(value, value - below, value + above)
    shown = [float(text) for text in texts]
    assert shown[1] <= shown[0] <= shown[2]
    if "e" not in "".join(texts):
        assert len({len(text.partition(".")[2]) for text in texts}) == 1
