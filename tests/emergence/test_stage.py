"""Emergence: onsets planted and found, numbers of a second implementation, the claim both ways, the stage end to end."""

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings, strategies as st

import mechprobe as mp
from mechprobe.cli.app import main
from mechprobe.cli.emergence import emergence_lines
from mechprobe.emergence.arms import Arm, checkpoint_folders, find_arms, with_checkpoints
from mechprobe.emergence.causal import causal_course
from mechprobe.emergence.claim import judge
from mechprobe.emergence.config import EmergenceConfig, TrajectoryThresholds
from mechprobe.emergence.curves import ArmNumbers, measure_curves
from mechprobe.emergence.dictionaries import pair_jobs
from mechprobe.emergence.overlap import chance_overlap, churn, jaccard_matrix, over_seeds, overlap_matrix, top_sets
from mechprobe.emergence.result import ArmCourse, PairCourse
from mechprobe.emergence.stage import arm_numbers, feature_frame
from mechprobe.emergence.trajectories import NO_ONSET, kinds, trajectories
from mechprobe.errors import ArtifactError, ConfigError
from mechprobe.features.config import FeaturesConfig
from mechprobe.features.table.feature_table import feature_table
from mechprobe.files import dump_json, read_json, sha256_file, write_json
from mechprobe.report.figures.emergence import overlap_figure
from mechprobe.report.pages.emergence import emergence_report
from mechprobe.selection.rankings.relie import IndirectEffects
from mechprobe.selection.rankings.relie_intervals import group_draws
from mechprobe.stage_folder import Stage
from sae_training import Crosscoder, CrosscoderConfig, PlantedConfig, PlantedFeatures, TrainConfig, recovery, train
from sae_training.evaluation import evaluate
from tests.builders import build_family
from tests.small_dictionaries import make_crosscoder, make_store

LIMITS = TrajectoryThresholds()
NAMES = ("base", "rl@step_000001", "rl@step_000002", "rl@step_000003", "rl@step_000004", "rl")
ARM = Arm("rl", NAMES[1:], tuple(np.linspace(0, 1, 6).tolist()), "steps")


def course(norms: np.ndarray, **changes: Any) -> Any:
    limits = LIMITS.replace(**changes)
    return trajectories(norms, np.zeros(len(norms), bool), np.linspace(0, 1, norms.shape[1]), limits)


# --- onset ------------------------------------------------------------------------------------------------------


@given(
    n=st.integers(2, 12),
    data=st.data(),
    base=st.floats(0, 0.6),
    noise=st.floats(0, 0.09),
    size=st.floats(0.01, 100),
    sign=st.booleans(),
)
@settings(max_examples=200, deadline=None)
def test_the_onset_of_a_jump_is_exact(
    n: int, data: st.DataObject, base: float, noise: float, size: float, sign: bool
) -> None:
    onset = data.draw(st.integers(1, n))
    wobble = np.array(data.draw(st.lists(st.floats(-1, 1), min_size=n + 1, max_size=n + 1)))
    strength = (
        np.where(np.arange(n + 1) >= onset, 1.0, base) if sign else np.where(np.arange(n + 1) >= onset, base, 1.0)
    )
    rise = 1.0 - base
    norms = np.abs(strength + noise * rise * wobble)[None] * size
    found = course(norms)
    assert found.kind == ["emerging" if sign else "fading"]
    assert found.onset[0] == onset
    assert (onset - 1) / n <= found.half_rise[0] <= onset / n
    assert found.persistence[0] == 1.0
    assert np.isnan(found.half_life[0])


@given(n=st.integers(2, 12), data=st.data(), noise=st.floats(0, 0.04))
@settings(max_examples=200, deadline=None)
def test_the_onset_of_a_slow_rise_is_exact_to_one_checkpoint(n: int, data: st.DataObject, noise: float) -> None:
    """Rising evenly by at least an eighth a checkpoint: two checkpoints of it are above the onset share and noise."""
    last_zero = data.draw(st.integers(max(0, n - 8), n - 1))
    wobble = np.array(data.draw(st.lists(st.floats(-1, 1), min_size=n + 1, max_size=n + 1)))
    strength = ((np.arange(n + 1) - last_zero) / (n - last_zero)).clip(0)
    found = course(np.abs(strength + noise * wobble * (np.arange(n + 1) > 0))[None], onset_share=0.15)
    assert found.kind == ["emerging"]
    assert abs(int(found.onset[0]) - (last_zero + 1)) <= 1


def test_one_noisy_checkpoint_begins_nothing() -> None:
    found = course(np.array([[0.1, 0.9, 0.1, 0.1, 0.8, 1.0]]))
    assert found.onset.tolist() == [4]


def test_what_comes_and_goes_has_a_half_life() -> None:
    found = course(np.array([[0.0, 1.0, 1.0, 0.2, 0.0], [1.0, 1.0, 0.2, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0, 0.95]]))
    assert found.kind == ["transient", "dipping", "steady"]
    assert found.onset.tolist() == [1, 2, NO_ONSET]
    assert found.half_life[0] == pytest.approx(0.25 * 1 + 0.25 * 0.5 / 0.8)  # from the first peak, at 0.25
    assert found.persistence.tolist()[0] == pytest.approx(0.75)
    assert np.isnan([found.half_rise[2], found.half_life[2], found.persistence[2]]).all()


def test_dead_features_have_no_course() -> None:
    norms = np.array([[0.0, 1.0], [0.0, 0.0], [1.0, 1.0]])
    assert kinds(norms, np.array([True, False, False]), 0.2) == ["dead", "dead", "steady"]


# --- planted ----------------------------------------------------------------------------------------------------


def planted(seed: int = 0) -> tuple[PlantedFeatures, list[str], list[int]]:
    """Six models: shared features, and features that come, go or pass at every checkpoint."""
    truth = PlantedFeatures.make(
        PlantedConfig(n_models=6, n_shared=44, n_specific=0, d_model=48, density=0.06, seed=seed)
    )
    strength, kind, onset = truth.strength.clone(), ["steady"] * 44, [NO_ONSET] * 44
    columns = torch.arange(6)
    for place in range(30):
        begins = place % 5 + 1
        if place < 10:
            kind[place], strength[place] = "emerging", (columns >= begins).float()
        elif place < 20:
            kind[place], strength[place] = "fading", (columns < begins).float()
        elif begins < 4:
            kind[place], strength[place] = "transient", ((columns >= begins) & (columns < begins + 2)).float()
        if kind[place] != "steady":
            onset[place] = begins
    return replace(truth, strength=strength), kind, onset


def test_planted_courses_are_found_by_a_trained_dictionary() -> None:
    truth, kind, onset = planted()
    config = CrosscoderConfig(n_models=6, d_model=48, d_sae=64, k=4, model_names=NAMES)
    crosscoder = Crosscoder(config)
    train(
        crosscoder, truth.batches(512, seed=1), TrainConfig(n_tokens=700 * 512, batch_size=512, lr=1e-2, log_every=700)
    )
    density = evaluate(crosscoder, truth.batches(512, seed=2, n_batches=8)).density
    match = recovery(crosscoder, truth, density)
    assert float((match.cosine > 0.95).float().mean()) >= 0.98
    store = make_store(truth.tokens(2000, seed=3), NAMES)
    frame = feature_frame(feature_table(crosscoder, store, FeaturesConfig(readout="joint")), ARM, EmergenceConfig())
    found = frame.iloc[match.match.tolist()]
    for name in ("emerging", "fading", "transient", "steady"):
        said = np.array(found["kind"].tolist()) == name
        true = np.array(kind) == name
        assert (said & true).sum() / true.sum() >= 0.98, name
        assert (said & true).sum() / said.sum() >= 0.98, name
    places = [NAMES.index(name) if isinstance(name, str) else NO_ONSET for name in found["onset"]]
    assert max(abs(a - b) for a, b in zip(places, onset, strict=True)) <= 1
    assert np.mean([a == b for a, b in zip(places, onset, strict=True)]) >= 0.98
    base_lacks = np.array([k == "emerging" for k in kind])
    assert found["confirmed_rl"].to_numpy()[base_lacks].all()  # latent scaling agrees that base lacks them


def test_identical_checkpoints_show_nothing() -> None:
    crosscoder = make_crosscoder(names=NAMES)
    with torch.no_grad():
        crosscoder.decoder.copy_(crosscoder.decoder[:, :8].repeat(1, 6))
    crosscoder.set_scale([0.7] * 6)
    x = torch.randn(300, 1, 8, generator=torch.Generator().manual_seed(3)).expand(-1, 6, -1).contiguous()
    config = EmergenceConfig(draws=100)
    table = feature_table(crosscoder, make_store(x, NAMES), FeaturesConfig(readout="joint"))
    frame = feature_frame(table, ARM, config)
    assert set(frame["kind"]) <= {"steady", "dead"}
    assert frame["onset"].isna().all()
    curves = measure_curves(arm_numbers(crosscoder, table, ARM, config), draws=100, seed=(0,))
    assert curves.values["specific"].tolist() == [0.0] * 5
    assert curves.values["departure"].max() < 1e-7
    claim = judge({"sft": [curves], "rl": [curves]}, ("sft", "rl"))
    assert claim is not None
    assert not any(clause.holds for clause in claim.clauses)


# --- numbers of a second implementation -------------------------------------------------------------------------


def random_numbers(seed: int, n: int = 40, columns: int = 5) -> ArmNumbers:
    rng = np.random.default_rng(seed)
    decoder = rng.normal(size=(n, columns, 7)) * rng.uniform(0.05, 2, size=(n, columns, 1))
    confirmed = rng.random((n, columns - 1)) < 0.5
    return ArmNumbers(np.abs(decoder).sum(2), decoder, confirmed, np.linspace(0, 1, columns), 10, 2 / 3)


@pytest.mark.parametrize("seed", range(3))
def test_a_naive_implementation_gives_the_same_curves(seed: int) -> None:
    numbers = random_numbers(seed)
    values = measure_curves(numbers, draws=100, seed=(0,)).values
    n, columns, width = numbers.decoder.shape
    norm = [[sum(abs(float(v)) for v in numbers.decoder[k, c]) for c in range(columns)] for k in range(n)]
    for c in range(columns):
        top = sum((norm[k][c] - norm[k][0]) * (norm[k][-1] - norm[k][0]) for k in range(n))
        bottom = sum((norm[k][-1] - norm[k][0]) ** 2 for k in range(n))
        assert values["reached_norm"][c] == pytest.approx(top / bottom, rel=1e-6, abs=1e-12)
        d = numbers.decoder
        top = sum((d[k, c, j] - d[k, 0, j]) * (d[k, -1, j] - d[k, 0, j]) for k in range(n) for j in range(width))
        bottom = sum((d[k, -1, j] - d[k, 0, j]) ** 2 for k in range(n) for j in range(width))
        assert values["reached_shift"][c] == pytest.approx(top / bottom, rel=1e-6, abs=1e-12)
        moved = sum(sum((d[k, c, j] - d[k, 0, j]) ** 2 for j in range(width)) ** 0.5 for k in range(n))
        length = sum(sum(d[k, 0, j] ** 2 for j in range(width)) ** 0.5 for k in range(n))
        assert values["relative_shift"][c] == pytest.approx(moved / length, rel=1e-6, abs=1e-12)
    sets = []
    for c in range(1, columns):
        share = [norm[k][c] / (norm[k][c] + norm[k][0]) for k in range(n)]
        specific = [s >= 2 / 3 or s <= 1 / 3 for s in share]
        agreed = [s and bool(numbers.confirmed[k, c - 1]) for k, s in enumerate(specific)]
        assert values["departure"][c - 1] == pytest.approx(sum(abs(s - 0.5) for s in share) / n, rel=1e-6)
        assert values["specific"][c - 1] == pytest.approx(sum(specific) / n)
        assert values["confirmed"][c - 1] == pytest.approx(sum(agreed) / n)
        sets.append({k for k in range(n) if sum(other > share[k] for other in share) < 10})
    expected = [len(a & b) / 10 for a, b in pairwise(sets)]
    np.testing.assert_allclose(values["adjacent_overlap"], expected)


def test_the_last_checkpoint_has_reached_all_of_the_change_and_base_none() -> None:
    values = measure_curves(random_numbers(4), draws=100, seed=(0,)).values
    for name in ("reached_norm", "reached_shift"):
        assert values[name][[0, -1]].tolist() == [0.0, 1.0]


def test_intervals_hold_their_value_and_one_seed_gives_one_result() -> None:
    one, two = (measure_curves(random_numbers(1), draws=200, seed=(3, 0)).intervals() for _ in range(2))
    assert one == two
    for cells in (one["departure"], one["specific"], one["reached_shift"]):
        assert all(cell.low <= cell.value + 1e-9 and cell.value <= cell.high + 1e-9 and cell.n == 40 for cell in cells)


def test_overlaps_by_hand() -> None:
    sets = [[1, 2, 3, 4], [3, 4, 5, 6], [3, 4, 5, 6]]
    assert overlap_matrix(sets, 4).tolist() == [[1.0, 0.5, 0.5], [0.5, 1.0, 1.0], [0.5, 1.0, 1.0]]
    assert jaccard_matrix(sets)[0].tolist() == [1.0, 2 / 6, 2 / 6]
    assert churn(sets, 4) == [0.5, 0.0]
    assert chance_overlap(50, 400) == 0.125
    values = np.array([[0.9, 0.1], [0.8, 0.9], [0.7, 0.8], [np.nan, 1.0]])
    assert top_sets(values, np.array([True, True, True, True]), 2) == [[0, 1], [1, 2]]
    assert top_sets(values, np.array([False, True, True, True]), 2) == [[1, 2], [1, 2]]


def test_seeds_spread_by_hand_and_one_seed_has_no_interval() -> None:
    found = over_seeds([[[1.0, 0.5], [0.5, 1.0]], [[1.0, 0.8], [0.8, 1.0]], [[1.0, 0.2], [0.2, 1.0]]])
    assert found.at(0, 1) == (0.5, 0.2, 0.8, 3)
    assert found.at(1, 1) == (1.0, 1.0, 1.0, 3)  # the same for every seed
    one = over_seeds([[0.25]]).at(0)
    assert (one.value, one.n) == (0.25, 1)
    assert np.isnan([one.low, one.high]).all()


def test_pairwise_dictionaries_are_trained_for_every_seed() -> None:
    arms = [
        Arm("rl", ("rl@step_000001", "rl"), (0.0, 0.5, 1.0), "steps"),
        Arm("sft", ("x", "sft"), (0.0, 0.5, 1.0), "steps"),
    ]
    (one,) = pair_jobs(arms, EmergenceConfig())["rl"]
    assert [job.name for job in one] == ["pairs/rl@step_000001", "pairs/rl", "pairs/rl_again"]
    repeats = pair_jobs(arms, EmergenceConfig(seeds=3))
    assert repeats["rl"][0] == one  # a further seed leaves what is trained as it is
    assert repeats["sft"][2][2].name == "pairs_seed2/sft_again"
    jobs = [job for arm in repeats.values() for jobs in arm for job in jobs]
    assert len(jobs) == len({job.seed for job in jobs}) == len({job.name for job in jobs}) == 18
    assert pair_jobs(arms, EmergenceConfig(seeds=3, pairs=False)) == {}


# --- the claim --------------------------------------------------------------------------------------------------


def claimed_arm(size: float, reached: list[float], churned: bool, seed: int = 0) -> ArmNumbers:
    """Features whose norms change by up to ``size``, with the given part of the change at each checkpoint."""
    rng = np.random.default_rng(seed)
    base = rng.uniform(1, 2, size=300)
    final = base * np.exp(size * rng.normal(size=300))
    norms = np.stack([base + part * (final - base) for part in reached], axis=1)
    if churned:
        norms[:, -1] = base * np.exp(size * rng.normal(size=300))
    decoder = norms[:, :, None] * np.ones((1, 1, 4)) / 4
    return ArmNumbers(norms, decoder, np.ones((300, 3), bool), np.array([0, 0.3, 0.6, 1]), 50, 2 / 3)


def test_the_claim_is_judged_both_ways() -> None:
    quick, slow = claimed_arm(0.8, [0, 0.8, 0.95, 1], False), claimed_arm(0.1, [0, 0.1, 0.2, 1], True, seed=1)
    curves = [measure_curves(numbers, draws=200, seed=(0, place)) for place, numbers in enumerate((quick, slow))]
    as_claimed = judge({"sft": [curves[0]], "rl": [curves[1]]}, ("sft", "rl"))
    reverse = judge({"sft": [curves[1]], "rl": [curves[0]]}, ("sft", "rl"))
    assert as_claimed is not None
    assert reverse is not None
    assert [clause.holds for clause in as_claimed.clauses] == [True] * 4
    assert [clause.holds for clause in reverse.clauses] == [False] * 4
    assert all("the claim shows" in sentence for sentence in as_claimed.sentences)
    assert all("the claim does not show" in sentence for sentence in reverse.sentences)
    assert judge({"rl": [curves[1]]}, ("sft", "rl")) is None


def test_a_word_must_hold_for_every_seed() -> None:
    quick, slow = claimed_arm(0.8, [0, 0.8, 0.95, 1], False), claimed_arm(0.1, [0, 0.1, 0.2, 1], True, seed=1)
    one, other = (measure_curves(numbers, draws=200, seed=(0, 1)) for numbers in (quick, slow))
    claim = judge({"sft": [one, one], "rl": [other, one]}, ("sft", "rl"))
    assert claim is not None
    assert not any(clause.holds for clause in claim.clauses)


# --- arms -------------------------------------------------------------------------------------------------------


def test_arms_are_read_from_names() -> None:
    names = ["base", "rl@step_000020", "sft", "rl@step_000004", "rl", "other", "sft@step_000002"]
    rl, sft = find_arms(names, EmergenceConfig(final_steps={"rl": 40}))
    assert (rl.name, rl.checkpoints) == ("rl", ("rl@step_000004", "rl@step_000020", "rl"))
    assert (rl.progress, rl.spaced_by) == ((0.0, 0.1, 0.5, 1.0), "steps")
    assert [rl.label(name) for name in rl.checkpoints] == ["4", "20", "end"]
    (named,) = find_arms(["base", "a", "b"], EmergenceConfig(arms={"x": ("a", "b")}))
    assert [named.label(name) for name in named.checkpoints] == ["a", "end"]
    assert (sft.progress, sft.spaced_by) == ((0.0, 0.5, 1.0), "checkpoints")


@pytest.mark.parametrize(
    ("names", "config", "message"),
    [
        (["base", "rl"], {}, "No checkpoint is among the models"),
        (["rl", "rl@step_000001"], {}, "base is 'base'"),
        (["base", "rl@step_000001"], {}, "has 1 checkpoint"),
        (["base", "a", "b"], {"arms": {"x": ("a", "c")}}, "names 'c'"),
        (["base", "a", "b"], {"arms": {"x": ("a", "b", "a")}}, "names a model twice"),
        (["base", "a", "b"], {"arms": {"x": ("base", "a")}}, "names a model twice, or the base"),
        (["base", "rl@step_000009", "rl"], {"final_steps": {"rl": 5}}, "do not rise"),
    ],
)
def test_arms_that_cannot_be_are_refused(names: list[str], config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        find_arms(names, EmergenceConfig(**config))


def test_checkpoint_folders_are_found(tmp_path: Path) -> None:
    for name in ("rl/step_000002", "rl/step_000010", "rl/notes", "sft/step_000004"):
        (tmp_path / name).mkdir(parents=True)
    assert list(checkpoint_folders(tmp_path)) == ["rl@step_000002", "rl@step_000010", "sft@step_000004"]
    assert with_checkpoints({"base": "b"}, "") == {"base": "b"}
    with pytest.raises(ConfigError, match="holds no checkpoint"):
        checkpoint_folders(tmp_path / "rl")


# --- the stage --------------------------------------------------------------------------------------------------

SETTINGS = [
    "--set", "train_sae.d_sae=48", "--set", "train_sae.k=4", "--set", "train_sae.n_tokens=2048",
    "--set", "train_sae.batch_size=128", "--set", "emergence.draws=100", "--set", "emergence.top=8",
    "--set", "emergence.relie_samples=4", "--set", "emergence.relie_steps=2", "--set", "cache.held_out_frac=0.2",
]  # fmt: skip


@pytest.fixture(scope="module")
def given_files(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], Path]:
    folder = tmp_path_factory.mktemp("arms")
    names = ("base", "rl@step_000002", "rl", "sft@step_000004", "sft")
    paths = build_family(folder, names=names)
    prompts = folder / "prompts.jsonl"
    lines = [{"id": f"p{i}", "prompt": f"{i * 7}+{i}=", "response": f"{i * 8} ok"} for i in range(40)]
    prompts.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    options = ["--models", *(f"{name}={path}" for name, path in paths.items()), "--prompts", str(prompts)]
    return [*options, "--sites", "resid_post.1", *SETTINGS], folder


def run(given: list[str], out: Path, *more: str) -> int:
    return main(["emergence", "--out", str(out / "emergence"), *given, *more])


def test_a_dry_run_writes_nothing(
    given_files: tuple[list[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(given_files[0], tmp_path, "--dry-run") == 0
    said = capsys.readouterr().out
    assert "arm rl: base, rl@step_000002, rl" in said
    assert "7 dictionaries × 48 features × 2,048 tokens" in said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("layout", [pytest.param("arms", marks=pytest.mark.slow), "together"])
def test_the_stage_from_models_to_report(
    given_files: tuple[list[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], layout: str
) -> None:
    apart = layout == "arms"
    seeds = 1 if apart else 2
    more = ("--layout", layout, "--seeds", str(seeds), "--set", f"emergence.pairs={str(apart).lower()}")
    assert run(given_files[0], tmp_path, *more) == 0
    said = capsys.readouterr().out
    assert "Report:" in said
    found = mp.Emergence.load(tmp_path / "emergence")
    assert set(found.arms) == set(found.causal) == {"rl", "sft"}
    assert set(found.pairs) == ({"rl", "sft"} if apart else set())
    rl = found.arms["rl"]
    assert [course.seed for course in rl] == list(range(seeds))
    assert rl[0].checkpoints == ("rl@step_000002", "rl")
    assert sum(rl[0].kinds.values()) == 48
    assert len(rl[0].curves["reached_norm"]) == 3
    assert found.claim is not None
    assert all(sentence in said for sentence in found.claim.sentences)
    table = found.table("rl")
    assert len(table) == 48
    relie = table[["relie_base", "relie_rl@step_000002", "relie_rl"]].to_numpy()
    np.testing.assert_allclose(relie[np.isfinite(relie).all(axis=1)].sum(axis=1), 1.0)
    pictures = {path.name for path in (tmp_path / "emergence" / "report" / "figures").iterdir()}
    assert pictures == {"curves.png", "overlap.png", "causal.png"} | ({"pairs.png"} if apart else set())
    page = (tmp_path / "emergence" / "report" / "index.html").read_text(encoding="utf-8")
    assert found.claim.rule.replace("&", "&amp;") in page
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    assert run(given_files[0], tmp_path, *more) == 0
    assert run(given_files[0], tmp_path, *more, "--set", "dtype=bfloat16") == 2
    assert "model_dtypes" in capsys.readouterr().err  # of the store, which is an input of all that is read from it
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    assert dump_json(mp.Emergence.load(tmp_path / "emergence").to_json()) == dump_json(found.to_json())
    check_intervals(found, said, seeds)
    with pytest.raises(ArtifactError, match="no table of arm 'dpo'"):
        found.table("dpo")


def check_intervals(found: mp.Emergence, said: str, seeds: int) -> None:
    """RelIE over prompts, overlaps over seeds, in the result, the table, the JSON and what is printed."""
    causal, table = found.causal["rl"], found.table("rl")
    assert causal.n_groups == causal.n_samples == 4
    for cells in (causal.departure, causal.rank_correlation):
        assert all(cell.n == 4 and cell.low <= cell.high for cell in cells if np.isfinite(cell.low))
    assert np.isfinite([cell.low for cell in causal.departure]).all()
    assert "Intervals of RelIE: 95 % bootstrap over the 4 prompts of 4 held-out samples" in said
    several = table["n_relie"] >= 2
    assert several.any()
    assert table.loc[several, ["low_relie_rl", "high_relie_rl"]].notna().to_numpy().all()
    assert table.loc[~several, ["low_relie_rl", "high_relie_rl"]].isna().to_numpy().all()
    courses, spread = found.arms["rl"], found.to_json()["over_seeds"]["rl"]
    for name in ("overlap", "jaccard"):
        cells = np.array([getattr(course, name) for course in courses])
        np.testing.assert_allclose(spread[name]["mean"], cells.mean(axis=0))
        if seeds > 1:
            np.testing.assert_allclose([spread[name]["low"], spread[name]["high"]], [cells.min(0), cells.max(0)])
        else:
            assert np.isnan(spread[name]["low"]).all()
    assert ("top-8 Jaccard, %, 2 seeds, mean [min, max]" in said) == (seeds == 2)
    assert ("one seed: no interval" in said) == (seeds == 1)


def as_an_earlier_version_wrote_it(folder: Path) -> None:
    """Plain numbers of RelIE, one repetition of pairwise dictionaries without its seed, nothing over seeds."""
    data = read_json(folder / "emergence.json")
    del data["over_seeds"], data["interval_notes"]
    for course in data["causal"].values():
        for name in ("departure", "rank_correlation"):
            course[name] = [cell[0] for cell in course[name]]
            del course[f"{name}_bias"]
        del course["n_groups"], course["draws"]
    for name, (course,) in data["pairs"].items():
        data["pairs"][name] = {key: value for key, value in course.items() if key != "seed"}
    write_json(folder / "emergence.json", data)
    manifest = read_json(folder / "manifest.json")
    manifest["outputs"]["emergence.json"] = sha256_file(folder / "emergence.json")
    write_json(folder / "manifest.json", manifest)


@pytest.fixture
def without_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are made and not drawn, which is what takes time; the tests of the stage draw them."""
    monkeypatch.setattr("mechprobe.report.pages.emergence._png", lambda _: b"")


def result_folder(folder: Path, seeds: int) -> mp.Emergence:
    """A finished stage folder with made-up numbers, RelIE and pairwise dictionaries."""
    rng = np.random.default_rng(0)
    numbers = random_numbers(0, n=20, columns=3)
    arm = Arm("rl", ("rl@step_000001", "rl"), (0.0, 0.5, 1.0), "steps")
    curves = measure_curves(numbers, draws=100, seed=(0,)).intervals()
    courses, pairs = [], []
    for seed in range(seeds):
        overlap = np.where(np.eye(2) > 0, 1.0, rng.random())
        matrices = {"overlap": overlap.tolist(), "jaccard": (overlap / (2 - overlap)).tolist()}
        courses.append(
            ArmCourse(
                arm.name,
                seed,
                "base",
                arm.checkpoints,
                ("1", "end"),
                arm.progress,
                "steps",
                20,
                {"steady": 20},
                curves,
                **matrices,
                churn=[1 - overlap[0, 1]],
                top=10,
                chance=0.5,
            )
        )
        ceiling = {"overlap": 0.5, "found_share": 0.25}
        pairs.append(
            PairCourse(
                arm.name, seed, arm.checkpoints, overlap.tolist(), np.eye(2).tolist(), ceiling, [0.9, 0.8], 10, 0.7
            )
        )
    effects = rng.normal(size=(5, 20, 3))
    measured = IndirectEffects(("base", *arm.checkpoints), np.zeros(3), np.zeros(3), np.ones(3), 5, effects)
    frame = pd.DataFrame({f"nrn_{name}": rng.random(20) for name in arm.checkpoints})
    causal = causal_course(arm, frame, measured, group_draws(5, 100, seed=0))
    quality = {"together_seed0": {"fve": {"base": 0.9}, "l0": 4.0, "dead_frac": 0.0}}
    with Stage.open(folder, name="emergence", config={}) as stage:
        found = mp.Emergence(
            folder, "together", {"rl": tuple(courses)}, {"rl": tuple(pairs)}, {"rl": causal}, quality, None
        )
        stage.finish(outputs=found.save({}))
    return found


@pytest.mark.usefixtures("without_pictures")
@pytest.mark.parametrize("seeds", [1, 3])
def test_overlaps_and_relie_are_shown_with_their_intervals(tmp_path: Path, seeds: int) -> None:
    found = result_folder(tmp_path / "emergence", seeds)
    assert dump_json(mp.Emergence.load(found.folder).to_json()) == dump_json(found.to_json())
    said = "\n".join(emergence_lines(found))
    page = emergence_report(found.folder).with_name("report.md").read_text(encoding="utf-8")
    moved = found.causal["rl"].departure[0]
    assert f"{moved.value:.3f} [{moved.low:.3f}, {moved.high:.3f}]" in said
    assert f"{moved.value:.3f} [{moved.low:.3f}, {moved.high:.3f}]" in page
    cells = [course.overlap[0][1] for course in found.arms["rl"]]
    mean = f"{np.mean(cells):.3f}"
    ends = f"{mean} [{min(cells):.3f}, {max(cells):.3f}]" if seeds > 1 else f"{mean} [no interval]"
    assert f"| rl | 1, end | {seeds} | {ends} |" in page
    for text in (said, page):
        assert ("one seed: no interval" in text) == (seeds == 1)
    percents = [round(100 * value) for value in (np.mean(cells), min(cells), max(cells))]
    neighbors = f"neighbors share {percents[0]}" + (f" [{percents[1]}, {percents[2]}]" if seeds > 1 else " %")
    assert neighbors in said
    data = read_json(found.folder / "emergence.json")
    figure = overlap_figure(data["arms"], data["over_seeds"])
    written = figure.axes[0].texts[1].get_text()
    assert ("one seed: no interval" in figure.axes[-1].get_ylabel()) == (seeds == 1)
    assert written == (f"{percents[0]}\n[{percents[1]}, {percents[2]}]" if seeds > 1 else f"{percents[0]}")


@pytest.mark.usefixtures("without_pictures")
def test_a_result_of_an_earlier_version_is_still_shown(tmp_path: Path) -> None:
    found = result_folder(tmp_path / "emergence", 1)
    as_an_earlier_version_wrote_it(found.folder)
    old = mp.Emergence.load(found.folder)
    assert [cell.value for cell in old.causal["rl"].departure] == [cell.value for cell in found.causal["rl"].departure]
    assert np.isnan(old.causal["rl"].departure[0].low)
    assert old.pairs == found.pairs
    note = "RelIE has no interval: a version without it made this result; --force makes it again."
    page = emergence_report(found.folder).with_name("report.md").read_text(encoding="utf-8")
    for text in ("\n".join(emergence_lines(old)), page):
        assert note in text
        assert "[no interval]" in text


@pytest.mark.slow
def test_resumed_and_made_again_it_gives_the_same_bytes(given_files: tuple[list[str], Path], tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    short = ("--set", "emergence.pairs=false")
    assert run(given_files[0], first, *short) == 0
    assert run(given_files[0], second, *short) == 0
    (second / "emergence" / "manifest.json").unlink()  # as if killed before the end
    (second / "emergence" / "unfinished.json").write_bytes(
        json.dumps(
            {
                k: json.loads((first / "emergence" / "manifest.json").read_text())[k]
                for k in ("stage", "config", "inputs", "models")
            }
        ).encode()
    )
    assert run(given_files[0], second, *short) == 0
    for name in ("emergence.json", "features_rl_seed0.parquet"):
        assert (first / "emergence" / name).read_bytes() == (second / "emergence" / name).read_bytes()


@pytest.mark.slow
def test_other_settings_are_refused_and_force_keeps_what_fits(
    given_files: tuple[list[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = ("--set", "emergence.pairs=false", "--set", "emergence.relie=false")
    assert run(given_files[0], tmp_path, *short) == 0
    store = (tmp_path / "checkpoints" / "cache" / "manifest.json").stat().st_mtime_ns
    capsys.readouterr()
    other = (*short, "--set", "emergence.thresholds.min_change=0.4")
    assert run(given_files[0], tmp_path, *other) == 2
    error = capsys.readouterr().err
    assert "thresholds.min_change: 0.2 in the folder, 0.4 now" in error
    assert "Traceback" not in error
    assert run(given_files[0], tmp_path, *other, "--force") == 0
    assert (tmp_path / "checkpoints" / "cache" / "manifest.json").stat().st_mtime_ns == store


def test_mistakes_are_told_in_a_sentence(
    given_files: tuple[list[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = given_files[1]
    assert (
        main(
            [
                "emergence",
                "--models",
                f"base={folder / 'base'}",
                "--prompts",
                str(folder / "prompts.jsonl"),
                "--out",
                str(tmp_path / "e"),
            ]
        )
        == 2
    )
    assert "No checkpoint is among the models" in capsys.readouterr().err
    assert run(given_files[0], tmp_path, "--checkpoints", str(tmp_path)) == 2
    assert "holds no checkpoint" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
