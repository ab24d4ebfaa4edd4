"""The texts on which collateral is measured, from a file or from an activation store."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from mechprobe.data.sources import as_prompts
from mechprobe.data.tokens import encode_prompt, encode_response
from mechprobe.errors import InputError
from mechprobe.evals.tasks import Task
from mechprobe.files import dump_json, sha256_bytes
from mechprobe.interventions.result import CollateralSource

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@runtime_checkable
class HasSequences(Protocol):
    """The part of an activation store that collateral reads."""

    def held_out_samples(self) -> list[int]:
        """Numbers of the sequences that are held out from training."""
        ...

    def sequence(self, sample: int) -> Any:
        """One sequence, with ``ids``, ``response``, ``source``, ``task`` and ``prompt_id``."""
        ...


@dataclass(frozen=True)
class CollateralTexts:
    """Texts that the models read without answering.

    Attributes:
        sequences: Token ids of each text, at least two.
        source: Where the texts come from, in words that results and report show.
    """

    sequences: tuple[tuple[int, ...], ...]
    source: str

    @property
    def fingerprint(self) -> str:
        """sha256 of the token ids."""
        return sha256_bytes(dump_json([list(ids) for ids in self.sequences]).encode())

    @property
    def n_predictions(self) -> list[int]:
        """Predicted tokens of each text."""
        return [len(ids) - 1 for ids in self.sequences]

    @property
    def summary(self) -> CollateralSource:
        """The texts as results describe them."""
        return CollateralSource(
            source=self.source,
            n_texts=len(self.sequences),
            n_tokens=sum(self.n_predictions),
            fingerprint=self.fingerprint,
        )

    def limited(self, n: int, length: int) -> "CollateralTexts":
        """The first ``n`` texts, each cut to ``length`` tokens."""
        return CollateralTexts(tuple(ids[:length] for ids in self.sequences[:n]), self.source)


def texts_of_file(path: Path | str, tokenizer: "PreTrainedTokenizerBase", n: int) -> CollateralTexts:
    """The first ``n`` texts of a prompt source: the prompt, followed by the response where the source has one.

    Raises:
        ConfigError: The format of the file is not recognized.
        InputError: The file cannot be used, or holds no text of at least two tokens.
    """
    sequences = []
    for prompt in as_prompts(path):
        if len(sequences) == n:
            break
        ids = encode_prompt(tokenizer, prompt) + encode_response(tokenizer, prompt.response or "")
        if len(ids) > 1:
            sequences.append(ids)
    if not sequences:
        raise InputError(f"{path} holds no text of two or more tokens, but collateral needs a next token to predict.")
    return CollateralTexts(tuple(sequences), f"texts of {Path(path).name}")


def texts_of_store(
    store: HasSequences, tasks: Sequence[Task], tokenizer: "PreTrainedTokenizerBase", n: int
) -> CollateralTexts | None:
    """Up to ``n`` prompts that no dictionary was trained on, preferably prompts that belong to no task.

    Only the tokens of the prompt source are taken, without responses of models. Where every held-out prompt belongs to a task,
    by the task's name or by its tokens, all held-out prompts are taken and ``source`` says so: such text is related to the
    tasks, so its collateral is overestimated.

    Returns:
        The texts, or None where the store has no held-out prompt.
    """
    names = {task.name for task in tasks}
    asked = {tuple(tokenizer(sample.prompt).input_ids) for task in tasks for sample in task.samples}
    unrelated: dict[str, tuple[int, ...]] = {}
    related: dict[str, tuple[int, ...]] = {}
    for sample in store.held_out_samples():
        sequence = store.sequence(sample)
        ids = _source_tokens(sequence)
        if len(ids) > 1:
            (related if sequence.task in names or ids in asked else unrelated).setdefault(sequence.prompt_id, ids)
    if unrelated:
        return CollateralTexts(tuple(unrelated.values())[:n], "held-out prompts of no task")
    if related:
        source = "held-out prompts of the tasks' own kinds, without responses (there are no others): related text"
        return CollateralTexts(tuple(related.values())[:n], source)
    return None


def _source_tokens(sequence: Any) -> tuple[int, ...]:
    """The tokens that came from the prompt source: all, or those before a response that a model generated."""
    if sequence.source is None or True not in sequence.response:
        return sequence.ids
    return sequence.ids[: sequence.response.index(True)]
