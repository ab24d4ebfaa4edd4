"""The content of a report, made from the files of a run."""

from mechprobe.report.config import ReportConfig
from mechprobe.report.result import Report
from mechprobe.report.run_files import RunFiles
from mechprobe.report.sections.behaviour import behaviour_section
from mechprobe.report.sections.ceilings import ceilings_section
from mechprobe.report.sections.dictionary import dictionary_section
from mechprobe.report.sections.features import features_section
from mechprobe.report.sections.findings import findings, verdict, warnings
from mechprobe.report.sections.interventions import interventions_section
from mechprobe.report.sections.provenance import missing_stages, provenance_rows


def build_report(files: RunFiles, config: ReportConfig) -> Report:
    """Everything that the report says, without its figures."""
    return Report(
        name=files.name,
        question=config.question,
        notes=list(files.run.get("notes", [])),
        verdict=verdict(files),
        warnings=warnings(files),
        findings=findings(files),
        evaluation=behaviour_section(files),
        localization=ceilings_section(files),
        crosscoder=dictionary_section(files),
        features=features_section(files, config),
        interventions=interventions_section(files),
        missing=missing_stages(files),
        provenance=provenance_rows(files),
    )
