"""Answers on disk, one line each, so that a killed command asks for none of them again."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mechprobe.errors import ArtifactError
from mechprobe.evals.rollouts.answers import Question


class Journal:
    """A file that starts with what is known of the server; every answer is on the disk before the next is asked for.

    A last line that a killed process wrote only in part is removed.

    Attributes:
        found: The answers on file, by question.
    """

    def __init__(self, path: Path, server: Mapping[str, Any]) -> None:
        self.path = path
        self.found: dict[Question, dict[str, Any]] = {}
        lines = self._whole_lines()
        if lines and lines[0] != dict(server):
            changed = ", ".join(
                f"{key} {lines[0].get(key)!r} there, {value!r} now"
                for key, value in server.items()
                if lines[0].get(key) != value
            )
            raise ArtifactError(
                f"{path} holds answers of another server or other models ({changed}); start the same server, or use --force."
            )
        for line in lines[1:]:
            self.found[Question(*line["question"])] = line["answer"]
        self._file = path.open("ab")
        if not lines:
            self._write(dict(server))

    def _whole_lines(self) -> list[dict[str, Any]]:
        if not self.path.is_file():
            return []
        data = self.path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data):
            os.truncate(self.path, len(whole))
        try:
            return [json.loads(line) for line in whole.splitlines()]
        except ValueError:
            raise ArtifactError(f"{self.path} is damaged; run the stage again with --force.") from None

    def append(self, question: Question, answer: Mapping[str, Any]) -> None:
        """Write an answer and wait until it is on the disk."""
        self._write({"question": list(question), "answer": dict(answer)})
        self.found[question] = dict(answer)

    def _write(self, line: Mapping[str, Any]) -> None:
        try:
            self._file.write(json.dumps(line).encode() + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise ArtifactError(
                f"{self.path} cannot be written ({error.strerror}); free space and run again."
            ) from None

    def close(self) -> None:
        """Close the file."""
        self._file.close()
