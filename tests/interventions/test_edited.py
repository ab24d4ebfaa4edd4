"""Edits in force: exact no-ops, whole transplants, padding, the KV cache, and removal of all hooks."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mechprobe.dictionary.readout import FoldedEncoder, Readout
from mechprobe.errors import ConfigError, InputError, ModelError, SelectionError, SiteError
from mechprobe.interventions.edits.edit import Edit
from mechprobe.interventions.edits.edit_functions import build_rewrite
from mechprobe.interventions.hooks.attach import edited
from mechprobe.interventions.hooks.rewriting import rewriting
from mechprobe.localization.ceilings import patched_outcomes
from mechprobe.models.blocks import position_ids
from mechprobe.models.family import ModelFamily
from mechprobe.models.generation import generate, left_pad
from mechprobe.models.residuals import residuals_plain
from mechprobe.types import Site
from sae_training import Crosscoder, CrosscoderConfig

SITE = Site(1)
PROMPTS = ["Ab1+2=", "x", "longer prompt here?", "9", "zz top"]
SOME = [0, 3, 7, 11, 20, 33, 40]
EDITS = ["ablate", "clamp:3.0", "scale:0.5", "transplant", "steer:2.0", "replace", "project"]


def batch(family: ModelFamily, prompts: Sequence[str] = PROMPTS) -> tuple[Tensor, Tensor]:
    tokenizer = family.tokenizer
    return left_pad([tokenizer(text).input_ids for text in prompts], tokenizer.pad_token_id, "cpu")


def logits(model: torch.nn.Module, ids: Tensor, mask: Tensor) -> Tensor:
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=mask, position_ids=position_ids(mask)).logits


def options(edit: str, family: ModelFamily) -> dict[str, object]:
    return {"site": SITE, "siblings": family, "donor": "rl" if edit == "transplant" else None}


def hooks_on(family: ModelFamily) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for model in family for m in model.hf.modules())


@pytest.mark.parametrize("edit", [e for e in EDITS if e != "replace"])
def test_empty_set_is_bit_exact_in_forward_and_generation(
    family: ModelFamily, crosscoder: Crosscoder, edit: str
) -> None:
    base = family["base"]
    ids, mask = batch(family)
    before = logits(base.hf, ids, mask)
    texts = generate(base.hf, base.tokenizer, PROMPTS, max_new_tokens=8)
    sampled = generate(base.hf, base.tokenizer, PROMPTS, max_new_tokens=8, temperature=1.0, seed=3)
    with edited(base, crosscoder, [], edit, **options(edit, family)):
        assert torch.equal(logits(base.hf, ids, mask), before)
        assert generate(base.hf, base.tokenizer, PROMPTS, max_new_tokens=8) == texts
        assert generate(base.hf, base.tokenizer, PROMPTS, max_new_tokens=8, temperature=1.0, seed=3) == sampled


@pytest.mark.parametrize("edit", EDITS)
def test_edit_acts_and_undoes(family: ModelFamily, crosscoder: Crosscoder, edit: str) -> None:
    base = family["base"]
    ids, mask = batch(family)
    before = logits(base.hf, ids, mask)
    with edited(base, crosscoder, SOME, edit, **options(edit, family)):
        changed = logits(base.hf, ids, mask)
    assert not torch.allclose(changed[:, -1], before[:, -1], atol=1e-4)
    assert torch.equal(logits(base.hf, ids, mask), before)


@pytest.mark.parametrize("edit", ["ablate", "transplant"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, GeneratorExit])
def test_hooks_are_removed_however_the_block_ends(
    family: ModelFamily, crosscoder: Crosscoder, edit: str, error: type[BaseException]
) -> None:
    def stream() -> Iterator[int]:
        with edited(family["base"], crosscoder, SOME, edit, **options(edit, family)):
            yield hooks_on(family)

    running = stream()
    assert next(running) >= 3
    if error is GeneratorExit:
        running.close()
    else:
        with pytest.raises(error):
            running.throw(error())
    assert hooks_on(family) == 0


@pytest.mark.parametrize("error", [KeyboardInterrupt, ModelError])
def test_hooks_are_removed_when_a_forward_call_fails(family: ModelFamily, error: type[BaseException]) -> None:
    base, rl = family["base"].hf, family["rl"].hf

    def rewrite(x: Mapping[str, Tensor]) -> Tensor:
        raise error

    ids, mask = batch(family)
    before = logits(base, ids, mask)
    with pytest.raises(error), rewriting(base, SITE, rewrite, host_name="base", siblings={"rl": rl}):
        logits(base, ids, mask)
    assert hooks_on(family) == 0
    assert torch.equal(logits(base, ids, mask), before)


@pytest.mark.parametrize("edit", EDITS)
def test_batched_with_padding_equals_one_by_one(family: ModelFamily, crosscoder: Crosscoder, edit: str) -> None:
    base = family["base"]
    with edited(base, crosscoder, SOME, edit, **options(edit, family)):
        together = logits(base.hf, *batch(family))[:, -1]
        alone = torch.cat([logits(base.hf, *batch(family, [prompt]))[:, -1] for prompt in PROMPTS])
        texts = generate(base.hf, base.tokenizer, PROMPTS, max_new_tokens=10)
        single = [generate(base.hf, base.tokenizer, [prompt], max_new_tokens=10)[0] for prompt in PROMPTS]
    assert torch.allclose(together, alone, atol=1e-5, rtol=1e-5)
    assert texts == single


@pytest.mark.parametrize("edit", EDITS)
def test_kv_cache_equals_no_cache(family: ModelFamily, crosscoder: Crosscoder, edit: str) -> None:
    base = family["base"]
    ids = torch.tensor([base.tokenizer(PROMPTS[0]).input_ids])
    settings = {"max_new_tokens": 10, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    with edited(base, crosscoder, SOME, edit, **options(edit, family)):
        cached = base.hf.generate(ids, use_cache=True, **settings)
        fresh = base.hf.generate(ids, use_cache=False, **settings)
    assert torch.equal(cached, fresh)


def test_transplanting_everything_plus_the_error_is_the_donors_residual(
    family: ModelFamily, crosscoder: Crosscoder
) -> None:
    ids, mask = batch(family)
    x = {model.name: residuals_plain(model, ids, mask, [SITE])[SITE] for model in family}
    readout = Readout("joint")
    rewrite = build_rewrite(
        crosscoder, range(crosscoder.d_sae), Edit("transplant"), host="base", donor="rl", readout=readout
    )
    acts = readout.feature_acts(crosscoder, x, "base").reshape(-1, crosscoder.d_sae)
    error = {name: x[name] - crosscoder.decode_model(acts, name).reshape(x[name].shape) for name in ("base", "rl")}
    biases = {name: crosscoder.decode_model(torch.zeros_like(acts), name).reshape(x[name].shape) for name in error}
    whole = rewrite(x) + (error["rl"] - error["base"]) + (biases["rl"] - biases["base"])
    assert torch.allclose(whole, x["rl"], atol=1e-5)


def test_transplanting_everything_plus_the_error_generates_as_the_whole_residual_does(
    family: ModelFamily, crosscoder: Crosscoder
) -> None:
    """In the running model, at every step of a generation with a KV cache."""
    base, rl = family["base"].hf, family["rl"].hf
    everything = build_rewrite(
        crosscoder, range(48), Edit("transplant"), host="base", donor="rl", readout=Readout("joint")
    )

    def unexplained(x: Mapping[str, Tensor], model: str) -> Tensor:
        """The part of the residual that features do not explain: reconstruction error and bias."""
        acts = Readout("joint").feature_acts(crosscoder, x, model)
        return x[model] - acts @ crosscoder.own_decoder(model)

    def whole(x: Mapping[str, Tensor]) -> Tensor:
        return everything(x) + unexplained(x, "rl") - unexplained(x, "base")

    ids, mask = batch(family)
    settings = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    recorded = settings | {"output_logits": True, "return_dict_in_generate": True, "attention_mask": mask}
    siblings = {name: family[name].hf for name in ("sft", "rl")}
    with rewriting(base, SITE, whole, host_name="base", siblings=siblings):
        found = base.generate(ids, **recorded)
    with rewriting(base, SITE, lambda x: x["rl"], host_name="base", siblings={"rl": rl}):
        expected = base.generate(ids, **recorded)
    assert torch.equal(found.sequences, expected.sequences)
    assert torch.allclose(torch.stack(found.logits), torch.stack(expected.logits), atol=1e-5)


@pytest.mark.parametrize("mode", ["swap", "joint", "single"])
@pytest.mark.parametrize("variant", ["batchtopk", "jumprelu", "l1", "topk"])
def test_reading_some_features_equals_encoding_all(variant: str, mode: str) -> None:
    """The reader sums the weights of shared slots and encodes a subset; the read-out stacks the slots and encodes all features."""
    config = CrosscoderConfig(
        n_models=3, d_model=8, d_sae=24, k=5, variant=variant, model_names=("base", "sft", "rl"), seed=4
    )
    crosscoder = Crosscoder(config)
    crosscoder.set_scale([1.0, 2.0, 0.5])
    with torch.no_grad():
        crosscoder.b_enc.add_(0.1 * torch.randn(24, generator=torch.Generator().manual_seed(1)))
        crosscoder.threshold.fill_(0.3)
    generator = torch.Generator().manual_seed(0)
    x = {name: torch.randn(5, 10, 8, generator=generator) for name in ("base", "sft", "rl")}
    ids = torch.tensor([20, 1, 5, 6])
    for near in (None, ("base", "rl")):
        readout = Readout(mode, near)  # type: ignore[arg-type]
        for model in x:
            reader = FoldedEncoder(crosscoder, readout, model, ids)
            expected = readout.feature_acts(crosscoder, x, model)[..., ids]
            assert (expected > 0).any()
            assert torch.allclose(reader(x).reshape(5, 10, 4), expected, atol=1e-6)
            needed = {name: x[name] for name in reader.sources}
            assert torch.equal(reader(needed), reader(x))
            for name in needed:
                with pytest.raises(InputError, match=f"'{name}'"):
                    reader({other: resid for other, resid in needed.items() if other != name})


@pytest.mark.parametrize("edit", EDITS)
def test_nothing_is_prepared_again_in_a_call(
    family: ModelFamily, crosscoder: Crosscoder, edit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything that depends only on the dictionary is computed on entry."""

    def refuse(*_args: object, **_kwargs: object) -> None:
        raise AssertionError("the dictionary was read again")

    ids, mask = batch(family)
    with edited(family["base"], crosscoder, SOME, edit, **options(edit, family)):
        expected = logits(family["base"].hf, ids, mask)
        for name in ("encode", "feature_norm", "column_scale", "columns", "decode_model"):
            monkeypatch.setattr(Crosscoder, name, refuse)
        assert torch.equal(logits(family["base"].hf, ids, mask), expected)


def test_delta_edits_by_hand(family: ModelFamily, crosscoder: Crosscoder) -> None:
    """r' − r = s_h Σ (f' − f) W_dec, written out with the full encoder and one feature at a time."""
    ids, mask = batch(family)
    x = {model.name: residuals_plain(model, ids, mask, [SITE])[SITE] for model in family}
    acts = Readout("swap").feature_acts(crosscoder, x, "rl")
    for text, new in (
        ("ablate", lambda f: 0 * f),
        ("clamp:3.0", lambda f: 0 * f + 3),
        ("scale:-1.5", lambda f: -1.5 * f),
    ):
        expected = x["rl"].clone()
        for k in SOME:
            step = (new(acts[..., k]) - acts[..., k])[..., None]
            expected += step * crosscoder.scale[2] * crosscoder.W_dec[k, 2].detach()
        rewrite = build_rewrite(crosscoder, SOME, Edit.parse(text), host="rl", donor=None, readout=Readout("swap"))
        assert torch.allclose(rewrite(x), expected, atol=1e-5)


def test_project_removes_the_directions_and_nothing_else(family: ModelFamily, crosscoder: Crosscoder) -> None:
    x = {"rl": torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(1))}
    rewrite = build_rewrite(crosscoder, SOME, Edit("project"), host="rl", donor=None, readout=Readout("swap"))
    after = rewrite(x)
    directions = crosscoder.W_dec[SOME, 2].detach()
    assert (after @ directions.T).abs().max() < 1e-4
    assert torch.allclose(rewrite({"rl": after}), after, atol=1e-5)
    assert torch.linalg.matrix_rank((x["rl"] - after).reshape(-1, 32), atol=1e-4) <= len(SOME)


@pytest.mark.parametrize("positions", ["prompt", "response"])
def test_positions(family: ModelFamily, crosscoder: Crosscoder, positions: str) -> None:
    base = family["base"]
    calls: list[tuple[int, bool]] = []

    def rewrite(x: dict[str, Tensor]) -> Tensor:
        calls.append((x["base"].shape[1], True))
        return x["base"]

    with rewriting(base.hf, SITE, rewrite, host_name="base", positions=positions):  # type: ignore[arg-type]
        generate(base.hf, base.tokenizer, ["abc"], max_new_tokens=4)
    widths = [width for width, _ in calls]
    assert widths == [4] if positions == "prompt" else widths == [1] * len(widths)
    assert widths


@pytest.mark.parametrize("architecture", ["llama_family", "qwen3_family", "neox_family"])
def test_patching_equals_a_model_grafted_from_both(architecture: str, request: pytest.FixtureRequest) -> None:
    """base with rl's residual after block l equals rl's embedding and blocks up to l, followed by base's blocks and head."""
    family = ModelFamily.load(request.getfixturevalue(architecture))
    base, rl = family["base"].hf, family["rl"].hf
    ids, mask = batch(family)
    for layer in range(family.n_layers):
        state = {name: value.clone() for name, value in base.state_dict().items()}
        for name, value in rl.state_dict().items():
            block = next((int(part) for part in name.split(".") if part.isdigit()), None)
            if ("embed" in name and "embed_out" not in name) or (block is not None and block <= layer):
                state[name] = value.clone()
        from transformers import AutoModelForCausalLM

        graft = AutoModelForCausalLM.from_config(base.config, attn_implementation="eager").eval()
        graft.load_state_dict(state)
        with rewriting(base, Site(layer), lambda x: x["rl"], host_name="base", siblings={"rl": rl}):
            patched = logits(base, ids, mask)
        assert torch.allclose(patched[mask.bool()], logits(graft, ids, mask)[mask.bool()], atol=1e-5)


def test_patching_with_itself_changes_nothing(family: ModelFamily) -> None:
    from mechprobe.evals.answering import run_tasks
    from mechprobe.evals.scorers.parse import scorer
    from mechprobe.evals.tasks import Task
    from mechprobe.records import Sample

    task = Task("t", tuple(Sample(str(i), "t", p, "x") for i, p in enumerate(PROMPTS)), scorer("exact"), 8)
    twin = ModelFamily.load({"base": family["base"].path, "twin": family["base"].path})
    clean = [o.response for o in run_tasks(twin["base"], [task])]
    assert [o.response for o in patched_outcomes(twin["base"], twin["twin"], SITE, [task])] == clean


def test_a_bridge_can_be_edited(family: ModelFamily, crosscoder: Crosscoder) -> None:
    base = family["base"]
    ids, mask = batch(family)
    with edited(base, crosscoder, SOME, "ablate", site=SITE):
        expected = logits(base.hf, ids, mask)
    with edited(base.bridge, crosscoder, SOME, "ablate", site=SITE, host="base") as module:
        got = logits(module, ids, mask)
        through_bridge = base.bridge(ids, attention_mask=mask, position_ids=position_ids(mask))
    assert torch.equal(got, expected)
    assert torch.equal(through_bridge, expected)


def test_mistakes_name_what_is_wrong(
    family: ModelFamily, crosscoder: Crosscoder, llama_family: dict[str, Path]
) -> None:
    base = family["base"]
    cases: list[tuple[type[Exception], str, dict[str, object]]] = [
        (SelectionError, "features 0 to 47", {"selection": [48], "site": SITE}),
        (SelectionError, "features 0 to 47", {"selection": [-1], "site": SITE}),
        (SelectionError, "Feature 1 .*twice", {"selection": [1, 1], "site": SITE}),
        (SiteError, r"resid_post\.0 to resid_post\.2", {"selection": [1], "site": "resid_post.3"}),
        (SiteError, "mlp.3", {"selection": [1], "site": "mlp.3"}),
        (ConfigError, "site=", {"selection": [1]}),
        (ConfigError, "'delete'", {"selection": [1], "site": SITE, "edit": "delete"}),
        (ConfigError, "clamp:<number>", {"selection": [1], "site": SITE, "edit": "clamp"}),
        (ConfigError, "'nan'", {"selection": [1], "site": SITE, "edit": "clamp:nan"}),
        (ConfigError, "ablate:3", {"selection": [1], "site": SITE, "edit": "ablate:3"}),
        (ConfigError, "donor", {"selection": [1], "site": SITE, "edit": "transplant"}),
        (ConfigError, "from base into base", {"selection": [1], "site": SITE, "edit": "transplant", "donor": "base"}),
        (ModelError, "'rl'.*siblings", {"selection": [1], "site": SITE, "edit": "transplant", "donor": "rl"}),
    ]
    for kind, message, arguments in cases:
        with pytest.raises(kind, match=message), edited(base, crosscoder, **arguments):
            pass
