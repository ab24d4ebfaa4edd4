"""Scores of made-up models on made-up items."""

from collections.abc import Sequence

import numpy as np

from mechprobe.drift.probe.scores import ItemScores

SKILLS = ("calculation", "diagnostic", "enumeration", "fact_retrieval", "simulation")


def scores_of(right: np.ndarray, models: Sequence[str], *, pairs: bool = False, chance: float = 0.0) -> ItemScores:
    """Scores ``[model skill item]``; with ``pairs`` two neighbors are one cluster."""
    n = right.shape[2]
    skill = [name for name in SKILLS[: right.shape[1]] for _ in range(n)]
    numbers = [place // 2 if pairs else place for place in range(len(skill))]
    return ItemScores(
        models=tuple(models),
        right=right.reshape(len(models), -1).astype(np.float64),
        skill=tuple(skill),
        domain=("mathematics",) * len(skill),
        task=tuple(skill),
        cluster=tuple(f"item{number:05d}" for number in numbers),
        chance=np.full(len(skill), chance),
    )


def flipped(base: np.ndarray, rng: np.random.Generator, *, up: float = 0.0, down: float = 0.0) -> np.ndarray:
    """Outcomes in which each wrong item becomes right with probability ``up``, and each right one wrong with ``down``."""
    draw = rng.random(base.shape)
    return np.where(base, draw >= down, draw < up)
