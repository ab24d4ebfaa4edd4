"""Build the documentation site in build/site/html: ``python docs/site/build.py``. A warning ends it with exit code 1.

The pages keep their places in the repository, so that their links work in both. Three kinds of pages are made here: the
command line from the commands, the Python reference from the stubs and docstrings, and the tutorial from its notebook.
"""

import ast
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import nbformat

from tutorial import NOTEBOOK, page

ROOT = Path(__file__).resolve().parents[2]
OWN = Path(__file__).resolve().parent
SHIM = "https://unpkg.com/iframe-worker/shim"
"""The script by which search works from the file system; the site has a copy of it."""
COPIED = (
    "docs/*.md",
    "docs/figures/*",
    "experiments/*/*.md",
    "benchmarks/README.md",
    "artifacts/README.md",
    "CHANGELOG.md",
)
API = {
    "mechprobe": "mechprobe/__init__.pyi",
    "drift": "mechprobe/drift/__init__.pyi",
    "dynamics": "mechprobe/dynamics/__init__.pyi",
    "posttrain": "mechprobe/posttrain/__init__.pyi",
    "sae_training": "sae_training/__init__.pyi",
}


def collect(pages: Path) -> None:
    """Copy the pages and the files that they link to, and make the others."""
    shutil.copy(ROOT / "README.md", _place(pages / "index.md"))
    for path in (path for pattern in COPIED for path in ROOT.glob(pattern)):
        _copy(path, pages)
    for path in {file for source in pages.rglob("*.md") for file in _linked(source, pages)}:
        _copy(path, pages)
    (pages / "docs" / "cli.md").write_text(command_line(), encoding="utf-8")
    for name, stub in API.items():
        _place(pages / "docs" / "api" / f"{name}.md").write_text(python_page(ROOT / stub), encoding="utf-8")
    text, pictures = page(nbformat.read(NOTEBOOK, as_version=4), NOTEBOOK.stem)
    (pages / "docs" / "tutorial.md").write_text(text, encoding="utf-8")
    for name, data in pictures.items():
        (pages / "docs" / name).write_bytes(data)


def _copy(path: Path, pages: Path) -> None:
    shutil.copy(path, _place(pages / path.relative_to(ROOT)))


def _place(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _linked(source: Path, pages: Path) -> Iterator[Path]:
    """Files of the repository, no pages, to which a page links."""
    original = ROOT / ("README.md" if source.name == "index.md" else source.relative_to(pages))
    for target in re.findall(r"\]\(([^)\s#]+)[^)\s]*\)", source.read_text(encoding="utf-8")):
        found = (original.parent / target).resolve()
        if not target.startswith("http") and found.is_file() and found.suffix != ".md":
            yield found


def command_line() -> str:
    """The reference of every command with its options, from the command line itself."""
    import typer
    from typer.cli import get_docs_for_click

    from mechprobe.cli.app import app

    command = typer.main.get_command(app)
    with command.make_context("mechprobe", [], resilient_parsing=True) as context:
        text = get_docs_for_click(obj=command, ctx=context, name="mechprobe", title="Command line")
    return text.replace("```console", "```text")


def python_page(stub: Path) -> str:
    """The reference of the public names of one stub, by the room that they come from."""
    package = ".".join(stub.parent.relative_to(ROOT).parts)
    names = [(f"{package}.{node.module}", name.name) for node in ast.parse(stub.read_text(encoding="utf-8")).body
             if isinstance(node, ast.ImportFrom) and node.module for name in node.names]  # fmt: skip
    parts, room = [f"# {package}", (_docstring(stub.with_suffix(".py"))).strip()], ""
    for module, name in names:
        if (own := module.removeprefix(f"{package}.").partition(".")[0]) != room:
            room = own
            parts.append(f"## {room}")
        parts.append(f"::: {module}.{name}")
    return "\n\n".join(parts) + "\n"


def _docstring(path: Path) -> str:
    return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""


def source(path: Path) -> str:
    """The source of a module as mkdocstrings, which imports nothing, reads it: it knows ``Examples``, but not ``Example``."""
    return re.sub(r"^( +)Example:$", r"\1Examples:", path.read_text(encoding="utf-8"), flags=re.MULTILINE)


def build(folder: Path) -> Path:
    """Build the site in ``folder`` and return its first page.

    Raises:
        SystemExit: There was a warning, or a page would load something from a network.
    """
    shutil.rmtree(folder, ignore_errors=True)
    collect(folder / "pages")
    for path in (path for name in ("mechprobe", "sae_training") for path in (ROOT / name).rglob("*.py*")):
        if path.suffix in (".py", ".pyi"):
            _place(folder / path.relative_to(ROOT)).write_text(source(path), encoding="utf-8")
    shutil.copy(OWN / "zensical.toml", folder)
    run = subprocess.run(
        [sys.executable, "-m", "zensical", "build", "--strict"], cwd=folder, capture_output=True, text=True, check=False
    )
    said = re.sub(r"\x1b\[[0-9;]*m", "", run.stdout + run.stderr)
    if run.returncode or re.search(r"\bwarning\b", said, flags=re.IGNORECASE):
        raise SystemExit(f"The site has warnings:\n{said}")
    make_local(folder / "html")
    return folder / "html" / "index.html"


def make_local(site: Path) -> None:
    """Load the shim from the site, and make sure that nothing else comes from a network."""
    shutil.copy(OWN / "iframe-worker.js", site / "assets" / "javascripts")
    for path in site.rglob("*.html"):
        up = "../" * (len(path.relative_to(site).parts) - 1)
        text = path.read_text(encoding="utf-8").replace(SHIM, f"{up}assets/javascripts/iframe-worker.js")
        path.write_text(text, encoding="utf-8")
        if remote := re.findall(
            r"<(?:script|img|iframe|link rel=\"stylesheet\")[^>]*(?:src|href)=\"(?:https?:)?//[^\"]*", text
        ):
            raise SystemExit(f"{path.relative_to(site)} loads {remote[0]}")


if __name__ == "__main__":
    print(build(ROOT / "build" / "site"))
