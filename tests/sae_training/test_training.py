"""The trainer and the training run: determinism, files, counters and errors."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sae_training import (
    Crosscoder,
    CrosscoderConfig,
    PlantedConfig,
    PlantedFeatures,
    SaeTrainingError,
    TrainConfig,
    evaluate,
    train,
)
from sae_training.trainer import Trainer

NAMES = ("encoder", "decoder", "b_enc", "b_dec")
TRUTH = PlantedFeatures.make(PlantedConfig(n_models=2, d_model=8, n_shared=10, n_specific=2, density=0.2))


def small(variant: str = "batchtopk", **changes: Any) -> Crosscoder:
    return Crosscoder(
        CrosscoderConfig(**{"n_models": 2, "d_model": 8, "d_sae": 24, "k": 3, "variant": variant, **changes})
    )


def settings(n_steps: int = 20, **changes: Any) -> TrainConfig:
    return TrainConfig(**{"n_tokens": n_steps * 32, "batch_size": 32, "log_every": 5, "checkpoint_every": 5, **changes})


def batches(n: int | None = None, seed: int = 0) -> Iterator[Tensor]:
    return itertools.islice(iter(TRUTH.batches(32, seed=seed)), n)


def weights(crosscoder: Crosscoder) -> list[Tensor]:
    return [tensor.detach().clone() for tensor in crosscoder.state_dict().values()]


VARIANTS = ("batchtopk", "jumprelu", "l1", "matryoshka", "topk")


@pytest.mark.parametrize("variant", VARIANTS)
def test_same_seed_same_bits_and_another_seed_other_bits(variant: str) -> None:
    runs = [weights(train(small(variant, seed=seed), batches(), settings()).crosscoder) for seed in (1, 1, 2)]
    assert all(torch.equal(one, other) for one, other in zip(runs[0], runs[1], strict=True))
    assert not torch.equal(runs[0][0], runs[2][0])


def test_training_changes_nothing_global() -> None:
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    train(small(), batches(), settings(3))
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("variant", VARIANTS)
def test_sparse_and_dense_kernels_train_alike(variant: str) -> None:
    kernels = [
        train(small(variant).double(), (b.double() for b in batches()), settings(kernel=kernel)).crosscoder
        for kernel in ("sparse", "dense")
    ]
    for one, other in zip(weights(kernels[0]), weights(kernels[1]), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("kernel", ["sparse", "dense"])
def test_training_commutes_with_the_order_of_the_models(variant: str, kernel: str) -> None:
    # Equal in float64 up to the rounding of sums over the models; see Crosscoder.permuted.
    order = [2, 0, 1]
    truth = PlantedFeatures.make(PlantedConfig(n_models=3, d_model=8, n_shared=10, n_specific=2, density=0.2))
    stream = [batch.double() for batch in truth.batches(32, n_batches=60)]
    shape = {"n_models": 3, "d_model": 8, "d_sae": 24, "k": 3, "variant": variant, "n_dedicated": (2, 0, 1)}
    start = Crosscoder(CrosscoderConfig(**shape, n_shared=3 if variant in ("l1", "jumprelu") else 0)).double()
    moved = start.permuted(order)
    config = settings(60, lr=1e-2, kernel=kernel, l1_coefficient=0.3, dead_after_tokens=100)
    train(start, stream, config)
    train(moved, [batch[:, order] for batch in stream], config)
    expected = start.permuted(order)
    assert not torch.equal(expected.decoder, Crosscoder(expected.config).decoder.double())
    assert torch.equal(moved.encode(stream[0][:, order]) > 0, expected.encode(stream[0][:, order]) > 0)
    for name, tensor in expected.state_dict().items():
        torch.testing.assert_close(moved.state_dict()[name], tensor, rtol=1e-9, atol=1e-10, msg=name)


@pytest.mark.parametrize("kernel", ["sparse", "dense"])
def test_accumulated_batches_equal_one_batch(kernel: str) -> None:
    whole, parts = small("l1", n_shared=4).double(), small("l1", n_shared=4).double()
    stream = [batch.double() for batch in batches(40)]
    joined = [torch.cat(stream[first : first + 4]) for first in range(0, 40, 4)]
    options = {"n_tokens": 40 * 32, "kernel": kernel, "lr": 1e-2, "l1_coefficient": 0.3, "n_setup_batches": 1}
    first, second = (
        Trainer(whole, settings(batch_size=128, **options)),
        Trainer(parts, settings(batch_size=32, accumulation=4, **options)),
    )
    first.set_up(joined[:1])
    second.set_up(stream[:4])
    # The gain is fitted on one batch. l1 has no gain, so both runs start with equal weights.
    for number, batch in enumerate(joined):
        first.step(batch)
        second.step(*stream[4 * number : 4 * number + 4])
    assert (second.state.step, second.state.n_tokens) == (first.state.step, first.state.n_tokens) == (10, 1280)
    assert torch.equal(first.state.tokens_since_fired, second.state.tokens_since_fired)
    for name, tensor in whole.state_dict().items():
        torch.testing.assert_close(parts.state_dict()[name], tensor, rtol=1e-10, atol=1e-12, msg=name)


def test_accumulated_batches_of_other_sizes_weigh_by_their_tokens() -> None:
    def gradient(*parts: Tensor) -> Tensor:
        crosscoder = small("l1").double()
        trainer = Trainer(crosscoder, settings(batch_size=128, grad_clip=None))
        trainer.set_up(stream[:1])
        kept: list[Tensor] = []
        trainer.state.optimizer.step = lambda *_: kept.append(  # pyright: ignore[reportAttributeAccessIssue]
            crosscoder.encoder.grad.clone()
        )
        trainer.step(*parts)
        return kept[0]

    stream = [batch.double() for batch in batches(3)]
    uneven = (stream[0], torch.cat(stream[1:]))
    torch.testing.assert_close(gradient(*uneven), gradient(torch.cat(stream)), rtol=1e-10, atol=1e-13)


def test_a_run_with_accumulation_draws_that_many_batches(tmp_path: Path) -> None:
    result = train(small(), batches(), settings(20, accumulation=4), out=tmp_path)
    assert (result.n_steps, result.n_tokens, result.n_distinct_batches) == (5, 640, 20)
    ends = train(small(), batches(6), settings(20, accumulation=4))
    assert (ends.stream_ended, ends.n_steps, ends.n_tokens) == (True, 2, 192)


def test_bfloat16_trains_as_well_and_keeps_float32_weights() -> None:
    results = [train(small(), batches(), settings(300, lr=5e-3, precision=name)) for name in ("float32", "bfloat16")]
    fve = [evaluate(result.crosscoder, batches(10, seed=5)).fve_all for result in results]
    assert fve[0] != fve[1]
    assert fve[1] > fve[0] - 0.02
    assert {parameter.dtype for parameter in results[1].crosscoder.parameters()} == {torch.float32}


@pytest.mark.parametrize("variant", ["l1", "jumprelu"])
def test_decoders_designated_as_shared_stay_one(variant: str) -> None:
    crosscoder = small(variant, n_shared=5, n_dedicated=(1, 1), shared_init=False)
    start = crosscoder.decoder.detach().clone()
    train(crosscoder, batches(), settings(50, lr=1e-2))
    shared = crosscoder.W_dec[2:7]
    assert torch.equal(shared[:, 0], shared[:, 1])
    assert not torch.equal(crosscoder.decoder[2:7], start[2:7])
    assert not bool((crosscoder.W_dec[7:, 0] == crosscoder.W_dec[7:, 1]).all(dim=1).any())


def test_files_of_a_run(tmp_path: Path) -> None:
    said: list[dict[str, Any]] = []
    result = train(small(), batches(), settings(), out=tmp_path, on_log=said.append)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "checkpoints",
        "config.json",
        "metrics.jsonl",
        "result.json",
        "weights.safetensors",
    ]
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_000020"]
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [5, 10, 15, 20]
    assert [{k: v for k, v in line.items() if k != "tokens_per_s"} for line in said] == lines
    assert said[0]["tokens_per_s"] > 0
    assert lines[-1]["tokens"] == 640
    assert lines[-1]["distinct_batches"] == 20
    assert set(lines[-1]["fve"]) == {"model_0", "model_1"}
    assert Crosscoder.load(tmp_path).fingerprint == result.crosscoder.fingerprint


def test_finished_run_is_returned_without_touching_the_stream(tmp_path: Path) -> None:
    first = train(small(), batches(), settings(), out=tmp_path)
    again = train(small(), iter(()), settings(), out=tmp_path)
    assert again.crosscoder.fingerprint == first.crosscoder.fingerprint
    assert (again.n_steps, again.metrics) == (first.n_steps, first.metrics)


def test_other_settings_in_the_folder_are_refused(tmp_path: Path) -> None:
    train(small(), batches(), settings(), out=tmp_path)
    with pytest.raises(SaeTrainingError, match=r"training lr = 0\.001.* 0\.01"):
        train(small(), batches(), settings(lr=0.01), out=tmp_path)
    with pytest.raises(SaeTrainingError, match=r"crosscoder d_sae = 24.* 30"):
        train(small(d_sae=30), batches(), settings(), out=tmp_path)
    train(small(), batches(), settings(lr=0.01), out=tmp_path, resume=False)


def test_beginning_again_with_a_bad_stream_keeps_the_earlier_run(tmp_path: Path) -> None:
    train(small(), batches(), settings(), out=tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for stream in ([], [torch.full_like(next(iter(batches(1))), float("nan"))]):
        with pytest.raises(SaeTrainingError):
            train(small(), stream, settings(), out=tmp_path, resume=False)
        assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("how", ["cut", "empty", "gone"])
def test_a_damaged_stream_position_or_result_is_one_sentence(tmp_path: Path, how: str) -> None:
    train(small(), batches(), settings(), out=tmp_path)

    def damage(path: Path) -> None:
        data = path.read_bytes()
        path.unlink() if how == "gone" else path.write_bytes(data[: len(data) // 2] if how == "cut" else b"")

    damage(tmp_path / "result.json")
    if how != "gone":
        with pytest.raises(SaeTrainingError, match=r"result\.json"):
            train(small(), batches(), settings(), out=tmp_path)
        (tmp_path / "result.json").unlink()
    (tmp_path / "checkpoints" / "step_of_mine").mkdir()  # not ours, and no reason to stop
    damage(sorted((tmp_path / "checkpoints").glob("step_0*"))[-1] / "stream.pt")
    with pytest.raises(SaeTrainingError, match=r"stream\.pt"):
        train(small(), batches(), settings(), out=tmp_path)


def test_interrupted_run_resumes_with_all_its_counters(tmp_path: Path) -> None:
    whole = train(small("topk"), batches(), settings(dead_after_tokens=100))

    def broken() -> Iterator[Tensor]:
        yield from batches(13)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(small("topk"), broken(), settings(dead_after_tokens=100), out=tmp_path)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_000010"]
    resumed = train(small("topk"), batches(), settings(dead_after_tokens=100), out=tmp_path)
    assert resumed.metrics == whole.metrics
    assert resumed.n_distinct_batches == 20
    for one, other in zip(weights(resumed.crosscoder), weights(whole.crosscoder), strict=True):
        assert torch.equal(one, other)


def test_resume_refuses_a_stream_that_ends_before_the_checkpoint(tmp_path: Path) -> None:
    def broken() -> Iterator[Tensor]:
        yield from batches(13)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(small(), broken(), settings(), out=tmp_path)
    with pytest.raises(SaeTrainingError, match=r"\b4 batches.* 10\b"):
        train(small(), batches(4), settings(), out=tmp_path)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_bad_batch_stops_the_run_and_keeps_the_last_good_checkpoint(tmp_path: Path, bad: float) -> None:
    def spoiled() -> Iterator[Tensor]:
        for number, batch in enumerate(batches()):
            if number == 12:
                batch[3, 1, 2] = bad
            yield batch

    with pytest.raises(SaeTrainingError, match=r"batch 12\b.*token 3, column 10\b.*step_000010"):
        train(small(), spoiled(), settings(), out=tmp_path)
    good = Crosscoder.load(tmp_path / "checkpoints" / "step_000010")
    assert all(bool(torch.isfinite(parameter).all()) for parameter in good.parameters())


def test_diverged_loss_is_told_from_a_bad_batch() -> None:
    crosscoder = small("l1")
    trainer = Trainer(crosscoder, settings())
    trainer.set_up(list(batches(1)))
    with torch.no_grad():
        crosscoder.decoder.fill_(1e30)
    with pytest.raises(SaeTrainingError, match=r"step 1\b.*decoder norms inf.*\blr\b"):
        trainer.step(next(batches()))


@pytest.mark.parametrize(
    ("stream", "said"),
    [
        ([], "empty"),
        ([torch.zeros(4, 3, 8)], r"\[4, 3, 8\].*model_0, model_1.*\[batch, 2, 8\]"),
        ([torch.zeros(4, 2, 9)], r"\[4, 2, 9\]"),
        ([torch.ones(33, 2, 8)], r"batch 0\b.* 33 .*batch_size.* 32"),
        ([torch.ones(0, 2, 8)], r"batch 0\b.* 0 tokens"),
        ([torch.ones(4, 2, 8, dtype=torch.int64)], r"batch 0\b.*torch\.int64"),
        ([[1.0, 2.0]], r"batch 0\b.* list"),
        ([torch.zeros(4, 2, 8)], "scale = .*zero"),
        ([torch.full((4, 2, 8), float("nan"))], r"batch 0\b.* 64 "),
    ],
)
def test_bad_streams_are_one_sentence(stream: list[Any], said: str) -> None:
    with pytest.raises(SaeTrainingError, match=said):
        train(small(), iter(stream), settings())


def test_stream_that_ends_early_says_so(caplog: pytest.LogCaptureFixture) -> None:
    result = train(small(), batches(7), settings())
    assert (result.stream_ended, result.n_steps) == (True, 7)
    assert "the stream ended after 224 of 640 tokens" in caplog.text


def test_repeating_stream_is_visible() -> None:
    # The buffer of two published crosscoder codebases never saw new tokens after its first fill.
    result = train(small(), itertools.cycle(list(batches(3))), settings())
    assert (result.n_steps, result.n_distinct_batches) == (20, 3)


def test_set_up_estimates_scale_and_explains_the_mean() -> None:
    crosscoder = small()
    x = torch.randn(32, 2, 8) * torch.tensor([1.0, 7.0])[:, None] + torch.tensor([3.0, -20.0])[:, None]
    Trainer(crosscoder, settings()).set_up([x])
    norms = (x / crosscoder.scale[:, None]).norm(dim=2).mean(dim=0)
    torch.testing.assert_close(norms, torch.full((2,), 8**0.5))
    nothing = torch.zeros(1, 24)
    torch.testing.assert_close(crosscoder.decode(nothing)[0], x.mean(dim=0))
    torch.testing.assert_close(crosscoder.hidden_pre(x.mean(dim=0)[None]), nothing, atol=1e-4, rtol=0)


def test_given_scale_is_kept() -> None:
    crosscoder = small()
    crosscoder.set_scale([2.0, 3.0])
    train(crosscoder, batches(), settings(2))
    assert crosscoder.scale.tolist() == [2.0, 3.0]


def test_auxiliary_loss_moves_dead_latents_and_no_others() -> None:
    def gradients(aux: float) -> dict[str, Tensor]:
        crosscoder = small("batchtopk", k=1)
        trainer = Trainer(crosscoder, settings(aux_coefficient=aux, dead_after_tokens=1, grad_clip=None))
        trainer.set_up(list(batches(1)))
        trainer.state.tokens_since_fired[:5] = 100
        trainer.state.parameters.b_enc.data[:5] -= 0.5  # below the cut of the batch, yet positive for some tokens
        kept: dict[str, Tensor] = {}
        trainer.state.optimizer.step = lambda *_: kept.update(  # pyright: ignore[reportAttributeAccessIssue]
            {name: getattr(trainer.state.parameters, name).grad.clone() for name in NAMES}
        )
        trainer.step(next(batches(seed=1)))
        return kept

    with_aux, without = gradients(0.5), gradients(0.0)
    for name in ("encoder", "decoder", "b_enc"):
        changed = (with_aux[name] != without[name]).reshape(24, -1).any(dim=1)
        assert bool(changed[:5].any()), name
        assert not bool(changed[5:].any()), name
    assert torch.equal(with_aux["b_dec"], without["b_dec"])


def test_dead_counters_count_tokens_since_the_last_firing() -> None:
    trainer = Trainer(small(), settings())
    trainer.set_up(list(batches(1)))
    expected = torch.zeros(24, dtype=torch.int64)
    for batch in batches(6):
        fired = trainer.step(batch).active.column_count() > 0
        expected = torch.where(fired, 0, expected + 32)
        assert torch.equal(trainer.state.tokens_since_fired, expected)


def test_threshold_is_the_mean_of_the_cuts_and_gives_about_k_latents() -> None:
    trainer = Trainer(small(), settings(400, lr=3e-3, threshold_momentum=0.9))
    trainer.set_up(list(batches(4)))
    cuts = [float(trainer.step(batch).cut) for batch in batches(5)]
    assert float(trainer.crosscoder.threshold) == pytest.approx(sum(cuts) / 5)
    for batch in batches(395, seed=1):
        trainer.step(batch)
    assert evaluate(trainer.crosscoder, batches(20, seed=2)).l0 == pytest.approx(3, rel=0.15)


@pytest.mark.parametrize("n_models", [2, 3, 5])
def test_metrics_name_every_model(n_models: int) -> None:
    crosscoder = Crosscoder(CrosscoderConfig(n_models=n_models, d_model=8, d_sae=24, k=3))
    truth = PlantedFeatures.make(PlantedConfig(n_models=n_models, d_model=8, n_shared=10, n_specific=1))
    result = train(crosscoder, truth.batches(32), settings(5))
    assert tuple(result.metrics["fve"]) == crosscoder.model_names


def test_loss_does_not_depend_on_the_batch_size() -> None:
    crosscoder = small("l1")
    x = next(batches())
    losses = []
    for batch in (x, torch.cat((x, x, x))):
        trainer = Trainer(crosscoder, settings(lr=1e-30, lr_warmup_frac=0.0, batch_size=96))
        if not crosscoder.has_scale:
            trainer.set_up([x])
        losses.append(float(trainer.step(batch).loss))
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_constant_model_makes_valid_json(tmp_path: Path) -> None:
    x = next(batches())
    x[:, 1] = 1.0
    train(small(), [x] * 20, settings(), out=tmp_path)
    assert json.loads((tmp_path / "result.json").read_text())["metrics"]["fve"]["model_1"] is None


def test_different_widths_train() -> None:
    crosscoder = Crosscoder(CrosscoderConfig(n_models=2, d_model=(3, 13), d_sae=24, k=3))
    result = train(crosscoder, (batch.flatten(1) for batch in batches()), settings(200, lr=3e-3))
    assert result.metrics["fve"]["model_1"] > 0.5


@pytest.mark.parametrize(
    "name", ["weights.safetensors", "config.json", "state.safetensors", "state.json", "stream.pt", "checksums.json"]
)
def test_a_flipped_bit_in_a_checkpoint_is_not_gone_on_from(tmp_path: Path, name: str) -> None:
    def broken() -> Iterator[Tensor]:
        yield from batches(12)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(small(), broken(), settings(keep_checkpoints=2), out=tmp_path)
    last = tmp_path / "checkpoints" / "step_000010"
    data = bytearray((last / name).read_bytes())
    data[len(data) // 2] ^= 4
    (last / name).write_bytes(bytes(data))
    with pytest.raises(SaeTrainingError, match="damaged"):
        train(small(), batches(), settings(keep_checkpoints=2), out=tmp_path)
    shutil.rmtree(last)
    again = train(small(), batches(), settings(keep_checkpoints=2), out=tmp_path).crosscoder
    whole = train(small(), batches(), settings()).crosscoder
    assert all(torch.equal(one, other) for one, other in zip(weights(again), weights(whole), strict=True))
