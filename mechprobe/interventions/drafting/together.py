"""Responses of one host under several edits at one site, from drafts.

Clean responses, of the host and of donors, are drafts of the edited ones. One pass over a prompt and a draft gives the token that
an edited model writes after every beginning of the draft; up to the first difference the draft is the edited response. From there
another known response to the prompt may go on with the same token. Where none does, the response is decoded, and is itself known
from then on to the edits beside it. Up to the site all edits share the clean models' pass, and the rows of several edits share
each pass above it.

The responses are those of `mechprobe.models.generation.generate` inside the edit. A token is taken from a pass over many tokens only
where its logit is larger than the next by more than `mechprobe.interventions.drafting.rules.TIE`; from any other place on, the
response is decoded token by token. The drafts do not depend on which edits ran before, so neither do the responses.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain, groupby
from typing import TypeVar

from mechprobe.interventions.drafting.checking import DraftBlock, Found
from mechprobe.interventions.drafting.clean_states import CleanModels, PaddedPrompts, PromptBatch
from mechprobe.interventions.drafting.decoding import Begun, Decoder
from mechprobe.interventions.drafting.forward import DraftError, UpperPart
from mechprobe.interventions.drafting.rules import MOST_NOISE, Decoding, Rules, Tokens
from mechprobe.interventions.hooks.positions import PositionMask, PositionRule
from mechprobe.interventions.hooks.rewriting import SiteRewrite
from mechprobe.memory import in_parts
from mechprobe.models.generation import Asked, Generated, length_batches, response_seeds
from mechprobe.models.load import LanguageModel
from mechprobe.progress import progress
from mechprobe.types import Site

T = TypeVar("T")

_MOST_KEPT = 2**29
"""Bytes of clean states that stay in memory between calls."""
_N_TRIED = 8
"""Clean responses whose second half is decoded to see that the decoder gives what the model gives."""


_Draft = tuple[int, Tokens]
"""A prompt in the batch, and a response to it."""


class Together:
    """A host at one site, with the siblings that its edits read.

    Raises:
        DraftError: The architecture does not allow it.
    """

    def __init__(self, host: LanguageModel, site: Site, siblings: Mapping[str, LanguageModel]) -> None:
        self.host, self.site = host, site
        self.models, self.upper = CleanModels(host, siblings, site), UpperPart(host, site)
        self._tried = False
        self._kept: dict[object, _Prompts] = {}
        self._loaded = [(model, model.hf) for model in (host, *siblings.values())]

    @property
    def is_stale(self) -> bool:
        """Whether a model was freed since, so that the hooks here are in modules that nothing runs any more."""
        return any(model.__dict__.get("hf") is not module for model, module in self._loaded)

    def respond(
        self,
        edits: Sequence[SiteRewrite],
        asked: Asked,
        prompts: Sequence[Tokens],
        drafts: Sequence[Sequence[Tokens]],
        decoding: Decoding,
        *,
        batch_size: int,
    ) -> list[list[Generated]]:
        """The responses under every edit: ``decoding.n`` to each prompt, in order.

        Args:
            edits: Edits at the site, which read the siblings or some of them.
            asked: The host, and the tokens that it may write.
            prompts: Token ids.
            drafts: Known responses to each of the ``decoding.n`` responses of every prompt, the likeliest first; the first must be the
                host's own clean response, by which the architecture is tried.
            decoding: How responses are decoded.
            batch_size: Rows that are decoded at a time, and prompts whose caches are kept.

        Raises:
            DraftError: The host does not give its own response when that is checked as a draft.
            ModelError: An edit leaves the model without finite numbers.
        """
        rows = [prompt for prompt in prompts for _ in range(decoding.n)]
        seeds = response_seeds(rows, decoding.seed) if decoding.temperature > 0 else []
        found: list[list[Tokens]] = [[()] * len(rows) for _ in edits]
        equal = not self.host.behaviour.padding
        with progress(len(rows), f"generation under {len(edits)} edits", unit="prompts", inner=True) as advance:
            for batch in length_batches([len(row) for row in rows], batch_size, equal=equal):
                if decoding.noise_of(len(batch), asked) > MOST_NOISE:
                    raise DraftError("the random numbers of all tokens of a batch do not fit the memory for them")
                width = max(len(rows[row]) for row in batch)

                def respond(part: slice, batch: list[int] = batch, width: int = width) -> list[list[Tokens]]:
                    chosen = batch[part]
                    rules = Rules(asked, decoding, [seeds[row] for row in chosen] if seeds else ())
                    known = [[cut for draft in drafts[row] if (cut := rules.cut(draft))] for row in chosen]
                    prompts = PaddedPrompts([rows[row] for row in chosen], width)
                    return self._batch(edits, prompts, known, rules, min(batch_size, len(chosen)))

                parts = in_parts(self._freeing(respond), len(batch), what="Generation under edits", unit="responses")
                for edit, responses in enumerate(map(chain.from_iterable, zip(*parts, strict=True))):
                    for row, tokens in zip(batch, responses, strict=True):
                        found[edit][row] = tokens
                advance(len(batch))
        texts: dict[Tokens, Generated] = {}
        for tokens in (tokens for responses in found for tokens in responses):
            if tokens not in texts:
                texts[tokens] = asked.finished(tokens, decoding.stop)
        return [[texts[tokens] for tokens in responses] for responses in found]

    def _freeing(self, work: Callable[[slice], T]) -> Callable[[slice], T]:
        """The same work, which frees the kept states where it fails."""

        def tried(part: slice) -> T:
            try:
                return work(part)
            except Exception:
                self._kept.clear()
                raise

        return tried

    def _batch(
        self,
        edits: Sequence[SiteRewrite],
        prompts: PaddedPrompts,
        known: list[list[Tokens]],
        rules: Rules,
        batch_size: int,
    ) -> list[list[Tokens]]:
        """The responses to one batch of prompts under every edit."""
        clean = SiteRewrite(
            self.site, lambda x: x[self.host.name], positions=PositionMask(PositionRule()), what="no edit"
        )
        decoder = Decoder(self.models, self.upper, [*edits, clean], self.site)
        with ExitStack() as stack:
            self.models.attach(stack)
            decoder.attach(stack)
            work = _Work(decoder, self._prompts(prompts, known, rules.asked.pad_id), rules, known, batch_size)
            if not self._tried:
                self._try(work, len(edits))
                self._tried = True
            return work.run(len(edits))

    def _prompts(self, prompts: PaddedPrompts, known: Sequence[Sequence[Tokens]], pad_id: int) -> "_Prompts":
        """The clean models' states on prompts and drafts, which are kept for other edits where they are small."""
        key = (tuple(prompts.rows), prompts.width, tuple(map(tuple, known)))
        if key not in self._kept:
            batch = PromptBatch(self.models, prompts, pad_id, whole=not self.upper.is_empty)
            drafts = {(row, draft): None for row, drafts in enumerate(known) for draft in drafts if draft}
            made = _Prompts(batch, _places(_blocks_of(batch, list(drafts), len(prompts.rows))))
            if sum(kept.n_bytes for kept in self._kept.values()) + made.n_bytes > _MOST_KEPT:
                return made
            self._kept[key] = made
        return self._kept[key]

    def _try(self, work: "_Work", clean: int) -> None:
        """Raise `DraftError` unless the host without edits agrees with its clean responses, checked and decoded."""
        kept = [(row, drafts[0]) for row, drafts in enumerate(work.known) if drafts and drafts[0]]
        if not kept:
            return
        results: list[Found] = []
        for block, places in work.blocks([(row, draft) for row, draft in kept]):
            pairs = {clean: [(place, 0) for place in places]}
            results += [found for *_, found in block.check(pairs, work.decoder.edits, self.upper, work.rules)]
        halves = [Begun(clean, row, draft[: len(draft) // 2]) for row, draft in kept[:_N_TRIED]]
        whole = [work.rules.is_complete(draft) for _, draft in kept[:_N_TRIED]]
        decoded, _ = work.decoder.decode(work.prompts.batch, halves, work.rules)
        agrees = all(not found.clear or found.token is None for found in results)
        again = [t == d for t, (_, d), complete in zip(decoded, kept, whole, strict=False) if complete]
        if not agrees or (again and not any(again)):
            raise DraftError(
                f"{type(self.host.hf).__name__} ({self.host.name}) does not give its own responses in a pass over all of their tokens"
            )


def _blocks_of(batch: PromptBatch, drafts: Sequence[_Draft], most: int) -> Iterator[DraftBlock]:
    """Yield drafts in blocks of similar length, with at most so many in each."""
    by_length = sorted(drafts, key=lambda draft: len(draft[1]))
    for _, group in groupby(by_length, key=lambda draft: len(draft[1]).bit_length()):
        members = list(group)
        for start in range(0, len(members), most):
            some = members[start : start + most]
            yield DraftBlock(batch, [row for row, _ in some], [draft for _, draft in some])


def _places(blocks: Iterable[DraftBlock]) -> dict[_Draft, tuple[DraftBlock, int]]:
    """Where every draft is."""
    return {
        draft: (block, place)
        for block in blocks
        for place, draft in enumerate(zip(block.rows, block.drafts, strict=True))
    }


@dataclass
class _Prompts:
    """Prompts with the clean models' states, there and on the drafts that were given."""

    batch: PromptBatch
    drafts: dict[_Draft, tuple[DraftBlock, int]]

    @property
    def n_bytes(self) -> int:
        """Memory of the states."""
        return self.batch.n_bytes + sum(block.n_bytes for block in {block for block, _ in self.drafts.values()})


@dataclass
class _Item:
    """A response under one edit: what is known of it."""

    edit: int
    row: int
    tokens: Tokens = ()
    alone: bool = False
    """Whether it must be decoded: a token was not clear."""
    done: bool = False

    def after(self, draft: Tokens, found: Found, rules: Rules) -> None:
        """Take over what a check found."""
        agreed = draft[: found.n_agreed]
        self.alone = not found.clear
        self.tokens = agreed if found.token is None or self.alone else (*agreed, found.token)
        if self.tokens and not self.alone:
            self.done = rules.is_complete(self.tokens)


class _Work:
    """The responses to one batch of prompts."""

    def __init__(
        self, decoder: Decoder, prompts: _Prompts, rules: Rules, known: list[list[Tokens]], batch_size: int
    ) -> None:
        self.decoder, self.prompts, self.rules, self.known = decoder, prompts, rules, known
        self._batch_size = batch_size
        self._decoded: dict[_Draft, tuple[DraftBlock, int]] = {}

    def run(self, n_edits: int) -> list[list[Tokens]]:
        """The responses by edit and prompt."""
        items = [[_Item(edit, row) for row in range(len(self.known))] for edit in range(n_edits)]
        left = [item for of_edit in items for item in of_edit]
        while left:
            self._check(left)
            left = [item for item in left if not item.done]
            self._decode(left)
            left = [item for item in left if not item.done]
        return [[item.tokens for item in of_edit] for of_edit in items]

    def _check(self, left: Sequence[_Item]) -> None:
        """Check every item against known responses, as long as one goes on as the item does."""
        while pairs := [(item, draft) for item in left if (draft := self._draft(item)) is not None]:
            of_draft: dict[_Draft, list[_Item]] = defaultdict(list)
            for item, draft in pairs:
                of_draft[item.row, draft].append(item)
            for block, places in self.blocks(list(of_draft)):
                self._check_block(block, {place: of_draft[block.rows[place], block.drafts[place]] for place in places})

    def _draft(self, item: _Item) -> Tokens | None:
        """A known response that begins with what is known of the item."""
        if item.done or item.alone:
            return None
        n = len(item.tokens)
        return next((d for d in self.known[item.row] if len(d) > n and d[:n] == item.tokens), None)

    def blocks(self, drafts: Sequence[_Draft]) -> Iterator[tuple[DraftBlock, list[int]]]:
        """Yield blocks with the places of the drafts in them."""
        ready = {**self.prompts.drafts, **self._decoded}
        old: dict[DraftBlock, list[int]] = defaultdict(list)
        for block, place in (ready[draft] for draft in drafts if draft in ready):
            old[block].append(place)
        yield from old.items()
        new = [draft for draft in drafts if draft not in ready]
        for block in _blocks_of(self.prompts.batch, new, self._batch_size):
            yield block, list(range(len(block.drafts)))

    def _check_block(self, block: DraftBlock, items: Mapping[int, Sequence[_Item]]) -> None:
        wanted: dict[int, list[tuple[int, int]]] = defaultdict(list)
        of_pair = {}
        for place, members in items.items():
            for item in members:
                wanted[item.edit].append((place, len(item.tokens)))
                of_pair[item.edit, place] = item
        for edit, place, found in block.check(wanted, self.decoder.edits, self.decoder.upper, self.rules):
            of_pair[edit, place].after(block.drafts[place], found, self.rules)

    def _decode(self, left: Sequence[_Item]) -> None:
        """Decode one item of each group that has the same prompt and the same known tokens; it becomes known to the others."""
        groups: dict[object, list[_Item]] = defaultdict(list)
        for item in left:
            groups[(item.row, item.tokens, item.edit if item.alone else None)].append(item)
        chosen = sorted(groups.values(), key=lambda members: len(members[0].tokens))
        self._decoded = {}
        for start in range(0, len(chosen), self._batch_size):
            some = chosen[start : start + self._batch_size]
            begun = [Begun(m[0].edit, m[0].row, m[0].tokens, recorded=len(m) > 1) for m in some]
            responses, block = self.decoder.decode(self.prompts.batch, begun, self.rules)
            if block is not None:
                self._decoded |= _places([block])
            for (item, *_), tokens in zip(some, responses, strict=True):
                item.tokens, item.done = tokens, True
                self.known[item.row].append(tokens)
