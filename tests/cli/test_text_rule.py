"""One text rule for every stage: the same prompts have the same token ids in the store, in tasks and in what reads outcomes."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from tokenizers import AddedToken
from transformers import AutoTokenizer

from mechprobe.cache.store.activation_store import ActivationStore
from mechprobe.cli import main
from mechprobe.data.config import TextConfig
from mechprobe.data.encoding import PromptEncoder
from mechprobe.errors import ConfigError, InputError
from mechprobe.evals.stage import check_lengths, evaluate_outcomes, load_outcomes, tasks_fingerprint
from mechprobe.evals.tasks import load_tasks
from mechprobe.models.family import ModelFamily
from mechprobe.models.generation import generate
from mechprobe.pipeline.run import Run
from mechprobe.run_config import RunConfig
from mechprobe.selection.config import SelectConfig
from mechprobe.selection.gained import gained_sequences, right_answers

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}[{{ m.role[0] }}]{{ m.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}[a]{% if enable_thinking is defined and enable_thinking %}<think>{% endif %}{% endif %}"
)
QUESTIONS = [f"{i}+{i}=" for i in range(6)]
CHAT = "text.chat_template=true"


def jsonl(path: Path, rows: list) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def chat_family(tmp_path_factory: pytest.TempPathFactory, llama_family: dict[str, Path]) -> dict[str, Path]:
    """Base has no template, as base models often have none; rl has one."""
    folder = tmp_path_factory.mktemp("chat")
    paths = {name: Path(shutil.copytree(llama_family[name], folder / name)) for name in ("base", "rl")}
    (paths["rl"] / "chat_template.jinja").write_text(TEMPLATE)
    return paths


def models(paths: dict[str, Path]) -> list[str]:
    return ["--models", *(f"{name}={path}" for name, path in paths.items())]


def test_a_prompt_has_the_same_ids_in_every_stage(
    tmp_path: Path, chat_family: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    system = "text.system_prompt=Add"
    rows = [{"id": f"q{i}", "prompt": text, "answer": "1"} for i, text in enumerate(QUESTIONS)]
    rows[1] = {"id": "q1", "messages": [{"role": "user", "content": QUESTIONS[1]}], "answer": "1"}
    tasks, prompts = jsonl(tmp_path / "t.jsonl", rows), jsonl(tmp_path / "p.jsonl", [{"prompt": q} for q in QUESTIONS])
    rule = ["--set", CHAT, "--set", system]
    cache = ["cache", *models(chat_family), "--prompts", str(prompts), "--sites", "resid_post.1"]
    assert main([*cache, *rule, "--out", str(tmp_path / "c")]) == 0, capsys.readouterr().err
    assert main([*cache, "--chat-template", "--system-prompt", "Add", "--out", str(tmp_path / "d")]) == 0
    evaluate = ["evaluate", *models(chat_family), "--tasks", str(tasks), "--set", "tasks.max_new_tokens=5"]
    assert main([*evaluate, *rule, "--out", str(tmp_path / "e")]) == 0, capsys.readouterr().err

    tokenizer = AutoTokenizer.from_pretrained(chat_family["rl"])
    turns = [[{"role": "system", "content": "Add"}, {"role": "user", "content": text}] for text in QUESTIONS]
    expected = [
        tuple(tokenizer.apply_chat_template(t, add_generation_prompt=True, tokenize=True, return_dict=False))
        for t in turns
    ]
    assert all(ids.count(tokenizer.bos_token_id) == 1 for ids in expected)
    store = ActivationStore.open(tmp_path / "c")
    assert {s.prompt_ids for s in store.stream.sequences} == set(expected)
    assert ActivationStore.open(tmp_path / "d").stream_hash == store.stream_hash

    family, outcomes = ModelFamily.load(chat_family), load_outcomes(tmp_path / "e")
    for name in ("base", "rl"):
        found = [outcomes.record(name, "t", f"q{i}").response for i in range(len(QUESTIONS))]
        asked = generate(family[name].hf, family.tokenizer, expected, max_new_tokens=5)
        assert found == [response.text for response in asked]
    gained = {"t": [f"q{i}" for i in range(len(QUESTIONS))]}
    sequences = gained_sequences(family, outcomes, gained, SelectConfig())
    for sequence, prompt, sample_id in zip(sequences["t"], expected, gained["t"], strict=True):
        assert sequence.ids == (*prompt, *outcomes.record("rl", "t", sample_id).response_ids)
    answers = right_answers(family, outcomes, gained, SelectConfig(target="answer"))
    assert [sequence.ids[:-1] for sequence in answers["t"]] == expected

    # The rule is part of the identity of the stages.
    assert main([*evaluate, "--out", str(tmp_path / "e")]) == 2
    assert main([*cache, "--out", str(tmp_path / "c")]) == 2
    capsys.readouterr()


def test_a_subset_of_the_family_keeps_the_template_of_the_whole(chat_family: dict[str, Path]) -> None:
    family = ModelFamily.load({"first": chat_family["base"], **chat_family})
    rule = TextConfig(chat_template="rl")
    assert (
        PromptEncoder.of(family.subset("base").tokenizers, rule).identity
        == PromptEncoder.of(family.tokenizers, rule).identity
    )
    assert PromptEncoder.of(family.subset("base")["base"].tokenizers, rule).chat is not None


def test_a_rendered_prompt_gets_no_second_bos_and_one_sentence_says_so(
    tmp_path: Path, llama_family: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    texts = [f"<bos>[u]{question}<eos>[a]" for question in QUESTIONS]
    prompts = jsonl(tmp_path / "p.jsonl", [{"prompt": text} for text in texts])
    tasks = jsonl(tmp_path / "t.jsonl", [{"prompt": text, "answer": "1"} for text in texts])
    both = {name: llama_family[name] for name in ("base", "rl")}
    cache = ["cache", *models(both), "--prompts", str(prompts), "--sites", "resid_post.1", "--out", str(tmp_path / "c")]
    evaluate = ["evaluate", *models(both), "--tasks", str(tasks), "--out", str(tmp_path / "e")]
    for command in (cache, [*evaluate, "--set", "tasks.max_new_tokens=3"]):
        caplog.clear()
        assert main(command) == 0
        told = [record.getMessage() for record in caplog.records]
        assert told[0].startswith("Models run in float32 on cpu")
        assert told[1:] == ["Prompts begin with <bos>, which the tokenizer adds too; it is read once."]
    tokenizer = AutoTokenizer.from_pretrained(both["base"])
    expected = {tuple(tokenizer(text, add_special_tokens=False).input_ids) for text in texts}
    assert {s.prompt_ids for s in ActivationStore.open(tmp_path / "c").stream.sequences} == expected


def test_options_follow_a_rendered_prompt(tmp_path: Path, chat_family: dict[str, Path]) -> None:
    from mechprobe.evals.answering import option_pairs

    item = {"id": "q", "messages": [{"role": "system", "content": "S"}, {"role": "user", "content": "Which?"}]}
    path = jsonl(tmp_path / "t.jsonl", [{**item, "options": ["x", "yy"], "answer": "B"}])
    family = ModelFamily.load(chat_family)
    [task] = load_tasks(path, text=TextConfig(chat_template=True))
    encoder = PromptEncoder.of(family.tokenizers, task.text)
    pairs = option_pairs(task, task.samples[0], encoder)
    texts = [[tuple(encoder.tokenizer.decode(list(ids)) for ids in pair) for pair in options] for options in pairs]
    first, second = (
        "<bos>[s]S<eos>[u]Which?\nA. {}\nB. {}\nAnswer:<eos>[a]".format(*own) for own in (("x", "yy"), ("yy", "x"))
    )
    assert texts == [[(first, "A"), (first, "B")], [(second, "B"), (second, "A")]]
    check_lengths(family, [task])
    [thinking] = load_tasks(path, text=TextConfig(chat_template=True, enable_thinking=True))
    with pytest.raises(InputError, match=r"q of task t .* inside the thinking block .* set text.enable_thinking=false"):
        check_lengths(family, [thinking])
    assert len({tasks_fingerprint([one]) for one in (task, thinking)}) == 2


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"prompt": "x", "messages": [{"role": "user", "content": "x"}], "answer": "1"}, ":2 has both 'prompt' and 'messages'"),
        ({"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}], "answer": "1"}, ":2: the last message is the"),
        ({"messages": "x", "answer": "1"}, ":2: 'messages' is a text; it must be a list"),
        ({"prompt": "\ud800x", "answer": "1"}, ":2: 'prompt' has half a surrogate pair"),
        ({"prompt": "x", "answer": "1\udc00"}, ":2: 'answer' has half a surrogate pair"),
        ({"prompt": "x", "answer": "1", "id": "\ud800"}, ":2: 'id' has half a surrogate pair"),
        ({"prompt": "x", "answer": "1", "task": "a\udfff"}, ":2: 'task' has half a surrogate pair"),
        ({"prompt": "x", "options": ["a", "b\ud800"], "answer": "A"}, ":2: 'options[1]' has half a surrogate pair"),
        ({"messages": [{"role": "user", "content": "\ud800"}], "answer": "1"}, ":2: 'messages[0].content' has half a surrogate"),
        ({"prompt": "x", "answer": "1", "note": {"by": "\ud800"}}, ":2: 'note.by' has half a surrogate pair"),
        ({"prompt": "x", "answer": "1", "id": "a\x00"}, ":2: 'id' has the control character '\\x00'"),
        ({"prompt": "x", "answer": 1.5}, ":2: 'answer' is the number 1.5; it must be text"),
        ({"prompt": None, "answer": "1"}, ":2: 'prompt' is empty (null)"),
    ],
)  # fmt: skip
def test_unusable_lines_of_task_files(tmp_path: Path, line: dict, message: str) -> None:
    path = jsonl(tmp_path / "t.jsonl", [{"prompt": "x", "answer": "1"}, line])
    with pytest.raises(InputError) as caught:
        load_tasks(path)
    assert f"{path}{message}" in str(caught.value)


def test_conversations_and_rules_that_do_not_fit(tmp_path: Path, llama_family: dict[str, Path]) -> None:
    family = ModelFamily.load({name: llama_family[name] for name in ("base", "rl")})
    path = jsonl(tmp_path / "t.jsonl", [{"messages": [{"role": "user", "content": "x"}], "answer": "1"}])
    [talk] = load_tasks(path)
    with pytest.raises(InputError, match=r"task t: prompt 't-1' is a list of messages; set text.chat_template=true"):
        check_lengths(family, [talk])
    [chat] = load_tasks(path, text=TextConfig(chat_template=True))
    with pytest.raises(ConfigError, match="no chat template in the tokenizer of base, rl"):
        check_lengths(family, [chat])
    jsonl(path, [{"prompt": "x", "answer": "1"}])
    one, other = (load_tasks(path, text=TextConfig(bos=bos))[0] for bos in ("auto", "never"))
    with pytest.raises(ConfigError, match="tasks t and t have different text rules"):
        evaluate_outcomes(family, [replace(task, max_new_tokens=3) for task in (one, other)], tmp_path / "e")
    with pytest.raises(ConfigError, match=r"cache.text cannot be set alone"):
        RunConfig.build(None, ["cache.text.bos=never"])
    assert RunConfig.build(None, ["text.bos=never"]).cache.text == TextConfig(bos="never")


def test_the_same_text_under_other_ids_stays_on_one_side(
    tmp_path: Path, llama_family: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    rollouts = [{"id": f"{q}-{n}", "prompt": q, "response": str(n)} for q in QUESTIONS for n in range(5)]
    prompts = jsonl(tmp_path / "p.jsonl", rollouts)
    cache = ["cache", *models({"base": llama_family["base"]}), "--prompts", str(prompts), "--sites", "resid_post.1"]
    assert main([*cache, "--set", "cache.held_out_frac=0.4", "--out", str(tmp_path / "c")]) == 0, (
        capsys.readouterr().err
    )
    store = ActivationStore.open(tmp_path / "c")
    held_out = {store.stream.sequences[sample].id.split("-")[0] for sample in store.held_out_samples()}
    training = {s.id.split("-")[0] for i, s in enumerate(store.stream.sequences) if i not in store.held_out_samples()}
    assert len(held_out) == 2
    assert held_out | training == set(QUESTIONS)
    assert not held_out & training

    rows = [{"id": f"{task}{i}{n}", "task": task, "prompt": f" {q}\n"[n:], "answer": "1"}
            for task in "ab" for i, q in enumerate(QUESTIONS) for n in range(2)]  # fmt: skip
    tasks = jsonl(tmp_path / "t.jsonl", rows)
    run = Run(RunConfig.build(None, [f"tasks.file={tasks}"]), tmp_path / "r")
    said = [{s.prompt.strip() for task in side for s in task.samples} for side in zip(*run.halves(), strict=True)]
    assert said[0] | said[1] == set(QUESTIONS)
    assert not said[0] & said[1]
    assert [len(one.samples) for one, _ in run.halves()] == [6, 6]


def test_tokens_that_only_the_tuned_tokenizer_knows_are_read_as_its_tokens(chat_family: dict[str, Path]) -> None:
    """The tokenizer of the model whose template is used encodes the prompts of all models."""
    base, tuned = (AutoTokenizer.from_pretrained(chat_family[name]) for name in ("base", "rl"))
    tuned.add_tokens([AddedToken("[u]", special=True)])
    ids = PromptEncoder.of({"base": base, "rl": tuned}, TextConfig(chat_template=True))._ids("[u]x")
    assert ids == (len(tuned) - 1, tuned.convert_tokens_to_ids("x"))
