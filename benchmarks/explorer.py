"""Time and memory to write the feature explorer, and what a browser takes to show it.

    python -m benchmarks.explorer --folder runs/explorer_benchmark
    python -m benchmarks.explorer --folder runs/explorer_benchmark --features 1024 --contexts 4

The run folder holds made-up results of the default size: 32,768 features with 20 contexts each, over three models. The explorer is
written in a new process, whose peak memory is measured. The browser (``MECHPROBE_BROWSER``, or Debian's chromium) opens it from the
file system; each of its times is from the event to the frame behind the change. CPU seconds are those of the page's main thread.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mechprobe.features.contexts.files import (
    CONTEXTS_FILE,
    GROUP_FEATURES,
    PROMOTED_FILE,
    TOP,
    ContextGroup,
    PromotedGroup,
    write_contexts,
    write_promoted,
)
from mechprobe.files import write_bytes, write_json
from mechprobe.selection.scores import Scores
from mechprobe.stage_folder import Stage

MODELS = ("base", "sft", "rl")
TASKS = ("calculation", "fact_retrieval", "simulation")
WORDS = tuple(f"{'' if n % 3 else ' '}w{n}" for n in range(5000))
LENGTH = 23
"""Tokens per context, as in the default settings."""
_QUANTILES = 4

FRAME = """async (work) => {
  const start = performance.now();
  await work();
  await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
  return performance.now() - start;
}"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the times."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="run folder; made where it does not exist")
    parser.add_argument("--features", type=int, default=32768)
    parser.add_argument("--contexts", type=int, default=20)
    parser.add_argument("--models", type=int, default=3)
    parser.add_argument("--write-only", action="store_true", help="write the explorer of the folder in this process")
    given = parser.parse_args(arguments)
    if given.write_only:
        print(json.dumps(written(given.folder)))
        return
    if not given.folder.exists():
        names = ("base", *(f"tuned{k}" for k in range(1, given.models - 1)), "rl") if given.models != 3 else MODELS
        made_up_run(given.folder, n_features=given.features, n_contexts=given.contexts, models=names)
    command = [sys.executable, "-m", "benchmarks.explorer", "--folder", str(given.folder), "--write-only"]
    line = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
    print("written", line)
    print("browser", json.dumps(shown(given.folder / "report" / "features" / "index.html")))


def written(run: Path) -> dict[str, float]:
    """Seconds, peak memory and size of writing the explorer of a run."""
    from mechprobe.report.explorer.pages import write_explorer
    from mechprobe.report.run_files import RunFiles

    start, cpu, folder = time.perf_counter(), time.process_time(), run / "report" / "features"
    names = write_explorer(RunFiles.read(run), folder)
    return {
        "wall_s": round(time.perf_counter() - start, 1),
        "cpu_s": round(time.process_time() - cpu, 1),
        "peak_gib": round(_peak_kib() / 2**20, 2),
        "files": len(names),
        "mib": round(sum((folder / name).stat().st_size for name in names) / 2**20, 1),
    }


def _peak_kib() -> int:
    """Peak resident memory of this process. getrusage would count that of the process that started it, too."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM"))


def shown(page: Path) -> dict[str, Any]:
    """Milliseconds in the browser: median, and all rounds."""
    from benchmarks.browser import browser_page, wait_until

    with browser_page() as tab:
        session = tab.context.new_cdp_session(tab)
        session.send("Performance.enable", {"timeDomain": "threadTicks"})

        def cpu() -> float:
            found = session.send("Performance.getMetrics")["metrics"]
            return 1000 * next(item["value"] for item in found if item["name"] == "TaskDuration")

        tab.goto(page.resolve().as_uri(), wait_until="commit")
        wait_until(tab, "document.body && document.body.dataset.ready")
        first = tab.evaluate("performance.getEntriesByType('paint')[0].startTime")
        wait_until(tab, "document.body.dataset.painted")
        table = tab.evaluate("Number(document.body.dataset.painted)")
        result: dict[str, Any] = {
            "first_paint_ms": round(first),
            "table_painted_ms": round(table),
            "load_cpu_ms": round(cpu()),
        }
        n = tab.evaluate("explorer.table.feature.length")
        works = {
            "filter": [f"() => app.change({{query: '{word}'}})" for word in ("w1", "w12", "w123", "w2", "w44")],
            "range": [f"() => app.change({{query: '', ranges: {{nrn_rl: [{low}, 1]}}}})" for low in (0.4, 0.5, 0.6, 0.7, 0.3)],
            "sort": [f"() => app.change({{ranges: {{}}, sort: '{key}'}})" for key in ("nrn_rl", "-nrn_rl", "joint", "mas_base", "-joint")],
            "open": [f"async () => {{ app.open({k * n // 7}); while (!app.features || app.features[0].place !== {k * n // 7}) await new Promise((r) => setTimeout(r, 1)); }}" for k in range(1, 6)],
        }  # fmt: skip
        for name, calls in works.items():
            before, times = cpu(), [tab.evaluate(f"({FRAME})({call})") for call in calls]
            result[f"{name}_ms"] = round(float(np.median(times)), 1)
            result[f"{name}_all_ms"] = [round(value, 1) for value in times]
            result[f"{name}_cpu_ms"] = round((cpu() - before) / len(calls), 1)
    return result


def made_up_run(
    run: Path,
    *,
    n_features: int,
    n_contexts: int,
    models: Sequence[str] = MODELS,
    words: Sequence[str] = WORDS,
    tasks: Sequence[str] = TASKS,
    seed: int = 0,
) -> Path:
    """A run folder with a feature table, a selection and contexts of every feature, drawn from a seed."""
    rng = np.random.default_rng(seed)
    frame = _frame(rng, n_features, models)
    write_json(run / "run.json", {"name": words[0]})
    with Stage.open(run / "features", name="features", config={"seed": seed}) as stage:
        write_bytes(stage.folder / "table.parquet", frame.to_parquet(index=False))
        write_json(stage.folder / "summary.json", _summary(frame, models))
        write_json(stage.folder / "quality.json", {"trusted": True, "failures": [], "gate": {}, "l0": 30.0, "dead_share": 0.1, "n_rows": 1000, "readout": "swap", "models": {}})  # fmt: skip
        stage.finish(outputs=["table.parquet", "summary.json", "quality.json"])
    live = frame.loc[~frame["dead"], "feature"].to_numpy()
    with Stage.open(run / "contexts", name="contexts", config={}, inputs={"features": run / "features"}) as stage:
        write_contexts(stage.folder / CONTEXTS_FILE, _contexts(rng, live, n_contexts, models, words))
        write_promoted(stage.folder / PROMOTED_FILE, _promoted(rng, live, models, words))
        stage.finish(outputs=[CONTEXTS_FILE, PROMOTED_FILE])
    chosen = live[: min(50, len(live))].tolist()
    with Stage.open(run / "selection", name="select", config={}) as stage:
        write_json(stage.folder / "selection.json", {"features": chosen, "rule": "top50", "ranking": "joint", "agnostic": chosen, "tasks": list(tasks), "scores": {}, "controls": [], "note": ""})  # fmt: skip
        values = rng.gamma(1.0, size=(2, len(tasks), n_features)).astype(np.float32)
        some, none = rng.random(n_features).astype(np.float32), np.zeros(8, dtype=np.float32)
        Scores(tuple(tasks), (64,) * len(tasks), values[0] - 1, values[1], some, some, some, none, none, values[0] > 0).save(stage.folder / "scores.safetensors")  # fmt: skip
        stage.finish(outputs=["selection.json", "scores.safetensors"])
    return run


def _frame(rng: np.random.Generator, n: int, models: Sequence[str]) -> pd.DataFrame:
    norms = rng.gamma(8.0, size=(n, len(models)))
    share = norms / norms.sum(axis=1, keepdims=True)
    dead = np.arange(n) % 97 == 96
    classes = np.where(
        share.max(axis=1) > 0.5, np.array([f"{name}-only" for name in models])[share.argmax(axis=1)], "shared"
    )
    columns: dict[str, Any] = {"feature": np.arange(n), "class": np.where(dead, "dead", classes), "dead": dead}
    for name in ("joint", *models):
        columns |= {f"density_{name}": 10 ** rng.normal(-2.5, 0.7, n).clip(-5, 0), f"mean_active_{name}": rng.gamma(2.0, size=n), f"max_{name}": rng.gamma(8.0, size=n)}  # fmt: skip
    for place, name in enumerate(models):
        columns |= {f"mas_{name}": share[:, place], f"norm_l1_{name}": norms[:, place]}
        if place:
            nrn = norms[:, place] / (norms[:, 0] + norms[:, place])
            columns |= {
                f"nrn_{name}": nrn,
                f"shift_{name}": rng.random(n),
                f"cosine_{models[0]}_{name}": rng.uniform(-1, 1, n),
            }
            columns |= {
                f"nu_error_{name}": rng.normal(0.5, 0.5, n),
                f"nu_reconstruction_{name}": rng.normal(0.8, 0.3, n),
            }
    return pd.DataFrame(columns)


def _summary(frame: pd.DataFrame, models: Sequence[str]) -> dict[str, Any]:
    counts = {str(name): int(count) for name, count in frame["class"].value_counts().items()}
    return {
        "models": list(models), "base": models[0], "n_features": len(frame), "n_alive": int(np.sum(~frame["dead"].to_numpy())),
        "n_rows": 10**6, "readout": "swap", "class_counts": counts, "class_by_norm_counts": counts, "histograms": {}, "quantiles": {},
        "thresholds": {"absent_below": 0.5, "nu_error_max": 0.2, "nu_reconstruction_max": 0.5, "dead_density": 0.0},
    }  # fmt: skip


def _contexts(
    rng: np.random.Generator, live: np.ndarray, n: int, models: Sequence[str], words: Sequence[str]
) -> Iterator[ContextGroup]:
    n_top = max(1, n - 2 * _QUANTILES)
    part = np.concatenate([np.full(n_top, TOP), np.arange(n - n_top) * _QUANTILES // max(1, n - n_top)])
    for first in range(0, len(live), GROUP_FEATURES):
        features = live[first : first + GROUP_FEATURES]
        size = len(features) * n
        used = rng.choice(len(words), min(len(words), 1500), replace=False)
        acts = np.where(rng.random((len(models) + 1, size * LENGTH)) < 0.2, rng.gamma(2.0, size=(len(models) + 1, size * LENGTH)), 0).astype(np.float32)  # fmt: skip
        peak = np.full(size, 16)
        acts[:, np.arange(size) * LENGTH + peak] += 4
        ranges = np.tile(part, len(features))
        low, high = (np.where(ranges < 0, np.nan, (ranges + end) / _QUANTILES) for end in (0, 1))
        row = rng.integers(0, 10**6, size)
        by_name = {"joint": acts[0]} | {name: acts[k + 1] if k % 2 else acts[0] for k, name in enumerate(models)}
        yield ContextGroup(
            np.repeat(features, n), ranges, low, high, low * 8, high * 8, row // 40, row, peak, np.arange(size + 1) * LENGTH,
            [words[int(index)] for index in used], rng.integers(0, len(used), size * LENGTH), np.tile(np.arange(LENGTH) > 9, size), by_name,
        )  # fmt: skip


def _promoted(
    rng: np.random.Generator, live: np.ndarray, models: Sequence[str], words: Sequence[str], n: int = 8
) -> Iterator[PromotedGroup]:
    for first in range(0, len(live), GROUP_FEATURES):
        features = live[first : first + GROUP_FEATURES]

        used = [words[int(k)] for k in rng.choice(len(words), min(len(words), 800), replace=False)]

        def end(sign: int, size: int = len(features), n_words: int = len(used)) -> tuple[np.ndarray, np.ndarray]:
            return rng.integers(0, n_words, (size, n)), sign * np.sort(rng.gamma(2.0, size=(size, n)))[:, ::-1]

        yield PromotedGroup(features, used, {name: {"promoted": end(1), "suppressed": end(-1)} for name in models})


if __name__ == "__main__":
    main()
