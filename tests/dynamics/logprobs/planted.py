"""Tables of tokens with planted Δ, without a model, and traces for the tiny families."""

from collections.abc import Sequence

import numpy as np

import mechprobe as mp
from mechprobe.dynamics.logprobs.config import LogprobsConfig
from mechprobe.dynamics.logprobs.rows import SourceTable
from mechprobe.dynamics.logprobs.token_table import TokenTable
from mechprobe.dynamics.logprobs.traces import Trace

CONFIG = LogprobsConfig(draws=200)
NAMES = CONFIG.class_names
TEXTS = ("wait 12+3=15", "so 7", "let me check 4", "hmm, a longer text with 9 and 8", "x", "12")


def trace(index: int, ids: Sequence[int], **fields: object) -> Trace:
    """A trace of a prompt of its own."""
    given = {
        "id": f"t{index}", "prompt_id": f"p{index}", "task": "sums", "source": "gold", "prompt_ids": (1, 4), "n_text": len(ids),
        "n_bytes": len(ids),
    } | fields  # fmt: skip
    return Trace(response_ids=tuple(ids), **given)  # pyright: ignore[reportArgumentType]


def family_traces(family: mp.ModelFamily) -> list[Trace]:
    """Traces of different lengths for a tiny family."""
    tokenizer, found = family.tokenizer, []
    for index, text in enumerate(TEXTS):
        ids = tokenizer(text, add_special_tokens=False).input_ids
        prompt = tokenizer("Q: " + "abc"[: index % 3]).input_ids
        found.append(trace(index, [*ids, tokenizer.eos_token_id], prompt_ids=tuple(prompt), n_text=len(ids)))
    return found


def random_table(rng: np.random.Generator, n_prompts: int = 60, length: int = 20) -> SourceTable:
    """Random tokens, of which a quarter are of the class ``backtrack`` and the others digits or other."""
    traces = [trace(index, rng.integers(5, 25, length).tolist()) for index in range(n_prompts)]
    n = n_prompts * length
    classes = rng.choice(
        [NAMES.index("backtrack"), NAMES.index("digits"), NAMES.index("other")], n, p=[0.25, 0.25, 0.5]
    )
    ids = np.concatenate([trace.response_ids for trace in traces])
    position = np.tile(np.arange(length), n_prompts)
    table = TokenTable(
        tuple(traces), NAMES, np.repeat(np.arange(n_prompts), length), position, ids, classes, np.full(n, np.nan)
    )
    return SourceTable.of(table, "gold", CONFIG)
