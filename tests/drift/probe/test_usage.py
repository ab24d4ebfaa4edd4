"""The use of features: counted on known activations, and nothing beyond its null where both models read alike."""

import numpy as np
import pytest

from mechprobe.data.encoding import PromptEncoder
from mechprobe.data.prompts import Prompt
from mechprobe.dictionary.readout import Readout
from mechprobe.drift.probe.usage import Counts, count_active, density, use_drift
from mechprobe.models.family import ModelFamily
from mechprobe.models.residuals import residuals_plain
from mechprobe.types import Site
from tests.small_dictionaries import make_crosscoder


def test_a_planted_shift_of_use_is_found_and_none_where_there_is_none() -> None:
    rng = np.random.default_rng(0)
    tokens, items = np.full(80, 10.0), np.arange(80)
    rate = rng.random(30) * 0.5
    base = Counts(rng.binomial(10, rate, (80, 30)).astype(np.float32), tokens)
    again = Counts(rng.binomial(10, rate, (80, 30)).astype(np.float32), tokens)
    moved = Counts(rng.binomial(10, np.roll(rate, 1), (80, 30)).astype(np.float32), tokens)
    none, noise, real = (use_drift(each, base, items, np.random.default_rng(1)) for each in (base, again, moved))
    assert none.drift.value == none.drift.high == 0
    assert none.across == pytest.approx(none.split_half, rel=0.2)
    assert noise.drift.low == 0
    assert noise.across == pytest.approx(noise.split_half, rel=0.2)
    truth = np.abs(rate / rate.sum() - np.roll(rate, 1) / rate.sum()).sum() / 2
    assert real.drift.low > 0.5 * truth
    assert real.drift.low <= truth <= real.drift.high
    assert real.across > 2 * real.split_half
    assert density(base, items) == pytest.approx(rate, abs=0.08)


def test_one_prompt_gives_no_halves() -> None:
    counts = Counts(np.ones((1, 3), np.float32), np.array([4.0]))
    found = use_drift(counts, counts, np.arange(1), np.random.default_rng(0))
    assert np.isnan(found.across)


def test_counts_are_those_of_the_read_out_of_each_prompt_alone(llama_family: dict) -> None:
    family = ModelFamily.load(llama_family)
    crosscoder = make_crosscoder(d_model=32, d_sae=24, k=4, variant="batchtopk")
    with_threshold = crosscoder.threshold.fill_(0.4)
    assert with_threshold is crosscoder.threshold
    encoder, site, readout = (
        PromptEncoder.of(family.tokenizers),
        Site.parse("resid_post.1"),
        Readout("swap", ("base", "rl")),
    )
    texts = ["CALC 1+2?", "SIM 7ntnt?", "a"]
    prompts = [encoder.encode(Prompt(str(number), text)) for number, text in enumerate(texts)]
    found = count_active(crosscoder, family, site, prompts, readout)
    assert not any("hf" in model.__dict__ for model in family)  # no whole model is loaded
    import torch

    for number, ids in enumerate(prompts):
        row = torch.tensor([ids])
        x = {model.name: residuals_plain(model, row, torch.ones_like(row), [site])[site][0, 1:] for model in family}
        for name in family.names:
            fired = (readout.feature_acts(crosscoder, x, name) > 0).sum(dim=0).numpy()
            assert np.array_equal(found[name].active[number], fired)
            assert found[name].tokens[number] == len(ids) - 1  # BOS is special
    assert sum(found["base"].active.sum(axis=0) > 0) > 3
