"""Integrated gradients between two models' features: completeness, a known answer, and a naive float64 implementation."""

import numpy as np
import pytest
import torch
from torch import Tensor

from mechprobe.dictionary.readout import Readout
from mechprobe.errors import SelectionError
from mechprobe.selection.rankings import gradients
from mechprobe.selection.rankings.attribution import weighted_effect
from mechprobe.selection.rankings.gradients import FinalStates, SampleBatch
from mechprobe.selection.rankings.ig import IntegratedGradients, integrated_gradients
from mechprobe.types import ReadoutMode
from sae_training import Crosscoder
from tests.selection.test_relie import SITE, TinyModel, one_without_response, samples, tiny_crosscoder

MODELS = {f"m{index}": TinyModel(index) for index in range(3)}


def attributed(crosscoder: Crosscoder, mode: ReadoutMode = "swap", **options: object) -> IntegratedGradients:
    given: dict[str, object] = {"base": "m0", "tuned": "m2", "readout": Readout(mode), "steps": 5, "batch_size": 2}
    return integrated_gradients(crosscoder, MODELS, SITE, samples(), **(given | options))  # type: ignore[arg-type]


def test_long_samples_are_read_in_small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pass with gradients keeps what later blocks compute, so its tokens are limited; the values stay the same."""
    crosscoder, seen = tiny_crosscoder(3), []
    whole = attributed(crosscoder, batch_size=99)
    longest = max(len(sample.ids) for sample in samples())
    monkeypatch.setattr(gradients, "GRADIENT_TOKENS", 2 * longest + 1)
    padded = gradients.pad_samples
    monkeypatch.setattr(gradients, "pad_samples", lambda part, *a, **k: seen.append(len(part)) or padded(part, *a, **k))
    assert np.allclose(attributed(crosscoder, batch_size=99).effect, whole.effect, atol=1e-6)
    assert max(seen) == 2
    assert sum(seen) == len(samples())


def residuals(ids: tuple[int, ...]) -> dict[str, Tensor]:
    return {name: model.blocks[0](model.embed(torch.tensor([ids])))[0] for name, model in MODELS.items()}


def naive(crosscoder: Crosscoder, mode: ReadoutMode, steps: int) -> np.ndarray:
    """One sample at a time: the gradient with respect to how much of each feature's change is there, at each position."""
    names, model, rows = crosscoder.model_names, MODELS["m2"], []
    for sample in samples():
        x = residuals(sample.ids)
        kept = [place for place, keep in enumerate(sample.kept) if keep]

        def acts(name: str, x: dict[str, Tensor] = x, kept: list[int] = kept) -> Tensor:
            if mode == "joint":
                slots = [x[other][kept] for other in names]
            else:  # in its own slot's scaled units, in every slot
                own = crosscoder.scale[names.index(name)]
                slots = [x[name][kept] * scale / own for scale in crosscoder.scale]
            return crosscoder.encode(torch.stack(slots, dim=1)).detach()

        def written(name: str) -> Tensor:
            index = names.index(name)
            return crosscoder.W_dec[:, index].detach() * crosscoder.scale[index]

        change = acts("m2")[..., None] * written("m2") - acts("m0")[..., None] * written("m0")  # pos, feature, width
        total = torch.zeros(len(kept), crosscoder.d_sae, dtype=torch.float64)
        for step in range(steps):
            there = torch.full(total.shape, (step + 0.5) / steps, dtype=torch.float64, requires_grad=True)
            resid = x["m2"].clone()
            resid[kept] = x["m2"][kept] - ((1 - there)[..., None] * change).sum(1)
            log_probs = torch.log_softmax(model.after(resid[None])[0], dim=-1)
            said = [log_probs[p - 1, sample.ids[p]] for p in range(1, len(sample.ids)) if sample.response[p]]
            total += torch.autograd.grad(torch.stack(said).mean(), there)[0] / steps
        rows.append(total.sum(0).numpy())
    return np.stack(rows)


@pytest.mark.parametrize("mode", ["swap", "joint"])
def test_a_naive_implementation_agrees(mode: ReadoutMode) -> None:
    crosscoder = tiny_crosscoder(3)
    expected = naive(crosscoder, mode, steps=5)
    found = attributed(crosscoder, mode)
    scale = np.abs(expected).max()
    assert scale > 1e-3
    np.testing.assert_allclose(found.effect, expected, rtol=1e-6, atol=1e-6 * scale)


@pytest.mark.parametrize("mode", ["swap", "joint", "single"])
def test_the_sum_is_what_base_s_features_cost_the_metric(mode: ReadoutMode) -> None:
    crosscoder = tiny_crosscoder(3)
    gaps = [attributed(crosscoder, mode, steps=steps).completeness_gap for steps in (2, 8, 64)]
    assert gaps[0] > gaps[2]
    assert gaps[1] > gaps[2]
    assert gaps[2] < 1e-3


def test_a_sample_s_attribution_does_not_hang_on_its_batch() -> None:
    crosscoder, options = tiny_crosscoder(3), {"base": "m0", "tuned": "m2", "readout": Readout("swap"), "steps": 5}
    rows = one_without_response()
    whole, apart = (
        integrated_gradients(crosscoder, MODELS, SITE, rows, batch_size=size, **options)  # type: ignore[arg-type]
        for size in (3, 1)
    )
    np.testing.assert_allclose(apart.effect, whole.effect, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(apart.metric, whole.metric, rtol=1e-9)
    assert (whole.effect[1] == 0).all()


def test_the_path_ends_at_the_clean_model_and_at_a_transplant_of_everything() -> None:
    crosscoder = tiny_crosscoder(3)
    found = attributed(crosscoder, "joint")
    for row, sample in enumerate(samples()):
        x = residuals(sample.ids)
        kept = [place for place, keep in enumerate(sample.kept) if keep]
        f = crosscoder.encode(torch.stack([x[name][kept] for name in MODELS], dim=1)).detach()
        moved = x["m2"].clone()
        bias = [crosscoder.b_dec[index].detach() * crosscoder.scale[index] for index in (0, 2)]
        moved[kept] += crosscoder.decode_model(f, "m0").detach() - crosscoder.decode_model(f, "m2").detach()
        moved[kept] += bias[1] - bias[0]
        for resid, value in ((x["m2"], found.metric[row]), (moved, found.without[row])):
            log_probs = torch.log_softmax(MODELS["m2"].after(resid[None])[0], dim=-1)
            said = [log_probs[p - 1, sample.ids[p]] for p in range(1, len(sample.ids)) if sample.response[p]]
            assert value == pytest.approx(float(torch.stack(said).mean()))


def test_a_linear_model_gives_the_answer_known_in_advance() -> None:
    """With a linear rest, IG_k = Σ_pos ⟨c_k, u⟩ whatever the path."""
    crosscoder = tiny_crosscoder(2)
    models = {f"m{index}": TinyModel(index, linear=True) for index in range(2)}
    token = 5

    def metric(found: FinalStates, batch: SampleBatch) -> Tensor:
        return (found.logits()[:, :, token] * batch.attention).sum(1)

    found = integrated_gradients(
        crosscoder, models, SITE, samples(), base="m0", tuned="m1", readout=Readout("joint"), metric=metric, steps=1
    )
    direction = models["m1"].head[:, token]
    for row, sample in enumerate(samples()):
        x = [model.blocks[0](model.embed(torch.tensor([sample.ids])))[0, 1:] for model in models.values()]
        f = crosscoder.encode(torch.stack(x, dim=1)).detach().sum(0)
        decoder = crosscoder.W_dec.detach() * crosscoder.scale[:, None]
        expected = f * ((decoder[:, 1] - decoder[:, 0]) @ direction)
        np.testing.assert_allclose(found.effect[row], expected.numpy(), rtol=1e-9, atol=1e-12)
    assert found.completeness_gap < 1e-9


def test_with_one_decoder_for_all_it_is_the_usual_formula_and_joint_sees_nothing() -> None:
    crosscoder = tiny_crosscoder(3)
    with torch.no_grad():
        crosscoder.W_dec[:] = crosscoder.W_dec[:, :1].clone()
    crosscoder.set_scale([1.0, 1.0, 1.0])
    assert np.abs(attributed(crosscoder, "joint").effect).max() == 0
    sample, steps = samples()[0], 5
    x = residuals(sample.ids)
    kept = [place for place, keep in enumerate(sample.kept) if keep]
    first, last = (
        crosscoder.encode(x[name][kept][:, None].expand(-1, 3, -1).contiguous()).detach() for name in ("m0", "m2")
    )
    gradient = torch.zeros_like(first)
    for step in range(steps):
        f = (first + (step + 0.5) / steps * (last - first)).requires_grad_()
        resid = x["m2"].clone()
        resid[kept] = x["m2"][kept] - (last - f) @ crosscoder.W_dec[:, 2].detach()
        log_probs = torch.log_softmax(MODELS["m2"].after(resid[None])[0], dim=-1)
        said = [log_probs[p - 1, sample.ids[p]] for p in range(1, len(sample.ids)) if sample.response[p]]
        gradient += torch.autograd.grad(torch.stack(said).mean(), f)[0] / steps
    expected = ((last - first) * gradient).sum(0).numpy()
    np.testing.assert_allclose(attributed(crosscoder).effect[0], expected, rtol=1e-6, atol=1e-12)


def test_batches_and_padding_change_nothing() -> None:
    crosscoder = tiny_crosscoder(3)
    whole, single = attributed(crosscoder, batch_size=3), attributed(crosscoder, batch_size=1)
    np.testing.assert_allclose(whole.effect, single.effect, rtol=1e-9, atol=1e-13)
    assert np.array_equal(whole.effect, attributed(crosscoder, batch_size=3).effect)


def test_the_same_model_twice_has_nothing_to_attribute() -> None:
    found = attributed(tiny_crosscoder(3), base="m2")
    assert np.abs(found.effect).max() == 0
    assert np.isnan(found.completeness_gap)


def test_weighted_effects_by_hand() -> None:
    # base, tuned: gained by tuned alone; half as strong in base; helpful to lose; nothing
    base, tuned = np.array([[0.0, -1.0, 0.0, 0.0]]), np.array([[-2.0, -2.0, 5.0, 0.0]])
    assert weighted_effect(np.stack([base, tuned])).tolist() == [[2.0, 2 * 2 / 3, 0.0, 0.0]]


def test_no_sample_is_refused() -> None:
    with pytest.raises(SelectionError, match="no sample to attribute"):
        integrated_gradients(tiny_crosscoder(3), MODELS, SITE, [], base="m0", tuned="m2", readout=Readout("swap"))
