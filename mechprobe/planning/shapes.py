"""The sizes of a language model that its costs depend on, from its config alone; no weights are read."""

from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from mechprobe.errors import ModelError, first_line, is_out_of_memory

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
        n_heads, n_kv_heads, head_dim: Attention heads of queries, and of keys and values, and the width of each; 0 where the config has
            none.
        n_attention: Blocks with attention.
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
    n_attention: int
    n_ids: int
    block_weights: int
    parameters: int
    stored_as: str
    max_context: int

    @classmethod
    def of(cls, config: Any) -> "ModelShape":
        """Sizes from a transformers config. The modules are made without storage, so any causal model that transformers knows is counted.

        Raises:
            ModelError: transformers knows no causal language model with this config, or the config lacks a size.
        """
        try:
            return cls._of(config)
        except ModelError:
            raise
        except Exception as error:
            if is_out_of_memory(error):
                raise
            raise ModelError(
                f"The sizes of a model of the type '{getattr(config, 'model_type', '?')}' cannot be read from its config "
                f"({first_line(error)}); a plan needs them."
            ) from None

    @classmethod
    def _of(cls, config: Any) -> "ModelShape":
        text = config.get_text_config()
        model = _without_storage(text)
        n_layers, d_model = _needed(text, "num_hidden_layers"), _needed(text, "hidden_size")
        heads = _number(text, "num_attention_heads")
        return cls(
            model_type=str(text.model_type),
            n_layers=n_layers,
            d_model=d_model,
            d_ff=_inner_width(text) or 4 * d_model,
            n_heads=heads,
            n_kv_heads=min(heads, _number(text, "num_key_value_heads") or heads),
            head_dim=(_number(text, "head_dim") or d_model // heads) if heads else 0,
            n_attention=_attention_blocks(text, n_layers) if heads else 0,
            n_ids=_needed(text, "vocab_size"),
            block_weights=_block_weights(model, text),
            parameters=sum(parameter.numel() for parameter in model.parameters()),
            stored_as=str(getattr(config, "dtype", None) or "float32").removeprefix("torch."),
            max_context=_number(text, "max_position_embeddings", "context_length") or 1 << 30,
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
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise ModelError(
            f"transformers makes no causal language model of the type '{getattr(config, 'model_type', '?')}' ({first_line(error)}); "
            "a plan needs one."
        ) from None


def _number(config: Any, *names: str) -> int:
    """The first of these entries that is a number above 0; of one per layer, their mean; 0 where there is none."""
    for name in names:
        try:
            value = getattr(config, name, None)
        except RuntimeError:  # it differs between layers
            layers = config.per_layer_config
            value = [getattr(layers[place], name, None) for place in range(len(layers))]
        values = [n for n in value if isinstance(n, int)] if isinstance(value, list | tuple) else [value]
        known = [n for n in values if isinstance(n, int | float) and not isinstance(n, bool) and n > 0]
        if known:
            return max(1, round(fmean(known)))
    return 0


def _needed(config: Any, name: str) -> int:
    found = _number(config, name)
    if not found:
        raise ModelError(f"The config of the type '{config.model_type}' has no {name}; a plan needs it.")
    return found


def _attention_blocks(config: Any, n_layers: int) -> int:
    """Blocks with attention over all earlier tokens or a window of them: those that the config names so, or all."""
    for name in ("layer_types", "layers_block_type"):
        kinds = getattr(config, name, None)
        if isinstance(kinds, list | tuple) and len(kinds) == n_layers:
            named = [str(kind) for kind in kinds]
            return sum(("attention" in kind and "linear" not in kind) or kind == "hybrid" for kind in named)
    return n_layers


def _block_weights(model: Any, config: Any) -> int:
    """Weights of a mean block that a token is multiplied with. Matrices have two axes; stacked experts have three."""
    from mechprobe.models.blocks import find_blocks

    blocks = find_blocks(model)
    n_experts = _number(config, "num_experts", "num_local_experts", "n_routed_experts") or 1
    share = min(1.0, (_number(config, "num_experts_per_tok") or n_experts) / n_experts)
    total = 0.0
    for name, parameter in blocks.named_parameters():
        if parameter.ndim >= 2:
            total += parameter.numel() * (share if ".experts." in f".{name}" else 1.0)
    return round(total / len(blocks))


def _inner_width(config: Any) -> int:
    experts, inner = _number(config, "num_experts_per_tok"), _number(config, "moe_intermediate_size")
    return (
        experts * inner
        if experts and inner
        else _number(config, "intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size")
    )
