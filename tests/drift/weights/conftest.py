"""Three models as folders of tensors."""

from pathlib import Path

import pytest

from tests.weight_files import save, tensors


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """base, and two models with other weights everywhere; float32."""
    folder, base = tmp_path_factory.mktemp("pair"), tensors()
    found = {"base": save(folder / "base", base)}
    for number, name in enumerate(("sft", "rl"), start=1):
        change = tensors(seed=number)
        found[name] = save(folder / name, {key: value + 0.05 * change[key] for key, value in base.items()})
    return found
