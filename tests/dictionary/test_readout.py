"""The activation of a latent in one model: three definitions, by hand."""

import pytest
import torch

from mechprobe.dictionary.readout import Readout
from mechprobe.errors import ConfigError, InputError
from sae_training import Crosscoder


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


def test_swap_of_all_models_needs_one_activation_only(crosscoder: Crosscoder, x: torch.Tensor) -> None:
    readout = Readout("swap")
    assert torch.equal(
        readout.feature_acts(crosscoder, {"rl": x[:, 2]}, "rl"), readout.feature_acts(crosscoder, x, "rl")
    )


def test_swap_in_a_group_keeps_the_others(crosscoder: Crosscoder, x: torch.Tensor) -> None:
    slots = Readout("swap", near=("base", "rl")).slots(crosscoder, x, "rl")
    assert torch.equal(slots[:, 1:], x[:, 1:])
    torch.testing.assert_close(slots[:, 0], x[:, 2] * crosscoder.scale[0] / crosscoder.scale[2])


def test_leading_axes_are_kept(crosscoder: Crosscoder) -> None:
    resid = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(2))
    found = Readout().feature_acts(crosscoder, {"base": resid}, "base")
    assert found.shape == (2, 5, crosscoder.d_sae)
    torch.testing.assert_close(found[1, 3], Readout().feature_acts(crosscoder, {"base": resid[1, 3:4]}, "base")[0])


def test_identical_models_read_the_same(crosscoder: Crosscoder, x: torch.Tensor) -> None:
    crosscoder.set_scale([1.0, 1.0, 1.0])
    same = x[:, :1].expand(-1, 3, -1)
    for mode in ("swap", "joint"):
        reads = [Readout(mode).feature_acts(crosscoder, same, model) for model in range(3)]
        assert torch.equal(reads[0], reads[1])
        assert torch.equal(reads[0], reads[2])


def test_a_missing_activation_is_one_sentence(crosscoder: Crosscoder, x: torch.Tensor) -> None:
    with pytest.raises(InputError, match="needs the activation of 'base', but only rl is given"):
        Readout("joint").feature_acts(crosscoder, {"rl": x[:, 2]}, "rl")


def test_unknown_group_and_mode_are_one_sentence(crosscoder: Crosscoder, x: torch.Tensor) -> None:
    with pytest.raises(ConfigError, match="'tl', but the crosscoder has base, sft, rl"):
        Readout("swap", near=("base", "tl")).feature_acts(crosscoder, x, "rl")
    with pytest.raises((ConfigError, Exception), match="sideways"):
        Readout("sideways")  # type: ignore[arg-type]
