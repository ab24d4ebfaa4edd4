"""What every command that can take long has: lines of progress from its beginning to its end, and ``--log-json``."""

import functools
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

LogJson = Annotated[
    Path | None,
    typer.Option("--log-json", metavar="FILE", help="Also append what happens to this file, as JSON lines."),
]
_LIBRARIES = "torch and transformers"


def long_running(command: Callable[..., None]) -> Callable[..., None]:
    """Show the progress of a command, which loads the models' libraries."""
    return _shown(command, _LIBRARIES)


def long_running_without_models(command: Callable[..., None]) -> Callable[..., None]:
    """Show the progress of a command that does without the models' libraries; a short one says nothing."""
    return _shown(command, "")


def _shown(command: Callable[..., None], libraries: str) -> Callable[..., None]:
    signature = inspect.signature(command, eval_str=True)

    @functools.wraps(command)
    def wrapped(context: Any, log_json: Path | None = None, **values: Any) -> None:
        from mechprobe.launcher import SEVERAL, require_one_process
        from mechprobe.progress.display import screen
        from mechprobe.progress.events import EventLog

        name = _name(context)
        if name not in SEVERAL and not name.startswith("posttrain"):  # which has a rule of its own
            require_one_process(f"mechprobe {name}")
        log = None if log_json is None else EventLog(log_json)
        loads = "" if "torch" in sys.modules else libraries
        try:
            with screen.command(name, log, loads=loads, soon=bool(loads or not libraries)):
                command(**values)
        finally:
            if log is not None:
                log.close()

    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [
        inspect.Parameter("context", kind, annotation=typer.Context),
        *signature.parameters.values(),
        inspect.Parameter("log_json", kind, default=None, annotation=LogJson),
    ]
    wrapped.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    wrapped.__annotations__ = {each.name: each.annotation for each in parameters}
    return wrapped


def _name(context: Any) -> str:
    """The command without the name of the program, such as ``posttrain sft``."""
    parent = context.parent
    return (
        str(context.info_name) if parent is None or parent.parent is None else f"{parent.info_name} {context.info_name}"
    )
