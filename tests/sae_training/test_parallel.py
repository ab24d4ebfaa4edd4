"""Two processes train as one does: in either way, for every variant, and from and to each other's checkpoints."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from sae_training import CrosscoderConfig
from sae_training.parallel import Division
from sae_training.tensor_files import read_part, write_tensors
from sae_training.weights import _DRAWN_ROWS, _directions, dedicated_mask, initial_weights

ROOT = Path(__file__).resolve().parents[2]
BASE = {"n_models": 2, "d_model": 8, "d_sae": 67, "k": 3}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "batchtopk": ({"variant": "batchtopk", "n_dedicated": (2, 33)}, {}),
    "batchtopk dense": ({"variant": "batchtopk", "reads": "difference"}, {"kernel": "dense"}),
    "batchtopk delta": ({"variant": "batchtopk"}, {"delta_coefficient": 1.0, "accumulation": 2}),
    "batchtopk lazy": ({"variant": "batchtopk"}, {"kernel": "dense", "refresh_dead_every": 1}),
    "matryoshka": ({"variant": "matryoshka"}, {}),
    "matryoshka dense": ({"variant": "matryoshka", "prefixes": (5, 67)}, {"kernel": "dense"}),
    "topk": ({"variant": "topk"}, {}),
    "topk lazy": ({"variant": "topk"}, {"kernel": "dense", "refresh_dead_every": 1}),
    "l1": ({"variant": "l1", "n_dedicated": (2, 3), "n_shared": 40}, {}),
    "jumprelu": ({"variant": "jumprelu", "n_shared": 40, "initial_threshold": 2.0}, {}),
    "jumprelu dense": ({"variant": "jumprelu", "n_shared": 3, "initial_threshold": 2.0}, {"kernel": "dense"}),
    "bfloat16": ({"variant": "batchtopk"}, {"precision": "bfloat16"}),
}

# One process forks two, which train every case in both ways; each case is also trained by the parent alone.
SCRIPT = """
import functools, json, os, sys
from pathlib import Path
import torch
import torch.distributed as dist
import sae_training.run
from mechprobe.ranks import Ranks
from sae_training import Crosscoder, CrosscoderConfig, TrainConfig, evaluate, train
from sae_training.parallel import ALONE, Division

torch.set_num_threads(1)
root, base, cases = Path(sys.argv[1]), json.loads(sys.argv[2]), json.loads(sys.argv[3])
GENERATOR = torch.Generator().manual_seed(5)
DIRECTIONS = torch.randn(20, 2, 8, generator=GENERATOR)
ACTIVE = torch.rand(23, 32, 20, generator=GENERATOR) * (torch.rand(23, 32, 20, generator=GENERATOR) < 0.1)
BATCHES = [torch.einsum("bg,gmd->bmd", active, DIRECTIONS) for active in ACTIVE]
BATCHES[6] = BATCHES[6][:1]  # fewer rows than processes
TrainerClass = sae_training.run.Trainer

def trained(out, name, division, n_steps=20):
    shape, training = cases[name]
    sae_training.run.Trainer = functools.partial(TrainerClass, lazy=True) if "lazy" in name else TrainerClass
    config = CrosscoderConfig(**base, **shape)
    crosscoder = Crosscoder(config, division.latents(config.d_sae))
    options = {"batch_size": 32, "lr": 3e-3, "log_every": 1, "checkpoint_every": 7, "dead_after_tokens": 40, "aux_k": 2}
    schedule = TrainConfig(**{"n_tokens": 609, **options, **training})
    stream = BATCHES if n_steps == 20 else BATCHES[:n_steps]
    result = train(crosscoder, stream, schedule, out=out, division=division)
    measured = evaluate(crosscoder, BATCHES[:3], division=division)
    if division.is_first:
        (out / "measured.json").write_text(json.dumps([measured.fve, measured.l0, measured.dead_frac, measured.density.tolist()]))
    return result

def rank(index):
    dist.init_process_group("gloo", init_method=f"file://{root / 'meeting'}", rank=index, world_size=2)
    ranks = Ranks(index, 2, dist.group.WORLD)
    for way in ("latents", "tokens"):
        for name in cases:
            trained(root / way / name, name, Division(ranks, way, dist.group.WORLD))
    for before, after in () if "batchtopk" not in cases else (("latents", "tokens"), ("tokens", "latents"), ("latents", None), (None, "latents"), (None, "tokens")):
        for way, n_steps in ((before, 14), (after, 20)):
            out = root / f"{before} then {after}"
            if way is not None:
                trained(out, "batchtopk", Division(ranks, way, dist.group.WORLD), n_steps)
            elif index == 0:
                trained(out, "batchtopk", ALONE, n_steps)
            ranks.wait()
            if index == 0:
                (out / "result.json").unlink()
            ranks.wait()
    dist.destroy_process_group()

children = []
for index in range(2):
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            rank(index)
            code = 0
        finally:
            sys.stderr.flush()
            import traceback; traceback.print_exc()
            os._exit(code)
    children.append(pid)
for name in cases:
    trained(root / "one" / name, name, ALONE)
assert [os.waitpid(pid, 0)[1] for pid in children] == [0, 0]
"""


FAST = ("batchtopk", "batchtopk delta", "matryoshka dense", "topk lazy", "l1", "jumprelu")


def run(found: Path, cases: Sequence[str]) -> Path:
    chosen = {name: CASES[name] for name in cases}
    command = [sys.executable, "-c", SCRIPT, str(found), json.dumps(BASE), json.dumps(chosen)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=env, cwd=ROOT, check=False, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the runs of one and of two processes."""
    return run(tmp_path_factory.mktemp("parallel"), FAST)


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def flat(value: Any) -> list[float]:
    if isinstance(value, dict | list):
        parts = value.values() if isinstance(value, dict) else value
        return [number for part in parts for number in flat(part)]
    return [0.0 if value is None else float(value)]


@pytest.mark.parametrize("way", ["latents", "tokens"])
@pytest.mark.parametrize("name", FAST)
def test_two_processes_log_what_one_does(folder: Path, name: str, way: str) -> None:
    one, two = lines(folder / "one" / name), lines(folder / way / name)
    assert len(one) == len(two) >= 10
    assert any(line["aux"] > 0 for line in one) or name == "l1", "the auxiliary loss is tested, too"
    tolerance = 5e-2 if name == "bfloat16" else 1e-4
    for ours, theirs in zip(one, two, strict=True):
        assert flat(ours) == pytest.approx(flat(theirs), rel=tolerance, abs=tolerance * 1e-2), (ours, theirs)
    if name != "bfloat16":
        measured = [json.loads((folder / part / name / "measured.json").read_text()) for part in ("one", way)]
        assert flat(measured[0]) == pytest.approx(flat(measured[1]), rel=1e-3, abs=1e-5, nan_ok=True)


@pytest.mark.slow
def test_two_processes_log_what_one_does_in_every_case(tmp_path: Path) -> None:
    found = run(tmp_path, tuple(CASES))
    for name in sorted(set(CASES) - set(FAST)):
        for way in ("latents", "tokens"):
            test_two_processes_log_what_one_does(found, name, way)


@pytest.mark.parametrize("way", ["latents", "tokens"])
def test_the_files_do_not_depend_on_the_number_of_processes(folder: Path, way: str) -> None:
    one, two = folder / "one" / "jumprelu", folder / way / "jumprelu"
    names = sorted(str(path.relative_to(one)) for path in one.rglob("*"))
    assert names == sorted(str(path.relative_to(two)) for path in two.rglob("*"))
    for name in ("checkpoints/step_000020/state.safetensors", "weights.safetensors"):
        header = (one / name).read_bytes()[:600]
        assert header.split(b"}}")[0] == (two / name).read_bytes()[:600].split(b"}}")[0]


@pytest.mark.parametrize(
    "change",
    ["latents then tokens", "tokens then latents", "latents then None", "None then latents", "None then tokens"],
)
def test_a_run_resumes_with_another_way_or_number_of_processes(folder: Path, change: str) -> None:
    one, changed = lines(folder / "one" / "batchtopk"), lines(folder / change)
    assert [line["loss"] for line in one] == pytest.approx([line["loss"] for line in changed], rel=1e-4)
    assert one[-1]["distinct_batches"] == changed[-1]["distinct_batches"]


class Part(Division):
    """Process ``index`` of several that are not connected."""

    def __init__(self, index: int, count: int) -> None:
        super().__init__()
        self.index, self.count, self.by_latents = index, count, True


@pytest.mark.parametrize("d_sae", [5, 16, _DRAWN_ROWS + 3, 2 * _DRAWN_ROWS + 40])
@pytest.mark.parametrize("width", [1, 7])
def test_a_part_of_the_initial_weights_is_drawn_as_the_whole(d_sae: int, width: int) -> None:
    whole = torch.randn(d_sae, width, generator=torch.Generator().manual_seed(3))
    parts = [
        _directions(d_sae, width, torch.Generator().manual_seed(3), Part(index, 3).latents(d_sae)) for index in range(3)
    ]
    assert torch.equal(torch.cat(parts), whole)


@pytest.mark.parametrize(
    "more", [{"n_dedicated": (3, 9), "n_shared": 20}, {"reads": "difference"}, {"shared_init": False}]
)
def test_parts_of_weights_and_masks_make_the_whole(more: dict[str, Any]) -> None:
    config = CrosscoderConfig(**{**BASE, "variant": "l1", **more})
    places = [Part(index, 3).latents(config.d_sae) for index in range(3)]
    for number in range(2):
        assert torch.equal(
            torch.cat([initial_weights(config, rows)[number] for rows in places]), initial_weights(config)[number]
        )
    whole = dedicated_mask(config)
    if whole is not None:
        assert torch.equal(
            torch.cat([mask for rows in places if (mask := dedicated_mask(config, rows)) is not None]), whole
        )


def test_a_file_has_the_bytes_of_safetensors_and_is_read_by_parts(tmp_path: Path) -> None:
    from safetensors.torch import save

    whole = {
        "W_enc": torch.randn(6, 10), "W_dec": torch.randn(10, 6), "b_enc": torch.randn(10), "b_dec": torch.randn(6),
        "tokens_since_fired": torch.arange(10), "threshold": torch.rand(10).double(), "adam.0.step": torch.tensor(3.0),
        "adam.0.exp_avg": torch.randn(10, 6), "adam.3.exp_avg": torch.randn(6), "scale": torch.rand(2),
        "digests": torch.arange(0),
    }  # fmt: skip
    write_tensors(tmp_path / "whole", whole, 10, Division())
    assert (tmp_path / "whole").read_bytes() == save(whole)
    rows = Part(1, 3).latents(10)
    part = read_part(tmp_path / "whole", rows, 10)
    assert torch.equal(part["W_enc"], whole["W_enc"][:, rows])
    assert torch.equal(part["adam.0.exp_avg"], whole["adam.0.exp_avg"][rows])
    assert torch.equal(part["adam.3.exp_avg"], whole["adam.3.exp_avg"])
