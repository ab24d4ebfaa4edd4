"""The report stage: self-contained HTML pages, their Markdown and JSON versions, and the figures as files."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from mechprobe.environment import require
from mechprobe.errors import DependencyError
from mechprobe.files import dump_json, write_bytes, write_text
from mechprobe.progress import activity, loading
from mechprobe.report.config import ReportConfig
from mechprobe.report.explorer.pages import current_contexts, has_explorer, write_explorer
from mechprobe.report.glossary import TERMS
from mechprobe.report.pages.drift import drift_page
from mechprobe.report.pages.examples import examples_page
from mechprobe.report.pages.html import drawn, figure_files, further_page, index_page, shown
from mechprobe.report.pages.markdown import report_markdown as markdown
from mechprobe.report.pages.timeline import timeline_page
from mechprobe.report.result import Link, Report
from mechprobe.report.run_files import RunFiles
from mechprobe.report.sections.behaviour import behaviour_section, ceilings_section, engine_sentences, ordered_accuracy
from mechprobe.report.sections.effects import effect_panels, effect_tasks, share_curves
from mechprobe.report.sections.features import dictionary_section, features_section, selection_section
from mechprobe.report.sections.findings import missing_stages, provenance_section, warnings
from mechprobe.report.sections.first_screen import first_screen, without_figure
from mechprobe.report.sections.interventions import interventions_section
from mechprobe.report.sections.side import drift_section, dynamics_section, emergence_section
from mechprobe.report.tables.interventions import dose_curves, measured_collateral, size_intervals
from mechprobe.report.timeline.build import build_timeline, stage_folders
from mechprobe.report.timeline.result import Timeline
from mechprobe.run_layout import RunLayout
from mechprobe.stage_folder import MANIFEST, Stage, check_outputs, read_manifest

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from mechprobe.report.figures.drawing import Drawing

logger = logging.getLogger(__name__)
EXPLORER = "features"
"""Folder of the explorer inside the report."""


def build_report(files: RunFiles, config: ReportConfig, timeline: Timeline | None = None) -> Report:
    """Everything that the pages say, without the figures."""
    sections = [
        behaviour_section(files),
        ceilings_section(files),
        dictionary_section(files),
        features_section(files, config, _feature_links(files)),
        emergence_section(files),
        selection_section(files, config, _feature_links(files)),
        interventions_section(files),
        drift_section(files),
        dynamics_section(files, timeline),
        provenance_section(files),
    ]
    first = first_screen(files, sections)
    pages = {"drift": drift_page(files)} if files.drift.folders else {}
    pages |= {"timeline": timeline_page(timeline)} if timeline is not None else {}
    return Report(
        name=files.name,
        question=config.question,
        verdict=str((files.interventions or {}).get("verdict") or ""),
        first=first,
        warnings=warnings(files),
        notes=[*files.run.get("notes", []), *engine_sentences(files)],
        sections=[without_figure(section, first.figure) for section in sections],
        pages=pages,
        missing=missing_stages(files),
        terms=TERMS,
    )


def _feature_links(files: RunFiles) -> list[Link]:
    found = []
    if has_explorer(files):
        text = "The feature explorer has every live feature: search, plots with a brush, contexts of all models side by side"
        found.append(Link(text=text, href=f"{EXPLORER}/index.html"))
    if files.examples:
        text = "Features by example: random contexts, promoted tokens and labels"
        found.append(Link(text=text, href="examples.html"))
    return found


def report(run_dir: Path | str, config: ReportConfig | None = None) -> Path:
    """Write the report of a run and return the path of ``index.html``.

    Beside it are ``examples.html``, ``drift.html``, ``timeline.html``, ``report.md``, ``report.json``, ``timeline.json``, the
    figures as ``figures/*.svg``, PNG, PDF and their data as CSV, and the explorer ``features/index.html``. Without matplotlib, the
    figures are left out and a warning is logged. Only result files are read, so neither torch nor the models are needed. If a
    stage has not run, its section names the command that runs it. ``report.json`` holds a
    `mechprobe.report.result.Report`, ``timeline.json`` a `mechprobe.report.timeline.result.Timeline`.

    Args:
        run_dir: Run folder.
        config: What the report shows; None takes the settings in ``run.json``.

    Raises:
        ConfigError: ``run.json`` has unknown settings of the report.
        ArtifactError: The folder does not exist, contains no finished stage, or a file that is unreadable or was changed.
    """
    with loading("the results of the run"):
        check_results(run_dir)
        files = RunFiles.read(run_dir)
        config = config or ReportConfig(**files.run.get("report", {}))
        timeline = build_timeline(files.layout, files.run, files.drift.base or files.base, config.axis)
        content = build_report(files, config, timeline)
    with activity("drawing figures"):
        drawings = _drawings(files, content, timeline)
    content = content.model_copy(update={"figures": drawn(drawings, content.title_of)})
    pages = _pages(files, content, drawings)
    if timeline is not None:
        pages["timeline.json"] = dump_json(timeline.to_dict())
    finished = [info.place for info in files.stages.values() if info.manifest]
    inputs = {name: files.layout.folder / folder for name, folder in finished} | files.drift.folders
    inputs |= stage_folders(files.layout) if timeline is not None else {}
    inputs |= {"contexts": contexts} if (contexts := current_contexts(files)) else {}
    settings = config.model_dump(mode="json")
    with Stage.open(files.layout.report, name="report", config=settings, inputs=inputs, force=True) as stage:
        with activity("writing figures"):
            for name, data in (pictures := figure_files(drawings)).items():
                write_bytes(stage.folder / name, data)
        for name, text in pages.items():
            write_text(stage.folder / name, text)
        content.save(stage.folder / "report.json")
        with activity("writing the feature explorer"):
            links = _links(files, content)
            explorer = [f"{EXPLORER}/{name}" for name in write_explorer(files, stage.folder / EXPLORER, links)]
        stage.finish(outputs=[*pages, "report.json", *pictures, *explorer])
    return files.layout.page


def check_results(run_dir: Path | str) -> None:
    """Check that every result file of the finished stages is as its stage wrote it.

    Raises:
        ArtifactError: One is missing or was changed.
    """
    for path in sorted(Path(run_dir).glob(f"*/{MANIFEST}")):
        if path.parent != RunLayout(Path(run_dir)).report:
            check_outputs(path.parent, read_manifest(path.parent), kinds=(".json", ".jsonl", ".parquet"))


def report_markdown(run_dir: Path | str) -> str:
    """The report of a run as Markdown, without figures and without writing anything."""
    files = RunFiles.read(run_dir)
    config = ReportConfig(**files.run.get("report", {}))
    timeline = build_timeline(files.layout, files.run, files.drift.base or files.base, config.axis)
    return markdown(build_report(files, config, timeline))


def _pages(files: RunFiles, content: Report, drawings: "dict[str, Drawing]") -> dict[str, str]:
    """The text of every page, by file name."""
    figures = shown(drawings)
    links = _links(files, content)
    found = {"index.html": index_page(content, figures, links), "report.md": markdown(content)}
    for name, page in content.pages.items():
        found[f"{name}.html"] = further_page(name, page, content.name, figures, links)
    return found | ({"examples.html": examples_page(files, links)} if files.examples else {})


def _links(files: RunFiles, content: Report) -> dict[str, bool]:
    """Which further pages there are."""
    return {"examples": bool(files.examples), "explorer": has_explorer(files), **dict.fromkeys(content.pages, True)}


def _drawings(files: RunFiles, content: Report, timeline: Timeline | None) -> "dict[str, Drawing]":
    """Every figure by name, drawn."""
    try:
        require("matplotlib", "A figure")
    except DependencyError as error:
        logger.warning("%s The report is written without figures.", error)
        return {}
    from mechprobe.report.figures.drawing import draw
    from mechprobe.report.figures.timeline import draw_timeline

    figures = draw_figures(files) | (draw_timeline(timeline) if timeline is not None else {})
    return {name: draw(figure, name, content.title_of(name)) for name, figure in figures.items()}


def draw_figures(files: RunFiles) -> "dict[str, Figure]":
    """Every figure whose data exist, by name."""
    from mechprobe.report.figures.behaviour import accuracy_figure, ceilings_figure
    from mechprobe.report.figures.dictionary import shares_figure, training_figure
    from mechprobe.report.figures.drift import draw_drift
    from mechprobe.report.figures.emergence import curves_figure

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
    if files.emergence:
        figures["curves"] = curves_figure(files.emergence)
    return figures | _intervention_figures(files) | draw_drift(*files.drift)


def _intervention_figures(files: RunFiles) -> "dict[str, Figure]":
    from mechprobe.report.figures.behaviour import share_figure
    from mechprobe.report.figures.interventions import collateral_figure, dose_figure, effects_figure
    from mechprobe.report.figures.rivals import faithfulness_figure, rivals_figure

    results = files.interventions
    if not results:
        return {}
    tasks = effect_tasks(results, files.tasks)
    figures = {}
    if results.get("comparisons"):
        figures["rivals"] = rivals_figure(results)
    if results.get("curves"):
        figures["faithfulness"] = faithfulness_figure(results["curves"])
    if panels := effect_panels(results, files.evaluation, tasks):
        figures["effects"] = effects_figure([panel.to_dict() for panel in panels], tasks)
    if curves := share_curves(results, tasks):
        figures["share_of_ceiling"] = share_figure(curves, size_intervals(results))
    if doses := dose_curves(results):
        figures["doses"] = dose_figure(doses, tasks)
    if (collateral := measured_collateral(results)) and results.get("collateral"):
        figures["collateral"] = collateral_figure(collateral, list(results.get("other_tasks") or []))
    return figures
