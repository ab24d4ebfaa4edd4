"""Checks drafts under edits: one pass gives the token that each edit would write after every beginning of a draft."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechprobe.interventions.drafting.clean_states import PromptBatch, Residuals, Span
from mechprobe.interventions.drafting.forward import UpperPart
from mechprobe.interventions.drafting.rules import Rules, Tokens
from mechprobe.interventions.hooks.rewriting import SiteRewrite, rewritten
from mechprobe.models.head import Head
from mechprobe.models.log_probs import CHUNK_VALUES, logit_chunks

MOST_POSITIONS = 2**14
"""Positions of one pass, which the rows of several edits share."""


@dataclass(frozen=True)
class Found:
    """What the check of one draft under one edit found.

    Attributes:
        n_agreed: Tokens of the draft, from the first, that the edited model writes too.
        token: What it writes in place of the next; None where the draft agrees to its end.
        clear: Whether ``token`` is certain; see `Rules.choose`.
    """

    n_agreed: int
    token: int | None
    clear: bool


class DraftBlock:
    """Drafts of some prompts, checked under any number of edits.

    Attributes:
        rows: The prompt of every draft.
        drafts: Tokens of every draft; none is empty.
    """

    def __init__(
        self, prompts: PromptBatch, rows: Sequence[int], drafts: Sequence[Tokens], found: Residuals | None = None
    ) -> None:
        """Take the clean models' residuals on all but the last tokens of the drafts; None computes them."""
        self.rows, self.drafts = list(rows), list(drafts)
        self._tokens = prompts.padded(drafts)
        read = self._tokens[:, :-1]
        self._span = prompts.followed_by(rows, read, prompts.clean_on(rows, read) if found is None else found)
        device = self._tokens.device
        self._row_of = torch.tensor(self.rows, device=device)
        self._lengths = torch.tensor([len(draft) for draft in drafts], device=device)

    @property
    def n_bytes(self) -> int:
        """Memory of the residuals."""
        return sum(resid.nbytes for resid in self._span.clean.values())

    @torch.no_grad()
    def check(
        self,
        wanted: Mapping[int, Sequence[tuple[int, int]]],
        edits: Sequence[SiteRewrite],
        upper: UpperPart,
        rules: Rules,
    ) -> Iterator[tuple[int, int, Found]]:
        """Yield ``(edit, draft, what was found)`` for every wanted pair.

        ``wanted`` maps an edit to pairs of a draft and the number of its tokens that are known to agree.
        """
        width, n_steps = self._span.ids.shape[1], self._tokens.shape[1]
        vocab = int(upper.call.model.hf.config.get_text_config().vocab_size)
        most = max(1, min(MOST_POSITIONS // width, CHUNK_VALUES // (n_steps * vocab)))
        for group in _groups(wanted, most):
            pairs = [(edit, *pair) for edit, part in group for pair in part]
            drafts, known = (torch.tensor([pair[i] for pair in pairs], device=self._tokens.device) for i in (1, 2))
            taken = self._span.take(drafts)
            places = [(edits[edit], len(part)) for edit, part in group]
            resid = edited_rows(places, taken, upper.call.model.name)
            states = upper.states(resid, taken.ids, taken.attention, n_last=n_steps)
            tokens, clear = _choices(upper.head, states, self._row_of[drafts], rules)
            n_agreed = self._agreed(tokens, clear, drafts, known)
            last = n_agreed.clamp(max=n_steps - 1)[:, None]
            columns = (n_agreed, tokens.gather(1, last)[:, 0], clear.gather(1, last)[:, 0])
            for (edit, draft, _), n, token, sure in zip(pairs, *(column.tolist() for column in columns), strict=True):
                ended = n == len(self.drafts[draft])
                yield edit, draft, Found(n, None if ended else token, ended or sure)

    def _agreed(
        self,
        tokens: Int[Tensor, "item step"],
        clear: Bool[Tensor, "item step"],
        drafts: Int[Tensor, " item"],
        known: Int[Tensor, " item"],
    ) -> Int[Tensor, " item"]:
        step = torch.arange(tokens.shape[1], device=tokens.device)[None]
        agrees = (tokens == self._tokens[drafts]) & clear | (step < known[:, None])
        return (agrees & (step < self._lengths[drafts][:, None])).long().cumprod(dim=1).sum(dim=1)


def _choices(
    head: Head, states: Float[Tensor, "item step width"], rows: Int[Tensor, " item"], rules: Rules
) -> tuple[Int[Tensor, "item step"], Bool[Tensor, "item step"]]:
    """What `Rules.choose` gives after every step; the logits of some steps exist at a time."""
    shape = states.shape[:2]
    tokens = torch.empty(shape.numel(), dtype=torch.int64, device=rows.device)
    clear = torch.empty_like(tokens, dtype=torch.bool)
    for chunk, logits in logit_chunks(head, states.flatten(0, 1)):
        place = torch.arange(chunk.start, chunk.stop, device=rows.device)
        tokens[chunk], clear[chunk] = rules.choose(logits.float(), rows[place // shape[1]], place % shape[1])
        del logits  # before the next chunk is made
    return tokens.reshape(shape), clear.reshape(shape)


def edited_rows(places: Sequence[tuple[SiteRewrite, int]], span: Span, host: str) -> Float[Tensor, "batch pos d_model"]:
    """The host's residual under several edits: each edit has the next ``n`` rows of the span."""
    parts, start = [], 0
    for edit, n in places:
        rows = slice(start, start + n)
        call = span.call if len(places) == 1 else _part(span, rows).call
        clean = {name: resid[rows] for name, resid in span.clean.items()}
        parts.append(rewritten(edit, clean, host, call))
        start += n
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _part(span: Span, rows: slice) -> Span:
    return Span(span.ids[rows], span.attention[rows], span.n_prompt[rows], span.before[rows], {})


Pairs = list[tuple[int, int]]


def _groups(wanted: Mapping[int, Sequence[tuple[int, int]]], most: int) -> Iterator[list[tuple[int, Pairs]]]:
    """The pairs of all edits in groups of at most ``most``."""
    group: list[tuple[int, Pairs]] = []
    room = most
    for edit, pairs in wanted.items():
        left = list(pairs)
        while left:
            part, left = left[:room], left[room:]
            group.append((edit, part))
            room -= len(part)
            if not room:
                yield group
                group, room = [], most
    if group:
        yield group
