"""Reward models: the same score at any batch size, padding and side; refusals in place of cuts and of random heads."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from mechprobe.errors import InputError, ModelError
from mechprobe.evals.judging.config import RewardConfig
from mechprobe.evals.judging.judge import Judged
from mechprobe.evals.judging.reward import RewardModel
from mechprobe.evals.rollouts.answers import Question
from mechprobe.records import Sample

TEXTS = ("7", "a long answer, much longer", "no", "x" * 20, "", "yes 12", "a?")


def judged(texts: tuple[str, ...] = TEXTS) -> list[Judged]:
    return [
        Judged(Question("rl", "t", f"q{i}", 0, 0), Sample(f"q{i}", "t", f"p{i % 3}", "-"), text)
        for i, text in enumerate(texts)
    ]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(
    ("kind", "chat"), [("llama", False), ("llama", True), ("gpt2", False), ("gpt2", True), ("bert", False)]
)
def test_rewards_are_those_of_each_text_alone(
    toy_reward: Callable[..., Path], kind: str, chat: bool, side: str
) -> None:
    folder = toy_reward(kind, chat=chat, padding_side=side)
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    model.config.pad_token_id = None  # one text alone has no padding, so its last token is the last one
    expected = []
    for one in judged():
        if chat:
            turns = [{"role": "user", "content": one.sample.prompt}, {"role": "assistant", "content": one.text}]
            ids = tokenizer(tokenizer.apply_chat_template(turns, tokenize=False), add_special_tokens=False).input_ids
        else:
            ids = tokenizer(one.sample.prompt, one.text).input_ids
        with torch.no_grad():
            expected.append(float(model.eval()(input_ids=torch.tensor([ids])).logits[0, 0]))
    for size in (1, 2, 3, 16):
        found = RewardModel(RewardConfig(model=str(folder), batch_size=size)).rewards(judged())
        assert found == pytest.approx(expected, abs=1e-5)
    assert len({round(value, 4) for value in expected}) > 3  # the toy tells texts apart


class LastColumn(torch.nn.Module):
    """A reward model that reads its state at the last place of the batch, padding or not."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner, self.config = inner, inner.config
        self.shapes: list[tuple[int, int]] = []

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> SimpleNamespace:
        self.shapes.append((len(input_ids), int((attention_mask.sum(1) != attention_mask.shape[1]).sum())))
        return SimpleNamespace(
            logits=self.inner.score(self.inner.model(input_ids, attention_mask).last_hidden_state)[:, -1]
        )


def test_a_model_that_padding_changes_scores_texts_of_equal_length_together(toy_reward: Callable[..., Path]) -> None:
    folder = toy_reward()
    model = RewardModel(RewardConfig(model=str(folder), batch_size=4))
    expected = model.rewards(judged())
    odd = RewardModel(RewardConfig(model=str(folder), batch_size=4))
    wrapped = odd.__dict__["_model"] = LastColumn(odd._model)
    assert (model._pads, odd._pads) == (True, False)
    assert odd.rewards(judged()) == pytest.approx(expected, abs=1e-5)
    assert not any(padded for _, padded in wrapped.shapes[2:])  # the first two try padding out


def test_a_text_beyond_the_context_is_refused_before_anything_is_scored(toy_reward: Callable[..., Path]) -> None:
    model = RewardModel(RewardConfig(model=str(toy_reward())))
    with pytest.raises(InputError, match=r"model rl on sample q1 of task t has 7\d tokens .* holds 64"):
        model.rewards(judged(("ok", "x" * 70)))
    assert "_model" not in model.__dict__


def test_a_model_without_a_trained_head_is_refused(
    llama_family: dict[str, Path], toy_reward: Callable[..., Path]
) -> None:
    with pytest.raises(ModelError, match="no sequence classifier"):
        RewardModel(RewardConfig(model=str(llama_family["base"])))
    with pytest.raises(ModelError, match="2 outputs"):
        RewardModel(RewardConfig(model=str(toy_reward(labels=2))))
    with pytest.raises(ModelError, match="no chat template"):
        RewardModel(RewardConfig(model=str(toy_reward()), form="chat"))


def test_a_head_that_is_missing_from_the_weights_is_refused(toy_reward: Callable[..., Path]) -> None:
    from safetensors.torch import load_file, save_file

    folder = toy_reward()
    weights = load_file(folder / "model.safetensors")
    del weights["score.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks .*score"):
        RewardModel(RewardConfig(model=str(folder))).rewards(judged())
