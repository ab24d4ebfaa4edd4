"""Attention sinks in selection: positions that the crosscoder's store dropped change no score."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mechprobe.dictionary.splicing import TokenizedSample
from mechprobe.models.blocks import splice
from mechprobe.models.family import ModelFamily
from mechprobe.models.residuals import residuals_plain
from mechprobe.selection.config import SelectConfig
from mechprobe.selection.rankings.attribution import attribute
from mechprobe.selection.rankings.pooled import score_features
from mechprobe.selection.result import choose
from mechprobe.selection.scores import Scores
from mechprobe.types import Site
from sae_training import Crosscoder, CrosscoderConfig
from tests.small_dictionaries import make_crosscoder

SITE = Site(1)
CONFIG = SelectConfig(base="base", tuned="rl", steps=4)


@pytest.fixture(scope="module")
def family(llama_family: dict[str, Any]) -> ModelFamily:
    return ModelFamily.load(llama_family)


@pytest.fixture(scope="module")
def dictionary() -> Crosscoder:
    return make_crosscoder(d_model=32, d_sae=400, k=20, variant="l1").eval()


@pytest.fixture(scope="module")
def gained(family: ModelFamily) -> dict[str, list[TokenizedSample]]:
    samples = []
    for i in range(24):
        prompt = f"{i * 37 % 100} and {i * 7} of the {i * 13 % 61} many long words"
        ids = (*family.tokenizer(prompt).input_ids, 20 + i % 9, 31, 40)
        response = tuple(place >= len(ids) - 3 for place in range(len(ids)))
        samples.append(TokenizedSample(ids, (False, *([True] * (len(ids) - 1))), response))
    return {"task": samples}


@contextmanager
def sink(family: ModelFamily, factor: float) -> Iterator[None]:
    """Multiply the residual of the first token behind <bos> in all models."""
    seen: dict[str, Tensor] = {}

    def multiply(resid: Tensor) -> Tensor:
        return torch.where((seen["position"] == 1)[..., None], factor * resid, resid)

    def record(_module: Any, _args: Any, given: dict[str, Any]) -> None:
        seen["position"] = given["attention_mask"].long().cumsum(1) - 1

    with ExitStack() as stack:
        for model in family:
            stack.callback(model.hf.register_forward_pre_hook(record, with_kwargs=True).remove)
            stack.enter_context(splice(model.hf, SITE, multiply))
        yield


def ruled(dictionary: Crosscoder, **rule: Any) -> Crosscoder:
    config = CrosscoderConfig(**{**dictionary.config.model_dump(), **rule})
    return Crosscoder.from_tensors(config, dictionary.tensors()).eval()


def limits(family: ModelFamily, gained: dict[str, list[TokenizedSample]]) -> tuple[float, ...]:
    found: dict[str, list[Tensor]] = {name: [] for name in family.names}
    for sample in gained["task"]:
        ids = torch.tensor([sample.ids])
        for model in family:
            x = residuals_plain(model, ids, torch.ones_like(ids), [SITE])[SITE][0]
            found[model.name].append(x[torch.tensor(sample.kept)].norm(dim=1))
    return tuple(10 * float(torch.cat(found[name]).median()) for name in family.names)


def scored(dictionary: Crosscoder, family: ModelFamily, gained: dict[str, list[TokenizedSample]]) -> Scores:
    return score_features(dictionary, family, gained, site=SITE, config=CONFIG)[0]


def top50(scores: Scores) -> set[int]:
    return set(choose(scores, "top50", site=str(SITE), crosscoder="", n_controls=0).features)


@pytest.mark.parametrize("kind", ["norm", "first"])
def test_with_a_sink_the_selected_set_stays(
    family: ModelFamily, dictionary: Crosscoder, gained: dict[str, list[TokenizedSample]], kind: str
) -> None:
    rule = {"norm_limits": limits(family, gained)} if kind == "norm" else {"drop_first_positions": 2}
    reference = top50(scored(dictionary, family, gained))
    with sink(family, 30):
        found = scored(ruled(dictionary, **rule), family, gained)
        without = scored(dictionary, family, gained)
    assert len(reference & top50(found)) >= 48
    assert len(reference & top50(without)) < 45
    # What is left is exactly the selection on the samples without their first token.
    shorter = {"task": [TokenizedSample(s.ids, (False, False, *s.kept[2:]), s.response) for s in gained["task"]]}
    expected = scored(dictionary, family, shorter)
    for name in ("score", "joint", "density", "mean_act", "mean_difference", "last_difference"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=1e-5, atol=1e-7)


def test_a_rule_that_nothing_meets_changes_no_bit(
    family: ModelFamily, dictionary: Crosscoder, gained: dict[str, list[TokenizedSample]]
) -> None:
    rule = {"norm_limits": (1e9, 1e9, 1e9), "drop_first_positions": 1}
    found, expected = (scored(each, family, gained) for each in (ruled(dictionary, **rule), dictionary))
    for name in ("score", "joint", "density", "mean_act", "mean_difference", "last_difference"):
        assert np.array_equal(getattr(found, name), getattr(expected, name))


def test_a_sink_at_the_last_prompt_token_is_left_out_of_the_last_difference(
    family: ModelFamily, dictionary: Crosscoder, gained: dict[str, list[TokenizedSample]]
) -> None:
    short = TokenizedSample((1, 5, 30, 31), (False, True, True, True), (False, False, True, True))
    with sink(family, 30):  # token 1 is the last of its prompt
        found = scored(
            ruled(dictionary, norm_limits=limits(family, gained)), family, {"task": [*gained["task"], short]}
        )
    expected = scored(dictionary, family, gained)
    np.testing.assert_allclose(found.last_difference, expected.last_difference, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("kind", ["ig", "relie"])
@pytest.mark.parametrize("rule", ["norm", "first"])
def test_attribution_leaves_the_same_positions_alone(
    family: ModelFamily, dictionary: Crosscoder, gained: dict[str, list[TokenizedSample]], kind: Any, rule: str
) -> None:
    chosen = {"norm_limits": limits(family, gained)} if rule == "norm" else {"drop_first_positions": 2}
    shorter = {"task": [TokenizedSample(s.ids, (False, False, *s.kept[2:]), s.response) for s in gained["task"]]}
    with sink(family, 30):
        found = attribute(kind, ruled(dictionary, **chosen), family, gained, site=SITE, config=CONFIG)
        expected = attribute(kind, dictionary, family, shorter, site=SITE, config=CONFIG)
    np.testing.assert_allclose(found.samples.values(), expected.samples.values(), rtol=1e-4, atol=1e-7)
