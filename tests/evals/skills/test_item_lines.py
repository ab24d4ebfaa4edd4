"""Lines of a tasks file that are no skill items are refused in one sentence with file and line, before anything is written."""

import json
from pathlib import Path
from typing import Any

import pytest

from mechprobe.cli import main
from mechprobe.drift.probe.items import Items
from mechprobe.errors import InputError
from mechprobe.evals import skills
from mechprobe.evals.skills.item import SkillItem
from mechprobe.evals.skills.scoring import n_asked_otherwise, read_items
from mechprobe.records import Outcome, Outcomes, Sample, write_jsonl
from mechprobe.stage_folder import Stage

FACT = skills.generate("fact_retrieval", domain="physics", n=1, seed=1, rendering="chat")[0]
SUM = skills.generate("calculation", domain="mathematics", n=1, seed=1, rendering="chat")[0]
ERROR = skills.generate("diagnostic", domain="mathematics", family="worked_sums", n=1, seed=1, rendering="chat")[0]

BAD: list[tuple[SkillItem, dict[str, Any], str]] = [
    (ERROR, {"answer": "heap"}, "no diagnosis"),
    (ERROR, {"answer": "12345:6"}, "no diagnosis"),
    (SUM, {"answer_form": "diagnosis"}, "the skill is calculation"),
    (SUM, {"answer_form": ["word"]}, "'answer_form' must be one of"),
    (FACT, {"rule": 7}, "'rule' must be"),
    (FACT, {"rule": " "}, "'rule' must be"),
    (FACT, {"rule_aliases": 5}, "'rule_aliases' must be a list of names, not 5"),
    (FACT, {"rule_aliases": [5]}, "'rule_aliases' must be"),
    (SUM, {"chance": "abc"}, "'chance' must be a number from 0 to below 1, not 'abc'"),
    (SUM, {"chance": 1.5}, "'chance' must be"),
    (SUM, {"chance": True}, "'chance' must be"),
    (SUM, {"level": "<b>"}, "'level' must be a whole number from 1, not '<b>'"),
    (SUM, {"level": None}, "'level' must be"),
    (SUM, {"skill": "magic"}, "the skill 'magic' is unknown; known are calculation"),
    (SUM, {"domain": "astrology"}, "the domain 'astrology' is unknown"),
    (SUM, {"domain": "physics"}, "is of mathematics"),
    (SUM, {"family": "gcd2"}, "family is 'gcd2'"),
    (SUM, {"family": 3}, "'family' must be"),
    (SUM, {"id": "a\nb"}, "'id'"),
    (SUM, {"answer": ""}, "'answer' must be a text that is not blank"),
    (SUM, {"params": [1]}, "'params' must be an object or null, not a list"),
    (SUM, {"steps": "9-9=0"}, "'steps' must be a list of texts"),
    (SUM, {"guided": "yes"}, "'guided' must be"),
    (SUM, {"step": 0}, "'step' must be"),
]
NAMES = [f"{'-'.join(fields)}-{number}" for number, (_, fields, _) in enumerate(BAD)]


def changed(path: Path, item: SkillItem, fields: dict[str, Any]) -> Path:
    """A tasks file with two good lines, then a changed one."""
    good = [each.to_json() for each in (FACT, SUM, ERROR) if each is not item]
    write_jsonl(path, [*good, item.to_json() | fields])
    return path


def outcomes_of(*items: SkillItem) -> Outcomes:
    samples = [Sample(item.id, item.task, item.prompt, item.answer) for item in items]
    records = [
        Outcome(each.id, each.task, model, "right", "x", 1, finish="stop")
        for model in ("base", "rl")
        for each in samples
    ]
    return Outcomes(records, samples)


@pytest.mark.parametrize(("item", "fields", "words"), BAD, ids=NAMES)
def test_a_wrong_field_is_refused_with_file_and_line(
    item: SkillItem, fields: dict[str, Any], words: str, tmp_path: Path
) -> None:
    path = changed(tmp_path / "tasks.jsonl", item, fields)
    readers = (read_items, lambda path: Items.of(outcomes_of(FACT, SUM, ERROR), path))
    for read in readers:
        with pytest.raises(InputError, match=r"tasks\.jsonl:3") as error:
            read(path)
        assert words in str(error.value)


def test_an_id_that_is_used_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tasks.jsonl"
    write_jsonl(path, [SUM.to_json(), SUM.to_json()])
    for read in (read_items, lambda path: Items.of(outcomes_of(SUM), path)):
        with pytest.raises(InputError, match=r"tasks\.jsonl:2.*earlier line"):
            read(path)


def test_items_of_other_makers_and_plain_tasks_are_read(tmp_path: Path) -> None:
    foreign = SUM.to_json() | {"id": "rg-1", "family": "reasoning_gym"}
    write_jsonl(tmp_path / "tasks.jsonl", [foreign])
    assert read_items(tmp_path / "tasks.jsonl")["rg-1"].family == "reasoning_gym"
    write_jsonl(tmp_path / "tasks.jsonl", [{"prompt": "q", "answer": "a", "chance": "0.5"}])
    plain = Outcomes([Outcome("tasks-1", "t", "base", "right", "a", 1)], [Sample("tasks-1", "t", "q", "a")])
    with pytest.raises(InputError, match=r"tasks\.jsonl:1: 'chance' must be a number"):
        Items.of(plain, tmp_path / "tasks.jsonl")
    write_jsonl(tmp_path / "tasks.jsonl", [{"prompt": "q", "answer": "a", "chance": 0.5}])
    assert Items.of(plain, tmp_path / "tasks.jsonl").chance == (0.5,)  # the id is that of the evaluate stage


def test_a_tasks_file_of_other_items_is_refused_and_missing_items_are_counted(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "tasks.jsonl", [FACT.to_json()])
    with pytest.raises(InputError, match=r"No id of the evaluated items is in .*tasks\.jsonl"):
        Items.of(outcomes_of(SUM), tmp_path / "tasks.jsonl")
    assert Items.of(outcomes_of(SUM, FACT), tmp_path / "tasks.jsonl").n_absent == 1
    assert Items.of(outcomes_of(SUM)).n_absent is None


def test_prompts_of_another_rendering_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    compact = skills.generate("calculation", domain="mathematics", n=1, seed=1, rendering="compact")[0]
    assert compact.id == SUM.id
    evals, outcomes = tmp_path / "evals", outcomes_of(SUM)
    assert n_asked_otherwise({SUM.id: SUM}, outcomes.samples.values()) == 0
    with Stage.open(evals, name="evaluate", config={}, inputs={}, models={}, force=False) as stage:
        write_jsonl(evals / "outcomes.jsonl", outcomes.records)
        write_jsonl(evals / "samples.jsonl", [each.to_json() for each in outcomes.samples.values()])
        stage.finish(outputs=["outcomes.jsonl", "samples.jsonl"], counts={}, results={}, seed=0)
    for item, told in ((SUM, False), (compact, True)):
        write_jsonl(tmp_path / "tasks.jsonl", [item.to_json()])
        assert main(["skills", "score", str(evals), "--tasks", str(tmp_path / "tasks.jsonl"), "--json"]) == 0
        printed = capsys.readouterr()
        assert ("1 of 1 evaluated items have another prompt" in printed.err) is told
        assert set(json.loads(printed.out)) == {"base", "rl"}
