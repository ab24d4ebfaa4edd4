"""Files of traces: what is read, and what is refused with one sentence."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mechprobe as mp
from mechprobe.data.config import PromptsConfig
from mechprobe.dynamics.logprobs.config import LogprobsConfig
from mechprobe.dynamics.logprobs.trace_file import read_traces
from mechprobe.dynamics.logprobs.traces import TraceSet
from mechprobe.errors import ConfigError, InputError, ModelError
from tests.builders import EOS, build_tokenizer, swap_letters

GOOD = {"id": "a", "prompt": "1+1=", "response": "wait 2"}
IDS = build_tokenizer()("wait 2", add_special_tokens=False).input_ids


@pytest.fixture(scope="module")
def family(checkpoint_family: dict[str, Path]) -> mp.ModelFamily:
    return mp.ModelFamily.load(checkpoint_family)


def written(folder: Path, *lines: dict[str, Any]) -> LogprobsConfig:
    path = folder / "traces.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return LogprobsConfig(traces=PromptsConfig(file=str(path)), draws=100)


def test_a_line_becomes_a_trace(family: mp.ModelFamily, tmp_path: Path) -> None:
    line = {**GOOD, "task": "sums", "answer": 2, "teacher_logprobs": [-0.5] * 6}
    [one] = read_traces(family, written(tmp_path, line))
    assert one.response_ids == (*IDS, EOS)
    assert one.prompt_ids == tuple(build_tokenizer()("1+1=").input_ids)
    assert (one.n_text, one.n_bytes, one.source, one.task, one.answer) == (6, 6, "gold", "sums", "2")
    assert one.teacher[:6] == (-0.5,) * 6
    assert np.isnan(one.teacher[6])  # the teacher gave none for the end token


def test_end_tokens_and_the_lengths_of_teacher_values(family: mp.ModelFamily, tmp_path: Path) -> None:
    with_end = {**GOOD, "response_ids": [*IDS, EOS], "teacher_logprobs": [-1.0] * 7}
    cut = {**GOOD, "finish_reason": "length"}
    ended, short = read_traces(family, written(tmp_path, with_end, cut))
    assert ended.response_ids[-1] == EOS
    assert ended.teacher == (-1.0,) * 7
    assert short.response_ids == tuple(IDS)
    config = written(tmp_path, with_end).replace(end_token=False)
    [without] = read_traces(family, config)
    assert without.response_ids == tuple(IDS)
    assert without.teacher == (-1.0,) * 6


def test_columns_of_a_parquet_file_are_read(family: mp.ModelFamily, tmp_path: Path) -> None:
    pd = pytest.importorskip("pandas")
    rows = [
        {
            "message": [{"role": "user", "content": "1+1="}],
            "prompt": "1+1=",
            "response": "wait 2",
            "logprob": [-1.0] * 7,
        }
    ]
    pd.DataFrame(rows).to_parquet(tmp_path / "t.parquet")
    config = LogprobsConfig(traces=PromptsConfig(file=str(tmp_path / "t.parquet")), teacher_field="logprob")
    [one] = read_traces(family, config)
    assert one.teacher == (-1.0,) * 7


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({**GOOD, "response": ""}, "'response' is empty|blank"),
        ({"id": "a", "prompt": "1+1="}, "has no response"),
        (
            {**GOOD, "teacher_logprobs": [-1.0] * 4},
            "the teacher gives 4 log-probabilities, but the response has 6 tokens",
        ),
        ({**GOOD, "teacher_logprobs": [-1.0, float("nan")] * 3}, "holds nan at token 1"),
        ({**GOOD, "teacher_logprobs": [-1.0, None, -1.0, -1.0, -1.0, -1.0]}, "holds None at token 1"),
        ({**GOOD, "teacher_logprobs": [0.5] * 6}, "never above 0"),
        ({**GOOD, "teacher_logprobs": "x"}, "no list of numbers"),
        (
            {**GOOD, "teacher_logprobs": [-1.0] * 6, "teacher_ids": [*IDS[:3], 9, *IDS[4:]]},
            "differ from those of the models from token 3 on",
        ),
        ({**GOOD, "response_ids": [5, 6]}, "the response ids decode to"),
        ({**GOOD, "response_ids": [99999]}, "has the id 99999"),
        ({**GOOD, "finish_reason": "tired"}, "'tired' is none of"),
        ({**GOOD, "temperature": 0}, "no number above 0"),
        ({**GOOD, "temperature": 1e-300}, "1e-300 is no number"),
        ({**GOOD, "temperature": 10**400}, r"10{39}\.\.\. is no number"),
        ({**GOOD, "teacher_logprobs": [-(10**400)] * 6}, r"holds -10{38}\.\.\. at token 0; every value"),
        ({**GOOD, "teacher_logprobs": [-1e300] * 6}, "no model gives"),
        ({**GOOD, "sampler_logprobs": [-(10**400)] * 6}, "'sampler_logprobs' holds"),
        ({**GOOD, "teacher_logprobs": [-1.0] * 6, "teacher_ids": 5}, "'teacher_ids' is not a list of token ids"),
        (
            {**GOOD, "teacher_logprobs": [-1.0] * 6, "teacher_ids": [[1]] * 6},
            "'teacher_ids' is not a list of token ids",
        ),
        ({**GOOD, "answer": ["2"]}, "'answer' is a list"),
        ({**GOOD, "answer": True}, "'answer' is true or false"),
        ({**GOOD, "answer": 10**400}, "must be a text or a finite number"),
        ({**GOOD, "model": "\x1b[31mrl"}, "'model' has the control character"),
        ({**GOOD, "prompt": "2+2="}, "the id 'a' stands on a line with another prompt"),
        ({**GOOD, "sampler_logprobs": [-1.0]}, "the sampler gives 1 log-probabilities"),
    ],
)
def test_lines_that_cannot_be_used_are_refused(
    family: mp.ModelFamily, tmp_path: Path, line: dict[str, Any], message: str
) -> None:
    config = written(tmp_path, GOOD, line)
    with pytest.raises(InputError, match=message) as refused:
        read_traces(family, config)
    assert "traces.jsonl:2" in str(refused.value)


def test_a_teacher_with_another_tokenizer_is_refused_with_the_reason(
    checkpoint_family: dict[str, Path], family: mp.ModelFamily, tmp_path: Path
) -> None:
    shutil.copytree(checkpoint_family["base"], tmp_path / "teacher")
    swap_letters(tmp_path / "teacher")
    config = written(tmp_path, {**GOOD, "teacher_logprobs": [-1.0] * 6})
    assert read_traces(family, config.replace(teacher_tokenizer=str(checkpoint_family["base"])))
    other = config.replace(teacher_tokenizer=str(tmp_path / "teacher"))
    with pytest.raises(
        ModelError, match=r"is not that of the models \(id \d+ is 'a' in models and 'b' in teacher.*bytes"
    ):
        read_traces(family, other)
    [one] = read_traces(family, written(tmp_path, {**GOOD, "teacher_logprobs": [-1.0] * 4}).replace(compare="bytes"))
    assert one.teacher == (-1.0,) * 4


def test_a_teacher_tokenizer_that_is_no_folder_and_a_field_that_no_line_has_are_named(
    family: mp.ModelFamily, tmp_path: Path
) -> None:
    config = written(tmp_path, GOOD)
    with pytest.raises(ModelError, match=r"logprobs\.teacher_tokenizer is '.*none', which is no folder"):
        read_traces(family, config.replace(teacher_tokenizer=str(tmp_path / "none")))
    with pytest.raises(InputError, match="no field 'techer'"):
        read_traces(family, config.replace(teacher_field="techer"))


def test_characters_that_the_tokenizer_lacks_are_noted(family: mp.ModelFamily, tmp_path: Path) -> None:
    lines = (GOOD, {**GOOD, "id": "b", "response": "wait €"})
    config = written(tmp_path, *lines)
    found = TraceSet.of(read_traces(family, config), family, config)
    assert found.notes == (
        "1 of 2 traces have characters that the tokenizer lacks; the unknown token stands for them.",
    )
    config = written(tmp_path, GOOD)
    assert TraceSet.of(read_traces(family, config), family, config).notes == ()


@pytest.mark.parametrize(
    "given", [{"clip": (-1.0, 1.0)}, {"clip": (1.0, float("nan"))}, {"clamp": float("inf")}, {"clamp": float("nan")},
              {"clamp": 1000.0}, {"flat": float("nan")}, {"classes": {"a\x1b[31m": ("x",)}}],
)  # fmt: skip
def test_settings_that_are_no_numbers_of_their_range_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        LogprobsConfig(**given)


def test_long_traces_and_the_draw_of_prompts(family: mp.ModelFamily, tmp_path: Path) -> None:
    long = {**GOOD, "id": "long", "prompt": "another", "response": "7" * 70}
    config = written(tmp_path, GOOD, {**GOOD, "id": "b", "response": "3"}, long)
    traces = read_traces(family, config)
    with pytest.raises(InputError, match=r"Trace 'long' has .* context of the models holds 64"):
        TraceSet.of(traces, family, config)
    dropped = TraceSet.of(traces, family, config.replace(too_long="drop"))
    assert [one.id for one in dropped.traces] == ["a", "b"]
    assert "1 traces are longer" in dropped.notes[0]
    drawn = TraceSet.of(traces[:2], family, config.replace(max_prompts=1))
    assert len(drawn.traces) == 2  # both are of one prompt
    with pytest.raises(InputError, match="no trace"):
        TraceSet.of([], family, config)
