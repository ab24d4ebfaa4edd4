"""Logs of Inspect (inspect-ai) as rollouts: a thin reader over ``inspect_ai.log.read_eval_log``."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mechprobe.errors import DependencyError, InputError, first_line

_FINISHES = {"stop": "stop", "max_tokens": "length", "model_length": "length"}
"""Stop reasons of Inspect that say how a response ended. Others, such as ``content_filter``, are refused."""


@dataclass(frozen=True)
class InspectLog:
    """A log, and the name in the family of the model whose responses it holds."""

    path: str
    model: str

    def __fspath__(self) -> str:
        return self.path

    def lines(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield place and line of rollouts for every sample; an epoch is a draw.

        Raises:
            DependencyError: inspect-ai is not installed.
            InputError: The log cannot be read, is unfinished, or a sample has an error, or is no single question and answer.
        """
        log = self._log()
        if log.status != "success":
            raise InputError(f"{self.path} is a log of an evaluation with status '{log.status}'; give a finished one.")
        engine = {"engine": f"Inspect ({str(log.eval.model).partition('/')[0]})"}
        engine["version"] = str((log.eval.packages or {}).get("inspect_ai", ""))
        for number, sample in enumerate(log.samples or (), 1):
            where = f"{self.path}:sample {number}"
            if sample.error is not None:
                raise InputError(f"{where} (id {sample.id}) has an error in the log; evaluate it again.")
            yield where, {**self._line(sample, where), **engine}

    def _log(self) -> Any:
        try:
            from inspect_ai.log import read_eval_log  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise DependencyError(
                "Logs of Inspect need inspect-ai, which is not installed: pip install inspect-ai."
            ) from None
        if not Path(self.path).is_file():
            raise InputError(f"{self.path} does not exist; give a log of Inspect.")
        try:
            return read_eval_log(self.path)
        except Exception as error:  # noqa: BLE001 - another library's reader may raise anything
            raise InputError(f"{self.path} cannot be read as a log of Inspect ({first_line(error)}).") from None

    def _line(self, sample: Any, where: str) -> dict[str, Any]:
        roles, asked = [message.role for message in sample.messages], f"{where} (id {sample.id})"
        if roles[:1] == ["system"] or roles.count("user") != 1 or roles.count("assistant") != 1:
            raise InputError(
                f"{asked} has the messages {', '.join(roles)}; only one question and its answer, without a system message, can be scored."
            )
        reason = sample.output.stop_reason
        if reason not in _FINISHES:
            raise InputError(f"{asked} stopped by '{reason}', not by its end or its limit; evaluate it again.")
        return {
            "id": str(sample.id),
            "model": self.model,
            "prompt": str(sample.messages[roles.index("user")].text),
            "response": str(sample.output.completion),
            "finish_reason": _FINISHES[reason],
            "sample": int(sample.epoch) - 1,
        }
