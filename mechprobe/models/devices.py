"""Devices that models are placed on."""

import os
from typing import TYPE_CHECKING, Any

from mechprobe.errors import ModelError, is_out_of_memory

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

DeviceMap = str | dict[str, int | str]
"""A placement rule (see `PLACEMENTS`), one device, or a device (or GPU number, or ``disk``) for each named module."""

PLACEMENTS = ("auto", "balanced", "balanced_low_0", "sequential")
"""Rules by which accelerate distributes the modules of a model over the devices."""
_DEVICES = "cpu, cuda, cuda:N (N is the number of a GPU), or mps"


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
        if is_out_of_memory(error):
            raise
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


def input_device(model: "PreTrainedModel") -> "torch.device":
    """Device that a model expects its token ids on. Modules that a device map keeps on disk run on the CPU."""
    import torch

    weight: Any = model.get_input_embeddings().weight
    if weight.device.type != "meta":
        return weight.device
    hook = getattr(model.get_input_embeddings(), "_hf_hook", None)
    return torch.device(getattr(hook, "execution_device", None) or "cpu")


def local_device(device: str) -> str:
    """The device of this process. Under a launcher, each process on a machine uses a different GPU."""
    local, several = os.environ.get("LOCAL_RANK"), int(os.environ.get("WORLD_SIZE", "1")) > 1
    return f"cuda:{local}" if device == "cuda" and local is not None and several else device
