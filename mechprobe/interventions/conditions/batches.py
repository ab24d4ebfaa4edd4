"""Runs conditions in batches that share their work, one batch after another or in several processes.

The conditions of a batch have the same host, read the same siblings and run on the same tasks. Their responses come from drafts
(`mechprobe.interventions.drafting.together`): the clean responses of the base and the tuned model. A batch is the same in every run of
a stage, also after an interruption, so that its responses are the same.
"""

import os
import signal
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import active_children, get_context, parent_process
from threading import Thread

import torch

from mechprobe.errors import OutOfMemoryError, is_out_of_memory
from mechprobe.evals.answering import Asking, askings
from mechprobe.evals.tasks import Task
from mechprobe.interventions.conditions.plan import Condition
from mechprobe.interventions.conditions.runner import Runner
from mechprobe.interventions.drafting.forward import DraftError
from mechprobe.interventions.drafting.rules import Decoding
from mechprobe.interventions.drafting.together import Together
from mechprobe.interventions.hooks.rewriting import SiteRewrite
from mechprobe.models.generation import Asked, Generated
from mechprobe.models.load import LanguageModel
from mechprobe.progress import tell_once
from mechprobe.ranks import in_turns, sharing

MOST_CONDITIONS = 50
"""Conditions of a batch: all are lost if a run is interrupted."""

Codes = dict[str, str]
Responses = dict[tuple[str, str], list[Generated]]
_Key = tuple[str, tuple[str, ...], tuple[str, ...]]


def has_drafts(runner: Runner, condition: Condition) -> bool:
    """Whether responses of a condition can be checked in one pass: it changes the residual at one site, and the prompt is the clean one.

    A change of weights changes the residuals below the site too, and a forced beginning makes other prompts. Log-likelihoods of
    options are no responses.
    """
    if all(task.by_likelihood for task in runner.tasks_of(condition)):
        return False
    if condition.how == "rival":
        return runner.rivals[condition.features].weight_rank is None
    return condition.how not in ("clean", "prefix")


def batches(runner: Runner, conditions: Sequence[Condition]) -> list[list[Condition]]:
    """The conditions in batches, host by host; one that `has_drafts` excludes is alone."""
    hosts = list(dict.fromkeys(condition.model for condition in conditions))
    groups: dict[object, list[Condition]] = defaultdict(list)
    for condition in sorted(conditions, key=lambda condition: hosts.index(condition.model)):
        key = _key(runner, condition) if has_drafts(runner, condition) else condition.name
        groups[key].append(condition)
    return [
        group[start : start + MOST_CONDITIONS]
        for group in groups.values()
        for start in range(0, len(group), MOST_CONDITIONS)
    ]


def _key(runner: Runner, condition: Condition) -> _Key:
    nothing = condition.how == "edit" and not condition.ids and condition.edit != "replace"
    return condition.model, () if nothing else tuple(runner.reads(condition)), condition.tasks


class DraftingRunner:
    """Runs batches of conditions. Clean responses, which are the drafts, are generated once."""

    def __init__(self, runner: Runner) -> None:
        self.runner = runner
        self._clean: dict[str, Responses] = {}
        self._scored: dict[object, str] = {}
        self._asked: dict[tuple[str, ...], list[Asking]] = {}
        self._together: dict[tuple[str, tuple[str, ...]], Together] = {}

    def clean(self, model: str) -> Responses:
        """Clean responses of a model to all tasks that ask for responses."""
        if model not in self._clean:
            found: Responses = {}
            for asking in self.askings(self.runner.tasks):
                whole = self._whole(model)
                responses = asking.responses(whole, batch_size=self.runner.config.batch_size)
                found |= asking.by_sample(responses)
            self._clean[model] = found
        return self._clean[model]

    def prepare(self) -> None:
        """Generate all drafts, for processes that get a copy of the runner."""
        for model in (self.runner.config.base, self.runner.config.tuned):
            self.clean(model)

    def askings(self, tasks: Sequence[Task]) -> list[Asking]:
        """The samples of tasks that ask for responses."""
        key = tuple(task.name for task in tasks)
        if key not in self._asked:
            queries = [(task, sample) for task in tasks if not task.by_likelihood for sample in task.samples]
            self._asked[key] = askings(self.runner.family.tokenizers, queries)
        return self._asked[key]

    def run(self, batch: Sequence[Condition], changes: Sequence[SiteRewrite] | None = None) -> list[Codes]:
        """Outcome codes of the conditions of a batch, see `Runner.run`; ``changes`` are theirs by default."""
        first, self._scored = batch[0], {}
        if first.how == "clean":
            return [self.codes(first, self.clean(first.model))]
        if not has_drafts(self.runner, first):
            self._whole(first.model)
            return [self.runner.run(condition) for condition in batch]
        try:
            responses = self.responses(batch, changes)
        except DraftError as error:
            tell_once(f"{error}; conditions run token by token.")
            return [self.runner.run(condition, change=change) for condition, change in _paired(batch, changes)]
        found = zip(_paired(batch, changes), responses, strict=True)
        return [self.codes(condition, one, change) for (condition, change), one in found]

    def codes(self, condition: Condition, responses: Responses, change: SiteRewrite | None = None) -> Codes:
        """Outcome codes of a condition whose responses are known; equal responses of a batch are scored once."""
        tasks = self.runner.tasks_of(condition)
        found: Codes = {task.name: "" for task in tasks}
        for asking in self.askings(tasks):
            for index, (task, sample) in enumerate(asking.queries):
                given = responses[task.name, sample.id]
                key = (task.name, sample.id, tuple(one.written for one in given))
                if key not in self._scored:
                    outcomes = asking.outcomes(index, given, condition.name)
                    self._scored[key] = "".join(outcome.code for outcome in outcomes)
                found[task.name] += self._scored[key]
        compared = [task for task in tasks if task.by_likelihood]
        return found | (self.runner.run(condition, compared, change) if compared else {})

    @torch.no_grad()
    def responses(self, batch: Sequence[Condition], changes: Sequence[SiteRewrite] | None = None) -> list[Responses]:
        """Responses of the conditions of a batch, by task and sample.

        Raises:
            DraftError: The architecture does not allow drafts.
        """
        runner, first = self.runner, batch[0]
        changes = [change or runner.change(condition) for condition, change in _paired(batch, changes)]
        other = runner.config.tuned if first.model == runner.config.base else runner.config.base
        for name in (other, first.model):  # the host last, so that it stays in memory
            self.clean(name)
        together, found = self._of(first.model, changes), [Responses() for _ in batch]
        for asking in self.askings(runner.tasks_of(first)):
            known = [self.drafts(asking, name) for name in dict.fromkeys((first.model, other))]
            asked = Asked.of(together.host, asking.encoder.tokenizer, None)
            per_edit = together.respond(
                changes,
                asked,
                asking.ids,
                list(zip(*known, strict=True)),
                Decoding(**asking.options),
                batch_size=runner.config.batch_size,
            )
            for responses, generated in zip(found, per_edit, strict=True):
                responses |= asking.by_sample(generated)
        return found

    def drafts(self, asking: Asking, model: str) -> list[tuple[int, ...]]:
        """What a model writes clean to every prompt."""
        clean = self.clean(model)
        return [one.written for task, sample in asking.queries for one in clean[task.name, sample.id]]

    def _of(self, host: str, changes: Sequence[SiteRewrite]) -> Together:
        reads = tuple(sorted({name for change in changes for name in change.reads}))
        if (host, reads) not in self._together or self._together[host, reads].is_stale:
            self._together.clear()
            whole = self._whole(host)
            siblings = {name: self.runner.models[name] for name in reads}
            self._together = {(host, reads): Together(whole, self.runner.site, siblings)}
        return self._together[host, reads]

    def _whole(self, host: str) -> LanguageModel:
        """The whole model; states of another host's models are let go before."""
        if any(name != host for name, _ in self._together):
            self._together.clear()
        return self.runner.models.whole(host)


def _paired(
    batch: Sequence[Condition], changes: Sequence[SiteRewrite] | None
) -> list[tuple[Condition, SiteRewrite | None]]:
    return list(zip(batch, changes or [None] * len(batch), strict=True))


_worker: dict[str, DraftingRunner] = {}


def run_conditions(
    runner: Runner, conditions: Sequence[Condition], *, workers: int = 1, done: Collection[str] = ()
) -> Iterator[tuple[Condition, Codes]]:
    """Yield each condition with its outcome codes when its batch finishes: in order of the batches with one worker.

    Several ``workers`` are processes, each with its share of the threads. A batch whose conditions are all named in ``done`` is left
    out; the others run whole, so that the result is the same as without the interruption.
    """
    waiting = [batch for batch in batches(runner, conditions) if not all(one.name in done for one in batch)]
    drafting = DraftingRunner(runner)
    several = sharing().count > 1  # the processes of a launcher take the place of workers
    if several or (workers > 1 and len(waiting) > 1):
        drafting.prepare()
    if several or workers == 1 or len(waiting) < 2:
        for batch, codes in zip(waiting, in_turns(drafting.run, waiting), strict=True):
            yield from zip(batch, codes, strict=True)
        return
    threads = max(1, torch.get_num_threads() // workers)
    pool = ProcessPoolExecutor(
        min(workers, len(waiting)), get_context("spawn"), initializer=_start, initargs=(drafting, threads)
    )
    others = active_children()
    try:
        with _no_interrupts_in_children():
            futures = {pool.submit(_work, batch): batch for batch in waiting}
        for future in as_completed(futures):
            yield from zip(futures[future], future.result(), strict=True)
    except BrokenProcessPool:
        raise OutOfMemoryError(
            "A worker process of intervene was ended, which the system does when memory runs out; lower intervene.workers, "
            f"now {workers}, and run the same command again."
        ) from None
    except BaseException:
        for child in set(active_children()).difference(others):
            child.terminate()  # what it has begun is lost, whether its end is awaited or not
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _no_interrupts_in_children() -> Iterator[None]:
    """Start processes that Ctrl-C does not reach, which each would answer with a traceback; this process ends them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start(drafting: DraftingRunner, threads: int) -> None:
    try:
        Thread(target=_exit_with_parent, daemon=True).start()
    except RuntimeError as error:
        if is_out_of_memory(error):
            os._exit(1)  # the parent says it; the pool would print the traceback
        raise
    torch.set_num_threads(threads)
    _worker["runner"] = drafting


def _exit_with_parent() -> None:
    """Exit when the parent dies, because a killed parent cannot stop its workers."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _work(batch: list[Condition]) -> list[Codes]:
    return _worker["runner"].run(batch)
