"""Numbers and names as text, for tables and sentences of the report and the command line. A missing number becomes a dash."""

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from statistics import median
from typing import Any, TypeVar

Value = TypeVar("Value")

MISSING = "–"


def number(value: Any) -> float:
    """A JSON number as float; null becomes NaN."""
    return float("nan") if value is None else float(value)


def decimal(value: Any, digits: int = 2) -> str:
    """A number with a fixed number of decimals, such as 0.50."""
    value = number(value)
    return f"{value:.{digits}f}" if math.isfinite(value) else MISSING


def told_apart(first: float, second: float) -> tuple[str, str]:
    """Two numbers with three significant digits, or as many more as it takes to tell them apart: 0.01791 and 0.01794."""
    for digits in range(3, 18):
        texts = f"{first:.{digits}g}", f"{second:.{digits}g}"
        if texts[0] != texts[1]:
            return texts
    return f"{first:.3g}", f"{second:.3g}"


def same_decimals(value: float, low: float, high: float, *, decimals: int | None = None) -> tuple[str, str, str]:
    """A number and the ends of its interval, or of its null, with one number of decimals.

    There are three significant digits in the largest, or ``decimals``, and as many more as it takes to tell the number from each
    end and from 0: 0.9990 with the ends 0.9985 and 0.9995. Numbers below 1e-4 or from 1e6 on are written with an exponent.
    """
    largest = max(abs(value), abs(low), abs(high))
    plain = decimals is not None or largest == 0 or 1e-4 <= largest < 1e6
    first = 2
    if decimals is not None or largest == 0:
        first = decimals or 0
    elif plain:
        first = max(0, 2 - math.floor(math.log10(largest)))
    apart = [
        other for other in (low, high, 0.0) if not math.isclose(value, other, rel_tol=1e-9, abs_tol=1e-9 * largest)
    ]
    for digits in range(first, first + 7):
        shown = _fixed(value, digits, plain)
        if all(shown != _fixed(other, digits, plain) for other in apart):
            return shown, _fixed(low, digits, plain), _fixed(high, digits, plain)
    return _fixed(value, 2, False), _fixed(low, 2, False), _fixed(high, 2, False)


def _fixed(value: float, digits: int, plain: bool) -> str:
    """A number with fixed decimals, or with an exponent; never -0.00."""
    return f"{round(value, digits) + 0.0:.{digits}f}" if plain else f"{value + 0.0:.{digits}e}"


def estimate(
    item: Sequence[Any] | None, *, factor: int = 1, decimals: int | None = None, signed: bool = False, unit: str = ""
) -> str:
    """``[value, low, high, ...]`` times a factor, see `same_decimals`: 0.988 [0.985, 0.991]. The unit follows the value."""
    if not item or not math.isfinite(number(item[0])):
        return MISSING
    value, *ends = _parts(item, factor, decimals, signed)
    return f"{value}{unit}" + (f" [{ends[0]}, {ends[1]}]" if ends else "")


def _parts(item: Sequence[Any], factor: int, decimals: int | None, signed: bool = False) -> tuple[str, ...]:
    """The texts of a finite value and of its ends, or of the value alone where an end is missing."""
    value, *ends = (factor * number(part) for part in item[:3])
    whole = len(ends) == 2 and all(map(math.isfinite, ends))
    texts = same_decimals(value, *(ends if whole else (value, value)), decimals=decimals)
    return tuple(map(_with_sign, texts) if signed else texts)[: 3 if whole else 1]


def _with_sign(text: str) -> str:
    return text if text.startswith("-") or not text.strip("0.") else f"+{text}"


def percent(value: Any, digits: int = 0) -> str:
    """A share in percent, without the sign: 83 for 0.834."""
    value = number(value)
    return f"{round(100 * value, digits) + 0.0:.{digits}f}" if math.isfinite(value) else MISSING


def points(value: Any) -> str:
    """A change of a share in percentage points, with its sign: +10 for 0.104."""
    value = number(value)
    if not math.isfinite(value):
        return MISSING
    rounded = round(100 * value)
    return f"{rounded:+d}" if rounded else "0"


def interval(item: Sequence[Any] | None, *, signed: bool = False) -> str:
    """``[value, low, high, ...]`` in percent, such as 83 (75 to 89); in points, +10 (-2 to +20), if ``signed``."""
    if not item or not math.isfinite(number(item[0])):
        return MISSING
    value, *ends = _parts(item, 100, 0, signed)
    return f"{value} ({ends[0]} to {ends[1]})" if ends else value


def bracketed(item: Sequence[Any] | None) -> str:
    """``[value, low, high, ...]`` in percent, in the short form of terminal tables: 54 [42, 66]."""
    return estimate(item, factor=100, decimals=0)


def remark(*, cut: float | None = 0.0, unparsed: float | None = 0.0) -> str:
    """What a table cell says beside an accuracy on responses that were not scored: `` (92 % cut)``; empty if all were.

    Both are shares of all responses. A share that rounds to 0 % is given as below 1 %.
    """
    shares = ((number(share), word) for share, word in ((cut, "cut"), (unparsed, "unparsed")))
    parts = [f"{percent(share) if share >= 0.005 else '< 1'} % {word}" for share, word in shares if share > 0]
    return f" ({', '.join(parts)})" if parts else ""


def scored_remark(accuracy: Sequence[Any], cut: float | None, unparsed: float | None) -> str:
    """The `remark` beside ``[accuracy, ...]``. Unparsed responses are told where they are most of those that are not right."""
    many = number(unparsed) > (1 - number(accuracy[0])) / 2
    return remark(cut=cut, unparsed=unparsed if many else 0.0)


def nats(item: Sequence[Any] | None) -> str:
    """``[value, low, high, ...]`` in nats, see `same_decimals`: 0.0123 (0.0100 to 0.0150)."""
    if not item or not math.isfinite(number(item[0])):
        return MISSING
    value, *ends = _parts(item, 1, None)
    return f"{value} ({ends[0]} to {ends[1]})" if ends else value


def spread(values: Iterable[float]) -> str:
    """Median and range of random draws, in points: 0 [-5, +10]."""
    finite = [value for value in values if math.isfinite(value)]
    return f"{points(median(finite))} [{points(min(finite))}, {points(max(finite))}]" if finite else MISSING


def p_value(value: Any) -> str:
    """A p-value with two significant digits, and values below 0.001 as a bound: < 0.001."""
    value = number(value)
    if not math.isfinite(value):
        return MISSING
    return "< 0.001" if value < 0.001 else f"{value:.2g}"


def byte_size(n_bytes: int) -> str:
    """A number of bytes with three digits and its unit: ``1.23 GB``."""
    value = float(n_bytes)
    for unit in ("B", "KB", "MB", "GB"):
        if value < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} TB"


def listing(items: Iterable[str]) -> str:
    """Words as a list in a sentence: a, b and c."""
    words = list(items)
    return " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else "".join(words)


def short_list(names: Sequence[str], most: int = 3) -> str:
    """The first names: ``a, b, c and 6 more``."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def edit_title(condition: Mapping[str, Any]) -> str:
    """The edit of a condition and the model that it acts on: "transplant rl into base" or "ablate in rl"."""
    edit, model, donor = condition["edit"], condition["model"], condition.get("donor")
    return f"{edit} {donor} into {model}" if donor else f"{edit} in {model}"


def ordered(found: Mapping[str, Value], order: Sequence[str]) -> dict[str, Value]:
    """A mapping with its keys in the given order. Keys that the order does not contain follow unchanged."""
    return {key: found[key] for key in [*(k for k in order if k in found), *(k for k in found if k not in order)]}


def markdown_cell(value: object) -> str:
    """Escape text to one `inert` line that cannot break a Markdown table and contains no HTML."""
    text = escape(inert(" ".join(str(value).split())), quote=False)
    for mark in ("\\", "`", "*", "_", "[", "]", "|"):
        text = text.replace(mark, f"\\{mark}")
    return text


def inert(text: str) -> str:
    r"""Text with its control and direction characters spelled out, as in ``\x1b[31m``, so that they have no effect."""
    return "".join(char if char.isprintable() or char == "\u00a0" else f"\\x{ord(char):02x}" for char in text)


def short_repr(value: object, most: int = 60) -> str:
    """A value in a message: its representation on one line, cut after ``most`` characters, or its type where it has none.

    Example:
        >>> short_repr(10**50, most=5)
        '10000...'
    """
    try:
        text = " ".join(repr(value).split())
    except Exception:  # noqa: BLE001 - a type of the user, or a number of 5,000 digits
        return f"a value of {type(value).__name__}"
    return text if len(text) <= most else f"{text[:most]}..."


def duration(seconds: float) -> str:
    """Seconds in a suitable unit: ``0.4 s``, ``119 s``, ``12 min``, ``3.5 h``, ``2.1 days``."""
    units = (("days", 86400.0), ("h", 3600.0), ("min", 60.0))
    unit, size = next((item for item in units if seconds >= 2 * item[1]), ("s", 1.0))
    return f"{seconds / size:.2g} {unit}" if seconds < 10 * size else f"{seconds / size:.0f} {unit}"
