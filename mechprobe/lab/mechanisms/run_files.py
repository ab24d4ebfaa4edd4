"""The configurations for ``mechprobe run`` in the folder of a mechanisms lab, with paths relative to that folder."""

import json

from mechprobe.lab.measure import SCORER
from mechprobe.lab.mechanisms.language import PEEK, SHARING, TRAINED
from mechprobe.lab.mechanisms.measure import MAX_NEW_TOKENS
from mechprobe.lab.mechanisms.recipe import MechanismsRecipe

_TEMPLATE = """\
# mechprobe run --config {file}: the whole pipeline on this lab. Paths are relative to this file.

name = "Embedded lab, recipe {name}{title}"
notes = [
    "{note}",
    "Only the first {blocks} blocks are trained, so resid_post.{site} carries the whole change and two attention blocks read it."
]
near = ["base", "rl"]

[models]
base = "base"
{models}

[tasks]
file = "tasks.jsonl"
scorer = "{scorer}"
max_new_tokens = {max_new_tokens}
trained = {trained}

[prompts]
file = "prompts.jsonl"

[cache]
sites = ["resid_post.{site}"]
responses = ["base@1.0", "rl@0.0"]
max_new_tokens = {max_new_tokens}
max_prompts = 3000
generation_batch = 512

[train_sae]
variant = "batchtopk"
d_sae = 1024
k = 32
batch_size = 1024
n_tokens = 1400000
lr = 3e-3

[select]
tasks = {selecting}  # the control skill selects nothing

[intervene]
max_new_tokens = {max_new_tokens}
workers = 2
"""
_NOTE = (
    "A planted test bed, no evidence about large models: every contested op has a careful and a careless reading that all skills "
    "share, and RL on one skill ({trained}) teaches the careful ones. No opening to force, and no single vector, gives that."
)
_NULL = (
    "The null: RL on {trained} with the ops of the control skill ({peek}) alone. The skills {sharing} have none of these ops, and "
    "no set of features may be called causal for them."
)


def run_files(recipe: MechanismsRecipe) -> dict[str, str]:
    """Format ``run.toml`` and ``null.toml``; the null trains the ops of the control skill, which counts as trained there."""
    shared = {
        "name": recipe.name,
        "blocks": recipe.trained_blocks,
        "site": recipe.trained_blocks - 1,
        "scorer": SCORER,
        "max_new_tokens": MAX_NEW_TOKENS,
        "selecting": json.dumps(SHARING),
    }
    main = _TEMPLATE.format(
        file="run.toml",
        title="",
        note=_NOTE.format(trained=TRAINED.upper()),
        models='rl = "rl"',
        trained=f'["{TRAINED}"]',
        **shared,
    )
    null = _TEMPLATE.format(
        file="null.toml",
        title=", null",
        note=_NULL.format(
            trained=TRAINED.upper(), peek=PEEK.upper(), sharing=", ".join(name.upper() for name in SHARING)
        ),
        models='rl = "null"',
        trained=f'["{TRAINED}", "{PEEK}"]',
        **shared,
    )
    return {"run.toml": main, "null.toml": null}
