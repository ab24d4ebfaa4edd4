"""From options and a TOML file to the settings of a command."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mechprobe.errors import ConfigError

if TYPE_CHECKING:
    from mechprobe.pipeline import RunConfig

    from mechprobe.evals.tasks import Task
    from mechprobe.models.family import ModelFamily


def parse_models(pairs: Sequence[str]) -> dict[str, str]:
    """``["base=PATH", ...]`` as a dict; `ConfigError` for a missing ``=`` or a name given twice."""
    models: dict[str, str] = {}
    for pair in pairs:
        name, equals, path = pair.partition("=")
        if not equals or not name or not path:
            raise ConfigError(f"--models {pair!r} cannot be read; write NAME=PATH, for example base=models/base.")
        if name in models:
            raise ConfigError(f"--models names '{name}' twice; give each model one name.")
        models[name] = path
    return models


def load_settings(
    config: Path | None,
    overrides: Sequence[str] | None = None,
    *,
    models: Sequence[str] | None = None,
    seed: int | None = None,
    device: str | None = None,
    extra: dict[str, Any] | None = None,
) -> "RunConfig":
    """The run configuration: file, then ``--set``, then the options that have names of their own."""
    from mechprobe.pipeline import RunConfig

    return RunConfig.build(
        config,
        overrides or (),
        models=parse_models(models) if models else None,
        seed=seed,
        device=device,
        extra=extra,
    )


def load_family(settings: "RunConfig", names: Sequence[str] | None = None, *, trust: bool = False) -> "ModelFamily":
    """The models of the settings (some of them for ``names``)."""
    return settings.family(names, trust_remote_code=trust)


def load_tasks(settings: "RunConfig") -> "list[Task]":
    """The tasks of the settings."""
    return settings.load_tasks()
