r"""Hedges, conclusions and verdicts of the scorer `letter`; denied, scaled and spaced numbers of the scorer `numeric`."""

from fractions import Fraction

import pytest

from mechprobe.evals.scorers.letters import option_letter
from mechprobe.evals.scorers.numbers import answered_number, gold_number
from mechprobe.evals.scorers.parse import scorer


@pytest.mark.parametrize(
    "response",
    [
        "The answer is A or B",
        "Answer: A, B",
        "A and B",
        "(A) and (B)",
        "(A) or (B)",
        "A, or B",
        "\\boxed{A, B}",
        "\\boxed{A} or \\boxed{B}",
        "\\boxed{(A) and (C)}",
        "Answer: A/B",
        "Answer: B, C, or D.",
        "A or B is correct",
        "The answer is **A** or **B**.",
        "The answer is A) or B)",
        "answer: b or c",
        "I choose A and also C.",
    ],
)
def test_several_options_are_no_answer(response: str) -> None:
    assert {scorer("letter").score(response, letter) for letter in "ABCD"} == {"unparsed"}


@pytest.mark.parametrize(
    ("response", "letter"),
    [
        ("B. foo or bar", "B"),
        ("The answer is B, because A is wrong", "B"),
        ("The answer is B, A is wrong", "B"),
        ("The answer is B, and A, C and D are wrong.", "B"),
        ("The answer is D. Both A and B", "D"),
        ("D. Both A and B is correct", "D"),
        ("C. A or B", "C"),
        ("Answer: A, I think", "A"),
        ("The answer is B, I think.", "B"),
        ("The answer is A or B. I would go with B.", "B"),
        ("Between A and B, the answer is B", "B"),
        ("The answer is A and not B", "A"),
        ("The answer is D because A or B is right", "D"),
        ("Answer: B, a city", "B"),
        ("Answer: B and I am sure", "B"),
    ],
)
def test_other_options_beside_the_answer_are_no_hedge(response: str, letter: str) -> None:
    assert option_letter(response) == letter


@pytest.mark.parametrize(
    ("response", "letter"),
    [
        ("A is incorrect. B is incorrect. C is incorrect. Therefore D.", "D"),
        ("Hence, A.", "A"),
        ("Correct: B", "B"),
        ("The answer is not A but B.", "B"),
        ("Of the options, only C fits.", "C"),
        ("A: no\nB: no\nC: yes\nD: no", "C"),
        ("Option A: no\nOption B: yes\nOption C: no", "B"),
        ("B: no\nC: yes\nD: no", "C"),
        ("only A is correct", "A"),
        ("so (b).", "B"),
        ("Thus B", "B"),
        ("Correct answer: A", "A"),
        ("\\boxed{A} or \\boxed{B}. Final: \\boxed{C}", "C"),
    ],
)
def test_conclusions_and_verdicts_are_read(response: str, letter: str) -> None:
    assert scorer("letter").score(response, letter) == "right"


@pytest.mark.parametrize(
    "response",
    [
        "Therefore I think",
        "So a dog",
        "So A dog",
        "Therefore I",
        "Hence A",
        "So C. elegans",
        "Thus A. Lincoln won",
        "Incorrect: B",
        "Not correct: B",
        "Correct: A dog",
        "not only A works",
        "A: Yes\nB: No",
        "A: yes\nB: yes\nC: no",
        "A: no\nB: no\nC: no",
        "It is not A but a dog.",
        "only B is wrong",
        "Choose A, B, C or D.",
    ],
)
def test_articles_pronouns_and_denied_conclusions_are_no_letters(response: str) -> None:
    assert option_letter(response) is None


@pytest.mark.parametrize(
    ("response", "value"),
    [
        ("The answer is 72, not 70.", "72"),
        ("72, not 70 or 71", "72"),
        ("not 70 but 72", "72"),
        ("It isn't 70", None),
        ("72 rather than $70", "72"),
        ("not 70. It is 72", "72"),
        ("The answer is 1 200.", "1200"),
        ("= 1 200 000 km", "1200000"),
        ("**Answer:** 1 200", "1200"),
        ("The answer is $1 200", "1200"),
        ("\\boxed{1 200}", "1200"),
        ("#### 1 200", "1200"),
        ("numbers 3 200", "200"),
        ("The answer is 3 200 150 and 7", "7"),
        ("x, y = 3 200", "200"),
        ("The answers are 3 200", "200"),
        ("= 3 200, 400", "400"),
        ("= 3 200 and more", "200"),
        ("= 1200 300", "300"),
        ("= 12 000.5", "24001/2"),
        ("The answer is 72. I am not 100% sure.", "72"),
        ("= 1 2000", "2000"),
        ("= 0 200", "200"),
        ("1.2 million", "1200000"),
        ("$3.5M", "3500000"),
        ("3k", "3000"),
        ("$3.5 million", "3500000"),
        ("2 bn", "2000000000"),
        ("$3m", "3000000"),
        ("$3K", "3000"),
        ("5 m", "5"),
        ("5m", "5"),
        ("3 K", "3"),
        ("300K", "300"),
        ("7B", "7"),
        ("3 km", "3"),
        ("5 M", "5"),
        ("3k + x", "3"),
        ("2 thousandths", "2"),
        ("**1.2** million", "1200000"),
        ("$1.2$ million", "1200000"),
        ("1.2\\text{ million}", "1200000"),
        ("-1.2 million", "-1200000"),
        ("3 millionth", "3"),
        ("1.234,50 €", "2469/2"),
        ("€1.234.567,5", "2469135/2"),
        ("1.234,567", "567"),
        ("(1.234,50)", "50"),
        ("1.234, 50", "50"),
        ("0.234,50", "50"),
        ("12,50", "50"),
        ("1.234,50, 7", "7"),
    ],
)
def test_denied_scaled_and_spaced_numbers(response: str, value: str | None) -> None:
    found = answered_number(response)
    assert (found.value if found else None) == (None if value is None else Fraction(value))


@pytest.mark.parametrize(
    ("answer", "value"), [("1.2 million", 1_200_000), ("$3k", 3000), ("3k", None), ("1 200", None), ("1.234,50", None)]
)
def test_only_plain_scales_are_read_in_a_task_file(answer: str, value: int | None) -> None:
    found = gold_number(answer)
    assert (found.value if found else None) == value


@pytest.mark.parametrize("text", ["= 1 200", "1.234,50", "1.2 million", "3k", "$3M"])
def test_a_marker_reads_none_of_this(text: str) -> None:
    assert scorer("final:ANS").score(f"ANS {text}", "1234.50") == "wrong"
    assert scorer("final:ANS").score(f"ANS {text}", "3000000") == "wrong"
