"""What readers of the experiments of arXiv 2604.06628 see: the README, what is printed, and the figures."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest

from experiments.paper_c import design as designs, run as script, safety, tables, verdicts
from experiments.paper_c.design import ClaimConfig
from experiments.paper_c.training import Run
from mechprobe.files import read_json

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "experiments/paper_c/README.md").read_text(encoding="utf-8")
RESULTS = {name: read_json(ROOT / f"artifacts/paper_c/{name}.json") for name in designs.names()}
STYLES = {
    "cot": ("long", "known", "longer"), "dip": ("long", "known", "longer"), "quality": ("long", "new"), "game": ("cot", "new"),
    "coverage": ("long", "known"), "sizes": ("long", "known"), "stress": ("long",),
}  # fmt: skip
"""The styles in the tables of the README."""


def section(name: str) -> str:
    return README.split(f"### `{name}`")[1].split("\n#")[0]


def claim_rows(name: str) -> list[list[str]]:
    """The cells of the claims in a section of the README."""
    rows = [line.strip("|").split("|") for line in section(name).splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row] for row in rows[2:]]


@pytest.mark.parametrize("name", designs.names())
def test_every_claim_of_the_readme_is_in_the_result(name: str) -> None:
    design, result = designs.load(name), RESULTS[name]
    rows = claim_rows(name)
    assert len(rows) == len(design.claims), "the README leaves no claim out"
    found = {
        style: dict(zip((each.text for each in design.claims_of(style)), result["claims"][style], strict=True))
        for style in STYLES[name]
    }
    for claim, row in zip(design.claims, rows, strict=True):
        for style, cell in zip(STYLES[name], row[-len(STYLES[name]) :], strict=True):
            entry = found[style].get(claim.text)
            if entry is None:
                assert cell == ""
                continue
            each = verdicts.Found.model_validate(entry)
            status = "" if each.status == "open" else f" {each.status}"
            assert cell == tables.claim_value(claim, each).removeprefix("in ") + status, (claim.text, style)
        if claim.kind in ("score", "gain") and claim.paper:
            for benchmark, (ours, theirs) in claim.paper.items():
                assert f"{benchmark} {float(ours) - float(theirs):.1f}" in row[1]


def test_verdicts_of_the_readme_are_those_of_the_results() -> None:
    for name, result in RESULTS.items():
        (line,) = re.findall(rf"^\| `{name}` \|.*\| ([^|]+) \|$", README, re.MULTILINE)
        others = {s: v for s, v in result["verdict_by_style"].items() if v != result["verdict"]}
        notes = ", ".join(f"*{style}*: {verdict}" for style, verdict in others.items())
        assert line == tables.verdict_name(result["verdict"]) + (f" ({notes})" if notes else "")


def test_no_claim_of_new_traces_without_a_column_is_supported() -> None:
    assert "Where *new* has no column, none of its claims is supported." in README
    for name, shown in STYLES.items():
        for each in RESULTS[name]["claims"].get("new", ()) if "new" not in shown else ():
            assert each["status"] != "supported"


def mean(name: str, arm: str, skill: str, step: int | None = None) -> str:
    """Mean over seeds of a score in %; no step is base, and -1 the last."""
    runs = script.read_runs({"runs": {arm: RESULTS[name]["runs"][arm]}})[arm]
    skills = lambda run: verdicts.tasks_of(run, skill)  # noqa: E731
    place = lambda run: 0 if step is None else -1 if step == -1 else 1 + run.steps.index(step)  # noqa: E731
    return (
        f"{100 * np.mean([[run.scores(each)[place(run)].mean() for each in skills(run)] for run in runs.values()]):.0f}"
    )


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("simulation ({} → {})", [("cot", "cot_longer", "simulation"), ("cot", "cot_longer", "simulation", -1)]),
        ("diagnostic ({} → {})", [("cot", "cot_longer", "diagnostic"), ("cot", "cot_longer", "diagnostic", -1)]),
        (
            "fact retrieval ({} → {})",
            [("cot", "cot_longer", "fact_retrieval"), ("cot", "cot_longer", "fact_retrieval", -1)],
        ),
        ("enumeration ({} → {})", [("cot", "cot_longer", "enumeration"), ("cot", "cot_longer", "enumeration", -1)]),
        (
            "enumeration falls from {} to {} at step 32 and ends at {}",
            [("dip", "cot_long", "enumeration", step) for step in (None, 32, -1)],
        ),
        ("simulation from {} to {}", [("game", "game_cot", "simulation", step) for step in (None, 32)]),
        ("diagnostic from {} to {}", [("game", "game_cot", "diagnostic", step) for step in (None, 32)]),
        ("from answers alone ({} %)", [("game", "game_none", "game", -1)]),
        ("have {}, {} and {} %", [("sizes", f"{size}_long", "ood") for size in ("small", "mid", "large")]),
    ],
)
def test_scores_in_sentences_of_the_readme(text: str, values: list[tuple[str, str, str]]) -> None:
    assert text.format(*(mean(*each) for each in values)) in re.sub(r"\s+", " ", README)


def test_intervals_in_sentences_of_the_readme_are_printed_scores() -> None:
    for name in (*designs.names(), "cot"):
        part = README.split("## Results")[1].split("###")[0] if name == "cot" else section(name)
        prose = " ".join(line for line in part.splitlines() if not line.startswith("|"))
        runs = script.read_runs(RESULTS[name])
        printed = {cell for row in tables.arm_rows(designs.load(name), runs).values() for cell in row.values()}
        for interval in re.findall(r"-?[\d.]+ \[[^\]]+\]", prose):
            assert interval in printed, (name, interval)


def test_arms_move_at_a_later_step_only_where_the_warm_up_is_longer() -> None:
    moved = {}
    for arm, runs in script.read_runs(RESULTS["stress"]).items():
        run = runs["0"]
        scores = np.mean([run.scores(task).mean(axis=1) for task in verdicts.other_tasks(run)], axis=0)
        moved[arm] = next(
            step for step, score in zip(run.steps, scores[1:], strict=True) if abs(score - scores[0]) > 0.2
        )
    assert moved == {"S1": 32, "S2": 64, "S3": 64, "S4": 32, "S5": 8}


def test_the_readme_is_short() -> None:
    words = [word for word in README.split() if word.strip("|-")]
    assert len(words) < 1800


@pytest.mark.parametrize("finished", [["coverage", "--finished"], ["select", "--finished"]])
def test_finished_results_are_printed_and_nothing_is_written(
    finished: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("it trains or writes")

    for name in ("do_run", "write_json", "write_bytes"):
        monkeypatch.setattr(script, name, refuse)
    monkeypatch.setattr(script, "RESULTS", ROOT / "artifacts" / "paper_c")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["run", *finished])
    script.main()
    printed = capsys.readouterr().out
    assert ("chosen: 0.0002" if "select" in finished else ": not reproduced\n") in printed
    assert not re.search(r": not$", printed, re.MULTILINE)
    assert list(tmp_path.iterdir()) == []


def test_finished_safety_writes_nothing_and_draw_writes_the_figure(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(safety, "RESULT", ROOT / "artifacts" / "paper_c" / "safety.json")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["safety", "--finished"])
    safety.main()
    printed = capsys.readouterr().out
    assert "+0.41 [-0.53, +1.00]" in printed, "a difference of shares is at most 1"
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(sys, "argv", ["safety", "--draw"])
    safety.main()
    assert (tmp_path / safety.FIGURE).read_bytes().startswith(b"\x89PNG")


def test_a_quick_selection_leaves_the_committed_one_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run = Run(
        steps=(3,), right={"a": ("01", "11")}, lengths={"a": (1, 1)}, cut={"a": (0, 0)}, loss=0, prompts_sha256="", visits=1
    )  # fmt: skip
    monkeypatch.setattr(script, "do_run", lambda *_, **__: run)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["run", "select", "--quick", "--out", "quick"])
    script.main()
    assert [path.name for path in tmp_path.rglob("*.json")] == ["select.json"]
    assert (tmp_path / "quick/select.json").is_file()


@pytest.mark.parametrize("options", [["coverage", "--finished"], ["select", "--draw"]])
def test_what_cannot_be_printed_is_one_sentence(
    options: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["run", *options])
    with pytest.raises(SystemExit) as stop:
        script.main()
    assert stop.value.code == 2
    assert "does not exist" in (text := capsys.readouterr().err) or "no figure" in text


@pytest.mark.parametrize(
    ("value", "settings", "text"),
    [
        ((0.0781, 0.0037, 0.1526), {"limit": 0.0}, "7.8 [0.4, 15.3]"),
        ((0.0781, 0.0137, 0.1526), {"limit": 0.0}, "8 [1, 15]"),
        ((-0.006, -0.051, 0.039), {"limit": -0.05}, "-0.6 [-5.1, 3.9]"),
        ((-0.004, -0.06, 0.06), {}, "0 [-6, 6]"),
        ((0.01, -0.02, 0.04), {"within": tables.SHARE}, "1 [0, 4]"),
        ((0.55, -0.18, 1.27), {"within": tables.RANGES["score"], "signed": True}, "+55 [-18, +100]"),
        ((0.5, float("nan"), float("nan")), {}, "50"),
    ],
)
def test_a_printed_interval_is_possible_and_shows_its_status(
    value: tuple[float, ...], settings: dict[str, object], text: str
) -> None:
    assert tables.percent(value, **settings) == text  # type: ignore[arg-type]


def test_figures_name_the_arms_as_the_readme_does_and_base_apart_from_the_steps() -> None:
    from experiments.paper_c.figure import WARM_UP, _figure

    for name in ("cot", "game"):
        design, result = designs.load(name), RESULTS[name]
        figure = _figure(design, script.read_runs(result), result)
        top, bottom = figure.subfigs
        names = [text.get_text() for text in top.legends[0].get_texts()]
        ticks = [text.get_text() for text in top.axes[0].get_xticklabels()]
        assert ticks[0] == "base"
        assert not any("cot" in each for each in names), "names of the TOML files are not those of the README"
        assert not any(text.get_text().startswith("cot:") for text in bottom.axes[0].get_yticklabels())
        courses = [np.asarray(line.get_xdata()) for line in top.axes[0].lines]
        assert all(places.min() >= 8 for places in courses if places.size > 2)
        warm_up = top.get_supxlabel()
        assert (warm_up == WARM_UP) == (len({arm.steps for arm in design.arms.values()}) > 1)
    assert {"longer (1,024 steps)"} <= set(_legend("cot"))


def _legend(name: str) -> list[str]:
    from experiments.paper_c.figure import _figure

    figure = _figure(designs.load(name), script.read_runs(RESULTS[name]), RESULTS[name])
    return [text.get_text() for text in figure.subfigs[0].legends[0].get_texts()]


def test_no_seed_with_a_dip_never_decides_a_verdict() -> None:
    """Three seeds without a dip count as opposed; as open they would give the same verdict."""
    dip = ClaimConfig(text="x", kind="dip", arm="a")
    assert verdicts.judge(verdicts.Value(0.0, 0.0, 0.0, 3, 0), dip, (0.0, 0.0, 0.0)) == "opposed"
    for style, found in RESULTS["dip"]["claims"].items():
        claims = [verdicts.Found.model_validate(each) for each in found]
        as_open = [
            each.model_copy(update={"status": "open"}) if each.text.startswith("Another skill") else each
            for each in claims
        ]
        assert verdicts.verdict(as_open) == RESULTS["dip"]["verdict_by_style"][style]
