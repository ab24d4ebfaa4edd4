"""In which dtype models run, what is recorded of it, and TF32."""

import os
from pathlib import Path

import pytest
import torch

from mechprobe.errors import ModelError
from mechprobe.models import precision
from mechprobe.models.family import ModelFamily
from mechprobe.models.load import LanguageModel
from mechprobe.run_config import RunConfig
from tests.zoo import tiny_model


def saved(folder: Path, dtype: torch.dtype, tokenizer: Path) -> Path:
    from transformers import AutoTokenizer

    tiny_model("llama").to(dtype).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tokenizer).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_auto_is_the_dtype_of_the_files_on_a_gpu_and_float32_on_a_cpu(
    tmp_path: Path, llama_family: dict[str, Path], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = saved(tmp_path / "model", dtype, llama_family["base"])
    assert LanguageModel("base", folder).dtype == "float32"
    monkeypatch.setattr("mechprobe.models.load.on_gpu", lambda *_: True)
    own = str(dtype).removeprefix("torch.")
    assert LanguageModel("base", folder).dtype == (own if own != "float64" else "float32")
    assert LanguageModel("base", folder, dtype="float16").dtype == "float16"


def test_a_gpu_run_and_a_cpu_run_have_other_identities(
    tmp_path: Path, llama_family: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    models = {"base": saved(tmp_path / "model", torch.bfloat16, llama_family["base"])}
    assert ModelFamily.load(models).identity == {}
    monkeypatch.setattr("mechprobe.models.load.on_gpu", lambda *_: True)
    family = ModelFamily.load(models)
    assert family.identity == {"model_dtypes": {"base": "bfloat16"}}
    assert family.runs_as == "Models run in bfloat16 on cpu, eager attention."


def test_models_of_several_dtypes_are_noted(
    tmp_path: Path, llama_family: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds = {"base": torch.bfloat16, "rl": torch.float32}
    models = {name: saved(tmp_path / name, dtype, llama_family["base"]) for name, dtype in kinds.items()}
    monkeypatch.setattr("mechprobe.models.load.on_gpu", lambda *_: True)
    family = ModelFamily.load(models)
    assert "Models run in the dtypes of their files, base in bfloat16, rl in float32" in family.notes[-1]
    assert family.runs_as.startswith("Models run base in bfloat16, rl in float32 on cpu")


@pytest.mark.parametrize(
    ("device", "device_map", "expected"),
    [
        ("cpu", None, False),
        ("cuda:1", None, True),
        ("cpu", {"model": 0, "lm_head": "cpu"}, True),
        ("cpu", {"model": "cpu", "lm_head": "disk"}, False),
        ("cpu", "auto", torch.cuda.is_available()),
        ("cpu", "cuda", True),
    ],
)
def test_where_a_model_is(device: str, device_map: str | dict[str, int | str] | None, expected: bool) -> None:
    assert precision.on_gpu(device, device_map) is expected


def test_an_unknown_dtype_is_refused(llama_family: dict[str, Path]) -> None:
    with pytest.raises(ModelError, match=r"dtype 'half' is unknown; give auto, float32, bfloat16, float16\."):
        LanguageModel("base", llama_family["base"], dtype="half")


def test_the_option_is_the_setting() -> None:
    assert RunConfig.build(None, dtype="bfloat16").dtype == "bfloat16"
    assert RunConfig.build(None).dtype == "auto"


def test_tf32_holds_in_forward_calls_only(llama_family: dict[str, Path]) -> None:
    model, seen = LanguageModel("base", llama_family["base"], tf32=True).hf, []
    assert not LanguageModel("base", llama_family["base"], tf32=True).tf32  # nothing to use it for on a CPU
    before = torch.backends.cuda.matmul.fp32_precision
    precision.allow_tf32(model)
    stop = model.lm_head.register_forward_hook(lambda *_: seen.append(torch.backends.cuda.matmul.fp32_precision))
    model(input_ids=torch.tensor([[5, 6]]))
    assert seen == ["tf32"]
    assert torch.backends.cuda.matmul.fp32_precision == before
    stop.remove()
    model.lm_head.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model(input_ids=torch.tensor([[5, 6]]))
    assert torch.backends.cuda.matmul.fp32_precision == before


def test_bfloat16_is_guarded_where_the_cpu_announces_amx(monkeypatch: pytest.MonkeyPatch) -> None:
    flags = "flags: avx512_bf16 amx_bf16"
    monkeypatch.setattr(precision.Path, "read_text", lambda *_args, **_options: flags)
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    precision.guard_bfloat16.__wrapped__()
    assert os.environ["ONEDNN_MAX_CPU_ISA"] == "AVX512_CORE_BF16"
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "ALL")
    precision.guard_bfloat16.__wrapped__()
    assert os.environ["ONEDNN_MAX_CPU_ISA"] == "ALL"
