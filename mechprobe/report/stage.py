"""The report stage: one self-contained HTML page, its Markdown and JSON versions, and the figures as PNG files."""

import base64
from collections.abc import Callable
from pathlib import Path

from matplotlib.figure import Figure

from mechprobe.files import write_bytes, write_text
from mechprobe.report.config import ReportConfig
from mechprobe.report.content import build_report
from mechprobe.report.figures.behaviour import accuracy_figure
from mechprobe.report.figures.ceilings import ceilings_figure, share_figure
from mechprobe.report.figures.dictionary import shares_figure, training_figure
from mechprobe.report.figures.interventions import collateral_figure, dose_figure, effects_figure
from mechprobe.report.figures.style import to_png
from mechprobe.report.pages.examples import examples_page
from mechprobe.report.pages.templates import environment
from mechprobe.report.result import Report
from mechprobe.report.run_files import RunFiles
from mechprobe.report.sections.behaviour import ordered_accuracy
from mechprobe.report.tables.interventions import dose_curves, measured_collateral
from mechprobe.stage_folder import Stage

HTML_FILE, MARKDOWN_FILE, JSON_FILE, EXAMPLES_FILE = "index.html", "report.md", "report.json", "examples.html"


def report(run_dir: Path | str, config: ReportConfig | None = None) -> Path:
    """Write the report of a run: ``index.html``, ``examples.html``, ``report.md``, ``report.json`` and ``figures/*.png``.

    Only result files are read, so neither torch nor the models are needed. If a stage has not run, its section names the
    command that runs it. ``report.json`` holds a `mechprobe.report.result.Report`.

    Args:
        run_dir: Run folder.
        config: What the report shows; None takes the settings in ``run.json``.

    Returns:
        Path of ``index.html``.

    Raises:
        ConfigError: ``run.json`` has unknown settings of the report.
        ArtifactError: The folder does not exist, contains no finished stage, or contains an unreadable file.
    """
    files = RunFiles.read(run_dir)
    config = config or ReportConfig(**files.run.get("report", {}))
    content = build_report(files, config)
    pictures = {f"figures/{name}.png": to_png(figure) for name, figure in draw_figures(files, content).items()}
    content = content.model_copy(update={"figures": sorted(pictures)})
    pages = {HTML_FILE: _html(content, pictures), MARKDOWN_FILE: _markdown(content)}
    by_example = examples_page(files)
    if by_example is not None:
        pages[EXAMPLES_FILE] = by_example
    inputs = {info.place.name: files.layout.folder / info.place.folder for info in files.stages.values() if info.done}
    with Stage.open(
        files.layout.report, name="report", config=config.model_dump(mode="json"), inputs=inputs, force=True
    ) as stage:
        for name, data in pictures.items():
            write_bytes(stage.folder / name, data)
        for name, text in pages.items():
            write_text(stage.folder / name, text)
        content.save(stage.folder / JSON_FILE)
        stage.finish(outputs=[*pages, JSON_FILE, *pictures])
    return files.layout.page


def report_markdown(run_dir: Path | str) -> str:
    """The report of a run as Markdown, without figures and without writing anything."""
    return _markdown(build_report(RunFiles.read(run_dir), ReportConfig()))


def _html(content: Report, pictures: dict[str, bytes]) -> str:
    embedded = {Path(name).stem: base64.b64encode(data).decode("ascii") for name, data in pictures.items()}
    return environment().get_template("report.html.j2").render(content.to_dict(), figures=embedded)


def _markdown(content: Report) -> str:
    names = [Path(name).stem for name in content.figures]
    return environment().get_template("report.md.j2").render(content.to_dict(), figures=names)


def draw_figures(files: RunFiles, content: Report) -> dict[str, Figure]:
    """Every figure whose data exist, by name."""
    drawn: dict[str, Callable[[], Figure]] = {}
    if files.evaluation:
        forced = files.evaluation.force_prefix
        drawn["accuracy"] = lambda: accuracy_figure(ordered_accuracy(files), forced)
    if ceilings := files.ceilings:
        drawn["ceilings"] = lambda: ceilings_figure(ceilings)
    if len(files.training) > 1:
        gate = files.quality["gate"].get("min_fve") if files.quality else None
        drawn["training"] = lambda: training_figure(files.training, gate=gate)
    if features := files.features:
        drawn["shares"] = lambda: shares_figure(features)
    drawn |= _intervention_figures(files, content)
    return {name: draw() for name, draw in drawn.items()}


def _intervention_figures(files: RunFiles, content: Report) -> dict[str, Callable[[], Figure]]:
    section, results = content.interventions, files.interventions
    if not section or not results:
        return {}
    panels, doses, collateral = section.panels, dose_curves(results), measured_collateral(results)
    drawn: list[tuple[str, bool, Callable[[], Figure]]] = [
        ("effects", bool(panels), lambda: effects_figure([panel.to_dict() for panel in panels], section.tasks)),
        ("share_of_ceiling", bool(section.curves), lambda: share_figure(section.curves, section.size_intervals)),
        ("doses", bool(doses), lambda: dose_figure(doses, section.tasks)),
        ("collateral", bool(collateral), lambda: collateral_figure(collateral, section.other_tasks)),
    ]
    return {name: draw for name, exists, draw in drawn if exists}
