"""The two L1 artefacts of arXiv 2504.02922: both mislead decoder norms (MAS), neither misleads the classes.

*Complete Shrinkage*: the penalty shrinks a feature's decoder in base to zero although base has the concept.
*Latent Decoupling*: base explains a concept with separate features, so the tuned model's feature looks specific.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from mechprobe.features.config import FeaturesConfig
from mechprobe.features.table.feature_table import feature_table
from sae_training import Crosscoder, CrosscoderConfig
from tests.small_dictionaries import NAMES, make_store

D_MODEL = 24
CONFIG = FeaturesConfig(batch_rows=256)
L1 = 2.0  # lambda of the paper's preset
STRENGTH = 1.6  # activation of every active feature


@dataclass
class Family:
    """A hand-written dictionary and the activations of the models that it describes."""

    decoder: Tensor
    x: Tensor
    acts: Tensor

    def table(self) -> pd.DataFrame:
        return feature_table(self.crosscoder(), make_store(self.x), CONFIG).to_pandas()

    def crosscoder(self) -> Crosscoder:
        """A crosscoder that encodes every feature exactly: the directions are orthogonal, and each feature reads a model that has it."""
        d_sae = len(self.decoder)
        config = CrosscoderConfig(n_models=3, d_model=D_MODEL, d_sae=d_sae, variant="l1", model_names=NAMES)
        crosscoder = Crosscoder(config)
        encoder = torch.linalg.pinv(self.acts) @ self.x.flatten(1)  # the residuals of a unit of each feature
        encoder = torch.linalg.pinv(encoder).T
        with torch.no_grad():
            crosscoder.decoder.copy_(self.decoder.reshape(d_sae, -1))
            crosscoder.encoder.copy_(encoder)
        crosscoder.set_scale([1.0, 1.0, 1.0])
        return crosscoder

    def l1_loss(self) -> float:
        """The paper's objective with these activations: squared error plus lambda sum_k f_k sum_m ‖W_dec[k, m]‖₂."""
        error = self.x - torch.einsum("nk,kmd->nmd", self.acts, self.decoder)
        penalty = (self.acts * self.decoder.norm(dim=-1).sum(-1)).sum(-1)
        return float((error.square().sum((1, 2)) + L1 * penalty).double().mean())


def directions(n: int) -> Tensor:
    return torch.linalg.qr(torch.randn(D_MODEL, D_MODEL, generator=torch.Generator().manual_seed(1)))[0][:n]


def activity(n_features: int, seed: int, *, value: float = STRENGTH, n_rows: int = 2000) -> Tensor:
    return value * (torch.rand(n_rows, n_features, generator=torch.Generator().manual_seed(seed)) < 0.1).float()


def honest(strengths: list[tuple[float, float, float]], seed: int = 0) -> Family:
    """Features with orthogonal directions and given strengths in every model; the dictionary equals the truth."""
    units = directions(len(strengths))
    truth = units.unsqueeze(1) * torch.tensor(strengths).unsqueeze(2)
    acts = activity(len(strengths), seed)
    return Family(truth, torch.einsum("nk,kmd->nmd", acts, truth), acts)


def shrunk() -> tuple[Family, Family]:
    """The truth, and the dictionary that L1 prefers: its first feature is in all models, but weaker in base.

    For one feature of activation f and true strength r in a model, ``(r f − w f)² + λ f w`` is least at
    ``w = max(0, r − λ / 2f)`` (by setting the derivative to zero): all decoders lose λ / 2f, and base, with r below it, loses all.
    """
    truth = honest([(0.6, 1.0, 1.0), (1.0, 1.0, 1.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)])
    norms = (truth.decoder.norm(dim=-1, keepdim=True) - L1 / (2 * STRENGTH)).clamp(min=0)
    return truth, Family(norms * directions(4).unsqueeze(1), truth.x, truth.acts)


def decoupled(n_parts: int) -> tuple[Family, Family]:
    """The truth, and a dictionary of equal loss that splits the first concept between tuned models and base.

    With ``n_parts`` of 2, base has two features with half of the concept each.
    """
    truth = honest([(1.0, 1.0, 1.0), (1.0, 1.0, 1.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)])
    concept = truth.decoder[0].clone()
    tuned = concept.clone()
    tuned[0] = 0
    base_only = torch.zeros(n_parts, 3, D_MODEL)
    base_only[:, 0] = concept[0] / n_parts
    decoder = torch.cat([tuned.unsqueeze(0), truth.decoder[1:], base_only])
    acts = torch.cat([truth.acts, truth.acts[:, :1].expand(-1, n_parts)], dim=1)
    return truth, Family(decoder, truth.x, acts)


def with_exact_acts(family: Family) -> Crosscoder:
    """The decoupled features are active together, so no linear inverse separates them: all of them read the concept."""
    crosscoder = Family(family.decoder[:4], family.x, family.acts[:, :4]).crosscoder()
    n_parts = len(family.decoder) - 4
    config = crosscoder.config.replace(d_sae=4 + n_parts)
    whole = Crosscoder(config)
    with torch.no_grad():
        whole.decoder.copy_(family.decoder.flatten(1))
        whole.encoder.copy_(torch.cat([crosscoder.encoder, crosscoder.encoder[:1].expand(n_parts, -1)]))
    whole.set_scale([1.0, 1.0, 1.0])
    return whole


def fooled_by_mas(frame: pd.DataFrame, feature: int) -> bool:
    """Whether decoder norms say that base lacks the feature."""
    return bool(frame.loc[feature, "mas_base"] < 0.05) and frame.loc[feature, "class_by_norm"] == "sft+rl"


def test_an_honest_dictionary_is_believed() -> None:
    frame = honest([(1.0, 1.0, 1.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (1.0, 0.0, 0.0), (0.0, 1.0, 1.0)]).table()
    assert frame["class"].tolist() == ["shared", "sft-only", "rl-only", "base-only", "sft+rl"]


def test_complete_shrinkage_is_what_l1_prefers_and_is_not_believed() -> None:
    truth, family = shrunk()
    assert family.l1_loss() < truth.l1_loss()  # the objective prefers the artefact
    for factor in (0.98, 1.02):  # and exactly this size of it
        assert Family(family.decoder * factor, family.x, family.acts).l1_loss() > family.l1_loss()
    frame = family.table()
    assert fooled_by_mas(frame, 0)
    assert frame.loc[0, "nu_error_rl"] == pytest.approx(0.6, abs=0.02)  # the error of base contains 0.6 of it
    assert frame.loc[0, "nu_reconstruction_rl"] == pytest.approx(0.0, abs=1e-5)  # the reconstruction does not
    assert frame["class"].tolist() == ["unconfirmed", "shared", "sft-only", "rl-only"]
    assert truth.table()["class"].tolist() == ["shared", "shared", "sft-only", "rl-only"]


@pytest.mark.parametrize("n_parts", [1, 2])
def test_latent_decoupling_costs_l1_nothing_and_is_not_believed(n_parts: int) -> None:
    truth, family = decoupled(n_parts)
    assert family.l1_loss() == pytest.approx(truth.l1_loss(), rel=1e-6)  # the objective does not distinguish them
    frame = feature_table(with_exact_acts(family), make_store(family.x), CONFIG).to_pandas()
    assert fooled_by_mas(frame, 0)
    assert frame.loc[0, "nu_error_rl"] == pytest.approx(0.0, abs=1e-5)  # the error of base contains none of it
    assert frame.loc[0, "nu_reconstruction_rl"] == pytest.approx(
        1.0, abs=0.1
    )  # the other features of base contain all of it
    assert frame["class_by_norm"].tolist()[4:] == ["base-only"] * n_parts
    assert frame["class"].tolist() == ["unconfirmed", "shared", "sft-only", "rl-only", *["unconfirmed"] * n_parts]


@pytest.mark.slow
def test_each_artefact_needs_its_own_nu() -> None:
    """Both thresholds are needed: without either, one of the artefacts counts as a specific feature."""
    without_error = CONFIG.replace(thresholds={"nu_error_max": 1e9})
    without_reconstruction = CONFIG.replace(thresholds={"nu_reconstruction_max": 1e9})
    shrinkage, decoupling = shrunk()[1], decoupled(1)[1]
    first = feature_table(shrinkage.crosscoder(), make_store(shrinkage.x), without_error)
    second = feature_table(with_exact_acts(decoupling), make_store(decoupling.x), without_reconstruction)
    assert first.classes[0] == second.classes[0] == "sft+rl"
    third = feature_table(shrinkage.crosscoder(), make_store(shrinkage.x), without_reconstruction)
    fourth = feature_table(with_exact_acts(decoupling), make_store(decoupling.x), without_error)
    assert third.classes[0] == fourth.classes[0] == "unconfirmed"


def test_the_dictionaries_fire_as_they_were_built_to() -> None:
    for family in (shrunk()[0], shrunk()[1]):
        acts = family.crosscoder().encode(family.x).detach()
        np.testing.assert_allclose(acts.numpy(), family.acts.numpy(), atol=1e-4)
    _, family = decoupled(2)
    np.testing.assert_allclose(
        with_exact_acts(family).encode(family.x).detach().numpy(), family.acts.numpy(), atol=1e-4
    )
