"""Which tasks of lm-evaluation-harness a user asks for: names, or YAML files that are checked."""

from pathlib import Path
from typing import Any

from mechprobe.errors import DependencyError, InputError
from mechprobe.evals.harness_calls import reason


def lm_eval_version() -> str:
    """Version of lm-eval; `DependencyError` if it is not installed."""
    try:
        import lm_eval
    except ImportError:
        raise DependencyError(
            "Tasks of lm-evaluation-harness need lm-eval, which is not installed: pip install 'mechprobe[evals]'."
        ) from None
    return str(lm_eval.__version__)


def checked_spec(spec: str) -> str:
    """A task name unchanged, or the absolute path of a YAML file.

    Raises:
        InputError: The file is missing, cannot be parsed, or does not name a task.
    """
    if not is_yaml(spec):
        return spec
    path = Path(spec).expanduser()
    if not path.is_file():
        raise InputError(f"{path} does not exist; give the YAML file or the name of an lm-eval task.")
    fields = read_yaml(path)
    if not isinstance(fields, dict) or not ({"task", "group"} & fields.keys()):
        raise InputError(f"{path} names no task; an lm-eval YAML file has a key 'task' or 'group'.")
    return str(path.resolve())


def read_yaml(path: Path) -> Any:
    """The content of an lm-eval YAML file, without running any code that it refers to.

    Raises:
        InputError: The file, or a file that it includes, cannot be read.
    """
    import yaml
    from lm_eval.tasks._yaml_loader import load_yaml

    try:
        return load_yaml(path, resolve_func=False)
    except yaml.YAMLError as error:
        raise InputError(f"{path} is not valid YAML ({reason(error)}); correct it.") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be loaded ({reason(error)}); correct it.") from None


def is_yaml(spec: str) -> bool:
    """Whether a specification is a file, not the name of a task."""
    return spec.endswith((".yaml", ".yml"))
