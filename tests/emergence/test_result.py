"""The result of the stage: read back, printed and reported with its intervals."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import mechprobe as mp
from mechprobe.cli.emergence import emergence_lines
from mechprobe.emergence.arms import Arm
from mechprobe.emergence.causal import causal_course
from mechprobe.emergence.curves import measure_curves
from mechprobe.emergence.result import RESULT_FILE, ArmCourse, DictionaryQuality, PairCourse, PairOverlap
from mechprobe.errors import ArtifactError
from mechprobe.files import dump_json, read_json, write_json
from mechprobe.report.figures import drawing
from mechprobe.report.figures.emergence import curves_figure, overlap_figure
from mechprobe.report.pages import emergence as emergence_page
from mechprobe.report.pages.markdown import plain_lines
from mechprobe.selection.rankings.relie import IndirectEffects, group_draws
from mechprobe.stage_folder import Stage
from tests.emergence.test_curves import random_numbers


@pytest.fixture
def without_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make figures without drawing them, which takes long; the tests of the stage draw them."""
    monkeypatch.setattr(drawing, "draw", lambda *_: drawing.Drawing("", "", [], {"png": b""}))


def result_folder(folder: Path, seeds: int) -> mp.Emergence:
    """A finished stage folder of made-up numbers, with RelIE and pairwise dictionaries."""
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
                name=arm.name,
                seed=seed,
                base="base",
                checkpoints=arm.checkpoints,
                labels=("1", "end"),
                progress=arm.progress,
                spaced_by="steps",
                steps=(30, 60),
                n_alive=20,
                kinds={"steady": 20},
                curves=curves,
                **matrices,
                churn=(1 - overlap[0, 1],),
                top=10,
                chance=0.5,
            )
        )
        pairs.append(
            PairCourse(
                name=arm.name,
                seed=seed,
                checkpoints=arm.checkpoints,
                overlap=overlap.tolist(),
                found_share=np.eye(2).tolist(),
                ceiling=PairOverlap(overlap=0.5, found_share=0.25),
                fve=(0.9, 0.8),
                top=10,
                min_cosine=0.7,
            )
        )
    effects = rng.normal(size=(5, 20, 3))
    measured = IndirectEffects(("base", *arm.checkpoints), np.zeros(3), np.zeros(3), np.ones(3), 5, effects)
    frame = pd.DataFrame({f"nrn_{name}": rng.random(20) for name in arm.checkpoints})
    causal = causal_course(arm, frame, measured, group_draws(5, 100, seed=0))
    quality = DictionaryQuality(fve={"base": 0.9}, l0=4.0, dead_frac=0.0, device="cpu", mode="store")
    with Stage.open(folder, name="emergence", config={}) as stage:
        found = mp.Emergence(
            folder=folder,
            layout="together",
            arms={"rl": tuple(courses)},
            pairs={"rl": tuple(pairs)},
            causal={"rl": causal},
            quality={"together_seed0": quality},
            claim=None,
        )
        found.save(folder / RESULT_FILE)
        stage.finish(outputs=[RESULT_FILE])
    return found


@pytest.mark.usefixtures("without_pictures")
@pytest.mark.parametrize("seeds", [1, 3])
def test_overlaps_and_relie_are_shown_with_their_intervals(tmp_path: Path, seeds: int) -> None:
    found = result_folder(tmp_path / "emergence", seeds)
    assert dump_json(mp.Emergence.load(found.folder).to_dict()) == dump_json(found.to_dict())
    said = "\n".join(emergence_lines(found))
    written = emergence_page.emergence_report(found.folder).with_name("report.md").read_text(encoding="utf-8")
    page = "\n".join(plain_lines(written.splitlines()))
    moved = found.causal["rl"].departure[0]
    assert f"{moved.value:.3f} [{moved.low:.3f}, {moved.high:.3f}]" in page
    cells = [course.overlap[0][1] for course in found.arms["rl"]]
    mean = f"{np.mean(cells):.3f}"
    ends = f"{mean} [{min(cells):.3f}, {max(cells):.3f}]" if seeds > 1 else f"{mean} [no interval]"
    neighbors = next(line for line in page.splitlines() if line.startswith("| rl  | 1, end "))
    assert [cell.strip() for cell in neighbors.split("|")][1:5] == ["rl", "1, end", str(seeds), ends]
    for curve in ("reached_norm", "departure", "confirmed"):
        last = found.arms["rl"][0].curves[curve][-1]
        assert f"{last.value:.3f} [{last.low:.3f}, {last.high:.3f}]" in page
    assert said.splitlines()[-1].startswith("| rl ")
    assert said in "\n".join(plain_lines(page.splitlines()))
    assert len(said.splitlines()) <= 40
    for text in (said, page):
        assert ("one seed: no interval" in text) == (seeds == 1)
    percents = [round(100 * value) for value in (np.mean(cells), min(cells), max(cells))]
    figure = overlap_figure(found)
    written = figure.axes[0].texts[1].get_text()
    assert ("one seed: no interval" in figure.axes[-1].get_ylabel()) == (seeds == 1)
    assert written == (f"{percents[0]}\n[{percents[1]}, {percents[2]}]" if seeds > 1 else f"{percents[0]}")


@pytest.mark.usefixtures("without_pictures")
def test_a_damaged_result_is_refused(tmp_path: Path) -> None:
    found = result_folder(tmp_path / "emergence", 1)
    data = read_json(found.folder / RESULT_FILE)
    del data["causal"]["rl"]["n_groups"]
    write_json(found.folder / RESULT_FILE, data)
    with pytest.raises(ArtifactError, match="n_groups"):
        mp.Emergence.load(found.folder)


def test_axes_and_tables_are_in_steps_or_say_evenly_spaced(tmp_path: Path) -> None:
    found = result_folder(tmp_path / "emergence", 1)
    half = found.arms["rl"][0].curves["half_norm"][0]
    said = "\n".join(emergence_lines(found))
    assert f"{60 * half.value:.1f} [{60 * half.low:.1f}, {60 * half.high:.1f}]" in said
    assert "EVENLY SPACED" not in said
    figure = curves_figure(found)
    assert {axes.get_xlabel() for axes in figure.axes} == {"optimizer step"}
    np.testing.assert_array_equal(figure.axes[0].lines[0].get_xdata(), [0, 30, 60])
    course = found.arms["rl"][0].model_copy(update={"steps": (), "spaced_by": "checkpoints"})
    even = found.model_copy(update={"arms": {"rl": (course,)}})
    said = "\n".join(emergence_lines(even))
    assert "EVENLY SPACED: the optimizer steps of rl are unknown" in said
    assert "steps unknown" in said
    assert all("EVENLY SPACED" in axes.get_xlabel() for axes in curves_figure(even).axes)
