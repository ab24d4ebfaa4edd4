"""Tasks of lm-evaluation-harness as benchmarks: run here, or read from finished results as they are."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mechprobe.errors import ConfigError, InputError
from mechprobe.evals.config import HarnessConfig
from mechprobe.evals.harness import HarnessTasks
from mechprobe.evals.result import HarnessMetric
from mechprobe.files import dump_json, sha256_bytes
from mechprobe.models.family import ModelFamily
from mechprobe.score_intervals import Z
from mechprobe.statistics import Interval
from mechprobe.sweep.benchmarks import Benchmark, common_info
from mechprobe.sweep.config import BenchmarkConfig, SweepConfig
from mechprobe.sweep.lm_eval_files import Finished, read_finished
from mechprobe.sweep.numbers import metric_interval
from mechprobe.sweep.result import BenchmarkInfo, CellResult

_NO_SHARES = ("perplexity", "bits_per_byte", "loss", "bleu", "rouge", "chrf")


def chosen_metric(metrics: Mapping[str, HarnessMetric], wanted: str, where: str) -> str:
    """The key of a metric, ``metric,filter``; the first without a wish. `ConfigError`, which begins with ``where``, if it is missing."""
    matching = [key for key in metrics if wanted in ("", key, key.partition(",")[0])]
    if not matching:
        raise ConfigError(f"{where} has no metric '{wanted}'; it has {', '.join(metrics)}.")
    return matching[0]


def metric_value(metric: HarnessMetric, values: Sequence[float], n: int, seed: int) -> Interval:
    """A metric with its interval: over documents where it is their mean, else two standard errors of the harness."""
    nan = float("nan")
    value = nan if metric.value is None else metric.value
    if values and math.isclose(math.fsum(values) / len(values), value, abs_tol=1e-9):
        rows = {str(place): [number] for place, number in enumerate(values)}
        return metric_interval(rows, share=set(values) <= {0.0, 1.0}, seed=seed)
    half = nan if metric.stderr is None else Z * metric.stderr
    return Interval(value, value - half, value + half, n)


def _info(name: str, config: BenchmarkConfig, higher: bool | None, **rest: Any) -> BenchmarkInfo:
    common = common_info(name, config)
    if config.higher_is_better is None and higher is not None:
        common["higher_is_better"] = higher
    return BenchmarkInfo(**common, scorer="rule", n_draws=1, **rest)


@dataclass
class HarnessBenchmark(Benchmark):
    """One task that lm-evaluation-harness runs on every model."""

    info: BenchmarkInfo
    config: BenchmarkConfig
    sweep: SweepConfig
    family: ModelFamily
    tasks: HarnessTasks

    whole = True

    def __post_init__(self) -> None:
        self.models = self.family.names
        self._truncated = self.tasks.truncated(self.family)

    def identity(self, model: str) -> dict[str, Any]:
        """The task, its requests and documents, and the version of the harness."""
        own = {"lm_eval": self.tasks.version, "tasks": self.tasks.fingerprint, "metric": self.config.metric}
        return {**own, **self.tasks.config.model_dump(mode="json"), **self.family.subset(model).identity}

    def fingerprint(self, model: str) -> dict[str, str]:
        """The model's own fingerprint."""
        return {model: self.family[model].fingerprint}

    def cell(self, model: str, folder: Path) -> CellResult:
        """Run the task."""
        del folder
        (task,) = self.tasks.names
        found = self.tasks.run(self.family[model])
        metrics = found.metrics[task]
        main = chosen_metric(metrics, self.config.metric, f"Task {task}")
        values, n = found.values.get(task, {}), found.n[task]
        named = {key: metric_value(each, values.get(key, ()), n, self.sweep.seed) for key, each in metrics.items()}
        told: dict[str, Any] = {"metric": main, "n_items": n, "share": is_share(main, named[main].value)}
        higher = found.higher_is_better.get(task, {}).get(main.partition(",")[0])
        if higher is not None and self.config.higher_is_better is None:
            told["higher_is_better"] = higher
        info = self.info.model_copy(update=told)
        return CellResult(
            benchmark=info,
            model=model,
            value=named[main],
            metrics={key: value for key, value in named.items() if key != main},
            truncated=self._truncated.get(task, 0),
            values={str(place): [number] for place, number in enumerate(values.get(main, ()))},
        )


def is_share(metric: str, value: float | None) -> bool:
    """Whether a metric is a share: by its name no loss and no score of its own scale, and between 0 and 1."""
    return value is not None and 0.0 <= value <= 1.0 and not any(word in metric for word in _NO_SHARES)


def harness_benchmark(
    name: str, config: BenchmarkConfig, sweep: SweepConfig, family: ModelFamily, think_end: str
) -> Benchmark:
    """A benchmark that lm-evaluation-harness runs, checked before any model runs.

    Raises:
        DependencyError: lm-eval is not installed.
        InputError, ConfigError: The task cannot be used, or is a group.
    """
    options: dict[str, Any] = {"limit": config.n_items, "num_fewshot": config.num_fewshot, "think_end": think_end}
    if config.batch_size:
        options["batch_size"] = config.batch_size
    tasks = HarnessTasks([config.harness], HarnessConfig(**options))
    if len(tasks.names) != 1:
        raise ConfigError(
            f"{config.harness} is a group of {len(tasks.names)} tasks; give benchmark {name} one of them."
        )
    rest = {"metric": config.metric, "scoring": f"lm-eval {tasks.version}, {tasks.names[0]}", "source": "lm-eval"}
    info = _info(name, config, None, **rest, decoding={}, items=tasks.fingerprint, n_items=0)
    return HarnessBenchmark(info, config, sweep, family, tasks)


@dataclass
class FinishedBenchmark(Benchmark):
    """Finished results of lm-evaluation-harness, one file for each model."""

    info: BenchmarkInfo
    found: dict[str, Finished]
    main: str
    seed: int

    cheap = True
    whole = True

    def __post_init__(self) -> None:
        self.models = list(self.found)

    def identity(self, model: str) -> dict[str, Any]:
        """The files and the metric."""
        return {"files": self.found[model].hashes, "metric": self.main, "info": self.info.to_dict(), "seed": self.seed}

    def cell(self, model: str, folder: Path) -> CellResult:
        """The numbers of a model as its files have them."""
        del folder
        found = self.found[model]
        named = {
            key: metric_value(metric, list(found.values.get(key, {}).values()), found.n, self.seed)
            for key, metric in found.metrics.items()
        }
        values: dict[str, list[float | None]] = {
            item: [number] for item, number in found.values.get(self.main, {}).items()
        }
        rest = {key: value for key, value in named.items() if key != self.main}
        return CellResult(benchmark=self.info, model=model, value=named[self.main], metrics=rest, values=values)


def finished_benchmark(name: str, config: BenchmarkConfig, sweep: SweepConfig) -> Benchmark:
    """A benchmark of finished results.

    Raises:
        InputError: A file is missing or unusable, or the models were asked other documents or under other settings.
        ConfigError: The metric is missing, or the task is not named where there are several.
    """
    found = {model: read_finished(Path(place), config.task, name) for model, place in config.results.items()}
    first_model, first = next(iter(found.items()))
    for model, other in found.items():
        _check_same(first_model, first, model, other)
    main = chosen_metric(first.metrics, config.metric, f"{first.file}: the task of benchmark {name}")
    for model, other in found.items():
        chosen_metric(other.metrics, main, f"{other.file} (model {model})")
        if other.metrics[main].value is None:
            raise InputError(f"{other.file} (model {model}): {main} is not a number; evaluate the task again.")
    shares = all(is_share(main, each.metrics[main].value) for each in found.values())
    rest = {
        "metric": main,
        "scoring": f"lm-eval {first.version}",
        "source": "finished results of lm-eval",
        "share": shares,
    }
    decoding = {key: value for key, value in first.settings.items() if key != "doc_to_text"}
    items = sha256_bytes(dump_json(first.items).encode())
    higher = first.higher.get(main.partition(",")[0])
    info = _info(name, config, higher, **rest, decoding=decoding, items=items, n_items=first.n)
    return FinishedBenchmark(info, found, main, sweep.seed)


def _check_same(first_model: str, first: Finished, model: str, other: Finished) -> None:
    """Refuse results that cannot be compared."""
    keys = [*first.settings, *(key for key in other.settings if key not in first.settings)]
    changed = next((key for key in keys if first.settings.get(key) != other.settings.get(key)), None)
    if changed is not None:
        theirs, ours = (json.dumps(each.settings.get(changed))[:60] for each in (other, first))
        raise InputError(
            f"{other.file} ({model}) and {first.file} ({first_model}) were made with different {changed} ({theirs} and {ours}); "
            "evaluate both alike."
        )
    if first.n != other.n or (first.items and other.items and first.items != other.items):
        raise InputError(
            f"{other.file} ({model}) and {first.file} ({first_model}) hold other documents ({other.n} and {first.n}); evaluate both "
            "on the same ones."
        )
