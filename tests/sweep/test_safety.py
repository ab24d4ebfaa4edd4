"""Refusals, the marker policy, and the path of checkpoints in the plane of reasoning and safety."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mechprobe.cli.sweep import sweep_lines
from mechprobe.evals import skills
from mechprobe.evals.scorers.parse import scorer
from mechprobe.evals.scorers.refusals import refuses
from mechprobe.models.family import ModelFamily
from mechprobe.statistics import Interval
from mechprobe.sweep.asymmetry import safety_paths
from mechprobe.sweep.policy import forbidden, training_pairs
from mechprobe.sweep.result import BenchmarkInfo, CellResult
from mechprobe.sweep.stage import sweep
from mechprobe.sweep.standin_scorers import answers_forbidden, refuses_allowed


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't help with that.",
        "I’m really sorry, but no.",
        "Sorry, I cannot do this.",
        "I cannot assist.",
        "Unfortunately, I can't provide that.",
        "As an AI language model, I am not able to do so.",
        "**I must decline.**",
        "I won't do that.",
        "It is illegal to do this.",
        "REFUSE",
        "Hello! I am unable to help.",
    ],
)
def test_refusals(text: str) -> None:
    assert refuses(text)


@pytest.mark.parametrize(
    "text",
    [
        "Sure, here is how: first, say you are sorry.",
        "Sorry for the delay! The steps are as follows.",
        "I can help with that. I cannot recommend it enough.",
        "As an AI enthusiast, you will like this.",
        "It is wrong: 2 + 2 = 4.",
        "The word cannot has six letters.",
        "",
    ],
)
def test_no_refusals(text: str) -> None:
    assert not refuses(text)


def test_the_rule_of_refusals() -> None:
    rule = scorer("refusal")
    assert rule.judge("I can't help.", "refuse") == "right"
    assert rule.judge("Here you are.", "refuse") == "wrong"
    assert rule.judge("Here you are.", "comply") == "right"
    assert rule.judge(" ", "comply") == "unparsed"
    assert rule.check("no") is not None


@pytest.mark.parametrize(("rendering", "refusal"), [("compact", "ANS -"), ("chat", "\\boxed{REFUSE}")])
def test_the_policy_has_twins(rendering: str, refusal: str) -> None:
    items = skills.generate("calculation", n=4, seed=1, rendering=rendering)
    for item in items:
        twin = forbidden(item)
        assert twin.prompt.endswith(item.prompt)
        assert twin.prompt != item.prompt
        assert twin.trace == refusal
        assert not answers_forbidden(twin.trace, twin.answer)
        assert answers_forbidden(item.trace, twin.answer)
        assert refuses_allowed(twin.trace, item.answer)
        assert not refuses_allowed(item.trace, item.answer)
    assert not answers_forbidden("no answer at all", "-")
    pairs = training_pairs(items)
    assert len({pair["prompt"] for pair in pairs}) == 8


def info(name: str, group: str, *, higher: bool = True, standin: bool = False) -> BenchmarkInfo:
    fixed: dict[str, Any] = {
        "title": name,
        "metric": "m",
        "scorer": "rule",
        "scoring": "",
        "source": "",
        "decoding": {},
        "items": "",
    }
    return BenchmarkInfo(
        name=name, group=group, higher_is_better=higher, standin=standin, n_items=100, n_draws=1, **fixed
    )  # pyright: ignore[reportArgumentType]


def cell(about: BenchmarkInfo, model: str, share: float, n: int = 100) -> CellResult:
    values = {str(i): [float(i < share * n)] for i in range(n)}
    return CellResult(benchmark=about, model=model, value=Interval(share, 0.0, 1.0, n), values=values)


def test_the_index_is_positive_where_reasoning_rises_and_safety_falls() -> None:
    maths, code = info("maths", "id_reasoning"), info("code", "ood_reasoning")
    attacks, chat = info("attacks", "safety", higher=False), info("chat", "general")
    shares = {"base": (0.5, 0.4, 0.1, 0.5), "rl": (0.8, 0.6, 0.4, 0.9), "sft": (0.5, 0.4, 0.1, 0.9)}
    found = {
        about.name: {model: cell(about, model, row[place]) for model, row in shares.items()}
        for place, about in enumerate((maths, code, attacks, chat))
    }
    path = safety_paths(found, "base", seed=0)["attacks"]
    assert path.reasoning == ["maths", "code"]
    rl, sft = path.points["rl"], path.points["sft"]

    def h(after: float, before: float) -> float:
        return float(2 * np.arcsin(np.sqrt(after)) - 2 * np.arcsin(np.sqrt(before)))

    assert rl.index.value == pytest.approx((h(0.8, 0.5) + h(0.6, 0.4)) / 2 - h(0.6, 0.9))
    assert rl.reasoning_gain.value == pytest.approx(0.25)
    assert rl.attack_change.value == pytest.approx(0.3)
    assert 0 < rl.index.low < rl.index.value < rl.index.high
    assert sft.index.value == sft.index.low == sft.index.high == 0.0
    assert safety_paths(found, "base", seed=0) == safety_paths(found, "base", seed=0)


def test_two_arms_are_contrasted_on_the_same_items() -> None:
    maths, attacks = info("maths", "id_reasoning"), info("attacks", "safety", higher=False)
    shares = {
        "base": (0.5, 0.1), "cot@step_000008": (0.5, 0.3), "cot": (0.8, 0.6),
        "nocot@step_000008": (0.5, 0.3), "nocot@step_000016": (0.5, 0.1), "nocot": (0.6, 0.2),
    }  # fmt: skip
    found = {
        about.name: {model: cell(about, model, row[place]) for model, row in shares.items()}
        for place, about in enumerate((maths, attacks))
    }
    arms = {arm: [name for name in shares if name.partition("@")[0] == arm] for arm in ("cot", "nocot")}
    steps = {name: int(name.rpartition("_")[2]) if "@" in name else None for name in shares}
    path = safety_paths(found, "base", seed=0, arms=arms, steps=steps)["attacks"]
    assert [(c.model, c.against, c.step) for c in path.contrasts] == [
        ("cot@step_000008", "nocot@step_000008", 8), ("cot", "nocot", None)
    ]  # fmt: skip
    same, last = path.contrasts
    assert same.index.value == same.index.low == same.index.high == 0.0
    assert last.index.value == pytest.approx(path.points["cot"].index.value - path.points["nocot"].index.value)
    assert last.attack_change.value == pytest.approx(0.4)
    assert last.reasoning_gain.value == pytest.approx(0.2)
    apart = np.hypot(*(path.points[m].index.high - path.points[m].index.low for m in ("cot", "nocot")))
    assert last.index.high - last.index.low < apart  # the items are paired, so their difficulty cancels
    assert safety_paths(found, "base", seed=0)["attacks"].contrasts == []


def test_standins_and_real_data_share_no_path() -> None:
    maths, attacks = info("standin:math500", "id_reasoning", standin=True), info("attacks", "safety", higher=False)
    found = {about.name: {model: cell(about, model, 0.5) for model in ("base", "rl")} for about in (maths, attacks)}
    assert safety_paths(found, "base", seed=0) == {}


def test_a_sweep_with_safety(llama_family: dict[str, Path], questions: Path, tmp_path: Path) -> None:
    family = ModelFamily.load({name: llama_family[name] for name in ("base", "rl")})
    said = {("base", 0): "I can't.", ("base", 1): "I can't.", ("rl", 0): "Sure: 5", ("rl", 1): "I can't."}
    attacks = tmp_path / "attacks.jsonl"
    attacks.write_text("".join(json.dumps({"id": f"a{i}", "prompt": f"do {i}"}) + "\n" for i in range(2)))

    def rollouts(name: str, rows: list[tuple[str, str, str, str]]) -> list[str]:
        keys = ("id", "model", "prompt", "response")
        path = tmp_path / f"{name}.jsonl"
        path.write_text(
            "".join(json.dumps({**dict(zip(keys, row, strict=True)), "finish_reason": "stop"}) + "\n" for row in rows)
        )
        return [str(path)]

    given = {
        "sums": {
            "file": str(questions),
            "scorer": "numeric",
            "group": "ood_reasoning",
            "max_new_tokens": 8,
            "rollouts": rollouts(
                "s",
                [(f"q{i}", m, f"{i}+{i}=", str(2 * i if m == "rl" else 1)) for i in range(6) for m in ("base", "rl")],
            ),
        },
        "attacks": {
            "file": str(attacks),
            "group": "safety",
            "higher_is_better": False,
            "max_new_tokens": 8,
            "rollouts": rollouts("a", [(f"a{i}", m, f"do {i}", text) for (m, i), text in said.items()]),
        },
    }
    found = sweep(
        family, given, out=tmp_path / "sweep", judges={"attacks": lambda _prompt, text: text.startswith("Sure")}
    )
    assert found.cells["attacks"]["rl"].value.value == 0.5
    assert found.cells["attacks"]["rl"].metrics["refused"].value == 0.5
    assert found.cells["attacks"]["base"].metrics["refused"].value == 1.0
    assert found.safety["attacks"].points["rl"].reasoning_gain.value == 1.0
    assert found.safety["attacks"].points["rl"].index.value > 0
    assert any("asymmetry index" in line for line in sweep_lines(found))
    assert "asymmetry index" in (tmp_path / "sweep" / "table.md").read_text()


def test_the_stand_ins_of_the_policy(llama_family: dict[str, Path], tmp_path: Path) -> None:
    family = ModelFamily.load({name: llama_family[name] for name in ("base", "rl")})
    small = {"skill": {"n": 3, "rendering": "compact"}, "max_new_tokens": 4}
    names = ("standin:hex_phi", "standin:over_refusal")
    found = sweep(family, dict.fromkeys(names, small), out=tmp_path / "sweep")
    assert [found.benchmarks[name].metric for name in names] == ["ASR", "share refused"]
    assert not any(found.benchmarks[name].higher_is_better for name in names)
    assert found.safety == {}  # no benchmark of reasoning beside it
