"""How far edits move the residual relative to its own norm, and which edits leave the range of the data.

On every token of some prompts, with r the clean host's residual at the site and r' the edited one, the relative change is
‖r' − r‖₂ / ‖r‖₂; the largest over the tokens is reported. It is measured in a separate pass of the clean models, so it does not
slow down any edit. Measure and bound are our own.
"""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mechprobe.data.encoding import Ids
from mechprobe.evals.answering import encoders_of, prompt_of
from mechprobe.interventions.conditions.plan import Condition
from mechprobe.interventions.conditions.runner import Runner
from mechprobe.interventions.result import RelativeChanges
from mechprobe.interventions.result_rows import ChangeSize
from mechprobe.models.generation import left_pad
from mechprobe.models.residuals import residuals_plain

FAR = 10.0
"""Relative change above which an edit is named: hardly anything of the model's own residual is left in the sum."""
PROMPTS = 4
"""Prompts of each task, from the top, on which the change is measured."""
_BATCH = 32
_KINDS = ("selected", "dose", "opposite")
"""Edits of the selected set, which are named where they leave the range of the data."""
_BESIDE = ("random", "rescaled", "shuffled", "shifted", "rival", "complement")
"""Controls and rivals, whose changes stand beside those of the selected set."""


def measure_changes(
    runner: Runner, conditions: Sequence[Condition], prompts: Sequence[Ids]
) -> tuple[RelativeChanges, dict[str, ChangeSize]]:
    """The sizes of the changes of every edit of the selected set, of its controls and of its rivals.

    Returns:
        The bound with the edits of the selected set above it, and condition → size of its change.
    """
    edits = [c for c in conditions if c.how == "edit" and c.set_kind in _KINDS and c.ids]
    others = [c for c in conditions if c.set_kind in _BESIDE and (c.ids or c.how == "rival") and _at_site(runner, c)]
    found, n_tokens = relative_changes(runner, [*edits, *others], prompts)
    far = [c.name for c in edits if found[c.name].largest > FAR]
    return RelativeChanges(bound=FAR, n_tokens=n_tokens, far=far), found


def _at_site(runner: Runner, condition: Condition) -> bool:
    """Whether the change is one of the residual at the site on the tokens of a prompt."""
    rival = runner.rivals.get(condition.features) if condition.how == "rival" else None
    return rival is None or (rival.weight_rank is None and not rival.positions)


def task_prompts(runner: Runner) -> list[Ids]:
    """Token ids of the first prompts of every task of the runner."""
    first = [(task, prompt_of(sample)) for task in runner.tasks for sample in task.samples[:PROMPTS]]
    encoders = encoders_of(runner.family.tokenizers, runner.tasks)
    return [encoders[task.text].encode(prompt) for task, prompt in first]


@torch.no_grad()
def relative_changes(
    runner: Runner, conditions: Sequence[Condition], prompts: Sequence[Ids]
) -> tuple[dict[str, ChangeSize], int]:
    """The sizes of each condition's change over the tokens of some prompts (token ids), and the number of tokens.

    A prompt beyond the models' context is cut on the left. Positions that edits leave alone do not count.
    """
    names = sorted({c.model for c in conditions} | {name for c in conditions for name in runner.reads(c)})
    batches = [
        _residuals(runner, names, prompts[start : start + _BATCH]) for start in range(0, len(prompts), _BATCH) if names
    ]
    found: dict[str, ChangeSize] = {}
    for c in conditions:
        rewrite, parts = runner.rewrite(c), []
        for resid, attention in batches:
            read = {name: resid[name] for name in (c.model, *runner.reads(c))}
            edited = attention & runner.leaves.mask(attention.long().cumsum(1) - 1, read)
            parts.append(_sizes(rewrite(resid), resid[c.model], edited))
        ratio, norm = (torch.cat([part[index] for part in parts]) for index in range(2))
        most = torch.finfo(torch.float64).max  # JSON has no infinity
        largest, mean = (value.nan_to_num(nan=most, posinf=most) for value in (ratio, norm))
        found[c.name] = ChangeSize(float(largest.max()), float(mean.mean())) if len(ratio) else ChangeSize(0.0, 0.0)
    return found, sum(int(attention.sum()) for _, attention in batches)


def _residuals(
    runner: Runner, names: Sequence[str], prompts: Sequence[Ids]
) -> tuple[Mapping[str, Float[Tensor, "batch pos d_model"]], Bool[Tensor, "batch pos"]]:
    rows = [prompt[-runner.family.max_context :] for prompt in prompts]
    ids, attention = left_pad(rows, runner.family.pad_id, "cpu")
    device = runner.crosscoder.device
    found = {}
    for model in (runner.models[name] for name in names):
        inputs = (ids.to(model.input_device), attention.to(model.input_device))
        found[model.name] = residuals_plain(model, *inputs, [runner.site])[runner.site].to(device)
    return found, attention.bool().to(device)


def _sizes(
    edited: Float[Tensor, "batch pos d_model"],
    resid: Float[Tensor, "batch pos d_model"],
    attention: Bool[Tensor, "batch pos"],
) -> tuple[Float[Tensor, " token"], Float[Tensor, " token"]]:
    """‖r' − r‖₂ / ‖r‖₂ and ‖r' − r‖₂ of every token."""
    before = resid[attention].double()  # squares of float32 overflow from 1e19 on
    norm = (edited[attention].double() - before).norm(dim=-1)
    return norm / before.norm(dim=-1).clamp(min=1e-12), norm
