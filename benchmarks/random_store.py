"""An activation store of random numbers, written by the functions of `mechprobe cache`, and raw copies of its bytes."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file

from mechprobe.cache.config import StoreDtype
from mechprobe.cache.store.activation_store import ActivationStore
from mechprobe.cache.store.dtypes import STORED_AS, to_stored
from mechprobe.cache.store.shards import INDEX, write_shard
from mechprobe.cache.store.token_file import TOKENS, write_tokens
from mechprobe.data.stream import build_stream
from mechprobe.data.tokens import TokenSequence
from mechprobe.files import write_json
from mechprobe.stage_folder import Stage

MODELS: tuple[str, ...] = ("base", "sft", "rl")
SITE = "resid_post.0"
SEED = 0
_SEQUENCE = 64
_CHUNK = 8192


def build_store(folder: Path, n_rows: int, d_model: int, dtype: StoreDtype = "bfloat16") -> ActivationStore:
    """Write a store of three models with about ``n_rows`` rows; the models have different numbers."""
    ids = tuple(range(1, _SEQUENCE + 1))
    sequences = [TokenSequence(f"s{i}", f"s{i}", None, None, ids, ()) for i in range(n_rows // _SEQUENCE)]
    stream = build_stream(sequences, special_ids=[0], tokenizer_fingerprint="t", held_out_frac=0.05)
    fingerprints = dict.fromkeys(MODELS, "f")
    config = {"sites": [SITE], "dtype": dtype}
    with Stage.open(folder, name="cache", config=config, models=fingerprints) as stage:
        write_tokens(folder, stream)
        for number, name in enumerate(MODELS):
            (folder / name).mkdir()
            rng = np.random.default_rng([SEED, number])
            records = []
            for shard in stream.shards:
                block = rng.standard_normal(size=(len(shard.rows), d_model), dtype=np.float32)
                stored = to_stored(torch.from_numpy(block), dtype)
                written = write_shard(folder / name, shard, {SITE: stored}, model=name, dtype=dtype, stream=stream)
                records.append(written)
            index = {"fingerprint": "f", "d_model": d_model, "stream": stream.hash}
            write_json(folder / name / INDEX, {**index, "shards": [asdict(record) for record in records]})
        outputs = [TOKENS, *(f"{name}/{INDEX}" for name in MODELS)]
        stage.finish(outputs=outputs, results={"models": list(MODELS), "stream": stream.hash})
    return ActivationStore.open(folder)


def raw_copies(store: ActivationStore, folder: Path) -> tuple[dict[str, np.ndarray], dict[str, Path]]:
    """Copy the bytes of the store, one file per model: mapped raw files, and safetensors files with one tensor ``x``."""
    mapped, tensors = {}, {}
    for name, width in store.widths.items():
        whole = np.empty((store.n_rows, width), dtype=STORED_AS[store.dtype])
        for start in range(0, store.n_rows, _CHUNK):
            stop = min(start + _CHUNK, store.n_rows)
            whole[start:stop] = store.stored_rows_of(name, start, stop)
        path = folder / f"{name}.bin"
        whole.tofile(path)
        mapped[name] = np.memmap(path, dtype=whole.dtype, mode="r", shape=whole.shape)
        tensors[name] = folder / f"{name}.safetensors"
        save_file({"x": whole}, tensors[name])
    return mapped, tensors
