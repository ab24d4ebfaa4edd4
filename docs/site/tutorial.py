"""Run docs/tutorial.ipynb and write its output into it: ``python docs/site/tutorial.py``. Also its page on the site."""

import base64
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).resolve().parents[1] / "tutorial.ipynb"
_LONGEST = 900
_SHOWN = ("image/png", "text/html", "text/plain")


def executed(folder: Path) -> Any:
    """The notebook with the output of its code, run in ``folder``.

    Progress on stderr, times and the version of Python are left out, so that two runs differ in content alone.

    Raises:
        CellExecutionError: A cell raised an error.
    """
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    place = {"metadata": {"path": str(folder)}}
    # The kernel may send one output in several parts, as time goes; they become one.
    NotebookClient(notebook, timeout=_LONGEST, kernel_name="python3", coalesce_streams=True, resources=place).execute()
    notebook.metadata.pop("language_info", None)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    return notebook


def page(notebook: Any, name: str) -> tuple[str, dict[str, bytes]]:
    """The notebook as Markdown, and its pictures by file name."""
    parts, pictures = [], dict[str, bytes]()
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            parts.append(cell.source)
            continue
        parts.append(f"```python\n{cell.source}\n```")
        for output in cell.outputs:
            data = output.get("data") or {"text/plain": output.get("text", "")}
            kind = next(kind for kind in _SHOWN if kind in data)
            if kind == "image/png":
                file = f"{name}_{len(pictures)}.png"
                pictures[file] = base64.b64decode(data[kind])
                parts.append(f"![Output of the code above]({file})")
            else:
                parts.append(data[kind] if kind == "text/html" else f"```text\n{data[kind].rstrip()}\n```")
    return "\n\n".join(parts) + "\n", pictures


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as scratch:
        made = executed(Path(scratch))
    nbformat.write(made, NOTEBOOK)
