"""The adapter of reasoning-gym, on a module of the same interface: ours has the package itself in no environment."""

import random
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from mechprobe.errors import DependencyError, InputError
from mechprobe.evals import skills
from mechprobe.evals.skills import reasoning_gym
from mechprobe.evals.skills.cells import Wanted


class Curriculum:
    """Levels of one knob, as a curriculum of the package has them."""

    def __init__(self) -> None:
        self.level = 0

    def set_global_level(self, level: int) -> None:
        self.level = min(level, 3)

    def generate_configuration(self, defaults: dict[str, Any]) -> SimpleNamespace:
        return SimpleNamespace(**defaults, largest=10 * 10**self.level)


class Dataset:
    """Questions that repeat, with a judge of its own."""

    accepts = True

    def __init__(self, seed: int, size: int, largest: int) -> None:
        self.seed, self.size, self.largest = seed, size, largest

    def __getitem__(self, index: int) -> dict[str, Any]:
        rng = random.Random(self.seed + index)
        a, b = rng.randint(0, self.largest), rng.randint(0, self.largest)
        return {"question": f" {a} + {b} = ", "answer": str(a + b), "metadata": {}}

    def score_answer(self, answer: str, entry: dict[str, Any]) -> float:
        return float(self.accepts and answer == entry["answer"])


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    def create_dataset(name: str, **config: Any) -> Dataset:
        assert name == "chain_sum"
        return Dataset(**config)

    def create_curriculum(name: str) -> Curriculum:
        assert name == "chain_sum"
        return Curriculum()

    module = SimpleNamespace(
        create_dataset=create_dataset, factory=SimpleNamespace(create_curriculum=create_curriculum)
    )
    monkeypatch.setitem(sys.modules, "reasoning_gym", module)
    return module


@pytest.mark.usefixtures("package")
def test_items_are_different_labelled_and_of_one_split() -> None:
    items = reasoning_gym.items("chain_sum", n=40, seed=2, level=2, split="test_in")
    assert len({item.id for item in items}) == 40
    for item in items:
        question = item.prompt.splitlines()[0]
        assert str(eval(question.rstrip("= "))) == item.answer
        assert item.trace == f"The answer is \\boxed{{{item.answer}}}."
        assert (item.skill, item.domain, item.family, item.level) == ("calculation", "mathematics", "rg_chain_sum", 2)
        assert item.split == "test_in"
    assert skills.labels(items)[items[0].id].family == "rg_chain_sum"
    assert any(len(item.answer) == 3 for item in items)  # level 2: up to 100
    train = reasoning_gym.items("chain_sum", n=40, seed=2, level=2, split="train")
    assert not {item.id for item in items} & {item.id for item in train}


@pytest.mark.usefixtures("package")
def test_they_stand_beside_the_cells() -> None:
    wanted = Wanted(
        skills=("calculation",), domains=("physics",), levels=(1,), rendering="chat", n=2, reasoning_gym=("chain_sum",)
    )
    assert [item.family for item in wanted.items()] == ["motion", "circuit", "rg_chain_sum", "rg_chain_sum"]


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": "sokoban"}, "reasoning-gym task 'sokoban'.*chain_sum"),
        ({"level": 6}, "level 6"),
        ({"split": "test_out_template"}, "no items in the split test_out_template"),
        ({"n": 200}, "gave 121 different items of level 1, so 200 cannot be drawn"),
    ],
)
def test_a_wrong_choice_is_one_sentence(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        reasoning_gym.items(**{"task": "chain_sum", "n": 1, "seed": 0, "level": 1, **change})


@pytest.mark.usefixtures("package")
def test_an_answer_that_the_package_rejects_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Dataset, "accepts", False)
    with pytest.raises(InputError, match="does not accept its own answer"):
        reasoning_gym.items("chain_sum", n=1, seed=0)


def test_without_the_package_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(DependencyError, match="pip install reasoning-gym"):
        reasoning_gym.items("gcd", n=1, seed=0)


def test_the_tasks_are_of_known_cells() -> None:
    assert {(skill, domain) for skill, domain, _ in reasoning_gym.TASKS.values()} <= {
        (skill, domain) for skill in skills.SKILLS for domain in skills.DOMAINS
    }
