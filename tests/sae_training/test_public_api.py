"""The public names are sorted, documented and importable, and torch is loaded only when one of them is used."""

from __future__ import annotations

import subprocess
import sys

import pytest

import sae_training


def test_names_are_sorted_importable_and_documented() -> None:
    assert sae_training.__all__ == sorted(sae_training.__all__)
    assert dir(sae_training) == sae_training.__all__
    for name in sae_training.__all__:
        assert getattr(sae_training, name).__doc__, name


def test_promised_names() -> None:
    promised = {"Crosscoder", "CrosscoderConfig", "TrainConfig", "TrainResult", "Metrics", "evaluate", "train"}
    assert promised <= set(sae_training.__all__)


def test_unknown_name() -> None:
    with pytest.raises(AttributeError, match="Croscoder"):
        _ = sae_training.Croscoder  # pyright: ignore[reportAttributeAccessIssue]


def test_import_does_not_import_torch() -> None:
    code = "import sys, sae_training; from sae_training import FrozenConfig, TrainConfig; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
