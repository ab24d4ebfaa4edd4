"""A folder of tasks for lm-evaluation-harness: per cell, a YAML file and its documents as JSON lines.

The harness compares the text of the answer, without blanks and whatever its case. Unlike the scorer of mechprobe, it knows
no equal expressions and no sets, so the elements of a set must come in ascending order.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from mechprobe.evals.skills.cells import json_lines
from mechprobe.evals.skills.item import ANSWER_MARKER, SkillItem
from mechprobe.evals.skills.registry import CHAT
from mechprobe.files import write_text

GROUP = "mechprobe_skills"
_BOXED, _FINAL = r"\\boxed\s*\{([^{}]*)\}", rf"{ANSWER_MARKER}\s+((?:(?!{ANSWER_MARKER})[^\n])*)"
_MAX_TOKENS = {True: 1024, False: 160}
"""Limit of a response for chat and for compact items."""
_TASK = """\
# Made by `mechprobe skills make --lm-eval`. The path of the documents is absolute: make the folder again after a move.
task: {task}
dataset_path: json
dataset_kwargs:
  data_files: {{test: {data}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{prompt}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: [], max_gen_toks: {max_tokens}, do_sample: false}}
filter_list:
  - name: answer
    filter:
      - {{function: regex, regex_pattern: '{pattern}', group_select: -1}}
      - {{function: take_first}}
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
    ignore_case: true
    regexes_to_ignore: ['\\s', '\\$']
metadata: {{version: {version}}}
"""


def write_harness_tasks(folder: Path, items: Sequence[SkillItem]) -> list[str]:
    """Write one task for every cell and a group of all, in place of earlier ones; returns the names of the tasks.

    Raises:
        ArtifactError: The folder cannot be written.
    """
    cells: dict[str, list[SkillItem]] = {}
    for item in items:
        cells.setdefault(f"{GROUP}_{item.skill}_{item.domain}", []).append(item)
    for earlier in folder.glob(f"{GROUP}_*"):  # the harness would list the tasks of an earlier command, too
        if earlier.stem not in cells and earlier.suffix in (".yaml", ".jsonl"):
            earlier.unlink()
    for task, members in cells.items():
        data = folder / f"{task}.jsonl"
        write_text(data, json_lines([_document(item) for item in members]))
        chat = members[0].rendering == CHAT
        text = _TASK.format(
            task=task, data=json.dumps(str(data.resolve())), pattern=_BOXED if chat else _FINAL,
            max_tokens=_MAX_TOKENS[chat], version=max(item.version for item in members),
        )  # fmt: skip
        write_text(folder / f"{task}.yaml", text)
    lines = "".join(f"  - {task}\n" for task in cells)
    mean = "aggregate_metric_list:\n  - {metric: exact_match, aggregation: mean, filter_list: [answer], weight_by_size: true}\n"
    write_text(folder / f"{GROUP}.yaml", f"group: {GROUP}\ntask:\n{lines}{mean}metadata: {{version: 1}}\n")
    return list(cells)


def _document(item: SkillItem) -> dict[str, object]:
    """The fields that all families share; parameters have other types in every family."""
    names = ("id", "prompt", "answer", "skill", "domain", "family", "level", "split", "chance")
    return {name: getattr(item, name) for name in names}
