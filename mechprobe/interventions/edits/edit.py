"""Edits and how they change feature activations; `edit_functions` applies them to residuals.

Notation: f are the feature activations of the host h under a read-out, S the edited features, s_m the scale and W_dec the
decoder of the crosscoder, r the host's residual. Ablate, clamp, scale and transplant keep the reconstruction error:

* ablate, clamp, scale:  r' = r + s_h Σ_{k∈S} (f'_k − f_k) W_dec[k, h]  with f' = 0, a value, or a factor times f
  (ablate and clamp are those of arXiv 2604.25011; the delta form is ours)
* transplant (ours):  r' = r + Σ_{k∈S} (s_d f_k^d W_dec[k, d] − s_h f_k^h W_dec[k, h])  for a donor d
* steer:  r' = r + V Σ_{k∈S} W_dec[k, h] / ‖W_dec[k, h]‖₂, independent of the activations of the features (activation
  addition, arXiv 2308.10248, along decoder directions; V is in the units of the host's residual)
* replace:  r' = the reconstruction without the features of S; with S empty, the reconstruction only
* project:  r' = r without its component in the span of the decoder directions of S
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

from mechprobe.errors import ConfigError

EditKind = Literal["ablate", "clamp", "scale", "transplant", "steer", "replace", "project"]
_NEEDS_VALUE = ("clamp", "scale", "steer")
_MOST_STEPS = 1000


@dataclass(frozen=True)
class Edit:
    """An edit and its strength.

    Attributes:
        kind: What is done.
        value: Strength of ``clamp`` (an activation, in the crosscoder's scaled units), ``scale`` (a factor) or ``steer`` (a
            length, in the units of the host's residual); None for the other kinds.
    """

    kind: EditKind
    value: float | None = None

    @property
    def changes_nothing(self) -> bool:
        """Whether the edit leaves the residual unchanged, whichever features are edited."""
        return (self.kind, self.value) in (("scale", 1.0), ("steer", 0.0))

    def __str__(self) -> str:
        return self.kind if self.value is None else f"{self.kind}:{self.value:.15g}"

    @classmethod
    def parse(cls, text: str) -> "Edit":
        """Read ``ablate``, ``clamp:3.0``, ``scale:0.5``, ``steer:8``, ``transplant``, ``replace`` or ``project``.

        Raises:
            ConfigError: The text does not name an edit, or its value is missing, superfluous or not finite.
        """
        kind, colon, value = text.partition(":")
        _check_form(kind, bool(colon), text)
        if not colon:
            return cls(kind)  # pyright: ignore[reportArgumentType]
        return cls(kind, _number(value, text))  # pyright: ignore[reportArgumentType]


def edit_sweep(text: str) -> Iterator[Edit]:
    """The edits of a sweep over strengths, in the order written.

    Args:
        text: A list of strengths as in ``clamp:0.5,1,3,10``, a range as in ``scale:0..2:5`` (five strengths at equal
            distances, with both ends), or a single edit. A range and a list cannot be mixed.

    Example:
        >>> [str(edit) for edit in edit_sweep("scale:0..2:5")]
        ['scale:0', 'scale:0.5', 'scale:1', 'scale:1.5', 'scale:2']

    Raises:
        ConfigError: The text is not a sweep. The error is raised by the call, before the first edit is taken.
    """
    kind, colon, values = text.partition(":")
    _check_form(kind, bool(colon), text)
    if not colon:
        return iter((Edit.parse(text),))
    numbers = _evenly(kind, values, text) if ".." in values else [_number(value, text) for value in values.split(",")]
    return iter([Edit(kind, number) for number in numbers])  # pyright: ignore[reportArgumentType]


def split_edits(text: str) -> tuple[str, ...]:
    """Split a list of edits and sweeps at its commas; a comma before a number belongs to a sweep.

    Example:
        >>> split_edits("clamp:1,3, transplant")
        ('clamp:1,3', 'transplant')
    """
    parts = (part.strip(" ,") for part in re.split(r",(?=\s*[A-Za-z])", text))
    return tuple(part for part in parts if part)


def _check_form(kind: str, has_value: bool, text: str) -> None:
    if kind not in get_args(EditKind):
        raise ConfigError(
            f"'{text}' does not name an edit; write ablate, clamp:V, scale:A, steer:V, transplant, replace or project."
        )
    if (kind in _NEEDS_VALUE) != has_value:
        raise ConfigError(
            f"'{text}': {kind} takes no value." if has_value else f"'{text}' lacks its strength; write {kind}:<number>."
        )


def _number(value: str, text: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = float("nan")
    if not math.isfinite(number):
        raise ConfigError(f"'{text}': {value!r} is not a finite number.")
    return number


def _evenly(kind: str, values: str, text: str) -> list[float]:
    """N numbers from A to B for ``A..B:N``, with both ends exactly as written."""
    if "," in values:
        ranges = ", ".join(f"{kind}:{part}" for part in values.split(","))
        raise ConfigError(f"'{text}' mixes a range with a list of strengths; write them as separate edits: {ranges}.")
    ends, _, count = values.partition(":")
    first, _, last = ends.partition("..")
    if not count.isdecimal() or not 2 <= int(count) <= _MOST_STEPS:
        raise ConfigError(f"'{text}': append the number of strengths to the range, as in 0..2:5 (2 to {_MOST_STEPS}).")
    low, high, steps = _number(first, text), _number(last, text), int(count) - 1
    return [low * ((steps - step) / steps) + high * (step / steps) for step in range(steps + 1)]
