"""Arms as a stage: the layout that other stages read, the proof of prompts, on-policy and matched SFT, adapters, frozen parts."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mechprobe import ModelFamily
from mechprobe.emergence.arms import find_arms, with_checkpoints
from mechprobe.emergence.config import EmergenceConfig
from mechprobe.errors import ArtifactError, ConfigError, InputError, ModelError
from mechprobe.models.generation import generate
from mechprobe.models.load import LanguageModel
from mechprobe.posttrain import (
    GrpoConfig,
    LoraConfig,
    MatchKlConfig,
    OnPolicyConfig,
    PosttrainResult,
    SftConfig,
    grpo,
    sft,
)
from mechprobe.posttrain.kl import KlProbe
from mechprobe.posttrain.stage import plan, settings_of
from mechprobe.posttrain.weights import trained_sizes
from mechprobe.stage_folder import read_manifest
from tests.sums import N_PROMPTS, digit_share, even_length, write_prompts

SFT = SftConfig(lr=3e-3, prompts_per_step=8, steps=12, freeze=("model.embed_tokens.*", "lm_head.*"))
GRPO = GrpoConfig(lr=1e-3, prompts_per_step=8, n_generations=2, steps=2, max_new_tokens=6, score_cut=True)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.fixture(scope="module")
def arms(
    base: Path, prompts: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, PosttrainResult]]:
    """Both arms in one folder."""
    out = tmp_path_factory.mktemp("arms")
    return out, {
        "sft": sft(base, prompts, out, SFT),
        "rl": grpo(base, prompts, out, GRPO.replace(checkpoints=(1,)), scorer=digit_share),
    }


def test_family_and_emergence_read_the_arms(base: Path, arms: tuple[Path, dict[str, PosttrainResult]]) -> None:
    out, results = arms
    models = with_checkpoints({"base": str(base), "sft": str(out / "sft"), "rl": str(out / "rl")}, out)
    assert models == {"base": str(base)} | results["sft"].models(out / "sft") | results["rl"].models(out / "rl")
    family = ModelFamily.load(models)
    found = {arm.name: arm.checkpoints for arm in find_arms(family.names, EmergenceConfig())}
    assert found == {"sft": ("sft@step_000010", "sft"), "rl": ("rl@step_000001", "rl")}
    assert len({model.fingerprint for model in family}) == 5


def test_frozen_parts_are_bit_equal_and_the_rest_is_trained(
    base: Path, arms: tuple[Path, dict[str, PosttrainResult]]
) -> None:
    out, results = arms
    before = weights(base)
    fixed = {"model.embed_tokens.weight", "lm_head.weight"}
    for folder in (out / "sft", out / "sft/step_000010"):
        after = weights(folder)
        assert {name for name in before if torch.equal(before[name], after[name])} == fixed
        assert {tensor.dtype for tensor in after.values()} == {tensor.dtype for tensor in before.values()}
    assert results["sft"].n_parameters - results["sft"].n_trained == sum(before[name].numel() for name in fixed)


def test_both_arms_prove_that_they_saw_the_same_prompts(arms: tuple[Path, dict[str, PosttrainResult]]) -> None:
    out, results = arms
    first, second = (read_manifest(out / arm)["config"]["prompts"] for arm in ("sft", "rl"))
    assert first == second
    for name in ("sha256", "order_sha256", "n", "file"):
        assert getattr(results["sft"].prompts, name) == getattr(results["rl"].prompts, name)
    assert (results["sft"].prompts.visits, results["rl"].prompts.visits) == (12 * 8, 2 * 8)


def test_a_finished_arm_is_reused_and_other_settings_are_refused(
    base: Path, prompts: Path, arms: tuple[Path, dict[str, PosttrainResult]]
) -> None:
    out, results = arms
    changed = (out / "sft/model.safetensors").stat().st_mtime_ns
    assert sft(base, prompts, out, SFT.replace(state_every=7)) == results["sft"]
    assert (out / "sft/model.safetensors").stat().st_mtime_ns == changed
    with pytest.raises(ArtifactError, match=r"lr: 0\.003 in the folder, 0\.004 now"):
        sft(base, prompts, out, SFT.replace(lr=4e-3))


def test_arms_in_one_folder_share_base_prompts_and_order(
    base: Path, prompts: Path, arms: tuple[Path, dict[str, PosttrainResult]], tmp_path: Path
) -> None:
    out, _ = arms
    with pytest.raises(ArtifactError, match="another order of the prompts"):
        sft(base, prompts, out, SFT.replace(shuffle=True), arm="other")
    with pytest.raises(ArtifactError, match=r"other prompts and another order of the prompts.*give the same base"):
        sft(base, write_prompts(tmp_path / "fewer.jsonl", n=20), out, SFT, arm="other")
    with pytest.raises(ArtifactError, match="another base"):
        sft(out / "rl", prompts, out, SFT, arm="other")
    assert not (out / "other").exists()


def test_other_responses_to_the_same_prompts_are_another_arm_of_the_same_order(
    base: Path, arms: tuple[Path, dict[str, PosttrainResult]], tmp_path: Path
) -> None:
    out, results = arms
    terse = sft(base, write_prompts(tmp_path / "terse.jsonl", response="{c}"), out, SFT.replace(steps=1), arm="terse")
    assert terse.prompts.sha256 == results["sft"].prompts.sha256


def test_on_policy_sft_trains_on_right_samples_of_the_base(base: Path, prompts: Path, tmp_path: Path) -> None:
    config = SFT.replace(steps=2, prompts_per_step=2, max_new_tokens=40, on_policy=OnPolicyConfig(n=2))
    result = sft(base, prompts, tmp_path, config, scorer=even_length)
    lines = [json.loads(line) for line in (tmp_path / "sft-onpolicy/responses.jsonl").read_text().splitlines()]
    assert result.on_policy is not None
    assert result.on_policy.prompts_with_right == len(lines) == N_PROMPTS - result.prompts.left_out
    assert 0 < len(lines) < N_PROMPTS, "some prompts must have a right sample and some none"
    assert result.on_policy.right == sum(line["n_right"] for line in lines) / (2 * N_PROMPTS)
    assert all(even_length(line["response"], "") and 1 <= line["n_right"] <= 2 for line in lines)
    again = sft(base, prompts, tmp_path / "again", config, scorer=even_length)
    assert again == result
    with pytest.raises(ModelError, match="None of the 2 samples of any prompt is right"):
        sft(base, prompts, tmp_path / "never", config, scorer=lambda _response, _answer: False)


def test_matched_sft_stops_at_the_divergence_of_the_other_arm(
    base: Path, prompts: Path, arms: tuple[Path, dict[str, PosttrainResult]]
) -> None:
    out, _ = arms
    match = MatchKlConfig(run=str(out / "sft/step_000010"), n_prompts=12)
    result = sft(base, prompts, out, SFT.replace(match_kl=match, max_new_tokens=8))
    assert result.arm == "sft-matched"
    assert result.kl is not None
    assert result.kl.reached
    assert result.planned == 12
    # The same training passes through the checkpoint, whose divergence is the target (up to its rounding).
    assert result.steps in (9, 10, 11)
    values = [interval.value for _, interval in result.kl.course]
    assert values[-1] >= result.kl.target.value > max(values[:-1])
    assert result.kl.target.low < result.kl.target.value < result.kl.target.high
    assert len(result.curve) == result.steps == len(values)


def test_a_divergence_that_is_never_reached_is_told(
    base: Path, prompts: Path, arms: tuple[Path, dict[str, PosttrainResult]], tmp_path: Path
) -> None:
    out, _ = arms
    match = MatchKlConfig(run=str(out / "sft"), n_prompts=4, every=2)
    result = sft(base, prompts, tmp_path, SFT.replace(steps=4, lr=1e-6, match_kl=match, max_new_tokens=8))
    assert result.kl is not None
    assert (result.kl.reached, result.steps, [step for step, _ in result.kl.course]) == (False, 4, [2, 4])


def test_the_matched_arm_must_have_seen_the_same_prompts(
    base: Path, arms: tuple[Path, dict[str, PosttrainResult]], tmp_path: Path
) -> None:
    out, _ = arms
    fewer, match = write_prompts(tmp_path / "fewer.jsonl", n=20), MatchKlConfig(run=str(out / "rl"))
    with pytest.raises(ArtifactError, match=r"rl has other prompts"):
        sft(base, fewer, tmp_path / "out", SFT.replace(match_kl=match, max_new_tokens=8))


def test_divergence_is_zero_for_the_base_and_equals_a_sum_by_hand(
    base: Path, arms: tuple[Path, dict[str, PosttrainResult]]
) -> None:
    model, tuned = LanguageModel("base", base), LanguageModel("sft", arms[0] / "sft")
    probe = KlProbe(model.hf, model.tokenizer, [[1, 5, 6], [1, 7]], 6, 0)
    assert probe.measure(model.hf).value == pytest.approx(0, abs=1e-6)
    total, n = 0.0, 0
    said = generate(tuned.hf, model.tokenizer, [[1, 5, 6], [1, 7]], max_new_tokens=6, temperature=1.0, seed=0)
    for prompt, response in zip([[1, 5, 6], [1, 7]], said, strict=True):
        ids = torch.tensor([[*prompt, *response.written]])
        p, q = (each.hf(input_ids=ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1) for each in (tuned, model))
        total, n = total + float((p.exp() * (p - q)).sum()), n + len(response.written)
    found = probe.measure(tuned.hf)
    assert (found.value, found.n) == (pytest.approx(total / n, rel=1e-4), n)
    assert found.value > 0.01


def test_adapters_are_saved_for_the_family(base: Path, prompts: Path, tmp_path: Path) -> None:
    config = SFT.replace(steps=3, checkpoints=(2,), lora=LoraConfig(rank=2), freeze=("model.layers.0.*",))
    result = sft(base, prompts, tmp_path, config)
    assert (tmp_path / "sft/adapter_model.safetensors").is_file()
    assert not (tmp_path / "sft/model.safetensors").exists()
    for folder in (tmp_path / "sft", tmp_path / "sft/step_000002"):
        targets = json.loads((folder / "adapter_config.json").read_text())["target_modules"]
        assert targets == sorted(targets), "the order of a set differs between processes"
    assert result.n_trained == sum(trained_sizes(LanguageModel("base", base), config).values())
    family = ModelFamily.load({"base": base, **result.models(tmp_path / "sft")})
    plain = {name: value.clone() for name, value in family["base"].hf.named_parameters()}
    moved = {name for name, value in family["sft"].hf.named_parameters() if not torch.equal(plain[name], value)}
    assert moved
    assert all(name.startswith("model.layers.1.") for name in moved)
    assert result.n_trained < result.n_parameters / 4


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        (SFT.replace(freeze=("transformer.*",)), ConfigError, r"freeze names 'transformer\.\*', but no parameter"),
        (SFT.replace(freeze=("*",)), ConfigError, "leaves no parameter to train"),
        (SFT.replace(checkpoints=(5, 13)), ConfigError, "names step 13, but the training has 12"),
        (SFT.replace(lora=LoraConfig(targets=("nothing",))), ConfigError, r"lora\.targets = \['nothing'\] do not fit"),
        (SFT.replace(max_length=8), InputError, "but 8 are allowed"),
        (GRPO.replace(max_new_tokens=60), InputError, "has room for 4 beside a response of 60"),
        (GRPO.replace(scorer="boxes"), ConfigError, "Scorer 'boxes' is unknown"),
    ],
)
def test_what_cannot_work_is_refused_before_the_training(
    base: Path, prompts: Path, tmp_path: Path, config: SftConfig | GrpoConfig, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        (sft if isinstance(config, SftConfig) else grpo)(base, prompts, tmp_path / "out", config)  # type: ignore[arg-type]
    assert not list(tmp_path.glob("out/*/manifest.json"))


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        (SFT.replace(lora=LoraConfig(), freeze=("model.layers.*",)), ConfigError, "leaves no adapter to train"),
        (
            SFT.replace(lora=LoraConfig(targets=("q_proj", "no"))),
            ConfigError,
            r"\['q_proj', 'no'\] do not fit the model",
        ),
        (SFT.replace(lora=LoraConfig(targets=("norm",))), ConfigError, r"lora\.targets = \['norm'\] do not fit"),
        (SFT.replace(micro_batch_size=3), ConfigError, r"micro_batch_size = 3 do not share evenly"),
        (GRPO.replace(micro_batch_size=3), ConfigError, r"16 responses, .* micro_batch_size = 3 do not share evenly"),
        (SFT.replace(prompts={"response_field": "said"}), InputError, "has no response; add it"),
        (SFT.replace(max_length=8), InputError, "but 8 are allowed"),
        (
            SFT.replace(max_length=8, on_policy=OnPolicyConfig(), max_new_tokens=6),
            InputError,
            "a sequence of 8 has room for 2 beside a response of 6",
        ),
    ],
)
def test_a_plan_refuses_what_the_training_would(
    base: Path, prompts: Path, tmp_path: Path, config: SftConfig | GrpoConfig, error: type[Exception], message: str
) -> None:
    config = config.replace(prompts=config.prompts.replace(file=str(prompts)))
    with pytest.raises(error, match=message):
        plan(base, None, tmp_path, config)


@pytest.mark.parametrize(
    "name", ["", " ", "a/b", "..", "base", "step_1", "step_000010", "-x", "a=b", "rl@2", "\x1b[31m"]
)
def test_an_arm_has_the_name_of_a_model(base: Path, prompts: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="An arm cannot be named") as told:
        plan(base, prompts, tmp_path, SFT, arm=name)
    assert str(told.value).isprintable()


@pytest.mark.parametrize(
    "written",
    [
        '{"stage": "posttrain"}',
        '{"stage": "posttrain", "config": [], "models": {}}',
        '{"stage": "posttrain", "config": {"prompts": 1}, "models": {}}',
        '{"stage": "posttrain", "config": {"prompts": {}}, "models": "base"}',
        "[" * 100_000,
        "1" * 5_000,
        "garbage",
    ],
)
def test_a_manifest_of_something_else_beside_an_arm_is_told(
    base: Path, prompts: Path, tmp_path: Path, written: str
) -> None:
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/manifest.json").write_text(written)
    with pytest.raises(ArtifactError, match=r"bad/manifest\.json (does not say|cannot be read|is not readable)"):
        plan(base, prompts, tmp_path, SFT)


def fails_at_first(response: str, answer: str) -> bool:
    raise SystemExit(response + answer)


@pytest.mark.parametrize(
    ("config", "scorer", "error"),
    [
        (GRPO, fails_at_first, ConfigError),
        (GRPO, lambda _response, _answer: 10**400, ConfigError),
        (SFT.replace(lr=1e30, warmup=0), None, ModelError),
        (SFT.replace(on_policy=OnPolicyConfig(n=2), max_new_tokens=6), lambda _response, _answer: False, ModelError),
        (SFT.replace(on_policy=OnPolicyConfig(n=2), max_new_tokens=40), fails_at_first, ConfigError),
    ],
    ids=["exit", "huge", "lr", "none-right", "on-policy-exit"],
)
def test_a_training_that_ends_before_it_kept_anything_leaves_no_folder(
    base: Path, prompts: Path, tmp_path: Path, config: SftConfig | GrpoConfig, scorer: object, error: type[Exception]
) -> None:
    with pytest.raises(error):
        (sft if isinstance(config, SftConfig) else grpo)(base, prompts, tmp_path, config, scorer=scorer)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_a_training_that_diverges_ends_with_the_reason(base: Path, prompts: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"is not finite at step \d+; lower lr"):
        sft(base, prompts, tmp_path, SFT.replace(lr=1e30, warmup=0))
    assert not (tmp_path / "sft/manifest.json").exists()
    result = sft(base, prompts, tmp_path, SFT.replace(steps=1))  # the corrected command needs no --force
    assert result.steps == 1


def test_the_kl_term_of_grpo_holds_the_arm_near_the_base(base: Path, prompts: Path, tmp_path: Path) -> None:
    config = GRPO.replace(steps=3, lr=1e-2, warmup=0)
    free = grpo(base, prompts, tmp_path, config, arm="free", scorer=digit_share)
    held = grpo(base, prompts, tmp_path, config.replace(beta=10.0), arm="held", scorer=digit_share)
    assert "kl" not in free.curve[-1]
    assert held.curve[0]["kl"] == pytest.approx(0, abs=1e-5)
    assert held.curve[-1]["kl"] > 0


def test_a_prompt_without_an_answer_is_refused_for_grpo(base: Path, tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    file.write_text('{"prompt": "1+1?", "response": "2"}\n')
    with pytest.raises(InputError, match=r"p\.jsonl:1: prompt '1' has no 'answer', which the scorer 'exact' reads"):
        grpo(base, file, tmp_path / "out", GRPO)


def test_a_method_refuses_the_settings_of_the_other() -> None:
    with pytest.raises(ConfigError, match="sft takes SftConfig, not GrpoConfig"):
        settings_of("sft", SftConfig, GRPO)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigError, match="grpo takes GrpoConfig, not SftConfig"):
        settings_of("grpo", GrpoConfig, SFT)  # pyright: ignore[reportArgumentType]
    assert settings_of("grpo", GrpoConfig, None) == GrpoConfig()
