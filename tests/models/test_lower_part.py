"""A model up to a site has the residuals of the whole model, and little else of it in memory."""

from pathlib import Path
from typing import Any

import pytest
import torch

from mechprobe.models.blocks import find_blocks
from mechprobe.models.family import ModelFamily
from mechprobe.models.load import LanguageModel
from mechprobe.models.lower_part import LowerModel
from mechprobe.models.one_by_one import OneWhole
from mechprobe.models.residuals import residuals_plain
from mechprobe.types import Site
from tests.models.test_head import KINDS, saved

SITE = Site(0)


def real_bytes(model: LanguageModel) -> int:
    """Bytes behind the weights of a loaded model."""
    stores = {
        p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in model.hf.parameters() if not p.is_meta
    }
    return sum(stores.values())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", KINDS)
def test_residuals_are_those_of_the_whole_model(kind: str, dtype: str, tmp_path: Path) -> None:
    path = saved(kind, tmp_path / kind).path
    whole = LanguageModel(kind, path, dtype=dtype)
    lower = LowerModel(whole, SITE)
    ids, mask = torch.tensor([[1, 20, 30, 40], [5, 60, 70, 80]]), torch.tensor([[1, 1, 1, 1], [0, 1, 1, 1]])
    expected, found = (residuals_plain(model, ids, mask, [SITE])[SITE] for model in (whole, lower))
    assert found.dtype == expected.dtype
    assert torch.equal(found, expected)
    assert all(value.is_meta for value in find_blocks(lower.hf)[1].parameters())
    assert lower.dtype == whole.dtype == str(lower.hf.dtype).removeprefix("torch.")
    assert real_bytes(lower) < 0.75 * real_bytes(whole)


def test_rows_of_a_plain_embedding_stay_in_their_file(tmp_path: Path) -> None:
    lower = LowerModel(saved("llama", tmp_path / "llama"), SITE)
    embedding: Any = lower.hf.get_input_embeddings()
    weight = embedding.weight
    assert weight.untyped_storage().nbytes() == weight.element_size(), "one zero stands for all"


def test_one_model_is_whole_at_a_time(llama_family: dict[str, Path]) -> None:
    family = ModelFamily.load(llama_family)
    models = OneWhole(family, SITE)
    host = models.whole("rl")
    assert models["rl"] is host is family["rl"], "before its weights are loaded, the whole model is chosen"
    _ = host.hf, models["base"].hf
    assert isinstance(models["base"], LowerModel)
    assert models["rl"] is host
    _ = models.whole("base").hf
    assert [model.name for model in family if "hf" in model.__dict__] == ["base"]
    models.release()
    assert not any("hf" in model.__dict__ for model in family)
    _ = family["sft"].hf
    _ = models.whole("rl").hf
    models.release()
    assert [model.name for model in family if "hf" in model.__dict__] == ["sft"], "it was loaded before"
    with pytest.raises(KeyError):
        _ = models["other"]
