"""Scorers that are Python functions of the user's."""

import importlib
import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np

from mechprobe.errors import ConfigError
from mechprobe.evals.scorers.scorer import Scorer
from mechprobe.files import sha256_bytes
from mechprobe.types import OutcomeName

Judge = Callable[[str, str], Any]
"""``judge(response, answer)`` gives True, False, ``right``, ``wrong`` or ``unparsed``."""

PREFIX = "python"


@dataclass(frozen=True)
class FunctionScorer(Scorer):
    """Asks a function.

    Attributes:
        function: ``function(response, answer)`` → bool or outcome.
        digest: sha256 of its source and of what it holds, see `function_digest`.
    """

    function: Judge
    digest: str

    @property
    def identity(self) -> str:
        """Name and digest: another function of the same name is another scorer."""
        return f"{self.spec}#{self.digest}"

    def score(self, response: str, answer: str) -> OutcomeName:
        """Score one response.

        Raises:
            ConfigError: The function failed, or gave something else.
        """
        try:
            result = self.function(response, answer)
        except Exception as error:
            raise ConfigError(
                f"Scorer '{self.spec}' failed on the response {response[:60]!r} ({type(error).__name__}: {error}); mend it."
            ) from error
        if isinstance(result, bool | np.bool_):
            return "right" if result else "wrong"
        if isinstance(result, str) and result in get_args(OutcomeName):
            return result  # pyright: ignore[reportReturnType]
        raise ConfigError(
            f"Scorer '{self.spec}' returned {result!r}; it must return True, False, 'right', 'wrong' or 'unparsed'."
        )

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process finds the function by its module and name; `ConfigError` where it cannot."""
        home: Any = sys.modules.get(getattr(self.function, "__module__", ""))
        for part in getattr(self.function, "__qualname__", "").split("."):
            home = getattr(home, part, None)
        if home is not self.function:
            raise ConfigError(
                f"Scorer '{self.spec}' cannot be found by name from another process; define it at the top of a module, "
                "or set intervene.workers = 1."
            )
        return FunctionScorer, (self.spec, self.function, self.digest)


def function_scorer(function: Judge, spec: str | None = None) -> FunctionScorer:
    """The scorer that asks ``function``; its ``spec`` is ``python:<module>:<name>`` where none is given.

    Raises:
        ConfigError: Its source, or what it holds, cannot be read: its results could not be told from another's.
    """
    named = _plain(function)
    name = getattr(named, "__qualname__", type(named).__qualname__)
    home = getattr(named, "__module__", type(named).__module__)
    text = spec or f"{PREFIX}:{home}:{name}"
    return FunctionScorer(text, function, function_digest(function, text))


def named_scorer(spec: str) -> FunctionScorer:
    """The scorer of ``python:<module>:<function>``; modules of the working directory are found, after all others.

    Raises:
        ConfigError: There is no such module or function.
    """
    parts = spec.split(":")
    if len(parts) != 3 or not all(parts):
        raise ConfigError(f"Scorer '{spec}' cannot be read; write {PREFIX}:<MODULE>:<FUNCTION>.")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)  # processes that share the work are given the same path
    try:
        found: Any = importlib.import_module(parts[1])
    except Exception as error:  # noqa: BLE001 - a module of the user's may raise anything
        raise ConfigError(
            f"Scorer '{spec}': module {parts[1]} cannot be imported ({type(error).__name__}: {error})."
        ) from None
    for part in parts[2].split("."):
        found = getattr(found, part, None)
    if not callable(found):
        raise ConfigError(f"Scorer '{spec}': module {parts[1]} has no function {parts[2]}.")
    return function_scorer(found, spec)


def function_digest(function: Judge, spec: str) -> str:
    """sha256 of a callable: its source, its default arguments, what its closure holds, an object's attributes.

    What it calls is not part of it: a change there is not seen.

    Raises:
        ConfigError: Something of this has no stable text.
    """
    try:
        source, held = _source(_plain(function)), repr(_held(function))
    except (OSError, TypeError):
        raise ConfigError(f"Scorer '{spec}' has no source that can be read; define it in a file.") from None
    if " at 0x" in held:
        raise ConfigError(
            f"Scorer '{spec}' holds {held[:120]}, which has no stable text; write a function of response and answer alone."
        )
    return sha256_bytes(f"{source}\n{held}".encode())


def _plain(function: Any) -> Any:
    """The function behind a partial or a bound method; an object with ``__call__`` as it is."""
    while isinstance(function, partial) or inspect.ismethod(function):
        function = function.func if isinstance(function, partial) else function.__func__
    return function


def _source(code: Any) -> str:
    # Of the code object: inspect would go through functools.wraps to the function inside.
    return inspect.getsource(code.__code__ if inspect.isfunction(code) else type(code))


def _held(function: Any) -> list[Any]:
    """Everything beside the source that decides what a callable returns."""
    if isinstance(function, partial):
        return [function.args, sorted(function.keywords.items()), _held(function.func)]
    if inspect.ismethod(function):
        owner = function.__self__
        return [sorted(vars(owner).items()) if hasattr(owner, "__dict__") else repr(owner), _held(function.__func__)]
    if not inspect.isfunction(function):
        return [sorted(getattr(function, "__dict__", {}).items())]
    cells = [cell.cell_contents for cell in function.__closure__ or ()]
    cells = [[_source(value), _held(value)] if inspect.isfunction(value) else value for value in cells]
    return [function.__defaults__, sorted((function.__kwdefaults__ or {}).items()), cells]
