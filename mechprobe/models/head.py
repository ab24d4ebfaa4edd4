"""From tokens to the input of the unembedding, and from there to logits, through the model's own forward call.

Logits of many positions are made a few at a time, so that they are never in memory in full. What a model does to the output of
its unembedding (soft-capping in Gemma, a scale in Cohere and Granite) is part of the result.
"""

from collections.abc import Sequence
from contextlib import contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mechprobe.errors import ModelError
from mechprobe.models.blocks import StopForwardError, forward_inputs, recording
from mechprobe.models.load import LanguageModel
from mechprobe.types import Site

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_PROBE = 4
"""Tokens on which the head is compared with a whole forward call."""


class ModelHead:
    """The forward call of a loaded model in two parts, `hidden` and `logits`.

    Attributes:
        model: The model; its weights are loaded.
        hidden_device: Where the input of the unembedding is.
        direct: Whether the unembedding gives the logits as they are. Otherwise they pass through the rest of the forward call.
    """

    def __init__(self, model: LanguageModel) -> None:
        self.model, self._hf = model, model.hf
        module: Any = self._hf.get_output_embeddings()
        if not isinstance(module, nn.Module):
            raise ModelError(
                f"Model {model.name} has no unembedding, so it has no next-token distributions to compare."
            )
        self._module = module
        self.hidden_device = self.device
        self.direct = self._checked()

    @property
    def device(self) -> torch.device:
        """Where the token ids go."""
        return self.model.input_device

    @torch.no_grad()
    def hidden(
        self, ids: Int[Tensor, "batch pos"], attention_mask: Int[Tensor, "batch pos"], sites: Sequence[Site] = ()
    ) -> tuple[Float[Tensor, "batch pos width"], dict[Site, Float[Tensor, "batch pos d_model"]]]:
        """The input of the unembedding and the residuals at ``sites``; rows are padded on the right. No logits are made."""
        found: list[Tensor] = []

        def stop(inputs: tuple[Any, ...]) -> None:
            found.append(inputs[0])
            raise StopForwardError

        ids = ids.to(self.device)
        recorded = recording(self._hf, sites, stop=False) if sites else nullcontext({})
        with self._before(stop), recorded as resid, suppress(StopForwardError):
            self._hf(input_ids=ids, **forward_inputs(self._hf, attention_mask, device=ids.device))
        if not found or found[0].ndim != 3 or found[0].shape[:2] != ids.shape:
            raise ModelError(
                f"Model {self.model.name} does not call its unembedding once for every position; it is not supported."
            )
        return found[0], resid

    @torch.no_grad()
    def logits(self, hidden: Float[Tensor, "position width"]) -> Float[Tensor, "position vocab"]:
        """Logits of positions from the input of the unembedding, in the dtype of the model."""
        hidden = hidden.to(self.hidden_device)
        return self._module(hidden[None])[0] if self.direct else self._through(hidden)

    def _through(self, hidden: Tensor) -> Tensor:
        """Logits from a whole forward call of one token, in which ``hidden`` replaces the input of the unembedding."""
        token = torch.zeros(1, 1, dtype=torch.int64, device=self.device)
        with self._before(lambda inputs: (hidden[None], *inputs[1:])):
            return self._hf(input_ids=token, **forward_inputs(self._hf, torch.ones_like(token))).logits[0]

    @contextmanager
    def _before(self, act: "Callable[[tuple[Any, ...]], Any]") -> "Iterator[None]":
        handle = self._module.register_forward_pre_hook(lambda _module, inputs: act(inputs))
        try:
            yield
        finally:
            handle.remove()

    @torch.no_grad()
    def _checked(self) -> bool:
        """Compare both ways to logits with a whole forward call; returns whether the unembedding alone gives the same bits."""
        top = max(1, self.model.n_token_ids - 1)
        ids = torch.arange(1, 1 + _PROBE, device=self.device)[None] % top
        hidden, _ = self.hidden(ids, torch.ones_like(ids))
        self.hidden_device = hidden.device
        expected = self._hf(input_ids=ids, **forward_inputs(self._hf, torch.ones_like(ids))).logits[0].float()
        alone = self._module(hidden)[0].float()
        if torch.equal(alone, expected):
            return True
        found = self._through(hidden[0].flip(0)).flip(0).float()  # a position may not matter
        if found.shape != expected.shape or not torch.allclose(found, expected, rtol=1e-3, atol=1e-3, equal_nan=True):
            raise ModelError(
                f"Model {self.model.name}: logits are no function of the input of its unembedding; it is not supported."
            )
        return False
