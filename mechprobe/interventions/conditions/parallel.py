"""Runs conditions one after another, or in several processes."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context, parent_process
from threading import Thread

import torch

from mechprobe.interventions.conditions.condition import Condition
from mechprobe.interventions.conditions.runner import Runner

_worker: dict[str, Runner] = {}


def run_conditions(
    runner: Runner, conditions: Sequence[Condition], *, workers: int = 1
) -> Iterator[tuple[Condition, dict[str, str]]]:
    """Yield each condition with its outcome codes when it finishes: in order with one worker, in any order with several.

    Args:
        runner: Runs them.
        conditions: What is run.
        workers: Number of processes, each with its share of the threads.
    """
    if workers == 1 or len(conditions) < 2:
        for condition in conditions:
            yield condition, runner.run(condition)
        return
    threads = max(1, torch.get_num_threads() // workers)
    pool = ProcessPoolExecutor(
        min(workers, len(conditions)), get_context("spawn"), initializer=_start, initargs=(runner, threads)
    )
    try:
        waiting = {pool.submit(_work, condition): condition for condition in conditions}
        for done in as_completed(waiting):
            yield waiting[done], done.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _start(runner: Runner, threads: int) -> None:
    Thread(target=_exit_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    _worker["runner"] = runner


def _exit_with_parent() -> None:
    """Exit when the parent dies, because a killed parent cannot stop its workers."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _work(condition: Condition) -> dict[str, str]:
    return _worker["runner"].run(condition)
