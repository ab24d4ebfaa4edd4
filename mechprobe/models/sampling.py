"""How the next token is chosen and when a response ends: logits processors and a stopping criterion for transformers."""

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import (
    LogitsProcessor,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from mechprobe.memory import even_ranges
from mechprobe.progress import Advance

_MOST_SCORES = 1 << 24
"""Scores whose log-probabilities exist at a time (64 MiB in float32)."""


def response_seed(seed: int, prompt_ids: Sequence[int], draw: int) -> int:
    """Seed of one response, from the seed of the run, the ids of the prompt and the index of the draw; below 2⁶³."""
    text = f"{seed} {draw} {' '.join(map(str, prompt_ids))}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


class SeededSampling(LogitsProcessor):
    """Draws the next token of every row with a random stream of the row's own, and leaves only that token possible.

    The token is argmax (log p + Gumbel noise), which is a draw from p. The noise depends on the row's seed, the step and the
    token alone. A row therefore gets the same tokens in every batch, as far as the model computes the same logits, and
    two models that are asked the same prompt get the same noise.
    """

    def __init__(
        self, seeds: Sequence[int], device: torch.device, *, temperature: float, top_p: float, top_k: int
    ) -> None:
        self._rows = [torch.Generator(device=device).manual_seed(seed) for seed in seeds]
        self._filters: list[LogitsProcessor] = [TemperatureLogitsWarper(temperature)]
        if top_k > 0:
            self._filters.append(TopKLogitsWarper(top_k))
        if top_p < 1:
            self._filters.append(TopPLogitsWarper(top_p))

    def __call__(self, input_ids: Int[Tensor, "batch pos"], scores: Float[Tensor, "batch vocab"]) -> Tensor:
        """Scores that are largest at the drawn token."""
        return self.kept(input_ids, scores) + self.noise(scores)

    def kept(self, input_ids: Tensor, scores: Float[Tensor, "row vocab"]) -> Float[Tensor, "row vocab"]:
        """Scores at the temperature, without the tokens that are never drawn."""
        for keep in self._filters:
            scores = keep(input_ids, scores)  # pyright: ignore[reportArgumentType]
        return scores

    def noise(self, like: Float[Tensor, "batch vocab"]) -> Float[Tensor, "batch vocab"]:
        """Noise of the next step of every row."""
        waits = torch.empty_like(like)
        for row, generator in zip(waits, self._rows, strict=True):
            row.exponential_(generator=generator)
        return -waits.log()


class KnownTokens(LogitsProcessor):
    """Makes every id impossible that has no token in the tokenizer, or no row in the embedding of some model."""

    def __init__(self, n_token_ids: int, allowed: Sequence[int] = ()) -> None:
        self._n_token_ids = n_token_ids
        """Scores without the unknown ids."""
        self._allowed = [token for token in allowed if token >= n_token_ids]

    def __call__(self, _ids: Int[Tensor, "batch pos"], scores: Float[Tensor, "batch vocab"]) -> Tensor:
        """Scores without the unknown ids."""
        allowed = [token for token in self._allowed if token < scores.shape[-1]]
        kept = scores[:, allowed]
        scores[:, self._n_token_ids :] = -torch.inf
        scores[:, allowed] = kept
        return scores


class ForcedTokens(LogitsProcessor):
    """Forces the tokens ``[batch step]`` of every row after position ``start``; what follows them is free."""

    def __init__(self, tokens: Int[Tensor, "batch step"], *, start: int) -> None:
        self._tokens, self._start = tokens, start

    def __call__(self, input_ids: Int[Tensor, "batch pos"], scores: Float[Tensor, "batch vocab"]) -> Tensor:
        """Scores that leave only the forced token possible."""
        step = input_ids.shape[1] - self._start
        if step >= self._tokens.shape[1]:
            return scores
        return torch.full_like(scores, -torch.inf).scatter_(1, self._tokens[:, step : step + 1], 0.0)


class ReadLogProbs(LogitsProcessor):
    """Records log-probabilities of forced tokens ``[batch step]``, and of further tokens of each row after them."""

    def __init__(self, tokens: Int[Tensor, "batch step"], last: Sequence[Sequence[int]], *, start: int) -> None:
        width = max(map(len, last))
        self._n_last = [len(row) for row in last]
        filled = [[*row, *[0] * (width - len(row))] for row in last]
        self._wanted = [*tokens.T[..., None], torch.tensor(filled, dtype=torch.int64, device=tokens.device)]
        self._start, self._found = start, list[Tensor]()

    def __call__(self, input_ids: Int[Tensor, "batch pos"], scores: Float[Tensor, "batch vocab"]) -> Tensor:
        """The scores as they are."""
        wanted = self._wanted[input_ids.shape[1] - self._start]
        parts = [
            scores[rows].log_softmax(dim=-1).gather(1, wanted[rows])
            for rows in even_ranges(len(scores), max(1, _MOST_SCORES // scores.shape[1]))
        ]
        self._found.append(torch.cat(parts))
        return scores

    def found(self) -> list[tuple[list[float], list[float]]]:
        """The log-probabilities of the forced tokens of each row, and of its further tokens."""
        *steps, last = (values.tolist() for values in self._found)
        before = zip(*([value[0] for value in step] for step in steps), strict=True) if steps else [()] * len(last)
        return [(list(own), row[:n]) for own, row, n in zip(before, last, self._n_last, strict=True)]


class CountedTokens(LogitsProcessor):
    """Tells a counter of every token that is written."""

    def __init__(self, advance: Advance) -> None:
        self._advance = advance

    def __call__(self, _ids: Int[Tensor, "batch pos"], scores: Float[Tensor, "batch vocab"]) -> Tensor:
        """The scores as they are."""
        self._advance(1)
        return scores


class FiniteLogits(LogitsProcessor):
    """Records on the device whether all logits were finite; `found` waits for the device, so it is read once per batch."""

    def __init__(self) -> None:
        self._bad: Tensor | None = None

    def __call__(self, _ids: Int[Tensor, "batch pos"], scores: Float[Tensor, "batch vocab"]) -> Tensor:
        """The scores as they are."""
        bad = ~finite_rows(scores).all()
        self._bad = bad if self._bad is None else self._bad | bad
        return scores

    @property
    def found(self) -> bool:
        """Whether logits were not finite."""
        return self._bad is not None and bool(self._bad)


def finite_rows(logits: Float[Tensor, "*row vocab"]) -> Bool[Tensor, "*row"]:
    """Rows without NaN and +∞ whose maximum is finite; a model may give single tokens −∞."""
    return torch.isfinite(logits.amax(dim=-1))


def cut_at_stop(
    tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], stop: Sequence[str], *, n_prefix: int = 0
) -> tuple[str, tuple[int, ...], bool]:
    """Decode a response and end it before the first stop text.

    Args:
        tokenizer: Its special tokens are left out of the text.
        ids: Token ids of the response.
        stop: Texts that end a response.
        n_prefix: Number of tokens at the start in which no stop text is looked for.

    Returns:
        ``(text, ids, stopped)``. The ids are the tokens that stand completely before the stop text; where a token contains
        its beginning, the text is longer than what the ids decode to.
    """
    text = _decode(tokenizer, ids)
    start = len(_decode(tokenizer, ids[:n_prefix])) if n_prefix and stop else 0
    found = [place for place in (text.find(end, start) for end in stop) if place >= 0]
    if not found:
        return text, tuple(ids), False
    place, low, high = min(found), n_prefix, len(ids)
    while low < high:  # the longest beginning whose text ends before the stop text
        middle = (low + high + 1) // 2
        low, high = (middle, high) if len(_decode(tokenizer, ids[:middle])) <= place else (low, middle - 1)
    return text[:place], tuple(ids[:low]), True


def _decode(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=True))


class StopTexts(StoppingCriteria):
    """Ends a row once its response contains a stop text. It decodes the last tokens, and all of them where these match."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str], *, start: int, n_prefix: int) -> None:
        """Watch rows whose responses begin at position ``start``, with ``n_prefix`` forced tokens."""
        self._tokenizer, self._stop, self._start, self._n_prefix = tokenizer, stop, start, n_prefix
        self._window = (
            max(len(text.encode()) for text in stop) + 8
        )  # a token adds at least a byte, special tokens apart

    def __call__(self, input_ids: Int[Tensor, "batch pos"], _scores: object, **_kwargs: object) -> Any:
        """Whether each row has ended, ``[batch]``."""
        rows = input_ids[:, self._start :].tolist()
        return torch.tensor([self.ended(row) for row in rows], dtype=torch.bool, device=input_ids.device)

    def ended(self, ids: Sequence[int]) -> bool:
        """Whether a response with these ids contains a stop text."""
        last = _decode(self._tokenizer, ids[-self._window :])
        if not any(text in last for text in self._stop):
            return False
        return cut_at_stop(self._tokenizer, ids, self._stop, n_prefix=self._n_prefix)[2]
