"""Reading the prompts of an arm: token ids, answers, the hash that arms share, and what is refused."""

import json
import shutil
from pathlib import Path

import pytest

from mechprobe.errors import InputError
from mechprobe.evals import skills
from mechprobe.evals.scorers.parse import scorer
from mechprobe.models.load import LanguageModel
from mechprobe.posttrain.config import SftConfig
from mechprobe.posttrain.examples import fitted, given_rows, prompts_hash, read_examples
from mechprobe.posttrain.reward import reward
from tests.sums import N_PROMPTS, write_prompts


@pytest.fixture(scope="module")
def model(base: Path) -> LanguageModel:
    return LanguageModel("base", base)


def read(model: LanguageModel, file: Path, **settings: object):
    return read_examples(model, SftConfig(prompts={"file": str(file)}, **settings))


def lines(file: Path, *rows: dict[str, object]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_rows_are_prompt_then_response_then_one_end_token(model: LanguageModel, prompts: Path) -> None:
    tokenizer = model.tokenizer
    examples = read(model, prompts)
    row = given_rows(examples, tokenizer.eos_token_id)[8]
    assert len(examples) == N_PROMPTS
    assert list(row.prompt_ids) == tokenizer("8+3?").input_ids
    assert tokenizer.decode(row.response_ids) == "8+3=11.!!!<eos>"
    assert given_rows([examples[8]], row.response_ids[-2])[0].response_ids == row.response_ids[:-1]


def test_the_hash_is_of_the_prompts_alone(model: LanguageModel, prompts: Path, tmp_path: Path) -> None:
    same = read(model, write_prompts(tmp_path / "other.jsonl", response="{c}"))
    assert prompts_hash(same) == prompts_hash(read(model, prompts))
    assert prompts_hash(same[:-1]) != prompts_hash(same)


def test_a_table_keeps_its_answers(model: LanguageModel, tmp_path: Path) -> None:
    import pyarrow as arrow
    from pyarrow import parquet

    table = arrow.table({"id": ["a", "b"], "prompt": ["1+1?", "2+2?"], "gold": [2, 4], "other": [0, 0]})
    parquet.write_table(table, tmp_path / "p.parquet")
    assert [item.answer for item in read(model, tmp_path / "p.parquet", answer_field="gold")] == ["2", "4"]


def test_conversations_are_rendered_by_the_template_and_end_with_the_end_token(base: Path, tmp_path: Path) -> None:
    folder = tmp_path / "chat"
    shutil.copytree(base, folder)
    plain = LanguageModel("base", folder).tokenizer
    plain.chat_template = (
        "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{% if m.role == 'assistant' %}{{ eos_token }}"
        "{% endif %}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    plain.save_pretrained(folder)
    chat = LanguageModel("base", folder)
    said = [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "2"}]
    file = lines(tmp_path / "p.jsonl", {"messages": said, "answer": 2}, {"messages": said[:1], "response": "2"})
    examples = read(chat, file, text={"chat_template": True})
    first, second = given_rows(examples, chat.tokenizer.eos_token_id)
    assert first == second
    assert chat.tokenizer.decode(first.prompt_ids) == "<bos>[user]1+1?[assistant]"
    assert chat.tokenizer.decode(first.response_ids) == "2<eos>"
    assert [item.answer for item in examples] == ["2", None]
    with pytest.raises(InputError, match=r"p\.jsonl:1.* is a list of messages; set text\.chat_template=true"):
        read(chat, file)


def test_items_of_the_skill_benchmark_are_prompts(model: LanguageModel, tmp_path: Path) -> None:
    items = skills.generate("calculation", n=3, seed=0)
    file = lines(tmp_path / "tasks.jsonl", *(item.to_json() for item in items))
    found = read_examples(model, SftConfig(prompts={"file": str(file), "response_field": "trace"}))
    assert [item.answer for item in found] == [item.answer for item in items]
    assert [model.tokenizer.decode(item.response_ids) for item in found] == [item.trace for item in items]
    assert reward(scorer("skill"), items[0].trace, items[0].answer) == 1


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [{"id": "a", "prompt": "1"}, {"id": "a", "prompt": "2"}],
            r"p\.jsonl:2: id 'a' is already used in .*p\.jsonl:1",
        ),
        ([{"prompt": "1", "answer": ["2"]}], r"p\.jsonl:1: 'answer' is a list"),
        ([{"prompt": "1"}], r"p\.jsonl:1: prompt '1' has no response"),
        ([], "no prompts|empty|no lines"),
    ],
)
def test_unusable_prompts_are_refused(model: LanguageModel, tmp_path: Path, rows: list, message: str) -> None:
    with pytest.raises(InputError, match=message):
        given_rows(read(model, lines(tmp_path / "p.jsonl", *rows)), 2)


def test_too_long_examples_are_refused_or_cut(model: LanguageModel, tmp_path: Path) -> None:
    examples = read(model, lines(tmp_path / "p.jsonl", {"prompt": "1+1?", "response": "x" * 20}))
    rows = given_rows(examples, model.tokenizer.eos_token_id)
    with pytest.raises(InputError, match=r'has 26 tokens with its response, but 12 are allowed; .*too_long = "cut"'):
        fitted(rows, examples, 12, cut=False)
    assert len(fitted(rows, examples, 12, cut=True)[0].response_ids) == 7
    with pytest.raises(InputError, match="but 5 are allowed; shorten it"):
        fitted(rows, examples, 5, cut=True)
