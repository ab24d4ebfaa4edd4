"""``mechprobe posttrain``: plan, result, next command, and errors of one sentence."""

import json
import re
from pathlib import Path

import pytest

from mechprobe.cli import main
from mechprobe.errors import ConfigError
from mechprobe.evals.scorers.parse import scorer
from tests.builders import build_family
from tests.sums import write_prompts


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Options that both arms share."""
    folder = tmp_path_factory.mktemp("posttrain")
    base = build_family(folder / "base", names=("base",), n_layers=2, d_model=16)["base"]
    prompts = write_prompts(folder / "prompts.jsonl")
    return ["--base", str(base), "--prompts", str(prompts), "--set", "prompts_per_step=8", "--set", "max_new_tokens=6"]


def test_a_plan_writes_nothing(given: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["posttrain", "sft", *given, "--out", str(out), "--set", "epochs=8", "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "24 of 8 prompts" in shown
    assert "3 (steps 10, 20 and the last)" in shown
    assert shown.endswith("Nothing was written.\n")
    assert main(["posttrain", "grpo", *given, "--out", str(out), "--lora", "4", "--dry-run", "--json"]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    planned = json.loads(printed.out)
    assert (planned["arm"], planned["steps"], planned["responses_per_step"]) == ("rl", 3, 64)
    assert planned["trained"] < planned["parameters"]
    assert main(["posttrain", "sft", *given, "--out", str(out), "--set", "steps=2", "--dry-run"]) == 0
    assert "models kept  1 (the last)" in capsys.readouterr().out
    assert not out.exists()


def test_a_corrected_command_needs_no_force(
    given: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["posttrain", "sft", *given, "--out", str(tmp_path), "--set", "steps=4", "--set", "state_every=1"]
    assert main([*command, "--set", "lr=1e30"]) == 2
    said = capsys.readouterr().err
    assert "is not finite at step" in said
    assert (tmp_path / "sft/unfinished.json").is_file(), "it kept the state after the first step"
    assert main([*command, "--dry-run"]) == 0
    assert main([*command, "--arm", "<b>"]) == 0
    shown = capsys.readouterr().out
    assert "(no checkpoints besides the last step)" in shown
    assert f"'<b>={tmp_path / '<b>'}' --tasks FILE" in shown


def test_help_lists_every_scorer(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["posttrain", "sft", "--help"]) == 0
    shown = capsys.readouterr().out
    with pytest.raises(ConfigError, match="is unknown; write") as told:
        scorer("nothing")
    listed = str(told.value).partition("; write ")[2].replace(" or ", ", ").rstrip(".").split(", ")
    assert len(listed) == 9
    assert [name for name in listed if name.partition(":")[0] not in shown] == []


def test_an_arm_from_the_command_line(given: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = [
        "--set",
        "steps=2",
        "--checkpoints",
        "1",
        "--freeze",
        "lm_head.*",
        "--scorer",
        "python:tests.sums:digit_share",
    ]
    command = ["posttrain", "grpo", *given, *settings, "--set", "score_cut=true", "--out", str(tmp_path)]
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert "GRPO, arm 'rl': 2 steps" in shown
    assert re.search(r"reward   0\.\d+ \[0\.\d+, [01]\.\d+\] at step 1", shown)
    assert "n = 8 prompts a step" in shown
    assert f"Written to {tmp_path / 'rl'} (checkpoints at steps 1)" in shown
    assert "Next: mechprobe evaluate --models base=" in shown
    assert len(shown.splitlines()) <= 40
    assert main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found["models"]) == ["rl", "rl@step_000001"]
    assert found["prompts"]["n"] == 24


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--out", "o"], "No base is given; give --base PATH"),
        (["--out", "o", "--base", "./gone", "--prompts", "p"], "does not exist"),
        (["--out", "o", "--checkpoints", "1,x"], "write steps with commas"),
        (["--out", "o", "--set", "lrr=1"], "unknown key 'lrr'; did you mean 'lr'"),
        (["--out", "o", "--base", "BASE"], "No prompts are given"),
        (["--out", "o", "--base", "BASE", "--device", "tpu"], "device 'tpu' cannot train"),
        (["--out", "o", "--base", "BASE", "--arm", "a/b"], "cannot be named 'a/b'"),
        (["--out", "o", "--base", "BASE", "--arm", ""], "cannot be named ''"),
        (["--base", "BASE"], "Missing option '--out'"),
    ],
)
def test_errors_are_one_sentence(
    given: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["posttrain", "sft", *(given[1] if word == "BASE" else word for word in words)]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert not list(tmp_path.iterdir())
