"""One line of ``mechprobe doctor``."""

from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "note", "fail"]


@dataclass(frozen=True)
class Check:
    """One line of ``mechprobe doctor``.

    Attributes:
        name: What was checked.
        state: ``fail`` prevents work, ``note`` limits it.
        text: The result, and how to fix a failure.
    """

    name: str
    state: State
    text: str
