"""A trainer that never waits for its device: counts of waits, and steps that are not finite."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.waits import count_waits
from sae_training import (
    Crosscoder,
    CrosscoderConfig,
    PlantedConfig,
    PlantedFeatures,
    SaeTrainingError,
    TrainConfig,
    train,
)
from sae_training.trainer import Trainer
from sae_training.variants import BatchTopK

VARIANTS = ("batchtopk", "jumprelu", "l1", "matryoshka", "topk")
TRUTH = PlantedFeatures.make(PlantedConfig(n_models=2, d_model=8, n_shared=10, n_specific=2, density=0.2))


def small(variant: str, **changes: Any) -> Crosscoder:
    return Crosscoder(
        CrosscoderConfig(**{"n_models": 2, "d_model": 8, "d_sae": 24, "k": 3, "variant": variant, **changes})
    )


def settings(n_steps: int = 20, **changes: Any) -> TrainConfig:
    options = {"n_tokens": n_steps * 32, "batch_size": 32, "log_every": 5, "checkpoint_every": 5, "kernel": "dense"}
    return TrainConfig(**{**options, **changes})


def batches(n: int | None = None) -> Iterator[Tensor]:
    return itertools.islice(iter(TRUTH.batches(32)), n)


@pytest.fixture
def as_on_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cut over a batch as computed off the CPU; NumPy computes it on a CPU."""

    def training_cut(self: Any, scores: Tensor, *, k: int) -> Tensor:
        return torch.topk(scores.flatten(), k * scores.shape[0], sorted=False).values.min().reshape(1, 1)

    monkeypatch.setattr(BatchTopK, "training_cut", training_cut)


@pytest.mark.usefixtures("as_on_a_device")
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_lazy_step_never_waits(variant: str, accumulation: int) -> None:
    n_shared = 4 if variant in ("l1", "jumprelu") else 0
    crosscoder = small(variant, n_dedicated=(1, 1), n_shared=n_shared)
    config = settings(60, accumulation=accumulation, dead_after_tokens=64, refresh_dead_every=1000)
    trainer = Trainer(crosscoder, config, lazy=True)
    stream = list(batches(40))
    trainer.set_up(stream[:2])
    trainer.state.tokens_since_fired[:6] = 1000
    trainer.step(*stream[:accumulation])  # determines the dead latents once
    with count_waits("cpu") as waits:
        for first in range(2, 20, 2):
            trainer.step(*stream[first : first + accumulation])
    assert waits.seen == []


@pytest.mark.parametrize("variant", ["batchtopk", "l1"])
def test_the_counter_of_waits_sees_those_of_a_trainer_on_a_cpu(variant: str) -> None:
    trainer = Trainer(small(variant), settings())
    trainer.set_up(list(batches(2)))
    with count_waits("cpu") as waits:
        trainer.step(next(batches()))
    assert {"tolist"} <= set(waits.seen)


@pytest.mark.usefixtures("as_on_a_device")
def test_dead_latents_are_determined_at_intervals() -> None:
    trainer = Trainer(small("topk"), settings(200, refresh_dead_every=7), lazy=True)
    stream = list(batches(30))
    trainer.set_up(stream[:2])
    with count_waits("cpu") as waits:
        for batch in stream[:28]:
            trainer.step(batch)
    assert waits.seen == ["nonzero"] * 4  # steps 0, 7, 14, 21


@pytest.mark.usefixtures("as_on_a_device")
@pytest.mark.parametrize("variant", VARIANTS)
def test_lazy_and_checked_steps_train_alike(variant: str) -> None:
    trained = []
    for lazy in (False, True):
        crosscoder = small(variant)
        trainer = Trainer(crosscoder, settings(refresh_dead_every=1, dead_after_tokens=64), lazy=lazy)
        stream = list(batches(20))
        trainer.set_up(stream[:4])
        for batch in stream:
            trainer.step(batch)
        trainer.look()
        trained.append((crosscoder.state_dict(), trainer.state))
    for name, tensor in trained[0][0].items():
        assert torch.equal(trained[1][0][name], tensor), name
    assert torch.equal(trained[0][1].tokens_since_fired, trained[1][1].tokens_since_fired)
    assert torch.equal(trained[0][1].settle_digests(), trained[1][1].settle_digests())


@pytest.mark.usefixtures("as_on_a_device")
@pytest.mark.parametrize("variant", VARIANTS)
def test_weights_stay_as_before_the_first_bad_step(variant: str) -> None:
    crosscoder = small(variant)
    trainer = Trainer(crosscoder, settings(), lazy=True)
    stream = list(batches(12))
    trainer.set_up(stream[:4])
    for batch in stream[:6]:
        trainer.step(batch)
    trainer.look()
    good = {name: tensor.clone() for name, tensor in crosscoder.state_dict().items()}
    moments = {name: tensor.clone() for name, tensor in trainer.state.tensors().items() if name != "digests"}
    stream[6][3, 1, 2] = float("nan")
    for batch in stream[6:]:
        trainer.step(batch)
    for name, tensor in good.items():
        assert torch.equal(crosscoder.state_dict()[name], tensor), name
    for name, tensor in moments.items():
        assert torch.equal(trainer.state.tensors()[name], tensor), name
    with pytest.raises(SaeTrainingError, match=r"activations of step 7\b"):
        trainer.look()


def test_divergence_is_distinguished_from_bad_activations() -> None:
    crosscoder = small("l1")
    trainer = Trainer(crosscoder, settings(), lazy=True)
    stream = list(batches(4))
    trainer.set_up(stream)
    trainer.step(stream[0])
    with torch.no_grad():
        crosscoder.decoder.fill_(1e30)
    trainer.step(stream[1])
    with pytest.raises(SaeTrainingError, match=r"step 2\b.*\blr\b"):
        trainer.look()


@pytest.mark.usefixtures("as_on_a_device")
def test_a_lazy_run_keeps_its_last_good_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Trainer.__init__

    def lazily(self: Trainer, crosscoder: Crosscoder, config: TrainConfig, **options: Any) -> None:
        original(self, crosscoder, config, lazy=True, **options)

    monkeypatch.setattr(Trainer, "__init__", lazily)

    def spoiled() -> Iterator[Tensor]:
        for number, batch in enumerate(batches()):
            if number == 12:
                batch[3, 1, 2] = float("inf")
            yield batch

    with pytest.raises(SaeTrainingError, match=r"step 13\b.*step_000010"):
        train(small("batchtopk"), spoiled(), settings(), out=tmp_path)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_000010"]
    assert not (tmp_path / "weights.safetensors").exists()
    good = Crosscoder.load(tmp_path / "checkpoints" / "step_000010")
    assert all(bool(torch.isfinite(parameter).all()) for parameter in good.parameters())
    # A bad last step is noticed although it is not a multiple of log_every, and a good run resumes to the same bytes.
    resumed = train(small("batchtopk"), batches(), settings(), out=tmp_path)
    whole = train(small("batchtopk"), batches(), settings())
    assert resumed.crosscoder.fingerprint == whole.crosscoder.fingerprint
    with pytest.raises(SaeTrainingError, match=r"step 13\b"):
        train(small("batchtopk"), itertools.islice(spoiled(), 13), settings(log_every=500, checkpoint_every=0))


def test_a_lazy_trainer_on_a_cpu_needs_a_kernel_that_never_waits() -> None:
    with pytest.raises(SaeTrainingError, match=r"'dense'.*'triton'.*'auto'"):
        Trainer(small("l1"), settings(kernel="auto"), lazy=True)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("variant", "n_waits"), [("batchtopk", 0), ("topk", 0), ("matryoshka", 0), ("l1", 1)])
def test_a_step_on_a_card_waits_as_seldom(variant: str, n_waits: int) -> None:
    trainer = Trainer(small(variant).cuda(), settings(60, kernel="triton", refresh_dead_every=1000))
    stream = [batch.cuda() for batch in batches(12)]
    trainer.set_up(stream[:2])
    trainer.step(stream[0])
    with count_waits("cuda") as waits:
        for batch in stream[2:]:
            trainer.step(batch)
    assert len(waits.seen) == n_waits * 10, waits.seen
