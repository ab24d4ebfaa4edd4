"""Models spread over devices, and models of a hub revision."""

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

SPLIT: DeviceMap = {
    "model.embed_tokens": "cpu",
    "model.rotary_emb": "cpu",
    "model.layers.0": "cpu",
    "model.layers.1": "disk",
    "model.layers.2": "disk",
    "model.norm": "cpu",
    "lm_head": "cpu",
}
COMMITS = ("a" * 40, "b" * 40)


@pytest.mark.parametrize("device_map", ["auto", {"": "cpu"}, SPLIT], ids=["auto", "one", "split"])
def test_a_spread_model_gives_the_same_bits_and_generates(llama_family: dict[str, Path], device_map: DeviceMap) -> None:
    path = {"base": llama_family["base"]}
    whole, spread = ModelFamily.load(path)["base"], ModelFamily.load(path, device_map=device_map)["base"]
    ids, mask = left_pad([whole.tokenizer(text).input_ids for text in ("abc12", "x")], 0, "cpu")
    if device_map == SPLIT:
        assert any(parameter.device.type == "meta" for parameter in spread.hf.parameters()), "nothing is on disk"
    sites = [Site(0), Site(1), Site(2)]
    expected, _ = residuals_plain(whole, ids, mask, sites), spread.hf
    found = residuals_plain(spread, ids.to(spread.input_device), mask.to(spread.input_device), sites)
    for site in sites:
        assert torch.equal(found[site], expected[site])
    texts = [generate(model.hf, model.tokenizer, ["abc", "d"], max_new_tokens=4) for model in (whole, spread)]
    assert texts[0] == texts[1]


def test_a_device_map_that_cannot_be_used_is_one_sentence(llama_family: dict[str, Path]) -> None:
    model = ModelFamily.load({"base": llama_family["base"]}, device_map="nowhere")["base"]
    with pytest.raises(ModelError, match="cannot be loaded") as caught:
        _ = model.hf
    assert "\n" not in str(caught.value)


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


def test_another_revision_is_refused_with_both_fingerprints(
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


def test_changed_weights_are_refused_with_both_fingerprints(
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
