"""Models of the hub: which files are taken, and what is said when the hub does not provide them. Nothing reaches the network."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
from huggingface_hub import errors

from mechprobe.errors import ModelError
from mechprobe.models.hub import download, wanted_files
from mechprobe.models.load import LanguageModel

COMMIT = "c" * 40


@pytest.mark.parametrize(
    ("names", "taken"),
    [
        (["config.json", "model.safetensors", "pytorch_model.bin"], ["config.json", "model.safetensors"]),
        (["config.json", "pytorch_model-00001-of-00001.bin"], ["config.json", "pytorch_model-00001-of-00001.bin"]),
        (["model-00001-of-00002.safetensors", "consolidated.safetensors"], ["model-00001-of-00002.safetensors"]),
        (["config.json", "onnx/model.onnx", "original/model.safetensors", "rl.gguf", "README.md"], ["config.json"]),
        (["adapter_config.json", "adapter_model.bin"], ["adapter_config.json", "adapter_model.bin"]),
        (["tokenizer.model", "merges.txt", "chat_template.jinja", "more/a.jinja"], ["tokenizer.model", "merges.txt", "chat_template.jinja", "more/a.jinja"]),
    ],
)  # fmt: skip
def test_a_repository_is_not_downloaded_twice(names: list[str], taken: list[str]) -> None:
    assert sorted(wanted_files(names, trust_remote_code=False)) == sorted(taken)


def test_code_is_taken_only_where_it_is_trusted() -> None:
    names = ["config.json", "modeling_mine.py", "parts/layer.py", "model.safetensors"]
    assert not any(name.endswith(".py") for name in wanted_files(names, trust_remote_code=False))
    assert {"modeling_mine.py", "parts/layer.py"} <= set(wanted_files(names, trust_remote_code=True))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for the hub's two calls: a repository is a folder below this one."""
    import huggingface_hub

    place = tmp_path

    def info(_self: object, name: str, *, revision: str | None) -> SimpleNamespace:
        files = [SimpleNamespace(rfilename=str(file.relative_to(place / name))) for file in (place / name).rglob("*")]
        return SimpleNamespace(sha=COMMIT, siblings=files)

    def snapshot(name: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        assert revision == COMMIT, "listing and download are of one commit"
        target = place / "cache" / name / COMMIT
        target.mkdir(parents=True, exist_ok=True)
        for file in allow_patterns:
            shutil.copy(place / name / file, target)
        return str(target)

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", info)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    return place


def test_an_adapter_of_the_hub_is_found_with_its_base(hub: Path, llama_family: dict[str, Path]) -> None:
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    shutil.copytree(llama_family["base"], hub / "org" / "base")
    live = peft.get_peft_model(
        AutoModelForCausalLM.from_pretrained(llama_family["base"]),
        peft.LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM", init_lora_weights=False, revision="v1"),
    )
    live.peft_config["default"].base_model_name_or_path = "org/base"
    live.save_pretrained(hub / "org" / "adapter")
    model = LanguageModel("rl", "org/adapter@main")
    assert model.revision == COMMIT
    assert model.folder.root.path == hub / "cache" / "org" / "base" / COMMIT
    assert (
        model.fingerprint == f"{model.folder.root.fingerprint}+adapter:{COMMIT}:{model.fingerprint.rsplit(':', 1)[1]}"
    )
    assert model.architecture is not None
    assert model.tokenizer.eos_token == "<eos>"


def _http_error(kind: type[Exception]) -> Exception:
    return kind("no", response=httpx.Response(404, request=httpx.Request("GET", "https://hub.invalid")))  # pyright: ignore[reportCallIssue]


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (_http_error(errors.RepositoryNotFoundError), "the hub has no such model; check the name"),
        (_http_error(errors.GatedRepoError), "accept them on its page and run `hf auth login`"),
        (_http_error(errors.RevisionNotFoundError), "not this revision; check the branch, tag or commit"),
        (ConnectionError("no route"), "the hub did not provide it (ConnectionError); check the connection"),
    ],
)
def test_the_reason_of_a_failed_download_is_said(error: Exception, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **options: object) -> None:
        raise error

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", fail)
    with pytest.raises(ModelError) as caught:
        download("org/model", "v1", role="rl", trust_remote_code=False)
    assert str(caught.value).startswith("Model rl: org/model@v1 is not a local folder, ")
    assert words in str(caught.value)


def test_offline_mode_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match=r"is not in the cache, and the hub is switched off by HF_HUB_OFFLINE"):
        LanguageModel("rl", "org/absent-model")
