"""Rows and sentences of the sections, by hand."""

import re
from typing import Any

from mechprobe.formatting import edit_title, ordered
from mechprobe.report.pages.templates import explained, harmless, prose, visible
from mechprobe.report.sections.behaviour import behaviour_sentences, exceeds
from mechprobe.report.sections.contexts import context_lines
from mechprobe.report.sections.effects import effect_panels, effect_table, effect_tasks, share_curves
from mechprobe.report.sections.features import ordered_classes
from mechprobe.statistics import Interval


def row(model: str, edit: str, kind: str, delta: float = 0.0, **extra: Any) -> dict[str, Any]:
    return {
        "name": f"{model}|{edit}|{kind}", "model": model, "edit": edit, "set_kind": kind, "features": kind, "n_features": 2,
        "accuracy": {"t": [0.5, 0.4, 0.6, 10]}, "accuracy_delta": {"t": [delta, 0, 0, 10]}, **extra,
    }  # fmt: skip


def accuracy(value: float, n: int = 100) -> Interval:
    return Interval(value, 0.0, 1.0, n)


def test_titles_and_orders() -> None:
    assert edit_title({"edit": "transplant", "model": "base", "donor": "rl"}) == "transplant rl into base"
    assert edit_title({"edit": "ablate", "model": "rl"}) == "ablate in rl"
    assert list(ordered({"b": 1, "a": 2, "z": 3}, ["a", "b", "c"]).items()) == [("a", 2), ("b", 1), ("z", 3)]


def test_tokens_are_visible_and_inert() -> None:
    assert (visible("a\n"), visible("")) == ("a⏎", "∅")
    assert harmless("\x1b[31m\n") == "\\x1b[31m "
    assert prose("run `mechprobe drift` <b>") == "run <code>mechprobe drift</code> &lt;b&gt;"
    assert prose("a `<b>` b") == "a `&lt;b&gt;` b"  # code is only what can be a command
    example = {"tokens": ["a", "b", "c"], "activations": {"joint": [0.0, 2.0, 4.0]}, "peak": 2}
    [line] = context_lines(example, ())
    assert [(run.tokens, run.shade, run.peak, run.value) for run in line.runs] == [
        (("a",), 0, False, ""), (("b",), 3, False, "2.00"), (("c",), 5, True, "4.00")
    ]  # fmt: skip


def test_three_standard_errors_of_the_difference() -> None:
    # 0.6 against 0.5 at n = 100: the error is √(0.24/100 + 0.25/100) = 0.07, so 0.1 is 1.4 errors
    assert not exceeds(accuracy(0.6), accuracy(0.5))
    assert exceeds(accuracy(0.8), accuracy(0.5))  # 0.3 is 4.7 errors
    assert not exceeds(accuracy(0.5), accuracy(0.8))
    assert not exceeds(accuracy(1.0, 10), accuracy(1.0, 10))


def test_every_tuned_model_is_compared_with_the_base() -> None:
    found = {
        "base": {"a": accuracy(0.5), "b": accuracy(0.5)},
        "rl": {"a": accuracy(0.9), "b": accuracy(0.1)},
        "sft": {"a": accuracy(0.5), "b": accuracy(0.5)},
    }
    better, same = behaviour_sentences(found, "base")
    assert better.startswith("rl is above base on a and below base on b")
    assert "sft is neither above nor below base" in same
    assert behaviour_sentences(found, "other") == []


def test_random_sets_belong_to_the_edit_that_they_control() -> None:
    results = {
        "site": "resid_post.1",
        "verdicts": [{"edit": "ablate", "model": "rl", "task": "t", "p_random": 0.04}],
        "conditions": [
            row("rl", "ablate", "selected", -0.5),
            row("rl", "ablate", "random", -0.1),
            row("rl", "ablate", "random", -0.2),
            row("rl", "transplant", "random", -0.3),
            row("base", "ablate", "random", -0.4),
            row("rl", "patch", "ceiling", -0.6),
            row("base", "patch", "ceiling", 0.6),
            row("rl", "replace", "recon", -0.05),
        ],
    }
    [panel] = effect_panels(results, None, ["t"])
    assert panel.random == {"t": [-0.1, -0.2]}
    assert panel.ceiling == {"t": -0.6}
    assert panel.others == {"recon": {"t": -0.05}}
    assert "baseline" not in panel.to_dict()
    table = effect_table(panel, results, ["t"], "McNemar")
    line = dict(zip(table.head, table.rows[0], strict=True))
    shown = ("change, points", "random: median [range]", "p vs random (Holm)", "ceiling, points")
    assert [line[name] for name in shown] == ["-50 (0 to 0)", "-15 [-20, -10]", "0.04", "-60"]


def test_a_forced_prefix_of_the_interventions_is_the_baseline_of_its_model() -> None:
    results = {"conditions": [row("base", "ablate", "selected"), row("base", "prefix", "baseline", 0.3)]}
    [panel] = effect_panels(results, None, ["t"])
    assert (panel.baseline, panel.baseline_label) == ({"t": 0.3}, "force baseline")
    assert panel.to_dict()["baseline"] == {"t": 0.3}


def test_curves_of_the_share_of_the_ceiling_include_the_selected_set() -> None:
    rows = [
        row("base", "transplant", kind, donor="rl", share_of_ceiling={"t": share, "u": None}) | {"n_features": n}
        for kind, n, share in (("size", 2, 0.9), ("size", 1, 0.5), ("selected", 50, 1.0))
    ]
    assert share_curves({"conditions": rows}, ["t"]) == {
        "transplant rl into base": {"t": [(1, 0.5), (2, 0.9), (50, 1.0)]}
    }


def test_the_pooled_row_comes_last() -> None:
    cells = {"pooled": [0.5, 0, 1, 20], "b": [0.5, 0, 1, 10], "a": [0.5, 0, 1, 10]}
    results = {"conditions": [row("rl", "ablate", "selected") | {"accuracy": cells}]}
    assert effect_tasks(results, ["a", "b"]) == ["a", "b", "pooled"]
    assert effect_tasks({"conditions": []}, ["a"]) == []


def test_classes_of_one_model_precede_those_of_several() -> None:
    counts = {"dead": 1, "unconfirmed": 2, "base+rl": 3, "rl-only": 4, "shared": 5}
    assert list(ordered_classes(counts, ["base", "rl"])) == ["shared", "rl-only", "base+rl", "unconfirmed", "dead"]


def test_a_sign_stays_with_the_term_beside_it() -> None:
    found = explained("ceiling, points; p McNemar (Holm), a/FVE.")
    assert found.count('<span class="kept">') == 3
    assert re.sub(r"<[^>]+>", "", found) == "ceiling, points; p McNemar (Holm), a/FVE."
    assert re.search(r'<span class="kept">\(<button[^>]*>Holm</button>\),</span>', found)
    assert "kept" not in explained("the ceiling of rl")
