"""Tokenizers: loading one, and comparing those of a family by the token ids that they give."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from mechprobe.errors import InputError, ModelError, first_line
from mechprobe.files import sha256_bytes

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Item = TypeVar("Item")

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


def _state(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Equal for tokenizers that certainly do the same: their whole definition with merges, beside the fingerprint."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    definition = {} if backend is None else json.loads(backend.to_str())
    for changed in ("padding", "truncation"):  # they are set when texts are encoded
        definition.pop(changed, None)
    return tokenizer_fingerprint(tokenizer) + sha256_bytes(json.dumps(definition, sort_keys=True).encode())


class NamedTokenizer:
    """A tokenizer with the name of its model and its vocabulary by id."""

    def __init__(self, name: str, tokenizer: "PreTrainedTokenizerBase") -> None:
        self.name, self.tokenizer = name, tokenizer
        self.by_id = {index: token for token, index in tokenizer.get_vocab().items()}
        self.added = {index for index in tokenizer.added_tokens_decoder} | set(tokenizer.all_special_ids)

    def all_ids(self, texts: Sequence[str], *, special: bool = False) -> list[list[int]]:
        """Ids of texts, with or without the special tokens around them."""
        return self.tokenizer(list(texts), add_special_tokens=special).input_ids if texts else []


def compare(one: NamedTokenizer, other: NamedTokenizer, *, bos_decided: bool = False) -> list[str]:
    """Compare two tokenizers by what they do.

    They may differ in names of special and added tokens, in tokens that one has beyond the vocabulary of the other, and in
    their BOS, end and pad tokens. Ordinary tokens and the ids of all `PROBES` and of all ordinary tokens must agree.

    Args:
        one: A tokenizer.
        other: Another.
        bos_decided: Whether the run decides that sequences begin with BOS; otherwise the tokenizers must agree on it.

    Returns:
        The differences, each as a phrase; none for tokenizers that do the same.

    Raises:
        ModelError: They split a text differently, or an ordinary token has another id.
    """
    where = f"Models {one.name} and {other.name} have different tokenizers"
    renamed = [i for i in sorted(one.by_id.keys() & other.by_id.keys()) if one.by_id[i] != other.by_id[i]]
    ordinary = next((i for i in renamed if i not in one.added or i not in other.added), None)
    if ordinary is not None:
        raise ModelError(
            f"{where}: id {ordinary} is {one.by_id[ordinary]!r} in {one.name} and {other.by_id[ordinary]!r} in {other.name}; "
            "give models that share one vocabulary."
        )
    for texts in (PROBES, _spelled(one, other)):
        for text, a, b in zip(texts, one.all_ids(texts), other.all_ids(texts), strict=True):
            if a != b:
                raise ModelError(
                    f"{where}: {_difference(one.name, a, other.name, b, text)}; give models that share one vocabulary."
                )
    a, b = (named.all_ids(PROBES[:1], special=True)[0] for named in (one, other))
    if a != b and not bos_decided:
        raise ModelError(
            f"{where}: with special tokens, {_difference(one.name, a, other.name, b, PROBES[0])}; set text.bos to always or "
            "never, or text.chat_template, or give both tokenizers one rule for BOS."
        )
    return [
        *_renamed(one, other, renamed),
        *(line for a, b in ((one, other), (other, one)) for line in _beyond(a, b)),
        *_special(one, other),
    ]


def _spelled(one: NamedTokenizer, other: NamedTokenizer) -> list[str]:
    """The texts of the ordinary tokens that both have; their ids depend on all merges."""
    shared = sorted((one.by_id.keys() & other.by_id.keys()) - one.added - other.added)
    texts = [one.tokenizer.convert_tokens_to_string([one.by_id[index]]) for index in shared]
    marks = {named.by_id[index] for named in (one, other) for index in named.added if index in named.by_id}
    # An ordinary token that spells a token which only one of them added is read as that; prompts are checked for it.
    return [text for text in texts if text and not any(mark in text for mark in marks)]


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
    subject = (
        "1 special token has another name" if len(indices) == 1 else f"{len(indices)} special tokens have other names"
    )
    return [f"{subject} (id {first}{_more(indices)})"]


def _beyond(one: NamedTokenizer, other: NamedTokenizer) -> list[str]:
    """Tokens that ``one`` has and ``other`` lacks."""
    extra = sorted(one.by_id.keys() - other.by_id.keys())
    if not extra:
        return []
    names = ", ".join(f"{one.by_id[i]} ({i})" for i in extra[:_SHOWN])
    return [
        f"{one.name} has {len(extra)} token{'s' if len(extra) > 1 else ''} that {other.name} lacks: {names}{_more(extra)}"
    ]


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
    """The tokenizers of a family, which share one vocabulary.

    Attributes:
        reference: The tokenizer of the family: the first of those with the most tokens, so that it can decode every id.
        fingerprint: sha256 of the reference.
        differences: What the others do differently, as sentences; empty if all are equal.
    """

    def __init__(self, tokenizers: Mapping[str, "PreTrainedTokenizerBase"], *, bos_decided: bool = False) -> None:
        states = {name: _state(tokenizer) for name, tokenizer in tokenizers.items()}
        first = {state: name for name, state in reversed(states.items())}  # the first model of each kind
        self._kinds = {state: NamedTokenizer(name, tokenizers[name]) for state, name in reversed(first.items())}
        self._states = [(tokenizer, states[name]) for name, tokenizer in tokenizers.items()]
        one, *others = self._kinds.values()
        found = [(other, compare(one, other, bos_decided=bos_decided)) for other in others]
        self.reference = max(self._kinds.values(), key=lambda each: len(each.by_id))
        self.fingerprint = tokenizer_fingerprint(self.reference.tokenizer)
        self.differences = tuple(
            f"Tokenizers of {one.name} and {other.name}: {'; '.join(lines)}." for other, lines in found if lines
        )

    def check_ids(
        self,
        used: "PreTrainedTokenizerBase",
        n_rows: int,
        items: Iterable[Item],
        encode: Callable[["PreTrainedTokenizerBase", Item], Sequence[int]],
    ) -> None:
        """Check that every model knows the ids of every prompt, and that its own tokenizer would give the same.

        A special token with another name in another model does not count, because models read its id.

        Args:
            used: The tokenizer whose ids all models read.
            n_rows: Number of token ids that have an embedding in every model.
            items: Prompts, or whatever ``encode`` takes.
            encode: Gives the ids of a prompt under a tokenizer.

        Raises:
            ModelError: A model lacks an id, or its tokenizer splits a prompt differently; the message names prompt and ids.
        """
        mine = self._kinds[next(state for tokenizer, state in self._states if tokenizer is used)]
        others = [kind for kind in self._kinds.values() if kind is not mine]
        if not others and len(mine.by_id) <= n_rows:
            return  # no prompt can have other ids, nor one without a row
        for item in items:
            ids = list(encode(mine.tokenizer, item))
            for other in others:
                _check_same(mine, other, ids, list(encode(other.tokenizer, item)), item)
            require_ids(ids, n_rows, mine.tokenizer, str(item))


def _check_same(one: NamedTokenizer, other: NamedTokenizer, ids: list[int], found: list[int], item: object) -> None:
    """Raise `ModelError` if ``other`` lacks an id of ``one``, or splits the text differently for another reason than names."""
    lacking = next((index for index in ids if index in one.by_id and index not in other.by_id), None)
    if lacking is not None:
        raise ModelError(
            f"{item} has token {lacking} ({one.by_id[lacking]}), which model {other.name} has no token for; remove it from the "
            "prompts, or give both models one tokenizer."
        )
    renamed = any(one.by_id.get(index) != other.by_id[index] for index in ids)
    if found != ids and not renamed:
        raise ModelError(
            f"Models {one.name} and {other.name} read {item} differently: "
            f"{_difference(one.name, ids, other.name, found, str(one.tokenizer.decode(ids)))}; remove from the prompts what only one of the tokenizers "
            "has as a token, or give both models one tokenizer."
        )


def require_ids(ids: Sequence[int], n_token_ids: int, tokenizer: "PreTrainedTokenizerBase", what: str) -> None:
    """Raise `InputError` for an id from ``n_token_ids`` on, which has no embedding."""
    if (unknown := max(ids, default=0)) >= n_token_ids:
        raise InputError(
            f"{what} contains token {unknown} ({tokenizer.decode([unknown])!r}), but only ids below {n_token_ids} have an "
            "embedding in every model; remove that token, or resize the embeddings of the smaller model."
        )
