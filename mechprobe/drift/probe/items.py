"""The items of a finished evaluate stage with their labels, and what every model scores on them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from mechprobe.drift.probe.scores import ItemScores
from mechprobe.errors import ConfigError, InputError
from mechprobe.evals.skills.item import NEEDED, SkillItem, is_chance
from mechprobe.evals.skills.labels import SkillLabels, labels, read_item
from mechprobe.evals.skills.scoring import score_response
from mechprobe.evals.summary import FORCED
from mechprobe.json_fields import name_field
from mechprobe.records import Outcomes, Sample, read_jsonl


@dataclass(frozen=True)
class Items:
    """Samples with their labels, in the order of the outcomes.

    Attributes:
        samples: The samples.
        labels: Their labels; a sample without one has its task as skill and family, and no domain.
        chance: Share of right answers of a random answerer to each; 0 where no line says it.
        cluster: Samples with one name depend on each other: the forms of one question.
        labelled: Whether every sample has a label.
        asked: Skill items by id, where a behaviour is asked beside the answer: the rule of a fact, the step of an error.
        n_absent: Number of samples that the tasks file does not have; None without a file.
    """

    samples: tuple[Sample, ...]
    labels: tuple[SkillLabels, ...]
    chance: tuple[float, ...]
    cluster: tuple[str, ...]
    labelled: bool
    asked: Mapping[str, SkillItem]
    n_absent: int | None

    @classmethod
    def of(cls, outcomes: Outcomes, tasks_file: Path | str | None = None) -> "Items":
        """The items of outcomes; level, split, chance rate and pair stand in the lines of ``tasks_file``.

        Raises:
            InputError: The file is unusable, has none of the ids, or a line contradicts the family of its id.
        """
        samples = tuple(outcomes.samples[name] for task in outcomes.tasks for name in outcomes.sample_ids(task))
        known, lines, asked = labels(samples), dict[str, Mapping[str, Any]](), dict[str, SkillItem]()
        if tasks_file is not None:
            lines, asked = _read(Path(tasks_file))
            known |= labels(tasks_file)
            if not lines.keys() & outcomes.samples.keys():
                raise InputError(
                    f"No id of the evaluated items is in {tasks_file}; give the tasks file that was evaluated."
                )
        return cls(
            samples,
            tuple(known.get(sample.id) or SkillLabels(sample.task, "", sample.task, None, "") for sample in samples),
            tuple(_chance(lines.get(sample.id, {})) for sample in samples),
            tuple(str(lines.get(sample.id, {}).get("pair") or sample.id) for sample in samples),
            all(sample.id in known for sample in samples),
            asked,
            None if tasks_file is None else sum(sample.id not in lines for sample in samples),
        )

    def all_scores(self, outcomes: Outcomes, models: Sequence[str]) -> dict[str, ItemScores]:
        """The scores of some models by name.

        ``right`` is the verdict of the scorer. Where items ask for a behaviour, ``strict`` needs it beside the right answer, and
        ``behaviour`` counts it alone, on these items only (`mechprobe.evals.skills.scoring`).

        Raises:
            InputError: A sample was not evaluated on a model, or samples of one task have different numbers of responses.
        """
        draws = {task: outcomes.right_draws(models[0], task).shape[1] for task in outcomes.tasks}
        right = [[share for task in outcomes.tasks for share in outcomes.share_right(model, task)] for model in models]
        found = {"right": self._scores(models, np.array(right), max(draws.values()))}
        places = [place for place, sample in enumerate(self.samples) if sample.id in self.asked]
        if places:
            verdicts = np.array([[self._verdicts(outcomes, model, place) for place in places] for model in models])
            strict = np.array(right)
            strict[:, places] = verdicts[:, :, 1]
            found["strict"] = self._scores(models, strict, max(draws.values()))
            shown = np.zeros_like(strict)
            shown[:, places] = verdicts[:, :, 0]
            found["behaviour"] = self._scores(models, shown, max(draws.values())).without_chance().take(places)
        return found

    def _verdicts(self, outcomes: Outcomes, model: str, place: int) -> tuple[float, float]:
        """Shares of the responses of a model to one item that show the behaviour, and that are right with it."""
        sample = self.samples[place]
        found = [
            score_response(self.asked[sample.id], each.response, each.finish)
            for each in outcomes.draws(model, sample.task, sample.id)
        ]
        return sum(bool(each.behaviour_ok) for each in found) / len(found), sum(each.strict for each in found) / len(
            found
        )

    def _scores(self, models: Sequence[str], right: Float[ndarray, "model item"], n_draws: int) -> ItemScores:
        return ItemScores(
            models=tuple(models),
            right=right,
            skill=tuple(label.skill for label in self.labels),
            domain=tuple(label.domain for label in self.labels),
            task=tuple(sample.task for sample in self.samples),
            cluster=self.cluster,
            chance=np.array(self.chance),
            n_draws=n_draws,
        )


def _read(path: Path) -> tuple[dict[str, Mapping[str, Any]], dict[str, SkillItem]]:
    """The lines of a tasks file by id, and the skill items of it that ask for a behaviour beside their answer.

    Raises:
        InputError: The file is unusable, an id is used twice, or a field is wrong; the message names file and line.
    """
    lines, asked = dict[str, Mapping[str, Any]](), dict[str, SkillItem]()
    for number, line in read_jsonl(path):
        where = f"{path}:{number}"
        name = name_field(line, "id", where, default=f"{path.stem}-{number}")
        if name in lines:
            raise InputError(f"{where}: the id '{name}' is used by an earlier line; ids must be unique.")
        lines[name] = line
        if line.keys() >= {*NEEDED}:
            item = read_item(line, where)
            if item.rule is not None or item.answer_form == "diagnosis":
                asked[name] = item
        elif line.get("chance") is not None and not is_chance(line["chance"]):
            raise InputError(f"{where}: 'chance' must be a number from 0 to below 1; correct it.")
    return lines, asked


def _chance(line: Mapping[str, Any]) -> float:
    """The chance rate that a line states; that of its options where it has some; 0 otherwise."""
    options = line.get("options")
    if line.get("chance") is not None:
        return float(line["chance"])
    return 1 / len(options) if isinstance(options, list | dict) and len(options) > 1 else 0.0


def models_of(outcomes: Outcomes, base: str) -> tuple[str, ...]:
    """Base, then the other models, without base under a forced prefix.

    Raises:
        ConfigError: Base was not evaluated, or nothing else was.
    """
    names = [model for model in outcomes.models if model != FORCED.format(model=base)]
    if base not in names:
        raise ConfigError(f"probe.base is '{base}', but the evaluated models are {', '.join(names)}; name one of them.")
    others = tuple(name for name in names if name != base)
    if not others:
        raise ConfigError(f"Only {base} was evaluated; give a model that was trained from it.")
    return (base, *others)
