r"""Find the part of a response that answers: behind the thinking, and before the next question.

A model that thinks writes a block ``<think>...</think>`` first; what it tries there is not an answer. A base model often
writes another question, and its answer, behind its own answer. The rules are mechprobe's own.
"""

import re
from collections.abc import Callable
from itertools import pairwise
from typing import TypeVar

from mechprobe.types import THINK, ThinkTags

Found = TypeVar("Found")

_TURN = re.compile(
    r"<\|(?:im_start|im_end|endoftext|end_of_text|eot_id|eom_id|start_header_id|end|user)\|>|</s>|<eos>|"
    r"<(?:start|end)_of_turn>|\[/?INST\]"
)
_QUESTION = re.compile(
    r"^[ \t]*(?:[#>*_]+[ \t]*)?(?:(?:question|problem|exercise|human|user|instructions?)[ \t]*+(?:no\.?[ \t]*+)?#?\d*|q\d*|问题|题目|问)"
    r"[*_]*[ \t]*(?::|：)|^[ \t]*(?:[*_]+)?q\d+[ \t]*[.)]",
    re.IGNORECASE | re.MULTILINE,
)  # fmt: skip


def answer_part(response: str, think: ThinkTags | None = THINK, *, opened: bool = False) -> str | None:
    """What follows the last end tag; the whole response without a thinking block; None if the block has no end.

    Args:
        response: Text of the response.
        think: Start and end tag of the thinking block; None for models that do not think.
        opened: Whether the prompt already opened the block.
    """
    if think is None:
        return response
    start, end = think
    _, closed, tail = response.rpartition(end)
    if start and start in tail:
        return None
    return tail if closed or not opened else None


def blocks(text: str) -> list[str]:
    """The parts of an answer, in order: the model's own answer, then whatever it went on with.

    A new part begins at a token that separates the turns of a chat, and at a line that asks a question: ``Question:``,
    ``Q:``, ``Problem 2:``, ``Exercise:``, ``Human:``, ``User:`` or ``Instruction:``.
    """
    parts = []
    for turn in _TURN.split(text):
        starts = [0, *(found.start() for found in _QUESTION.finditer(turn)), len(turn)]
        parts += [turn[start:end] for start, end in pairwise(starts)]
    return [part for part in parts if part.strip()]


def first_found(text: str, find: Callable[[str], Found | None]) -> Found | None:
    """What ``find`` finds in the first part of an answer in which it finds anything."""
    return next((found for part in blocks(text) if (found := find(part)) is not None), None)
