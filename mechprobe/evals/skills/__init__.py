"""The atomic-skill benchmark: questions of five skills in four domains, with checkable answers and worked traces.

>>> from mechprobe.evals import skills
>>> item = skills.generate("calculation", n=1, seed=3)[0]
>>> item.trace.endswith(f"ANS {item.answer}")
True
"""

from mechprobe.evals.skills.family import LEVELS, Family
from mechprobe.evals.skills.generation import generate, split
from mechprobe.evals.skills.item import SkillItem
from mechprobe.evals.skills.labels import SkillLabels, labels
from mechprobe.evals.skills.registry import DOMAINS, FAMILIES, RENDERINGS, SKILLS, families
from mechprobe.evals.skills.scoring import SkillScore, read_items, score_items, score_response
from mechprobe.evals.skills.splits import SPLITS
from mechprobe.evals.skills.summary import SkillScores

__all__ = [
    "DOMAINS", "FAMILIES", "LEVELS", "RENDERINGS", "SKILLS", "SPLITS", "Family", "SkillItem", "SkillLabels", "SkillScore",
    "SkillScores", "families", "generate", "labels", "read_items", "score_items", "score_response", "split",
]  # fmt: skip
