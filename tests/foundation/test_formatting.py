"""Numbers as text."""

import pytest

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
    assert formatting.nats([0.01234, 0.01, 0.015, 900]) == "0.0123 (0.01 to 0.015)"
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
