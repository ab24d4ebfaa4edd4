"""Asks an inference server for all responses."""

import asyncio
import hashlib
import threading
from collections.abc import Coroutine, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from mechprobe.data.prompts import Prompt
from mechprobe.errors import ConfigError, EndpointError, InputError
from mechprobe.evals.config import EndpointConfig
from mechprobe.evals.result import Engine
from mechprobe.evals.rollouts.answers import (
    FINISHES,
    Answers,
    PromptReader,
    Question,
    answer_of,
    questions_of,
    sampling_of,
)
from mechprobe.evals.rollouts.client import BadAnswerError, Client, RefusedError
from mechprobe.evals.rollouts.journal import Journal
from mechprobe.evals.rollouts.servers import Server, recognize
from mechprobe.evals.tasks import Task
from mechprobe.models.family import ModelFamily
from mechprobe.models.generation import Generated
from mechprobe.progress import Advance, Meter, progress

_NOT_UNDERSTOOD = (400, 422)
Result = TypeVar("Result")


@dataclass(frozen=True)
class Asked:
    """One question with everything that a request about it needs."""

    question: Question
    task: Task
    prompt: Prompt
    model: str
    """Name on the server."""
    prefix: str

    @property
    def seed(self) -> int:
        """Seed of the response, below 2³¹, from the task's seed and the question without the model."""
        text = f"{self.task.sampling.seed} {self.question[1:]}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1


def ask_endpoint(
    settings: EndpointConfig,
    family: ModelFamily,
    tasks: Sequence[Task],
    runs: Sequence[tuple[str, str, str]],
    journal: Path,
) -> Answers:
    """Ask the server for the responses that are not yet on file.

    Args:
        settings: The server.
        family: The models, for their tokenizer and end tokens.
        tasks: The tasks.
        runs: ``(name of the model, name in the outcomes, forced prefix)``.
        journal: File where answers are kept until the stage is finished.

    Raises:
        EndpointError: The server cannot be reached, refuses a request, or keeps failing.
        ConfigError: The key is missing, or the server cannot sample as the tasks say.
        InputError: A prompt cannot be sent.
        ArtifactError: The answers on file are of another server.
    """
    unknown = [name for name in settings.models if name not in family]
    if unknown:
        raise ConfigError(
            f"evaluate.endpoint.models names '{unknown[0]}', but the models are {', '.join(family.names)}; name one of them."
        )
    questions = [
        Asked(question, task, prompt, settings.models.get(model, model), prefix)
        for model, label, prefix in runs
        for task in tasks
        for sample in task.samples
        for question, prompt in questions_of(label, task, sample)
    ]
    names = {model: settings.models.get(model, model) for model, _, _ in runs}
    return run_to_end(_Asker(settings, family, tasks, names, journal, PromptReader(family)).ask_all(questions))


def run_to_end(work: Coroutine[Any, Any, Result]) -> Result:
    """Run a coroutine to its end, in a thread of its own where this one already runs an event loop, as notebooks do."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    found: list[Result] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            found.append(asyncio.run(work))
        except BaseException as error:  # noqa: BLE001 - raised again in the thread that waits
            failed.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return found[0]


@dataclass
class _Asker:
    settings: EndpointConfig
    family: ModelFamily
    tasks: Sequence[Task]
    names: dict[str, str]
    journal: Path
    prompts: PromptReader
    server: Server = field(default=Server("", ""))
    prompt_as: str = ""

    async def ask_all(self, questions: Sequence[Asked]) -> Answers:
        client = Client(self.settings)
        try:
            self.server = await recognize(client)
            self.server.check(self.tasks)
            self.prompt_as = (
                self.server.prompt_as or "" if self.settings.prompt_as == "auto" else self.settings.prompt_as
            )
            journal = self._journal()
            try:
                with progress(len(questions), "asking the server", unit="responses") as advance:
                    await self._ask_missing(client, journal, questions, advance)
            finally:
                journal.close()
        finally:
            await client.close()
        kept = {asked.question: journal.found[asked.question] for asked in questions}
        found = {asked.question: self._generated(asked, kept[asked.question]) for asked in questions}
        return Answers(found, self._engine(list(kept.values())))

    def _journal(self) -> Journal:
        known = {"server": self.server.name, "version": self.server.version, "models": self.names}
        return Journal(self.journal, known)

    async def _ask_missing(self, client: Client, journal: Journal, questions: Sequence[Asked], advance: Meter) -> None:
        missing = [asked for asked in questions if asked.question not in journal.found]
        advance.found(len(questions) - len(missing))
        first, rest = iter(missing[:1]), iter(missing[1:])
        await self._worker(client, journal, first, advance)  # alone, because the key and the names may be wrong
        if not self.prompt_as:
            self.prompt_as = "ids"
        sampled = any(task.sampling.temperature > 0 for task in self.tasks)
        n_workers = self.server.concurrency(self.settings.concurrency, sampled)
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(n_workers):
                    group.create_task(self._worker(client, journal, rest, advance))
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None

    async def _worker(self, client: Client, journal: Journal, questions: Iterator[Asked], advance: Advance) -> None:
        """Ask one question after another; workers share the iterator."""
        for asked in questions:
            answer = await self._answer(client, asked)
            self._generated(asked, answer)  # its error names the first answer of another tokenizer
            journal.append(asked.question, answer)
            advance()

    async def _answer(self, client: Client, asked: Asked) -> dict[str, Any]:
        if self.prompt_as:
            return await self._request(client, asked, self.prompt_as)
        try:
            answer = await self._request(client, asked, "ids")
        except RefusedError as refused:
            if refused.status not in _NOT_UNDERSTOOD:
                raise
            answer = await self._request(client, asked, "text")
            self.prompt_as = "text"
        return answer

    async def _request(self, client: Client, asked: Asked, prompt_as: str) -> dict[str, Any]:
        ids = self._prompt_ids(asked)
        prompt = list(ids) if prompt_as == "ids" else self._prompt_text(asked, ids)
        body = self.server.body(
            asked.task, model=asked.model, prompt=prompt, seed=asked.seed, end_ids=self.family.end_token_ids
        )
        answer = await client.ask(body, parse_completion, name=str(asked.question))
        n_read = answer.pop("n_prompt_tokens")
        if prompt_as == "text" and n_read not in (None, len(ids)):
            raise EndpointError(
                f"The server at {self.settings.base_url} reads {n_read} tokens in the prompt of {asked.question}, but the "
                f"tokenizer of the models gives {len(ids)}; give the server the same tokenizer, or set "
                "evaluate.endpoint.prompt_as = 'ids' if it takes token ids."
            )
        return {**answer, "prompt_as": prompt_as}

    def _prompt_ids(self, asked: Asked) -> tuple[int, ...]:
        return (*self.prompts.ids(asked.task, asked.prompt), *self._prefix_ids(asked))

    def _prefix_ids(self, asked: Asked) -> tuple[int, ...]:
        return self.prompts.encoder(asked.task).encode_text(asked.prefix)

    def _prompt_text(self, asked: Asked, ids: tuple[int, ...]) -> str:
        """A text that the server's tokenizer, which adds its special tokens, reads as these ids."""
        tokenizer = self.prompts.encoder(asked.task).tokenizer
        texts = [
            f"{text}{blank}{asked.prefix}"
            for text in self.prompts.texts(asked.task, asked.prompt)
            for blank in ("", " ")
        ]
        texts += [str(tokenizer.decode(list(ids), skip_special_tokens=True))]
        bos = str(tokenizer.bos_token or "")
        for text in (*texts, *(text.removeprefix(bos) for text in texts)):
            if tuple(tokenizer(text).input_ids) == ids:
                return text
        raise InputError(
            f"The prompt of {asked.question} has no text that a server reads as the same tokens; use a server that takes token "
            "ids, such as vLLM."
        )

    def _generated(self, asked: Asked, answer: dict[str, Any]) -> Generated:
        tokenizer = self.family.tokenizer
        made = answer_of(
            tokenizer,
            answer["text"],
            answer["finish"],
            ids=answer.get("ids"),
            stop=asked.task.stop,
            end_ids=self.family.end_token_ids,
            where=f"The server's answer for {asked.question}",
        )
        self._check_length(asked, made, exact=answer.get("ids") is not None)
        prefix = self._prefix_ids(asked)
        if not prefix:
            return made
        ids = (*prefix, *made.token_ids)
        exact = str(tokenizer.decode(list(made.token_ids), skip_special_tokens=True)) == made.text
        text = str(tokenizer.decode(list(ids), skip_special_tokens=True)) if exact else asked.prefix + made.text
        return Generated(text, ids, made.finish)

    def _check_length(self, asked: Asked, made: Generated, *, exact: bool) -> None:
        """Refuse a response longer than the limit. Our own tokens of a text may be a few more than the server's."""
        n, limit = len(made.token_ids), asked.task.max_new_tokens
        if n > (limit if exact else limit + limit // 4 + 4):
            raise EndpointError(
                f"The server at {self.settings.base_url} answers {asked.question} with {n} tokens, but was asked for at most "
                f"{limit}; use a server that observes max_tokens."
            )

    def _engine(self, answers: Sequence[dict[str, Any]]) -> Engine:
        return Engine(
            generation="endpoint",
            name=self.server.name,
            version=self.server.version,
            sampling={task.name: sampling_of(task) for task in self.tasks},
            prompts=self.prompts.hash(self.tasks),
            n_tokenized=sum(answer["ids"] is None for answer in answers),
            base_url=self.settings.base_url,
            models=self.names,
            prompt_as=" and ".join(sorted({answer["prompt_as"] for answer in answers})),
        )


def parse_completion(value: Any) -> dict[str, Any]:
    """Text, finish reason, token ids (None if the server gives none) and number of prompt tokens of a completion.

    Raises:
        BadAnswerError: Something of it is missing or of the wrong kind.
    """
    choices = value.get("choices") if isinstance(value, dict) else None
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise BadAnswerError("its answer has no choices")
    choice = choices[0]
    text, reason, ids = choice.get("text"), choice.get("finish_reason"), choice.get("token_ids")
    if not isinstance(text, str):
        raise BadAnswerError("its answer has no text")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise BadAnswerError("its answer holds half of a surrogate pair") from None
    if not isinstance(reason, str) or reason not in FINISHES:
        raise BadAnswerError(f"its answer has the finish_reason {reason!r}, which is none of {', '.join(FINISHES)}")
    if ids is not None and not (isinstance(ids, list) and all(type(token) is int for token in ids)):
        raise BadAnswerError("its answer has token ids that are no whole numbers")
    usage = value.get("usage")
    n_prompt = usage.get("prompt_tokens") if isinstance(usage, dict) else None
    return {"text": text, "finish": FINISHES[reason], "ids": ids, "n_prompt_tokens": n_prompt}
