"""Decodes responses token by token under edits, each row under its own; the first tokens of a row may be known."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechprobe.interventions.drafting.checking import DraftBlock, edited_rows
from mechprobe.interventions.drafting.clean_states import CleanModels, PromptBatch, Residuals, Span
from mechprobe.interventions.drafting.forward import UpperPart, keep_rows, rows_of
from mechprobe.interventions.drafting.rules import Rules, Tokens
from mechprobe.interventions.hooks.rewriting import NonFiniteCheck, SiteRewrite
from mechprobe.models.blocks import splice
from mechprobe.models.generation import not_finite
from mechprobe.models.sampling import finite_rows
from mechprobe.types import Site

_COMPACT = 8
"""Rows leave the batch once one in so many has ended."""


@dataclass(frozen=True)
class Begun:
    """A response to go on with: the number of its edit, its prompt in the batch, and its known tokens."""

    edit: int
    row: int
    tokens: Tokens
    recorded: bool = False
    """Whether the clean models' residuals on the response are wanted."""


class Decoder:
    """The edited host with its clean siblings, one call after another."""

    def __init__(self, models: CleanModels, upper: UpperPart, edits: Sequence[SiteRewrite], site: Site) -> None:
        self.models, self.upper, self.edits, self._site = models, upper, edits, site
        self._now: tuple[Span, list[tuple[SiteRewrite, int]]] | None = None
        self._finite = NonFiniteCheck()
        self.clean: Residuals = {}
        """Residuals of the clean models in the last call."""

    def attach(self, stack: ExitStack) -> None:
        """Keep the hook on the host until ``stack`` closes."""
        stack.enter_context(splice(self.upper.call.model.hf, self._site, self._edit))

    def _edit(self, resid: Tensor) -> Tensor:
        if self._now is None:
            return resid
        span, places = self._now
        self.clean = {**span.clean, self.models.host: resid}
        whole = replace(span, clean=self.clean)
        changed = edited_rows(places, whole, self.models.host)
        start = 0
        for edit, n in places:
            self._finite.watch(edit.what, resid[start : start + n], changed[start : start + n])
            start += n
        return changed

    @torch.no_grad()
    def decode(
        self, prompts: PromptBatch, begun: Sequence[Begun], rules: Rules
    ) -> tuple[list[Tokens], DraftBlock | None]:
        """The whole responses in the given order, and the recorded ones as drafts."""
        order = sorted(range(len(begun)), key=lambda index: begun[index].edit)
        batch = _Batch(self, prompts, [begun[index] for index in order], rules)
        found: list[Tokens] = [()] * len(begun)
        for index, tokens in zip(order, batch.run(), strict=True):
            found[index] = tokens
        return found, batch.recorded(prompts)

    def places(self, rows: Sequence[Begun]) -> list[tuple[SiteRewrite, int]]:
        """The edits of rows that are sorted by edit, each with its number of rows."""
        return [(self.edits[edit], len(list(group))) for edit, group in groupby(row.edit for row in rows)]

    def call(
        self,
        span: Span,
        attention: Int[Tensor, "batch pos"],
        caches: dict[str, Any],
        places: list[tuple[SiteRewrite, int]],
    ) -> Float[Tensor, "batch vocab"]:
        """Logits after the last tokens of a span, which extend the caches."""
        clean = self.models.run(self.models.siblings, span.ids, attention, caches)
        self._now, self._finite = (replace(span, clean=clean), places), NonFiniteCheck()
        try:
            logits = self.upper.call.logits(span.ids, attention, caches[self.models.host], n_logits=1)
        finally:
            self._now = None
        self._finite.check(logits)
        return logits[:, -1]


class _Batch:
    """Responses that are decoded together, sorted by edit."""

    def __init__(self, decoder: Decoder, prompts: PromptBatch, begun: list[Begun], rules: Rules) -> None:
        self._decoder, self._begun, self._rules, self._pad_id = decoder, begun, rules, rules.asked.pad_id
        self._written = [list(one.tokens) for one in begun]
        self._live = list(range(len(begun)))
        self._rows = torch.tensor([one.row for one in begun], device=prompts.device)
        self._attention, self._n_prompt = prompts.attention[self._rows], prompts.n_prompt[self._rows]
        self._caches = {name: rows_of(cache, self._rows) for name, cache in prompts.caches.items()}
        self._fed = 0
        self._wanted = [i for i, one in enumerate(begun) if one.recorded]
        self._records: list[tuple[list[int], Residuals]] = []
        self._bad = torch.zeros((), dtype=torch.bool, device=prompts.device)
        self._logits = self._after_prompt(prompts)

    def _after_prompt(self, prompts: PromptBatch) -> Float[Tensor, "batch vocab"] | None:
        """Logits after the prompts, where they are needed; the upper blocks' caches are filled."""
        upper, host = self._decoder.upper, self._decoder.models.host
        if upper.is_empty and all(self._written):
            return None
        end, cache = prompts.end.take(self._rows), None if upper.is_empty else upper.call.new_cache()
        resid = edited_rows(self._decoder.places(self._begun), end, host)
        logits = upper.logits(resid, end.ids, end.attention, n_logits=1, cache=cache)
        if cache is not None:
            self._caches[host] = upper.joined(self._caches[host], cache)
        return logits[:, -1]

    def run(self) -> list[Tokens]:
        """The responses in order."""
        going = [not self._rules.is_complete(tokens) for tokens in self._written]
        while True:
            self._choose(going)
            if not any(going):
                break
            self._drop(going)
            self._feed(going)
        if bool(self._bad):
            host = self._rules.asked
            raise not_finite(host.name, host.hf.dtype)
        return [tuple(tokens) for tokens in self._written]

    def _choose(self, going: list[bool]) -> None:
        """Write the next token of every response whose tokens have all been read."""
        places = [p for p, i in enumerate(self._live) if going[i] and len(self._written[i]) == self._fed]
        if not places:
            return
        assert self._logits is not None, "logits after the prompts are computed where a response has no token"
        index = torch.tensor(places, device=self._rows.device)
        logits = self._logits[index]
        self._bad |= ~finite_rows(logits).all()
        steps = torch.full_like(index, self._fed)
        tokens, _ = self._rules.choose(logits, self._rows[index], steps)
        for place, token in zip(places, tokens.tolist(), strict=True):
            i = self._live[place]
            self._written[i].append(token)
            going[i] = not self._rules.is_complete(self._written[i])

    def _drop(self, going: list[bool]) -> None:
        """Take ended responses out of the batch once they are many."""
        kept = [place for place, i in enumerate(self._live) if going[i]]
        if (len(self._live) - len(kept)) * _COMPACT < len(self._live):
            return
        index = torch.tensor(kept, device=self._rows.device)
        self._live = [self._live[place] for place in kept]
        self._rows, self._attention, self._n_prompt = self._rows[index], self._attention[index], self._n_prompt[index]
        for cache in self._caches.values():
            keep_rows(cache, index)

    def _feed(self, going: list[bool]) -> None:
        """Read the next tokens: as many as every response has."""
        width = min(len(self._written[i]) for i in self._live if going[i]) - self._fed
        rows = [self._written[i][self._fed : self._fed + width] for i in self._live]
        padded = [[*row, *[self._pad_id] * (width - len(row))] for row in rows]
        ids = torch.tensor(padded, dtype=torch.int64, device=self._rows.device)
        ones = torch.ones_like(ids)
        self._attention = torch.cat([self._attention, ones], dim=1)
        span = Span(ids, ones, self._n_prompt, self._n_prompt + self._fed, {})
        places = self._decoder.places([self._begun[i] for i in self._live])
        self._logits = self._decoder.call(span, self._attention, self._caches, places)
        self._record()
        self._fed += width

    def _record(self) -> None:
        """Keep the clean models' residuals of the responses that are recorded."""
        if not self._wanted:
            return
        wanted = set(self._wanted)
        places = [place for place, i in enumerate(self._live) if i in wanted]
        index = torch.tensor(places, dtype=torch.int64, device=self._rows.device)
        kept = {name: resid[index] for name, resid in self._decoder.clean.items()}
        self._records.append(([self._live[place] for place in places], kept))

    def recorded(self, prompts: PromptBatch) -> DraftBlock | None:
        """The recorded responses as drafts."""
        if not self._wanted:
            return None
        drafts = [tuple(self._written[i]) for i in self._wanted]
        longest, place_of = max(map(len, drafts)) - 1, {i: place for place, i in enumerate(self._wanted)}
        found = {name: end.new_zeros(len(drafts), longest, end.shape[-1]) for name, end in prompts.end.clean.items()}
        start = 0
        for members, kept in self._records:
            index = torch.tensor([place_of[i] for i in members], dtype=torch.int64, device=self._rows.device)
            width = next(iter(kept.values())).shape[1]
            for name, resid in kept.items():
                found[name][index, start : start + width] = resid[:, : max(0, longest - start)]
            start += width
        return DraftBlock(prompts, [self._begun[i].row for i in self._wanted], drafts, found)
