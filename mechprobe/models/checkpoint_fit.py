"""Whether the tensors of a checkpoint are those of its architecture, found on the meta device before any weight is read.

The names go through the loader of transformers itself, with tensors that have a shape but no values. So its renamings, fused
weights and tied weights count here exactly as they do when the model is loaded.
"""

import copy
import logging
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mechprobe.errors import ModelError, is_out_of_memory
from mechprobe.models.checkpoint import StoredTensor

logger = logging.getLogger(__name__)

_PREFIXES = {
    "_orig_mod.": "torch.compile wrapped the model; save model._orig_mod",
    "module.": "a data-parallel trainer wrapped the model; save model.module",
    "_fsdp_wrapped_module.": "FSDP wrapped the model; save its full state dict",
    "_checkpoint_wrapped_module.": "activation checkpointing wrapped the blocks; save the state dict of the unwrapped model",
    "_forward_module.": "a trainer wrapped the model; save the wrapped model itself",
    "base_model.model.": "peft wrapped the model; save merge_and_unload()",
    "base_layer.": "peft wrapped the layers; save merge_and_unload()",
    "pretrained_model.": "TRL wrapped the model; save model.pretrained_model",
}
"""Parts that wrappers put into the names of tensors, and what to save instead."""
_OTHER_HEADS = re.compile(
    r"For(SequenceClassification|TokenClassification|QuestionAnswering|MaskedLM|MultipleChoice|\w*Reward)|Reward"
)


@dataclass(frozen=True)
class Architecture:
    """What a checkpoint is made of.

    Attributes:
        name: Class of the model in transformers.
        n_parameters: Number of weights; tied ones count once.
        n_rows: Number of token ids that have a row in the embedding.
        tied: Whether the unembedding is the embedding.
        unused: Tensors of the checkpoint that the model does not use, such as the value head of a trainer.
    """

    name: str
    n_parameters: int
    n_rows: int
    tied: bool
    unused: tuple[str, ...] = ()


def check_config(config: Any, *, role: str, path: Path) -> None:
    """Refuse configs of models that are not causal language models with plain weights.

    Raises:
        ModelError: The model is an encoder, an encoder-decoder, has another head, or is quantized.
    """
    where, kind = f"Model {role}: {path}", getattr(config, "model_type", "") or type(config).__name__
    method = _quantization(config)
    if method:
        raise ModelError(
            f"{where} holds weights quantized with {method}, which mechprobe does not read; give the model before quantization, "
            "or dequantize it and save it again."
        )
    wanted = "give a causal language model"
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(f"{where} is an encoder-decoder ({kind}); {wanted}.")
    head = next((name for name in getattr(config, "architectures", None) or () if _OTHER_HEADS.search(name)), None)
    if head:
        raise ModelError(f"{where} is a {head}, which does not predict the next token; {wanted}.")
    if not _is_causal(config):
        raise ModelError(f"{where} is not a causal language model that transformers loads ({kind}); {wanted}.")


def _quantization(config: Any) -> str:
    """Name of the method that quantized the weights; empty if none did."""
    found = getattr(config, "quantization_config", None) or getattr(
        config.get_text_config(), "quantization_config", None
    )
    if not found:
        mlx = getattr(config, "quantization", None)
        return "MLX" if isinstance(mlx, dict) and "bits" in mlx else ""
    values = found if isinstance(found, dict) else found.to_dict()
    return str(values.get("quant_method") or "an unnamed method").replace("QuantizationMethod.", "")


def _is_causal(config: Any) -> bool:
    from transformers import AutoModelForCausalLM
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    if "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {}):
        return True
    if type(config) not in AutoModelForCausalLM._model_mapping:
        return False
    # Encoders can be loaded with a language-model head, and then attend to later tokens unless they are set up as decoders.
    encoder = config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    return not encoder or bool(getattr(config, "is_decoder", False) or getattr(config, "causal", False))


def empty_model(config: Any, *, trust_remote_code: bool = False) -> Any:
    """The model on the meta device: modules and shapes without memory. None if its code cannot be run there."""
    import torch
    from transformers import AutoModelForCausalLM

    try:
        with quietly(), torch.device("meta"):
            return AutoModelForCausalLM.from_config(copy.deepcopy(config), trust_remote_code=trust_remote_code)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        logger.debug("%s cannot be built on the meta device.", type(config).__name__, exc_info=True)
        return None


def check_weights(empty: Any, stored: Mapping[str, StoredTensor], *, role: str, path: Path) -> tuple[str, ...]:
    """Check names and shapes of all tensors against the architecture. Nothing is allocated.

    Args:
        empty: The model on the meta device.
        stored: The tensors of the checkpoint.
        role: Name of the model in error messages.
        path: Folder of the checkpoint.

    Returns:
        Tensors that the model does not use, see `refuse_misfit`. A model whose loader needs values is checked only when it is
        loaded.

    Raises:
        ModelError: The checkpoint lacks tensors, has other shapes, or holds tensors of another architecture.
    """
    import torch

    values = {name: torch.empty(tensor.shape, dtype=tensor.dtype, device="meta") for name, tensor in stored.items()}
    options: dict[str, Any] = {"output_loading_info": True, "ignore_mismatched_sizes": True, "device_map": {"": "meta"}}
    try:
        with quietly():
            model, info = type(empty).from_pretrained(None, config=empty.config, state_dict=values, **options)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        logger.debug("Model %s is checked when it is loaded.", role, exc_info=True)
        return ()
    return refuse_misfit(model, info, stored, role=role, path=path)


def described(model: Any, unused: tuple[str, ...]) -> Architecture:
    """What a model on the meta device, or a loaded one, is made of."""
    rows, head = model.get_input_embeddings().weight, model.get_output_embeddings()
    n_parameters = sum(parameter.numel() for parameter in model.parameters())
    tied = head is not None and getattr(head, "weight", None) is rows
    return Architecture(type(model).__name__, n_parameters, int(rows.shape[0]), tied, unused)


def refuse_misfit(
    model: Any, info: Mapping[str, Any], stored: Iterable[str], *, role: str, path: Path
) -> tuple[str, ...]:
    """Refuse a checkpoint that does not fit the model, from what the loader of transformers reports.

    Returns:
        Tensors that the model does not use and that do not change what it computes: those of no module of the model.

    Raises:
        ModelError: Tensors are missing or have another shape, or belong to a part of the model that its config leaves out.
    """
    where = f"Model {role}: {path}"
    missing, unused = sorted(info["missing_keys"], key=_numbers), sorted(info["unexpected_keys"], key=_numbers)
    if missing:
        raise ModelError(f"{where} lacks {named_tensors(missing)}{why_missing(missing, unused, set(stored))}.")
    mismatched = sorted(info.get("mismatched_keys", ()))
    if mismatched:
        name, found, expected = mismatched[0]
        raise ModelError(
            f"{where}: {name} has shape {list(found)}, and config.json asks for {list(expected)}"
            f"{f' (and {len(mismatched) - 1} more such tensors)' if len(mismatched) > 1 else ''}; give the config.json that "
            "belongs to these weights."
        )
    modules = {name for name, _ in model.named_modules() if name}
    inside = [name for name in unused if _is_inside(name, modules)]
    if any(".lora_" in name for name in inside):
        raise ModelError(
            f"{where} keeps an adapter beside the weights that it changes ({inside[0]}), and would be loaded without it; save "
            "the merged model (merge_and_unload of peft)."
        )
    if inside:
        raise ModelError(
            f"{where} holds {named_tensors(inside)}, which config.json has no place for and which would be left out; give the "
            "config.json that belongs to these weights."
        )
    return tuple(unused)


def _is_inside(name: str, modules: set[str]) -> bool:
    """Whether a tensor belongs to a module of the model, or to a block beside or inside the model's blocks."""
    parents = name.split(".")[:-1]
    if ".".join(parents) in modules:
        return True
    place = next((index for index, part in enumerate(parents) if part.isdecimal()), None)
    return place is not None and ".".join(parents[:place]) in modules


def why_missing(missing: list[str], unused: list[str], stored: set[str]) -> str:
    """Why tensors are missing, and the mend."""
    for part, reason in _PREFIXES.items():
        if any(part in name for name in unused) and {name.replace(part, "") for name in unused} & set(missing):
            return f": its names contain '{part}', because {reason}"
    ends = {name.removesuffix(lost) for lost in missing[:1] for name in unused if name.endswith(f".{lost}")}
    if len(ends) == 1:
        return f": its names begin with '{ends.pop()}'; save the model inside that wrapper with save_pretrained"
    if missing == ["lm_head.weight"]:
        return (
            ", and config.json does not tie it to the embedding; set tie_word_embeddings to true there if the model was "
            "trained so, or save it again with its head"
        )
    kept = len(stored) - len(unused)
    return f" and holds {kept} tensors that fit; save the whole model again with save_pretrained"


def named_tensors(names: list[str]) -> str:
    """``3 tensors (a, b and 1 more)``."""
    rest = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{len(names)} tensor{'s' if len(names) > 1 else ''} ({', '.join(names[:3])}{rest})"


def _numbers(name: str) -> tuple[list[int], str]:
    return [int(part) for part in re.findall(r"\d+", name)], name


@contextmanager
def quietly() -> Iterator[None]:
    """Hide bars, reports and warnings of transformers and peft, because every stage shows its own lines and refuses in its own words."""
    from transformers.utils import logging as transformers_logging

    shown, level = transformers_logging.is_progress_bar_enabled(), transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers_logging.set_verbosity(level)
        if shown:
            transformers_logging.enable_progress_bar()


def refuse_non_finite(model: Any, *, role: str, path: Path, dtype: str) -> None:
    """Refuse weights that are NaN or infinite, such as those beyond the range of float16. Weights on disk are not read.

    Raises:
        ModelError: A weight is not finite; the message names its tensor.
    """
    import torch

    for name, value in model.named_parameters():
        if value.device.type == "meta" or not value.is_floating_point() or value.numel() == 0:
            continue
        # The sum is finite for nearly every tensor of finite weights, and needs no memory for a mask.
        if torch.isfinite(value.sum(dtype=torch.float32)) or torch.isfinite(value).all():
            continue
        mend = (
            "load it in float32 or bfloat16"
            if dtype == "float16"
            else "the checkpoint is damaged, or training diverged"
        )
        raise ModelError(f"Model {role}: {path} has weights in {name} that are not finite in {dtype}; {mend}.")
