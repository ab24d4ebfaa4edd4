"""Packages that are public functions too: ``mechprobe.report(run_dir)`` while ``mechprobe.report`` is a package.

Python binds a sub-package to its name in the parent when it is first imported, in place of the function that has that name.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import Any


class CallablePackage(ModuleType):
    """A package that, when called, calls the function of its own name in its module ``stage``."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Import ``stage`` and call the function there."""
        return getattr(import_module(f"{self.__name__}.stage"), self.__name__.rpartition(".")[2])(*args, **kwargs)


def make_callable(package: str) -> None:
    """Let the package be called; to be used in its ``__init__``."""
    sys.modules[package].__class__ = CallablePackage
