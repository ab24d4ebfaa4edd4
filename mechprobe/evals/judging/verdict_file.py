"""A file of finished verdicts as judge."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mechprobe.errors import InputError
from mechprobe.evals.judging.config import JudgeConfig
from mechprobe.evals.judging.judge import Judge, Judged, Verdict, checked_verdict
from mechprobe.files import dump_json, sha256_bytes, sha256_file
from mechprobe.formatting import short_repr
from mechprobe.json_fields import text_field
from mechprobe.records import read_jsonl

_Key = tuple[str, str, int]
_Line = tuple[Verdict, str | None, str]


class FileJudge(Judge):
    """Verdicts from JSON lines ``{"model", "id", "draw", "verdict", "response"}``.

    ``draw`` is 0 where it is missing. ``verdict`` is null where the judge was undecided. Where a line has the ``response`` that
    was judged, it must be the one at hand.
    """

    def __init__(self, config: JudgeConfig) -> None:
        super().__init__(config)
        self._path = Path(config.verdicts)
        self._found: dict[_Key, _Line] = {}
        for number, item in read_jsonl(self._path):
            self._line(item, f"{self._path}:{number}")
        if not self._found:
            raise InputError(f"{self._path} holds no verdict; give one JSON object a line.")

    def _line(self, item: dict[str, Any], where: str) -> None:
        draw = item.get("draw", 0)
        if type(draw) is not int or draw < 0:
            raise InputError(f"{where}: 'draw' is {draw!r}; number the responses to one prompt from 0.")
        if "verdict" not in item:
            raise InputError(f"{where} has no field 'verdict'; add it, null where the judge was undecided.")
        key = (text_field(item, "model", where), text_field(item, "id", where), draw)
        if key in self._found:
            raise InputError(f"{where} is a second verdict on one response, after {self._found[key][2]}; remove one.")
        verdict = checked_verdict(
            item["verdict"], self.config, f"{where}: the verdict is {short_repr(item['verdict'])}"
        )
        response = text_field(item, "response", where) if item.get("response") is not None else None
        self._found[key] = (verdict, response, where)

    @property
    def identity(self) -> dict[str, Any]:
        """sha256 of the file."""
        return {"verdicts": sha256_file(self._path), "reads": self.config.reads}

    def identity_for(self, model: str) -> dict[str, Any]:
        """sha256 of the verdicts on one model, so that those on further models change nothing."""
        mine = [
            [list(key), verdict, text] for key, (verdict, text, _) in sorted(self._found.items()) if key[0] == model
        ]
        return {"verdicts": sha256_bytes(dump_json(mine).encode()), "reads": self.config.reads}

    def verdicts(self, judged: Sequence[Judged], folder: Path) -> list[Verdict]:
        """The verdicts; `InputError` where one is missing, or is on another response."""
        del folder
        return [self._verdict(one) for one in judged]

    def _verdict(self, judged: Judged) -> Verdict:
        question = judged.question
        found = self._found.get((question.model, question.sample_id, question.draw))
        if found is None:
            raise InputError(
                f"{self._path} has no verdict on the response of {question}; add it, with null where the judge was undecided."
            )
        verdict, response, where = found
        if response is not None and response.strip() != judged.text.strip():
            raise InputError(
                f"{where} judges the response {response[:60]!r}, but {question} answered {judged.text[:60]!r}; judge it again."
            )
        return verdict
