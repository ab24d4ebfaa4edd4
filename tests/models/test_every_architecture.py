"""Every causal architecture of transformers at tiny size is exact, or is refused by name."""

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from mechprobe.errors import ModelError
from mechprobe.interventions.hooks.rewriting import rewriting
from mechprobe.models.architectures import (
    Behaviour,
    agrees,
    behaviour_of,
    known_behaviour,
    measured,
    require_generation,
    require_residual,
)
from mechprobe.models.blocks import forward_inputs, recording, splice
from mechprobe.models.generation import generate
from mechprobe.types import Site
from tests.builders import build_tokenizer
from tests.zoo import N_VOCAB, WINDOW, tiny_model

UNBUILT = frozenset(
    {
        "blt", "cohere_compass_text", "dbrx", "dots3_note", "dots3_note_text", "fuyu", "gemma3", "gemma3n",
        "gemma3n_text", "gemma4_assistant", "gemma4_unified", "gemma4_unified_assistant", "got_ocr2", "lfm2_moe",
        "moss_transcribe_diarize", "musicgen", "musicgen_melody", "qwen4_exp", "qwen4_exp_text", "zaya",
    }
)  # fmt: skip
"""Types whose config cannot be made tiny; nothing is claimed about them. Gemma 3n is refused by its name."""
ONE_LENGTH, NO_GENERATION, NO_RESIDUAL, NO_SIBLINGS = "one length", "no generation", "no residual", "no siblings"
OTHER: dict[str, frozenset[str]] = {
    **dict.fromkeys(
        (
            "bart", "bigbird_pegasus", "blenderbot", "blenderbot-small", "git", "marian", "mbart", "mvp",
            "pegasus", "plbart", "recurrent_gemma", "roformer", "trocr", "whisper",
        ),
        frozenset({ONE_LENGTH}),
    ),
    **dict.fromkeys(
        (
            "camembert", "data2vec-text", "moshi", "roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl",
            "xlstm",
        ),
        frozenset({NO_GENERATION}),
    ),
    **dict.fromkeys(("cpmant", "prophetnet", "xlm", "xlnet", "xmod"), frozenset({NO_GENERATION, NO_RESIDUAL})),
    **dict.fromkeys(("hrm_text", "hy_v4", "longcat_flash", "mllama"), frozenset({NO_RESIDUAL})),
    **dict.fromkeys(("falcon_mamba", "mamba", "mamba2", "minimax"), frozenset({NO_SIBLINGS})),
    "deepseek_v4": frozenset({ONE_LENGTH, NO_RESIDUAL}),
    "reformer": frozenset({ONE_LENGTH, NO_RESIDUAL}),
    "rwkv": frozenset({ONE_LENGTH, NO_SIBLINGS}),
}  # fmt: skip
"""What is not exact without a condition. ``one length``: padding on the left changes the logits, so only prompts of one
length share a batch. The others are refused by name: generation, reading and editing residuals, or edits that read siblings."""
SITE = Site(1)


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES))
def test_architecture_is_exact_or_refused(kind: str) -> None:
    try:
        model = tiny_model(kind)
    except Exception:  # noqa: BLE001 - configs raise many unrelated types
        assert kind in UNBUILT, "no tiny config"
        return
    assert kind not in UNBUILT
    found = measured(model)
    known = known_behaviour(model.config)
    assert known is None or known == found
    limits = {ONE_LENGTH: not found.padding, NO_GENERATION: bool(found.generation), NO_RESIDUAL: bool(found.residual)}
    text = ", ".join(name for name, holds in limits.items() if holds)
    print(f"{kind}: {text or 'exact'}")  # noqa: T201 - the table of `pytest -s`
    assert {name for name, holds in limits.items() if holds} == OTHER.get(kind, frozenset()) - frozenset({NO_SIBLINGS})
    if found.generation:
        with pytest.raises(ModelError, match=f"Model m: the architecture {model.config.model_type} .*not supported"):
            require_generation(model, "m")
    else:
        check_generation(model, found)
    if found.residual:
        with pytest.raises(ModelError, match=f"Model m: the architecture {model.config.model_type} .*not supported"):
            require_residual(model, "m")
        return
    check_residual(model)
    if not found.generation:
        check_edits(kind, model, found)


def check_generation(model: PreTrainedModel, found: Behaviour) -> None:
    """A batch gives the tokens of single prompts, beyond a sliding window."""
    assert behaviour_of(model) == found
    prompts = [[5, 9, 20, 30, 31, 32, 17, 9, 14, 15, 66, 13], [7, 8], [8, 40, 41, 7, 9]]
    options = {"max_new_tokens": WINDOW + 2, "end_ids": []}
    together = generate(model, build_tokenizer(), prompts, **options)
    assert together == [generate(model, build_tokenizer(), [prompt], **options)[0] for prompt in prompts]


def rows_of(found: Behaviour) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    lengths = (2 * WINDOW + 3, 6) if found.padding else (2 * WINDOW + 3,)
    return [torch.randint(4, N_VOCAB, (length,), generator=generator) for length in lengths]


def check_residual(model: PreTrainedModel) -> None:
    """The reader records what transformers itself reports after the block."""
    ids = torch.arange(4, 24)[None]
    inputs = forward_inputs(model, torch.ones_like(ids))
    with torch.no_grad():
        with recording(model, [SITE]) as resid:
            model(input_ids=ids, **inputs)
        reported = getattr(model(input_ids=ids, **inputs, output_hidden_states=True), "hidden_states", None)
    if reported:
        assert any(torch.equal(resid[SITE], state) for state in reported)


def check_edits(kind: str, model: PreTrainedModel, found: Behaviour) -> None:
    """An edit in generation is the same edit in forward calls without padding and cache; one that keeps all changes nothing."""
    rows = rows_of(found)
    ids = rows[0][None]
    inputs = forward_inputs(model, torch.ones_like(ids))
    with torch.no_grad():
        clean = model(input_ids=ids, **inputs).logits
        with rewriting(model, SITE, lambda x: x["a"] * 1.0, host_name="a"):
            assert torch.equal(model(input_ids=ids, **inputs).logits, clean)
            assert agrees(model, rows)
        with splice(model, SITE, lambda resid: resid.flip(-1)):
            assert not torch.allclose(model(input_ids=ids, **inputs).logits, clean, atol=1e-4)
            assert agrees(model, rows)
        siblings = {"b": tiny_model(kind, seed=1)}
        try:
            with rewriting(model, SITE, lambda x: (x["a"] + x["b"]) / 2, host_name="a", siblings=siblings):
                assert agrees(model, rows)
        except ModelError:
            assert NO_SIBLINGS in OTHER[kind]
        else:
            assert NO_SIBLINGS not in OTHER.get(kind, frozenset())
