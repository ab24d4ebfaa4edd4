"""The main job through the command line, on the shipped lab at a small size: every stage, resume, single stages."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from contextlib import redirect_stdout
from io import StringIO
from itertools import islice
from pathlib import Path

import pytest

import mechprobe as mp
from mechprobe.cli import main
from mechprobe.evals.stage import load_outcomes
from mechprobe.features.table.feature_table import FeatureTable
from mechprobe.files import sha256_file
from mechprobe.lab.summary import shipped
from mechprobe.stage_folder import input_hash

SMALL = [
    "localize.n_per_task=4", "cache.max_prompts=60", "train_sae.d_sae=128", "train_sae.k=8", "train_sae.n_tokens=20480",
    "features.ce_samples=8", "features.gate.min_fve=0.0", "features.gate.min_ce_recovered=-9.0", "evaluate.n_per_task=24", "evaluate.batch_size=16",
    "select.n_controls=2", "select.min_gained=2", "select.rule=top:10", "intervene.features=top:10", "intervene.n_random=2",
    "intervene.n_shuffled=1", "intervene.n_per_task=4", "intervene.doses=[]", "intervene.sizes=[2]", "intervene.workers=1",
    "intervene.max_new_tokens=24",
]  # fmt: skip
ROOT = Path(__file__).resolve().parents[2]
STAGES = ("localize", "cache", "crosscoder", "features", "evals", "selection", "interventions", "examples", "report")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Small settings, and the first prompts of the lab: a whole run reads its prompts several times."""
    prompts = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    with (shipped("shared-marker") / "prompts.jsonl").open() as lines:
        prompts.write_text("".join(islice(lines, 200)))
    return [*SMALL, f"prompts.file={prompts}"]


@pytest.fixture(scope="module")
def first_run(small: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The run folder and what the run printed."""
    folder, printed = tmp_path_factory.mktemp("run") / "lab", StringIO()
    with redirect_stdout(printed):
        assert main(["run", "--out", str(folder), "--set", *small]) == 0
    return folder, printed.getvalue()


@pytest.fixture(scope="module")
def run_folder(first_run: tuple[Path, str]) -> Path:
    return first_run[0]


def outputs(folder: Path) -> dict[str, bytes]:
    """Every file that a manifest vouches for."""
    return {
        f"{stage}/{name}": (folder / stage / name).read_bytes()
        for stage in STAGES
        for name in json.loads((folder / stage / "manifest.json").read_text())["outputs"]
    }


def test_every_stage_left_a_manifest_and_the_report(first_run: tuple[Path, str], run_folder: Path) -> None:
    for stage in STAGES:
        manifest = json.loads((run_folder / stage / "manifest.json").read_text())
        assert manifest["environment"]["packages"]["torch"]
        assert manifest["outputs"]
        assert not (run_folder / stage / "unfinished.json").exists()
        assert not list((run_folder / stage).glob("part-*"))
    page = (run_folder / "report" / "index.html").read_text()
    assert "elicits" in page
    assert "force THINK" in page or "forced" in page
    report = json.loads((run_folder / "report" / "report.json").read_text())
    results = json.loads((run_folder / "interventions" / "results.json").read_text())
    choice = results["readout_choice"]
    assert choice["sentence"] in first_run[1]
    assert choice["sentence"] in (run_folder / "report" / "report.md").read_text()
    assert set(choice["shares"]) == {"joint", "swap"}
    assert results["verdict"] in json.dumps(report, ensure_ascii=False)


def test_the_cost_of_the_report_counts_its_figures(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "--run", str(run_folder), "--dry-run", "--json"]) == 0
    note = json.loads(capsys.readouterr().out)["cost"][0]["note"]
    assert note.startswith(f"{len(list((run_folder / 'report' / 'figures').glob('*.svg')))} figures")


def test_the_rows_of_the_cost_are_those_of_the_store(
    small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "--out", str(tmp_path / "new"), "--dry-run", "--json", "--set", *small]) == 0
    found = json.loads(capsys.readouterr().out)
    [cache] = [cost for cost in found["cost"] if cost["stage"] == "cache"]
    assert 0 < int(cache["note"].split()[0].replace(",", "")) <= found["cache"]["most_rows"]


def test_again_does_nothing_and_prints_the_same(
    first_run: tuple[Path, str], small: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, printed = first_run
    assert "Accuracy in %" in printed
    assert len(printed.splitlines()) <= 40
    assert f"Report: {folder / 'report' / 'index.html'}" in printed
    manifests = [path for path in folder.rglob("manifest.json") if path.parent.name != "report"]
    before = {path: path.stat().st_mtime_ns for path in manifests}
    report = json.loads((folder / "report" / "report.json").read_text())
    assert main(["run", "--out", str(folder), "--json", "--set", *small]) == 0
    assert json.loads(capsys.readouterr().out) == report
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_same_seed_same_bytes(run_folder: Path, small: list[str], tmp_path: Path) -> None:
    assert main(["run", "--out", str(tmp_path / "again"), "--until", "train-sae", "--set", *small]) == 0
    again = tmp_path / "again"
    for name in ("localize/ceilings.json", "crosscoder/weights.safetensors", "cache/tokens.h5"):
        assert (again / name).read_bytes() == (run_folder / name).read_bytes(), name
    for shard in (run_folder / "cache").glob("*/shard_*.h5"):
        assert shard.read_bytes() == (again / shard.relative_to(run_folder)).read_bytes()


def test_other_settings_are_refused_and_nothing_is_lost(
    run_folder: Path, small: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    before = outputs(run_folder)
    assert main(["run", "--out", str(run_folder), "--set", *small, "train_sae.k=9"]) == 2
    error = capsys.readouterr().err
    assert "crosscoder.k: 8 in the folder, 9 now" in error
    assert "--force" in error
    assert outputs(run_folder) == before


@pytest.mark.parametrize("features", ["agnostic", "top:3"])
def test_intervene_alone(run_folder: Path, tmp_path: Path, features: str, capsys: pytest.CaptureFixture[str]) -> None:
    call = ["intervene", "--run", str(run_folder), "--features", features, "--out", str(tmp_path / "i")]
    small = [
        "--n-random",
        "2",
        "--edits-tuned",
        "transplant",
        "--edits-base",
        "transplant",
        "--set",
        "intervene.n_per_task=2",
    ]
    code = main([*call, *small])
    captured = capsys.readouterr()
    if features == "agnostic" and code == 2:
        assert "No feature is above the threshold" in captured.err
        return
    assert code == 0, captured.err
    assert "share of ceiling" in captured.out
    assert "Do the features" in captured.out


def test_the_rule_of_the_help_is_one_of_the_feature_table(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "300")  # no line is broken
    assert main(["select", "--help"]) == 0
    rule = re.search(r'rule:"([^"]+)"', " ".join(capsys.readouterr().out.split()))
    assert rule is not None
    table = FeatureTable.load(run_folder / "features").to_pandas()
    assert table.eval(rule[1], engine="python").dtype == bool


def test_an_empty_selection_changes_no_outcome(run_folder: Path, tmp_path: Path) -> None:
    """Ablating nothing, through the whole stage, leaves every clean outcome."""
    call = [
        "intervene",
        "--run",
        str(run_folder),
        "--features",
        "ids:,",
        "--out",
        str(tmp_path / "i"),
        "--n-random",
        "0",
    ]
    assert main([*call, "--edits-base", "clamp:3.0", "--set", "intervene.n_per_task=4", "intervene.n_shuffled=1"]) == 0
    rows = {row["condition"]: row for row in map(json.loads, (tmp_path / "i" / "outcomes.jsonl").open())}
    for name in ("rl|ablate|ids:,", "base|clamp:3.0|ids:,", "rl|transplant|ids:,"):
        clean = rows[f"{name.split('|')[0]}|clean"]
        assert {task: letters for task, letters in rows[name].items() if task != "condition"} == {
            task: letters for task, letters in clean.items() if task != "condition"
        }


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ("ids:128", "features 0 to 127"),
        ("top:0", "names no feature"),
        ("nonsense", "cannot be read"),
        ("file:none", "cannot be read"),
    ],
)
def test_bad_features(
    run_folder: Path, tmp_path: Path, features: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["intervene", "--run", str(run_folder), "--features", features, "--out", str(tmp_path / "i")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "i").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["intervene.positions=foo"], "'foo'"),
        (["intervene.near=['base','gold']"], "near names 'gold'"),
        (["intervene.tuned=sft"], "selected for rl against base"),
        (["intervene.edits_base=[]", "intervene.edits_tuned=[]"], "both empty"),
        (["intervene.collateral_file=gone.txt"], "gone.txt does not exist"),
        (["intervene.max_new_tokens=1000"], "max_new_tokens"),
        (["models.base=/gone"], "/gone does not exist"),
    ],
)
def test_a_dry_run_refuses_what_the_run_would(
    run_folder: Path, tmp_path: Path, settings: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    call = ["intervene", "--run", str(run_folder), "--out", str(tmp_path / "i"), "--dry-run", "--set", *settings]
    assert main(call) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "i").exists()


def test_a_dry_run_refuses_a_folder_of_other_work(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call = ["intervene", "--run", str(run_folder), "--dry-run", "--set", "intervene.alpha=0.01"]
    assert main(call) == 2
    assert "config.alpha: 0.05 in the folder, 0.01 now" in capsys.readouterr().err
    assert main([*call, "--force"]) == 0
    assert (run_folder / "interventions" / "manifest.json").is_file()


def test_sampled_responses_go_from_outcomes_to_verdicts(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "r"
    for part in ("localize", "cache", "crosscoder", "features", "run.json"):
        copy = shutil.copytree if (run_folder / part).is_dir() else shutil.copy
        run.mkdir(exist_ok=True)
        copy(run_folder / part, run / part)
    edits = ["intervene.edits_base=['transplant']", "intervene.edits_tuned=['ablate']", "intervene.n_random=1"]
    drawn = ["tasks.sampling.n=4", "tasks.sampling.temperature=0.7", "evaluate.n_per_task=12", "select.min_gained=1"]
    assert main(["intervene", "--run", str(run), "--set", *drawn, *edits, "intervene.collateral_texts=0"]) == 0
    rows = {row["condition"]: row for row in map(json.loads, (run / "interventions" / "outcomes.jsonl").open())}
    results = mp.InterventionResults.load(run / "interventions")
    for task, n in results.n_per_task.items():
        codes = rows["rl|clean"][task]
        assert len(codes) == 4 * n
        accuracy = results.condition("rl|clean").accuracy[task]
        assert (accuracy.value, accuracy.n) == (codes.count("R") / len(codes), n)
    outcomes = load_outcomes(run / "evals")
    for task, ids in results.samples.items():  # the clean host draws what it drew in the evaluation
        right = outcomes.right_draws("rl", task, ids).flatten().tolist()
        assert right == [code == "R" for code in rows["rl|clean"][task]]
    patched = rows["base|patch|whole residual"]  # the last site carries everything, and the seeds are the same
    assert results.site != "resid_post.2" or patched == {**rows["rl|clean"], "condition": patched["condition"]}
    assert "the sample is the unit" in results.rule
    assert "4 responses each" in results.pooled_verdicts[0].sentence
    capsys.readouterr()
    assert main(["evaluate", "--run", str(run)]) == 0
    assert "Accuracy (avg@4)" in (said := capsys.readouterr().out)
    assert "maj@4" in said
    assert main(["report", "--run", str(run)]) == 0
    page = (run / "report" / "index.html").read_text()
    assert "Sampled responses, 4 to each sample" in page
    assert "sign-flip" in page


@pytest.fixture(scope="module")
def top3(run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A selection beside the run's own."""
    out = tmp_path_factory.mktemp("beside") / "top3"
    call = [
        "select",
        "--run",
        str(run_folder),
        "--features",
        "top:3",
        "--out",
        str(out),
        "--set",
        "select.n_bootstrap=0",
    ]
    printed = StringIO()
    with redirect_stdout(printed):
        assert main(call) == 0
    assert printed.getvalue().endswith(f"Next: mechprobe intervene --run {run_folder} --selection {out}\n")
    return out


def test_a_selection_beside_the_run(
    run_folder: Path, top3: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is tested as it was made, though the run's settings name another set, until an option says otherwise."""
    out = tmp_path / "i"
    call = ["intervene", "--run", str(run_folder), "--selection", str(top3), "--out", str(out)]
    assert main([*call, "--dry-run", "--set", "intervene.features=top:5"]) == 0
    planned = capsys.readouterr().out
    assert planned.startswith("5 features")
    assert "read-out of transplants: joint or swap, chosen on" in planned
    assert main([*call, "--dry-run", "--set", "intervene.transplant_readout=joint"]) == 0
    assert "read-out of transplants" not in capsys.readouterr().out
    few = ["intervene.n_per_task=1", "intervene.max_new_tokens=1", "intervene.collateral_texts=0"]
    edits = ["--edits-base", "clamp:1,1e15", "--edits-tuned", "", "--n-random", "0"]
    assert main([*call, *edits, "--verbose", "--set", *few]) == 0
    printed = capsys.readouterr().out
    assert "leave the range of the data" in printed
    results = json.loads((out / "results.json").read_text())
    assert results["features"] == json.loads((top3 / "selection.json").read_text())["features"]
    rows = {row["name"]: row.get("relative_change") for row in results["conditions"]}
    assert rows["base|clamp:1|top:3"] < 10 < rows["base|clamp:1e+15|top:3"]
    assert "clamp:1e+15 in base" in printed
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["inputs"]["selection"] == input_hash(top3)


def test_a_selection_that_is_not_of_the_run(
    run_folder: Path, top3: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evals = json.loads((top3 / "manifest.json").read_text())["inputs"]["evals"]
    data = json.loads((top3 / "selection.json").read_text())
    outcomes, dictionary = (shutil.copytree(top3, tmp_path / name) for name in ("outcomes", "dictionary"))
    text = (outcomes / "manifest.json").read_text()
    (outcomes / "manifest.json").write_text(text.replace(evals, "0" * 64))
    (dictionary / "selection.json").write_text(json.dumps({**data, "crosscoder": "1" * 64}))
    manifest = json.loads((dictionary / "manifest.json").read_text())
    manifest["outputs"]["selection.json"] = sha256_file(dictionary / "selection.json")
    (dictionary / "manifest.json").write_text(json.dumps(manifest))
    damaged = shutil.copytree(top3, tmp_path / "damaged")
    (damaged / "scores.safetensors").write_bytes(b"")
    for place, message in (
        (damaged, "scores.safetensors has changed"),
        (outcomes, f"{'0' * 12} there, {evals[:12]} in {run_folder / 'evals'}"),
        (dictionary, f"made with crosscoder {'1' * 12}"),
        (run_folder / "features", "holds the stage 'features'"),
        (top3 / "selection.json", "is a file"),
        (tmp_path / "gone", "does not exist"),
    ):
        assert (
            main(["intervene", "--run", str(run_folder), "--selection", str(place), "--out", str(tmp_path / "i")]) == 2
        )
        assert message in capsys.readouterr().err
        assert not (tmp_path / "i").exists()


def test_dry_runs_write_nothing(
    run_folder: Path, small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "--out", str(tmp_path / "r"), "--dry-run", "--set", *small]) == 0
    assert main(["intervene", "--run", str(run_folder), "--out", str(tmp_path / "r"), "--dry-run"]) == 0
    assert "nothing was written" in capsys.readouterr().out.lower()
    assert not (tmp_path / "r").exists()


def test_a_dry_run_of_a_finished_run_says_what_is_left(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--run", str(run_folder), "--dry-run", "--json"]) == 0
    costs = {cost["stage"]: cost for cost in json.loads(capsys.readouterr().out)["cost"]}
    assert [name for name, cost in costs.items() if cost["note"] != "finished"] == ["report"]
    assert costs["intervene"]["flop"] == 0


def test_paper_preset_trains_an_l1_crosscoder(run_folder: Path, tmp_path: Path) -> None:
    small = ["train_sae.preset=paper", "train_sae.d_sae=64", "train_sae.n_tokens=8192", "train_sae.batch_size=512"]
    call = ["train-sae", "--cache", str(run_folder / "cache"), "--out", str(tmp_path / "c"), "--set", *small]
    assert main(call) == 0
    config = json.loads((tmp_path / "c" / "config.json").read_text())
    assert config["config"]["variant"] == "l1"


@pytest.fixture
def harness_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The lab's own questions as a task of lm-evaluation-harness."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    lab = Path(__file__).resolve().parents[2] / "artifacts" / "lab" / "shared-marker" / "tasks.jsonl"
    (tmp_path / "items.jsonl").write_text("".join(lab.read_text().splitlines(keepends=True)[:6]))
    path = tmp_path / "calc.yaml"
    path.write_text(
        f"""\
task: calc
dataset_path: json
dataset_kwargs:
  data_files: {tmp_path / "items.jsonl"}
test_split: train
output_type: generate_until
doc_to_text: "{{{{prompt}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs:
  until: []
  max_gen_toks: 28
  do_sample: false
filter_list:
  - name: answer
    filter:
      - function: regex
        regex_pattern: "ANS(.*)"
      - function: take_first
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
    regexes_to_ignore: [" "]
"""
    )
    return path


def test_intervene_on_a_task_of_the_harness(
    run_folder: Path, tmp_path: Path, harness_task: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "h"
    call = ["intervene", "--run", str(run_folder), "--task", str(harness_task), "--limit", "4", "--out", str(out)]
    call += ["--edits-tuned", "ablate", "--edits-base", "transplant"]
    assert main([*call, "--dry-run"]) == 0
    planned = capsys.readouterr().out
    assert "5 conditions × calc" in planned
    assert "read-out of transplants: joint or swap, chosen on" in planned
    assert not out.exists()
    assert main(call) == 0
    printed = capsys.readouterr()
    assert "Running generate_until" not in printed.err  # the harness' own bars
    assert "documents: calc 4" in printed.out
    assert "calc exact_match (answer)" in printed.out
    results = json.loads((out / "results.json").read_text())
    rows, choice = results["conditions"], results["readout_choice"]
    assert [row["name"] for row in rows] == [
        "base|clean", "sft|clean", "rl|clean", "base|transplant|top:10", "rl|ablate|top:10",
    ]  # fmt: skip
    assert rows[3]["readout"].startswith(choice["chosen"])
    assert choice["n_tokens"] > 0
    assert choice["sentence"] in printed.out
    assert choice["sentence"] in (out / "table.md").read_text()
    before = (out / "manifest.json").stat().st_mtime_ns
    assert main([*call, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["conditions"] == rows
    assert (out / "manifest.json").stat().st_mtime_ns == before


def test_harness_options_that_make_no_sense(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call = ["intervene", "--run", str(run_folder), "--out", str(tmp_path / "h")]
    for options, message in (
        (["--limit", "4"], "--limit is for tasks of lm-evaluation-harness; give --task"),
        (["--chat-template"], "--chat-template is for tasks of lm-evaluation-harness"),
        (["--task", "gone.yaml"], "gone.yaml does not exist"),
        (["--task", "gone.yaml", "--limit", "0"], "limit = 0 is not accepted"),
    ):
        assert main([*call, *options]) == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "h").exists()


def test_show_prints_the_run_again(first_run: tuple[Path, str], capsys: pytest.CaptureFixture[str]) -> None:
    folder, printed = first_run
    assert main(["show", str(folder)]) == 0
    assert capsys.readouterr().out == printed
    assert main(["show", str(folder), "--verbose"]) == 0
    everything = capsys.readouterr().out
    assert "fact_retrieval" in everything
    assert "\\_" not in everything
    assert main(["show", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["verdict"] in printed
    assert main(["show", str(folder / "nothing")]) == 2


@pytest.mark.slow
def test_two_processes_give_the_bytes_of_one(run_folder: Path, tmp_path: Path) -> None:
    folder, script = tmp_path / "run", tmp_path / "commands.py"
    shutil.copytree(run_folder, folder)
    script.write_text(
        "import sys\nfrom mechprobe.cli import main\n"
        "for name in ('features', 'evaluate', 'select', 'intervene'):\n"
        f"    if main([name, '--run', {str(folder)!r}, '--force']):\n        sys.exit(name)\n"
    )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    done = subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-addr", "127.0.0.1",
            "--master-port", port, str(script),
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=1200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Written to") == 4, "only the first process prints"
    assert outputs(folder) == outputs(run_folder)
    assert all(
        (folder / stage / "manifest.json").read_bytes() != (run_folder / stage / "manifest.json").read_bytes()
        for stage in ("features", "evals", "selection", "interventions")
    ), "the stages were made again"
