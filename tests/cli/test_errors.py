"""Bad input ends in one sentence on stderr, exit code 2, and nothing half-written."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

import mechprobe as mp
from mechprobe.cli import main
from mechprobe.cli.stage_command import next_step
from mechprobe.errors import InputError
from mechprobe.pipeline.run import Run
from mechprobe.run_config import RunConfig
from tests.builders import build_family, swap_letters


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"{i}+{i}="}) + "\n" for i in range(8)))
    return path


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    path = tmp_path / "tasks.jsonl"
    rows = [{"id": f"{t}{i}", "task": t, "prompt": f"{i}{t}", "answer": "1"} for t in ("a", "b") for i in range(4)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def models(family: dict[str, Path]) -> list[str]:
    return ["--models", *(f"{name}={path}" for name, path in family.items())]


Fails = Callable[..., str]


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Fails:
    def run(*arguments: object, out: str | None = "out") -> str:
        capsys.readouterr()
        argv = [str(argument) for argument in arguments] + (["--out", str(tmp_path / out)] if out else [])
        assert main(argv) == 2
        captured = capsys.readouterr()
        lines = captured.err.strip().splitlines()
        assert captured.out == ""
        assert len(lines) == 1, lines
        assert lines[0].startswith("mechprobe: ")
        assert "Traceback" not in captured.err
        if out:
            assert not (tmp_path / out).exists()
        return lines[0]

    return run


def test_usage(fails: Fails, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    captured = capsys.readouterr()
    assert "Usage:" in captured.out
    assert "see `mechprobe --help`" in captured.err
    assert "No such command 'cahce'" in fails("cahce", out=None)
    assert "No such option: --sitse" in fails("cache", "--sitse", "x", out=None)
    assert "write section.key=value" in fails("cache", "--set", "nothing")
    assert "write NAME=PATH" in fails("cache", "--models", "somewhere")
    assert "names 'base' twice" in fails("cache", "--models", "base=a", "base=b")


@pytest.mark.parametrize("name", ["a\x1b[31m", "a\nb", "a\u202eb"])
@pytest.mark.parametrize("command", ["weights", "drift", "probe", "cache", "evaluate", "baselines", "emergence"])
def test_names_of_models_that_a_terminal_acts_on(fails: Fails, tmp_path: Path, command: str, name: str) -> None:
    said = fails(command, "--models", "base=x", f"{name}=y", "--run", tmp_path / "run")
    assert f"the name {name!a} has a character that cannot be printed; rename the model" in said
    config = tmp_path / "run.toml"
    config.write_text(f'[models]\nbase = "x"\n{json.dumps(name)} = "y"\n')
    assert said.partition("the name")[2] in fails(command, "--config", config, "--run", tmp_path / "run")
    assert not (tmp_path / "run").exists()
    for call in (mp.ModelFamily.load, mp.drift.weight_statistics):
        with pytest.raises(InputError, match="cannot be printed"):
            call({"base": "x", name: "y"})


def test_settings(fails: Fails, tmp_path: Path, llama_family: dict[str, Path], prompts: Path) -> None:
    call = ["cache", *models(llama_family), "--prompts", prompts]
    assert "did you mean 'dtype'" in fails(*call, "--set", "cache.dtpye=float16")
    assert "does not exist" in fails("cache", "--config", tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("[cache\n")
    assert "bad.toml" in fails("cache", "--config", tmp_path / "bad.toml")
    assert "No models are given" in fails("cache", "--prompts", prompts, "--sites", "resid_post.1")
    assert "No prompts are given" in fails("cache", *models(llama_family), "--sites", "resid_post.1")
    assert "No site is given" in fails(*call)


def test_models_and_sites(fails: Fails, tmp_path: Path, llama_family: dict[str, Path], prompts: Path) -> None:
    rest = ["--prompts", prompts, "--sites", "resid_post.1"]
    assert "does not exist" in fails("cache", "--models", f"base={tmp_path / 'gone'}", *rest)
    (tmp_path / "empty").mkdir()
    assert "has no config.json" in fails("cache", "--models", f"base={tmp_path / 'empty'}", *rest)
    other = build_family(tmp_path / "other", names=("rl",))
    swap_letters(other["rl"])
    text = fails("cache", "--models", f"base={llama_family['base']}", f"rl={other['rl']}", *rest)
    assert "have different tokenizers" in text
    call = ["cache", *models(llama_family), "--prompts", prompts]
    assert "resid_post.0 to resid_post.2" in fails(*call, "--sites", "resid_post.9")
    assert "is not a site" in fails(*call, "--sites", "mlp_out.1")
    weights = llama_family["base"] / "model.safetensors"
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in llama_family["base"].iterdir():
        (broken / file.name).write_bytes(file.read_bytes() if file != weights else b"not weights")
    assert "model.safetensors is not a readable safetensors file" in fails("cache", "--models", f"base={broken}", *rest)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "contains no prompts"),
        (b"\n\n", "contains no prompts"),
        (b'{"text": "x"}\n', ":1 has no field 'prompt'"),
        (b'{"prompt": "x"}\nnonsense\n', ":2 is not a JSON object"),
        (b'{"prompt": "\xff"}\n', ":1 is not UTF-8"),
        (b'{"prompt": 3}\n', "'prompt' is the number"),
        (b'{"prompt": "' + b"7" * 80 + b'"}\n', "81 tokens"),
    ],
)
def test_prompts(fails: Fails, tmp_path: Path, llama_family: dict[str, Path], content: bytes, message: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_bytes(content)
    text = fails("cache", *models(llama_family), "--prompts", path, "--sites", "resid_post.1")
    assert message in text
    assert "bad.jsonl" in text or "tokens" in text


def test_folders_that_are_something_else(
    fails: Fails, tmp_path: Path, llama_family: dict[str, Path], prompts: Path
) -> None:
    mine = tmp_path / "thesis"
    mine.mkdir()
    (mine / "a.tex").write_text("x")
    call = ["cache", *models(llama_family), "--prompts", prompts, "--sites", "resid_post.1", "--out", mine]
    assert "is not empty" in fails(*call, out=None)
    assert "is not empty" in fails(*call, "--force", out=None)
    assert [path.name for path in mine.iterdir()] == ["a.tex"]
    for command in ("run", "intervene", "select"):
        assert "is not a run folder" in fails(command, "--run", mine, out=None)
    assert [path.name for path in mine.iterdir()] == ["a.tex"]


def test_a_file_that_is_no_crosscoder(fails: Fails, tmp_path: Path, prompts: Path) -> None:
    from sae_training import Crosscoder, SaeTrainingError

    for place in (prompts, tmp_path / "nowhere", tmp_path):
        with pytest.raises(SaeTrainingError):
            Crosscoder.load(place)
    store = tmp_path / "nostore"
    store.mkdir()
    for place in (prompts, tmp_path / "nowhere", tmp_path):
        fails("features", "--crosscoder", place, "--cache", store)


def test_tasks(fails: Fails, tmp_path: Path, llama_family: dict[str, Path], tasks: Path) -> None:
    call = ["evaluate", *models(llama_family)]
    assert "No tasks are given" in fails(*call)
    assert "exact, numeric, letter, yes_no, refusal, boxed, skill, final" in fails(
        *call, "--tasks", tasks, "--scorer", "fuzzy"
    )
    (tmp_path / "empty.jsonl").write_text("")
    assert "holds no samples" in fails(*call, "--tasks", tmp_path / "empty.jsonl")
    (tmp_path / "long.jsonl").write_text(json.dumps({"prompt": "7" * 70, "answer": "1"}) + "\n")
    for command in ("evaluate", "localize"):
        text = fails(
            command, *models(llama_family), "--tasks", tmp_path / "long.jsonl", "--set", "tasks.max_new_tokens=8"
        )
        assert re.search("long-1.*71 tokens.*8 new.*64 leaves 56", text)
    assert "has no task 'c'" in fails(*call, "--tasks", tasks, "--set", "tasks.names=['c']")
    two = [f"{name}={llama_family[name]}" for name in ("base", "sft")]
    assert "'rl'" in fails("localize", "--models", *two, "--tasks", tasks)


def test_the_run_checks_everything_first(
    fails: Fails, llama_family: dict[str, Path], tasks: Path, prompts: Path
) -> None:
    call = ["run", *models(llama_family), "--set", f"tasks.file={tasks}", f"prompts.file={prompts}"]
    assert "has no model 'gold'" in fails(*call, "--set", "tuned=gold")
    assert "tasks.trained names 'z'" in fails(*call, "--set", "tasks.trained=['z']")
    assert "intervene.trained names 'z'" in fails(*call, "--set", "intervene.trained=['z']")
    assert "lunch" in fails(*call, "--until", "lunch")


def test_help_of_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    commands = [
        "run",
        "lab",
        "localize",
        "cache",
        "train-sae",
        "features",
        "evaluate",
        "select",
        "intervene",
        "report",
        "doctor",
    ]
    for command in commands:
        assert main([command, "--help"]) == 0
        assert "Usage:" in capsys.readouterr().out


def test_the_next_command_names_a_selection_beside_the_run(tmp_path: Path) -> None:
    run = Run(RunConfig(), tmp_path)
    own = next_step(run, tmp_path / "x" / ".." / "selection", "selection", "intervene")
    assert own == f"mechprobe intervene --run {tmp_path}"
    assert next_step(run, tmp_path / "x", "selection", "intervene") == f"{own} --selection {tmp_path / 'x'}"
    beside = next_step(run, tmp_path / "x", "interventions", "report")
    assert str(tmp_path / "interventions") in beside
