"""Accuracy of a model on held-out items, paired comparisons with the base, and the gates of a lab."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mechprobe.evals.scorers.parse import scorer
from mechprobe.evals.skills import SkillItem
from mechprobe.evals.skills.item import ANSWER_MARKER
from mechprobe.evals.skills.registry import marker
from mechprobe.lab.recipe import TRAINED_SKILL
from mechprobe.models.generation import generate
from mechprobe.statistics import binomial_se, mcnemar_exact

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

MAX_NEW_TOKENS = 48
SCORER = f"final:{ANSWER_MARKER}"

GATE_LIMITS = {
    "base_trained_skill_at_most": 0.60,
    "base_untrained_skill_at_most": 0.80,
    "forced_gain_at_least": 0.15,
    "untrained_skills_with_forced_gain": 2,
    "site_share_at_least": 0.80,
}
"""Limits of the gates, fixed before any build.

The base must leave head-room on the trained skill and on untrained ones. Forcing the marker must beat the direct answer on the
trained skill and on two others. Some site must have both ceilings.
"""


@dataclass(frozen=True)
class Measured:
    """Greedy responses of one model to the held-out items of one skill."""

    right: tuple[bool, ...]
    n_unparsed: int
    marker_share: float | None
    """Fraction of responses that open with the marker of worked responses; None where there is none."""

    @property
    def accuracy(self) -> float:
        """Fraction of right answers."""
        return sum(self.right) / len(self.right)

    def to_json(self) -> dict[str, float | int]:
        """Return counts, accuracy and its binomial standard error."""
        n, k = len(self.right), sum(self.right)
        opened = {} if self.marker_share is None else {"opens_with_marker": self.marker_share}
        return {"n": n, "right": k, "unparsed": self.n_unparsed, "accuracy": k / n, "se": binomial_se(k, n), **opened}


def measure(
    model: "LlamaForCausalLM",
    tokenizer: "PreTrainedTokenizerFast",
    items: Mapping[str, Sequence[SkillItem]],
    *,
    rendering: str,
    forced: bool = False,
) -> dict[str, Measured]:
    """Generate greedy responses to all items of each skill and score them.

    The rendering of the recipe decides the markers. If ``forced``, each response is forced to begin with the marker of
    worked responses.
    """
    judge = scorer(SCORER)
    result = {}
    for skill, questions in items.items():
        word = marker(skill, rendering)
        prompts, prefix = [item.prompt for item in questions], word if forced else ""
        responses = generate(model, tokenizer, prompts, max_new_tokens=MAX_NEW_TOKENS, prefix=prefix)
        verdicts = [judge.score(r.text, item.answer) for r, item in zip(responses, questions, strict=True)]
        opened = sum(response.text.split()[:1] == [word] for response in responses)
        right = tuple(verdict == "right" for verdict in verdicts)
        result[skill] = Measured(right, verdicts.count("unparsed"), opened / len(questions))
    return result


def compare(before: Measured, after: Measured) -> dict[str, float | int | bool]:
    """Compare two models on the same items.

    ``z`` is the difference of the accuracies divided by its unpaired standard error √(se₁² + se₂²). ``mcnemar_p`` is the
    exact McNemar test of the items on which the models differ.
    """
    n = len(before.right)
    se = (binomial_se(sum(before.right), n) ** 2 + binomial_se(sum(after.right), n) ** 2) ** 0.5
    difference = after.accuracy - before.accuracy
    pairs = list(zip(before.right, after.right, strict=True))
    return {
        "n": n,
        "difference": difference,
        "se": se,
        "z": difference / se if se > 0 else 0.0,
        "gained": sum(b < a for b, a in pairs),
        "lost": sum(b > a for b, a in pairs),
        "mcnemar_p": mcnemar_exact(np.array(before.right), np.array(after.right)),
        "beyond_3_se": abs(difference) > 3 * se,
    }


def pretraining_gates(direct: Mapping[str, Measured], forced: Mapping[str, Measured]) -> dict[str, Any]:
    """Check the base before post-training; the gates do not use any outcome of SFT or RL."""
    untrained = [skill for skill in direct if skill != TRAINED_SKILL]
    gain = {skill: forced[skill].accuracy - direct[skill].accuracy for skill in direct}
    limit, n_needed = GATE_LIMITS["forced_gain_at_least"], GATE_LIMITS["untrained_skills_with_forced_gain"]
    n_low = sum(direct[skill].accuracy <= GATE_LIMITS["base_untrained_skill_at_most"] for skill in untrained)
    checks = {
        "head_room_trained": direct[TRAINED_SKILL].accuracy <= GATE_LIMITS["base_trained_skill_at_most"],
        "head_room_untrained": n_low >= n_needed,
        "forced_marker_beats_direct_trained": gain[TRAINED_SKILL] >= limit,
        "forced_marker_beats_direct_untrained": sum(gain[skill] >= limit for skill in untrained) >= n_needed,
    }
    return {"passed": all(checks.values()), "checks": checks, "forced_gain": gain}
