"""The plan of a store: its size, the free space, and whether its folder can be created."""

from pathlib import Path

import pytest

from mechprobe.cache.config import CacheConfig
from mechprobe.cache.harvest.plan import plan_cache
from mechprobe.cache.result import duration
from mechprobe.cache.stage import cache_activations
from mechprobe.errors import ArtifactError, StoreError
from mechprobe.models.family import ModelFamily

SITE = "resid_post.1"


def test_a_plan_shows_its_size_and_a_store_that_does_not_fit_is_refused(
    llama_family: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    family, config = ModelFamily.load(llama_family), CacheConfig(sites=(SITE,), dtype="float16")
    plan = plan_cache(family, ["abcd", "ef"], tmp_path / "c", config)
    assert (plan.n_rows, plan.most_rows) == (6, 6)
    assert plan.n_bytes() == int(1.02 * 6 * 3 * 32 * 2)
    assert "6 rows (2 prompts) × 3 models × 1 sites (resid_post.1)" in str(plan)
    answered = plan_cache(
        family, ["abcd", "ef"], tmp_path / "c", config.replace(responses=("rl@0.0",), max_new_tokens=5)
    )
    assert (answered.n_rows, answered.most_rows) == (6, 16)
    assert not (tmp_path / "c").exists()

    from mechprobe.cache.harvest import plan as module

    monkeypatch.setattr(module, "free_bytes", lambda path: 100)
    with pytest.raises(StoreError, match=r"1\.18 KB.*100 B"):
        cache_activations(family, ["abcd", "ef"], out=tmp_path / "c", config=config)
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize("place", ["file", "file/below", "a" * 300])
def test_a_folder_that_cannot_be_created_is_refused(llama_family: dict[str, Path], tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("")
    family, out = ModelFamily.load(llama_family), tmp_path / place
    with pytest.raises(ArtifactError, match=place) as caught:
        plan_cache(family, ["abcd"], out, CacheConfig(sites=(SITE,)))
    assert "\n" not in str(caught.value)


def test_a_plan_leaves_no_folder_and_keeps_those_that_exist(llama_family: dict[str, Path], tmp_path: Path) -> None:
    family, config = ModelFamily.load(llama_family), CacheConfig(sites=(SITE,))
    (tmp_path / "there").mkdir()
    plan_cache(family, ["abcd"], tmp_path / "there", config)
    plan_cache(family, ["abcd"], tmp_path / "there" / "deep" / "er", config)
    assert [path.name for path in tmp_path.rglob("*")] == ["there"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.42, "0.42 s"),
        (9.97, "10 s"),
        (119.0, "119 s"),
        (120.0, "2 min"),
        (7100.0, "118 min"),
        (7200.0, "2 h"),
        (1e7, "116 days"),
    ],
)
def test_a_duration_is_a_number_without_exponent_and_a_unit(seconds: float, text: str) -> None:
    assert duration(seconds) == text
