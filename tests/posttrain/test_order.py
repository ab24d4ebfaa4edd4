"""The order of the prompts is a function of the file and of two settings, whatever an arm does with it."""

import pytest
from hypothesis import given, strategies as st

from mechprobe.errors import ConfigError
from mechprobe.posttrain.config import GrpoConfig, PosttrainConfig, SftConfig, read_settings
from mechprobe.posttrain.order import order_hash, visits


@given(n=st.integers(1, 30), short=st.integers(0, 60), more=st.integers(0, 60), shuffle=st.booleans())
def test_a_longer_training_begins_with_the_visits_of_a_shorter_one(
    n: int, short: int, more: int, shuffle: bool
) -> None:
    config = PosttrainConfig(shuffle=shuffle, order_seed=3)
    every = visits(n, short + more, config)
    assert every[:short] == visits(n, short, config)
    for start in range(0, (short + more) // n * n, n):
        assert sorted(every[start : start + n]) == list(range(n))


def test_both_arms_have_one_order_and_passes_differ_only_when_shuffled() -> None:
    sft, grpo = SftConfig(shuffle=True, lr=1e-3, seed=5), GrpoConfig(shuffle=True, n_generations=4, seed=9)
    assert visits(10, 25, sft) == visits(10, 25, grpo)
    assert visits(10, 20, sft)[:10] != visits(10, 20, sft)[10:]
    assert visits(3, 7, SftConfig()) == [0, 1, 2, 0, 1, 2, 0]


def test_the_hash_tells_orders_and_prompts_apart() -> None:
    ids = [f"p{index}" for index in range(8)]
    plain, shuffled = PosttrainConfig(), PosttrainConfig(shuffle=True)
    assert order_hash(ids, plain) == order_hash(ids, plain.replace(order_seed=7, seed=4, lr=1.0))
    others = {order_hash(ids, shuffled), order_hash(ids, shuffled.replace(order_seed=1)), order_hash(ids[::-1], plain)}
    assert len({order_hash(ids, plain), *others}) == 4


def test_checkpoints_are_log_spaced_or_given() -> None:
    assert PosttrainConfig().kept(640) == (10, 20, 40, 80, 160, 320)
    assert PosttrainConfig().kept(10) == ()
    assert PosttrainConfig(checkpoints=(3, 7, 9)).kept(9) == (3, 7)
    with pytest.raises(ConfigError, match="must be positive and rise"):
        PosttrainConfig(checkpoints=(20, 10))


def test_steps_and_warm_up() -> None:
    config = SftConfig(epochs=8, prompts_per_step=256)
    assert config.n_steps(20_480) == 640
    assert config.warmup_steps(640) == 64
    assert SftConfig(epochs=1, prompts_per_step=10).n_steps(21) == 3
    assert GrpoConfig(steps=7, warmup=5).n_steps(999) == 7
    assert GrpoConfig(steps=7, warmup=5).warmup_steps(7) == 5
    with pytest.raises(ConfigError, match="neither a share below 1 nor a whole number"):
        SftConfig(warmup=1.5)


def test_one_file_holds_the_settings_of_both_arms(tmp_path) -> None:
    (tmp_path / "prompts.jsonl").touch()
    file = tmp_path / "both.toml"
    file.write_text(
        'base = "org/base"\nshuffle = true\nprompts.file = "prompts.jsonl"\n[sft]\nlr = 1e-4\n[grpo]\nlr = 1e-5\nn_generations = 4\n'
    )
    base, sft = read_settings(SftConfig, file, ["weight_decay=0.01", "on_policy.n=3"])
    _, grpo = read_settings(GrpoConfig, file, extra={"seed": 3})
    assert isinstance(sft, SftConfig)
    assert isinstance(grpo, GrpoConfig)
    assert (base, sft.lr, sft.weight_decay, sft.on_policy and sft.on_policy.n) == ("org/base", 1e-4, 0.01, 3)
    assert (grpo.lr, grpo.n_generations, grpo.seed, grpo.shuffle) == (1e-5, 4, 3, True)
    assert grpo.prompts.file == sft.prompts.file == str(tmp_path / "prompts.jsonl")
    with pytest.raises(ConfigError, match="n_generation"):
        read_settings(SftConfig, None, ["n_generations=4"])
