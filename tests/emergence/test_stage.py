"""The emergence stage from models to report: layouts, resuming, other settings and mistakes."""

import json
import re
from html import unescape
from pathlib import Path

import numpy as np
import pytest

import mechprobe as mp
from mechprobe.cli import main
from mechprobe.errors import ArtifactError
from mechprobe.files import dump_json
from mechprobe.report.pages.markdown import plain_lines
from tests.builders import build_family

SETTINGS = [
    "--set", "train_sae.d_sae=48", "--set", "train_sae.k=4", "--set", "train_sae.n_tokens=2048",
    "--set", "train_sae.batch_size=128", "--set", "emergence.draws=100", "--set", "emergence.top=8",
    "--set", "emergence.relie_samples=4", "--set", "emergence.relie_steps=2", "--set", "cache.held_out_frac=0.2",
]  # fmt: skip


@pytest.fixture(scope="module")
def given_files(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], Path]:
    folder = tmp_path_factory.mktemp("arms")
    names = ("base", "rl@step_000002", "rl", "sft@step_000004", "sft")
    paths = build_family(folder, names=names)
    prompts = folder / "prompts.jsonl"
    lines = [{"id": f"p{i}", "prompt": f"{i * 7}+{i}=", "response": f"{i * 8} ok"} for i in range(40)]
    prompts.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    options = ["--models", *(f"{name}={path}" for name, path in paths.items()), "--prompts", str(prompts)]
    return [*options, "--sites", "resid_post.1", *SETTINGS], folder


def run(given: list[str], out: Path, *more: str) -> int:
    return main(["emergence", "--out", str(out / "emergence"), *given, *more])


def test_a_dry_run_writes_nothing(
    given_files: tuple[list[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(given_files[0], tmp_path, "--dry-run") == 0
    said = capsys.readouterr().out
    assert "arm rl: base, rl@step_000002, rl" in said
    assert "7 dictionaries × 48 features × 2,048 tokens" in said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("layout", [pytest.param("arms", marks=pytest.mark.slow), "together"])
def test_the_stage_from_models_to_report(
    given_files: tuple[list[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], layout: str
) -> None:
    apart = layout == "arms"
    seeds = 1 if apart else 2
    more = ("--layout", layout, "--seeds", str(seeds), "--set", f"emergence.pairs={str(apart).lower()}")
    assert run(given_files[0], tmp_path, *more) == 0
    said = capsys.readouterr().out
    assert "Report:" in said
    found = mp.Emergence.load(tmp_path / "emergence")
    assert set(found.arms) == set(found.causal) == {"rl", "sft"}
    assert set(found.pairs) == ({"rl", "sft"} if apart else set())
    rl = found.arms["rl"]
    assert [course.seed for course in rl] == list(range(seeds))
    assert rl[0].checkpoints == ("rl@step_000002", "rl")
    assert sum(rl[0].kinds.values()) == 48
    assert len(rl[0].curves["reached_norm"]) == 3
    assert found.claim is not None
    assert all(sentence in said for sentence in found.claim.sentences)
    table = found.table("rl")
    assert len(table) == 48
    relie = table[["relie_base", "relie_rl@step_000002", "relie_rl"]].to_numpy()
    np.testing.assert_allclose(relie[np.isfinite(relie).all(axis=1)].sum(axis=1), 1.0)
    pictures = {path.stem for path in (tmp_path / "emergence" / "report" / "figures").iterdir()}
    assert pictures == {"curves", "overlap", "causal"} | ({"pairs"} if apart else set())
    page = (tmp_path / "emergence" / "report" / "index.html").read_text(encoding="utf-8")
    assert found.claim.rule in unescape(re.sub(r"<[^>]+>", "", page))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    assert run(given_files[0], tmp_path, *more) == 0
    assert run(given_files[0], tmp_path, *more, "--set", "dtype=bfloat16") == 2
    assert "model_dtypes" in capsys.readouterr().err  # a setting of the store, the input of everything else
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    assert dump_json(mp.Emergence.load(tmp_path / "emergence").to_dict()) == dump_json(found.to_dict())
    check_intervals(found, said, seeds)
    with pytest.raises(ArtifactError, match="no table of arm 'dpo'"):
        found.table("dpo")


def check_intervals(found: mp.Emergence, said: str, seeds: int) -> None:
    """Intervals of RelIE over prompts and of overlaps over seeds: in the result, the table, the JSON and the printed lines."""
    causal, table = found.causal["rl"], found.table("rl")
    assert causal.n_groups == causal.n_samples == 4
    for cells in (causal.departure, causal.rank_correlation):
        assert all(cell.n == 4 and cell.low <= cell.high for cell in cells if np.isfinite(cell.low))
    assert np.isfinite([cell.low for cell in causal.departure]).all()
    assert "over the 4 prompts of 4 held-out samples" in said
    several = table["n_relie"] >= 2
    assert several.any()
    assert table.loc[several, ["low_relie_rl", "high_relie_rl"]].notna().to_numpy().all()
    assert table.loc[~several, ["low_relie_rl", "high_relie_rl"]].isna().to_numpy().all()
    courses, spread = found.arms["rl"], found.to_dict()["over_seeds"]["rl"]
    for name in ("overlap", "jaccard"):
        cells = np.array([getattr(course, name) for course in courses])
        np.testing.assert_allclose(spread[name]["mean"], cells.mean(axis=0))
        if seeds > 1:
            np.testing.assert_allclose([spread[name]["low"], spread[name]["high"]], [cells.min(0), cells.max(0)])
        else:
            assert np.isnan(spread[name]["low"]).all()
    assert ("mean [smallest, largest] of 2 seeds" in said) == (seeds == 2)
    page = "\n".join(plain_lines((found.folder / "report" / "report.md").read_text(encoding="utf-8").splitlines()))
    cell = found.over_seeds("rl")["jaccard"].at(0, 1)
    assert (f"{cell.value:.3f} [{cell.low:.3f}, {cell.high:.3f}]" in page) == (seeds == 2)
    assert ("one seed: no interval" in said) == (seeds == 1)


@pytest.mark.slow
def test_resumed_and_made_again_it_gives_the_same_bytes(given_files: tuple[list[str], Path], tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    short = ("--set", "emergence.pairs=false")
    assert run(given_files[0], first, *short) == 0
    assert run(given_files[0], second, *short) == 0
    (second / "emergence" / "manifest.json").unlink()  # as if killed before the end
    (second / "emergence" / "unfinished.json").write_bytes(
        json.dumps(
            {
                k: json.loads((first / "emergence" / "manifest.json").read_text())[k]
                for k in ("stage", "config", "inputs", "models")
            }
        ).encode()
    )
    assert run(given_files[0], second, *short) == 0
    for name in ("emergence.json", "features_rl_seed0.parquet"):
        assert (first / "emergence" / name).read_bytes() == (second / "emergence" / name).read_bytes()


@pytest.mark.slow
def test_other_settings_are_refused_and_force_keeps_what_fits(
    given_files: tuple[list[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = ("--set", "emergence.pairs=false", "--set", "emergence.relie=false")
    assert run(given_files[0], tmp_path, *short) == 0
    store = (tmp_path / "checkpoints" / "cache" / "manifest.json").stat().st_mtime_ns
    capsys.readouterr()
    other = (*short, "--set", "emergence.thresholds.min_change=0.4")
    assert run(given_files[0], tmp_path, *other) == 2
    error = capsys.readouterr().err
    assert "thresholds.min_change: 0.2 in the folder, 0.4 now" in error
    assert "Traceback" not in error
    assert run(given_files[0], tmp_path, *other, "--force") == 0
    assert (tmp_path / "checkpoints" / "cache" / "manifest.json").stat().st_mtime_ns == store


def test_mistakes_are_one_sentence(
    given_files: tuple[list[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = given_files[1]
    assert (
        main(
            [
                "emergence",
                "--models",
                f"base={folder / 'base'}",
                "--prompts",
                str(folder / "prompts.jsonl"),
                "--out",
                str(tmp_path / "e"),
            ]
        )
        == 2
    )
    assert "no checkpoint among the models" in capsys.readouterr().err
    assert run(given_files[0], tmp_path, "--checkpoints", str(tmp_path)) == 2
    assert "holds no checkpoint" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
