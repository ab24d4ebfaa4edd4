"""From options and a TOML file to the settings of a command."""

from collections.abc import Sequence
from typing import Any

from mechprobe.errors import ConfigError


def parse_models(pairs: Sequence[str], *, option: str = "--models") -> dict[str, str]:
    """``["base=PATH", ...]`` as a dict; `ConfigError` for a missing ``=`` or a name given twice."""
    models: dict[str, str] = {}
    for pair in pairs:
        name, equals, path = pair.partition("=")
        if not equals or not name or not path:
            raise ConfigError(f"{option} {pair!r} cannot be read; write NAME=PATH, for example base=models/base.")
        if name in models:
            raise ConfigError(f"{option} names '{name}' twice; give each model one name.")
        models[name] = path
    return models


def prompt_settings(
    file: str | None, format_: str | None = None, split: str | None = None, fields: Sequence[str] | None = None
) -> dict[str, Any]:
    """The section ``prompts`` that the prompt options give.

    Raises:
        ConfigError: A ``--field`` is not NAME=COLUMN.
    """
    section: dict[str, Any] = {"file": file, "format": format_, "split": split}
    for pair in fields or ():
        name, equals, column = pair.partition("=")
        if not equals or name not in ("prompt", "response", "task", "id", "messages"):
            raise ConfigError(
                f"--field {pair!r} cannot be read; write NAME=COLUMN, NAME one of prompt, response, task, id, messages."
            )
        section[f"{name}_field"] = column
    given = {key: value for key, value in section.items() if value is not None}
    return {"prompts": given} if given else {}


def device_map_setting(text: str | None) -> dict[str, Any]:
    """The setting that ``--device-map`` gives; its text is a name such as ``auto``, or a TOML table."""
    from mechprobe.config import parse_value

    return {} if text is None else {"device_map": parse_value(text)}
