"""``mechprobe logprobs`` end to end: traces of a file and of a run, a teacher, resumption, and one sentence for each bad input."""

import json
import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mechprobe as mp
from mechprobe.cli import main
from mechprobe.cli.logprobs import logprobs_lines
from mechprobe.data.config import PromptsConfig
from mechprobe.dynamics import LogprobsConfig, LogprobsResult, draw_log_probs, log_probs
from mechprobe.dynamics.logprobs import measure, stage
from mechprobe.dynamics.logprobs.result import LearningRow, OrderRow
from mechprobe.emergence.config import EmergenceConfig
from mechprobe.errors import ConfigError, InputError
from mechprobe.records import Outcome, Outcomes, Sample
from mechprobe.statistics import Interval
from tests.builders import EOS, build_tokenizer
from tests.dynamics.logprobs.planted import TEXTS

TRACES = [
    {"id": f"t{i}", "prompt": f"Q{i}: ", "task": "ab"[i % 2], "response": text, "answer": "12"} for i, text in enumerate(TEXTS)
]  # fmt: skip
FAST = ["--set", "logprobs.draws=100"]


@pytest.fixture
def traces(tmp_path: Path) -> Path:
    path = tmp_path / "traces.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in TRACES))
    return path


def models(paths: dict[str, Path]) -> list[str]:
    return ["--models", *(f"{name}={path}" for name, path in paths.items())]


def settings(**given: Any) -> LogprobsConfig:
    return LogprobsConfig(**{"draws": 100, **given})


def test_a_file_of_traces(checkpoint_family: dict[str, Path], traces: Path, tmp_path: Path) -> None:
    family = mp.ModelFamily.load(checkpoint_family)
    arms = EmergenceConfig(final_steps={"rl": 8})
    found = log_probs(family, traces, out=tmp_path / "out", config=settings(teacher="sft"), arms=arms)
    assert found.models == ("base", "rl@step_000002", "rl", "sft")
    assert found.arms == {"rl": ("rl@step_000002", "rl"), "sft": ("sft",)}
    assert (found.n_traces, found.sources, found.teacher) == (6, ("gold",), "sft")
    frame = found.tokens()
    assert len(frame) == found.n_tokens == sum(len(text) + 1 for text in TEXTS)
    apart = frame["log_prob.rl"] - frame["log_prob.base"]
    row = found.interval("rl", "delta", source="gold", reference="base")
    assert row.value == pytest.approx(apart.mean(), abs=1e-6)
    assert row.low < row.value < row.high
    assert row.n == 6
    marked = frame["token_class"] == "backtrack"
    assert marked.sum() == len("wait") + len("let me check") + len("hmm")
    own = found.interval("rl", "delta", source="gold", reference="base", by="class", group="backtrack")
    assert own.value == pytest.approx(apart[marked].mean(), abs=1e-6)
    assert found.interval("sft", "ratio", source="gold", reference="teacher").value == 1
    assert found.interval("base", "delta", source="gold", reference="teacher").value != 0
    assert not found.find(model="base", reference="base")
    learned = next(row for row in found.learning if row.group == "all")
    assert learned.steps == (2, 8)
    assert learned.curve[-1] == pytest.approx(row.value)
    assert {(row.first, row.second) for row in found.contrasts} == {("rl", "sft")}
    assert not found.backtracking
    assert (tmp_path / "out/logprobs.png").read_bytes().startswith(b"\x89PNG")
    assert LogprobsResult.load(tmp_path / "out") == found
    assert len(found.to_pandas()) == len(found.rows)
    assert len(draw_log_probs(found).axes) == 4


def test_an_interrupted_stage_scores_no_model_twice(
    checkpoint_family: dict[str, Path], traces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    family, scored = mp.ModelFamily.load(checkpoint_family), []

    def dying(model: Any, *args: Any, **options: Any) -> Any:
        if len(scored) == 2:
            raise KeyboardInterrupt
        scored.append(model.name)
        return measure.model_tokens(model, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(stage, "model_tokens", dying)
        with pytest.raises(KeyboardInterrupt):
            log_probs(family, traces, out=tmp_path / "a", config=settings())
    before = (tmp_path / "a/tokens/base.safetensors").stat().st_mtime_ns
    log_probs(family, traces, out=tmp_path / "a", config=settings())
    log_probs(family, traces, out=tmp_path / "b", config=settings())
    assert (tmp_path / "a/tokens/base.safetensors").stat().st_mtime_ns == before
    for name in ("logprobs.json", "logprobs.png", "tokens/rl.safetensors", "tokens/traces.safetensors", "traces.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def _killed(paths: dict[str, Path], traces: Path, out: Path) -> None:
    """Score in a process of its own, which dies before the third model."""
    scored = []

    def dying(model: Any, *args: Any, **options: Any) -> Any:
        if len(scored) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        scored.append(model.name)
        return measure.model_tokens(model, *args, **options)

    stage.model_tokens = dying
    log_probs(mp.ModelFamily.load(paths), traces, out=out, config=settings())


def test_after_a_kill_no_model_is_scored_again_and_results_are_equal_to_the_byte(
    checkpoint_family: dict[str, Path], traces: Path, tmp_path: Path
) -> None:
    process = multiprocessing.get_context("fork").Process(
        target=_killed, args=(checkpoint_family, traces, tmp_path / "a")
    )
    process.start()
    process.join(timeout=120)
    assert process.exitcode == -signal.SIGKILL
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "a/tokens").glob("*.safetensors")}
    assert [path.stem for path in sorted(kept)] == ["base", "rl@step_000002"]
    for name in ("a", "b"):
        log_probs(mp.ModelFamily.load(checkpoint_family), traces, out=tmp_path / name, config=settings())
    assert all(path.stat().st_mtime_ns == when for path, when in kept.items())
    for path in (tmp_path / "b").rglob("*"):
        if path.is_file() and path.name != "manifest.json":
            assert path.read_bytes() == (tmp_path / "a" / path.relative_to(tmp_path / "b")).read_bytes(), path


def outcomes(writers: tuple[str, ...] = ("base", "rl@step_000002", "rl")) -> Outcomes:
    tokenizer, records = build_tokenizer(), []
    samples = [Sample(f"s{i}", "sums", f"{i}+1=", str(i + 1)) for i in range(4)]
    for writer in writers:
        for i, sample in enumerate(samples):
            text = f"wait {i + 1}" if writer == "rl" else f"{i + 1}"
            ids = tuple(tokenizer(text, add_special_tokens=False).input_ids)
            cut = i == 3
            records.append(
                Outcome(
                    sample.id,
                    "sums",
                    writer,
                    "unparsed" if cut else "right",
                    text,
                    len(ids),
                    ids,
                    finish="length" if cut else "stop",
                )
            )
    return Outcomes(records, samples)


def test_evaluated_responses_are_the_default_traces(checkpoint_family: dict[str, Path], tmp_path: Path) -> None:
    family = mp.ModelFamily.load(checkpoint_family)
    found = log_probs(family, outcomes(), out=tmp_path / "out", config=settings())
    assert found.sources == ("base", "rl")
    frame = found.tokens()
    of_rl = frame[(frame["source"] == "rl") & (frame["prompt"] == "s0")]
    assert of_rl["token_class"].tolist() == ["backtrack"] * 4 + ["other", "answer", "special"]
    assert of_rl["id"].tolist()[-1] == EOS
    cut = frame[(frame["source"] == "rl") & (frame["prompt"] == "s3")]
    assert "special" not in cut["token_class"].tolist()
    rates = {row.model: row.per_1k.value for row in found.backtracking}
    assert set(rates) == {"base", "rl@step_000002", "rl"}
    assert rates["rl"] == pytest.approx(1000 / 6)
    assert found.verdicts[0].arm == "rl"
    assert found.verdicts[0].label == "cannot be told"
    with pytest.raises(ConfigError, match=r"logprobs\.writers names 'sft'"):
        log_probs(family, outcomes(), out=tmp_path / "b", config=settings(writers=("sft",)))
    with pytest.raises(InputError, match="prompt of sample s0 is unknown"):
        log_probs(family, Outcomes(outcomes().records), out=tmp_path / "b", config=settings())
    assert not (tmp_path / "b").exists()


def test_a_teacher_of_bytes_only(checkpoint_family: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text("".join(json.dumps({**line, "teacher_logprobs": [-np.log(2)] * 3}) + "\n" for line in TRACES))
    family = mp.ModelFamily.load(checkpoint_family)
    config = settings(compare="bytes", traces=PromptsConfig(file=str(path)))
    found = log_probs(family, out=tmp_path / "out", config=config)
    n_bytes = sum(map(len, TEXTS))
    bits = found.interval("rl", "bits_per_byte", source="gold", reference="teacher")
    assert bits.value == pytest.approx(3 * len(TEXTS) / n_bytes)
    frame = found.tokens()
    text = frame[frame["token_class"] != "special"]
    own = found.interval("rl", "bits_per_byte", source="gold")
    assert own.value == pytest.approx(-text["log_prob.rl"].sum() / np.log(2) / n_bytes, rel=1e-5)
    assert not found.find(metric="delta", reference="teacher")
    assert any("bits per byte" in note for note in found.notes)


def test_command_end_to_end(
    checkpoint_family: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tasks = tmp_path / "tasks.jsonl"
    lines = [{"id": f"s{i}", "task": "sums", "prompt": f"{i}+1=", "answer": str(i + 1)} for i in range(4)]
    tasks.write_text("".join(json.dumps(line) + "\n" for line in lines))
    run = tmp_path / "run"
    command = ["logprobs", *models(checkpoint_family), "--run", str(run), "--set", f"tasks.file={tasks}", *FAST]
    command += ["--set", "tasks.max_new_tokens=6", "--set", "emergence.final_steps.rl=4"]
    assert main([*command, "--dry-run"]) == 0
    assert "evaluate would be made first" in capsys.readouterr().out
    assert not run.exists()
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "Mean Δ log p against base" in said
    assert said.splitlines()[1].split()[-3:] == ["rank", "1", "words/1k"]  # a mean of r is that of a few tokens
    assert "Backtracking in rl: cannot be told (4 prompts" in said
    assert str(run / "logprobs") in said
    assert len(said.splitlines()) <= 40
    found = LogprobsResult.load(run / "logprobs")
    assert found.sources == ("base", "rl", "sft")
    assert json.loads((run / "run.json").read_text())["logprobs"]["draws"] == 100
    assert main(["logprobs", "--run", str(run), "--json"]) == 0  # the settings are kept, and the work is reused
    assert json.loads(capsys.readouterr().out)["n_tokens"] == found.n_tokens
    assert main(["logprobs", "--run", str(run), "--dry-run"]) == 0
    assert f"{found.n_tokens:,} response tokens" in capsys.readouterr().out


def test_bad_input_is_one_sentence_and_leaves_nothing(
    checkpoint_family: dict[str, Path], traces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = tmp_path / "wrong.jsonl"
    wrong.write_text(json.dumps({**TRACES[0], "teacher_logprobs": [-1.0] * 3}) + "\n")
    empty = tmp_path / "empty.jsonl"
    empty.write_text(json.dumps({**TRACES[0], "response": " "}) + "\n")
    out = tmp_path / "out"
    for given, message in (
        (["--traces", str(tmp_path / "none.jsonl")], "none.jsonl does not exist"),
        (["--traces", str(wrong)], "the teacher gives 3 log-probabilities"),
        (["--traces", str(empty)], "empty.jsonl:1"),
        (["--traces", str(traces), "--set", "logprobs.backtrack=nothing"], "'nothing', which is none of the classes"),
        (["--traces", str(traces), "--set", "logprobs.teacher=gpt"], "logprobs.teacher is 'gpt'"),
        (
            ["--traces", str(traces), "--set", 'logprobs.classes.backtrack=["wait", "日本"]'],
            "lists '日本', which the tokenizer",
        ),
        (
            ["--traces", str(traces), "--set", 'logprobs.writers=["rl"]'],
            "logprobs.writers (rl) chooses evaluated responses",
        ),
        (["--traces", str(traces), "--evals", str(tmp_path / "nope")], "nope does not exist"),
        (["--traces", str(traces), "--set", "logprobs.draws=1"], "[logprobs]: draws = 1"),
        (["--traces", str(traces), "--set", "emergence.base=nobody"], "emergence.base is 'nobody'"),
    ):
        assert main(["logprobs", *models(checkpoint_family), "--run", str(out), *given]) == 2
        said = capsys.readouterr()
        assert message in said.err
        assert len(said.err.strip().splitlines()) == 1
        assert said.out == ""
        assert not out.exists()


def test_the_figure_joins_checkpoints_by_straight_lines_and_says_that_no_word_was_written(
    checkpoint_family: dict[str, Path], tmp_path: Path
) -> None:
    family = mp.ModelFamily.load(checkpoint_family)
    found = log_probs(family, outcomes(), out=tmp_path, config=settings(), arms=EmergenceConfig(final_steps={"rl": 8}))
    axes = draw_log_probs(found).axes
    curves, words, of_sft = axes[0], axes[4], axes[5]
    classes = {line.get_label(): line for line in curves.lines if line.get_label() in found.classes}
    assert {len(np.asarray(line.get_xdata())) for line in classes.values()} == {3}
    assert curves.get_xlabel() == "step (linear to 2, then logarithmic)"
    assert axes[1].get_xlabel() == "checkpoint"
    assert words.lines[0].get_color() not in {line.get_color() for line in classes.values()}
    assert not words.texts
    assert [text.get_text() for text in of_sft.texts] == ["no such word"]
    assert len(of_sft.get_yticks()) == 1


def test_the_screen_gives_gaps_between_checkpoints_and_only_the_order_that_is_shown(
    checkpoint_family: dict[str, Path], traces: Path, tmp_path: Path
) -> None:
    family = mp.ModelFamily.load(checkpoint_family)
    found = log_probs(
        family, traces, out=tmp_path / "out", config=settings(), arms=EmergenceConfig(final_steps={"rl": 8})
    )
    shape = next(row for row in found.learning if row.group == "all")

    def row(group: str, low: float, high: float) -> LearningRow:
        return shape.model_copy(update={"group": group, "half_step": Interval((low + high) / 2, low, high, 6)})

    def lines(first_moved: str) -> list[str]:
        pair = OrderRow(
            arm="rl", source="gold", first="backtrack", second="digits", lag=Interval(4, 1, 8, 6), p=0.01, p_holm=0.01,
            first_moved=first_moved,
        )  # fmt: skip
        learning = (row("digits", 2, 8), row("backtrack", 0, 2))
        shown = logprobs_lines(found.model_copy(update={"learning": learning, "order": (pair,)}))
        return [line for line in shown if line.startswith("Half")]

    gaps = "Half of the final Δ in rl is reached between steps: backtrack [0, 2], digits [2, 8]; "
    assert lines("backtrack") == [gaps + "backtrack comes before digits"]
    assert lines("") == [gaps + "the order cannot be told"]
