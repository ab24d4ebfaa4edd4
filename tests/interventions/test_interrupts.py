"""Ctrl-C while workers of `intervene` run: all end at once, and only the first process says so."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = """
import sys, time
from types import SimpleNamespace
import mechprobe.interventions.conditions.batches as batches

class Slow:
    def __init__(self, runner): pass
    def prepare(self): print("starting workers", flush=True)
    def run(self, batch):
        print("working", flush=True)
        time.sleep(120)

if __name__ == "__main__":
    batches.DraftingRunner = Slow
    batches.batches = lambda runner, conditions: [[each] for each in conditions]
    conditions = [SimpleNamespace(name=str(number)) for number in range(4)]
    try:
        list(batches.run_conditions(None, conditions, workers=2))
    except KeyboardInterrupt:
        print("interrupted", flush=True)
        sys.exit(130)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("seen", "wait"), [("starting workers", 1.0), ("working\nworking", 0.0)])
def test_workers_end_without_a_traceback(seen: str, wait: float, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT, encoding="utf-8")
    log = tmp_path / "log"
    with log.open("w") as out:
        process = subprocess.Popen(
            [sys.executable, str(tmp_path / "script.py")], stdout=out, stderr=out, start_new_session=True
        )
    while seen not in log.read_text() and process.poll() is None:
        time.sleep(0.1)
    time.sleep(wait)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(timeout=60) == 130
    assert log.read_text().splitlines()[-1] == "interrupted"
    assert "Traceback" not in log.read_text()
    with pytest.raises(ProcessLookupError):
        _wait_for_end(process.pid)


def _wait_for_end(group: int) -> None:
    """Wait until a group of processes is gone, which raises ``ProcessLookupError``."""
    for _ in range(100):
        os.killpg(group, 0)
        time.sleep(0.1)
