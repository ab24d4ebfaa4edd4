"""Dtypes of a store: bounds of the rounding error, their names in the files, and the same values everywhere."""

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from mechprobe.cache.config import CacheConfig
from mechprobe.cache.harvest.plan import plan_cache
from mechprobe.cache.stage import cache_activations
from mechprobe.cache.store.activation_store import ActivationStore
from mechprobe.cache.store.dtypes import concat_models, from_stored, row_bytes, to_stored
from mechprobe.errors import StoreError
from mechprobe.models.family import ModelFamily

SITE = "resid_post.1"
PROMPTS = [f"Say {index} twice." for index in range(30)]
ROWS = arrays(
    np.float32,
    array_shapes(min_dims=2, max_dims=2, max_side=9),
    elements=st.floats(allow_nan=False, allow_infinity=False, width=32),
)
SMALLEST = 127 * 2.0**-149
"""Largest error from rounding a scale to a subnormal float32."""


@given(values=ROWS)
@settings(deadline=None, max_examples=300)
def test_int8_error_is_at_most_half_a_step(values: np.ndarray) -> None:
    back = from_stored(to_stored(torch.from_numpy(values), "int8"), "int8").double().numpy()
    step = np.abs(values).max(axis=1, keepdims=True).astype(np.float64) / 127
    assert (np.abs(back - values) <= step * (0.5 + 2e-4) + SMALLEST).all()


@given(values=ROWS)
@settings(deadline=None, max_examples=300)
def test_e4m3_error_is_at_most_a_sixteenth_or_half_the_smallest_step(values: np.ndarray) -> None:
    back = from_stored(to_stored(torch.from_numpy(values), "e4m3"), "e4m3").double().numpy()
    scale = np.abs(values).max(axis=1, keepdims=True).astype(np.float64) / 448
    bound = np.maximum(np.abs(values) / 16, scale * 2.0**-10)
    assert (np.abs(back - values) <= bound * (1 + 1e-5) + 448 * 2.0**-149).all()


@pytest.mark.parametrize("dtype", ["int8", "e4m3"])
def test_zeros_extremes_and_values_that_are_not_finite(dtype: str) -> None:
    largest = torch.finfo(torch.float32).max
    rows = torch.tensor([[0.0, -0.0, 0.0], [largest, -largest, 1.0], [1.0, -1.0, 0.5]])
    back = from_stored(to_stored(rows, dtype), dtype)
    assert torch.isfinite(back).all()
    assert (back[0] == 0).all()
    assert torch.allclose(back[1:], rows[1:], rtol=1e-2, atol=0) or torch.allclose(back[1, :2], rows[1, :2], rtol=1e-5)
    assert torch.allclose(back[2], rows[2], rtol=0.01)
    with pytest.raises(StoreError, match="not finite"):
        to_stored(torch.tensor([[float("inf")]]), dtype)


def test_packed_rows_of_models_of_different_widths() -> None:
    one, other = torch.randn(5, 3), torch.randn(5, 8)
    stored = np.concatenate([to_stored(one, "int8"), to_stored(other, "int8")], axis=1)
    assert stored.shape[1] == row_bytes("int8", 3) + row_bytes("int8", 8) == 19
    found = concat_models(torch.from_numpy(stored), (3, 8), "int8")
    assert (found - torch.cat([one, other], dim=1)).abs().max() < 0.02


@pytest.mark.parametrize("dtype", ["int8", "e4m3"])
def test_a_store_of_8_bit_numbers(llama_family: dict[str, Path], tmp_path: Path, dtype: str) -> None:
    family = ModelFamily.load({name: llama_family[name] for name in ("base", "rl")})
    config = CacheConfig(sites=(SITE,), dtype=dtype, shard_rows=100, held_out_frac=0.2)
    store = cache_activations(family, PROMPTS, out=tmp_path / "small", config=config)
    whole = cache_activations(family, PROMPTS, out=tmp_path / "full", config=config.replace(dtype="float32"))
    with h5py.File(tmp_path / "small" / "rl" / "shard_00001.h5") as file:
        codes, scale = file[SITE], file[file[SITE].attrs["scale"]]
        assert codes.attrs["dtype"] == dtype
        assert (codes.dtype, scale.dtype) == (np.dtype("i1" if dtype == "int8" else "u1"), np.dtype("f4"))
        values = torch.from_numpy(codes[:])
        values = values if dtype == "int8" else values.view(torch.float8_e4m3fn)
        plain = values.float() * torch.from_numpy(scale[:])[:, None]
    shard = store.stream.shards[1].rows
    assert torch.equal(store.rows_of("rl", shard.start, shard.stop), plain)
    exact = whole.rows(0, whole.n_rows)
    assert torch.equal(store.rows(0, store.n_rows)[:, 1], store.rows_of("rl", 0, store.n_rows))
    error = (store.rows(0, store.n_rows) - exact).norm() / exact.norm()
    assert 1e-4 < error < (0.01 if dtype == "int8" else 0.04)
    served = torch.cat(list(store.batches(64, 1, split="all", pool_rows=150)))
    rows = store.rows(0, store.n_rows)
    assert torch.equal(_sorted(served), _sorted(rows))
    assert torch.allclose(store.scale(), whole.scale(), rtol=1e-3)
    plan = plan_cache(family, PROMPTS, tmp_path / "none", config)
    assert plan.n_bytes() == int(1.02 * store.n_rows * 2 * (32 + 4))
    assert f"1 bytes + 4 per row ({dtype})" in str(plan)
    assert store.verify() == []
    path = tmp_path / "small" / "base" / "shard_00000.h5"
    with h5py.File(path) as file:
        place = file[SITE + ".scale"].id.get_offset()
    damaged = bytearray(path.read_bytes())
    damaged[place] ^= 1
    path.write_bytes(bytes(damaged))
    assert [problem.file for problem in ActivationStore.open(store.folder).verify()] == ["base/shard_00000.h5"]


def _sorted(rows: torch.Tensor) -> torch.Tensor:
    flat = rows.flatten(1).numpy()
    return torch.from_numpy(flat[np.lexsort(flat.T[::-1])])


def test_bfloat16_round_trip_is_exact() -> None:
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    stored = every.view(torch.uint16).numpy()
    back = from_stored(stored.copy(), "bfloat16")
    assert torch.equal(back.view(torch.int16), every.view(torch.int16))  # NaN, ±Inf and −0 among them
    finite = every[torch.isfinite(every)].reshape(1, -1)
    assert torch.equal(
        from_stored(to_stored(finite.float(), "bfloat16"), "bfloat16").view(torch.int16), finite.view(torch.int16)
    )


def test_bfloat16_is_uint16_on_disk_with_its_name(llama_family: dict[str, Path], tmp_path: Path) -> None:
    config = CacheConfig(sites=(SITE,), dtype="bfloat16", held_out_frac=0)
    family = ModelFamily.load({"base": llama_family["base"], "rl": llama_family["rl"]})
    store = cache_activations(family, ["a prompt", "and one more"], out=tmp_path / "b", config=config)
    whole = cache_activations(
        family, ["a prompt", "and one more"], out=tmp_path / "f", config=config.replace(dtype="float32")
    )
    with h5py.File(tmp_path / "b" / "rl" / "shard_00000.h5") as file:
        assert file[SITE].dtype == np.uint16
        assert file[SITE].attrs["dtype"] == "bfloat16"
    assert torch.equal(store.rows(0, store.n_rows), whole.rows(0, whole.n_rows).bfloat16().float())
    batch = next(iter(store.batches(5)))
    assert batch.dtype == torch.float32
    with pytest.raises(StoreError, match="held_out"):
        store.batches(5, split="held_out")


def test_float16_overflow_proposes_bfloat16() -> None:
    with pytest.raises(StoreError, match=r"7e\+04.*float16.*65504.*bfloat16"):
        to_stored(torch.tensor([[1.0, 70000.0]]), "float16")
    with pytest.raises(StoreError, match="not finite"):
        to_stored(torch.tensor([[1.0, float("nan")]]), "bfloat16")
    assert to_stored(torch.tensor([[1.0, 65504.0]]), "float16").dtype == np.float16
