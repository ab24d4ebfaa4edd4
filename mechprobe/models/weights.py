"""Loading the weights of a folder and its adapters, and checking them from their headers before that."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mechprobe.errors import ModelError, first_line, is_out_of_memory
from mechprobe.models.adapters import check_adapter, merged, require_peft
from mechprobe.models.checkpoint import stored_tensors
from mechprobe.models.checkpoint_fit import (
    Architecture,
    check_weights,
    described,
    empty_model,
    quietly,
    refuse_misfit,
    refuse_non_finite,
)
from mechprobe.models.devices import DeviceMap
from mechprobe.models.folder import ModelFolder

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_known: dict[tuple[object, ...], Architecture] = {}
"""Architectures that this process has checked, by the state of their files."""


def inspect(folder: ModelFolder, config: Any, *, role: str, trust_remote_code: bool = False) -> Architecture | None:
    """Check the tensors of a model and of its adapters against its architecture. No weights are read.

    Returns:
        What the model is made of; None if its code cannot be run without weights, so that loading it checks it.

    Raises:
        ModelError: The tensors do not fit, or a file is missing or unreadable.
        DependencyError: An adapter needs peft.
    """
    state = _state(folder)
    if state in _known:
        return _known[state]
    root, chain = folder.root, _adapters(folder)
    stored = stored_tensors(root.path, role=role)
    for adapter in chain:
        require_peft(adapter.path, role=role)
    empty = empty_model(config, trust_remote_code=trust_remote_code)
    if empty is None:
        return None
    unused = check_weights(empty, stored, role=role, path=root.path)
    for adapter in chain:
        empty = check_adapter(adapter, empty, role=role)
    _known[state] = described(empty, unused)
    return _known[state]


def load_weights(
    folder: ModelFolder,
    *,
    role: str,
    dtype: str,
    attention: str = "eager",
    device_map: DeviceMap | None = None,
    offload_folder: str | None = None,
    trust_remote_code: bool = False,
) -> "PreTrainedModel":
    """Load a model in evaluation mode, without gradients; adapters are merged.

    Args:
        folder: Where the files are.
        role: Name of the model in error messages.
        dtype: Name of the torch dtype of the weights.
        attention: Name that transformers has for the kind of attention.
        device_map: How accelerate spreads the modules; None keeps them on the CPU. Not for adapters.
        offload_folder: Folder for modules that ``device_map`` places on disk.
        trust_remote_code: Whether Python code in the folder may run.

    Raises:
        ModelError: The weights cannot be loaded, do not fit the architecture, or are not finite.
    """
    import torch
    from transformers import AutoModelForCausalLM

    path = folder.root.path
    options: dict[str, Any] = {"attn_implementation": attention, "trust_remote_code": trust_remote_code}
    if device_map is not None:
        options |= {"device_map": device_map} | ({"offload_folder": offload_folder} if offload_folder else {})
    try:
        with quietly():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                path, dtype=getattr(torch, dtype), output_loading_info=True, ignore_mismatched_sizes=True, **options
            )
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise ModelError(
            f"Model {role}: {path} cannot be loaded ({first_line(error)}); check the folder, dtype, attention and device_map."
        ) from None
    model, info = loaded
    refuse_misfit(model, info, stored_tensors(path, role=role), role=role, path=path)
    for adapter in _adapters(folder):
        model = merged(model, adapter, role=role)
    refuse_non_finite(model, role=role, path=folder.path, dtype=dtype)
    model.requires_grad_(False)
    head = model.get_output_embeddings()
    if dtype != "float32" and isinstance(head, torch.nn.Module):
        head.register_forward_pre_hook(_contiguous)
    return model.eval()


def _contiguous(_head: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Copy the input of the unembedding: for a slice of positions, matmul in 16 bits on CPU copies the weights for every row."""
    return (inputs[0].contiguous(), *inputs[1:]) if inputs else inputs


def _adapters(folder: ModelFolder) -> list[ModelFolder]:
    """The adapters of a model, from the one next to its weights on."""
    return [] if folder.base is None else [*_adapters(folder.base), folder]


def _state(folder: ModelFolder) -> tuple[object, ...]:
    """Name, size and time of change of every file that `inspect` depends on."""
    places = [folder.root, *_adapters(folder)]
    return tuple(_file_state(file) for place in places for file in sorted(place.path.glob("*")) if file.is_file())


def _file_state(file: Path) -> tuple[str, int, int]:
    stat = file.stat()
    return str(file), stat.st_size, stat.st_mtime_ns
