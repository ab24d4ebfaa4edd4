r"""Read numbers as data sets and language models write them; the rules are mechprobe's own.

Thousands separators (``1,200``, ``1{,}200``, ``1\,200``, thin spaces), currency, percent, fractions (``1/2``, ``\frac12``,
``1 1/2``, ``½``), powers of ten and minus signs of all kinds are read. A range has no signs: ``12-15`` ends with 15. A
number in an expression that has no rational value here (``3\pi``, ``\sqrt{2}``) is unreadable. ``1.2 million``, ``3k``,
``5M`` and ``$3.5m`` are scaled; ``5 m``, ``5m``, ``3 K`` and ``300K`` are units.
"""

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction

_MAX_EXPONENT = 4000
"""Largest power of ten that is computed; a number beyond it is unreadable."""


@dataclass(frozen=True, slots=True)
class Number:
    """A number in a text; ``value`` is None if it has no exact rational value."""

    value: Fraction | None
    percent: bool
    start: int
    end: int
    """The place in the text after `_normalized`, with sign and unit signs."""

    def equals(self, other: "Number") -> bool:
        """Whether two numbers are equal; 72 % equals both 72 and 0.72, because data sets write percentages in three ways."""
        if self.value is None or other.value is None:
            return False
        if self.value == other.value:
            return True
        if self.percent == other.percent:
            return False
        share, plain = (self, other) if self.percent else (other, self)
        return share.value is not None and share.value / 100 == plain.value


_DASHES = "\u2010\u2011\u2012\u2013\u2014\u2015\u2212\u02d7\u2796\ufe58\ufe63\uff0d\u207b"
_THIN = "\u00a0\u2007\u2008\u2009\u200a\u202f\u205f\u3000"
_GAP = "\u2009"
_CHARS = str.maketrans(
    {
        **dict.fromkeys(_DASHES, "-"),
        **dict.fromkeys(_THIN, _GAP),
        **dict.fromkeys("\u2044\u2215\uff0f", "/"),
        **{chr(0xFF10 + digit): str(digit) for digit in range(10)},
        "\uff0c": ",", "\uff0e": ".", "\uff05": "%", "\ufe6a": "%", "\uff04": "$", "\uff0b": "+", "\uff1d": "=",
        **dict.fromkeys("\u200b\u200c\u200d\u2060\ufeff\u200e\u200f", None),
    }
)  # fmt: skip
_SUPERSCRIPT = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺", "0123456789+")
_PART = r"\s*(?:\{\s*(-?\s*[\d.,]+)\s*\}|(\d))"
_LATEX = (
    (re.compile(r"\\[dtc]?frac(?![a-zA-Z])" + _PART + _PART), lambda m: _inline_fraction(m)),
    (re.compile(r"\\[dtc]?frac(?![a-zA-Z])\s*(?:\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\}|\S)\s*(?:\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\}|\S)"), lambda _: " § "),
    (re.compile(r"\{\s*(,|-|\\[,;:! ])\s*\}|\\text\s*\{\s*([,-])\s*\}"), lambda m: m[1] or m[2]),
    (re.compile(r"(?<=\d),\\!(?=\d)"), lambda _: ","),
    (re.compile(r"(?<=\d)(?:\\[,;:! ]|~)(?=\d)|(?<=[+-])(?:\\[,;:! ]|~)(?=\d|\.|\\|[$€£¥₹₽])"), lambda _: _GAP),
    (re.compile(rf"(?<=[+-]){_GAP}+"), lambda _: ""),
    (re.compile(r"\^\s*\{?\s*\\(?:circ|degree)\s*\}?"), lambda _: "°"),
    (re.compile(r"(?<=[\d)])([⁺-]?[⁰¹²³⁴⁵⁶⁷⁸⁹]+)"), lambda m: f"^{{{m[1].translate(_SUPERSCRIPT)}}}"),
    (re.compile(r"[⁰¹²³⁴⁵⁶⁷⁸⁹⁺]"), lambda _: ""),
    (re.compile(r"(?<=\d)\s*(?:\\times|\\cdot|×|·|⋅|\*|x)\s*(?=10\s*\^)"), lambda _: "×"),
)  # fmt: skip
"""Notations that are written out before numbers are searched."""

_DIGITS = rf"\d+(?:[,'’_{_GAP}]\d+)*"
_PLAIN = rf"(?:\d{{1,3}}(?:\.\d{{3}}){{2,}}(?![\d.]*\d)|{_DIGITS}(?:\.\d+)?|(?<![\w.])\.\d+)(?:[eE][-+]?\d+(?!\w))?"
_POWER = r"(?:×10)?\^\s*(?:\{\s*[-+]?\d+\s*\}|[-+]?\d+)"
_NUMBER = re.compile(
    rf"§|(?P<whole>\d+)[ {_GAP}]+(?P<part>\d+) ?/ ?(?P<of>\d+)(?![\d/])"
    rf"|(?<![\d/])(?P<top>{_PLAIN})\s*/\s*(?P<bottom>{_PLAIN})(?![\d.]*\d|\s*/)|(?P<plain>{_PLAIN})(?P<power>{_POWER})?"
)
_THOUSANDS = re.compile(r"(?!0)(?:\d{1,3}(?:SEP\d{3})+|\d{1,2}(?:SEP\d{2})+SEP\d{3})".replace("SEP", rf"[,'’_{_GAP}]"))
_CURRENCY = re.compile(
    rf"(?:\\?\$|[€£¥₹₽₩₺₫₴₦฿¢]|\b(?:US|A|C|NZ|HK|S)\\?\$|\b(?:USD|EUR|GBP|JPY|CNY|RMB|INR|CHF|Rs\.?)|\\(?:pounds|euro|yen))[ {_GAP}]?$"
)
_SPACED_SIGN = re.compile(
    r"(?:[=(:\[{<>≤≥≈~,|&]|\b(?:is|equals|be|was|to|of|at)|\\(?:approx|leq?|geq?|to))\Z", re.IGNORECASE
)
_WORD_SIGN = re.compile(r"\b(minus|negative)\s+$", re.IGNORECASE)
_IRRATIONAL_BEFORE = re.compile(r"(?:\\sqrt\s*(?:\[[^\]]*\])?\s*\{?|√\s*\(?|±|\\pm)\s*$")
_IRRATIONAL_AFTER = re.compile(r"\s*(?:\\?(?:pi|sqrt)(?![a-zA-Z])|\*?\s*π|√)")
_PERCENT = re.compile(rf"[ {_GAP}]*(?:\\?%|percent\b|per cent\b)")
_SCALES = {"thousand": 3, "k": 3, "million": 6, "m": 6, "billion": 9, "bn": 9, "b": 9, "trillion": 12}
_SCALE = re.compile(
    rf"(?:[*$ {_GAP}]|\\[,;: ]|~|\\text\s*\{{)*((?i:thousand|million|billion|trillion)|bn)(?!\w)|([kM])(?!\w|\s*[-+*/=^(]\s*[\w(])"
)
_MONEY_SCALE = re.compile(r"([kKmMbB])(?!\w)")
"""Letters that scale an amount of money; without a currency sign K, m and B are units or names."""
_BLANK_GROUPS = re.compile(
    r"((?:\b(?i:answer|result|total|sum)\s*(?:\bis\b|:)|(?<![<>!])=|\bequals\b|####)[ *:]*(?:\\?[$€£¥])?[-+]?)"
    r"([1-9]\d{0,2}(?: \d{3})+)(?![\d^/]|,\d| *[-,;/+*×^] *\d| +(?:\d|and\b|or\b))"
)
"""Thousands with blanks, directly behind a stated answer or an equals sign, and no part of a list."""
_NAMES_BEFORE = re.compile(r"(?:,|\band)\s*\w+\s*\Z")
_COMMA_DECIMAL = re.compile(r"(?<![\w.,(\[])([1-9]\d{0,2}(?:\.\d{3})+),(\d{1,2}|\d{4,})(?![\w]|[.,;] ?\d|, )")
_NOT = re.compile(r"(?:\bnot|n't|\brather than|\binstead of)(?:\s+(?:equal\s+to|be))?[\s*$(]*\Z", re.IGNORECASE)
_UNIT_POWER = re.compile(r"(?:\^\s*\{?|_\s*\{?|\b(?:[kcdmµ]?m|ft|in|yd|mi|CO|H|O))$")
_LOOK_BACK = 40


def numbers(text: str) -> list[Number]:
    """All numbers of a text, in order."""
    return list(_numbers(_normalized(text)))


def last_number(text: str) -> Number | None:
    """The last number of a text that is not denied ("72, not 70"); None without one."""
    text = _european(_normalized(text))
    last, denied = None, -1
    for number in _numbers(text):
        before = text[max(0, number.start - _LOOK_BACK) : number.start]
        joined = denied >= 0 and re.fullmatch(r",?\s*(?:or|nor)\s+", text[denied : number.start])
        if joined or _NOT.search(before):
            denied = number.end
        else:
            last, denied = number, -1
    return last


def only_number(text: str) -> Number | None:
    """The number that a text consists of, apart from currency, units and markup; None for any other text."""
    text = _normalized(text)
    found = list(_numbers(text))
    if len(found) != 1 or found[0].value is None or re.fullmatch(r"[-+\d.,]*k", text[found[0].start : found[0].end]):
        return None  # 3k may be a product
    before, after = text[: found[0].start], text[found[0].end :]
    before = re.sub(r"^[\s$*\\(\[{]*[A-Za-z](?:_\w+|_\{\w+\})?\s*=\s*", "", before)
    rest = f"{before} {after}"
    if re.search(r"[A-Za-z]$", before) or not _DECORATION.fullmatch(rest):
        return None
    words = re.sub(r"\\[a-z]+", " ", rest)
    return None if re.search(r"(?<![A-Za-z])(?:[xyzniek]|pi)(?![A-Za-z])", words) else found[0]


def answered_number(text: str) -> Number | None:
    r"""The number that a response gives: in its last ``\boxed{}``, else alone behind its last ``####``, else the last one."""
    boxed = last_boxed(text)
    if boxed is not None and (found := last_number(f"= {boxed}")):
        return found
    for line in reversed(_MARKED.findall(text)):
        if found := only_number(line):
            return found
    return last_number(text)


def gold_number(answer: str) -> Number | None:
    r"""The number of an answer in a task file: the answer itself, what follows its last ``####``, or its ``\boxed{}``."""
    _, marked, tail = answer.rpartition("####")
    boxed = last_boxed(answer)
    return only_number(tail if marked else answer if boxed is None else boxed)


def same_plain_number(text: str, other: str) -> bool:
    """Whether two texts without words or leading zeros are the same number, as 1,200 and 1200.00 are."""
    if any(re.search(r"[^\W\d]|(?<![\d.,])0\d", part) for part in (text, other)):
        return False
    first, second = only_number(text), only_number(other)
    return first is not None and second is not None and first.equals(second)


_MARKED = re.compile(r"^[ \t]*####[ \t]*([^A-Za-z\n]*\d.*)$", re.MULTILINE)
_BOX = "\\boxed{"
_BRACES = re.compile(r"\\boxed\{|[{}]")


def boxes(text: str) -> list[tuple[int, int]]:
    r"""``(start, end)`` of every ``\boxed{...}`` with balanced braces, in the order in which they end; one pass over the text."""
    opened, found = list[tuple[int, bool]](), list[tuple[int, int]]()
    for brace in _BRACES.finditer(text):
        if brace[0] != "}":
            opened.append((brace.start(), brace[0] == _BOX))
        elif opened:
            start, is_box = opened.pop()
            found += [(start, brace.end())] if is_box else []
    return found


def last_boxed(text: str) -> str | None:
    r"""The content of the last ``\boxed{...}`` with balanced braces, or None."""
    start, end = max(boxes(text), default=(-1, -1))
    return text[start + len(_BOX) : end - 1] if start >= 0 else None


_DECORATION = re.compile(
    r"(?:[^\W\d]|[\s.,:;!?'\"“”’()\[\]{}*`=/%$°€£¥₹₽₩₺₫₴₦฿¢~-]|\^\s*\{?\s*[23]\s*\}?|"
    r"\\(?:text|textbf|mathbf|mathrm|mbox|rm|bf|left|right|displaystyle|approx|quad|degree|pounds|euro|yen)(?![a-zA-Z])|"
    r"\\[,;:! ()\[\]$%])*"
)


def _normalized(text: str) -> str:
    for sign in {
        char for char in text if unicodedata.category(char) == "No" and "⁄" in unicodedata.normalize("NFKC", char)
    }:
        spelled = unicodedata.normalize("NFKC", sign)
        text = re.sub(rf"(?<=\d)\s?{sign}", f" {spelled}", text).replace(sign, spelled)
    text = text.translate(_CHARS)
    for pattern, write in _LATEX:
        text = pattern.sub(write, text)
    return text


def _european(text: str) -> str:
    """The text with ``1 200`` as ``1200`` and ``1.234,50`` as ``1234.50``, where nothing else can be meant."""
    text = _COMMA_DECIMAL.sub(lambda m: f"{m[1].replace('.', '')}.{m[2]}", text)
    return _BLANK_GROUPS.sub(
        lambda m: (
            m[0]
            if _NAMES_BEFORE.search(text[max(0, m.start() - _LOOK_BACK) : m.start()])
            else m[1] + m[2].replace(" ", "")
        ),
        text,
    )


def _scale(text: str, end: int, *, money: bool) -> tuple[int, int]:
    """``(factor, end)`` of a word or letter such as "million" behind the number that ends at ``end``."""
    found = _SCALE.match(text, end) or (_MONEY_SCALE.match(text, end) if money else None)
    if found is None:
        return 1, end
    return 10 ** _SCALES[found[found.lastindex or 0].lower()], found.end()


def _inline_fraction(found: re.Match[str]) -> str:
    top, bottom = (found[2] or found[1] or ""), (found[4] or found[3] or "")
    space = " " if found.start() and found.string[found.start() - 1].isdigit() else ""
    return f"{space}{''.join(top.split())}/{''.join(bottom.split())} "


def _numbers(text: str) -> Iterator[Number]:
    place = 0
    while found := _NUMBER.search(text, place):
        place = found.end()
        pieces = re.split(rf"[,'’_{_GAP}]", found["plain"] or "")
        if len(pieces) > 1 and not _grouped(found["plain"]):  # "1,2" is a list
            place = found.start()
            for piece in pieces[:-1]:
                one = _NUMBER.fullmatch(text, place, place + len(piece))
                if one and (number := _number(text, one)):
                    yield number
                place += len(piece) + 1
            continue
        if _broken_fraction(found):
            place = found.end("top") if found["top"] else found.end("whole")
            found = _NUMBER.fullmatch(text, found.start(), place) or found
        number = _number(text, found)
        if number is not None:
            yield number


def _grouped(plain: str) -> bool:
    """Whether the separators of a number are thousands separators."""
    return _THOUSANDS.fullmatch(re.split(r"[.eE]", plain)[0]) is not None


def _broken_fraction(found: re.Match[str]) -> bool:
    if found["whole"]:
        return not int(found["part"]) < int(found["of"])
    parts = [found["top"], found["bottom"]] if found["top"] else []
    separated = [part for part in parts if re.search(rf"[,'’_{_GAP}]", part)]
    return not all(_grouped(part) for part in separated) or bool(parts and not _value(found["bottom"]))


def _number(text: str, found: re.Match[str]) -> Number | None:
    before = text[max(0, found.start() - _LOOK_BACK) : found.start()]
    if _UNIT_POWER.search(before):  # an exponent or an index
        return None
    start = found.start()
    if money := _CURRENCY.search(before):
        before, start = before[: money.start()], start - len(money[0])
    sign, length = _sign(
        before, alone=text[: found.start()].strip() in ("-", "+") and not text[found.end() :].strip(" .\n")
    )
    scale, end = _scale(text, found.end(), money=money is not None)
    percent = _PERCENT.match(text, found.end())
    end = percent.end() if percent else end
    unreadable = _IRRATIONAL_BEFORE.search(before) or _IRRATIONAL_AFTER.match(text, found.end())
    value = None if unreadable else _unsigned(found)
    return Number(None if value is None else sign * value * scale, percent is not None, start - length, end)


def _sign(before: str, *, alone: bool) -> tuple[int, int]:
    """``(sign, length)`` of the sign at the end of the text before a number."""
    if word := _WORD_SIGN.search(before):
        left = before[: word.start()].rstrip()
        taken_from = word[1].lower() == "minus" and re.search(r"(?:\d|\)|\b[a-z])[*$]?$", left)
        return (1, 0) if taken_from else (-1, len(word[0]))
    bare = before.rstrip(" ")
    if not bare.endswith("-"):
        return 1, int(before.endswith("+"))
    left, spaced, length = bare[:-1], bare != before, len(before) - len(bare) + 1
    closed = re.search(r"(?:[\w)\]}%°]|[\w)\]}]\$|[\w)\]}]\*+|-)$", left)
    if spaced:
        stripped = left.rstrip(" ")
        opened = stripped.endswith("$") and not re.search(r"[\w)\]}]\$$", stripped)
        negative = alone or opened or _SPACED_SIGN.search(stripped) is not None
    else:
        negative = closed is None
    return (-1, length) if negative else (1, 0)


def _unsigned(found: re.Match[str]) -> Fraction | None:
    if found[0] == "§":
        return None
    if found["whole"]:
        return int(found["whole"]) + Fraction(int(found["part"]), int(found["of"]))
    if found["top"]:
        top, bottom = _value(found["top"]), _value(found["bottom"])
        return top / bottom if top is not None and bottom else None
    value, power = _value(found["plain"]), found["power"]
    if power is None or value is None:
        return value
    exponent = int(re.sub(r".*\^|[{}\s]", "", power))
    base = Fraction(10) if power.startswith("×10") else value
    if abs(exponent) > _MAX_EXPONENT or max(base.numerator, base.denominator).bit_length() * abs(exponent) > 64_000:
        return None
    if base == 0 and exponent < 0:
        return None
    return (value if power.startswith("×10") else 1) * base**exponent


def _value(text: str) -> Fraction | None:
    if re.fullmatch(r"\d{1,3}(?:\.\d{3}){2,}", text):
        text = text.replace(".", "")
    exponent = re.search(r"[eE][-+]?(\d+)$", text)
    if len(text) > _MAX_EXPONENT or (exponent and (len(exponent[1]) > 6 or int(exponent[1]) > _MAX_EXPONENT)):
        return None
    number = Decimal(re.sub(rf"[,'’_{_GAP}]", "", text))
    return Fraction(number)
