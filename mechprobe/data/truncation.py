"""Truncation of sequences that are longer than the limit."""

from typing import Literal, NamedTuple

Truncate = Literal["response", "right", "left", "refuse", "drop"]
"""Treatment of a sequence that is too long.

``response`` cuts the end of the response, and refuses a prompt that is too long by itself. ``right`` and ``left`` cut the
last or first tokens of prompt and response together, but keep a leading BOS. ``refuse`` raises an error. ``drop`` leaves the
sequence out.
"""


class Fitted(NamedTuple):
    """Prompt and response within the limit, and the number of tokens that were cut."""

    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    n_cut: int


class TooLongError(ValueError):
    """A sequence is too long and may not be cut; the message states its length."""


def fit(
    prompt_ids: tuple[int, ...], response_ids: tuple[int, ...], *, max_length: int, truncate: Truncate, n_head: int = 0
) -> Fitted | None:
    """Truncate a sequence to ``max_length`` tokens.

    Args:
        prompt_ids: Token ids of the prompt, including special tokens.
        response_ids: Token ids of the response.
        max_length: Length of the longest sequence, at least 1.
        truncate: Treatment of a longer sequence.
        n_head: Number of leading prompt tokens that ``left`` keeps; 1 if the prompt starts with BOS.

    Returns:
        The sequence, or None if it is dropped.

    Raises:
        TooLongError: The sequence is too long and may not be cut.

    Example:
        >>> fit((1, 10, 11, 12), (20, 21), max_length=4, truncate="left", n_head=1)
        Fitted(prompt_ids=(1, 12), response_ids=(20, 21), n_cut=2)
        >>> fit((1, 10, 11, 12), (20, 21), max_length=5, truncate="right")
        Fitted(prompt_ids=(1, 10, 11, 12), response_ids=(20,), n_cut=1)
    """
    n_over = len(prompt_ids) + len(response_ids) - max_length
    if n_over <= 0:
        return Fitted(prompt_ids, response_ids, 0)
    if truncate == "drop":
        return None
    if truncate == "refuse":
        raise TooLongError(f"{len(prompt_ids) + len(response_ids)} tokens")
    if truncate == "response" and len(prompt_ids) > max_length:
        raise TooLongError(f"{len(prompt_ids)} tokens")
    if truncate == "left":
        return _without_first(prompt_ids, response_ids, n_over, min(n_head, max_length - 1))
    kept = prompt_ids[:max_length]
    return Fitted(kept, response_ids[: max_length - len(kept)], n_over)


def _without_first(prompt_ids: tuple[int, ...], response_ids: tuple[int, ...], n_over: int, n_head: int) -> Fitted:
    body = prompt_ids[n_head:]
    n_of_response = max(0, n_over - len(body))
    return Fitted(prompt_ids[:n_head] + body[n_over:], response_ids[n_of_response:], n_over)
