"""Results in a terminal and in a notebook: one short line, an escaped table, and a figure that a notebook can show."""

import inspect
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

import mechprobe as mp
from mechprobe.display import Displayed
from mechprobe.dynamics import dip_and_recovery
from mechprobe.errors import InputError
from mechprobe.evals.result import EvaluationSummary
from mechprobe.records import Outcome, Outcomes
from mechprobe.results import IntervalNumbers, Result
from mechprobe.statistics import Interval

HOSTILE = "<script>alert(1)</script>\x1b[31m\u202e"
NO_FIGURE = {"CachePlan": "a plan, not a result", "Labels": "texts"}


class Row(Result):
    name: str
    value: IntervalNumbers = Interval(0.5, 0.25, 0.75, 8)
    many: tuple[int, ...] = ()


@dataclass(frozen=True, repr=False)
class Plain(Displayed):
    name: str


def public_results() -> Iterator[type]:
    """Every displayed class among the public names, those of the rooms included."""
    for module in (mp, mp.drift, mp.dynamics, mp.posttrain):
        for name in module.__all__:
            found = getattr(module, name)
            if inspect.isclass(found) and issubclass(found, Displayed):
                yield found


def returned_classes() -> Iterator[type]:
    """What the public functions of all rooms return, where that is a class of mechprobe."""
    for module in (mp, mp.drift, mp.dynamics, mp.posttrain):
        functions = [getattr(module, name) for name in module.__all__]
        for function in filter(inspect.isfunction, functions):
            found = function.__annotations__.get("return")
            if inspect.isclass(found) and found.__module__.startswith("mechprobe"):
                yield found


def outcomes(task: str = "sums") -> Outcomes:
    rows = [("base", "wrong"), ("rl", "right")]
    return Outcomes([Outcome(f"{task}-{i}", task, model, verdict, "7", 1) for i in range(4) for model, verdict in rows])


def test_a_short_text_names_every_field_and_counts_long_ones() -> None:
    text = repr(Row(name="a", many=tuple(range(1000))))
    assert text == "Row(name='a', value=Interval(value=0.5, low=0.25, high=0.75, n=8), many=<1000 items>)"
    assert str(Row(name="a")) == repr(Row(name="a"))


def test_texts_of_models_and_data_are_inert() -> None:
    for found in (Row(name=HOSTILE), Plain(HOSTILE), outcomes(HOSTILE)):
        html = found._repr_html_()
        assert "<script" not in html
        assert "&lt;script" in html
        for text in (html, repr(found)):
            assert not {"\x1b", "\u202e"} & set(text)


def test_the_table_of_a_notebook_says_how_much_it_leaves_out() -> None:
    found = Outcomes(outcomes().records * 10)
    html = found._repr_html_()
    assert html.count("<tr>") == 21
    assert f"{len(found.records) - 20} more rows in <code>to_pandas()</code>" in html


def test_without_pandas_the_fields_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pandas", None)
    assert "<td>records</td>" in outcomes()._repr_html_()


def test_a_notebook_can_show_a_figure() -> None:
    figure = outcomes().plot()
    assert figure._repr_png_().startswith(b"\x89PNG")
    assert {"base", "rl"} <= {text.get_text() for legend in figure.legends for text in legend.get_texts()}


def test_a_result_without_a_figure_says_so() -> None:
    with pytest.raises(InputError, match="no figure of a Row"):
        Row(name="a").plot()
    with pytest.raises(InputError, match="empty"):
        mp.SweepResults(
            base="base", arms={}, order=[], steps={}, benchmarks={}, cells={}, comparisons={}, files={}
        ).plot()


def test_every_result_of_a_public_function_is_displayed() -> None:
    others = {found.__name__ for found in returned_classes() if not issubclass(found, Displayed)}
    assert others == {"PositionDivergences"}, "arrays by position, of a pure function"


def test_every_public_result_has_a_figure() -> None:
    from mechprobe.report.figures.results import figure_of

    nothing = figure_of.dispatch(object)
    without = {found.__name__ for found in public_results() if figure_of.dispatch(found) is nothing}
    # A null is one of three kinds, each of which has a figure.
    assert without == {*NO_FIGURE, "NullResult"}


def test_a_result_in_a_room_below_the_report_draws_itself() -> None:
    curve = dip_and_recovery([10, 20, 40, 80], [0.40, 0.30, 0.45, 0.60], 0.5, n=400)
    assert repr(curve).startswith(f"DipResult({curve.words}, depth=")
    assert "step" in curve.plot().axes[0].get_xlabel()


def test_an_evaluation_draws_its_accuracies() -> None:
    cell = Interval(0.5, 0.25, 0.75, 8)
    found = EvaluationSummary(
        tasks=["sums"],
        accuracy={"base": {"sums": cell}, "rl": {"sums": cell}},
        unparsed={},
        force_prefix=None,
        mcnemar={},
    )
    assert repr(found) == "EvaluationSummary(base, rl on sums)"
    assert len(found.plot().axes[0].patches) == 2
