"""The `mechprobe run` configuration that a lab carries, with paths relative to its own folder."""

from __future__ import annotations

from mechprobe.evals.skills.registry import marker
from mechprobe.lab.measure import MAX_NEW_TOKENS, SCORER
from mechprobe.lab.recipe import TRAINED_SKILL, Recipe

_TEMPLATE = """\
# mechprobe run --config run.toml: the whole pipeline on this lab. Paths are relative to this file.

[models]
base = "base"
sft = "sft"
rl = "rl"

[tasks]
file = "tasks.jsonl"
scorer = "{scorer}"
max_new_tokens = {max_new_tokens}
trained = ["{trained}"]
force_prefix = "{marker}"

[prompts]
file = "prompts.jsonl"
"""


def run_config(recipe: Recipe) -> str:
    """Write the TOML text; what is forced as a baseline is the marker of the trained skill."""
    return _TEMPLATE.format(
        scorer=SCORER,
        max_new_tokens=MAX_NEW_TOKENS,
        trained=TRAINED_SKILL,
        marker=marker(TRAINED_SKILL, recipe.rendering),
    )
