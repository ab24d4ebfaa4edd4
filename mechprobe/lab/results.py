"""Results of a finished lab: accuracy per model and skill, comparisons with the base, ceilings, gates and curves.

The ceiling of a site is a reference for edits there, measured by replacing the whole residual of one model by the other's.
Replacing the host's residual after block l by the donor's, at every position and step, equals a model with the donor's
embeddings and blocks up to l and the host's blocks above. This module builds and measures that model. ``mechprobe
localize`` patches residuals instead, and must agree.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mechprobe.evals.skills import SkillItem
from mechprobe.lab.items import ItemSets
from mechprobe.lab.measure import GATE_LIMITS, Measured, compare, measure
from mechprobe.lab.recipe import TRAINED_SKILL, Recipe
from mechprobe.lab.weights import frozen_equal, load_model, threads
from mechprobe.progress import progress
from mechprobe.stage_folder import read_manifest

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

CAVEAT = (
    "Transfer in this lab is elicitation by construction: pre-training plants one marker that opens careful work in "
    "every skill, and forcing that marker on the untrained base gives nearly all of RL's gain (row "
    "'base, marker forced'). A planted mechanism to test the tool on; no evidence about large models."
)


def model_folders(folder: Path) -> dict[str, Path]:
    """Map the name of every model of a lab, such as ``rl`` or ``rl@step_000016``, to its folder."""
    arms = [name for name in ("base", "sft", "sft_instyle", "rl", "null") if (folder / name).is_dir()]
    found = {name: folder / name for name in arms}
    for arm in arms:
        for step in sorted((folder / "checkpoints" / arm).glob("step_*")):
            found[f"{arm}@{step.name}"] = step
    return found


def measure_lab(recipe: Recipe, folder: Path, items: ItemSets) -> dict[str, Any]:
    """Measure every saved model of a lab on all held-out items, and check the gates of the lab."""
    from mechprobe.lab.tokenizer import build_tokenizer

    tokenizer, folders = build_tokenizer(), model_folders(folder)
    measured: dict[str, dict[str, Measured]] = {}
    arms: dict[str, LlamaForCausalLM] = {}
    with threads(recipe.n_threads), progress(len(folders) + 2, "measuring", unit="models") as advance:
        for name, path in folders.items():
            model = load_model(path).eval()
            measured[name] = measure(model, tokenizer, items.eval, rendering=recipe.rendering)
            if "@" not in name:
                arms[name] = model
            advance(1)
        forced = measure(arms["base"], tokenizer, items.eval, rendering=recipe.rendering, forced=True)
        advance(1)
        ceilings = measure_ceilings(arms["base"], arms["rl"], tokenizer, items.eval, rendering=recipe.rendering)
        advance(1)
    versus_base = {
        name: {skill: compare(measured["base"][skill], result[skill]) for skill in result}
        for name, result in measured.items()
        if name != "base"
    }
    unchanged = {name: frozen_equal(model, arms["base"]) for name, model in arms.items() if name != "base"}
    gained = [s for s, c in versus_base["rl"].items() if c["beyond_3_se"] and c["difference"] > 0]
    pretraining = read_manifest(folder / "base")
    attempts = pretraining["results"]["attempts"]
    tried = [attempt["seed"] for attempt in attempts]
    return {
        "caveat": CAVEAT,
        "trained_skill": TRAINED_SKILL,
        "accuracy": {name: _json(result) for name, result in measured.items()},
        "base_marker_forced": _json(forced),
        "versus_base": versus_base,
        "rl_versus_base_marker_forced": {s: compare(forced[s], measured["rl"][s]) for s in forced},
        "ceilings": {site: {side: _json(r) for side, r in sides.items()} for site, sides in ceilings.items()},
        "gates": {
            "limits": GATE_LIMITS,
            "enforced": recipe.enforce_gates,
            "pretraining": attempts[-1]["gates"],
            "ceilings": ceiling_gate(measured["base"], measured["rl"], ceilings, gained),
            "frozen_parts_bit_equal": unchanged if recipe.head_is_frozen else None,
        },
        "findings": _findings(versus_base, gained),
        "pretraining": {"seed": pretraining["seed"], "seeds_tried": tried, "attempts": attempts},
        "curves": {arm: read_manifest(folder / arm)["results"]["curve"] for arm in arms if arm != "base"},
        "seconds": {arm: read_manifest(folder / arm)["seconds"] for arm in arms},
    }


def _findings(versus_base: dict[str, Any], gained: list[str]) -> dict[str, Any]:
    """Summarize the outcome; it does not influence which seed is kept."""
    sft = versus_base["sft"]
    return {
        "rl_gains_untrained": [skill for skill in gained if skill != TRAINED_SKILL],
        "rl_learns_trained_skill": TRAINED_SKILL in gained,
        "sft_loses": [s for s, c in sft.items() if c["beyond_3_se"] and c["difference"] < 0],
        "sft_learns_trained_skill": sft[TRAINED_SKILL]["beyond_3_se"] and sft[TRAINED_SKILL]["difference"] > 0,
    }


def _json(result: dict[str, Measured]) -> dict[str, dict[str, float | int]]:
    return {skill: measured.to_json() for skill, measured in result.items()}


def spliced_model(host: "LlamaForCausalLM", donor: "LlamaForCausalLM", layer: int) -> "LlamaForCausalLM":
    """Copy the host and make its residual after block ``layer`` that of the donor."""
    model = copy.deepcopy(host)
    model.model.embed_tokens.load_state_dict(donor.model.embed_tokens.state_dict())
    for block in range(layer + 1):
        model.model.layers[block].load_state_dict(donor.model.layers[block].state_dict())
    return model


def measure_ceilings(
    base: "LlamaForCausalLM",
    rl: "LlamaForCausalLM",
    tokenizer: "PreTrainedTokenizerFast",
    items: Mapping[str, Sequence[SkillItem]],
    *,
    rendering: str,
) -> dict[str, dict[str, dict[str, Measured]]]:
    """Measure both ceilings at every site: ``sufficiency`` (base with rl's residual) and ``necessity`` (rl with base's)."""
    return {
        site: {side: measure(model, tokenizer, items, rendering=rendering) for side, model in sides.items()}
        for site, sides in splices(base, rl)
    }


def splices(
    base: "LlamaForCausalLM", rl: "LlamaForCausalLM", n_sites: int | None = None
) -> Iterator[tuple[str, dict[str, "LlamaForCausalLM"]]]:
    """Yield the first sites (None: all) with their two spliced models: base with rl's residual there, and rl with base's."""
    for layer in range(base.config.num_hidden_layers if n_sites is None else n_sites):
        yield (
            f"resid_post.{layer}",
            {"sufficiency": spliced_model(base, rl, layer), "necessity": spliced_model(rl, base, layer)},
        )


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
    gain = {skill: rl[skill].accuracy - base[skill].accuracy for skill in gained}
    shares = {}
    for site, sides in ceilings.items():
        up = [(sides["sufficiency"][s].accuracy - base[s].accuracy) / gain[s] for s in gained]
        down = [(rl[s].accuracy - sides["necessity"][s].accuracy) / gain[s] for s in gained]
        shares[site] = {
            "sufficiency": sum(up) / len(up) if up else None,
            "necessity": sum(down) / len(down) if down else None,
        }
    limit = GATE_LIMITS["site_share_at_least"]
    sites = [site for site, share in shares.items() if all(v is not None and v >= limit for v in share.values())]
    return {"passed": bool(sites), "share_of_gain": shares, "sites_with_both": sites, "skills": list(gained)}
