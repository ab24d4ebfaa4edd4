"""Generation and the evaluate stage on tiny models."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mechprobe.errors import ConfigError, InputError, ModelError
from mechprobe.evals.config import EvaluateConfig
from mechprobe.evals.scorers.parse import scorer
from mechprobe.evals.stage import evaluate_outcomes
from mechprobe.evals.tasks import Task
from mechprobe.models.family import ModelFamily
from mechprobe.models.generation import generate
from mechprobe.records import Sample

PROMPTS = ["abc", "a longer prompt", "9"]


@pytest.fixture(scope="module")
def family(llama_family: dict[str, Path]) -> ModelFamily:
    return ModelFamily.load(llama_family)


def test_greedy_equals_a_loop_without_padding_or_cache(family: ModelFamily) -> None:
    base = family["base"]
    for prompt, made in zip(PROMPTS, generate(base.hf, base.tokenizer, PROMPTS, max_new_tokens=6), strict=True):
        ids = base.tokenizer(prompt).input_ids
        start = len(ids)
        for _ in range(6):
            with torch.no_grad():
                token = int(base.hf(torch.tensor([ids])).logits[0, -1].argmax())
            if token == base.tokenizer.eos_token_id:
                break
            ids.append(token)
        assert list(made.token_ids) == ids[start:]


def test_sampling_is_seeded_and_leaves_the_global_state(family: ModelFamily) -> None:
    base = family["base"]
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = generate(base.hf, base.tokenizer, PROMPTS, max_new_tokens=6, temperature=1.0, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert first == generate(base.hf, base.tokenizer, PROMPTS, max_new_tokens=6, temperature=1.0, seed=1)
    assert first != generate(base.hf, base.tokenizer, PROMPTS, max_new_tokens=6, temperature=1.0, seed=2)


def test_prefix_is_part_of_the_response(family: ModelFamily) -> None:
    base = family["base"]
    for made in generate(base.hf, base.tokenizer, PROMPTS, max_new_tokens=3, prefix="Yes"):
        assert made.text.startswith("Yes")


def test_prompt_longer_than_the_context(family: ModelFamily) -> None:
    base = family["base"]
    with pytest.raises(InputError, match=r"\b71\b.*\b60\b"):
        generate(base.hf, base.tokenizer, ["x" * 70], max_new_tokens=4)


def tasks(answers: dict[str, str]) -> list[Task]:
    samples = tuple(Sample(prompt, "t", prompt, answer) for prompt, answer in answers.items())
    return [Task("t", samples, scorer("exact"), 6)]


def test_stage_scores_writes_and_is_skipped_when_done(family: ModelFamily, tmp_path: Path) -> None:
    rl = family["rl"]
    whole = generate(rl, rl.tokenizer, PROMPTS, max_new_tokens=6)
    stop = next(
        text[1] for text in (response.text for response in whole) if len(text) > 1 and text[0].strip() != text[1]
    )
    made = dict(zip(PROMPTS, generate(rl, rl.tokenizer, PROMPTS, max_new_tokens=6, stop=(stop,)), strict=True))
    truth = {prompt: response.text for prompt, response in made.items()}
    asked = [replace(task, stop=(stop,)) for task in tasks(truth)]
    config = EvaluateConfig(force_prefix="Z")
    outcomes = evaluate_outcomes(family, asked, tmp_path / "e", config)
    assert any(outcomes.right("rl", "t"))
    assert outcomes.right("rl", "t") == [r.finish == "stop" and bool(r.text.strip()) for r in made.values()]
    assert set(outcomes.models) == {"base", "sft", "rl", "base+prefix"}
    assert outcomes.samples["abc"].prompt == "abc"
    before = (tmp_path / "e" / "manifest.json").stat().st_mtime_ns
    evaluate_outcomes(family, asked, tmp_path / "e", config)
    assert (tmp_path / "e" / "manifest.json").stat().st_mtime_ns == before


def test_an_interrupted_stage_resumes_at_the_next_model(
    family: ModelFamily, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mechprobe.evals.stage as module

    answers = dict.fromkeys(PROMPTS, "x")
    whole = evaluate_outcomes(family, tasks(answers), tmp_path / "whole")
    real, calls = module.run_tasks, []

    def failing(model, *args, **kwargs):  # type: ignore[no-untyped-def]
        calls.append(model.name)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(model, *args, **kwargs)

    monkeypatch.setattr(module, "run_tasks", failing)
    with pytest.raises(KeyboardInterrupt):
        evaluate_outcomes(family, tasks(answers), tmp_path / "cut")
    resumed = evaluate_outcomes(family, tasks(answers), tmp_path / "cut")
    assert calls == ["base", "sft", "sft", "rl"]
    assert resumed.records == whole.records
    names = {path.name for path in (tmp_path / "cut").iterdir()}
    assert names == {path.name for path in (tmp_path / "whole").iterdir()}
    for name in names - {"manifest.json"}:
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_models_that_are_not_one_family_are_errors(llama_family: dict[str, Path], tmp_path: Path) -> None:
    from tests.builders import build_family, swap_letters

    deeper = build_family(tmp_path / "deeper", n_layers=2)
    with pytest.raises(ModelError, match="layers"):
        ModelFamily.load({"base": llama_family["base"], "rl": deeper["rl"]})
    other = build_family(tmp_path / "other")
    swap_letters(other["rl"])
    with pytest.raises(ModelError, match="tokenizer"):
        ModelFamily.load({"base": llama_family["base"], "rl": other["rl"]})
    with pytest.raises(ModelError, match="nowhere"):
        ModelFamily.load({"base": tmp_path / "nowhere"})
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"config\.json"):
        ModelFamily.load({"base": tmp_path / "empty"})
    with pytest.raises(ModelError, match="'rl'"):
        _ = ModelFamily.load({"base": llama_family["base"]})["rl"]


def test_unknown_scorer_is_a_config_error() -> None:
    with pytest.raises(ConfigError):
        scorer("nope")


def test_the_folders_generation_settings_do_not_leak(family: ModelFamily) -> None:
    base = family["base"]
    before = generate(base.hf, base.tokenizer, PROMPTS, max_new_tokens=8)
    base.hf.generation_config.repetition_penalty = 3.0
    base.hf.generation_config.num_beams = 3
    try:
        assert generate(base.hf, base.tokenizer, PROMPTS, max_new_tokens=8) == before
        assert base.hf.generation_config.num_beams == 3
    finally:
        base.hf.generation_config.repetition_penalty = None
        base.hf.generation_config.num_beams = None
