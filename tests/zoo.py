"""Every causal architecture of transformers at tiny size, with random weights."""

import inspect
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:  # conftest imports this file also in the process that only distributes the tests
    from transformers import PretrainedConfig, PreTrainedModel

N_VOCAB, N_LAYERS, WINDOW, MOST_PARAMETERS = 100, 4, 8, 30_000_000
_SIZES: dict[str, Any] = {
    "vocab_size": N_VOCAB, "vocab_size_per_layer_input": N_VOCAB, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
    "tie_word_embeddings": False, "use_cache": True, "is_decoder": True,
    # layers
    **dict.fromkeys(
        ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "encoder_layers"), N_LAYERS
    ),
    # widths
    **dict.fromkeys(
        ("hidden_size", "d_model", "n_embd", "dim", "embedding_size", "word_embed_proj_dim", "lru_width"), 32
    ),
    **dict.fromkeys(
        ("intermediate_size", "d_ff", "ffn_dim", "ffn_hidden_size", "decoder_ffn_dim", "encoder_ffn_dim"), 64
    ),
    "hidden_size_per_layer_input": 8,
    # attention
    **dict.fromkeys(
        ("num_attention_heads", "n_head", "n_heads", "decoder_attention_heads", "encoder_attention_heads"), 4
    ),
    "num_key_value_heads": 2, "head_dim": 8, "rotary_dim": 4, "q_lora_rank": 16, "kv_lora_rank": 16,
    **dict.fromkeys(("qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim"), 8),
    **dict.fromkeys(("sliding_window", "attention_window_size"), WINDOW),
    **dict.fromkeys(("max_position_embeddings", "n_positions"), 128),
    # experts
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    # recurrent layers
    "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_expand": 2, "mamba_num_heads": 4,
    "mamba_head_dim": 16, "ssm_state_size": 8, "mamba_d_conv": 4, "n_groups": 1, "mamba_n_groups": 1, "state_size": 8,
    "linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
}  # fmt: skip
_FULL_HEADS = {"num_key_value_heads": 4}
_OWN: dict[str, dict[str, Any]] = {
    **dict.fromkeys(
        (
            "axk1", "axk2", "deepseek_v2", "deepseek_v3", "deepseek_v32", "dots3_note_text", "youtu", "kimi_linear",
            "glm4_moe_lite", "glm_moe_dsa", "longcat_flash", "minicpm3", "bailing_hybrid",
        ),
        _FULL_HEADS,
    ),
    "bamba": {"attn_layer_indices": [1, 3], "layer_types": None},
    "falcon_h1": {"layer_types": None, "mamba_d_ssm": 64},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"] * 2},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "dots1": {"n_shared_experts": 1},
    "mamba2": {"num_heads": 4, "head_dim": 16, "expand": 2},
    "recurrent_gemma": {"layer_types": None, "block_types": ["recurrent", "recurrent", "attention"]},
    "zamba2": {"layer_types": None, "layers_block_type": ["mamba", "hybrid"] * 2},
    "reformer": {"axial_pos_embds": False},
}  # fmt: skip
"""Settings by model type, where the shared ones contradict each other."""


def tiny_config(kind: str) -> "PretrainedConfig":
    """The config of a model type at tiny size; whatever it raises means that none can be built."""
    from transformers import AutoConfig

    return _tiny(type(AutoConfig.for_model(kind)), kind)


def _tiny(config_class: Any, kind: str) -> "PretrainedConfig":
    names = set(inspect.signature(config_class.__init__).parameters) | set(getattr(config_class, "attribute_map", {}))
    for ancestor in config_class.__mro__:
        names |= set(getattr(ancestor, "__annotations__", {}))
    settings = {name: value for name, value in _SIZES.items() if name in names}
    if "layer_types" in names and (kinds := list(dict.fromkeys(getattr(config_class(), "layer_types", None) or []))):
        settings["layer_types"] = [kinds[index % len(kinds)] for index in range(N_LAYERS)]
    settings |= _OWN.get(kind, {})
    settings = {name: value for name, value in settings.items() if not (name == "layer_types" and value is None)}
    for part, part_class in (getattr(config_class, "sub_configs", None) or {}).items():
        if part_class.__name__ != "AutoConfig":
            settings[part] = _tiny(part_class, part_class.model_type)
    return config_class(**settings)


def tiny_model(kind: str, seed: int = 0) -> "PreTrainedModel":
    """A model of a type, with weights large enough that every block has an effect."""
    from transformers import AutoModelForCausalLM

    config = tiny_config(kind)
    options = {"attn_implementation": "eager"}
    with torch.device("meta"):
        n_parameters = sum(
            weight.numel() for weight in AutoModelForCausalLM.from_config(config, **options).parameters()
        )
    if n_parameters > MOST_PARAMETERS:
        raise ValueError(f"{n_parameters} parameters")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, **options).eval()
        with torch.no_grad():
            for weight in model.parameters():
                if weight.is_floating_point():
                    weight.add_(torch.randn(weight.shape) * 0.1)
    return model.requires_grad_(False)
