"""How far edits move the residual, beside the residual's own size, and which of them leave the range of the data.

On every token of some prompts, with r the clean host's residual at the site and r' the edited one: ‖r' − r‖₂ / ‖r‖₂. The
largest over the tokens is told. It is read in clean models, in a pass of its own, so no edit in force is slower for it.
Measure and bound are ours.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mechprobe.interventions.conditions.conditions import Condition
from mechprobe.interventions.conditions.runner import Runner
from mechprobe.models.residuals import residuals_plain

FAR = 10.0
"""Above this multiple of the residual's norm an edit is named: what goes on is then next to nothing of the model's own."""
PROMPTS = 4
"""Prompts of each task, from the top, that are read."""
_KINDS = ("selected", "dose", "opposite")


def with_changes(rows: Sequence[dict[str, Any]], runner: Runner, conditions: Sequence[Condition]) -> dict[str, Any]:
    """Put each edit's largest relative change into its row (``relative_change``, None where it was not measured).

    Args:
        rows: Of ``results.json``, each with the ``name`` of its condition.
        runner: Holds models, crosscoder and tasks.
        conditions: As planned; the edits of the selected set are measured, its doses and its opposites too.

    Returns:
        ``bound``, ``n_tokens`` read, and ``far``: names of the conditions above the bound.
    """
    measured = [c for c in conditions if c.how == "edit" and c.set_kind in _KINDS and c.ids]
    found, n_tokens = relative_changes(runner, measured)
    for row in rows:
        row["relative_change"] = found.get(row["name"])
    return {"bound": FAR, "n_tokens": n_tokens, "far": [name for name, value in found.items() if value > FAR]}


@torch.no_grad()
def relative_changes(runner: Runner, conditions: Sequence[Condition]) -> tuple[dict[str, float], int]:
    """The largest ‖r' − r‖₂ / ‖r‖₂ of each condition's edit, and the number of tokens that were read."""
    names = {c.model for c in conditions} | {name for c in conditions for name in runner.reads(c)}
    prompts = [sample.prompt for task in runner.tasks for sample in task.samples[:PROMPTS]]
    resid, attention = _residuals(runner, sorted(names), prompts)
    found = {c.name: _largest(runner.rewrite(c)(resid), resid[c.model], attention) for c in conditions}
    return found, int(attention.sum())


def _residuals(
    runner: Runner, names: Iterable[str], prompts: Sequence[str]
) -> tuple[Mapping[str, Float[Tensor, "batch pos d_model"]], Bool[Tensor, "batch pos"]]:
    encoded = runner.family.tokenizer(list(prompts), return_tensors="pt", padding=True)
    ids, attention = encoded.input_ids, encoded.attention_mask
    device = runner.crosscoder.device
    found = {}
    for name in names:
        model = runner.family[name]
        place = model.input_device
        read = residuals_plain(model, ids.to(place), attention.to(place), [runner.site])
        found[name] = read[runner.site].to(device)
    return found, attention.bool().to(device)


def _largest(
    edited: Float[Tensor, "batch pos d_model"],
    resid: Float[Tensor, "batch pos d_model"],
    attention: Bool[Tensor, "batch pos"],
) -> float:
    before = resid[attention].double()  # float32 squares overflow from 1e19 on
    change = edited[attention].double() - before
    ratio = change.norm(dim=-1) / before.norm(dim=-1).clamp(min=1e-12)
    most = torch.finfo(torch.float64).max  # told where it is beyond numbers and `positions` spare the prompt
    return float(ratio.nan_to_num(nan=most).max())
