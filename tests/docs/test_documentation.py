"""The documentation runs: the tutorial, the commands and code of every page on the run that it leaves, and the site itself.

`tests/test_readme.py` checks names, options and links of every page. Here a command runs as the page gives it where it is
cheap, and otherwise with ``--dry-run``, which checks every input. What is not run is listed with its reason.
"""

import argparse
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from mechprobe.cli import main

ROOT = Path(__file__).resolve().parents[2]
SITE = ROOT / "docs" / "site"
LAB = ROOT / "artifacts" / "lab" / "shared-marker"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted(ROOT.glob("experiments/*/README.md"))]

CHEAP = ("show", "doctor", "plan ", "plan-samples", "lab info", "store info", "store verify", "store export", "skills show", "skills card",
         "skills make", "skills score", "crosscoder export", "report", "dynamics --table")  # fmt: skip
"""Commands that run as they are given; the others get ``--dry-run``."""
OTHER_PLACES = {
    r"SLURM_ARRAY_TASK_ID": "a job array",
    r"--nproc-per-node": "several processes",
    r"--device cuda": "a GPU",
    r"model_final\.pt": "a published crosscoder",
    r"cc_weights\.pt": "a published crosscoder",
    r"path/to/published_sae": "a published SAE",
    r"sae_base": "a published SAE",
    r"lab build": "minutes of training; tests/lab builds labs",
    r"models/chat": "a script builds it; tests/cli/test_chat_family.py runs the page",
    r"runs/chat": "a script builds it; tests/cli/test_chat_family.py runs the page",
    r"evaluate\.generation=endpoint": "a server; tests/evals runs one",
    r"--import": "rollouts of an engine; tests/evals imports some",
    r"qwen3_4b\.toml": "models of 8 GB",
    r"text\.chat_template": "a chat template; tests/cli/test_text_rule.py runs one",
    r"teacher\.jsonl": "responses of a teacher; tests/dynamics/logprobs has some",
    r"--checkpoints runs/post": "what posttrain writes",
    r"--match-kl": "what posttrain writes",
    r"posttrain grpo --base Qwen|--on-policy": "a context of more than the lab's 96 tokens; tests/posttrain trains small ones",
    r"both\.toml": "settings of the user; tests/cli/test_posttrain.py has some",
    r"--task ": "lm-evaluation-harness; tests/interventions/harness runs it",
    r"my_task\.yaml": "lm-evaluation-harness; tests/interventions/harness runs it",
    r"quiz\.jsonl": "multiple-choice questions of the user; tests/evals has some",
    r"runs/paper_b": "an hour; tests/experiments runs it small",
    r"runs/x/evals": "an evaluation of skill items; tests/cli/test_skills_cli.py makes one",
    r"--ranking R": "R is a place for a name",
    r"set\.toml|CHECKPOINTS": "benchmarks of the user; tests/sweep has some",
    r"sweep --run runs/x": "benchmarks of the user; tests/sweep has some",
    r"dynamics$|dynamics --(?:sweep|evals)": "what the sweep before it writes; tests/dynamics makes one",
    r"emergence --run runs/(?:emergence|timeline)|report --run runs/timeline": "the run that the commands before it begin",
    r"import vllm": "vllm",
}
"""Pattern of a command or of a block of code → what it needs, for those that are not run."""
STAND_INS = {"org/name@revision": "PATH", "resid_post.10": "resid_post.1", "resid_post.18": "resid_post.2"}
"""A model on the hub and sites of deep models → what stands for them here."""
SLOW_PAGES = {
    *(f"docs/{name}.md" for name in ("interventions", "selection", "weights", "lab", "reading-a-verdict", "run", "drift", "design",
                                     "glossary", "skills", "logprobs", "timeline", "examples", "sweep", "dynamics")),
    "README.md", "experiments/paper_a/README.md",
}  # fmt: skip
"""Pages that `make test-all` runs and `make test` does not: they repeat ``mechprobe run``, or compute for long."""
CODE_AT_ITS_SIZE = (
    "mp.emergence(", "mp.analyze_features(", "mp.dictionary_seeds(", "mp.posttrain.", "mp.sweep(", "mp.skills.read_items(",
    "mp.cache_activations(", "mp.RunConfig.build(",
)  # fmt: skip
"""Code whose sizes are for real work; the tests of its room run it small, and tests/test_readme.py the README and run.md."""


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)


def command(line: str) -> list[str]:
    """The words of a line, with what stands for the user's own."""
    for part, other in STAND_INS.items():
        line = line.replace(part, other)
    return shlex.split(line)


def lines_of(page: Path) -> list[str]:
    """Every line of the shell blocks of a page, without comments."""
    lines = [line for block in blocks(page, "bash") for line in block.replace("\\\n", " ").splitlines()]
    return [text for line in lines if (text := shlex.join(shlex.split(line, comments=True)))]


def needs(text: str) -> str | None:
    """What a command or a block of code needs that is not here; None if it can run."""
    plain = text.replace("'", "")
    return next((reason for pattern, reason in OTHER_PLACES.items() if re.search(pattern, plain)), None)


def names(pages: list[Path]) -> list[Any]:
    """The pages as parameters; the slow ones are marked."""
    paths = {page: page.relative_to(ROOT).as_posix() for page in pages}
    return [
        pytest.param(page, id=path, marks=[pytest.mark.slow] if path in SLOW_PAGES else [])
        for page, path in paths.items()
    ]


@pytest.fixture(scope="module")
def site() -> Iterator[Any]:
    """The modules that build the site."""
    sys.path.insert(0, str(SITE))
    import build
    import tutorial

    yield argparse.Namespace(build=build, tutorial=tutorial)
    sys.path.remove(str(SITE))


USERS_MODELS = {
    "base": "base", "path/to/base": "base", "path/to/tuned": "rl", "path/to/sft": "sft", "models/base": "base", "models/sft": "sft",
    "models/rl": "rl", "models/rl40": "rl", "PATH": "rl",
    "Qwen/Qwen3-1.7B-Base": "base",
}  # fmt: skip
"""Places of models on the pages → model of the lab that stands there."""


def furnish(folder: Path) -> None:
    """Make a folder look like the checkout, with the files that the pages call the user's own."""
    for name in ("artifacts", "experiments", "benchmarks", "docs", "tests"):
        (folder / name).symlink_to(ROOT / name)
    for name, model in USERS_MODELS.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).symlink_to(LAB / model)
    with (LAB / "prompts.jsonl").open() as lines:
        (folder / "prompts.jsonl").write_text("".join(islice(lines, 60)))
    with (LAB / "tasks.jsonl").open() as lines:
        rows = [row for line in lines if (row := json.loads(line))["answer"].isdigit()]
    (folder / "tasks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "math.jsonl").write_text(
        "".join(json.dumps({**row, "response": f"ANS {row['answer']}"}) + "\n" for row in rows[:40])
    )
    for name in ("corpus.txt", "texts.txt"):
        (folder / name).write_text("CALC 8+3?\nSIM 7ntnt?\n")
    models = "\n".join(f'{name} = "{LAB / name}"' for name in ("base", "sft", "rl"))
    settings = re.sub(r"\[models\].*?\n\n", f"[models]\n{models}\n\n", (LAB / "run.toml").read_text(), flags=re.DOTALL)
    for name in ("mine.toml", "my_run.toml", "run.toml"):
        (folder / name).write_text(settings)


def settle(folder: Path) -> None:
    """Give the run of the tutorial the names that the pages use."""
    (folder / "runs" / "lab").symlink_to("tutorial")
    (folder / "cache").symlink_to("runs/lab/cache")
    shutil.copytree(folder / "runs" / "lab" / "selection", folder / "runs" / "lab" / "by_ig")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("documentation")
    furnish(folder)
    return folder


@pytest.fixture(scope="module")
def notebook(site: Any, place: Path) -> Any:
    """The tutorial with the output of its code; its run is ``runs/lab`` of the other pages."""
    made = site.tutorial.executed(place)
    settle(place)
    return made


def kinds(notebook: Any) -> list[list[tuple[str, ...]]]:
    """For each cell of code, the kinds of its outputs: stream or types of the data, and the class that shows itself."""
    return [[_kind(output) for output in cell.outputs] for cell in notebook.cells if cell.cell_type == "code"]


def _kind(output: Any) -> tuple[str, ...]:
    data = output.get("data", {})
    shown = re.match(r"\w+", data.get("text/plain", ""))
    return (output.output_type, *sorted(data), shown.group() if shown else "")


def test_the_tutorial_shows_what_its_code_gives(notebook: Any, site: Any) -> None:
    """Numbers depend on the machine, so kinds of outputs are compared, and what the text around them says."""
    import nbformat

    committed = nbformat.read(site.tutorial.NOTEBOOK, as_version=4)
    assert [cell.source for cell in committed.cells] == [cell.source for cell in notebook.cells]
    assert kinds(committed) == kinds(notebook)
    assert all(kinds(committed)), "every cell of code shows something"
    for found in (committed, notebook):
        base, transplant, rl = found.cells[-2].outputs[0].text.splitlines()
        assert "THINK" not in base
        assert "THINK" in transplant
        assert "THINK" in rl
        assert "/site-packages/" not in json.dumps(found)
        assert not re.search(r"(?<![\w.])/(?:tmp|home|root|work)/", json.dumps(found))


@pytest.mark.parametrize("page", names([page for page in PAGES if lines_of(page)]))
def test_the_commands_of_a_page_run(page: Path, notebook: Any, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    for line in lines_of(page):
        words = command(line)
        at = next((index for index, word in enumerate(words) if Path(word).name == "mechprobe"), None)
        if words[0] == "make":
            subprocess.run(["make", "-n", "-C", str(ROOT), *words[1:]], check=True, capture_output=True)
        elif at is not None and words[0] not in ("pip", "#SBATCH") and needs(line) is None:
            arguments = words[at + 1 :]
            real = any(" ".join(arguments).startswith(cheap) for cheap in CHEAP) or "--dry-run" in arguments
            assert main(arguments if real else [*arguments, "--dry-run"]) == 0, line


@pytest.mark.slow
@pytest.mark.parametrize("page", names([page for page in PAGES if any("python" in line for line in lines_of(page))]))
def test_the_scripts_of_a_page_have_the_options_that_it_gives(page: Path) -> None:
    for line in lines_of(page):
        words = shlex.split(line.replace("[", " ").replace("]", " "))
        if Path(words[0]).name.startswith("python") and words[1:3] not in (["-m", "pip"], ["-m", "pytest"]):
            script = words[1:3] if words[1] == "-m" else words[1:2]
            text = subprocess.run(
                [sys.executable, *script, "--help"], cwd=ROOT, check=True, capture_output=True, text=True
            ).stdout
            options = [word for word in words[len(script) + 1 :] if word.startswith("--")]
            assert not [option for option in options if option not in text], line


@pytest.fixture(scope="module")
def prepared(notebook: Any, place: Path) -> dict[str, Any]:
    """What code on the pages calls by these names, from the run of the tutorial."""
    import torch

    import mechprobe as mp
    from mechprobe.evals.stage import load_outcomes

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        run = mp.Run(mp.RunConfig.of_run("runs/lab"), "runs/lab")
        crosscoder = run.crosscoder()
        return {
            "mp": mp, "run": run, "family": run.family, "crosscoder": crosscoder, "crosscoder_1": crosscoder,
            "crosscoder_2": crosscoder, "selection": mp.Selection.load("runs/lab/selection"),
            "store": mp.ActivationStore.open("runs/lab/cache"), "outcomes": load_outcomes(Path("runs/lab/evals")),
            "judging": run.judging_halves(), "tuned_logits": torch.randn(5, 7), "base_logits": torch.randn(5, 7),
            "target": torch.tensor([0, 1, 2, 3, 4]),
        }  # fmt: skip


@pytest.mark.parametrize("page", names([page for page in PAGES if blocks(page, "python")]))
def test_the_code_of_a_page_runs(
    page: Path, prepared: dict[str, Any], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks of one page run one after the other and share their names, as a reader would run them."""
    monkeypatch.chdir(place)
    shared = dict(prepared)
    for code in blocks(page, "python"):
        if needs(code) is None and not any(part in code for part in CODE_AT_ITS_SIZE):
            exec(compile(code, page.name, "exec"), shared)


def test_what_is_not_run_is_there() -> None:
    """Every reason stands for a command or for code that a page has, so that the list cannot grow old."""
    texts = [
        *(line for page in PAGES for line in lines_of(page)),
        *(code for page in PAGES for code in blocks(page, "python")),
    ]
    assert not [
        pattern for pattern in OTHER_PLACES if not any(re.search(pattern, text.replace("'", "")) for text in texts)
    ]
    code = "".join(block for page in PAGES for block in blocks(page, "python"))
    assert not [part for part in CODE_AT_ITS_SIZE if part not in code]


def test_every_page_is_in_the_navigation() -> None:
    navigation = (SITE / "zensical.toml").read_text(encoding="utf-8")
    assert not [
        page.name
        for page in PAGES
        if f'"{page.relative_to(ROOT).as_posix()}"' not in navigation and page.parent != ROOT
    ]


def test_the_site_builds_without_a_warning_and_without_the_network(site: Any, tmp_path: Path) -> None:
    first = site.build.build(tmp_path / "site")
    html = first.parent
    assert (html / "docs" / "quickstart.html").is_file()
    from mechprobe.cli.app import app

    commands = (html / "docs" / "cli.html").read_text(encoding="utf-8")
    assert all(f"mechprobe {command.name}" in commands for command in app.registered_commands)
    reference = (html / "docs" / "api" / "mechprobe.html").read_text(encoding="utf-8")
    assert "sufficiency_cut" in reference or "Ceilings of every site" in reference
    search = (html / "search.js").read_text(encoding="utf-8")
    assert "embedded lab" in search
    for path in html.rglob("*.html"):
        text = path.read_text(encoding="utf-8")
        assert "unpkg.com" not in text
        assert not re.search(r"fonts\.(?:googleapis|gstatic)", text)
    for path in html.rglob("*.html"):
        for file, _, anchor in _links(path):
            assert file.is_file(), (path, file)
            assert not anchor or anchor in _ids(file), (path.name, file.name, anchor)


def _links(path: Path) -> Iterator[tuple[Path, str, str]]:
    for target in re.findall(r'<a[^>]* href="([^"]+)"', path.read_text(encoding="utf-8")):
        file, mark, anchor = target.partition("#")
        if not re.match(r"[a-z]+:", target) and path.name != "404.html":
            yield ((path.parent / file).resolve() if file else path), mark, anchor


def _ids(path: Path, found: dict[Path, set[str]] = {}) -> set[str]:  # noqa: B006 - a cache of the pages
    if path not in found:
        found[path] = set(re.findall(r'\sid="([^"]+)"', path.read_text(encoding="utf-8")))
    return found[path]
