"""Passes of several models over the same tokens with one model in memory, and what the passes leave for each other on disk."""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from torch import Tensor, nn

from mechprobe.models.family import ModelFamily


class OneByOne(Mapping[str, nn.Module]):
    """Name to transformers model of a family, of which one is in memory at a time.

    Models that were loaded before stay loaded.
    """

    def __init__(self, family: ModelFamily, names: Sequence[str]) -> None:
        self._family, self._names = family, tuple(names)
        self._last = ""

    def __getitem__(self, name: str) -> nn.Module:
        if name not in self._names:
            raise KeyError(name)
        if name != self._last:
            self.release()
            if "hf" not in self._family[name].__dict__:
                self._last = name
        return self._family[name].hf

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def release(self) -> None:
        """Free the model that was loaded last."""
        if self._last:
            self._family[self._last].release("hf")
        self._last = ""


class TensorFiles:
    """Tensors by key in temporary files, so that memory does not grow with their number; a context manager removes them."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="mechprobe_states_")

    def __enter__(self) -> "TensorFiles":
        return self

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()

    def _path(self, key: Sequence[object]) -> Path:
        return Path(self._folder.name) / "_".join(map(str, key)).replace("/", "_")

    def write(self, *key: object, **tensors: Tensor) -> None:
        """Keep tensors under a key; a key names a batch, and a model or a step."""
        from safetensors.torch import save_file

        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, self._path(key))

    def read(self, *key: object, device: str = "cpu") -> dict[str, Tensor]:
        """The tensors under a key."""
        from safetensors.torch import load

        return {name: tensor.to(device) for name, tensor in load(self._path(key).read_bytes()).items()}
