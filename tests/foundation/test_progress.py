"""Progress: what the line says, the live line of a terminal, and the log lines elsewhere."""

import io

import pytest

from mechprobe.progress import LOG_SECONDS, Meter, memory_in_use, progress


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


def test_the_line_gives_count_rate_remaining_time_memory_and_fields() -> None:
    clock = Clock()
    meter = Meter(400, "steps", clock)
    assert "0/400 steps" in meter.text()
    for _ in range(40):
        clock.now += 0.5
        meter.advance(2, loss=0.41234, device="cpu")
    text = meter.text()
    for part in ("80/400 steps", "4 steps/s", "1:20 left", "RAM", "loss 0.412", "device cpu"):
        assert part in text


def test_the_rate_forgets_resumed_work() -> None:
    clock = Clock()
    meter = Meter(100_000, "tokens", clock)
    meter.advance(50_000)  # found finished
    for _ in range(120):
        clock.now += 1
        meter.advance(100)
    assert meter.rate == pytest.approx(100, rel=0.05)
    assert "6:20 left" in meter.text()


def test_an_unknown_total_has_no_remaining_time() -> None:
    clock = Clock()
    meter = Meter(None, "", clock)
    clock.now += 2
    meter.advance(3000)
    assert meter.text().startswith("3,000  1,500/s  RAM")
    assert "left" not in meter.text()


def test_long_remaining_times_are_in_hours() -> None:
    clock = Clock()
    meter = Meter(7201, "", clock)
    clock.now += 1
    meter.advance(1)
    assert "2:00:00 left" in meter.text()


def test_memory_is_that_of_this_process() -> None:
    (text, *_) = memory_in_use()
    name, value, unit = text.split()
    assert name == "RAM"
    assert 10e6 < float(value) * {"MB": 1e6, "GB": 1e9}[unit] < 1e12


def test_without_a_terminal_a_line_comes_at_most_every_ten_seconds() -> None:
    clock, stream = Clock(), io.StringIO()
    with progress(100, "caching", unit="tokens", stream=stream, clock=clock) as advance:
        for _ in range(50):
            clock.now += 1
            advance(2)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 50 // LOG_SECONDS
    assert lines[0].startswith("caching: 20/100 tokens  2 tokens/s  0:40 left")


def test_short_work_and_quiet_work_write_nothing() -> None:
    clock, stream = Clock(), io.StringIO()
    with progress(10, "caching", stream=stream, clock=clock) as advance:
        advance(10)
    for quiet in (io.StringIO(), Terminal()):
        with progress(10, "caching", quiet=True, stream=quiet, clock=clock) as advance:
            clock.now += 60
            advance(10)
        assert quiet.getvalue() == ""
    assert stream.getvalue() == ""


def test_a_terminal_shows_one_live_line_and_clears_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "160")
    clock, stream = Clock(), Terminal()
    with progress(400, "training", unit="steps", stream=stream, clock=clock) as advance:
        clock.now += 10
        advance(100, loss=0.5)
    shown = stream.getvalue()
    assert "training" in shown
    assert "100/400 steps  10 steps/s  0:30 left  RAM" in shown
    assert "loss 0.5" in shown
    assert shown.rstrip().endswith("\x1b[2K"), "the line is erased at the end"
