"""The README's code runs, its commands exist, and its figures and links are there."""

import re
from itertools import islice
from pathlib import Path

import pytest

from mechprobe.cli import main

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
SMALLER = {
    'Path("runs/functions")': "OUT",
    "max_new_tokens=48)\njudging": "max_new_tokens=48, n_per_task=40)\njudging",
    "max_prompts=3000": "max_prompts=60",
    "d_sae=1024, k=24": "d_sae=128, k=8",
    "n_tokens=700_000": "n_tokens=20_480",
    '"top50"': '"top10"',
}


def blocks(language: str) -> list[str]:
    """Fenced blocks of a language."""
    return re.findall(rf"```{language}\n(.*?)```", TEXT, flags=re.DOTALL)


SMALLER_RUN = """["localize.n_per_task=4", "cache.max_prompts=60", "train_sae.d_sae=128", "train_sae.k=8", "train_sae.n_tokens=20480",
"features.ce_samples=8", "evaluate.n_per_task=24", "select.n_controls=2", "select.min_gained=2", "select.rule=top:10",
"intervene.features=top:10", "intervene.n_random=2", "intervene.n_shuffled=1", "intervene.n_per_task=2", "intervene.doses=[]",
"intervene.sizes=[]", "intervene.workers=1", "intervene.max_new_tokens=24"]"""


@pytest.fixture
def few_prompts(tmp_path: Path) -> Path:
    """The first prompts of the lab: all of them are read several times in a run."""
    path = tmp_path / "prompts.jsonl"
    with (ROOT / "artifacts" / "lab" / "shared-marker" / "prompts.jsonl").open() as lines:
        path.write_text("".join(islice(lines, 200)))
    return path


def test_the_short_python_block_runs_at_a_smaller_size(
    tmp_path: Path, few_prompts: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _ = blocks("python")
    smaller = SMALLER_RUN.replace("[", f'["prompts.file={few_prompts}",', 1)
    for old, new in (('["intervene.workers=1"]', smaller), ('"runs/python"', "OUT")):
        assert code.count(old) == 1, old
        code = code.replace(old, new)
    monkeypatch.chdir(ROOT)
    exec(compile(code, "README.md", "exec"), {"OUT": tmp_path / "run"})
    printed = capsys.readouterr().out
    assert "Do the features top:10 cause the change from base to rl?" in printed
    assert (tmp_path / "run" / "report" / "index.html").is_file()


def test_the_python_block_of_functions_runs_at_a_smaller_size(
    tmp_path: Path, few_prompts: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _, code = blocks("python")
    for old, new in {**SMALLER, 'lab / "prompts.jsonl"': f'"{few_prompts}"'}.items():
        assert code.count(old) == 1, old
        code = code.replace(old, new)
    monkeypatch.chdir(ROOT)
    exec(compile(code, "README.md", "exec"), {"OUT": tmp_path / "run"})
    assert capsys.readouterr().out.strip()


def test_every_command_and_option_exists(capsys: pytest.CaptureFixture[str]) -> None:
    lines = [line.split("#")[0] for block in blocks("bash") for line in block.splitlines()]
    commands = [line.split("mechprobe", 1)[1].split() for line in lines if "bin/mechprobe" in line]
    assert len(commands) >= 5
    for words in commands:
        name = words[:2] if words[0] in ("lab", "store") else words[:1]
        assert main([*name, "--help"]) == 0
        shown = capsys.readouterr().out
        for option in (word for word in words if word.startswith("--")):
            assert option in shown, (name, option)


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"make (\w+)", TEXT):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


def test_figures_and_links_exist() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", TEXT):
        assert target.startswith("http") or (ROOT / target).is_file(), target


def test_settings_named_in_the_readme_exist() -> None:
    from mechprobe.run_config import RunConfig

    settings = RunConfig.build(ROOT / "artifacts" / "lab" / "shared-marker" / "run.toml")
    assert settings.near == settings.select.near == settings.intervene.near == ("base", "rl")
    assert settings.tasks.force_prefix == settings.intervene.force_prefix == "THINK"


def test_nothing_committed_names_a_machine() -> None:
    """No absolute path of a machine and no registry host in files that a reader opens."""
    pattern = re.compile(r"(/work/|/root/|/home/\w+/|pypi\.org|/tmp/w)")
    suffixes = {".py", ".md", ".toml", ".json", ".jsonl", ".txt", ".yaml"}
    skipped = {".venv", "runs", ".git", "node_modules"}
    for path in ROOT.rglob("*"):
        if path.suffix in suffixes and not skipped & set(path.relative_to(ROOT).parts) and path != Path(__file__):
            assert not pattern.search(path.read_text(encoding="utf-8", errors="replace")), path
