"""The prompts of an arm as token ids, with their answers and responses, and the hash by which arms prove that they share them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mechprobe.data.config import PromptsConfig
from mechprobe.data.encoding import PromptEncoder
from mechprobe.data.fields import Record, to_prompt
from mechprobe.data.prompts import Prompt
from mechprobe.data.readers import read_records
from mechprobe.errors import InputError
from mechprobe.files import dump_json, sha256_bytes
from mechprobe.json_fields import full_text, json_kind
from mechprobe.models.load import LanguageModel
from mechprobe.models.tokenizers import require_ids
from mechprobe.posttrain.config import PosttrainConfig


@dataclass(frozen=True, slots=True)
class Example:
    """A prompt with what post-training needs.

    Attributes:
        prompt: The prompt, with its place in the file for messages.
        answer: The right answer; None if the file has none.
        prompt_ids: Token ids up to where the response begins.
        response_ids: Token ids of the given response, without an end token; empty if the file has none.
    """

    prompt: Prompt
    answer: str | None
    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Row:
    """One sequence for SFT: token ids of the prompt, and of the response with its end token."""

    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]


def read_examples(base: LanguageModel, config: PosttrainConfig) -> list[Example]:
    """Read and encode the prompts of a file.

    Raises:
        ConfigError: No file is given, or the text rule does not fit the tokenizer.
        InputError: The file or a record is unusable, an id is not unique, or a token has no embedding.
    """
    encoder = PromptEncoder.of({base.name: base.tokenizer}, config.text)
    # A table is read by columns; the column of the answer is asked for in place of the group of a prompt.
    source = config.prompts.model_copy(update={"task_field": config.answer_field})
    found, places = [], dict[str, str]()
    for record in read_records(source):
        example = _example(record, config, encoder)
        require_ids((*example.prompt_ids, *example.response_ids), base.n_rows, base.tokenizer, str(example.prompt))
        name = example.prompt.id
        if name in places:
            raise InputError(f"{record.where}: id {name!r} is already used in {places[name]}; make ids unique.")
        places[name] = record.where
        found.append(example)
    if not found:
        raise InputError(f"{config.prompts.file} contains no prompts; write one JSON object a line.")
    return found


def _example(record: Record, config: PosttrainConfig, encoder: PromptEncoder) -> Example:
    prompt = to_prompt(record, _without_group(config.prompts))
    answer = _answer(record.fields.get(config.answer_field), config.answer_field, record.where)
    return Example(prompt, answer, encoder.encode(prompt), encoder.encode_response(prompt))


def _without_group(prompts: PromptsConfig) -> PromptsConfig:
    return prompts.model_copy(update={"task_field": ""})


def _answer(value: Any, name: str, where: str) -> str | None:
    if value is None or isinstance(value, str):
        return None if value is None else full_text(value, name, where)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    raise InputError(f"{where}: '{name}' is {json_kind(value)}; it must be a text or a number.")


def prompts_hash(examples: Sequence[Example]) -> str:
    """sha256 of the ids and the token ids of all prompts; answers and responses do not enter."""
    return sha256_bytes(dump_json([[item.prompt.id, item.prompt_ids] for item in examples]).encode())


def given_rows(examples: Sequence[Example], end_id: int) -> list[Row]:
    """The sequences for SFT on the responses of the file.

    Raises:
        InputError: A prompt has no response.
    """
    for item in examples:
        if not item.response_ids:
            raise InputError(
                f"{item.prompt} has no response; add it, name its field with prompts.response_field, or give --on-policy."
            )
    return [row_of(item, item.response_ids, end_id) for item in examples]


def row_of(example: Example, response_ids: Sequence[int], end_id: int) -> Row:
    """A sequence for SFT, whose response ends with the end token once."""
    ended = response_ids[-1:] == (end_id,)
    return Row(example.prompt_ids, (*response_ids, *(() if ended else (end_id,))))


def fitted(rows: Sequence[Row], examples: Sequence[Example], longest: int, *, cut: bool) -> list[Row]:
    """The rows, of which those longer than ``longest`` tokens are refused or lose the end of their response.

    Raises:
        InputError: A row is too long and ``cut`` is off, or a prompt leaves no room for a response.
    """
    found = []
    for row, item in zip(rows, examples, strict=True):
        room, length = longest - len(row.prompt_ids), len(row.prompt_ids) + len(row.response_ids)
        if room < 1 or (length > longest and not cut):
            raise InputError(
                f"{item.prompt} has {length} tokens with its response, but {longest} are allowed; shorten it"
                + ("." if room < 1 else ', or set too_long = "cut".')
            )
        found.append(Row(row.prompt_ids, row.response_ids[:room]))
    return found


def require_room(examples: Sequence[Example], longest: int, max_new_tokens: int) -> None:
    """Raise `InputError` where ``longest`` tokens have no room for a prompt and a response of ``max_new_tokens``."""
    room = longest - max_new_tokens
    for item in examples:
        if len(item.prompt_ids) > room:
            raise InputError(
                f"{item.prompt} has {len(item.prompt_ids)} tokens, and a sequence of {longest} has room for {max(0, room)} "
                f"beside a response of {max_new_tokens}; shorten it, or lower max_new_tokens."
            )
