"""Figures of the report: what they tell, as SVG for a page and as files."""

import csv
import io
import json
import re
from typing import Any
from xml.etree import ElementTree

import pytest
from matplotlib.patches import Rectangle

from mechprobe.evals.result import Accuracy
from mechprobe.report.figures import style
from mechprobe.report.figures.behaviour import accuracy_figure
from mechprobe.report.figures.drawing import Drawing, draw
from mechprobe.report.figures.rivals import rivals_figure
from mechprobe.report.figures.told import COLUMNS, told
from mechprobe.report.pages import theme
from mechprobe.report.run_files import RunFiles
from mechprobe.report.stage import draw_figures
from mechprobe.statistics import Interval
from tests.report import test_drift_page as drift_parts
from tests.report.conftest import write_run

NASTY = "--><script>alert(1)</script>]]></svg>\x1b[31m\u202e\x00$x^2$ & \"'"
BEHIND = ("chart-light", "chart-shade", "chart-paper", "chart-grid")
"""Colours behind what is drawn."""
DARK = [color for name, color in theme.DARK.items() if name.startswith("chart-") and name not in BEHIND]
ALLOWED = {"svg", "g", "path", "use", "text", "tspan", "defs", "clipPath", "rect", "circle", "title"}


def accuracy(*names: str) -> dict[str, Accuracy]:
    """Two models; the first has 40 % and the second 60 % right."""
    return {
        model: {name: Interval(value, value - 0.1, value + 0.1, 64) for name in names}
        for model, value in (("base", 0.4), ("rl", 0.6))
    }


def parsed(drawing: Drawing) -> ElementTree.Element:
    names = 'xmlns:xlink="http://www.w3.org/1999/xlink"'
    return ElementTree.fromstring(drawing.markup.replace("<svg ", f"<svg {names} ", 1))


@pytest.fixture(scope="module")
def drawings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Drawing]:
    """Every figure of a run with all main stages and drift."""
    folder = write_run(tmp_path_factory.mktemp("figures") / "run")
    drift_parts.weights(folder)
    drift_parts.divergence(folder)
    drift_parts.probe(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(style, "DPI", 30)
        return {name: draw(figure, name, name) for name, figure in draw_figures(RunFiles.read(folder)).items()}


def test_every_figure_has_its_numbers_in_words_and_as_data(drawings: dict[str, Drawing]) -> None:
    assert {"accuracy", "ceilings", "effects", "divergence", "updates"} <= set(drawings)
    for name, drawing in drawings.items():
        assert re.search(r"\d", drawing.numbers), name
        assert parsed(drawing).get("aria-label") == f"{name}. {drawing.numbers}"
        table = list(csv.reader(io.StringIO(drawing.files["csv"].decode())))
        assert tuple(table[0]) == COLUMNS
        assert len(table) - 1 == len(drawing.rows) > 0, name


def test_every_figure_is_small_and_refers_to_nothing_outside_itself(drawings: dict[str, Drawing]) -> None:
    ids: list[str] = []
    for name, drawing in drawings.items():
        elements = list(parsed(drawing).iter())
        assert {element.tag for element in elements} <= ALLOWED, name
        own = [element.attrib["id"] for element in elements if "id" in element.attrib]
        ids += own
        text = drawing.markup
        assert set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', text)) <= {
            pair for one in own for pair in ((one, ""), ("", one))
        }
        assert "style=" not in text
        assert len(text) < 200_000, name
    assert len(set(ids)) == len(ids)


def test_every_part_of_a_series_can_be_hidden(drawings: dict[str, Drawing]) -> None:
    for name, drawing in drawings.items():
        root = parsed(drawing)
        series = json.loads(root.attrib["data-series"])
        used = {int(n) for part in root.iter() for n in part.get("data-in", "").split()}
        assert used == set(range(len(series))), name
    kinds = {kind for kind, _ in json.loads(parsed(drawings["effects"]).attrib["data-series"])}
    assert kinds == {"shown", "task"}


def test_the_same_figure_gives_the_same_bytes() -> None:
    first, second = (draw(accuracy_figure(accuracy("a", "b")), "accuracy", "Accuracy") for _ in range(2))
    assert first == second
    assert set(first.files) == {"svg", "png", "pdf", "csv"}
    assert first.files["svg"].startswith(b"<svg xmlns=")
    assert b"var(" not in first.files["svg"]


def test_the_data_are_what_is_drawn() -> None:
    figure = accuracy_figure(accuracy("a", "b"))
    heights = sorted(bar.get_height() for bar in figure.axes[0].patches if isinstance(bar, Rectangle))
    rows = [dict(zip(COLUMNS, row, strict=True)) for row in draw(figure, "accuracy", "Accuracy").rows]
    assert sorted(float(row["value"] or 0) for row in rows) == pytest.approx(heights)
    assert {row["series"] for row in rows} == {"base / a", "base / b", "rl / a", "rl / b"}
    assert next((row["low"], row["high"], row["n"]) for row in rows) == pytest.approx((30, 50, 64))


def test_a_hover_has_label_value_interval_and_n() -> None:
    root = parsed(draw(accuracy_figure(accuracy("only")), "accuracy", "Accuracy"))
    assert [title.text for title in root.iter("title")] == [
        "base, only\n40.0 %\n95 % interval 30.0 to 50.0\nn = 64",
        "rl, only\n60.0 %\n95 % interval 50.0 to 70.0\nn = 64",
    ]


@pytest.mark.parametrize("tasks", [1, 8])
def test_names_that_try_to_be_markup_stay_text(tasks: int) -> None:
    names = [NASTY, *map(str, range(tasks - 1))]
    drawing = draw(accuracy_figure(accuracy(*names)), "accuracy", f"Accuracy {NASTY}")
    for text in (drawing.markup, drawing.files["svg"].decode()):
        assert "<script" not in text
        assert "<!--" not in text
        assert text.count("</svg>") == 1
        assert not re.search("[\x00-\x08\x0b-\x1f\u202e]", text)
    assert {element.tag for element in parsed(drawing).iter()} <= ALLOWED
    ElementTree.fromstring(drawing.files["svg"])
    assert b"\x1b" not in drawing.files["csv"]


def test_a_cell_of_the_data_is_no_formula() -> None:
    drawing = draw(accuracy_figure(accuracy("=1+1")), "accuracy", "Accuracy")
    cells = [cell for row in csv.reader(io.StringIO(drawing.files["csv"].decode())) for cell in row]
    assert not [cell for cell in cells if cell.startswith(("=", "+", "@"))]


def test_missing_numbers_are_neither_drawn_nor_told() -> None:
    missing = Interval(float("nan"), float("nan"), float("nan"), 0)
    drawing = draw(accuracy_figure({"base": {"a": missing}}), "accuracy", "Accuracy")
    assert drawing.rows == []
    assert "<circle" not in drawing.markup


def with_rivals() -> dict[str, Any]:
    """Results with one rival of each kind: the set has 40 points of 50, and its controls have about none."""

    def row(kind: str, name: str, effect: float, edit: str = "transplant") -> dict[str, Any]:
        cell = [effect, effect - 0.05, effect + 0.05, 200]
        extra = {"n_features": 50, "donor": "rl", "features": name}
        return {
            "name": name,
            "set_kind": kind,
            "model": "base",
            "edit": edit,
            "accuracy_delta": {"pooled": cell},
            **extra,
        }

    effects = {"vector": ("rival", 0.3, 1), "weights": ("rival", 0.45, None), "the rest": ("complement", 0.01, None)}
    rivals = [
        {"name": name, "condition": name, "effect": [value, value - 0.05, value + 0.05], "rank": rank, "dose": None, "damages": rank is None}
        for name, (_, value, rank) in effects.items()
    ]  # fmt: skip
    conditions = [
        row("selected", "top50", 0.4), row("ceiling", "whole", 0.5, "patch"),
        *(row(kind, name, value) for name, (kind, value, _) in effects.items()),
        *(row("random", f"random {n}", 0.01 * n) for n in range(-3, 4)),
    ]  # fmt: skip
    found = {
        "model": "base",
        "edit": "transplant",
        "features": "top50",
        "rank": 50,
        "effect": [0.4, 0.35, 0.45],
        "best": "vector",
    }
    return {"pair": ["base", "rl"], "conditions": conditions, "comparisons": [{**found, "rivals": rivals}]}


def test_the_set_is_above_its_rivals_and_its_number_is_in_words() -> None:
    figure = rivals_figure(with_rivals())
    rows = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert rows == ["top50 (rank ≤ 50)", "vector (rank 1)", "weights", "the rest", "random sets, matched"]
    heights = [mark.place[1] for mark in told(figure).marks if mark.series]
    assert heights == sorted(heights)
    assert draw(figure, "rivals", "Rivals").numbers == (
        "transplant rl into base: selected features, top50 (rank ≤ 50): 40.0 points [35.0, 45.0], n = 200; "
        "rivals, by rank, vector (rank 1): 30.0 points [25.0, 35.0], n = 200; ceiling: whole residual: 50.0 points, n = 200. "
        "9 more numbers are in the source data."
    )


@pytest.mark.parametrize(
    ("color", "paper"), [*((one, "#ffffff") for one in style.SERIES), *((one, "#15171b") for one in DARK)]
)
def test_colors_of_series_have_contrast_on_both_papers(color: str, paper: str) -> None:
    def luminance(text: str) -> float:
        parts = (int(text[place : place + 2], 16) / 255 for place in (1, 3, 5))
        red, green, blue = (part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    low, high = sorted((luminance(color), luminance(paper)))
    assert (high + 0.05) / (low + 0.05) >= 3


def test_accuracies_without_a_number_say_so() -> None:
    nothing = float("nan")
    empty: dict[str, Accuracy] = {"base": {"t": Interval(nothing, nothing, nothing, 0)}}
    assert style.NO_NUMBER in draw(accuracy_figure(empty), "accuracy", "Accuracy").markup
    assert style.NO_NUMBER not in draw(accuracy_figure(accuracy("t")), "accuracy", "Accuracy").markup
