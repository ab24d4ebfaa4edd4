"""The report stage: one self-contained HTML page, its Markdown and JSON versions, and the figures as PNG files."""

import base64
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from mechprobe.environment import require
from mechprobe.errors import DependencyError
from mechprobe.files import dump_json, write_bytes, write_text
from mechprobe.progress import activity, loading
from mechprobe.report.config import ReportConfig
from mechprobe.report.explorer.pages import current_contexts, has_explorer, write_explorer
from mechprobe.report.pages.drift import drift_page
from mechprobe.report.pages.examples import examples_page
from mechprobe.report.pages.templates import environment
from mechprobe.report.pages.timeline import timeline_page
from mechprobe.report.result import Report
from mechprobe.report.run_files import RunFiles
from mechprobe.report.sections.behaviour import behaviour_section, ceilings_section, engine_sentences, ordered_accuracy
from mechprobe.report.sections.dictionary_seeds import dictionary_seeds_section
from mechprobe.report.sections.features import dictionary_section, features_section
from mechprobe.report.sections.findings import findings, missing_stages, provenance_rows, verdict, warnings
from mechprobe.report.sections.interventions import interventions_section
from mechprobe.report.tables.interventions import dose_curves, measured_collateral
from mechprobe.report.timeline.build import build_timeline, stage_folders
from mechprobe.report.timeline.result import Timeline
from mechprobe.stage_folder import Stage

if TYPE_CHECKING:
    from matplotlib.figure import Figure

logger = logging.getLogger(__name__)
EXPLORER = "features"
"""Folder of the explorer inside the report."""


def build_report(files: RunFiles, config: ReportConfig) -> Report:
    """Everything that the report says, without its figures."""
    return Report(
        name=files.name,
        question=config.question,
        notes=[*files.run.get("notes", []), *engine_sentences(files)],
        verdict=verdict(files),
        warnings=warnings(files),
        findings=findings(files),
        evaluation=behaviour_section(files),
        localization=ceilings_section(files),
        crosscoder=dictionary_section(files),
        features=features_section(files, config),
        interventions=interventions_section(files),
        dictionary_seeds=dictionary_seeds_section(files),
        missing=missing_stages(files),
        provenance=provenance_rows(files),
    )


def report(run_dir: Path | str, config: ReportConfig | None = None) -> Path:
    """Write the report of a run and return the path of ``index.html``.

    Beside it are ``examples.html``, ``drift.html``, ``timeline.html``, ``report.md``, ``report.json``, ``timeline.json``,
    ``figures/*.png`` and the explorer ``features/index.html``. Without matplotlib, the figures are left out and a warning is logged. Only result files are read, so neither
    torch nor the models are needed. If a stage has not run, its section names the command that runs it. ``report.json`` holds a
    `mechprobe.report.result.Report`, ``timeline.json`` a `mechprobe.report.timeline.result.Timeline`.

    Args:
        run_dir: Run folder.
        config: What the report shows; None takes the settings in ``run.json``.

    Raises:
        ConfigError: ``run.json`` has unknown settings of the report.
        ArtifactError: The folder does not exist, contains no finished stage, or contains an unreadable file.
    """
    with loading("the results of the run"):
        files = RunFiles.read(run_dir)
        config = config or ReportConfig(**files.run.get("report", {}))
        content = build_report(files, config)
        timeline = build_timeline(files.layout, files.run, files.drift.base or files.base, config.axis)
    with activity("drawing figures"):
        pictures = _pictures(files, content, timeline)
    content = content.model_copy(update={"figures": sorted(pictures)})
    links = {"drift": bool(files.drift.folders), "timeline": timeline is not None, "explorer": has_explorer(files)}
    pages = {"index.html": _html(content, pictures, links), "report.md": _markdown(content)}
    if by_example := examples_page(files):
        pages["examples.html"] = by_example
    if by_drift := drift_page(files, _embedded(pictures)):
        pages["drift.html"] = by_drift
    if timeline is not None:
        pages["timeline.html"] = timeline_page(files.name, timeline, _embedded(pictures))
        pages["timeline.json"] = dump_json(timeline.to_dict())
    finished = [info.place for info in files.stages.values() if info.manifest]
    inputs = {name: files.layout.folder / folder for name, folder in finished} | files.drift.folders
    inputs |= stage_folders(files.layout) if timeline is not None else {}
    inputs |= {"contexts": contexts} if (contexts := current_contexts(files)) else {}
    settings = config.model_dump(mode="json")
    with Stage.open(files.layout.report, name="report", config=settings, inputs=inputs, force=True) as stage:
        for name, data in pictures.items():
            write_bytes(stage.folder / name, data)
        for name, text in pages.items():
            write_text(stage.folder / name, text)
        content.save(stage.folder / "report.json")
        with activity("writing the feature explorer"):
            explorer = [f"{EXPLORER}/{name}" for name in write_explorer(files, stage.folder / EXPLORER)]
        stage.finish(outputs=[*pages, "report.json", *pictures, *explorer])
    return files.layout.page


def report_markdown(run_dir: Path | str) -> str:
    """The report of a run as Markdown, without figures and without writing anything."""
    return _markdown(build_report(RunFiles.read(run_dir), ReportConfig()))


def _html(content: Report, pictures: dict[str, bytes], links: dict[str, bool]) -> str:
    """``links`` says which further pages there are."""
    return environment().get_template("report.html.j2").render(content.to_dict(), figures=_embedded(pictures), **links)


def _embedded(pictures: dict[str, bytes]) -> dict[str, str]:
    """Name of a figure → base64 of its PNG."""
    return {Path(name).stem: base64.b64encode(data).decode("ascii") for name, data in pictures.items()}


def _markdown(content: Report) -> str:
    names = [Path(name).stem for name in content.figures]
    return environment().get_template("report.md.j2").render(content.to_dict(), figures=names)


def _pictures(files: RunFiles, content: Report, timeline: Timeline | None) -> dict[str, bytes]:
    try:
        require("matplotlib", "A figure")
    except DependencyError as error:
        logger.warning("%s The report is written without figures.", error)
        return {}
    from mechprobe.report.figures.style import to_png
    from mechprobe.report.figures.timeline import draw_timeline

    figures = draw_figures(files, content) | (draw_timeline(timeline) if timeline is not None else {})
    return {f"figures/{name}.png": to_png(figure) for name, figure in figures.items()}


def draw_figures(files: RunFiles, content: Report) -> "dict[str, Figure]":
    """Every figure whose data exist, by name."""
    from mechprobe.report.figures.behaviour import accuracy_figure, ceilings_figure
    from mechprobe.report.figures.dictionary import shares_figure, training_figure
    from mechprobe.report.figures.drift import draw_drift

    figures = {}
    if files.evaluation:
        figures["accuracy"] = accuracy_figure(ordered_accuracy(files), files.evaluation.force_prefix)
    if files.ceilings:
        figures["ceilings"] = ceilings_figure(files.ceilings)
    if len(files.training) > 1:
        gate = files.quality["gate"].get("min_fve") if files.quality else None
        figures["training"] = training_figure(files.training, gate=gate)
    if files.features:
        figures["shares"] = shares_figure(files.features)
    return figures | _intervention_figures(files, content) | draw_drift(*files.drift)


def _intervention_figures(files: RunFiles, content: Report) -> "dict[str, Figure]":
    from mechprobe.report.figures.behaviour import share_figure
    from mechprobe.report.figures.interventions import collateral_figure, dose_figure, effects_figure
    from mechprobe.report.figures.rivals import faithfulness_figure, rivals_figure

    section, results = content.interventions, files.interventions
    if not section or not results:
        return {}
    figures = {}
    if results.get("comparisons"):
        figures["rivals"] = rivals_figure(results)
    if results.get("curves"):
        figures["faithfulness"] = faithfulness_figure(results["curves"])
    if section.panels:
        figures["effects"] = effects_figure([panel.to_dict() for panel in section.panels], section.tasks)
    if section.curves:
        figures["share_of_ceiling"] = share_figure(section.curves, section.size_intervals)
    if doses := dose_curves(results):
        figures["doses"] = dose_figure(doses, section.tasks)
    if collateral := measured_collateral(results):
        figures["collateral"] = collateral_figure(collateral, section.other_tasks)
    return figures
