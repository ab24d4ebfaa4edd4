"""Configuration: frozen settings, TOML files, and ``section.key=value`` overrides from the command line.

Each stage declares its settings in its own ``config.py``; `mechprobe.run_config` combines them for ``mechprobe run``.
"""

import tomllib
from collections.abc import Iterable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any, ClassVar

from pydantic import model_validator

from mechprobe.errors import ConfigError
from sae_training.frozen import FrozenConfig as _FrozenConfig


class FrozenConfig(_FrozenConfig):
    """Base of every configuration of mechprobe; invalid settings raise a `ConfigError` of one sentence."""

    error_type: ClassVar[type[Exception]] = ConfigError


class Comparison(FrozenConfig):
    """The base model, the tuned model whose generalization is explained, and the tasks that post-training saw.

    The settings of every stage that compares two models on tasks derive from it.
    """

    base: str = "base"
    """Name of the model before post-training."""
    tuned: str = "rl"
    """Name of the model after post-training whose generalization is explained."""
    near: tuple[str, ...] | None = None
    """Models similar enough to share encoder slots under the ``swap`` read-out; None means all models."""
    trained: tuple[str, ...] = ()
    """Tasks that post-training saw. They are measured, but neither select features nor enter pooled effects and verdicts."""

    @model_validator(mode="before")
    @classmethod
    def _refuse_engine(cls, data: Any) -> Any:
        if isinstance(data, Mapping) and data.get("generation", "hf") != "hf":
            raise ConfigError(
                "Clean and edited arms must come from one engine, and only transformers runs edits; remove generation = "
                f"{data['generation']!r} here, and set evaluate.generation for the outcomes that select features."
            )
        return data


def read_toml(path: Path | str) -> dict[str, Any]:
    """Parse a TOML file.

    Raises:
        ConfigError: The file is missing, cannot be read, or is malformed; the message names file and line.
    """
    path = Path(path)
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist; give the path of a TOML file.") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML ({error}); correct it.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read ({error}).") from None


def parse_value(text: str) -> Any:
    """Parse a value as TOML (number, boolean, list, quoted text); anything else is taken as text."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def with_overrides(data: Mapping[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """Copy ``data`` and apply every override ``section.key=value``.

    Raises:
        ConfigError: An override has no ``=``, or its path leads through a value that is not a section.
    """
    result = deepcopy(dict(data))
    for override in overrides:
        key, equals, value = override.partition("=")
        path = [part.strip() for part in key.split(".")]
        if not equals or not all(path):
            raise ConfigError(f"--set '{override}' is malformed; write section.key=value.")
        section = result
        for part in path[:-1]:
            section = section.setdefault(part, {})
            if not isinstance(section, dict):
                raise ConfigError(f"--set '{override}': '{part}' is a value, not a section; correct the path.")
        section[path[-1]] = parse_value(value.strip())
    return result
