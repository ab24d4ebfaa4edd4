"""`mechprobe skills make|show|card`: files, bytes, lm-evaluation-harness tasks, chat prompts, bad input."""

import json
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest

from mechprobe.cli import main
from mechprobe.evals.skills.splits import SPLITS
from mechprobe.evals.tasks import load_tasks


def make(out: Path, *options: str) -> int:
    return main(["skills", "make", "--out", str(out), *options])


def read(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_make_writes_tasks_and_gold_prompts_of_every_cell(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert make(tmp_path / "a", "--n", "2") == 0
    assert len(capsys.readouterr().out.splitlines()) <= 40
    tasks = load_tasks(tmp_path / "a" / "tasks.jsonl")
    assert len(tasks) == 20
    assert {len(task.samples) for task in tasks} == {10}
    lines, prompts = read(tmp_path / "a" / "tasks.jsonl"), read(tmp_path / "a" / "prompts.jsonl")
    assert [line["split"] for line in lines] == ["test_in"] * 200
    assert [line["id"] for line in lines] == [prompt["id"] for prompt in prompts]
    assert [line["trace"] for line in lines] == [prompt["response"] for prompt in prompts]
    record = json.loads((tmp_path / "a" / "skills.json").read_text())
    assert record["n"] == 200
    assert record["families"]["gcd"] == 1


def test_the_same_command_writes_the_same_bytes_and_another_one_needs_force(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ("--skills", "simulation", "--domains", "physics,coding", "--levels", "1-2,4", "--n", "2")
    for name in ("a", "b", "a"):
        assert make(tmp_path / name, *command) == 0
    for name in ("tasks.jsonl", "prompts.jsonl", "skills.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert {line["level"] for line in read(tmp_path / "a" / "tasks.jsonl")} == {1, 2, 4}
    before = (tmp_path / "a" / "tasks.jsonl").read_bytes()
    capsys.readouterr()
    assert make(tmp_path / "a", *command, "--seed", "1") == 2
    assert "holds other items" in capsys.readouterr().err
    assert (tmp_path / "a" / "tasks.jsonl").read_bytes() == before
    assert make(tmp_path / "a", *command, "--seed", "1", "--force") == 0
    assert (tmp_path / "a" / "tasks.jsonl").read_bytes() != before


def test_a_folder_with_foreign_bytes_or_that_is_a_file_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "tasks.jsonl").write_bytes(b"\xff\xfe")
    (tmp_path / "b").write_text("a file")
    for name, message in (("a", "holds other items"), ("b", "cannot be written")):
        assert make(tmp_path / name, "--n", "1", "--skills", "calculation", "--levels", "1") == 2
        assert message in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["tasks.jsonl"]


def test_harness_tasks_of_an_earlier_command_do_not_stay(tmp_path: Path) -> None:
    few = ("--levels", "1", "--n", "1", "--lm-eval", "--force", "--skills", "calculation", "--domains")
    assert make(tmp_path, *few, "physics,coding") == 0
    assert make(tmp_path, *few, "coding") == 0
    assert sorted(path.name for path in (tmp_path / "lm_eval").iterdir()) == [
        "mechprobe_skills.yaml", "mechprobe_skills_calculation_coding.jsonl", "mechprobe_skills_calculation_coding.yaml",
    ]  # fmt: skip


def test_splits_that_need_no_level_and_only_some_cells(tmp_path: Path) -> None:
    assert make(tmp_path / "param", "--split", "test_out_param", "--n", "1") == 0
    assert {line["level"] for line in read(tmp_path / "param" / "tasks.jsonl")} == {6}
    assert make(tmp_path / "family", "--split", "test_out_family", "--n", "1", "--skills", "calculation") == 0
    assert {line["family"] for line in read(tmp_path / "family" / "tasks.jsonl")} == {"prime_factors"}


def test_all_splits_are_all_five(tmp_path: Path) -> None:
    assert make(tmp_path / "a", "--split", "all", "--n", "12", "--skills", "enumeration,calculation") == 0
    lines = read(tmp_path / "a" / "tasks.jsonl")
    assert {line["split"] for line in lines} == set(SPLITS)
    assert {line["level"] for line in lines} == {1, 2, 3, 4, 5, 6}
    held_out = [line for line in lines if line["split"] == "test_out_family"]
    assert len(held_out) == 2 * 6 * 12
    assert len({line["id"] for line in lines}) == len(lines) == (2 + 8) * 6 * 12
    assert make(tmp_path / "b", "--split", "all", "--n", "1", "--family", "prime_factors", "--levels", "1,6") == 0
    assert [line["level"] for line in read(tmp_path / "b" / "tasks.jsonl")] == [1, 6]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--levels", ","), "--levels ',' names nothing"),
        (("--levels", " "), "names nothing"),
        (("--skills", ", ,"), "--skills ', ,' names nothing"),
        (("--domains", ","), "--domains ',' names nothing"),
        (("--reasoning-gym", ",", "--rendering", "chat"), "--reasoning-gym ',' names nothing"),
        (("--rendering", "xml"), "choose one of: compact, chat."),
        (("--skills", "chess"), "Unknown skill 'chess'"),
        (("--domains", "chemistry"), "Unknown domain 'chemistry'"),
        (("--levels", "7"), "levels are 1 to 6"),
        (("--levels", "3-1"), "a range rises"),
        (("--levels", "one"), "write numbers and ranges"),
        (("--levels", "²"), "write numbers and ranges"),
        (("--rendering", "prose"), "Unknown rendering 'prose'"),
        (("--family", "tetris"), "Unknown family 'tetris'"),
        (("--family", "gcd", "--domains", "physics"), "not among the cells asked for"),
        (("--family", "gcd", "--levels", "1", "--n", "5000"), "5000 cannot be drawn"),
        (("--split", "dev"), "Unknown split 'dev'"),
        (("--split", "test_out_family", "--domains", "coding", "--skills", "calculation"), "has items in the split"),
        (("--n", "0"), "greater than or equal to 1"),
        (("--reasoning-gym", "gcd"), "rendering chat only"),
    ],
)
def test_bad_input_is_one_sentence_and_writes_nothing(
    tmp_path: Path, options: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert make(tmp_path / "out", *options) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.strip().splitlines()) == 1
    assert message in captured.err
    assert not (tmp_path / "out").exists()


def test_show_prints_one_item_in_both_renderings(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["skills", "show", "calculation", "mathematics", "--family", "prime_factors", "--n", "1"]) == 0
    out = capsys.readouterr().out
    assert "FACTOR " in out
    assert "\\boxed{}" in out
    assert main(["skills", "show", "calculation", "mathematics", "--n", "1", "--json"]) == 0
    both = json.loads(capsys.readouterr().out)
    assert [item["rendering"] for item in both] == ["compact", "chat"]
    assert main(["skills", "show", "calculation", "chemistry"]) == 2


def test_the_card_names_every_family_with_its_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mechprobe.evals import skills
    from mechprobe.evals.skills import card, generation

    monkeypatch.setattr(card, "N_SAMPLED", 5)
    monkeypatch.setattr(card, "N_ANSWERS", 50)
    assert main(["skills", "card", "--out", str(tmp_path / "CARD.md")]) == 0
    text = (tmp_path / "CARD.md").read_text()
    for family in skills.FAMILIES.values():
        section = text.partition(f"### {family.name}: {family.skill}/{family.domain}\n")[2].partition("\n### ")[0]
        rows = [line for line in section.splitlines() if line.startswith("| ")]
        assert [row.split(" | ")[0].strip("| ") for row in rows] == [
            "level",
            "---",
            "1",
            "2",
            "3",
            "4",
            "5",
            "6 (beyond)",
        ]
        assert f"Version {family.version};" in section
        capacity = family.capacity(1)
        assert ("more than 1,000" if capacity is None else f"{capacity:,}") in rows[2]
    assert "What is ours" in text
    assert "among up to\n50 items" in text
    section = text.partition("### worked_sums: ")[2]
    header, _, first = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| ")][:3]
    drawn = islice(generation.problems(skills.FAMILIES["worked_sums"], 1, seed=0), 50)
    answers = Counter(map(skills.FAMILIES["worked_sums"].answer, drawn))
    assert answers.most_common(1)[0][0] == "none"
    assert dict(zip(header, first, strict=True))["constant"] == f"{answers['none'] / 50:.2g}"


class TestHarness:
    """The task folder in lm-evaluation-harness itself."""

    @pytest.mark.parametrize("rendering", ["compact", "chat"])
    def test_the_harness_loads_the_tasks_and_scores_gold_and_wrong_responses(
        self, tmp_path: Path, rendering: str
    ) -> None:
        pytest.importorskip("lm_eval")
        from lm_eval.api.model import LM
        from lm_eval.evaluator import evaluate
        from lm_eval.tasks import TaskManager

        cells = ("--skills", "calculation,simulation", "--domains", "physics,non_reasoning_qa")
        assert make(tmp_path, *cells, "--n", "2", "--levels", "1-2", "--lm-eval", "--rendering", rendering) == 0
        gold = {line["prompt"]: line["response"] for line in read(tmp_path / "prompts.jsonl")}

        class Oracle(LM):
            def __init__(self, responses: dict[object, object]) -> None:
                super().__init__()
                self.responses = responses

            def generate_until(self, requests: list[object]) -> list[str]:  # type: ignore[override]
                return [f"so ANS 8 or \\boxed{{8}} then {self.responses[request.args[0]]}" for request in requests]  # type: ignore[attr-defined]

            def loglikelihood(self, requests: list[object]) -> list[tuple[float, bool]]:  # type: ignore[override]
                raise NotImplementedError

            loglikelihood_rolling = loglikelihood  # type: ignore[assignment]

        tasks = TaskManager(include_path=str(tmp_path / "lm_eval"), include_defaults=False).load(["mechprobe_skills"])
        right = evaluate(lm=Oracle(gold), task_dict=tasks, bootstrap_iters=0)
        assert len(right["results"]) == 5  # the group and four cells
        assert {row["exact_match,answer"] for row in right["results"].values()} == {1.0}
        assert {count["effective"] for count in right["n-samples"].values()} == {4}
        wrong = {prompt: "ANS 99999 \\boxed{99999}" for prompt in gold}
        tasks = TaskManager(include_path=str(tmp_path / "lm_eval"), include_defaults=False).load(["mechprobe_skills"])
        missed = evaluate(lm=Oracle(wrong), task_dict=tasks, bootstrap_iters=0)
        assert {row["exact_match,answer"] for row in missed["results"].values()} == {0.0}
