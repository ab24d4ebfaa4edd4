r"""Numbers as data sets and models write them: written in any style and read back, they are the same, with their sign."""

import json
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from mechprobe.errors import InputError
from mechprobe.evals.scorers.numbers import gold_number, last_number, only_number
from mechprobe.evals.scorers.parse import scorer
from mechprobe.evals.tasks import load_tasks

MINUS = "-\u2212\u2010\u2011\u2012\u2013\u2014\ufe63\uff0d"
SEPARATORS = [",", "{,}", "\\,", "\\;", "\\!", ",\\!", "\u2009", "\u202f", "\u00a0", "'", "\u2019", "_", "~"]
WRAPS = [
    "{}", "**{}**", "${}$", "\\({}\\)", "`{}`", "({})", "\\boxed{{{}}}", "{}.", '"{}"', "{}%", "{} \\%", "{} dollars",
    "\\text{{{}}}", "{} km/h", "{}\u00b0C", "{} cm^2", "{} m\u00b2",
]  # fmt: skip
BEFORE = [
    "",
    "The answer is ",
    "Answer: ",
    "x = ",
    "The 3 of them and 4: ",
    "#### ",
    "so it falls to ",
    "5 + 7 \u2260 2, so ",
]


def written(value: Fraction, draw: st.DrawFn) -> str:
    """A number in a style that is drawn."""
    sign = draw(st.sampled_from(MINUS)) if value < 0 else draw(st.sampled_from(["", "", "+"]))
    gap = draw(st.sampled_from(["", "", "\\,"])) if sign else ""
    money = draw(st.sampled_from(["", "", "$", "\\$", "\u20ac", "\u00a3"]))
    size = abs(value)
    if size.denominator != 1 and draw(st.booleans()):
        whole, rest = divmod(size.numerator, size.denominator)
        style = draw(st.sampled_from(["{}/{}", "\\frac{{{}}}{{{}}}", "\\dfrac{{{}}}{{{}}}", "{} / {}"]))
        mixed = whole and draw(st.booleans())
        number = style.format(rest if mixed else size.numerator, size.denominator)
        return f"{sign}{f'{whole} ' if mixed else ''}{number}"
    if size.denominator != 1:
        decimals = size.limit_denominator(10**6)
        return f"{sign}{gap}{money}{decimals.numerator / decimals.denominator}"
    grouped = f"{size.numerator:,}".replace(",", draw(st.sampled_from(["", *SEPARATORS])))
    return f"{sign}{gap}{money}{grouped}"


@st.composite
def numbers(draw: st.DrawFn) -> tuple[str, Fraction]:
    value = draw(st.integers(-(10**12), 10**12) | st.sampled_from([0, 7, -7, 1000, -1200]))
    bottom = draw(st.sampled_from([1, 1, 1, 2, 4, 5, 8]))
    exact = Fraction(value % 100_000, bottom) * (-1 if value < 0 else 1) if bottom > 1 else Fraction(value)
    return written(exact, draw), exact


@given(numbers(), st.sampled_from(WRAPS), st.sampled_from(BEFORE))
def test_a_number_in_any_style_is_read_back_with_its_sign(number: tuple[str, Fraction], wrap: str, before: str) -> None:
    text, value = number
    found = last_number(before + wrap.format(text))
    assert found is not None
    assert found.value == value


@given(numbers(), st.sampled_from(WRAPS))
def test_an_answer_in_any_style_is_one_number(number: tuple[str, Fraction], wrap: str) -> None:
    text, value = number
    for answer in (wrap.format(text), f"Tom had 48 / 2 = 24 left.\n#### {text}"):
        found = gold_number(answer)
        assert found is not None
        assert found.value == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("between 12-15", "15"), ("12\u201315 people", "15"), ("12 - 15", "15"), ("$12$-$15$", "15"), ("5%-7%", "7"),
        ("$12$ - $15$", "15"), ("12 minus 5", "5"), ("x minus 5", "5"), ("it is minus 5", "-5"), ("negative 5", "-5"),
        ("= - 5", "-5"), ("The answer is - 5", "-5"), ("- 5", "-5"), ("Items:\n- 5 apples", "5"), ("GPT-4", "4"),
        ("COVID-19", "19"), ("1,2", "2"), ("1, 200", "200"), ("(3, -4)", "-4"), ("[-3,-4]", "-4"), ("2-(-3)", "-3"),
        ("1,00,000", "100000"), ("1.200.000", "1200000"), ("12/05/2020", "2020"), ("3:30", "30"), ("\u00bd", "1/2"),
        ("2\u00bd", "5/2"), ("-1 1/2", "-3/2"), ("2\\frac{1}{2}", "5/2"), ("\\frac12", "1/2"), ("\\frac{-1}{2}", "-1/2"),
        ("3 \\times 10^5", "300000"), ("3\u00d710\u207b\u00b2", "3/100"), ("1.5e3", "1500"), ("2\u22123", "3"),
        ("10^{5}", "100000"), ("2^10", "1024"), ("x^2 = 9", "9"), ("9 = x_1", "9"), ("25 cm^2", "25"), ("25 km2", "25"),
        ("\uff17\uff12", "72"), ("**72**", "72"), ("-$5", "-5"), ("$-5", "-5"), ("\\$-5", "-5"), ("US$ 5", "5"),
        ("-5\u00b0C", "-5"), ("30^\\circ", "30"), ("{-}5", "-5"), ("answer--5", "5"), ("3!", "3"), ("72.", "72"),
    ],
)  # fmt: skip
def test_the_last_number_by_hand(text: str, value: str) -> None:
    found = last_number(text)
    assert found is not None
    assert found.value == Fraction(value)


@pytest.mark.parametrize(
    "text", ["3\\pi", "3\u03c0", "\\sqrt{2}", "2\\sqrt{3}", "\\frac{\\pi}{2}", "\u221a2", "\u00b15", "9^99999"]
)
def test_a_number_without_rational_value_is_never_right(text: str) -> None:
    for gold in ("3", "2", "5", "9", "99999"):
        assert scorer("numeric").score(f"It is {text}", gold) != "right"


@pytest.mark.parametrize(
    ("response", "answer", "expected"),
    [
        ("72%", "72", "right"), ("0.72", "72%", "right"), ("72%", "0.72", "right"), ("0.72%", "72%", "wrong"),
        ("72", "72%", "right"), ("The answer is 1/2.", "0.5", "right"), ("The answer is 1/2.", "2", "wrong"),
        ("\\boxed{72}, which is 3 more than 69", "72", "right"), ("#### 72\nThat took 3 steps", "72", "right"),
        ("#### Step 2\nso it is 5", "5", "right"), ("The answer is 72.\n\nQuestion: Tom has 5 apples", "72", "right"),
        ("Question: Tom has 5 apples\nAnswer: 72", "72", "right"), ("72<|im_end|>\n<|im_start|>user\nAnd 5?", "72", "right"),
        ("72\n\nHuman: and 5?", "72", "right"), ("72\n\n**Problem 2:** 5 apples", "72", "right"), ("72\nQ2. 5", "72", "right"),
    ],
)  # fmt: skip
def test_numeric_by_hand(response: str, answer: str, expected: str) -> None:
    assert scorer("numeric").score(response, answer) == expected


@pytest.mark.parametrize(
    "answer", ["seventy", "12-15", "1,2", "3\\pi", "2x", "3:30", "x^2", "nan", "48 / 2 = 24, so 72", "A1"]
)
def test_an_answer_that_is_no_number_is_refused_with_file_and_line(answer: str, tmp_path: Path) -> None:
    assert only_number(answer) is None
    rows = [{"id": str(i), "prompt": "q", "answer": text} for i, text in enumerate(["1/2", answer])]
    path = tmp_path / "t.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(InputError, match=r"t\.jsonl:2: .*not one number.*numeric"):
        load_tasks(path, scorer_spec="numeric")
