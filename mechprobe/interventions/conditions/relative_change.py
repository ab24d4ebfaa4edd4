"""How far edits move the residual relative to its own norm, and which edits leave the range of the data.

On every token of some prompts, with r the clean host's residual at the site and r' the edited one, the relative change is
‖r' − r‖₂ / ‖r‖₂; the largest over the tokens is reported. It is measured in a separate pass of the clean models, so it does not
slow down any edit. Measure and bound are our own.
"""

from collections.abc import Iterable, Mapping, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mechprobe.data.encoding import Ids
from mechprobe.evals.answering import encoders_of, prompt_of
from mechprobe.interventions.conditions.plan import Condition
from mechprobe.interventions.conditions.runner import Runner
from mechprobe.interventions.result import RelativeChanges
from mechprobe.models.generation import left_pad
from mechprobe.models.residuals import residuals_plain

FAR = 10.0
"""Relative change above which an edit is named: hardly anything of the model's own residual is left in the sum."""
PROMPTS = 4
"""Prompts of each task, from the top, on which the change is measured."""
_BATCH = 32
_KINDS = ("selected", "dose", "opposite")


def measure_changes(
    runner: Runner, conditions: Sequence[Condition], prompts: Sequence[Ids]
) -> tuple[RelativeChanges, dict[str, float]]:
    """The largest relative change of every edit of the selected set, including its doses and opposites.

    Returns:
        The bound with the conditions above it, and condition → relative change.
    """
    measured = [c for c in conditions if c.how == "edit" and c.set_kind in _KINDS and c.ids]
    found, n_tokens = relative_changes(runner, measured, prompts)
    far = [name for name, value in found.items() if value > FAR]
    return RelativeChanges(bound=FAR, n_tokens=n_tokens, far=far), found


def task_prompts(runner: Runner) -> list[Ids]:
    """Token ids of the first prompts of every task of the runner."""
    first = [(task, prompt_of(sample)) for task in runner.tasks for sample in task.samples[:PROMPTS]]
    encoders = encoders_of(runner.family.tokenizers, runner.tasks)
    return [encoders[task.text].encode(prompt) for task, prompt in first]


@torch.no_grad()
def relative_changes(
    runner: Runner, conditions: Sequence[Condition], prompts: Sequence[Ids]
) -> tuple[dict[str, float], int]:
    """The largest ‖r' − r‖₂ / ‖r‖₂ of each condition's edit over the tokens of some prompts (token ids), and the number of tokens.

    A prompt beyond the models' context is cut on the left. Positions that edits leave alone do not count.
    """
    names = {c.model for c in conditions} | {name for c in conditions for name in runner.reads(c)}
    rewrites = {c.name: runner.rewrite(c) for c in conditions}
    found: dict[str, float] = {}
    n_tokens = 0
    for start in range(0, len(prompts), _BATCH):
        resid, attention = _residuals(runner, sorted(names), prompts[start : start + _BATCH])
        n_tokens += int(attention.sum())
        for c in conditions:
            read = {name: resid[name] for name in (c.model, *runner.reads(c))}
            edited = attention & runner.leaves.mask(attention.long().cumsum(1) - 1, read)
            largest = _largest(rewrites[c.name](resid), resid[c.model], edited)
            found[c.name] = max(found.get(c.name, 0.0), largest)
    return found, n_tokens


def _residuals(
    runner: Runner, names: Iterable[str], prompts: Sequence[Ids]
) -> tuple[Mapping[str, Float[Tensor, "batch pos d_model"]], Bool[Tensor, "batch pos"]]:
    rows = [prompt[-runner.family.max_context :] for prompt in prompts]
    ids, attention = left_pad(rows, runner.family.pad_id, "cpu")
    device = runner.crosscoder.device
    found = {}
    for model in (runner.family[name] for name in names):
        inputs = (ids.to(model.input_device), attention.to(model.input_device))
        found[model.name] = residuals_plain(model, *inputs, [runner.site])[runner.site].to(device)
    return found, attention.bool().to(device)


def _largest(
    edited: Float[Tensor, "batch pos d_model"],
    resid: Float[Tensor, "batch pos d_model"],
    attention: Bool[Tensor, "batch pos"],
) -> float:
    before = resid[attention].double()  # squares of float32 overflow from 1e19 on
    change = edited[attention].double() - before
    ratio = change.norm(dim=-1) / before.norm(dim=-1).clamp(min=1e-12)
    most = torch.finfo(torch.float64).max  # JSON has no infinity
    return float(ratio.nan_to_num(nan=most).max()) if len(ratio) else 0.0
