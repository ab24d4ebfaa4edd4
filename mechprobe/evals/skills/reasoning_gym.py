"""Items from tasks of reasoning-gym (the package `reasoning-gym`, not installed with mechprobe), in the chat rendering.

Only tasks with one short right answer are taken. reasoning-gym states no chance rates and no worked steps, so chance is 0
and the trace is the boxed answer. Questions overlap between seeds there; here the id hashes the question.
"""

from collections.abc import Iterator
from typing import Any

from mechprobe.errors import DependencyError, InputError
from mechprobe.evals.scorers.final_answer import AnswerForm
from mechprobe.evals.skills.family import LEVELS
from mechprobe.evals.skills.item import SkillItem, item_id
from mechprobe.evals.skills.registry import CHAT, check_choice
from mechprobe.evals.skills.splits import SPLITS, TEST_IN, TRAIN, TRAIN_PERCENT, bucket_of

TASKS: dict[str, tuple[str, str, AnswerForm]] = {
    "gcd": ("calculation", "mathematics", "integer"),
    "lcm": ("calculation", "mathematics", "integer"),
    "chain_sum": ("calculation", "mathematics", "integer"),
    "products": ("calculation", "mathematics", "integer"),
    "simple_equations": ("calculation", "mathematics", "integer"),
    "base_conversion": ("calculation", "coding", "word"),
    "bitwise_arithmetic": ("calculation", "coding", "word"),
    "calendar_arithmetic": ("calculation", "non_reasoning_qa", "word"),
    "leg_counting": ("calculation", "non_reasoning_qa", "integer"),
    "count_primes": ("enumeration", "mathematics", "integer"),
    "count_bits": ("enumeration", "coding", "integer"),
    "letter_counting": ("enumeration", "non_reasoning_qa", "integer"),
    "rotten_oranges": ("simulation", "coding", "integer"),
}
"""Task of reasoning-gym → skill, domain and form of the answer. The assignment to cells is ours."""
PREFIX = "rg_"
"""Begins the family of every item."""


def items(task: str, *, n: int, seed: int, level: int = 1, split: str | None = None) -> list[SkillItem]:
    """Draw n different items of one task of reasoning-gym.

    Args:
        task: Name of the task.
        n: Number of items.
        seed: Seed of the task.
        level: 1 to 5: the level of every attribute of the task's curriculum, or its highest.
        split: `train` or `test_in`, by the hash of the question; None takes both.

    Raises:
        DependencyError: reasoning-gym is not installed.
        InputError: A choice is unknown, an answer is not right for reasoning-gym itself, or there are too few items.
    """
    check_choice("reasoning-gym task", task, tuple(TASKS))
    check_choice("level", level, LEVELS)
    if split is not None:
        check_choice("split", split, SPLITS)
        if split not in (TRAIN, TEST_IN):
            raise InputError(f"Tasks of reasoning-gym have no items in the split {split}; use {TRAIN} or {TEST_IN}.")
    found: dict[str, SkillItem] = {}
    for item in _draw(task, 1000 + 50 * n, seed, level):
        if len(found) == n:
            break
        if split in (None, item.split):
            found.setdefault(item.id, item)
    if len(found) < n:
        raise InputError(
            f"reasoning-gym task {task} gave {len(found)} different items of level {level}, so {n} cannot be drawn; "
            "ask for fewer."
        )
    return list(found.values())


def _draw(task: str, size: int, seed: int, level: int) -> Iterator[SkillItem]:
    curriculum = _package().factory.create_curriculum(task)
    curriculum.set_global_level(level - 1)
    config = curriculum.generate_configuration({"seed": seed, "size": size})
    dataset = _package().create_dataset(task, **vars(config))
    for index in range(size):
        entry = dataset[index]
        question, answer = str(entry["question"]).strip(), str(entry["answer"]).strip()
        if dataset.score_answer(answer, entry) != 1:
            raise InputError(
                f"reasoning-gym task {task} does not accept its own answer {answer!r}; leave the task out."
            )
        yield _item(task, question, answer, level)


def _item(task: str, question: str, answer: str, level: int) -> SkillItem:
    skill, domain, form = TASKS[task]
    identity = item_id(PREFIX + task, question)
    boxed = f"\\boxed{{{answer}}}"
    return SkillItem(
        id=identity, skill=skill, prompt=f"{question}\nGive the final answer in \\boxed{{}}.", answer=answer,
        trace=f"The answer is {boxed}.", domain=domain, family=PREFIX + task, level=level,
        split=TRAIN if bucket_of(identity) < TRAIN_PERCENT else TEST_IN, rendering=CHAT, answer_form=form,
    )  # fmt: skip


def _package() -> Any:
    try:
        import reasoning_gym
    except ImportError:
        raise DependencyError(
            "Tasks of reasoning-gym need the package reasoning-gym, which is not installed: pip install reasoning-gym "
            "(it pins versions of other packages, so use an environment of its own to make the items)."
        ) from None
    return reasoning_gym
