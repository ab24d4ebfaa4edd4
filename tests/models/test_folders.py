"""Folders and files of other programs are answered with what makes them loadable."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file, save_file

from mechprobe.errors import ModelError
from mechprobe.models.family import ModelFamily
from mechprobe.models.load import LanguageModel


def refusal(path: Path) -> str:
    with pytest.raises(ModelError) as caught:
        ModelFamily.load({"rl": path})
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("Model rl: ")
    return str(caught.value)


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"x")
    return folder


FOREIGN: dict[str, tuple[tuple[str, ...], str]] = {
    "verl": (("model_world_size_2_rank_0.pt", "model_world_size_2_rank_1.pt", "config.json"), "verl.model_merger merge --backend fsdp --local_dir {}"),
    "verl step": (("actor/model_world_size_1_rank_0.pt", "data.pt"), "--backend fsdp --local_dir {}/actor "),
    "zero": (("zero_to_fp32.py", "latest", "global_step5/mp_rank_00_model_states.pt", "config.json"), "python {0}/zero_to_fp32.py {0} {0}-merged"),
    "distributed": ((".metadata", "__0_0.distcp", "config.json"), "accelerate merge-weights {} {}-merged"),
    "trainer's fsdp": (("pytorch_model_fsdp_0/.metadata", "pytorch_model_fsdp_0/__0_0.distcp"), "accelerate merge-weights {}/pytorch_model_fsdp_0 "),
    "megatron": (("latest_checkpointed_iteration.txt", "iter_0000010/mp_rank_00/model_optim_rng.pt"), "Megatron-Bridge"),
    "megatron distributed": (("dist_ckpt/common.pt", "dist_ckpt/.metadata", "dist_ckpt/__0_0.distcp"), "--backend megatron"),
    "gguf": (("rl-Q4_K_M.gguf", "config.json"), "converted from"),
    "publisher's": (("consolidated.00.pth", "params.json"), "Hugging Face format"),
    "nemo": (("model_weights/x", "model_config.yaml"), "NeMo"),
    "flax": (("flax_model.msgpack", "config.json"), "model.safetensors"),
    "trainer state": (("optimizer.pt", "trainer_state.json", "config.json"), "save_model"),
    "nothing": (("notes.txt",), "has no config.json"),
    "no weights": (("config.json",), "has no weights"),
    "odd name": (("weights.safetensors", "config.json"), "rename the file model.safetensors"),
    "variant": (("model.fp16.safetensors", "config.json"), "rename the file model.safetensors"),
    "adapter without config": (("adapter_model.safetensors",), "without adapter_config.json"),
}  # fmt: skip


@pytest.mark.parametrize("kind", FOREIGN)
def test_folders_of_other_programs_are_answered_with_the_mend(kind: str, tmp_path: Path) -> None:
    names, mend = FOREIGN[kind]
    folder = touch(tmp_path / "rl", *names)
    assert mend.format(folder, folder) in refusal(folder)


def test_commands_can_be_pasted(tmp_path: Path) -> None:
    verl = touch(tmp_path / "my run", "model_world_size_2_rank_0.pt", "config.json")
    assert f"--local_dir '{verl}' --target_dir '{verl}-merged'" in refusal(verl)
    zero = touch(tmp_path / "zero", "global_step5/mp_rank_00_model_states.pt", "config.json")
    assert f"python zero_to_fp32.py {zero} {zero}-merged --safe_serialization` (a file of deepspeed.utils)" in refusal(
        zero
    )


def test_parts_of_the_folders_of_trainers_name_the_whole(tmp_path: Path) -> None:
    step = touch(tmp_path / "global_step_5" / "actor", "model_world_size_1_rank_0.pt", "huggingface/config.json")
    assert f"--local_dir {step} " in refusal(step / "huggingface")
    zero = touch(tmp_path / "zero", "zero_to_fp32.py", "global_step5/zero_pp_rank_0_mp_rank_00_model_states.pt")
    assert f"python {zero}/zero_to_fp32.py {zero} " in refusal(zero / "global_step5")


def test_a_folder_of_checkpoints_names_the_last_one(llama_family: dict[str, Path], tmp_path: Path) -> None:
    for step in (90, 100, 1000):
        shutil.copytree(llama_family["rl"], tmp_path / "run" / f"checkpoint-{step}")
    touch(tmp_path / "run", "trainer_log.jsonl")
    text = refusal(tmp_path / "run")
    assert f"such as {tmp_path / 'run' / 'checkpoint-1000'}." in text
    assert "checkpoint-100, checkpoint-90" in text


def test_files_are_recognised(llama_family: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "rl.gguf").write_bytes(b"GGUF\x03\x00\x00\x00")
    assert "rl.gguf is a GGUF file" in refusal(tmp_path / "rl.gguf")
    assert "give the folder that holds it" in refusal(llama_family["rl"] / "model.safetensors")


def test_the_command_for_distributed_checkpoints_makes_a_folder_that_loads(
    llama_family: dict[str, Path], tmp_path: Path
) -> None:
    """What the message of a distributed checkpoint says is done here."""
    from accelerate.utils import merge_fsdp_weights

    source, folder = load_file(llama_family["rl"] / "model.safetensors"), tmp_path / "shards"
    dcp.save(source, checkpoint_id=folder, no_dist=True)
    assert "accelerate merge-weights" in refusal(folder)
    merge_fsdp_weights(str(folder), str(tmp_path / "merged"))
    for file in llama_family["rl"].iterdir():
        if file.suffix != ".safetensors":
            shutil.copy(file, tmp_path / "merged")
    loaded = ModelFamily.load({"rl": tmp_path / "merged"})["rl"].hf.state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in source.items())


def with_config(source: Path, folder: Path, **settings: Any) -> Path:
    shutil.copytree(source, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | settings))
    return folder


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "quantized with gptq"),
        ({"quantization_config": {"quant_method": "awq", "bits": 4}}, "quantized with awq"),
        ({"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}, "quantized with bitsandbytes"),
        ({"quantization_config": {"quant_method": "fp8"}}, "quantized with fp8"),
        ({"quantization": {"bits": 4, "group_size": 64}}, "quantized with MLX"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "LlamaForSequenceClassification, which does not predict"),
        ({"model_type": "bert", "architectures": ["BertLMHeadModel"]}, "not a causal language model"),
        ({"model_type": "t5", "is_encoder_decoder": True, "architectures": ["T5ForConditionalGeneration"]}, "is an encoder-decoder (t5)"),
        ({"model_type": "vit", "architectures": ["ViTModel"]}, "not a causal language model that transformers loads (vit)"),
        ({"model_type": "nonsense", "architectures": ["X"]}, "config.json cannot be used"),
    ],
)  # fmt: skip
def test_models_that_are_not_plain_causal_ones_are_refused_by_name(
    settings: dict[str, Any], words: str, llama_family: dict[str, Path], tmp_path: Path
) -> None:
    assert words in refusal(with_config(llama_family["rl"], tmp_path / "rl", **settings))


def test_own_code_needs_permission_and_is_part_of_the_fingerprint(
    llama_family: dict[str, Path], tmp_path: Path
) -> None:
    folder = with_config(
        llama_family["rl"], tmp_path / "own", model_type="mine", architectures=["MineForCausalLM"],
        auto_map={"AutoConfig": "configuration_mine.MineConfig", "AutoModelForCausalLM": "modeling_mine.MineForCausalLM"},
    )  # fmt: skip
    (folder / "configuration_mine.py").write_text(
        "from transformers import LlamaConfig\nclass MineConfig(LlamaConfig):\n    model_type = 'mine'\n"
    )
    code = (
        "from transformers import LlamaForCausalLM\nfrom .configuration_mine import MineConfig\n"
        "class MineForCausalLM(LlamaForCausalLM):\n    config_class = MineConfig\n"
    )
    (folder / "modeling_mine.py").write_text(code)
    assert "give --trust-remote-code if you trust it" in refusal(folder)
    model = ModelFamily.load({"rl": folder}, trust_remote_code=True)["rl"]
    plain, fingerprint = LanguageModel("rl", llama_family["rl"]), model.fingerprint
    assert all(torch.equal(value, plain.hf.state_dict()[name]) for name, value in model.hf.state_dict().items())
    (folder / "modeling_mine.py").write_text(code + "\n")
    assert LanguageModel("rl", folder, trust_remote_code=True).fingerprint != fingerprint


def test_other_weight_files_beside_the_model_are_not_loaded(llama_family: dict[str, Path], tmp_path: Path) -> None:
    """Publishers put their own format beside that of transformers, and trainers their state."""
    folder = tmp_path / "rl"
    shutil.copytree(llama_family["rl"], folder)
    save_file({"x": torch.zeros(1)}, folder / "consolidated.safetensors")
    touch(folder, "optimizer.pt", "trainer_state.json", "rl.gguf", "pytorch_model.bin")
    assert ModelFamily.load({"rl": folder}).n_layers == 3
