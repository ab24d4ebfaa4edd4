"""Divergence of a model from its base on responses that the model samples itself, to stop SFT at that of another arm.

KL(π ‖ base) per token = Σ_t KL(π(· | y_<t) ‖ base(· | y_<t)) / number of tokens, with the exact sum over the vocabulary at every
position t of responses y that π samples at temperature 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from mechprobe.models.generation import generate
from mechprobe.statistics import Interval, bootstrap_ratio

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_BATCH = 64


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
                batch_size=_BATCH,
            )
            written = [response.written for response in found]
            sums = [
                float(value)
                for start in range(0, len(written), _BATCH)
                for value in self._sums(inner, self.prompts[start : start + _BATCH], written[start : start + _BATCH])
            ]
        finally:
            inner.train(training)
        return bootstrap_ratio(sums, [len(row) for row in written], seed=self.seed)

    def _sums(
        self, model: Any, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]
    ) -> list[Float[Tensor, ""]]:
        """Sum of the divergence over the response tokens of each row."""
        rows = [[*p, *r] for p, r in zip(prompts, responses, strict=True)]
        width = max(map(len, rows))
        ids = torch.zeros((len(rows), width), dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for place, row in enumerate(rows):
            ids[place, : len(row)], mask[place, : len(row)] = torch.tensor(row), 1
        log_p, log_q = (self._log_probs(each, ids, mask) for each in (model, self.base))
        starts = [(len(prompt) - 1, len(row) - 1) for prompt, row in zip(prompts, rows, strict=True)]
        return [
            kl_divergence(log_p[place, start:end], log_q[place, start:end]).sum()
            for place, (start, end) in enumerate(starts)
        ]

    @staticmethod
    def _log_probs(model: Any, ids: Tensor, mask: Tensor) -> Float[Tensor, "batch pos vocab"]:
        device = next(model.parameters()).device
        logits = model(input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False).logits
        return logits.float().log_softmax(dim=-1).cpu()


def kl_divergence(log_p: Float[Tensor, "pos vocab"], log_q: Float[Tensor, "pos vocab"]) -> Float[Tensor, " pos"]:
    """KL(p ‖ q) at every position in nats. The terms p − q sum to 0 and keep small values exact in float32."""
    p, q = log_p.exp(), log_q.exp()
    return (p * (log_p - log_q) - p + q).sum(dim=-1)
