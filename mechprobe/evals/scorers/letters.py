r"""Find the option letter in a response; the rules are mechprobe's own.

Markup around a letter (``**B**``, ``\text{B}``, ``\mathbf{(B)}``, ``"B"``, ``[B]``, full-width letters) is read as ``(B)``.
"""

import re

LETTERS = "ABCDEFGHIJ"
"""Option letters, in order."""

_ANY = f"[{LETTERS}{LETTERS.lower()}]"
_WRAP = "()[]{}*_.,:; \t\n\"'`$\\"
_WIDE = str.maketrans(
    {
        **{chr(0xFF21 + place): letter for place, letter in enumerate(LETTERS)},
        **{chr(0xFF41 + place): letter for place, letter in enumerate(LETTERS.lower())},
        "（": "(", "）": ")", "：": ":", "．": ".", "【": "[", "】": "]", "，": ",", "。": ".", "\u00a0": " ",
        "“": '"', "”": '"', "‘": "'", "’": "'",
    }
)  # fmt: skip
_FONT = re.compile(
    r"\\(?:text|mathrm|mathbf|textbf|mathit|textit|mathsf|textsf|texttt|mathtt|mathcal|boldsymbol|bm|bold|mbox|rm|bf|operatorname|"
    r"underline|fbox)(?![a-zA-Z])\s*\{([^{}]*)\}"
)
_CLOSED = (
    re.compile(rf"(\*\*\*|\*\*|\*|__|_|`|\"|'|\$)\s*\(?({_ANY})\)?\s*([.):]?)\s*\1(?![A-Za-z])"),
    re.compile(
        rf"(\[|\\\(|\{{|<b>|<strong>|<answer>)\s*\(?({_ANY})\)?\s*([.):]?)\s*(?:\]|\\\)|\}}|</b>|</strong>|</answer>)"
    ),
)
_MARKUP = re.compile(r"\*+|`+|(?<!\w)_+(?=\S)|(?<=\S)_+(?!\w)|</?(?:b|strong|i|em|answer)>")

_ENDS = r"(?![\w'-]|\.\w)"
_LETTER = (
    rf"(?:\(({_ANY})\)|(?P<bare>(?-i:[{LETTERS}])){_ENDS}|(?P<small>(?-i:[b-hj])){_ENDS}"
    rf"|(?P<word>(?-i:[ai])){_ENDS}(?=\s*(?:[.,;:)\]!}}$]|\Z|\n)))"
)
_STATED = re.compile(
    r"(?:(?:answer|choice|option|solution|答案|选项)(?:\s+(?:\w+\s+)?(?:is|was|would be|should be|must be|will be))?|答案[是为]|选)"
    r"(?:\s*(?::|=|->|→|⇒|\\Rightarrow|-|–|—)\s*|\s*)(?:the\s+)?(?P<option>(?:option|choice|letter|answer)\s*)?[\"'$\[{]*"
    + _LETTER,
    re.IGNORECASE,
)
_CHOSEN = re.compile(
    r"(?:\b(?:choose|chose|pick|picked|select|selected|go with|going with|say|it is|it's|it must be|it should be|this is|that is)"
    r")\s+(?P<option>(?:the\s+)?(?:option|choice|letter|answer)\s*)?" + _LETTER,
    re.IGNORECASE,
)
_IS_RIGHT = re.compile(
    rf"(?<![\w'])(?:\(({_ANY})\)|(?P<bare>[{LETTERS}]))(?:[.):][^\n.]{{0,80}}?)?\s+(?:is|must be|seems|would be|looks)\s+(?:therefore\s+|thus\s+|clearly\s+)?"
    r"(?:the\s+)?(?:only\s+)?(?:correct|right|best|true|answer|one)(?!\w)"
)
_CONCLUDED = re.compile(
    rf"(?:\b(?:therefore|hence|thus|so|consequently)\b|∴)[ \t]{{0,3}}[,:]?[ \t]{{0,3}}(?P<option>(?:option|choice|letter)[ \t]+)?"
    rf"(?:\(({_ANY})\)(?=[ \t]*[.!]?[ \t]*$)|((?-i:[B-HJ]))(?=[ \t]*[.!]?[ \t]*$)|((?-i:[AI]))(?=[.!][ \t]*$))",
    re.IGNORECASE | re.MULTILINE,
)
"""A letter that ends the line. Behind A and I a full stop is needed, because an article or a pronoun can end a line."""
_CORRECT = re.compile(
    r"(?<!not )\b(?:correct|right)(?:\s+(?:option|choice|answer))?\s*[:=]\s*(?P<option>(?:option|choice)\s+)?"
    + _LETTER,
    re.IGNORECASE,
)
_BUT = re.compile(
    rf"\bnot\s+(?:option\s+|choice\s+)?\(?(?-i:[{LETTERS}])\)?,?\s+but\s+(?:rather\s+)?(?P<option>(?:option|choice)\s+)?"
    + _LETTER,
    re.IGNORECASE,
)
_ONLY = re.compile(
    rf"(?<!not )\bonly\s+(?:option\s+|choice\s+|answer\s+)?(?:\(({_ANY})\)|((?-i:[{LETTERS}])))\s+"
    r"(?:fits|works|remains|matches|is\s+(?:correct|right|true|valid|possible|left))(?!\w)",
    re.IGNORECASE,
)
_ANSWERS = (_STATED, _CHOSEN, _IS_RIGHT, _CONCLUDED, _CORRECT, _BUT, _ONLY)
_VERDICT = re.compile(
    rf"^[ \t>*#-]*(?:option[ \t]+)?\(?([{LETTERS}])\)?[ \t]*[.:=–—-][ \t]*"
    r"(?:(?P<yes>yes|true|correct|right|✓|✔|✅)|no|false|incorrect|wrong|✗|✘|❌)[ \t]*[.,;!]?[ \t]*$",
    re.IGNORECASE | re.MULTILINE,
)
_JOIN = r"(?:,?\s*\b(?:and/or|or|and|as well as)\b|\s*[,/&+])\s*"
_JOINED_AFTER = re.compile(
    rf"\)?[.:]?{_JOIN}(?:(?:also|maybe|perhaps|possibly|option|choice|answer)\s+)*(?:\([{LETTERS}{LETTERS.lower()}]\)|[{LETTERS}b-hj]\)?)"
    rf"(?=\s*(?:[.,;:!?)\]}}/&+$]|\Z|\n)|\s+(?:or|and|because|since|are|but|depending)\b)(?!\.\w)"
    r"(?![^.\n]{0,60}\b(?:is|are|were)\s+(?:all\s+|both\s+)?(?:not|wrong|incorrect|false|eliminated|ruled|impossible)\b)"
)
_JOINED_BEFORE = re.compile(
    rf"(?<![\w'])\(?[{LETTERS}]\)?\s*(?:,?\s*\b(?:or|and|and/or)\s+|[/&+]\s*)(?:option\s+|choice\s+)?\(?$"
)
_PROSE = {
    letter: re.compile(rf"[^\S\n]+(?!(?:{words})(?![\w-]))[*_]*[a-z]")
    for letter, words in (
        ("I", "because|since|is|or|and|but|which"),
        ("A", "because|since|is|or|and|but|which|as|for|was|if|while|from|in|on|with"),
    )
}
"""A lower-case word after I or A marks it as a pronoun or an article, unless it is a word that can follow an option."""
_REJECTED = re.compile(
    r"\)?\s*(?:is|are|was|seems|can be|must be)\s*(?:not|n't|wrong|incorrect|false|ruled|eliminated|out\b)|\)?\s*(?:isn't|cannot|can't)",
    re.IGNORECASE,
)
_NOT = re.compile(
    r"\b(?:not|neither|nor|than|than option|eliminate|exclude|rule out|reject)\s*(?:option|choice|answer)?\s*\(?$",
    re.IGNORECASE,
)
_LEADING = re.compile(
    rf"(?:\(({_ANY})\)|([{LETTERS}])(?:[.):]|\s*\n|\s+[-–—]\s|,\s+[a-z]|\s+(?:because|since|is (?:the )?(?:correct|right|best|answer)))|"
    rf"([{LETTERS.lower()}])[.)](?=\s))"
)
_LINE = re.compile(rf"^[ \t>#-]*\(?([{LETTERS}])(?:\)|[.:])?(?:[ \t]*$|(?<=[.):])[ \t]+\S)", re.MULTILINE)
_BRACKETED = re.compile(rf"\(([{LETTERS}])\)")


def option_letter(response: str) -> str | None:
    r"""The option letter (A to J) in a response, or None.

    The rules are tried in this order, and the first that finds a letter decides:

    1. The whole response, or its first line, is a letter, apart from brackets, punctuation and markup.
    2. The last ``\boxed{B}``. The box may also hold ``(B) text``, ``B. text`` or ``Option B``.
    3. The last letter after "answer", "option" or "choice" ("the answer is B", "correct option: (B)"), after a verb of choice
       ("I choose B", "it is B"), or before "is correct". An I or A before a lower-case word is a pronoun or an article,
       except before words that can follow an option ("A because", "A is right") and after "option". A small a or i must end
       its clause. A letter that is called wrong does not count. So are a letter behind "therefore", "hence", "thus" or "so"
       that ends its line (A and I with a full stop), the B of "correct: B" and of "not A but B", and "only B fits".
       Then the one option with "yes", "true" or "correct" in a list of three or more lines such as ``A: no``.
    4. A letter at the very beginning, followed by ``.``, ``)``, ``:``, a dash, the end of the line, or "because", unless the
       response lists the options.
    5. The letter that begins a line in this way, if all such lines begin with the same letter.
    6. The last capital in round brackets, or in markup of its own.

    Several letters that are joined ("A or B", "A, C", "(A) and (B)") where a rule finds one are no answer: the result is None.
    An article ("A dog") or a pronoun ("I think") is therefore never mistaken for an option.
    """
    text = _without_fonts(response.translate(_WIDE))
    first = text.strip().partition("\n")[0]
    for part in (text, first):
        if alone := only_letter(part):
            return alone
    if (boxed := _boxed(text)) is not None:
        return boxed or None
    text = _unmarked(text)
    found = (rule(text) for rule in (_stated, _one_yes, _leading, _by_line, _bracketed))
    return next((letter for letter in found if letter is not None), None) or None


def only_letter(text: str) -> str | None:
    """The option letter that a text consists of, apart from brackets, punctuation and markup."""
    bare = _without_fonts(text.translate(_WIDE)).strip(_WRAP).upper()
    return bare if len(bare) == 1 and bare in LETTERS else None


def _without_fonts(text: str) -> str:
    r"""The text without LaTeX font commands and ``$`` around them; a letter alone in one is put in brackets."""
    while found := _FONT.search(text):
        inner = found[1].strip()
        inner = f"({inner})" if re.fullmatch(_ANY, inner) else found[1]
        text = text[: found.start()] + inner + text[found.end() :]
    return text


def _unmarked(text: str) -> str:
    """The text without emphasis; a letter with markup of its own is put in brackets."""
    for pattern in _CLOSED:
        text = pattern.sub(
            lambda m: f"({m[2]})" if m[2].isupper() or m[1] not in ("'", '"', "`", "*", "_") else m[0], text
        )
    return _MARKUP.sub("", text)


_BOX = re.compile(r"\\boxed\s*\{((?:[^{}]|\{[^{}]*\})*)\}")


_JOINED_BOXES = re.compile(r"\}[\s$.*]*(?:or|and|,|/)[\s$*]*\\boxed")
_HEDGE = ""
"""What a rule returns for several letters that are given together."""


def _boxed(text: str) -> str | None:
    if any(joined.end() == text.rfind("\\boxed") + len("\\boxed") for joined in _JOINED_BOXES.finditer(text)):
        return _HEDGE
    for content in reversed(_BOX.findall(text)):
        plain = _unmarked(content).strip(" $")
        if letter := only_letter(plain):
            return letter
        first = re.match(rf"\(?[{LETTERS}]", plain)
        if first and _JOINED_AFTER.match(plain, first.end()):
            return _HEDGE
        for rule in (_stated, _leading):
            if (letter := rule(plain)) is not None:
                return letter
    return None


def _stated(text: str) -> str | None:
    if len(_VERDICT.findall(text)) >= _SHORTEST_LIST:
        text = _VERDICT.sub("", text)
    found = [
        match
        for pattern in _ANSWERS
        for match in pattern.finditer(text)
        if not _is_word(match) and not _is_rejected(match)
    ]
    alone = [match for match in found if not _follows_another(match)]
    last = max(alone, key=lambda match: match.end(match.lastindex or 0), default=None)
    if last is None:
        return _HEDGE if found else None
    return _letter_or_hedge(last, last.lastindex or 0)


def _follows_another(match: re.Match[str]) -> bool:
    """Whether the letter of a match is joined to a letter before it, as in "A or B is correct"."""
    place = match.start(match.lastindex or 0)
    return _JOINED_BEFORE.search(match.string[max(0, place - 30) : place]) is not None


def _letter_or_hedge(match: re.Match[str], group: int) -> str:
    """The letter in a group, or `_HEDGE` if other letters are joined to it."""
    hedged = _follows_another(match) or _JOINED_AFTER.match(match.string, match.end(group))
    return _HEDGE if hedged else match[group].upper()


_SHORTEST_LIST = 3
"""Lines of a list of verdicts; two lines such as ``A: yes`` and ``B: no`` may be the options themselves."""


def _one_yes(text: str) -> str | None:
    """The only option with a yes in a list with a verdict on each option."""
    verdicts = list(_VERDICT.finditer(text))
    yes = [match[1].upper() for match in verdicts if match["yes"]]
    listed = len({match[1].upper() for match in verdicts}) == len(verdicts) >= _SHORTEST_LIST
    return yes[0] if listed and len(yes) == 1 else None


def _is_word(stated: re.Match[str]) -> bool:
    """Whether a matched I or A is a pronoun or an article."""
    groups = stated.groupdict()
    prose = None if groups.get("option") else _PROSE.get(groups.get("bare") or "")
    return prose is not None and prose.match(stated.string, stated.end("bare")) is not None


def _is_rejected(stated: re.Match[str]) -> bool:
    place = stated.lastindex or 0
    return (
        _REJECTED.match(stated.string, stated.end(place)) is not None
        or _NOT.search(stated.string[max(0, stated.start(place) - 30) : stated.start(place)]) is not None
    )


def _leading(text: str) -> str | None:
    found = _LEADING.match(text.lstrip(" \t\n\"'#>"))
    if not found or _LINE.findall(text)[:2] == ["A", "B"]:  # a list of the options
        return None
    return _letter_or_hedge(found, found.lastindex or 0)


def _by_line(text: str) -> str | None:
    letters = set(_LINE.findall(text))
    return letters.pop() if len(letters) == 1 else None


def _bracketed(text: str) -> str | None:
    found = [match for match in _BRACKETED.finditer(text) if not _is_rejected(match)]
    return _letter_or_hedge(found[-1], 1) if found else None
