"""Multiple choice: items, the orders in which their options are shown, and what counts as right.

Language models prefer some positions over others (arXiv 2309.03882), so each item is presented under several orders of
its options. Under order π, option o has probability p_π(o). If log-likelihoods are scored, p_π is their softmax over
options. If the model generates a response, p_π is 1 for the option whose letter the response gives. Two rules exist:

* ``mean``: the item is right if (1/|Π|) Σ_π p_π(o) is strictly highest for the right option (the average over
  permutations of arXiv 2309.03882).
* ``all``: the item is right if p_π(o) is strictly highest for the right option under every order (CircularEval of
  arXiv 2307.06281 when the orders are cyclic).
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from mechprobe.errors import InputError
from mechprobe.evals.config import ChoiceConfig, ChoiceRule
from mechprobe.evals.scorers.answer_part import first_found
from mechprobe.evals.scorers.letters import LETTERS, option_letter
from mechprobe.json_fields import text_field
from mechprobe.records import Sample
from mechprobe.types import OutcomeName


class ChoiceItem(NamedTuple):
    """A question, its options in the order of the file, and the index of the right option."""

    stem: str
    options: tuple[str, ...]
    right: int


def choice_item(fields: Mapping[str, Any], config: ChoiceConfig, where: str) -> ChoiceItem:
    """The item of a line that has ``options``; `InputError`, which begins with ``where``, if its fields are unusable."""
    options = fields["options"]
    if not isinstance(options, list) or not all(isinstance(text, str) and text.strip() for text in options):
        raise InputError(f"{where}: 'options' must be a list of non-empty texts.")
    if len(options) < 2 or len(set(options)) < len(options):
        raise InputError(f"{where}: 'options' must hold at least two texts, all of them different; it holds {options}.")
    if config.show == "letters" and len(options) > len(LETTERS):
        raise InputError(
            f'{where} has {len(options)} options, but only {len(LETTERS)} letters exist; set tasks.choice.show = "none".'
        )
    right = _right(fields.get("answer"), len(options))
    if right is None:
        last = len(options) - 1
        letters = f"a letter from A to {LETTERS[last]} or " if last < len(LETTERS) else ""
        raise InputError(
            f"{where}: the answer {fields.get('answer')!r} names no option; write {letters}an index from 0 to {last}."
        )
    return ChoiceItem(text_field(dict(fields), "prompt", where), tuple(options), right)


def _right(answer: Any, n: int) -> int | None:
    if isinstance(answer, int) and not isinstance(answer, bool):
        return answer if 0 <= answer < n else None
    letter = answer.strip().upper() if isinstance(answer, str) else ""
    return LETTERS.index(letter) if len(letter) == 1 and letter in LETTERS[:n] else None


Order = tuple[int, ...]
"""Index of the option shown at each position."""

Probabilities = Float[np.ndarray, "order option"]


class Decision(NamedTuple):
    """The outcome of an item, and the options that the model chose."""

    outcome: OutcomeName
    option: int | None
    """The option chosen over all orders; None if there is none."""
    chosen: tuple[int, ...]
    """The option chosen under each order; −1 if there is none."""


@dataclass(frozen=True)
class MultipleChoice:
    """Presents and judges multiple-choice items; a task with options has one in place of a `Scorer`.

    Attributes:
        config: How items are presented and judged.
        items: Items by sample id.
        generated: Whether the model generates responses whose option letters are parsed. Otherwise the log-likelihoods of
            the options are compared.
    """

    config: ChoiceConfig
    items: Mapping[str, ChoiceItem]
    generated: bool = False

    @property
    def spec(self) -> str:
        """``letter`` if responses are generated, else ``choice``."""
        return "letter" if self.generated else "choice"

    def identity(self, ids: Sequence[str]) -> list[Any]:
        """The JSON value that represents the judgement of these samples in the fingerprint of their task."""
        return [self.spec, self.config.model_dump(mode="json"), [list(self.items[k]) for k in ids]]

    def orders(self, sample_id: str) -> list[Order]:
        """The orders in which an item is presented; the first is the order of the file."""
        n = len(self.items[sample_id].options)
        if self.config.show == "none" or self.config.orders == 1:
            return [tuple(range(n))]
        if self.config.orders == "cyclic":
            return [tuple((position + shift) % n for position in range(n)) for shift in range(n)]
        if self.config.orders >= math.factorial(n):
            return list(itertools.permutations(range(n)))
        rng = np.random.default_rng([self.config.seed, *sample_id.encode()])
        drawn: dict[Order, None] = {tuple(range(n)): None}
        while len(drawn) < self.config.orders:
            drawn[tuple(int(option) for option in rng.permutation(n))] = None
        return list(drawn)

    def prompt(self, sample_id: str, order: Order) -> str:
        """The prompt of an item under an order."""
        item = self.items[sample_id]
        if self.config.show == "none":
            return item.stem
        lines = [f"{LETTERS[position]}. {item.options[option]}" for position, option in enumerate(order)]
        return "\n".join([item.stem, *lines, self.config.cue])

    def continuation(self, sample_id: str, order: Order, option: int) -> str:
        """The text scored for an option: the delimiter, then the option's letter or its text."""
        shown = self.config.show == "letters"
        text = LETTERS[order.index(option)] if shown else self.items[sample_id].options[option]
        return self.config.delimiter + text

    def sample(self, sample_id: str, task: str) -> Sample:
        """The item as a sample: its prompt in the order of the file, and the continuation of the right option as answer."""
        order = self.orders(sample_id)[0]
        answer = self.continuation(sample_id, order, self.items[sample_id].right)
        return Sample(sample_id, task, self.prompt(sample_id, order), answer.strip() if self.generated else answer)

    def decide_by_likelihood(
        self, sample_id: str, scores: Sequence[Sequence[float]], n_tokens: Sequence[Sequence[int]]
    ) -> Decision:
        """The decision from log-likelihoods in nats and numbers of tokens, both ``[order][option]``."""
        item = self.items[sample_id]
        values = np.asarray(scores, dtype=np.float64)
        if self.config.normalize == "tokens":
            values = values / np.asarray(n_tokens)
        elif self.config.normalize == "characters" and self.config.show == "none":  # every letter is one character long
            values = values / [len(text) for text in item.options]
        with np.errstate(invalid="ignore"):
            weights = np.exp(values - values.max(axis=1, keepdims=True))
            return decide(weights / weights.sum(axis=1, keepdims=True), item.right, self.config.rule)

    def decide_by_responses(self, sample_id: str, responses: Sequence[str]) -> Decision:
        """The decision from one generated response per order; each option letter found is a vote."""
        item = self.items[sample_id]
        votes = np.zeros((len(responses), len(item.options)))
        for row, (order, response) in enumerate(zip(self.orders(sample_id), responses, strict=True)):
            letter = first_found(response, option_letter)
            if letter is not None and LETTERS.index(letter) < len(order):
                votes[row, order[LETTERS.index(letter)]] = 1.0
        return decide(votes, item.right, self.config.rule)


def decide(probabilities: Probabilities, right: int, rule: ChoiceRule) -> Decision:
    """The decision of a rule on the probabilities of the options under each order.

    The outcome is ``unparsed`` if a probability is NaN or all are zero. A tie for the highest never counts as right.
    """
    chosen = tuple(_highest(row) for row in probabilities)
    if np.isnan(probabilities).any() or not probabilities.any():
        return Decision("unparsed", None, chosen)
    best = _highest(probabilities.mean(axis=0))
    won = best == right if rule == "mean" else all(option == right for option in chosen)
    return Decision("right" if won else "wrong", None if best < 0 else best, chosen)


def _highest(row: Float[np.ndarray, " option"]) -> int:
    """Index of the strictly highest value; −1 if values tie, are NaN, or are all zero."""
    top = row.max()
    return int(row.argmax()) if top > 0 and int((row == top).sum()) == 1 else -1
