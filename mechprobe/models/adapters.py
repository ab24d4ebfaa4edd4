"""PEFT adapters: they are checked against their base before any weight is read, and merged into it in memory.

A merged model has plain modules, so hooks, TransformerBridge and edits treat it like any other. Merging in memory gives the
weights that merging on disk (``merge_and_unload``) gives.
"""

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mechprobe.errors import DependencyError, ModelError, first_line, is_out_of_memory
from mechprobe.models.checkpoint import StoredTensor, read_header
from mechprobe.models.checkpoint_fit import quietly
from mechprobe.models.folder import ModelFolder, adapter_config, adapter_weights

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def require_peft(folder: Path, *, role: str) -> None:
    """Raise `DependencyError` if an adapter is given and peft is not installed."""
    if importlib.util.find_spec("peft") is None:
        raise DependencyError(
            f"Model {role}: {folder} holds an adapter, which needs peft; install mechprobe[adapters], or merge the adapter "
            "(merge_and_unload) and give the merged folder."
        )


def check_adapter(folder: ModelFolder, base: Any, *, role: str) -> Any:
    """Check names and shapes of an adapter's tensors against its base on the meta device.

    Args:
        folder: The adapter.
        base: Its base on the meta device, see `mechprobe.models.checkpoint_fit.empty_model`.
        role: Name of the model in error messages.

    Returns:
        The base, with the number of token ids that the adapter brings.

    Raises:
        DependencyError: peft is not installed.
        ModelError: The adapter cannot be merged, or does not fit its base.
    """
    require_peft(folder.path, role=role)
    from peft import get_peft_model, get_peft_model_state_dict

    stored = read_header(adapter_weights(folder.path), role=role)
    settings = _settings(folder.path, role)
    resize(base, stored, role=role, path=folder.path)
    try:
        with quietly():
            adapted = get_peft_model(base, settings, low_cpu_mem_usage=True)
            expected = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    except Exception as error:  # noqa: BLE001 - peft raises many types for modules that it does not find
        raise ModelError(
            f"Model {role}: the adapter in {folder.path} does not fit its base ({first_line(error)}); give the base that it "
            "was trained on as base_model_name_or_path."
        ) from None
    # peft saves whole embeddings under several names where a vocabulary was resized, and reads each of them.
    whole = tuple(f"base_model.model.{name}." for name in _named_embeddings(base).values())
    shapes = {name: tuple(value.shape) for name, value in expected.items()}
    found = {name: tensor.shape for name, tensor in stored.items() if name in shapes or not name.startswith(whole)}
    _compare(shapes, found, role=role, path=folder.path)
    return adapted.unload()


def _compare(
    expected: Mapping[str, tuple[int, ...]], stored: Mapping[str, tuple[int, ...]], *, role: str, path: Path
) -> None:
    """Raise `ModelError` where an adapter lacks a tensor, has one of another shape, or one that its base has no place for."""
    where = f"Model {role}: the adapter in {path}"
    for problem, names in (
        ("lacks", [name for name in expected if name not in stored]),
        ("has no place for", [name for name in stored if name not in expected]),
        ("asks for another shape of", [n for n, shape in expected.items() if stored.get(n, shape) != shape]),
    ):
        if names:
            subject = where if problem == "lacks" else f"{where} does not fit its base, which"
            more = f" and {len(names) - 1} more tensors" if len(names) > 1 else ""
            raise ModelError(
                f"{subject} {problem} {names[0]}{more}; save the adapter again, or give the base that it was trained on as "
                "base_model_name_or_path."
            )


def merged(model: "PreTrainedModel", folder: ModelFolder, *, role: str) -> "PreTrainedModel":
    """Apply an adapter to its loaded base and merge it.

    Raises:
        DependencyError: peft is not installed.
        ModelError: The adapter cannot be read or merged.
    """
    require_peft(folder.path, role=role)
    from peft import PeftModel

    settings, stored = _settings(folder.path, role), read_header(adapter_weights(folder.path), role=role)
    resize(model, stored, role=role, path=folder.path)
    _untie(model, settings, stored)
    try:
        with quietly():
            adapted: Any = PeftModel.from_pretrained(model, str(folder.path), config=settings)
            return adapted.merge_and_unload(safe_merge=True)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise ModelError(
            f"Model {role}: the adapter in {folder.path} cannot be merged into its base ({first_line(error)}); merge it with "
            "the peft that trained it, and give the merged folder."
        ) from None


def _settings(path: Path, role: str) -> Any:
    """The peft config of an adapter; `ModelError` if peft does not know it or it cannot be merged."""
    from peft import PeftConfig

    kind = adapter_config(path, role).get("peft_type")
    try:
        settings = PeftConfig.from_pretrained(str(path))
    except Exception as error:  # noqa: BLE001 - peft raises many types for a config of another version
        raise ModelError(
            f"Model {role}: {path}/adapter_config.json cannot be used ({first_line(error)}); install the peft that wrote it, "
            "or merge the adapter there."
        ) from None
    if settings.is_prompt_learning or kind in _NOT_MERGED:
        raise ModelError(
            f"Model {role}: {path} holds a {kind} adapter, which adds tokens or layers and cannot be merged into the weights; "
            "give a model whose weights were trained, or a LoRA adapter."
        )
    if settings.task_type not in (None, "CAUSAL_LM"):
        raise ModelError(
            f"Model {role}: {path} holds an adapter for the task {settings.task_type}, not for a causal language model; give an "
            "adapter that was trained with task_type CAUSAL_LM."
        )
    return settings


_NOT_MERGED = ("ADAPTION_PROMPT", "XLORA", "CPT", "MULTITASK_PROMPT_TUNING")


def _untie(model: Any, settings: Any, stored: Mapping[str, StoredTensor]) -> None:
    """Give an unembedding that is the embedding weights of its own, if the adapter changes one of them.

    During training the adapter changed one of the two; merging it into the shared weights would change both.
    """
    from torch import nn

    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if head is None or head.weight is not embedding.weight or getattr(settings, "ensure_weight_tying", False):
        return
    names = tuple(_named_embeddings(model).values())
    saved = tuple(getattr(settings, "modules_to_save", None) or ())
    changed = bool(saved) and any(name.endswith(saved) for name in names)
    changed |= any(f"{name}.lora_" in key for name in names for key in stored)
    if changed:
        head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=False)
        model.config.tie_word_embeddings = False


def resize(model: Any, stored: Mapping[str, StoredTensor], *, role: str, path: Path) -> None:
    """Give a base as many embedding rows as the embedding that an adapter brings, which replaces all of them.

    Raises:
        ModelError: The adapter brings one of embedding and unembedding with more rows than the base, but not the other.
    """
    rows: dict[str, int | None] = {"embedding": None, "unembedding": None}
    for what, name in _named_embeddings(model).items():
        brought = [
            tensor.shape[0]
            for key, tensor in stored.items()
            if f"{name}." in key
            and key.endswith("weight")
            and len(tensor.shape) == 2
            and ".lora_" not in key
            and ".token_adapter" not in key
        ]
        rows[what] = max(brought, default=None)
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    n_base = embedding.weight.shape[0]
    brought = {n for n in rows.values() if n is not None}
    if not brought or brought == {n_base}:
        return
    tied = head is not None and head.weight is embedding.weight
    if len(brought) > 1 or (None in rows.values() and not tied):
        described = " and ".join(f"{n} rows of the {what}" for what, n in rows.items() if n is not None)
        raise ModelError(
            f"Model {role}: the adapter in {path} brings {described}, but its base has {n_base} rows in both; save both with the "
            'adapter (modules_to_save=["embed_tokens", "lm_head"]), or merge it where it was trained.'
        )
    model.resize_token_embeddings(brought.pop(), mean_resizing=False)


def _named_embeddings(model: Any) -> dict[str, str]:
    """Names of the modules of embedding and unembedding in a model."""
    parts = {"embedding": model.get_input_embeddings(), "unembedding": model.get_output_embeddings()}
    names = {id(part): name for name, part in model.named_modules()}
    return {what: names[id(part)] for what, part in parts.items() if part is not None and id(part) in names}
