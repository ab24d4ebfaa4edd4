"""PEFT adapters: merged in memory, they are the live adapter and the merged copy on disk; misfits are refused early."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mechprobe.cli import main
from mechprobe.errors import DependencyError, ModelError
from mechprobe.interventions.hooks.attach import edited
from mechprobe.models.devices import DeviceMap
from mechprobe.models.family import ModelFamily
from mechprobe.models.generation import generate
from mechprobe.models.load import LanguageModel
from sae_training import Crosscoder, CrosscoderConfig
from tests.builders import SPLIT, build_family

peft = pytest.importorskip("peft")

IDS = torch.tensor([[1, 5, 9, 14, 30, 61], [1, 7, 7, 22, 3, 40]])
CLOSE = 1e-5


def tuned(base: Path, folder: Path, settings: Any, *, rows: int | None = None) -> Any:
    """Make an adapter with random weights and save it; returns the live model."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, attn_implementation="eager")
    if rows is not None:
        model.resize_token_embeddings(rows, mean_resizing=False)
    live = peft.get_peft_model(model, settings)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, value in live.named_parameters():
            if value.requires_grad:  # also those that start at zero, and those saved whole
                value.add_(torch.randn(value.shape, generator=generator) * (0.02 if "lora_magnitude" in name else 0.2))
    live.save_pretrained(folder)
    return live.eval()


def lora(**settings: Any) -> Any:
    return peft.LoraConfig(
        **{"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"], "task_type": "CAUSAL_LM"} | settings
    )


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


def tied(source: Path, folder: Path) -> Path:
    """A copy of a model whose unembedding is its embedding."""
    shutil.copytree(source, folder)
    file, config = folder / "model.safetensors", json.loads((folder / "config.json").read_text())
    save_file({k: v for k, v in load_file(file).items() if k != "lm_head.weight"}, file, metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    return folder


KINDS: dict[str, Callable[[], Any]] = {
    "plain": lora,
    "rslora": lambda: lora(use_rslora=True),
    "dora": lambda: lora(use_dora=True),
    "patterns": lambda: lora(rank_pattern={"layers.1.self_attn.q_proj": 2}, alpha_pattern={"layers.0.mlp.down_proj": 32}),
    "bias and saved modules": lambda: lora(modules_to_save=["embed_tokens", "lm_head"]),
    "norms": lambda: lora(modules_to_save=["norm"]),
    "head": lambda: lora(target_modules=["lm_head"]),
    "embedding": lambda: lora(target_modules=["embed_tokens"]),
    "ia3": lambda: peft.IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"], task_type="CAUSAL_LM"),
    "single tokens": lambda: lora(trainable_token_indices=[3, 5]),
}  # fmt: skip


@pytest.mark.parametrize("ties", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_is_the_live_model_and_its_merged_copy(
    kind: str, ties: bool, llama_family: dict[str, Path], tmp_path: Path
) -> None:
    base = tied(llama_family["base"], tmp_path / "base") if ties else llama_family["base"]
    live = tuned(base, tmp_path / "rl", KINDS[kind]())
    model = ModelFamily.load({"base": base, "rl": tmp_path / "rl"})["rl"]
    expected = logits(live)
    assert (expected - logits(LanguageModel("base", base).hf)).abs().max() > 0.01, "the adapter changes nothing"
    assert torch.allclose(logits(model.hf), expected, atol=CLOSE)
    model.hf.save_pretrained(tmp_path / "merged")
    assert torch.equal(logits(LanguageModel("rl", tmp_path / "merged").hf), logits(model.hf))
    assert not any("lora" in name or "base_layer" in name for name, _ in model.hf.named_modules())


@pytest.mark.parametrize("ties", [False, True], ids=["untied", "tied"])
def test_added_tokens_come_with_the_adapter(ties: bool, llama_family: dict[str, Path], tmp_path: Path) -> None:
    base = tied(llama_family["base"], tmp_path / "base") if ties else llama_family["base"]
    n_rows = LanguageModel("base", base).n_rows
    saved = ["embed_tokens"] if ties else ["embed_tokens", "lm_head"]
    live = tuned(base, tmp_path / "rl", lora(modules_to_save=saved, ensure_weight_tying=ties), rows=n_rows + 2)
    family = ModelFamily.load({"base": base, "rl": tmp_path / "rl"})
    assert (family["base"].n_rows, family["rl"].n_rows, family.n_token_ids) == (n_rows, n_rows + 2, n_rows)
    assert torch.allclose(logits(family["rl"].hf), logits(live), atol=CLOSE)


@pytest.mark.parametrize("device_map", ["auto", SPLIT], ids=["auto", "split"])
def test_a_device_map_spreads_the_merged_model(
    device_map: DeviceMap, llama_family: dict[str, Path], tmp_path: Path
) -> None:
    live = tuned(llama_family["base"], tmp_path / "rl", lora())
    model = ModelFamily.load({"rl": tmp_path / "rl"}, device_map=device_map)["rl"]
    assert torch.allclose(logits(model.hf), logits(live), atol=CLOSE)
    if device_map == "auto":  # TransformerBridge takes no modules on disk
        assert torch.allclose(model.bridge(IDS), logits(live), atol=CLOSE)


def test_an_adapter_on_an_adapter_is_merged_in_order(llama_family: dict[str, Path], tmp_path: Path) -> None:
    tuned(llama_family["base"], tmp_path / "sft", lora())
    sft = LanguageModel("sft", tmp_path / "sft")
    sft.hf.save_pretrained(tmp_path / "merged")
    live = tuned(tmp_path / "merged", tmp_path / "rl", lora(r=2))
    write_base(tmp_path / "rl", str(tmp_path / "sft"))
    model = LanguageModel("rl", tmp_path / "rl")
    assert torch.allclose(logits(model.hf), logits(live), atol=CLOSE)
    assert model.fingerprint.count("+adapter:") == 2
    write_base(tmp_path / "sft", str(tmp_path / "rl"))
    with pytest.raises(ModelError, match="without end"):
        LanguageModel("rl", tmp_path / "rl")


def write_base(folder: Path, base: str, **settings: Any) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": base} | settings))


def test_the_fingerprint_holds_base_and_adapter_but_not_where_they_are(
    llama_family: dict[str, Path], tmp_path: Path
) -> None:
    tuned(llama_family["base"], tmp_path / "rl", lora())
    shutil.copytree(llama_family["base"], tmp_path / "moved")
    base, first = (
        LanguageModel("base", llama_family["base"]).fingerprint,
        LanguageModel("rl", tmp_path / "rl").fingerprint,
    )
    assert first.startswith(f"{base}+adapter:")
    write_base(tmp_path / "rl", "../moved")  # relative to the adapter
    assert LanguageModel("rl", tmp_path / "rl").fingerprint == first
    write_base(tmp_path / "rl", str(llama_family["sft"]))
    assert LanguageModel("rl", tmp_path / "rl").fingerprint.split("+")[1] == first.split("+")[1]
    assert LanguageModel("rl", tmp_path / "rl").fingerprint != first
    write_base(tmp_path / "rl", str(llama_family["base"]), lora_alpha=9)
    assert LanguageModel("rl", tmp_path / "rl").fingerprint.split("+")[1] != first.split("+")[1]


def test_another_base_than_the_familys_is_told(
    llama_family: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tuned(llama_family["base"], tmp_path / "rl", lora())
    ModelFamily.load({"base": llama_family["base"], "rl": tmp_path / "rl"})
    assert not caplog.text
    ModelFamily.load({"base": llama_family["sft"], "rl": tmp_path / "rl"})
    assert f"rl is an adapter of {llama_family['base']}, which is not a model of the family" in caplog.text


def refusal(folder: Path) -> str:
    with pytest.raises(ModelError) as caught:
        ModelFamily.load({"rl": folder})
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(("host", "donor"), [("base", "rl"), ("rl", "base")])
def test_a_transplant_reads_an_adapter_as_its_merged_copy(
    llama_family: dict[str, Path], tmp_path: Path, host: str, donor: str
) -> None:
    tuned(llama_family["base"], tmp_path / "rl", lora())
    live = ModelFamily.load({"base": llama_family["base"], "rl": tmp_path / "rl"})
    live["rl"].hf.save_pretrained(tmp_path / "merged")
    live.tokenizer.save_pretrained(tmp_path / "merged")
    copy = ModelFamily.load({"base": llama_family["base"], "rl": tmp_path / "merged"})
    torch.manual_seed(0)
    config = CrosscoderConfig(n_models=2, d_model=live["rl"].d_model, d_sae=32, k=8, model_names=("base", "rl"))
    crosscoder, found = Crosscoder(config), []
    for family in (live, copy):
        with edited(
            family[host], crosscoder, range(16), "transplant", site="resid_post.1", donor=donor, siblings=family
        ) as model:
            texts = generate(model, family.tokenizer, ["3+4=", "12+5="], max_new_tokens=8)
            found.append(([text.token_ids for text in texts], logits(model)))
    assert found[0][0] == found[1][0]
    torch.testing.assert_close(found[0][1], found[1][1], rtol=0, atol=CLOSE)


def test_an_adapter_for_another_task_is_refused(llama_family: dict[str, Path], tmp_path: Path) -> None:
    tuned(llama_family["base"], tmp_path / "rl", lora())
    file = tmp_path / "rl" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"task_type": "SEQ_CLS"}))
    assert "an adapter for the task SEQ_CLS, not for a causal language model" in refusal(tmp_path / "rl")


def test_an_adapter_beside_the_weights_of_a_model_is_refused(llama_family: dict[str, Path], tmp_path: Path) -> None:
    tuned(llama_family["base"], tmp_path / "rl", lora())
    shutil.copytree(llama_family["base"], tmp_path / "rl", dirs_exist_ok=True)
    text = refusal(tmp_path / "rl")
    assert "holds an adapter (adapter_config.json) beside the weights of a whole model" in text
    assert "merge_and_unload" in text


def test_adapters_that_do_not_fit_are_refused_before_weights_are_read(
    llama_family: dict[str, Path], neox_family: dict[str, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "rl"
    tuned(llama_family["base"], folder, lora())
    weights = folder / "adapter_model.safetensors"
    kept, wide = load_file(weights), build_family(tmp_path / "wide", names=("base",), d_model=48)
    for base, words in ((neox_family["base"], "Target modules"), (wide["base"], "another shape of")):
        write_base(folder, str(base))
        assert words in refusal(folder)
    write_base(folder, str(tmp_path / "gone"))
    assert f"its base cannot be used: {tmp_path / 'gone'} does not exist" in refusal(folder)
    write_base(folder, "")
    assert "set base_model_name_or_path" in refusal(folder)
    write_base(folder, str(llama_family["base"]))
    first = next(iter(kept))
    save_file({name: value for name, value in kept.items() if name != first}, weights)
    assert f"lacks {first}" in refusal(folder)
    save_file({name.replace("layers.0.", "layers.7."): value for name, value in kept.items()}, weights)
    assert "lacks " in refusal(folder)
    save_file(kept | {"base_model.model.model.layers.0.self_attn.o_proj.lora_A.weight": torch.zeros(4, 32)}, weights)
    assert "has no place for base_model.model.model.layers.0.self_attn.o_proj.lora_A.weight" in refusal(folder)
    weights.write_bytes(b"x")
    assert "not a readable safetensors file" in refusal(folder)
    weights.unlink()
    assert "has adapter_config.json but neither adapter_model.safetensors nor" in refusal(folder)
    (folder / "adapter_config.json").write_text("[]")
    assert "is not a JSON object" in refusal(folder) or "neither" in refusal(folder)


def test_adapters_that_cannot_be_merged_are_refused_by_name(llama_family: dict[str, Path], tmp_path: Path) -> None:
    settings = peft.PromptTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM")
    tuned(llama_family["base"], tmp_path / "rl", settings)
    assert "PROMPT_TUNING adapter, which adds tokens or layers and cannot be merged" in refusal(tmp_path / "rl")


def test_without_peft_the_sentence_says_what_to_install(
    llama_family: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tuned(llama_family["base"], tmp_path / "rl", lora())
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DependencyError, match=r"install mechprobe\[adapters\], or merge the adapter"):
        ModelFamily.load({"rl": tmp_path / "rl"})


TASKS = "".join(f'{{"task": "sums", "id": "s{i}", "prompt": "{i}+{i}=", "answer": "{2 * i}"}}\n' for i in range(8))
PROMPTS = "".join(f'{{"prompt": "hello {i}"}}\n' for i in range(12))


def test_cache_and_evaluate_on_an_adapter_are_those_on_its_merged_copy(
    llama_family: dict[str, Path], tmp_path: Path
) -> None:
    from mechprobe.cache.store.activation_store import ActivationStore
    from mechprobe.stage_folder import read_manifest

    base, adapter = llama_family["base"], tmp_path / "adapter"
    live = tuned(base, adapter, lora())
    live.merge_and_unload().save_pretrained(tmp_path / "merged")
    for file in base.glob("tokenizer*"):
        shutil.copy(file, tmp_path / "merged")
    (tmp_path / "tasks.jsonl").write_text(TASKS)
    (tmp_path / "prompts.jsonl").write_text(PROMPTS)
    rows, outcomes, short = {}, {}, ["--set", "tasks.max_new_tokens=8"]
    for kind in ("adapter", "merged"):
        models = ["--models", f"base={base}", f"rl={tmp_path / kind}"]
        out = tmp_path / f"{kind}-cache"
        more = ["--prompts", str(tmp_path / "prompts.jsonl"), "--sites", "resid_post.1,resid_post.2", "--out", str(out)]
        assert (
            main(["cache", *models, *more, "--set", 'cache.responses=["rl@0.0"]', "--set", "cache.max_new_tokens=8"])
            == 0
        )
        rows[kind] = ActivationStore.open(out)
        out = tmp_path / f"{kind}-evals"
        assert main(["evaluate", *models, "--tasks", str(tmp_path / "tasks.jsonl"), "--out", str(out), *short]) == 0
        outcomes[kind] = [json.loads(line) for line in (out / "outcomes.jsonl").read_text().splitlines()]
        manifest = read_manifest(out)
        expected = ModelFamily.load({"rl": tmp_path / kind})["rl"].fingerprint
        assert manifest["models"]["rl"] == expected
        assert ("+adapter:" in expected) == (kind == "adapter")
    assert [row["response"] for row in outcomes["adapter"]] == [row["response"] for row in outcomes["merged"]]
    assert rows["adapter"].stream_hash == rows["merged"].stream_hash, "the greedy responses differ"
    for site in ("resid_post.1", "resid_post.2"):
        one, other = (store.rows(0, store.n_rows, site) for store in rows.values())
        assert torch.allclose(one, other, atol=CLOSE)


def test_interventions_see_the_same_model(llama_family: dict[str, Path], tmp_path: Path) -> None:
    """An edit of the residual gives the same logits and tokens on the adapter and on the live model."""
    from mechprobe.models.blocks import splice
    from mechprobe.types import Site

    live = tuned(llama_family["base"], tmp_path / "rl", lora())
    model = LanguageModel("rl", tmp_path / "rl")
    found, texts = [], []
    for hf in (model.hf, live.get_base_model()):
        with splice(hf, Site(1), lambda resid: resid * 0.5 + 0.1):
            found.append(logits(hf))
            texts.append(generate(hf, model.tokenizer, ["abc", "1+2="], max_new_tokens=8))
    assert torch.allclose(*found, atol=CLOSE)
    assert texts[0] == texts[1]
