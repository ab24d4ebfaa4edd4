"""Doses, collateral, left-out tasks and smallest sets as text, checked by hand."""

import doctest
from pathlib import Path
from typing import Any

from mechprobe.report.stage import report
from mechprobe.report.tables import interventions as tables
from tests.report.conftest import interventions, write_run


def row(model: str, edit: str, kind: str, delta: float, **extra: Any) -> dict[str, Any]:
    cell = [delta, delta - 0.1, delta + 0.1, 40]
    return {
        "name": f"{model}|{edit}", "model": model, "edit": edit, "set_kind": kind, "features": "top2", "n_features": 2,
        "donor": None, "accuracy": {"t": [0.5, 0.4, 0.6, 40]}, "accuracy_delta": {"t": cell, "pooled": cell}, **extra,
    }  # fmt: skip


COLLATERAL = {"kl": [0.2, 0.1, 0.3, 900], "ce_change": [0.0, -0.1, 0.1, 900]}


def test_the_examples_in_the_docstrings_hold() -> None:
    assert doctest.testmod(tables).failed == 0


def test_a_dose_curve_rises_and_takes_in_the_main_edit() -> None:
    rows = [
        row("base", "clamp:10.0", "dose", -0.5), row("base", "clamp:3.0", "selected", 0.2), row("base", "clamp:0.5", "dose", 0.0),
        row("rl", "clamp:3.0", "opposite", 0.9), row("rl", "scale:0.5", "selected", 0.1), row("rl", "ablate", "selected", 0.1),
    ]  # fmt: skip
    found = {"conditions": rows}
    assert {title: [v for v, _ in points] for title, points in tables.dose_curves(found).items()} == {
        "clamp in base": [0.5, 3.0, 10.0]
    }
    assert [r["cells"] for r in tables.dose_rows(found, ["t"])] == [
        ["0 (-10 to +10)"],
        ["+20 (+10 to +30)"],
        ["-50 (-60 to -40)"],
    ]
    [sentence] = tables.dose_sentences(found)
    assert "0.5 0 (-10 to +10), 3 +20 (+10 to +30), 10 -50 (-60 to -40)" in sentence


def test_edits_out_of_the_datas_range_are_named() -> None:
    rows = [row("base", "clamp:1e20", "selected", -0.2, relative_change=4.2e19), row("base", "clamp:3", "dose", 0.1)]
    found = {"conditions": rows, "changes": {"bound": 10.0, "n_tokens": 1202, "far": ["base|clamp:1e20"]}}
    [sentence] = tables.change_sentences(found)
    assert all(fact in sentence for fact in ("10 times", "1,202", "clamp:1e20 in base 4.2e+19"))
    assert tables.change_sentences({**found, "changes": {**found["changes"], "far": []}}) == []


def test_collateral_names_its_texts_and_the_tasks_that_did_not_select() -> None:
    found = {
        "conditions": [
            row("base", "clamp:3.0", "selected", -0.2, collateral=COLLATERAL),
            row("base", "clamp:3.0", "random", 0.0, collateral=None),
        ],
        "collateral": {"source": "texts of corpus.txt", "n_texts": 9, "n_tokens": 900},
        "other_tasks": ["t"],
        "trained": ["t"],
    }
    [line] = tables.collateral_rows(found)
    assert (line["kl"], line["ce"], line["cells"]) == (
        "0.200 (0.100 to 0.300)",
        "0.000 (-0.100 to 0.100)",
        ["-20 (-30 to -10)"],
    )
    kl, other = tables.collateral_sentences(found)
    assert all(
        fact in kl for fact in ("texts of corpus.txt", "9 texts", "n = 900", "clamp:3.0 in base 0.200 (0.100 to 0.300)")
    )
    assert all(
        fact in other for fact in ("task t", "post-training saw it", "n = 40", "clamp:3.0 in base -20 (-30 to -10)")
    )


def test_sizes_and_left_out_tasks_in_words() -> None:
    found = {
        "pair": ["base", "rl"],
        "conditions": [],
        "sizes": {
            "base": {"n": 80, "largest": 5, "shares": [[1, 0.2, 0.1, 0.3], [5, 0.8, 0.7, 0.9]],
                     "50%": {"size": 5, "low": 5, "high": 5}, "90%": {"size": None, "low": 5, "high": None}},
            "rl": {"n": 80, "reason": "the whole residual moves less than 5 points in rl"},
        },
        "left_out": [
            {"model": "base", "edit": "transplant", "task": "t", "n": 40, "n_features": 0, "n_shared": 0, "effect": None,
             "effect_with": [0.5, 0.4, 0.6], "verdict": "no verdict: without t the rule chooses no feature"},
        ],
    }  # fmt: skip
    first, second = tables.size_sentences(found)
    goals = "5 [5, 5] for 50 % and not reached [5, not reached] for 90 %"
    assert all(fact in first for fact in ("in base", goals, "n = 80", "1, 5"))
    assert all(fact in second for fact in ("in rl", "the whole residual moves less than 5 points in rl", "n = 80"))
    assert tables.size_intervals(found) == {"transplant rl into base": [[1, 0.2, 0.1, 0.3], [5, 0.8, 0.7, 0.9]]}
    [line] = tables.left_out_rows(found)
    assert (line["effect"], line["full"], line["share"], line["p"]) == ("–", "50 (40 to 60)", "–", "–")
    [sentence] = tables.left_out_sentences(found)
    assert all(fact in sentence for fact in ("t –", "50 (40 to 60)", "without t the rule chooses no feature"))


def test_sentences_name_never_active_features_and_read_outs_that_disagree() -> None:
    found = {
        "conditions": [],
        "silent": {"sentence": "Silent."},
        "readouts": [{"sentence": ""}, {"sentence": "Apart."}],
    }
    assert tables.sentences(found) == ["Silent.", "Apart."]


def test_results_without_optional_measurements_have_no_sentences() -> None:
    found = {"conditions": [row("base", "transplant", "selected", 0.4)], "pair": ["base", "rl"], "verdicts": []}
    assert tables.sentences(found) == []
    assert tables.size_intervals(found) == {}


def compared() -> dict[str, Any]:
    """Results with a set, two rivals of different rank and a complement."""
    data = interventions()
    rivals = [
        {"name": "PCA of the difference, rank 1", "rank": 1, "dose": None, "effect": [0.46, 0.4, 0.52]},
        {"name": "mean difference, every token, best dose", "rank": 1, "dose": 4.0, "effect": [0.2, 0.1, 0.3]},
        {"name": "whole difference minus the set", "rank": None, "dose": None, "effect": [0.0, -0.02, 0.02]},
    ]
    kinds = ("rival", "rival", "complement")
    template = next(c for c in data["conditions"] if c["set_kind"] == "recon")
    for rival, kind in zip(rivals, kinds, strict=True):
        rival["condition"] = f"base|rival|{rival['name']}"
        data["conditions"].append({**template, "name": rival["condition"], "set_kind": kind, "edit": "rival"})
    data["comparisons"] = [
        {"model": "base", "edit": "transplant", "features": "top50", "rank": 50, "effect": [0.45, 0.4, 0.5], "rivals": rivals,
         "sentence": "transplant of top50 in base is no better than one direction."}
    ]  # fmt: skip
    data["curves"] = [
        {"model": "base", "kind": kind, "points": [[1, 0.1], [50, 1.0]], "area": 0.5}
        for kind in ("features of the ranking", "principal components")
    ]
    return data


def test_rivals_are_drawn_and_told(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", interventions=compared())
    report(folder)
    markdown = (folder / "report" / "report.md").read_text()
    for name in ("rivals", "faithfulness"):
        assert (folder / "report" / "figures" / f"{name}.png").stat().st_size > 5000
        assert markdown.count(f"figures/{name}.png") == 1
    assert "no better than one direction" in markdown
    assert "whole difference minus the set 0" in markdown
    [text] = [line for line in tables.sentences(compared()) if line.startswith("Mean share")]
    assert (
        text
        == "Mean share of the ceiling over log size in base: features of the ranking 0.50 and principal components 0.50."
    )
