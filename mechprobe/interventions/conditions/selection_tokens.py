"""The tokens of the selection halves: prompts with the tuned model's responses, and the models' residuals on them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechprobe.data.encoding import Ids, PromptEncoder
from mechprobe.evals.answering import prompt_of, run_tasks
from mechprobe.evals.tasks import Task
from mechprobe.interventions.conditions.runner import Runner
from mechprobe.interventions.hooks.positions import CallTokens, PositionMask
from mechprobe.models.generation import left_pad, length_batches
from mechprobe.models.residuals import residuals_plain

_BATCH = 64


@dataclass(frozen=True)
class TokenBatch:
    """Tokens of some sequences, without special tokens and without positions that the crosscoder does not describe.

    Attributes:
        x: Residuals by model name, float32 on the CPU.
        response: Which tokens belong to the response.
        last: Which tokens end a prompt; these may be special, because a chat template may end a prompt with such a token.
        edited: Which tokens the positions of the settings let edits change.
    """

    x: dict[str, Float[Tensor, "row d_model"]]
    response: Bool[Tensor, " row"]
    last: Bool[Tensor, " row"]
    edited: Bool[Tensor, " row"]


class SelectionTokens:
    """Sequences of the selection halves; the tuned model responds once, when they are first read."""

    def __init__(self, runner: Runner, tasks: Sequence[Task]) -> None:
        self.runner = runner
        self.tasks = list(tasks)
        self._special = list(runner.family.tokenizer.all_special_ids)

    @property
    def n_samples(self) -> int:
        """Number of sequences."""
        return sum(len(task.samples) for task in self.tasks)

    @cached_property
    def sequences(self) -> list[tuple[Ids, int]]:
        """The token ids of every prompt with the tuned model's first response, and the length of the prompt."""
        runner = self.runner
        tuned, responses = runner.models.whole(runner.config.tuned), {}
        for outcome in run_tasks(tuned, self.tasks, batch_size=runner.config.batch_size):
            responses.setdefault((outcome.task, outcome.sample_id), outcome.response_ids)
        found = []
        for task in self.tasks:
            encoder = PromptEncoder.of(runner.family.tokenizers, task.text)
            for sample in task.samples:
                prompt = encoder.encode(prompt_of(sample))
                ids = (*prompt, *responses[task.name, sample.id])[: runner.family.max_context]
                found.append((ids, len(prompt)))
        return found

    def batches(self, names: Sequence[str]) -> Iterator[TokenBatch]:
        """Yield the tokens with the residuals of the named models, among them base and tuned."""
        family, site = self.runner.family, self.runner.site
        for batch in length_batches([len(ids) for ids, _ in self.sequences], _BATCH):
            chosen = [self.sequences[index] for index in batch]
            ids, attention = left_pad([ids for ids, _ in chosen], family.pad_id, "cpu")
            x = {}
            for model in (self.runner.models[name] for name in names):
                inputs = (ids.to(model.input_device), attention.to(model.input_device))
                x[model.name] = residuals_plain(model, *inputs, [site])[site].float().cpu()
            place = attention.long().cumsum(1) - 1
            starts = torch.tensor([n for _, n in chosen])[:, None]
            response, last = place >= starts, place == starts - 1
            special = torch.isin(ids, torch.tensor(self._special, dtype=ids.dtype))
            taken = attention.bool() & self.runner.leaves.mask(place, x) & (~special | last)
            edited = self._edited(ids, response, last)
            rows = {name: resid[taken] for name, resid in x.items()}
            yield TokenBatch(rows, response[taken], last[taken], edited[taken])

    def _edited(
        self, ids: Int[Tensor, "batch pos"], response: Bool[Tensor, "batch pos"], last: Bool[Tensor, "batch pos"]
    ) -> Bool[Tensor, "batch pos"]:
        """Where the positions of the settings let edits act in whole sequences."""
        rule = self.runner.positions
        everywhere = torch.ones_like(response)
        part = {"all": everywhere, "prompt": ~response, "response": response, "last_prompt_token": last}[rule.part]
        in_class = PositionMask(replace(rule, part="all"), self._special)
        return part & in_class.of(CallTokens(ids, None, 0, ids.shape[1]))
