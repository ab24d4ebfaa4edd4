"""Tokenizers: loading one, and comparing those of a family by the token ids that they give."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

from mechprobe.errors import ModelError, first_line
from mechprobe.files import sha256_bytes

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Prompt = TypeVar("Prompt")

BosRule = Literal["auto", "always", "never"]
"""Whether a run decides that sequences begin with BOS; ``auto`` leaves it to the tokenizers, which must then agree."""

PROBES = (
    "Ab 12+3=x?",
    "  two  blanks\nand a line",
    "naïve 😀 \u00a0end",
    "The quick brown fox doesn't jump; it can't, won't and shouldn't've.",
    "0 1 12 123 1234 12345678901234567890 3.14159 1,000,000 -7 1e-9 ½ ² ٣",
    "def f(x: int) -> str:\n\tif x != 0:\n\t\treturn f\"{x:>8}\"  # no\n    return 'a\\n'\n",
    '{"key": [1, null, true], "other": {"a": "b"}}</s><br/>',
    "\\frac{1}{2} \\boxed{42} $x^2 + y_{i} \\leq \\sqrt{3}$",
    " leading, trailing \t\r\n\n\n   \u3000\u2003\u200b",
    "中文字符，日本語のテキスト、한국어 문장. Привет, мир! مرحبا بالعالم हिन्दी ไทย עברית",
    "👩‍👩‍👧‍👦 🇩🇪 ✅ → ≠ ∑ ∞ “quotes” ‘single’ — – … ﬁ Å Å e\u0301 é",
    "ALLCAPS camelCase snake_case kebab-case http://a.b/c?d=e&f=g#h user@example.org C:\\dir",
    "User: What is 2 + 2?\nAssistant: Let me think. 2 + 2 = 4.\n\nUser:",
)
"""Texts whose ids must agree in all tokenizers of a family. They spell no special token of any family."""
_SHOWN = 4


def load_tokenizer(folder: Path, *, role: str, trust_remote_code: bool = False) -> "PreTrainedTokenizerBase":
    """Load the tokenizer of a model folder. It pads on the left, with the end token if it has no pad token.

    Raises:
        ModelError: The folder holds no usable tokenizer, or the tokenizer has neither pad nor end token.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except Exception as error:  # noqa: BLE001 - every failure means that the folder holds no usable tokenizer
        raise ModelError(
            f"Model {role}: the tokenizer in {folder} cannot be loaded ({first_line(error)}); "
            "save it there with save_pretrained."
        ) from None
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise ModelError(
                f"Model {role}: the tokenizer in {folder} has neither a pad nor an end token; set one and save it again."
            )
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "left"
    return tokenizer


def tokenizer_fingerprint(tokenizer: "PreTrainedTokenizerBase") -> str:
    """sha256 of the vocabulary, the special tokens, and the ids of three probe texts."""
    vocabulary = sorted(tokenizer.get_vocab().items())
    special = {name: str(value) for name, value in sorted(tokenizer.special_tokens_map.items())}
    special.pop("pad_token", None)
    splits = [tokenizer(text).input_ids for text in PROBES[:3]]
    return sha256_bytes(json.dumps([vocabulary, special, splits], ensure_ascii=False).encode())


class NamedTokenizer:
    """A tokenizer with the name of its model and its vocabulary by id."""

    def __init__(self, name: str, tokenizer: "PreTrainedTokenizerBase") -> None:
        self.name, self.tokenizer = name, tokenizer
        self.by_id = {index: token for token, index in tokenizer.get_vocab().items()}
        self.added = {index for index in tokenizer.added_tokens_decoder} | set(tokenizer.all_special_ids)

    def ids(self, text: str, *, special: bool = False) -> list[int]:
        """Ids of a text, with or without the special tokens around it."""
        return list(self.tokenizer(text, add_special_tokens=special).input_ids)


def compare(one: NamedTokenizer, other: NamedTokenizer, bos: BosRule = "auto") -> list[str]:
    """Compare two tokenizers by what they do.

    They may differ in names of special and added tokens, in tokens that one has beyond the vocabulary of the other, and in
    their BOS, end and pad tokens. Ordinary tokens and the ids of all `PROBES` must agree.

    Returns:
        The differences, each as a phrase; none for tokenizers that do the same.

    Raises:
        ModelError: They split a text differently, or an ordinary token has another id.
    """
    where = f"Models {one.name} and {other.name} have different tokenizers"
    renamed = []
    for index in sorted(one.by_id.keys() & other.by_id.keys()):
        if one.by_id[index] == other.by_id[index]:
            continue
        if index not in one.added or index not in other.added:
            raise ModelError(
                f"{where}: id {index} is {one.by_id[index]!r} in {one.name} and {other.by_id[index]!r} in {other.name}; "
                "give models that share one vocabulary."
            )
        renamed.append(index)
    for text in PROBES:
        a, b = one.ids(text), other.ids(text)
        if a != b:
            raise ModelError(
                f"{where}: {_difference(one.name, a, other.name, b, text)}; give models that share one vocabulary."
            )
    if bos == "auto" and one.ids(PROBES[0], special=True) != other.ids(PROBES[0], special=True):
        a, b = one.ids(PROBES[0], special=True), other.ids(PROBES[0], special=True)
        raise ModelError(
            f"{where}: with special tokens, {_difference(one.name, a, other.name, b, PROBES[0])}; set text.bos to always or "
            "never, or give both tokenizers one rule for BOS."
        )
    return [
        *_renamed(one, other, renamed),
        *(line for a, b in ((one, other), (other, one)) for line in _beyond(a, b)),
        *_special(one, other),
    ]


def _difference(one: str, a: Sequence[int], other: str, b: Sequence[int], text: str) -> str:
    """``{text} is [1, 2] in base and [3] in rl``, from the first differing id on."""
    start = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    shown = [f"{list(ids[start : start + _SHOWN])}" for ids in (a, b)]
    at = f" from token {start} on" if start else ""
    return f"{text[:60]!r} is{at} {shown[0]} in {one} and {shown[1]} in {other}"


def _renamed(one: NamedTokenizer, other: NamedTokenizer, indices: list[int]) -> list[str]:
    if not indices:
        return []
    first = ", ".join(f"{i} is {one.by_id[i]} and {other.by_id[i]}" for i in indices[:_SHOWN])
    return [f"{len(indices)} special tokens have other names (id {first}{_more(indices)})"]


def _beyond(one: NamedTokenizer, other: NamedTokenizer) -> list[str]:
    """Tokens that ``one`` has and ``other`` lacks."""
    extra = sorted(one.by_id.keys() - other.by_id.keys())
    if not extra:
        return []
    names = ", ".join(f"{one.by_id[i]} ({i})" for i in extra[:_SHOWN])
    return [f"{one.name} has {len(extra)} tokens that {other.name} lacks: {names}{_more(extra)}"]


def _special(one: NamedTokenizer, other: NamedTokenizer) -> list[str]:
    found = []
    for kind in ("bos", "eos", "pad"):
        a, b = (getattr(named.tokenizer, f"{kind}_token_id") for named in (one, other))
        if a != b:
            found.append(f"the {kind} token is {_token(one, a)} in {one.name} and {_token(other, b)} in {other.name}")
    return found


def _token(named: NamedTokenizer, index: int | None) -> str:
    return "none" if index is None else f"{named.by_id.get(index, '?')} ({index})"


def _more(items: Sequence[object]) -> str:
    return f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""


class SharedTokenizer:
    """The tokenizers of a family, which give every text the same ids.

    Attributes:
        reference: The tokenizer of the family: the first of those with the most tokens, so that it can decode every id.
        fingerprint: sha256 of the reference.
        differences: What the others do differently, as sentences; empty if all are equal.
    """

    def __init__(self, tokenizers: Mapping[str, "PreTrainedTokenizerBase"], bos: BosRule = "auto") -> None:
        prints = {name: tokenizer_fingerprint(tokenizer) for name, tokenizer in tokenizers.items()}
        kinds = {digest: name for name, digest in reversed(prints.items())}  # the first model of each kind
        named = [NamedTokenizer(name, tokenizers[name]) for name in tokenizers if name in kinds.values()]
        one, *others = named
        found = [(other, compare(one, other, bos)) for other in others]
        self.reference = max(named, key=lambda each: len(each.by_id))
        self.others = [each for each in named if each is not self.reference]
        self.fingerprint = prints[self.reference.name]
        self.differences = tuple(
            f"Tokenizers of {one.name} and {other.name}: {'; '.join(lines)}." for other, lines in found if lines
        )

    def check_same_ids(
        self,
        n_rows: Mapping[str, int],
        prompts: Iterable[Prompt],
        encode: Callable[["PreTrainedTokenizerBase", Prompt], Sequence[int]],
    ) -> None:
        """Check that every tokenizer gives every prompt the same ids, and that every model has an embedding row for them.

        Args:
            n_rows: Number of embedding rows of each model.
            prompts: Texts, or whatever ``encode`` takes.
            encode: Gives the ids of a prompt under a tokenizer.

        Raises:
            ModelError: The ids differ, or a model lacks one of them; the message names the prompt and the ids.
        """
        reference, fewest = self.reference, min(n_rows, key=lambda name: n_rows[name])
        if not self.others and len(reference.by_id) <= n_rows[fewest]:
            return  # no text can have other ids, nor one beyond the rows
        for prompt in prompts:
            ids = list(encode(reference.tokenizer, prompt))
            for other in self.others:
                found = list(encode(other.tokenizer, prompt))
                if found != ids:
                    raise ModelError(
                        f"Models {reference.name} and {other.name} read a prompt differently: "
                        f"{_difference(reference.name, ids, other.name, found, str(prompt))}; remove from the prompts what "
                        "only one of the tokenizers has as a token, or give both models one tokenizer."
                    )
            beyond = next((index for index in ids if index >= n_rows[fewest]), None)
            if beyond is not None:
                raise ModelError(
                    f"{str(prompt)[:60]!r} has token {beyond} ({reference.by_id.get(beyond, '?')}), for which model {fewest} "
                    f"has no row among its {n_rows[fewest]} embeddings; remove it from the prompts, or resize that embedding."
                )
