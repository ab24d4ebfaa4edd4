"""``mechprobe run --dictionary-seeds`` on a small lab: what it makes, keeps, resumes, refuses and says."""

import json
import shutil
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import pytest

from mechprobe.cli import main
from mechprobe.files import read_json
from mechprobe.interventions.dictionaries.result import DictionarySeeds
from mechprobe.lab.summary import shipped
from mechprobe.report.result import Report
from tests.cli.test_end_to_end import SMALL

SMALLER = [
    *SMALL, "train_sae.n_tokens=4096", "evaluate.n_per_task=16", "intervene.n_random=1", "intervene.sizes=[]",
    "intervene.edits_base=['transplant']", "intervene.edits_tuned=['ablate']", "intervene.rivals=['whole']",
    "intervene.n_per_task=2", "intervene.collateral_texts=4", "select.n_controls=1", "features.ce_samples=2",
    "features.bootstrap_draws=0", "features.n_shown=0", "features.n_quantiles=0",
]  # fmt: skip
COMPARED = "dictionaries/compared/dictionary_seeds.json"
Call = list[str]


@pytest.fixture(scope="module")
def call(tmp_path_factory: pytest.TempPathFactory) -> Call:
    """The command with two dictionaries, without its folder."""
    prompts = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    with (shipped("shared-marker") / "prompts.jsonl").open() as lines:
        prompts.write_text("".join(islice(lines, 200)))
    return ["run", "--dictionary-seeds", "2", "--set", *SMALLER, f"prompts.file={prompts}"]


@pytest.fixture(scope="module")
def made(call: Call, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("seeds") / "run"
    assert main([*call, "--out", str(folder)]) == 0
    return folder


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Path:
    """A copy of the run that a test may change."""
    return shutil.copytree(made, tmp_path / "run")


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_further_dictionary_reads_the_store_and_the_outcomes_of_the_run(made: Path) -> None:
    further = made / "dictionaries" / "seed-1"
    assert sorted(path.name for path in further.iterdir()) == ["crosscoder", "features", "interventions", "selection"]
    manifests = {path.name: read_json(path / "manifest.json") for path in further.iterdir()}
    own = read_json(made / "crosscoder" / "manifest.json")
    assert manifests["crosscoder"]["inputs"] == own["inputs"]
    assert (
        manifests["selection"]["inputs"]["evals"] == read_json(made / "selection" / "manifest.json")["inputs"]["evals"]
    )
    settings = {name: dict(found["config"]) for name, found in (("own", own), ("other", manifests["crosscoder"]))}
    for name, seed in (("own", 0), ("other", 1)):
        assert settings[name]["crosscoder"].pop("seed") == settings[name]["training"].pop("seed") == seed
    assert settings["own"] == settings["other"]


def test_the_result_compares_sets_and_verdicts(made: Path) -> None:
    found = DictionarySeeds.load(made / "dictionaries" / "compared")
    own = read_json(made / "interventions" / "results.json")
    pooled = [row for row in own["verdicts"] if row["task"] == "pooled"]
    assert [each.seed for each in found.dictionaries] == [0, 1]
    assert found.features == own["features"]
    assert [(edit.model, edit.edit) for edit in found.edits] == [(row["model"], row["edit"]) for row in pooled]
    for edit, row in zip(found.edits, pooled, strict=True):
        assert edit.verdicts[0] == row["verdict"]
        assert list(edit.effects[0]) == row["effect"]
        assert edit.smallest <= edit.median <= edit.largest
    match = found.found_again[0]
    assert sum(found.found_by) == round(match.in_set.value * len(found.features))
    assert match.in_set.value <= match.anywhere.value


def test_report_and_summary_show_it(made: Path, call: Call, capsys: pytest.CaptureFixture[str]) -> None:
    sentence = read_json(made / COMPARED)["sentence"]
    part = Report.load(made / "report" / "report.json").section("dictionaries")
    assert part.says == sentence
    assert [row[0] for row in part.tables[0].rows] == ["0", "1", "median [range]"]
    assert "Other dictionaries" in (made / "report" / "index.html").read_text()
    assert "### Other dictionaries" in (made / "report" / "report.md").read_text()
    assert main(["show", str(made)]) == 0
    shown = capsys.readouterr().out
    assert sentence in shown
    assert len(shown.splitlines()) <= 40


@pytest.mark.slow
def test_same_seeds_give_the_same_bytes(copy: Path, call: Call) -> None:
    compared = (copy / COMPARED).read_bytes()
    shutil.rmtree(copy / "dictionaries")
    assert main([*call, "--out", str(copy)]) == 0
    assert (copy / COMPARED).read_bytes() == compared


@pytest.mark.slow  # the interrupted comparison keeps finished ones in the quick tests
def test_more_dictionaries_keep_the_finished_ones(copy: Path, call: Call) -> None:
    before = bytes_of(copy / "dictionaries" / "seed-1")
    wider = ["3" if part == "2" else part for part in call]
    assert main([*wider, "--out", str(copy)]) == 0
    assert bytes_of(copy / "dictionaries" / "seed-1") == before
    assert [each["seed"] for each in read_json(copy / COMPARED)["dictionaries"]] == [0, 1, 2]


def test_an_interrupted_comparison_goes_on(copy: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    compared = (copy / COMPARED).read_bytes()
    further = copy / "dictionaries" / "seed-1"
    weights = (further / "crosscoder" / "weights.safetensors").stat().st_mtime_ns
    shutil.rmtree(copy / "dictionaries" / "compared")
    shutil.rmtree(further / "interventions")
    with monkeypatch.context() as patch:
        patch.setattr("mechprobe.pipeline.run.intervene", _interrupted(copy / "interventions"))
        assert main([*call, "--out", str(copy)]) != 0
    assert not (copy / COMPARED).exists()
    assert main([*call, "--out", str(copy)]) == 0
    assert (copy / COMPARED).read_bytes() == compared
    assert (further / "crosscoder" / "weights.safetensors").stat().st_mtime_ns == weights


def _interrupted(finished: Path) -> Callable[..., object]:
    from mechprobe.interventions.stage import intervene

    def stopping(*args: object, **options: object) -> object:
        if options["out"] != finished:
            raise KeyboardInterrupt
        return intervene(*args, **options)  # type: ignore[arg-type]

    return stopping


@pytest.mark.slow
def test_a_comparison_with_earlier_interventions_is_not_shown(
    copy: Path, call: Call, capsys: pytest.CaptureFixture[str]
) -> None:
    sentence = read_json(copy / COMPARED)["sentence"]
    changed = ["--set", *call[call.index("--set") + 1 :], "intervene.n_per_task=1"]
    assert main(["intervene", "--run", str(copy), "--force", *changed]) == 0
    assert main(["report", "--run", str(copy)]) == 0
    assert main(["show", str(copy)]) == 0
    assert sentence not in capsys.readouterr().out
    report = Report.load(copy / "report" / "report.json")
    assert "dictionaries" not in [part.id for part in report.section("interventions").parts]
    assert any(COMPARED in text for text in report.warnings)


@pytest.mark.slow
def test_a_rule_that_chooses_nothing_in_another_dictionary_is_a_result(
    copy: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mechprobe.errors import SelectionError
    from mechprobe.selection.stage import select_features

    def choosy(*args: object, **options: object) -> object:
        if "dictionaries" in str(options["out"]):
            raise SelectionError("No feature is above the threshold on every task.")
        return select_features(*args, **options)  # type: ignore[arg-type]

    shutil.rmtree(copy / "dictionaries")
    monkeypatch.setattr("mechprobe.pipeline.run.select_features", choosy)
    assert main([*call, "--out", str(copy)]) == 0
    found = DictionarySeeds.load(copy / "dictionaries" / "compared")
    assert found.dictionaries[1].n_features == 0
    assert found.found_again[0].in_set.value == 0
    assert all(edit.verdicts[1].startswith("no verdict: No feature is above") for edit in found.edits)
    assert all(edit.n_same == 1 for edit in found.edits)
    page = (copy / "report" / "report.md").read_text()
    assert "no verdict: No feature is above" in page


def test_the_dry_run_says_how_much_more_work_it_is(copy: Path, call: Call, capsys: pytest.CaptureFixture[str]) -> None:
    wider = ["4" if part == "2" else part for part in call]
    assert main([*wider, "--out", str(copy), "--dry-run", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["dictionaries"]["seeds"] == [1, 2, 3]
    assert plan["dictionaries"]["missing_stages"] == 8
    weights = (copy / "crosscoder" / "weights.safetensors").stat().st_size
    assert plan["dictionaries"]["n_bytes"] == 2 * weights
    assert any(line.startswith("dictionaries 3 further, seeds 1, 2, 3") for line in plan["plan"])


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--dictionary-seeds", "0"], "give 2 or more"),
        (["--dictionary-seeds", "1"], "it counts the run's own dictionary"),
        (["--dictionary-seeds", "2", "--until", "select"], "leave out --until"),
        (["--dictionary-seeds", "2", "--set", "select.rule=ids:1,2"], "names features of one dictionary"),
        (["--dictionary-seeds", "2", "--set", "intervene.features=file:x.json"], "names features of one dictionary"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_any_work(
    tmp_path: Path, more: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "--out", str(tmp_path / "r"), *more]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "r").exists()


@pytest.mark.slow
def test_a_streamed_run_has_further_dictionaries_too(
    call: Call, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    streamed = [*call, "train_sae.mode=stream", "--out", str(tmp_path / "run")]
    assert main([*streamed, "--dry-run"]) == 0
    assert "mode stream runs the models again for each" in capsys.readouterr().out
    assert main(streamed) == 0
    further = read_json(tmp_path / "run" / "dictionaries" / "seed-1" / "crosscoder" / "manifest.json")
    own = read_json(tmp_path / "run" / "crosscoder" / "manifest.json")
    assert further["results"]["mode"] == own["results"]["mode"] == "stream"
    assert further["counts"]["distinct_tokens"] == own["counts"]["distinct_tokens"]
    assert len(DictionarySeeds.load(tmp_path / "run" / "dictionaries" / "compared").dictionaries) == 2
