"""Feature tables over an arm: planted courses found by a trained dictionary, and identical checkpoints."""

from dataclasses import replace

import numpy as np
import torch

from mechprobe.emergence.arms import Arm
from mechprobe.emergence.claim import judge
from mechprobe.emergence.config import EmergenceConfig
from mechprobe.emergence.curves import measure_curves
from mechprobe.emergence.table import arm_numbers, feature_frame
from mechprobe.emergence.trajectories import NO_ONSET
from mechprobe.features.config import FeaturesConfig
from mechprobe.features.table.feature_table import feature_table
from sae_training import Crosscoder, CrosscoderConfig, PlantedConfig, PlantedFeatures, TrainConfig, recovery, train
from sae_training.reconstruction import evaluate
from tests.small_dictionaries import make_crosscoder, make_store

NAMES = ("base", "rl@step_000001", "rl@step_000002", "rl@step_000003", "rl@step_000004", "rl")
ARM = Arm("rl", NAMES[1:], tuple(np.linspace(0, 1, 6).tolist()), "steps")


def planted(seed: int = 0) -> tuple[PlantedFeatures, list[str], list[int]]:
    """Six models: steady features, and features that emerge, fade or are transient from every checkpoint on."""
    truth = PlantedFeatures.make(
        PlantedConfig(n_models=6, n_shared=44, n_specific=0, d_model=48, density=0.06, seed=seed)
    )
    strength, kind, onset = truth.strength.clone(), ["steady"] * 44, [NO_ONSET] * 44
    columns = torch.arange(6)
    for place in range(30):
        begins = place % 5 + 1
        if place < 10:
            kind[place], strength[place] = "emerging", (columns >= begins).float()
        elif place < 20:
            kind[place], strength[place] = "fading", (columns < begins).float()
        elif begins < 4:
            kind[place], strength[place] = "transient", ((columns >= begins) & (columns < begins + 2)).float()
        if kind[place] != "steady":
            onset[place] = begins
    return replace(truth, strength=strength), kind, onset


def test_planted_courses_are_found_by_a_trained_dictionary() -> None:
    truth, kind, onset = planted()
    config = CrosscoderConfig(n_models=6, d_model=48, d_sae=64, k=4, model_names=NAMES)
    crosscoder = Crosscoder(config)
    train(
        crosscoder, truth.batches(512, seed=1), TrainConfig(n_tokens=700 * 512, batch_size=512, lr=1e-2, log_every=700)
    )
    density = evaluate(crosscoder, truth.batches(512, seed=2, n_batches=8)).density
    match = recovery(crosscoder, truth, density)
    assert float((match.cosine > 0.95).float().mean()) >= 0.98
    store = make_store(truth.tokens(2000, seed=3), NAMES)
    frame = feature_frame(feature_table(crosscoder, store, FeaturesConfig(readout="joint")), ARM, EmergenceConfig())
    found = frame.iloc[match.match.tolist()]
    for name in ("emerging", "fading", "transient", "steady"):
        said = np.array(found["kind"].tolist()) == name
        true = np.array(kind) == name
        assert (said & true).sum() / true.sum() >= 0.98, name
        assert (said & true).sum() / said.sum() >= 0.98, name
    places = [NAMES.index(name) if isinstance(name, str) else NO_ONSET for name in found["onset"]]
    assert max(abs(a - b) for a, b in zip(places, onset, strict=True)) <= 1
    assert np.mean([a == b for a, b in zip(places, onset, strict=True)]) >= 0.98
    base_lacks = np.array([k == "emerging" for k in kind])
    assert found["confirmed_rl"].to_numpy()[base_lacks].all()  # latent scaling agrees that base lacks them


def test_identical_checkpoints_show_nothing() -> None:
    crosscoder = make_crosscoder(names=NAMES)
    with torch.no_grad():
        crosscoder.decoder.copy_(crosscoder.decoder[:, :8].repeat(1, 6))
    crosscoder.set_scale([0.7] * 6)
    x = torch.randn(300, 1, 8, generator=torch.Generator().manual_seed(3)).expand(-1, 6, -1).contiguous()
    config = EmergenceConfig(draws=100)
    table = feature_table(crosscoder, make_store(x, NAMES), FeaturesConfig(readout="joint"))
    frame = feature_frame(table, ARM, config)
    assert set(frame["kind"]) <= {"steady", "dead"}
    assert frame["onset"].isna().all()
    curves = measure_curves(arm_numbers(crosscoder, table, ARM, config), draws=100, seed=(0,))
    assert curves.values["specific"].tolist() == [0.0] * 5
    assert curves.values["departure"].max() < 1e-7
    claim = judge({"sft": [curves], "rl": [curves]}, ("sft", "rl"))
    assert claim is not None
    assert not any(clause.holds for clause in claim.clauses)
