"""Numbers and names as text, for tables and sentences of the report and the command line. A missing number becomes a dash."""

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import Any, TypeVar

MISSING = "–"


def number(value: Any) -> float:
    """A JSON number as float; null becomes NaN."""
    return float("nan") if value is None else float(value)


def decimal(value: Any, digits: int = 2) -> str:
    """A number with a fixed number of decimals.

    Example:
        >>> decimal(0.5), decimal(None), decimal(0.98765, 3)
        ('0.50', '–', '0.988')
    """
    value = number(value)
    return f"{value:.{digits}f}" if math.isfinite(value) else MISSING


def percent(value: Any, digits: int = 0) -> str:
    """A share in percent, without the sign.

    Example:
        >>> percent(0.834), percent(None), percent(0.834, 1), percent(-0.001)
        ('83', '–', '83.4', '0')
    """
    value = number(value)
    return f"{round(100 * value, digits) + 0.0:.{digits}f}" if math.isfinite(value) else MISSING


def points(value: Any) -> str:
    """A change of a share in percentage points, with its sign.

    Example:
        >>> points(0.104), points(-0.001)
        ('+10', '0')
    """
    value = number(value)
    if not math.isfinite(value):
        return MISSING
    rounded = round(100 * value)
    return f"{rounded:+d}" if rounded else "0"


def interval(item: Sequence[Any] | None, *, signed: bool = False) -> str:
    """``[value, low, high, ...]`` in percent, or in points if ``signed``.

    Example:
        >>> interval([0.83, 0.75, 0.89, 64]), interval([0.1, -0.02, 0.2, 64], signed=True)
        ('83 (75 to 89)', '+10 (-2 to +20)')
    """
    form = points if signed else percent
    value, low, high = (form(part) for part in (*(item or ()), None, None, None)[:3])
    return value if MISSING in (value, low) else f"{value} ({low} to {high})"


def bracketed(item: Sequence[Any] | None) -> str:
    """``[value, low, high, ...]`` in percent, in the short form of terminal tables.

    Example:
        >>> bracketed([0.54, 0.42, 0.66, 64])
        '54 [42, 66]'
    """
    value, low, high = (percent(part) for part in item[:3]) if item else (MISSING,) * 3
    return MISSING if value == MISSING else f"{value} [{low}, {high}]"


def nats(item: Sequence[Any] | None) -> str:
    """``[value, low, high, ...]`` in nats, with three significant digits.

    Example:
        >>> nats([0.01234, 0.01, 0.015, 900]), nats(None)
        ('0.0123 (0.01 to 0.015)', '–')
    """
    if not item or not math.isfinite(number(item[0])):
        return MISSING
    value, low, high = (f"{number(part):.3g}" for part in item[:3])
    return f"{value} ({low} to {high})"


def spread(values: Iterable[float]) -> str:
    """Median and range of random draws, in points.

    Example:
        >>> spread([0.0, 0.1, -0.05])
        '0 [-5, +10]'
    """
    finite = [value for value in values if math.isfinite(value)]
    return f"{points(median(finite))} [{points(min(finite))}, {points(max(finite))}]" if finite else MISSING


def p_value(value: Any) -> str:
    """A p-value with two significant digits, and values below 0.001 as a bound.

    Example:
        >>> p_value(0.0476), p_value(0.0004), p_value(None)
        ('0.048', '< 0.001', '–')
    """
    value = number(value)
    if not math.isfinite(value):
        return MISSING
    return "< 0.001" if value < 0.001 else f"{value:.2g}"


def listing(items: Iterable[str]) -> str:
    """Words as a list in a sentence.

    Example:
        >>> listing(["a", "b", "c"]), listing(["a"])
        ('a, b and c', 'a')
    """
    words = list(items)
    return " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else "".join(words)


Value = TypeVar("Value")


def edit_title(condition: Mapping[str, Any]) -> str:
    """The edit of a condition and the model that it acts on.

    Example:
        >>> edit_title({"edit": "transplant", "model": "base", "donor": "rl"})
        'transplant rl into base'
    """
    edit, model, donor = condition["edit"], condition["model"], condition.get("donor")
    return f"{edit} {donor} into {model}" if donor else f"{edit} in {model}"


def ordered(found: Mapping[str, Value], order: Sequence[str]) -> dict[str, Value]:
    """A mapping with its keys in the given order. Keys that the order does not contain follow unchanged.

    Example:
        >>> ordered({"b": 1, "a": 2, "z": 3}, ["a", "b", "c"])
        {'a': 2, 'b': 1, 'z': 3}
    """
    return {key: found[key] for key in [*(k for k in order if k in found), *(k for k in found if k not in order)]}
