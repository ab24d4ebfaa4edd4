"""The configuration for ``mechprobe run`` in the folder of a lab, with paths relative to that folder."""

from mechprobe.evals.skills.registry import marker
from mechprobe.lab.measure import MAX_NEW_TOKENS, SCORER
from mechprobe.lab.recipe import TRAINED_SKILL, Recipe

_TEMPLATE = """\
# mechprobe run --config run.toml: the whole pipeline on this lab. Paths are relative to this file.

{heading}[models]
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

[localize]
sites = {sites}  # named, because only then the last block may be chosen

[cache]
responses = ["base@1.0", "sft@0.0", "rl@0.0"]
max_new_tokens = {max_new_tokens}
max_prompts = 3000
generation_batch = 512

[train_sae]
variant = "batchtopk"
d_sae = 1024
k = 24
batch_size = 1024
n_tokens = 700000
lr = 3e-3

[intervene]
max_new_tokens = 28
workers = 2
"""


_PLANTED = (
    "A planted mechanism to test the tool on, no evidence about large models: pre-training gives every "
    "skill one shared opening ({marker}) for careful work, and post-training elicits it. Forcing {marker} on the base, "
    "without any training, is the baseline of every intervention."
)
_NOTES = {
    "shared-marker": _PLANTED,
    "all-weights": _PLANTED,
    "own-markers": "The null: every skill has an opening of its own for careful work, so what post-training elicits in "
    "the trained skill ({marker}) cannot transfer, and no set of features may be called causal for transfer.",
}
_FROZEN = (
    "Embeddings, final norm and unembedding are frozen in every arm, so the last site carries the whole change by "
    "construction: its full ceilings say nothing about where a larger model keeps a change."
)
_ALL_WEIGHTS = (
    "Every weight was trained, embeddings, final norm and unembedding too: a change may be carried redundantly, and then no "
    "edit at one site can take it away."
)


def run_config(recipe: Recipe) -> str:
    """Format the TOML text; the forced-marker baseline uses the marker of the trained skill."""
    opening = marker(TRAINED_SKILL, recipe.rendering)
    notes = [_NOTES[recipe.name].format(marker=opening), _FROZEN if recipe.head_is_frozen else _ALL_WEIGHTS]
    heading = f'name = "Embedded lab, recipe {recipe.name}"\n'
    heading += "notes = [\n" + "".join(f'    "{note}",\n' for note in notes) + "]\n"
    heading += 'near = ["base", "rl"]\n\n'
    sites = ", ".join(f'"resid_post.{layer}"' for layer in range(recipe.model.n_layers))
    return _TEMPLATE.format(
        heading=heading, scorer=SCORER, max_new_tokens=MAX_NEW_TOKENS, trained=TRAINED_SKILL, marker=opening,
        sites=f"[{sites}]",
    )  # fmt: skip
