"""`mechprobe --help` must answer in under half a second: the best of five runs, and torch must not be imported."""

import subprocess
import sys
import time
from pathlib import Path

LIMIT_S = 0.5

command = [str(Path(sys.executable).with_name("mechprobe")), "--help"]
seconds = []
for _ in range(5):
    began = time.monotonic()
    subprocess.run(command, check=True, capture_output=True)
    seconds.append(time.monotonic() - began)
sys.stdout.write(f"mechprobe --help: best of 5 {min(seconds):.3f} s, worst {max(seconds):.3f} s (limit {LIMIT_S} s)\n")
sys.exit(min(seconds) >= LIMIT_S)
