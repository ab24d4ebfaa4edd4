"""Effect of 8-bit activations: crosscoders trained from stores of the embedded lab that differ only in dtype.

python benchmarks/eight_bit.py [--prompts 500] [--tokens 200000] [--d-sae 512] [--json artifacts/benchmarks/eight_bit.json]

Every crosscoder is evaluated on the held-out rows of the float32 store. ``float32, seed 1`` (another initialization and
row order) shows the effect of the seed for comparison. ``matched`` is the fraction of live features of the float32
dictionary that have a partner with a decoder cosine above 0.9. ``top50`` takes the 50 features with the largest mean
activation × difference between the decoders of rl and base, and is the fraction matched by one of the other's 50.
"""

import argparse
import json
import tempfile
from pathlib import Path

import torch
from torch import Tensor

import mechprobe as mp
from mechprobe.cache.config import StoreDtype
from mechprobe.dictionary.stage import held_out_metrics
from sae_training import Crosscoder

LAB = Path(__file__).resolve().parents[1] / "artifacts" / "lab" / "shared-marker"
SITE = "resid_post.2"
RESPONSES = ("base@1.0", "sft@0.0", "rl@0.0")


def relative_error(store: mp.ActivationStore, exact: mp.ActivationStore) -> dict[str, float]:
    """‖stored − float32‖² / ‖float32 − mean‖² per model over all rows."""
    found = {}
    for name in store.models:
        one, other = (part.rows_of(name, 0, part.n_rows).double() for part in (store, exact))
        found[name] = float((one - other).square().sum() / (other - other.mean(dim=0)).square().sum())
    return found


def mean_activation(crosscoder: Crosscoder, store: mp.ActivationStore) -> Tensor:
    """Mean activation of every feature on the held-out rows, ``[d_sae]``."""
    rows = store.rows(0, store.n_rows)[torch.from_numpy(store.tokens.held_out)]
    return crosscoder.encode(rows).mean(dim=0)


def compare(found: Crosscoder, reference: Crosscoder, exact: mp.ActivationStore) -> dict[str, float]:
    """Fraction of the reference dictionary that has a match in another dictionary."""
    sets = []
    for crosscoder in (reference, found):
        mean = mean_activation(crosscoder, exact)
        decoder = crosscoder.W_dec * crosscoder.scale[:, None]
        base, rl = crosscoder.model_names.index("base"), crosscoder.model_names.index("rl")
        shift = mean * (decoder[:, rl] - decoder[:, base]).norm(dim=1)
        sets.append(
            (torch.nn.functional.normalize(decoder.flatten(1), dim=1), mean > 0, shift.argsort(descending=True)[:50])
        )
    (one, alive, top), (other, _, other_top) = sets
    best = (one[alive] @ other.T).max(dim=1).values
    return {
        "matched": float((best > 0.9).float().mean()),
        "median_cosine": float(best.median()),
        "top50": float(((one[top] @ other[other_top].T).max(dim=1).values > 0.9).float().mean()),
    }


def measure(scratch: Path, n_prompts: int, n_tokens: int, d_sae: int) -> dict[str, object]:
    """Cache, train and compare; returns the content of the JSON file."""
    family = mp.ModelFamily.load({name: LAB / name for name in ("base", "sft", "rl")})
    stores: dict[str, mp.ActivationStore] = {}
    trained: dict[str, Crosscoder] = {}
    results: dict[str, dict[str, object]] = {}
    dtypes: tuple[StoreDtype, ...] = ("float32", "bfloat16", "int8", "e4m3")
    plan: list[tuple[StoreDtype, int]] = [*((dtype, 0) for dtype in dtypes), (dtypes[0], 1)]
    exact: mp.ActivationStore | None = None
    for dtype, seed in plan:
        label = dtype if seed == 0 else f"{dtype}, seed {seed}"
        if dtype not in stores:
            config = mp.CacheConfig(dtype=dtype, responses=RESPONSES, max_prompts=n_prompts, max_new_tokens=48)
            stores[dtype] = mp.cache_activations(family, LAB / "prompts.jsonl", [SITE], scratch / dtype, config)
        store = stores[dtype]
        exact = exact or store
        settings = mp.TrainSaeConfig(d_sae=d_sae, k=24, n_tokens=n_tokens, batch_size=1024, lr=3e-3, seed=seed)
        crosscoder = mp.train_crosscoder(store, *settings.resolve(store), scratch / f"sae-{label}")
        trained[label] = crosscoder
        held_out = held_out_metrics(exact, crosscoder)
        assert held_out is not None, "some prompts are held out"
        results[label] = {
            "bytes_per_row": store.manifest["counts"]["bytes"] / store.n_rows,
            "error": relative_error(store, exact),
            "fve": held_out.fve,
            "l0": held_out.l0,
            **compare(crosscoder, trained["float32"], exact),
        }
        print(label, json.dumps(results[label]), flush=True)
    assert exact is not None
    return {
        "settings": {
            "prompts": n_prompts,
            "tokens": n_tokens,
            "d_sae": d_sae,
            "k": 24,
            "site": SITE,
            "rows": exact.n_rows,
        },
        "held_out_rows": int(exact.tokens.held_out.sum()),
        "results": results,
    }


def main() -> None:
    """Print one line per store, and write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=500)
    parser.add_argument("--tokens", type=int, default=200_000)
    parser.add_argument("--d-sae", type=int, default=512)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        found = measure(Path(scratch), arguments.prompts, arguments.tokens, arguments.d_sae)
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
