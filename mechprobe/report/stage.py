"""Write the report of a run: one self-contained HTML file, Markdown, JSON, and the figures as PNG."""

import base64
import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from matplotlib.figure import Figure

from mechprobe.files import write_bytes, write_json, write_text
from mechprobe.markdown import markdown_cell
from mechprobe.report.figures import overview as figures
from mechprobe.report.figures.effects import effects_figure
from mechprobe.report.figures.interventions import collateral_figure, dose_figure
from mechprobe.report.pages.examples import examples_content, examples_page
from mechprobe.report.run_files import RunFiles
from mechprobe.report.sections import accuracy, build_content
from mechprobe.report.tables.interventions import dose_curves, measured_collateral
from mechprobe.stage_folder import Stage

HTML_FILE, MARKDOWN_FILE, JSON_FILE = "index.html", "report.md", "report.json"
EXAMPLES_PAGE = "examples.html"
_DPI = 160


def report(run_dir: Path | str) -> Path:
    """Write ``report/index.html``, ``examples.html``, ``report.md``, ``report.json`` and ``figures/*.png`` into a run.

    It reads result files only: no model, no activation, no torch. A stage that has not run is named with the
    command that makes it.

    Args:
        run_dir: Folder written by ``mechprobe run`` or by the single stages.

    Returns:
        Path of the HTML file.

    Raises:
        ArtifactError: The folder is missing or holds no finished stage.
    """
    files = RunFiles.read(run_dir)
    content = build_content(files)
    pictures = {name: _png(figure) for name, figure in draw_figures(files, content).items()}
    figure_files = {f"figures/{name}.png": data for name, data in sorted(pictures.items())}
    embedded = {name: base64.b64encode(data).decode("ascii") for name, data in pictures.items()}
    inputs = {stage.name: files.run_dir / stage.folder for stage in files.stages.values() if stage.manifest}
    with Stage.open(files.run_dir / "report", name="report", config={}, inputs=inputs, force=True) as stage:
        for name, data in figure_files.items():
            write_bytes(stage.folder / name, data)
        outputs = [HTML_FILE, MARKDOWN_FILE, JSON_FILE, *figure_files]
        by_example = examples_content(files)
        if by_example is not None:
            write_text(stage.folder / EXAMPLES_PAGE, examples_page(by_example, _environment()))
            outputs.append(EXAMPLES_PAGE)
        page = _environment().get_template("report.html.j2").render(content, figures=embedded)
        write_text(stage.folder / HTML_FILE, page)
        markdown = _environment().get_template("report.md.j2").render(content, figures=sorted(pictures))
        write_text(stage.folder / MARKDOWN_FILE, markdown)
        write_json(stage.folder / JSON_FILE, {**content, "figures": list(figure_files)})
        stage.finish(outputs=outputs)
    return files.run_dir / "report" / HTML_FILE


def draw_figures(files: RunFiles, content: dict[str, Any]) -> dict[str, Figure]:
    """The figures whose data are there, by name."""
    wanted: list[tuple[str, bool, Callable[[], Figure]]] = [
        ("accuracy", files.evaluation is not None, lambda: _accuracy(files)),
        ("ceilings", files.ceilings is not None, lambda: figures.ceilings_figure(files.ceilings or {})),
        ("training", len(files.training) > 1, lambda: figures.training_figure(files.training, gate=_gate(files))),
        ("shares", files.features is not None, lambda: figures.shares_figure(files.features or {})),
    ]
    section, results = content["interventions"], files.interventions
    if section and results:
        doses, measured = dose_curves(results), measured_collateral(results)
        wanted += [
            ("effects", bool(section["panels"]), lambda: effects_figure(section["panels"], section["tasks"])),
            (
                "share_of_ceiling",
                bool(section["curves"]),
                lambda: figures.share_figure(section["curves"], section["size_intervals"]),
            ),
            ("doses", bool(doses), lambda: dose_figure(doses, section["tasks"])),
            ("collateral", bool(measured), lambda: collateral_figure(measured, section["other_tasks"])),
        ]
    return {name: draw() for name, there, draw in wanted if there}


def _accuracy(files: RunFiles) -> Figure:
    found, forced = accuracy(files), (files.evaluation or {}).get("force_prefix")
    if not forced:
        return figures.accuracy_figure(found)
    label = f"{forced['model']}, forced to begin with {forced['prefix']}"
    return figures.accuracy_figure(found, forced=forced["accuracy"], forced_label=label)


def _gate(files: RunFiles) -> float | None:
    return files.quality["gate"].get("min_fve") if files.quality else None


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # A name in a script that the font lacks is a row of boxes; the tables have it in full.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(buffer, format="png", dpi=_DPI, metadata={"Software": None})
    return buffer.getvalue()


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("mechprobe.report"),
        autoescape=select_autoescape(["html", "html.j2"], default_for_string=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["cell"] = markdown_cell
    environment.filters["shade"] = _shade
    environment.filters["visible"] = visible
    environment.filters["inert"] = inert
    return environment


def _shade(value: float, largest: float) -> str:
    """Background opacity of a token, from 0 to 0.85."""
    if not largest or value <= 0:
        return "0"
    return f"{0.12 + 0.73 * min(1.0, value / largest):.2f}"


def visible(token: str) -> str:
    """Token text with blanks, line breaks, tabs and control characters made visible."""
    return inert(token.replace("\n", "⏎").replace("\t", "⇥").replace(" ", "\u00a0")) or "∅"


def inert(text: str) -> str:
    """Text whose control and direction characters are spelled out, so that they do nothing."""
    return "".join(char if char.isprintable() or char == "\u00a0" else f"\\x{ord(char):02x}" for char in text)
