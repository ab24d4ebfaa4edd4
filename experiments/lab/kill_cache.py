"""Kill ``mechprobe cache`` on the embedded lab at random moments, resume it, and check that no byte of the store changes.

python experiments/lab/kill_cache.py [--kills 50] [--prompts 400] [--seed 0]

A killed run is started again until it finishes. The finished store must equal one that was never interrupted, except for the
time and environment in its manifest, and must pass ``store verify``. Then the next store is started. The script prints one line of
JSON and exits with code 1 if a store differed.
"""

import argparse
import json
import multiprocessing
import random
import shutil
import signal
import sys
import tempfile
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

from mechprobe import ActivationStore
from mechprobe.cli import main

LAB = Path(__file__).resolve().parents[2] / "artifacts" / "lab" / "shared-marker"


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a store; the manifest without its times, environment and digest."""
    files = {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
    manifest = json.loads(files["manifest.json"])
    files["manifest.json"] = json.dumps(manifest | {"seconds": None, "digest": None, "environment": None}).encode()
    return files


def start_server() -> None:
    """Start the process that imports the libraries, because imports take seconds that should not be killed."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["mechprobe.cache.stage", "transformer_lens.model_bridge", "transformers"])
    process = context.Process(target=time.sleep, args=(0,))
    process.start()
    process.join()


def start(out: Path, n_prompts: int) -> BaseProcess:
    """Start ``mechprobe cache`` in a process that is forked after the imports."""
    context = multiprocessing.get_context("forkserver")
    settings = [f"cache.max_prompts={n_prompts}", "cache.shard_rows=1024", "cache.max_new_tokens=24"]
    command = ["cache", "--config", str(LAB / "run.toml"), "--sites", "resid_post.2", "--out", str(out)]
    command += [part for setting in settings for part in ("--set", setting)]
    process = context.Process(target=main, args=(command,), daemon=True)
    process.start()
    return process


def differences(folder: Path, expected: dict[str, bytes]) -> list[str]:
    """Files of a finished store that differ from the expected ones, and the problems that ``store verify`` finds."""
    found = contents(folder)
    names = [name for name in sorted(found.keys() | expected.keys()) if found.get(name) != expected.get(name)]
    return names + [str(problem) for problem in ActivationStore.open(folder).verify()]


def kill_and_resume(scratch: Path, n_kills: int, n_prompts: int, seed: int) -> dict[str, object]:
    """Run the experiment and return its counts."""
    start_server()
    began = time.monotonic()
    process = start(scratch / "whole", n_prompts)
    process.join()
    seconds, expected = time.monotonic() - began, contents(scratch / "whole")
    rng, out = random.Random(seed), scratch / "killed"
    n_killed, finished, unfinished_kills = 0, [], 0
    while n_killed < n_kills or out.exists():
        process = start(out, n_prompts)
        if n_killed < n_kills:
            time.sleep(rng.random() * seconds * 0.6)
            process.kill()  # SIGKILL; has no effect on a process that has ended
        process.join()
        n_killed += process.exitcode == -signal.SIGKILL
        unfinished_kills += not (out / "manifest.json").is_file()
        if (out / "manifest.json").is_file():
            finished.append(differences(out, expected))
            shutil.rmtree(out)
    return {
        "kills": n_killed,
        "kills_before_the_end": unfinished_kills,
        "stores_finished": len(finished),
        "stores_identical": sum(not names for names in finished),
        "differences": sorted({name for names in finished for name in names}),
        "rows": ActivationStore.open(scratch / "whole").n_rows,
        "files": len(expected),
        "seconds_uninterrupted": round(seconds, 1),
        "seconds": round(time.monotonic() - began, 1),
    }


def run() -> None:
    """Print the counts, and exit with code 1 if a store differed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--prompts", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        found = kill_and_resume(Path(scratch), arguments.kills, arguments.prompts, arguments.seed)
    sys.stdout.write(json.dumps(found) + "\n")
    sys.exit(found["stores_identical"] != found["stores_finished"])


if __name__ == "__main__":
    run()
