"""The base of every configuration: frozen, and an unknown key is an error that names the nearest one."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from sae_training.errors import SaeTrainingError

# Not typing.Self: beartype, which checks the annotations in tests, takes Self in decorated classes only.
ConfigType = TypeVar("ConfigType", bound="FrozenConfig")


class FrozenConfig(BaseModel):
    """A frozen pydantic model whose errors are one sentence.

    A subclass in another package may set ``error_type`` to its own exception class.

    Example:
        >>> class Sampling(FrozenConfig):
        ...     temperature: float = 0.0
        >>> Sampling(temprature=1.0)
        Traceback (most recent call last):
            ...
        sae_training.errors.SaeTrainingError: Sampling: unknown key 'temprature'; did you mean 'temperature'?
    """

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    error_type: ClassVar[type[Exception]] = SaeTrainingError

    def __init__(self, **data: Any) -> None:
        try:
            super().__init__(**data)
        except ValidationError as error:
            raise self.error_type(describe_validation_error(type(self), error)) from None

    @classmethod
    def model_validate(cls: type[ConfigType], obj: Any, **kwargs: Any) -> ConfigType:
        """Validate a mapping as the constructor does; errors are one sentence of ``error_type``."""
        if isinstance(obj, Mapping) and not kwargs:
            return cls(**obj)
        try:
            return super().model_validate(obj, **kwargs)
        except ValidationError as error:
            raise cls.error_type(describe_validation_error(cls, error)) from None

    @classmethod
    def from_json(cls: type[ConfigType], path: Path) -> ConfigType:
        """Read a configuration written by `to_json`; the error names the file."""
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, json.JSONDecodeError, UnicodeDecodeError) as error:
            raise cls.error_type(f"{path} is no readable JSON configuration ({error}); give another file.") from None
        try:
            return cls.model_validate(data)
        except cls.error_type as error:
            raise cls.error_type(f"{path}: {error}") from None

    def to_json(self, path: Path) -> None:
        """Write the configuration as indented JSON with a final newline."""
        path.write_text(json.dumps(self.model_dump(mode="json"), indent=2) + "\n", encoding="utf-8")

    def replace(self: ConfigType, **changes: Any) -> ConfigType:
        """A validated copy with some values changed."""
        return type(self)(**{**self.model_dump(), **changes})


def nearest_name(name: str, known: Iterable[str]) -> str | None:
    """The known name closest in spelling, or None when nothing is close."""
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return matches[0] if matches else None


def describe_validation_error(model: type[BaseModel], error: ValidationError) -> str:
    """One sentence for the first problem of a pydantic error, and the number of further ones."""
    # An unknown key comes first: a misspelled name also makes the right one missing.
    problems = sorted(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")
    sentence = _describe_problem(model, problems[0])
    further = len(problems) - 1
    return f"{sentence} ({further} more problem{'s' if further > 1 else ''})" if further else sentence


def _describe_problem(model: type[BaseModel], problem: ErrorDetails) -> str:
    where = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        return _describe_unknown_key(model, where, [str(part) for part in problem["loc"]])
    if problem["type"] == "missing":
        return f"{model.__name__}: {where} is required; give it a value."
    message = problem["msg"].removeprefix("Value error, ").rstrip(".")
    if not where:
        return f"{model.__name__}: {message}."
    return f"{model.__name__}: {where} = {problem['input']!r} is not accepted: {message}."


def _describe_unknown_key(model: type[BaseModel], where: str, path: list[str]) -> str:
    owner: type[BaseModel] = model
    for part in path[:-1]:
        field = owner.model_fields.get(part)
        annotation = field.annotation if field is not None else None
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            owner = annotation
    known = sorted(owner.model_fields)
    nearest = nearest_name(path[-1], known)
    mend = f"did you mean {nearest!r}?" if nearest else f"known keys: {', '.join(known)}."
    return f"{model.__name__}: unknown key {where!r}; {mend}"
