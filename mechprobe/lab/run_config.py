"""The `mechprobe run` configuration that a lab carries, with paths relative to its own folder."""

from __future__ import annotations

from mechprobe.lab.measure import MAX_NEW_TOKENS, SCORER

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

[prompts]
file = "prompts.jsonl"
"""


def run_config() -> str:
    """Write the TOML text."""
    return _TEMPLATE.format(scorer=SCORER, max_new_tokens=MAX_NEW_TOKENS)
