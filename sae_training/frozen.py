"""Base of all configurations: frozen, with errors of one sentence that suggest the nearest known key."""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from sae_training.errors import SaeTrainingError

# Not typing.Self: beartype, which checks the annotations in tests, takes Self in decorated classes only.
ConfigType = TypeVar("ConfigType", bound="FrozenConfig")
Place = tuple[str | int, ...]


class FrozenConfig(BaseModel):
    """A frozen pydantic model whose errors are one sentence.

    A subclass may set ``error_type`` to its own exception class.

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
            raise self.error_type(describe_validation_error(type(self), error, data)) from None

    @classmethod
    def model_validate(cls: type[ConfigType], obj: Any, **kwargs: Any) -> ConfigType:
        """Validate a mapping as the constructor does; errors are of type ``error_type``."""
        if isinstance(obj, Mapping) and not kwargs:
            return cls(**obj)
        try:
            return super().model_validate(obj, **kwargs)
        except ValidationError as error:
            raise cls.error_type(describe_validation_error(cls, error, obj)) from None

    def replace(self: ConfigType, **changes: Any) -> ConfigType:
        """Copy the configuration with some values changed, and validate it; what was left out before is still left out."""
        given = {name: getattr(self, name) for name in self.model_fields_set}
        return type(self)(**{**given, **changes})


def nearest_name(name: str, known: Iterable[str]) -> str | None:
    """The known name that is closest in spelling, or None if no name is close."""
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return matches[0] if matches else None


def describe_validation_error(model: type[BaseModel], error: ValidationError, given: Any) -> str:
    """Describe the first problem of a pydantic error in one sentence, with the number of further problems.

    Args:
        model: The class that raised the error.
        error: The error of pydantic.
        given: The value that was validated. It distinguishes keys from pydantic's names of the branches of a union.
    """
    problems: dict[Place, list[ErrorDetails]] = {}
    for problem in error.errors():
        problems.setdefault(_place(problem, given), []).append(problem)
    # Where one branch of a union reports a problem inside the value, drop what other branches report of the whole value.
    problems = {place: found for place, found in problems.items() if not any(_inside(p, place) for p in problems)}
    # An unknown key comes first, because a misspelled name also makes the right one missing.
    first = min(problems, key=lambda place: problems[place][0]["type"] != "extra_forbidden")
    sentence = _describe_problem(model, first, problems[first])
    further = len(problems) - 1
    return f"{sentence} ({further} more problem{'s' if further > 1 else ''})" if further else sentence


def _place(problem: ErrorDetails, given: Any) -> Place:
    """The keys and indices that lead to the value of a problem."""
    place: list[str | int] = []
    value, parts = given, problem["loc"]
    for number, part in enumerate(parts):
        holds: Any = dict(enumerate(value)) if isinstance(value, list | tuple) else value
        if isinstance(holds, Mapping) and part in holds:
            value = holds[part]
        elif number and not (problem["type"] == "missing" and number == len(parts) - 1):
            continue
        place.append(part)
    return tuple(place)


def _inside(place: Place, outer: Place) -> bool:
    return len(place) > len(outer) and place[: len(outer)] == outer


def _describe_problem(model: type[BaseModel], place: Place, problems: Sequence[ErrorDetails]) -> str:
    """Describe in one sentence what all branches of a union, or the single type, report about a value."""
    where, problem = ".".join(map(str, place)), problems[0]
    if problem["type"] == "extra_forbidden":
        return _describe_unknown_key(model, where, [str(part) for part in place])
    if problem["type"] == "missing":
        return f"{model.__name__}: {where} is required; give it a value."
    said = (each["msg"].removeprefix("Value error, ").rstrip(".") for each in problems)
    first, *others = dict.fromkeys(text.replace("a valid tuple", "a list") for text in said)
    message = ", or ".join([first, *(text.removeprefix("Input should ") for text in others)])
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
    fix = f"did you mean {nearest!r}?" if nearest else f"known keys: {', '.join(known)}."
    return f"{model.__name__}: unknown key {where!r}; {fix}"
