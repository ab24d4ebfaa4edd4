"""Several processes that make one store: how the work is divided, and how all processes end when one fails.

Under ``torchrun`` (or another launcher that sets RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT) the processes connect
through torch.distributed (gloo). They share the folder of the store and exchange only short messages. Each process writes
its own shards; the first process also writes the token stream and the manifest.
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
"""Maximum time to wait until all processes have started."""
_WORKING = timedelta(days=365)
"""Maximum time to wait for the work of another process. A closed connection, not this limit, shows that it has ended."""
_ENDED = (
    "Another process of this command ended before its work was done; run the same command again, with any number of "
    "processes, to resume."
)


class Ranks:
    """One process of ``count``. With one process, no method communicates.

    Attributes:
        index: Index of this process.
        count: Number of processes.
    """

    def __init__(self, index: int = 0, count: int = 1, group: Any = None) -> None:
        self.index, self.count, self._group = index, count, group

    @property
    def is_first(self) -> bool:
        """Whether this process writes the files that exist once per store."""
        return self.index == 0

    def owns(self, number: int) -> bool:
        """Whether this process does the piece of work with this number; pieces are assigned in turn."""
        return number % self.count == self.index

    @contextmanager
    def agreeing(self) -> Iterator[None]:
        """Leave the block in all processes together, either without an error or with an error in each.

        Raises:
            MechprobeError: The error of the lowest rank that failed, in that process; `EndedElsewhereError` in the others.
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
        """The values of all processes, in rank order; waits for all of them."""
        if self.count == 1:
            return [value]
        import torch.distributed as dist

        values: list[Any] = [None] * self.count
        _talk(lambda: dist.all_gather_object(values, value, group=self._group), self.index)
        return values

    def wait(self) -> None:
        """Wait until every process has reached this call."""
        self.gather(None)


def _talk(message: Callable[[], Any], index: int) -> None:
    """Exchange a message; when another process has closed the connection, the first process reports it in one sentence."""
    try:
        message()
    except RuntimeError:
        raise (StoreError if index == 0 else EndedElsewhereError)(_ENDED) from None


@contextmanager
def ranks_of_environment() -> Iterator[Ranks]:
    """The processes that a launcher started, or this process alone.

    Raises:
        ConfigError: The environment sets several processes but no address to connect to.
    """
    index, count = _rank_and_count()
    if count == 1:
        yield Ranks()
        return
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise ConfigError(f"WORLD_SIZE is {count}, but {missing[0]} is not set; start with torchrun, or use --part.")
    import torch.distributed as dist

    if index == 0:
        signal.signal(signal.SIGTERM, _ended)
    _talk(lambda: dist.init_process_group("gloo", init_method="env://", timeout=_MEETING), index)
    try:
        yield Ranks(index, count, dist.new_group(backend="gloo", timeout=_WORKING))
    finally:
        dist.destroy_process_group()


def require_one_process(command: str) -> None:
    """Raise `ConfigError` when a launcher started several processes for a command that runs in one."""
    if _rank_and_count()[1] > 1:
        raise ConfigError(
            f"`{command}` runs in one process, but WORLD_SIZE sets several; make the store with "
            "`torchrun -m mechprobe cache`, then run this command without torchrun."
        )


def _rank_and_count() -> tuple[int, int]:
    try:
        return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    except ValueError:
        raise ConfigError("The variables RANK and WORLD_SIZE must be numbers; start with torchrun.") from None


def _ended(_number: int, _frame: FrameType | None) -> None:
    """Handle the signal that a launcher sends to the first process when another process has died."""
    sys.stderr.write(f"mechprobe: {_ENDED}\n")
    raise SystemExit(2)


def local_device(device: str) -> str:
    """The device of this process. Under a launcher, each process on a machine uses a different GPU."""
    local, several = os.environ.get("LOCAL_RANK"), int(os.environ.get("WORLD_SIZE", "1")) > 1
    return f"cuda:{local}" if device == "cuda" and local is not None and several else device


def parse_part(text: str) -> Ranks:
    """Parse ``2/8`` as part 2 of 8 (counted from 0), for processes that do not communicate.

    Raises:
        ConfigError: The text is not a part.
    """
    index, slash, count = text.partition("/")
    if not slash or not index.isdecimal() or not count.isdecimal() or not 0 <= int(index) < int(count):
        raise ConfigError(f"--part {text!r} is not valid; write I/N with I from 0 to N-1, for example 0/8.")
    return Ranks(int(index), int(count))
