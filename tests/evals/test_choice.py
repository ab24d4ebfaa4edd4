"""Multiple choice: orders, prompts and rules by hand, and log-likelihoods against a naive implementation."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from mechprobe.data.encoding import Ids, PromptEncoder
from mechprobe.data.prompts import Prompt
from mechprobe.errors import InputError
from mechprobe.evals.answering import log_likelihoods, option_pairs, run_tasks
from mechprobe.evals.choice import ChoiceItem, MultipleChoice, decide
from mechprobe.evals.config import ChoiceConfig
from mechprobe.evals.result import EvaluationSummary
from mechprobe.evals.stage import check_lengths, evaluate_outcomes
from mechprobe.evals.summary import position_bias
from mechprobe.evals.tasks import Task
from mechprobe.models.family import ModelFamily
from mechprobe.models.residuals import splice
from mechprobe.records import Outcome, Outcomes, Sample
from mechprobe.types import Site
from tests.builders import build_tokenizer

ITEMS = {
    "q1": ChoiceItem("Which?", ("red", "blue", "a long green"), 1),
    "q2": ChoiceItem("7+5", ("12", "13", "1"), 0),
    "q3": ChoiceItem("A much longer question", ("x", "yy", "zzz"), 2),
}


def encode_pair(tokenizer, prompt: str, continuation: str) -> tuple[Ids, Ids]:
    return PromptEncoder(tokenizer).encode_pair(Prompt("a", prompt), continuation)


def judge(**settings: object) -> MultipleChoice:
    return MultipleChoice(ChoiceConfig(**settings), ITEMS)  # type: ignore[arg-type]


def quiz(**settings: object) -> Task:
    mine = judge(**settings)
    return Task("quiz", tuple(mine.sample(key, "quiz") for key in ITEMS), mine)


@pytest.fixture(scope="module")
def family(llama_family: dict[str, Path]) -> ModelFamily:
    return ModelFamily.load(llama_family)


def test_cyclic_orders_put_every_option_at_every_place_once() -> None:
    orders = judge().orders("q1")
    assert orders == [(0, 1, 2), (1, 2, 0), (2, 0, 1)]
    assert all(sorted(column) == [0, 1, 2] for column in zip(*orders, strict=True))


def test_drawn_orders_are_distinct_seeded_and_begin_with_the_files() -> None:
    for n in (1, 3, 5):
        orders = judge(orders=n).orders("q1")
        assert len(set(orders)) == n
        assert orders[0] == (0, 1, 2)
        assert orders == judge(orders=n).orders("q1")
    assert len(set(judge(orders=100).orders("q1"))) == 6
    drawn = {tuple(judge(orders=3, seed=seed).orders(key)) for seed in range(4) for key in ITEMS}
    assert len(drawn) > 1


def test_prompt_and_continuation_follow_the_order() -> None:
    mine = judge()
    assert mine.prompt("q1", (2, 0, 1)) == "Which?\nA. a long green\nB. red\nC. blue\nAnswer:"
    assert [mine.continuation("q1", (2, 0, 1), option) for option in range(3)] == [" B", " C", " A"]
    bare = judge(show="none", delimiter=": ")
    assert bare.orders("q1") == [(0, 1, 2)]
    assert bare.prompt("q1", (0, 1, 2)) == "Which?"
    assert bare.sample("q1", "t") == Sample("q1", "t", "Which?", ": blue")


@pytest.mark.parametrize(
    ("rows", "rule", "expected"),
    [
        ([[0.9, 0.1], [0.4, 0.6]], "mean", ("right", 0, (0, 1))),
        ([[0.9, 0.1], [0.4, 0.6]], "all", ("wrong", 0, (0, 1))),
        ([[0.9, 0.1], [0.6, 0.4]], "all", ("right", 0, (0, 0))),
        ([[0.4, 0.6], [0.5, 0.5]], "mean", ("wrong", 1, (1, -1))),
        ([[0.6, 0.4], [0.4, 0.6]], "mean", ("wrong", None, (0, 1))),  # a tie
        ([[1.0, 0.0], [0.0, 0.0]], "mean", ("right", 0, (0, -1))),  # one response without a letter
        ([[1.0, 0.0], [0.0, 0.0]], "all", ("wrong", 0, (0, -1))),
        ([[0.0, 0.0], [0.0, 0.0]], "mean", ("unparsed", None, (-1, -1))),
        ([[math.nan, math.nan], [0.9, 0.1]], "mean", ("unparsed", None, (-1, 0))),
    ],
)
def test_decisions_by_hand(rows: list[list[float]], rule: str, expected: tuple[object, ...]) -> None:
    assert decide(np.array(rows), 0, rule) == expected  # type: ignore[arg-type]


def test_normalizing_by_hand() -> None:
    """ln p is −2 for "1" and −3 for "13": the shorter option wins unnormalized, the longer one per token and per character."""
    scores, tokens = [[-9.0, -3.0, -2.0]], [[2, 2, 1]]
    chosen = {
        how: judge(show="none", normalize=how).decide_by_likelihood("q2", scores, tokens).option
        for how in ("none", "tokens", "characters")
    }
    assert chosen == {"none": 2, "tokens": 1, "characters": 1}


def test_option_letters_in_responses_are_votes_for_the_option_shown_at_that_letter() -> None:
    mine = MultipleChoice(ChoiceConfig(), ITEMS, generated=True)
    decision = mine.decide_by_responses(
        "q1", ["B", "the answer is A", "(C)"]
    )  # the three orders show blue at B, A and C
    assert decision == ("right", 1, (1, 1, 1))
    assert mine.decide_by_responses("q1", ["B", "dunno", "J"]) == ("right", 1, (1, -1, -1))


def test_position_bias_by_hand() -> None:
    """One model always answers A; the other always finds the right option."""
    task = quiz()
    always_a = [Outcome(key, "quiz", "a", "wrong", "", 0, (), (0, 1, 2)) for key in ITEMS]
    finds = [Outcome(key, "quiz", "b", "right", "", 0, (), (item.right,) * 3) for key, item in ITEMS.items()]
    bias = position_bias(Outcomes(always_a + finds), [task])
    assert bias["a"]["quiz"].chosen == [1.0, 0.0, 0.0]
    assert bias["a"]["quiz"].right == pytest.approx([1 / 3] * 3)
    assert bias["a"]["quiz"].recall == [1.0, 0.0, 0.0]
    assert bias["a"]["quiz"].recall_std == pytest.approx(math.sqrt(2) / 3)
    assert bias["a"]["quiz"].consistent == 0.0
    assert bias["b"]["quiz"].recall_std == 0.0
    assert bias["b"]["quiz"].consistent == 1.0
    assert (bias["b"]["quiz"].n_items, bias["b"]["quiz"].n_pairs) == (3, 9)
    assert position_bias(Outcomes(finds), [quiz(show="none")]) == {}


def naive(model: torch.nn.Module, prompt: tuple[int, ...], rest: tuple[int, ...]) -> float:
    """One forward pass over one pair, without padding or cache."""
    with torch.no_grad():
        table = model(input_ids=torch.tensor([[*prompt, *rest]]), use_cache=False).logits[0].double().log_softmax(-1)
    return sum(float(table[len(prompt) - 1 + step, token]) for step, token in enumerate(rest))


@pytest.mark.parametrize("architecture", ["llama_family", "neox_family"])
@pytest.mark.parametrize("show", ["letters", "none"])
def test_log_likelihoods_equal_a_naive_implementation(
    architecture: str, show: str, request: pytest.FixtureRequest
) -> None:
    model = ModelFamily.load(request.getfixturevalue(architecture))["rl"]
    task = quiz(show=show)
    pairs = [
        pair for s in task.samples for row in option_pairs(task, s, PromptEncoder(model.tokenizer)) for pair in row
    ]
    expected = [naive(model.hf, *pair) for pair in pairs]
    for batch_size in (1, 4, 512):
        assert log_likelihoods(model, pairs, batch_size=batch_size) == pytest.approx(expected, abs=1e-4)
    assert len({len(rest) for _, rest in pairs}) == (1 if show == "letters" else 5)


def test_hooks_see_what_they_see_in_generation(family: ModelFamily) -> None:
    """The first forward pass is the left-padded prompt; every later pass is one token of the continuation."""
    model = family["base"]
    pairs = [encode_pair(model.tokenizer, prompt, " abc") for prompt in ("x", "longer")]
    seen = []
    with splice(model.hf, Site(1), lambda resid: (seen.append(tuple(resid.shape[:2])), resid)[1]):
        log_likelihoods(model, pairs)
    assert seen == [(2, 1 + len("longer")), (2, 1), (2, 1), (2, 1)]  # <bos>; the last of " abc" is only predicted


def test_a_token_across_the_boundary_makes_the_continuation_tokenized_alone() -> None:
    tokenizer = build_tokenizer(("AB",))
    whole, border = (tuple(tokenizer(text).input_ids) for text in ("pAB", "pA"))
    assert len(whole) == len(border)  # "AB" is one token, so the ids of "pAB" do not begin with those of "pA"
    assert encode_pair(tokenizer, "pA", "B") == (border, tuple(tokenizer("B", add_special_tokens=False).input_ids))
    assert encode_pair(tokenizer, "p", "AB") == (border[:-1], whole[-1:])


def test_options_without_tokens_or_with_equal_tokens_are_errors(family: ModelFamily) -> None:
    with pytest.raises(InputError, match=r"''.*tokens"):
        encode_pair(family.tokenizer, "a", "")
    items = {"q": ChoiceItem("p", ("é", "ü"), 0)}  # both unknown to the tokenizer
    mine = MultipleChoice(ChoiceConfig(show="none"), items)
    task = Task("t", (mine.sample("q", "t"),), mine)
    with pytest.raises(InputError, match=r"q of task t.*same tokens"):
        check_lengths(family, [task])


def test_an_item_longer_than_the_context_is_an_error(family: ModelFamily) -> None:
    mine = MultipleChoice(ChoiceConfig(show="none"), {"q": ChoiceItem("p" * 60, ("a", "b" * 9), 0)})
    task = Task("t", (mine.sample("q", "t"),), mine)
    with pytest.raises(InputError, match=r"q of task t has 71 tokens.*\b64\b"):
        check_lengths(family, [task])


def test_run_tasks_mixes_generation_and_likelihood_in_task_order(family: ModelFamily) -> None:
    from mechprobe.evals.scorers.parse import scorer

    words = Task(
        "words", tuple(Sample(f"w{i}", "words", p, "x") for i, p in enumerate(("abc", "9"))), scorer("exact"), 4
    )
    spoken = MultipleChoice(ChoiceConfig(), ITEMS, generated=True)
    letter = Task("letter", tuple(spoken.sample(key, "letter") for key in ITEMS), spoken, 3)
    bare = quiz(show="none")
    model = family["rl"]
    found = run_tasks(model, [words, bare, letter])
    assert [(o.task, o.sample_id) for o in found] == [
        (task.name, sample.id) for task in (words, bare, letter) for sample in task.samples
    ]
    assert found[:2] == run_tasks(model, [words])
    for outcome, (key, item) in zip(found[2:5], ITEMS.items(), strict=True):
        scores = [naive(model.hf, *encode_pair(model.tokenizer, item.stem, f" {text}")) for text in item.options]
        best = int(np.argmax(scores))
        assert outcome.outcome == ("right" if best == item.right else "wrong"), key
        assert outcome.response == f" {item.options[best]}"
        assert outcome.chosen == (best,)
        assert len(outcome.response_ids) == outcome.n_response_tokens == 1 + len(item.options[best])
    assert all(len(outcome.chosen) == 3 for outcome in found[5:])


def test_an_outcome_does_not_depend_on_the_other_tasks(family: ModelFamily, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tasks with the same length limit share batches, and another task with a longer limit lengthens no response."""
    from mechprobe.evals import answering
    from mechprobe.evals.scorers.parse import scorer

    def task(name: str, prompts: str, limit: int) -> Task:
        return Task(name, tuple(Sample(f"{name}{p}", name, p, "x") for p in prompts), scorer("exact"), limit)

    short, long, brief = task("short", "abc", 2), task("long", "de", 7), task("brief", "f", 2)
    model, real, calls = family["rl"], answering.generate, []

    def noting(*args: object, **settings: object) -> object:
        calls.append((args[2], settings["max_new_tokens"]))
        return real(*args, **settings)  # type: ignore[arg-type]

    monkeypatch.setattr(answering, "generate", noting)
    found = run_tasks(model, [short, long, brief])
    asked = [([model.tokenizer.decode(ids[1:]) for ids in prompts], limit) for prompts, limit in calls]
    assert asked == [(list("abcf"), 2), (list("de"), 7)]
    assert [(o.task, o.sample_id[-1]) for o in found] == [*(("short", k) for k in "abc"), ("long", "d"), ("long", "e"),
                                                          ("brief", "f")]  # fmt: skip
    assert found == [outcome for alone in (short, long, brief) for outcome in run_tasks(model, [alone])]
    assert max(o.n_response_tokens for o in found if o.task == "long") > 2  # the shorter limit is therefore effective


def test_gained_samples_are_right_in_the_order_of_the_file_too() -> None:
    """Selection runs prompt and response in the order of the file; by log-likelihood the response is the chosen option."""
    spoken = MultipleChoice(ChoiceConfig(), {"sure": ITEMS["q1"], "turned": ITEMS["q1"], "mute": ITEMS["q1"]}, True)
    words = {"sure": ("B", "A", "C"), "turned": ("C", "A", "C"), "mute": ("dunno", "A", "C")}
    records, samples = [], [spoken.sample(key, "t") for key in words]
    for key, responses in words.items():
        decision = spoken.decide_by_responses(key, responses)
        assert decision.outcome == "right"
        records.append(Outcome(key, "t", "rl", "right", responses[0], 1, (1,), decision.chosen))
    for key, settings in (("bare", {"show": "none"}), ("shown", {}), ("close", {"delimiter": ""})):
        mine = MultipleChoice(ChoiceConfig(**settings), {key: ITEMS["q1"]})  # type: ignore[arg-type]
        samples.append(mine.sample(key, "t"))
        records.append(Outcome(key, "t", "rl", "right", samples[-1].answer, 1, (1,), (2, 1, 1)))
    records += [Outcome(record.sample_id, "t", "base", "wrong", "", 0) for record in records]
    assert Outcomes(records, samples).gained("t", base="base", tuned="rl") == ["sure", "bare", "shown", "close"]


def test_a_forced_prefix_stands_between_prompt_and_option(family: ModelFamily) -> None:
    model = family["base"]
    task = quiz(show="none")
    (forced, *_), (clean, *_) = run_tasks(model, [task], prefix="So"), run_tasks(model, [task])
    scores = [naive(model.hf, *encode_pair(model.tokenizer, "Which?So", f" {text}")) for text in ITEMS["q1"].options]
    assert forced.chosen == (int(np.argmax(scores)),)
    assert forced.response.startswith("So ")
    assert not clean.response.startswith("So")


def test_the_stage_writes_the_position_bias(family: ModelFamily, tmp_path: Path) -> None:
    outcomes = evaluate_outcomes(family, [quiz()], tmp_path / "e")
    assert all(len(record.chosen) == 3 for record in outcomes.records)
    summary = EvaluationSummary.load(tmp_path / "e" / "summary.json")
    assert summary.position_bias == position_bias(outcomes, [quiz()])
    assert set(summary.position_bias) == {"base", "sft", "rl"}
    assert outcomes.samples["q1"].prompt.endswith("Answer:")
