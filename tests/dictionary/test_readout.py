"""The activation of a feature in one model: three definitions by hand, and the folded encoders that compute them."""

import pytest
import torch

from mechprobe.dictionary.readout import AllReadouts, FoldedEncoder, Readout
from mechprobe.errors import ConfigError, InputError
from sae_training import Crosscoder, CrosscoderConfig
from tests.small_dictionaries import NAMES, make_crosscoder

READOUTS = [
    Readout(mode, near) for mode, near in (("swap", None), ("swap", ("base", "rl")), ("joint", None), ("single", None))
]


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(6, 3, 8, generator=torch.Generator().manual_seed(1))


def test_joint_is_what_the_crosscoder_encodes(crosscoder: Crosscoder, x: torch.Tensor) -> None:
    for model in ("base", 2):
        assert torch.equal(Readout("joint").feature_acts(crosscoder, x, model), crosscoder.encode(x))


def test_single_leaves_the_other_slots_empty(crosscoder: Crosscoder, x: torch.Tensor) -> None:
    alone = torch.zeros_like(x)
    alone[:, 1] = x[:, 1]
    assert torch.equal(Readout("single").feature_acts(crosscoder, x, "sft"), crosscoder.encode(alone))


def test_swap_puts_the_scaled_activation_into_every_slot(crosscoder: Crosscoder, x: torch.Tensor) -> None:
    scaled = x[:, 2] / crosscoder.scale[2]
    everywhere = torch.stack([scaled * scale for scale in crosscoder.scale], dim=1)
    found = Readout("swap").feature_acts(crosscoder, x, "rl")
    torch.testing.assert_close(found, crosscoder.encode(everywhere))


def test_swap_of_all_models_needs_one_residual_only(crosscoder: Crosscoder, x: torch.Tensor) -> None:
    readout = Readout("swap")
    assert torch.equal(
        readout.feature_acts(crosscoder, {"rl": x[:, 2]}, "rl"), readout.feature_acts(crosscoder, x, "rl")
    )


def test_swap_in_a_group_keeps_the_others(crosscoder: Crosscoder, x: torch.Tensor) -> None:
    stacked = Readout("swap", near=("base", "rl")).encoder_input(crosscoder, x, "rl")
    assert torch.equal(stacked[:, 1:], x[:, 1:])
    torch.testing.assert_close(stacked[:, 0], x[:, 2] * crosscoder.scale[0] / crosscoder.scale[2])


def test_the_slot_map_of_every_definition(crosscoder: Crosscoder) -> None:
    assert Readout("joint").slots(crosscoder, "rl") == {"base": [0], "sft": [1], "rl": [2]}
    assert Readout("single").slots(crosscoder, "rl") == {"rl": [2]}
    assert Readout("swap").slots(crosscoder, 1) == {"sft": [0, 1, 2]}
    group = Readout("swap", near=("rl", "base"))
    assert group.slots(crosscoder, "rl") == {"rl": [0, 2], "sft": [1]}
    assert group.slots(crosscoder, "sft") == {"sft": [1], "base": [0], "rl": [2]}


def test_models_of_different_widths_share_no_slot() -> None:
    config = CrosscoderConfig(n_models=3, d_model=(8, 8, 6), d_sae=12, k=3, model_names=NAMES)
    crosscoder = Crosscoder(config)
    with pytest.raises(ConfigError, match=r"base .*8.* rl .*6"):
        Readout("swap").slots(crosscoder, "base")
    assert Readout("swap", near=("base", "sft")).slots(crosscoder, "sft") == {"sft": [0, 1], "rl": [2]}


@pytest.mark.parametrize("variant", ["batchtopk", "jumprelu", "l1", "topk"])
@pytest.mark.parametrize("readout", READOUTS, ids=str)
def test_folded_encoders_compute_the_read_out(variant: str, readout: Readout, x: torch.Tensor) -> None:
    crosscoder = make_crosscoder(variant=variant)
    crosscoder.threshold.fill_(0.3)
    by_name = dict(zip(NAMES, x.unbind(1), strict=True))
    features = torch.tensor([7, 0, 3])
    joint, *own = AllReadouts(crosscoder, readout).encode(x)
    assert torch.equal(joint, crosscoder.encode(x))
    for index, name in enumerate(NAMES):
        expected = readout.feature_acts(crosscoder, x, name)
        assert (expected > 0).any()
        torch.testing.assert_close(own[index].detach(), expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(FoldedEncoder(crosscoder, readout, name)(by_name), expected, atol=1e-5, rtol=1e-5)
        some = FoldedEncoder(crosscoder, readout, name, features)(by_name)
        torch.testing.assert_close(some, expected[:, features], atol=1e-5, rtol=1e-5)


def test_leading_axes_are_kept(crosscoder: Crosscoder) -> None:
    resid = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(2))
    found = Readout().feature_acts(crosscoder, {"base": resid}, "base")
    assert found.shape == (2, 5, crosscoder.d_sae)
    torch.testing.assert_close(found[1, 3], Readout().feature_acts(crosscoder, {"base": resid[1, 3:4]}, "base")[0])


def test_identical_models_have_equal_activations(crosscoder: Crosscoder, x: torch.Tensor) -> None:
    crosscoder.set_scale([1.0, 1.0, 1.0])
    same = x[:, :1].expand(-1, 3, -1)
    for mode in ("swap", "joint"):
        found = [Readout(mode).feature_acts(crosscoder, same, model) for model in range(3)]
        assert torch.equal(found[0], found[1])
        assert torch.equal(found[0], found[2])


def test_a_missing_residual_is_named(crosscoder: Crosscoder, x: torch.Tensor) -> None:
    with pytest.raises(InputError, match=r"joint .*'base'.* rl"):
        Readout("joint").feature_acts(crosscoder, {"rl": x[:, 2]}, "rl")
    with pytest.raises(InputError, match=r"joint .*'base'.* rl"):
        FoldedEncoder(crosscoder, Readout("joint"), "rl")({"rl": x[:, 2]})


def test_unknown_groups_and_modes_are_named(crosscoder: Crosscoder, x: torch.Tensor) -> None:
    with pytest.raises(ConfigError, match=r"near .*'tl'.* base, sft, rl"):
        Readout("swap", near=("base", "tl")).feature_acts(crosscoder, x, "rl")
    with pytest.raises((ConfigError, Exception), match="sideways"):
        Readout("sideways")  # type: ignore[arg-type]
