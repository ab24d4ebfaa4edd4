"""Crosscoders trained on families whose features are known: precision and recall of every class."""

from pathlib import Path

import numpy as np
import pytest

from mechprobe.features.table.feature_table import feature_table
from mechprobe.features.validation.matching import unit
from sae_training import Crosscoder, CrosscoderConfig, TrainConfig, train
from sae_training.planted import PlantedConfig, PlantedFeatures
from tests.small_dictionaries import NAMES, make_store

CLASSES = ("shared", "base-only", "sft-only", "rl-only")
MIN_COSINE = 0.9
SEEDS = (0, 1)


def trained(seed: int, folder: Path) -> tuple[PlantedFeatures, Crosscoder]:
    """A family of three models with residuals of very different size, and a crosscoder trained on it.

    With k below the planted features per token (4.2) no latent is left over to fire on what the others miss.
    """
    truth = PlantedFeatures.make(
        PlantedConfig(d_model=32, n_shared=24, n_specific=6, density=0.1, seed=seed, model_scale=(1.0, 1.5, 0.7))
    )
    shape = CrosscoderConfig(n_models=3, d_model=32, d_sae=64, k=4, model_names=NAMES, seed=seed)
    crosscoder = Crosscoder(shape)
    schedule = TrainConfig(n_tokens=400_000, batch_size=1024, lr=5e-3, checkpoint_every=0)
    train(crosscoder, truth.batches(1024, seed=seed), schedule, out=folder)
    return truth, crosscoder


def judged(truth: PlantedFeatures, crosscoder: Crosscoder) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """``(said, true)`` of every latent in one of the classes, ``(true, said)`` of every planted feature.

    A latent's truth is the planted feature it resembles, ``nothing`` where it resembles none; a planted feature that
    no latent resembles is said to be ``nothing``.
    """
    table = feature_table(crosscoder, make_store(truth.tokens(8000, seed=99)))
    units = (crosscoder.scale / truth.model_scale)[:, None]
    learned = unit((crosscoder.W_dec.detach() * units).flatten(1).numpy())
    planted = unit((truth.directions * truth.strength[:, :, None]).flatten(1).numpy())
    cosine = np.where(table.dead[:, None], -1.0, learned @ planted.T)
    true = ["shared" if owner < 0 else f"{NAMES[owner]}-only" for owner in truth.owner.tolist()]
    of_latents = [
        (said, true[row.argmax()] if row.max() >= MIN_COSINE else "nothing")
        for said, row in zip(table.classes, cosine, strict=True)
        if said in CLASSES
    ]
    of_planted = [
        (name, table.classes[column.argmax()] if column.max() >= MIN_COSINE else "nothing")
        for name, column in zip(true, cosine.T, strict=True)
    ]
    return of_latents, of_planted


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[list[tuple[str, str]], list[tuple[str, str]]]]:
    return [judged(*trained(seed, tmp_path_factory.mktemp("planted"))) for seed in SEEDS]


@pytest.mark.parametrize("name", CLASSES)
def test_precision_and_recall_of_every_class(
    verdicts: list[tuple[list[tuple[str, str]], list[tuple[str, str]]]], name: str
) -> None:
    said = [true == name for of_latents, _ in verdicts for said, true in of_latents if said == name]
    planted = [said == name for _, of_planted in verdicts for true, said in of_planted if true == name]
    assert len(planted) == len(SEEDS) * (24 if name == "shared" else 6)
    assert np.mean(said) >= 0.98
    assert np.mean(planted) >= 0.98
