"""Every causal architecture of transformers: its own checkpoint fits, and one without a tensor does not."""

from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from mechprobe.errors import ModelError
from mechprobe.models.checkpoint import stored_tensors
from mechprobe.models.checkpoint_fit import check_config, check_weights, empty_model, quietly
from tests.zoo import tiny_model

_COMPOSITE = {"emu3", "mllama"}
"""They save the config of their language model, which transformers does not load by itself."""
_ENCODERS = {"xlm"}


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES))
def test_the_checkpoint_of_every_architecture_is_checked(kind: str, tmp_path: Path) -> None:
    try:
        with quietly():
            tiny_model(kind).save_pretrained(tmp_path)
    except Exception as error:  # noqa: BLE001 - transformers cannot build or save it at this size
        pytest.skip(f"{type(error).__name__}")
    config = AutoConfig.from_pretrained(tmp_path)
    if kind in _COMPOSITE | _ENCODERS:
        with pytest.raises(ModelError, match="not a causal language model"):
            check_config(config, role="m", path=tmp_path)
        return
    check_config(config, role="m", path=tmp_path)
    empty, stored = empty_model(config), stored_tensors(tmp_path, role="m")
    assert empty is not None
    assert check_weights(empty, stored, role="m", path=tmp_path) == ()
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    lost = next(name for name in tensors if name.endswith("weight") and tensors[name].ndim == 2)
    save_file({name: value for name, value in tensors.items() if name != lost}, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match="lacks"):
        check_weights(empty, stored_tensors(tmp_path, role="m"), role="m", path=tmp_path)
