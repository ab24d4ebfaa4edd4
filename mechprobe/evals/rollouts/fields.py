"""The fields of a line of rollouts."""

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from mechprobe.errors import InputError
from mechprobe.evals.rollouts.answers import FINISHES
from mechprobe.evals.tasks import Task
from mechprobe.models.generation import Generated
from mechprobe.types import Finish

DRAW_FIELDS = ("sample", "index", "draw")
IDS_FIELDS = ("response_ids", "token_ids")
PROMPT_IDS_FIELDS = ("prompt_ids", "prompt_token_ids")
_HOW_TO_FINISH = (
    "add 'stop' where an end token or stop text ended the response and 'length' where the limit cut it; engines report it "
    "(finish_reason of a vLLM or OpenAI output), and it cannot be told from the text"
)


def first_of(item: Mapping[str, Any], names: Sequence[str]) -> Any:
    """The value of the first of several names of a field; None where the record has none of them."""
    return next((item[name] for name in names if item.get(name) is not None), None)


def draw_of(item: dict[str, Any], task: Task, where: str) -> int:
    """Index of the response among those to its prompt; 0 where the line has none."""
    draw = first_of(item, DRAW_FIELDS)
    if draw is None:
        return 0
    if isinstance(draw, bool) or not isinstance(draw, int) or draw < 0:
        raise InputError(f"{where}: the index of the sample is {draw!r}; number the responses to one prompt from 0.")
    if draw >= task.sampling.n:
        raise InputError(
            f"{where} is response {draw} to its prompt, but tasks.sampling.n is {task.sampling.n}; set it to the number of "
            "responses per prompt, with the temperature they were sampled at, and number them from 0."
        )
    return draw


def finish_of(item: dict[str, Any], where: str) -> Finish:
    """How the response ended, as the engine reported it."""
    reason = item.get("finish_reason")
    if reason is None:
        raise InputError(f"{where} has no finish_reason; {_HOW_TO_FINISH}.")
    if not isinstance(reason, str) or reason not in FINISHES:
        raise InputError(
            f"{where}: the finish_reason {str(reason)[:40]!r} is none of {', '.join(FINISHES)}; sample this response again, or "
            "write which of them it was."
        )
    return FINISHES[reason]


def response_text(item: dict[str, Any], where: str) -> str:
    """The response, which may be empty."""
    if "response" not in item:
        raise InputError(f"{where} has no field 'response' (it has {', '.join(sorted(item))}); add it.")
    response = item["response"]
    if not isinstance(response, str):
        raise InputError(f"{where}: 'response' is a {type(response).__name__}; it must be text.")
    return response


def token_ids(value: Any, name: str, tokenizer: PreTrainedTokenizerBase, where: str) -> tuple[int, ...]:
    """Token ids that the tokenizer knows."""
    if not isinstance(value, list) or not all(type(token) is int for token in value):
        raise InputError(f"{where}: '{name}' is not a list of token ids; write whole numbers.")
    unknown = [token for token in value if not 0 <= token < len(tokenizer)]
    if unknown:
        raise InputError(
            f"{where}: '{name}' has the id {unknown[0]}, but the tokenizer has {len(tokenizer)} tokens; give the ids of the "
            "models' own tokenizer, or leave them out."
        )
    return tuple(value)


def require_limit(answer: Generated, limit: int, exact: bool, where: str) -> None:
    """Refuse a response longer than the limit; a cut one may become a little longer where its text is tokenized again."""
    n = len(answer.token_ids)
    if n > limit and (exact or answer.finish == "stop"):
        raise InputError(
            f"{where}: the response has {n} tokens, but tasks.max_new_tokens allows {limit}; set it to the limit with which "
            "the responses were sampled."
        )


def require_prefix(answer: Generated, prefix: str, where: str) -> None:
    """Refuse a response without the beginning that was forced on it."""
    if not answer.text.startswith(prefix):
        raise InputError(
            f"{where}: the response does not begin with the forced prefix {prefix!r}; write the whole response, prefix included."
        )
