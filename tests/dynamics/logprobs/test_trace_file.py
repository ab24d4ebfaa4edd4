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
from mechprobe.errors import InputError, ModelError
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
