"""Per-token numbers against plain forward calls, with padding on both sides, at a temperature, and with broken weights."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

import mechprobe as mp
from mechprobe.dynamics.logprobs.measure import model_tokens, sampler_checks, token_starts
from mechprobe.errors import ModelError
from mechprobe.models.next_token import token_numbers
from tests.builders import build_family
from tests.dynamics.logprobs.planted import family_traces, trace


def plain(model: mp.LanguageModel, ids: tuple[int, ...], n: int) -> torch.Tensor:
    """log_softmax of a forward call on one sequence, at the predictions of its last ``n`` tokens."""
    logits = model.hf(input_ids=torch.tensor([ids])).logits[0, -n - 1 : -1].double()
    return logits.log_softmax(-1)


@pytest.mark.parametrize("kind", ["llama_family", "neox_family"])
def test_numbers_equal_a_plain_forward_call(kind: str, request: pytest.FixtureRequest) -> None:
    family = mp.ModelFamily.load(request.getfixturevalue(kind))
    traces, model = family_traces(family), family["rl"]
    found = model_tokens(model, traces, batch_tokens=64)
    with torch.no_grad():
        for index, one in enumerate(traces):
            part = slice(*token_starts(traces)[index : index + 2])
            logs, target = plain(model, one.ids, len(one.response_ids)), torch.tensor(one.response_ids)
            own = logs.gather(1, target[:, None])
            assert found["log_prob"][part] == pytest.approx(own[:, 0].numpy(), abs=1e-5)
            assert found["entropy"][part] == pytest.approx(-(logs.exp() * logs).sum(1).numpy(), abs=1e-5)
            assert found["rank"][part].tolist() == ((logs > own).sum(1) + 1).tolist()


def test_left_padding_gives_the_same_numbers(llama_family: dict[str, Path]) -> None:
    family = mp.ModelFamily.load(llama_family)
    traces, model = family_traces(family), family["sft"]
    width = max(len(one.ids) for one in traces)
    ids = torch.tensor([[model.pad_id] * (width - len(one.ids)) + list(one.ids) for one in traces])
    mask = torch.tensor([[0] * (width - len(one.ids)) + [1] * len(one.ids) for one in traces])
    position = (mask.cumsum(1) - 1).clamp_min(0)
    with torch.no_grad():
        logits = model.hf(input_ids=ids, attention_mask=mask, position_ids=position).logits.log_softmax(-1)
    expected = [
        logits[row, place - 1, ids[row, place]].item()
        for row, one in enumerate(traces)
        for place in range(width - len(one.response_ids), width)
    ]
    assert model_tokens(model, traces)["log_prob"] == pytest.approx(expected, abs=1e-5)


def test_the_sampler_gives_the_same_at_its_temperature(llama_family: dict[str, Path]) -> None:
    family = mp.ModelFamily.load(llama_family)
    model, prompt = family["rl"], torch.tensor([family.tokenizer("Q: ab").input_ids])
    torch.manual_seed(0)
    made = model.hf.generate(
        prompt, max_new_tokens=12, do_sample=True, temperature=0.6, top_k=0, output_scores=True,
        return_dict_in_generate=True,
    )  # fmt: skip
    ids = made.sequences[0, prompt.shape[1] :].tolist()
    given_logs = [
        float(score.double().log_softmax(-1)[0, token]) for score, token in zip(made.scores, ids, strict=True)
    ]
    sampled = trace(
        0, ids, source="rl", prompt_ids=tuple(prompt[0].tolist()), sampled=tuple(given_logs), temperature=0.6
    )
    other = trace(1, ids, source="base", prompt_ids=sampled.prompt_ids, sampled=sampled.sampled)
    [(temperature, n, largest, mean)] = list(sampler_checks(model, [sampled, other], batch_tokens=256))
    assert (temperature, n) == (0.6, len(ids))
    assert len(ids) > 3
    assert largest < 1e-5
    assert abs(mean) < 1e-5


def test_chunks_and_batches_change_no_number(llama_family: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    family = mp.ModelFamily.load(llama_family)
    traces = family_traces(family)
    whole = model_tokens(family["base"], traces)
    monkeypatch.setattr(
        "mechprobe.dynamics.logprobs.measure.chunks", lambda n, _width: (slice(i, i + 1) for i in range(n))
    )
    small = model_tokens(family["base"], traces, batch_tokens=1)
    for name, values in whole.items():
        assert small[name] == pytest.approx(values, abs=1e-5)


def test_logits_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    paths = build_family(tmp_path, names=("base",))
    family = mp.ModelFamily.load(paths)
    with torch.no_grad():
        family["base"].hf.lm_head.weight[3] = torch.nan
    with pytest.raises(ModelError, match=r"base.*\(trace 't"):
        model_tokens(family["base"], family_traces(family))


def test_token_numbers_by_hand() -> None:
    logits = torch.tensor([[0.0, np.log(3.0), -torch.inf], [2.0, 2.0, 2.0]])
    found = token_numbers(logits, torch.tensor([0, 2]))
    assert found.log_prob.tolist() == pytest.approx([np.log(0.25), np.log(1 / 3)])
    assert found.entropy.tolist() == pytest.approx([-0.25 * np.log(0.25) - 0.75 * np.log(0.75), np.log(3)])
    assert found.rank.tolist() == [2, 1]
    hot = token_numbers(logits, torch.tensor([0, 2]), temperature=2.0)
    assert hot.log_prob[0].item() == pytest.approx(np.log(1 / (1 + 3**0.5)))
    assert not token_numbers(torch.tensor([[0.0, torch.nan]]), torch.tensor([0])).log_prob.isfinite()


def test_the_normalization_of_a_large_vocabulary_is_exact() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, target = 4 * torch.randn(3, 151_936, generator=generator) + 20, torch.tensor([5, 70_000, 151_935])
    exact = logits.double().log_softmax(-1)
    found = token_numbers(logits, target)
    assert found.log_prob.tolist() == pytest.approx(exact.gather(1, target[:, None])[:, 0].tolist(), abs=1e-7)
    assert found.entropy.tolist() == pytest.approx((-(exact.exp() * exact).sum(1)).tolist(), abs=1e-5)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 200), st.floats(0.1, 3.0), st.floats(-50, 50))
def test_token_numbers_are_those_of_softmax_and_ignore_a_shift(
    seed: int, width: int, heat: float, shift: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = 5 * torch.randn(4, width, generator=generator)
    target = torch.randint(width, (4,), generator=generator)
    exact = (logits.double() / heat).log_softmax(-1)
    for moved in (logits, logits + shift):
        found = token_numbers(moved, target, temperature=heat)
        assert found.log_prob.tolist() == pytest.approx(exact.gather(1, target[:, None])[:, 0].tolist(), abs=1e-4)
        assert bool((found.entropy >= -1e-6).all())
        assert bool((found.entropy <= np.log(width) + 1e-6).all())
        assert bool(((found.rank >= 1) & (found.rank <= width)).all())
