"""From tokens to the input of the unembedding, and from there to logits, through the model's own forward call.

Logits of many positions are made a few at a time, so that they are never in memory in full. What a model does to the output of
its unembedding (soft-capping in Gemma, a scale in Cohere and Granite) is part of the result.
"""

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mechprobe.errors import ModelError
from mechprobe.memory import in_parts
from mechprobe.models.blocks import StopForwardError, forward_inputs, recording
from mechprobe.models.devices import input_device
from mechprobe.models.load import LanguageModel
from mechprobe.types import Site

_PROBE = 4
"""Tokens on which the head is compared with a whole forward call."""

Way = Literal["direct", "through", "bypassed", "none"]


class _Found(NamedTuple):
    """How logits follow from the input of the unembedding, and where that input is.

    ``direct``: the unembedding gives them. ``through``: the rest of the forward call follows. ``bypassed``: they are no function
    of that input. ``none``: there is no unembedding that is called once for every position.
    """

    way: Way
    device: torch.device


_found: "weakref.WeakKeyDictionary[nn.Module, _Found]" = weakref.WeakKeyDictionary()


class Head:
    """The forward call of a transformers model in two parts, `states` and `logits`.

    The way from states to logits is measured on first use, without edits in force. Where there is none, the states are the logits
    themselves, and memory holds those of a whole batch.

    Attributes:
        way: How logits follow from the input of the unembedding.
        hidden_device: Where the input of the unembedding is.
    """

    def __init__(self, hf: nn.Module) -> None:
        self._hf: Any = hf
        self._module: Any = self._hf.get_output_embeddings()
        if hf not in _found:
            _found[hf] = self._measured()
        self.way, self.hidden_device = _found[hf]

    @property
    def direct(self) -> bool:
        """Whether the unembedding gives the logits as they are. Otherwise they pass through the rest of the forward call."""
        return self.way == "direct"

    @property
    def is_split(self) -> bool:
        """Whether logits follow from states. Otherwise the states are the logits."""
        return self.way in ("direct", "through")

    def states(
        self, ids: Int[Tensor, "batch pos"], attention_mask: Int[Tensor, "batch pos"]
    ) -> Float[Tensor, "batch pos width"]:
        """The input of the unembedding in one forward call, in which hooks on the model take effect.

        Logits are made of the last position only. Rows are padded on the right. The result has a gradient where gradients are on.
        """
        found: list[Tensor] = []

        def shorten(inputs: tuple[Any, ...]) -> tuple[Any, ...]:
            found.append(inputs[0])
            return inputs[0][:, -1:].contiguous(), *inputs[1:]

        with self._before(shorten) if self.is_split else nullcontext():
            output = self._hf(input_ids=ids, **forward_inputs(self._hf, attention_mask, device=ids.device))
        return found[0] if found else output.logits

    def n_logits(self, width: int) -> int:
        """Number of logits of a position whose states have ``width`` values."""
        weight = getattr(self._module, "weight", None)
        return int(weight.shape[0]) if self.is_split and isinstance(weight, Tensor) and weight.ndim == 2 else width

    def logits(self, hidden: Float[Tensor, "position width"]) -> Float[Tensor, "position vocab"]:
        """Logits of positions from their states, in the dtype of the model."""
        if not self.is_split:
            return hidden
        hidden = hidden.to(self.hidden_device)
        return self._module(hidden[None])[0] if self.direct else self._through(hidden)

    def _through(self, hidden: Tensor) -> Tensor:
        """Logits from a whole forward call of one token, in which ``hidden`` replaces the input of the unembedding."""
        token = torch.zeros(1, 1, dtype=torch.int64, device=input_device(self._hf))
        with self._before(lambda inputs: (hidden[None], *inputs[1:])):
            return self._hf(input_ids=token, **forward_inputs(self._hf, torch.ones_like(token))).logits[0]

    @contextmanager
    def _before(self, act: Callable[[tuple[Any, ...]], Any]) -> Iterator[None]:
        handle = self._module.register_forward_pre_hook(lambda _module, inputs: act(inputs))
        try:
            yield
        finally:
            handle.remove()

    def _until_head(
        self, ids: Int[Tensor, "batch pos"], attention_mask: Int[Tensor, "batch pos"], sites: Sequence[Site] = ()
    ) -> tuple[Tensor | None, dict[Site, Tensor]]:
        """The input of the unembedding, None where it is not called once for every position, and residuals; no logits."""
        recorded = recording(self._hf, sites, stop=False) if sites else nullcontext({})
        with recorded as resid:
            found = self.input_in(
                lambda: self._hf(input_ids=ids, **forward_inputs(self._hf, attention_mask, device=ids.device))
            )
        fits = found is not None and found.ndim == 3 and found.shape[:2] == ids.shape
        return found if fits else None, resid

    def input_in(self, call: Callable[[], object]) -> Tensor | None:
        """The input of the unembedding in a forward call, which ends there; None where it is not called."""
        found: list[Tensor] = []

        def stop(inputs: tuple[Any, ...]) -> None:
            found.append(inputs[0])
            raise StopForwardError

        with self._before(stop), suppress(StopForwardError):
            call()
        return found[0] if found else None

    @torch.no_grad()
    def _measured(self) -> _Found:
        """Compare both ways to logits with a whole forward call."""
        device = input_device(self._hf)
        if not isinstance(self._module, nn.Module):
            return _Found("none", device)
        n_rows = int(self._hf.get_input_embeddings().weight.shape[0])
        ids = torch.arange(1, 1 + _PROBE, device=device)[None] % max(1, n_rows - 1)
        hidden, _ = self._until_head(ids, torch.ones_like(ids))
        if hidden is None:
            return _Found("none", device)
        expected = self._hf(input_ids=ids, **forward_inputs(self._hf, torch.ones_like(ids))).logits[0].float()
        if torch.equal(self._module(hidden)[0].float(), expected):
            return _Found("direct", hidden.device)
        found = self._through(hidden[0].flip(0)).flip(0).float()  # a position may not matter
        if found.shape == expected.shape and torch.allclose(found, expected, rtol=1e-3, atol=1e-3, equal_nan=True):
            return _Found("through", hidden.device)
        return _Found("bypassed", hidden.device)


class ModelHead(Head):
    """The head of a loaded model whose logits follow from the input of its unembedding.

    Attributes:
        model: The model; its weights are loaded.

    Raises:
        ModelError: They do not.
    """

    def __init__(self, model: LanguageModel) -> None:
        self.model = model
        super().__init__(model.hf)
        if self.way == "none":
            raise ModelError(
                f"Model {model.name} has no unembedding that is called once for every position, so it has no next-token "
                "distributions to compare."
            )
        if self.way == "bypassed":
            raise ModelError(
                f"Model {model.name}: logits are no function of the input of its unembedding; it is not supported."
            )

    @property
    def device(self) -> torch.device:
        """Where the token ids go."""
        return self.model.input_device

    @torch.no_grad()
    def hidden(
        self, ids: Int[Tensor, "batch pos"], attention_mask: Int[Tensor, "batch pos"], sites: Sequence[Site] = ()
    ) -> tuple[Float[Tensor, "batch pos width"], dict[Site, Float[Tensor, "batch pos d_model"]]]:
        """The input of the unembedding and the residuals at ``sites``; rows are padded on the right. No logits are made."""
        ids = ids.to(self.device)

        def read(rows: slice) -> tuple[Tensor, dict[Site, Tensor]]:
            hidden, resid = self._until_head(ids[rows], attention_mask[rows], sites)
            if hidden is None:
                raise ModelError(f"Model {self.model.name} does not call its unembedding once for every position.")
            return hidden, resid

        parts = in_parts(read, len(ids), what="Forward pass")
        if len(parts) == 1:
            return parts[0]
        return torch.cat([part[0] for part in parts]), {
            site: torch.cat([part[1][site] for part in parts]) for site in sites
        }
