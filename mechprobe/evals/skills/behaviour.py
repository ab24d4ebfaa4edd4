"""What a response shows besides its final answer: the rule that it names, and the step that it calls wrong.

Both are read outside of the final answer. The rules are mechprobe's own, because the paper that asks for these behaviours
does not say how it reads them.
"""

import re
from collections.abc import Mapping, Sequence

_DENIED = re.compile(r"(?:\bnot(?: by| use| from)?|\brather than|\binstead of|\bunlike)\s+(?:the\s+)?$", re.IGNORECASE)
_BLANKS = re.compile(r"\s+")
_QUOTES_AND_DASHES = str.maketrans("\u2018\u2019\u2010\u2011\u2013\u2014", "''----")
_LOOK_BACK = 24
_LAST = 64
"""Number of names, from the end of a response, among which the last one is searched."""


def named_rule(text: str, rules: Mapping[str, Sequence[str]]) -> str | None:
    """The last rule that a text names, unless it is denied ("not by Ohm's law"); None without one.

    So a response that lists every rule is right by chance only. Where names overlap, the longest counts. Upper-case aliases
    count in upper case only.

    Args:
        text: The response without its final answer.
        rules: Rule → aliases.
    """
    plain = _plain(text.translate(_QUOTES_AND_DASHES))
    found: list[tuple[int, int, str]] = []
    for rule, aliases in rules.items():
        for alias in (rule, *aliases):
            flags = re.NOFLAG if alias.isupper() else re.IGNORECASE
            pattern = r"[\s-]+".join(map(re.escape, alias.split()))
            for match in re.finditer(rf"(?<!\w){pattern}(?!\w)", plain, flags):
                if not _DENIED.search(plain[max(0, match.start() - _LOOK_BACK) : match.start()]):
                    found.append((match.start(), match.end(), rule))
    found = sorted(found)[-_LAST:]
    outer = [one for one in found if not any(o[0] <= one[0] and one[1] <= o[1] and o[:2] != one[:2] for o in found)]
    return max(outer, default=(0, 0, None), key=lambda one: one[:2])[2]


def _plain(text: str) -> str:
    """The text with one blank or line end in place of each run of blanks, so that no pattern can split a run in many ways."""
    return _BLANKS.sub(lambda run: "\n" if "\n" in run[0] else " ", text)


_PART = r"(?:step|line|claim|statement|entry)"
_ERROR = r"(?:error|mistake|slip|discrepancy|inconsistency|contradiction)"
_WRONG = (
    r"(?:wrong|incorrect|erroneous|false|faulty|inconsistent|not\s+(?:right|correct|true|consistent)|in\s+error|"
    rf"(?:the|an?)\s+(?:first\s+)?(?:{_ERROR}|(?:wrong|incorrect)\s+\w+))"
)
_RIGHT = r"(?:right|correct|true|valid|consistent|fine|\w+ly\s+correct)"
_NUMBER = r"[\s#*:]*(\d{1,4})\b"
_SENTENCES = (
    rf"\b{_PART}{_NUMBER}[\s*,:]*(?:\([^()\n]*\)\s*)?(?:is|was|looks|must\s+be)\s+(?:\w+ly\s+)?{_WRONG}",
    rf"\b{_PART}{_NUMBER}[\s*,:]*(?:(?:has|contains|makes)\s+{_WRONG}|contradicts)",
    rf"\b(?:wrong|incorrect|erroneous|faulty|inconsistent)\s+{_PART}\s*(?:number|no\.?)?\s*(?:is|was|:|=)?\s*(?:{_PART})?{_NUMBER}",
    rf"(?<!\bno\s)(?<!\bany\s)\b{_ERROR}\s+(?:(?!{_PART})\w+\s+){{0,2}}?(?:in|at|on|is)\s+(?:the\s+)?{_PART}{_NUMBER}",
)
_STEPS = (*(re.compile(sentence, re.IGNORECASE) for sentence in _SENTENCES), re.compile(r"\bERR\s*(\d{1,4})\b"))
_RIGHT_STEP = re.compile(rf"\b{_PART}{_NUMBER}\s+(?:has|contains|makes)\s+no\s+{_ERROR}s?", re.IGNORECASE)
_NO_STEP = re.compile(
    rf"\b(?:no|none\s+of\s+the|not\s+one\s+of\s+the)\s+{_PART}s?\s+(?:is|are|was|were|has|have|contains?)\s+{_WRONG}"
    rf"|\b(?:no|not\s+any)\s+(?:{_ERROR}s?|inconsistencies)\b(?!\s+(?:in|at|on)\s+(?:the\s+)?{_PART}\s*\d)"
    rf"|\b(?:all|every|each)\s+(?:of\s+)?(?:the\s+)?(?:\w+\s+)?{_PART}s?\s+(?:(?:is|are)\s+{_RIGHT}|checks?(?:\s+out)?\b|holds?\b)"
    rf"|\bwrong\s+{_PART}\s*(?:is|:|=)?\s*none\b|\bERR\s*n\s*o\s*n\s*e\b",
    re.IGNORECASE,
)


def named_step(text: str) -> int | str | None:
    """The last step that a text calls wrong, ``none`` if it says that no step is wrong, or None if it says neither.

    Read are sentences such as "step 3 is wrong", "the error is in line 3", "Wrong step: 3", "no step is wrong" and "all
    claims are correct", and ``ERR 3`` or ``ERR none`` of the compact rendering.
    """
    text = _RIGHT_STEP.sub(" ", _plain(text))
    steps = [(match.end(), int(match[1])) for pattern in _STEPS for match in pattern.finditer(text)]
    none = [(match.end(), "none") for match in _NO_STEP.finditer(text)]
    return max([*steps, *none], default=(0, None), key=lambda one: one[0])[1]
