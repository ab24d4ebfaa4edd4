"""Packages that are public functions too: ``mechprobe.report`` is a package, and ``mechprobe.report(run_dir)`` works.

When Python first imports a sub-package, it replaces the parent's function of the same name by the package.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import Any


class CallablePackage(ModuleType):
    """A package that can be called: the call goes to the function of the same name in its module ``stage``."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Import ``stage`` and call its function."""
        return getattr(import_module(f"{self.__name__}.stage"), self.__name__.rpartition(".")[2])(*args, **kwargs)


def make_callable(package: str) -> None:
    """Make a package callable; call this in its ``__init__``."""
    sys.modules[package].__class__ = CallablePackage
