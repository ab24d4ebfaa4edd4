"""The sizes of a language model that its costs depend on, from its config alone; no weights are read."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mechprobe.errors import ModelError, first_line

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Bytes of a number, by dtype of the models."""


@dataclass(frozen=True)
class ModelShape:
    """Sizes of one model.

    Attributes:
        model_type: Architecture, as in ``config.json``.
        n_layers: Number of blocks.
        d_model: Width of the residual stream.
        d_ff: Width inside the MLP that one token passes through.
        n_heads, n_kv_heads, head_dim: Attention heads of queries, and of keys and values, and the width of each.
        n_ids: Rows of the unembedding.
        block_weights: Weights of one block that one token is multiplied with; of experts, only those it is sent to.
        parameters: All parameters, tied ones once.
        stored_as: dtype of the checkpoint.
        max_context: Longest sequence, in tokens.
    """

    model_type: str
    n_layers: int
    d_model: int
    d_ff: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    n_ids: int
    block_weights: int
    parameters: int
    stored_as: str
    max_context: int

    @classmethod
    def of(cls, config: Any) -> "ModelShape":
        """Sizes from a transformers config. The modules are made without storage, so any causal model that transformers knows is counted.

        Raises:
            ModelError: transformers knows no causal language model with this config.
        """
        text = config.get_text_config()
        model = _without_storage(text)
        heads = int(text.num_attention_heads)
        return cls(
            model_type=str(text.model_type),
            n_layers=int(text.num_hidden_layers),
            d_model=int(text.hidden_size),
            d_ff=_inner_width(text),
            n_heads=heads,
            n_kv_heads=int(getattr(text, "num_key_value_heads", None) or heads),
            head_dim=int(getattr(text, "head_dim", None) or text.hidden_size // heads),
            n_ids=int(text.vocab_size),
            block_weights=_block_weights(model, text),
            parameters=sum(parameter.numel() for parameter in model.parameters()),
            stored_as=str(getattr(config, "dtype", None) or "float32").removeprefix("torch."),
            max_context=int(getattr(text, "max_position_embeddings", None) or 1 << 30),
        )

    @classmethod
    def of_file(cls, path: Path | str) -> "ModelShape":
        """Sizes from a ``config.json``, or from the folder that holds it.

        Raises:
            ModelError: There is no such file, or it is no config of a causal language model.
        """
        from transformers import AutoConfig

        from mechprobe.models.checkpoint_fit import quietly

        place = Path(path)
        file = place / "config.json" if place.is_dir() else place
        if not file.is_file():
            raise ModelError(f"{file} does not exist; give the config.json of the models.")
        try:
            with quietly():
                config = AutoConfig.from_pretrained(file)
        except Exception as error:  # noqa: BLE001 - every failure means that the config is unusable
            raise ModelError(f"{file} cannot be used ({first_line(error)}); check the file.") from None
        return cls.of(config)

    def weight_bytes(self, dtype: str) -> int:
        """Bytes of all parameters."""
        return self.parameters * BYTES[dtype]


def _without_storage(config: Any) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config)
    except Exception as error:  # noqa: BLE001 - transformers raises many unrelated types for an unusable config
        raise ModelError(
            f"transformers makes no causal language model of the type '{getattr(config, 'model_type', '?')}' ({first_line(error)}); "
            "a plan needs one."
        ) from None


def _block_weights(model: Any, config: Any) -> int:
    """Weights of a mean block that a token is multiplied with. Matrices have two axes; stacked experts have three."""
    from mechprobe.models.blocks import find_blocks

    blocks = find_blocks(model)
    n_experts = next(
        (n for name in ("num_experts", "num_local_experts", "n_routed_experts") if (n := getattr(config, name, None))),
        1,
    )
    share = min(1.0, (getattr(config, "num_experts_per_tok", None) or n_experts) / n_experts)
    total = 0.0
    for name, parameter in blocks.named_parameters():
        if parameter.ndim >= 2:
            total += parameter.numel() * (share if ".experts." in f".{name}" else 1.0)
    return round(total / len(blocks))


def _inner_width(config: Any) -> int:
    experts = getattr(config, "num_experts_per_tok", None)
    inner = getattr(config, "moe_intermediate_size", None)
    if experts and inner:
        return int(experts * inner)
    found = next(
        (
            n
            for name in ("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size")
            if (n := getattr(config, name, None))
        ),
        None,
    )
    return int(found or 4 * config.hidden_size)
