"""What several sampled responses to each problem say: pass@k, majority, repetition, and accuracy against a token budget."""

from collections import Counter
from collections.abc import Sequence
from math import comb
from statistics import fmean

from mechprobe.evals.result import BudgetPoint, SampledOutcomes
from mechprobe.evals.scorers.answer_part import answer_part
from mechprobe.evals.scorers.rules import Scorer
from mechprobe.evals.tasks import Task
from mechprobe.records import Outcome
from mechprobe.statistics import clustered_interval

N_GRAM = 4
"""Length of the token sequences whose repetition is counted."""
_HALVINGS = 5
"""Token budgets of the curve: the limit, and half of the one before."""


def pass_at_k(n: int, right: int, k: int) -> float:
    """Unbiased estimate of the probability that at least one of k responses is right, from n of which ``right`` are.

    It is 1 − C(n − right, k) / C(n, k) (arXiv 2107.03374, equation 1), computed in whole numbers.

    Raises:
        ValueError: k is not between 1 and n.
    """
    if not 1 <= k <= n:
        raise ValueError(f"pass@{k} needs 1 to {n} responses to each problem")
    return 1.0 - comb(n - right, k) / comb(n, k)


def majority_right(answers: Sequence[str | None], right: Sequence[bool]) -> float:
    """Expected rightness of the most frequent answer (arXiv 2203.11171), where a tie is broken at random.

    A response without an answer (None) has no vote. All right responses give the same answer, however they write it, because
    the scorer found them equal to the right one. Without any vote the majority is not right.
    """
    votes = Counter(
        "" if good else f"={answer}" for answer, good in zip(answers, right, strict=True) if good or answer is not None
    )
    most = max(votes.values(), default=0)
    tied = [answer for answer, count in votes.items() if count == most]
    return tied.count("") / len(tied) if tied else 0.0


def repetition(token_ids: Sequence[int], n: int = N_GRAM) -> float | None:
    """Share of repeated n-grams in a response, 1 − distinct / all (seq-rep-n of arXiv 1908.04319); None below n tokens."""
    grams = [tuple(token_ids[place : place + n]) for place in range(len(token_ids) - n + 1)]
    return 1.0 - len(set(grams)) / len(grams) if grams else None


def budgets(limit: int) -> list[int]:
    """Token budgets up to the limit of a task: the limit, its half and so on, ascending."""
    return sorted({max(1, limit >> step) for step in range(_HALVINGS)})


def budget_curve(outcomes: Sequence[Outcome], limit: int) -> list[BudgetPoint]:
    """For every budget, the shares of all responses that are right within it, and that end within it.

    A response that needs more tokens than the budget, or that was cut at the limit, is neither.
    """
    ended = [record for record in outcomes if not record.cut]
    curve = []
    for budget in budgets(limit):
        inside = [record for record in ended if record.n_response_tokens <= budget]
        right = sum(record.outcome == "right" for record in inside)
        curve.append(BudgetPoint(budget, right / len(outcomes), len(inside) / len(outcomes)))
    return curve


def sampled_outcomes(task: Task, problems: Sequence[Sequence[Outcome]]) -> SampledOutcomes:
    """The numbers of one model on one task. ``problems`` holds the outcomes of every problem, of equally many responses."""
    draws = len(problems[0])
    right = [[record.outcome == "right" for record in problem] for problem in problems]
    every = [record for problem in problems for record in problem]
    sizes = [1 << power for power in range(draws.bit_length()) if 1 << power <= draws]
    repeated = [share for share in (repetition(record.response_ids) for record in every) if share is not None]
    return SampledOutcomes(
        n=draws,
        pass_at={k: clustered_interval([pass_at_k(draws, sum(row), k) for row in right]) for k in sizes},
        majority=clustered_interval(
            [
                majority_right([_answer(task, record) for record in problem], row)
                for problem, row in zip(problems, right, strict=True)
            ]
        ),
        repetition=fmean(repeated) if repeated else float("nan"),
        budgets=budget_curve(every, task.max_new_tokens),
    )


def _answer(task: Task, record: Outcome) -> str | None:
    """The answer for which a response votes; None for an unparsed one."""
    if record.outcome == "unparsed":
        return None
    if not isinstance(task.scorer, Scorer):
        return str(record.chosen)
    return task.scorer.answer(answer_part(record.response, task.think) or "")
