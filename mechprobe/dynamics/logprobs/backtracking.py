"""Backtracking in generated text: how often models check or take back a step, and whether answers are right more often where they do.

A model may only *imitate* the words, or use them (*internalisation*). The label of an arm, from base to its last evaluated model:

* ``internalisation``: the words become more frequent, accuracy rises, and at the end responses with such a word are right more
  often than those without one (intervals of all three above 0).
* ``imitation``: the words become more frequent, and the interval of the gain of accuracy holds 0 or less and ends at or below
  ``logprobs.flat``.
* ``no rise``: the interval of the change of frequency ends at or below 0, or no response of either model has such a word.
* ``cannot be told``: everything else.

P(right | word) − P(right | none) is taken within each task and weighted by its responses with a word, so that tasks in which models
check more do not decide. Within a task the two kinds of responses still answer different prompts, and models check hard prompts
more, so the difference describes and is no effect. Accuracies and their change have `clustered_interval` and `clustered_difference`,
which do not shrink to nothing where all responses are alike; the other intervals are bootstraps over prompts. Words, rule and
thresholds are ours.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from mechprobe.dynamics.checkpoints import ArmSteps
from mechprobe.dynamics.logprobs.classes import word_pattern
from mechprobe.dynamics.logprobs.config import LogprobsConfig
from mechprobe.dynamics.logprobs.result import BacktrackLabel, BacktrackRow, BacktrackVerdict
from mechprobe.dynamics.logprobs.token_table import interval, ratio
from mechprobe.records import Outcomes
from mechprobe.statistics import Interval, cluster_draws, clustered_difference, clustered_interval

LEAST = 10
"""Fewest responses with a word, and fewest without, from which their accuracies are compared (ours)."""
LEAST_PROMPTS = 30
"""Fewest prompts from which an arm has another label than ``cannot be told`` (ours)."""
_TASK_COLUMNS = 4
"""Of each task: responses with a word, right ones among them, responses without one, right ones among them."""


@dataclass(frozen=True)
class _Counts:
    """Sums of one model over its responses, by prompt.

    Attributes:
        words, tokens, right, n, marked: Words found, response tokens, right responses, responses, and responses with a word.
        by_task: ``[prompt task column]``, see `_TASK_COLUMNS`.
    """

    words: Float[ndarray, " prompt"]
    tokens: Float[ndarray, " prompt"]
    right: Float[ndarray, " prompt"]
    n: Float[ndarray, " prompt"]
    marked: Float[ndarray, " prompt"]
    by_task: Float[ndarray, "prompt task column"]


class Backtracking:
    """Words of one class in the responses of evaluated models. Prompts are resampled, the same in every model."""

    def __init__(self, outcomes: Outcomes, models: Sequence[str], config: LogprobsConfig) -> None:
        pattern = word_pattern(config.lists[config.backtrack])
        generated = [record for record in outcomes.records if record.finish and record.model in models]
        self.prompts = sorted({(record.task, record.sample_id) for record in generated})
        self.models = [model for model in models if any(record.model == model for record in generated)]
        self._config = config
        place = {name: index for index, name in enumerate(self.prompts)}
        tasks = {name: index for index, name in enumerate(sorted({task for task, _ in self.prompts}))}
        found = {model: _empty(len(place), len(tasks)) for model in self.models}
        for record in generated:
            counts, prompt = found[record.model], place[record.task, record.sample_id]
            words, right = len(pattern.findall(record.response)), float(record.outcome == "right")
            for column, value in (("words", words), ("tokens", record.n_response_tokens), ("right", right), ("n", 1.0)):
                getattr(counts, column)[prompt] += value
            counts.marked[prompt] += words > 0
            start = 0 if words else 2
            counts.by_task[prompt, tasks[record.task], start : start + 2] += (1.0, right)
        self._counts = found
        self._weights = cluster_draws(np.arange(len(place)), draws=config.draws, seed=[config.seed, 2])

    def rows(self) -> Iterator[BacktrackRow]:
        """The numbers of every model."""
        for model, counts in self._counts.items():
            yield BacktrackRow(
                model=model,
                words=int(counts.words.sum()),
                responses=int(counts.n.sum()),
                with_word=int(counts.marked.sum()),
                per_1k=self._interval(self._frequency(model), int(counts.tokens.sum())),
                accuracy=clustered_interval(counts.right, counts.n),
                right_with=self._given(model, 0),
                right_without=self._given(model, 2),
                difference=self._difference(model),
            )

    def verdict(self, arm: str, course: ArmSteps) -> BacktrackVerdict | None:
        """The label of an arm; None where base or all its checkpoints were not evaluated."""
        base, known = course.models[0], [model for model in course.models[1:] if model in self.models]
        if base not in self.models or not known:
            return None
        last = known[-1]
        frequency = self._interval(self._frequency(last) - self._frequency(base), len(self.prompts))
        accuracy = self._gain(base, last)
        difference = self._difference(last)
        label, reason = self._label(base, last, frequency, accuracy, difference)
        return BacktrackVerdict(
            arm=arm, first=base, last=last, label=label, reason=reason, frequency_change=frequency, accuracy_change=accuracy,
            difference=difference,
        )  # fmt: skip

    def _label(
        self, base: str, last: str, frequency: Interval, accuracy: Interval, difference: Interval
    ) -> tuple[BacktrackLabel, str]:
        if accuracy.n < LEAST_PROMPTS:
            return (
                "cannot be told",
                f"{accuracy.n} prompts were answered by both models, and {LEAST_PROMPTS} are needed",
            )
        if not any(self._counts[model].words.sum() for model in (base, last)):
            return "no rise", f"no response of {base} or {last} has such a word"
        if frequency.high <= 0:
            return "no rise", "the words become rarer"
        if not frequency.low > 0:
            return "cannot be told", "the interval of the change of frequency includes 0"
        if accuracy.low <= 0 and accuracy.high <= self._config.flat:
            return (
                "imitation",
                f"the words become more frequent, and accuracy does not rise by more than {self._config.flat:g}",
            )
        if not accuracy.low > 0:
            return "cannot be told", "the gain of accuracy can be told neither from 0 nor from more"
        if not np.isfinite(difference.value):
            return (
                "cannot be told",
                f"{last} has fewer than {LEAST} responses with or without such a word in tasks that have both",
            )
        if not difference.low > 0:
            return "cannot be told", "responses with such a word are not shown to be right more often"
        return "internalisation", "frequency and accuracy rise, and responses with such a word are right more often"

    def _frequency(self, model: str) -> ndarray:
        """Words per 1,000 tokens, and its bootstrap draws behind it."""
        counts = self._counts[model]
        return 1000 * self._ratio(counts.words, counts.tokens)

    def _gain(self, base: str, last: str) -> Interval:
        """Change of the share of right responses over the prompts that both models answered."""
        one, two = self._counts[base], self._counts[last]
        both = (one.n > 0) & (two.n > 0)
        return clustered_difference(one.right[both] / one.n[both], two.right[both] / two.n[both])

    def _ratio(self, totals: ndarray, counts: ndarray) -> ndarray:
        """Value and draws of a ratio of sums over prompts."""
        return ratio(*(np.concatenate([[part.sum()], self._weights @ part]) for part in (totals, counts)))

    def _given(self, model: str, start: int) -> Interval:
        """Share of right responses among those with a word (0) or without one (2)."""
        part = self._counts[model].by_task[..., start : start + 2].sum(axis=1)
        return clustered_interval(part[:, 1], part[:, 0])

    def _difference(self, model: str) -> Interval:
        """P(right | word) − P(right | none) within tasks; NaN with too few responses of either kind."""
        cells = self._counts[model].by_task
        whole = cells.sum(axis=0)
        both = (whole[:, 0] > 0) & (whole[:, 2] > 0)
        n_with, n_without = whole[both, 0].sum(), whole[both, 2].sum()
        if min(n_with, n_without) < LEAST:
            return Interval(float("nan"), float("nan"), float("nan"), int(n_with))
        drawn = (self._weights @ cells.reshape(len(cells), -1)).reshape(-1, *whole.shape)
        values = _within(np.concatenate([whole[None], drawn]))
        return self._interval(values, int(n_with))

    def _interval(self, values: ndarray, n: int) -> Interval:
        return interval(values[0], values[1:], n)


def _empty(n_prompts: int, n_tasks: int) -> _Counts:
    words, tokens, right, n, marked = np.zeros((5, n_prompts))
    return _Counts(words, tokens, right, n, marked, np.zeros((n_prompts, n_tasks, _TASK_COLUMNS)))


def _within(cells: Float[ndarray, "draw task column"]) -> Float[ndarray, " draw"]:
    """Differences within tasks, weighted by the responses with a word, over the tasks that have both kinds."""
    with_word, without = ratio(cells[..., 1], cells[..., 0]), ratio(cells[..., 3], cells[..., 2])
    both = (cells[..., 0] > 0) & (cells[..., 2] > 0)
    weight = np.where(both, cells[..., 0], 0.0)
    return ratio((np.where(both, with_word - without, 0.0) * weight).sum(axis=-1), weight.sum(axis=-1))
