"""The page of behaviour and drift: its numbers, what it says of stages that have not run, and that text of data is harmless."""

import json
import re
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

import mechprobe as mp
from mechprobe.cli.drift import drift_lines
from mechprobe.drift.divergence.result import DivergenceResult, DivergenceRow, LayerRow, LensRow, LensToken
from mechprobe.drift.probe.behaviour_result import ArmCourse, Behaviour, Collapse, Gain, Point, Score
from mechprobe.drift.probe.profile import Norm
from mechprobe.drift.probe.result import Correlation, FeatureUse, LinearProbe, ProbeResult
from mechprobe.drift.weights.result import WeightsResult
from mechprobe.emergence.arms import last_of_arms
from mechprobe.errors import ArtifactError, DependencyError
from mechprobe.report.figures.dictionary import training_figure
from mechprobe.report.figures.drift import draw_drift, kl_of, ranks_figure, skills_of
from mechprobe.report.figures.style import NOTHING, to_png
from mechprobe.report.run_files import DriftFiles
from mechprobe.report.sections.divergence import divergence_section
from mechprobe.run_layout import RunLayout
from mechprobe.stage_folder import Stage
from mechprobe.statistics import Interval
from tests.weight_files import save, tensors

EVIL = "<script>alert('x')</script>"
MODELS = ("sft", "rl@step_000010", "rl", EVIL)
SKILLS = ("calculation", "simulation", EVIL)


def finished(run: Path, stage: str, file: str, result: Any) -> None:
    """A stage folder that holds one result."""
    with Stage.open(run / stage, name=stage, config={}) as opened:
        result.save(opened.folder / file)
        opened.finish(outputs=[file])


def weights(run: Path) -> None:
    base = tensors(d=16, ff=24)
    paths = {"base": save(run.parent / f"{run.name}_models" / "base", base)}
    for number, name in enumerate(("sft", "rl@step_000010", "rl")):
        change = tensors(d=16, ff=24, seed=1 + number)
        paths[name] = save(
            run.parent / f"{run.name}_models" / name, {key: value + 0.05 * change[key] for key, value in base.items()}
        )
    mp.drift.weight_statistics(paths, out=run / "weights", config=mp.drift.WeightsConfig(top_k=4))


def divergence(run: Path) -> None:
    def row(model: str, source: str, by: str, group: str, metric: str, value: float) -> DivergenceRow:
        at = {"own": 0.0, "base": 1.0, "prompt": None}[source]
        return DivergenceRow(
            model=model, source=source, temperature=at, by=by, group=group, metric=metric, value=value, low=0.8 * value,
            high=1.2 * value, n=120, n_sequences=30,
        )  # fmt: skip

    parts = [("all", "all"), *(("skill", skill) for skill in SKILLS), ("token_class", "digits"), ("bucket", "first")]
    rows = [
        row(model, source, by, group, metric, value * (1 + place))
        for place, model in enumerate(MODELS)
        for source in ("own", "base", "prompt")
        for by, group in parts
        for metric, value in (("kl", 0.125), ("kl_reverse", 0.25), ("js", 0.03), ("top1_agreement", 0.7))
    ]
    layers = [
        LayerRow(model="rl", layer=layer, metric=metric, value=0.5, low=0.4, high=0.6, n=90, n_sequences=30)
        for layer in (0, 1)
        for metric in ("cka", "distance")
    ]
    token = LensToken(token=f"\x1b[31m{EVIL}", id=7, value=0.2)
    lens = LensRow(
        model="rl", layer=1, relative_norm=0.1, consistency=0.5, promoted=(token,), suppressed=(token,), n=20
    )
    result = DivergenceResult(
        folder=run, base="base", models=MODELS, n_ids=50, n_rows={"base": 50}, rows=tuple(rows), layers=tuple(layers),
        explained={}, lens=(lens,), lens_source="64 random token sequences", tokens=(), rules={"kl": f"the rule of kl {EVIL}"},
        notes=(f"a note {EVIL}",),
    )  # fmt: skip
    finished(run, "drift", "divergence.json", result)


def norm(value: float) -> Norm:
    return Norm(value, 0.9 * value, 1.1 * value, 0.95 * value, 0.05, 64)


def interval(value: float) -> Interval:
    return Interval(value, value - 0.05, value + 0.05, 64)


def probe(run: Path, *, numbers: bool = True) -> None:
    models = ("base", *MODELS)
    score = {
        model: {
            skill: Score(raw=interval(0.3 + 0.1 * place), corrected=interval(0.2 + 0.1 * place), chance=0.1)
            for skill in SKILLS
        }
        for place, model in enumerate(models)
    }
    gain = {
        model: {skill: Gain(raw=interval(0.1), corrected=interval(0.1), p=0.01, p_holm=0.03) for skill in SKILLS}
        for model in MODELS
    }

    def course(arm: str, *names: str) -> ArmCourse:
        points = tuple(
            Point(
                model=name, progress=(place + 1) / len(names), drift_l1=norm(0.4 + place), drift_l2=norm(0.3), step_l1=norm(0.2),
                step_l2=norm(0.1), lost=norm(0.15), imbalance=norm(0.2), gain_range=norm(0.3), jaggedness=norm(0.1),
                entropy=interval(0.7),
            )
            for place, name in enumerate(names)
        )  # fmt: skip
        fall = Collapse(skill=EVIL, kind="persistent", checkpoints=names, confirmed=False)
        return ArmCourse(
            arm=arm, points=points, spaced_by="steps", path_l1=norm(1), path_l2=norm(1), wandering=interval(1.2),
            collapses=(fall,),
        )  # fmt: skip

    behaviour = Behaviour(
        skills=dict.fromkeys(SKILLS, 64), cells={}, profiles=score, cell_profiles={}, gains=gain,
        arms={"rl": course("rl", "rl@step_000010", "rl"), "sft": course("sft", "sft"), EVIL: course(EVIL, EVIL)},
        transfer={}, contrasts=(),
    )  # fmt: skip
    result = ProbeResult(
        folder=run, base="base", models=models, n_items=192, labelled=True, behaviour={"right": behaviour},
        linear=(LinearProbe(model="rl", site="resid_post.1", position="last", target="skill", accuracy=interval(0.9),
                            control=interval(0.3), selectivity=0.6, chance=0.33, held_out=EVIL, n_items=192),),
        use=(FeatureUse(model="rl", skill=EVIL, density=0.02, n_features=40, drift=norm(0.3), across=0.35, split_half=0.1),),
        numbers={f"norm {EVIL}": {"rl": 0.1, "rl@step_000010": 0.05, "sft": 0.3}, "none of these": {}} if numbers else {},
        correlations=(Correlation(number=f"norm {EVIL}", arm="rl", detrended=True, rho=0.87654, p=0.0123, p_holm=0.0246, n=7, exact=True),),
        notes=(f"left out {EVIL}",),
    )  # fmt: skip
    finished(run, "probe", "probe.json", result)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with the three stages and its report."""
    run = tmp_path_factory.mktemp("drift") / "run"
    weights(run)
    divergence(run)
    probe(run)
    mp.report(run)
    return run


def stands_alone(page: str) -> bool:
    """Whether a page links to its own parts and figures, and to the pages beside it, and nowhere else."""
    found = re.findall(r'(?:src|href)="([^"]+?)[,"]', page)
    return all(re.match(r"#|data:|figures/|\w+\.html$|features/index\.html$", link) for link in found)


def page_of(run: Path) -> str:
    return (run / "report" / "drift.html").read_text(encoding="utf-8")


def test_the_page_has_every_section_and_figure_and_stands_alone(whole: Path) -> None:
    page = page_of(whole)
    assert re.findall(r"<h2 [^>]*>(\w+)", page) == ["Distributions", "Behaviour", "Weights", "Together"]
    assert "has not run" not in page
    pictures = {path.stem for path in (whole / "report" / "figures").iterdir()}
    assert pictures == {"divergence", "profiles", "drift_against", "updates", "update_ranks"}
    assert page.count("<svg") == len(pictures)
    assert stands_alone(page)
    assert "default-src 'none'" in page
    assert 'href="drift.html"' in (whole / "report" / "index.html").read_text(encoding="utf-8")


def test_the_page_holds_the_numbers_of_the_results(whole: Path) -> None:
    text = re.sub(r"<[^>]+>", " ", page_of(whole))
    found = WeightsResult.load(whole / "weights")
    rank = found.models["rl"].total.spectral["stable_rank"]
    assert rank.text().replace(", ", ",\u00a0") in text
    assert f"{100 * found.models['sft'].total.relative_norm:.3g}" in text
    assert "0.125 [0.100,\u00a00.150]" in text  # KL of sft
    assert "20 [15,\u00a025]" in text  # base on every skill
    assert "1.40 [1.26,\u00a01.54]" in text  # drift of rl
    assert all(number in text for number in ("0.88", "0.012", "0.025"))
    assert "Further pairs (1) are in weights.json" in text  # that of sft with the checkpoint of rl
    assert "One training run of each kind says nothing" in text


def test_notes_follow_the_figure_and_falls_are_told_by_what_confirms_them(whole: Path) -> None:
    page = page_of(whole)
    assert page.index("<svg") < page.index("a note") < page.index("On own continuations")
    assert "sft: below base at single comparisons only (not confirmed): " in page
    assert "falls below base" not in page
    sure = [Collapse(skill=skill, kind="transient", checkpoints=("sft",), confirmed=skill != "b") for skill in "abc"]
    course = (
        ProbeResult.load(whole / "probe").behaviour["right"].arms["sft"].model_copy(update={"collapses": tuple(sure)})
    )
    assert course.falls() == [
        "sft: falls below base, confirmed over all skills and checkpoints at once: a (transient; sft); c (transient; sft).",
        "sft: below base at single comparisons only (not confirmed): b (transient; sft).",
    ]


def test_models_without_any_value_have_no_row_by_token_class(whole: Path) -> None:
    found = DivergenceResult.load(whole / "drift")
    rows = tuple(row for row in found.rows if row.source != "own" or row.model == "rl")
    section = divergence_section(found.model_copy(update={"rows": rows}))
    table = next(table for table in section.tables if table.title.startswith("KL by token class"))
    assert [row[0] for row in table.rows] == ["rl"]


def test_text_of_models_and_data_is_harmless(whole: Path) -> None:
    page = page_of(whole)
    assert EVIL not in page
    assert "\x1b" not in page
    assert "&lt;script&gt;" in page
    assert page.count("<script") == 2  # the page's own


def test_a_section_whose_stage_has_not_run_names_the_command(tmp_path: Path) -> None:
    weights(tmp_path / "run")
    index = mp.report(tmp_path / "run")
    page = page_of(tmp_path / "run")
    assert page.count("has not run") == 3
    assert "<code>mechprobe drift</code>" in page
    assert page.count("<code>mechprobe probe</code>") == 2
    assert "Updates of all weights" in page
    assert 'href="drift.html"' in index.read_text(encoding="utf-8")
    divergence(tmp_path / "other")
    mp.report(tmp_path / "other")
    assert "<code>mechprobe weights</code>" in page_of(tmp_path / "other")


def test_without_low_level_numbers_nothing_is_correlated(tmp_path: Path) -> None:
    probe(tmp_path / "run", numbers=False)
    mp.report(tmp_path / "run")
    assert "nothing is correlated" in page_of(tmp_path / "run")
    assert "drift_against" not in {path.stem for path in (tmp_path / "run" / "report" / "figures").iterdir()}


def test_a_run_without_these_stages_has_no_page(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(import_module("mechprobe.report.stage"), "draw_figures", lambda *_: {})
    index = mp.report(run)
    assert not (run / "report" / "drift.html").exists()
    assert "drift.html" not in index.read_text(encoding="utf-8")


def test_without_matplotlib_the_page_has_its_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(package: str, user: str) -> None:
        raise DependencyError(f"{user} needs the package {package}.")

    weights(tmp_path / "run")
    monkeypatch.setattr(import_module("mechprobe.report.stage"), "require", missing)
    mp.report(tmp_path / "run")
    page = page_of(tmp_path / "run")
    assert "Updates of all weights" in page
    assert "<svg" not in page


def test_a_result_without_any_number_has_panels_that_say_so(tmp_path: Path) -> None:
    """Null stands for NaN in every result file, so a file of nulls is one that the report reads."""
    weights(tmp_path / "whole")
    kept = (tmp_path / "whole/weights/weights.json").read_text(encoding="utf-8")
    nulls = json.loads(re.sub(r"-?\d+\.\d+(e[+-]?\d+)?|-?\d+e[+-]?\d+", "null", kept))
    found = WeightsResult.checked({**nulls, "folder": tmp_path}, "nulls")
    finished(tmp_path / "run", "weights", "weights.json", found)
    mp.report(tmp_path / "run")
    assert (tmp_path / "run/report/figures/update_ranks.png").is_file()
    assert "nan" not in re.sub(r"<(svg|style|script)\b.*?</\1>", "", page_of(tmp_path / "run"), flags=re.DOTALL)
    said = [text.get_text() for axes in ranks_figure(found).axes for text in axes.texts]
    assert said == [NOTHING, NOTHING]


def test_the_command_prints_an_interval_with_every_divergence(whole: Path) -> None:
    found = DriftFiles.read(RunLayout(whole)).divergence
    assert found is not None
    line = next(line for line in drift_lines(found) if line.startswith("sft  own"))
    assert re.findall(r"[\d.]+ \([\d.]+ to [\d.]+\)", line) == [
        "0.125 (0.100 to 0.150)", "0.250 (0.200 to 0.300)", "0.0300 (0.0240 to 0.0360)"
    ]  # fmt: skip


@pytest.mark.parametrize("loss", [None, 0.0])
def test_a_training_curve_without_a_loss_above_0_is_drawn(loss: float | None) -> None:
    lines = [{"tokens": n, "loss": loss, "dead_frac": 0.0, "fve": {"base": 0.5}} for n in (100, 200)]
    figure = training_figure(lines)
    assert to_png(figure).startswith(b"\x89PNG")
    assert [text.get_text() for text in figure.axes[1].texts] == [NOTHING]


def test_an_empty_folder_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="contains no finished stage"):
        mp.report(tmp_path)


def test_figures_are_the_same_bytes_and_read_the_lowest_temperature(whole: Path) -> None:
    files = DriftFiles.read(RunLayout(whole))
    first, second = (draw_drift(*files) for _ in range(2))
    assert all(isinstance(figure, Figure) for figure in first.values())
    assert {name: to_png(figure) for name, figure in first.items()} == {
        name: to_png(figure) for name, figure in second.items()
    }
    assert files.divergence is not None
    assert skills_of(files.divergence) == ("all", *sorted(SKILLS))
    assert kl_of(files.divergence, "rl", "own", "simulation") == pytest.approx((0.375, 0.3, 0.45, 120))
    assert kl_of(files.divergence, "rl", "own", "poetry") is None


def test_the_last_models_of_arms() -> None:
    names = ["base2", "rl@step_2", "rl", "dpo@step_9", "dpo@step_10", "sft_b", "sft"]
    assert last_of_arms(names) == ["sft", "sft_b", "base2", "dpo@step_10", "rl"]
