r"""Option letters as chat models write them, and words that are no letters."""

import pytest
from hypothesis import given, strategies as st

from mechprobe.evals.scorers.letters import LETTERS, option_letter
from mechprobe.evals.scorers.parse import scorer


@pytest.mark.parametrize(
    "response",
    [
        "B", "b", "(B)", "B.", "B)", "[B]", "**B**", "*B*", "`B`", '"B"', "$B$", "\uff22", "\uff08\uff22\uff09", "\u3010B\u3011",
        "\\text{B}", "\\mathbf{B}", "$\\text{B}$", "\\(\\mathrm{B}\\)", "\\boxed{B}", "\\boxed{\\text{(B)}}",
        "\\boxed{\\textbf{(B)}\\ 12}", "$\\boxed{\\text{B. 12}}$", "\\boxed{\\text{Option B}}", "so $\\boxed{\\mathbf{B}}$.",
        "option B", "Option (B)", "Option B is correct.", "The correct answer is: **(B) foo**", "**Answer:** B", "**Answer: B**",
        "Answer: **B**", "**Answer**: **B. Paris**", "The correct option is **B**.", "I would choose B.", "I choose option (B)",
        "I'd go with B.", "B is correct", "(B) is the correct answer", "So, B is the right one", "Answer: b", "the answer is b.",
        "### Answer\n\nB", "**Answer:**\n\n**B**", "7 is prime.\n\nB", "7 is prime.\n\n**B.** Paris", "7 is prime.\n\nB) 12",
        "I think it is B.", "It's B", "\u7b54\u6848\uff1aB", "\u7b54\u6848\u662f B", "The answer is: B) Paris", "Answer: B, because it is",
        "B - Paris", "B: Paris", "B because it is", "(b) Paris", "b) Paris", "answer=B", "ANSWER: B", "<answer>B</answer>",
        "The answer is \\(B\\)", "My final answer is **\\boxed{B}**", "Sure! The correct answer is:\n\n**B) Paris**",
        "A is wrong. Option A is not right. Option B is right", "The answer is not (A) but option B", "The best choice is B",
        "Final Answer: The final answer is B. I hope it is correct.", "A. Rome\nB. Paris\nC. Bonn\nThe answer is B",
        "B\n\nWhich one is even?\nA. 3\nB. 5\nAnswer: C", "Answer: B\n\nQuestion: Which is even?\nAnswer: C",
        "B<|im_end|>\n<|im_start|>user\nA?", "<think>A? No.</think>\n\nB", "A?</think>The answer is B",
    ],
)  # fmt: skip
def test_ways_to_answer_b(response: str) -> None:
    assert scorer("letter").score(response, "B") == "right"


@pytest.mark.parametrize(
    "response",
    [
        "A dog, I think", "The answer is a dog", "I think so", "Answer: I think so", "Answer: A *dog*", "Answer: Berlin",
        "Vitamin C is good", "Answer: Both A and B", "All of the above", "", "An answer. A dog", "The answer is not A",
        "A. Rome\nB. Paris\nC. Bonn", "I am not sure.", "Answer: d'accord", "<think>The answer is B",
    ],
)  # fmt: skip
def test_no_letter(response: str) -> None:
    assert scorer("letter").score(response, "A") == "unparsed"


WAYS = [
    "{}", "({})", "**{}**", "**{}.** text", "\\text{{{}}}", "\\boxed{{{}}}", "\\boxed{{\\text{{({})}}}}", "Answer: {}",
    "**Answer:** ({})", "The answer is **{}**.", "The correct option is {}.", "Option {} is correct.", "Final answer: **({})** text",
]  # fmt: skip


@given(
    st.sampled_from(LETTERS), st.sampled_from(WAYS), st.sampled_from(["", "Let me think.\n\n", "7 is a prime number. "])
)
def test_every_letter_is_read_in_every_way(letter: str, way: str, before: str) -> None:
    lone = way in ("{}", "({})", "**{}**", "\\text{{{}}}", "**{}.** text")
    response = way.format(letter) if lone else before + way.format(letter)
    assert option_letter(response) == letter


@pytest.mark.parametrize("answer", ["**B**", "(b)", "\\text{B}", "B.", "\uff22"])
def test_answers_of_a_file_may_have_markup(answer: str) -> None:
    assert scorer("letter").check(answer) is None
    assert scorer("letter").score("The answer is B.", answer) == "right"
