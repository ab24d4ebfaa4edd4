"""The content of a report as one dict: sentences, rows, figures' inputs. HTML, Markdown and JSON are made from it."""

from collections.abc import Mapping
from typing import Any

from mechprobe.report.run_files import RunFiles
from mechprobe.report.tables import interventions as more, sections as tables
from mechprobe.types import POOLED

N_SHOWN = 12
QUESTION = (
    "Which features did post-training add, keep or lose, and which of them cause generalization: "
    "what happens when they are taken out of the tuned model or put into the base?"
)


def build_content(files: RunFiles) -> dict[str, Any]:
    """Everything that the report says; a section is None where its stage has not run."""
    return {
        "name": files.run.get("name") or files.run_dir.resolve().name,
        "question": files.run.get("question") or QUESTION,
        "notes": list(files.run.get("notes", [])),
        "verdict": verdict(files),
        "warnings": warnings(files),
        "findings": findings(files),
        "evaluation": _evaluation(files),
        "localization": _localization(files),
        "crosscoder": _crosscoder(files),
        "features": _features(files),
        "interventions": _interventions(files),
        "missing": [
            {"name": stage.name, "state": stage.state, "command": stage.command, "folder": stage.folder}
            for stage in files.missing
        ],
        "provenance": tables.provenance_rows(files.stages.values()),
    }


def verdict(files: RunFiles) -> str:
    """The answer in a sentence, or which command is needed for one."""
    if files.interventions and files.interventions.get("verdict"):
        return str(files.interventions["verdict"])
    return (
        "No causal verdict yet: the interventions have not been run "
        f"({files.stages['intervene'].command} makes them; what follows is correlational)."
    )


def warnings(files: RunFiles) -> list[str]:
    """What a reader must know before the numbers: the gate that failed, the site that cannot tell."""
    found = []
    if files.quality and not files.quality.get("trusted", False):
        found.append(
            "The crosscoder is below the quality gate, so its features are untrusted: "
            + " ".join(files.quality.get("failures", []))
        )
    failed = [name for name, value in files.nulls.items() if value.get("passed") is False]
    if failed:
        found.append(f"Nulls that failed: {tables.listing(failed)}. Classes of features are not to be believed.")
    if files.ceilings and files.ceilings.get("able") is False:
        found.append(files.ceilings["reason"])
    return found


def findings(files: RunFiles) -> list[str]:
    """The main numbers, one sentence each, in the order of the flow."""
    found: list[str] = []
    if files.evaluation:
        found += tables.evaluation_sentences(accuracy(files), files.base)
    if files.ceilings:
        found.append(_ceiling_sentence(files.ceilings))
    if files.quality:
        models = tables.ordered(files.quality["models"], files.models)
        fve = tables.listing(f"{name} {tables.number(q['fve']):.3f}" for name, q in models.items())
        state = "passes" if files.quality["trusted"] else "fails"
        found.append(f"The crosscoder {state} the quality gate: variance explained on held-out tokens is {fve}.")
    if files.features:
        found.append(_class_sentence(files.features))
    found += [str(value["sentence"]) for value in files.nulls.values()]
    if files.selection:
        found.append(_selection_sentence(files.selection))
        if not files.interventions:  # they say it of the set that they edit
            found += more.silence_sentences(files.selection)
    if files.interventions:
        told = [item for item in files.interventions.get("verdicts", []) if item.get("sentence")]
        pooled = [item for item in told if item.get("task") == POOLED]
        found += [_capital(str(item["sentence"])) for item in pooled or told]
        found += more.sentences(files.interventions)
    return [_capital(text) for text in found]


def accuracy(files: RunFiles) -> dict[str, dict[str, Any]]:
    """Accuracies in the order of the report."""
    return tables.ordered_accuracy(files.evaluation or {"accuracy": {}}, files.models, files.tasks)


def _capital(text: str) -> str:
    return text if text.split(" ")[0].lower() in ("sft", "rl", "base") else text[:1].upper() + text[1:]


def _ceiling_sentence(ceilings: Mapping[str, Any]) -> str:
    chosen = ceilings.get("chosen")
    site = ceilings["sites"].get(chosen, {})
    base, tuned = ceilings["pair"]
    n = max((int(value) for value in ceilings.get("n", {}).values()), default=0)
    return (
        f"Site {chosen}: {base} with {tuned}'s residual reaches {tables.percent(site.get('sufficiency_share'))} % of the "
        f"gain, and {tuned} with {base}'s residual loses {tables.percent(site.get('necessity_share'))} % of it "
        f"(n = {n} per task)."
    )


def _class_sentence(features: Mapping[str, Any]) -> str:
    counts = tables.ordered_classes(features["class_counts"], features["models"])
    named = tables.listing(f"{count:,} {name}" for name, count in counts.items() if name != "dead" and count)
    return (
        f"Of {features['n_features']:,} latents {features['n_alive']:,} are live: {named} "
        f"(norms and latent scaling together, {features['n_rows']:,} tokens)."
    )


def _selection_sentence(selection: Mapping[str, Any]) -> str:
    chosen, agnostic = len(selection.get("features", [])), len(selection.get("agnostic", []))
    tasks = tables.listing(selection.get("tasks", [])) or "the selection tasks"
    return (
        f"{chosen} features were selected by {selection.get('ranking', 'an unnamed ranking')}; {agnostic} features "
        f"pass the threshold on every selection task ({tasks})."
    )


def _evaluation(files: RunFiles) -> dict[str, Any] | None:
    evaluation = files.evaluation
    if evaluation is None:
        return None
    forced = evaluation.get("force_prefix")
    found = accuracy(files)
    return {
        "models": list(found),
        "rows": tables.accuracy_rows(found, evaluation),
        "forced": f"{forced['model']}, forced to begin with {forced['prefix']}" if forced else None,
        "unparsed": {
            model: tables.listing(f"{task} {tables.percent(share)} %" for task, share in shares.items() if share)
            for model, shares in (evaluation.get("unparsed") or {}).items()
        },
    }


def _localization(files: RunFiles) -> dict[str, Any] | None:
    ceilings = files.ceilings
    if ceilings is None:
        return None
    return {
        "tasks": list(ceilings["tasks"]),
        "base": ceilings["pair"][0],
        "tuned": ceilings["pair"][1],
        "chosen": ceilings.get("chosen"),
        "reason": ceilings.get("reason", ""),
        "rows": tables.ceiling_rows(ceilings),
    }


def _crosscoder(files: RunFiles) -> dict[str, Any] | None:
    if files.quality is None and not files.training:
        return None
    config = (files.crosscoder or {}).get("config", {})
    quality = files.quality
    return {
        "config": {key: config[key] for key in ("variant", "d_sae", "k", "d_model", "n_models") if key in config},
        "rows": tables.quality_rows(tables.ordered(quality["models"], files.models)) if quality else [],
        "l0": f"{tables.number(quality['l0']):.1f}" if quality else None,
        "dead": tables.percent(quality["dead_share"], 1) if quality else None,
        "n_rows": quality["n_rows"] if quality else None,
        "targets": _targets(quality),
        "trusted": quality["trusted"] if quality else None,
        "failures": quality["failures"] if quality else [],
        "steps": files.training[-1].get("step") if files.training else None,
        "tokens": files.training[-1].get("tokens") if files.training else None,
    }


def _targets(quality: Mapping[str, Any] | None) -> str | None:
    """Which tokens the spliced loss was measured on; None where it was not."""
    models = quality["models"].values() if quality else []
    return next((model["targets"] for model in models if model.get("targets")), None)


def _features(files: RunFiles) -> dict[str, Any] | None:
    summary = files.features
    if summary is None and files.selection is None:
        return None
    selected = [int(feature) for feature in (files.selection or {}).get("features", [])]
    shown_selected = [feature for feature in selected if feature in files.examples][:N_SHOWN]
    others = [feature for feature in files.examples if feature not in selected][:N_SHOWN]
    models = list(summary["models"]) if summary else []
    return {
        "summary": summary,
        "trusted": bool(files.quality and files.quality["trusted"]),
        "models": models,
        "tuned": [name for name in models if summary and name != summary["base"]],
        "counts": [
            {"name": name, "count": count, "by_norm": summary["class_by_norm_counts"].get(name, 0)}
            for name, count in tables.ordered_classes(summary["class_counts"], models).items()
        ]
        if summary
        else [],
        "selection": _selection(files.selection),
        "selected": tables.feature_rows(shown_selected, files.examples, summary),
        "others": tables.feature_rows(others, files.examples, summary),
    }


def _selection(selection: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if selection is None:
        return None
    return {
        "sentence": _selection_sentence(selection),
        "ids": [int(feature) for feature in selection.get("features", [])],
        "n_controls": len(selection.get("controls", [])),
        "note": selection.get("note") or "",
    }


def _interventions(files: RunFiles) -> dict[str, Any] | None:
    results = files.interventions
    if results is None:
        return None
    tasks = tables.effect_tasks(results, files.tasks)
    panels = tables.effect_panels(results, files.evaluation, tasks)
    verdicts = results.get("verdicts", [])
    return {
        "site": results.get("site"),
        "panels": panels,
        "tasks": tasks,
        "trained": list(results.get("trained", [])),
        "tables": [
            {
                "title": panel["title"],
                "set": panel["condition"].get("features"),
                "n_features": panel["condition"].get("n_features"),
                "rows": tables.effect_rows(panel, verdicts, tasks),
            }
            for panel in panels
        ],
        "others": tables.other_rows(results, tasks),
        "curves": tables.share_curves(results, tasks),
        "size_intervals": more.size_intervals(results),
        "sizes": more.size_sentences(results),
        "doses": more.dose_rows(results, tasks),
        "left_out": more.left_out_rows(results),
        "collateral": more.collateral_rows(results),
        "collateral_of": results.get("collateral"),
        "other_tasks": list(results.get("other_tasks") or []),
        "rule": results.get("rule", ""),
        "n_conditions": len(results["conditions"]),
    }
