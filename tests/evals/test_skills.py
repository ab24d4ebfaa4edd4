"""Skills: answers checked by an independent evaluator, unique items, splits, determinism, errors."""

import re

import pytest
from hypothesis import given, settings, strategies as st

from mechprobe.errors import InputError
from mechprobe.evals import skills
from mechprobe.evals.scorers.parse import scorer
from mechprobe.evals.skills.families import single_facts, world
from mechprobe.evals.skills.item import item_id

SKILLS = ("calculation", "fact_retrieval", "simulation", "enumeration", "diagnostic")
JUDGE = scorer("final:ANS")


def run_machine(digit: int, operations: str) -> list[int]:
    """An independent implementation of the machine, with a table in place of arithmetic."""
    table = {
        "i": [1, 2, 3, 4, 5, 6, 7, 8, 9, 0],
        "d": [9, 0, 1, 2, 3, 4, 5, 6, 7, 8],
        "t": [0, 2, 4, 6, 8, 0, 2, 4, 6, 8],
        "n": [9, 8, 7, 6, 5, 4, 3, 2, 1, 0],
    }
    seen = []
    for operation in operations:
        digit = table[operation][digit]
        seen.append(digit)
    return seen


def solve(prompt: str) -> str:
    """Answer a prompt from its text only."""
    head, _, body = prompt.rstrip("?").partition(" ")
    if head == "CALC":
        return str(eval(body))
    if head == "SIM":
        return str(run_machine(int(body[0]), body[1:])[-1])
    if head == "ENUM":
        bound, digits = body.split(":")
        return str(sum(digit > bound for digit in digits))
    if head == "DIAG":
        operations, states = body.split(":")
        for step in range(4):
            if run_machine(int(states[step]), operations[step]) != [int(states[step + 1])]:
                return str(step + 1)
        raise AssertionError("a claimed run without a wrong step")
    entity, *relations = body.split()
    for relation in relations:
        entity = world()[entity, relation]
    return entity


@pytest.mark.parametrize(
    ("prompt", "answer"),
    [
        ("CALC 47+85?", "132"),
        ("CALC 83-47?", "36"),
        ("SIM 7ntnt?", "0"),
        ("ENUM 6:2421948924?", "3"),
        ("DIAG tiit:24561?", "4"),
    ],
)
def test_independent_evaluator_agrees_with_hand_worked_answers(prompt: str, answer: str) -> None:
    # 7n->2 t->4 n->5 t->10 mod 10 = 0;  digits above 6: 9, 8, 9;  2t=4 4i=5 5i=6 6t=12 mod 10=2, claimed 1
    assert solve(prompt) == answer


PATTERNS = {
    "calculation": r"CALC [1-9]\d[+-]\d{1,2}\?",
    "fact_retrieval": r"FACT [a-z]{2} (BOSS|PAL) (HOME|FOOD)\?",
    "simulation": r"SIM \d[idtn]{4}\?",
    "enumeration": r"ENUM [2-7]:\d{10}\?",
    "diagnostic": r"DIAG [idtn]{4}:\d{5}\?",
}


@pytest.mark.parametrize("skill", SKILLS)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), n=st.integers(1, 40))
def test_items_are_right_unique_and_graded_right(skill: str, seed: int, n: int) -> None:
    items = skills.generate(skill, n=n, seed=seed)
    assert len({item.prompt for item in items}) == len({item.id for item in items}) == len(items) == n
    for item in items:
        assert re.fullmatch(PATTERNS[skill], item.prompt)
        assert item.answer == solve(item.prompt)
        assert JUDGE.score(item.trace, item.answer) == "right"
        assert JUDGE.score(item.trace, item.answer + "7") == "wrong"
        assert item.skill == skill


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_calculation_traces_are_true_equations(seed: int) -> None:
    for rendering in ("compact", "compact-off-policy"):
        for item in skills.generate("calculation", n=20, seed=seed, rendering=rendering):
            equations = re.findall(r"([\d+-]+)=(\d+)", item.trace)
            assert len(equations) == (2 if rendering == "compact" else 3)
            assert all(eval(left) == int(right) for left, right in equations)
            assert int(item.answer) >= 0


def test_renderings_share_their_questions_and_differ_in_their_traces() -> None:
    compact = skills.generate("calculation", n=5, seed=1)
    off_policy = skills.generate("calculation", n=5, seed=1, rendering="compact-off-policy")
    assert [item.id for item in compact] == [item.id for item in off_policy]
    assert all(item.trace.startswith("THINK ") for item in compact)
    assert all(item.trace.startswith("SO ") and ";CHECK " in item.trace for item in off_policy)
    markers = [
        skills.generate(skill, n=1, seed=1, rendering="compact-own-markers")[0].trace.split()[0] for skill in SKILLS
    ]
    assert markers == ["THINK", "RECALL", "RUN", "LIST", "TRACE"]


def test_trace_examples_by_hand() -> None:
    from mechprobe.evals.skills.families import Calculation, Claim, Diagnostic, Sum

    calculation = Calculation()
    assert calculation.steps(Sum(47, "+", 85)) == "7+5=12;4+8+1=13"
    assert calculation.steps(Sum(83, "-", 47)) == "13-7=6;8-4-1=3"
    assert calculation.off_policy_trace(Sum(64, "+", 2)) == "SO 4+2=6>6;6+0+0=6>6;CHECK 66-2=64;ANS 66"
    assert Diagnostic().steps(Claim("tiit", 2, (4, 5, 6, 1))) == "4562"


@pytest.mark.parametrize("skill", SKILLS)
def test_wrong_answers_are_wrong(skill: str) -> None:
    import random

    family, rng = skills.SKILLS[skill], random.Random(5)
    for _ in range(200):
        problem = family.draw(rng)
        wrong = family.wrong_answer(problem, rng)
        assert wrong != family.answer(problem)
        assert wrong


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), a=st.integers(0, 60), b=st.integers(0, 60), c=st.integers(0, 60))
def test_splits_share_no_prompt_and_keep_their_items_when_later_sets_grow(seed: int, a: int, b: int, c: int) -> None:
    for skill in ("fact_retrieval", "simulation"):
        sets = skills.split(skill, {"a": a, "b": b, "c": c}, seed=seed)
        grown = skills.split(skill, {"a": a, "b": b, "c": c + 5}, seed=seed)
        prompts = [item.prompt for items in sets.values() for item in items]
        assert len(set(prompts)) == len(prompts) == a + b + c
        assert sets["a"] == grown["a"]
        assert sets["b"] == grown["b"]


def test_same_seed_same_items_in_every_process() -> None:
    # Pinned: a change here changes every lab and every published item set.
    prompts = [skills.generate(skill, n=1, seed=0)[0].prompt for skill in SKILLS]
    assert prompts == PINNED


PINNED = ["CALC 51-9?", "FACT rw BOSS HOME?", "SIM 7inni?", "ENUM 6:0834605746?", "DIAG nnnd:18176?"]


def test_excluded_prompts_are_never_drawn() -> None:
    first = {item.prompt for item in skills.generate("simulation", n=300, seed=4)}
    second = {item.prompt for item in skills.generate("simulation", n=300, seed=4, exclude=first)}
    assert not first & second


def test_every_fact_can_be_drawn_and_not_one_more() -> None:
    capacity = skills.SKILLS["fact_retrieval"].capacity
    assert len(skills.generate("fact_retrieval", n=capacity, seed=0)) == capacity == 320
    with pytest.raises(InputError, match=r"fact_retrieval.*321"):
        skills.generate("fact_retrieval", n=capacity + 1, seed=0)
    assert len(single_facts()) == len(set(single_facts())) == 320


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"skill": "juggling"}, "skill 'juggling'.*calculation, fact_retrieval"),
        ({"domain": "chemistry"}, "domain 'chemistry'.*symbolic"),
        ({"level": 9}, "level 9.*1"),
        ({"rendering": "prose"}, "rendering 'prose'.*compact"),
        ({"rendering": "compact-off-policy"}, "compact-off-policy.*calculation.*simulation"),
    ],
)
def test_an_unknown_choice_is_an_error_that_lists_the_known_ones(change: dict[str, object], message: str) -> None:
    arguments = {"skill": "simulation", "n": 1, "seed": 0} | change
    with pytest.raises(InputError, match=message):
        skills.generate(**arguments)  # type: ignore[arg-type]


def test_the_id_of_a_question_depends_on_its_text_alone() -> None:
    assert item_id("simulation", "SIM 7ntnt?") == "simulation-33fe9449d8df"


def test_a_seed_draws_the_same_questions_in_every_version() -> None:
    assert [item.prompt for item in skills.generate("simulation", n=2, seed=0)] == ["SIM 7inni?", "SIM 2tddt?"]
