"""Multiple-choice items, and how a line of a task file becomes one."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from mechprobe.errors import InputError
from mechprobe.evals.config import ChoiceConfig
from mechprobe.evals.scorers.rules import LETTERS
from mechprobe.records import text_field


class ChoiceItem(NamedTuple):
    """A question, its options in the order of the file, and the index of the right option."""

    stem: str
    options: tuple[str, ...]
    right: int


def choice_item(fields: Mapping[str, Any], config: ChoiceConfig, where: str) -> ChoiceItem:
    """The item of a line that has ``options``.

    Args:
        fields: The JSON object of the line.
        config: How the item will be presented.
        where: File and line, for error messages.

    Raises:
        InputError: The options or the answer are unusable.
    """
    options = fields["options"]
    if not isinstance(options, list) or not all(isinstance(text, str) and text.strip() for text in options):
        raise InputError(f"{where}: 'options' must be a list of non-empty texts.")
    if len(options) < 2 or len(set(options)) < len(options):
        raise InputError(f"{where}: 'options' must hold at least two texts, all of them different; it holds {options}.")
    if config.show == "letters" and len(options) > len(LETTERS):
        raise InputError(
            f"{where} has {len(options)} options, but only {len(LETTERS)} letters exist; "
            'set tasks.choice.show = "none".'
        )
    right = _right(fields.get("answer"), len(options))
    if right is None:
        last = len(options) - 1
        letters = f"a letter from A to {LETTERS[last]} or " if last < len(LETTERS) else ""
        raise InputError(
            f"{where}: the answer {fields.get('answer')!r} does not name an option; "
            f"write {letters}an index from 0 to {last}."
        )
    return ChoiceItem(text_field(dict(fields), "prompt", where), tuple(options), right)


def _right(answer: Any, n: int) -> int | None:
    """Index of the right option, from an index or a letter; None if the answer names none of the n options."""
    if isinstance(answer, int) and not isinstance(answer, bool):
        return answer if 0 <= answer < n else None
    if isinstance(answer, str) and len(answer.strip()) == 1 and answer.strip().upper() in LETTERS[:n]:
        return LETTERS.index(answer.strip().upper())
    return None
