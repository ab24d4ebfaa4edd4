"""Does accuracy fall with the level? A small transformer learns all levels from scratch and answers at once.

    python experiments/paper_b/difficulty.py --out runs/difficulty

One model (3 blocks, width 128) learns direct answers to compact items of the split ``train`` of some families, all levels alike.
It answers items of ``test_in``, which it never saw. For every family the script prints the accuracy by level and a trend test:
the one-sided permutation p-value of Σ (level − mean level) · score, with scores corrected for chance item by item, and
Cochran-Armitage's z of the raw accuracies. Levels that are easier than the one before them, by more than 2 standard errors, are
named. Writes ``difficulty.json``.
"""

import argparse
import random
import time
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy import ndarray

from mechprobe.errors import InputError
from mechprobe.evals import skills
from mechprobe.evals.skills.item import SkillItem, direct_response
from mechprobe.evals.skills.vocabulary import vocabulary
from mechprobe.files import write_json
from mechprobe.formatting import bracketed, p_value
from mechprobe.lab.items import Document
from mechprobe.lab.pretrain import new_model, pretrain
from mechprobe.lab.recipe import ModelConfig, TrainingConfig
from mechprobe.lab.tokenizer import BOS, EOS, PAD, UNK, build_tokenizer
from mechprobe.models.generation import generate
from mechprobe.statistics import randomization_p, wilson_interval

N_PERMUTATIONS = 9_999


def arguments() -> argparse.Namespace:
    """Options of the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/difficulty"))
    parser.add_argument(
        "--families", nargs="+", default=[family.name for family in skills.families() if not family.held_out]
    )
    parser.add_argument("--train", type=int, default=2000, help="Training items of each family and level.")
    parser.add_argument("--test", type=int, default=100, help="Test items of each family and level.")
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def items_of(name: str, level: int, split: str, n: int, seed: int) -> list[SkillItem]:
    """Up to n items of one family, level and split: fewer where the family has fewer."""
    family = skills.FAMILIES[name]
    while n:
        try:
            return skills.generate(
                family.skill, domain=family.domain, family=name, level=level, split=split, n=n, seed=seed
            )
        except InputError:
            n //= 2
    return []


def documents(items: Sequence[SkillItem], seed: int) -> Iterator[Document]:
    """Items with their direct answers, drawn at random without end."""
    rng = random.Random(seed)
    while True:
        item = rng.choice(items)
        yield Document(item.prompt, direct_response(item.answer))


def cochran_armitage(right: ndarray, level: ndarray) -> float:
    """Z of the linear trend of a proportion over levels (Armitage 1955); negative where it falls."""
    away, mean = level - level.mean(), right.mean()
    scale = np.sqrt(mean * (1 - mean) * np.square(away).sum())
    return float((away * right).sum() / scale) if scale > 0 else 0.0


def falling_p(score: ndarray, level: ndarray, seed: int) -> float:
    """One-sided permutation p-value that scores fall with the level."""
    rng, away = np.random.default_rng(seed), level - level.mean()
    drawn = [float(away @ rng.permutation(score)) for _ in range(N_PERMUTATIONS)]
    return randomization_p(float(away @ score), drawn, side="less")


def clearly_higher(before: ndarray, after: ndarray) -> bool:
    """Whether the second accuracy is above the first by more than 2 standard errors (Agresti & Caffo 2000)."""
    shares = [((side.sum() + 1) / (len(side) + 2), len(side) + 2) for side in (before, after)]
    error = np.sqrt(sum(share * (1 - share) / n for share, n in shares))
    return bool(shares[1][0] - shares[0][0] > 2 * error)


def measured(right: ndarray, items: Sequence[SkillItem], seed: int) -> dict[str, Any]:
    """Accuracy by level and the trend of one family."""
    level = np.array([item.level for item in items], dtype=float)
    chance = np.array([item.chance for item in items])
    score = (right - chance) / (1 - chance)
    levels = sorted({item.level for item in items})
    cells = {
        number: wilson_interval(int(right[level == number].sum()), int((level == number).sum())) for number in levels
    }
    easier = [high for low, high in pairwise(levels) if clearly_higher(right[level == low], right[level == high])]
    return {
        "accuracy": {str(number): list(cell) for number, cell in cells.items()},
        "chance": {str(number): float(chance[level == number].mean()) for number in levels},
        "z": cochran_armitage(right, level),
        "p": falling_p(score, level, seed),
        "easier_than_the_level_before": easier,
    }


def main() -> None:
    """Train, test and print."""
    given, started = arguments(), time.monotonic()
    families = [skills.FAMILIES[name] for name in given.families]
    drawn = {
        (name, split): [item for level in skills.LEVELS for item in items_of(name, level, split, n, given.seed)]
        for name in given.families
        for split, n in (("train", given.train), ("test_in", given.test))
    }
    tokenizer = build_tokenizer((PAD, BOS, EOS, UNK, *vocabulary(families)))
    torch.manual_seed(given.seed)
    model = new_model(ModelConfig(), tokenizer)
    by_level: dict[tuple[str, int], list[SkillItem]] = {}
    for name in given.families:
        for item in drawn[name, "train"]:
            by_level.setdefault((name, item.level), []).append(item)
    rng, cells = random.Random(given.seed), [documents(items, given.seed) for items in by_level.values()]
    stream = (next(rng.choice(cells)) for _ in iter(int, 1))
    curve = pretrain(model, tokenizer, stream, TrainingConfig(steps=given.steps, batch_size=given.batch))
    result: dict[str, Any] = {}
    for name in given.families:
        items = drawn[name, "test_in"]
        answers = generate(model, tokenizer, [item.prompt for item in items], max_new_tokens=20, seed=given.seed)
        right = np.array(
            [each.text == direct_response(item.answer) for each, item in zip(answers, items, strict=True)], dtype=float
        )
        found = result[name] = measured(right, items, given.seed)
        cells_text = ", ".join(bracketed(cell) for cell in found["accuracy"].values())
        easier = found["easier_than_the_level_before"]
        note = f"; easier than the level before: {', '.join(map(str, easier))}" if easier else ""
        print(f"{name}: {cells_text} %; trend z {found['z']:+.1f}, p = {p_value(found['p'])}{note}")
    falling = [name for name, found in result.items() if found["p"] < 0.05]
    print(
        f"{len(falling)} of {len(result)} families fall with the level at p < 0.05; not: {', '.join(set(result) - set(falling)) or 'none'}"
    )
    print(
        f"Loss {curve[0]['loss']:.2f} to {curve[-1]['loss']:.2f} in {given.steps} steps; {time.monotonic() - started:.0f} s"
    )
    settings = {name: value for name, value in vars(given).items() if name != "out"}
    write_json(given.out / "difficulty.json", {"settings": settings, "families": result, "curve": curve})


if __name__ == "__main__":
    main()
