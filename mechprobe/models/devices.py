"""Devices that models are placed on, and smaller batches when a device runs out of memory."""

import gc
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from mechprobe.errors import ModelError, StoreError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

T = TypeVar("T")

DeviceMap = str | dict[str, int | str]
"""A placement rule (see `PLACEMENTS`), one device, or a device (or GPU number, or ``disk``) for each named module."""

PLACEMENTS = ("auto", "balanced", "balanced_low_0", "sequential")
"""Rules by which accelerate distributes the modules of a model over the devices."""
_DEVICES = "cpu, cuda, cuda:N (N is the number of a GPU), or mps"
_OUT_OF_MEMORY = ("not enough memory", "can't allocate memory", "MPS backend out of memory")


def check_device(device: str) -> None:
    """Check that torch knows a device and that this machine has it.

    Raises:
        ModelError: The device is unknown or unavailable.
    """
    import torch

    try:
        place = torch.device(device)
    except (RuntimeError, ValueError):
        place = None
    if place is None or place.type == "meta":
        raise ModelError(f"Device '{device}' is unknown; give {_DEVICES}.")
    try:
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
        raise ModelError(
            f"Device '{device}' is not available ({reason}); `mechprobe doctor` shows the devices of this machine."
        ) from None


def check_device_map(device_map: DeviceMap) -> None:
    """Check the form of a device map and that this machine has its devices.

    Raises:
        ModelError: A placement rule or device is unknown, or a device is unavailable.
    """
    if isinstance(device_map, str):
        places = [] if device_map in PLACEMENTS else [(f"'{device_map}'", device_map)]
    else:
        places = [(f"for module '{name}': '{place}'", place) for name, place in device_map.items() if place != "disk"]
    for setting, place in places:
        try:
            check_device(f"cuda:{place}" if isinstance(place, int) else place)
        except ModelError as error:
            raise ModelError(
                f"device_map {setting} cannot be used. {error} A device_map is {', '.join(PLACEMENTS)}, a device, or a table "
                "of modules with a device, the number of a GPU, or disk for each."
            ) from None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device, or this machine, has no memory left for a tensor."""
    import torch

    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and any(words in text for words in _OUT_OF_MEMORY)


def input_device(model: "PreTrainedModel") -> "torch.device":
    """Device that a model expects its token ids on. Modules that a device map keeps on disk run on the CPU."""
    import torch

    weight: Any = model.get_input_embeddings().weight
    if weight.device.type != "meta":
        return weight.device
    hook = getattr(model.get_input_embeddings(), "_hf_hook", None)
    return torch.device(getattr(hook, "execution_device", None) or "cpu")


def with_less_memory(work: Callable[[int], T], size: int, *, smallest: int, name: str, where: str) -> tuple[T, int]:
    """Call ``work(size)``; when memory runs out, call it again with half the batch size, but at least ``smallest``.

    A failed call must leave no state behind. Messages contain ``name``, the setting, and ``where``, the computation.

    Returns:
        ``(result, size)``, with the batch size that succeeded.

    Raises:
        StoreError: Memory runs out at the smallest size.
    """
    while True:
        try:
            return work(size), size
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        free_memory()  # outside the except block, the error's frames no longer hold the tensors of the failed pass
        if size <= smallest:
            raise StoreError(
                f"{where}: one sequence does not fit in memory ({reason}); lower max_length, or give a device_map."
            )
        size = max(smallest, size // 2)
        logger.warning("%s: out of memory; retrying with %s = %d.", where, name, size)


def free_memory() -> None:
    """Return memory that no tensor uses to the system and the GPU."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
