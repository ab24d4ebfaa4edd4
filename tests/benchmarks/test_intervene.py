"""The benchmark of edits runs, generates the same number of tokens every way, and really edits."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks import intervene, machine
from mechprobe.models.family import ModelFamily
from mechprobe.types import Site

TINY = intervene.Setting(Site(1), d_sae=64, prompts=3, joined=1, new_tokens=4)


def test_the_report_has_every_way_of_both_families(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "settle_environment", lambda malloc: None)
    intervene.main(["--quick", "--out", str(tmp_path / "out.json")])
    report = json.loads((tmp_path / "out.json").read_text())
    assert set(report["results"]) == {"lab", "llama_8x512"}
    for found in report["results"].values():
        assert found["same_tokens"]["empty_hook"] is True
        assert len(found["ways"]) == 8
        assert found["ways"]["plain_eager"]["share_of_plain"]["median"] == 1.0
        assert {name for name, way in found["ways"].items() if "target" in way} == set(intervene.TARGETS)
        assert all(len(way["share_of_plain"]["all"]) == 2 for way in found["ways"].values())


def test_the_ways_that_edit_change_the_residual(llama_family: dict[str, Path]) -> None:
    family = ModelFamily.load(llama_family)
    inputs = intervene.prompt_batch(family, TINY)
    ways = intervene.edited_ways(family, inputs, TINY)
    seen: dict[str, torch.Tensor] = {}
    last = family["base"].hf.get_output_embeddings()
    for name, run in ways.items():
        handle = last.register_forward_hook(lambda _module, _inputs, output, name=name: seen.update({name: output}))
        assert run().shape == (3, inputs[0].shape[1] + 4)
        handle.remove()
    clean = seen.pop("empty_hook")
    for name, logits in seen.items():
        assert not torch.allclose(logits, clean, atol=1e-4), name
    assert not torch.allclose(seen["swap_ablate"], seen["joint_ablate"], atol=1e-5)
