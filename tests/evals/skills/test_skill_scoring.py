"""Scores of skill items: oracle, random answerer, behaviour columns, diagnostic scores, counts and intervals."""

import random
import time
from pathlib import Path

import pytest
from scipy.stats import binom

from mechprobe.errors import InputError
from mechprobe.evals import skills
from mechprobe.evals.scorers.final_answer import form_of
from mechprobe.evals.skills.behaviour import named_rule, named_step
from mechprobe.evals.skills.fact_retrieval import FACTS, known_rules
from mechprobe.evals.skills.fact_retrieval.facts import Facts
from mechprobe.evals.skills.family import Family
from mechprobe.evals.skills.item import SkillItem
from mechprobe.evals.skills.scoring import score_items, score_response
from mechprobe.evals.skills.splits import TEST_OUT_FAMILY
from mechprobe.evals.skills.summary import SkillScores, mean_of_shares
from mechprobe.records import Outcome
from mechprobe.statistics import Interval, wilson_interval
from mechprobe.types import Finish

FAMILIES = pytest.mark.parametrize("family", skills.FAMILIES.values(), ids=list(skills.FAMILIES))
DIAGNOSTIC = [family for family in skills.families("diagnostic") if family.answer_form == "diagnosis"]


def items(family: Family, n: int, level: int = 2, rendering: str = "chat") -> list[SkillItem]:
    split = TEST_OUT_FAMILY if family.held_out else None
    return skills.generate(
        family.skill,
        domain=family.domain,
        family=family.name,
        level=level,
        n=n,
        seed=5,
        rendering=rendering,
        split=split,
    )


TEXT_FORMS = {
    "word": {"word", "integer"}, "list": {"list", "integer"}, "expression": {"expression", "number", "integer"},
}  # fmt: skip
"""Forms that the text of an answer may have where it is not that of its family: one factor is an integer, for example."""


@FAMILIES
def test_the_text_of_an_answer_has_the_form_of_its_family(family: Family) -> None:
    found = {form_of(item.answer) for level in (1, 3, 6) for item in items(family, 60, level)}
    assert found <= TEXT_FORMS.get(family.answer_form, {family.answer_form})


def outcome(item: SkillItem, response: str, finish: Finish = "stop", draw: int = 0, model: str = "m") -> Outcome:
    return Outcome(item.id, item.task, model, "unparsed", response, 1, finish=finish, draw=draw)


def scored(found: list[SkillItem], responses: list[str]) -> SkillScores:
    pairs = zip(found, responses, strict=True)
    return score_items({item.id: item for item in found}, [outcome(item, response) for item, response in pairs])


@FAMILIES
def test_an_oracle_is_right_in_both_renderings_and_a_repeated_prompt_never(family: Family) -> None:
    for rendering in ("compact", "chat"):
        for item in [item for level in (1, 3, 6) for item in items(family, 12, level, rendering)]:
            score = score_response(item, item.trace)
            assert (score.boxed_correct, score.strict, score.parsed) == (True, True, True), (item.prompt, item.trace)
            assert {score.behaviour_ok, score.detected, score.localized, score.corrected} <= {None, True}
            repeated = score_response(item, f"{item.prompt}\n{item.prompt}")
            assert not repeated.boxed_correct
            assert not repeated.strict
            assert score_response(item, f"{item.prompt}\n{item.trace}").boxed_correct


@FAMILIES
def test_the_behaviour_column_is_asked_where_the_paper_asks_and_needs_more_than_a_box(family: Family) -> None:
    (item,) = items(family, 1)
    direct = score_response(item, f"\\boxed{{{item.answer}}}")
    lab = family.name in ("fact_retrieval", "diagnostic")
    asked = family.skill in ("fact_retrieval", "diagnostic") and not lab
    assert direct.boxed_correct
    assert direct.behaviour_ok is (False if asked else None)
    assert direct.strict is not asked


@FAMILIES
def test_a_random_answerer_scores_its_chance_rate(family: Family) -> None:
    """Every item is answered several times; the number of right answers lies in the 99.9 % range of its binomial mixture."""
    rng, n_items, n_draws = random.Random(11), 50, 16
    problems = []
    while len(problems) < n_items:
        problem = family.draw(rng, 1)
        problems += [problem] if family.level_of(problem) == 1 else []
    chance = sum(map(family.chance, problems)) / n_items
    right = 0
    for problem in problems:
        item = SkillItem(
            "x", family.skill, "?", family.answer(problem), "", domain=family.domain, answer_form=family.answer_form
        )
        guesses = (family.guess(problem, rng) for _ in range(n_draws))
        right += sum(score_response(item, f"ANS {guess}").boxed_correct for guess in guesses)
    # a sum of independent draws of unequal chances varies no more than the binomial of their mean
    low, high = binom.ppf([0.0005, 0.9995], n_items * n_draws, chance)
    assert low <= right <= high, (right, chance * n_items * n_draws)


@pytest.mark.parametrize("family", DIAGNOSTIC, ids=lambda family: family.name)
def test_who_always_says_error_detects_nothing(family: Family) -> None:
    found = items(family, 200)
    for response in ("Step 1 is wrong. \\boxed{1:0}", "\\boxed{2:5}"):
        row = scored(found, [response] * len(found)).by("all")[""]
        assert row.diagnostic is not None
        assert row.diagnostic.detection.value <= 0.5
        assert row.diagnostic.error_found.value == 1
        assert row.diagnostic.clean_found.value == 0
    row = scored(found, ["No step is wrong. \\boxed{none}"] * len(found)).by("all")[""]
    n_clean = sum(item.kind == "clean" for item in found)
    assert row.diagnostic is not None
    assert row.diagnostic.detection.value == 0.5
    assert row.diagnostic.localization.value == 0
    assert row.boxed.value == pytest.approx(n_clean / len(found))
    assert row.strict == row.boxed
    assert {item.kind for item in found} == {"clean", "injected", "drift", "inconsistent"}


def diagnostic_item(answer: str) -> SkillItem:
    kind = "clean" if answer == "none" else "injected"
    return SkillItem("d-" + answer, "diagnostic", "?", answer, "", domain="coding", kind=kind, answer_form="diagnosis")


@pytest.mark.parametrize(
    ("response", "boxed", "behaviour", "detected", "localized", "corrected"),
    [
        (r"Step 2 is wrong: \boxed{2:36}", True, True, True, True, True),
        (r"The error is in step 2. \boxed{2:36}", True, True, True, True, True),
        (r"\boxed{2:36}", True, False, True, True, True),
        (r"Step 1 is wrong. \boxed{2:36}", True, False, True, True, True),
        (r"Step 1 is not wrong, step 2 is incorrect. \boxed{2:35}", False, True, True, True, False),
        (r"Step 2 has an error. \boxed{3:36}", False, True, True, False, False),
        (r"All steps are correct. \boxed{none}", False, False, False, False, False),
        ("THINK 7+5=12;ERR 2 ANS 2:36", True, True, True, True, True),
        ("THINK 7+5=12;ERR none ANS none", False, False, False, False, False),
        ("hm", False, False, False, False, False),
    ],
)
def test_diagnosis_of_an_error(
    response: str, *, boxed: bool, behaviour: bool, detected: bool, localized: bool, corrected: bool
) -> None:
    score = score_response(diagnostic_item("2:36"), response)
    found = (score.boxed_correct, score.behaviour_ok, score.detected, score.localized, score.corrected)
    assert found == (boxed, behaviour, detected, localized, corrected)
    assert score.strict == (boxed and behaviour)


@pytest.mark.parametrize(
    ("text", "step"),
    [
        ("Step 3 is wrong.", 3), ("step 3 (the sum) was incorrect", 3), ("**Step 3** is wrong", 3), ("Wrong step: 3", 3),
        ("The mistake occurs in line 3.", 3), ("The first error is in step 3.", 3), ("claim 3 contradicts the text", 3),
        ("Step 3 is the first incorrect step", 3), ("The wrong claim is claim 3.", 3), ("ERR 3", 3), ("Step 3 is not correct", 3),
        ("Step 1 is right. Step 2 is right. Step 3 is wrong.", 3), ("Step 2 is wrong. No: step 3 is wrong.", 3),
        ("No step is wrong.", "none"), ("There is no error.", "none"), ("I find no mistakes", "none"), ("ERR none", "none"),
        ("All the steps are correct", "none"), ("every claim is true", "none"), ("Wrong step: none", "none"),
        ("None of the claims is wrong", "none"), ("all steps check out", "none"),
        ("Step 3 is right.", None), ("Step 3 is not wrong", None), ("There is no error in step 2.", None), ("all steps are wrong", None),
        ("Say in words which step is wrong, if any.", None), ("At most one step is wrong", None), ("", None),
        ("step 3 has no error", None),
    ],
)  # fmt: skip
def test_the_step_that_a_text_calls_wrong(text: str, step: int | str | None) -> None:
    assert named_step(text) == step


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("By Ohm's law, U = RI.", "Ohm's law"), ("by ohm\u2019s law", "Ohm's law"), ("OHM;3*4=12", "Ohm's law"),
        ("Newton's second law of motion", "Newton's second law"), ("not by Ohm's law but by Hooke's law", "Hooke's law"),
        ("Hooke's law, rather than Ohm's law", "Hooke's law"), ("the law of the\nlever", "the law of the lever"), ("Boyle\u2013Mariotte law", "Boyle's law"),
        ("Ohm's law, or Hooke's law?", "Hooke's law"), ("the first thing", None), ("ohm", None), ("the wave", None), ("", None),
    ],
)  # fmt: skip
def test_the_rule_that_a_text_names(text: str, rule: str | None) -> None:
    assert named_rule(text, known_rules("physics")) == rule


@pytest.mark.parametrize("domain", skills.DOMAINS)
def test_no_two_rules_of_a_domain_share_a_name_and_a_list_of_all_is_right_by_chance_only(domain: str) -> None:
    known = known_rules(domain)
    names = [name for rule, aliases in known.items() for name in {rule.removeprefix("the "), *aliases}]
    assert len({name if name.isupper() else name.casefold() for name in names}) == len(names)
    for rule, aliases in known.items():
        assert all(named_rule(f"We use {name} here.", known) == rule for name in (rule, *aliases)), rule
    listed = "; ".join(known)
    family = next(family for family in skills.families("fact_retrieval", domain) if family.name != "fact_retrieval")
    found = items(family, 300)
    share = sum(score_response(item, f"{listed} \\boxed{{{item.answer}}}").strict for item in found) / len(found)
    assert share < 0.25


@pytest.mark.parametrize("family", FACTS, ids=lambda family: family.name)
def test_unguided_prompts_name_no_rule_and_guided_ones_the_right_one(family: Facts) -> None:
    for rendering in ("compact", "chat"):
        for item in items(family, 150, rendering=rendering):
            assert score_response(item, item.prompt).behaviour_ok == item.guided, item.prompt


def test_upper_case_words_name_rules_in_the_compact_rendering_only() -> None:
    found = {
        rendering: items(skills.FAMILIES["semantics"], 300, rendering=rendering) for rendering in ("compact", "chat")
    }
    for rendering, drawn in found.items():
        item = next(item for item in drawn if item.rule == "or returns the first true operand")
        assert score_response(item, f"OR;0 ANS {item.answer}").strict == (rendering == "compact")
        assert score_response(item, f"Or returns the first truthy operand. \\boxed{{{item.answer}}}").strict


def test_guided_and_unguided_forms_of_a_question_share_pair_answer_and_split() -> None:
    for family in skills.families("fact_retrieval", held_out=False):
        if family.name == "fact_retrieval":
            continue
        by_pair: dict[str, list[SkillItem]] = {}
        for item in items(family, 800, level=1):
            by_pair.setdefault(str(item.pair), []).append(item)
        pairs = [pair for pair in by_pair.values() if len(pair) == 2]
        assert len(pairs) > 50
        for first, second in pairs:
            assert {first.guided, second.guided} == {True, False}
            assert (first.answer, first.split, first.rule) == (second.answer, second.split, second.rule)
            for item in (first, second):
                assert (str(item.rule) in item.prompt) == item.guided


def test_cut_and_unparsed_are_counted_apart_and_neither_is_right() -> None:
    found = items(skills.FAMILIES["calculation"], 4)
    right = [f"\\boxed{{{item.answer}}}" for item in found]
    outcomes = [
        outcome(found[0], right[0]), outcome(found[1], right[1], finish="length"), outcome(found[2], "hm"),
        outcome(found[3], f"<think>{right[3]}", finish="unfinished"),
    ]  # fmt: skip
    row = score_items({item.id: item for item in found}, outcomes).by("cell")["calculation/mathematics"]
    assert (row.n, row.n_responses, row.cut, row.unparsed) == (4, 4, 2, 1)
    assert row.boxed == wilson_interval(1, 4)
    assert row.behaviour is None
    assert row.strict == row.boxed


def test_rows_intervals_and_chance_by_hand() -> None:
    found = items(skills.FAMILIES["enumeration"], 6, level=1) + items(skills.FAMILIES["laws"], 4, level=1)
    responses = [f"\\boxed{{{item.answer}}}" if i % 2 else "\\boxed{-1}" for i, item in enumerate(found)]
    result = scored(found, responses)
    assert [row.by for row in result.rows if row.by in ("all", "skill")] == ["all", "skill", "skill"]
    row = result.by("skill")["enumeration"]
    assert row.chance == pytest.approx(1 / 11)  # from none to ten digits
    assert row.boxed == wilson_interval(3, 6)
    assert row.corrected.value == pytest.approx((0.5 - 1 / 11) / (10 / 11))
    assert row.corrected.low == pytest.approx((row.boxed.low - 1 / 11) / (10 / 11))
    laws = result.by("cell")["fact_retrieval/physics"]
    assert laws.boxed == wilson_interval(2, 4)
    assert laws.behaviour == wilson_interval(0, 4)
    assert laws.strict == wilson_interval(0, 4)
    assert result.by("all")[""].behaviour == laws.behaviour
    assert result.by("all")[""].strict == wilson_interval(3, 10)  # the enumeration items ask for no behaviour
    table = result.to_pandas()
    assert len(table) == len(result.rows)
    assert table.set_index(["by", "name"]).loc[("skill", "enumeration"), "boxed_low"] == row.boxed.low
    assert repr(result) == "SkillScores(10 responses, 50.0% boxed, 30.0% strict)"


def test_results_survive_json(tmp_path: Path) -> None:
    found = items(skills.FAMILIES["worked_sums"], 5)
    result = scored(found, [item.trace for item in found])
    result.save(tmp_path / "scores.json")
    back = SkillScores.load(tmp_path / "scores.json")
    assert back.items == result.items
    assert repr(back.rows) == repr(result.rows)  # NaN differs from itself


def test_several_draws_are_clustered_by_item() -> None:
    found = items(skills.FAMILIES["calculation"], 5)
    by_id = {item.id: item for item in found}
    outcomes = [
        outcome(item, f"\\boxed{{{item.answer if (i + draw) % 2 else 'no'}}}", draw=draw) for i, item in enumerate(found) for draw in range(4)
    ]  # fmt: skip
    row = score_items(by_id, outcomes).by("all")[""]
    assert (row.n, row.n_responses, row.boxed.value, row.boxed.n) == (5, 20, 0.5, 5)
    with pytest.raises(InputError, match="no skill item"):
        score_items({}, outcomes)
    with pytest.raises(InputError, match="one model"):
        score_items(by_id, [outcome(found[0], "", model="a"), outcome(found[0], "", model="b")])


def test_the_interval_of_a_mean_of_two_shares() -> None:
    first, second = wilson_interval(8, 10), wilson_interval(3, 10)
    both = mean_of_shares(first, second)
    assert both.value == pytest.approx(0.55)
    assert both.low == pytest.approx(0.55 - ((0.8 - first.low) ** 2 + (0.3 - second.low) ** 2) ** 0.5 / 2)
    assert mean_of_shares(first, Interval(float("nan"), 0, 1, 0)).value != both.value


LONG = 200_000
HOSTILE = {
    "blanks behind words": "wrong step" + " " * LONG,
    "stars behind words": "wrong step " + "* " * (LONG // 2),
    "unclosed boxes": "\\boxed{" * (LONG // 7),
    "backslashes": "\\" * LONG,
    "nested boxes": "\\boxed{" * (LONG // 8) + "1" + "}" * (LONG // 8),
    "different boxes": "".join(f"\\boxed{{{number}}}" for number in range(LONG // 12)),
    "question with blanks": "Question" + " " * LONG + "x",
    "question with number and blanks": "Question no." + " " * LONG + "x",
    "long number": "\\boxed{" + "9" * LONG + "}",
    "long list": "\\boxed{" + "1," * (LONG // 2) + "}",
    "long formula": "\\boxed{" + "\\sqrt{" * (LONG // 7) + "2" + "}" * (LONG // 7) + "}",
    "sentences": "step 1 is wrong " * (LONG // 16),
    "step with blanks before its number": "step" + " " * LONG + "1",
}


def test_hostile_responses_are_scored_in_linear_time() -> None:
    found = [skills.generate(skill, n=1, seed=1, domain="mathematics", rendering="chat")[0] for skill in skills.SKILLS]
    found = [*found, *skills.generate("calculation", n=1, seed=1, domain="physics", family="circuit", level=4)]
    assert {item.answer_form for item in found} >= {"integer", "expression"}
    start = time.process_time()
    for name, response in HOSTILE.items():
        for item in [*found, diagnostic_item("2:36")]:
            assert not score_response(item, response).boxed_correct, name
    assert time.process_time() - start < 20  # each of the first five takes longer where it is quadratic


def test_runs_of_blanks_change_no_verdict() -> None:
    assert named_step("wrong   step\n\n  number :\t 3") == 3
    assert named_rule("by   Ohm's  \n law", {"Ohm's law": ()}) == "Ohm's law"
    assert score_response(diagnostic_item("2:36"), "Step  2\n\nis  wrong. \\boxed{2:36}").strict
