"""A model behind an OpenAI-compatible server as judge."""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mechprobe.environment import require
from mechprobe.errors import ConfigError, EndpointError
from mechprobe.evals.config import EndpointConfig
from mechprobe.evals.judging.config import JudgeConfig
from mechprobe.evals.judging.judge import Judge, Judged, Verdict, filled, read_verdict
from mechprobe.ranks import once

JOURNAL_FILE = "verdicts.jsonl"


@contextmanager
def settings_named(section: str) -> Iterator[None]:
    """Name the settings of a server in errors by ``section``; the functions that ask know them as ``evaluate.endpoint``."""
    try:
        yield
    except (ConfigError, EndpointError) as error:
        kind = ConfigError if isinstance(error, ConfigError) else EndpointError
        raise kind(str(error).replace("evaluate.endpoint", section)) from None


def check_key(endpoint: EndpointConfig, section: str) -> None:
    """Raise `ConfigError` if the environment variable of the key is not set, before any work."""
    from mechprobe.evals.rollouts.client import key_of

    with settings_named(section):
        key_of(endpoint)


class ServerJudge(Judge):
    """Asks ``/chat/completions`` for every verdict, at temperature 0. Answers are kept, so that none is asked for twice."""

    def __init__(self, config: JudgeConfig) -> None:
        super().__init__(config)
        assert config.endpoint is not None, "a judge on a server has its address"
        require("httpx2", "A judge on a server")
        check_key(config.endpoint, "judge.endpoint")
        self._endpoint = config.endpoint

    @property
    def identity(self) -> dict[str, Any]:
        """The server's address, the model's name there, and how it is asked."""
        asked = {"model", "template", "reads", "scale", "max_new_tokens"}
        return {"base_url": self._endpoint.base_url, **self.config.model_dump(mode="json", include=asked)}

    def verdicts(self, judged: Sequence[Judged], folder: Path) -> list[Verdict]:
        """The verdicts; an answer without a single verdict is undecided."""
        from mechprobe.evals.rollouts.endpoint import run_to_end

        with settings_named("judge.endpoint"):
            answers = once(lambda: run_to_end(self._ask_all(judged, folder / JOURNAL_FILE)))
        return [
            read_verdict(found["text"], self.config.reads, self.config.scale, cut=found["cut"]) for found in answers
        ]

    async def _ask_all(self, judged: Sequence[Judged], path: Path) -> list[dict[str, Any]]:
        from mechprobe.evals.rollouts.client import Client
        from mechprobe.evals.rollouts.journal import Journal

        client, journal = Client(self._endpoint), Journal(path, self.identity)
        try:
            missing = iter([one for one in judged if one.question not in journal.found])

            async def work(rest: Iterator[Judged]) -> None:
                for one in rest:
                    answer = await client.ask(
                        self._body(one), _content, name=f"the verdict on {one.question}", place="chat/completions"
                    )
                    journal.append(one.question, answer)

            await work(iter([one] if (one := next(missing, None)) else []))  # alone, because the key may be wrong
            try:
                async with asyncio.TaskGroup() as group:
                    for _ in range(self._endpoint.concurrency):
                        group.create_task(work(missing))
            except ExceptionGroup as errors:
                raise errors.exceptions[0] from None
        finally:
            journal.close()
            await client.close()
        return [journal.found[one.question] for one in judged]

    def _body(self, judged: Judged) -> dict[str, Any]:
        message = {"role": "user", "content": filled(self.config.template, judged)}
        return {
            "model": self.config.model,
            "messages": [message],
            "temperature": 0.0,
            "max_tokens": self.config.max_new_tokens,
        }


def _content(value: Any) -> dict[str, Any]:
    """What a chat completion says (empty where it says nothing), and whether it was cut.

    Raises:
        BadAnswerError: It is no chat completion.
    """
    from mechprobe.evals.rollouts.client import BadAnswerError

    choices = value.get("choices") if isinstance(value, dict) else None
    choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
    message = choice.get("message")
    if not isinstance(message, dict):
        raise BadAnswerError("its answer has no message")
    content = message.get("content")
    return {"text": content if isinstance(content, str) else "", "cut": choice.get("finish_reason") == "length"}
