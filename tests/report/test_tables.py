"""Rows and sentences of the report, by hand."""

import doctest

import pytest

from mechprobe.report.tables import sections as tables


def test_the_examples_in_the_docstrings_hold() -> None:
    assert doctest.testmod(tables).failed == 0


@pytest.mark.parametrize(("value", "text"), [(0.0004, "< 0.001"), (0.0476, "0.048"), (None, "–"), (1.0, "1")])
def test_p_values(value: float | None, text: str) -> None:
    assert tables.p_value(value) == text


def test_three_standard_errors_of_the_difference() -> None:
    # 0.6 against 0.5 at n = 100: error √(0.24/100 + 0.25/100) = 0.07; 0.1 is 1.4 errors
    assert not tables.beats_by([0.6, 0, 0, 100], [0.5, 0, 0, 100])
    assert tables.beats_by([0.8, 0, 0, 100], [0.5, 0, 0, 100])  # 0.3 is 4.7 errors
    assert not tables.beats_by([0.5, 0, 0, 100], [0.8, 0, 0, 100])
    assert not tables.beats_by([1.0, 1, 1, 10], [1.0, 1, 1, 10])


def test_random_sets_belong_to_the_edit_they_control() -> None:
    def row(model: str, edit: str, kind: str, delta: float, **extra: object) -> dict[str, object]:
        return {
            "name": f"{model}|{edit}|{kind}", "model": model, "edit": edit, "set_kind": kind, "features": kind,
            "accuracy": {"t": [0.5, 0.4, 0.6, 10]}, "accuracy_delta": {"t": [delta, 0, 0, 10]}, **extra,
        }  # fmt: skip

    results = {
        "conditions": [
            row("rl", "ablate", "selected", -0.5),
            row("rl", "ablate", "random", -0.1),
            row("rl", "ablate", "random", -0.2),
            row("rl", "transplant", "random", -0.3),
            row("base", "ablate", "random", -0.4),
            row("rl", "patch", "ceiling", -0.6),
            row("base", "patch", "ceiling", 0.6),
            row("rl", "replace", "recon", -0.05),
        ]
    }
    [panel] = tables.effect_panels(results, None, ["t"])
    assert panel["random"] == {"t": [-0.1, -0.2]}
    assert panel["ceiling"] == {"t": -0.6}
    assert panel["others"] == {"recon": {"t": -0.05}}
    assert "baseline" not in panel
    [line] = tables.effect_rows(panel, [{"edit": "ablate", "model": "rl", "task": "t", "p_random": 0.04}], ["t"])
    assert (line["change"], line["random"], line["p"], line["ceiling"]) == (
        "-50 (0 to 0)",
        "-15 [-20, -10]",
        "0.04",
        "-60",
    )


def test_shares_against_the_number_of_features_take_in_the_selected_set() -> None:
    rows = [
        {"model": "base", "edit": "transplant", "donor": "rl", "set_kind": kind, "n_features": n,
         "share_of_ceiling": {"t": share, "u": None}}
        for kind, n, share in (("size", 2, 0.9), ("size", 1, 0.5), ("selected", 50, 1.0))
    ]  # fmt: skip
    assert tables.share_curves({"conditions": rows}, ["t"]) == {
        "transplant rl into base": {"t": [(1, 0.5), (2, 0.9), (50, 1.0)]}
    }
