"""Generated skill families: questions with a checkable answer and a worked trace.

>>> from mechprobe.evals import skills
>>> item = skills.generate("calculation", n=1, seed=3)[0]
>>> item.trace.endswith(f"ANS {item.answer}")
True
"""

from mechprobe.evals.skills.item import SkillItem
from mechprobe.evals.skills.registry import DOMAINS, LEVELS, RENDERINGS, SKILLS, generate, split

__all__ = ["DOMAINS", "LEVELS", "RENDERINGS", "SKILLS", "SkillItem", "generate", "split"]
