"""Published dictionaries, compared with an independent float64 implementation of the formula of their authors."""

from __future__ import annotations

import json
import pickle  # noqa: TID251 to write the file that must not be opened
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from sae_training import Crosscoder, SaeTrainingError, SingleSae, block_crosscoder, import_crosscoder, import_sae
from sae_training.importing import read_published

M, D, F, N = 3, 6, 20, 60


def draw(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def activations(widths: tuple[int, ...] = (D,) * M) -> list[Tensor]:
    """Raw activations of models with different means and sizes."""
    return [(m + 1) * 2.0 * draw(N, width, seed=100 + m) + 3.0 * m for m, width in enumerate(widths)]


def assert_equal(crosscoder: Crosscoder, raw: list[Tensor], latents: Tensor, x_hat: list[Tensor]) -> None:
    """Latents and reconstructions agree to 1e-6 of their size, and which latents are active agrees exactly."""
    dtype = crosscoder.decoder.dtype
    tolerance = 1e-10 if dtype == torch.float64 else 1e-6
    crosscoder.requires_grad_(requires_grad=False)
    found = crosscoder.encode(torch.cat(raw, dim=1).to(dtype))
    assert torch.equal(found > 0, latents > 0)
    assert 0 < (latents > 0).sum() < latents.numel()
    assert float((found - latents).abs().max()) <= tolerance * float(latents.abs().max())
    for model, expected in enumerate(x_hat):
        error = (crosscoder.decode_model(found, model) - expected).abs().max()
        assert float(error) <= tolerance * float(expected.abs().max())


# crosscoder_learning


def learning_tensors(dtype: torch.dtype, *, batch_top_k: bool, norm_id: int, normalized: bool) -> dict[str, Tensor]:
    tensors = {
        "encoder.weight": draw(M, D, F, seed=1, dtype=dtype),
        "encoder.bias": draw(F, seed=2, dtype=dtype),
        "decoder.weight": draw(M, F, D, seed=3, dtype=dtype),
        "decoder.bias": draw(M, D, seed=4, dtype=dtype),
        "code_normalization_id": torch.tensor(norm_id),
        "activation_mean": torch.full((M, D), float("nan")),
        "activation_std": torch.full((M, D), float("nan")),
        "activation_global_scale": torch.ones(M),
        "target_rms": torch.tensor(1.0),
    }
    if normalized:
        std = draw(M, D, seed=6, dtype=dtype).abs() + 1
        tensors |= {"activation_mean": draw(M, D, seed=5, dtype=dtype), "activation_std": std}
        tensors["activation_global_scale"] = (4.0 / (std.square().sum(-1) + 1e-8).sqrt()).to(dtype)
    if batch_top_k:
        tensors |= {"k": torch.tensor(5, dtype=torch.int32), "threshold": torch.tensor(25.0)}
    return tensors


def learning_formula(t: dict[str, Tensor], raw: list[Tensor], norm: Tensor | None) -> tuple[Tensor, list[Tensor]]:
    t = {name: value.double() for name, value in t.items()}
    x = torch.stack(raw, dim=1)
    normalized = not bool(t["activation_mean"].isnan().any())
    factor = t["activation_global_scale"][None, :, None]
    if normalized:
        x = (x - t["activation_mean"]) * factor
    latents = torch.relu(torch.einsum("bld,ldf->bf", x, t["encoder.weight"]) + t["encoder.bias"])
    if "threshold" in t:
        assert norm is not None
        latents = latents * (latents * norm > t["threshold"])
    x_hat = torch.einsum("bf,lfd->bld", latents, t["decoder.weight"]) + t["decoder.bias"]
    if normalized:
        x_hat = x_hat / (factor + 1e-8) + t["activation_mean"]
    return latents, list(x_hat.unbind(1))


def code_norm(decoder: Tensor, norm_id: int) -> Tensor:
    """1 CROSSCODER, 2 SAE, 3 MIXED (alphas 0.7 and 0.2), 4 NONE."""
    decoder = decoder.double()
    summed, together = decoder.norm(dim=2).sum(0), decoder.norm(dim=(0, 2))
    return {1: summed, 2: together, 3: 0.7 * together + 0.2 * summed, 4: torch.full((F,), 2.0) / 2}[norm_id]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize("batch_top_k", [True, False])
def test_crosscoder_learning(tmp_path: Path, dtype: torch.dtype, normalized: bool, batch_top_k: bool) -> None:
    tensors = learning_tensors(dtype, batch_top_k=batch_top_k, norm_id=1, normalized=normalized)
    torch.save(tensors, tmp_path / "model_final.pt")
    imported = import_crosscoder(tmp_path, names=("base", "sft", "rl"))
    assert imported.config.variant == ("batchtopk" if batch_top_k else "l1")
    assert imported.model_names == ("base", "sft", "rl")
    assert imported.decoder.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    if batch_top_k:
        assert imported.config.k == 5
    raw = activations()
    assert_equal(imported, raw, *learning_formula(tensors, raw, code_norm(tensors["decoder.weight"], 1)))


def test_crosscoder_learning_from_the_hub_and_compiled_and_saved_again(tmp_path: Path) -> None:
    tensors = learning_tensors(torch.float64, batch_top_k=True, norm_id=1, normalized=True)
    raw = activations()
    expected = learning_formula(tensors, raw, code_norm(tensors["decoder.weight"], 1))
    (tmp_path / "hub").mkdir()
    save_file(tensors, tmp_path / "hub" / "model.safetensors")
    (tmp_path / "hub" / "config.json").write_text(json.dumps({"dict_class": "BatchTopKCrossCoder", "k": 5}))
    torch.save({f"_orig_mod.{name}": value for name, value in tensors.items()}, tmp_path / "compiled.pt")
    for path in ("hub", "compiled.pt"):
        imported = import_crosscoder(tmp_path / path)
        assert_equal(imported, raw, *expected)
        imported.save(tmp_path / f"{path}_saved")
        assert_equal(Crosscoder.load(tmp_path / f"{path}_saved"), raw, *expected)


@pytest.mark.parametrize("norm_id", [2, 3, 4])
def test_other_code_normalizations_become_thresholds_of_latents(tmp_path: Path, norm_id: int) -> None:
    tensors = learning_tensors(torch.float64, batch_top_k=True, norm_id=norm_id, normalized=True)
    tensors["threshold"] = torch.tensor({2: 15.0, 3: 15.0, 4: 4.0}[norm_id])
    torch.save(tensors, tmp_path / "model_final.pt")
    alphas = {"code_normalization_alpha_sae": 0.7, "code_normalization_alpha_cc": 0.2}
    (tmp_path / "config.json").write_text(json.dumps(alphas))
    imported = import_crosscoder(tmp_path)
    assert imported.config.variant == "jumprelu"
    raw = activations()
    assert_equal(imported, raw, *learning_formula(tensors, raw, code_norm(tensors["decoder.weight"], norm_id)))


def test_a_threshold_that_was_never_estimated_lets_everything_positive_pass(tmp_path: Path) -> None:
    tensors = learning_tensors(torch.float64, batch_top_k=True, norm_id=1, normalized=False)
    tensors["threshold"] = torch.tensor(-1.0)
    torch.save(tensors, tmp_path / "m.pt")
    raw = activations()
    expected = learning_formula(tensors, raw, code_norm(tensors["decoder.weight"], 1))
    assert_equal(import_crosscoder(tmp_path / "m.pt"), raw, *expected)


def test_a_relu_crosscoder_may_have_any_code_normalization(tmp_path: Path) -> None:
    tensors = learning_tensors(torch.float64, batch_top_k=False, norm_id=5, normalized=False)
    torch.save(tensors, tmp_path / "m.pt")
    raw = activations()
    assert_equal(import_crosscoder(tmp_path / "m.pt"), raw, *learning_formula(tensors, raw, None))


# understanding-opd-crosscoders


@pytest.mark.parametrize("wrapped", [True, False], ids=["checkpoint", "model"])
def test_opd_with_models_of_different_widths(tmp_path: Path, wrapped: bool) -> None:
    widths = (4, 6, 9)
    raw = activations(widths)
    tensors = {"encoder.bias": draw(F, seed=9), "code_normalization_id": torch.tensor(1), "k": torch.tensor(4)}
    tensors |= {"threshold": torch.tensor(20.0), "activation_dims_tensor": torch.tensor(widths)}
    hidden, scales = tensors["encoder.bias"], []
    for m, width in enumerate(widths):
        std = draw(width, seed=40 + m).abs() + 0.5
        scales.append(3.0 / (std.square().sum() + 1e-8).sqrt())
        tensors[f"encoder.projections.{m}.weight"] = draw(F, width, seed=10 + m)
        tensors[f"decoder.projections.{m}.weight"] = draw(width, F, seed=20 + m)
        tensors[f"decoder.projections.{m}.bias"] = draw(width, seed=30 + m)
        tensors[f"normalizer.mean_{m}"], tensors[f"normalizer.std_{m}"] = draw(width, seed=50 + m), std
        tensors[f"normalizer.scale_{m}"] = scales[m]
        x = (raw[m] - tensors[f"normalizer.mean_{m}"]) * scales[m]
        hidden = hidden + x @ tensors[f"encoder.projections.{m}.weight"].T
    latents = torch.relu(hidden)
    norm = sum(tensors[f"decoder.projections.{m}.weight"].norm(dim=0) for m in range(3))
    latents = latents * (latents * norm > 20.0)
    x_hat = [
        (latents @ tensors[f"decoder.projections.{m}.weight"].T + tensors[f"decoder.projections.{m}.bias"])
        / (scales[m] + 1e-8)
        + tensors[f"normalizer.mean_{m}"]
        for m in range(3)
    ]
    torch.save({"completed_steps": 7, "model_state_dict": tensors} if wrapped else tensors, tmp_path / "c.pt")
    published = read_published(tmp_path / "c.pt")
    assert (published.format, published.widths) == ("opd", widths)
    assert_equal(published.to_crosscoder(), raw, latents, x_hat)


# neelnanda-io/Crosscoders, ckkissane


def test_replication_with_its_factors_given_apart(tmp_path: Path) -> None:
    tensors = {"W_enc": draw(2, D, F, seed=1), "W_dec": draw(F, 2, D, seed=2)}
    tensors |= {"b_enc": draw(F, seed=3), "b_dec": draw(2, D, seed=4)}
    torch.save(tensors, tmp_path / "25.pt")
    (tmp_path / "25_cfg.json").write_text(json.dumps({"dict_size": F, "d_in": D, "model_name": "gemma-2-2b"}))
    raw, factors = activations()[:2], (0.27, 0.24)
    x = torch.stack([part * factor for part, factor in zip(raw, factors, strict=True)], dim=1)
    latents = torch.relu(torch.einsum("bmd,mdf->bf", x, tensors["W_enc"]) + tensors["b_enc"])
    x_hat = torch.einsum("bf,fmd->bmd", latents, tensors["W_dec"]) + tensors["b_dec"]
    imported = import_crosscoder(tmp_path / "25.pt", scale=[1 / factor for factor in factors])
    assert_equal(imported, raw, latents, [x_hat[:, m] / factors[m] for m in range(2)])
    assert torch.allclose(imported.scale, torch.tensor([1 / f for f in factors], dtype=torch.float64), rtol=1e-12)
    with pytest.raises(SaeTrainingError, match=r"scale.* 2 divisors"):
        import_crosscoder(tmp_path / "25.pt")


# Llamascopium


def llamascopium(folder: Path, **settings: object) -> dict[str, Tensor]:
    hooks = [f"blocks.{layer}.hook_resid_post" for layer in range(M)]
    tensors = {"W_E": draw(M, D, F, seed=1), "b_E": draw(M, F, seed=2)}
    tensors |= {"W_D": draw(M, F, D, seed=3), "b_D": draw(M, D, seed=4)}
    tensors |= {f"dataset_average_activation_norm.{hook}": torch.tensor(2.0 + i) for i, hook in enumerate(hooks)}
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "sae_weights.safetensors")
    config = {"sae_type": "crosscoder", "hook_points": hooks, "act_fn": "relu", "norm_activation": "dataset-wise"}
    (folder / "config.json").write_text(json.dumps({**config, **settings}))
    return tensors


@pytest.mark.parametrize("mode", ["dataset-wise", "inference"])
def test_llamascopium(tmp_path: Path, mode: str) -> None:
    t = llamascopium(tmp_path, norm_activation=mode)
    raw = activations()
    factor = D**0.5 / torch.tensor([2.0, 3.0, 4.0], dtype=torch.float64) if mode == "dataset-wise" else torch.ones(3)
    x = torch.stack(raw, dim=1) * factor[None, :, None]
    per_head = torch.einsum("bhd,hdf->bhf", x, t["W_E"]) + t["b_E"]
    hidden = per_head.sum(1, keepdim=True).expand(-1, M, -1)
    norm = t["W_D"].norm(dim=2)
    latents = torch.relu(hidden * norm) / norm
    x_hat = torch.einsum("bhf,hfd->bhd", latents, t["W_D"]) + t["b_D"]
    expected = [x_hat[:, m] / factor[m] for m in range(M)]
    assert_equal(import_crosscoder(tmp_path), raw, latents[:, 0], expected)


# sae-lens


def sae_lens_folder(folder: Path, architecture: str, **settings: object) -> SingleSae:
    """Random weights in a stock sae-lens class, saved by sae-lens and read by `import_sae`."""
    from sae_lens import (
        BatchTopKTrainingSAE,
        BatchTopKTrainingSAEConfig,
        JumpReLUSAE,
        JumpReLUSAEConfig,
        StandardSAE,
        StandardSAEConfig,
        TopKSAE,
        TopKSAEConfig,
    )

    shape = {"d_in": D, "d_sae": F, "dtype": "float64", **settings}
    made = {
        "standard": lambda: StandardSAE(StandardSAEConfig(**shape)),
        "jumprelu": lambda: JumpReLUSAE(JumpReLUSAEConfig(**shape)),
        "topk": lambda: TopKSAE(TopKSAEConfig(**shape, k=4)),
        "batchtopk": lambda: BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(**shape, k=4)),
    }[architecture]()
    state = {name: draw(*value.shape, seed=70 + i) for i, (name, value) in enumerate(made.state_dict().items())}
    if "topk_threshold" in state:
        state["topk_threshold"] = torch.tensor(2.5, dtype=torch.float64)
    made.load_state_dict(state)
    made.save_model(folder)
    return import_sae(folder)


SAES: list[tuple[str, dict[str, object]]] = [
    ("standard", {"apply_b_dec_to_input": True}),
    ("standard", {"apply_b_dec_to_input": False}),
    ("jumprelu", {"apply_b_dec_to_input": True}),
    ("topk", {"rescale_acts_by_decoder_norm": True}),
    ("topk", {"rescale_acts_by_decoder_norm": False}),
]


@pytest.mark.parametrize(("architecture", "settings"), SAES, ids=str)
def test_sae_lens_saes_compute_what_sae_lens_computes(
    tmp_path: Path, architecture: str, settings: dict[str, object]
) -> None:
    from sae_lens import SAE

    sae = sae_lens_folder(tmp_path, architecture, **settings)
    stock = SAE.load_from_disk(tmp_path)
    x = 2 * draw(N, D, seed=5) + 1
    with torch.no_grad():
        latents = stock.encode(x)
        assert torch.equal(sae.encode(x) > 0, latents > 0)
        assert 0 < (latents > 0).sum() < latents.numel()
        torch.testing.assert_close(sae.encode(x), latents, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(sae.decode(sae.encode(x)), stock.decode(latents), rtol=1e-10, atol=1e-10)


def test_a_training_checkpoint_becomes_what_sae_lens_would_save_for_inference(tmp_path: Path) -> None:
    from sae_lens import SAE, TrainingSAE

    sae = sae_lens_folder(tmp_path / "checkpoint", "batchtopk")
    TrainingSAE.load_from_disk(tmp_path / "checkpoint").save_inference_model(tmp_path / "inference")
    stock, again = SAE.load_from_disk(tmp_path / "inference"), import_sae(tmp_path / "inference")
    x = 2 * draw(N, D, seed=5) + 1
    with torch.no_grad():
        latents = stock.encode(x)
        assert 0 < (latents > 0).sum() < latents.numel()
        for one in (sae, again):
            torch.testing.assert_close(one.encode(x), latents, rtol=1e-10, atol=1e-10)
            torch.testing.assert_close(one.decode(one.encode(x)), stock.decode(latents), rtol=1e-10, atol=1e-10)


def test_files_of_sae_lens_before_6(tmp_path: Path) -> None:
    tensors = {"W_enc": draw(D, F, seed=1), "W_dec": draw(F, D, seed=2)}
    tensors |= {"b_enc": draw(F, seed=3), "b_dec": draw(D, seed=4), "scaling_factor": torch.ones(F)}
    save_file(tensors, tmp_path / "sae_weights.safetensors")
    old = {
        "d_in": D,
        "d_sae": F,
        "activation_fn_str": "topk",
        "activation_fn_kwargs": {"k": 3},
        "hook_name": "blocks.1.x",
    }
    (tmp_path / "cfg.json").write_text(json.dumps(old))
    sae = import_sae(tmp_path)
    assert (sae.k, sae.metadata["hook_name"]) == (3, "blocks.1.x")
    x = draw(N, D, seed=5)
    hidden = (x - tensors["b_dec"]) @ tensors["W_enc"] + tensors["b_enc"]
    kept = hidden >= hidden.topk(3, dim=1).values[:, -1:]
    torch.testing.assert_close(sae.encode(x), torch.relu(hidden) * kept, rtol=1e-10, atol=1e-10)


def test_evaluate_is_about_the_mean_and_pooled() -> None:
    weights = draw(D, F, seed=1), draw(F, D, seed=2), draw(F, seed=3), draw(D, seed=4)
    sae = SingleSae(*weights, threshold=torch.full((F,), 1.0, dtype=torch.float64))
    x = draw(N, D, seed=5) + 1000.0
    metrics = sae.evaluate(x.split(7))
    latents = torch.relu(x @ weights[0] + weights[2])
    latents = latents * (x @ weights[0] + weights[2] > 1.0)
    error = (x - latents @ weights[1] - weights[3]).square().sum()
    assert metrics.fve == pytest.approx(float(1 - error / (x - x.mean(0)).square().sum()), rel=1e-9)
    assert metrics.l0 == pytest.approx(float((latents > 0).sum()) / N)
    assert metrics.dead_frac == pytest.approx(float(((latents > 0).sum(0) == 0).double().mean()))
    assert metrics.n_tokens == N


# SAEs side by side


def inference_sae(threshold: Tensor | float, width: int, n_latents: int, seed: int) -> SingleSae:
    decoder = draw(n_latents, width, seed=seed + 1)
    decoder = decoder / decoder.norm(dim=1, keepdim=True)
    cut = torch.as_tensor(threshold, dtype=torch.float64).expand(n_latents)
    encoder = draw(width, n_latents, seed=seed)
    return SingleSae(encoder, decoder, draw(n_latents, seed=seed + 2), draw(width, seed=seed + 3), cut)


def check_block(saes: dict[str, SingleSae]) -> Crosscoder:
    block = block_crosscoder(saes)
    raw = activations(tuple(sae.d_model for sae in saes.values()))
    parts = [sae.encode(x) for sae, x in zip(saes.values(), raw, strict=True)]
    x_hat = [sae.decode(f) for sae, f in zip(saes.values(), parts, strict=True)]
    assert_equal(block, raw, torch.cat(parts, dim=1), x_hat)
    return block


def test_saes_of_one_threshold_each_side_by_side() -> None:
    saes = {name: inference_sae(1.0 + i, 5 + i, 11 + i, seed=7 * i) for i, name in enumerate(("base", "rl"))}
    block = check_block(saes)
    assert (block.config.variant, block.config.n_dedicated, block.model_names) == (
        "batchtopk",
        (11, 12),
        ("base", "rl"),
    )
    zero = (block.decoder_norm(p=2) == 0).tolist()
    assert zero == [[False, True]] * 11 + [[True, False]] * 12


def test_relu_saes_side_by_side() -> None:
    assert check_block({name: inference_sae(0.0, 5, 9, seed) for seed, name in enumerate("ab")}).config.variant == "l1"


def test_thresholds_of_latents_side_by_side() -> None:
    saes = {name: inference_sae(draw(9, seed=3).abs(), 5, 9, seed) for seed, name in enumerate("ab")}
    assert check_block(saes).config.variant == "jumprelu"


def test_a_zero_threshold_beside_a_positive_one_is_not_mistaken_for_it() -> None:
    half = torch.cat([torch.zeros(4), torch.ones(5)])
    saes = {"a": inference_sae(half, 5, 9, seed=1), "b": inference_sae(1.0, 5, 9, seed=2)}
    check_block(saes)


def test_topk_saes_and_a_single_sae_are_refused(tmp_path: Path) -> None:
    sae = sae_lens_folder(tmp_path, "topk")
    with pytest.raises(SaeTrainingError, match=r"\b4\b.*jumprelu"):
        block_crosscoder({"a": sae, "b": sae})
    with pytest.raises(SaeTrainingError, match=r"two models.* 1"):
        block_crosscoder({"a": sae})


# Refusals


class Evil:
    """Runs a command when unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return Path.touch, (self.target,)  # type: ignore[return-value]


@pytest.mark.parametrize("save", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
def test_a_file_that_would_run_code_is_not_opened(tmp_path: Path, save: Callable[[object, Path], object]) -> None:
    save({"encoder.weight": Evil(tmp_path / "ran")}, tmp_path / "evil.pt")
    with pytest.raises(SaeTrainingError, match=r"evil\.pt.*code") as caught:
        import_crosscoder(tmp_path / "evil.pt")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "ran").exists()


def refused(path: Path, words: str, **options: object) -> None:
    with pytest.raises(SaeTrainingError, match=words) as caught:
        import_crosscoder(path, **options)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    refused(tmp_path / "gone.pt", "does not exist")
    refused(tmp_path, "weights file")
    (tmp_path / "a.txt").write_text("x")
    refused(tmp_path / "a.txt", r"a\.txt.*\.safetensors")
    for name, data in (("empty.pt", b""), ("text.pt", b"hello there"), ("cut.safetensors", b"\x08\0\0")):
        (tmp_path / name).write_bytes(data)
        refused(tmp_path / name, name)
    refused(tmp_path, "weights file")
    torch.save(learning_tensors(torch.float32, batch_top_k=True, norm_id=1, normalized=True), tmp_path / "m.pt")
    (tmp_path / "truncated.pt").write_bytes((tmp_path / "m.pt").read_bytes()[:-900])
    refused(tmp_path / "truncated.pt", "truncated.pt")
    torch.save(
        torch.load(tmp_path / "m.pt"), tmp_path / "old.pt", _use_new_zipfile_serialization=False
    )  # the reader of the older format fails with other exceptions
    data = (tmp_path / "old.pt").read_bytes()
    for n_bytes in range(10, len(data), max(1, len(data) // 200)):
        (tmp_path / "old_cut.pt").write_bytes(data[:n_bytes])
        refused(tmp_path / "old_cut.pt", "old_cut.pt")
    torch.save([torch.zeros(3)], tmp_path / "list.pt")
    refused(tmp_path / "list.pt", "list")
    torch.save({"k": 3}, tmp_path / "none.pt")
    refused(tmp_path / "none.pt", "tensors")
    refused(tmp_path / "m.pt", "'crosscoder_learning'", format="crosscoder_lerning")
    refused(tmp_path / "m.pt", "'W_enc'", format="replication", scale=(1.0, 1.0))
    refused(tmp_path / "m.pt", "scale", scale=(1.0, 1.0, 1.0))
    refused(tmp_path / "m.pt", "2.* n_models = 3", names=("a", "b"))


@pytest.mark.parametrize("change", [torch.Tensor.to_sparse, lambda t: t.to("meta"), lambda t: t.to(torch.complex64)])
def test_tensors_that_are_not_plain(tmp_path: Path, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    tensors = learning_tensors(torch.float32, batch_top_k=True, norm_id=1, normalized=True)
    torch.save({**tensors, "encoder.weight": change(tensors["encoder.weight"])}, tmp_path / "odd.pt")
    refused(tmp_path / "odd.pt", r"encoder\.weight.*torch\.")


def test_tensors_that_do_not_fit_or_are_not_finite(tmp_path: Path) -> None:
    whole = learning_tensors(torch.float32, batch_top_k=True, norm_id=1, normalized=True)
    cases = [
        ({"encoder.bias": torch.zeros(F + 1)}, r"encoder.bias.*\[21\].*\[20\]"),
        ({"decoder.weight": torch.full((M, F, D), float("nan"))}, "decoder.weight.*finite"),
        ({"decoder.weight": torch.zeros(M - 1, F, D)}, "3.* 2"),
        ({"code_normalization_id": torch.tensor(5), "threshold": torch.zeros(M)}, "DECOUPLED"),
        ({"code_normalization_id": torch.tensor(3)}, "code_normalization_alpha_sae"),
        ({"code_normalization_id": torch.tensor(9)}, "code_normalization 9.0"),
        ({"activation_global_scale": torch.zeros(M)}, "activation_global_scale"),
    ]
    for change, words in cases:
        torch.save({**whole, **change}, tmp_path / "m.pt")
        refused(tmp_path / "m.pt", words)


def test_errors_name_the_kind_of_file(tmp_path: Path) -> None:
    sae_lens_folder(tmp_path / "sae", "standard")
    refused(tmp_path / "sae", "import_sae")
    tensors = learning_tensors(torch.float32, batch_top_k=False, norm_id=1, normalized=False)
    torch.save(tensors, tmp_path / "m.pt")
    import_crosscoder(tmp_path / "m.pt").save(tmp_path / "own")
    refused(tmp_path / "own", "Crosscoder.load")
    torch.save({"layer.weight": torch.zeros(2, 2)}, tmp_path / "x.pt")
    refused(tmp_path / "x.pt", "layer.weight.*crosscoder_learning")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"act_fn": "jumprelu"}, "jumprelu"),
        ({"norm_activation": "token-wise"}, "token-wise"),
        ({"hook_points": ["a"]}, "3 .*config.json.* 1"),
    ],
)
def test_llamascopium_that_cannot_be_imported(tmp_path: Path, settings: dict[str, object], words: str) -> None:
    llamascopium(tmp_path, **settings)
    refused(tmp_path, words)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"architecture": "gated"}, "'gated'"),
        ({"normalize_activations": "layer_norm"}, "layer_norm"),
        ({"normalize_activations": "expected_average_only_in"}, "expected_average_only_in"),
        ({"reshape_activations": "hook_z"}, "hook_z"),
        ({"architecture": "topk", "k": 0}, "k = 0.* 1 to 20"),
        ({"architecture": "jumprelu"}, "'threshold'"),
    ],
)
def test_saes_that_cannot_be_imported(tmp_path: Path, settings: dict[str, object], words: str) -> None:
    sae_lens_folder(tmp_path, "standard")
    known = json.loads((tmp_path / "cfg.json").read_text())
    (tmp_path / "cfg.json").write_text(json.dumps({**known, **settings}))
    with pytest.raises(SaeTrainingError, match=words):
        import_sae(tmp_path)


def test_no_sae_there(tmp_path: Path) -> None:
    with pytest.raises(SaeTrainingError, match=r"cfg.json"):
        import_sae(tmp_path)
    sae = sae_lens_folder(tmp_path / "sae", "standard")
    with pytest.raises(SaeTrainingError, match="width 5"):
        sae.encode(torch.zeros(2, 5))
    with pytest.raises(SaeTrainingError, match="empty"):
        sae.evaluate([])
