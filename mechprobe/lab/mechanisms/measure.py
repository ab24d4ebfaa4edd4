"""Accuracy of the models of a mechanisms lab, what forcing does on the base, gates and ceilings."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mechprobe.evals.scorers.parse import scorer
from mechprobe.evals.skills import SkillItem
from mechprobe.lab.measure import SCORER, Measured, compare
from mechprobe.lab.mechanisms.language import ALL_STEPS, FIRST_STEP, FORCED, PEEK, SHARING, TRAINED
from mechprobe.lab.mechanisms.recipe import MechanismsRecipe
from mechprobe.lab.results import ceiling_gate, model_folders, splices
from mechprobe.lab.weights import Frozen, frozen_equal, load_model, threads
from mechprobe.models.generation import generate
from mechprobe.progress import progress
from mechprobe.stage_folder import read_manifest

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

MAX_NEW_TOKENS = 16
GATE_LIMITS = {
    "base_trained_skill_at_most": 0.30,
    "base_sharing_skill_at_most": 0.50,
    "all_careful_steps_at_least": 0.90,
    "first_step_gain_at_most": 0.30,
    "rl_trained_skill_at_least": 0.90,
    "rl_sharing_gain_at_least": 0.30,
    "control_gain_at_most": 0.15,
    "null_pooled_gain_at_most": 0.10,
    "site_share_at_least": 0.80,
}
"""Limits of the gates. Those of the base and of forcing decide whether a seed is kept; the others are only reported."""
CAVEAT = (
    "Transfer in this lab is planted: pre-training gives every contested op a careful and a careless reading that all skills "
    "share, and post-training on one skill makes the careful ones likely. A test of the tool on several mechanisms; no evidence "
    "about large models."
)


def measure(
    model: "LlamaForCausalLM",
    tokenizer: "PreTrainedTokenizerFast",
    items: Mapping[str, Sequence[SkillItem]],
    *,
    forced: str = "",
) -> dict[str, Measured]:
    """Generate greedy responses to all items of each skill and score them, after a forced beginning of `FORCED` or none."""
    judge, begin = scorer(SCORER), FORCED.get(forced, lambda _trace: "")
    result = {}
    for skill, questions in items.items():
        starts = [begin(item.trace) for item in questions]
        prompts = [f"{item.prompt} {start}" for item, start in zip(questions, starts, strict=True)]
        responses = generate(model, tokenizer, prompts, max_new_tokens=MAX_NEW_TOKENS)
        texts = [f"{start} {response.text}" for start, response in zip(starts, responses, strict=True)]
        verdicts = [judge.score(text, item.answer) for text, item in zip(texts, questions, strict=True)]
        right = tuple(verdict == "right" for verdict in verdicts)
        result[skill] = Measured(right, verdicts.count("unparsed"), None)
    return result


def pooled(found: Mapping[str, Measured]) -> float:
    """Mean accuracy over the untrained skills that share ops with the trained one."""
    return sum(found[skill].accuracy for skill in SHARING) / len(SHARING)


def base_gates(direct: Mapping[str, Measured], forced: Mapping[str, Mapping[str, Measured]]) -> dict[str, Any]:
    """Check the base before post-training; the gates do not use any outcome of SFT or RL."""
    limits = GATE_LIMITS
    able = {skill: found.accuracy for skill, found in forced[ALL_STEPS].items()}
    gain = pooled(forced[FIRST_STEP]) - pooled(direct)
    checks = {
        "head_room_trained": direct[TRAINED].accuracy <= limits["base_trained_skill_at_most"],
        "head_room_sharing": all(direct[s].accuracy <= limits["base_sharing_skill_at_most"] for s in SHARING),
        "all_careful_steps_forced_suffice": min(able.values()) >= limits["all_careful_steps_at_least"],
        "first_step_forced_gives_little": gain <= limits["first_step_gain_at_most"],
    }
    return {"passed": all(checks.values()), "checks": checks, "first_step_gain": gain}


def outcome_gates(
    base: Mapping[str, Measured], rl: Mapping[str, Measured], null: Mapping[str, Measured]
) -> dict[str, bool]:
    """Check what RL and the null did; these checks do not influence which seed is kept."""
    gain = {skill: rl[skill].accuracy - base[skill].accuracy for skill in base}
    return {
        "rl_learns_trained_skill": rl[TRAINED].accuracy >= GATE_LIMITS["rl_trained_skill_at_least"],
        "rl_gains_sharing_skills": min(gain[s] for s in SHARING) >= GATE_LIMITS["rl_sharing_gain_at_least"],
        "control_skill_flat": abs(gain[PEEK]) <= GATE_LIMITS["control_gain_at_most"],
        "null_gains_nothing": abs(pooled(null) - pooled(base)) <= GATE_LIMITS["null_pooled_gain_at_most"],
    }


def measure_lab(
    recipe: MechanismsRecipe,
    folder: Path,
    items: Mapping[str, Sequence[SkillItem]],
    tokenizer: "PreTrainedTokenizerFast",
    frozen: Frozen,
) -> dict[str, Any]:
    """Measure every saved model of a lab on all held-out items, and check the gates of the lab.

    Ceilings are measured up to the last trained block. A splice there or above is the other model by construction.
    """
    folders = model_folders(folder)
    measured: dict[str, dict[str, Measured]] = {}
    arms: dict[str, LlamaForCausalLM] = {}
    with threads(recipe.n_threads), progress(len(folders) + 1, "measuring", unit="models") as advance:
        for name, path in folders.items():
            model = load_model(path).eval()
            measured[name] = measure(model, tokenizer, items)
            if "@" not in name:
                arms[name] = model
            advance(1)
        ceilings = {
            site: {side: measure(model, tokenizer, items) for side, model in sides.items()}
            for site, sides in splices(arms["base"], arms["rl"], recipe.trained_blocks)
        }
        advance(1)
    versus = {n: {s: compare(measured["base"][s], f[s]) for s in f} for n, f in measured.items() if n != "base"}
    gained = [s for s in SHARING if versus["rl"][s]["beyond_3_se"] and versus["rl"][s]["difference"] > 0]
    pretraining = read_manifest(folder / "base")
    attempts = pretraining["results"]["attempts"]
    tuned = [name for name in arms if name != "base"]
    manifests = {name: read_manifest(folder / name) for name in arms}
    return {
        "caveat": CAVEAT,
        "trained_skill": TRAINED,
        "control_skill": PEEK,
        "accuracy": {name: _json(found) for name, found in measured.items()},
        "base_forced": attempts[-1]["forced"],
        "versus_base": versus,
        "ceilings": {site: {side: _json(found) for side, found in sides.items()} for site, sides in ceilings.items()},
        "gates": {
            "limits": GATE_LIMITS,
            "enforced": recipe.enforce_gates,
            "pretraining": attempts[-1]["gates"],
            "outcomes": outcome_gates(measured["base"], measured["rl"], measured["null"]),
            "ceilings": ceiling_gate(measured["base"], measured["rl"], ceilings, gained),
            "frozen_parts_bit_equal": {name: frozen_equal(arms[name], arms["base"], frozen) for name in tuned},
        },
        "pretraining": {
            "seed": pretraining["seed"],
            "seeds_tried": [attempt["seed"] for attempt in attempts],
            "attempts": attempts,
        },
        "curves": {name: manifests[name]["results"]["curve"] for name in tuned},
        "seconds": {name: manifest["seconds"] for name, manifest in manifests.items()},
    }


def _json(result: Mapping[str, Measured]) -> dict[str, dict[str, float | int]]:
    return {skill: measured.to_json() for skill, measured in result.items()}
