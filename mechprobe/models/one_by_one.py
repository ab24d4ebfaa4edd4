"""Work of several models with one whole model in memory, and what their passes leave for each other on disk."""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor, nn

from mechprobe.models.family import ModelFamily
from mechprobe.models.load import LanguageModel
from mechprobe.models.lower_part import LowerModel
from mechprobe.types import Site


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

    def load(self, name: str) -> None:
        """Load a model, and free the one before. The caller holds neither."""
        self[name]

    def release(self) -> None:
        """Free the model that was loaded last."""
        if self._last:
            self._family[self._last].release("hf")
        self._last = ""


@contextmanager
def loaded_for(model: LanguageModel) -> Iterator[None]:
    """Free the weights of a model after the ``with`` block, unless they were loaded before."""
    before = "hf" in model.__dict__
    try:
        yield
    finally:
        if not before:
            model.release("hf")


@contextmanager
def lower_part(model: LanguageModel, site: Site) -> Iterator[LanguageModel]:
    """A model up to a site (`LowerModel`), freed after the ``with`` block; the model itself where it was loaded before."""
    if "hf" in model.__dict__:
        yield model
        return
    lower = LowerModel(model, site)
    try:
        yield lower
    finally:
        lower.release("hf")


class OneWhole(Mapping[str, LanguageModel]):
    """Name to model of a family, up to a site (`LowerModel`), beside one whole model at a time.

    Models that were loaded before stay loaded. They, and the whole one, are their own lower parts.
    """

    def __init__(self, family: ModelFamily, site: Site) -> None:
        self._family, self._site = family, site
        self._lower: dict[str, LowerModel] = {}
        self._whole = ""

    def whole(self, name: str) -> LanguageModel:
        """A whole model; the one before and all lower parts are freed, so nothing else may hold them any more."""
        if name != self._whole:
            self.release()
            if "hf" not in self._family[name].__dict__:
                self._whole = name
        return self._family[name]

    def __getitem__(self, name: str) -> LanguageModel:
        if name not in self._family:
            raise KeyError(name)
        if name == self._whole or "hf" in self._family[name].__dict__:
            return self._family[name]
        if name not in self._lower:
            self._lower[name] = LowerModel(self._family[name], self._site)
        return self._lower[name]

    def __contains__(self, name: object) -> bool:
        return name in self._family

    def __iter__(self) -> Iterator[str]:
        return iter(self._family.names)

    def __len__(self) -> int:
        return len(self._family)

    def release(self) -> None:
        """Free what was loaded."""
        for model in self._lower.values():
            model.release("hf")
        self._lower.clear()
        if self._whole:
            self._family[self._whole].release("hf")
        self._whole = ""


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
