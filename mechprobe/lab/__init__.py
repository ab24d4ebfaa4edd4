"""The embedded lab: a tiny language model pre-trained from scratch, then post-trained in three ways.

Real training with real outcomes, small enough for two CPU cores, in the Hugging Face format. Its transfer is a
planted mechanism (elicitation by construction), there to test the tool on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mechprobe.lab.builder import build
    from mechprobe.lab.recipe import RECIPES, Recipe, get_recipe

__all__ = ["RECIPES", "Recipe", "build", "get_recipe"]

_HOME = {"build": "mechprobe.lab.builder", "RECIPES": "mechprobe.lab.recipe"}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOME.get(name, "mechprobe.lab.recipe")), name)
