"""Progress: what the line says, the thread that writes it, the live lines of a terminal, and the events."""

import io
import json
import logging
import multiprocessing
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from mechprobe.errors import ConfigError, InputError
from mechprobe.progress import (
    Meter,
    activity,
    display,
    events,
    forget_told,
    loading,
    processes,
    progress,
    stage,
    tell_once,
)
from mechprobe.progress.display import LOG_SECONDS, Display, screen
from mechprobe.progress.events import EventLog
from mechprobe.progress.live import _Lines
from mechprobe.progress.memory_use import memory_in_use


class Clock:
    """A clock that a test advances."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    """A text stream that claims to be a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _first_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> tuple[Display, io.StringIO, Clock]:
    """A display of its own, whose thread sleeps: a test asks for lines with ``tick``."""
    clock, stream = Clock(), io.StringIO()
    made = Display(stream, clock)
    monkeypatch.setattr(made, "_beat", lambda _ended: None)
    monkeypatch.setattr("mechprobe.progress.screen", made)
    return made, stream, clock


def test_the_line_gives_count_rate_remaining_time_memory_and_fields() -> None:
    clock = Clock()
    meter = Meter(400, "steps", clock)
    assert "0/400 steps" in meter.text()
    for _ in range(40):
        clock.now += 0.5
        meter(2, loss=0.41234, device="cpu")
    text = meter.text()
    for part in ("80/400 steps", "4 steps/s", "1:20 left", "RAM", "loss 0.412", "device cpu"):
        assert part in text


def test_work_of_an_earlier_command_is_counted_but_is_no_part_of_the_rate() -> None:
    clock = Clock()
    meter = Meter(100_000, "tokens", clock)
    meter.found(50_000)
    assert meter.rate == 0
    assert "left" not in meter.text()
    for _ in range(3):
        clock.now += 1
        meter(100)
    meter.found(40_000)  # found between new work
    clock.now += 1
    meter(100)
    assert meter.rate == pytest.approx(100)
    assert meter.seconds_left == pytest.approx(96)
    assert meter.done == 90_400


def test_an_unknown_total_has_no_remaining_time() -> None:
    clock = Clock()
    meter = Meter(None, "", clock)
    clock.now += 2
    meter(3000)
    assert meter.text().startswith("3,000  1,500/s  RAM")
    assert "left" not in meter.text()


def test_long_remaining_times_are_in_hours() -> None:
    clock = Clock()
    meter = Meter(7201, "", clock)
    clock.now += 1
    meter()
    assert "2:00:00 left" in meter.text()


def test_memory_is_that_of_this_process() -> None:
    (text, *_) = memory_in_use()
    name, value, unit = text.split()
    assert name == "RAM"
    assert 10e6 < float(value) * {"MB": 1e6, "GB": 1e9}[unit] < 1e12


def test_a_line_names_the_stage_and_all_work_that_runs(shown: tuple[Display, io.StringIO, Clock]) -> None:
    screen, stream, clock = shown
    with screen.command("run"), stage("sweep"), progress(4, "sweeping", unit="cells") as outer:
        outer.found(1)
        with stage("sweep-cell"), progress(10, "generating", unit="prompts", inner=True) as inner:
            clock.now += LOG_SECONDS
            inner(5)
            screen.tick()
        with activity("scoring"):
            clock.now += LOG_SECONDS
            screen.tick()
    first, second = stream.getvalue().splitlines()
    assert first.startswith("sweep, sweeping 1/4 cells, generating: 5/10 prompts  1 prompts/s  0:05 left  RAM")
    assert second.startswith("sweep, sweeping 1/4 cells, scoring: 0:05  RAM")


def test_a_line_comes_when_it_is_due_and_not_before(shown: tuple[Display, io.StringIO, Clock]) -> None:
    screen, stream, clock = shown
    with progress(100, "caching", unit="tokens") as advance:
        for _ in range(50):
            clock.now += 1
            advance(2)
            screen.tick()
    lines = stream.getvalue().splitlines()
    assert len(lines) == 50 // LOG_SECONDS
    assert lines[1].startswith("caching: 20/100 tokens  2 tokens/s  0:40 left")


def test_in_python_only_counted_work_is_shown(shown: tuple[Display, io.StringIO, Clock]) -> None:
    screen, stream, clock = shown
    for work in (activity("scoring"), loading("a model"), stage("features"), progress(2, "parts", inner=True)):
        with work:
            clock.now += 60
            screen.tick()
    with progress(10, "caching", quiet=True) as advance:
        clock.now += 60
        advance(10)
        screen.tick()
    assert stream.getvalue() == ""


def test_the_thread_writes_during_a_long_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(display, "LOG_SECONDS", 0.05)
    stream = io.StringIO()
    made = Display(stream)
    with made.command("select"), made.during(made.uncounted("resampling"), opens=False):
        time.sleep(0.4)
    lines = stream.getvalue().splitlines()
    assert len(lines) >= 4
    assert all(line.startswith("select, resampling: 0:00  RAM") for line in lines)
    assert not [thread for thread in threading.enumerate() if thread.name == "progress"], "it ends with the command"


def test_a_command_says_at_once_what_it_loads(shown: tuple[Display, io.StringIO, Clock]) -> None:
    screen, stream, clock = shown
    with screen.command("cache", loads="torch and transformers"):
        assert stream.getvalue() == "mechprobe cache: loading torch and transformers\n"
        clock.now += LOG_SECONDS
        screen.tick()
        assert stream.getvalue().splitlines()[1].startswith("cache, loading torch and transformers: 0:05")
        with activity("reading the settings"):
            pass
        clock.now += LOG_SECONDS
        screen.tick()
    assert stream.getvalue().splitlines()[2].startswith("cache: 0:10"), "something else has begun"


def test_a_short_command_without_models_says_nothing() -> None:
    stream = io.StringIO()
    with Display(stream).command("skills show"):
        pass
    assert stream.getvalue() == ""


@pytest.mark.parametrize("rank", ["1", "7"])
def test_of_several_ranks_the_first_shows_progress(
    rank: str, shown: tuple[Display, io.StringIO, Clock], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen, stream, clock = shown
    monkeypatch.setenv("RANK", rank)
    log = EventLog(tmp_path / "events.jsonl")
    with screen.command("cache", log, loads="torch"), progress(3, "caching"):
        clock.now += 60
        screen.tick()
    log.close()
    assert stream.getvalue() == ""
    assert (tmp_path / "events.jsonl").read_text() == ""


def test_a_process_that_was_forked_shows_nothing() -> None:
    with progress(3, "caching"):
        process = multiprocessing.get_context("fork").Process(target=_exit_with_shown)
        process.start()
        process.join(20)
    assert process.exitcode == 0, "neither shown nor stuck at a lock of the parent"


def _exit_with_shown() -> None:
    with progress(5, "in the copy"):
        os._exit(int(bool(screen._entries) or screen._thread is not None))


def test_work_of_another_thread_stands_beside(shown: tuple[Display, io.StringIO, Clock]) -> None:
    screen, stream, clock = shown
    begun, ended = threading.Event(), threading.Event()

    def produce() -> None:
        with progress(10, "running base", unit="tokens", inner=True) as advance:
            advance(3)
            begun.set()
            ended.wait(10)

    with progress(7, "training", unit="tokens"):
        thread = threading.Thread(target=produce)
        thread.start()
        begun.wait(10)
        clock.now += LOG_SECONDS
        screen.tick()
        ended.set()
        thread.join()
        clock.now += LOG_SECONDS
        screen.tick()
    first, second = stream.getvalue().splitlines()
    assert first.startswith("training: 0/7 tokens  RAM")
    assert first.endswith("(meanwhile running base 3/10 tokens 0:12 left)")
    assert "meanwhile" not in second


KEYS = [
    "time", "pid", "event", "command", "stage", "task", "done", "total", "unit", "rate", "eta_s", "elapsed_s", "rss_bytes",
    "device_bytes", "ok", "message", "values",
]  # fmt: skip


TYPES: dict[str, tuple[type, ...]] = {
    "time": (str,), "pid": (int,), "event": (str,), "command": (str,), "stage": (str, type(None)), "task": (str, type(None)),
    "done": (int, float, type(None)), "total": (int, float, type(None)), "unit": (str, type(None)), "rate": (float, type(None)),
    "eta_s": (float, type(None)), "elapsed_s": (float, type(None)), "rss_bytes": (int,), "device_bytes": (int, type(None)),
    "ok": (bool, type(None)), "message": (str, type(None)), "values": (dict,),
}  # fmt: skip


def check_events(path: Path) -> list[dict]:
    """The events of a log, each of which keeps the schema of docs/run.md."""
    events = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for event in events:
        assert list(event) == KEYS
        for key, value in event.items():
            assert isinstance(value, TYPES[key]), (key, value)
            assert not (isinstance(value, bool) and key != "ok"), (key, value)
        assert event["event"] in ("start", "loading", "progress", "finish", "warning")
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", event["time"])
        assert (event["ok"] is not None) == (event["event"] == "finish")
        assert (event["task"] is None) == (event["event"] == "warning")
        assert event["eta_s"] is None or event["total"] is not None
        assert event["done"] is not None or event["rate"] is event["total"] is event["unit"] is None
    for pid in {event["pid"] for event in events}:
        own = [event for event in events if event["pid"] == pid]
        assert [event["time"] for event in own] == sorted(event["time"] for event in own)
        assert (own[0]["event"], own[-1]["event"]) == ("start", "finish")
        assert own[0]["task"] == own[-1]["task"] == own[0]["command"]
    return events


def test_the_documented_keys_are_those_of_the_events() -> None:
    text = (Path(__file__).parents[2] / "docs" / "run.md").read_text(encoding="utf-8")
    table = text[text.index("| key | meaning |") :].split("\n\n")[0]
    documented = [name for row in table.splitlines()[2:] for name in re.findall(r"`(\w+)`", row.split("|")[1])]
    assert documented == KEYS
    assert list(TYPES) == KEYS


WRITER = """
import sys
from mechprobe.progress.display import Display
from mechprobe.progress.events import EventLog
display, log = Display(), EventLog(sys.argv[1])
with display.command("cache", log, soon=False):
    for number in range(150):
        display.warn("x" * 20_000)
log.close()
"""


def test_two_commands_write_one_log(tmp_path: Path) -> None:
    """Long lines too stay whole, and ``pid`` says whose they are."""
    path = tmp_path / "events.jsonl"
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(path)]) for _ in range(2)]
    assert [writer.wait() for writer in writers] == [0, 0]
    events = check_events(path)
    assert len(events) == 2 * 152
    assert {event["pid"] for event in events} == {writer.pid for writer in writers}


def test_events_have_stable_names(shown: tuple[Display, io.StringIO, Clock], tmp_path: Path) -> None:
    screen, _, clock = shown
    path = tmp_path / "logs" / "events.jsonl"
    log = EventLog(path)
    with screen.command("features", log, loads="torch"), stage("features"):
        with loading("model base"):
            pass
        with progress(20, "spliced loss", unit="samples") as advance:
            clock.now += LOG_SECONDS
            advance(10, loss=float("nan"), of="base")
            screen.tick()
            with activity("not worth an event of its own"):
                pass
        logging.getLogger("mechprobe.features").warning("rows were cut")
    log.close()
    events = check_events(path)
    assert [(event["event"], event["task"]) for event in events] == [
        ("start", "features"),
        ("loading", "loading torch"),
        ("start", "features"),
        ("loading", "loading model base"),
        ("start", "spliced loss"),
        ("progress", "spliced loss"),
        ("finish", "spliced loss"),
        ("warning", None),
        ("finish", "features"),
        ("finish", "features"),
    ]
    assert [event["stage"] for event in events[:3]] == [None, None, "features"]
    now = events[5]
    assert (now["done"], now["total"], now["unit"], now["rate"], now["eta_s"]) == (10, 20, "samples", 2.0, 5.0)
    assert now["values"] == {"loss": None, "of": "base"}
    assert now["command"] == "features"
    assert now["rss_bytes"] > 10e6
    assert now["time"].endswith("Z")
    assert events[7]["message"] == "rows were cut"
    assert all(event["ok"] is True for event in events if event["event"] == "finish")


def test_the_last_event_of_a_failed_command_has_its_error(
    shown: tuple[Display, io.StringIO, Clock], tmp_path: Path
) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    with pytest.raises(InputError), shown[0].command("cache", log):
        raise InputError("Prompt 3 is empty.")
    log.close()
    last = json.loads((tmp_path / "events.jsonl").read_text().splitlines()[-1])
    assert (last["event"], last["ok"], last["message"]) == ("finish", False, "Prompt 3 is empty.")


def test_events_of_a_second_command_are_appended(shown: tuple[Display, io.StringIO, Clock], tmp_path: Path) -> None:
    for _ in range(2):
        log = EventLog(tmp_path / "events.jsonl")
        with shown[0].command("cache", log):
            pass
        log.close()
    assert len((tmp_path / "events.jsonl").read_text().splitlines()) == 4


def test_a_log_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"--log-json .* cannot be written"):
        EventLog(tmp_path / "file" / "events.jsonl")


@pytest.mark.parametrize("text", ['{"base": "rl"}', "[1]\n", "seed = 0\n", '{"event": "start"', "\x00\xff" * 40000])
def test_a_file_that_is_no_log_is_refused_and_stays_as_it_is(tmp_path: Path, text: str) -> None:
    path = tmp_path / "run.json"
    path.write_text(text, encoding="latin-1")
    before = path.read_bytes()
    with pytest.raises(ConfigError, match="holds something other than events, and stays as it is; give another file"):
        EventLog(path)
    assert path.read_bytes() == before


def test_an_empty_file_and_a_redirected_stderr_are_taken_as_a_log(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    EventLog(tmp_path / "empty").close()
    redirected = tmp_path / "stderr.txt"
    redirected.write_text("earlier lines\n")
    code = "from mechprobe.progress.events import EventLog; EventLog('/dev/stderr').write('start', command='cache', stage='')"
    with redirected.open("a") as file:
        subprocess.run([sys.executable, "-c", code], stderr=file, check=True)
    assert [line[:10] for line in redirected.read_text().splitlines()] == ["earlier li", '{"time": "']


def test_a_named_pipe_waits_for_its_reader_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    monkeypatch.setattr(events, "READER_SECONDS", 0.5)
    with pytest.raises(ConfigError, match=r"pipe is a named pipe that nothing reads; start its reader first\.$"):
        EventLog(path)
    assert capfd.readouterr().err == f"mechprobe: waiting up to 0.5 s for a reader of --log-json {path}\n"
    monkeypatch.setattr(events, "READER_SECONDS", 60.0)
    heard = list[str]()
    reader = threading.Timer(0.2, lambda: heard.extend(path.read_text().splitlines()))
    reader.start()
    log = EventLog(path)
    log.write("start", command="cache", stage="")
    log.close()
    reader.join()
    assert [json.loads(line)["event"] for line in heard] == ["start"]


def test_a_rank_beside_the_first_says_what_is_true_of_it_alone_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("RANK", "3")
    forget_told()
    tell_once("The models run in float32.")
    for _ in range(2):
        tell_once("Memory ran out.", of_each_rank=True)
    assert [record.getMessage() for record in caplog.records] == ["Process 3: Memory ran out."]
    monkeypatch.setattr(processes.multiprocessing, "parent_process", object)
    forget_told()
    tell_once("Memory ran out.", of_each_rank=True)
    assert len(caplog.records) == 1, "a worker of a rank says nothing"


def test_warnings_are_printed_as_before(capfd: pytest.CaptureFixture[str]) -> None:
    before = list(logging.getLogger("mechprobe").handlers)
    with Display(io.StringIO()).command("cache"):
        tell_once("This happens once in this test.")
    assert logging.getLogger("mechprobe").handlers == before


def test_a_terminal_shows_live_lines_and_clears_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "160")
    clock, stream = Clock(), Terminal()
    made = Display(stream, clock)
    meter = Meter(400, "steps", clock, description="training")
    with made.command("train-sae"), made.during(meter, opens=True):
        clock.now += 10
        meter(100, loss=0.5)
        assert made._live is not None
        made._live.refresh()
    shown = stream.getvalue()
    assert "training" in shown
    assert "100/400 steps  10 steps/s  0:30 left  RAM" in shown
    assert "loss 0.5" in shown
    assert shown.rstrip().endswith("\r\x1b[2K\x1b[?25h"), "the line is erased and the cursor is back at the end"


@pytest.mark.parametrize("width", [100, 60, 40])
def test_a_narrow_terminal_cuts_no_number(width: int) -> None:
    from rich.console import Console

    clock, stream = Clock(), io.StringIO()
    outer = Meter(3, "models", clock, description="evaluating")
    inner = Meter(1280, "responses", clock, description="generation by a model with a long name")
    clock.now += 60
    outer()
    inner(512, loss=0.41234, model="sft")
    Console(file=stream, width=width, force_terminal=False).print(_Lines([outer, inner]))
    lines = stream.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    for part in ("1/3 models", "2:00 left", "512/1,280 responses", "8.5 responses/s", "1:30 left", "RAM", "loss 0.412"):
        assert any(part in line for line in lines), part
    assert "evaluating" in lines[0]
    if width == 100:
        assert "1/3 models" in lines[0]


def test_the_remaining_time_falls_while_a_long_unit_runs() -> None:
    """The next unit takes as long as the last; only what it takes longer lowers the rate."""
    clock = Clock()
    meter = Meter(4, "models", clock)
    clock.now += 100
    meter()
    assert meter.seconds_left == pytest.approx(300)
    clock.now += 90
    assert meter.seconds_left == pytest.approx(210)
    assert meter.rate == pytest.approx(1 / 100)
    clock.now += 110  # twice as long as the first
    assert meter.rate == pytest.approx(1 / 200)
    assert meter.seconds_left == pytest.approx(500)


def test_time_that_found_work_takes_is_no_part_of_the_rate() -> None:
    clock = Clock()
    meter = Meter(100, "shards", clock)
    clock.now += 50  # hashes of an earlier command are checked
    meter.found(80)
    clock.now += 5
    meter(10)
    assert meter.rate == pytest.approx(2)
    assert meter.seconds_left == pytest.approx(5)


def test_a_terminal_that_cannot_move_its_cursor_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    clock, stream = Clock(), Terminal()
    made = Display(stream, clock)
    with made.command("cache"):
        clock.now += LOG_SECONDS
        made.tick()
    assert stream.getvalue().startswith("cache: 0:05  RAM")
