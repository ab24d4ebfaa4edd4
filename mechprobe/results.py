"""The base of typed results: frozen records that a stage writes as JSON and that the command line and the report read."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError, WrapSerializer

from mechprobe.display import Displayed
from mechprobe.errors import ArtifactError
from mechprobe.files import read_json, write_json
from mechprobe.statistics import Interval

ResultType = TypeVar("ResultType", bound="Result")


def _nan_for_null(value: Any) -> Any:
    return float("nan") if value is None else value


Number = Annotated[float, BeforeValidator(_nan_for_null)]
"""A float that JSON writes as null where it is NaN."""


def _interval(value: Any) -> Any:
    return Interval(*map(_nan_for_null, value)) if isinstance(value, list | tuple) else value


IntervalNumbers = Annotated[Interval, BeforeValidator(_interval)]
"""An interval whose numbers JSON writes as null where they are NaN."""


def _none_for_empty(value: Any) -> Any:
    return None if value == {} else value


def _empty_for_none(value: Any, handler: Callable[[Any], Any]) -> Any:
    return {} if value is None else handler(value)


Part = TypeVar("Part")
OrEmpty = Annotated[Part | None, BeforeValidator(_none_for_empty), WrapSerializer(_empty_for_none)]
"""A part that a result may lack: None in Python, ``{}`` in JSON."""


class Result(Displayed, BaseModel):
    """A frozen record of a result file. Unknown keys are errors.

    Subclasses declare one typed field per JSON key. NaN is written as null; a field of type `Number` reads null as NaN.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")

    @classmethod
    def load(cls: type[ResultType], path: Path | str) -> ResultType:
        """Read a result file.

        Raises:
            ArtifactError: The file is missing, is not JSON, or does not hold this result.
        """
        return cls.checked(read_json(path), path)

    @classmethod
    def checked(cls: type[ResultType], value: Any, path: Path | str) -> ResultType:
        """The result of a JSON value that was read from ``path``; `ArtifactError` if it does not hold this result."""
        try:
            return cls.model_validate(value)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            raise ArtifactError(
                f"{path} does not hold a {cls.__name__} ({place}: {first['msg']}); run its stage again with --force."
            ) from None

    def save(self, path: Path | str) -> None:
        """Write the result as JSON, atomically."""
        write_json(path, self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """The JSON value of the result; NaN stays a float."""
        return self.model_dump(mode="python", by_alias=True)
