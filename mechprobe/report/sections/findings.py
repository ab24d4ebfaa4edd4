"""The verdict, the warnings and the main numbers of a run as sentences, and how each stage was made."""

from collections.abc import Mapping
from typing import Any

from mechprobe.formatting import listing
from mechprobe.report.result import MissingStage, ProvenanceRow
from mechprobe.report.run_files import RunFiles, StageInfo
from mechprobe.report.sections.behaviour import behaviour_sentences, ceilings_sentence, ordered_accuracy
from mechprobe.report.sections.features import class_sentence, dictionary_sentence, selection_sentence
from mechprobe.report.tables.interventions import control_sentences, sentences
from mechprobe.selection.never_active import never_active_sentences
from mechprobe.types import POOLED

_RUNS_MODELS = ("localize", "cache", "features", "evaluate", "select", "intervene")
"""Stages that run models, and whose settings name how."""


def verdict(files: RunFiles) -> str:
    """The answer of the interventions in one sentence, or the command that is needed for one."""
    if files.interventions and files.interventions.get("verdict"):
        return str(files.interventions["verdict"])
    command = files.stages["intervene"].place.command
    return f"No causal verdict yet: `{command}` has not run, so everything below is correlational."


def warnings(files: RunFiles) -> list[str]:
    """Defects that limit what the numbers can show."""
    found = []
    if files.quality and not files.trusted:
        failures = " ".join(files.quality.get("failures", []))
        found.append(f"The crosscoder failed the quality gate, so its features are untrusted. {failures}".strip())
    failed = [name for name, value in files.nulls.items() if value.get("passed") is False]
    if failed:
        found.append(f"These null comparisons failed: {listing(failed)}. The feature classes are therefore unreliable.")
    if files.ceilings and not files.ceilings.able:
        found.append(files.ceilings.reason)
    found += [
        f"{name} was made from other interventions than the run holds now and is left out; repeat `mechprobe run` with "
        "--dictionary-seeds."
        for name in files.outdated
    ]
    return found


def findings(files: RunFiles) -> list[str]:
    """The main numbers, one sentence each, in the order of the pipeline."""
    found = behaviour_sentences(ordered_accuracy(files), files.base)
    if files.ceilings:
        found.append(ceilings_sentence(files.ceilings))
    if files.quality:
        found.append(dictionary_sentence(files, files.quality))
    if files.features:
        found.append(class_sentence(files.features))
    found += [str(value["sentence"]) for value in files.nulls.values()]
    if files.selection:
        found.append(selection_sentence(files.selection))
        if not files.interventions:  # the interventions have this sentence about the set that they edit
            found += never_active_sentences(files.selection)
    if files.interventions:
        judged = [row for row in files.interventions["verdicts"] if row.get("sentence")]
        pooled = [row for row in judged if row["task"] == POOLED]
        found += [str(row["sentence"]) for row in pooled or judged]
        found += [*control_sentences(files.interventions), *sentences(files.interventions)]
    if files.dictionary_seeds:
        found.append(str(files.dictionary_seeds["sentence"]))
    return [_capitalized(text, files.models) for text in found]


def _capitalized(text: str, names: list[str]) -> str:
    """A sentence with a capital first letter, unless it begins with the name of a model."""
    return text if text.split(" ")[0] in names else text[:1].upper() + text[1:]


def missing_stages(files: RunFiles) -> list[MissingStage]:
    """Stages that are not finished, with the commands that run them."""
    return [MissingStage(**_identity(stage)) for stage in files.stages.values() if not stage.manifest]


def provenance_rows(files: RunFiles) -> list[ProvenanceRow]:
    """One row per stage: state, time, seed, versions, commit, model fingerprints."""
    return [_provenance(stage) for stage in files.stages.values()]


def _identity(stage: StageInfo) -> dict[str, str]:
    place = stage.place
    return {"name": place.name, "state": stage.state, "command": place.command, "folder": place.folder}


def _provenance(stage: StageInfo) -> ProvenanceRow:
    manifest = stage.manifest
    environment = manifest.get("environment", {})
    return ProvenanceRow(
        **_identity(stage),
        seconds=f"{manifest['seconds']:.1f}" if "seconds" in manifest else "–",
        precision=_precision(stage.place.name, manifest),
        seed=manifest.get("seed"),
        commit=(environment.get("git_commit") or "–")[:19],
        counts=manifest.get("counts", {}),
        config=manifest.get("config", {}),
        models={name: digest[:12] for name, digest in manifest.get("models", {}).items()},
        packages=environment.get("packages", {}),
    )


def _precision(stage: str, manifest: Mapping[str, Any]) -> str:
    """Dtype and attention of a stage's models. Settings name them where they are not float32 and eager attention."""
    if stage not in _RUNS_MODELS or not manifest.get("models"):
        return ""
    config = manifest.get("config", {})
    dtypes = {name: config.get("model_dtypes", {}).get(name, "float32") for name in manifest["models"]}
    named = ", ".join(f"{name} {dtype}" for name, dtype in dtypes.items())
    dtype = named if len(set(dtypes.values())) > 1 else next(iter(dtypes.values()))
    return f"{dtype}{', TF32' if config.get('tf32') else ''}, {config.get('attention', 'eager')} attention"
