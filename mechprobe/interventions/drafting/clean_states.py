"""What clean models compute on prompts and drafts: the same under every edit at one site, so it is computed once for all."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache

from mechprobe.interventions.drafting.forward import ModelCall, filled, rows_of
from mechprobe.interventions.drafting.rules import Tokens
from mechprobe.interventions.hooks.positions import CallTokens
from mechprobe.interventions.hooks.sibling_forward import Sibling
from mechprobe.models.generation import left_pad
from mechprobe.models.load import LanguageModel
from mechprobe.types import Site

Residuals = Mapping[str, Float[Tensor, "batch pos d_model"]]


class CleanModels:
    """The host and the siblings that edits read, without edits, up to the site."""

    def __init__(self, host: LanguageModel, siblings: Mapping[str, LanguageModel], site: Site) -> None:
        models = {**siblings, host.name: host}
        self.host, self.siblings = host.name, list(siblings)
        self._calls = {name: ModelCall(model) for name, model in models.items()}
        self._runs = {name: Sibling(name, model.hf, [site]) for name, model in models.items()}
        self.device = self._calls[host.name].model.input_device
        self._site = site

    def attach(self, stack: ExitStack) -> None:
        """Keep hooks on the models until ``stack`` closes; they act in calls of `run` only."""
        for run in self._runs.values():
            run.attach(stack)

    def new_caches(self) -> dict[str, DynamicCache]:
        """An empty cache for every model."""
        return {name: call.new_cache() for name, call in self._calls.items()}

    def run(
        self,
        names: Sequence[str],
        ids: Int[Tensor, "batch new"],
        attention: Int[Tensor, "batch pos"],
        caches: Mapping[str, DynamicCache],
    ) -> dict[str, Float[Tensor, "batch new d_model"]]:
        """Residuals of the named models on the last tokens of sequences; their caches are extended up to the site."""
        return {
            name: self._runs[name]
            .run(self._calls[name].inputs(ids, attention), caches[name])[self._site]
            .to(self.device)
            for name in names
        }


@dataclass(frozen=True)
class Span:
    """Tokens of some sequences, with the residuals of the clean models there; padding is on the left.

    Attributes:
        ids, attention: Tokens and mask.
        n_prompt: Tokens of each sequence that belong to its prompt.
        before: Tokens of each sequence before the span.
        clean: Residuals by model.
    """

    ids: Int[Tensor, "batch pos"]
    attention: Int[Tensor, "batch pos"]
    n_prompt: Int[Tensor, " batch"]
    before: Int[Tensor, " batch"]
    clean: Residuals

    def take(self, rows: Int[Tensor, " row"]) -> "Span":
        """Some of the sequences."""
        clean = {name: resid[rows] for name, resid in self.clean.items()}
        return Span(self.ids[rows], self.attention[rows], self.n_prompt[rows], self.before[rows], clean)

    @property
    def call(self) -> CallTokens:
        """The tokens as edits see them."""
        return CallTokens(
            self.ids, self.attention, past_length=0, width=self.ids.shape[1], before=self.before, n_prompt=self.n_prompt
        )


class PaddedPrompts(NamedTuple):
    """Prompts that are padded on the left to a width, which may be that of a larger batch."""

    rows: Sequence[Tokens]
    width: int


class PromptBatch:
    """Prompts, padded on the left, with the clean models' caches and residuals.

    ``whole`` says whether edited residuals of whole prompts are needed, because blocks follow the site; otherwise only that of the
    last prompt token is kept.
    """

    def __init__(self, models: CleanModels, prompts: PaddedPrompts, pad_id: int, *, whole: bool) -> None:
        self.models, self._pad_id = models, pad_id
        self.device = models.device
        self.ids, self.attention = left_pad(prompts.rows, pad_id, self.device, width=prompts.width)
        self.n_prompt = self.attention.sum(dim=1)
        self.caches = models.new_caches()
        clean = models.run(list(self.caches), self.ids, self.attention, self.caches)
        start = 0 if whole else self.ids.shape[1] - 1
        self.end = Span(
            self.ids[:, start:],
            self.attention[:, start:],
            self.n_prompt,
            self.attention[:, :start].sum(dim=1),
            {name: resid[:, start:] for name, resid in clean.items()},
        )

    @property
    def n_bytes(self) -> int:
        """Memory of the caches and residuals."""
        layers: list[Any] = [layer for cache in self.caches.values() for layer in filled(cache)]
        cached = sum(layer.keys.nbytes + layer.values.nbytes for layer in layers)
        return cached + sum(resid.nbytes for resid in self.end.clean.values())

    def padded(self, drafts: Sequence[Tokens]) -> Int[Tensor, "draft step"]:
        """Drafts, padded on the right."""
        width = max(map(len, drafts))
        return torch.tensor([[*draft, *[self._pad_id] * (width - len(draft))] for draft in drafts], device=self.device)

    def clean_on(self, rows: Sequence[int], tokens: Int[Tensor, "draft step"]) -> Residuals:
        """Residuals of the clean models on tokens that follow some prompts."""
        index = torch.tensor(rows, device=self.device)
        if not tokens.shape[1]:
            return {name: resid[index][:, :0] for name, resid in self.end.clean.items()}
        caches = {name: rows_of(cache, index) for name, cache in self.caches.items()}
        attention = torch.cat([self.attention[index], torch.ones_like(tokens)], dim=1)
        return self.models.run(list(caches), tokens, attention, caches)

    def followed_by(self, rows: Sequence[int], tokens: Int[Tensor, "draft step"], found: Residuals) -> Span:
        """The ends of some prompts with the tokens that follow them, where the clean models have the residuals ``found``."""
        start = self.end.take(torch.tensor(rows, device=self.device))
        clean = {name: torch.cat([start.clean[name], resid], dim=1) for name, resid in found.items()}
        ids, mask = torch.cat([start.ids, tokens], dim=1), torch.cat([start.attention, torch.ones_like(tokens)], dim=1)
        return Span(ids, mask, start.n_prompt, start.before, clean)
