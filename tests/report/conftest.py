"""A run folder with plausible result files of every stage, made without models."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from benchmarks.browser import browser_page
from mechprobe.files import write_json
from mechprobe.records import write_jsonl
from mechprobe.stage_folder import Stage
from mechprobe.statistics import wilson_interval

if TYPE_CHECKING:
    from playwright.sync_api import Page

TASKS = ("calculation", "fact_retrieval", "simulation", "enumeration", "diagnostic")
HELD_OUT = TASKS[1:]
BASE = dict(zip(TASKS, (0.13, 0.49, 0.25, 0.52, 0.31), strict=True))
SFT = dict(zip(TASKS, (0.95, 0.05, 0.16, 0.28, 0.26), strict=True))
RL = dict(zip(TASKS, (0.91, 0.54, 1.0, 0.83, 0.98), strict=True))
N = 64


def accuracy(values: dict[str, float], n: int = N) -> dict[str, list[float]]:
    return {task: list(wilson_interval(round(value * n), n)) for task, value in values.items()}


def evaluation() -> dict[str, Any]:
    forced = {**RL, "enumeration": 0.85}
    test = {task: {"gained": 40, "lost": 2, "n": 256, "p": 1e-9, "p_holm": 5e-9} for task in TASKS}
    return {
        "tasks": list(TASKS),
        "accuracy": {"base": accuracy(BASE, 256), "sft": accuracy(SFT, 256), "rl": accuracy(RL, 256)},
        "unparsed": {"base": dict.fromkeys(TASKS, 0.0), "sft": {**dict.fromkeys(TASKS, 0.0), "diagnostic": 0.04}},
        "force_prefix": {"prefix": "THINK", "model": "base", "accuracy": accuracy(forced, 256)},
        "mcnemar": {"sft": test, "rl": test},
    }


def ceilings() -> dict[str, Any]:
    sites = {
        "resid_post.0": (BASE, RL, 0.01, 0.02),
        "resid_post.1": ({**RL, "diagnostic": 0.9}, RL, 0.97, 0.02),
        "resid_post.2": (RL, BASE, 1.0, 0.99),
    }
    return {
        "tasks": list(TASKS), "n": dict.fromkeys(TASKS, N), "pair": ["base", "rl"],
        "clean": {"base": accuracy(BASE), "rl": accuracy(RL)},
        "sites": {
            site: {
                "sufficiency": accuracy(given), "necessity": accuracy(kept),
                "sufficiency_share": gain, "necessity_share": loss,
            }
            for site, (given, kept, gain, loss) in sites.items()
        },
        "chosen": "resid_post.2", "able": True,
        "reason": "resid_post.2 has both shares at 99 % or more; no other site has.",
    }  # fmt: skip


def delta(before: dict[str, float], after: dict[str, float]) -> dict[str, list[float]]:
    return {task: [after[task] - before[task], after[task] - before[task] - 0.09, after[task] - before[task] + 0.09, N]
            for task in before}  # fmt: skip


def pooled(values: dict[str, float]) -> dict[str, float]:
    return {**values, "pooled": float(np.mean([values[task] for task in HELD_OUT]))}


def condition(model: str, edit: str, features: str, kind: str, after: dict[str, float], **extra: Any) -> dict[str, Any]:
    clean, after = pooled(BASE if model == "base" else RL), pooled(after)
    gap = {task: (RL | {"pooled": 0.84})[task] - (BASE | {"pooled": 0.39})[task] for task in clean}
    share = {
        task: ((after[task] - clean[task]) / gap[task] if model == "base" else (clean[task] - after[task]) / gap[task])
        for task in clean
    }
    if share["fact_retrieval"]:
        share["fact_retrieval"] = None
    return {
        "name": f"{model}|{edit}|{features}", "model": model, "edit": edit, "features": features, "set_kind": kind,
        "donor": None, "draw": None, "n_features": 50,
        "accuracy": {**accuracy({t: min(1, max(0, v)) for t, v in after.items()})}, "accuracy_delta": delta(clean, after),
        "flip_rate_of_right": accuracy(dict.fromkeys(clean, 0.1)), "flip_rate_of_wrong": accuracy(dict.fromkeys(clean, 0.7)),
        "share_of_ceiling": share, **extra,
    }  # fmt: skip


def interventions() -> dict[str, Any]:
    rng = np.random.default_rng(0)

    def near(values: dict[str, float], spread: float = 0.05) -> dict[str, float]:
        return {task: float(np.clip(value + rng.normal(0, spread), 0, 1)) for task, value in values.items()}

    rows = [
        condition("base", "clean", "none", "clean", BASE, n_features=0),
        condition("rl", "clean", "none", "clean", RL, n_features=0),
        condition("base", "patch", "whole residual", "ceiling", RL, donor="rl"),
        condition("rl", "patch", "whole residual", "ceiling", BASE, donor="base"),
    ]
    for model, edit, donor, after, own in (
        ("base", "clamp:3.0", None, {**BASE, "simulation": 0.9, "diagnostic": 0.8}, BASE),
        ("base", "transplant", "rl", near(RL, 0.02), BASE),
        ("rl", "ablate", None, near({**RL, "enumeration": 0.6}), RL),
        ("rl", "transplant", "base", near(BASE, 0.02), RL),
    ):
        rows.append(condition(model, edit, "top50", "selected", after, donor=donor))
        rows += [condition(model, edit, f"random {i}", "random", near(own), donor=donor, draw=i) for i in range(20)]
        rows.append(condition(model, edit, "top50 by score", "compare", near(own, 0.1), donor=donor))
        rows.append(condition(model, edit, "shuffled directions", "shuffled", near(own), donor=donor))
    for model, own, donor, other in (("base", BASE, "rl", RL), ("rl", RL, "base", BASE)):
        rows.append(condition(model, "replace", "none", "recon", near(own, 0.02)))
        rows.append(condition(model, "vector", "mean difference", "baseline", near(own), donor=donor))
        for size, reach in ((1, 0.6), (2, 0.97), (5, 0.98), (10, 1.0), (20, 1.01)):
            after = {t: own[t] + reach * (other[t] - own[t]) for t in TASKS}
            rows.append(condition(model, "transplant", f"first {size}", "size", after, donor=donor, n_features=size))
    for value, after in (("0.5", BASE), ("1.0", {**BASE, "simulation": 0.6}), ("10.0", dict.fromkeys(TASKS, 0.0))):
        rows.append(condition("base", f"clamp:{value}", "top50", "dose", after))
    for row in rows:
        if row["set_kind"] in ("selected", "ceiling", "recon"):
            row["collateral"] = {"kl": [0.2, 0.15, 0.26, 900], "ce_change": [0.05, -0.01, 0.11, 900]}
    verdicts = [
        {"model": model, "edit": edit, "features": "top50", "task": task, "effect": [0.4, 0.3, 0.5], "n": N,
         "p_random": 0.048, "n_random": 20, "p_mcnemar": 1e-5, "verdict": "supported",
         "sentence": f"{edit} of top50 in {model} gives 40 [30, 50] points on {task} (n = {N}): supported."}
        for model, edit in (("base", "clamp:3.0"), ("base", "transplant"), ("rl", "ablate"), ("rl", "transplant"))
        for task in (*TASKS, "pooled")
    ]  # fmt: skip
    return {
        "site": "resid_post.2", "pair": ["base", "rl"], "tasks": list(TASKS), "held_out": list(HELD_OUT),
        "trained": [TASKS[0]], "n_per_task": dict.fromkeys(TASKS, N), "conditions": rows, "verdicts": verdicts,
        "verdict": "Do the features top50 cause the change from base to rl? transplant in base: supported; ablate in rl: "
        "not distinguishable from random sets.",
        "rule": "On the held-out tasks pooled: 'supported' when the interval is clear of 0 and p ≤ 0.05.",
        "other_tasks": [TASKS[0]],
        "collateral": {"source": "held-out prompts of no task", "n_texts": 60, "n_tokens": 900},
        "left_out": [
            {"model": model, "edit": "transplant", "features": f"top50 without {task}", "task": task, "n": N,
             "n_features": 50, "n_shared": 44, "effect": [0.3, 0.2, 0.4], "share": 0.9, "effect_with": [0.35, 0.25, 0.45],
             "share_with": 1.0, "p_mcnemar_holm": 0.002, "verdict": "supported"}
            for model in ("base", "rl") for task in HELD_OUT
        ],
        "sizes": {
            "base": {"n": 256, "largest": 50, "shares": [[1, 0.6, 0.5, 0.7], [2, 0.97, 0.93, 1.0], [50, 1.0, 0.98, 1.02]],
                     "50%": {"size": 1, "low": 1, "high": 2}, "90%": {"size": 2, "low": 2, "high": None}},
            "rl": {"n": 256, "reason": "the whole residual moves less than 5 points in rl"},
        },
    }  # fmt: skip


def features_summary() -> dict[str, Any]:
    rng = np.random.default_rng(1)
    models, histograms = ["base", "sft", "rl"], {}
    for name, center, spread in (("mas_base", 0.32, 0.02), ("mas_sft", 0.34, 0.07), ("mas_rl", 0.33, 0.02),
                                 ("nrn_sft", 0.52, 0.09), ("nrn_rl", 0.5, 0.02)):  # fmt: skip
        counts, edges = np.histogram(rng.normal(center, spread, 460).clip(0, 1), bins=50, range=(0, 1))
        histograms[name] = {"edges": edges.tolist(), "counts": counts.tolist()}
    counts = {"shared": 430, "base-only": 0, "sft-only": 12, "rl-only": 0, "base+rl": 6, "unconfirmed": 12, "dead": 564}
    return {
        "models": models, "base": "base", "n_features": 1024, "n_alive": 460, "n_rows": 424_000, "readout": "swap",
        "thresholds": {"absent_below": 0.5, "nu_error_max": 0.2, "nu_reconstruction_max": 0.5, "dead_density": 0.0},
        "class_counts": counts, "class_by_norm_counts": {**counts, "sft-only": 20, "unconfirmed": 0},
        "histograms": histograms, "quantiles": {},
    }  # fmt: skip


def quality(trusted: bool = True) -> dict[str, Any]:
    loss = {"ce_clean": 0.31, "ce_spliced": 0.34, "ce_zero": 4.2, "ce_recovered": 0.992, "kl_spliced": 0.03,
            "kl_zero": 3.9, "n_predictions": 5120, "n_samples": 256, "targets": "response"}  # fmt: skip
    model = {"fve": 0.975, "fve_per_token": 0.96, "l0": 24.1, "dead_share": 0.55, **loss}
    return {
        "models": {"base": model, "sft": {**model, "fve": 0.961}, "rl": model}, "l0": 24.0, "dead_share": 0.55,
        "n_rows": 21_000, "readout": "swap",
        "gate": {"min_fve": 0.9, "min_ce_recovered": 0.8, "max_dead_share": 0.95},
        "trusted": trusted, "failures": [] if trusted else ["FVE of sft is 0.861, below 0.90."],
    }  # fmt: skip


def examples(
    tokens: tuple[str, ...] = ("CALC", "4", "7", "+", "8", "5", "?", "THINK", "7", "+", "5", "=", "1", "2"),
) -> list[Any]:
    n = len(tokens)
    acts = np.round(np.clip(np.sin(np.arange(n)), 0, None) * 4, 2).tolist()
    statistics = {
        "feature": 0, "class": "shared", "mas_base": 0.33, "mas_sft": 0.34, "mas_rl": 0.33, "nrn_sft": 0.51,
        "nrn_rl": 0.5, "density_base": 0.17, "density_sft": 0.16, "density_rl": 0.18, "nu_error_sft": 0.97,
        "nu_reconstruction_sft": 1.0, "nu_error_rl": 0.96, "nu_reconstruction_rl": None, "cosine_base_sft": 0.7,
        "cosine_base_rl": 0.81, "shift_sft": 1.0, "shift_rl": 1.3,
    }  # fmt: skip
    context = {
        "sample": 3,
        "row": 40,
        "peak": int(np.argmax(acts)),
        "tokens": list(tokens),
        "is_response": [False] * n,
        "activations": {name: acts for name in ("joint", "base", "sft", "rl")},
    }
    return [
        {
            "feature": k,
            "statistics": {**statistics, "feature": k},
            "examples": [context, context],
            "quantiles": [],
            "n_active": 0,
            "n_random_rows": 0,
            "promoted": None,
        }
        for k in range(20)
    ]


def selection() -> dict[str, Any]:
    return {"ranking": "joint", "features": list(range(12)), "agnostic": [0, 1], "tasks": list(HELD_OUT), "scores": {},
            "controls": [[3], [4]], "note": ""}  # fmt: skip


def training() -> list[dict[str, Any]]:
    return [
        {"step": step, "tokens": step * 2048, "loss": 30 * np.exp(-step / 120) + 0.8,
         "fve": {name: 1 - 0.9 * float(np.exp(-step / 90)) - cost for name, cost in (("base", 0.02), ("sft", 0.04), ("rl", 0.025))},
         "dead_frac": min(0.5, step / 1500)}
        for step in range(1, 900, 25)
    ]  # fmt: skip


def write_stage(run: Path, name: str, folder: str, files: dict[str, Any]) -> None:
    with Stage.open(run / folder, name=name, config={"seed": 0}) as stage:
        for file, value in files.items():
            if file.endswith(".jsonl"):
                write_jsonl(stage.folder / file, value)
            else:
                write_json(stage.folder / file, value)
        stage.finish(outputs=list(files), counts={"files": len(files)}, seed=0)


def write_run(run: Path, *, without: tuple[str, ...] = (), trusted: bool = True, **replace: Any) -> Path:
    """A run folder. ``without`` names the stages to leave out; ``replace`` replaces the content of files."""
    contents = {
        "localize": ("localize", {"ceilings.json": replace.get("ceilings", ceilings())}),
        "cache": ("cache", {"tokens.json": {}}),
        "train-sae": ("crosscoder", {
            "config.json": {"config": {"variant": "batchtopk", "d_sae": 1024, "k": 24, "d_model": 128, "n_models": 3}},
            "metrics.jsonl": training(),
        }),
        "features": ("features", {
            "summary.json": replace.get("summary", features_summary()), "quality.json": quality(trusted),
            "examples.json": {"features": replace.get("examples", examples())},
        }),
        "evaluate": ("evals", {"summary.json": replace.get("evaluation", evaluation())}),
        "select": ("selection", {"selection.json": selection()}),
        "intervene": ("interventions", {"results.json": replace.get("interventions", interventions())}),
    }  # fmt: skip
    for name, (folder, files) in contents.items():
        if name not in without:
            write_stage(run, name, folder, files)
    return run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run")


@pytest.fixture(scope="session")
def browser() -> "Iterator[Page]":
    """A page of a browser without network; tests of pages are skipped where there is none."""
    with browser_page(color_scheme="light", permissions=["clipboard-read", "clipboard-write"]) as page:
        yield page
