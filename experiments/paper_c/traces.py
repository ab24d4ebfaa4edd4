"""Training sets in the lab's vocabulary: the same items with other responses, and a game of arithmetic.

The opening, steps and answer of *known* traces are those of the careful author of pre-training. *Long* traces open likewise and go
on to a check that pre-training never showed. *New* traces open with another word and write every step differently.
"""

import json
import random
import re
from collections.abc import Callable, Iterator
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from mechprobe.evals.skills import SKILLS, SkillItem, split
from mechprobe.evals.skills.item import ANSWER_MARKER, SHARED_MARKER, direct_response, worked_response
from mechprobe.lab.items import ITEM_SEED
from mechprobe.lab.recipe import TRAINED_SKILL

N_EVAL, N_DEV, N_POOL = 256, 256, 8192
"""Items of the trained skill: those of the lab's tasks file, those on which settings are chosen, and those for training."""
N_NUMBERS = 3
GAME = "game"


class Example(NamedTuple):
    """A prompt with its right answer and the response that is trained on, which may be wrong."""

    id: str
    prompt: str
    answer: str
    response: str


N_DEV_PER_SKILL = 64


def dev_items() -> list[SkillItem]:
    """Items of all five skills on which settings are chosen; none is in the lab's tasks file."""
    sizes = {"eval": N_EVAL, "dev": N_DEV_PER_SKILL}
    return [item for skill in SKILLS for item in split(skill, sizes, seed=ITEM_SEED)["dev"]]


@lru_cache
def item_sets(rendering: str = "compact") -> dict[str, list[SkillItem]]:
    """Disjoint items of the trained skill: eval (as in the lab), dev and train."""
    return split(TRAINED_SKILL, {"eval": N_EVAL, "dev": N_DEV, "train": N_POOL}, seed=ITEM_SEED, rendering=rendering)


def _check(item: SkillItem, result: str) -> str:
    """The inverse operation on a result, e.g. `132-85=47`."""
    sign, a, b = re.fullmatch(r"CALC (\d+)([+-])(\d+)\?", item.prompt).group(2, 1, 3)  # type: ignore[union-attr]
    return f"{result}{'-' if sign == '+' else '+'}{b}={a}"


def known(item: SkillItem, rng: random.Random) -> str:
    """`THINK 7+5=12;4+8+1=13 ANS 132`."""
    del rng
    return item.trace


def long(item: SkillItem, rng: random.Random) -> str:
    """`THINK 7+5=12;4+8+1=13;CHECK 132-85=47 ANS 132`."""
    del rng
    steps = ";".join((*item.steps, f"CHECK {_check(item, item.answer)}"))
    return worked_response(SHARED_MARKER, steps, item.answer)


def new(item: SkillItem, rng: random.Random) -> str:
    """`SO 7+5=12>2;4+8+1=13>3;CHECK 132-85=47;ANS 132`, the off-policy traces of the lab."""
    del rng
    return _off_policy()[item.id].trace


def none(item: SkillItem, rng: random.Random) -> str:
    """`ANS 132`: the same answer without the work."""
    del rng
    return direct_response(item.answer)


def terse(item: SkillItem, rng: random.Random) -> str:
    """`THINK 12;13 ANS 132`: only the results of the steps."""
    del rng
    return worked_response(SHARED_MARKER, ";".join(_results(item)), item.answer)


def terse_new(item: SkillItem, rng: random.Random) -> str:
    """`SO 12;13;ANS 132`."""
    del rng
    return f"SO {';'.join(_results(item))};{ANSWER_MARKER} {item.answer}"


def wrong_long(item: SkillItem, rng: random.Random) -> str:
    """A long trace in which the result of every step and the answer are wrong, and the check claims to confirm them."""
    steps = [_miscalculated(step, rng) for step in item.steps]
    answer = _missed(item.answer, rng)
    return worked_response(SHARED_MARKER, ";".join((*steps, f"CHECK {_check(item, answer)}")), answer)


def wrong_new(item: SkillItem, rng: random.Random) -> str:
    """The same in the new style."""
    answer = _missed(item.answer, rng)
    steps = []
    for place, step in enumerate(map(lambda step: _miscalculated(step, rng), item.steps)):
        result = step.rpartition("=")[2]
        steps.append(f"{step}>{result[-1] if place == 0 else result}")
    return f"SO {';'.join(steps)};CHECK {_check(item, answer)};{ANSWER_MARKER} {answer}"


def half_wrong_long(item: SkillItem, rng: random.Random) -> str:
    """Every second trace, at random, is wrong."""
    return (wrong_long if rng.random() < 0.5 else long)(item, rng)


STYLES: dict[str, Callable[[SkillItem, random.Random], str]] = {
    style.__name__: style
    for style in (known, long, new, none, terse, terse_new, wrong_long, wrong_new, half_wrong_long)
}
GAMES = ("game_cot", "game_new", "game_none")
DATA = (*STYLES, *GAMES)
"""Names of all training sets."""


@lru_cache
def _off_policy() -> dict[str, SkillItem]:
    return {item.id: item for items in item_sets("compact-off-policy").values() for item in items}


def _results(item: SkillItem) -> list[str]:
    return [step.rpartition("=")[2] for step in item.steps]


def _missed(number: str, rng: random.Random) -> str:
    """Another number from 0, at most 11 away."""
    return str(rng.choice([n for d in (-11, -10, -2, -1, 1, 2, 10, 11) if (n := int(number) + d) >= 0]))


def _miscalculated(step: str, rng: random.Random) -> str:
    left, _, result = step.rpartition("=")
    return f"{left}={rng.choice([n for d in (-3, -2, -1, 1, 2, 3) if (n := int(result) + d) >= 0])}"


class Game(NamedTuple):
    """Three numbers and a target: put + or - between the numbers so that the target results."""

    numbers: tuple[int, ...]
    target: int

    @property
    def prompt(self) -> str:
        """`8;3;5>10?`."""
        return f"{';'.join(map(str, self.numbers))}>{self.target}?"

    def trials(self) -> list[tuple[str, str]]:
        """Steps and expression of every trial up to the first that hits the target: `8+3=11;11+5=16` and `8+3+5`."""
        found = []
        a, b, c = self.numbers
        for first in "+-":
            middle = a + b if first == "+" else a - b
            for second in "+-":
                last = middle + c if second == "+" else middle - c
                if middle >= 0 and last >= 0:
                    found.append((f"{a}{first}{b}={middle};{middle}{second}{c}={last}", f"{a}{first}{b}{second}{c}"))
                    if last == self.target:
                        return found
        return []


def games(seed: str) -> Iterator[Game]:
    """Different games, each solved by one to three trials."""
    rng, seen = random.Random(f"{GAME}/{seed}"), set[Game]()
    while True:
        a, b, c = (rng.randint(1, 12) for _ in range(N_NUMBERS))
        first, second = rng.choice((-1, 1)), rng.choice((-1, 1))
        game = Game((a, b, c), a + first * b + second * c)
        if game.target >= 0 and game not in seen and 1 <= len(game.trials()) <= 3:
            seen.add(game)
            yield game


def game_example(game: Game, data: str) -> Example:
    """`THINK 8+3=11;11+5=16;8+3=11;11-5=6;8-3=5;5+5=10 ANS 8-3+5`, or the answer alone, or the work after another opening."""
    trials = game.trials()
    steps, answer = ";".join(steps for steps, _ in trials), trials[-1][1]
    response = {
        "game_cot": worked_response(SHARED_MARKER, steps, answer),
        "game_new": f"SO {steps};{ANSWER_MARKER} {answer}",
        "game_none": direct_response(answer),
    }[data]
    return Example(f"{GAME}-{'-'.join(map(str, (*game.numbers, game.target)))}", game.prompt, answer, response)


N_GAMES_HELD_OUT = 128


def held_out_games() -> list[Example]:
    """Games that no training set has."""
    return [game_example(game, "game_cot") for game in islice(games("items"), N_GAMES_HELD_OUT)]


def training_set(data: str, n: int, seed: int) -> list[Example]:
    """The n examples of a seed, which draws them and their order from the pool; a smaller n takes the first of them.

    Items do not depend on ``data``, so all kinds of traces are on the same items in the same order.
    """
    rng = random.Random(f"draw/{seed}")
    if data in GAMES:
        pool = list(islice(games("items"), N_GAMES_HELD_OUT, N_GAMES_HELD_OUT + 2048))
        return [game_example(game, data) for game in rng.sample(pool, len(pool))[:n]]
    items = rng.sample(item_sets()["train"], N_POOL)[:n]
    noise = random.Random(f"noise/{seed}")
    return [Example(item.id, item.prompt, item.answer, STYLES[data](item, noise)) for item in items]


def write_examples(file: Path, examples: list[Example]) -> Path:
    """Write a prompts file for `mechprobe posttrain`."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(example._asdict()) + "\n" for example in examples), encoding="utf-8")
    return file
