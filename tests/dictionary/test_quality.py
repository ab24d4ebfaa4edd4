"""Quality against its definitions, the gate, and the spliced loss on tiny models."""

from pathlib import Path

import pytest
import torch

from mechprobe.dictionary.config import QualityGate
from mechprobe.dictionary.quality import measure_quality
from mechprobe.dictionary.readout import Readout
from mechprobe.dictionary.splicing import TokenizedSample, spliced_losses
from mechprobe.errors import StoreError
from mechprobe.features.config import FeaturesConfig
from mechprobe.models.family import ModelFamily
from mechprobe.types import Site
from sae_training import Crosscoder, CrosscoderConfig
from tests.small_dictionaries import NAMES, MemoryStore, make_crosscoder


def perfect(names: tuple[str, ...] = NAMES, d_model: int = 4) -> Crosscoder:
    """A crosscoder that reconstructs everything, with two features per axis and model, one for each sign."""
    d_all = len(names) * d_model
    config = CrosscoderConfig(n_models=len(names), d_model=d_model, d_sae=2 * d_all, variant="l1", model_names=names)
    crosscoder = Crosscoder(config)
    axes = torch.cat([torch.eye(d_all), -torch.eye(d_all)])
    with torch.no_grad():
        crosscoder.encoder.copy_(axes)
        crosscoder.decoder.copy_(axes)
    crosscoder.set_scale([1.0] * len(names))
    return crosscoder


def test_numbers_equal_the_definitions(crosscoder: Crosscoder, store: MemoryStore) -> None:
    quality = measure_quality(crosscoder, lambda: store.x.split(33))
    x = store.x.double()
    error = (x - crosscoder(store.x).detach().double()).square().sum(-1)
    variance = (x - x.mean(0)).square().sum(-1)
    for index, name in enumerate(NAMES):
        found = quality.models[name]
        assert found.fve == pytest.approx(1 - float(error[:, index].sum() / variance[:, index].sum()), rel=1e-6)
        assert found.fve_per_token == pytest.approx(float((1 - error / variance)[:, index].mean()), rel=1e-6)
        acts = Readout().feature_acts(crosscoder, store.x, name)
        assert found.l0 == pytest.approx(float((acts > 0).sum(1).double().mean()))
        left = (x[:, index] - crosscoder.decode_model(acts, name).detach().double()).square().sum()
        assert found.fve_readout == pytest.approx(1 - float(left / variance[:, index].sum()), rel=1e-6)
        assert found.dead_frac == pytest.approx(float((~(acts > 0).any(0)).double().mean()))
    joint = crosscoder.encode(store.x)
    assert quality.l0 == pytest.approx(float((joint > 0).sum(1).double().mean()))
    assert quality.n_rows == 200


def test_a_perfect_crosscoder_passes(store: MemoryStore) -> None:
    quality = measure_quality(perfect(d_model=8), lambda: [store.x], gate=QualityGate())
    assert quality.trusted
    assert all(model.fve == pytest.approx(1.0) for model in quality.models.values())


def test_the_gate_names_every_threshold_missed(crosscoder: Crosscoder, store: MemoryStore) -> None:
    quality = measure_quality(crosscoder, lambda: [store.x], gate=QualityGate(max_dead_share=1.0))
    assert not quality.trusted
    assert len(quality.failures) == 3
    assert quality.failures[1].startswith("FVE of sft by the swap read-out is")
    assert quality.failures[1].endswith("below 0.90.")
    assert quality.to_dict()["trusted"] is False


def test_the_gate_looks_at_the_readout_that_edits_use() -> None:
    """A crosscoder that reads only rl's slot is exact under swap, and inexact for base under the joint read-out."""
    crosscoder, x = perfect(d_model=8), torch.randn(200, 3, 8, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        crosscoder.encoder[:, :8] = crosscoder.encoder[:, 8:16] = 0.0  # only rl's slot is read
        crosscoder.decoder.copy_(crosscoder.encoder)
        crosscoder.decoder[:, :16] = crosscoder.encoder[:, 16:].repeat(1, 2)
    x[:, :2] = x[:, 2:] + torch.randn(200, 2, 8, generator=torch.Generator().manual_seed(3)) * 0.1
    swap, joint = (
        measure_quality(crosscoder, lambda: [x], readout=Readout(mode), gate=QualityGate(max_dead_share=1.0))
        for mode in ("swap", "joint")
    )
    assert swap.models["base"].fve == joint.models["base"].fve == joint.models["base"].fve_readout
    assert swap.models["base"].fve_readout == pytest.approx(1.0)  # base is reconstructed from its own residual
    assert joint.models["base"].fve_readout < 0.995
    single = measure_quality(crosscoder, lambda: [x], readout=Readout("single"), gate=QualityGate(max_dead_share=1.0))
    assert not single.trusted  # no feature reads the slot of base
    assert single.models["base"].fve == joint.models["base"].fve
    assert single.failures[0].startswith("FVE of base by the single read-out is")


def test_a_dictionary_that_is_mostly_idle_is_not_trusted(store: MemoryStore) -> None:
    crosscoder = perfect(d_model=8)
    with torch.no_grad():
        crosscoder.b_enc[:30] = -1e6
    quality = measure_quality(crosscoder, lambda: [store.x], gate=QualityGate(min_fve=-10.0))
    assert quality.dead_frac > 0.5
    assert len(quality.failures) == 1
    assert f"{quality.dead_frac:.1%}" in quality.failures[0]
    assert "50%" in quality.failures[0]


def test_nothing_held_out_is_one_sentence(crosscoder: Crosscoder) -> None:
    with pytest.raises(StoreError, match="held-out"):
        measure_quality(crosscoder, list)


SAMPLES = [
    TokenizedSample((1, 20, 21, 22, 30, 31), (False, True, True, True, True, True), (False,) * 4 + (True,) * 2),
    TokenizedSample((1, 40, 41, 42, 43), (False, True, True, True, True), (False,) * 3 + (True,) * 2),
]


@pytest.fixture
def family(llama_family: dict[str, Path]) -> ModelFamily:
    return ModelFamily.load({name: str(path) for name, path in llama_family.items()})


def naive_ce(family: ModelFamily, name: str) -> float:
    """Next-token loss on response tokens, one sample at a time, without padding."""
    total, n = 0.0, 0
    for sample in SAMPLES:
        log_probs = family[name].hf(input_ids=torch.tensor([sample.ids])).logits[0].double().log_softmax(-1)
        for position in range(len(sample.ids) - 1):
            if sample.response[position + 1]:
                total -= float(log_probs[position, sample.ids[position + 1]])
                n += 1
    return total / n


def test_a_perfect_reconstruction_recovers_everything(family: ModelFamily) -> None:
    losses = spliced_losses(perfect(d_model=32), family, Site.parse("resid_post.1"), SAMPLES, batch_size=2)
    for name, loss in losses.items():
        assert loss.n_predictions == 4
        assert loss.targets == "response"
        assert loss.ce_clean == pytest.approx(naive_ce(family, name), rel=1e-5)
        assert loss.ce_spliced == pytest.approx(loss.ce_clean, rel=1e-5)
        assert loss.ce_recovered == pytest.approx(1.0, abs=1e-4)
        assert loss.kl_spliced == pytest.approx(0.0, abs=1e-6)
        assert loss.kl_zero > 0.01


def test_a_crosscoder_that_says_zero_recovers_nothing(family: ModelFamily) -> None:
    crosscoder = perfect(d_model=32)
    with torch.no_grad():
        crosscoder.decoder.zero_()
    losses = spliced_losses(crosscoder, family, Site.parse("resid_post.2"), SAMPLES, batch_size=1)
    for loss in losses.values():
        assert loss.ce_spliced == pytest.approx(loss.ce_zero)
        assert loss.ce_recovered == pytest.approx(0.0, abs=1e-9)


def test_batching_changes_no_number(family: ModelFamily) -> None:
    crosscoder = make_crosscoder(d_model=32, d_sae=24)
    one, two = (
        spliced_losses(crosscoder, family, Site.parse("resid_post.0"), SAMPLES, batch_size=size) for size in (1, 2)
    )
    for name in NAMES:
        assert one[name].ce_spliced == pytest.approx(two[name].ce_spliced, rel=1e-4)
        assert one[name].kl_spliced == pytest.approx(two[name].kl_spliced, rel=1e-3)


def test_the_hooks_are_gone_afterwards(family: ModelFamily) -> None:
    ids = torch.tensor([SAMPLES[0].ids])
    before = family["rl"].hf(input_ids=ids).logits
    spliced_losses(make_crosscoder(d_model=32, d_sae=24), family, Site.parse("resid_post.0"), SAMPLES)
    assert torch.equal(family["rl"].hf(input_ids=ids).logits, before)


def test_defaults_of_the_gate() -> None:
    assert FeaturesConfig().gate.min_fve == 0.90
