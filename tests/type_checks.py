"""Run-time checks of every annotation in this suite, with the cost of shape checks only for functions with arrays.

The import hook of jaxtyping (``--jaxtyping-packages``) decorates every function with ``jaxtyping.jaxtyped``, which binds and checks the
arguments twice per call, so that the axes of all arrays in a signature agree. For a signature without arrays, beartype alone
performs the same check in a tenth of the time.
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
    """Make the import hook use `checked`; call this before it imports a module."""
    jaxtyping.jaxtyped = checked


def checked(*, typechecker: Callable) -> Callable:
    """Decorate classes and functions with arrays as the hook does, and all other functions with beartype alone."""

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
    """Decorate a function to check the resolved annotations, but keep the annotations that it shows."""
    written, function.__annotations__ = function.__annotations__, hints
    found = _PLAIN(function)
    function.__annotations__ = found.__annotations__ = written
    return found


def _resolved(hint: object, scope: Mapping[str, Any]) -> Any:
    """Resolve an annotation; ``Any`` if it uses a name that exists for type checkers only, as in jaxtyping."""

    def carrier(value: Any) -> None: ...

    carrier.__annotations__ = {"value": hint}
    try:
        return get_type_hints(carrier, dict(scope), include_extras=True)["value"]
    except Exception:  # noqa: BLE001 - an annotation can fail in any way
        return Any
