"""A token as people can read it."""

from typing import Any

_BROKEN = "\N{REPLACEMENT CHARACTER}"


def token_text(tokenizer: Any, token_id: int) -> str:
    """A token as text: special tokens by their name, blanks kept, a part of a character as the vocabulary spells it.

    The text is raw: whatever shows it must escape it.
    """
    text = tokenizer.decode([token_id], skip_special_tokens=False, clean_up_tokenization_spaces=False)
    if not text or _BROKEN in text:
        return str(tokenizer.convert_ids_to_tokens(token_id))
    return text
