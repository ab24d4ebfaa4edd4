"""The final answer of a response: which one is read, how it is compared, and that no text breaks the reader."""

import pytest
from hypothesis import example, given, settings, strategies as st

from mechprobe.errors import ConfigError
from mechprobe.evals.scorers.final_answer import SkillScorer, final_answer, form_of, judge_answer
from mechprobe.evals.scorers.numbers import boxes, last_boxed
from mechprobe.evals.scorers.parse import scorer
from mechprobe.evals.scorers.rules import boxed_scorer
from mechprobe.evals.skills.item import SkillItem
from mechprobe.evals.skills.scoring import score_response

JUDGE = scorer("skill")


@pytest.mark.parametrize(
    ("response", "answer", "outcome"),
    [
        (r"\boxed{1,200}", "1200", "right"),
        (r"so it is \boxed{12\ \text{m/s}}.", "12", "right"),
        (r"\boxed{5\,\Omega}", "5", "right"),
        (r"\boxed{5 kΩ}", "5", "right"),
        ("\\boxed{\u22123}", "-3", "right"),
        (r"\boxed{$-3$.}", "-3", "right"),
        (r"\boxed{3}", "-3", "wrong"),
        (r"\boxed{v = 2 \cdot 3 = 6}", "6", "right"),
        (r"\boxed{12 or 13}", "13", "unparsed"),
        (r"\boxed{5!}", "5", "unparsed"),
        (r"\boxed{12.0}", "12", "right"),
        (r"\boxed{9.812}", "9.81", "right"),
        (r"\boxed{9.82}", "9.81", "wrong"),
        (r"\boxed{\frac{3}{4}}", "3/4", "right"),
        (r"\boxed{0.75}", "3/4", "right"),
        (r"\boxed{\text{Heap}}", "heap", "right"),
        (r"\boxed{heaps}", "heap", "wrong"),
        ("\\boxed{1985\u201303-18}", "1985-03-18", "right"),
        (r"\boxed{1985-04-17}", "1985-03-18", "wrong"),
        (r"\boxed{00110}", "00110", "right"),
        (r"\boxed{110}", "00110", "wrong"),
        (r"\boxed{0110}", "110", "wrong"),
        (r"\boxed{0}", "0", "right"),
        (r"\boxed{\{3, 2\}}", "{2,3}", "right"),
        (r"\boxed{\left\{2,3\right\}}", "{2,3}", "right"),
        (r"\boxed{2, 3, 3}", "{2,3}", "right"),
        (r"\boxed{a, c, and b}", "{a,b,c}", "right"),
        (r"\boxed{2}", "{2,3}", "wrong"),
        (r"\boxed{\{\}}", "{2}", "wrong"),
        (r"\boxed{3, 2}", "2,3", "wrong"),
        (r"\boxed{2, 3, 3}", "2,3,3", "right"),
        (r"\boxed{2, 3}", "2,3,3", "wrong"),
        (r"\boxed{(x+1)^2}", "x^2+2*x+1", "right"),
        (r"\boxed{x^2+1}", "x^2+2*x+1", "wrong"),
        (r"\boxed{3:17}", "3:17", "right"),
        (r"\boxed{\text{step }3: x = 4 + 13 = 17}", "3:17", "right"),
        (r"\boxed{(3, 17)}", "3:17", "right"),
        (r"\boxed{3}", "3:17", "wrong"),
        (r"\boxed{3:18}", "3:17", "wrong"),
        (r"\boxed{\text{none}}", "none", "right"),
        (r"\boxed{No step is wrong}", "none", "right"),
        (r"\boxed{1:2}", "none", "wrong"),
        (r"\boxed{none}", "3:17", "wrong"),
        ("ANS 1 3 2", "132", "right"),
        ("THINK 7+5=12;4+8+1=13 ANS 132", "132", "right"),
        ("ANS {2,3}", "{2,3}", "right"),
        ("ANS 4:8", "4:8", "right"),
        ("ANS 4", "4", "right"),
        ("ANS", "4", "unparsed"),
        (r"\boxed{}", "4", "unparsed"),
        ("the answer is 4", "4", "unparsed"),
        ("", "4", "unparsed"),
    ],
)
def test_answers_by_form(response: str, answer: str, outcome: str) -> None:
    assert JUDGE.score(response, answer) == outcome


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        (r"\boxed{7} no, \boxed{4}", "4"),
        (r"\boxed{\boxed{4}}", "4"),
        (r"\boxed{\frac{8}{2}}", "4"),
        (r"\boxed{4} and \boxed{", "4"),
        (r"\boxed {4}", "4"),
        ("ANS 7\nANS 4", "4"),
        (r"ANS 7 or rather \boxed{4}", "4"),
        (r"\boxed{7} ANS 4", "4"),
        ("ANS 4\n\nQuestion: 2+3?\nANS 5", "4"),
        (r"<think>\boxed{7}</think>\boxed{4}", "4"),
        (r"ANS: 4 ", "4"),
    ],
)
def test_the_last_answer_of_the_first_part_behind_the_thinking_counts(response: str, answer: str) -> None:
    assert JUDGE.score(response, answer) == "right"


def test_a_box_inside_the_thinking_alone_is_no_answer() -> None:
    assert JUDGE.score(r"<think>\boxed{4}</think> So.", "4") == "unparsed"
    assert JUDGE.score(r"<think>\boxed{4}", "4") == "unparsed"


def test_what_stands_in_boxes_is_not_said_outside() -> None:
    found = final_answer(r"By \boxed{Ohm's law} it is \boxed{4} V.")
    assert found is not None
    assert found.text == "4"
    assert "Ohm" not in found.rest


@pytest.mark.parametrize(
    ("answer", "form"),
    [("132", "integer"), ("-3", "integer"), ("9.81", "number"), ("3/4", "number"), ("heap", "word"), ("of", "word"),
     ("2,3,3", "list"), ("{2}", "set"), ("none", "diagnosis"), ("4:56", "diagnosis"), ("x^2+1", "expression")],
)  # fmt: skip
def test_the_text_of_an_answer_decides_its_form(answer: str, form: str) -> None:
    assert form_of(answer) == form
    assert judge_answer(answer, answer, form_of(answer)) is True
    assert JUDGE.check(answer) is None


def test_equal_numbers_are_one_vote_of_a_majority() -> None:
    assert JUDGE.answer(r"\boxed{1,200}") == JUDGE.answer("ANS 1200.0")
    assert JUDGE.answer(r"\boxed{1201}") != JUDGE.answer("ANS 1200")
    assert JUDGE.answer("no answer") is None


def test_unknown_scorers_are_told_of_it() -> None:
    with pytest.raises(ConfigError, match="skill"):
        scorer("skills")


PIECES = st.sampled_from(
    ["\\boxed{", "}", "{", "\\{", "\\}", "ANS", "ANS ", "\n", "<think>", "</think>", "step", " 3", ":", ",", "none", "\\text{",
     "\\frac", "$", "\u2212", "9" * 400, "1e9999", "%", "Question:", "wrong", "error in", "\x00", "\ud7ff", "½", "²", "/0", "="]
)  # fmt: skip
HOSTILE = st.one_of(st.text(max_size=80), st.lists(PIECES, max_size=14).map("".join))


@settings(max_examples=120, deadline=None)
@given(response=HOSTILE, answer=st.sampled_from(["4", "-3.5", "heap", "2,3", "{2,3}", "4:56", "none"]))
@example(response="\\boxed{1/0}", answer="4")
@example(response="\\boxed{" * 200, answer="4")
@example(response="{" * 5000 + "\\boxed{4}", answer="4")
def test_no_response_breaks_the_reader_and_scores_are_pure(response: str, answer: str) -> None:
    kind = {"4:56": "injected", "none": "clean"}.get(answer)
    diagnostic = kind is not None
    item = SkillItem(
        "x-1", "diagnostic" if diagnostic else "fact_retrieval", "?", answer, "", domain="physics", kind=kind,
        answer_form="diagnosis" if diagnostic else "integer", rule=None if diagnostic else "Ohm's law",
    )  # fmt: skip
    first = score_response(item, response)
    assert first == score_response(item, response)
    assert first.strict <= first.boxed_correct <= first.parsed <= (not first.cut)
    assert JUDGE.score(response, answer) == (
        "unparsed" if not first.parsed else "right" if first.boxed_correct else "wrong"
    )


@settings(max_examples=60, deadline=None)
@given(
    number=st.integers(-(10**9), 10**9),
    unit=st.sampled_from(["", " kg", r"\ \text{m/s}", r"\,N", ".", " coins", r"\%"]),
)
def test_every_integer_is_read_with_units_and_separators(number: int, unit: str) -> None:
    for written in (f"{number}", f"{number:,}", f"{number}".replace("-", "\u2212"), f"x = {number}"):
        assert JUDGE.score(f"so \\boxed{{{written}{unit}}} ok", str(number)) == "right"
    assert JUDGE.score(f"\\boxed{{{number + 1}{unit}}}", str(number)) == "wrong"


@given(st.lists(st.sampled_from(["\\boxed{", "{", "}", "1", " "]), max_size=40).map("".join))
def test_boxes_are_found_in_one_pass_as_by_their_definition(text: str) -> None:
    box = "\\boxed{"

    def end_of(start: int) -> int | None:
        depth = 0
        for place in range(start + len(box) - 1, len(text)):
            depth += {"{": 1, "}": -1}.get(text[place], 0)
            if depth == 0:
                return place + 1
        return None

    starts = [place for place in range(len(text)) if text.startswith(box, place)]
    right = [(start, end) for start in starts if (end := end_of(start)) is not None]
    assert sorted(boxes(text)) == right
    assert last_boxed(text) == (text[right[-1][0] + len(box) : right[-1][1] - 1] if right else None)


def test_a_box_in_a_box_goes_with_the_outer_one() -> None:
    found = final_answer(r"a \boxed{1 \boxed{2}} b \boxed{3} c")
    assert found is not None
    assert (found.text, found.rest) == ("3", "a   b   c")


def test_an_answer_that_is_too_long_is_not_parsed() -> None:
    assert judge_answer("1" * 1001, "12", "integer") is None
    assert judge_answer("1" * 3000, "1" * 3000, "integer") is True
    assert SkillScorer("skill").answer(f"\\boxed{{{'1' * 2000}}}") == "1" * 2000
    pytest.importorskip("math_verify")
    assert boxed_scorer("boxed").judge(f"\\boxed{{{'1+' * 600}1}}", "601") == "wrong"
