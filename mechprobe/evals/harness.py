"""lm-evaluation-harness (the extra ``evals``): its tasks, and its own evaluator on one of our models.

A model is wrapped, as it is, in the harness' ``HFLM``; hooks on it take effect in both kinds of request, log-likelihood and
generation. Numbers are those of ``lm_eval.simple_evaluate``: its evaluator, its metrics, its default seeds.
"""

import io
import json
import logging
import math
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from mechprobe.config import FrozenConfig
from mechprobe.errors import ConfigError, DependencyError, InputError, MechprobeError
from mechprobe.files import sha256_bytes
from mechprobe.models.devices import input_device, is_out_of_memory
from mechprobe.models.load import LanguageModel
from mechprobe.random_state import isolated_random_state

PYTHON_SEED, OTHER_SEED = 0, 1234
"""The harness' defaults: of Python's ``random``; and of numpy, torch and its few-shot sampler."""
_N_PROMPTS = 4
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


class HarnessConfig(FrozenConfig):
    """Settings of the harness, named as its own."""

    limit: int | None = Field(default=None, ge=1)
    """Documents of each task, from the top; None takes all."""
    num_fewshot: int | None = Field(default=None, ge=0)
    """Examples before each question, for tasks that do not fix it at 0; None leaves it to the task."""
    batch_size: int = Field(default=32, ge=1)
    """Requests at a time."""
    chat_template: bool = False
    """Ask with the tokenizer's chat template."""
    n_random: int = Field(default=0, ge=0)
    """Matched random sets that are run beside every edit; none by default, since each costs as much as the edit."""


class HarnessTasks:
    """Tasks of lm-evaluation-harness by name or YAML file, checked before any model runs.

    Attributes:
        names: Of the tasks (of a group, its members), sorted.
        weighed: Those of them that ask for log-likelihoods: the harness reads their prompt and option in one call.
        fingerprint: sha256 of their settings, of every request as it is asked, and of every document.
        version: Of lm-eval.
        prompts: The first contexts of each task, as text without a chat template.

    Raises:
        DependencyError: lm-eval is not installed.
        InputError: A file cannot be used, or its tasks cannot be built from their data.
        ConfigError: lm-eval has no task of that name.
    """

    def __init__(self, specs: Sequence[str | Path], config: HarnessConfig) -> None:
        if not specs:
            raise ConfigError("No task of lm-evaluation-harness is given; write --task FILE.yaml or --task NAME.")
        self.version = _lm_eval_version()
        self.specs = [_checked_spec(str(spec)) for spec in specs]
        self.config = config
        self.prompts: list[str] = []
        with _harness_output(), isolated_random_state(OTHER_SEED, python_seed=PYTHON_SEED):
            self._manager = self._open_manager()
            tasks = self._load()
            self.names = sorted(tasks["tasks"])
            self.weighed = [name for name in self.names if tasks["tasks"][name].OUTPUT_TYPE != "generate_until"]
            described = [[name, self._described(name, tasks["tasks"][name])] for name in self.names]
            self.fingerprint = sha256_bytes(json.dumps(described).encode())

    def run(self, model: LanguageModel) -> dict[str, Any]:
        """The harness' results for a model, with whatever edit is in force on it.

        Returns:
            ``metrics``: task (or group) → ``metric,filter`` → ``value`` and ``stderr`` (None where there is none);
            ``n``: task → documents; ``higher_is_better``: task → metric → bool or None; ``values``: task →
            ``metric,filter`` → one number a document, for the metrics that are one.

        Raises:
            InputError: The harness could not do it; the text has its reason.
        """
        from lm_eval.evaluator import evaluate
        from lm_eval.models.huggingface import HFLM

        hf: Any = model.hf
        wrapper: Any = HFLM
        with _harness_output(), isolated_random_state(OTHER_SEED, python_seed=PYTHON_SEED, device=input_device(hf)):
            wrapped = wrapper(pretrained=hf, tokenizer=model.tokenizer, batch_size=self.config.batch_size)
            tasks = self._load()
            with _one_sentence(f"lm-eval {self.version} failed on model {model.name}"):
                found: Any = evaluate(
                    lm=wrapped,
                    task_dict=tasks,
                    limit=self.config.limit,
                    log_samples=True,
                    apply_chat_template=self.config.chat_template,
                    confirm_run_unsafe_code=False,
                )
        return {
            "metrics": {task: _metrics(row) for task, row in found["results"].items()},
            "n": {task: int(count["effective"]) for task, count in found["n-samples"].items()},
            "higher_is_better": {task: dict(row) for task, row in found["higher_is_better"].items()},
            "values": {task: _values(rows) for task, rows in found["samples"].items()},
        }

    def _open_manager(self) -> Any:
        """The harness' index of tasks; of its own thousands only where one is asked for by name, or by a group."""
        from lm_eval.tasks import TaskManager

        with _one_sentence(f"lm-eval {self.version} cannot list its tasks"):
            return TaskManager(
                include_defaults=any(not _is_yaml(s) or "group" in _read_yaml(Path(s)) for s in self.specs)
            )

    def _load(self) -> Any:
        """Tasks and groups afresh, with shots and seeds set as ``lm_eval.simple_evaluate`` sets them."""
        for spec in self.specs:
            if not _is_yaml(spec) and spec not in self._manager.task_index:
                raise ConfigError(
                    f"'{spec}' is no YAML file and no task of lm-eval {self.version}; `lm-eval ls tasks` lists its tasks."
                )
        with _one_sentence(f"lm-eval {self.version} cannot load {', '.join(self.specs)}"):
            tasks = self._manager.load(list(self.specs))
            for task in tasks["tasks"].values():
                own = task.get_config("num_fewshot")
                wanted = self.config.num_fewshot
                if own is None or (wanted is not None and own != 0):
                    task.set_config(key="num_fewshot", value=wanted or 0)
                task.set_fewshot_seed(seed=OTHER_SEED)
        return tasks

    def _described(self, name: str, task: Any) -> str:
        """sha256 of all that a task asks; where it cannot ask at all, that is found here."""
        if task.OUTPUT_TYPE == "generate_until" and task.get_config("process_results") is None:
            functions = getattr(task, "_metric_fn_list", {})
            unknown = next((metric for metric, function in functions.items() if function is None), None)
            if unknown is not None:
                raise InputError(
                    f"Task {name} asks for the metric '{unknown}', which lm-eval {self.version} does not have."
                )
        with _one_sentence(f"Task {name} of lm-eval {self.version} cannot be built from its data"):
            task.build_all_requests(limit=self.config.limit, rank=0, world_size=1)
        self.prompts += list(dict.fromkeys(request.args[0] for request in task.instances))[:_N_PROMPTS]
        settings = dict(task.dump_config())
        metadata = settings.pop("metadata", None)
        if isinstance(metadata, dict):
            settings["metadata"] = {key: value for key, value in metadata.items() if key != "config_source"}
        requests = [[request.request_type, request.args, request.doc] for request in task.instances]
        text = json.dumps([settings, requests], sort_keys=True, default=str)
        return sha256_bytes(_ADDRESS.sub("", text).encode())


def _lm_eval_version() -> str:
    try:
        import lm_eval
    except ImportError:
        raise DependencyError(
            "Tasks of lm-evaluation-harness need lm-eval, which is not installed: pip install 'mechprobe[evals]'."
        ) from None
    return str(lm_eval.__version__)


def _checked_spec(spec: str) -> str:
    """The spec as given, or the absolute path of a YAML file that parses and names a task."""
    if not _is_yaml(spec):
        return spec
    path = Path(spec).expanduser()
    if not path.is_file():
        raise InputError(f"{path} does not exist; give the YAML file of an lm-eval task, or the name of one.")
    fields = _read_yaml(path)
    if not isinstance(fields, dict) or not ({"task", "group"} & fields.keys()):
        raise InputError(f"{path} names no task; an lm-eval YAML file has a key 'task' (or 'group').")
    return str(path.resolve())


def _read_yaml(path: Path) -> Any:
    import yaml
    from lm_eval.tasks._yaml_loader import load_yaml

    try:
        return load_yaml(path, resolve_func=False)
    except yaml.YAMLError as error:
        raise InputError(f"{path} is no YAML that can be read ({_reason(error)}).") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be used ({_reason(error)}).") from None


def _is_yaml(spec: str) -> bool:
    return spec.endswith((".yaml", ".yml"))


def _metrics(row: dict[str, Any]) -> dict[str, dict[str, float | None]]:
    """``metric,filter`` → value and standard error; whatever the harness gives that is no finite number is None."""
    result: dict[str, dict[str, float | None]] = {}
    for key, value in row.items():
        metric, comma, filter_name = key.partition(",")
        if comma and not metric.endswith("_stderr"):
            error = row.get(f"{metric}_stderr,{filter_name}")
            result[key] = {"value": _number(value), "stderr": _number(error)}
    return result


def _values(rows: Sequence[dict[str, Any]]) -> dict[str, list[float]]:
    """``metric,filter`` → the value of every document in order; metrics that are no finite number are left out."""
    result: dict[str, list[float | None]] = {}
    for row in rows:
        for metric in row["metrics"]:
            result.setdefault(f"{metric},{row['filter']}", []).append(_number(row[metric]))
    return {key: [v for v in values if v is not None] for key, values in result.items() if None not in values}


def _number(value: Any) -> float | None:
    number = float(value) if isinstance(value, bool | int | float | np.number | np.bool_) else math.nan
    return number if math.isfinite(number) else None


@contextmanager
def _harness_output() -> Iterator[None]:
    """Nothing of the harness on stdout; its progress bars on stderr where that is a terminal; no warnings of its own."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    with ExitStack() as stack:
        if not sys.stderr.isatty():
            stack.enter_context(redirect_stderr(io.StringIO()))
        stack.enter_context(redirect_stdout(sys.stderr))
        try:
            yield
        finally:
            logger.setLevel(level)


@contextmanager
def _one_sentence(what: str) -> Iterator[None]:
    """Turn whatever the harness raises into an `InputError` with its reason."""
    try:
        yield
    except MechprobeError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise InputError(f"{what} ({_reason(error)}).") from error


def _reason(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text or 'no reason given'}"[:300].rstrip(".")
