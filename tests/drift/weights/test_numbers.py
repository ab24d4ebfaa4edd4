"""Every number of a weight equals numpy's or scipy's, whatever the blocks; and the properties of norms, ranks and nulls."""

import math
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
import torch
from hypothesis import given, strategies as st
from safetensors.torch import load_file
from torch import Tensor

import mechprobe as mp
from mechprobe.drift.weights import stored
from mechprobe.drift.weights.entries import EntryTotals, half_ulp
from mechprobe.drift.weights.nulls import RandomUpdate
from mechprobe.drift.weights.spectra import Singular, grams, singular_of, singular_values, spectrum_numbers
from tests.weight_files import save, tensors

K = 5
EXACT = {"rtol": 1e-6, "atol": 1e-9}


def expected(base: Tensor, tuned: Tensor, k: int) -> dict[str, float]:
    """The numbers by their definitions, from full decompositions of whole matrices in float64."""
    w, f = base.double().numpy(), tuned.double().numpy()
    d = f - w
    s = np.linalg.svd(d, compute_uv=False)
    shares = s / s.sum()
    u0, s0, v0 = np.linalg.svd(w, full_matrices=False)
    u1, s1, v1 = np.linalg.svd(f, full_matrices=False)
    left = np.rad2deg(scipy.linalg.subspace_angles(u0[:, :k], u1[:, :k]))
    right = np.rad2deg(scipy.linalg.subspace_angles(v0[:k].T, v1[:k].T))
    if w.shape[0] < w.shape[1]:  # left is the side of the longer dimension
        left, right, u0, v0, d = right, left, v0.T, u0.T, d.T
    square = (d**2).sum()
    return {
        "norm": np.linalg.norm(d),
        "base_norm": np.linalg.norm(w),
        "relative_norm": np.linalg.norm(d) / np.linalg.norm(w),
        "max_abs": np.abs(d).max(),
        "kurtosis": scipy.stats.kurtosis(d.ravel(), fisher=False),
        "sign_flips": (np.sign(w) * np.sign(f) < 0).mean(),
        "unchanged": (w == f).mean(),
        "spectral_norm": s[0],
        "stable_rank": square / s[0] ** 2,
        "effective_rank": np.exp(scipy.stats.entropy(shares)),
        "nuclear_norm": s.sum(),
        "sv_change": np.linalg.norm(s1 - s0) / np.linalg.norm(s0),
        "angle_left": left.mean(),
        "angle_left_max": left.max(),
        "angle_right": right.mean(),
        "angle_right_max": right.max(),
        "inside": ((u0[:, :k].T @ d @ v0[:k].T) ** 2).sum() / square,
        "inside_left": ((u0[:, :k].T @ d) ** 2).sum() / square,
        "inside_right": ((d @ v0[:k].T) ** 2).sum() / square,
    }


@pytest.mark.parametrize("block", [1 << 22, 100], ids=["one block", "many blocks"])
def test_every_number_of_a_matrix_is_numpys(
    block: int, pair: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored, "BLOCK", block)
    assert len(stored.spans(50, 24)) == (1 if block > 1200 else 13)
    found = mp.drift.weight_statistics(pair, out=tmp_path / "w", config=mp.drift.WeightsConfig(top_k=K))
    table = found.to_pandas().set_index(["model", "tensor"])
    base = load_file(pair["base"] / "model.safetensors")
    for model in ("sft", "rl"):
        tuned = load_file(pair[model] / "model.safetensors")
        for name, weight in base.items():
            row = table.loc[(model, name)]
            reference = expected(weight, tuned[name], K) if weight.ndim == 2 else {
                "norm": (tuned[name].double() - weight.double()).norm().item(), "unchanged": 0.0,
            }  # fmt: skip
            for key, value in reference.items():
                np.testing.assert_allclose(row[key], value, **EXACT, err_msg=f"{model} {name} {key}")
    matrices = table[table["columns"].notna()]
    assert (matrices["method"] == "exact").all()
    assert (
        matrices[[f"{key}_null" for key in ("stable_rank", "inside", "angle_left", "sv_change")]].notna().all(axis=None)
    )


def test_pairs_of_updates_are_numpys(pair: dict[str, Path], tmp_path: Path) -> None:
    found = mp.drift.weight_statistics(pair, out=tmp_path / "w", config=mp.drift.WeightsConfig(top_k=K))
    base, sft, rl = (load_file(pair[name] / "model.safetensors") for name in ("base", "sft", "rl"))
    rows = found.pairs_to_pandas().set_index("tensor")
    flat = {"sft": [], "rl": []}
    for name, weight in base.items():
        a, b = ((each[name].double() - weight.double()).numpy() for each in (sft, rl))
        flat["sft"].append(a.ravel())
        flat["rl"].append(b.ravel())
        if a.ndim < 2:
            assert math.isnan(rows.loc[name, "overlap_left"])
            continue
        (ua, _, va), (ub, _, vb) = (np.linalg.svd(each if len(a) >= a.shape[1] else each.T) for each in (a, b))
        right = np.linalg.norm(va[:K] @ vb[:K].T) ** 2 / K
        left = np.linalg.norm(ua[:, :K].T @ ub[:, :K]) ** 2 / K
        np.testing.assert_allclose(rows.loc[name, ["overlap_left", "overlap_right"]].tolist(), [left, right], rtol=1e-6)
        assert rows.loc[name, "overlap_right_null"] == pytest.approx(K / min(a.shape), abs=0.15)
    a, b = (np.concatenate(flat[name]) for name in ("sft", "rl"))
    (only,) = found.pairs
    assert only.cosine == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b), abs=1e-9)
    assert only.cosine_null == pytest.approx(1 / math.sqrt(len(a)))


def test_groups_add_up(pair: dict[str, Path], tmp_path: Path) -> None:
    found = mp.drift.weight_statistics(pair, out=tmp_path / "w")
    table = found.to_pandas()
    rl, rows = found.models["rl"], table[table["model"] == "rl"]
    assert found.n == rl.total.n == sum(group.n for group in rl.cells) == rows["n"].sum()
    for groups in (rl.types, rl.cells):
        assert math.sqrt(sum(group.norm**2 for group in groups)) == pytest.approx(rl.total.norm)
    assert [group.type for group in rl.types] == ["q", "up", "down", "embed", "norm", "q_bias"]
    assert [group.layer for group in rl.layers] == [0, 1]
    (up,) = [group for group in rl.types if group.type == "up"]
    assert up.spectral["stable_rank"].value == pytest.approx(rows[rows["type"] == "up"]["stable_rank"].mean())
    assert up.n_matrices == 2
    assert up.spectral["stable_rank"].low <= up.spectral["stable_rank"].null <= up.spectral["stable_rank"].high


def test_estimates_are_near_the_exact_numbers_and_say_how_near(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(3)
    base = {"model.layers.0.mlp.up_proj.weight": torch.randn(260, 150, generator=generator)}
    decay = torch.linspace(0, 5, 150).neg().exp()
    change = torch.randn(260, 150, generator=generator) * decay
    models = {
        "base": save(tmp_path / "base", base),
        "rl": save(tmp_path / "rl", {k: v + change for k, v in base.items()}),
    }
    exact = mp.drift.weight_statistics(models, out=tmp_path / "e", config=mp.drift.WeightsConfig(top_k=4))
    rough = mp.drift.weight_statistics(
        models, out=tmp_path / "r", config=mp.drift.WeightsConfig(top_k=4, exact_up_to=64)
    )
    a, b = exact.to_pandas().iloc[0], rough.to_pandas().iloc[0]
    assert (a["method"], b["method"]) == ("exact", "estimated")
    assert (exact.n_estimated, rough.n_estimated) == (0, 1)
    assert 0 < rough.error_values < 0.3
    assert 0 < rough.error_nuclear < 0.05
    for name, close in {"spectral_norm": 1e-4, "stable_rank": 1e-4, "nuclear_norm": 0.03, "effective_rank": 0.05,
                        "inside_right": 0.2, "norm": 1e-7}.items():  # fmt: skip
        assert b[name] == pytest.approx(a[name], rel=close), name
    assert b["nuclear_norm_null"] == pytest.approx(a["nuclear_norm_null"], rel=0.03)
    assert b["effective_rank_null"] == pytest.approx(a["effective_rank_null"], rel=0.05)
    assert abs(b["nuclear_norm"] - a["nuclear_norm"]) < 5 * rough.error_nuclear * a["nuclear_norm"]


def test_an_estimated_update_of_low_rank_has_that_rank(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(4)
    base = {"w.weight": torch.randn(200, 120, generator=generator)}
    change = torch.randn(200, 3, generator=generator) @ torch.randn(3, 120, generator=generator)
    models = {
        "base": save(tmp_path / "base", {k: torch.zeros_like(v) for k, v in base.items()}),
        "rl": save(tmp_path / "rl", {"w.weight": change}),
    }
    row = (
        mp.drift.weight_statistics(models, out=tmp_path / "r", config=mp.drift.WeightsConfig(exact_up_to=64))
        .to_pandas()
        .iloc[0]
    )
    values = np.linalg.svd(change.double().numpy(), compute_uv=False)
    assert row["nuclear_norm"] == pytest.approx(values.sum(), rel=1e-3)
    assert row["effective_rank"] == pytest.approx(np.exp(scipy.stats.entropy(values[:3] / values[:3].sum())), rel=1e-2)


def of(matrix: Tensor) -> dict[str, float]:
    return spectrum_numbers(singular_values(grams([(matrix, matrix)], matrix.shape[1]).own))


@given(st.integers(0, 10**6), st.floats(1e-4, 1e4))
def test_norms_scale_and_ranks_do_not(seed: int, factor: float) -> None:
    matrix = torch.randn(30, 11, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    one, scaled = of(matrix), of(factor * matrix)
    for name in ("spectral_norm", "nuclear_norm"):
        assert scaled[name] == pytest.approx(factor * one[name])
    for name in ("stable_rank", "effective_rank"):
        assert scaled[name] == pytest.approx(one[name])


@given(st.integers(0, 10**6))
def test_rotations_change_no_spectral_number(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(30, 11, generator=generator, dtype=torch.float64)
    left, right = (torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64)).Q for n in (30, 11))
    for name, value in of(left @ matrix @ right).items():
        assert value == pytest.approx(of(matrix)[name])


@given(st.integers(0, 10**6), st.integers(1, 8))
def test_a_planted_rank_is_found(seed: int, rank: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    left, right = (torch.linalg.qr(torch.randn(n, rank, generator=generator, dtype=torch.float64)).Q for n in (50, 20))
    found = of(left @ right.T)  # all singular values are 1
    assert found["effective_rank"] == pytest.approx(rank)
    assert found["stable_rank"] == pytest.approx(rank)
    gram = grams([(left @ right.T, left @ right.T)], 20).own
    assert singular_of(gram, 12).rank == rank


@given(st.integers(0, 10**6), st.integers(2, 60), st.integers(1, 40))
def test_a_random_update_has_norm_one_and_the_same_bytes(seed: int, long: int, short: int) -> None:
    random = RandomUpdate((long, short), seed, 0)
    matrix = torch.cat(list(random.blocks()))
    assert matrix.shape == (long, short)
    assert matrix.norm().item() == pytest.approx(1)
    assert torch.equal(matrix, torch.cat(list(random.blocks())))
    assert not torch.equal(matrix, torch.cat(list(RandomUpdate((long, short), seed, 1).blocks())))


def test_the_null_of_a_random_update_is_itself_in_range(tmp_path: Path) -> None:
    """A Gaussian update looks like its null; a planted one does not."""
    base = tensors(d=64, ff=128, n_layers=1)
    models = {
        "base": save(tmp_path / "base", base),
        "rl": save(tmp_path / "rl", {k: v + 0.01 * torch.randn(v.shape, generator=torch.Generator().manual_seed(100 + i))
                                     for i, (k, v) in enumerate(base.items())}),
    }  # fmt: skip
    total = mp.drift.weight_statistics(models, out=tmp_path / "w").models["rl"].total
    for name, near in {
        "stable_rank": 0.1,
        "effective_rank": 0.02,
        "nuclear_norm": 0.02,
        "sv_change": 0.4,
        "inside": 0.2,
    }.items():
        assert total.spectral[name].value == pytest.approx(total.spectral[name].null, rel=near), name


def test_half_an_ulp_is_where_bfloat16_rounds() -> None:
    weight = torch.tensor([1.0, -1.5, 0.3, 1e-3, 700.0, 0.0], dtype=torch.float64)
    half = half_ulp(weight)
    stored16 = weight.float().bfloat16()
    for value, h in zip(stored16[:-1].double(), half[:-1], strict=True):
        assert (value + 0.99 * h).float().bfloat16().double() == value
        assert (value + 1.01 * h).float().bfloat16().double() != value
    assert half[-1] > 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_unchanged_entries_are_equal_in_the_stored_dtype(dtype: torch.dtype, tmp_path: Path) -> None:
    """A change of 1e-3 of each entry vanishes in bfloat16 for most entries, and never in float64."""
    generator = torch.Generator().manual_seed(5)
    base = torch.randn(64, 32, generator=generator, dtype=torch.float64)
    tuned = base * (1 + 1e-3)
    models = {
        "base": save(tmp_path / "b", {"w.weight": base.to(dtype)}),
        "rl": save(tmp_path / "t", {"w.weight": tuned.to(dtype)}),
    }
    row = mp.drift.weight_statistics(models, out=tmp_path / "w").to_pandas().iloc[0]
    assert row["unchanged"] == (base.to(dtype) == tuned.to(dtype)).double().mean().item()
    assert row["dtype"] == row["base_dtype"] == str(dtype).removeprefix("torch.")
    assert (row["unchanged"] > 0.5) == (dtype == torch.bfloat16)
    if dtype == torch.float32:
        assert row["below_bf16"] > 0.5  # bfloat16 would not show most of it


def test_totals_of_constant_and_zero_updates() -> None:
    totals = EntryTotals()
    totals.add(torch.ones(4, 3, dtype=torch.float64), torch.zeros(4, 3, dtype=torch.float64))
    found = totals.numbers()
    assert (found["norm"], found["unchanged"], found["sign_flips"]) == (0.0, 1.0, 0.0)
    assert math.isnan(found["kurtosis"])
    totals = EntryTotals()
    totals.add(torch.zeros(6, dtype=torch.float64), torch.ones(6, dtype=torch.float64))
    assert math.isnan(totals.numbers()["relative_norm"])
    assert math.isnan(totals.numbers()["kurtosis"])


def test_numbers_agree_with_modeldelta(pair: dict[str, Path], tmp_path: Path) -> None:
    """modeldelta 0.4.4, where it measures the same: norms, effective rank and top singular values of every matrix."""
    analyze = pytest.importorskip("modeldelta.core.weight_diff").analyze_delta
    found = mp.drift.weight_statistics(pair, out=tmp_path / "w").to_pandas().set_index(["model", "tensor"])
    base, rl = (load_file(pair[name] / "model.safetensors") for name in ("base", "rl"))
    for name, weight in base.items():
        theirs, ours = analyze(weight.clone(), rl[name].clone()), found.loc[("rl", name)]
        assert ours["norm"] == pytest.approx(theirs["frob_norm"], rel=1e-5)
        assert ours["relative_norm"] == pytest.approx(theirs["frob_norm_relative"], rel=1e-5)
        if theirs["has_svd"]:
            assert ours["effective_rank"] == pytest.approx(theirs["effective_rank"], rel=1e-4)
            assert ours["spectral_norm"] == pytest.approx(theirs["top_singular_values"][0], rel=1e-5)


def test_rank_of_a_decomposition_counts_what_is_not_rounding() -> None:
    assert Singular(torch.tensor([2.0, 1.0, 1e-9]).double(), torch.eye(3).double()).rank == 2
    assert Singular(torch.zeros(3).double(), torch.eye(3).double()).rank == 0
