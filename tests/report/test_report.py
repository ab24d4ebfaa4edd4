"""Reports of complete, partial and hostile run folders."""

import json
import re
import shutil
import subprocess
import sys
import warnings
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given, strategies as st
from matplotlib.figure import Figure

from mechprobe.cli.printing import say
from mechprobe.cli.show import show_lines
from mechprobe.errors import ArtifactError
from mechprobe.files import read_json, write_json
from mechprobe.report import stage as render
from mechprobe.report.config import ReportConfig
from mechprobe.report.figures import style
from mechprobe.report.result import Report
from mechprobe.report.sections.effects import share_curves
from mechprobe.report.stage import report
from tests.report.conftest import evaluation, examples, interventions, write_run

NASTY = '</script><img src=x onerror="alert(1)"> | $x_1$ `a` &amp;'
COARSE = 40
FIGURES = ("accuracy", "ceilings", "collateral", "doses", "effects", "share_of_ceiling", "shares", "training")


@pytest.fixture(autouse=True)
def coarse_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(style, "DPI", COARSE)


@pytest.fixture
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip the drawing, which takes most of the time."""
    monkeypatch.setattr(render, "draw_figures", lambda *_: {})


class Tags(HTMLParser):
    """Every tag of a page with its attributes; asserts that all tags are closed."""

    VOID = ("meta", "img", "br", "link")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        while self.open and self.open[-1] in ("li", "p", "dt", "dd") and self.open[-1] != tag:
            self.open.pop()
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete run with its report."""
    run = write_run(tmp_path_factory.mktemp("reported") / "run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(style, "DPI", COARSE)
        assert report(run) == run / "report" / "index.html"
    return run


def test_a_whole_run_has_every_section_and_figure(reported: Path) -> None:
    run, page = reported, reported / "report" / "index.html"
    text = page.read_text()
    tags = Tags(text)
    assert not tags.open
    charts = [attributes for tag, attributes in tags.found if tag == "svg"]
    drawn = Report.load(run / "report" / "report.json").figures
    assert {figure.name for figure in drawn} == set(FIGURES)
    assert sorted(figure.alt for figure in drawn) == sorted(chart["aria-label"] or "" for chart in charts)
    files = {str(path.relative_to(run / "report")) for path in (run / "report" / "figures").iterdir()}
    assert files == {name for figure in drawn for name in figure.files}
    assert files == {f"figures/{name}.{ending}" for name in FIGURES for ending in ("svg", "png", "pdf", "csv")}
    assert files <= {attributes.get("href") for _, attributes in tags.found}
    first = text.index("The edits support that the selected features cause the change from base to rl")
    assert text.index("Which features did post-training add") < first < text.index(interventions()["verdict"])
    assert text.count("has not run") == 3  # emergence, drift and dynamics, which are beside the chain


@pytest.mark.usefixtures("no_figures")
def test_the_page_loads_nothing_from_elsewhere(run: Path) -> None:
    tags = Tags(report(run).read_text())
    further = {"index.html", "examples.html"}
    ids = {attributes.get("id") for _, attributes in tags.found}
    for tag, attributes in tags.found:
        assert tag not in ("iframe", "object", "embed", "base", "form")
        assert tag != "script" or not attributes
        for name in ("src", "href"):
            value = attributes.get(name) or "#"
            assert value.startswith(("data:", "#", "figures/")) or value in further
            assert not value.startswith("#") or value == "#" or value[1:] in ids, "a link to what is not there"


@pytest.mark.usefixtures("no_figures")
def test_the_numbers_are_those_of_the_files(run: Path) -> None:
    text = report(run).read_text()
    assert "54 (48 to 60)" in text  # rl on fact_retrieval: 138 of 256, Wilson
    assert "rl is above base on calculation, simulation, enumeration and diagnostic" in text
    assert "sft is above base on calculation and below base on fact_retrieval and enumeration" in text
    assert "0.975 for base, 0.961 for sft and 0.975 for rl" in text
    content = Report.load(run / "report" / "report.json")
    assert [row[0] for row in content.section("behaviour").tables[0].rows][:2] == ["calculation", "fact_retrieval"]
    transplant = next(t for t in content.section("interventions").tables if t.title == "transplant rl into base")
    assert [row[transplant.head.index("draws")] for row in transplant.rows] == ["20"] * 6
    assert transplant.rows[transplant.chosen[0]][0] == "pooled"
    assert {row[transplant.head.index("n")] for row in transplant.rows} == {"64"}


def test_doses_collateral_effects_left_out_tasks_and_sizes_are_shown(reported: Path) -> None:
    run, text = reported, (reported / "report" / "index.html").read_text()
    for heading in ("Smallest sufficient sets", "Leave one task out", "Dose response", "Collateral effects"):
        assert f"<summary>{heading}</summary>" in text
    assert "2 [2, not reached]" in text
    assert "the whole residual moves less than 5 points in rl" in text
    assert "60 texts with 900 predicted tokens" in text
    content = Report.load(run / "report" / "report.json")
    [doses], [left_out], [collateral] = (content.section(name).tables for name in ("doses", "left-out", "collateral"))
    assert [row[:2] for row in doses.rows] == [["clamp in base", v] for v in ("0.5", "1", "3", "10")]
    assert len(left_out.rows) == 8
    assert len(collateral.rows) == 8  # four edits, two ceilings, two reconstructions
    markdown = (run / "report" / "report.md").read_text()
    assert markdown.count("figures/doses.png") == markdown.count("figures/collateral.png") == 1


class Words(HTMLParser):
    """The visible text of a page, outside of scripts, styles and drawings."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.said: list[str] = []
        self.hidden = 0
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.hidden += tag in ("script", "style", "svg")

    def handle_endtag(self, tag: str) -> None:
        self.hidden -= tag in ("script", "style", "svg")

    def handle_data(self, data: str) -> None:
        if not self.hidden:
            self.said.append(data)


def strings(value: object) -> list[str]:
    """Every text and number of a JSON value."""
    if isinstance(value, dict):
        return [text for each in value.values() for text in strings(each)]
    return [text for each in value for text in strings(each)] if isinstance(value, list) else [str(value)]


def test_every_number_of_the_page_is_in_the_json(reported: Path) -> None:
    number = re.compile(r"\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?")
    held = set(number.findall("\n".join(strings(read_json(reported / "report" / "report.json")))))
    shown = number.findall("\n".join(Words((reported / "report" / "index.html").read_text()).said))
    assert len(shown) > 1000
    assert not set(shown) - held


def test_every_missing_stage_names_its_command(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", without=("localize", "train-sae", "features", "select", "intervene"))
    text = report(run).read_text()
    for command in ("localize", "train-sae", "features", "select", "intervene"):
        assert f"<code>mechprobe {command}</code>" in text
    assert "No causal verdict yet" in "".join(Words(text).said)
    assert {path.stem for path in (run / "report" / "figures").iterdir()} == {"accuracy"}


@pytest.mark.parametrize("stage", ["localize", "cache", "train-sae", "features", "evaluate", "select", "intervene"])
@pytest.mark.usefixtures("no_figures")
def test_any_single_stage_may_be_missing_or_alone(tmp_path: Path, stage: str) -> None:
    every = ["localize", "cache", "train-sae", "features", "evaluate", "select", "intervene"]
    without = write_run(tmp_path / "without", without=(stage,))
    assert not Tags(report(without).read_text()).open
    alone = write_run(tmp_path / "alone", without=tuple(name for name in every if name != stage))
    assert not Tags(report(alone).read_text()).open


@pytest.mark.usefixtures("no_figures")
def test_an_unfinished_stage_is_named(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", without=("intervene",))
    (run / "interventions").mkdir()
    (run / "interventions" / "unfinished.json").write_text("{}")
    assert "was interrupted" in report(run).read_text()


@pytest.mark.usefixtures("no_figures")
def test_untrusted_features_are_marked(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", trusted=False)
    text = report(run).read_text()
    [warning] = read_json(run / "report" / "report.json")["warnings"]
    assert "untrusted" in warning
    assert "FVE of sft is 0.861" in warning
    assert text.count('class="badge"') >= 20
    assert Report.load(run / "report" / "report.json").first.gate.state == "failed"
    assert "untrusted" in (run / "report" / "report.md").read_text()


def test_hostile_text_stays_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    accuracy = evaluation()
    for model in accuracy["accuracy"].values():
        model[NASTY] = model.pop("diagnostic")
    results = interventions()
    results["verdict"] = f"Verdict {NASTY} \x1b[31m\u202e\x00"
    run = write_run(
        tmp_path / "run", examples=examples(("a", NASTY, "\n", "\x1b[31m")), evaluation=accuracy, interventions=results
    )
    text = report(run).read_text()
    tags = Tags(text)
    assert [tag for tag, _ in tags.found].count("script") == 2  # the page's own
    assert not any(name.startswith("on") for _, attributes in tags.found for name in attributes)
    assert [tag for tag, _ in tags.found].count("svg") == len(FIGURES)
    assert "img" not in {tag for tag, _ in tags.found}
    assert "&lt;/script&gt;&lt;img" in text
    assert "\x1b" not in text
    markdown = (run / "report" / "report.md").read_text()
    assert "<img" not in markdown
    assert "</script>" not in markdown
    shown = "\n".join(show_lines(run, verbose=True))
    say(shown)
    for written in (markdown, capsys.readouterr().out):
        assert all(char.isprintable() or char in "\n\u00a0" for char in written)
        assert "x1b[31m" in written.replace("\\", "")


def test_a_name_that_the_font_lacks_gives_no_warning() -> None:
    figure = Figure()
    figure.suptitle("日本語")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert style.to_png(figure).startswith(b"\x89PNG")


@pytest.mark.usefixtures("no_figures")
def test_null_numbers_are_dashes(tmp_path: Path) -> None:
    results = interventions()
    for condition in results["conditions"]:
        condition["share_of_ceiling"] = dict.fromkeys(condition["share_of_ceiling"])
        condition["accuracy_delta"]["pooled"] = [None, None, None, 0]
    run = write_run(tmp_path / "run", interventions=results)
    report(run)
    table = Report.load(run / "report" / "report.json").section("interventions").tables[0]
    assert table.rows[-1][table.head.index("change, points")] == "–"
    assert share_curves(results, ["pooled"]) == {}


def test_the_same_run_gives_the_same_bytes(reported: Path) -> None:
    first = (reported / "report" / "index.html").read_bytes()
    assert report(reported).read_bytes() == first


def test_a_folder_that_is_not_a_run_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="nowhere"):
        report(tmp_path / "nowhere")
    with pytest.raises(ArtifactError, match=f"{tmp_path}.*mechprobe run"):
        report(tmp_path)


@pytest.mark.usefixtures("no_figures")
def test_the_json_file_is_a_report(run: Path) -> None:
    report(run)
    found = Report.load(run / "report" / "report.json")
    assert found.section("selection").tables[0].rows[0][:2] == ["0", "shared"]
    assert found.section("sizes").says.startswith("Smallest transplanted sets in base")
    with pytest.raises(StopIteration):
        found.section("nothing")


@pytest.mark.usefixtures("no_figures")
@pytest.mark.parametrize("in_run_file", [True, False])
def test_the_question_and_the_number_of_features_can_be_chosen(run: Path, in_run_file: bool) -> None:
    settings = {"question": "Why <b>so</b>?", "n_features": 3}
    if in_run_file:
        write_json(run / "run.json", {"report": settings})
    page = report(run, None if in_run_file else ReportConfig.model_validate(settings))
    assert "<h1>Why &lt;b&gt;so&lt;/b&gt;?</h1>" in page.read_text()
    found = Report.load(run / "report" / "report.json")
    selected, others = found.section("selection"), found.section("features")
    assert (
        len(selected.tables[0].rows)
        == len(selected.contexts)
        == len(others.tables[1].rows)
        == len(others.contexts)
        == 3
    )


def test_it_needs_no_torch(run: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = None; sys.modules['transformers'] = None\n"
        f"import mechprobe; mechprobe.report({str(run)!r}); print('written')"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=False)
    assert done.stdout.strip() == "written", done.stderr
    assert json.loads((run / "report" / "report.json").read_text())["missing"] == []


def drawn(text: str) -> bytes:
    with style.house_style():
        figure = style.new_figure(2.0, 1.0)
        figure.text(0.1, 0.5, style.plain(text))
        return style.to_png(figure)


@pytest.mark.parametrize(
    ("one", "other"), [("算数", "常識"), ("かな", "てと"), ("수학", "역사"), ("algebra", "history"), ("a", "a\u200b")]
)
def test_different_names_are_drawn_differently(one: str, other: str) -> None:
    assert drawn(one) != drawn(other)


@given(st.lists(st.text(min_size=1, max_size=120), min_size=2, max_size=6, unique=True))
def test_different_names_have_different_labels(names: list[str]) -> None:
    with style.house_style():
        labels = style.labels(names, width=12)
    assert len(set(labels)) == len(names)
    assert all(len(line) <= 12 + len(" (2)") for label in labels for line in label.split("\n"))


def test_short_names_keep_their_label_and_long_ones_wrap() -> None:
    with style.house_style():
        assert style.labels(["fact_retrieval", "reasoning_about_numbers"]) == [
            "fact_retrieval",
            "reasoning_about_\nnumbers",
        ]
        first, second = style.labels([f"{'a' * 40}{letter}{'c' * 40}" for letter in "xy"])
    assert "…" in first
    assert second == f"{first} (2)"


@pytest.mark.usefixtures("no_figures")
def test_a_model_that_the_crosscoder_lacks_is_reported_too(tmp_path: Path) -> None:
    accuracy = evaluation()
    accuracy["accuracy"]["extra"] = accuracy["accuracy"]["rl"]
    run = write_run(tmp_path / "run", evaluation=accuracy, examples=examples())
    assert "extra" in report(run).read_text()
    assert "NRN extra" not in (run / "report" / "examples.html").read_text()


@pytest.mark.parametrize("content", ["{}", "[]", "null", None])
@pytest.mark.usefixtures("no_figures")
def test_a_changed_result_file_is_named(reported: Path, tmp_path: Path, content: str | None) -> None:
    run = tmp_path / "run"
    shutil.copytree(reported, run)
    names = [path for path in run.glob("*/*.json") if path.parent.name != "report" and path.name != "manifest.json"]
    named = 0
    for path in names:
        listed = path.name in read_json(path.parent / "manifest.json").get("outputs", {})
        before = path.read_bytes()
        path.unlink() if content is None else path.write_text(content)
        if listed:
            named += 1
            with pytest.raises(ArtifactError, match=path.name):
                report(run)
        path.write_bytes(before)
    assert named > 3
