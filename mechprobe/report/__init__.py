"""One readable report from the files of a run folder; works without torch and without the models."""

import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
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


class _CallableModule(ModuleType):
    """The promised ``mechprobe.report(run_dir)`` is a function and a package of one name; this makes both work."""

    def __call__(self, run_dir: Path | str) -> Path:
        from mechprobe.report.render import report as make_report

        return make_report(run_dir)


sys.modules[__name__].__class__ = _CallableModule
