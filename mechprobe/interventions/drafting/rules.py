"""The rules of a response: how its next token is chosen, when it ends, and which logits are too close to decide from."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechprobe.models.generation import Asked
from mechprobe.models.sampling import KnownTokens, SeededSampling, StopTexts

TIE = 1e-5
"""Logits whose difference is at most this can swap places between a pass over many tokens and one over a single token."""
MOST_NOISE = 2**26
"""Random numbers of sampling that are kept at a time."""

Tokens = tuple[int, ...]


@dataclass(frozen=True)
class Decoding:
    """How responses are decoded; the fields are the arguments of `mechprobe.models.generation.generate` of the same names."""

    max_new_tokens: int = 64
    stop: tuple[str, ...] = ()
    n: int = 1
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0

    def noise_of(self, n_rows: int, asked: Asked) -> int:
        """Random numbers that ``n_rows`` responses need."""
        return (
            n_rows * self.max_new_tokens * asked.hf.config.get_text_config().vocab_size if self.temperature > 0 else 0
        )


@dataclass
class Rules:
    """The rules of the responses to a batch of prompts; ``seeds`` are those of sampled responses."""

    asked: Asked
    decoding: Decoding
    seeds: Sequence[int] = ()
    _noise: Float[Tensor, "step row vocab"] | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self._known = KnownTokens(self.asked.n_token_ids, self.asked.ends)
        given = self.decoding
        self._sampling = SeededSampling(
            self.seeds, self.asked.device, temperature=given.temperature or 1.0, top_p=given.top_p, top_k=given.top_k
        )
        # n_prefix = 0: prompts that begin the response are not drafted
        self._stopping = StopTexts(self.asked.tokenizer, given.stop, start=0, n_prefix=0) if given.stop else None

    def choose(
        self, logits: Float[Tensor, "batch vocab"], rows: Int[Tensor, " batch"], steps: Int[Tensor, " batch"]
    ) -> tuple[Int[Tensor, " batch"], Bool[Tensor, " batch"]]:
        """The next tokens, and whether each is clear: its score is finite and larger than the next by more than `TIE`.

        Args:
            logits: Logits in float32; they are changed.
            rows: The prompt of each, in the batch.
            steps: Tokens that its response has already.
        """
        scores = self._known(rows[:, None], logits)
        if self.decoding.temperature > 0:
            noise = self._noise_like(scores)
            scores = self._sampling.kept(rows[:, None], scores) + noise[steps, rows]
        best = scores.topk(min(2, scores.shape[-1]), dim=-1).values
        clear = torch.isfinite(best[:, 0]) & (best[:, 0] - best[:, -1] > TIE)
        return scores.argmax(dim=-1), clear

    def _noise_like(self, scores: Tensor) -> Float[Tensor, "step row vocab"]:
        if self._noise is None:
            like = scores.new_empty(len(self.seeds), scores.shape[-1])
            self._noise = torch.stack([self._sampling.noise(like) for _ in range(self.decoding.max_new_tokens)])
        return self._noise

    def is_complete(self, tokens: Sequence[int]) -> bool:
        """Whether a response ends with its last token, given that it did not end before."""
        if len(tokens) >= self.decoding.max_new_tokens:
            return True
        if tokens and tokens[-1] in self.asked.ends:
            return True
        return self._stopping is not None and self._stopping.ended(tokens)

    def cut(self, draft: Sequence[int]) -> Tokens:
        """A draft without what follows its end."""
        draft = draft[: self.decoding.max_new_tokens]
        end = next((n for n in range(1, len(draft)) if self.is_complete(draft[:n])), len(draft))
        return tuple(draft[:end])
