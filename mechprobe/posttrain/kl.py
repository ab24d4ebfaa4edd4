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

from mechprobe.cache.harvest.forward_batches import padded
from mechprobe.drift.divergence.distances import hidden_divergences
from mechprobe.errors import ModelError
from mechprobe.memory import in_parts
from mechprobe.models.generation import generate
from mechprobe.models.head import Head
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
        heads = (Head(model), Head(self.base))
        for start in range(0, len(rows), size):
            batch = rows[start : start + size]
            both = [
                _states(head, each, [ids for _, ids in batch])
                for head, each in zip(heads, (model, self.base), strict=True)
            ]
            for place, (n_prompt, ids) in enumerate(batch):
                ours, theirs = (states[place, n_prompt - 1 : len(ids) - 1] for states in both)
                n_ids = min(head.n_logits(states.shape[-1]) for head, states in zip(heads, both, strict=True))
                said = torch.tensor(ids[n_prompt:])
                found = hidden_divergences(*heads, ours, theirs, said, n_ids=n_ids, top=1)
                if found.not_finite() is not None:
                    raise ModelError(
                        "Logits are not finite where the divergence from base is measured; lower the learning rate."
                    )
                yield float(found.kl.sum())


def _states(head: Head, model: Any, rows: Sequence[Sequence[int]]) -> Float[Tensor, "batch pos width"]:
    """Final states after every token of the rows, which are padded on the right."""
    ids, mask = padded(rows, 0)
    device = next(model.parameters()).device
    ids, mask = ids.to(device), mask.to(device)
    return torch.cat(in_parts(lambda part: head.states(ids[part], mask[part]), len(ids), what="Divergence from base"))
