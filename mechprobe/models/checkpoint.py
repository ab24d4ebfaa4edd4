"""The tensors that the weight files of a model folder hold, read from their headers; incomplete sets of files are errors."""

import json
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mechprobe.errors import ModelError, first_line
from mechprobe.models.formats import is_lfs_pointer

if TYPE_CHECKING:
    import torch

_SETS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
"""The names under which transformers looks for weights, in its order."""
_SHARD = re.compile(r"(?P<stem>.+)-\d{5}-of-\d{5}\.(safetensors|bin)")
_OTHERS = ("adapter_model", "consolidated")
"""Beginnings of the names of weight files that do not hold the model in the format of transformers."""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Shape and torch dtype of a tensor in a weight file."""

    shape: tuple[int, ...]
    dtype: "torch.dtype"


def weight_files(folder: Path, *, role: str) -> list[Path]:
    """The weight files of a whole model that transformers would load; empty if there are none.

    Raises:
        ModelError: A file of a set is missing, or it is not clear which set is meant.
    """
    sets = [name for name in _SETS if (folder / name).is_file()]
    if not sets:
        _refuse_odd_names(folder, role)
        return []
    if sets[:2] == list(_SETS[:2]) or sets[-2:] == list(_SETS[2:]):
        kept, index = _SETS[:2] if sets[0] in _SETS[:2] else _SETS[2:]
        raise ModelError(
            f"Model {role}: {folder} holds {kept} beside the shards of {index}, so it is not clear which weights are meant; "
            "remove one of the two."
        )
    if not sets[0].endswith(".index.json"):
        return [folder / sets[0]]
    names = sorted(set(_weight_map(folder / sets[0], role).values()))
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        listed = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        raise ModelError(
            f"Model {role}: {folder} lacks {len(missing)} of the {len(names)} weight files that {sets[0]} lists ({listed}); "
            "copy or download them again."
        )
    return [folder / name for name in names]


def _refuse_odd_names(folder: Path, role: str) -> None:
    """Raise `ModelError` for weight files that transformers would not find."""
    found = [file.name for pattern in ("*.safetensors", "pytorch_model*.bin") for file in sorted(folder.glob(pattern))]
    odd = [name for name in found if not name.startswith(_OTHERS)]
    if not odd:
        return
    shard = _SHARD.fullmatch(odd[0])
    if shard:
        raise ModelError(
            f"Model {role}: {folder} holds shards such as {odd[0]} without their index; copy "
            f"{shard['stem']}.{shard[2]}.index.json there."
        )
    if len(odd) == 1 and odd[0].endswith(".safetensors"):
        raise ModelError(
            f"Model {role}: the weights in {folder} are named {odd[0]}; rename the file model.safetensors."
        )
    raise ModelError(
        f"Model {role}: {folder} holds weights under names that transformers does not look for ({', '.join(odd[:3])}); "
        "save the model again with save_pretrained."
    )


def _weight_map(index: Path, role: str) -> dict[str, str]:
    """Tensor name to file name in the index of a set of shards."""
    try:
        found = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    except (OSError, ValueError, KeyError, TypeError):
        found = None
    named = isinstance(found, dict) and all(
        isinstance(name, str) and Path(name).name == name for name in found.values()
    )
    if not named or not found:
        raise ModelError(f"Model {role}: {index} does not list the weight files of its folder; copy it again.")
    return found


def stored_tensors(folder: Path, *, role: str) -> dict[str, StoredTensor]:
    """Name to shape and dtype of every tensor in the weight files of a folder.

    Raises:
        ModelError: A file is missing or unreadable, lacks tensors that the index lists, or holds Python objects.
    """
    files = weight_files(folder, role=role)
    found: dict[str, StoredTensor] = {}
    for file in files:
        found |= read_header(file, role=role)
    index = next((folder / name for name in _SETS if (folder / name).is_file()), None)
    if index is not None and index.name.endswith(".index.json"):
        listed = _weight_map(index, role)
        lacking = [name for name in listed if name not in found]
        if lacking:
            raise ModelError(
                f"Model {role}: {folder / listed[lacking[0]]} lacks {len(lacking)} tensors that {index.name} lists, such as "
                f"{lacking[0]}; copy or download the shards again."
            )
    return found


def read_header(file: Path, *, role: str) -> dict[str, StoredTensor]:
    """Name to shape and dtype of every tensor in one weight file; raises `ModelError` if it cannot be read."""
    try:
        stat = file.stat()
        return _read_header(file, stat.st_size, stat.st_mtime_ns)
    except Exception as error:  # noqa: BLE001 - torch and safetensors raise many unrelated types for a damaged file
        if is_lfs_pointer(file):
            raise ModelError(
                f"Model {role}: {file} is a Git LFS pointer, not the weights; run `git lfs pull`."
            ) from None
        if file.suffix == ".safetensors":
            raise ModelError(
                f"Model {role}: {file} is not a readable safetensors file ({first_line(error)}); copy it again."
            ) from None
        raise ModelError(
            f"Model {role}: {file} cannot be read without running code from it ({type(error).__name__}), which mechprobe "
            "never does; copy it again if it is damaged, or save the model as safetensors where you trust the file."
        ) from None


@lru_cache(maxsize=4096)
def _read_header(file: Path, _size: int, _changed: int) -> dict[str, StoredTensor]:
    """Read one header; a file of another size or time of change is another entry of the cache."""
    if file.suffix != ".safetensors":
        return _read_pickle_header(file)
    from safetensors import safe_open

    with safe_open(str(file), framework="pt") as opened:
        slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118 - not a mapping
        return {
            name: StoredTensor(tuple(part.get_shape()), _torch_dtype(part.get_dtype())) for name, part in slices.items()
        }


def _torch_dtype(name: str) -> "torch.dtype":
    """The torch dtype of a name in a safetensors header; uint8 for those that torch lacks."""
    import torch

    names = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "BOOL": "bool"}
    names |= {"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"}
    integers = {
        f"{letter}{bits}": f"{kind}{bits}" for letter, kind in (("I", "int"), ("U", "uint")) for bits in (8, 16, 32, 64)
    }
    return getattr(torch, (names | integers).get(name, "uint8"))


def _read_pickle_header(file: Path) -> dict[str, StoredTensor]:
    """Read names and shapes of a ``.bin`` file with torch's loader that accepts tensors only."""
    import torch

    def tensors(**options: Any) -> Any:
        return torch.load(file, map_location="meta", weights_only=True, **options)

    try:
        found = tensors(mmap=True)
    except RuntimeError:  # files from before torch 1.6 cannot be mapped
        found = tensors()
    return {
        name: StoredTensor(tuple(value.shape), value.dtype)
        for name, value in found.items()
        if isinstance(value, torch.Tensor)
    }
