"""One readable report from the files of a run folder; works without torch and without the models."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mechprobe.report.render import report
    from mechprobe.report.run_files import RunFiles

_HOME = {"RunFiles": "run_files", "report": "render"}

__all__ = ["RunFiles", "report"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'mechprobe.report' has no attribute {name!r}")
    return getattr(import_module(f"mechprobe.report.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
