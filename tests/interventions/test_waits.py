"""What an edit adds to the waits of generation for the device: one per call, for the check of finite numbers."""

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from benchmarks.waits import count_waits
from mechprobe.dictionary.readout import Readout
from mechprobe.interventions.hooks.attach import edited
from mechprobe.models.family import ModelFamily
from mechprobe.types import Site
from sae_training import Crosscoder

N_TOKENS = 5
EDITS = [
    ("ablate", "swap", "all"),
    ("clamp:2.0", "joint", "response"),
    ("steer:2.0", "swap", "all:tokens=5"),
    ("project", "swap", "last_prompt_token"),
    ("replace", "swap", "all"),
    ("transplant", "joint", "all"),
    ("transplant", "swap", "prompt"),
]


def prompts(device: str) -> dict[str, torch.Tensor]:
    return {
        "input_ids": torch.tensor([[0, 3, 4, 5], [1, 5, 6, 7]], device=device),
        "attention_mask": torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]], device=device),
    }


def response_waits(model: PreTrainedModel, device: str) -> int:
    """Waits of one response with a KV cache."""
    new, mask = prompts(device).values()
    cache = None
    with count_waits(device) as waits, torch.no_grad():
        for _ in range(N_TOKENS):
            output = model(input_ids=new, attention_mask=mask, past_key_values=cache, use_cache=True)
            cache, new = output.past_key_values, output.logits[:, -1:].argmax(dim=-1)
            mask = torch.cat((mask, mask[:, -1:]), dim=1)
    return len(waits.seen)


def waits_of(family: ModelFamily, crosscoder: Crosscoder, edit: str, readout: str, positions: str, device: str) -> int:
    """Waits of the calls of one response with a KV cache, without those of `transformers.generate` itself."""
    with edited(
        family["base"], crosscoder, [] if edit == "replace" else [1, 5], edit, site=Site(1), siblings=family,
        donor="rl" if edit == "transplant" else None, readout=Readout(readout), positions=positions,  # pyright: ignore[reportArgumentType]
    ) as model:  # fmt: skip
        model(**prompts(device), use_cache=True)
        return response_waits(model, device)


@pytest.mark.parametrize(("edit", "readout", "positions"), EDITS)
def test_an_edit_waits_once_per_call(
    family: ModelFamily, crosscoder: Crosscoder, edit: str, readout: str, positions: str
) -> None:
    n_read = 2 if edit == "transplant" or readout == "joint" else 0
    plain = response_waits(family["base"].hf, "cpu")
    found = waits_of(family, crosscoder, edit, readout, positions, "cpu")
    siblings = n_read * plain  # a sibling runs the same calls
    assert 0 < found <= plain + siblings + N_TOKENS


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("edit", "readout", "positions"), EDITS)
def test_an_edit_on_a_card_waits_once_per_call(
    llama_family: dict[str, Path], crosscoder: Crosscoder, edit: str, readout: str, positions: str
) -> None:
    on_card = ModelFamily.load(llama_family, device="cuda")
    plain = response_waits(on_card["base"].hf, "cuda")
    assert waits_of(on_card, crosscoder.cuda(), edit, readout, positions, "cuda") <= 3 * plain + N_TOKENS
