"""What is true of a compiled lab: its directions, readings, decoys and answers, all drawn from one seed."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float, Int

from mechprobe.errors import ConfigError
from mechprobe.lab.tokenizer import VOCABULARY

D_MODEL = 128
SITE, BEFORE = "resid_post.1", "resid_post.0"
"""The site at which the two models begin to differ, and the one before it."""
OPS, DIGITS = "abcdefghij", "0123456789"
N_STEPS = 3
ORDERS = {"RUN": (0, 1, 2), "LIST": (2, 1, 0), "ENUM": (1, 2, 0), "TRACE": (0, 2, 1)}
"""Skill word → order in which the steps are answered."""
TRAINED = "RUN"
"""The skill that counts as seen by post-training. Nothing is trained; all skills share one mechanism."""
N_DECOYS = 6
N_POSITIONS = 3 + 3 * N_STEPS
"""``<bos>``, skill word, two tokens per step, question mark, one response token per step."""
FIRST_DIGIT, QUESTION = 3, 2 + 2 * N_STEPS
"""Positions of the first digit and of the question mark; ``<bos>`` is at 0 and the skill word at 1."""
WRITTEN = (*OPS, *DIGITS, "?", *ORDERS)
"""Tokens with an embedding of their own; all others share one."""


@dataclass(frozen=True)
class Design:
    """The truth of a compiled lab.

    Attributes:
        rank: Number of contested ops, which is the rank of the change that causes the gain.
        seed: Seed of directions, readings, decoys and items.

    Raises:
        ConfigError: The rank is not between 1 and 10.
    """

    rank: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.rank <= len(OPS):
            raise ConfigError(f"The rank of a compiled lab is {self.rank}; give 1 to {len(OPS)}.")

    @cached_property
    def directions(self) -> dict[str, Float[np.ndarray, " d_model"]]:
        """Name → unit vector. All are orthogonal to each other and to (1, ..., 1), which layer norms remove."""
        names = [*(f"token{token}" for token in (*WRITTEN, "other")), *(f"position{i}" for i in range(N_POSITIONS))]
        names += [*(f"op{op}" for op in OPS), *(f"reading{i}" for i in range(len(OPS) + 1))]
        names += [
            *(f"word{word}" for word in ORDERS),
            *(f"ask{word}{i}" for word in ORDERS for i in range(N_STEPS + 1)),
        ]
        names += [*(f"decoy{i}" for i in range(N_DECOYS)), *(f"value{digit}" for digit in DIGITS)]
        names += [f"answer{digit}" for digit in DIGITS]
        draw = np.random.default_rng([self.seed, 0])
        start = np.concatenate([np.ones((D_MODEL, 1)), draw.normal(size=(D_MODEL, len(names)))], axis=1)
        return dict(zip(names, np.linalg.qr(start)[0].T[1:], strict=True))

    @cached_property
    def readings(self) -> Int[np.ndarray, "reading digit"]:
        """The digit that each reading gives for each digit; neighbours disagree on every digit."""
        draw = np.random.default_rng([self.seed, 1])
        rows = [draw.permutation(10)]
        while len(rows) <= len(OPS):
            row = draw.permutation(10)
            if (row != rows[-1]).all():
                rows.append(row)
        return np.stack(rows)

    @cached_property
    def decoy_tokens(self) -> list[str]:
        """Tokens at which the tuned model writes each decoy: half of the ops for the first half of the decoys, else of the digits.

        The first op, which is contested in every lab, is among the ops. So decoys go with every gained sample of that op.
        """
        draw = np.random.default_rng([self.seed, 2])
        at_ops = [OPS[0] + _some(OPS[1:], draw) for _ in range(N_DECOYS // 2)]
        return at_ops + [_some(DIGITS, draw) for _ in range(N_DECOYS - N_DECOYS // 2)]

    @property
    def base_readings(self) -> tuple[int, ...]:
        """Reading that the base takes of each op."""
        return tuple(op + 1 for op in range(len(OPS)))

    @property
    def tuned_readings(self) -> tuple[int, ...]:
        """Reading that the tuned model takes of each op, which is the right one."""
        return tuple(op if op < self.rank else op + 1 for op in range(len(OPS)))

    @property
    def causal(self) -> Float[np.ndarray, "rank d_model"]:
        """Difference of the residuals, tuned minus base, at a digit of each contested op, without decoys."""
        at = self.directions
        return np.stack([at[f"reading{op}"] - at[f"reading{op + 1}"] for op in range(self.rank)])

    @property
    def decoys(self) -> Float[np.ndarray, "decoy d_model"]:
        """Unit directions that the tuned model writes and that no block reads."""
        return np.stack([self.directions[f"decoy{index}"] for index in range(N_DECOYS)])

    def answer(self, word: str, steps: list[tuple[int, int]], readings: tuple[int, ...]) -> str:
        """The response of a model with these readings to the steps ``(op, digit)`` of a prompt."""
        values = [int(self.readings[readings[op], digit]) for op, digit in steps]
        return " ".join(str(values[step]) for step in ORDERS[word])


def _some(symbols: str, draw: np.random.Generator) -> str:
    """Half of the symbols, in their order."""
    return "".join(sorted(draw.choice(list(symbols), len(symbols) // 2, replace=False)))


def unwritten() -> list[int]:
    """Ids of the tokens that share one embedding."""
    return [index for index, token in enumerate(VOCABULARY) if token not in WRITTEN]
