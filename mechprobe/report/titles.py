"""Names and orders that all parts of the report share."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

Value = TypeVar("Value")


def edit_title(condition: Mapping[str, Any]) -> str:
    """The edit of a condition and the model that it acts on.

    Example:
        >>> edit_title({"edit": "transplant", "model": "base", "donor": "rl"})
        'transplant rl into base'
    """
    edit, model, donor = condition["edit"], condition["model"], condition.get("donor")
    return f"{edit} {donor} into {model}" if donor else f"{edit} in {model}"


def ordered(found: Mapping[str, Value], order: Sequence[str]) -> dict[str, Value]:
    """A mapping with its keys in the given order. Keys that the order does not contain follow unchanged.

    Example:
        >>> ordered({"b": 1, "a": 2, "z": 3}, ["a", "b", "c"])
        {'a': 2, 'b': 1, 'z': 3}
    """
    return {key: found[key] for key in [*(k for k in order if k in found), *(k for k in found if k not in order)]}
