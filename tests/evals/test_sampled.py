"""Several responses to each sample: estimators by hand, outcomes of several draws, and the evaluate stage."""

from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, strategies as st

from mechprobe.cli.stage_lines import accuracy_lines, sampled_lines
from mechprobe.errors import ConfigError, InputError
from mechprobe.evals.answering import run_tasks
from mechprobe.evals.choice import ChoiceItem, MultipleChoice
from mechprobe.evals.config import ChoiceConfig, EvaluateConfig, SamplingConfig
from mechprobe.evals.result import EvaluationSummary
from mechprobe.evals.sampled import budget_curve, budgets, majority_right, pass_at_k, repetition, sampled_outcomes
from mechprobe.evals.scorers.parse import scorer
from mechprobe.evals.stage import evaluate_outcomes, load_outcomes, tasks_fingerprint
from mechprobe.evals.summary import summarize
from mechprobe.evals.tasks import Task, load_tasks
from mechprobe.models.family import ModelFamily
from mechprobe.records import Outcome, OutcomeName, Outcomes, Sample
from mechprobe.run_config import RunConfig

HOT = SamplingConfig(n=4, temperature=1.0, seed=3)
VERDICTS: dict[str, OutcomeName] = {"R": "right", "W": "wrong", "U": "unparsed", "C": "unparsed"}


def drawn(model: str, sample: str, codes: str, responses: tuple[str, ...] = (), tokens: int = 5) -> list[Outcome]:
    """Outcomes of one sample by draw, from their codes."""
    texts = responses or tuple(codes)
    return [
        Outcome(sample, "t", model, VERDICTS[code], text, tokens, draw=draw, finish="length" if code == "C" else "stop")
        for draw, (code, text) in enumerate(zip(codes, texts, strict=True))
    ]


@given(st.integers(1, 8), st.data())
def test_pass_at_k_is_the_share_of_subsets_with_a_right_response(n: int, data: st.DataObject) -> None:
    right, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    subsets = list(combinations([index < right for index in range(n)], k))
    assert pass_at_k(n, right, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


def test_pass_at_k_by_hand() -> None:
    assert pass_at_k(4, 1, 2) == 0.5  # 1 − C(3, 2) / C(4, 2)
    assert pass_at_k(10, 3, 1) == pytest.approx(0.3)
    assert (pass_at_k(4, 0, 4), pass_at_k(4, 1, 4)) == (0.0, 1.0)
    with pytest.raises(ValueError, match="1 to 4 responses"):
        pass_at_k(4, 1, 5)


@pytest.mark.parametrize(
    ("answers", "right", "expected"),
    [
        (("7", "7", "9"), (True, True, False), 1.0),
        (("7", "9", "9"), (True, False, False), 0.0),
        (("7", "9"), (True, False), 0.5),
        (("7", "8", "9"), (True, False, False), 1 / 3),
        (("1/2", "0.5", "9"), (True, True, False), 1.0),  # the scorer found both equal to the right answer
        ((None, None, "7"), (False, False, True), 1.0),
        ((None, None), (False, False), 0.0),
        (("9", None, None), (False, False, False), 0.0),
    ],
)
def test_the_majority_counts_ties_by_their_expected_value(
    answers: tuple[str | None, ...], right: tuple[bool, ...], expected: float
) -> None:
    assert majority_right(answers, right) == pytest.approx(expected)


def test_repetition_and_budgets_by_hand() -> None:
    assert repetition((1, 2, 3, 4, 1, 2, 3, 4)) == pytest.approx(1 / 5)  # 1234 twice, 2341, 3412, 4123
    assert repetition((1, 1, 1, 1, 1)) == 0.5
    assert repetition((1, 2, 3)) is None
    assert (budgets(64), budgets(3)) == ([4, 8, 16, 32, 64], [1, 3])
    made = [
        *drawn("rl", "a", "R", tokens=4),
        *drawn("rl", "b", "R", tokens=5),
        *drawn("rl", "c", "C", tokens=8),
        *drawn("rl", "d", "W", tokens=2),
    ]
    assert budget_curve(made, 8) == [(1, 0.0, 0.0), (2, 0.0, 0.25), (4, 0.25, 0.5), (8, 0.5, 0.75)]


def test_the_numbers_of_a_task_by_hand() -> None:
    samples = tuple(Sample(name, "t", "?", "7") for name in "ab")
    task = Task("t", samples, scorer("numeric"), 8, sampling=HOT)
    problems = [
        drawn("rl", "a", "RRWW", ("7", "so 7.0", "8", "9")),
        drawn("rl", "b", "RWWU", ("7", "9", "9.0", "none")),
    ]
    found = sampled_outcomes(task, problems)
    assert found.n == 4
    assert {k: round(row.value, 6) for k, row in found.pass_at.items()} == {
        1: 0.375,
        2: pytest.approx((5 / 6 + 1 / 2) / 2, abs=1e-6),
        4: 1.0,
    }
    assert found.majority[0] == 0.5  # 7 of a, 9 of b
    assert found.pass_at[1].n == found.majority.n == 2


@pytest.mark.parametrize(
    ("spec", "text", "answer"),
    [
        ("numeric", "It is 1,000.", "1000"),
        ("numeric", "It is 1000.0", "1000"),
        ("letter", "The answer is (b).", "B"),
        ("exact", " yes \n", "yes"),
        ("final:####", "so #### 1 2", "12"),
        ("numeric", "no number", None),
    ],
)
def test_the_answer_that_a_response_votes_for(spec: str, text: str, answer: str | None) -> None:
    assert scorer(spec).answer(text) == answer


def made_outcomes() -> Outcomes:
    records = []
    for sample, base, tuned in (
        ("a", "WWWW", "RRRW"),
        ("b", "RWWW", "WRRR"),
        ("c", "RRWW", "RRRR"),
        ("d", "WWWW", "RRWW"),
    ):
        records += [*drawn("base", sample, base), *drawn("rl", sample, tuned)]
    return Outcomes(records)


def test_outcomes_of_several_draws() -> None:
    outcomes = made_outcomes()
    assert [record.draw for record in outcomes.draws("rl", "t", "b")] == [0, 1, 2, 3]
    assert outcomes.share_right("rl", "t") == [0.75, 0.75, 1.0, 0.5]
    assert outcomes.right_draws("base", "t", ["b"]).tolist() == [[True, False, False, False]]
    assert (outcomes.kept("rl", "t", "b").draw, outcomes.kept("base", "t", "a").draw) == (1, 0)
    with pytest.raises(InputError, match="has 4 sampled responses to sample a of t"):
        outcomes.record("rl", "t", "a")
    with pytest.raises(InputError, match="has 4 sampled responses"):
        outcomes.right("rl", "t")
    with pytest.raises(InputError, match="no outcome of model sft"):
        outcomes.share_right("sft", "t")
    with pytest.raises(InputError, match="Sample d of t has 3 responses of model rl, and others have 4"):
        Outcomes(outcomes.records[:-1]).share_right("rl", "t")


def test_gained_by_shares_of_right_responses() -> None:
    outcomes = made_outcomes()
    assert outcomes.gained("t", base="base", tuned="rl") == ["a", "b"]
    assert outcomes.gained("t", base="base", tuned="rl", tuned_at_least=0.5) == ["a", "b", "d"]
    assert outcomes.gained("t", base="base", tuned="rl", base_at_most=0.5) == ["a", "b", "c"]
    assert outcomes.gained("t", base="base", tuned="rl", base_at_most=0.0) == ["a"]


def test_a_summary_of_draws_is_clustered_and_paired() -> None:
    task = Task("t", tuple(Sample(name, "t", "?", "R") for name in "abcd"), scorer("exact"), 8, sampling=HOT)
    summary = summarize(made_outcomes(), [task], EvaluateConfig())
    assert summary.accuracy["rl"]["t"].value == 0.75
    assert summary.accuracy["rl"]["t"].n == 4
    test = summary.mcnemar["rl"]["t"]
    assert (test.gained, test.lost, test.n) == (4, 0, 4)
    assert test.p == pytest.approx(2 / 16)  # changes of 3, 2, 2 and 2 of 4 responses; only ++++ and −−−− reach the sum
    assert test.difference is not None
    assert test.difference.value == pytest.approx(9 / 16)
    text = "\n".join([*accuracy_lines(summary), *sampled_lines(summary)])
    for part in ("Accuracy (avg@4) in %", "pass@2", "pass@4", "maj@4", "repeated 4-grams", "token budget"):
        assert part in text


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n": 4}, "sampling.n is 4 at temperature 0.*would be equal"),
        ({"top_p": 0.9}, "sampling.top_p is 0.9 at temperature 0"),
        ({"top_k": 5}, "sampling.top_k is 5 at temperature 0"),
    ],
)
def test_settings_that_greedy_decoding_would_ignore_are_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SamplingConfig(**settings)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=message):
        RunConfig.build(None, [f"tasks.sampling.{name}={value}" for name, value in settings.items()])
    assert SamplingConfig(temperature=1.0, **settings).temperature == 1.0  # type: ignore[arg-type]


def test_the_seed_of_the_run_reaches_the_sampling(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text('{"id": "a", "prompt": "1+1=", "answer": "2"}\n')
    given = [f"tasks.file={path}", "tasks.sampling.n=2", "tasks.sampling.temperature=0.5"]
    (task,) = RunConfig.build(None, given, seed=7).load_tasks()
    assert task.sampling == SamplingConfig(n=2, temperature=0.5, seed=7)
    (task,) = RunConfig.build(None, [*given, "tasks.sampling.seed=1"], seed=7).load_tasks()
    assert task.sampling.seed == 1
    (greedy,) = load_tasks(path)
    assert tasks_fingerprint([replace(greedy, sampling=SamplingConfig(seed=9))]) == tasks_fingerprint([greedy])
    assert tasks_fingerprint([task]) != tasks_fingerprint([greedy])


@pytest.fixture(scope="module")
def family(llama_family: dict[str, Path]) -> ModelFamily:
    return ModelFamily.load(llama_family)


def test_draws_follow_each_other_and_do_not_depend_on_batches(family: ModelFamily) -> None:
    items = {"q": ChoiceItem("which?", ("x", "y"), 0)}
    words = MultipleChoice(ChoiceConfig(), items, generated=True)
    options = MultipleChoice(ChoiceConfig(), items)
    samples = tuple(Sample(name, "t", f"{name}?", "1") for name in ("ab", "c", "defg"))
    tasks = [
        Task("t", samples, scorer("numeric"), 6, sampling=HOT),
        Task("words", (words.sample("q", "words"),), words, 6, sampling=HOT),
        Task("options", (options.sample("q", "options"),), options, 6, sampling=HOT),
    ]
    found = run_tasks(family["rl"], tasks)
    assert [(r.sample_id, r.draw) for r in found if r.task == "t"] == [(s.id, d) for s in samples for d in range(4)]
    assert [(r.draw, len(r.chosen)) for r in found if r.task == "words"] == [(d, 2) for d in range(4)]
    assert [r.draw for r in found if r.task == "options"] == [0]
    assert len({r.response for r in found if r.sample_id == "ab"}) > 1
    small = run_tasks(family["rl"], tasks[:1], batch_size=1)
    assert [r.response_ids for r in small] == [r.response_ids for r in found if r.task == "t"]
    assert run_tasks(family["rl"], [replace(tasks[0], samples=samples[1:])], batch_size=2) == found[4:12]


def test_the_stage_writes_every_draw(family: ModelFamily, tmp_path: Path) -> None:
    samples = tuple(Sample(name, "t", f"{name}?", "1") for name in ("ab", "c"))
    task = Task("t", samples, scorer("numeric"), 6, sampling=HOT)
    made = evaluate_outcomes(family, [task], tmp_path / "e")
    assert len(made.records) == 3 * 2 * 4
    assert load_outcomes(tmp_path / "e").right_draws("rl", "t").tolist() == made.right_draws("rl", "t").tolist()
    summary = EvaluationSummary.load(tmp_path / "e" / "summary.json")
    assert set(summary.sampled) == {"base", "sft", "rl"}
    assert list(summary.sampled["rl"]["t"].pass_at) == [1, 2, 4]
    assert summary.sampled["rl"]["t"].pass_at[1] == pytest.approx(summary.accuracy["rl"]["t"])
    assert np.isfinite(summary.sampled["rl"]["t"].repetition)
    with pytest.raises(Exception, match="other settings"):
        evaluate_outcomes(family, [replace(task, sampling=HOT.replace(seed=4))], tmp_path / "e")
