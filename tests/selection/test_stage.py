"""The select stage on a planted cause: every ranking, what is saved, and mistakes as sentences.

rl is base plus one vector in a block's bias. Feature 0 writes that vector in rl and nothing in base: the cause. Feature 1
reads it (no activation differs as much) and writes the same little vector in both: it correlates without causing.
"""

import copy
import gc
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from mechprobe.cli.selection_lines import selection_lines
from mechprobe.dictionary.readout import Readout
from mechprobe.errors import ArtifactError, ConfigError, MechprobeError, ModelError, SelectionError, SiteError
from mechprobe.evals.stage import evaluate_outcomes
from mechprobe.files import read_json, write_json
from mechprobe.formatting import told_apart
from mechprobe.models.family import ModelFamily
from mechprobe.models.load import LanguageModel
from mechprobe.models.residuals import residuals_plain
from mechprobe.records import Outcomes
from mechprobe.selection.config import Ranking, SelectConfig
from mechprobe.selection.gained import gained_samples, gained_sequences
from mechprobe.selection.rankings.pooled import score_features
from mechprobe.selection.result import Selection, SelectionSummary
from mechprobe.selection.stage import select_features
from mechprobe.stage_folder import Stage, read_manifest
from mechprobe.types import Site
from sae_training import Crosscoder, CrosscoderConfig
from tests.builders import build_family
from tests.planted import SITE, answered_by_rl, cause_and_decoy, plant, saying, whole_at_the_limit

FORMS = {"sum": "{}+{}=", "pair": "x{}y{}", "list": "[{},{}]"}
CONFIG = SelectConfig(rule="top:4", ranking="joint", n_controls=5, n_bootstrap=100, steps=6, also=("ig", "relie"))


@pytest.fixture(scope="module", autouse=True)
def _whole_responses() -> Iterator[None]:
    with whole_at_the_limit():
        yield


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> tuple[ModelFamily, Crosscoder]:
    paths = build_family(tmp_path_factory.mktemp("planted"), "neox", names=("base", "rl"), noise=0.0)
    direction = saying(paths["base"], 40)
    plant(paths["rl"], direction)
    return ModelFamily.load(paths), cause_and_decoy(direction, ("base", "rl"), 48)


@pytest.fixture(scope="module")
def outcomes(planted: tuple[ModelFamily, Crosscoder], tmp_path_factory: pytest.TempPathFactory) -> Outcomes:
    family, _ = planted
    tasks = [answered_by_rl(family, name, form, 14) for name, form in FORMS.items()]
    return evaluate_outcomes(family, tasks, tmp_path_factory.mktemp("evals") / "e")


@pytest.fixture(scope="module")
def folder(
    planted: tuple[ModelFamily, Crosscoder], outcomes: Outcomes, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    family, crosscoder = planted
    out = tmp_path_factory.mktemp("select") / "s"
    select_features(crosscoder, family, outcomes, site=SITE, out=out, config=CONFIG)
    return out


@pytest.fixture(scope="module")
def selection(folder: Path) -> Selection:
    return Selection.load(folder)


@pytest.mark.parametrize("ranking", ["joint", "ig", "relie"])
def test_the_cause_comes_first(selection: Selection, ranking: Ranking) -> None:
    assert selection.choose("top:1", ranking=ranking).features == (0,)


def test_the_decoy_leads_by_score_and_has_no_attribution(selection: Selection) -> None:
    assert selection.choose("top:1", ranking="score").features == (1,)
    values = selection.scores.values("ig")
    assert (np.abs(values[:, 1]) < 0.02 * values[:, 0]).all()
    assert (selection.scores.values("relie")[:, 1] < 0.1 * selection.scores.values("relie")[:, 0]).all()


def test_attribution_says_what_it_attributes(folder: Path, selection: Selection) -> None:
    found = read_json(folder / "selection.json")["attribution"]["ig"]
    assert set(found) == set(FORMS)
    for row, task in enumerate(selection.scores.tasks):
        ends = found[task]
        assert ends["metric"] > ends["without"]
        assert ends["completeness_gap"] < 0.05
        total = selection.scores.values("ig")[row].sum()
        assert total == pytest.approx(ends["metric"] - ends["without"], rel=0.05)
        assert selection.scores.values("ig")[row, 0] > 0.5 * total


def test_sets_without_one_task_and_stability_are_kept(folder: Path, selection: Selection) -> None:
    assert set(selection.left_out) == set(FORMS)
    values = selection.scores.joint / selection.scores.joint.max(axis=1, keepdims=True)
    for row, task in enumerate(selection.scores.tasks):
        lowest = np.delete(values, row, axis=0).min(axis=0)
        assert selection.left_out[task] == tuple(np.argsort(-lowest, kind="stable")[:4].tolist())
    stability = selection.stability
    assert stability is not None
    assert stability.bootstrap is not None
    assert stability.bootstrap.frequency[0] == 1.0
    assert [row.threshold for row in stability.thresholds.sizes] == [0.1, 0.2, 0.3]
    assert selection.control_match is not None
    assert selection.control_match.n_sets == 5
    frame = pd.read_parquet(folder / "selected.parquet")
    assert frame["feature"].tolist() == list(selection.features)
    assert frame["bootstrap_frequency"].tolist() == list(stability.bootstrap.frequency)
    for task in FORMS:
        assert frame[f"left_out_{task}"].tolist() == [k in selection.left_out[task] for k in selection.features]
        np.testing.assert_allclose(
            frame[f"ig_{task}"], selection.scores.values("ig")[selection.scores.tasks.index(task)][frame["feature"]]
        )
    assert {"above_0.1", "above_0.2", "above_0.3", "density", "write", "relative_min"} <= set(frame)


def test_sample_values_average_to_the_scores(
    planted: tuple[ModelFamily, Crosscoder], outcomes: Outcomes, selection: Selection
) -> None:
    family, crosscoder = planted
    for ranking in ("joint", "score"):
        config = CONFIG.replace(ranking=ranking)
        sequences = gained_sequences(family, outcomes, gained_samples(outcomes, config, {}).ids, config)
        scores, samples = score_features(crosscoder, family, sequences, site=Site.parse(SITE), config=config)
        assert samples is not None
        np.testing.assert_allclose(samples.values(), scores.values(ranking), rtol=1e-5, atol=1e-7)
        np.testing.assert_array_equal(scores.values(ranking), selection.scores.values(ranking))
        np.testing.assert_array_equal(scores.fires, selection.scores.fires)
    assert scores.swap_write is not None
    decoders = {name: crosscoder.own_decoder(name).double() for name in ("base", "rl")}
    for row, samples in enumerate(sequences.values()):
        fires, written = np.zeros(48, dtype=bool), []
        for sample in samples:  # one by one, without padding
            ids = torch.tensor([sample.ids])
            x = {
                model.name: residuals_plain(model, ids, torch.ones_like(ids), [Site.parse(SITE)])[Site.parse(SITE)]
                for model in family
            }
            for readout, name in ((Readout("joint"), "rl"), (Readout("swap"), "base"), (Readout("swap"), "rl")):
                acts = readout.feature_acts(crosscoder, x, name)[0][torch.tensor(sample.kept)]
                fires |= (acts > 0).any(0).numpy()
            acts = {
                name: Readout("swap").feature_acts(crosscoder, x, name)[0].double()[torch.tensor(sample.kept)]
                for name in decoders
            }
            change = acts["rl"][..., None] * decoders["rl"] - acts["base"][..., None] * decoders["base"]
            written.append(change.norm(dim=-1).mean(0).numpy())
        np.testing.assert_array_equal(scores.fires[row], fires)
        np.testing.assert_allclose(scores.swap_write[row], np.mean(written, axis=0), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("rule", "facts"), [("ids:0,9", "sum 1, pair 1, list 1 (1 on all tasks)"), ("ids:9", "No feature of the set")]
)
def test_features_that_never_fire_on_the_gained_samples_are_reported(
    planted: tuple[ModelFamily, Crosscoder], outcomes: Outcomes, tmp_path: Path, rule: str, facts: str
) -> None:
    family, crosscoder = planted
    mute = copy.deepcopy(crosscoder)
    with torch.no_grad():
        mute.b_enc[9] = -1e6
    config = CONFIG.replace(also=(), n_bootstrap=0, rule=rule)
    found = select_features(mute, family, outcomes, site=SITE, out=tmp_path / "s", config=config)
    assert not found.scores.fires[:, 9].any()
    summary = SelectionSummary.load(tmp_path / "s" / "selection.json")
    assert summary.silent == found.never_active
    assert facts in summary.silent.sentence
    assert summary.silent.sentence in selection_lines(summary)
    assert read_manifest(tmp_path / "s")["results"]["silent"] == summary.silent.to_dict()


def test_same_seed_same_bytes(
    planted: tuple[ModelFamily, Crosscoder], outcomes: Outcomes, folder: Path, tmp_path: Path
) -> None:
    family, crosscoder = planted
    select_features(crosscoder, family, outcomes, site=SITE, out=tmp_path / "s", config=CONFIG)
    assert Selection.load(tmp_path / "s").scores.tasks == tuple(FORMS)
    for name in ("selection.json", "selected.parquet", "scores.safetensors"):
        assert (tmp_path / "s" / name).read_bytes() == (folder / name).read_bytes()


def test_what_a_rule_or_a_file_names_is_part_of_the_work(
    planted: tuple[ModelFamily, Crosscoder], outcomes: Outcomes, folder: Path, tmp_path: Path
) -> None:
    family, crosscoder = planted
    assert "named" not in read_manifest(folder)["config"]
    path = tmp_path / "ids.txt"
    config = CONFIG.replace(also=(), n_bootstrap=0, n_controls=0)

    def select(rule: str, out: Path, highest: int = 4) -> tuple[int, ...]:
        table = pd.DataFrame({"feature": range(48), "norm": [min(k, highest) for k in range(48)]})
        return select_features(
            crosscoder, family, outcomes, site=SITE, out=out, config=config.replace(rule=rule), table=table
        ).features

    path.write_text("3 4")
    for _ in range(2):
        assert select(f"file:{path}", tmp_path / "f") == (3, 4)
    path.write_text("3 5")
    with pytest.raises(ArtifactError, match=r"config\.named: \[3, 4\] .* \[3, 5\] "):
        select(f"file:{path}", tmp_path / "f")
    assert select("rule:norm==3", tmp_path / "r") == (3,)
    assert select("rule:norm==3", tmp_path / "r", highest=5) == (3,)  # another table, and the same features
    with pytest.raises(ArtifactError, match=r"config\.named: "):
        select("rule:norm==3", tmp_path / "r", highest=3)


def test_the_lines_hold_the_main_numbers(folder: Path) -> None:
    summary = SelectionSummary.load(folder / "selection.json")
    text = "\n".join(selection_lines(summary))
    assert "100 bootstrap draws" in text
    assert "Threshold by joint" in text
    assert "without one task: list " in text
    assert "5 random sets of 4" in text
    assert "right answer by ig" in text
    assert summary.control_match is not None
    match = summary.control_match.model_copy(update={"beyond_caliper": ("write",)})
    warning = selection_lines(summary.model_copy(update={"control_match": match, "transplant_match": None}))[-1]
    assert warning.startswith("Warning")
    row = match.covariates["write"]
    first, second = told_apart(row.random, row.selected)
    assert f"contribution norm ({first} against {second}: {row.difference:+.2f} standard deviations" in warning


def test_a_damaged_summary_is_refused(folder: Path, tmp_path: Path) -> None:
    data = read_json(folder / "selection.json")
    del data["controls"]
    write_json(tmp_path / "selection.json", data)
    with pytest.raises(ArtifactError, match="controls"):
        SelectionSummary.load(tmp_path / "selection.json")


def test_answers_may_be_the_samples_own(
    planted: tuple[ModelFamily, Crosscoder], outcomes: Outcomes, selection: Selection, tmp_path: Path
) -> None:
    """Here the tuned response is the answer to the letter, so both targets are one."""
    family, crosscoder = planted
    config = CONFIG.replace(ranking="ig", also=(), target="answer", n_bootstrap=0)
    found = select_features(crosscoder, family, outcomes, site=SITE, out=tmp_path / "s", config=config)
    np.testing.assert_allclose(found.scores.values("ig"), selection.scores.values("ig"), rtol=1e-6)
    assert found.stability is not None
    assert found.stability.bootstrap is None
    assert found.ranking == "ig"


def without_answers(outcomes: Outcomes) -> Outcomes:
    return Outcomes(outcomes.records, [replace(sample, answer="") for sample in outcomes.samples.values()])


def without_tokens(outcomes: Outcomes) -> Outcomes:
    return Outcomes([replace(record, response_ids=()) for record in outcomes.records], outcomes.samples.values())


def of_another_tokenizer(outcomes: Outcomes) -> Outcomes:
    return Outcomes([replace(record, response_ids=(5000,)) for record in outcomes.records], outcomes.samples.values())


def nothing_gained(outcomes: Outcomes) -> Outcomes:
    return Outcomes([replace(record, outcome="right") for record in outcomes.records], outcomes.samples.values())


def without_prompts(outcomes: Outcomes) -> Outcomes:
    return Outcomes(outcomes.records)


def of_two_draws(outcomes: Outcomes) -> Outcomes:
    """Every sample of rl has a wrong first draw, with other tokens, before the one that was made."""
    records = [replace(record, draw=1) for record in outcomes.records]
    first = [
        replace(record, draw=0, outcome="wrong" if record.model == "rl" else record.outcome, response_ids=(9,))
        for record in outcomes.records
    ]
    return Outcomes([*first, *records], outcomes.samples.values())


def test_of_several_draws_the_first_right_one_is_read(
    planted: tuple[ModelFamily, Crosscoder], outcomes: Outcomes
) -> None:
    family, _ = planted
    config = CONFIG.replace(tuned_at_least=0.5)
    gained = gained_samples(of_two_draws(outcomes), config, {})
    assert gained.ids == gained_samples(outcomes, config, {}).ids
    read = gained_sequences(family, of_two_draws(outcomes), gained.ids, config)
    assert read == gained_sequences(family, outcomes, gained.ids, config)
    with pytest.raises(SelectionError, match=r"sum: 0 gained; base has \d+ and rl \d+(\.\d+)? of"):
        gained_samples(of_two_draws(outcomes), CONFIG, {})


def test_integrated_gradients_rank_by_default_and_named_features_need_none() -> None:
    assert SelectConfig().ranked_by == SelectConfig(rule="agnostic").ranked_by == "ig"
    assert SelectConfig(rule="ids:1,2").ranked_by == SelectConfig(rule="rule:density>0").ranked_by == "joint"
    assert SelectConfig(rule="ids:1", ranking="ig").ranked_by == "ig"
    assert SelectConfig(ranking="score").ranked_by == "score"


def test_shares_that_need_no_gain_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"base_at_most is 0.8 and select.tuned_at_least 0.75"):
        SelectConfig(base_at_most=0.8)


def test_named_features_need_no_gained_sample(
    planted: tuple[ModelFamily, Crosscoder], outcomes: Outcomes, tmp_path: Path
) -> None:
    family, crosscoder = planted
    config = CONFIG.replace(also=(), rule="ids:3,1")
    found = select_features(crosscoder, family, nothing_gained(outcomes), site=SITE, out=tmp_path / "s", config=config)
    assert found.features == (3, 1)
    assert len(found.controls) == 5
    assert "No task has enough samples that rl gained, so values are over 42 samples" in found.note
    summary = SelectionSummary.load(tmp_path / "s" / "selection.json")
    assert summary.n_gained == summary.gained_sizes == {"sum": 0, "pair": 0, "list": 0}
    assert found.note in "\n".join(selection_lines(summary))
    assert found.choose("ids:2", n_controls=5).features == (2,)
    with pytest.raises(SelectionError, match="'top:2' ranks features by the gained samples, and there were none"):
        found.choose("top:2")


@pytest.mark.parametrize(
    ("change", "settings", "kind", "message"),
    [
        (nothing_gained, {"rule": "ids:1", "also": ("ig",)}, SelectionError, "or rank by joint or score"),
        (nothing_gained, {}, SelectionError, 'name the features: mechprobe select --features "ids:1,2,3"'),
        (nothing_gained, {}, SelectionError, r"sum: 0 gained; base has (\d+) and rl \1 of \1 right"),
        (without_answers, {"ranking": "ig", "target": "answer"}, SelectionError, "of sum has no answer"),
        (without_tokens, {"also": ("relie",)}, SelectionError, "has no response tokens of rl"),
        (of_another_tokenizer, {}, SelectionError, "another tokenizer"),
        (without_prompts, {}, SelectionError, "the prompt of sample"),
        (None, {"tasks": ("sums",)}, ConfigError, "task 'sums'.*sum, pair"),
        (None, {"tasks": ()}, ConfigError, "select.tasks names no task"),
        (None, {"near": ("base", "gold")}, ConfigError, "'gold'.*base, rl"),
        (None, {"trained": tuple(FORMS)}, ConfigError, "saw every task"),
        (
            None,
            {"tasks": ("sum", "pair"), "trained": ("pair",)},
            ConfigError,
            "'pair', and a task that post-training saw",
        ),
        (None, {"tuned": "sft"}, ConfigError, "select.tuned is 'sft'.*base, rl"),
        (None, {"tuned": "base"}, ConfigError, "name two models"),
        (None, {"rule": "ids:48"}, SelectionError, "features 0 to 47"),
        (None, {"rule": "top:45"}, SelectionError, "random set of 45 features"),
        (None, {"rule": "top:49"}, SelectionError, "asks for 49 features and the crosscoder has 48"),
        (None, {"rule": "rule:density>0"}, SelectionError, "run `mechprobe features`"),
    ],
)
def test_mistakes_are_sentences_and_leave_nothing(
    planted: tuple[ModelFamily, Crosscoder],
    outcomes: Outcomes,
    change: Callable[[Outcomes], Outcomes] | None,
    settings: dict[str, object],
    kind: type[MechprobeError],
    message: str,
    tmp_path: Path,
) -> None:
    family, crosscoder = planted
    given = change(outcomes) if change else outcomes
    config = CONFIG.replace(**({"also": ()} | settings))
    with pytest.raises(kind, match=message) as error:
        select_features(crosscoder, family, given, site=SITE, out=tmp_path / "s", config=config)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "s").exists()


def test_parts_that_do_not_belong_together_are_refused(
    planted: tuple[ModelFamily, Crosscoder], outcomes: Outcomes, tmp_path: Path
) -> None:
    family, crosscoder = planted

    def fails(kind: type[MechprobeError], message: str, made: Crosscoder = crosscoder, **options: object) -> None:
        with pytest.raises(kind, match=message):
            select_features(made, family, outcomes, out=tmp_path / "s", **({"site": SITE} | options))  # type: ignore[arg-type]
        assert not (tmp_path / "s").exists()

    def crosscoder_stage(name: str, config: dict[str, object], models: dict[str, str]) -> Path:
        with Stage.open(tmp_path / name, name="train-sae", config=config, models=models) as stage:
            write_json(stage.folder / "x.json", {})
            stage.finish(outputs=["x.json"])
        return tmp_path / name

    fails(SiteError, "resid_post.0 to resid_post.2", site="resid_post.7")
    wide = Crosscoder(CrosscoderConfig(n_models=2, d_model=16, d_sae=8, k=2, model_names=("base", "rl")))
    fails(ModelError, "width 16 for base.*width 32", wide)
    three = Crosscoder(CrosscoderConfig(n_models=3, d_model=32, d_sae=8, k=2, model_names=("base", "sft", "rl")))
    fails(ModelError, "no 'sft'", three)
    elsewhere = crosscoder_stage("elsewhere", {"site": "resid_post.0"}, {})
    fails(ArtifactError, "trained at resid_post.0.*resid_post.1", inputs={"crosscoder": elsewhere})
    others = crosscoder_stage("others", {"site": SITE}, {"rl": "0" * 64})
    fails(ArtifactError, "trained on another model 'rl'", inputs={"crosscoder": others})
    fails(ArtifactError, "The outcomes are of another model 'rl'", inputs={"evals": others})
    fine = crosscoder_stage("fine", {"site": SITE}, dict(family.fingerprints))
    config = CONFIG.replace(also=(), n_bootstrap=0, n_controls=0)
    found = select_features(
        crosscoder, family, outcomes, site=SITE, out=tmp_path / "t", config=config, inputs={"crosscoder": fine}
    )
    assert found.control_match is None


@pytest.mark.parametrize(
    "settings",
    [{"threshold": 1.0}, {"steps": 0}, {"ranking": "best"}, {"also": ("joint",)}, {"stability_thresholds": (0.0,)}, {"n_bootstrap": -1}],
)  # fmt: skip
def test_settings_out_of_range_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="SelectConfig"):
        SelectConfig(**settings)  # type: ignore[arg-type]


def test_no_model_is_in_memory_while_another_one_loads(
    planted: tuple[ModelFamily, Crosscoder], outcomes: Outcomes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    family, crosscoder = planted
    fresh = ModelFamily.load({name: family[name].path for name in family.names})
    loaded: list[weakref.ref[torch.nn.Module]] = []
    alive: list[int] = []
    load = LanguageModel._load  # pyright: ignore[reportPrivateUsage]

    def counting(model: LanguageModel, *args: Any) -> torch.nn.Module:
        gc.collect()
        alive.append(sum(ref() is not None for ref in loaded))
        made = load(model, *args)
        loaded.append(weakref.ref(made))
        return made

    monkeypatch.setattr(LanguageModel, "_load", counting)
    config = CONFIG.replace(ranking="score", also=())
    select_features(crosscoder, fresh, outcomes, site=SITE, out=tmp_path / "s", config=config)
    assert len(alive) > 1
    assert set(alive) == {0}
