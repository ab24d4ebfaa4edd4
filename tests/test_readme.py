"""The documentation matches the code: its Python runs or compiles, and its commands, settings, links and modules exist."""

import importlib
import re
import shlex
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import typer

import mechprobe as mp
from mechprobe.cli import main

ROOT = Path(__file__).resolve().parents[1]
LAB = ROOT / "artifacts" / "lab" / "shared-marker"
README = ROOT / "README.md"
PAGES = [
    README,
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted(ROOT.glob("experiments/*/README.md")),
    ROOT / "benchmarks" / "README.md",
    ROOT / "artifacts" / "README.md",
]
GROUPS = ("lab", "store", "crosscoder", "posttrain", "skills")
SMALLER_RUN = """["localize.n_per_task=4", "cache.max_prompts=60", "train_sae.d_sae=128", "train_sae.k=8", "train_sae.n_tokens=20480",
"features.ce_samples=8", "evaluate.n_per_task=24", "select.n_controls=2", "select.min_gained=2", "select.rule=top:10",
"intervene.features=top:10", "intervene.n_random=2", "intervene.n_shuffled=1", "intervene.n_per_task=2", "intervene.doses=[]",
"intervene.sizes=[]", "intervene.workers=1", "intervene.max_new_tokens=24"]"""
SMALLER_FUNCTIONS = {
    'Path("runs/functions")': "OUT",
    "max_new_tokens=48)\njudging": "max_new_tokens=48, n_per_task=40)\njudging",
    "max_prompts=3000": "max_prompts=60",
    "d_sae=1024, k=24": "d_sae=128, k=8",
    "n_tokens=700_000": "n_tokens=20_480",
    '"top50"': '"top10"',
}


def name_of(page: Path) -> str:
    """Path of a page from the root, as the identifier of its test."""
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path, language: str) -> list[str]:
    """Fenced code blocks of one language."""
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)


def prose(page: Path) -> str:
    """The text without fenced code blocks."""
    return re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)


def commands(page: Path) -> Iterator[list[str]]:
    """Every ``mechprobe`` command of a page, in a block or inside a sentence, as the words after ``mechprobe``."""
    lines = [line for block in blocks(page, "bash") for line in block.replace("\\\n", " ").splitlines()]
    for line in lines:
        words = shlex.split(line.replace("[", " ").replace("]", " ") if " [" in line else line, comments=True)
        names = [index for index, word in enumerate(words) if Path(word).name == "mechprobe"]
        if names and words[0] != "pip":
            yield words[names[0] + 1 :]
    for inline in re.findall(r"`mechprobe ([^`]+)`", prose(page)):
        yield re.sub(r"\|\S*", "", " ".join(inline.split())).split()


def links(page: Path) -> list[tuple[Path, str]]:
    """File and anchor of every relative link."""
    found = re.findall(r"\]\(([^)\s]+)\)", prose(page))
    parts = [target.partition("#") for target in found if not target.startswith("http")]
    return [((page.parent / file).resolve() if file else page, anchor) for file, _, anchor in parts]


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", prose(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def command_of(words: list[str]) -> Any:
    """The click command that ``words`` name."""
    from mechprobe.cli.app import app

    group: Any = typer.main.get_command(app)
    command = group.commands[words[0]]
    return command.commands[words[1]] if words[0] in GROUPS and len(words) > 1 else command


def exists(dotted: str) -> bool:
    """Whether a dotted name is a module, or an attribute of one."""
    parts = dotted.split(".")
    for length in range(len(parts), 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for part in parts[length:]:
            if not hasattr(found, part):
                return False
            found = getattr(found, part)
        return True
    return False


@pytest.fixture
def few_prompts(tmp_path: Path) -> Path:
    """The first prompts of the lab; a run reads all prompts of its file several times."""
    path = tmp_path / "prompts.jsonl"
    with (LAB / "prompts.jsonl").open() as lines:
        path.write_text("".join(islice(lines, 200)))
    return path


def smaller(code: str, changes: dict[str, str]) -> str:
    """The code with smaller sizes; every change applies exactly once."""
    for old, new in changes.items():
        assert code.count(old) == 1, old
        code = code.replace(old, new)
    return code


def test_the_readme_has_at_most_950_words() -> None:
    assert len(README.read_text(encoding="utf-8").split()) <= 950


def test_the_readme_says_what_its_terms_mean_where_they_first_stand() -> None:
    """The sentence with the first use of a term also defines it."""
    sentences = re.split(r"(?<=[.!])\s", re.sub(r"\s+", " ", prose(README)))
    for term, meaning in (
        ("ceiling", "replacing the whole residual"),
        ("integrated gradients", "effect on the right answer"),
        ("read-out", "activation in one model"),
        ("verdict", "outcome of a printed rule"),
    ):
        first = next(sentence for sentence in sentences if term in sentence.lower())
        assert meaning in first, (term, first)


def test_the_python_of_the_readme_runs_at_a_smaller_size(
    tmp_path: Path, few_prompts: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (code,) = blocks(README, "python")
    settings = SMALLER_RUN.replace("[", f'["prompts.file={few_prompts}",', 1)
    code = smaller(code, {'["intervene.workers=1"]': settings, '"runs/python"': "OUT"})
    monkeypatch.chdir(ROOT)
    exec(compile(code, "README.md", "exec"), {"OUT": tmp_path / "run"})
    printed = capsys.readouterr().out
    assert all(fact in printed for fact in ("top:10", "base", "rl", "transplant"))
    assert (tmp_path / "run" / "report" / "index.html").is_file()


def test_the_stages_as_functions_run_at_a_smaller_size(
    tmp_path: Path, few_prompts: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (code,) = [block for block in blocks(ROOT / "docs" / "run.md", "python") if "cache_activations" in block]
    code = smaller(code, {**SMALLER_FUNCTIONS, 'lab / "prompts.jsonl"': f'"{few_prompts}"'})
    monkeypatch.chdir(ROOT)
    exec(compile(code, "docs/run.md", "exec"), {"OUT": tmp_path / "run"})
    assert capsys.readouterr().out.strip()


def test_the_readme_configuration_works_with_two_models(tmp_path: Path, few_prompts: Path) -> None:
    (settings,) = blocks(README, "toml")
    (tmp_path / "tasks.jsonl").write_text('{"task": "sums", "prompt": "CALC 8+3?", "answer": "11"}\n' * 2)
    changes = {"path/to/base": str(LAB / "base"), "path/to/tuned": str(LAB / "rl")}
    (tmp_path / "mine.toml").write_text(smaller(settings, changes))
    assert few_prompts == tmp_path / "prompts.jsonl"
    assert main(["run", "--config", str(tmp_path / "mine.toml"), "--run", str(tmp_path / "mine"), "--dry-run"]) == 0


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_python_block_compiles(page: Path) -> None:
    for code in blocks(page, "python"):
        compile(code, name_of(page), "exec")


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_toml_block_can_be_read(page: Path) -> None:
    import tomllib

    for block in blocks(page, "toml"):
        tomllib.loads(block)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_command_and_option_exists(page: Path) -> None:
    for words in commands(page):
        options = {option for each in command_of(words).params for option in (*each.opts, *each.secondary_opts)}
        unknown = [word for word in words if re.match(r"--[a-z]", word) and word.partition("=")[0] not in options]
        assert not unknown, f"mechprobe {' '.join(words)}"


def test_commands_are_found() -> None:
    assert sum(1 for page in PAGES for _ in commands(page)) >= 60


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_setting_of_a_command_exists(page: Path) -> None:
    for words in commands(page):
        given = [word for word in words if re.match(r"[a-z_]+\.[a-z_.]+=", word)]
        mp.RunConfig.build(LAB / "run.toml", given)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_and_their_anchors_exist(page: Path) -> None:
    for file, anchor in links(page):
        assert file.exists(), file
        assert not anchor or anchor in anchors(file), f"{file}#{anchor}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_named_modules_and_files_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    if page.name == "CHANGELOG.md":  # names what was removed, too
        return
    for dotted in re.findall(r"(?<!\[)\b(?:mechprobe|sae_training|benchmarks)(?:\.[A-Za-z_]\w*)+", text):
        assert dotted.endswith((".toml", ".md", ".py")) or exists(dotted), dotted
    for name in re.findall(r"\bmp\.(\w+)", text):
        assert hasattr(mp, name), f"mp.{name}"
    for path in re.findall(r"\b(?:mechprobe|sae_training|tests|experiments|benchmarks|artifacts)/[\w/.-]*\w", text):
        assert (ROOT / path).exists() or path.startswith("artifacts/benchmarks/"), path


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_page_begins_with_a_sentence_and_one_command(page: Path) -> None:
    """A heading, prose, and a command before the first section."""
    if page.name == "CHANGELOG.md" or page == README:
        return
    text = page.read_text(encoding="utf-8")
    start = text.partition("\n## ")[0]
    assert start.startswith("# ")
    assert "```bash" in start, name_of(page)


def test_every_page_is_linked_from_the_readme() -> None:
    linked = {file for file, _ in links(README)}
    assert {page for page in PAGES if page.parent.name == "docs"} <= linked


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for page in PAGES:
        for target in re.findall(r"(?:^|`)make ([a-z-]+)", page.read_text(encoding="utf-8"), flags=re.MULTILINE):
            assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


def test_shared_settings_of_the_lab_reach_every_stage() -> None:
    settings = mp.RunConfig.build(LAB / "run.toml")
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
