"""Collateral of an edit: how far it changes the host's predictions on text that is unrelated to the edit.

On every next token of the texts, with p the clean host's distribution and q the edited host's, in nats per token:

* KL(p ‖ q), which is 0 where the edit changes nothing;
* the change of cross-entropy − log q + log p of the actual token, which is positive where the edit makes the text less likely.

The edit acts on all positions of a text, whatever part of a generation ``positions`` names, because a text that is only read is
neither prompt nor response; a class of tokens is respected. Intervals are bootstraps over texts, because the tokens of
one text depend on each other.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechprobe.cache.harvest.forward_batches import padded
from mechprobe.data.encoding import PromptEncoder
from mechprobe.data.sources import as_prompts
from mechprobe.errors import InputError
from mechprobe.evals.answering import encoders_of, prompt_of
from mechprobe.evals.tasks import Task
from mechprobe.files import dump_json, sha256_bytes
from mechprobe.interventions.conditions.plan import EVERYWHERE, Condition
from mechprobe.interventions.conditions.runner import Runner
from mechprobe.interventions.result import CollateralSource
from mechprobe.interventions.result_rows import Collateral
from mechprobe.memory import in_parts
from mechprobe.models.devices import input_device
from mechprobe.models.family import ModelFamily
from mechprobe.models.head import Head
from mechprobe.models.log_probs import compared_with
from mechprobe.progress import Advance, progress
from mechprobe.statistics import bootstrap_ratio


@runtime_checkable
class _HasSequences(Protocol):
    """The part of an activation store that collateral reads: numbers of held-out sequences, and sequences by number."""

    def held_out_samples(self) -> list[int]: ...

    def sequence(self, sample: int) -> Any: ...


@dataclass(frozen=True)
class CollateralTexts:
    """Texts that the models read without answering.

    ``sequences`` are the token ids of each text, at least two; ``source`` says where the texts come from. ``related`` texts are
    prompts of the tasks, which the edit is meant to change.
    """

    sequences: tuple[tuple[int, ...], ...]
    source: str
    related: bool = False

    @property
    def fingerprint(self) -> str:
        """sha256 of the token ids."""
        return sha256_bytes(dump_json([list(ids) for ids in self.sequences]).encode())

    @property
    def summary(self) -> CollateralSource:
        """The texts as results describe them; a text has one prediction fewer than it has tokens."""
        n_tokens = sum(len(ids) - 1 for ids in self.sequences)
        n_texts = len(self.sequences)
        return CollateralSource(
            source=self.source, related=self.related, n_texts=n_texts, n_tokens=n_tokens, fingerprint=self.fingerprint
        )

    def limited(self, n: int, length: int) -> "CollateralTexts":
        """The first ``n`` texts, each cut to ``length`` tokens."""
        return replace(self, sequences=tuple(ids[:length] for ids in self.sequences[:n]))


def texts_of_file(path: Path | str, encoder: PromptEncoder, n: int) -> CollateralTexts:
    """The first ``n`` texts of a prompt source: the prompt, followed by the response where the source has one.

    Raises:
        ConfigError: The format of the file is not recognized.
        InputError: The file cannot be used, or holds no text of at least two tokens.
    """
    sequences = []
    for prompt in as_prompts(path):
        if len(sequences) == n:
            break
        ids = encoder.encode(prompt) + encoder.encode_response(prompt)
        if len(ids) > 1:
            sequences.append(ids)
    if not sequences:
        raise InputError(f"{path} holds no text of two or more tokens, but collateral needs a next token to predict.")
    return CollateralTexts(tuple(sequences), f"texts of {Path(path).name}")


def texts_of_store(store: _HasSequences, tasks: Sequence[Task], family: ModelFamily, n: int) -> CollateralTexts | None:
    """Up to ``n`` prompts that no dictionary was trained on, preferably prompts that belong to no task.

    Only the tokens of the prompt source are taken, without responses of models. Where every held-out prompt belongs to a task,
    by the task's name or by its tokens, all held-out prompts are taken and ``source`` says so: such text is related to the
    tasks, so its collateral is overestimated and is no sign of damage.

    Returns None where the store has no held-out prompt.
    """
    names = {task.name for task in tasks}
    encoders = encoders_of(family.tokenizers, tasks)
    asked = {encoders[task.text].encode(prompt_of(sample)) for task in tasks for sample in task.samples}
    unrelated: dict[str, tuple[int, ...]] = {}
    related: dict[str, tuple[int, ...]] = {}
    for sample in store.held_out_samples():
        sequence = store.sequence(sample)
        ids = sequence.ids
        if sequence.source is not None and True in sequence.response:  # a model generated this response
            ids = ids[: sequence.response.index(True)]
        if len(ids) > 1:
            (related if sequence.task in names or ids in asked else unrelated).setdefault(sequence.prompt_id, ids)
    source = "held-out prompts of no task"
    if not unrelated:
        source = "held-out prompts of the tasks themselves, without responses: related text, because no other prompts were held out"
    found = tuple((unrelated or related).values())[:n]
    return CollateralTexts(found, source, related=not unrelated) if unrelated or related else None


_BATCH_TOKENS = 2048
"""Tokens in one forward pass."""
_TOGETHER = 8
"""Conditions whose final states wait in memory, so that logits of the clean model are made once for all of them."""


def is_measured(condition: Condition) -> bool:
    """Whether collateral is measured: for main edits, for the sets compared with them, and for the whole residual."""
    if condition.set_kind == "baseline":
        return condition.features == EVERYWHERE
    return condition.set_kind in ("selected", "compare", "ceiling", "recon")


@torch.no_grad()
def measure_collateral(
    runner: Runner, conditions: Sequence[Condition], texts: CollateralTexts, *, seed: int
) -> dict[str, Collateral]:
    """KL and change of cross-entropy of every condition whose collateral `is_measured`.

    The result maps conditions to collateral in nats per predicted token; ``seed`` is that of the bootstrap.
    """
    wanted = [condition for condition in conditions if is_measured(condition)]
    batches = list(_batches(texts.sequences))
    sums: dict[str, list[Float[Tensor, "text 2"]]] = {condition.name: [] for condition in wanted}
    with progress(len(batches) * len(wanted), "collateral", unit="passes") as advance:
        for host in dict.fromkeys(condition.model for condition in wanted):
            mine = [condition for condition in wanted if condition.model == host]
            for name, found in _of_host(runner, host, mine, batches, advance):
                sums[name].append(found)
    counts = [len(ids) - 1 for rows in batches for ids in rows]
    found = {}
    for name, parts in sums.items():
        kl, change = (bootstrap_ratio(values, counts, seed=seed) for values in torch.cat(parts).T.tolist())
        found[name] = Collateral(kl=kl, ce_change=change)
    return found


def _of_host(
    runner: Runner,
    host: str,
    conditions: Sequence[Condition],
    batches: Sequence[Sequence[tuple[int, ...]]],
    advance: Advance,
) -> Iterator[tuple[str, Float[Tensor, "text 2"]]]:
    """Yield name and sums per text of the conditions of one host, batch by batch."""
    model = runner.models.whole(host).hf
    head = Head(model)
    for rows in batches:
        batch = _padded(rows, str(input_device(model)))
        clean = _states(head, batch)
        for start in range(0, len(conditions), _TOGETHER):
            some = conditions[start : start + _TOGETHER]
            states = [_edited_states(runner, condition, head, batch) for condition in some]
            yield from zip([condition.name for condition in some], _sums(head, clean, states, batch), strict=True)
            advance(len(some))


def _batches(sequences: Iterable[tuple[int, ...]]) -> Iterator[list[tuple[int, ...]]]:
    """Texts in batches of similar length and bounded size."""
    batch: list[tuple[int, ...]] = []
    for ids in sorted(sequences, key=len):
        if batch and len(ids) * (len(batch) + 1) > _BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(ids)
    if batch:
        yield batch


class _Batch(NamedTuple):
    """Texts padded on the right; a causal model is not affected by what follows a position."""

    ids: Int[Tensor, "text pos"]
    attention: Int[Tensor, "text pos"]
    scored: Bool[Tensor, "text pos"]
    """Positions whose next token is predicted."""


def _padded(rows: Sequence[Sequence[int]], device: str) -> _Batch:
    ids, attention = padded(rows, 0)
    scored = torch.zeros_like(attention, dtype=torch.bool)
    scored[:, :-1] = attention[:, 1:] == 1
    return _Batch(ids.to(device), attention.to(device), scored.to(device))


def _states(head: Head, batch: _Batch) -> Float[Tensor, "prediction width"]:
    """Final states of the model, with the edits that are in force, at the positions whose next token is predicted."""

    def read(part: slice) -> Tensor:
        return head.states(batch.ids[part], batch.attention[part])[batch.scored[part]]

    return torch.cat(in_parts(read, len(batch.ids), what="Collateral", unit="texts"))


def _edited_states(
    runner: Runner, condition: Condition, head: Head, batch: _Batch
) -> Float[Tensor, "prediction width"]:
    with runner.in_force(condition, positions=replace(runner.positions, part="all")):
        return _states(head, batch)


def _sums(
    head: Head, clean: Float[Tensor, "prediction width"], edited: Sequence[Tensor], batch: _Batch
) -> list[Float[Tensor, "text 2"]]:
    """Per text, the sums over its predictions of KL(clean ‖ edited) and of the change of cross-entropy, for each edit."""
    target = batch.ids.roll(-1, dims=1)[batch.scored]
    text = torch.nonzero(batch.scored)[:, 0]
    result = []
    for found in compared_with(head, clean, edited, target, dtype=torch.float32):
        sums = torch.zeros(len(batch.ids), 2, dtype=torch.float64, device=found.kl.device)
        values = torch.stack([found.kl, -found.change], dim=1).double()
        result.append(sums.index_add(0, text.to(sums.device), values).cpu())
    return result
