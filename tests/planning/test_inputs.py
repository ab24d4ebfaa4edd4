"""What a plan is made from: calibration files, models of other kinds, cards, counts, and the chosen models of a dictionary."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, AutoTokenizer, LlamaConfig

from mechprobe.cli import main
from mechprobe.data.encoding import PromptEncoder
from mechprobe.data.prompts import Prompt
from mechprobe.environment import require
from mechprobe.errors import ConfigError, ModelError
from mechprobe.launcher import SEVERAL
from mechprobe.planning import plan as planning
from mechprobe.planning.beside import SIDE
from mechprobe.planning.cards import CARDS, UNVERIFIED
from mechprobe.planning.machine import device_name, rates_here
from mechprobe.planning.plan import plan_config
from mechprobe.planning.rates import Rates
from mechprobe.planning.scene import Scene
from mechprobe.planning.shapes import ModelShape
from mechprobe.planning.stages import STAGES
from mechprobe.planning.work import Assumed, count_work
from mechprobe.run_config import RunConfig
from tests.builders import build_tokenizer

ROOT = Path(__file__).parents[2]
LLAMA = ROOT / "artifacts" / "real_size" / "llama3_1_8b.config.json"
SETTINGS = ROOT / "artifacts" / "real_size" / "llama3_1_8b.toml"
H100 = Rates.of_card(CARDS["H100"])


@pytest.fixture
def calibration(tmp_path: Path) -> Path:
    """A calibration of this machine."""
    rates = replace(H100, device="cpu", source="measured", name=device_name("cpu"), context=0, made={})
    rates.save(tmp_path / "c.json")
    return tmp_path / "c.json"


NUMBERS = ("training", "sparse", "bandwidth", "write", "read", "copy", "memory")
WRONG: tuple[Any, ...] = ({}, [], None, 0, -1.0, float("nan"), float("inf"), 1e300, "80GB", True)
FAULTS: list[tuple[str, Any]] = [
    *((name, value) for name in NUMBERS for value in WRONG),
    *((name, value) for name in ("selection", "call_s", "step_s", "context") for value in WRONG if value != 0),
    *((name, value) for name in ("start_s", "held", "units", "blocks", "made") for value in ([], None, 3, "x")),
    *((name, {}) for name in ("start_s", "held", "units", "blocks")),
    ("units", {"token": "fast"}),
    ("start_s", {"program": 1, "models": float("nan")}),
    ("held", {"program": -5, "models": 1}),
    *(
        ("blocks", value)
        for value in (
            {"float32": {}},
            {"bfloat16": {"128": [1e9, 1e9]}},
            {"float32": {"wide": [1e9, 1e9]}},
            {"float32": {"0": [1e9, 1e9]}},
            {"float32": {"128": [1e9]}},
            {"float32": {"128": [1e9, 0]}},
            {"float32": {"128": ["1e9", 1e9]}},
        )
    ),
    ("device", "tpu"),
    ("source", "rumour"),
    ("name", 7),
    ("format", 1),
    ("more", 1),
]


def test_a_calibration_with_wrong_values_is_refused_in_one_sentence(calibration: Path) -> None:
    right = json.loads(calibration.read_text())
    assert Rates.load(calibration).name == device_name("cpu")
    for name, value in FAULTS:
        calibration.write_text(json.dumps({**right, name: value}))
        with pytest.raises(ConfigError, match="is no calibration of this version"):
            Rates.load(calibration)


@pytest.mark.parametrize("content", [b"", b"\x00\xff\x80", b"[" * 100_000, b"[]", b'{"format": 2}', b'{"format": 2'])
def test_a_damaged_calibration_names_the_command_that_makes_one(
    content: bytes, calibration: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    calibration.write_bytes(content)
    assert main(["plan", "--calibration", str(calibration)]) == 2
    said = capsys.readouterr().err
    assert "is no calibration of this version; make it again with `mechprobe bench --calibrate`" in said
    assert "--force" not in said


def test_a_calibration_of_another_machine_is_said(
    calibration: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MECHPROBE_CALIBRATION", str(calibration))
    given = ["--model-config", str(LLAMA), "--config", str(SETTINGS)]
    made = {"threads": 64}
    for change, other in (({"name": "Intel 8088"}, "Intel 8088"), ({"made": made}, "64 threads")):
        calibration.write_text(json.dumps({**json.loads(calibration.read_text()), **change}))
        assert main(["plan", *given]) == 0
        said = capsys.readouterr().out
        assert "The rates were measured elsewhere" in said
        assert other in said
        assert rates_here("cpu")[1:] == (True, [line for line in said.splitlines() if "measured elsewhere" in line])


def test_a_calibration_of_this_machine_is_not_remarked(calibration: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setenv("MECHPROBE_CALIBRATION", str(calibration))
    data = {**json.loads(calibration.read_text()), "made": {"threads": torch.get_num_threads()}}
    calibration.write_text(json.dumps(data))
    assert rates_here("cpu")[1:] == (True, [])


def test_a_dry_run_says_that_its_calibration_is_damaged(calibration: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MECHPROBE_CALIBRATION", str(calibration))
    calibration.write_text("{")
    _, known, said = rates_here("cpu")
    assert not known
    assert "no time: " in said[0]
    assert "is no calibration of this version" in said[0]


SMALL: dict[str, Any] = {"hidden_size": 32, "vocab_size": 50, "intermediate_size": 64}


@pytest.mark.parametrize(
    ("kind", "given", "attention"),
    [
        ("llama", {"num_hidden_layers": 2, "num_attention_heads": 4}, 2),
        ("mamba", {"num_hidden_layers": 2}, 0),
        ("mamba2", {"num_hidden_layers": 2, "num_heads": 4, "head_dim": 16, "n_groups": 2}, 0),
        ("falcon_mamba", {"num_hidden_layers": 2}, 0),
        ("rwkv", {"num_hidden_layers": 2, "attention_hidden_size": 32}, 0),
        ("recurrent_gemma", {"num_hidden_layers": 3, "num_attention_heads": 2, "lru_width": 32}, 1),
        ("jamba", {"num_hidden_layers": 8, "num_attention_heads": 4, "num_key_value_heads": 2}, 1),
        ("qwen3_next", {"num_hidden_layers": 4, "num_attention_heads": 4}, 1),
        ("gpt2", {}, 12),
        ("gemma3n_text", {}, 35),  # a list of inner widths
        ("gemma4_text", {}, 30),  # heads that differ between layers
        ("bart", {}, 12),  # its decoder
    ],
)
def test_models_of_every_kind_are_planned(kind: str, given: dict[str, Any], attention: int, tmp_path: Path) -> None:
    AutoConfig.for_model(kind, **({**SMALL, **given} if given else {})).save_pretrained(tmp_path)
    config = RunConfig.build(SETTINGS, ["cache.sites=[]"])
    plan = plan_config(config, H100, model_config=tmp_path)
    assert plan.shapes["base"].n_attention == attention
    assert all(cost.seconds is not None and cost.seconds > 0 for cost in plan.costs)
    assert any(f"The config of {kind} names no attention" in line for line in plan.lines) == (not attention)


@pytest.mark.parametrize("kind", ["t5", "blt", "musicgen", "blenderbot", "clip"])
def test_models_without_a_plan_are_one_sentence(kind: str) -> None:
    with pytest.raises(ModelError) as raised:
        ModelShape.of(AutoConfig.for_model(kind))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("broken", "sentence"),
    [
        ({"model_type": "llama", "num_attention_heads": 0}, "cannot be used"),
        ({"model_type": "llama", "hidden_size": "wide"}, "config.json"),
        ({"model_type": "gpt2", "n_layer": 0}, "a plan needs|not supported"),
    ],
)
def test_a_config_with_wrong_fields_is_one_sentence(
    broken: dict[str, Any], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import re

    (tmp_path / "config.json").write_text(json.dumps(broken))
    assert main(["plan", "--card", "H100", "--model-config", str(tmp_path)]) == 2
    said = capsys.readouterr().err.strip()
    assert re.search(sentence, said)
    assert len(said.splitlines()) == 1


def test_a_tokenizer_is_asked_for_at_its_revision_and_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str | None]] = []

    def found(name: str, revision: str | None = None) -> None:
        asked.append((name, revision))

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", found)
    folder = tmp_path / "rl@200"
    folder.mkdir()
    for path in ("org/name@step_200", "org/name", str(folder)):
        planning._tokenizer(path)
    assert asked == [("org/name", "step_200"), ("org/name", None), (str(folder), None)]


def test_the_config_of_a_model_is_asked_for_at_its_revision(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str | None]] = []

    def found(name: str, revision: str | None = None) -> LlamaConfig:
        asked.append((name, revision))
        return LlamaConfig(num_hidden_layers=1, num_attention_heads=2, **SMALL)

    monkeypatch.setattr(AutoConfig, "from_pretrained", found)
    planning._shape("rl", "org/name@step_200")
    assert asked == [("org/name", "step_200")]


def costs(*overrides: str, rates: Rates = H100, assumed: Assumed | None = None) -> dict[str, Any]:
    config = RunConfig.build(SETTINGS, ["train_sae.mode=cache", "cache.max_tokens=1000000", *overrides])
    plan = plan_config(config, rates, model_config=LLAMA, assumed=assumed)
    return {cost.stage: cost for cost in plan.costs}


def test_the_precision_of_the_training_changes_its_time_on_a_card() -> None:
    single, half = (
        costs(f'train_sae.training.precision="{name}"')["train-sae"].seconds for name in ("float32", "bfloat16")
    )
    assert half < single / 2
    assert H100.training_rate("bfloat16") / H100.training == pytest.approx(989 / 67)


def test_tf32_changes_the_time_of_models_in_float32_only() -> None:
    plain, tf32 = (costs('dtype="float32"', f"tf32={value}")["evaluate"] for value in ("false", "true"))
    assert tf32.seconds < plain.seconds
    assert tf32.flop == plain.flop
    half, both = (costs(f"tf32={value}")["evaluate"].seconds for value in ("false", "true"))
    assert half == both
    sae = [costs('dtype="float32"', f"tf32={value}")["train-sae"].seconds for value in ("false", "true")]
    assert sae[0] == sae[1]  # the dictionary does without


def test_the_dtype_of_the_models_is_an_option(capsys: pytest.CaptureFixture[str]) -> None:
    given = ["plan", "--card", "H100", "--config", str(SETTINGS), "--model-config", str(LLAMA), "--json"]
    found = []
    for dtype in ("float32", "bfloat16"):
        assert main([*given, "--model-dtype", dtype]) == 0
        found.append(json.loads(capsys.readouterr().out))
    assert [plan["dtype"] for plan in found] == ["float32", "bfloat16"]
    assert found[0]["seconds"] > found[1]["seconds"]
    assert main([*given, "--model-dtype", "int8"]) == 2
    assert "int8" in capsys.readouterr().err


def test_prompts_are_counted_as_the_models_read_them(tmp_path: Path) -> None:
    tokenizer = build_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}(((((({{ m.content }}{% endfor %}"
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps({"id": str(n), "prompt": "1" * n, "response": "22"}) + "\n" for n in (1, 5, 9)))
    config = RunConfig.build(None, [f'prompts.file="{file}"'], models={"base": str(tmp_path)})
    for text in (config.text, config.text.replace(chat_template=True)):
        work = count_work(config.replace(text=text), None, {"base": tokenizer}, 4, Assumed())
        encoder = PromptEncoder.of({"base": tokenizer}, text)
        expected = [len(encoder.encode(Prompt(str(n), "1" * n))) + 2 for n in (1, 5, 9)]
        assert list(work.prompt_lengths) == expected


def test_a_library_without_memory_is_not_called_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(_name: str) -> None:
        raise ImportError("groupby.so: failed to map segment from shared object")

    monkeypatch.setattr("importlib.import_module", refused)
    with pytest.raises(ImportError, match="failed to map segment"):
        require("pandas", "The feature table")


def test_padding_is_counted() -> None:
    work = plan_config(RunConfig.build(SETTINGS), H100, model_config=LLAMA).work
    work = replace(work, prompt_lengths=(5, 10, 12), prompt_tokens=9.0, rows=27, sequences=3, task_lengths=(4, 6, 20))
    assert work.read_tokens(10**6, 26) == pytest.approx(10 + 10 + 12)  # two sequences fit into a pass of 26 tokens
    assert work.read_tokens(1, 26) == pytest.approx(3 * 12)  # a shard of one sequence may have the longest
    assert replace(work, rows=30).read_tokens(10**6, 26) == pytest.approx(32 + 3)  # responses of one token
    assert work.padded_task(3, 2) == pytest.approx((6 + 6 + 20) / 3)
    assert work.padded_task(3, 512) == 20


def test_the_report_and_dynamics_take_no_card() -> None:
    found = costs("dynamics.draws=1000")
    assert found["report"].device_bytes == found["dynamics"].device_bytes == 0


@pytest.mark.parametrize("name", UNVERIFIED)
def test_a_card_that_is_not_verified_is_said(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--card", name, "--config", str(SETTINGS), "--model-config", str(LLAMA)]) == 0
    assert f"The peaks of {name} are not verified" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--assume-prompt-tokens", "999999999999"], "--assume-prompt-tokens is 999,999,999,999"),
        (["--assume-response-tokens", "999999999999"], "--assume-response-tokens is 999,999,999,999"),
        (["--assume-samples", "999999999999999"], "--assume-samples is 999,999,999,999,999"),
        (["--assume-prompts", "999999999999999"], "--assume-prompts is 999,999,999,999,999"),
        (["--devices", "99999999"], "--devices is 99999999"),
        (["--set", f"train_sae.n_tokens=1{'0' * 30}"], "train-sae would take"),
        (["--set", f"train_sae.n_tokens=1{'0' * 400}"], "too large for a plan"),
        (["--set", f"train_sae.d_sae=1{'0' * 18}"], "more than any machine bears"),
        (["--set", f"tasks.max_new_tokens=1{'0' * 25}"], "would take"),
    ],
)
def test_absurd_numbers_are_refused_in_one_sentence(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["plan", "--card", "H100", "--config", str(SETTINGS), "--model-config", str(LLAMA)]
    assert main([*given, *arguments]) == 2
    said = capsys.readouterr().err.strip()
    assert sentence in said
    assert len(said.splitlines()) == 1


def test_lengths_that_nobody_gave_stay_within_the_context(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = LlamaConfig(num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=96, **SMALL)
    config.save_pretrained(tmp_path)
    given = ["--config", str(SETTINGS), "--model-config", str(tmp_path)]
    assert main(["plan", "--card", "H100", *given]) == 0
    assert "prompts of 96 tokens are assumed" in capsys.readouterr().out


@pytest.mark.parametrize("command", [["plan", "--card", "H100"], ["bench", "--calibrate"]])
def test_several_processes_are_refused(
    command: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(command) == 2
    assert f"`mechprobe {command[0]}` runs in one process" in capsys.readouterr().err


def test_a_dictionary_of_chosen_models_is_planned_with_these() -> None:
    both = ('train_sae.models=["base", "rl"]', "train_sae.crosscoder.reads=difference")
    two, three = costs(*both)["train-sae"], costs()["train-sae"]
    assert two.flop == pytest.approx(2 / 3 * three.flop)
    with pytest.raises(ConfigError, match=r"train_sae\.models names rl40"):
        costs('train_sae.models=["base", "rl40"]')
    with pytest.raises(ConfigError, match="compares two models, not base, sft, rl"):
        costs("train_sae.crosscoder.reads=difference")


def test_the_stages_that_processes_share_are_those_that_devices_divide() -> None:
    config = RunConfig.build(SETTINGS, ["train_sae.mode=cache", "cache.max_tokens=1000000", "cache.sites=[]"])
    plan = plan_config(config, H100, devices=2, model_config=LLAMA)
    scene = Scene(config, plan.shapes, plan.work, H100, 2)
    made = {name: cost(scene) for name, cost in STAGES.items()}
    made |= {name: cost(scene, {}) for name, cost in SIDE.items() if name != "emergence"}
    assert {name for name, cost in made.items() if cost.devices == 2} == set(SEVERAL)
    assert any(line.startswith("Several devices share localize, cache, train-sae, features") for line in plan.lines)
