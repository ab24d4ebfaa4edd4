"""Every family: verified answers, closed vocabulary, levels, splits, pinned bytes. A new family falls under all of it."""

import hashlib
import itertools
import json
import random
import re
import statistics
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from scipy.stats import binom

from mechprobe.evals import skills
from mechprobe.evals.skills import generation
from mechprobe.evals.skills.family import BEYOND, LEVELS, Family
from mechprobe.evals.skills.item import SkillItem, direct_response
from mechprobe.evals.skills.splits import TEST_OUT_FAMILY, TEST_OUT_PARAM, TEST_OUT_TEMPLATE
from mechprobe.evals.skills.vocabulary import MAX_TOKENS, tokens, vocabulary

FAMILIES = pytest.mark.parametrize("family", skills.FAMILIES.values(), ids=list(skills.FAMILIES))
ALL_LEVELS = (*LEVELS, BEYOND)
N, FEW = 300, 60
"""Problems of a level, for verifier and work, and for everything else."""
PINNED = Path(__file__).parent / "pinned"
_DRAWN: dict[tuple[str, int], list[Any]] = {}


def problems(family: Family, level: int) -> list[Any]:
    """Different problems of a level: 1,000, or all where the level has fewer."""
    if (family.name, level) not in _DRAWN:
        drawn = islice(generation.problems(family, level, seed=1), 1000)
        _DRAWN[family.name, level] = list(drawn)
    return _DRAWN[family.name, level]


def everything(family: Family, n: int = FEW) -> list[tuple[int, Any]]:
    """Some problems of every level."""
    return [(level, problem) for level in ALL_LEVELS for problem in problems(family, level)[:n]]


def items(family: Family, level: int, n: int, **options: object) -> list[SkillItem]:
    """Items of one family; held-out families alone are in their split."""
    return skills.generate(
        family.skill, domain=family.domain, family=family.name, level=level, n=n, **{"seed": 0, **options}
    )


@FAMILIES
def test_generator_and_verifier_agree_on_every_item(family: Family) -> None:
    for level, problem in everything(family, N):
        assert family.answer(problem) == family.verify(problem), (level, problem)


@FAMILIES
def test_a_problem_survives_json_and_belongs_to_one_level(family: Family) -> None:
    for level, problem in everything(family):
        assert family.level_of(problem) == level, problem
        assert json.loads(json.dumps(problem._asdict()))


@FAMILIES
def test_compact_texts_stay_in_the_closed_vocabulary_and_are_short(family: Family) -> None:
    known = set(vocabulary([family]))
    prompts: dict[str, object] = {}
    for level, problem in everything(family):
        prompt = family.compact(problem)
        asked = tokens(f"{prompt} {direct_response(family.answer(problem))}")
        assert len(asked) <= MAX_TOKENS, (level, prompt)
        assert set(asked) | set(tokens(family.scratch(problem))) <= known, (level, prompt, family.scratch(problem))
        assert prompt.startswith(f"{family.keyword} ")
        assert prompts.setdefault(prompt, problem) is problem, "two questions with one prompt"
    assert re.fullmatch(r"[A-Z]+", family.keyword)
    assert all(re.fullmatch(r"[A-Z]+", word) for word in (family.alias or "A", *family.words))
    assert family.alias != family.keyword


@FAMILIES
def test_chat_prompts_differ_by_template_and_name_the_box(family: Family) -> None:
    n = len(family.templates)
    assert n >= 2
    for _, problem in everything(family)[:: FEW // 6]:
        texts = [family.chat(problem, template) for template in range(n)]
        assert len(set(texts)) == n
        assert family.chat(problem, -1) == texts[-1]
        assert all("\\boxed{}" in text and not re.search(r"\{[a-z]", text) for text in texts)
    for template in range(n):  # two questions never share a wording
        texts = [family.chat(problem, template) for _, problem in everything(family)]
        assert len(set(texts)) == len(texts)


@FAMILIES
def test_the_answer_is_among_the_guesses_and_bounded(family: Family) -> None:
    rng = random.Random(1)
    for level, problem in everything(family):
        space, answer = family.guesses(problem), family.answer(problem)
        if not isinstance(space, int):
            found = answer in space if not isinstance(space, range) else int(answer) in space
            assert found, (problem, answer)
            assert isinstance(space, range) or len(set(space)) == len(space)
        assert 0 < family.chance(problem) <= 0.5, problem
        assert isinstance(family.guess(problem, rng), str)
        assert 0 < len(answer) <= family.max_answer_chars or level == BEYOND, answer


@FAMILIES
def test_knobs_never_fall_and_one_rises(family: Family) -> None:
    for low, high in itertools.pairwise(ALL_LEVELS):
        before, after = family.knobs(low), family.knobs(high)
        assert before.keys() == after.keys()
        assert all(before[name] <= after[name] for name in before)
        assert any(before[name] < after[name] for name in before)


@FAMILIES
def test_the_work_of_a_bounded_solver_rises_with_the_level(family: Family) -> None:
    means = [statistics.mean(map(family.work, problems(family, level)[:N])) for level in ALL_LEVELS]
    rises = all(low < high for low, high in itertools.pairwise(means))
    assert rises or family.no_trend, means


@FAMILIES
def test_there_are_a_thousand_questions_of_every_level_or_their_number_is_stated(
    family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    for level in ALL_LEVELS:
        capacity, found = family.capacity(level), problems(family, level)
        assert len(found) == min(1000, capacity or 1000)
        if capacity is not None and capacity < 1000:
            assert (
                len({family.id(p) for seed in (2, 3) for p in generation.problems(family, level, seed=seed)})
                == capacity
            )
        assert len({family.compact(problem) for problem in found}) == len(found)


@FAMILIES
def test_the_same_seed_gives_the_same_bytes(family: Family) -> None:
    """A change of bytes needs a new version, and a new line in the file of the family."""
    split = TEST_OUT_FAMILY if family.held_out else None
    drawn = [
        item.to_json()
        for level in ALL_LEVELS
        for rendering in ("compact", "chat")
        for item in items(family, level, 20, rendering=rendering, split=split)
    ]
    digest = hashlib.sha256(json.dumps(drawn, sort_keys=True).encode()).hexdigest()
    pinned = PINNED / f"{family.name}.txt"
    line = f"{family.version} {digest}"
    assert pinned.is_file(), f"new family: write '{line}' to {pinned.name}"
    assert pinned.read_text().strip() == line


@FAMILIES
def test_no_question_is_in_two_splits_and_out_of_template_looks_different(family: Family) -> None:
    where: dict[str, str] = {}
    for seed in (0, 1):
        for level in (2, BEYOND):
            split = TEST_OUT_FAMILY if family.held_out else None
            for item in items(family, level, 60, seed=seed, split=split):
                assert where.setdefault(item.id, item.split) == item.split
    expected = {TEST_OUT_FAMILY} if family.held_out else {"train", "test_in", TEST_OUT_TEMPLATE, TEST_OUT_PARAM}
    assert set(where.values()) == expected
    if not family.held_out:
        for name in ("train", TEST_OUT_TEMPLATE):
            (chat,) = items(family, 1, 1, split=name, rendering="chat")
            (compact,) = items(family, 1, 1, split=name)
            assert chat.id == compact.id
            held_out = name == TEST_OUT_TEMPLATE
            assert chat.prompt.splitlines()[-1].startswith("End your reply") == held_out
            assert compact.prompt.split()[0] == (family.alias if held_out and family.alias else family.keyword)


@FAMILIES
def test_lines_of_a_tasks_file_hold_the_whole_item(family: Family) -> None:
    split = TEST_OUT_FAMILY if family.held_out else None
    for rendering in ("compact", "chat"):
        for item in items(family, 3, 5, rendering=rendering, split=split):
            back = SkillItem.from_json(json.loads(json.dumps(item.to_json())))
            assert json.dumps(back.to_json()) == json.dumps(item.to_json())
            answered = f"ANS {item.answer}" if rendering == "compact" else f"\\boxed{{{item.answer}}}."
            assert item.trace.endswith(answered)


def test_every_cell_has_a_family_that_is_not_held_out() -> None:
    empty = [
        (skill, domain)
        for skill in skills.SKILLS
        for domain in skills.DOMAINS
        if not skills.families(skill, domain, held_out=False)
    ]
    assert not empty


def _binomial_range(n: int, share: float) -> tuple[float, float]:
    """The central 99.9 % of the counts of a share."""
    low, high = binom.interval(0.999, n, share)
    return float(low), float(high)


@pytest.mark.parametrize("split", [None, "test_in"])
@pytest.mark.parametrize("name", [family.name for family in skills.FAMILIES.values() if family.kinds])
def test_kinds_have_the_stated_shares_whatever_is_rejected(name: str, split: str | None) -> None:
    family = skills.FAMILIES[name]
    if family.held_out and split:
        split = TEST_OUT_FAMILY
    counts = Counter[str]()
    for level in LEVELS:
        counts.update(problem.kind for problem in islice(generation.problems(family, level, seed=5, split=split), 600))
    assert sum(counts.values()) == 3000
    for kind, n in Counter(family.kinds).items():
        low, high = _binomial_range(3000, n / len(family.kinds))
        assert low <= counts[kind] <= high, counts


def test_all_diagnostic_families_with_clean_items_state_their_kinds() -> None:
    found = {family.name for family in skills.FAMILIES.values() if family.kinds}
    with_clean = {
        family.name
        for family in skills.families("diagnostic")
        if any(family.extras(problem).get("kind") == "clean" for problem in problems(family, 1)[:FEW])
    }
    assert found == with_clean
    assert {family.kinds for family in map(skills.FAMILIES.__getitem__, found)} == {
        ("clean", "clean", "injected", "drift", "inconsistent")
    }


@pytest.mark.parametrize("name", ["subset_sums", "microstates"])
def test_no_count_is_much_more_frequent_than_a_random_one(name: str) -> None:
    family = skills.FAMILIES[name]
    for level in ALL_LEVELS:
        drawn = problems(family, level)
        ((_, most),) = Counter(map(family.answer, drawn)).most_common(1)
        assert most / len(drawn) <= 2.1 * family.chance(drawn[0]), level


def test_conditions_on_coins_are_grammatical() -> None:
    family = skills.FAMILIES["with_property"]
    texts = {family.chat(problem, template) for _, problem in everything(family, N) for template in range(3)}
    assert not [text for text in texts if re.search(r"\b1 coins|any number but|\b(?:0|[2-9]) coin\b", text)]
    assert any("exactly 1 coin" in text for text in texts)
    assert any("a number of coins other than 3" in text for text in texts)
