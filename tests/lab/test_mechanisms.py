"""The mechanisms lab: its language, a small build, its gates, and `mechprobe run --lab`."""

import itertools
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from mechprobe.errors import ConfigError
from mechprobe.evals.tasks import load_tasks
from mechprobe.files import sha256_file
from mechprobe.lab.builder import build
from mechprobe.lab.measure import Measured
from mechprobe.lab.mechanisms import language
from mechprobe.lab.mechanisms.build import build_items
from mechprobe.lab.mechanisms.language import (
    ALL_STEPS,
    CAREFUL,
    CARELESS,
    CONTESTED,
    CONTROL,
    FIRST_STEP,
    FORCED,
    PEEK,
    READINGS,
    SHARING,
    SKILLS,
    TRAINED,
    VOCABULARY,
)
from mechprobe.lab.mechanisms.measure import base_gates, measure, outcome_gates
from mechprobe.lab.mechanisms.recipe import mechanisms_recipe
from mechprobe.lab.mechanisms.run_files import run_files
from mechprobe.lab.results import model_folders
from mechprobe.lab.summary import read_lab, shipped, summary
from mechprobe.lab.tokenizer import BOS_ID, EOS_ID, PAD_ID, build_tokenizer
from mechprobe.lab.weights import load_model
from mechprobe.records import read_jsonl
from mechprobe.stage_folder import read_manifest

ARMS = ("sft", "rl", "null")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small lab, whose models know nothing."""
    folder = tmp_path_factory.mktemp("mechanisms") / "small"
    build("mechanisms", folder, scale="small")
    return folder


def test_readings_disagree_everywhere_and_a_right_reading_is_wrong_elsewhere() -> None:
    assert all(sorted(reading) == list(range(10)) for reading in READINGS)
    for one, other in itertools.combinations(READINGS, 2):
        assert not any(x == y for x, y in zip(one, other, strict=True))
    assert all(CAREFUL[op] != CARELESS[op] for op in CONTESTED + CONTROL)
    assert sorted(CAREFUL[op] for op in CONTESTED) == sorted(CARELESS[op] for op in CONTESTED)
    assert {CAREFUL[op] for op in CONTROL} == {CARELESS[op] for op in CONTROL}
    assert not {CAREFUL[op] for op in CONTROL} & {CAREFUL[op] for op in CONTESTED}


def test_readings_are_no_affine_functions() -> None:
    affine = {tuple((a * x + b) % 10 for x in range(10)) for a in (1, 3, 7, 9) for b in range(10)}
    assert not affine & set(READINGS)


@pytest.mark.parametrize(
    ("skill", "states", "answer"),
    [("run", [3, 8, 1], [1]), ("two", [4, 5], [5, 4]), ("max", [3, 8, 1], [8]), ("ends", [3, 8, 1], [3, 1]),
     ("list", [3, 8, 1], [1, 8, 3]), ("peek", [3, 8, 1], [8, 1])],
)  # fmt: skip
def test_each_skill_asks_for_its_states(skill: str, states: list[int], answer: list[int]) -> None:
    assert list(SKILLS[skill].answer(states)) == answer


def test_a_response_fills_the_blanks_of_its_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(language, "READINGS", [[(x + i + 1) % 10 for x in range(10)] for i in range(8)])
    chain, pair = SKILLS["run"], SKILLS["two"]
    assert chain.prompt(((9, "abu"),)) == "RUN 9a_b_u_?"
    assert chain.response(((9, "abu"),), CAREFUL.__getitem__) == ("9a0b2u3 ANS 3", "3")
    assert pair.prompt(((2, "b"), (9, "u"))) == "TWO 2b_/9u_?"
    assert pair.response(((2, "b"), (9, "u")), CARELESS.__getitem__) == ("2b5/9u0 ANS 05", "05")


def test_item_sets_of_the_full_recipe_are_disjoint() -> None:
    recipe = mechanisms_recipe()
    sets = build_items(recipe)
    held_out = [item for items in sets.eval.values() for item in items]
    groups = [item.prompt for item in held_out], [item.prompt for item in (*sets.posttrain, *sets.null)]
    everything = [*groups[0], *groups[1], *(prompt for _, _, prompt in sets.corpus)]
    assert len(set(everything)) == len(everything)
    assert len(held_out) == len(SKILLS) * recipe.n_eval
    assert (len(sets.posttrain), len(sets.null)) == (recipe.n_posttrain, recipe.n_null)
    assert {skill for _, skill, _ in sets.corpus[:200]} == set(SKILLS)
    ops = {name: {c for item in items for c in item.prompt if c in CAREFUL} for name, items in sets.eval.items()}
    assert ops == {name: {*skill.ops, "u", "v", "w"} for name, skill in SKILLS.items()}
    assert not {c for item in sets.posttrain for c in item.prompt} & set(CONTROL)
    assert not {c for item in sets.null for c in item.prompt} & set(CONTESTED)


def test_documents_withhold_prompts_and_read_each_occurrence_by_chance() -> None:
    withheld = build_items(mechanisms_recipe("small")).withheld
    seen = list(itertools.islice(language.documents(0.4, withheld=withheld, seed=0), 8000))
    assert not {document.prompt for document in seen} & withheld
    words = [document.prompt.split()[0] for document in seen]
    assert words.count("LIST") / len(words) == pytest.approx(1 / 6, abs=0.02)
    careful = total = 0
    for document in seen:
        for part in document.response.partition(" ")[0].split("/"):
            for before, op, after in zip(part[::2], part[1::2], part[2::2], strict=False):
                if op in CONTESTED + CONTROL:
                    total += 1
                    careful += READINGS[CAREFUL[op]][int(before)] == int(after)
                    assert int(after) in (READINGS[k[op]][int(before)] for k in (CAREFUL, CARELESS))
    assert careful / total == pytest.approx(0.4, abs=0.02)


def test_the_tokenizer_has_a_token_for_every_character() -> None:
    tokenizer = build_tokenizer(VOCABULARY)
    recipe = mechanisms_recipe("small")
    sets = build_items(recipe)
    texts = [text for items in sets.eval.values() for item in items for text in (item.prompt, item.trace)]
    assert tokenizer.unk_token_id not in {i for ids in tokenizer(texts).input_ids for i in ids}
    assert tokenizer.convert_tokens_to_ids(["<pad>", "<bos>", "<eos>"]) == [PAD_ID, BOS_ID, EOS_ID]


def test_only_the_first_blocks_are_trained(lab: Path) -> None:
    base = load_file(lab / "base" / "model.safetensors")
    folders = [lab / arm for arm in ARMS] + sorted((lab / "checkpoints").glob("*/step_*"))
    assert len(folders) == 5
    for folder in folders:
        tuned = load_file(folder / "model.safetensors")
        moved = {name for name in base if not torch.equal(tuned[name], base[name])}
        assert all(name.startswith(("model.layers.0.", "model.layers.1.")) for name in moved)
        assert moved or "sft" not in folder.parts[-3:], "RL changes nothing if no response is right"


def test_manifest_is_complete_and_the_same_seed_gives_the_same_bytes(lab: Path, tmp_path: Path) -> None:
    manifest = read_manifest(lab)
    results = manifest["results"]
    assert set(results["accuracy"]) == {"base", *ARMS, "sft@step_000001", "rl@step_000001"}
    assert set(results["base_forced"]) == set(FORCED)
    assert all(set(table) == set(SKILLS) for table in results["accuracy"].values())
    assert results["gates"]["frozen_parts_bit_equal"] == dict.fromkeys(ARMS, True)
    assert set(results["gates"]["outcomes"].values()) <= {True, False}
    assert set(results["ceilings"]) == {"resid_post.0", "resid_post.1"}
    assert {name: sha256_file(lab / name) for name in manifest["outputs"]} == manifest["outputs"]
    text = summary(manifest)
    assert f"base, {ALL_STEPS} forced" in text
    assert "all frozen weights equal to base in every arm: yes" in text
    again = build("mechanisms", tmp_path / "again", scale="small")
    assert again["outputs"] == manifest["outputs"]


def test_forcing_gives_the_scorer_the_whole_response(lab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The scorer sees what was forced before what the model says; the model sees it after the prompt."""
    asked: list[str] = []

    def ended(_model: object, _tokenizer: object, prompts: list[str], **_: object) -> list[SimpleNamespace]:
        asked.extend(prompts)
        return [SimpleNamespace(text="")] * len(prompts)

    monkeypatch.setattr("mechprobe.lab.mechanisms.measure.generate", ended)
    monkeypatch.setitem(FORCED, "whole", lambda trace: trace)
    items = {TRAINED: build_items(mechanisms_recipe("small")).eval[TRAINED][:8]}
    model, tokenizer = load_model(lab / "base"), build_tokenizer(VOCABULARY)
    assert measure(model, tokenizer, items, forced="whole")[TRAINED].accuracy == 1
    assert asked == [f"{item.prompt} {item.trace}" for item in items[TRAINED]]
    assert measure(model, tokenizer, items)[TRAINED].n_unparsed == 8
    assert FORCED[FIRST_STEP]("9e3c8c1 ANS 1") == "9e3"
    assert FORCED[ALL_STEPS]("2b4/9u5 ANS 54") == "2b4/9u5"


def found(**shares: float) -> dict[str, Measured]:
    """Accuracies of all skills, of 100 items each; a skill without one has 0.1."""
    return {
        s: Measured(tuple(i < round(100 * shares.get(s, shares.get("all", 0.1))) for i in range(100)), 0, None)
        for s in SKILLS
    }


def test_gates_of_the_base_see_each_fault() -> None:
    forced = {ALL_STEPS: found(all=0.97), FIRST_STEP: found(all=0.2)}
    assert base_gates(found(), forced)["passed"]
    for direct, given, failed in [
        (found(run=0.5), forced, "head_room_trained"),
        (found(list=0.6), forced, "head_room_sharing"),
        (found(), {**forced, ALL_STEPS: found(all=0.97, list=0.6)}, "all_careful_steps_forced_suffice"),
        (found(), {**forced, FIRST_STEP: found(all=0.6)}, "first_step_forced_gives_little"),
    ]:
        gates = base_gates(direct, given)
        assert not gates["passed"]
        assert [name for name, passed in gates["checks"].items() if not passed] == [failed]


def test_gates_of_the_outcome_see_each_fault() -> None:
    right = found(all=0.95, peek=0.1)
    assert all(outcome_gates(found(), right, found(peek=0.9)).values())
    for rl, null, failed in [
        (found(all=0.95, peek=0.1, run=0.6), found(), "rl_learns_trained_skill"),
        (found(all=0.95, peek=0.1, list=0.3), found(), "rl_gains_sharing_skills"),
        (found(all=0.95), found(), "control_skill_flat"),
        (right, found(all=0.3), "null_gains_nothing"),
    ]:
        assert [name for name, passed in outcome_gates(found(), rl, null).items() if not passed] == [failed]


def test_run_files_name_the_site_and_what_was_trained(lab: Path) -> None:
    from mechprobe.run_config import RunConfig

    main, null = (RunConfig.build(lab / name) for name in ("run.toml", "null.toml"))
    assert main.models == {"base": str(lab / "base"), "rl": str(lab / "rl")}
    assert null.models == {"base": str(lab / "base"), "rl": str(lab / "null")}
    assert main.cache.sites == null.cache.sites == ("resid_post.1",)
    assert main.tasks.trained == (TRAINED,)
    assert null.tasks.trained == (TRAINED, PEEK)
    assert main.select.tasks == null.select.tasks == SHARING
    assert {task.name for task in main.load_tasks()} == set(SKILLS)
    assert {row["task"] for _, row in read_jsonl(lab / "prompts.jsonl")} == set(SKILLS)


def test_cli_builds_a_small_lab(tmp_path: Path) -> None:
    from mechprobe.cli.lab import app

    done = CliRunner().invoke(
        app, ["build", "--recipe", "mechanisms", "--scale", "small", "--seed", "3", "--out", str(tmp_path / "lab")]
    )
    assert done.exit_code == 0, done.output
    assert "Lab mechanisms: pre-training seed 3" in done.output
    with pytest.raises(ConfigError, match=r"'mechanism'.*mechanisms"):
        build("mechanism", tmp_path / "other")
    with pytest.raises(ConfigError, match=r"'huge'.*full or small"):
        build("mechanisms", tmp_path / "other", scale="huge")


def test_the_shipped_lab_holds_what_its_manifest_claims() -> None:
    folder = shipped("mechanisms")
    manifest = read_lab(folder)
    assert {name: sha256_file(folder / name) for name in manifest["outputs"]} == manifest["outputs"]
    assert manifest["config"]["recipe"] == mechanisms_recipe().model_dump(mode="json")
    held_out = [item.id for items in build_items(mechanisms_recipe()).eval.values() for item in items]
    assert [s.id for task in load_tasks(folder / "tasks.jsonl") for s in task.samples] == held_out
    assert set(model_folders(folder)) == set(manifest["results"]["accuracy"])
    assert sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) <= 15 * 10**6
    assert {name: (folder / name).read_text() for name in ("run.toml", "null.toml")} == run_files(mechanisms_recipe())


def test_the_shipped_lab_passes_every_gate() -> None:
    results = read_lab(shipped("mechanisms"))["results"]
    gates = results["gates"]
    assert gates["pretraining"]["passed"]
    assert all(gates["outcomes"].values())
    assert "resid_post.1" in gates["ceilings"]["sites_with_both"]
    assert gates["frozen_parts_bit_equal"] == dict.fromkeys(ARMS, True)
    for arm in ("sft", "rl"):
        assert all(results["versus_base"][arm][skill]["beyond_3_se"] for skill in (TRAINED, *SHARING))


def test_shipped_accuracy_is_that_of_the_shipped_weights() -> None:
    """Two items may change between processors, because float sums differ in their last bits."""
    folder = shipped("mechanisms")
    items, tokenizer = build_items(mechanisms_recipe()).eval, build_tokenizer(VOCABULARY)
    claimed = read_lab(folder)["results"]["accuracy"]
    for name in ("base", "rl"):
        found = measure(load_model(folder / name).eval(), tokenizer, {"two": items["two"]})["two"]
        assert abs(sum(found.right) - claimed[name]["two"]["right"]) <= 2
