"""Log-probabilities and divergences in chunks against plain float64, and memory that does not grow with the positions."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mechprobe.models import log_probs
from mechprobe.models.head import Head
from mechprobe.models.log_probs import compared_with, token_log_probs
from tests.models.test_head import KINDS, saved


@pytest.fixture(params=["llama", "gemma2"])  # logits from the unembedding alone, and with a cap behind it
def head(request: pytest.FixtureRequest, tmp_path: Path) -> Head:
    found = Head(saved(request.param, tmp_path / request.param).hf)
    assert found.direct is KINDS[request.param][1]
    return found


@pytest.fixture(params=[(1 << 24, 1 << 18), (99 * 4, 99), (1, 1)])
def _small(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    chunk, block = request.param
    monkeypatch.setattr(log_probs, "CHUNK_VALUES", chunk)
    monkeypatch.setattr(log_probs, "BLOCK_VALUES", {"cpu": block})


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.usefixtures("_small")
def test_values_and_gradients_are_those_of_plain_float64(head: Head) -> None:
    hidden, target, weight = drawn(11, 32), torch.arange(11) * 8 % 99, drawn(11, seed=1).double()
    plain = hidden.clone().requires_grad_()
    expected = head.logits(plain).double().log_softmax(-1).gather(1, target[:, None])[:, 0]
    (slope,) = torch.autograd.grad((expected * weight).sum(), plain)
    own = hidden.clone().requires_grad_()
    found = token_log_probs(head, own, target)
    (gradient,) = torch.autograd.grad((found * weight).sum(), own)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)  # products of few rows differ in float32
    torch.testing.assert_close(gradient, slope, rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("_small")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_divergences_are_those_of_plain_float64(head: Head, dtype: torch.dtype) -> None:
    reference, other, target = drawn(11, 32), drawn(11, 32, seed=2), torch.arange(11)
    p, q = (head.logits(states).double().log_softmax(-1) for states in (reference, other))
    same, found = compared_with(head, reference, [reference, other], target, dtype=dtype)
    atol = 1e-5 if dtype == torch.float32 else 3e-6
    assert same.kl.tolist() == same.change.tolist() == [0.0] * 11
    torch.testing.assert_close(found.kl.double(), (p.exp() * (p - q)).sum(-1), rtol=1e-4, atol=atol)
    own = torch.stack([q[row, row] for row in range(11)])
    torch.testing.assert_close(found.log_prob.double(), own, rtol=0, atol=atol)
    torch.testing.assert_close(found.change.double(), own - p.diagonal(), rtol=0, atol=atol)


def test_chunks_and_blocks_change_no_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    head = Head(saved("llama", tmp_path / "llama").hf)
    hidden, other, target = drawn(64, 32), drawn(64, 32, seed=3), torch.arange(64)

    def everything() -> list[torch.Tensor]:
        own = hidden.clone().requires_grad_()
        values = token_log_probs(head, own, target)
        (gradient,) = torch.autograd.grad(values.sum(), own)
        [found] = compared_with(head, hidden, [other], target)
        return [values.detach(), gradient, found.kl, found.log_prob, found.change]

    whole = everything()
    monkeypatch.setattr(log_probs, "CHUNK_VALUES", 99 * 8)
    monkeypatch.setattr(log_probs, "BLOCK_VALUES", {"cpu": 99 * 3})
    for one, part in zip(whole, everything(), strict=True):
        assert torch.equal(one, part)


def test_no_position_is_no_error(head: Head) -> None:
    assert len(token_log_probs(head, torch.zeros(0, 32), torch.zeros(0, dtype=torch.int64))) == 0


def test_a_model_whose_unembedding_is_bypassed_keeps_its_logits(tmp_path: Path) -> None:
    model = saved("llama", tmp_path / "llama").hf
    inner = model.forward

    def forward(**inputs: Any) -> Any:
        found = inner(**inputs)
        found.logits = found.logits * torch.arange(1, 1 + found.logits.shape[1])[None, :, None]
        return found

    model.forward = forward
    head, ids = Head(model), torch.tensor([[1, 20, 30, 40]])
    assert head.way == "bypassed"
    states = head.states(ids, torch.ones_like(ids))
    assert torch.equal(head.logits(states[0]), model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0])


def test_the_forward_call_makes_logits_of_one_position(tmp_path: Path) -> None:
    model = saved("llama", tmp_path / "llama").hf
    head, ids, widths = Head(model), torch.tensor([[1, 20, 30, 40]]), []
    unembedding: nn.Module = model.get_output_embeddings()
    handle = unembedding.register_forward_hook(lambda _module, inputs, _output: widths.append(inputs[0].shape[1]))
    states = head.states(ids, torch.ones_like(ids))
    handle.remove()
    assert widths == [1]
    assert states.shape == (1, 4, 32)


_PEAK = """
import resource, sys, torch
from types import SimpleNamespace
from mechprobe.models.log_probs import compared_with, token_log_probs
torch.set_num_threads(1)
head = torch.nn.Linear(8, 60_000, bias=False).requires_grad_(False)
way = SimpleNamespace(logits=head, n_logits=lambda width: 60_000)
def peak(n):
    hidden = torch.randn(n, 8).requires_grad_()
    token_log_probs(way, hidden, torch.zeros(n, dtype=torch.int64)).sum().backward()
    compared_with(way, hidden.detach(), [hidden.detach() + 1], torch.zeros(n, dtype=torch.int64))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(peak(279), peak(1116))  # whole chunks
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss has other units elsewhere")
def test_memory_does_not_grow_with_the_positions() -> None:
    """Four times the positions; their logits alone would take 206 MiB more in float32, and 412 MiB in float64."""
    said = subprocess.run([sys.executable, "-c", _PEAK], capture_output=True, text=True, check=True).stdout
    small, large = map(float, said.split())
    assert large - small < 10, said
