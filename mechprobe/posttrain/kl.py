"""Divergence of a model from its base on responses that the model samples itself, to stop SFT at that of another arm.

KL(π ‖ base) per token = Σ_t KL(π(· | y_<t) ‖ base(· | y_<t)) / number of tokens, with the exact sum over the vocabulary at every
position t of responses y that π samples at temperature 1.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from mechprobe.drift.divergence.distances import divergences
from mechprobe.models.generation import generate
from mechprobe.statistics import Interval, bootstrap_ratio

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ROWS, _TOKENS = 64, 4096
"""Most responses that are sampled at a time, and most tokens of a forward pass, padding included."""


@dataclass(frozen=True)
class KlProbe:
    """What is measured on: the base, prompts, and the sampling of responses to them.

    Attributes:
        base: The base model.
        tokenizer: Tokenizer of all arms.
        prompts: Token ids of the prompts.
        max_new_tokens: Longest response.
        seed: Seed of the responses and of the bootstrap.
    """

    base: Any
    tokenizer: "PreTrainedTokenizerBase"
    prompts: Sequence[Sequence[int]]
    max_new_tokens: int
    seed: int

    @torch.no_grad()
    def measure(self, model: Any) -> Interval:
        """KL(model ‖ base) per token in nats, with a bootstrap interval over prompts; ``n`` counts tokens."""
        inner = model.get_base_model() if hasattr(model, "peft_config") else model
        training = inner.training
        inner.eval()
        try:
            found = generate(
                inner,
                self.tokenizer,
                self.prompts,
                max_new_tokens=self.max_new_tokens,
                temperature=1.0,
                seed=self.seed,
                batch_size=_ROWS,
            )
            written = [response.written for response in found]
            sums = list(self._sums(inner, written))
        finally:
            inner.train(training)
        return bootstrap_ratio(sums, [len(row) for row in written], seed=self.seed)

    def _sums(self, model: Any, responses: Sequence[Sequence[int]]) -> Iterator[float]:
        """Sum of the divergence over the tokens of each response."""
        rows = [(len(prompt), [*prompt, *said]) for prompt, said in zip(self.prompts, responses, strict=True)]
        size = max(1, _TOKENS // max(len(ids) for _, ids in rows))
        for start in range(0, len(rows), size):
            batch = rows[start : start + size]
            both = [_logits(each, [ids for _, ids in batch]) for each in (model, self.base)]
            for place, (n_prompt, ids) in enumerate(batch):
                ours, theirs = (logits[place, n_prompt - 1 : len(ids) - 1] for logits in both)
                said = torch.tensor(ids[n_prompt:], device=ours.device)
                yield float(divergences(ours, theirs.to(ours.device), said, top=1).kl.sum())


def _logits(model: Any, rows: Sequence[Sequence[int]]) -> Float[Tensor, "batch pos rows"]:
    """Logits after every token of the rows, which are padded on the right."""
    width = max(map(len, rows))
    ids = torch.zeros((len(rows), width), dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for place, row in enumerate(rows):
        ids[place, : len(row)], mask[place, : len(row)] = torch.tensor(row), 1
    device = next(model.parameters()).device
    return model(input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False).logits.float()
