"""The losses of both trainers against cases computed by hand: SFT's token mean over the whole step, and GRPO's advantages."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from mechprobe.errors import ConfigError
from mechprobe.models.load import LanguageModel
from mechprobe.posttrain import GrpoConfig, PosttrainResult, SftConfig, grpo, sft
from mechprobe.posttrain.examples import given_rows, read_examples
from mechprobe.posttrain.result import TokensSeen
from mechprobe.posttrain.tokens import supervised_tokens
from mechprobe.posttrain.watch import Watch
from tests.sums import digit_share

SFT = {"lr": 3e-3, "prompts_per_step": 8, "steps": 3, "checkpoints": (), "save_dtype": "float32"}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def largest_difference(one: Path, other: Path) -> float:
    first, second = weights(one), weights(other)
    return max(float((first[name] - second[name]).abs().max()) for name in first)


@pytest.fixture(scope="module")
def whole(base: Path, prompts: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PosttrainResult]:
    """SFT with the whole step in one forward pass."""
    out = tmp_path_factory.mktemp("whole")
    return out, sft(base, prompts, out, SftConfig(**SFT))


def test_sft_loss_is_the_mean_over_the_response_tokens_of_the_step(
    base: Path, prompts: Path, whole: tuple[Path, PosttrainResult]
) -> None:
    model = LanguageModel("base", base)
    rows = given_rows(read_examples(model, SftConfig(prompts={"file": str(prompts)})), model.tokenizer.eos_token_id)[:8]
    total, n = 0.0, 0
    for row in rows:
        logits = model.hf(input_ids=torch.tensor([[*row.prompt_ids, *row.response_ids]])).logits[0]
        said = logits[len(row.prompt_ids) - 1 : -1].log_softmax(-1)
        total -= sum(float(said[place, token]) for place, token in enumerate(row.response_ids))
        n += len(row.response_ids)
    assert whole[1].curve[0]["loss"] == pytest.approx(total / n, abs=1e-5)
    assert whole[1].tokens[-1].step == 3
    assert supervised_tokens(rows, range(8), 8, [1]) == (
        TokensSeen(step=1, n=n + sum(len(row.prompt_ids) for row in rows), n_loss=n),
    )
    assert len({len(row.response_ids) for row in rows}) > 2, "rows of one length would not tell means apart"


@pytest.mark.parametrize("micro", [1, 4])
def test_sft_does_not_depend_on_the_micro_batch(
    base: Path,
    prompts: Path,
    whole: tuple[Path, PosttrainResult],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    micro: int,
) -> None:
    watches: list[Watch] = []
    real = Watch.callback
    monkeypatch.setattr(Watch, "callback", lambda watch: watches.append(watch) or real(watch))
    result = sft(base, prompts, tmp_path, SftConfig(**SFT, micro_batch_size=micro))
    assert result.tokens == whole[1].tokens
    assert watches[0].counted[3] == result.tokens[-1].n, "TRL counts the same in a training without a break"
    for row, other in zip(result.curve, whole[1].curve, strict=True):
        assert row["loss"] == pytest.approx(other["loss"], abs=1e-5)
    assert largest_difference(tmp_path / "sft", whole[0] / "sft") < 1e-5


def test_micro_batches_must_divide_a_step(base: Path, prompts: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"8 responses, which 1 process.* micro_batch_size = 3 do not share evenly"):
        sft(base, prompts, tmp_path, SftConfig(**SFT, micro_batch_size=3))


@pytest.mark.slow
@pytest.mark.parametrize("micro", [4, 2])
def test_sft_does_not_depend_on_the_number_of_processes(
    base: Path, prompts: Path, whole: tuple[Path, PosttrainResult], tmp_path: Path, micro: int
) -> None:
    """Two gloo processes, with one and with two micro-batches each."""
    given = [f"{name}={json.dumps(value)}" for name, value in SFT.items()] + [f"micro_batch_size={micro}"]
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "mechprobe",
    ]
    command += ["posttrain", "sft", "--base", str(base), "--prompts", str(prompts), "--out", str(tmp_path)]
    command += [word for setting in given for word in ("--set", setting)]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, sys.path)]),
    }
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    result = PosttrainResult.load(tmp_path / "sft")
    assert json.loads((tmp_path / "sft" / "manifest.json").read_text())["config"]["processes"] == 2
    assert result.tokens == whole[1].tokens
    for row, other in zip(result.curve, whole[1].curve, strict=True):
        assert row["loss"] == pytest.approx(other["loss"], abs=1e-5)
    assert largest_difference(tmp_path / "sft", whole[0] / "sft") < 1e-5


@pytest.mark.parametrize("micro", [None, 4])
def test_grpo_advantages_and_loss_by_hand(
    base: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, micro: int | None
) -> None:
    """Advantages, loss and gradient of one step, from the sampled responses and a plain forward pass."""
    import trl

    seen: list[tuple[dict[str, Any], float, list[torch.Tensor]]] = []
    real: Callable[..., torch.Tensor] = trl.GRPOTrainer._compute_loss

    def watched(self: Any, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        loss = real(self, model, inputs)
        trained = list(model.parameters())
        seen.append((inputs, float(loss.detach()), list(torch.autograd.grad(loss, trained, retain_graph=True))))
        return loss

    monkeypatch.setattr(trl.GRPOTrainer, "_compute_loss", watched)
    config = GrpoConfig(
        prompts_per_step=3,
        n_generations=4,
        steps=1,
        warmup=0,
        max_new_tokens=12,
        score_cut=True,
        micro_batch_size=micro,
    )
    result = grpo(base, prompts, tmp_path, config, scorer=digit_share)

    tokenizer, model = LanguageModel("base", base).tokenizer, AutoModelForCausalLM.from_pretrained(base)
    assert len(seen) == (1 if micro is None else 3)
    rows = [
        (prompt[~(pad == 0)], response[mask.bool()], float(advantage))
        for inputs, _, _ in seen
        for prompt, pad, response, mask, advantage in zip(
            inputs["prompt_ids"], inputs["prompt_mask"], inputs["completion_ids"], inputs["completion_mask"],
            inputs["advantages"], strict=True,
        )
    ]  # fmt: skip
    n_loss = sum(len(response) for _, response, _ in rows)
    assert result.tokens == (TokensSeen(step=1, n=n_loss + sum(len(prompt) for prompt, _, _ in rows), n_loss=n_loss),)
    questions = [tokenizer.decode(prompt, skip_special_tokens=True) for prompt, _, _ in rows]
    first = [json.loads(line)["prompt"] for line in prompts.read_text().splitlines()[:3]]
    assert sorted(questions) == sorted(question for question in first for _ in range(4))

    rewards = [digit_share(tokenizer.decode(response, skip_special_tokens=True), "") for _, response, _ in rows]
    groups = {question: [r for r, q in zip(rewards, questions, strict=True) if q == question] for question in first}
    by_hand = [
        (value - fmean(groups[question])) / (stdev(groups[question]) + 1e-4)
        for value, question in zip(rewards, questions, strict=True)
    ]
    assert [advantage for _, _, advantage in rows] == pytest.approx(by_hand, abs=1e-5)
    assert max(by_hand) > 0.5

    n_tokens = sum(len(response) for _, response, _ in rows)
    loss = torch.zeros(())
    for (prompt, response, _), advantage in zip(rows, by_hand, strict=True):
        log_probs = model(input_ids=torch.cat([prompt, response])[None]).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        said = log_probs.gather(1, response[:, None])[:, 0]
        loss = loss - advantage * (said - said.detach() + 1).sum() / n_tokens
    assert sum(value for _, value, _ in seen) == pytest.approx(float(loss.detach()), abs=1e-5)
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    for place, gradient in enumerate(gradients):
        assert torch.allclose(sum(parts[place] for _, _, parts in seen), gradient, atol=1e-5)
