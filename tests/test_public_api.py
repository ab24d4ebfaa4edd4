"""The promised names exist, are documented, and are had without importing torch first."""

import subprocess
import sys

import pytest

import mechprobe
import sae_training

PROMISED = {
    "mechprobe": [
        "ActivationStore", "FeatureTable", "ModelFamily", "cache_activations", "dynamics", "edited", "evaluate_outcomes",
        "feature_table", "intervene", "localize", "posttrain", "report", "select_features", "skills", "train_crosscoder",
    ],
    "sae_training": ["Crosscoder", "CrosscoderConfig", "TrainConfig", "evaluate", "train"],
}  # fmt: skip


@pytest.mark.parametrize("module", [mechprobe, sae_training], ids=lambda module: module.__name__)
def test_all_is_sorted_importable_and_documented(module: object) -> None:
    names = module.__all__  # type: ignore[attr-defined]
    assert list(names) == sorted(names)
    for name in names:
        value = getattr(module, name)
        assert (getattr(value, "__doc__", None) or "").strip(), f"{name} has no docstring"


@pytest.mark.parametrize("module", [mechprobe, sae_training], ids=lambda module: module.__name__)
def test_promised_names_are_there(module: object) -> None:
    assert set(PROMISED[module.__name__]) <= set(module.__all__)  # type: ignore[attr-defined]


def test_methods_promised_by_the_design() -> None:
    from mechprobe import ActivationStore, FeatureTable, ModelFamily
    from sae_training import Crosscoder

    for owner, names in (
        (Crosscoder, ("encode", "decode", "forward", "decoder_norm", "save", "load", "to_sae")),
        (ActivationStore, ("open", "batches")),
        (FeatureTable, ("to_pandas",)),
        (ModelFamily, ("load",)),
    ):
        assert not [name for name in names if not hasattr(owner, name)], owner


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="crosscode"):
        _ = mechprobe.crosscode  # type: ignore[attr-defined]


@pytest.mark.parametrize("module", ["mechprobe", "sae_training", "mechprobe.cli"])
def test_importing_does_not_import_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_report_is_callable_though_it_is_a_package() -> None:
    import mechprobe.report.stage

    with pytest.raises(mechprobe.MechprobeError, match="does not exist"):
        mechprobe.report("no/such/run")
