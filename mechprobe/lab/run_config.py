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

[cache]
responses = ["base@1.0", "sft@0.0", "rl@0.0"]
max_new_tokens = {max_new_tokens}
max_prompts = 3000

[train_sae]
variant = "batchtopk"
d_sae = 1024
k = 24
batch_size = 2048
n_tokens = 1433600
lr = 1e-3
"""


def run_config(recipe: Recipe) -> str:
    """Write the TOML text; what is forced as a baseline is the marker of the trained skill."""
    return _TEMPLATE.format(
        scorer=SCORER,
        max_new_tokens=MAX_NEW_TOKENS,
        trained=TRAINED_SKILL,
        marker=marker(TRAINED_SKILL, recipe.rendering),
    )
