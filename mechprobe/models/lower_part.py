"""A model up to a site: what reading its residual there needs. The blocks above, and an untied unembedding, take no memory."""

from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mechprobe.models.architectures import known_behaviour
from mechprobe.models.blocks import find_blocks
from mechprobe.models.checkpoint import read_header, weight_files
from mechprobe.models.checkpoint_fit import empty_model, quietly, refuse_misfit, refuse_non_finite
from mechprobe.models.load import LanguageModel
from mechprobe.types import Site

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class LowerModel(LanguageModel):
    """A twin of a model, whose residuals up to a site are those of the whole model bit by bit; it gives no logits.

    Where the files allow it, only what the twin needs is read: rows of the embedding stay in their file until a token needs them.
    Otherwise the whole model is loaded first. A device map leaves it whole.
    """

    def __init__(self, model: LanguageModel, site: Site) -> None:
        self.__dict__.update(model.__getstate__())
        self.site = site

    @cached_property
    def hf(self) -> "PreTrainedModel":
        """The transformers model, whose modules above the site hold no weights."""
        model = super().hf
        if self.device_map is None:
            _drop_upper(model, self.site)
        return model

    def _load(self, attention: str = "eager") -> "PreTrainedModel":
        plain = attention == "eager" and self.device_map is None and self.folder.base is None
        if not plain or self.trust_remote_code or known_behaviour(self.config) is None:
            return super()._load(attention)  # the whole model is looked at first
        files = weight_files(self.path, role=self.name)
        if not files or any(file.suffix != ".safetensors" for file in files):
            return super()._load(attention)
        return self._load_lower(files)

    def _load_lower(self, files: list[Path]) -> "PreTrainedModel":
        from safetensors import safe_open

        dtype, empty = self._torch_dtype, empty_model(self.config)
        embedding, values, opened = _embedding_name(empty, self.device), {}, []
        unread = {*_upper_names(empty, self.site), embedding}
        for file in files:
            reader = safe_open(str(file), framework="pt")
            opened.append(reader)
            for name, stored in read_header(file, role=self.name).items():
                values[name] = _nothing(stored.shape, dtype) if name in unread else reader.get_slice(name)
        with quietly():
            model, info = type(empty).from_pretrained(
                None, config=self.config, state_dict=values, dtype=dtype, attn_implementation="eager",
                output_loading_info=True, ignore_mismatched_sizes=True,
            )  # fmt: skip
        refuse_misfit(model, info, values, role=self.name, path=self.path)
        refuse_non_finite(model, role=self.name, path=self.path, dtype=self.dtype)
        file = next((file for file in files if embedding in read_header(file, role=self.name)), None)
        if file is not None:
            model.get_input_embeddings().forward = partial(_looked_up, _mapped(file, embedding), dtype)
        return model.requires_grad_(False).eval().to(self.device)


def _upper_names(empty: nn.Module, site: Site) -> set[str]:
    """Names of the weights that the residual at a site does not depend on."""
    unneeded = {id(value) for module in _upper_modules(empty, site) for value in module.parameters()}
    return {name for name, value in empty.named_parameters() if id(value) in unneeded}


def _upper_modules(model: Any, site: Site) -> list[nn.Module]:
    """The blocks above a site and the unembedding, as far as they share no weights with the rest."""
    head = model.get_output_embeddings()
    found = [*find_blocks(model)[site.layer + 1 :], *([head] if isinstance(head, nn.Module) else [])]
    inside = {id(part) for module in found for part in module.modules()}
    kept = {id(value) for part in model.modules() if id(part) not in inside for value in part.parameters(recurse=False)}
    return [module for module in found if not any(id(value) in kept for value in module.parameters())]


def _drop_upper(model: Any, site: Site) -> None:
    """Free the weights that the residual at a site does not depend on; a call that reached them would fail."""
    for module in _upper_modules(model, site):
        module.to("meta")


def _embedding_name(empty: Any, device: str) -> str:
    """Name of the embedding's weight where rows of the file are all that it gives; empty where it does more."""
    found = empty.get_input_embeddings()
    plain = type(found) is nn.Embedding and found.max_norm is None and device == "cpu"
    return next((name for name, value in empty.named_parameters() if plain and value is found.weight), "")


def _nothing(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Zeros that take the memory of one."""
    return torch.zeros((), dtype=dtype).expand(shape)


def _mapped(file: Path, name: str) -> Tensor:
    """A tensor whose rows are read from the file when they are used."""
    from safetensors import safe_open

    with safe_open(str(file), framework="pt") as opened:
        return opened.get_tensor(name)


def _looked_up(rows: Tensor, dtype: torch.dtype, ids: Tensor) -> Tensor:
    """Rows of an embedding, each in the dtype that the whole embedding would have."""
    return nn.functional.embedding(ids, rows).to(dtype)
