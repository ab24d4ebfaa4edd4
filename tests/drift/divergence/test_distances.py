"""Distances of next-token distributions: hand numbers, float64 references, inequalities, and independence of chunks."""

import math

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor
from torch.distributions import Categorical, kl_divergence

from mechprobe.drift import PositionDivergences, divergences
from mechprobe.drift.divergence import distances
from mechprobe.drift.divergence.distances import hidden_divergences
from mechprobe.errors import InputError
from mechprobe.models import next_token
from mechprobe.models.head import Head

LARGE = 151_936
"""Rows of a Qwen2.5 unembedding."""


def pair(n: int, n_ids: int, seed: int, scale: float = 3.0, apart: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """Asymmetric logits: base is narrow, tuned is wide and shifted; and realised tokens."""
    generator = torch.Generator().manual_seed(seed)
    base = scale * torch.randn(n, n_ids, generator=generator)
    tuned = 1.3 * base + apart * torch.randn(n, n_ids, generator=generator) + 17.0
    return tuned, base, torch.randint(n_ids, (n,), generator=generator)


def reference(tuned: Tensor, base: Tensor) -> dict[str, Tensor]:
    """torch.distributions and direct formulas in float64."""
    p, q = (logits.double().softmax(-1) for logits in (tuned, base))
    m = (p + q) / 2
    terms = lambda a, b: (a * (a / b).log()).nan_to_num(0).sum(-1)  # noqa: E731
    return {
        "kl": kl_divergence(Categorical(logits=tuned.double()), Categorical(logits=base.double())),
        "kl_reverse": kl_divergence(Categorical(logits=base.double()), Categorical(logits=tuned.double())),
        "js": (terms(p, m) + terms(q, m)) / 2,
        "tv": (p - q).abs().sum(-1) / 2,
        "entropy": Categorical(logits=tuned.double()).entropy(),
        "entropy_base": Categorical(logits=base.double()).entropy(),
    }


def large(kind: str) -> tuple[Tensor, Tensor]:
    """Logits over a large vocabulary. A float32 normalization of them on the CPU is wrong by 1e-6 to 2e-4."""
    generator = torch.Generator().manual_seed(8)
    first, second = (torch.randn(6, LARGE, generator=generator) for _ in range(2))
    scale = {"flat": 1.0, "wide": 4.0, "far": 3.0, "near": 3.0, "peaked": 2.0}[kind]
    base, tuned = scale * first, scale * (0.6 * first + 0.5 * second)
    if kind == "far":
        base, tuned = base + 70.3, tuned + 115.9
    if kind == "near":
        tuned = base + 0.02 * second
    if kind == "peaked":
        base[:, 7] += 25
        tuned[:, 7] += 24
        tuned[:, 9] += 22
    return tuned, base


def test_by_hand() -> None:
    tuned, base = torch.tensor([[0.0, math.log(3.0)]]), torch.tensor([[0.0, 0.0]])  # p = (1/4, 3/4), q = (1/2, 1/2)
    found = divergences(tuned, base, torch.tensor([1]), top=1)
    kl = 0.25 * math.log(0.5) + 0.75 * math.log(1.5)
    assert float(found.kl[0]) == pytest.approx(kl, abs=1e-7)
    assert float(found.kl_reverse[0]) == pytest.approx(0.5 * math.log(2.0) + 0.5 * math.log(2 / 3), abs=1e-7)
    assert float(found.tv[0]) == pytest.approx(0.25, abs=1e-7)
    assert float(found.entropy_base[0]) == pytest.approx(math.log(2.0), abs=1e-7)
    assert float(found.log_prob[0]) == pytest.approx(math.log(0.75), abs=1e-6)
    assert (int(found.rank[0]), int(found.rank_base[0])) == (1, 1)  # equal logits share the best rank
    assert bool(found.agree[0]) is False
    assert (int(found.raised_ids[0, 0]), int(found.lowered_ids[0, 0])) == (1, 0)
    assert float(found.raised[0, 0]) == pytest.approx(math.log(3.0) / 2, abs=1e-6)
    assert float(found.lowered[0, 0]) == pytest.approx(-math.log(3.0) / 2, abs=1e-6)


@pytest.mark.parametrize(
    ("n_ids", "scale", "apart"),
    [(2, 1.0, 1.0), (97, 3.0, 1.0), (640, 3.0, 0.01), (4_096, 8.0, 4.0), (50_257, 2.0, 0.3), (50_257, 0.1, 0.0)],
)
def test_equals_float64_references(n_ids: int, scale: float, apart: float) -> None:
    tuned, base, target = pair(5, n_ids, seed=n_ids, scale=scale, apart=apart)
    found = divergences(tuned, base, target)
    for name, expected in reference(tuned, base).items():
        torch.testing.assert_close(
            getattr(found, name), expected, atol=1e-6, rtol=1e-6, msg=lambda text, name=name: f"{name}: {text}"
        )
    for logits, rank, log_prob in ((tuned, found.rank, found.log_prob), (base, found.rank_base, found.log_prob_base)):
        own = logits.gather(1, target[:, None])
        assert rank.tolist() == (1 + (logits > own).sum(1)).tolist()
        torch.testing.assert_close(
            log_prob, logits.double().log_softmax(-1).gather(1, target[:, None])[:, 0], atol=1e-6, rtol=1e-6
        )
    assert found.agree.tolist() == (tuned.argmax(1) == base.argmax(1)).tolist()


@pytest.mark.parametrize("kind", ["flat", "wide", "far", "near", "peaked"])
def test_a_large_vocabulary_equals_float64_references(kind: str) -> None:
    tuned, base = large(kind)
    target = torch.tensor([7, 9, 0, 151_935, 1_000, 70_000])
    found, expected = divergences(tuned, base, target), reference(tuned, base)
    log_p, log_q = tuned.double().log_softmax(-1), base.double().log_softmax(-1)
    torch.testing.assert_close((log_p.exp() * (log_p - log_q)).sum(1), expected["kl"], atol=1e-11, rtol=1e-11)
    expected["log_prob"] = log_p.gather(1, target[:, None])[:, 0]
    expected["log_prob_base"] = log_q.gather(1, target[:, None])[:, 0]
    change = (log_p - log_q) - (log_p - log_q).mean(1, keepdim=True)
    expected["raised"], expected["lowered"] = change.topk(10).values, -(-change).topk(10).values
    assert torch.equal(found.raised_ids, change.topk(10).indices)
    for name, right in expected.items():
        error = (getattr(found, name) - right).abs()
        assert float((error - 1e-6 * right.abs().clamp_min(1.0)).max()) <= 0, (name, float(error.max()))
        if kind in {"flat", "wide", "far"}:
            assert float((error / right.abs()).max()) <= 1e-6, name
            assert float(error.max()) <= 1e-6, name


def test_small_distances_over_a_large_vocabulary_keep_their_digits() -> None:
    tuned, base = large("near")
    found, expected = divergences(tuned, base, torch.zeros(6, dtype=torch.int64)), reference(tuned, base)
    for name, share in {"kl": 1e-5, "kl_reverse": 1e-5, "js": 1e-5, "tv": 1e-5}.items():
        torch.testing.assert_close(getattr(found, name), expected[name], atol=0, rtol=share)


def test_small_distances_keep_their_digits() -> None:
    _, base, target = pair(4, 5_000, seed=1)
    noise = 1e-3 * torch.randn(4, 5_000, generator=torch.Generator().manual_seed(2))
    tuned = base + noise
    found = divergences(tuned, base, target)
    for name in ("kl", "kl_reverse", "js"):
        expected = reference(tuned, base)[name]
        assert float(expected.max()) < 1e-5
        torch.testing.assert_close(getattr(found, name), expected, atol=0, rtol=1e-3)


def test_the_logits_that_change_most() -> None:
    tuned, base, target = pair(6, 1_000, seed=3)
    found = divergences(tuned, base, target, top=7)
    change = (tuned - base).double()
    change -= change.mean(1, keepdim=True)
    most, least = change.topk(7), (-change).topk(7)
    assert torch.equal(found.raised_ids, most.indices)
    assert torch.equal(found.lowered_ids, least.indices)
    torch.testing.assert_close(found.raised, most.values, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(found.lowered, -least.values, atol=1e-4, rtol=1e-5)


def test_rows_beyond_the_ids_are_left_out() -> None:
    tuned, base, target = pair(3, 64, seed=4)
    padded = torch.cat([tuned, torch.full((3, 5), float(tuned.max()))], dim=1)
    found, expected = divergences(padded, base, target, n_ids=64), divergences(tuned, base, target)
    torch.testing.assert_close(found.kl, expected.kl)
    torch.testing.assert_close(found.outside, padded.double().softmax(1)[:, 64:].sum(1), atol=1e-6, rtol=1e-5)
    assert found.outside_base.tolist() == [0.0] * 3


@settings(max_examples=60, deadline=None)
@given(
    n_ids=st.integers(2, 300),
    seed=st.integers(0, 2**31),
    scale=st.sampled_from([0.1, 1.0, 10.0, 60.0]),
    apart=st.sampled_from([0.0, 1e-3, 1.0, 30.0]),
)
def test_inequalities(n_ids: int, seed: int, scale: float, apart: float) -> None:
    tuned, base, target = pair(3, n_ids, seed, scale, apart)
    found, swapped = divergences(tuned, base, target), divergences(base, tuned, target)
    assert bool((found.kl >= 0).all())
    assert bool((found.js >= 0).all())
    assert bool((found.js <= math.log(2.0)).all())
    assert bool(((found.tv >= 0) & (found.tv <= 1)).all())
    assert bool((found.tv <= (found.kl / 2).sqrt() + 1e-6).all())  # Pinsker
    assert bool((found.js <= found.tv * math.log(2.0) + 1e-6).all())
    torch.testing.assert_close(found.js, swapped.js, atol=1e-9, rtol=1e-6)
    torch.testing.assert_close(found.kl, swapped.kl_reverse, atol=1e-9, rtol=1e-6)
    same = divergences(tuned, tuned.clone(), target)
    for name in ("kl", "kl_reverse", "js", "tv"):
        assert getattr(same, name).tolist() == [0.0] * 3
    moved = tuned.clone()
    moved[:, 0] += 1.0
    probable = tuned.softmax(1)[:, 0]
    open_ = (probable > 1e-3) & (probable < 1 - 1e-3)
    assert bool((divergences(moved, tuned, target).kl[open_] > 0).all())


def test_blocks_change_no_result(monkeypatch: pytest.MonkeyPatch) -> None:
    tuned, base, target = pair(9, 1_000, seed=5)
    whole = divergences(tuned, base, target)
    monkeypatch.setitem(next_token._BLOCK_VALUES, "cpu", 9 * 64)
    small = divergences(tuned, base, target)
    single = PositionDivergences.joined(
        [divergences(tuned[i : i + 1], base[i : i + 1], target[i : i + 1]) for i in range(9)]
    )
    for other in (small, single):
        for name in whole.__dataclass_fields__:
            torch.testing.assert_close(getattr(other, name), getattr(whole, name), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("side", [0, 1])
def test_a_logit_that_is_not_finite_is_refused(wrong: float, side: int) -> None:
    tuned, base, target = pair(2, 50, seed=6)
    (tuned, base)[side][1, 7] = wrong
    sentence = (
        rf"Logits of the {('tuned', 'base')[side]} model are not finite at position 1, id 7 \({wrong}\); give .*\.$"
    )
    with pytest.raises(InputError, match=sentence):
        divergences(tuned, base, target)
    found = distances.compared(tuned, base, target, n_ids=50, top=1)
    assert found.not_finite() == (side, 1)
    assert torch.isfinite((found.entropy, found.entropy_base)[side]).tolist() == [True, False]
    assert torch.isfinite((found.entropy_base, found.entropy)[side]).tolist() == [True, True]


def test_finite_logits_that_float32_cannot_subtract_are_refused() -> None:
    tuned, base, target = pair(2, 50, seed=6)
    tuned[0, 3], tuned[0, 4] = 3e38, -3e38
    with pytest.raises(InputError, match="tuned model are not finite at position 0 \\(they lie more than 3e38 apart"):
        divergences(tuned, base, target)


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_rows_beyond_the_ids_may_be_masked_but_not_wrong(wrong: float) -> None:
    tuned, base, target = pair(2, 50, seed=6)
    expected = divergences(tuned, base, target)
    padded = torch.cat([base, torch.full((2, 6), -math.inf)], dim=1)
    found = divergences(tuned, padded, target)  # by default the ids that both have
    assert found.kl.tolist() == expected.kl.tolist()
    assert found.outside_base.tolist() == [0.0, 0.0]
    padded[1, 52] = wrong
    with pytest.raises(InputError, match=rf"base model are not finite at position 1, id 52 \({wrong}\)"):
        divergences(tuned, padded, target, n_ids=50)


class Wide(Head):
    """A head with many more rows than ids are compared; it notes how many positions it is asked for."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def n_logits(self, width: int) -> int:
        del width
        return 1000

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        self.asked.append(len(hidden))
        return hidden[:, :1] * torch.arange(1000)


def test_rows_beyond_the_compared_ids_count_for_the_size_of_a_chunk() -> None:
    hidden, target = torch.rand(10, 2), torch.zeros(10, dtype=torch.int64)
    tuned, base = Wide(), Wide()
    found = hidden_divergences(tuned, base, hidden, hidden, target, n_ids=10, top=2, chunk_values=4000)
    assert len(found.kl) == 10
    assert max(*tuned.asked, *base.asked) == 4
