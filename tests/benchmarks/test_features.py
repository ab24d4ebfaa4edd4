"""The benchmark of the pass runs, and the pass takes no more memory for more rows."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks import features, machine
from benchmarks.contestants import Setting
from mechprobe.dictionary.readout import AllReadouts, Readout

TINY = Setting(d_model=16, d_sae=128, k=4, batch_size=256)


def test_the_report_has_the_ratio_and_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "settle_environment", lambda malloc: None)
    monkeypatch.setattr(features, "QUICK", TINY)
    features.main(["--quick", "--out", str(tmp_path / "out.json")])
    report = json.loads((tmp_path / "out.json").read_text())
    found = report["results"]
    assert [goal["at_least"] for goal in report["goals"]] == [0.8, 0.8]
    for speed in found["speed"].values():
        assert len(speed["speed_of_encoding"]["all"]) == 2
        assert speed["l0"] == pytest.approx(4, abs=1.5)
    assert found["memory"]["quick"]["ratio"] < 1.1  # eight times the rows


def test_a_long_store_is_served_from_few_rows() -> None:
    _, x = features.build(TINY, 2)
    store = features.RowsInMemory(x, repeats=3)
    assert store.n_rows == 3 * 512
    assert torch.equal(store.rows(500, 530), torch.cat([x[500:], x[:18]]))


@pytest.mark.parametrize("near", features.NEAR.values())
@pytest.mark.parametrize("mode", ["swap", "joint", "single"])
def test_the_pass_encodes_what_the_read_outs_encode(mode: str, near: tuple[str, ...] | None) -> None:
    crosscoder, x = features.build(TINY, 1)
    crosscoder.set_scale([0.5, 1.0, 2.0])
    readout = Readout(mode, near)  # type: ignore[arg-type]
    joint, *own = AllReadouts(crosscoder, readout).encode(x)
    assert torch.equal(joint, crosscoder.encode(x))
    for name, found in zip(features.NAMES, own, strict=True):
        expected = readout.feature_acts(crosscoder, x, name).detach()
        agree = (found > 0) == (expected > 0)
        assert agree.double().mean() > 0.9999  # rounding decides at the threshold
        torch.testing.assert_close(found[agree], expected[agree], rtol=1e-4, atol=1e-5)
