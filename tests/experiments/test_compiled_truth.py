"""The study of compiled labs: its rules on planted numbers, and a whole lab of a seed that the study does not use."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments.lab import compiled_truth
from experiments.lab.compiled_truth import checks, counting, share_in, spanned
from mechprobe.files import read_json

AXES = np.eye(6)
ROOT = Path(__file__).parents[2]


def test_a_feature_is_causal_by_the_share_of_its_difference_and_by_what_it_writes() -> None:
    causal = AXES[:2]
    differences = np.stack([AXES[0], AXES[0] + 0.9 * AXES[3], AXES[1] + 1.1 * AXES[3], AXES[3], AXES[1], 0 * AXES[0]])
    mean_act = np.array([1.0, 1.0, 1.0, 9.0, 0.19, 1.0])
    assert (share_in(differences, causal) > 0.5).tolist() == [True, True, False, False, True, False]
    assert counting(differences, mean_act, causal).tolist() == [True, True, False, False, False, False]
    mean_act[4] = 0.21
    assert counting(differences, mean_act, causal).tolist() == [True, True, False, False, True, False]


def test_the_span_is_the_mean_squared_cosine_of_the_principal_angles() -> None:
    causal = 3.0 * AXES[:2]
    assert spanned(AXES[:2] + AXES[1], causal) == pytest.approx(1.0)
    assert spanned(AXES[2:4], causal) == pytest.approx(0.0)
    assert spanned(AXES[:1], causal) == pytest.approx(0.5)
    assert spanned(np.stack([AXES[0], AXES[1] + AXES[2]]), causal) == pytest.approx(0.75)


def record(**truth: Any) -> dict[str, Any]:
    """A record in which every bar is reached, with some values of the truth replaced."""
    side = {"verdict": "supported", "effect": [1.0, 1.0, 1.0]}
    none = {"verdict": "refuted", "effect": [0.0, 0.0, 0.0]}
    shares = {"resid_post.0": [0.0, 0.0], "resid_post.1": [1.0, 1.0]}
    return {
        "truth": {"precision": 1.0, "recall": 1.0, "ops_found": 1.0, **truth},
        "site": {"chosen": "resid_post.1", "shares": shares},
        "sets": {"causal": {"base": side, "rl": side}, "decoys": {"base": none, "rl": none}},
    }


def test_every_bar_can_be_missed() -> None:
    assert all(checks(record()).values())
    assert not checks(record(recall=0.94))["recall"]
    assert not checks(record(precision=0.94))["precision"]
    assert not checks(record(ops_found=0.75))["ops found"]
    other = record()
    other["site"]["chosen"] = "resid_post.2"
    other["sets"]["causal"]["rl"] = {"verdict": "refuted", "effect": [0.1, 0.0, 0.2]}
    other["sets"]["decoys"]["base"] = {"verdict": "not clear of 0", "effect": [0.02, 0.0, 0.04]}
    assert [name for name, passed in checks(other).items() if not passed] == ["site", "set supported", "decoys refused"]


def test_stored_results_reach_every_bar(capsys: pytest.CaptureFixture[str]) -> None:
    assert compiled_truth.main(["--finished", "--out", str(ROOT / "artifacts" / "compiled")]) == 0
    assert capsys.readouterr().out.count("none\n") == 12


@pytest.mark.slow
@pytest.mark.parametrize("rank", [3, 7])
def test_the_chain_finds_the_truth_on_a_new_seed(tmp_path: Path, rank: int) -> None:
    out, work = tmp_path / "out", tmp_path / "work"
    given = ["--ranks", str(rank), "--seeds", "7", "--work", str(work), "--out", str(out)]
    assert compiled_truth.main(given) == 0
    found = read_json(out / f"rank{rank:02}-seed7.json")["truth"]
    assert found["precision_of_head"]["ig"] >= 0.95 > found["precision_of_head"]["joint"]
    assert not work.joinpath(f"rank{rank:02}-seed7").exists()
    assert compiled_truth.main(["--finished", "--out", str(out)]) == 0
