"""Devices and device maps, and models of a hub revision."""

import shutil
from pathlib import Path

import pytest
import torch

from mechprobe.cli import main
from mechprobe.errors import ModelError
from mechprobe.models.devices import DeviceMap
from mechprobe.models.family import ModelFamily
from mechprobe.models.generation import generate, left_pad
from mechprobe.models.residuals import residuals_plain
from mechprobe.types import Site
from tests.builders import SPLIT

COMMITS = ("a" * 40, "b" * 40)


@pytest.mark.parametrize("device_map", ["auto", {"": "cpu"}, SPLIT], ids=["auto", "one", "split"])
def test_a_spread_model_gives_the_same_bits_and_generates(llama_family: dict[str, Path], device_map: DeviceMap) -> None:
    path = {"base": llama_family["base"]}
    whole, spread = ModelFamily.load(path)["base"], ModelFamily.load(path, device_map=device_map)["base"]
    ids, mask = left_pad([whole.tokenizer(text).input_ids for text in ("abc12", "x")], 0, "cpu")
    if device_map == SPLIT:
        assert any(parameter.device.type == "meta" for parameter in spread.hf.parameters()), "no module is on disk"
    sites = [Site(0), Site(1), Site(2)]
    expected, _ = residuals_plain(whole, ids, mask, sites), spread.hf
    found = residuals_plain(spread, ids.to(spread.input_device), mask.to(spread.input_device), sites)
    for site in sites:
        assert torch.equal(found[site], expected[site])
    texts = [generate(model.hf, model.tokenizer, ["abc", "d"], max_new_tokens=4) for model in (whole, spread)]
    assert texts[0] == texts[1]


@pytest.mark.parametrize("device_map", ["nonsense", {"model.norm": "nonsense"}, {"": "meta"}, {"": 99}])
def test_an_unusable_device_map_is_an_error_before_anything_is_loaded(
    llama_family: dict[str, Path], device_map: DeviceMap
) -> None:
    with pytest.raises(ModelError, match=r"auto.*balanced.*sequential") as caught:
        ModelFamily.load({"base": llama_family["base"]}, device_map=device_map)
    assert str(device_map if isinstance(device_map, str) else next(iter(device_map.values()))) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_weights_that_cannot_be_loaded_are_an_error_that_names_model_and_folder(
    llama_family: dict[str, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(llama_family["base"], folder, ignore=shutil.ignore_patterns("*.safetensors"))
    (folder / "pytorch_model.bin").write_bytes(b"not a checkpoint")
    with pytest.raises(ModelError, match=r"Model base.*damaged") as caught:
        ModelFamily.load({"base": folder})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("device", ["nonsense", "meta", "cuda:x", "cuda:99"])
def test_an_unusable_device_is_an_error_in_our_words(llama_family: dict[str, Path], device: str) -> None:
    with pytest.raises(ModelError, match=f"'{device}'") as caught:
        ModelFamily.load({"base": llama_family["base"]}, device=device)
    assert "vulkan" not in str(caught.value), "torch's list of all device types is of no use to a user"


@pytest.fixture
def hub(llama_family: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub cache that holds two revisions of org/tiny with equal weights."""
    root = tmp_path / "hub"
    model = root / "models--org--tiny"
    for commit in COMMITS:
        shutil.copytree(llama_family["base"], model / "snapshots" / commit)
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text(COMMITS[0])
    (model / "refs" / "v2").write_text(COMMITS[1])
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(root))
    return root


def test_the_revision_is_part_of_the_fingerprint(hub: Path, llama_family: dict[str, Path]) -> None:
    local = ModelFamily.load({"base": llama_family["base"]})["base"]
    names = ["org/tiny", "org/tiny@main", "org/tiny@v2", f"org/tiny@{COMMITS[1]}"]
    found = [ModelFamily.load({"base": name})["base"] for name in names]
    assert [model.revision for model in found] == [COMMITS[0], COMMITS[0], COMMITS[1], COMMITS[1]]
    assert [model.fingerprint for model in found] == [f"{model.revision}:{local.fingerprint}" for model in found]
    assert local.revision is None
    for name in ("org/tiny@none", "org/tiny@"):
        with pytest.raises(ModelError, match=name):
            ModelFamily.load({"base": name})


def test_another_revision_is_an_error_with_both_fingerprints(
    hub: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "abc"}\n')
    command = ["cache", "--prompts", str(prompts), "--sites", "resid_post.0", "--out", str(tmp_path / "cache")]
    assert main([*command, "--models", "base=org/tiny"]) == 0
    capsys.readouterr()
    assert main([*command, "--models", "base=org/tiny@v2"]) == 2
    stderr = capsys.readouterr().err
    assert COMMITS[0] in stderr
    assert COMMITS[1] in stderr
    assert stderr.count("\n") == 1


def test_changed_weights_are_an_error_with_both_fingerprints(
    llama_family: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts, model = tmp_path / "prompts.jsonl", tmp_path / "model"
    prompts.write_text('{"prompt": "abc"}\n')
    command = ["cache", "--prompts", str(prompts), "--sites", "resid_post.0", "--out", str(tmp_path / "cache")]
    command += ["--models", f"base={model}"]
    shutil.copytree(llama_family["base"], model)
    first = ModelFamily.load({"base": model})["base"].fingerprint
    assert main(command) == 0
    shutil.rmtree(model)
    shutil.copytree(llama_family["rl"], model)
    second = ModelFamily.load({"base": model})["base"].fingerprint
    capsys.readouterr()
    assert main(command) == 2
    stderr = capsys.readouterr().err
    assert first[:50] in stderr
    assert second[:50] in stderr
