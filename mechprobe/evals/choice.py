"""Multiple choice: items with options, the orders they are shown in, and what counts as right.

An item is asked under several orders of its options, because language models prefer places (arXiv 2309.03882). Under
each order π every option o has a probability p_π(o): the softmax over options of its log-likelihood, or, where the
model answers in words, 1 for the option whose letter it gives. The rules:

* ``mean``: right where (1/|Π|) Σ_π p_π(o) is strictly highest for the right option (the average over permutations of
  arXiv 2309.03882);
* ``all``: right where p_π(o) is strictly highest for the right option under every order (CircularEval,
  arXiv 2307.06281, with cyclic orders).
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float
from pydantic import Field

from mechprobe.config import FrozenConfig
from mechprobe.errors import InputError
from mechprobe.evals.scorers.rules import LETTERS, option_letter
from mechprobe.records import Sample, text_field
from mechprobe.types import OutcomeName

Order = tuple[int, ...]
"""Which option stands at each place."""

Probabilities = Float[np.ndarray, "order option"]


class ChoiceConfig(FrozenConfig):
    """How items with options are asked and judged."""

    show: Literal["letters", "none"] = "letters"
    """``letters``: options stand in the prompt with letters, and the letters are scored. ``none``: they do not, and their
    texts are scored; the order then means nothing, and there is one."""
    orders: Annotated[int, Field(ge=1)] | Literal["cyclic"] = "cyclic"
    """``cyclic``: as many as there are options, each at every place once. A number: so many different ones, the file's
    and others drawn by seed."""
    rule: Literal["mean", "all"] = "mean"
    """When an item is right over its orders, see the module."""
    normalize: Literal["none", "tokens", "characters"] = "none"
    """What an option's log-likelihood is divided by before options are compared; for texts of different lengths."""
    cue: str = "Answer:"
    """The prompt's last line, where options are shown."""
    delimiter: str = " "
    """Between the prompt and what is scored."""
    seed: int = Field(default=0, ge=0)
    """Of drawn orders."""


class ChoiceItem(NamedTuple):
    """What is asked, the options in the file's order, and which is right."""

    stem: str
    options: tuple[str, ...]
    right: int


class Decision(NamedTuple):
    """An item's outcome, the option chosen over all orders (None for none), and under each of them (−1 for none)."""

    outcome: OutcomeName
    option: int | None
    chosen: tuple[int, ...]


@dataclass(frozen=True)
class MultipleChoice:
    """Judges items with options, in the place of a `Scorer`.

    Attributes:
        config: How.
        items: By sample id.
        generated: The model answers in words and the option letter is read from them; else log-likelihoods decide.
    """

    config: ChoiceConfig
    items: Mapping[str, ChoiceItem]
    generated: bool = False

    @property
    def spec(self) -> str:
        """``choice``, or ``letter`` where the model answers in words."""
        return "letter" if self.generated else "choice"

    def identity(self, ids: Sequence[str]) -> list[Any]:
        """What stands for the judgement of these samples in the fingerprint of their task."""
        return [self.spec, self.config.model_dump(mode="json"), [list(self.items[k]) for k in ids]]

    def orders(self, sample_id: str) -> list[Order]:
        """The orders of an item; the first is the file's."""
        n = len(self.items[sample_id].options)
        if self.config.show == "none" or self.config.orders == 1:
            return [tuple(range(n))]
        if self.config.orders == "cyclic":
            return [tuple((place + turn) % n for place in range(n)) for turn in range(n)]
        if self.config.orders >= math.factorial(n):
            return list(itertools.permutations(range(n)))
        rng = np.random.default_rng([self.config.seed, *sample_id.encode()])
        drawn: dict[Order, None] = {tuple(range(n)): None}
        while len(drawn) < self.config.orders:
            drawn[tuple(int(option) for option in rng.permutation(n))] = None
        return list(drawn)

    def prompt(self, sample_id: str, order: Order) -> str:
        """What the model reads."""
        item = self.items[sample_id]
        if self.config.show == "none":
            return item.stem
        lines = [f"{LETTERS[place]}. {item.options[option]}" for place, option in enumerate(order)]
        return "\n".join([item.stem, *lines, self.config.cue])

    def continuation(self, sample_id: str, order: Order, option: int) -> str:
        """What stands for an option behind the prompt, the delimiter before it."""
        shown = self.config.show == "letters"
        text = LETTERS[order.index(option)] if shown else self.items[sample_id].options[option]
        return self.config.delimiter + text

    def asked(self, sample_id: str, task: str) -> Sample:
        """The item as a sample, as it is asked in the file's order; its answer is the right option's continuation."""
        order = self.orders(sample_id)[0]
        answer = self.continuation(sample_id, order, self.items[sample_id].right)
        return Sample(sample_id, task, self.prompt(sample_id, order), answer.strip() if self.generated else answer)

    def by_likelihood(
        self, sample_id: str, scores: Sequence[Sequence[float]], n_tokens: Sequence[Sequence[int]]
    ) -> Decision:
        """The decision from log-likelihoods in nats and numbers of tokens, ``[order][option]``."""
        item = self.items[sample_id]
        divisor = {
            "none": np.ones(np.shape(scores)),
            "tokens": np.asarray(n_tokens, dtype=np.float64),
            "characters": np.array([[len(text) for text in item.options]] * len(scores), dtype=np.float64),
        }[self.config.normalize]
        if self.config.show == "letters" and self.config.normalize == "characters":
            divisor = np.ones(np.shape(scores))  # every letter is one character long
        values = np.asarray(scores, dtype=np.float64) / divisor
        with np.errstate(invalid="ignore"):
            weights = np.exp(values - values.max(axis=1, keepdims=True))
            return decide(weights / weights.sum(axis=1, keepdims=True), item.right, self.config.rule)

    def by_words(self, sample_id: str, responses: Sequence[str]) -> Decision:
        """The decision from one response an order: the option letters read from them are votes."""
        item = self.items[sample_id]
        votes = np.zeros((len(responses), len(item.options)))
        for row, (order, response) in enumerate(zip(self.orders(sample_id), responses, strict=True)):
            letter = option_letter(response)
            if letter is not None and LETTERS.index(letter) < len(order):
                votes[row, order[LETTERS.index(letter)]] = 1.0
        return decide(votes, item.right, self.config.rule)


def decide(probabilities: Probabilities, right: int, rule: Literal["mean", "all"]) -> Decision:
    """The decision of a rule; ``unparsed`` where a probability is NaN, or no order gives any option.

    A tie for the highest is never right.
    """
    chosen = tuple(_highest(row) for row in probabilities)
    if np.isnan(probabilities).any() or not probabilities.any():
        return Decision("unparsed", None, chosen)
    best = _highest(probabilities.mean(axis=0))
    won = best == right if rule == "mean" else all(option == right for option in chosen)
    return Decision("right" if won else "wrong", None if best < 0 else best, chosen)


def _highest(row: Float[np.ndarray, " option"]) -> int:
    """The option whose value is strictly highest, −1 for a tie, NaN or nothing at all."""
    top = row.max()
    return int(row.argmax()) if top > 0 and int((row == top).sum()) == 1 else -1


def choice_item(fields: Mapping[str, Any], config: ChoiceConfig, where: str) -> ChoiceItem:
    """The item of a line with ``options``.

    Raises:
        InputError: Options or answer cannot be used; the text names ``where``.
    """
    options = fields["options"]
    if not isinstance(options, list) or not all(isinstance(text, str) and text.strip() for text in options):
        raise InputError(f"{where}: 'options' must be a list of texts, none of them empty.")
    if len(options) < 2 or len(set(options)) < len(options):
        raise InputError(f"{where}: 'options' needs two different texts or more, each once; it has {options}.")
    if config.show == "letters" and len(options) > len(LETTERS):
        raise InputError(
            f'{where} has {len(options)} options and there are {len(LETTERS)} letters; set tasks.choice.show = "none".'
        )
    right = _right(fields.get("answer"), len(options))
    if right is None:
        last = len(options) - 1
        letters = f"a letter A to {LETTERS[last]} or " if last < len(LETTERS) else ""
        raise InputError(
            f"{where}: the answer {fields.get('answer')!r} is not among the options; write {letters}an index 0 to {last}."
        )
    return ChoiceItem(text_field(dict(fields), "prompt", where), tuple(options), right)


def _right(answer: Any, n: int) -> int | None:
    if isinstance(answer, int) and not isinstance(answer, bool):
        return answer if 0 <= answer < n else None
    if isinstance(answer, str) and len(answer.strip()) == 1 and answer.strip().upper() in LETTERS[:n]:
        return LETTERS.index(answer.strip().upper())
    return None
