"""Drawing items of a cell: several families, splits, levels, renderings, exclusion, errors; and their labels."""

import json
from itertools import islice
from pathlib import Path

import pytest

from mechprobe.errors import InputError
from mechprobe.evals import skills
from mechprobe.evals.skills import generation
from mechprobe.evals.skills.cells import Wanted
from mechprobe.records import Sample


def test_families_of_a_cell_take_turns_and_held_out_ones_are_left_out() -> None:
    items = skills.generate("calculation", domain="mathematics", n=9, seed=0, level=2)
    assert [item.family for item in items] == ["calculation", "gcd", "eigenvalues"] * 3
    held_out = skills.generate("calculation", domain="mathematics", n=9, seed=0, level=2, split="test_out_family")
    assert {item.family for item in held_out} == {"prime_factors"}
    assert {item.split for item in held_out} == {"test_out_family"}


def test_an_exhausted_family_leaves_the_rest_to_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    gcd = skills.FAMILIES["gcd"]
    few = list(islice(generation.problems(gcd, 1, seed=0), 7))
    monkeypatch.setattr(type(gcd), "draw", lambda self, rng, level: rng.choice(few))
    monkeypatch.setattr(type(gcd), "capacity", lambda self, level: None)
    items = skills.generate("calculation", domain="mathematics", n=60, seed=0)
    assert sum(item.family == "gcd" for item in items) == 7
    assert len({item.id for item in items}) == 60


@pytest.mark.parametrize("split", [None, "train", "test_in", "test_out_template"])
def test_fewer_items_are_the_first_of_more_and_renderings_share_them(split: str | None) -> None:
    few = skills.generate("simulation", domain="physics", n=5, seed=3, level=2, split=split)
    many = skills.generate("simulation", domain="physics", n=12, seed=3, level=2, split=split, rendering="chat")
    assert [item.id for item in few] == [item.id for item in many[:5]]
    assert split is None or {item.split for item in many} == {split}
    assert {item.rendering for item in many} == {"chat"}


def test_splits_have_the_stated_shares() -> None:
    items = skills.generate("simulation", domain="mathematics", n=2000, seed=0)
    shares = [sum(item.split == name for item in items) / 2000 for name in ("train", "test_in", "test_out_template")]
    assert shares == pytest.approx([0.70, 0.15, 0.15], abs=0.03)  # 3 standard errors of 0.7 are 0.031


def test_beyond_the_levels_is_its_own_split() -> None:
    by_split = skills.generate("simulation", domain="physics", n=4, seed=0, split="test_out_param")
    by_level = skills.generate("simulation", domain="physics", n=4, seed=0, level=6)
    assert by_split == by_level
    assert {(item.level, item.split) for item in by_split} == {(6, "test_out_param")}


def test_excluded_ids_and_prompts_are_never_drawn() -> None:
    first = skills.generate("calculation", domain="coding", n=20, seed=1)
    excluded = {first[0].id, first[1].prompt}
    second = skills.generate("calculation", domain="coding", n=20, seed=1, exclude=excluded)
    # The split decides on the alias of the prompt, and exclusion knows the usual prompt.
    assert first[0].id not in {item.id for item in second}
    assert len({item.id for item in second} - {item.id for item in first}) >= 1


def test_the_symbolic_domain_is_the_family_of_the_lab() -> None:
    (lab,) = skills.generate("simulation", n=1, seed=0)
    (cell,) = skills.generate("simulation", domain="coding", family="simulation", n=1, seed=0)
    assert lab == cell
    assert (lab.family, lab.domain, lab.task) == ("simulation", "coding", "simulation/coding")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"family": "tetris"}, "family 'tetris'.*gcd"),
        (
            {"family": "gcd", "domain": "physics"},
            "'gcd' belongs to calculation/mathematics, not to calculation/physics",
        ),
        ({"family": "prime_factors", "split": "train"}, "'prime_factors' is held out.*test_out_family"),
        ({"family": "gcd", "split": "test_out_family"}, "'gcd' is not held out"),
        (
            {"domain": "physics", "split": "test_out_family"},
            "calculation/physics has no items in the split test_out_family",
        ),
        ({"split": "dev"}, "split 'dev'.*train"),
        ({"split": "train", "level": 6}, "train has no items of level 6"),
        ({"split": "test_out_param", "level": 2}, "test_out_param has no items of level 2"),
        ({"family": "gcd", "n": 1554}, "has 1553 items of level 1 .gcd., so 1554 cannot be drawn"),
        ({"n": -1}, "-1 items cannot be drawn"),
        ({"level": 0}, "level 0.*1, 2, 3, 4, 5, 6"),
        ({"rendering": "compact-own-markers"}, "only for the lab's family 'calculation'"),
    ],
)
def test_a_wrong_choice_is_one_sentence(change: dict[str, object], message: str) -> None:
    arguments = {"domain": "mathematics", "n": 1, "seed": 0} | change
    with pytest.raises(InputError, match=message):
        skills.generate("calculation", **arguments)  # type: ignore[arg-type]


def test_labels_of_files_and_of_samples(tmp_path: Path) -> None:
    items = Wanted(skills=("simulation",), split=None, n=3, levels=(2, 6)).items()
    path = tmp_path / "tasks.jsonl"
    foreign = {
        "id": "rg_gcd-1",
        "prompt": "?",
        "skill": "calculation",
        "domain": "mathematics",
        "family": "rg_gcd",
        "level": 2,
    }
    lines = [*(item.to_json() for item in items), foreign, {"id": "run-1d89e6ccf349", "prompt": "?"}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = skills.labels(path)
    assert len(found) == len(items) + 1
    for item in items:
        assert found[item.id] == (item.skill, item.domain, item.family, item.level, item.split)
    assert found["rg_gcd-1"] == ("calculation", "mathematics", "rg_gcd", 2, "")
    assert skills.labels(items) == {item.id: found[item.id] for item in items}
    bouncing = next(item for item in items if item.family == "bouncing")
    assert skills.labels([Sample(bouncing.id, "x", "?", "1")]) == {
        bouncing.id: ("simulation", "physics", "bouncing", None, "")
    }


def test_items_of_the_lab_are_labelled_without_fields() -> None:
    lab = Path(__file__).parents[3] / "artifacts" / "lab" / "shared-marker"
    for name in ("tasks.jsonl", "prompts.jsonl"):
        found = skills.labels(lab / name)
        with (lab / name).open() as lines:
            assert len(found) == sum(1 for _ in lines)
        assert {(label.skill, label.domain) for label in found.values()} == {
            ("calculation", "mathematics"), ("enumeration", "mathematics"), ("simulation", "coding"),
            ("fact_retrieval", "non_reasoning_qa"), ("diagnostic", "coding"),
        }  # fmt: skip
        assert {label.level for label in found.values()} == {1}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"id": "gcd-0123456789ab", "skill": "simulation"}, r":1: skill is 'simulation', but the id"),
        ({"id": "gcd-0123456789ab", "level": "2"}, "'level' must be a whole number"),
        (
            {"id": "x-1", "skill": "chess", "domain": "physics", "family": "x"},
            "'chess' and domain 'physics' are no cell",
        ),
    ],
)
def test_labels_that_contradict_are_one_sentence(tmp_path: Path, line: dict[str, object], message: str) -> None:
    path = tmp_path / "tasks.jsonl"
    path.write_text(json.dumps(line) + "\n")
    with pytest.raises(InputError, match=message):
        skills.labels(path)
