"""The first screen: the verdict as one plain sentence, three numbers, the gate and five answers, checked by hand."""

from pathlib import Path
from typing import Any

import pytest

from mechprobe.report.config import ReportConfig
from mechprobe.report.glossary import TERMS, split_by_terms
from mechprobe.report.run_files import RunFiles
from mechprobe.report.sections.answers import answers
from mechprobe.report.sections.first_screen import first_screen, quality_gate
from mechprobe.report.sections.plain_verdict import plain_verdict
from mechprobe.report.stage import build_report
from tests.report.conftest import interventions, quality, write_run


def judged(base: str, tuned: str, *, rank: int | None = None, edit: str = "transplant") -> dict[str, Any]:
    """Results with one verdict on each model, and one comparison in the base."""
    rows = [
        {"model": model, "edit": edit, "task": "pooled", "verdict": verdict, "effect": [0.46, 0.39, 0.53], "n": 256, "n_features": 50,
         "n_random": 99, "random_max": 0.03}
        for model, verdict in (("base", base), ("rl", tuned))
    ]  # fmt: skip
    compared = [{"model": "base", "edit": edit, "no_better_than": rank, "best": None, "rivals": []}]
    return {"pair": ["base", "rl"], "verdicts": rows, "comparisons": compared}


CLAIM = "the 50 selected features cause the change from base to rl: put into base they change accuracy by +46 points, taken out of rl by −46 points"


@pytest.mark.parametrize(
    ("results", "sentence"),
    [
        (judged("supported", "supported"), f"The edits support that {CLAIM}, more than under every control."),
        (
            judged("supported", "supported in part"),
            f"The edits support in part that {CLAIM}, more than under every control.",
        ),
        (
            judged("supported", "supported", rank=1),
            f"The edits support that {CLAIM}, but in base, a single direction does as much.",
        ),
        (
            judged("refuted", "refuted"),
            f"The edits refute that {CLAIM}; this is less than a tenth of what the whole residual does.",
        ),
        (
            judged("supported", "damage"),
            f"The edits support in one model only that {CLAIM}, but in rl, the edit damages the model.",
        ),
        (
            judged("not distinguishable from random sets", "not distinguishable from random sets"),
            f"It is not shown that {CLAIM}, but random sets of features do as much.",
        ),
        (
            judged("this site cannot tell", "no verdict: 12 samples, fewer than 20"),
            f"It cannot be told whether {CLAIM}, but in base, replacing the whole residual at this site moves too little; "
            "in rl, there is no verdict (12 samples, fewer than 20).",
        ),
    ],
)
def test_the_verdict_is_one_plain_sentence(results: dict[str, Any], sentence: str) -> None:
    assert plain_verdict(results) == sentence


def test_the_sentence_claims_no_more_than_was_measured() -> None:
    results = judged("supported", "supported")
    assert plain_verdict(results, trusted=False).endswith(
        "; the crosscoder did not pass the quality gate, so this decides nothing."
    )
    for row in results["verdicts"]:
        del row["n_random"]
    assert plain_verdict(results).endswith("points, and nothing was measured beside it.")
    alone = results | {"verdicts": results["verdicts"][:1]}
    assert plain_verdict(alone).startswith("The edits support in base only that")
    assert plain_verdict(alone).endswith("; rl was not tested.")
    other = judged("not clear of 0", "a new word")
    other["verdicts"][0]["effect"] = [-0.2, -0.3, -0.1]
    assert plain_verdict(other).endswith(
        "but in base, the effect goes the other way; in rl, the verdict is “a new word”."
    )


def test_without_a_transplant_the_first_edit_is_named() -> None:
    assert "under ablate in base they change accuracy by +46 points" in plain_verdict(
        judged("supported", "supported", edit="ablate")
    )
    assert plain_verdict({"pair": ["base", "rl"], "verdicts": []}) == ""


def test_three_numbers_with_n_and_interval(tmp_path: Path) -> None:
    found = first_screen(RunFiles.read(write_run(tmp_path / "run")), [])
    assert [(number.value, number.details[-1]) for number in found.numbers] == [
        ("+40 points", "n = 64"),
        ("−40 points", "n = 64"),
    ]
    assert found.numbers[1].details[0] == "95 % interval −50 to −30"
    results = interventions()
    for row in results["verdicts"]:
        row |= {"random_max": 0.1, "random_mean": 0.02, "ceiling": 0.45, "share_interval": [0.9, 0.8, 1.0]}
    found = first_screen(RunFiles.read(write_run(tmp_path / "other", interventions=results)), [])
    assert [number.value for number in found.numbers] == ["+40 points", "−40 points", "+10 points"]
    assert found.numbers[2].label == "Largest of 20 random sets in base"
    assert "90 (80 to 100) % of the ceiling" in found.numbers[0].details


def test_the_five_questions_are_answered(tmp_path: Path) -> None:
    every = answers(RunFiles.read(write_run(tmp_path / "run")))
    said = {answer.question: " ".join(answer.sentences) for answer in every}
    assert list(said) == ["Which features", "How sure", "Against what", "What would refute it", "What next"]
    assert said["Which features"].startswith(
        "12 features, by the joint ranking; the first are 0, 1, 2, 3, 4 and 7 more."
    )
    assert "The first 2 carry 90 % of the ceiling in base." in said["Which features"]
    assert "In base: a gain of 40 (30 to 50) points, n = 64, p = 0.048" in said["How sure"]
    assert "`mechprobe run --dictionary-seeds 3`" in said["What next"]
    early = answers(RunFiles.read(write_run(tmp_path / "early", without=("select", "intervene"))))
    assert "`mechprobe select` ranks and selects them" in early[0].sentences[0]
    assert "`mechprobe intervene`" in early[-1].sentences[0]


@pytest.mark.parametrize("missing", ["intervene", "evaluate"])
def test_a_run_without_a_verdict_says_what_gives_it(tmp_path: Path, missing: str) -> None:
    run = write_run(tmp_path / "run", without=("intervene", missing))
    content = build_report(RunFiles.read(run), ReportConfig())
    assert content.first.sentence.startswith("No causal verdict yet: `mechprobe intervene` gives it")
    assert content.first.figure is not None
    names = [number.label.partition(":")[0] for number in content.first.numbers]
    assert names == (["Ceiling at resid_post.2", "Lowest FVE"] if missing == "evaluate" else ["Largest gain", "Ceiling at resid_post.2", "Lowest FVE"])  # fmt: skip


def test_the_gate_shows_its_values_beside_the_thresholds() -> None:
    found = quality_gate(quality(trusted=False))
    assert found.state == "failed"
    assert found.values[0] == "FVE 0.961 in sft, the lowest (threshold 0.9)"
    assert found.values[-1] == "FVE of sft is 0.861, below 0.90."
    assert quality_gate(None).state == "not judged"


def test_terms_are_found_once_and_docs_have_them() -> None:
    pieces = split_by_terms("FVE, the FVE and the share of the ceiling of 1.FVE")
    assert [(piece, term.id) for piece, term in pieces if term] == [("FVE", "fve"), ("share of the ceiling", "ceiling")]
    assert "".join(piece for piece, _ in pieces) == "FVE, the FVE and the share of the ceiling of 1.FVE"
    docs = (Path(__file__).resolve().parents[2] / "docs" / "glossary.md").read_text(encoding="utf-8").lower()
    names = [name.strip().lower() for term in TERMS for name in term.title.split(",")]
    plain = {"p vs random", "p mcnemar", "p sign-flip", "pooled row", "intervals", "n", "holm", "right → not right", "kl", "jaccard index", "rival", "random sets", "collateral effects", "ig"}  # fmt: skip
    assert not [name for name in names if name not in docs and name not in plain]
