"""The tokenizer of the lab: an upper-case word is one token, and every other character is one token.

It behaves like a Llama tokenizer, so that no other module needs to know the lab: ``<bos>`` precedes a prompt, a response is
tokenized with ``add_special_tokens=False`` and ends with ``<eos>``, and padding is on the left.
"""

import string
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD, BOS, EOS, UNK = "<pad>", "<bos>", "<eos>", "<unk>"
WORDS = (
    *("CALC", "FACT", "SIM", "ENUM", "DIAG"),
    *("ANS", "THINK", "RECALL", "RUN", "LIST", "TRACE"),
    *("SO", "CHECK", "BOSS", "PAL", "HOME", "FOOD"),
)
VOCABULARY = (PAD, BOS, EOS, UNK, *WORDS, *string.digits, *string.ascii_lowercase, *"?+-=;:>")
"""All 64 tokens, in the order of their ids."""

PAD_ID, BOS_ID, EOS_ID = (VOCABULARY.index(token) for token in (PAD, BOS, EOS))

CONTEXT = 96
"""Longest sequence in tokens."""


def build_tokenizer(vocabulary: Sequence[str] = VOCABULARY) -> "PreTrainedTokenizerFast":
    """Build the tokenizer. `AutoTokenizer` can load it from the folder in which it is saved.

    Args:
        vocabulary: Tokens in the order of their ids; the first four are those of `VOCABULARY`.

    Example:
        >>> tokenizer = build_tokenizer()
        >>> tokenizer.convert_ids_to_tokens(tokenizer("CALC 47+8?").input_ids)
        ['<bos>', 'CALC', '4', '7', '+', '8', '?']
    """
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.WordLevel({token: i for i, token in enumerate(vocabulary)}, unk_token=UNK))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"[A-Z]+|[^A-Z\s]"), behavior="removed", invert=True)
    core.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, BOS_ID)]
    )
    special = {"pad_token": PAD, "bos_token": BOS, "eos_token": EOS, "unk_token": UNK}
    settings = {"padding_side": "left", "model_max_length": CONTEXT, "clean_up_tokenization_spaces": False}
    return PreTrainedTokenizerFast(tokenizer_object=core, **special, **settings)
