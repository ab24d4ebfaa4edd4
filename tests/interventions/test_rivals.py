"""Rivals of a selected set: each by hand, and against a planted cause of rank one."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mechprobe.errors import ConfigError
from mechprobe.evals.tasks import Task, split_halves
from mechprobe.interventions.conditions.fitting import fit_difference, fitting_tasks
from mechprobe.interventions.conditions.plan import Condition, plan
from mechprobe.interventions.conditions.runner import Runner
from mechprobe.interventions.conditions.selection_tokens import SelectionTokens
from mechprobe.interventions.config import InterveneConfig
from mechprobe.interventions.result import InterventionResults
from mechprobe.interventions.result_rows import Effect
from mechprobe.interventions.rival_rows import CurvePoint, RivalEffect
from mechprobe.interventions.rivals.registry import rivals_of
from mechprobe.interventions.rivals.rival import Rival, RivalFit, RivalInput
from mechprobe.interventions.rivals.switched import centers_of
from mechprobe.interventions.rivals.weight_change import weight_change
from mechprobe.interventions.stage import intervene
from mechprobe.interventions.verdicts.faithfulness import area_under
from mechprobe.interventions.verdicts.rivals import _comparison
from mechprobe.models.blocks import find_blocks
from mechprobe.models.family import ModelFamily
from mechprobe.selection.result import Selection
from mechprobe.types import Site
from sae_training import Crosscoder
from tests.builders import build_family
from tests.interventions.test_checks import scores
from tests.planted import (
    SITE,
    answered_by_rl,
    cause_and_decoy,
    cause_in_the_difference,
    plant,
    saying,
    whole_at_the_limit,
)

D = 32


@pytest.fixture(scope="module", autouse=True)
def _whole_responses() -> Iterator[None]:
    with whole_at_the_limit():
        yield


@pytest.fixture(scope="module")
def planted(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[ModelFamily, Crosscoder, Selection, list[tuple[Task, Task]]]:
    paths = build_family(tmp_path_factory.mktemp("rivals"), "neox", noise=0.0)
    direction = saying(paths["base"], "Q")
    plant(paths["rl"], direction)
    family = ModelFamily.load(paths)
    crosscoder = cause_and_decoy(direction, ("base", "sft", "rl"), 64)
    tasks = [answered_by_rl(family, name, form, 64) for name, form in (("sum", "{}+{}="), ("pair", "x{}y{}"))]
    from mechprobe.selection.result import choose

    chosen = choose(scores(crosscoder), "ids:0,1,2", site=SITE, crosscoder=crosscoder.fingerprint, n_controls=3)
    return family, crosscoder, chosen, [split_halves(task, seed=0) for task in tasks]


@pytest.fixture(scope="module")
def results(planted: Any, tmp_path_factory: pytest.TempPathFactory) -> InterventionResults:
    family, crosscoder, selection, halves = planted
    config = InterveneConfig(
        features="ids:0,1,2", n_random=2, n_shuffled=2, edits_base=("transplant",), edits_tuned=("transplant",), sizes=(1, 2),
        doses=(), compare=(), leave_one_out=False, rival_samples=8, rival_doses=(1.0, 4.0),
    )  # fmt: skip
    judging, selecting = [second for _, second in halves], [first for first, _ in halves]
    out = tmp_path_factory.mktemp("rivals") / "i"
    return intervene(family, crosscoder, selection, judging, out, config, selecting=selecting)


def test_a_cause_of_rank_one_is_no_better_than_one_direction(results: InterventionResults) -> None:
    assert [row.verdict for row in results.comparisons] == ["no better than one direction"] * 2
    assert results.verdict.count("no better than one direction") == 2
    base = results.comparisons[0]
    effects = {rival.name: rival for rival in base.rivals}
    assert effects["PCA of the difference, rank 1"].effect.value == base.effect.value > 0.4
    assert effects["mean difference, every token, best dose"].dose == 1.0
    assert effects["mean difference, every token, best dose"].effect.value == pytest.approx(base.effect.value)
    assert effects["weight change, rank 1 a matrix"].effect.value == pytest.approx(base.effect.value)
    assert (base.better_than, base.no_better_than) == (0, 1)
    # all of the cause is in the set, so nothing is left without it
    assert effects["whole difference minus the set"].effect.value == 0
    assert effects["every feature but the set"].effect.value == 0


def test_a_dictionary_of_the_difference_goes_the_same_way(planted: Any, tmp_path: Path) -> None:
    family, others, _, halves = planted
    direction = others.own_decoder("rl")[0] / others.own_decoder("rl")[0].norm()
    dictionary = cause_in_the_difference(direction, 16)
    from mechprobe.selection.result import choose

    chosen = choose(scores(dictionary), "ids:0", site=SITE, crosscoder=dictionary.fingerprint, n_controls=2)
    config = InterveneConfig(
        features="ids:0", n_random=2, n_shuffled=1, n_per_task=16, edits_base=("transplant",), edits_tuned=("transplant", "ablate"),
        sizes=(), doses=(), compare=(), leave_one_out=False, rival_samples=4, rivals=("pca", "coordinates"),
    )  # fmt: skip
    pair, judging = family.subset("base", "rl"), [second for _, second in halves]
    found = intervene(
        pair, dictionary, chosen, judging, tmp_path / "i", config, selecting=[first for first, _ in halves]
    )
    for host, edit in (("base", "transplant"), ("rl", "transplant"), ("rl", "ablate")):
        row = found.condition(f"{host}|{edit}|ids:0")
        ceiling = found.condition(f"{host}|patch|whole residual").accuracy_delta["pooled"]
        assert row.accuracy_delta["pooled"].value == pytest.approx(ceiling.value)
        assert abs(ceiling.value) > 0.4
    # rl is base plus the reconstructed difference
    for host in ("base", "rl"):
        whole = found.condition(f"{host}|replace|reconstruction").accuracy_delta["pooled"]
        assert whole.value == pytest.approx(0.0)

    x = {name: torch.randn(2, 5, D, generator=torch.Generator().manual_seed(k)) for k, name in enumerate(pair.names)}
    runner = Runner(pair, dictionary, chosen, [], config)
    main = next(c for c in plan(chosen, {}, config) if c.name == "base|transplant|ids:0")
    acts = dictionary.encode(torch.stack([x["base"], x["rl"]], dim=2).flatten(0, 1))[:, :1]
    added = (acts * 2.0 * direction).reshape(2, 5, D)
    torch.testing.assert_close(runner.rewrite(main)(x), x["base"] + added, rtol=1e-4, atol=1e-4)
    turned = replace(main, model="rl", donor="base")
    torch.testing.assert_close(runner.rewrite(turned)(x), x["rl"] - added, rtol=1e-4, atol=1e-4)
    control = replace(main, how="shuffled", write_ids=(3,))
    changed = runner.rewrite(control)(x) - x["base"]
    torch.testing.assert_close(changed.norm(dim=-1), added.norm(dim=-1), rtol=1e-3, atol=1e-4)


def test_coordinates_are_ranked_by_what_the_models_differ_in(planted: Any) -> None:
    family, crosscoder, selection, halves = planted
    runner = Runner(family, crosscoder, selection, [halves[0][1]], InterveneConfig(rival_samples=4))
    tokens = SelectionTokens(runner, fitting_tasks(runner, [halves[0][0]]))
    fit = fit_difference(runner, tokens)
    planted_vector = crosscoder.own_decoder("rl")[0]
    assert fit.coordinates[:8].tolist() == planted_vector.abs().argsort(descending=True)[:8].tolist()


def test_curves_have_areas(results: InterventionResults) -> None:
    areas = {curve.kind: curve.area for curve in results.curves if curve.model == "base"}
    assert areas["features of the ranking"] == pytest.approx(1.0)
    assert areas["random features"] == pytest.approx(0.0)
    assert set(areas) == {"features of the ranking", "principal components", "residual coordinates", "random features"}
    assert area_under([CurvePoint(1, 0.0), CurvePoint(2, 1.0), CurvePoint(4, 1.0)], 4) == pytest.approx(0.75)
    assert area_under([CurvePoint(2, 1.0), CurvePoint(4, 1.0)], 4) is None


def test_controls_are_measured_beside_the_set(results: InterventionResults) -> None:
    own = results.condition("base|transplant|ids:0,1,2").change_norm
    for row in results.conditions:
        if row.model == "base" and row.set_kind in ("shuffled", "shifted", "rescaled"):
            assert row.change_norm is not None
            assert (
                row.change_norm <= own * 1.001
            )  # none where other features' directions do not differ between the models
    verdict = results.pooled_verdicts[0]
    assert (verdict.n_rescaled, verdict.n_shifted) == (2, 2)
    assert verdict.change_norm == own
    assert "worth 2 independent draws" in verdict.sentence


def test_without_selection_halves_no_rival_runs(planted: Any, tmp_path: Path) -> None:
    family, crosscoder, selection, halves = planted
    config = InterveneConfig(
        features="ids:0", n_random=0, n_shuffled=1, n_per_task=4, sizes=(), doses=(), compare=(), edits_tuned=(),
        edits_base=("transplant",), leave_one_out=False,
    )  # fmt: skip
    found = intervene(family, crosscoder, selection, [halves[0][1]], tmp_path / "i", config)
    assert found.comparisons == []
    assert "direction" not in found.verdict


@pytest.mark.parametrize("how", ["rescaled", "shuffled", "shifted"])
def test_controls_of_equal_norm_have_the_norm_of_the_set(family: ModelFamily, crosscoder: Crosscoder, how: Any) -> None:
    selection = Selection(
        (1, 2), SITE, "ids:1,2", "joint", (), 0, (), "", crosscoder.fingerprint, scores(crosscoder), 0.2
    )
    runner = Runner(family, crosscoder, selection, [], InterveneConfig())
    x = {name: torch.randn(2, 5, D, generator=torch.Generator().manual_seed(k)) for k, name in enumerate(family.names)}
    own = Condition("s", "base", "transplant", "s", "selected", "edit", (1, 2), "rl")
    ids = (7, 8) if how == "rescaled" else (1, 2)
    control = Condition(
        "c",
        "base",
        "transplant",
        "c",
        how,
        how,
        ids,
        "rl",
        write_ids=(7, 8),
        norm_ids=(1, 2) if how == "rescaled" else (),
    )
    change, turned = (runner.rewrite(c)(x) - x["base"] for c in (own, control))
    norms, others = change.norm(dim=-1), turned.norm(dim=-1)
    moved = others > 1e-6
    assert moved.any()
    assert torch.allclose(others[moved], norms[moved], rtol=1e-4, atol=1e-5)
    if how == "shifted":
        shifts = crosscoder.own_decoder("rl")[[7, 8]] - crosscoder.own_decoder("base")[[7, 8]]
        rest = turned - (turned @ torch.linalg.pinv(shifts)) @ shifts
        assert rest.abs().max() < 1e-4


def effect(rank: int | None, value: float, low: float, high: float, *, damages: bool = False) -> RivalEffect:
    """A rival whose effect is 0.5 less ``value``, with the interval of the difference and a margin of 0.05."""
    return RivalEffect(
        name=f"rank {rank}", condition="c", rank=rank, dose=None, effect=(0.5 - value, 0.0, 1.0), difference=(value, low, high),
        beaten=low > 0, no_worse=value <= 0 or high < 0.05, damages=damages,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("rivals", "verdict"),
    [
        ([effect(1, -0.02, -0.06, 0.02), effect(2, 0.0, 0.0, 0.0)], "no better than one direction"),
        ([effect(1, 0.4, 0.3, 0.5), effect(2, 0.3, 0.2, 0.4), effect(5, 0.0, -0.1, 0.1)], "better than any rival of up to 2 directions, no better than 5"),
        ([effect(1, 0.4, 0.3, 0.5), effect(5, -0.2, -0.3, -0.1)], "better than any rival of one direction, worse than 5"),
        ([effect(1, -0.2, -0.3, -0.1)], "worse than one direction"),
        ([effect(1, 0.4, 0.3, 0.5), effect(5, 0.2, 0.1, 0.3)], "better than any rival of up to 5 directions"),
        ([effect(1, 0.1, -0.1, 0.3)], "not clearly better than one direction"),
        ([effect(1, 0.4, 0.3, 0.5), effect(1, 0.01, -0.02, 0.04)], "no better than one direction"),
        ([effect(1, 0.4, 0.3, 0.5), effect(1, -0.3, -0.4, -0.2, damages=True)], "better than any rival of one direction"),
        ([effect(128, -0.2, -0.3, -0.1), effect(None, -0.2, -0.3, -0.1)], ""),
    ],
)  # fmt: skip
def test_the_comparison_by_hand(rivals: list[RivalEffect], verdict: str) -> None:
    main = Condition("base|transplant|s", "base", "transplant", "s", "selected", "edit", tuple(range(50)), "rl")
    assert _comparison(main, rivals, Effect(0.5, 0.4, 0.6), able=True).verdict == verdict
    assert _comparison(main, rivals, Effect(0.5, 0.4, 0.6), able=False).verdict == ""


def built(rival: Rival, fit: RivalFit, host: str = "base") -> Any:
    return rival.build(
        RivalInput(
            host=host,
            donor="rl" if host == "base" else "base",
            sign=1.0 if host == "base" else -1.0,
            fit=fit,
            dose=2.0,
            selected=lambda x: x[host] + 1.0,
            others=lambda: lambda x: x[host],
        )
    )


def test_rivals_by_hand() -> None:
    fit = RivalFit(
        means={place: torch.arange(4.0) for place in ("every token", "last prompt token", "response tokens")},
        components=torch.eye(4),
        coordinates=torch.tensor([2, 0, 1, 3]),
        centers={1: torch.tensor([[3.0, 0, 0, 0]])},
    )
    rivals = {
        rival.name: rival
        for rival in rivals_of(
            ("mean", "pca", "coordinates", "whole", "switched", "complement"), n_features=3, d_model=4
        )
    }
    base, rl = torch.zeros(1, 2, 4), torch.tensor([[[3.0, 1.0, 2.0, 0.0], [0.5, 0.1, 0.0, 0.0]]])
    x = {"base": base, "rl": rl}
    assert torch.equal(built(rivals["mean difference, every token, best dose"], fit)(x)[0, 0], 2 * torch.arange(4.0))
    assert torch.equal(
        built(rivals["mean difference, every token, best dose"], fit, "rl")(x), rl - 2 * torch.arange(4.0)
    )
    assert torch.equal(built(rivals["PCA of the difference, rank 2"], fit)(x)[0, 0], torch.tensor([3.0, 1.0, 0.0, 0.0]))
    assert "PCA of the difference, rank 4" in rivals  # ranks beyond the width are the width
    assert [name for name in rivals if "coordinates" in name] == [
        f"residual coordinates, rank {rank}" for rank in (1, 2, 3, 4)
    ]
    two = built(rivals["residual coordinates, rank 2"], fit)(x)
    assert torch.equal(two, torch.tensor([[[3.0, 0.0, 2.0, 0.0], [0.5, 0.0, 0.0, 0.0]]]))
    assert torch.equal(built(rivals["residual coordinates, rank 2"], fit, "rl")(x), rl - two)
    assert not base.any()  # the host's own residual is not written
    scaled = built(rivals["whole difference at the norm of the set"], fit)(x)
    assert torch.allclose(scaled.norm(dim=-1), torch.full((1, 2), 2.0))
    assert torch.allclose(torch.nn.functional.cosine_similarity(scaled, rl, dim=-1), torch.ones(1, 2))
    switched = built(rivals["switched steering, 1 vector"], fit)(x)
    assert torch.equal(switched[0], torch.tensor([[3.0, 0, 0, 0], [0, 0, 0, 0]]))
    assert torch.equal(built(rivals["whole difference minus the set"], fit)(x), rl - 1.0)


def test_centers_find_clusters_beside_zero() -> None:
    generator = torch.Generator().manual_seed(0)
    noise = 0.05 * torch.randn(300, 4, generator=generator)
    rows = noise + torch.tensor([[0.0, 0, 0, 0], [2.0, 0, 0, 0], [0, 3.0, 0, 0]]).repeat(100, 1)
    found = centers_of(rows, 2, seed=0)
    assert sorted(round(float(value)) for value in found.norm(dim=1)) == [2, 3]
    assert torch.equal(centers_of(torch.zeros(5, 4), 1, seed=0), torch.zeros(1, 4))


def test_a_weight_change_of_full_rank_is_the_donor_and_is_taken_back(planted: Any) -> None:
    family, *_ = planted
    host, donor = family["base"].hf, family["rl"].hf
    before = {name: value.clone() for name, value in host.state_dict().items()}
    with weight_change(host, donor, Site.parse(SITE), 1000):
        changed, own = find_blocks(host), find_blocks(donor)
        for block in range(2):
            for name, value in changed[block].state_dict().items():
                assert torch.equal(value, own[block].state_dict()[name])
    assert all(torch.equal(value, before[name]) for name, value in host.state_dict().items())


@pytest.mark.parametrize("doses", [(), (float("inf"),), (0.0,)])
def test_doses_that_choose_nothing_are_refused(doses: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError, match="rival_doses"):
        InterveneConfig(rival_doses=doses)
