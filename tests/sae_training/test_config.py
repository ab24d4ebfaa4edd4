"""Configurations are frozen and validated, and every mistake gives an error of one sentence."""

from __future__ import annotations

from typing import Any

import pytest

from sae_training import CrosscoderConfig, FrozenConfig, SaeTrainingError, TrainConfig

GOOD: dict[str, Any] = {"n_models": 3, "d_model": 8, "d_sae": 16, "k": 4}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"d_sea": 3}, "'d_sea'.*'d_sae'"),
        ({"k": 17}, "k = 17.* d_sae = 16"),
        ({"n_models": 1}, "n_models = 1"),
        ({"d_model": (8, 8)}, "2.* n_models = 3"),
        ({"d_model": 0}, "d_model = 0"),
        ({"model_names": ("a", "b")}, "2.* n_models = 3"),
        ({"model_names": ("a", "b", "b")}, "model_names.*'b'"),
        ({"model_names": ("a", "b", "../c")}, "model_names.*c"),
        ({"model_names": ("a", "b", "")}, "model_names.*''"),
        ({"n_dedicated": (1, 2)}, "n_dedicated.* 3 models"),
        ({"n_dedicated": (9, 9, 9)}, "27.* d_sae = 16"),
        ({"prefixes": (4, 16)}, "prefixes.*'matryoshka'.*'batchtopk'"),
        ({"prefixes": (4, 4, 16), "variant": "matryoshka"}, "prefixes.*d_sae = 16"),
        ({"prefixes": (4, 8), "variant": "matryoshka"}, "prefixes.*d_sae = 16"),
        ({"variant": "bachtopk"}, "variant = 'bachtopk'"),
        ({"n_shared": 2}, "n_shared = 2.*'batchtopk'"),
        ({"n_shared": 2, "variant": "l1", "d_model": (3, 4, 5)}, r"n_shared = 2.*\[3, 4, 5\]"),
        ({"n_shared": 12, "variant": "l1", "n_dedicated": (1, 2, 3)}, "18.* d_sae = 16"),
        ({"sites": ("a",)}, r"sites = \['a'\]"),
        ({"sites": ("a", "a")}, r"sites = \['a', 'a'\]"),
        ({"initial_threshold": 0.0}, "initial_threshold = 0.0"),
    ],
)
def test_crosscoder_mistakes(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(SaeTrainingError, match=said):
        CrosscoderConfig(**{**GOOD, **changes})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"learning_rate": 1}, "'learning_rate'"),
        ({"n_tokens": 0}, "n_tokens = 0"),
        ({"lr_warmup_frac": 0.5, "lr_decay_frac": 0.6}, "lr_warmup_frac = 0.5.*lr_decay_frac = 0.6"),
        ({"schedule": "constant", "lr_decay_frac": 0.1}, r"'constant'.*lr_decay_frac.*0\.1"),
        ({"precision": "float16"}, "precision = 'float16'"),
        ({"accumulation": 0}, "accumulation = 0"),
    ],
)
def test_training_mistakes(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(SaeTrainingError, match=said):
        TrainConfig(**{"n_tokens": 10, **changes})


def test_missing_key_is_named() -> None:
    with pytest.raises(SaeTrainingError, match=r"CrosscoderConfig.*d_sae"):
        CrosscoderConfig(n_models=2, d_model=4)  # pyright: ignore[reportCallIssue]


def test_default_names_follow_the_number_of_models() -> None:
    assert CrosscoderConfig(**GOOD).model_names == ("model_0", "model_1", "model_2")


def test_nested_dictionaries_by_default_and_by_choice() -> None:
    assert CrosscoderConfig(**GOOD).prefix_ends == (16,)
    assert CrosscoderConfig(**GOOD, variant="matryoshka").prefix_ends == (2, 4, 8, 16)
    assert CrosscoderConfig(**GOOD, variant="matryoshka", prefixes=(5, 16)).prefix_ends == (5, 16)


def test_paper_preset() -> None:
    config, training = CrosscoderConfig.paper(d_model=2560), TrainConfig.paper()
    assert (config.n_models, config.d_sae, config.variant) == (3, 32768, "l1")
    assert (training.batch_size, training.lr, training.l1_coefficient) == (1024, 1e-4, 2.0)
    assert training.l1_warmup_frac == 0.05
    assert CrosscoderConfig.paper(d_model=4, d_sae=7).d_sae == 7


def test_learning_rate_schedule_by_hand() -> None:
    # 100 tokens in steps of 10; warm-up over the first 20, decay over the last 20
    config = TrainConfig(n_tokens=100, batch_size=10, lr=1.0, lr_warmup_frac=0.2, lr_decay_frac=0.2)
    rates = [config.lr_at(tokens) for tokens in range(0, 100, 10)]
    assert rates == pytest.approx([0.5, 1, 1, 1, 1, 1, 1, 1, 1, 0.5])


def test_accumulated_batches_are_one_step_of_the_schedule() -> None:
    whole = TrainConfig(n_tokens=100, batch_size=20, lr=1.0, lr_warmup_frac=0.4)
    parts = TrainConfig(n_tokens=100, batch_size=5, accumulation=4, lr=1.0, lr_warmup_frac=0.4)
    assert [parts.lr_at(n) for n in (0, 20, 40)] == [whole.lr_at(n) for n in (0, 20, 40)] == [0.5, 1.0, 1.0]
    assert parts.dead_window == whole.dead_window == 20


def test_the_papers_schedule_is_constant() -> None:
    config = TrainConfig(n_tokens=100, batch_size=10, lr=0.5, schedule="constant")
    assert {config.lr_at(tokens) for tokens in range(0, 100, 10)} == {0.5}
    assert config.replace(lr=1.0).lr_at(95) == 1.0
    paper = TrainConfig.paper()
    assert paper.schedule == "constant"
    assert {paper.lr_at(tokens) for tokens in (0, 1, 399_999_999)} == {1e-4}


def test_sources_are_models_or_pairs_of_model_and_site() -> None:
    plain = CrosscoderConfig(**GOOD)
    assert (plain.n_sources, plain.source_names, plain.widths) == (3, plain.model_names, (8, 8, 8))
    config = CrosscoderConfig(
        n_models=2, d_model=(3, 5), d_sae=8, k=2, model_names=("base", "rl"), sites=("resid_post.1", "resid_post.2")
    )
    assert config.source_names == ("base/resid_post.1", "base/resid_post.2", "rl/resid_post.1", "rl/resid_post.2")
    assert (config.widths, config.d_all, config.same_width) == ((3, 3, 5, 5), 16, False)


def test_l1_warms_up_over_its_share() -> None:
    config = TrainConfig(n_tokens=100, batch_size=10, l1_coefficient=2.0, l1_warmup_frac=0.4)
    assert [config.l1_at(tokens) for tokens in (0, 10, 20, 40, 90)] == pytest.approx([0, 0.5, 1, 2, 2])
    assert [config.l0_at(tokens) for tokens in (0, 10, 20, 40, 90)] == pytest.approx([0, 0.25, 0.5, 1, 1])
    assert TrainConfig(n_tokens=100, l1_coefficient=2.0, l1_warmup_frac=0.0).l1_at(0) == 2.0


def test_frozen_and_replaceable() -> None:
    config = CrosscoderConfig(**GOOD)
    with pytest.raises(ValueError, match="frozen"):
        config.k = 5  # pyright: ignore[reportAttributeAccessIssue]
    assert config.replace(k=5).k == 5
    with pytest.raises(SaeTrainingError, match="k = 99"):
        config.replace(k=99)


def test_a_package_may_raise_its_own_error() -> None:
    class OwnError(Exception):
        pass

    class OwnConfig(FrozenConfig):
        error_type = OwnError
        inner: int = 0

    with pytest.raises(OwnError, match=r"'iner'.*'inner'"):
        OwnConfig(iner=1)  # pyright: ignore[reportCallIssue]
