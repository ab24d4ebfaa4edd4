"""Items of the skill benchmark go through the chat rendering: made, asked with a chat template, scored in two columns."""

import importlib.util
import json
import random
from pathlib import Path
from types import ModuleType

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from mechprobe.cli import main
from mechprobe.evals.skills.scoring import read_items
from mechprobe.evals.stage import load_outcomes

BUILD = Path(__file__).resolve().parents[2] / "experiments" / "chat_family" / "build.py"
LEARNED = "calculation"


@pytest.fixture(scope="module")
def chat_family() -> ModuleType:
    pytest.importorskip("peft")
    spec = importlib.util.spec_from_file_location("chat_family", BUILD)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One item of every cell, and three more sums."""
    folder = tmp_path_factory.mktemp("items")
    make = ["skills", "make", "--rendering", "chat", "--split", "train", "--levels", "1"]
    assert main([*make, "--n", "1", "--out", str(folder / "all")]) == 0
    assert main([*make, "--n", "4", "--family", LEARNED, "--out", str(folder / "sums")]) == 0
    lines = dict.fromkeys(
        line for part in ("all", "sums") for line in (folder / part / "tasks.jsonl").read_text().splitlines()
    )
    (folder / "tasks.jsonl").write_text("".join(f"{line}\n" for line in lines))
    return folder / "tasks.jsonl"


@pytest.fixture(scope="module")
def models(chat_family: ModuleType, tasks: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The family after a few steps, and a copy of its sft model that learns the sums by heart."""
    folder = tmp_path_factory.mktemp("models")
    chat_family.build(folder, steps=20)
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(folder / "sft"),
        AutoTokenizer.from_pretrained(folder / "sft"),
    )
    learned = [item for item in read_items(tasks).values() if item.family == LEARNED]

    def by_heart(rng: random.Random) -> tuple[str, str]:
        item = rng.choice(learned)
        turn, end = chat_family.TURN, chat_family.TURN_END
        return f"{turn}user\n{item.prompt}{end}\n{turn}assistant\n", f"\\boxed{{{item.answer}}}{end}"

    loss = chat_family.train(model, tokenizer, by_heart, steps=60, lr=6e-3, seed=0)
    assert loss < 0.3, loss
    model.save_pretrained(folder / "learned")
    tokenizer.save_pretrained(folder / "learned")
    return folder


def test_the_chat_rendering_goes_from_make_to_scores(
    tasks: Path, models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evals = tmp_path / "evals"
    named = [f"{name}={models / name}" for name in ("base", "learned")]
    settings = ["--set", "text.chat_template=true", "--set", "tasks.max_new_tokens=16"]
    call = ["evaluate", "--models", *named, "--tasks", str(tasks), "--scorer", "skill", "--out", str(evals)]
    assert main([*call, *settings]) == 0, capsys.readouterr().err
    capsys.readouterr()
    assert main(["skills", "score", str(evals), "--tasks", str(tasks), "--json"]) == 0
    scores = json.loads(capsys.readouterr().out)
    items, outcomes = read_items(tasks), load_outcomes(evals)
    assert len(items) == 23
    for model in ("base", "learned"):
        right = [record for record in outcomes.records if record.model == model and record.outcome == "right"]
        rows = {(row["by"], row["name"]): row for row in scores[model]["rows"]}
        assert rows["all", ""]["n"] == 23
        assert rows["all", ""]["boxed"][0] == pytest.approx(len(right) / 23)
        assert rows["all", ""]["cut"] == sum(record.cut for record in outcomes.records if record.model == model)
        assert len([1 for by, _ in rows if by == "cell"]) == 20
        assert rows["skill", "diagnostic"]["diagnostic"]["detection"][3] == 4
        assert (rows["skill", "calculation"]["behaviour"], rows["skill", "fact_retrieval"]["behaviour"][3]) == (None, 3)
    found = [
        outcomes.record("learned", item.task, item.id).outcome for item in items.values() if item.family == LEARNED
    ]
    assert found.count("right") >= 3
    assert main(["skills", "score", str(evals), "--tasks", str(tasks), "--by", "cell"]) == 0
    printed = capsys.readouterr().out
    assert len(printed.splitlines()) <= 50
    assert "balanced detection" in printed


def test_bad_input_is_one_sentence(tasks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["skills", "score", str(tmp_path), "--tasks", str(tasks), "--by", "colour"]) == 2
    assert "Unknown row 'colour'" in capsys.readouterr().err
    plain = tmp_path / "plain.jsonl"
    plain.write_text('{"id": "a", "prompt": "1+1?", "answer": "2"}\n')
    assert main(["skills", "score", str(tmp_path), "--tasks", str(plain)]) == 2
    assert "plain.jsonl:1 is no skill item: 'skill' is missing" in capsys.readouterr().err
