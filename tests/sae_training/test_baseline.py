"""An SAE trained with sae-lens: it learns, is seeded, opens in stock sae-lens, and its errors are one sentence."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sae_training import SaeBaselineConfig, SaeTrainingError, TrainConfig, train_sae_baseline

CONFIG = SaeBaselineConfig(d_sae=32, k=3, n_tokens=38_400, batch_size=128, lr=1e-2)
DIRECTIONS = torch.nn.functional.normalize(torch.randn(24, 16, generator=torch.Generator().manual_seed(0)), dim=1)


def batches(n: int | None = None, size: int = 128, seed: int = 1) -> Iterator[Tensor]:
    """Sparse sums of 24 known directions, far from the origin and large."""
    generator, count = torch.Generator().manual_seed(seed), 0
    while n is None or count < n:
        on = torch.rand(size, 24, generator=generator) < 0.1
        amount = 1 + torch.rand(size, 24, generator=generator)
        yield 50.0 * ((on * amount) @ DIRECTIONS) + 200.0
        count += 1


def test_it_learns_opens_in_sae_lens_and_is_over_raw_activations(tmp_path: Path) -> None:
    from sae_lens import SAE

    seen: list[tuple[int, dict[str, float]]] = []
    sae = train_sae_baseline(
        batches(), CONFIG, tmp_path, scale=50.0, metadata={"hook_name": "h"}, on_step=lambda n, d: seen.append((n, d))
    )
    assert sum(n for n, _ in seen) == 38_400
    assert len(seen) == CONFIG.n_steps == 300
    assert seen[-1][1]["loss"] < 0.3 * seen[0][1]["loss"]
    metrics = sae.evaluate(batches(8, seed=2))
    assert metrics.fve > 0.9
    assert 1.5 < metrics.l0 < 4.5
    stock = SAE.load_from_disk(tmp_path)
    x = next(batches(seed=3))
    with torch.no_grad():
        torch.testing.assert_close(stock(x), sae.decode(sae.encode(x)), rtol=1e-4, atol=1e-2)
    assert sae.metadata["hook_name"] == "h"


def test_the_same_seed_gives_the_same_bytes_and_leaves_the_global_generator_alone(tmp_path: Path) -> None:
    short = CONFIG.replace(n_tokens=1280)
    state = torch.get_rng_state()
    for name, config in (("a", short), ("b", short), ("c", short.replace(seed=1))):
        train_sae_baseline(batches(), config, tmp_path / name, scale=50.0)
    assert torch.equal(torch.get_rng_state(), state)
    first, second, other = ((tmp_path / name / "sae_weights.safetensors").read_bytes() for name in "abc")
    assert first == second != other
    settings = (tmp_path / "a" / "cfg.json").read_text()
    assert settings == json.dumps(json.loads(settings), sort_keys=True)  # sae-lens takes the order of a set


@pytest.mark.parametrize("n_tokens", [128, 129, 700])
@pytest.mark.parametrize(("rise", "fall"), [(0.0, 0.0), (0.2, 0.2), (1.0, 0.0), (0.0, 1.0)])
def test_any_schedule_and_length(tmp_path: Path, n_tokens: int, rise: float, fall: float) -> None:
    config = CONFIG.replace(n_tokens=n_tokens, lr_warmup_frac=rise, lr_decay_frac=fall)
    train_sae_baseline(batches(), config, tmp_path, scale=50.0)


def test_matching_takes_the_training_of_a_crosscoder() -> None:
    training = TrainConfig(n_tokens=1000, batch_size=100, lr=0.01, lr_decay_frac=0.5, threshold_momentum=0.9)
    config = SaeBaselineConfig.matching(training, d_sae=8, k=2, seed=4)
    assert (config.n_tokens, config.batch_size, config.lr, config.lr_decay_frac) == (1000, 100, 0.01, 0.5)
    assert (config.threshold_momentum, config.dead_after_tokens, config.seed) == (0.9, training.dead_window, 4)


def nan_batches() -> Iterator[Tensor]:
    for batch in batches():
        yield batch * float("nan")


@pytest.mark.parametrize(
    ("stream", "scale", "words"),
    [
        (lambda: iter(()), 1.0, "empty"),
        (lambda: batches(5), 1.0, "5 of 300 batches"),
        (nan_batches, 1.0, "nan.*step 0"),
        (batches, 0.0, "scale = 0.0"),
        (lambda: batches(size=200), 1.0, r"batch 0\b.*\[200, 16\]"),
        (lambda: (batch[:, None].repeat(1, 2, 1) for batch in batches()), 1.0, r"batch 0\b.*\[128, 2, 16\]"),
    ],
)
def test_refusals_write_nothing(tmp_path: Path, stream: object, scale: float, words: str) -> None:
    with pytest.raises(SaeTrainingError, match=words):
        train_sae_baseline(stream(), CONFIG, tmp_path / "out", scale=scale)  # type: ignore[operator]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [({"k": 33}, "k = 33.*d_sae = 32"), ({"lr_warmup_frac": 0.9}, "lr_warmup_frac = 0.9"), ({"kk": 1}, "'k'")],
)
def test_settings(change: dict[str, object], words: str) -> None:
    with pytest.raises(SaeTrainingError, match=words):
        CONFIG.replace(**change)
