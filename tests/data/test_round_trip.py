"""Any text survives file, tokenizer, stream and disk, with the tokenizer's ids and the right positions and masks.

The tokenizer reads the spelling of a special token as that token, which becomes no row.
"""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from mechprobe.cache.store.token_file import read_tokens, write_tokens
from mechprobe.data.encoding import PromptEncoder
from mechprobe.data.lengths import join, pack
from mechprobe.data.sources import as_prompts
from mechprobe.data.stream import build_stream
from mechprobe.data.tokens import TokenSequence, special_token_ids
from mechprobe.errors import InputError

SPECIAL = ("<pad>", "<bos>", "<eos>")
SPELLED = re.compile("|".join(SPECIAL))
CHARACTERS = st.characters(exclude_categories=["Cs"])
TEXT = (
    st.lists(CHARACTERS | CHARACTERS | CHARACTERS | st.sampled_from(SPECIAL), min_size=1, max_size=30)
    .map("".join)
    .filter(str.strip)
)
ROWS = st.lists(st.tuples(TEXT, st.none() | TEXT), min_size=1, max_size=8)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte, so that no text is unknown; <bos> precedes a prompt."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *alphabet])}
    core = Tokenizer(models.BPE(vocabulary, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>")


TOKENIZER = byte_tokenizer()
ENCODER = PromptEncoder(TOKENIZER)


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
@pytest.mark.parametrize("packed", [False, True])
@given(rows=ROWS, seed=st.integers(0, 3))
@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_round_trip(tmp_path: Path, suffix: str, packed: bool, rows: list, seed: int) -> None:
    path = tmp_path / f"a.{suffix}"
    records = [{"prompt": prompt, "response": response} for prompt, response in rows]
    if suffix == "jsonl":
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    else:
        pd.DataFrame(records, dtype=object).to_parquet(path)
    prompts = list(as_prompts(path))
    assert [(p.prompt, p.response) for p in prompts] == rows
    sequences: list[TokenSequence] = []
    for prompt in prompts:
        sequence = join(prompt, ENCODER.encode(prompt), ENCODER.encode_response(prompt), max_length=400)
        assert sequence is not None
        sequences.append(sequence)
    if packed:
        sequences = pack(sequences, end_id=2, max_length=400)
    special_ids = special_token_ids(TOKENIZER)
    if not any(SPELLED.sub("", text or "") for row in rows for text in row):
        with pytest.raises(InputError, match="No token is left to cache"):
            build_stream(sequences, special_ids=special_ids, tokenizer_fingerprint="t", seed=seed, shard_rows=50)
        return
    stream = build_stream(sequences, special_ids=special_ids, tokenizer_fingerprint="t", seed=seed, shard_rows=50)
    write_tokens(tmp_path, stream)
    back = read_tokens(tmp_path)
    assert back.hash == stream.hash
    assert tuple(back.sequences) == stream.sequences
    assert back.shard_hashes == stream.shard_hashes
    texts: dict[str, list[list[int]]] = {}
    for row in range(back.n_rows):
        name, place = back.document_of(row)
        texts.setdefault(name, []).append([place, int(back.rows.token_id[row]), int(back.rows.is_response[row])])
    for prompt in prompts:
        own = TOKENIZER(
            prompt.prompt.removeprefix("<bos>")
        ).input_ids  # a spelled BOS is the one that precedes the prompt
        answer = TOKENIZER(prompt.response, add_special_tokens=False).input_ids if prompt.response else []
        whole = np.asarray([[i, token, int(i >= len(own))] for i, token in enumerate([*own, *answer])])
        found = np.asarray(sorted(texts.get(prompt.id, []))).reshape(-1, 3)
        assert (found == whole[~np.isin(whole[:, 1], [0, 1, 2])]).all()
        ids = found[:, 1].tolist()
        n_prompt = int((found[:, 2] == 0).sum())
        assert TOKENIZER.decode(ids[:n_prompt]) == SPELLED.sub("", prompt.prompt)
        assert TOKENIZER.decode(ids[n_prompt:]) == SPELLED.sub("", prompt.response or "")


@given(lines=st.lists(TEXT.filter(lambda text: "\n" not in text), min_size=1, max_size=8))
@settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_lines_of_text_come_back(tmp_path: Path, lines: list[str]) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("\n".join(lines).encode())
    expected = [line.removesuffix("\r") for line in lines]
    expected[0] = expected[0].removeprefix("\ufeff")
    assert [prompt.prompt for prompt in as_prompts(path)] == [line for line in expected if line.strip()]
