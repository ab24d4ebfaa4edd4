"""The experiments of arXiv 2604.06628: training sets by what they must hold, the rule of the verdict, and a tiny run."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from experiments.paper_c import design as designs, run as script, traces, verdicts
from experiments.paper_c.design import ArmConfig, ClaimConfig
from experiments.paper_c.training import Run
from mechprobe.files import read_json
from mechprobe.lab.summary import shipped
from mechprobe.lab.tokenizer import UNK, build_tokenizer

ROOT = Path(__file__).resolve().parents[2]
RESULTS = sorted(path for path in (ROOT / "artifacts" / "paper_c").glob("*.json") if path.stem in designs.names())


def planted(right: dict[str, list[str]], lengths: list[float] | None = None, steps: tuple[int, ...] = (8, 16)) -> Run:
    """A run with these outcomes; every task has the same lengths."""
    return Run(
        steps=steps,
        right={task: tuple(rows) for task, rows in right.items()},
        lengths={task: tuple(lengths or [2.0] * (len(steps) + 1)) for task in right},
        cut={task: (0.0,) * (len(steps) + 1) for task in right},
        loss=0.1,
        prompts_sha256="x",
        visits=1,
    )


def claim(**settings: object) -> ClaimConfig:
    return ClaimConfig(**{"text": "a claim", "arm": "a"} | settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", designs.names())
def test_every_design_is_whole(name: str) -> None:
    found = designs.load(name)
    assert len(found.seeds) >= 3
    assert designs.load_selection().seed not in found.seeds
    for each in found.claims:
        assert each.paper or each.ours or name == "stress", "the paper has no numbers for stress alone"


def test_repetition_and_coverage_have_equal_steps_and_visits() -> None:
    arms = designs.load("coverage").arms
    for style in designs.load("coverage").styles:
        full, repeat, once = (arms[f"{kind}_{style}"] for kind in ("full", "repeat", "once"))
        assert full.steps == repeat.steps == once.steps == 256
        assert repeat.epochs * repeat.n_items == once.epochs * once.n_items == full.n_items
        assert full.prompts_per_step == 8 * repeat.prompts_per_step
        pool = traces.training_set(full.data, full.n_items, 0)
        assert traces.training_set(repeat.data, repeat.n_items, 0) == pool[: repeat.n_items]


def test_arms_with_equal_settings_share_a_run_and_others_do_not() -> None:
    first = ArmConfig(data="long")
    keys = {first.key(1e-3, 0), ArmConfig(data="long", lr_factor=2).key(5e-4, 0)}
    assert len(keys) == 1
    others = [first.key(1e-3, 1), first.key(2e-3, 0), ArmConfig(data="new").key(1e-3, 0), first.key(1e-3, 0, {"d": 1})]
    assert len({*keys, *others}) == 5


def test_items_of_training_dev_and_evaluation_are_disjoint() -> None:
    sets = traces.item_sets()
    prompts = {name: {item.prompt for item in items} for name, items in sets.items()}
    assert not prompts["train"] & (prompts["dev"] | prompts["eval"])
    assert not prompts["dev"] & prompts["eval"]
    lab = [json.loads(line) for line in (shipped("shared-marker") / "tasks.jsonl").read_text().splitlines()]
    assert prompts["eval"] == {row["prompt"] for row in lab if row["task"] == "calculation"}
    held_out = {example.prompt for example in traces.held_out_games()}
    assert not held_out & {example.prompt for example in traces.training_set("game_cot", 512, 0)}


def test_all_traces_are_on_the_same_items_in_the_lab_s_vocabulary() -> None:
    tokenizer = build_tokenizer()
    for names in (tuple(traces.STYLES), traces.GAMES):
        sets = [traces.training_set(name, 64, 3) for name in names]
        assert len({tuple((e.id, e.prompt, e.answer) for e in examples) for examples in sets}) == 1
        for example in (example for examples in sets for example in examples):
            ids = tokenizer(f"{example.prompt} {example.response}").input_ids
            assert tokenizer.convert_tokens_to_ids(UNK) not in ids
            assert len(ids) < 96
    assert traces.training_set("long", 64, 3) != traces.training_set("long", 64, 4)


def equations(text: str) -> list[bool]:
    """Whether each sum or difference of a trace holds."""
    found = re.findall(r"(\d+(?:[+-]\d+)+)=(\d+)", text)
    return [sum(int(part) for part in re.findall(r"[+-]?\d+", left)) == int(result) for left, result in found]


@pytest.mark.parametrize("name", ["known", "long", "new", "none", "terse", "terse_new"])
def test_right_traces_are_right(name: str) -> None:
    for example in traces.training_set(name, 200, 0):
        assert example.response.endswith(f"ANS {example.answer}")
        assert all(equations(example.response))


@pytest.mark.parametrize("name", ["wrong_long", "wrong_new"])
def test_every_step_and_answer_of_wrong_traces_is_wrong(name: str) -> None:
    for example in traces.training_set(name, 200, 0):
        work, _, answer = example.response.rpartition("ANS ")
        assert answer.isdigit()
        assert answer != example.answer
        assert not any(equations(work))


def test_half_of_the_half_wrong_traces_are_wrong() -> None:
    wrong = [e.response.rpartition(" ")[2] != e.answer for e in traces.training_set("half_wrong_long", 1000, 0)]
    assert 420 < sum(wrong) < 580


def test_games_are_solved_at_the_last_trial_and_not_before() -> None:
    for example in [*traces.held_out_games(), *traces.training_set("game_cot", 300, 1)]:
        target = int(example.prompt.rpartition(">")[2].rstrip("?"))
        assert sum(int(part) for part in re.findall(r"[+-]?\d+", example.answer)) == target
        lasts = [int(each) for each in re.findall(r"=(\d+)", example.response)[1::2]]
        assert lasts[-1] == target
        assert target not in lasts[:-1]
        assert all(equations(example.response))


def test_the_interval_by_hand() -> None:
    change = np.array([[0.0, 1.0], [1.0, 1.0]])  # one group; seed means 0.5 and 1, item means 0.5 and 1
    value = verdicts.crossed_interval(change, [2], 0.95)
    # V_seed / S = 0.125 / 2, V_item / m is as much, and so is the rest, 0.25 / 4; one degree of freedom, t = 12.706
    assert value.value == 0.75
    assert value.high - value.value == pytest.approx(12.706205 * 0.25)
    assert (value.seeds, value.items) == (2, 2)
    assert np.isnan(verdicts.crossed_interval(change[:1], [2], 0.95).low)


@pytest.mark.parametrize(("seed_sd", "item_sd"), [(0.0, 0.3), (0.2, 0.0), (0.1, 0.3), (0.0, 0.0)])
def test_the_interval_covers_new_seeds_and_new_items(seed_sd: float, item_sd: float) -> None:
    rng, covered = np.random.default_rng(0), 0
    for _ in range(400):
        shape = (3, 64)
        change = (
            0.1
            + seed_sd * rng.standard_normal((3, 1))
            + item_sd * rng.standard_normal((1, 64))
            + 0.3 * rng.standard_normal(shape)
        )
        value = verdicts.crossed_interval(change, [32, 32], 0.95)
        covered += value.low <= 0.1 <= value.high
    assert covered >= 372, "93 % of 400 draws"


def test_a_claim_is_the_difference_of_two_arms_on_the_named_skills() -> None:
    first = planted({"calculation": ["00", "00", "11"], "a": ["10", "10", "11"], "b": ["00", "00", "10"]})
    second = planted({"calculation": ["00", "00", "10"], "a": ["10", "10", "00"], "b": ["00", "00", "10"]})
    runs = {"a": {"0": first, "1": first}, "b": {"0": second, "1": second}}
    for settings, expected in (
        ({"on": "id", "against": "b"}, 0.5),
        ({"against": "b"}, 0.5),  # (1 - 0 + 0.5 - 0.5) / 2
        ({}, 0.5),  # over base: (0.5 + 0.5) / 2
        ({"kind": "gain", "against": "b"}, 0.5),
        ({"on": "b"}, 0.5),
    ):
        value, by_seed = verdicts.measure(claim(**settings), "", runs, 0.95)
        assert value.value == expected, settings
        assert by_seed == (expected, expected)


def test_lengths_and_dips_of_planted_runs() -> None:
    dip = ["1" * 60 + "0" * 40, "1" * 10 + "0" * 90, "1" * 30 + "0" * 70, "1" * 62 + "0" * 38, "1" * 61 + "0" * 39]
    flat = [dip[0]] * 5
    steps = (8, 16, 32, 64)
    fallen = planted({"calculation": flat, "a": dip, "b": flat}, [2.0, 4.0, 8.0, 6.0, 6.0], steps)
    level = planted({"calculation": dip, "a": flat, "b": flat}, [2.0] * 5, steps)
    runs = {"a": {"0": fallen, "1": fallen}, "b": {"0": level, "1": level}}
    assert verdicts.measure(claim(kind="surge"), "", runs, 0.95)[0].value == 3.0
    assert verdicts.measure(claim(kind="contraction"), "", runs, 0.95)[0].value == -0.25
    assert verdicts.measure(claim(kind="length", against="b"), "", runs, 0.95)[0].value == 2.0
    asked = claim(kind="dip")
    value, by_seed = verdicts.measure(asked, "", runs, 0.95)
    assert verdicts.judge(value, asked, by_seed) == "supported"
    value, by_seed = verdicts.measure(claim(kind="dip", arm="b"), "", runs, 0.95)
    assert verdicts.judge(value, asked, by_seed) == "opposed", "a dip of the trained skill does not count"


@pytest.mark.parametrize(
    ("interval", "settings", "expected"),
    [
        ((0.1, 0.05, 0.15), {}, "supported"),
        ((0.1, -0.05, 0.25), {}, "open"),
        ((-0.1, -0.15, -0.05), {}, "opposed"),
        ((-0.1, -0.15, -0.05), {"more": False}, "supported"),
        ((-0.02, -0.04, 0.01), {"than": -0.05}, "supported"),
        ((-0.2, -0.3, -0.1), {"than": -0.05}, "opposed"),
        ((0.1, float("nan"), float("nan")), {}, "open"),
    ],
)
def test_the_status_of_a_claim(
    interval: tuple[float, float, float], settings: dict[str, object], expected: str
) -> None:
    assert verdicts.judge(verdicts.Value(*interval, 3, 10), claim(**settings), (0.1,)) == expected


def found(status: str, value: float, **settings: object) -> verdicts.Found:
    given = {
        "text": "x", "style": "", "value": (value, value, value, 3, 9), "level": 0.95, "than": 0.0, "more": True,
        "status": status, "by_seed": (value,),
    }  # fmt: skip
    return verdicts.Found.model_validate(given | settings)


@pytest.mark.parametrize(
    ("claims", "expected"),
    [
        ([found("supported", 0.1), found("supported", 0.2)], "reproduced"),
        ([found("supported", 0.1), found("open", 0.2)], "trend"),
        ([found("supported", 0.1), found("open", -0.2)], "not"),
        ([found("supported", 0.1), found("open", 0.0)], "not"),
        ([found("open", 0.1), found("open", 0.2)], "not"),
        ([found("supported", 0.1), found("opposed", -0.2)], "not"),
        ([found("supported", 0.1), found("opposed", -0.2, ours=True)], "reproduced"),
        ([found("supported", -0.1, more=False), found("open", -0.2, more=False)], "trend"),
    ],
)
def test_the_verdict(claims: list[verdicts.Found], expected: str) -> None:
    assert verdicts.verdict(claims) == expected


def test_the_highest_learning_rate_near_the_best_is_chosen() -> None:
    scores = {1e-4: {"a": 0.5}, 2e-4: {"a": 0.79}, 4e-4: {"a": 0.8}, 6e-4: {"a": 0.785}, 8e-4: {"a": 0.6}}
    assert script.choose(scores, 0.02) == 6e-4
    committed = read_json(ROOT / "artifacts" / "paper_c" / "select.json")
    rows = {
        float(lr): {arm: float(np.mean(list(scores.values()))) for arm, scores in arms.items()}
        for lr, arms in committed["dev_accuracy"].items()
    }
    assert committed["lr"] == script.choose(rows, designs.load_selection().within)
    assert min(rows) < committed["lr"] < max(rows), "the choice is inside the grid"


@pytest.mark.parametrize(
    "path", [pytest.param(path, id=path.stem, marks=pytest.mark.slow if path.stem == "dip" else ()) for path in RESULTS]
)
def test_committed_verdicts_follow_from_the_committed_outcomes(path: Path) -> None:
    result = read_json(path)
    assert result["design"] == json.loads(json.dumps(designs.load(path.stem).model_dump(mode="json")))
    runs = script.read_runs(result)
    design = designs.load(path.stem)
    for style in design.styles:
        again = verdicts.check(design, style, runs)
        assert verdicts.verdict(again) == result["verdict_by_style"][style]
        for ours, theirs in zip(again, result["claims"][style], strict=True):
            assert ours.value[:3] == pytest.approx(theirs["value"][:3], abs=1e-9, nan_ok=True)
            assert ours.status == theirs["status"]
    assert (ROOT / "docs" / "figures" / f"paper_c_{path.stem}.png").is_file()


def test_one_tiny_experiment_from_base_to_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = script.quick(designs.load("cot"))
    kept = {name: whole.arms[name] for name in ("cot_known", "nocot")}
    design = whole.model_copy(update={"arms": kept, "styles": ("known",)})
    runs = script.measure(design, script.QUICK_LR, tmp_path)
    result = script.record(design, script.QUICK_LR, runs)
    first = runs["cot_known"]["0"]
    assert first.steps == (8, 12)
    assert first.visits == 48
    assert {len(row) for rows in first.right.values() for row in rows} == {4}
    assert runs["nocot"]["0"].prompts_sha256 == first.prompts_sha256 != runs["nocot"]["1"].prompts_sha256
    assert len(result["claims"]["known"]) == 3
    assert script.draw(design, runs, result).startswith(b"\x89PNG")
    text = "\n".join(script.lines(design, runs, result))
    assert "Qwen3-14B: MATH500 95.1 against 82.4" in text
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("run_4.json")}
    assert script.measure(design, script.QUICK_LR, tmp_path) == runs
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("run_4.json")} == before
    assert "seed 1 is finished" in capsys.readouterr().out


def test_a_wrong_design_is_refused() -> None:
    settings = designs.load("cot").model_dump() | {"arms": {"nocot": ArmConfig(data="none")}}
    with pytest.raises(Exception, match="cot_long"):
        designs.Experiment(**settings)
    with pytest.raises(Exception, match="unknown"):
        ArmConfig(data="nothing")
    with pytest.raises(Exception, match="coverage"):
        designs.load("nothing")
