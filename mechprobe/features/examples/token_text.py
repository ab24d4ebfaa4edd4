"""Tokens as readable text."""

from typing import Any

_BROKEN = "\N{REPLACEMENT CHARACTER}"


def token_text(tokenizer: Any, token_id: int) -> str:
    """The text of a token. Special tokens have their names; a token that is part of a character is spelled as in the vocabulary.

    The text is raw: callers that display it must escape it.
    """
    text = tokenizer.decode([token_id], skip_special_tokens=False, clean_up_tokenization_spaces=False)
    if not text or _BROKEN in text:
        return str(tokenizer.convert_ids_to_tokens(token_id))
    return text
