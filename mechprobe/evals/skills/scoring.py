r"""Score the responses to skill items: the final answer, and apart from it the behaviour that the paper asks for.

The paper (arXiv 2512.24063) states two rules that contradict each other. Appendix A.1 reads only the final boxed answer:
``boxed_correct``. Section 3.1 counts fact retrieval only if the right theorem is used, and a diagnosis only if the self-check
is explicit: ``behaviour_ok``. ``strict`` needs both. For the other skills, section 3.1 asks nothing more; there ``behaviour_ok``
is None and ``strict`` equals ``boxed_correct``. So it is for the lab's two families of these skills, whose traces have no words
for a rule or a step. How the behaviour is read is ours (`mechprobe.evals.skills.behaviour`).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from mechprobe.errors import InputError
from mechprobe.evals.scorers.answer_part import answer_part
from mechprobe.evals.scorers.final_answer import (
    NONE,
    Diagnosis,
    FinalAnswer,
    final_answer,
    form_of,
    judge_answer,
    read_diagnosis,
)
from mechprobe.evals.skills.behaviour import named_rule, named_step
from mechprobe.evals.skills.fact_retrieval import known_rules
from mechprobe.evals.skills.item import SkillItem
from mechprobe.evals.skills.labels import read_item
from mechprobe.evals.skills.registry import CHAT
from mechprobe.evals.skills.summary import ItemScore, SkillScores, summarize
from mechprobe.records import Outcome, Sample, read_jsonl
from mechprobe.types import Finish


@dataclass(frozen=True, slots=True)
class SkillScore:
    """The verdicts on one response.

    Attributes:
        boxed_correct: Whether the final answer is right.
        behaviour_ok: Whether the response names the right rule (fact retrieval), or says outside of its final answer which step
            is wrong, or that none is, and is right (diagnostic); None where nothing of this kind is asked.
        strict: ``boxed_correct`` and, where it is asked, ``behaviour_ok``.
        parsed: Whether a final answer can be read; False for a response that was cut.
        cut: Whether the response was cut at its limit or never left its thinking block. Nothing in it is scored.
        detected: Diagnostic: whether the final answer says rightly that there is an error, or that there is none. Else None.
        localized: Diagnostic items with an error: whether the final answer gives the right step. Else None.
        corrected: Diagnostic items with an error whose answer has a right value: whether the final answer gives both. Else None.
    """

    boxed_correct: bool
    behaviour_ok: bool | None
    strict: bool
    parsed: bool
    cut: bool
    detected: bool | None = None
    localized: bool | None = None
    corrected: bool | None = None


def score_response(item: SkillItem, response: str, finish: Finish = "stop") -> SkillScore:
    """Score one response, compact or chat; a pure function.

    Args:
        item: The item that was asked.
        response: Text of the response. What stands before the end of a thinking block is not read.
        finish: How the response ended.
    """
    part = None if finish in ("length", "unfinished") else answer_part(response)
    cut, part = part is None, part or ""
    found = final_answer(part)
    verdict = None if found is None else judge_answer(found.text, item.answer, form_of(item.answer))
    diagnosis = _diagnosis(item, found)
    behaviour = _behaviour(item, found.rest if found else part)
    return SkillScore(
        boxed_correct=verdict is True,
        behaviour_ok=behaviour,
        strict=verdict is True and behaviour is not False,
        parsed=verdict is not None,
        cut=cut,
        **diagnosis,
    )


def _behaviour(item: SkillItem, text: str) -> bool | None:
    if item.answer_form == "diagnosis":
        gold = read_diagnosis(item.answer)
        assert gold is not None, "the registry checks the answers of its families"
        return named_step(text) == (NONE if gold.step is None else gold.step)
    if item.rule is None:
        return None
    rules = known_rules(item.domain) | {item.rule: item.rule_aliases}
    if item.rendering == CHAT:  # in prose, an upper-case OR or STEP is no rule
        rules = {rule: [alias for alias in aliases if not alias.isupper()] for rule, aliases in rules.items()}
    return named_rule(text, rules) == item.rule


def _diagnosis(item: SkillItem, found: FinalAnswer | None) -> dict[str, bool | None]:
    if item.skill != "diagnostic":
        return {}
    gold = read_diagnosis(item.answer)
    assert gold is not None, "the registry checks the answers of its families"
    said: Diagnosis | None = None if found is None else read_diagnosis(found.text)
    has_error = gold.step is not None
    located = said is not None and said.step == gold.step
    return {
        "detected": said is not None and (said.step is not None) == has_error,
        "localized": located if has_error else None,
        "corrected": located and said == gold if gold.value is not None else None,
    }


def read_items(path: Path | str) -> dict[str, SkillItem]:
    """The items of a tasks file by id.

    Raises:
        InputError: The file cannot be read, a line is no skill item, or an id is used twice; the message names file and line.
    """
    items: dict[str, SkillItem] = {}
    for number, line in read_jsonl(path):
        item = read_item(line, f"{path}:{number}")
        if item.id in items:
            raise InputError(f"{path}:{number}: the id '{item.id}' is used by an earlier line; ids must be unique.")
        items[item.id] = item
    return items


def score_items(items_by_id: Mapping[str, SkillItem], outcomes: Iterable[Outcome]) -> SkillScores:
    """Score the outcomes of one model on skill items; several sampled responses to an item are several draws.

    Raises:
        InputError: An outcome belongs to no item, or the outcomes are of several models.
    """
    outcomes = list(outcomes)
    models = {outcome.model for outcome in outcomes}
    if len(models) > 1:
        raise InputError(f"Outcomes of one model are scored at a time, not of {', '.join(sorted(models))}; select one.")
    scored = []
    for outcome in outcomes:
        item = items_by_id.get(outcome.sample_id)
        if item is None:
            raise InputError(
                f"There is no skill item with the id '{outcome.sample_id}'; give the tasks file from which it was evaluated."
            )
        score = score_response(item, outcome.response, outcome.finish)
        scored.append(_labelled(item, score, outcome.draw))
    return summarize(scored)


def n_asked_otherwise(items_by_id: Mapping[str, SkillItem], samples: Iterable[Sample]) -> int:
    """Number of the samples that were asked with another prompt than their item has, for example in another rendering."""
    return sum(sample.id in items_by_id and sample.prompt != items_by_id[sample.id].prompt for sample in samples)


def _labelled(item: SkillItem, score: SkillScore, draw: int) -> ItemScore:
    names = ("id", "skill", "domain", "family", "level", "split", "kind", "chance")
    labels, verdicts = (
        {name: getattr(item, name) for name in names},
        {name: getattr(score, name) for name in score.__slots__},
    )
    return ItemScore(draw=draw, **labels, **verdicts)
