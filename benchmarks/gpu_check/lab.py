"""Step ``lab``: `mechprobe run` on the embedded lab, with the claims of the run and the verdicts that a CPU gives.

    python -m benchmarks.gpu_check.lab runs/lab             # compare the verdicts of a finished run
    python -m benchmarks.gpu_check.lab runs/lab --write     # add them to the expected ones, after a run on a CPU

The expected verdicts are in ``lab_verdicts.json``: those that runs on a CPU gave. There may be several of an edit, because another
number of threads trains another dictionary. A rehearsal at tiny sizes has too few samples for a verdict.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path

from benchmarks.gpu_check.record import Record, write_json
from benchmarks.harvest import LAB

ROOT = Path(__file__).parents[2]
EXPECTED = Path(__file__).with_name("lab_verdicts.json")
TINY = (
    "localize.n_per_task=4", "cache.max_prompts=40", "train_sae.d_sae=128", "train_sae.k=8", "train_sae.n_tokens=20480",
    "features.ce_samples=8", "features.gate.min_fve=0.0", "features.gate.min_ce_recovered=-9.0",
    "evaluate.n_per_task=24", "select.n_controls=2", "select.min_gained=2", "select.rule=top:10",
    "intervene.features=top:10", "intervene.n_random=1", "intervene.n_shuffled=1", "intervene.n_per_task=2",
    "intervene.doses=[]", "intervene.collateral_texts=4", "intervene.leave_one_out=false", "intervene.sizes=[]", "intervene.workers=1", "intervene.max_new_tokens=24",
)  # fmt: skip
_TINY_PROMPTS = 200


def verdicts(run: Path) -> dict[str, str]:
    """What a run concludes of every main edit, over all tasks, and of the set against its rivals."""
    results = json.loads((run / "interventions" / "results.json").read_text(encoding="utf-8"))
    pooled = {f"{row['model']} {row['edit']}": row["verdict"] for row in results["verdicts"] if row["task"] == "pooled"}
    rivals = {f"{row['model']} {row['edit']}, rivals": row["verdict"] for row in results["comparisons"]}
    return pooled | rivals


def expected() -> dict[str, list[str]]:
    """The verdicts that runs on a CPU gave."""
    return json.loads(EXPECTED.read_text(encoding="utf-8"))


def unexpected(found: Mapping[str, str]) -> list[str]:
    """Names whose verdict no run on a CPU gave, or that only one of the two has."""
    known = expected()
    return sorted(name for name in {*found, *known} if found.get(name) not in known.get(name, ()))


def run(record: Record) -> None:
    """Run the lab on the device, and compare."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "run"
        command = [sys.executable, "-m", "mechprobe", "run", "--out", str(folder), "--set", f"device={record.device}"]
        if record.tiny:
            prompts = Path(scratch) / "prompts.jsonl"
            with (LAB / "prompts.jsonl").open(encoding="utf-8") as lines:
                prompts.write_text("".join(islice(lines, _TINY_PROMPTS)), encoding="utf-8")
            command += [*TINY, f"prompts.file={prompts}"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        record.put("printed", (done.stdout + done.stderr)[-3000:])
        record.check("exit code of mechprobe run", done.returncode, 0)
        record.put("seconds", _stage_seconds(folder))
        found = verdicts(folder)
        record.put("verdicts", found)
        if record.tiny:
            return
        claims = [sys.executable, "experiments/lab/check_claims.py", str(folder)]
        checked = subprocess.run(claims, cwd=ROOT, capture_output=True, text=True, check=False)
        record.put("claims", checked.stdout)
        record.check("claims of the run that fail", checked.stdout.count("FAILS"), 0)
        record.put("expected", expected())
        record.check("edits with another verdict than on a CPU", len(unexpected(found)), 0)


def _stage_seconds(folder: Path) -> dict[str, float]:
    found = {}
    for path in sorted(folder.glob("*/manifest.json")):
        manifest = json.loads(path.read_text(encoding="utf-8"))
        found[path.parent.name] = manifest.get("seconds")
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Compare the verdicts of a finished run with the expected ones, or write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="run folder of the embedded lab with its own settings")
    parser.add_argument("--write", action="store_true", help="add these verdicts to the expected ones")
    arguments = parser.parse_args(argv)
    found = verdicts(arguments.run)
    if arguments.write:
        known = expected()
        write_json(EXPECTED, {name: sorted({*known.get(name, ()), word}) for name, word in found.items()})
    other = unexpected(found)
    print(f"found {found}, expected {expected()}" if other else "the verdicts are among those of runs on a CPU")
    return int(bool(other))


if __name__ == "__main__":
    sys.exit(main())
