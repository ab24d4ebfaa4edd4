"""Ceilings of a lab: the largest effect at each site, measured by replacing the whole residual of one model by the other's.

Replacing the host's residual after block l by the donor's, at every position and step, equals a model with the donor's
embeddings and blocks up to l and the host's blocks above. This module builds and measures that model. ``mechprobe localize``
patches residuals instead, and must agree.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mechprobe.evals.skills import SkillItem
from mechprobe.lab.measure import GATE_LIMITS, Measured, measure

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast


def spliced_model(host: LlamaForCausalLM, donor: LlamaForCausalLM, layer: int) -> LlamaForCausalLM:
    """Copy the host and make its residual after block ``layer`` that of the donor."""
    model = copy.deepcopy(host)
    model.model.embed_tokens.load_state_dict(donor.model.embed_tokens.state_dict())
    for block in range(layer + 1):
        model.model.layers[block].load_state_dict(donor.model.layers[block].state_dict())
    return model


def measure_ceilings(
    base: LlamaForCausalLM,
    rl: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    items: Mapping[str, Sequence[SkillItem]],
    *,
    rendering: str,
) -> dict[str, dict[str, dict[str, Measured]]]:
    """Measure both ceilings at every site: ``sufficiency`` (base with rl's residual) and ``necessity`` (rl with base's)."""
    result = {}
    for layer in range(base.config.num_hidden_layers):
        result[f"resid_post.{layer}"] = {
            "sufficiency": measure(spliced_model(base, rl, layer), tokenizer, items, rendering=rendering),
            "necessity": measure(spliced_model(rl, base, layer), tokenizer, items, rendering=rendering),
        }
    return result


def ceiling_gate(
    base: Mapping[str, Measured],
    rl: Mapping[str, Measured],
    ceilings: Mapping[str, Mapping[str, Mapping[str, Measured]]],
    gained: Sequence[str],
) -> dict[str, Any]:
    """Check that some site carries the change by RL in both directions.

    The share of a site is the mean, over the skills that RL improved, of (difference of accuracy from the replacement) /
    (gain of accuracy by RL).
    """
    shares = {}
    for site, sides in ceilings.items():
        up = [(sides["sufficiency"][s].accuracy - base[s].accuracy) / _gain(base, rl, s) for s in gained]
        down = [(rl[s].accuracy - sides["necessity"][s].accuracy) / _gain(base, rl, s) for s in gained]
        shares[site] = {
            "sufficiency": sum(up) / len(up) if up else None,
            "necessity": sum(down) / len(down) if down else None,
        }
    limit = GATE_LIMITS["site_share_at_least"]
    sites = [site for site, share in shares.items() if all(v is not None and v >= limit for v in share.values())]
    return {"passed": bool(sites), "share_of_gain": shares, "sites_with_both": sites, "skills": list(gained)}


def _gain(base: Mapping[str, Measured], rl: Mapping[str, Measured], skill: str) -> float:
    return rl[skill].accuracy - base[skill].accuracy
