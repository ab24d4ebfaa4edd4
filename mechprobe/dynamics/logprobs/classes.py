"""The class of every response token: words of the lists, the answer, end tokens, digits, operators, and the rest."""

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int
from numpy import ndarray

from mechprobe.data.tokens import special_token_ids
from mechprobe.drift.divergence.texts import token_class
from mechprobe.dynamics.logprobs.config import LISTED, LogprobsConfig
from mechprobe.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CLASS_RULE = (
    "Classes of logprobs.classes (the lists are ours): every token that a listed word or phrase covers, in any case, between "
    "characters that are no letters; the first class of the list counts. answer: the tokens of the last occurrence of the right "
    "answer among the last 64 tokens; it goes before all others. special: special and end tokens. digits, operators: every character is "
    "a digit, or one of logprobs.operators. other: the rest."
)
ANSWER_TOKENS = 64
"""Tokens at the end of a response among which the answer is searched."""
_LETTER = r"[^\W\d_]"


def word_pattern(words: Iterable[str]) -> "re.Pattern[str]":
    """Matches the words and phrases between characters that are no letters, in any case; runs of blanks are equal.

    Example:
        >>> [match[0] for match in word_pattern(["so", "let me check"]).finditer("So some let  me check")]
        ['So', 'let  me check']
    """
    longest = sorted({" ".join(word.split()) for word in words if word.strip()}, key=lambda word: (-len(word), word))
    forms = "|".join(r"\s+".join(map(re.escape, word.split())) for word in longest)
    return re.compile(rf"(?<!{_LETTER})(?:{forms})(?!{_LETTER})", re.IGNORECASE)


class TokenClasses:
    """Gives every token of a response its class.

    Attributes:
        names: Names of the classes; a class is an index into them.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", config: LogprobsConfig) -> None:
        """Prepare the lists.

        Raises:
            ConfigError: A word that the user listed cannot be written by the tokenizer, or the class of backtracking is unknown.
        """
        self.names = config.class_names
        if config.backtrack not in config.lists:
            raise ConfigError(
                f"logprobs.backtrack is '{config.backtrack}', which is none of the classes {', '.join(config.lists)}; name one of them."
            )
        _require_writable(tokenizer, config)
        self._tokenizer = tokenizer
        self._special = set(special_token_ids(tokenizer))
        self._operators = set(config.operators)
        self._patterns = [word_pattern(words) for words in config.lists.values()]
        self._pieces: dict[int, str] = {}
        self._kinds: dict[int, int] = {}
        anchor = tokenizer("a", add_special_tokens=False).input_ids[-1:]
        self._anchor = (anchor, self._decoded(anchor))

    def of(self, ids: Sequence[int], answer: str | None = None) -> Int[ndarray, " token"]:
        """Index in `names` of every token of a response."""
        found = np.array([self._kind(token) for token in ids], dtype=np.int64)
        pieces = [self.piece(token) for token in ids]
        ends = np.cumsum([len(piece) for piece in pieces])
        text = "".join(pieces)
        for index in reversed(range(len(self._patterns))):
            for match in self._patterns[index].finditer(text):
                found[_covered(ends, match.start(), match.end())] = index
        found[[token in self._special for token in ids]] = self.names.index("special")
        if answer is not None:
            found[answer_tokens(pieces, answer)] = self.names.index("answer")
        return found

    def piece(self, token: int) -> str:
        """The text that a token adds to a text, with the blank that stands before its word."""
        if token not in self._pieces:
            ids, before = self._anchor
            whole = self._decoded([*ids, token])
            alone = whole.removeprefix(before) if whole.startswith(before) else ""
            self._pieces[token] = alone or self._decoded([token])
        return self._pieces[token]

    def _decoded(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=False))

    def _kind(self, token: int) -> int:
        """The class of a token that no list and no answer covers."""
        if token not in self._kinds:
            name = token_class(self._tokenizer, token, self._special, set(), self._operators)
            self._kinds[token] = self.names.index(name)
        return self._kinds[token]


def _require_writable(tokenizer: "PreTrainedTokenizerBase", config: LogprobsConfig) -> None:
    unknown = tokenizer.unk_token_id
    for name, words in config.lists.items():
        for word in words if unknown is not None and words != LISTED.get(name) else ():
            if unknown in tokenizer(word, add_special_tokens=False).input_ids:
                raise ConfigError(
                    f"logprobs.classes.{name} lists '{word}', which the tokenizer of the models cannot write; remove it, or correct it."
                )


def _covered(ends: Int[ndarray, " token"], start: int, stop: int) -> slice:
    """Tokens that have a character of a range; a token of blanks at its start does not count."""
    first = int(np.searchsorted(ends, start, side="right"))
    return slice(first, int(np.searchsorted(ends, stop, side="left")) + 1)


def answer_tokens(pieces: Sequence[str], answer: str) -> list[int]:
    """Tokens of the last occurrence of an answer among the last tokens of a response, blanks apart; none where it does not stand there.

    An occurrence inside a longer number does not count.

    Example:
        >>> answer_tokens([" ANS", " 1", " 2"], "12")
        [1, 2]
    """
    wanted = "".join(answer.split()).casefold()
    first = max(0, len(pieces) - ANSWER_TOKENS)
    bare = ["".join(piece.split()).casefold() for piece in pieces[first:]]
    ends, text = np.cumsum([len(piece) for piece in bare]), "".join(bare)
    place = text.rfind(wanted) if wanted else -1
    while place >= 0 and _inside(text, place, place + len(wanted)):
        place = text.rfind(wanted, 0, place + len(wanted) - 1)
    if place < 0:
        return []
    covered = _covered(ends, place, place + len(wanted))
    return [first + index for index in range(covered.start, covered.stop)]


def _inside(text: str, start: int, stop: int) -> bool:
    """Whether a range of a text without blanks is a part of a longer number."""
    digits = text[start].isdigit(), text[stop - 1].isdigit()
    return (digits[0] and text[start - 1 : start].isdigit()) or (digits[1] and text[stop : stop + 1].isdigit())
