"""The checks of every annotation in this suite, without the price of shapes where there are none.

The import hook of jaxtyping (``--jaxtyping-packages``) puts ``jaxtyping.jaxtyped`` on every function. It binds the arguments anew at
each call and checks them twice, so that the axes of all arrays in one signature agree. A signature without arrays has
no axes: beartype alone checks the same there, in a tenth of the time.
"""

import re
from collections.abc import Callable, Mapping
from inspect import isfunction
from typing import Any, get_type_hints

import jaxtyping
from beartype import BeartypeConf, beartype

_SHAPED = jaxtyping.jaxtyped
_PLAIN = beartype(conf=BeartypeConf(violation_type=jaxtyping.TypeCheckError))
_ARRAYS = re.compile(
    r"\b("
    + "|".join(
        name
        for name in dir(jaxtyping)
        if isinstance(kind := getattr(jaxtyping, name), type) and issubclass(kind, jaxtyping.AbstractDtype)
    )
    + r")\["
)


def install() -> None:
    """Let the import hook use `checked`; before it imports anything."""
    jaxtyping.jaxtyped = checked


def checked(*, typechecker: Callable) -> Callable:
    """Decorate classes and what names arrays as the hook does, all other functions with beartype alone."""

    def decorate(thing: Any) -> Any:
        hints = (
            {name: _resolved(hint, thing.__globals__) for name, hint in thing.__annotations__.items()}
            if isfunction(thing)
            else None
        )
        if hints is None or _ARRAYS.search(" ".join(map(str, hints.values()))):
            return _SHAPED(thing, typechecker=typechecker)
        return _plain(thing, hints)

    return decorate


def _plain(function: Callable, hints: dict[str, Any]) -> Callable:
    """The function with its annotations checked as they are known by now; the annotations that it shows stay what they were."""
    written, function.__annotations__ = function.__annotations__, hints
    found = _PLAIN(function)
    function.__annotations__ = found.__annotations__ = written
    return found


def _resolved(hint: object, scope: Mapping[str, Any]) -> Any:
    """An annotation without its quotation marks; ``Any`` where a name in it is for type checkers alone, as jaxtyping has it."""

    def stands_for(value: Any) -> None: ...

    stands_for.__annotations__ = {"value": hint}
    try:
        return get_type_hints(stands_for, dict(scope), include_extras=True)["value"]
    except Exception:  # noqa: BLE001 - whatever an annotation can be wrong about
        return Any
