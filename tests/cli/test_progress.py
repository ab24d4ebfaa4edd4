"""No command is silent: commands run as processes with slow parts, and what they say is read with its times."""

import json
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import typer

from benchmarks import silence
from benchmarks.silence import Heard, listen
from mechprobe.cli import main
from mechprobe.cli.app import app
from mechprobe.progress.display import LOG_SECONDS

EVERY, SLOW = 0.4, 1.5
"""Seconds between lines in these tests, and seconds that the slow part of a command takes."""

SKILLS = f"""
import sys, time
import mechprobe.progress.display as display
from mechprobe.evals.skills import cells
display.LOG_SECONDS, draw = {EVERY}, cells.generate

def slow(*args, level, **options):
    time.sleep({SLOW} if level == 2 else 0)
    return draw(*args, level=level, **options)

cells.generate = slow
from mechprobe.cli import main
sys.exit(main())
"""
CACHE = f"""
import sys, time
import mechprobe.progress.display as display
display.LOG_SECONDS = {EVERY}

class Slow:
    def find_spec(self, name, path=None, target=None):
        if name == "mechprobe.cache.harvest.estimate":  # torch is imported before the settings are read
            from importlib.util import find_spec
            sys.meta_path.remove(self)
            spec = find_spec(name)
            run = spec.loader.exec_module
            def exec_module(module):
                run(module)
                module._probe_forward = lambda *_: time.sleep({SLOW}) or 1e-6
            spec.loader.exec_module = exec_module
            return spec

sys.meta_path.insert(0, Slow())
from mechprobe.cli import main
sys.exit(main())
"""


LOADING = """
import sys, time

class Slow:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            time.sleep(30)

sys.meta_path.insert(0, Slow())
from mechprobe.cli import main
sys.exit(main())
"""


def gaps(heard: Heard) -> list[float]:
    return [after - before for before, after in pairwise([0.0, *heard.times, heard.seconds])]


@pytest.mark.parametrize("terminal", [False, True], ids=["pipe", "terminal"])
def test_a_slow_part_is_not_silent(terminal: bool, tmp_path: Path) -> None:
    command = ["skills", "make", "--skills", "simulation", "--n", "2", "--levels", "1-2", "--domains", "mathematics"]
    heard = listen([sys.executable, "-c", SKILLS, *command, "--out", str(tmp_path / "items")], terminal=terminal)
    assert heard.code == 0, heard.text
    assert heard.cpu[0] < 1.5, "two seconds are promised, and other load does not count here"
    assert max(gaps(heard)[1:]) < SLOW
    assert heard.seconds > SLOW
    assert "drawing items" in heard.text
    assert "0/1 cells" in heard.text
    if not terminal:
        lines = [line for line in heard.text.splitlines() if line.startswith("skills make, drawing items: 0/1 cells")]
        assert len(lines) >= SLOW / EVERY - 2


def test_a_command_with_models_says_at_once_what_it_loads_and_is_never_silent(tmp_path: Path) -> None:
    log = tmp_path / "events.jsonl"
    command = ["cache", "--dry-run", "--run", str(tmp_path / "run"), "--log-json", str(log)]
    heard = listen([sys.executable, "-c", CACHE, *command], terminal=False)
    lines = heard.text.splitlines()
    assert heard.code == 0, heard.text
    assert lines[0] == "mechprobe cache: loading torch and transformers"
    assert heard.cpu[0] < 1.5, "two seconds are promised, and other load does not count here"
    assert max(gaps(heard)) < 10
    assert sum(line.startswith("cache, planning, timing base: 0:0") for line in lines) >= SLOW / EVERY - 2
    events = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    assert events[0]["event"] == "start"
    assert {"loading", "progress"} <= {event["event"] for event in events}
    assert (events[-1]["event"], events[-1]["ok"], events[-1]["command"]) == ("finish", True, "cache")


MAKE = ["skills", "make", "--skills", "simulation", "--n", "2", "--levels", "1-2", "--domains", "mathematics"]


@pytest.mark.parametrize("terminal", [False, True], ids=["pipe", "terminal"])
@pytest.mark.parametrize(
    ("script", "command", "seen"),
    [
        (LOADING, ["cache", "--dry-run"], "loading torch"),
        (SKILLS.replace(f"sleep({SLOW}", "sleep(30"), MAKE, "drawing items"),
    ],
    ids=["loading", "counted work"],
)
def test_an_interrupt_leaves_a_clean_terminal(
    script: str, command: list[str], seen: str, terminal: bool, tmp_path: Path
) -> None:
    place = ["--out", str(tmp_path / "out")] if command is MAKE else ["--run", str(tmp_path / "run")]
    heard = listen([sys.executable, "-c", script, *command, *place], terminal=terminal, interrupt_at=seen)
    assert heard.code == 130
    assert "Traceback" not in heard.text
    last = heard.text.replace("\r\n", "\n")
    assert last.endswith("mechprobe: interrupted; run the same command again to resume.\n")
    if terminal:
        cursor = [part[:1] for part in heard.text.split("\x1b[?25")[1:]]
        assert (cursor[0], cursor[-1]) == ("l", "h"), "the cursor is hidden and shown again"
        assert "\x1b[2K" in heard.text.split(seen)[-1], "the live line is erased"


def test_the_time_between_lines_keeps_what_is_promised() -> None:
    assert LOG_SECONDS <= 7, "ten seconds are promised, and a call may hold the interpreter for some of them"


def command_options() -> dict[str, list[str]]:
    """Every command, such as ``store info``, and its options."""
    found: dict[str, list[str]] = {}
    for name, command in vars(typer.main.get_command(app))["commands"].items():
        for inner, each in getattr(command, "commands", {"": command}).items():
            found[f"{name} {inner}".strip()] = [option.name for option in each.params]
    return found


def test_every_command_shows_its_progress_or_is_known_to_be_short(tmp_path: Path) -> None:
    found = command_options()
    assert len(found) > 30
    assert [name for name, options in found.items() if "log_json" not in options] == ["show", "plan-samples"]


def test_the_silence_of_every_command_is_measured(tmp_path: Path) -> None:
    calls = [tuple(call) for call in silence.commands(tmp_path / "run", tmp_path, new=True).values()]
    missing = {
        name
        for name in command_options()
        if not any(call[: name.count(" ") + 1] == tuple(name.split()) for call in calls)
    }
    assert missing == {*silence.NOT_RUN, "plan-samples"}


def test_the_remaining_time_at_the_half_is_compared_with_what_came() -> None:
    def event(kind: str, elapsed: float, eta: float | None, task: str = "caching") -> dict[str, object]:
        return {"event": kind, "stage": "cache", "task": task, "total": 10, "elapsed_s": elapsed, "eta_s": eta}

    events = [
        event("start", 0.0, None),
        *(event("progress", t, 30.0 - t) for t in (5.0, 10.0, 15.0)),
        event("finish", 20.0, 0.0),
    ]
    again = [event("progress", 6.0, 9.0), event("finish", 12.0, 0.0)]
    short = [event("progress", 1.0, 1.0, "hashing"), event("finish", 2.0, 0.0, "hashing")]
    first, second = silence.remaining_at_half([*events, *again, *short])
    assert (first["work"], first["at"], first["said"], first["came"]) == ("cache caching", 10.0, 20.0, 10.0)
    assert (second["at"], second["said"], second["came"]) == (6.0, 9.0, 6.0)


def test_results_are_alone_on_stdout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["--out", str(tmp_path / "items"), "--n", "1", "--skills", "simulation", "--levels", "1"]
    assert main(["skills", "make", *out, "--json", "--log-json", str(tmp_path / "events.jsonl")]) == 0
    assert json.loads(capsys.readouterr().out)["n"] > 0


def test_the_log_of_events_may_lie_in_the_new_run_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, log = tmp_path / "run", tmp_path / "run" / "events.jsonl"
    assert main(["localize", "--run", str(run), "--set", "localize.base=nobody", "--log-json", str(log)]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "'nobody'" in line
    assert json.loads(log.read_text(encoding="utf-8").splitlines()[-1])["message"] in line
    assert [path.name for path in run.iterdir()] == ["events.jsonl"]


def test_a_log_of_events_that_cannot_be_written_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["skills", "card", "--log-json", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"mechprobe: --log-json {tmp_path} cannot be written (Is a directory); give another file."


def test_the_settings_of_a_run_are_no_log_of_events(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = tmp_path / "run.json"
    settings.write_text("{}\n")
    assert main(["localize", "--run", str(tmp_path), "--log-json", str(settings)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert (
        line
        == f"mechprobe: --log-json {settings} holds something other than events, and stays as it is; give another file."
    )
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("run.json", "{}\n")]
