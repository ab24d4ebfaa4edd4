"""Make a scorer from a specification or from a Python function of the user."""

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
from mechprobe.evals.scorers.final_answer import SkillScorer
from mechprobe.evals.scorers.rules import RuleScorer, Scorer, boxed_scorer
from mechprobe.files import sha256_bytes
from mechprobe.formatting import short_repr
from mechprobe.types import OutcomeName

Judge = Callable[[str, str], Any]
"""``judge(response, answer)`` returns True, False, ``right``, ``wrong`` or ``unparsed``."""

PREFIX = "python"


@dataclass(frozen=True)
class FunctionScorer(Scorer):
    """Judges responses with a function."""

    function: Judge
    digest: str
    """sha256 of its source and state, see `function_scorer`."""

    @property
    def identity(self) -> str:
        """Specification and digest, so that a changed function of the same name is another scorer."""
        return f"{self.spec}#{self.digest}"

    def judge(self, text: str, answer: str) -> OutcomeName:
        """The outcome of the answer part of a response.

        Raises:
            ConfigError: The function raised, or returned something else than an outcome.
        """
        result = called(self.function, (text, answer), f"Scorer '{self.spec}'", text)
        if isinstance(result, bool | np.bool_):
            return "right" if result else "wrong"
        if isinstance(result, str) and result in get_args(OutcomeName):
            return result  # pyright: ignore[reportReturnType]
        raise ConfigError(
            f"Scorer '{self.spec}' returned {short_repr(result)}; it must return True, False, 'right', 'wrong' or 'unparsed'."
        )

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the function by module and name; `ConfigError` if another process could not import it."""
        home: Any = sys.modules.get(getattr(self.function, "__module__", ""))
        for part in getattr(self.function, "__qualname__", "").split("."):
            home = getattr(home, part, None)
        if home is not self.function:
            raise ConfigError(
                f"Another process cannot import scorer '{self.spec}' by name; define it at the top level of a module, "
                "or set intervene.workers = 1."
            )
        return FunctionScorer, (self.spec, self.function, self.digest)


def called(function: Judge, arguments: tuple[str, str], name: str, response: str) -> Any:
    """What a function of the user returns; `ConfigError`, which begins with its ``name``, if it fails on the ``response``."""
    try:
        return function(*arguments)
    except (Exception, SystemExit) as error:
        raise ConfigError(
            f"{name} failed on the response {response[:60]!r} ({type(error).__name__}: {error}); fix the function."
        ) from error


def function_scorer(function: Judge, spec: str | None = None) -> FunctionScorer:
    """The scorer that calls ``function``; its ``spec`` defaults to ``python:<module>:<name>``.

    The digest covers the source of the function, its default arguments, its closure, and the attributes of an object. A
    change in the functions that it calls is not detected.

    Raises:
        ConfigError: The source or the state of the function cannot be read, so its results could not be identified.
    """
    named = _plain(function)
    name = getattr(named, "__qualname__", type(named).__qualname__)
    home = getattr(named, "__module__", type(named).__module__)
    spec = spec or f"{PREFIX}:{home}:{name}"
    try:
        source, state = _source(named), repr(_state(function))
    except (OSError, TypeError):
        raise ConfigError(f"The source of scorer '{spec}' is not available; define it in a Python file.") from None
    if " at 0x" in state:
        raise ConfigError(
            f"Scorer '{spec}' refers to {state[:120]}, which has no stable text representation; write a function that depends "
            "on response and answer only."
        )
    return FunctionScorer(spec, function, sha256_bytes(f"{source}\n{state}".encode()))


def named_scorer(spec: str, kind: str = "Scorer") -> FunctionScorer:
    """The scorer of ``python:<module>:<function>``. The working directory is searched last for the module.

    ``kind`` is its name in messages.

    Raises:
        ConfigError: The module or the function does not exist.
    """
    parts = spec.split(":")
    if len(parts) != 3 or not all(parts):
        raise ConfigError(f"{kind} '{spec}' is malformed; write {PREFIX}:<MODULE>:<FUNCTION>.")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)  # worker processes inherit this path
    try:
        found: Any = importlib.import_module(parts[1])
    except (Exception, SystemExit) as error:  # noqa: BLE001 - the user's module may raise anything
        raise ConfigError(
            f"{kind} '{spec}': module {parts[1]} cannot be imported ({type(error).__name__}: {error})."
        ) from None
    for part in parts[2].split("."):
        found = getattr(found, part, None)
    if not callable(found):
        raise ConfigError(f"{kind} '{spec}': module {parts[1]} has no function {parts[2]}.")
    return function_scorer(found, spec)


def _plain(function: Any) -> Any:
    """The function inside a partial or a bound method; other callables unchanged."""
    while isinstance(function, partial) or inspect.ismethod(function):
        function = function.func if isinstance(function, partial) else function.__func__
    return function


def _source(code: Any) -> str:
    # inspect would follow functools.wraps from the function to the wrapped one; the code object has no such link.
    return inspect.getsource(code.__code__ if inspect.isfunction(code) else type(code))


def _state(function: Any) -> list[Any]:
    """Everything besides its source that determines what a callable returns."""
    if isinstance(function, partial):
        return [function.args, sorted(function.keywords.items()), _state(function.func)]
    if inspect.ismethod(function):
        owner = function.__self__
        return [sorted(vars(owner).items()) if hasattr(owner, "__dict__") else repr(owner), _state(function.__func__)]
    if not inspect.isfunction(function):
        return [sorted(getattr(function, "__dict__", {}).items())]
    cells = [cell.cell_contents for cell in function.__closure__ or ()]
    cells = [[_source(value), _state(value)] if inspect.isfunction(value) else value for value in cells]
    return [function.__defaults__, sorted((function.__kwdefaults__ or {}).items()), cells]


AnyScorer = str | Scorer | Judge
"""A specification, a scorer, or a function of response and answer."""


def scorer(spec: AnyScorer) -> Scorer:
    r"""The scorer of a specification or of a function.

    * ``exact``: the whole answer, without surrounding whitespace.
    * ``numeric``: the number that it gives (`mechprobe.evals.scorers.numbers.answered_number`), compared as a number.
    * ``letter``: the option letter that it gives (`mechprobe.evals.scorers.letters.option_letter`).
    * ``yes_no``: the last word that is yes or no.
    * ``refusal``: ``refuse`` or ``comply``, whether the response begins with a refusal (`mechprobe.evals.scorers.refusals`).
    * ``boxed``: the last ``\boxed{...}``, compared as mathematics.
    * ``skill``: the final answer to an item of the skill benchmark, boxed or behind ANS (`mechprobe.evals.scorers.final_answer`).
    * ``final:<MARKER>``: the line after the last MARKER, without whitespace; numbers are compared as numbers.
    * ``python:<module>:<function>``: the result of a function of response and answer.

    Raises:
        ConfigError: The specification is unknown, or the function is unusable.
        DependencyError: The specification is ``boxed`` and math-verify is not installed.
    """
    if isinstance(spec, Scorer):
        return spec
    if not isinstance(spec, str):
        return function_scorer(spec)
    kind, _, rest = spec.partition(":")
    if spec in ("exact", "numeric", "letter", "yes_no", "refusal") or (kind == "final" and rest.strip()):
        return RuleScorer(spec)
    if spec == "boxed":
        return boxed_scorer(spec)
    if spec == "skill":
        return SkillScorer(spec)
    if kind == PREFIX:
        return named_scorer(spec)
    raise ConfigError(
        f"Scorer '{spec}' is unknown; write exact, numeric, letter, yes_no, refusal, boxed, skill, final:<MARKER> or "
        f"{PREFIX}:<MODULE>:<FUNCTION>."
    )
