"""A store as one safetensors file, for tools that read no HDF5."""

from pathlib import Path

import torch

from mechprobe.activations.numbers import from_stored
from mechprobe.activations.store import ActivationStore
from mechprobe.errors import StoreError


def export_safetensors(store: ActivationStore, path: Path | str) -> int:
    """Write ``<site>/<model>`` ``[row d_model]`` in the store's dtype, and the token rows; returns the bytes written.

    Everything passes through memory, since the format is written whole: meant for stores that fit.

    Raises:
        StoreError: The file exists already.
    """
    from safetensors.torch import save_file

    path = Path(path)
    if path.exists():
        raise StoreError(f"{path} exists already; give another --out.")
    tensors = {
        f"{site}/{name}": from_stored(store.stored_rows_of(name, 0, store.n_rows, site), store.dtype)
        for site in store.sites
        for name in store.models
    }
    rows = {name: getattr(store.tokens, name) for name in ("token_id", "sample", "position", "is_response", "held_out")}
    tensors |= {f"tokens/{name}": torch.from_numpy(array) for name, array in rows.items()}
    partial = path.with_name(path.name + ".partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {"stream": store.stream_hash, "tokenizer": store.tokenizer_fingerprint}
    save_file(tensors, partial, metadata=metadata | {f"model {k}": v for k, v in store.fingerprints.items()})
    partial.replace(path)
    return path.stat().st_size
