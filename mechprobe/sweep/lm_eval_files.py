"""Finished results of lm-evaluation-harness: ``results_*.json``, and ``samples_*.jsonl`` beside it where there are."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, ValidationError, field_validator

from mechprobe.errors import ConfigError, InputError
from mechprobe.evals.result import HarnessMetric
from mechprobe.files import dump_json, sha256_bytes, sha256_file
from mechprobe.records import read_jsonl

_SHARES = ("acc", "acc_norm", "exact_match")
"""Metrics of lm-evaluation-harness that lie between 0 and 1."""
_SAME_SETTINGS = (
    "generation_kwargs", "gen_kwargs", "num_fewshot", "repeats", "output_type", "doc_to_text", "description", "version",
    "chat_template_sha", "fewshot_as_multiturn", "system_instruction_sha", "limit",
)  # fmt: skip
"""What must be equal for the results of two models to be compared."""


@dataclass
class Finished:
    """What the finished results of one model hold about one task."""

    file: Path
    metrics: dict[str, HarnessMetric]
    higher: Mapping[str, bool | None]
    n: int
    settings: dict[str, Any]
    version: str
    values: dict[str, dict[str, float]] = field(default_factory=dict)
    """Metric → document → its number, where their mean is the metric."""
    items: dict[str, str] = field(default_factory=dict)
    """Document → hash of its content."""
    hashes: dict[str, str] = field(default_factory=dict)


class _Counts(BaseModel):
    effective: int = Field(default=0, ge=0)


class _ResultsFile(BaseModel):
    """The parts of ``results_*.json`` that are read."""

    results: dict[str, dict[str, Any]] = Field(min_length=1)
    configs: dict[str, dict[str, Any]] = Field(default_factory=dict)
    config: dict[str, Any] = Field(default_factory=dict)
    versions: dict[str, Any] = Field(default_factory=dict)
    counts: dict[str, _Counts] = Field(default_factory=dict, alias="n-samples")
    higher: dict[str, dict[str, bool | None]] = Field(default_factory=dict, alias="higher_is_better")
    lm_eval_version: str = ""

    @field_validator("higher", mode="before")
    @classmethod
    def _none_is_nothing(cls, value: Any) -> Any:
        """lm-eval writes null for tasks that do not say it."""
        return {task: each or {} for task, each in value.items()} if isinstance(value, dict) else value

    @field_validator("lm_eval_version", mode="before")
    @classmethod
    def _as_text(cls, value: Any) -> str:
        return "" if value is None else str(value)


def read_finished(place: Path, task: str, name: str) -> Finished:
    """The results about one task in a file or folder.

    Args:
        place: File, or folder that holds one of them.
        task: Task of lm-evaluation-harness; empty where there is one.
        name: Name of the benchmark in messages.

    Raises:
        InputError: There are no such files, or they are not what lm-eval writes.
        ConfigError: The task is not named where there are several.
    """
    file = _results_file(place, task, name)
    raw, data = _contents(file)
    if not task:
        if len(data.results) != 1:
            raise ConfigError(
                f"{file} has the tasks {', '.join(data.results)}; name that of benchmark {name} in its 'task'."
            )
        task = next(iter(data.results))
    if task not in data.results:
        raise ConfigError(f"{file} has no task '{task}' (benchmark {name}); it has {', '.join(data.results)}.")
    settings = data.configs.get(task, {})
    asked = {**data.config, **raw, **settings, "version": data.versions.get(task)}
    found = Finished(
        file=file,
        metrics=_metrics(file, task, data.results[task]),
        higher=data.higher.get(task, {}),
        n=data.counts.get(task, _Counts()).effective,
        settings={key: asked[key] for key in _SAME_SETTINGS if asked.get(key) is not None},
        version=data.lm_eval_version,
        hashes={file.name: sha256_file(file)},
    )
    samples = file.with_name(f"samples_{task}_{file.stem.removeprefix('results_')}.jsonl")
    if samples.is_file():
        found.hashes[samples.name] = sha256_file(samples)
        _read_samples(samples, found)
        found.n = found.n or len(found.items)
    return found


def _metrics(file: Path, task: str, row: Mapping[str, Any]) -> dict[str, HarnessMetric]:
    """The metrics of a task; `InputError` where a share is none."""
    keys = [key for key in row if "," in key and not key.partition(",")[0].endswith("_stderr")]
    if not keys:
        raise InputError(f"{file} has no metric for {task}; it is not a result of lm-eval 0.4 or later.")
    for key in keys:
        number = _number(row[key])
        if number is not None and key.partition(",")[0] in _SHARES and not 0 <= number <= 1:
            raise InputError(
                f"{file}: {key} of {task} is {number:g}, but it is a share and lies between 0 and 1; evaluate the task again."
            )
    errors = {key: _number(row.get(key.replace(",", "_stderr,", 1))) for key in keys}
    return {key: HarnessMetric(value=_number(row[key]), stderr=errors[key]) for key in keys}


def _results_file(place: Path, task: str, name: str) -> Path:
    """The one file of results in a place that has the task."""
    if place.is_file():
        return place
    if not place.exists():
        raise InputError(f"{place} does not exist; give the folder or file of results of benchmark {name}.")
    files = [file for file in sorted(place.rglob("results_*.json")) if not task or task in _contents(file)[1].results]
    if not files:
        raise InputError(
            f"{place} holds no results_*.json of lm-eval{f' with the task {task}' if task else ''}; give its output folder."
        )
    if len(files) > 1:
        raise InputError(
            f"{place} holds several results ({', '.join(file.name for file in files[:3])}); give the file itself."
        )
    return files[0]


def _contents(file: Path) -> tuple[dict[str, Any], _ResultsFile]:
    """The JSON value in a file of results, and its parts."""
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{file} cannot be read as JSON ({error}); give a results file of lm-eval.") from None
    if not isinstance(data, dict) or not data.get("results"):
        raise InputError(f"{file} has no 'results'; give a results file of lm-eval.")
    try:
        return data, _ResultsFile.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "its content"
        raise InputError(f"{file}: {place}: {first['msg']}; give a results file of lm-eval.") from None


def _read_samples(path: Path, found: Finished) -> None:
    """Add the number of every document under every metric that is the mean of such numbers."""
    incomplete: set[str] = set()
    for number, line in read_jsonl(path):
        if "doc_id" not in line:
            raise InputError(f"{path}:{number} has no doc_id; give the samples file that lm-eval wrote.")
        document = str(line["doc_id"])
        found.items[document] = str(line.get("doc_hash") or sha256_bytes(dump_json(line.get("doc")).encode()))
        for key in found.metrics:
            metric, _, kind = key.partition(",")
            if line.get("filter", kind) != kind or metric not in line:
                continue
            rows, value = found.values.setdefault(key, {}), _number(line[metric])
            if document in rows:
                raise InputError(
                    f"{path}:{number} has document {document} again under {key}; give the samples file that lm-eval wrote."
                )
            if value is None:
                incomplete.add(key)
            rows[document] = math.nan if value is None else value
    found.values = {
        key: rows
        for key, rows in found.values.items()
        if key not in incomplete and len(rows) == len(found.items) and _is_mean(found.metrics[key], rows)
    }


def _is_mean(metric: HarnessMetric, rows: Mapping[str, float]) -> bool:
    """Whether a metric is the mean of the documents' numbers; an F1 over a corpus is none."""
    return metric.value is not None and math.isclose(
        math.fsum(rows.values()) / len(rows), metric.value, rel_tol=1e-6, abs_tol=1e-9
    )


def _number(value: Any) -> float | None:
    """A finite number; None for anything else, such as ``N/A``."""
    try:
        return float(value) if isinstance(value, bool | int | float) and math.isfinite(value) else None
    except OverflowError:
        return None
