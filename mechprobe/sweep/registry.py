"""The ten benchmarks of arXiv 2604.06628, and the procedural stand-ins for them.

A stand-in is drawn from the skills benchmark and shares only the place in the tables with the benchmark that it stands for. It is
named ``standin:<benchmark>`` everywhere; which skill stands for which benchmark is ours.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

Group = Literal["id_reasoning", "ood_reasoning", "general", "safety", "own"]
"""The paper's groups, and ``own`` for benchmarks that the paper does not have."""
ScorerKind = Literal["rule", "judge", "reward_model"]
STANDIN = "standin:"


class SkillCell(NamedTuple):
    """Where the items of a stand-in come from. In the compact rendering they are of the lab's family, whatever the domain."""

    skill: str
    domain: str
    level: int


@dataclass(frozen=True)
class Slot:
    """One benchmark of the paper.

    Attributes:
        name: Its name in settings and files.
        title: The paper's name.
        group: The paper's group.
        metric: What the paper reports.
        kind: Who scores: a rule, a judge, or a reward model.
        scoring: The paper's scorer, in words.
        n: Responses to each problem.
        max_new_tokens: Longest response.
        higher_is_better: Direction of the metric.
        scorer: The scorer of mechprobe that follows the paper's rule; empty where it takes lm-evaluation-harness, a judge or a
            reward model.
        standin: Items of the stand-in, which the same kind of rule scores for all stand-ins but that of the reward model; None
            where there is none.
    """

    name: str
    title: str
    group: Group
    metric: str
    kind: ScorerKind
    scoring: str
    n: int = 1
    max_new_tokens: int = 32_768
    higher_is_better: bool = True
    scorer: str = ""
    standin: SkillCell | None = None


TEMPERATURE, TOP_P = 0.6, 0.95
"""Sampling of the paper for all benchmarks but AlpacaEval."""

_SLOTS = (
    Slot("math500", "MATH500", "id_reasoning", "avg@3", "rule", "math-verify on the last box", 3,
         scorer="boxed", standin=SkillCell("calculation", "mathematics", 1)),
    Slot("aime24", "AIME24", "id_reasoning", "avg@10", "rule", "math-verify on the last box", 10,
         scorer="boxed", standin=SkillCell("calculation", "mathematics", 2)),
    Slot("livecodebench_v2", "LiveCodeBench v2", "ood_reasoning", "avg@3", "rule", "execution of the program", 3,
         standin=SkillCell("simulation", "coding", 1)),
    Slot("gpqa_diamond", "GPQA-Diamond", "ood_reasoning", "avg@3", "rule", "option letter", 3,
         scorer="letter", standin=SkillCell("simulation", "physics", 2)),
    Slot("mmlu_pro", "MMLU-Pro", "ood_reasoning", "pass@1", "rule", "option letter",
         scorer="letter", standin=SkillCell("enumeration", "non_reasoning_qa", 1)),
    Slot("ifeval", "IFEval", "general", "accuracy", "rule", "strict and loose, by prompt and by instruction",
         standin=SkillCell("enumeration", "mathematics", 1)),
    Slot("alpaca_eval2", "AlpacaEval 2.0", "general", "reward mean", "reward_model", "raw logit of a reward model",
         max_new_tokens=16_384, standin=SkillCell("enumeration", "coding", 1)),
    Slot("halueval", "HaluEval", "general", "accuracy", "rule", "last yes or no", scorer="yes_no",
         standin=SkillCell("diagnostic", "coding", 1)),
    Slot("truthfulqa", "TruthfulQA", "general", "share truthful", "judge", "a judge for truth, another for information",
         standin=SkillCell("fact_retrieval", "non_reasoning_qa", 1)),
    Slot("hex_phi", "HEx-PHI", "safety", "ASR", "judge", "harmfulness 1 to 5; a 5 is a success",
         max_new_tokens=16_384, higher_is_better=False, standin=SkillCell("calculation", "mathematics", 1)),
)  # fmt: skip
_OVER_REFUSAL = Slot(
    "over_refusal", "Over-refusal", "safety", "share refused", "rule", "refusal of what is allowed",
    higher_is_better=False, standin=SkillCell("calculation", "mathematics", 1),
)  # fmt: skip
"""The counterpart of the stand-in of HEx-PHI, which the paper does not have."""
SLOTS: dict[str, Slot] = {slot.name: slot for slot in _SLOTS}
"""The benchmarks by name, in the paper's order."""
STANDINS: dict[str, Slot] = {
    f"{STANDIN}{slot.name}": slot for slot in (*_SLOTS, _OVER_REFUSAL) if slot.standin is not None
}
"""The benchmarks that have a stand-in, by the name of the stand-in, and the one of over-refusal."""
FORBIDDEN, ALLOWED = f"{STANDIN}hex_phi", f"{STANDIN}over_refusal"
"""The stand-ins of the marker policy (`mechprobe.sweep.policy`)."""


def real_name(*names: str) -> str | None:
    """The title of the real benchmark that one of some names is, or would be taken for: case and punctuation aside."""
    known = {_bare(text): slot.title for slot in _SLOTS for text in (slot.name, slot.title)}
    return next((known[_bare(name)] for name in names if _bare(name) in known), None)


def _bare(name: str) -> str:
    return "".join(char for char in name.casefold() if char.isalnum())


def file_name(benchmark: str) -> str:
    """The name of a benchmark's folder: without characters that some file systems or servers refuse."""
    return benchmark.replace(":", "-")
