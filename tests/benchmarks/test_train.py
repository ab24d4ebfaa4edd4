"""The training benchmark runs, and its contestants compute what they are said to compute."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import contestants, memory, step_profile, train
from benchmarks.contestants import CONTESTANTS, OURS, OURS_DENSE, SQUARED, AbsentError, Setting
from benchmarks.dense_crosscoder import DenseCrosscoder
from benchmarks.planted_data import planted_batches

TINY = Setting(d_model=16, d_sae=96, k=4, batch_size=64)


def built(name: str) -> contestants.Contestant:
    try:
        return CONTESTANTS[name](TINY)
    except AbsentError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def batches() -> list[torch.Tensor]:
    return planted_batches(TINY, 6)


def test_who_minimizes_the_same_has_the_same_loss_at_every_step(batches: list[torch.Tensor]) -> None:
    found = {}
    for name in (OURS, OURS_DENSE, "sae_lens"):
        contestant = built(name)
        found[name] = [float(contestant.step(batch)) for batch in batches]
        assert contestant.objective == SQUARED
    assert found[OURS] == pytest.approx(found[OURS_DENSE], rel=1e-5)
    # At the shared start all models' norms are equal and both rules choose the same features; later they may not.
    assert found[OURS][0] == pytest.approx(found["sae_lens"][0], rel=1e-5)
    assert found[OURS] == pytest.approx(found["sae_lens"], rel=5e-3)
    assert found[OURS][-1] < found[OURS][0]


def test_our_reported_loss_is_that_of_our_reconstruction(batches: list[torch.Tensor]) -> None:
    contestant = built(OURS)
    expected = train.quality(batches[0], contestant.reconstruct)["mse"]
    assert float(contestant.step(batches[0])) == pytest.approx(expected, rel=1e-5)


def test_sae_lens_reconstructs_what_its_loss_says(batches: list[torch.Tensor]) -> None:
    contestant = built("sae_lens")
    expected = train.quality(batches[0], contestant.reconstruct)["mse"]
    assert float(contestant.step(batches[0])) == pytest.approx(expected, rel=1e-5)


def test_dictionary_learning_starts_at_our_directions_and_minimizes_the_squared_error(
    batches: list[torch.Tensor],
) -> None:
    contestant = built("dictionary_learning")
    first = contestant.step(batches[0])
    decoder = contestants.initial(TINY).decoder.detach()
    directions = (decoder / decoder.norm(dim=1, keepdim=True)).double()
    x = batches[0].flatten(1)
    centered = x.double() - median(x)
    acts = torch.relu(centered @ directions.T)
    acts[acts < acts.flatten().topk(TINY.k * len(x)).values.min()] = 0.0
    expected = (centered - acts @ directions).square().sum(dim=1).mean()
    assert first == pytest.approx(float(expected), rel=1e-4)
    assert [contestant.step(batch) for batch in batches[1:]][-1] < first


def median(points: torch.Tensor) -> torch.Tensor:
    """The point with the least sum of distances (Weiszfeld's iteration), to which dictionary_learning sets its bias."""
    points = points.double()
    guess = points.mean(dim=0)
    for _ in range(200):
        weight = 1 / (points - guess).norm(dim=1)
        guess = (weight[:, None] * points).sum(dim=0) / weight.sum()
    return guess


def test_the_dense_crosscoder_is_its_formula(batches: list[torch.Tensor]) -> None:
    generator = torch.Generator().manual_seed(0)
    encoder = torch.randn(3, 16, 96, generator=generator)
    decoder = torch.randn(96, 3, 16, generator=generator)
    crosscoder = DenseCrosscoder(encoder, decoder, k=4, lr=1e-3)
    x = batches[0].double()
    hidden = torch.zeros(len(x), 96, dtype=torch.float64)
    for model in range(3):
        hidden += x[:, model] @ encoder[model].double()
    acts = hidden.clamp(min=0)
    scores = acts * decoder.double().norm(dim=2).sum(dim=1)
    acts[scores < scores.flatten().sort(descending=True).values[4 * len(x) - 1]] = 0.0
    expected = 0.0
    for row in range(len(x)):
        for model in range(3):
            expected += float((x[row, model] - acts[row] @ decoder[:, model].double()).norm()) / len(x)
    assert float(crosscoder.loss(batches[0]).detach()) == pytest.approx(expected, rel=1e-4)


def test_the_dense_crosscoders_auxiliary_loss_reaches_dead_features_alone(batches: list[torch.Tensor]) -> None:
    start = contestants.initial(TINY)
    crosscoder = DenseCrosscoder(start.W_enc, start.W_dec, k=1, lr=1e-3)
    silent = torch.zeros(96, dtype=torch.bool)
    silent[::3] = True
    with torch.no_grad():
        crosscoder.W_enc[:, :, silent] *= 1e-3  # never among the chosen
    crosscoder.loss(batches[0]).backward()
    assert crosscoder.W_dec.grad is not None
    assert not crosscoder.W_dec.grad[silent].any()
    crosscoder.zero_grad()
    crosscoder.tokens_since_fired[silent] = 10_000_000
    crosscoder.loss(batches[0]).backward()
    assert crosscoder.W_dec.grad is not None
    assert crosscoder.W_dec.grad[silent].any()


def test_quality_by_hand() -> None:
    batch = torch.tensor([[[1.0], [0.0]], [[3.0], [4.0]]])  # means 2 and 2: variances 2 and 8
    found = train.quality(batch, lambda x: x + torch.tensor([[1.0], [0.0]]))  # errors 2 and 0
    assert found["mse"] == pytest.approx(1.0)
    assert found["fve"] == pytest.approx(1 - 2 / 10)
    assert found["fve_per_model"] == pytest.approx([0.0, 1.0])


def test_a_missing_or_other_dictionary_learning_is_said_not_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contestants, "DICTIONARY_LEARNING", "0.0.0")
    result = train.measure(TINY, rounds=1, steps=1, names=(OURS, "dictionary_learning"))
    assert list(result["contestants"]) == [OURS, "dictionary_learning"]
    assert "dictionary-learning is" in result["contestants"]["dictionary_learning"]["absent"]
    assert "dictionary_learning" not in result["speedup"]


def test_stand_ins_are_gone_after_the_import() -> None:
    import sys

    with contestants._stand_ins("a_package_that_is_not_there"):
        assert "a_package_that_is_not_there" in sys.modules
    assert "a_package_that_is_not_there" not in sys.modules


@pytest.mark.parametrize("kernel", ["auto", "dense"])
def test_the_profile_covers_the_step(kernel: str, batches: list[torch.Tensor]) -> None:
    from sae_training import Trainer
    from sae_training.selection import Selector

    before = (Trainer._centered, Selector.scores, Selector.select)
    found = step_profile.profile_step(TINY, batches, repeats=3, kernel=kernel)
    assert (Trainer._centered, Selector.scores, Selector.select) == before
    assert found["kernel"] == ("DenseActive" if kernel == "dense" else "SparseActive")
    assert tuple(found["parts_s"]) == step_profile.PARTS
    missing = [name for name, seconds in found["parts_s"].items() if seconds <= 0]
    assert missing == []
    assert sum(found["parts_s"].values()) == pytest.approx(found["step_s"])


def test_the_sentence_follows_from_the_numbers() -> None:
    text = step_profile.bound({"encode": 0.5, "decode": 0.2, "rest": 0.3}, step=1.0, floor=0.25)
    assert "encode (50% of the step) and rest (30%)" in text
    assert "25%" in text
    assert "4.0 times" in text


def test_memory_holds_the_weights_and_their_moments() -> None:
    setting = replace(TINY, d_model=64, d_sae=4096)
    found = memory.peak_bytes(OURS, setting)
    assert found["weights"] == 4 * (2 * 4096 * 192 + 4096 + 192)
    assert found["above"] == found["peak"] - found["before"]
    assert found["above"] > 2 * found["weights"]


def test_main_writes_a_result(tmp_path: Path) -> None:
    out = tmp_path / "train.json"
    train.main(["--quick", "--no-memory", "--out", str(out), "--note", "a test"])
    report = json.loads(out.read_text())
    assert report["settings"]["quick"] is True
    assert report["note"] == "a test"
    result = report["results"]["quick"]
    assert list(result["contestants"]) == list(CONTESTANTS)
    for found in result["contestants"].values():
        if "absent" not in found:
            assert len(found["wall_s"]["all"]) == 2
            assert math.isfinite(found["held_out"]["fve"])
    assert set(result["loss_difference"]) == {OURS_DENSE, "sae_lens"}
    assert str(tmp_path) not in out.read_text()
