"""Layer and module type of a tensor, from its name alone, for the names of any architecture."""

import re
from typing import NamedTuple

_TYPES = {
    "q": ("q_proj", "wq", "q", "query"),
    "k": ("k_proj", "wk", "k", "key"),
    "v": ("v_proj", "wv", "v", "value"),
    "o": ("o_proj", "wo", "o", "out_proj"),
    "qkv": ("qkv_proj", "qkv", "c_attn", "query_key_value", "Wqkv", "in_proj_weight"),
    "gate": ("gate_proj", "w1"),
    "up": ("up_proj", "w3", "fc1", "fc_in", "c_fc", "dense_h_to_4h"),
    "down": ("down_proj", "w2", "fc2", "fc_out", "dense_4h_to_h"),
    "gate_up": ("gate_up_proj",),
    "embed": ("embed_tokens", "wte", "embed_in", "word_embeddings", "tok_embeddings"),
    "lm_head": ("lm_head", "embed_out"),
    "router": ("router",),
}
_BY_PART = {part: kind for kind, parts in _TYPES.items() for part in parts}
_NORM = re.compile(r"norm|^ln_|_ln$|^ln$", re.IGNORECASE)
_ATTENTION = re.compile(r"attn|attention", re.IGNORECASE)
_EXPERT = re.compile(r"\[\d+\]$")
ORDER = (*_TYPES, "norm")
"""Module types in the order of tables and figures; other types follow by name."""


class Place(NamedTuple):
    """Where a tensor belongs: its layer, None outside the blocks, and its module type."""

    layer: int | None
    kind: str


def place_of(name: str) -> Place:
    """The place of a tensor.

    The layer is the first number in the name. The module type is the name of the module in the words of Llama. A type that is
    not known is the last part of the name, and the bias of a matrix has the suffix ``_bias``.

    Example:
        >>> place_of("model.layers.3.self_attn.q_proj.weight"), place_of("transformer.h.0.attn.c_proj.bias")
        (Place(layer=3, kind='q'), Place(layer=0, kind='o_bias'))
    """
    parts = _EXPERT.sub("", name).split(".")
    layer = next((int(part) for part in parts if part.isdecimal()), None)
    suffix = parts[-1] if parts[-1] in ("weight", "bias") else ""
    modules = [part for part in (parts[:-1] if suffix else parts) if not part.isdecimal()]
    own = modules[-1] if modules else name
    if _NORM.search(own):
        return Place(layer, "norm")
    kind = _by_context(own, modules[:-1]) or _BY_PART.get(own, own)
    return Place(layer, f"{kind}_bias" if suffix == "bias" else kind)


def _by_context(own: str, parents: list[str]) -> str:
    """The type of names that mean two things: ``c_proj`` and ``dense`` are o or down, ``gate`` outside experts is a router."""
    inside_attention = any(_ATTENTION.search(part) for part in parents)
    if own in ("c_proj", "dense"):
        return "o" if inside_attention else "down" if own == "c_proj" else ""
    return "router" if own == "gate" else ""


def sort_key(kind: str) -> tuple[int, str]:
    """Key that sorts module types in the order of tables and figures."""
    return (ORDER.index(kind) if kind in ORDER else len(ORDER), kind)
