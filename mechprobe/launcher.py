"""The processes that a launcher started: how they meet, which commands they share, and how all end when one is gone.

Under ``torchrun`` (or another launcher that sets RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT) the processes connect
through torch.distributed (gloo).
"""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from threading import Event, Thread
from types import FrameType
from typing import Any, TypeVar, cast

from mechprobe.errors import ConfigError, StoreError, first_line
from mechprobe.ranks import BEAT, LATE, WORKING, Process, Ranks, rank_and_count, reports, within

R = TypeVar("R")

_STOPPED = (
    "Another process of this command has ended, or its launcher was stopped; run the same command again, with any number "
    "of processes, to resume."
)

_MEETING = timedelta(minutes=10)
"""Maximum time to wait until all processes have started."""


def speaks() -> bool:
    """Whether this process says why the command ends: any that has an error of its own, or, before they meet, one on each machine."""
    first = os.environ.get("LOCAL_RANK", os.environ.get("RANK", "0")) == "0"
    return first or Process.store is not None


@contextmanager
def ranks_of_environment(*, divides: bool = False, given: str = "") -> Iterator[Ranks]:
    """The processes that a launcher started, or this process alone; `in_turns` ``divides`` the work of the block or not.

    Raises:
        ConfigError: The environment sets several processes but no address to connect to, or their arguments (``given``) differ.
        StoreError: The processes cannot connect.
    """
    _, count = rank_and_count()
    Process.store, Process.watch, Process.reported = None, None, False
    if count == 1:
        yield Ranks()
        return
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise ConfigError(f"WORLD_SIZE is {count}, but {missing[0]} is not set; start with torchrun, or use --part.")
    before = signal.signal(signal.SIGTERM, _ended)
    import torch.distributed as dist

    Process.n_meetings += 1
    try:
        ranks = _handling_signals(_meet)
        with ranks.agreeing():
            _require_same(ranks.gather(given))
        with within(ranks, divides=divides), ranks.agreeing():
            yield ranks
    finally:
        if Process.watch is not None:
            Process.watch.stop()
        if dist.is_initialized():
            dist.destroy_process_group()
    signal.signal(signal.SIGTERM, before)  # after an error, the launcher still ends this process with exit code 2


def _meet() -> Ranks:
    """Connect the processes."""
    import torch.distributed as dist

    try:
        found, index, count = next(dist.rendezvous("env://", timeout=_MEETING))
        store = dist.PrefixStore(f"mechprobe {Process.n_meetings}", found)
        dist.init_process_group("gloo", store=store, rank=index, world_size=count, timeout=_MEETING)
        group = dist.new_group(backend="gloo", timeout=WORKING)
        apart: Any = cast("Any", store).clone()  # its own connection, on which nobody waits for the watch
    except RuntimeError as error:
        Process.reported = True
        place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise StoreError(
            f"The processes cannot meet at {place} ({first_line(error)}); start all again, on a free port."
        ) from None
    Process.store, Process.watch = store, Watch(apart, index, count)
    Process.watch.start()
    return Ranks(index, count, group)


class Watch(Thread):
    """Signs of life of the processes in their store: each counts its own, and looks at the next one's.

    Time counts in signs of this process, so one that is stopped and continued with the others misses nothing.

    Attributes:
        beats: Number of signs given.
        over: Whether another process has ended, gives no sign for `LATE` seconds, or the store is gone.
        stuck: Whether the store does not answer, so that nobody may ask it.
    """

    def __init__(self, store: Any, index: int, count: int) -> None:
        super().__init__(daemon=True)
        self._store, self._own, self._next = store, f"sign {index}", f"sign {(index + 1) % count}"
        self._count, self._stopped = count, Event()
        self.beats, self.over, self.stuck = 0, False, False

    def run(self) -> None:
        """Give signs until the end."""
        seen, late = -1, 0.0
        try:
            while not self._stopped.wait(BEAT):
                self._store.add(self._own, 1)
                found = self._store.add(self._next, 0)
                late = late + BEAT if found == seen else 0.0
                seen = found
                told = self._store.add("ended", 0) > 0
                if told and not self.over:
                    self._store.add("heard", 1)
                self.over = self.over or late > LATE or told
                self.beats += 1
        except RuntimeError:  # the process with the store has ended
            self.over = True

    def stop(self) -> None:
        """Give no more signs. After an end, wait a little until all have heard of it: the store may be in this process."""
        with suppress(RuntimeError):
            for _ in range(30 if Process.reported and not self.stuck else 0):
                if self._store.add("heard", 0) >= self._count:
                    break
                time.sleep(BEAT / 5)
        self._stopped.set()
        self.join(2 * BEAT)


def _handling_signals(work: Callable[[], R]) -> R:
    """The result of ``work`` from a thread of its own, because Python handles signals between steps of this one."""
    found: list[R] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            found.append(work())
        except BaseException as error:  # noqa: BLE001 - raised again in the thread that waits
            failed.append(error)

    thread = Thread(target=run, daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(0.1)
    if failed:
        raise failed[0]
    return found[0]


def _require_same(given: Sequence[str]) -> None:
    other = next((index for index, one in enumerate(given) if one != given[0]), None)
    if other is not None:
        raise ConfigError(
            f"Process {other} was started with other arguments than process 0; start all with the same command."
        )


SEVERAL = (
    "localize",
    "cache",
    "train-sae",
    "features",
    "evaluate",
    "select",
    "intervene",
    "drift",
    "logprobs",
    "sweep",
)
"""Commands that several processes can run together."""


@contextmanager
def ranks_of_command(command: str, given: str = "") -> Iterator[Ranks]:
    """The processes that run a command together; they divide its work, except for ``cache``, which divides its files."""
    if command not in SEVERAL:
        require_one_process(f"mechprobe {command}")
    with ranks_of_environment(divides=command != "cache", given=given) as ranks:
        yield ranks


def require_one_process(command: str) -> None:
    """Raise `ConfigError` when a launcher started several processes for a command that runs in one."""
    if rank_and_count()[1] > 1:
        raise ConfigError(
            f"`{command}` runs in one process, but WORLD_SIZE sets several; run it without torchrun. "
            f"Under torchrun run {', '.join(SEVERAL)}."
        )


def expect_end() -> None:
    """From now on, end in one sentence when the launcher ends this process; call it before torch is imported."""
    if os.environ.get("WORLD_SIZE", "1") != "1":
        # no stack traces of C++ when the process with the store has ended
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
        signal.signal(signal.SIGTERM, _ended)


def _ended(_number: int, _frame: FrameType | None) -> None:
    """Handle the signal that a launcher sends when a process has died, and when it is stopped itself."""
    if Process.reported:  # this process is ending, perhaps about to say why
        return
    if reports():
        sys.stderr.write(f"mechprobe: {_STOPPED}\n")
    raise SystemExit(2)
