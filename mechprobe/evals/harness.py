"""Tasks of lm-evaluation-harness (the extra ``evals``), run by its own evaluator on a model of mechprobe.

The harness' ``HFLM`` wraps the loaded model, so hooks on the model take effect in log-likelihood requests and in
generation. The numbers equal those of ``lm_eval.simple_evaluate``: same evaluator, metrics and default seeds.
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
from typing import Any, NamedTuple, cast

import numpy as np
from transformers import PreTrainedTokenizerBase

from mechprobe.errors import ConfigError, DependencyError, InputError, MechprobeError, is_out_of_memory
from mechprobe.evals.config import HarnessConfig
from mechprobe.evals.result import HarnessMetric, HarnessRun
from mechprobe.files import sha256_bytes
from mechprobe.memory import needing_memory
from mechprobe.models.devices import input_device
from mechprobe.models.family import ModelFamily
from mechprobe.models.load import LanguageModel
from mechprobe.random_state import isolated_random_state

PYTHON_SEED, OTHER_SEED = 0, 1234
"""Default seeds of the harness: the first of Python's ``random``, the second of numpy, torch and its few-shot sampler."""
_N_PROMPTS = 4
"""Number of prompts of each task that are kept in `HarnessTasks.prompts`."""
_SMALLER = "lower --batch-size, or in a sweep the batch_size of the benchmark"
_DEFAULT_CONTEXT, _MAX_GEN_TOKS = 2048, 256
"""What the harness takes for the context and for the length of a response where nothing is stated."""
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


class HarnessTasks:
    """Tasks of lm-evaluation-harness by name or YAML file, checked before any model runs.

    Attributes:
        names: Names of the tasks, sorted; a group is replaced by its members.
        likelihood_names: Those that request log-likelihoods, with prompt and option in one forward pass.
        fingerprint: sha256 of the settings, requests and documents of all tasks.
        version: Version of lm-eval.
        prompts: The first prompts of each task, as text without a chat template.

    Raises:
        DependencyError: lm-eval is not installed.
        InputError: A file is unusable, or a task cannot be built from its data.
        ConfigError: lm-eval has no task of a given name.
    """

    def __init__(self, specs: Sequence[str | Path], config: HarnessConfig) -> None:
        if not specs:
            raise ConfigError("No task of lm-evaluation-harness is given; write --task FILE.yaml or --task NAME.")
        self.version = _lm_eval_version()
        self.specs, self.config = [_checked_spec(str(spec)) for spec in specs], config
        self.prompts: list[str] = []
        self._requests: dict[str, list[_Request]] = {}
        with _harness_output(), isolated_random_state(OTHER_SEED, python_seed=PYTHON_SEED):
            self._manager = self._open_manager()
            tasks = self._load()["tasks"]
            self.names = sorted(tasks)
            self.likelihood_names = [name for name in self.names if tasks[name].OUTPUT_TYPE != "generate_until"]
            digests = [[name, self._digest(name, tasks[name])] for name in self.names]
            self.fingerprint = sha256_bytes(json.dumps(digests).encode())

    def truncated(self, family: ModelFamily) -> dict[str, int]:
        """Task → number of documents whose prompt does not fit the context, so that the harness drops its beginning.

        The length is counted as ``HFLM`` counts it; tasks without such a document have no entry.
        """
        from lm_eval.models.utils import normalize_gen_kwargs, resolve_max_length

        tokenizer = family.tokenizer
        context = min(resolve_max_length(model.config, tokenizer, default=_DEFAULT_CONTEXT) for model in family)
        found: dict[str, int] = {}
        for name, requests in self._rendered(tokenizer).items():
            long: set[int] = set()
            for request in requests:
                match request.kind:
                    case "generate_until":
                        room = context - int(
                            normalize_gen_kwargs(dict(request.args[1]), _MAX_GEN_TOKS).get(
                                "max_gen_toks", _MAX_GEN_TOKS
                            )
                        )
                    case "loglikelihood":
                        room = context + 1
                    case _:  # rolling windows cover a document of any length
                        continue
                text = request.args[0] if request.kind == "generate_until" else "".join(request.args[:2])
                if _n_tokens(tokenizer, text) > room:
                    long.add(request.document)
            if long:
                found[name] = len(long)
        return found

    def _rendered(self, tokenizer: PreTrainedTokenizerBase) -> dict[str, list["_Request"]]:
        """Task → its requests, with the chat template where the settings ask for it."""
        if not self.config.chat_template:
            return self._requests

        def render(history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
            options: Any = {"add_generation_prompt": add_generation_prompt}
            options["continue_final_message"] = not add_generation_prompt
            return str(tokenizer.apply_chat_template(history, tokenize=False, **options))

        with _harness_output(), isolated_random_state(OTHER_SEED, python_seed=PYTHON_SEED):
            tasks = self._load()["tasks"]
            for task in tasks.values():
                task.build_all_requests(
                    limit=self.config.limit, rank=0, world_size=1, apply_chat_template=True, chat_template=render
                )
        return {name: _requests(task) for name, task in tasks.items()}

    def run(self, model: LanguageModel) -> HarnessRun:
        """Evaluate a model, under whatever edit is in force on it; `InputError` with the reason if the harness fails."""
        from lm_eval.evaluator import evaluate
        from lm_eval.models.huggingface import HFLM

        hf, wrapper = cast(Any, model.hf), cast(Any, HFLM)
        with _harness_output(), isolated_random_state(OTHER_SEED, python_seed=PYTHON_SEED, device=input_device(hf)):
            think = _think_end_token(model.tokenizer, self.config.think_end)
            options: Any = {"batch_size": self.config.batch_size, "think_end_token": think}
            wrapped = wrapper(pretrained=hf, tokenizer=model.tokenizer, **options)
            tasks = self._load()
            failed = f"lm-eval {self.version} failed on model {model.name}"
            with _as_input_error(failed), needing_memory(failed, _SMALLER):
                options = {"limit": self.config.limit, "apply_chat_template": self.config.chat_template}
                options |= {"log_samples": True, "confirm_run_unsafe_code": False}
                found: Any = evaluate(lm=wrapped, task_dict=tasks, **options)
        return HarnessRun(
            metrics={task: _metrics(row) for task, row in found["results"].items()},
            n={task: int(count["effective"]) for task, count in found["n-samples"].items()},
            higher_is_better={task: dict(row) for task, row in found["higher_is_better"].items()},
            values={task: _values(rows) for task, rows in found["samples"].items()},
        )

    def _open_manager(self) -> Any:
        """The harness' task index. Its thousands of built-in tasks are indexed only if a name or a group refers to them."""
        from lm_eval.tasks import TaskManager

        defaults = any(not _is_yaml(spec) or "group" in _read_yaml(Path(spec)) for spec in self.specs)
        with _as_input_error(f"lm-eval {self.version} cannot list its tasks"):
            return TaskManager(include_defaults=defaults)

    def _load(self) -> Any:
        """New task and group objects, with few-shot numbers and seeds set as ``lm_eval.simple_evaluate`` sets them."""
        for spec in self.specs:
            if not _is_yaml(spec) and spec not in self._manager.task_index:
                known = f"a task of lm-eval {self.version}; `lm-eval ls tasks` lists its tasks"
                raise ConfigError(f"'{spec}' is neither a YAML file nor {known}.")
        with _as_input_error(f"lm-eval {self.version} cannot load {', '.join(self.specs)}"):
            tasks = self._manager.load(list(self.specs))
            for task in tasks["tasks"].values():
                own, wanted = task.get_config("num_fewshot"), self.config.num_fewshot
                if own is None or (wanted is not None and own != 0):
                    task.set_config(key="num_fewshot", value=wanted or 0)
                task.set_fewshot_seed(seed=OTHER_SEED)
        return tasks

    def _digest(self, name: str, task: Any) -> str:
        """sha256 of a task's settings and requests; raises `InputError` if the requests cannot be built."""
        self._check_metrics(name, task)
        with _as_input_error(f"Task {name} of lm-eval {self.version} cannot be built from its data"):
            task.build_all_requests(limit=self.config.limit, rank=0, world_size=1)
        self._requests[name] = _requests(task)
        self.prompts += list(dict.fromkeys(request.args[0] for request in task.instances))[:_N_PROMPTS]
        settings = dict(task.dump_config())
        metadata = settings.pop("metadata", None)
        if isinstance(metadata, dict):
            settings["metadata"] = {key: value for key, value in metadata.items() if key != "config_source"}
        requests = [[request.request_type, request.args, request.doc] for request in task.instances]
        text = json.dumps([settings, requests], sort_keys=True, default=str)
        return sha256_bytes(_ADDRESS.sub("", text).encode())

    def _check_metrics(self, name: str, task: Any) -> None:
        if task.OUTPUT_TYPE != "generate_until" or task.get_config("process_results") is not None:
            return
        functions = getattr(task, "_metric_fn_list", {})
        unknown = next((metric for metric, function in functions.items() if function is None), None)
        if unknown is not None:
            raise InputError(
                f"Task {name} asks for the metric '{unknown}', which lm-eval {self.version} does not have; choose another."
            )


class _Request(NamedTuple):
    """One request: the index of its document, its type, and its arguments."""

    document: int
    kind: str
    args: tuple[Any, ...]


def _requests(task: Any) -> list[_Request]:
    return [_Request(request.doc_id, request.request_type, request.args) for request in task.instances]


def _n_tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> int:
    """Length of a prompt; like the harness, without a second BOS token where the text spells it."""
    spelled = tokenizer.bos_token is not None and text.startswith(str(tokenizer.bos_token))
    return len(tokenizer(text, add_special_tokens=False).input_ids if spelled else tokenizer(text).input_ids)


def _think_end_token(tokenizer: PreTrainedTokenizerBase, tag: str) -> str | int | None:
    """The end tag as the harness takes it: the id of a special token, which its decoding drops, or the text.

    None if neither tokenizer nor chat template know the tag, because the harness then strips the responses of models that
    never think.
    """
    token = tokenizer.get_vocab().get(tag) if tag else None
    if token is not None and token in tokenizer.added_tokens_decoder and tokenizer.added_tokens_decoder[token].special:
        return token
    known = token is not None or tag in str(tokenizer.chat_template or "")
    return tag if tag and known else None


def _metrics(row: dict[str, Any]) -> dict[str, HarnessMetric]:
    metrics = [key for key in row if "," in key and not key.partition(",")[0].endswith("_stderr")]
    errors = {key: row.get(key.replace(",", "_stderr,", 1)) for key in metrics}
    return {key: HarnessMetric(value=_finite(row[key]), stderr=_finite(errors[key])) for key in metrics}


def _values(rows: Sequence[dict[str, Any]]) -> dict[str, list[float]]:
    """Metric → its value on every document, in order. A metric without a finite number on some document is left out."""
    result: dict[str, list[float | None]] = {}
    for row in rows:
        for metric in row["metrics"]:
            result.setdefault(f"{metric},{row['filter']}", []).append(_finite(row[metric]))
    return {key: [v for v in values if v is not None] for key, values in result.items() if None not in values}


def _finite(value: Any) -> float | None:
    number = float(value) if isinstance(value, bool | int | float | np.number | np.bool_) else math.nan
    return number if math.isfinite(number) else None


@contextmanager
def _harness_output() -> Iterator[None]:
    """Send the harness' stdout to stderr, and silence its warnings and its progress bars beside those of mechprobe."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    with ExitStack() as stack:
        stack.enter_context(redirect_stderr(io.StringIO()))
        stack.enter_context(redirect_stdout(sys.stderr))
        try:
            yield
        finally:
            logger.setLevel(level)


@contextmanager
def _as_input_error(failure: str) -> Iterator[None]:
    """Raise an `InputError` for any exception of the harness, except out-of-memory errors and errors of mechprobe."""
    try:
        yield
    except Exception as error:
        if isinstance(error, MechprobeError) or is_out_of_memory(error):
            raise
        raise InputError(f"{failure} ({_reason(error)}).") from error


def _reason(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text or 'no reason given'}"[:300].rstrip(".")


def _lm_eval_version() -> str:
    try:
        import lm_eval
    except ImportError:
        raise DependencyError(
            "Tasks of lm-evaluation-harness need lm-eval, which is not installed: pip install 'mechprobe[evals]'."
        ) from None
    return str(lm_eval.__version__)


def _checked_spec(spec: str) -> str:
    """A task name unchanged, or the absolute path of a YAML file, which must name a task."""
    if not _is_yaml(spec):
        return spec
    path = Path(spec).expanduser()
    if not path.is_file():
        raise InputError(f"{path} does not exist; give the YAML file or the name of an lm-eval task.")
    fields = _read_yaml(path)
    if not isinstance(fields, dict) or not ({"task", "group"} & fields.keys()):
        raise InputError(f"{path} names no task; an lm-eval YAML file has a key 'task' or 'group'.")
    return str(path.resolve())


def _read_yaml(path: Path) -> Any:
    """The content of an lm-eval YAML file, without running any code that it refers to."""
    import yaml
    from lm_eval.tasks._yaml_loader import load_yaml

    try:
        return load_yaml(path, resolve_func=False)
    except yaml.YAMLError as error:
        raise InputError(f"{path} is not valid YAML ({_reason(error)}); correct it.") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be loaded ({_reason(error)}); correct it.") from None


def _is_yaml(spec: str) -> bool:
    return spec.endswith((".yaml", ".yml"))
