"""Checkpoints whose tensors are not those of their architecture are refused before any weight is read."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from mechprobe.errors import ModelError
from mechprobe.models.family import ModelFamily
from mechprobe.models.load import LanguageModel

Tensors = dict[str, Tensor]
Q = "model.layers.{}.self_attn.q_proj"


def changed(source: Path, folder: Path, change: Callable[[Tensors], Tensors]) -> Path:
    """A copy of a model folder with other tensors in its weight file."""
    shutil.copytree(source, folder)
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})
    return folder


def renamed(old: str, new: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {name.replace(old, new): value for name, value in tensors.items()}


def prefixed(prefix: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {prefix + name: value for name, value in tensors.items()}


def without(part: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {name: value for name, value in tensors.items() if part not in name}


def with_one(name: str, *shape: int) -> Callable[[Tensors], Tensors]:
    return lambda tensors: tensors | {name: torch.zeros(*shape)}


def with_a_fourth_block(tensors: Tensors) -> Tensors:
    copied = {
        name.replace("layers.1", "layers.3"): value.clone() for name, value in tensors.items() if "layers.1" in name
    }
    return tensors | copied


REFUSED = {
    "compiled": (prefixed("_orig_mod."), "lacks 30 tensors", "save model._orig_mod"),
    "data parallel": (prefixed("module."), "lacks 30 tensors", "save model.module"),
    "fsdp": (renamed("layers.", "layers._fsdp_wrapped_module."), "lacks 27 tensors", "full state dict"),
    "unknown wrapper": (prefixed("policy."), "names begin with 'policy.'", "inside that wrapper"),
    "peft's base": (
        renamed("q_proj.", "q_proj.base_layer."),
        f"lacks 3 tensors ({Q.format(0)}.weight",
        "merge_and_unload",
    ),
    "peft's model": (prefixed("base_model.model."), "lacks 30 tensors", "merge_and_unload"),
    "no unembedding": (without("lm_head"), "lacks 1 tensor (lm_head.weight)", "tie_word_embeddings"),
    "no block 1": (without("layers.1."), "lacks 9 tensors (model.layers.1.", "save the whole model"),
    "a block more": (with_a_fourth_block, "holds 9 tensors (model.layers.3.", "config.json"),
    "a bias more": (with_one(f"{Q.format(0)}.bias", 32), f"({Q.format(0)}.bias)", "config.json"),
    "a norm more": (with_one("model.layers.0.self_attn.q_norm.weight", 8), "q_norm", "config.json"),
    "an adapter beside": (
        with_one(f"{Q.format(0)}.lora_A.default.weight", 4, 32),
        "adapter beside",
        "merge_and_unload",
    ),
    "other rows": (with_one("lm_head.weight", 50, 32), "lm_head.weight has shape [50, 32]", "config.json"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_tensors_of_another_architecture_are_named_with_the_mend(
    kind: str, llama_family: dict[str, Path], tmp_path: Path
) -> None:
    change, found, mend = REFUSED[kind]
    folder = changed(llama_family["rl"], tmp_path / "rl", change)
    with pytest.raises(ModelError) as caught:
        ModelFamily.load({"base": llama_family["base"], "rl": folder})
    assert str(caught.value).startswith(f"Model rl: {folder}")
    assert found in str(caught.value)
    assert mend in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(ModelError) as again:  # the loader itself refuses, too, where the check could not be made
        _ = LanguageModel("rl", folder).hf
    assert found in str(again.value)


def test_tensors_that_no_module_uses_are_told(
    llama_family: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = changed(llama_family["rl"], tmp_path / "rl", with_one("v_head.summary.weight", 1, 32))
    family = ModelFamily.load({"base": llama_family["base"], "rl": folder})
    assert "v_head.summary.weight" in caplog.text
    ours, plain = family["rl"].hf.state_dict(), LanguageModel("rl", llama_family["rl"]).hf.state_dict()
    assert all(torch.equal(value, plain[name]) for name, value in ours.items())


def test_names_without_the_prefix_of_the_body_are_those_of_the_model(
    llama_family: dict[str, Path], tmp_path: Path
) -> None:
    folder = changed(llama_family["rl"], tmp_path / "rl", renamed("model.", ""))
    ours = ModelFamily.load({"rl": folder})["rl"].hf.state_dict()
    assert torch.equal(ours["model.norm.weight"], load_file(folder / "model.safetensors")["norm.weight"])


def test_tied_weights_are_missing_only_where_the_config_ties_them(
    llama_family: dict[str, Path], tmp_path: Path
) -> None:
    folder = changed(llama_family["rl"], tmp_path / "rl", without("lm_head"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    model = ModelFamily.load({"rl": folder})["rl"]
    assert model.architecture is not None
    assert model.architecture.tied
    assert model.hf.lm_head.weight is model.hf.model.embed_tokens.weight


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e6])
def test_weights_that_are_not_finite_are_refused_with_their_name(
    value: float, llama_family: dict[str, Path], tmp_path: Path
) -> None:
    folder = changed(
        llama_family["rl"], tmp_path / "rl", lambda found: found | {"model.norm.weight": torch.full((32,), value)}
    )
    dtype = "float16" if value == 1e6 else "float32"  # 1e6 is beyond the range of float16
    with pytest.raises(ModelError, match=rf"model.norm.weight that are not finite in {dtype}"):
        _ = LanguageModel("rl", folder, dtype=dtype).hf
    if value == 1e6:
        _ = LanguageModel("rl", folder, dtype="float32").hf


@pytest.fixture
def sharded(llama_family: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of a model in several weight files."""
    folder = tmp_path / "sharded"
    shutil.copytree(llama_family["rl"], folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="40KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    return folder


def refusal(folder: Path) -> str:
    with pytest.raises(ModelError) as caught:
        ModelFamily.load({"rl": folder})
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_whole_set_of_shards_is_loaded(sharded: Path, llama_family: dict[str, Path]) -> None:
    one, other = (LanguageModel("rl", path).hf.state_dict() for path in (sharded, llama_family["rl"]))
    assert all(torch.equal(value, one[name]) for name, value in other.items())


def test_incomplete_sets_of_shards_are_refused(sharded: Path) -> None:
    shards = sorted(sharded.glob("model-*.safetensors"))
    index = sharded / "model.safetensors.index.json"
    kept, text = shards[1].read_bytes(), index.read_text()
    shards[1].unlink()
    assert (
        f"lacks 1 of the {len(shards)} weight files that model.safetensors.index.json lists ({shards[1].name})"
        in refusal(sharded)
    )
    shards[1].write_bytes(kept[: len(kept) // 2])
    assert f"{shards[1].name} is not a readable safetensors file" in refusal(sharded)
    shards[1].write_bytes(shards[0].read_bytes())
    assert f"{shards[1].name} lacks" in refusal(sharded)
    shards[1].write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 10\n")
    assert "git lfs pull" in refusal(sharded)
    shards[1].write_bytes(kept)
    index.write_text("{}")
    assert "does not list the weight files" in refusal(sharded)
    index.write_text(text.replace(shards[1].name, f"../{shards[1].name}"))
    assert "does not list the weight files" in refusal(sharded)
    index.unlink()
    assert "without their index" in refusal(sharded)


def test_two_sets_of_weights_in_one_folder_are_refused(sharded: Path, llama_family: dict[str, Path]) -> None:
    shutil.copy(llama_family["base"] / "model.safetensors", sharded)
    assert "model.safetensors beside the shards of model.safetensors.index.json" in refusal(sharded)


@pytest.fixture
def pickled(llama_family: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of a model whose weights are in a ``.bin`` file."""
    folder = tmp_path / "pickled"
    shutil.copytree(llama_family["rl"], folder)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return folder


def test_bin_weights_are_loaded_and_checked(pickled: Path, llama_family: dict[str, Path]) -> None:
    loaded = ModelFamily.load({"rl": pickled})["rl"].hf.state_dict()
    expected = load_file(llama_family["rl"] / "model.safetensors")
    assert all(torch.equal(loaded[name], value) for name, value in expected.items())
    torch.save(prefixed("module.")(expected), pickled / "pytorch_model.bin")
    assert "save model.module" in refusal(pickled)
    torch.save(expected, pickled / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    assert ModelFamily.load({"rl": pickled})["rl"].n_rows == expected["lm_head.weight"].shape[0]


def test_bin_weights_that_hold_objects_are_never_unpickled(pickled: Path, tmp_path: Path) -> None:
    class Harmful:
        def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
            return Path.touch, (Path(tmp_path / "ran"),)  # pyright: ignore[reportReturnType]

    torch.save({"model.norm.weight": Harmful()}, pickled / "pytorch_model.bin")
    assert "cannot be read without running code from it" in refusal(pickled)
    assert not (tmp_path / "ran").exists()
