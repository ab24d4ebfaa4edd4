"""Several processes that make one store: who does what, and how all end when one does.

Under ``torchrun`` (or any launcher that sets RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT) the processes meet through
torch.distributed (gloo). They share the store's folder, so nothing but short messages goes between them: each writes
its own shards, the first writes the token stream and the manifest.
"""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from types import FrameType
from typing import Any, TypeVar

from mechprobe.errors import ConfigError, EndedElsewhereError, MechprobeError, StoreError

T = TypeVar("T")

_MEETING = timedelta(minutes=10)
"""How long the processes wait for each other to start."""
_WORKING = timedelta(days=365)
"""How long one waits for another's work: the end of a process is noticed by its closed connection, not by the clock."""
_ENDED = "Another process of this command ended before its work was done; the same command, with any number of processes, goes on from there."


class Ranks:
    """One process among ``count``; alone, every method does the plain thing.

    Attributes:
        index: Number of this process.
        count: Number of processes.
    """

    def __init__(self, index: int = 0, count: int = 1, group: Any = None) -> None:
        self.index, self.count, self._group = index, count, group

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes what there is one of."""
        return self.index == 0

    def owns(self, number: int) -> bool:
        """Whether the piece of work of that number is this process's: they are dealt out in turn."""
        return number % self.count == self.index

    @contextmanager
    def agreeing(self) -> Iterator[None]:
        """Leave the block together: with success in all processes, or with an error in all.

        Raises:
            MechprobeError: That of the lowest rank that failed, in that process; `EndedElsewhereError` in the others.
        """
        failed: MechprobeError | None = None
        try:
            yield
        except MechprobeError as error:
            if self.count == 1:
                raise
            failed = error
        if self.count > 1:
            states = self.gather(None if failed is None else str(failed))
            first = next((rank for rank, state in enumerate(states) if state is not None), None)
            if first is not None:
                raise failed if failed is not None and first == self.index else EndedElsewhereError(str(states[first]))

    def gather(self, value: T) -> list[T]:
        """The value of every process, in order; waits for all."""
        if self.count == 1:
            return [value]
        import torch.distributed as dist

        values: list[Any] = [None] * self.count
        _talk(lambda: dist.all_gather_object(values, value, group=self._group), self.index)
        return values

    def wait(self) -> None:
        """Wait until every process is here."""
        self.gather(None)


def _talk(message: Callable[[], Any], index: int) -> None:
    """Exchange a message; a connection that another process closed is one sentence, said by the first process."""
    try:
        message()
    except RuntimeError:
        raise (StoreError if index == 0 else EndedElsewhereError)(_ENDED) from None


@contextmanager
def ranks_of_environment() -> Iterator[Ranks]:
    """The processes that a launcher started, or this one alone.

    Raises:
        ConfigError: The environment names several processes and not where they meet.
    """
    index, count = _rank_and_count()
    if count == 1:
        yield Ranks()
        return
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise ConfigError(f"WORLD_SIZE is {count} and {missing[0]} is not set; start with torchrun, or use --part.")
    import torch.distributed as dist

    if index == 0:
        signal.signal(signal.SIGTERM, _ended)
    _talk(lambda: dist.init_process_group("gloo", init_method="env://", timeout=_MEETING), index)
    try:
        yield Ranks(index, count, dist.new_group(backend="gloo", timeout=_WORKING))
    finally:
        dist.destroy_process_group()


def require_one_process(command: str) -> None:
    """Raise `ConfigError` under a launcher of several processes, for a command that is not made for them."""
    if _rank_and_count()[1] > 1:
        raise ConfigError(
            f"`{command}` is one process and WORLD_SIZE says several; make the store with `torchrun -m mechprobe cache`, "
            "then run this without torchrun."
        )


def _rank_and_count() -> tuple[int, int]:
    try:
        return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    except ValueError:
        raise ConfigError("RANK and WORLD_SIZE in the environment are no numbers; start with torchrun.") from None


def _ended(_number: int, _frame: FrameType | None) -> None:
    """What a launcher sends to the first process when another one died."""
    sys.stderr.write(f"mechprobe: {_ENDED}\n")
    raise SystemExit(2)


def local_device(device: str) -> str:
    """The device of this process: under a launcher each process of a machine has a GPU of its own."""
    local = os.environ.get("LOCAL_RANK")
    return (
        f"cuda:{local}"
        if device == "cuda" and local is not None and int(os.environ.get("WORLD_SIZE", "1")) > 1
        else device
    )


def parse_part(text: str) -> Ranks:
    """``2/8`` as the share of process 2 of 8 (counted from 0) that never meet.

    Raises:
        ConfigError: It cannot be read.
    """
    index, slash, count = text.partition("/")
    if not slash or not index.isdecimal() or not count.isdecimal() or not 0 <= int(index) < int(count):
        raise ConfigError(f"--part {text!r} cannot be read; write I/N with I from 0 to N-1, for example 0/8.")
    return Ranks(int(index), int(count))
