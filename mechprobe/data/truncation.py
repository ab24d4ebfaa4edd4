"""What becomes of a sequence that is longer than the limit."""

from typing import Literal, NamedTuple

Truncate = Literal["response", "right", "left", "refuse", "drop"]
"""``response``: a response is cut at its end, a prompt that does not fit alone is refused. ``right``, ``left``: prompt and
response together lose their last, or first, tokens (a BOS stays). ``refuse``: nothing is cut. ``drop``: what does not fit is
left out."""


class Fitted(NamedTuple):
    """Prompt and response within the limit, and how many tokens they lost."""

    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    n_cut: int


class TooLongError(ValueError):
    """A sequence does not fit and must not be cut; the text says its length."""


def fit(
    prompt_ids: tuple[int, ...],
    response_ids: tuple[int, ...],
    *,
    max_length: int,
    truncate: Truncate,
    n_head: int = 0,
) -> Fitted | None:
    """Bring a sequence within ``max_length`` tokens.

    Args:
        prompt_ids: Of the prompt, special tokens included.
        response_ids: Of the response.
        max_length: Longest sequence, at least 1.
        truncate: What to do with one that is longer.
        n_head: Leading tokens of the prompt that ``left`` keeps (1 where the prompt begins with BOS).

    Returns:
        The sequence; None where it is to be dropped.

    Raises:
        TooLongError: It does not fit, and is not to be cut.

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
