"""Indirect effects: a case with a known answer, a naive float64 implementation, completeness, and a real model."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mechprobe.dictionary.splicing import TokenizedSample
from mechprobe.errors import StoreError
from mechprobe.models.family import ModelFamily
from mechprobe.models.head import Head
from mechprobe.selection.rankings.gradients import FinalStates, SampleBatch, mean_log_prob, pad_samples
from mechprobe.selection.rankings.indirect_effects import indirect_effects
from mechprobe.selection.rankings.relie import relative_effects
from mechprobe.types import Site
from sae_training import Crosscoder, CrosscoderConfig

VOCAB, WIDTH = 11, 6


class Block(nn.Module):
    def __init__(self, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.randn(WIDTH, WIDTH, generator=generator, dtype=torch.float64) * 0.5)

    def forward(self, x: Tensor) -> Tensor:
        mixed = x.cumsum(1) / torch.arange(1, x.shape[1] + 1, dtype=x.dtype)[:, None]  # causal, over positions
        return x + torch.tanh(mixed @ self.weight)


class TinyModel(nn.Module):
    """A causal model in float64 with the face of a transformers model; the last block may be left out."""

    def __init__(self, seed: int, *, linear: bool = False) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(100 + seed)
        self.embed = nn.Embedding(VOCAB, WIDTH, dtype=torch.float64)
        self.embed.weight.data = torch.randn(VOCAB, WIDTH, generator=generator, dtype=torch.float64)
        self.blocks = nn.ModuleList([Block(seed), nn.Identity() if linear else Block(seed + 50)])
        self.unembed = nn.Linear(WIDTH, VOCAB, bias=False, dtype=torch.float64)
        self.unembed.weight.data = torch.randn(WIDTH, VOCAB, generator=generator, dtype=torch.float64).T
        self.config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(num_hidden_layers=2, hidden_size=WIDTH))
        self.requires_grad_(False)

    @property
    def head(self) -> Tensor:
        return self.unembed.weight.T

    def get_input_embeddings(self) -> nn.Module:
        return self.embed

    def get_output_embeddings(self) -> nn.Module:
        return self.unembed

    def after(self, x: Tensor) -> Tensor:
        return self.unembed(self.blocks[1](x))

    def forward(self, input_ids: Tensor, **_: Any) -> Any:
        return SimpleNamespace(logits=self.after(self.blocks[0](self.embed(input_ids))))


class Whole(TinyModel):
    """A model without an unembedding."""

    def __init__(self) -> None:
        super().__init__(0)

    def get_output_embeddings(self) -> None:
        return None


def tiny_crosscoder(n_models: int, *, d_sae: int = 9, bias: bool = True) -> Crosscoder:
    names = tuple(f"m{index}" for index in range(n_models))
    config = CrosscoderConfig(
        n_models=n_models, d_model=WIDTH, d_sae=d_sae, k=4, model_names=names, variant="topk", shared_init=False
    )
    crosscoder = Crosscoder(config).double()
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in crosscoder.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.5)
        if not bias:
            crosscoder.b_dec_flat.zero_()
    crosscoder.set_scale([0.8 + 0.3 * index for index in range(n_models)])
    return crosscoder


def samples() -> list[TokenizedSample]:
    rows = [(1, 4, 5, 6, 7), (1, 8, 9), (1, 3, 2, 10)]
    return [
        TokenizedSample(ids, (False, *(True,) * (len(ids) - 1)), tuple(place >= 2 for place in range(len(ids))))
        for ids in rows
    ]


SITE = Site(layer=0)


def naive_effects(crosscoder: Crosscoder, models: dict[str, TinyModel], steps: int) -> np.ndarray:
    """Gradients with respect to the features themselves, one sample and one step at a time, float64."""
    result = np.zeros((crosscoder.d_sae, len(models)))
    for sample in samples():
        ids = torch.tensor([sample.ids])
        kept = [place for place, keep in enumerate(sample.kept) if keep]
        residuals = [model.blocks[0](model.embed(ids))[0] for model in models.values()]
        f = crosscoder.encode(torch.stack(residuals, dim=1)[kept]).detach()
        for column, (name, model) in enumerate(models.items()):
            error = residuals[column][kept] - crosscoder.decode_model(f, name).detach()
            for step in range(steps):
                left = 1 - (step + 0.5) / steps
                point = (left * f).clone().requires_grad_()
                resid = residuals[column].clone()
                resid[kept] = crosscoder.decode_model(point, name) + left * error
                log_probs = torch.log_softmax(model.after(resid[None])[0], dim=-1)
                predicted = [log_probs[p - 1, sample.ids[p]] for p in range(1, len(sample.ids)) if sample.response[p]]
                (gradient,) = torch.autograd.grad(sum(predicted) / len(predicted), point)
                result[:, column] += (gradient * (0 - f)).sum(0).numpy() / steps
    return result / len(samples())


def test_a_naive_implementation_agrees() -> None:
    crosscoder = tiny_crosscoder(3)
    models = {f"m{index}": TinyModel(index) for index in range(3)}
    expected = naive_effects(crosscoder, models, steps=5)
    found = indirect_effects(crosscoder, models, SITE, samples(), steps=5, batch_size=2)
    scale = np.abs(expected).max()
    assert scale > 1e-3
    np.testing.assert_allclose(found.effect, expected, rtol=1e-6, atol=1e-6 * scale)
    sizes = np.abs(expected)
    for row in range(len(expected)):
        total = sizes[row].sum()
        wanted = sizes[row] / total if total else np.full(3, np.nan)
        np.testing.assert_allclose(found.relie[row], wanted, rtol=1e-6)
        pair = sizes[row, 2] / (sizes[row, 0] + sizes[row, 2]) if total else np.nan
        np.testing.assert_allclose(found.pairwise("m0", "m2")[row], pair, rtol=1e-6)


def test_the_effects_sum_to_the_change_of_the_metric() -> None:
    crosscoder, models = tiny_crosscoder(2), {f"m{index}": TinyModel(index) for index in range(2)}
    gaps = [
        indirect_effects(crosscoder, models, SITE, samples(), steps=steps).completeness_gap.max()
        for steps in (2, 8, 32)
    ]
    assert gaps[0] > gaps[1] > gaps[2]
    assert gaps[2] < 1e-3


def test_a_linear_model_gives_the_answer_known_in_advance() -> None:
    """With a linear rest, the effect is −Σ_pos f_k s_m ⟨W_dec[k, m], u⟩ whatever the path."""
    crosscoder = tiny_crosscoder(2, bias=False)
    models = {f"m{index}": TinyModel(index, linear=True) for index in range(2)}
    token = 5

    def metric(found: FinalStates, batch: SampleBatch) -> Tensor:
        return (found.logits()[:, :, token] * batch.attention).sum(1)

    found = indirect_effects(crosscoder, models, SITE, samples(), metric=metric, steps=1)
    expected = np.zeros((crosscoder.d_sae, 2))
    for sample in samples():
        ids = torch.tensor([sample.ids])
        x = torch.stack([model.blocks[0](model.embed(ids))[0, 1:] for model in models.values()], dim=1)
        f = crosscoder.encode(x).detach().sum(0)
        for column, model in enumerate(models.values()):
            direction = crosscoder.W_dec[:, column].detach() * float(crosscoder.scale[column]) @ model.head[:, token]
            expected[:, column] -= (f * direction).numpy() / len(samples())
    np.testing.assert_allclose(found.effect, expected, rtol=1e-9, atol=1e-12)


def test_a_feature_that_one_model_does_not_write_has_no_relie_there() -> None:
    crosscoder = tiny_crosscoder(2)
    with torch.no_grad():
        crosscoder.W_dec[3, 0] = 0.0
    models = {f"m{index}": TinyModel(index) for index in range(2)}
    relie = indirect_effects(crosscoder, models, SITE, samples()).relie
    if np.isfinite(relie[3]).all():
        assert relie[3].tolist() == [0.0, 1.0]
    finite = np.isfinite(relie).all(axis=1)
    assert finite.any()
    np.testing.assert_allclose(relie[finite].sum(axis=1), 1.0)


def test_relative_effects_ignore_the_sign_and_say_nan_for_nothing() -> None:
    found = relative_effects(np.array([[1.0, -1.0, 2.0], [0.0, 0.0, 0.0]]))
    assert found[0].tolist() == [0.25, 0.25, 0.5]
    assert np.isnan(found[1]).all()


def test_only_response_tokens_are_scored_and_padding_changes_nothing() -> None:
    batch = pad_samples(samples(), "cpu", answered=True)
    assert batch.scored.sum(1).tolist() == [3, 1, 2]
    logits = torch.randn(3, 5, VOCAB, generator=torch.Generator().manual_seed(0))
    alone = pad_samples(samples()[1:2], "cpu", answered=True)
    head = Head(Whole())  # its states are the logits
    both, single = FinalStates(head, logits), FinalStates(head, logits[1:2, :3])
    torch.testing.assert_close(mean_log_prob(both, batch)[1], mean_log_prob(single, alone)[0])


def one_without_response() -> list[TokenizedSample]:
    rows = samples()
    return [rows[0], replace(rows[1], response=(False,) * len(rows[1].ids)), rows[2]]


def test_the_scored_tokens_of_a_sample_do_not_depend_on_its_batch() -> None:
    crosscoder, models = tiny_crosscoder(2), {f"m{index}": TinyModel(index) for index in range(2)}
    rows = one_without_response()
    whole, apart = (indirect_effects(crosscoder, models, SITE, rows, batch_size=size) for size in (3, 1))
    np.testing.assert_allclose(apart.metric, whole.metric, rtol=1e-9)
    np.testing.assert_allclose(apart.effect, whole.effect, rtol=1e-9, atol=1e-12)
    prompts = [replace(row, response=(False,) * len(row.ids)) for row in rows]
    assert (indirect_effects(crosscoder, models, SITE, prompts[1:2]).metric < 0).all()  # all tokens, as nothing answers


def test_no_sample_is_refused() -> None:
    with pytest.raises(StoreError, match="no sample"):
        indirect_effects(tiny_crosscoder(2), {f"m{i}": TinyModel(i) for i in range(2)}, SITE, [])


def test_a_transformers_model_is_left_as_it_was(llama_family: dict[str, Path]) -> None:
    family = ModelFamily.load(llama_family)
    names = family.names
    config = CrosscoderConfig(n_models=3, d_model=32, d_sae=40, k=6, model_names=names, variant="topk")
    crosscoder = Crosscoder(config)
    with torch.no_grad():  # the path ends at b_dec: at 0 a norm layer sees no length, and nothing would be left to read
        crosscoder.b_dec_flat.copy_(torch.randn(96, generator=torch.Generator().manual_seed(3)))
    rows = [TokenizedSample(tuple(range(1, 12)), (False, *(True,) * 10), (False,) * 6 + (True,) * 5)] * 3
    models = {name: family[name].hf for name in names}
    hooks = sum(len(module._forward_hooks) for model in models.values() for module in model.modules())
    found = indirect_effects(crosscoder, models, Site(layer=1), rows, steps=32)
    again = indirect_effects(crosscoder, models, Site(layer=1), rows, steps=32)
    assert np.array_equal(found.effect, again.effect)
    assert np.abs(found.effect).max() > 0
    assert (found.completeness_gap < 0.1).all()
    assert hooks == sum(len(module._forward_hooks) for model in models.values() for module in model.modules())
    assert all(parameter.grad is None for parameter in crosscoder.parameters())
