"""The weights of an arm: loading them for training, adapters, frozen parts, and saving them in the Hugging Face format."""

import copy
import fnmatch
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mechprobe.environment import require
from mechprobe.errors import ConfigError
from mechprobe.models.checkpoint import stored_tensors
from mechprobe.models.load import LanguageModel
from mechprobe.models.weights import load_weights
from mechprobe.posttrain.config import LoraConfig, PosttrainConfig
from mechprobe.posttrain.training import Frozen, quiet
from mechprobe.random_state import isolated_random_state
from sae_training.atomic import PARTIAL

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ADAPTED = "base_model.model."
_FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def load_trainable(base: LanguageModel, config: PosttrainConfig) -> Any:
    """Load the base in float32 for training, with adapters if they are asked for; adapters draw from torch's generator."""
    model: Any = load_weights(base.folder, role=base.name, dtype="float32", trust_remote_code=base.trust_remote_code)
    model.requires_grad_(True)
    if getattr(model, "_supports_sdpa", False):
        model.set_attn_implementation("sdpa")  # mechprobe reads models with eager attention, which is slow to train
    return model.train() if config.lora is None else _adapted(model, base, config.lora)


def _adapted(model: Any, base: LanguageModel, lora: LoraConfig) -> Any:
    peft = require("peft", "posttrain.lora")
    targets = lora.targets[0] if lora.targets == ("all-linear",) else list(lora.targets)
    _check_targets(model, [] if isinstance(targets, str) else targets)
    settings = peft.LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=targets,
        task_type="CAUSAL_LM",
        revision=base.revision,
    )
    try:
        adapted = peft.get_peft_model(model, settings)
    except ValueError as error:
        raise ConfigError(
            f"lora.targets = {list(lora.targets)} do not fit the model ({str(error).splitlines()[0]})."
        ) from None
    used = adapted.peft_config["default"]
    used.base_model_name_or_path = str(base.path.resolve())
    for name, value in vars(used).items():
        if isinstance(value, set):  # peft would write it in an order that differs between processes
            setattr(used, name, sorted(value))
    return adapted.train()


def _check_targets(model: Any, targets: Sequence[str]) -> None:
    """Raise `ConfigError` where a name fits no module, which peft skips in silence beside one that fits."""
    modules = [f".{name}" for name, _ in model.named_modules() if name]
    for target in targets:
        if not target or not any(name.endswith(f".{target}") for name in modules):
            raise ConfigError(
                f"lora.targets = {list(targets)} do not fit the model (no module is named '{target}'; the last is "
                f"{modules[-1][1:]})."
            )


def frozen_by(patterns: Sequence[str]) -> Frozen:
    """Whether a pattern names a parameter; that of an adapter has the name of the weight that it changes."""

    def frozen(name: str) -> bool:
        plain = name.removeprefix(_ADAPTED)
        for part in (".base_layer", ".lora_A.default", ".lora_B.default"):
            plain = plain.replace(part, "")
        return any(fnmatch.fnmatchcase(plain, pattern) for pattern in patterns)

    return frozen


def trained_sizes(base: LanguageModel, config: PosttrainConfig) -> dict[str, int]:
    """Name and size of every parameter that is trained: those of the base, or of its adapters, that are not frozen.

    Raises:
        ConfigError: A pattern of ``freeze`` names no parameter, they leave nothing to train, or ``lora.targets`` do not fit.
        DependencyError: Adapters are asked for and peft is not installed.
    """
    _check_patterns(list(parameter_names(base)), config.freeze)
    model, frozen = _empty(base), frozen_by(config.freeze)
    if config.lora is not None:
        with isolated_random_state(config.seed), quiet():
            model = _adapted(copy.deepcopy(model), base, config.lora)
    names = {name: value.numel() for name, value in model.named_parameters() if not config.lora or value.requires_grad}
    found = {name: size for name, size in names.items() if not frozen(name)}
    if not found:
        what = "adapter" if config.lora else "parameter"
        raise ConfigError(f"freeze leaves no {what} to train; remove a pattern.")
    return found


def _check_patterns(names: Sequence[str], patterns: Sequence[str]) -> None:
    """Raise `ConfigError` where a pattern of frozen parts names no parameter."""
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            raise ConfigError(
                f"freeze names '{pattern}', but no parameter has such a name; the model has {names[0]} to {names[-1]} "
                "(tied weights have one name)."
            )


def parameter_names(base: LanguageModel) -> dict[str, int]:
    """Name and size of every parameter of the base. No weights are read unless its code cannot run without them."""
    return {name: parameter.numel() for name, parameter in _empty(base).named_parameters()}


def _empty(base: LanguageModel) -> Any:
    from mechprobe.models.checkpoint_fit import empty_model

    empty = empty_model(base.config, trust_remote_code=base.trust_remote_code)
    return base.hf if empty is None else empty


def stored_dtype(base: LanguageModel) -> torch.dtype:
    """Precision of most floating-point tensors in the files of the base."""
    kinds = [tensor.dtype for tensor in stored_tensors(base.folder.root.path, role=base.name).values()]
    counted = Counter(kind for kind in kinds if kind in _FLOATS)
    return counted.most_common(1)[0][0] if counted else torch.float32


def save(model: Any, tokenizer: "PreTrainedTokenizerBase", folder: Path, dtype: torch.dtype) -> None:
    """Write a model, or its adapter, into a folder, all of it or nothing."""
    partial = folder.with_name(folder.name + PARTIAL)
    shutil.rmtree(partial, ignore_errors=True)
    save_into(model, tokenizer, partial, dtype)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def save_into(model: Any, tokenizer: "PreTrainedTokenizerBase", folder: Path, dtype: torch.dtype) -> list[str]:
    """Write a model, or its adapter, beside what is in a folder, and return the names of the files."""
    folder.mkdir(parents=True, exist_ok=True)
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    with quiet():
        if hasattr(model, "peft_config"):
            model.save_pretrained(folder)
            (folder / "README.md").unlink(missing_ok=True)
        else:
            rounded = copy.deepcopy(model).to(dtype)
            rounded.config.use_cache = True  # trainers disable it
            rounded.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return sorted(p.name for p in folder.iterdir() if p.is_file() and before.get(p.name) != p.stat().st_mtime_ns)
