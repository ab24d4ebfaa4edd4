"""Refusals before anything runs, settings taken from the selection, and properties of the controls."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mechprobe.dictionary.readout import Readout
from mechprobe.errors import ArtifactError, ConfigError, ModelError
from mechprobe.evals.config import EvaluateConfig
from mechprobe.evals.scorers.parse import scorer
from mechprobe.evals.stage import evaluate_outcomes
from mechprobe.evals.tasks import Task
from mechprobe.interventions.conditions.checks import check_belongs
from mechprobe.interventions.conditions.plan import Condition, choose_sets, plan, readout_of
from mechprobe.interventions.conditions.relative_change import relative_changes, task_prompts
from mechprobe.interventions.conditions.runner import Runner
from mechprobe.interventions.config import InterveneConfig
from mechprobe.interventions.edits.edit import Edit
from mechprobe.interventions.edits.edit_functions import build_rewrite
from mechprobe.interventions.hooks.attach import edited
from mechprobe.interventions.result import InterventionResults
from mechprobe.interventions.result_rows import ConditionResult, Effect, PairedComparison, SetKind
from mechprobe.interventions.stage import intervene
from mechprobe.interventions.verdicts.verdict import judge_edits
from mechprobe.models.blocks import recording
from mechprobe.models.family import ModelFamily
from mechprobe.records import Sample
from mechprobe.selection.result import Selection, choose
from mechprobe.selection.scores import Scores
from mechprobe.statistics import Interval
from mechprobe.types import Site
from sae_training import Crosscoder

SITE = "resid_post.1"
TASK = Task("sum", tuple(Sample(f"s{k}", "sum", f"{k}+1=", "2") for k in range(4)), scorer("exact"), 2)


def scores(crosscoder: Crosscoder) -> Scores:
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(2, crosscoder.d_sae, generator=generator, dtype=torch.float64).numpy()
    ones = torch.ones(crosscoder.d_sae, dtype=torch.float64).numpy()
    zeros = torch.zeros(32, dtype=torch.float64).numpy()
    return Scores(
        ("sum", "pair"),
        (4, 4),
        values,
        values[:, ::-1].copy(),
        ones,
        ones,
        ones,
        zeros,
        zeros,
        values > 0,
        swap_write=values,
    )


@pytest.fixture(scope="module")
def selection(crosscoder: Crosscoder) -> Selection:
    return choose(
        scores(crosscoder), "agnostic", site=SITE, crosscoder=crosscoder.fingerprint, ranking="score", n_controls=0,
        threshold=0.7,
    )  # fmt: skip


def stage(folder: Path, config: Mapping[str, object], models: Mapping[str, str]) -> Path:
    folder.mkdir()
    manifest = {"stage": "select", "config": config, "inputs": {}, "outputs": {}, "models": models}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.mark.parametrize(
    ("config", "models", "words"),
    [
        ({"gained": {"sum": ["s2", "s9"]}}, {}, r"1 samples of sum \(s2"),
        ({"base": "base", "tuned": "sft"}, {}, "sft against base.*rl and base"),
        ({}, {"rl": "0" * 64}, "'rl'"),
    ],
)
def test_parts_that_do_not_belong_together(
    family: ModelFamily,
    crosscoder: Crosscoder,
    selection: Selection,
    tmp_path: Path,
    config: dict[str, object],
    models: dict[str, str],
    words: str,
) -> None:
    inputs = {"selection": stage(tmp_path / "s", config, models)}
    with pytest.raises(ArtifactError, match=words):
        intervene(family, crosscoder, selection, [TASK], tmp_path / "i", inputs=inputs)
    assert not (tmp_path / "i").exists()


def test_parts_that_do(family: ModelFamily, crosscoder: Crosscoder, selection: Selection, tmp_path: Path) -> None:
    config = {"base": "base", "tuned": "rl", "gained": {"sum": ["s9"], "pair": ["s1"]}}
    inputs = {"selection": stage(tmp_path / "s", config, dict(family.fingerprints))}
    check_belongs(selection, crosscoder, family, InterveneConfig(), inputs, [TASK])


def test_missing_settings_are_taken_from_the_selection(selection: Selection) -> None:
    chosen, others = choose_sets(selection, InterveneConfig(n_random=0, compare=("joint", "score")), None)
    assert (chosen.features, chosen.ranking, chosen.threshold) == (selection.features, "score", 0.7)
    assert list(others) == ["agnostic by joint"]
    looser, _ = choose_sets(selection, InterveneConfig(n_random=0, threshold=0.2), None)
    assert len(looser.features) > len(chosen.features)


def test_the_random_conditions_of_a_default_run_are_the_stored_sets(crosscoder: Crosscoder) -> None:
    """They were drawn with another seed than that of the run; another rule draws its own sets."""
    made = {"site": SITE, "crosscoder": crosscoder.fingerprint, "seed": 7}
    stored = choose(scores(crosscoder), "top:3", n_controls=20, **made)
    config = InterveneConfig(n_random=20)
    chosen, others = choose_sets(stored, config, None)
    random = [c.ids for c in plan(chosen, others, config) if c.set_kind == "random"]
    assert random == [*stored.controls, *stored.transplant_controls] * 2
    other, _ = choose_sets(stored, InterveneConfig(features="top:2"), None)
    assert len(other.controls[0]) == 2


def test_a_set_that_leaves_too_few_features_for_controls_of_equal_norm(crosscoder: Crosscoder) -> None:
    most = tuple(range(crosscoder.d_sae - 2))
    made = choose(scores(crosscoder), "top:3", n_controls=0, site=SITE, crosscoder=crosscoder.fingerprint, seed=7)
    with pytest.raises(ConfigError, match=f"{len(most)} features, and only .* select fewer features"):
        plan(replace(made, features=most), {}, InterveneConfig(n_random=0))


@pytest.mark.parametrize("edit", ["project", "replace", "ablate", "steer:2"])
def test_an_equal_norm_control_differs_from_the_edit(
    family: ModelFamily, crosscoder: Crosscoder, selection: Selection, edit: str
) -> None:
    runner = Runner(family, crosscoder, selection, [TASK], InterveneConfig())
    condition = Condition("c", "base", edit, "set", "shuffled", "shuffled", (1, 2, 3), write_ids=(7, 8, 9))
    x = {name: torch.randn(1, 5, 32, generator=torch.Generator().manual_seed(1)) for name in family.names}
    turned = runner.rewrite(condition)(x) - x["base"]
    readout = readout_of(condition, runner.config)
    own = build_rewrite(crosscoder, [1, 2, 3], Edit.parse(edit), host="base", donor=None, readout=readout)
    change = own(x) - x["base"]
    active = (change.norm(dim=-1) > 1e-4) & (turned.norm(dim=-1) > 0)
    assert active.any()
    assert torch.allclose(turned.norm(dim=-1)[active], change.norm(dim=-1)[active], rtol=1e-3)
    assert not torch.allclose(turned[active], change[active], rtol=0.1)


def test_edits_without_directions_refuse_write_ids(crosscoder: Crosscoder) -> None:
    for kind in ("project", "replace"):
        with pytest.raises(ConfigError, match=f"{kind}.*write_ids"):
            build_rewrite(
                crosscoder, [1], Edit.parse(kind), host="base", donor=None, readout=Readout("swap"), write_ids=[2]
            )


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"edits_base": ("transplant", "transplant")}, "'transplant' twice"),
        ({"edits_base": ("clamp:3", "clamp:3.0")}, "'clamp:3' twice"),
        ({"edits_tuned": ("ablat",)}, "ablat"),
        ({"doses": ("transplant",)}, "doses.*transplant"),
        ({"edits_base": ("scale:1",)}, "edits_base.*'scale:1'"),
        ({"edits_tuned": ("ablate", "steer:0.0")}, "edits_tuned.*'steer:0'"),
        ({"edits_base": ("scale:0..2:3",)}, "edits_base.*'scale:1'"),
        ({"edits_base": ("clamp:1,3", "clamp:3.0")}, "names 'clamp:3' twice"),
        ({"doses": ("clamp:1,two",)}, "'two'"),
        ({"sizes": (-1,)}, "sizes"),
    ],
)
def test_edits_are_read_before_anything_runs(settings: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        InterveneConfig(**settings)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"near": ("base", "gold")}, "'gold'.*base, sft, rl"),
        ({"edits_base": (), "edits_tuned": ()}, "edits_base and intervene.edits_tuned"),
    ],
)
def test_unusable_settings_leave_no_folder(
    family: ModelFamily,
    crosscoder: Crosscoder,
    selection: Selection,
    tmp_path: Path,
    settings: dict[str, object],
    words: str,
) -> None:
    with pytest.raises(ConfigError, match=words):
        intervene(family, crosscoder, selection, [TASK], tmp_path / "i", InterveneConfig(**settings))
    assert not (tmp_path / "i").exists()


SHORT: dict[str, object] = {
    "n_random": 0, "n_shuffled": 1, "edits_tuned": ("ablate",), "compare": (), "doses": (), "sizes": (), "leave_one_out": False,
}  # fmt: skip


def test_after_an_edit_that_gives_nan_the_corrected_one_runs(
    family: ModelFamily, crosscoder: Crosscoder, selection: Selection, tmp_path: Path
) -> None:
    """Finished parts of the refused settings are reused under them, and do not affect a run with other settings."""
    bad, good = (InterveneConfig(**{**SHORT, "edits_base": (edit,)}) for edit in ("clamp:1e38", "clamp:1e15"))

    def run(config: InterveneConfig) -> InterventionResults:
        return intervene(family, crosscoder, selection, [TASK], tmp_path / "i", config)

    with pytest.raises(ModelError, match=r"clamp:1e38.*not finite"):
        run(bad)
    kept = sorted((tmp_path / "i").glob("part-*"))
    assert kept
    times = [part.stat().st_mtime_ns for part in kept]
    with pytest.raises(ModelError):
        run(bad)
    assert [part.stat().st_mtime_ns for part in kept] == times
    found = run(good)
    assert {path.name for path in (tmp_path / "i").iterdir()} == {"manifest.json", "results.json", "outcomes.jsonl"}
    name = f"base|clamp:1e15|{selection.rule}"
    assert found.changes.far == [name, f"rl|clamp:1e15|{selection.rule} (opposite)"]
    assert found.condition(name).relative_change > 1e13
    with pytest.raises(ArtifactError, match="edits_base"):
        run(bad)


@pytest.mark.parametrize("edit", ["clamp:2", "scale:-3", "steer:5", "ablate"])
def test_the_relative_change_is_that_of_the_residual_that_enters_the_next_block(
    family: ModelFamily, crosscoder: Crosscoder, selection: Selection, edit: str
) -> None:
    runner = Runner(family, crosscoder, selection, [TASK], InterveneConfig())
    condition = Condition("c", "base", edit, "set", "selected", "edit", selection.features)
    found, n_tokens = relative_changes(runner, [condition], task_prompts(runner))
    ids = family.tokenizer([sample.prompt for sample in TASK.samples], return_tensors="pt").input_ids
    site, model = Site.parse(SITE), family["base"].hf
    with torch.no_grad():
        with recording(model, [site]) as clean:
            model(ids)
        with edited(family["base"], crosscoder, selection, edit), recording(model, [site], stop=False) as changed:
            model(ids)
    ratio = (changed[site] - clean[site]).norm(dim=-1) / clean[site].norm(dim=-1)
    assert found["c"].largest == pytest.approx(float(ratio.max()), rel=1e-4)
    assert found["c"].norm == pytest.approx(float((changed[site] - clean[site]).norm(dim=-1).mean()), rel=1e-4)
    assert n_tokens == ids.numel()


def test_a_strength_that_changes_nothing_is_a_dose() -> None:
    assert InterveneConfig(doses=("scale:0", "scale:1", "scale:2")).doses[1] == "scale:1"


def test_the_stage_identity_includes_reduced_dtypes(llama_family: dict[str, Path], tmp_path: Path) -> None:
    config = EvaluateConfig(n_per_task=1)
    half = ModelFamily.load(llama_family, dtype="bfloat16")
    assert ModelFamily.load(llama_family).identity == {}
    evaluate_outcomes(half, [TASK], tmp_path / "e", config)
    evaluate_outcomes(half, [TASK], tmp_path / "e", config)
    with pytest.raises(ArtifactError, match=r"model_dtypes"):
        evaluate_outcomes(ModelFamily.load(llama_family), [TASK], tmp_path / "e", config)


def test_a_task_with_too_few_samples_is_no_evidence_of_damage() -> None:
    """The edit loses all three samples and the ceiling only two, which is not damage on the pooled row."""
    found = judged(-0.58, -1.0)
    assert found["b"].startswith("no verdict")
    assert found["pooled"] == found["a"] == "supported"


def test_a_set_without_features_is_not_refuted() -> None:
    assert judged(0, 0)["pooled"] == "refuted"
    assert set(judged(0, 0, n_features=0).values()) == {"no verdict: the set has no feature"}


def judged(a: float, b: float, n_features: int = 1) -> dict[str, str]:
    """Task → verdict on an ablation that changes accuracy by ``a`` and ``b``; task b has three samples."""
    config = InterveneConfig(edits_tuned=("ablate",), edits_base=())

    def row(name: str, kind: SetKind, a: float, b: float, draw: int | None = None) -> ConditionResult:
        delta = {"a": (a, a - 0.05, a + 0.05), "b": (b, b, b), "pooled": (a, a - 0.05, a + 0.05)}
        n = {"a": 60, "b": 3, "pooled": 63}
        model, edit = name.split("|")[:2]
        return ConditionResult(
            name=name, model=model, edit=edit, features="top50", set_kind=kind, donor=None, draw=draw, n_features=n_features,
            accuracy={task: Interval(1 + delta[task][0], 0.0, 1.0, n[task]) for task in delta},
            accuracy_delta={task: Interval(*delta[task], n[task]) for task in delta},
            flip_rate_of_right={}, flip_rate_of_wrong={}, mcnemar_p=dict.fromkeys(delta, 0.0001), share_of_ceiling={},
            readout=None, unparsed={}, collateral=None, relative_change=None,
        )  # fmt: skip

    rows = [row("base|clean", "clean", -0.6, -0.6), row("rl|clean", "clean", 0, 0)]
    rows += [row("rl|patch|whole", "ceiling", -0.6, -2 / 3), row("rl|ablate|top50", "selected", a, b)]
    rows += [row(f"rl|ablate|r{k}", kind, 0, 0, k) for k in range(20) for kind in ("random", "shuffled")]
    compared = {task: beside(-change / 0.6, -change - whole) for task, change, whole in
                (("a", a, 0.6), ("b", b, 2 / 3), ("pooled", a, 0.6))}  # fmt: skip
    return {r.task: r.verdict for r in judge_edits(rows, ["a", "b"], config, {"rl|ablate|top50": compared})}


def beside(share: float, beyond: float) -> PairedComparison:
    """A comparison in which no response is broken."""
    around = [Effect(value, value - 0.05, value + 0.05) for value in (share, beyond)]
    none = Effect(0.0, 0.0, 0.0)
    return PairedComparison(share_interval=around[0], beyond_ceiling=around[1], broken_excess=none, below_clean=none)
