"""Which files are read as which weights: shards, ``.bin`` files, adapters, tied heads; and what is refused, in one sentence."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import mechprobe as mp
from mechprobe.drift.weights.compared import compare
from mechprobe.drift.weights.naming import place_of
from mechprobe.errors import ConfigError, ModelError
from tests.weight_files import save, save_sharded

Tensors = dict[str, Tensor]
UP = "model.layers.0.mlp.up_proj.weight"
NUMBERS = ["norm", "relative_norm", "max_abs", "kurtosis", "spectral_norm", "stable_rank", "effective_rank", "nuclear_norm",
           "sv_change", "angle_left", "angle_right_max", "inside", "inside_left", "inside_right", "stable_rank_null",
           "angle_left_null", "sign_flips", "below_bf16"]  # fmt: skip


def numbers(models: dict[str, Path], out: Path, **config: int) -> Any:
    found = mp.drift.weight_statistics(models, out=out, config=mp.drift.WeightsConfig(top_k=4, **config))
    return found.to_pandas().set_index(["model", "tensor"])


@pytest.mark.parametrize(
    ("name", "layer", "kind"),
    [
        ("model.layers.12.self_attn.qkv_proj.weight", 12, "qkv"),
        ("model.layers.0.mlp.gate_up_proj.weight", 0, "gate_up"),
        ("transformer.h.3.attn.c_attn.weight", 3, "qkv"),
        ("transformer.h.3.attn.c_proj.weight", 3, "o"),
        ("h.3.mlp.c_proj.bias", 3, "down_bias"),
        ("gpt_neox.layers.5.attention.query_key_value.weight", 5, "qkv"),
        ("gpt_neox.layers.5.attention.dense.weight", 5, "o"),
        ("gpt_neox.layers.5.mlp.dense_4h_to_h.weight", 5, "down"),
        ("gpt_neox.embed_in.weight", None, "embed"),
        ("embed_out.weight", None, "lm_head"),
        ("model.layers.1.block_sparse_moe.experts.7.w2.weight", 1, "down"),
        ("model.layers.1.block_sparse_moe.gate.weight", 1, "router"),
        ("model.layers.1.mlp.experts.gate_up_proj[3]", 1, "gate_up"),
        ("model.layers.1.self_attn.q_norm.weight", 1, "norm"),
        ("transformer.ln_f.weight", None, "norm"),
        ("transformer.h.0.ln_1.bias", 0, "norm"),
        ("backbone.layers.2.mixer.A_log", 2, "A_log"),
        ("backbone.layers.2.mixer.conv1d.weight", 2, "conv1d"),
        ("transformer.wpe.weight", None, "wpe"),
    ],
)
def test_layer_and_type_of_a_name(name: str, layer: int | None, kind: str) -> None:
    assert place_of(name) == (layer, kind)


def test_shards_and_bin_files_are_one_file(pair: dict[str, Path], tmp_path: Path) -> None:
    whole = numbers(pair, tmp_path / "one")
    sharded, pickled = {}, {}
    for name, path in pair.items():
        weights = load_file(path / "model.safetensors")
        sharded[name] = save_sharded(tmp_path / "sharded" / name, weights)
        pickled[name] = save(tmp_path / "bin" / name, weights)
        (pickled[name] / "model.safetensors").unlink()
        torch.save(weights, pickled[name] / "pytorch_model.bin")
    for number, models in enumerate((sharded, pickled)):
        other = numbers(models, tmp_path / f"other{number}")
        np.testing.assert_array_equal(other[NUMBERS].to_numpy(dtype=float), whole[NUMBERS].to_numpy(dtype=float))


def test_an_expert_in_a_stack_is_a_matrix(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(2)
    stack = {"model.layers.0.mlp.experts.up_proj": torch.randn(3, 8, 6, generator=generator)}
    conv = {"model.layers.0.mixer.conv1d.weight": torch.randn(9, 1, 4, generator=generator)}
    models = {"base": save(tmp_path / "base", stack | conv)}
    models["rl"] = save(tmp_path / "rl", {name: 2 * value for name, value in (stack | conv).items()})
    table = numbers(models, tmp_path / "w").loc["rl"]
    assert list(table.index) == [*conv, *(f"model.layers.0.mlp.experts.up_proj[{i}]" for i in range(3))]
    for index in range(3):
        matrix = stack["model.layers.0.mlp.experts.up_proj"][index].double()
        assert table["spectral_norm"].iloc[1 + index] == pytest.approx(torch.linalg.matrix_norm(matrix, 2).item())
    assert table.loc["model.layers.0.mixer.conv1d.weight", ["rows", "columns"]].tolist() == [9, 4]


def adapter(folder: Path, base: Path, weights: Tensors, **config: object) -> Path:
    """A LoRA adapter as peft saves it."""
    folder.mkdir(parents=True)
    settings = {
        "peft_type": "LORA",
        "base_model_name_or_path": str(base),
        "r": 3,
        "lora_alpha": 6,
        "task_type": "CAUSAL_LM",
    }
    (folder / "adapter_config.json").write_text(json.dumps(settings | config))
    stored = {f"base_model.model.{name}": value.contiguous() for name, value in weights.items()}
    save_file(stored, folder / "adapter_model.safetensors")
    return folder


def factors(module: str, rows: int, columns: int, *, rank: int = 3, seed: int = 0) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    return {
        f"{module}.lora_A.weight": torch.randn(rank, columns, generator=generator) * 0.2,
        f"{module}.lora_B.weight": torch.randn(rows, rank, generator=generator) * 0.2,
    }


Q, DOWN = "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"


@pytest.mark.parametrize("exact_up_to", [1024, 8])
@pytest.mark.parametrize(
    ("config", "scaling"),
    [
        ({}, {Q: 2, DOWN: 2}),
        ({"use_rslora": True}, {Q: 6 / math.sqrt(3), DOWN: 6 / math.sqrt(3)}),
        ({"alpha_pattern": {"layers.1.mlp.down_proj": 12}}, {Q: 2, DOWN: 4}),
    ],
    ids=["plain", "rslora", "pattern"],
)
def test_an_adapter_is_its_merged_update(
    config: dict[str, Any], scaling: dict[str, float], exact_up_to: int, pair: dict[str, Path], tmp_path: Path
) -> None:
    parts = factors(Q, 24, 24) | factors(DOWN, 24, 40, seed=1)
    norm = {"model.norm.weight": torch.full((24,), 0.5)}
    lora = adapter(tmp_path / "lora", pair["base"], parts | norm, **config)
    merged = {name: value.double() for name, value in load_file(pair["base"] / "model.safetensors").items()}
    for module, factor in scaling.items():
        merged[f"{module}.weight"] += (
            factor * parts[f"{module}.lora_B.weight"].double() @ parts[f"{module}.lora_A.weight"].double()
        )
    merged["model.norm.weight"] = norm["model.norm.weight"].double()
    models = {"base": pair["base"], "lora": lora, "merged": save(tmp_path / "merged", merged)}
    table = numbers(models, tmp_path / "w", exact_up_to=exact_up_to)
    tight = {"rtol": 1e-5, "atol": 1e-7} if exact_up_to == 1024 else {"rtol": 2e-2, "atol": 1e-2}
    for name in merged:
        ours, theirs = table.loc[("lora", name)], table.loc[("merged", name)]
        np.testing.assert_allclose(
            ours[NUMBERS].to_numpy(float), theirs[NUMBERS].to_numpy(float), **tight, err_msg=name
        )
    changed = table.loc["lora"].query("norm > 0").index.tolist()
    assert changed == [f"{Q}.weight", f"{DOWN}.weight", "model.norm.weight"]
    values = torch.linalg.svdvals(merged[f"{Q}.weight"] - load_file(pair["base"] / "model.safetensors")[f"{Q}.weight"])
    assert table.loc[("lora", f"{Q}.weight"), "nuclear_norm"] == pytest.approx(
        values.sum().item(), rel=1e-6
    )  # exact by QR


def test_an_adapter_leaves_entries_unchanged_that_its_merged_weights_would_not_show(tmp_path: Path) -> None:
    """Nothing stores W + B A, so unchanged means: equal to W once the sum is rounded to the dtype of base."""
    base = {f"{Q}.weight": torch.randn(24, 24, generator=torch.Generator().manual_seed(0)).bfloat16()}
    parts = factors(Q, 24, 24)
    parts[f"{Q}.lora_B.weight"] *= 0.05
    models = {"base": save(tmp_path / "base", base)}
    models["rl"] = adapter(tmp_path / "lora", models["base"], parts)
    product = 2 * parts[f"{Q}.lora_B.weight"].double() @ parts[f"{Q}.lora_A.weight"].double()
    same = (base[f"{Q}.weight"].double() + product).bfloat16() == base[f"{Q}.weight"]
    unchanged = numbers(models, tmp_path / "w").unchanged.iloc[0]
    assert 0.1 < unchanged < 0.9
    assert unchanged == same.double().mean().item()


def test_adapters_on_embedding_head_and_adapters_are_read(pair: dict[str, Path], tmp_path: Path) -> None:
    """An embedding's factors are transposed; a head that was tied gets weights of its own; adapters on adapters add up."""
    embedding = {
        "model.embed_tokens.lora_embedding_A": torch.randn(3, 50), "model.embed_tokens.lora_embedding_B": torch.randn(24, 3),
    }  # fmt: skip
    first = adapter(tmp_path / "first", pair["base"], embedding | factors(Q, 24, 24))
    head = factors("lm_head", 50, 24)
    second = adapter(tmp_path / "second", first, head | factors(Q, 24, 24, seed=3))
    table = numbers({"base": pair["base"], "first": first, "second": second}, tmp_path / "w").norm
    product = 2 * (embedding["model.embed_tokens.lora_embedding_B"] @ embedding["model.embed_tokens.lora_embedding_A"])
    assert table["first", "model.embed_tokens.weight"] == pytest.approx(product.norm().item(), rel=1e-5)
    assert table["second", "lm_head.weight"] == pytest.approx(
        (2 * head["lm_head.lora_B.weight"] @ head["lm_head.lora_A.weight"]).norm().item(), rel=1e-5
    )
    assert table["first", "lm_head.weight"] == 0
    two = [factors(Q, 24, 24, seed=seed) for seed in (0, 3)]
    both = sum(2 * part[f"{Q}.lora_B.weight"] @ part[f"{Q}.lora_A.weight"] for part in two)
    assert table["second", f"{Q}.weight"] == pytest.approx(both.norm().item(), rel=1e-5)


def test_peft_and_transformers_agree_with_our_reading(llama_family: dict[str, Path], tmp_path: Path) -> None:
    """The update of a real adapter is that of the model that peft merges."""
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    settings = peft.LoraConfig(
        r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"], modules_to_save=["lm_head"], task_type="CAUSAL_LM"
    )
    live = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(llama_family["base"]), settings)
    with torch.no_grad():
        for number, value in enumerate(value for value in live.parameters() if value.requires_grad):
            value.add_(torch.randn(value.shape, generator=torch.Generator().manual_seed(number)) * 0.1)
    live.save_pretrained(tmp_path / "lora")
    live.merge_and_unload().save_pretrained(tmp_path / "merged")
    models = {"base": llama_family["base"], "lora": tmp_path / "lora", "merged": tmp_path / "merged"}
    table = numbers(models, tmp_path / "w")
    for column in ("norm", "stable_rank", "max_abs"):
        np.testing.assert_allclose(
            table.loc["lora"][column].to_numpy(float), table.loc["merged"][column].to_numpy(float), rtol=1e-3, atol=1e-6
        )
    assert (table.loc["lora"].norm > 0).sum() == 7


def test_an_adapter_on_a_copy_of_base_is_known_to_be_of_low_rank(pair: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(pair["base"], tmp_path / "copy")
    lora = adapter(tmp_path / "lora", tmp_path / "copy", factors(Q, 24, 24))
    found = compare({"base": pair["base"], "rl": lora}, "base")
    assert found.updates(f"{Q}.weight")["rl"].low_rank
    assert found.updates(UP)["rl"].untouched


def with_head(source: Path, folder: Path, head: Tensor, **config: object) -> Path:
    return save(folder, load_file(source / "model.safetensors") | {"lm_head.weight": head}, **config)


def test_a_head_that_is_the_embedding_counts_once(pair: dict[str, Path], tmp_path: Path) -> None:
    embeddings = {
        name: load_file(path / "model.safetensors")["model.embed_tokens.weight"] for name, path in pair.items()
    }
    stored = with_head(pair["base"], tmp_path / "base", embeddings["base"])
    rl = with_head(pair["rl"], tmp_path / "rl", embeddings["rl"])
    n = mp.drift.weight_statistics({"base": pair["base"], "rl": pair["rl"]}, out=tmp_path / "w").n
    for base, tuned in ((stored, rl), (stored, pair["rl"]), (pair["base"], rl)):
        found = compare({"base": base, "rl": tuned}, "base")
        assert found.tied
        assert sum(found.view(name).n for name in found.names) == n
    untied = with_head(pair["rl"], tmp_path / "untied", embeddings["rl"] + 1, tie_word_embeddings=False)
    found = compare({"base": pair["base"], "rl": untied, "sft": pair["sft"]}, "base")
    assert not found.tied
    head = {model: update.tuned.stored.key for model, update in found.updates("lm_head.weight").items()}
    assert head == {"rl": "lm_head.weight", "sft": "model.embed_tokens.weight"}


def changed(change: Callable[[Tensors], Tensors], **config: object) -> Callable[[dict[str, Path], Path], Path]:
    return lambda pair, folder: save(folder, change(load_file(pair["rl"] / "model.safetensors")), **config)


def with_value(value: float) -> Callable[[Tensors], Tensors]:
    def put(weights: Tensors) -> Tensors:
        weights[UP][3, 2] = value
        return weights

    return put


def truncated(pair: dict[str, Path], folder: Path) -> Path:
    shutil.copytree(pair["rl"], folder)
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    return folder


def without_shard(pair: dict[str, Path], folder: Path) -> Path:
    save_sharded(folder, load_file(pair["rl"] / "model.safetensors"))
    (folder / "model-00002-of-00003.safetensors").unlink()
    return folder


def unsafe(pair: dict[str, Path], folder: Path) -> Path:
    save(folder, load_file(pair["rl"] / "model.safetensors"))
    (folder / "model.safetensors").unlink()
    torch.save({"weights": Path}, folder / "pytorch_model.bin")
    return folder


def other_lora(weights: Tensors, **config: object) -> Callable[[dict[str, Path], Path], Path]:
    return lambda pair, folder: adapter(folder, pair["base"], weights, **config)


REFUSED: dict[str, tuple[Callable[[dict[str, Path], Path], Any], str]] = {
    "a tensor less": (changed(lambda w: {k: v for k, v in w.items() if k != UP}), f"lacks 1 tensor ({UP}) of base; save"),
    "a layer more": (
        changed(lambda w: w | {"model.layers.2.mlp.up_proj.weight": torch.zeros(40, 24)}),
        "holds 1 tensor (model.layers.2.mlp.up_proj.weight), which base does not have",
    ),
    "wrapped": (changed(lambda w: {f"module.{k}": v for k, v in w.items()}), "save model.module"),
    "other shape": (
        changed(lambda w: w | {"model.embed_tokens.weight": torch.zeros(51, 24)}),
        "model.embed_tokens.weight has shape [51, 24], and base has [50, 24]",
    ),
    "nan": (changed(with_value(math.nan)), f"has NaN or infinite weights in {UP}"),
    "infinity": (changed(with_value(-math.inf)), f"has NaN or infinite weights in {UP}"),
    "truncated": (truncated, "is not a readable safetensors file"),
    "a shard less": (without_shard, "lacks 1 of the 3 weight files"),
    "python objects": (unsafe, "cannot be read without running code from it"),
    "other architecture": (changed(lambda w: w, model_type="qwen3"), "is a qwen3, and base is a llama"),
    "quantized": (changed(lambda w: w, quantization_config={"quant_method": "gptq"}), "holds quantized weights"),
    "float8": (changed(lambda w: {k: v.to(torch.float8_e4m3fn) for k, v in w.items()}), "float8_e4m3fn"),
    "hub": (lambda _pair, _folder: "nobody/no-such-model", "it is not in the cache"),
    "nothing there": (lambda _pair, folder: folder, "does not exist"),
    "dora": (other_lora(factors(Q, 24, 24), use_dora=True), "is no plain LoRA (DoRA"),
    "ia3": (other_lora({f"{Q}.ia3_l": torch.ones(24, 1)}, peft_type="IA3"), "is no plain LoRA (peft_type IA3"),
    "pissa": (other_lora(factors(Q, 24, 24), init_lora_weights="pissa_niter_4"), "which changes the base"),
    "half an adapter": (other_lora({f"{Q}.lora_A.weight": torch.ones(3, 24)}), "has one factor of"),
    "adapter of another base": (other_lora(factors("model.layers.9.self_attn.q_proj", 24, 24)), "changes model.layers.9"),
    "adapter of another width": (other_lora(factors(Q, 30, 24)), "by a matrix of [30, 24]"),
    "infinite adapter": (other_lora({k: v / 0 for k, v in factors(Q, 24, 24).items()}), "has NaN or infinite weights"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_unusable_models_are_refused_in_one_sentence(kind: str, pair: dict[str, Path], tmp_path: Path) -> None:
    make, message = REFUSED[kind]
    with pytest.raises(ModelError) as error:
        mp.drift.weight_statistics({"base": pair["base"], "rl": make(pair, tmp_path / "bad")}, out=tmp_path / "w")
    assert message in str(error.value)
    assert str(error.value).startswith("Model rl: ")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "w").exists()


def test_base_must_be_among_several_models(pair: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"weights\.base is 'start', but the models are base, sft, rl"):
        mp.drift.weight_statistics(pair, "start", out=tmp_path)
    with pytest.raises(ConfigError, match="no model beside base"):
        mp.drift.weight_statistics({"base": pair["base"]}, out=tmp_path)


def test_tensors_that_base_lacks_are_left_out_and_named(pair: dict[str, Path], tmp_path: Path) -> None:
    more = load_file(pair["rl"] / "model.safetensors") | {
        "v_head.weight": torch.zeros(1, 24),
        "model.rotary_emb.inv_freq": torch.ones(4),
    }
    found = mp.drift.weight_statistics({"base": pair["base"], "rl": save(tmp_path / "rl", more)}, out=tmp_path / "w")
    assert found.left_out == {"rl": ("v_head.weight",)}
