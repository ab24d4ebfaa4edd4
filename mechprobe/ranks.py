"""Several processes that do the work of one command: how it is divided, and how all end when one fails.

Under ``torchrun`` (or another launcher that sets RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT) the processes connect
through torch.distributed (gloo). All run the same command with the same arguments and share one folder.

* Where a stage does the same work on many items, `in_turns` gives every process its share and all of them all results, in
  the order of the items. An item is done in one process as it would be alone, so the results have the same bytes.
* Everything else, every process does itself. The first one writes the files, prints, and shows the progress; the others
  write into a temporary copy of the stage folder (`mechprobe.stage_folder.Stage.open`).
* `mechprobe cache` divides its files instead: each process writes its own shards into the shared folder.
"""

import os
import platform
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import fields, is_dataclass, replace
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import Any, TypeVar

from mechprobe.errors import ConfigError, EndedElsewhereError, StoreError
from sae_training.errors import UserError

T = TypeVar("T")
R = TypeVar("R")

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
        self._ended = False

    @property
    def is_first(self) -> bool:
        """Whether this process writes the files that exist once."""
        return self.index == 0

    def owns(self, number: int) -> bool:
        """Whether this process does the piece of work with this number; pieces are assigned in turn."""
        return number % self.count == self.index

    @contextmanager
    def agreeing(self) -> Iterator[None]:
        """Leave the block in all processes together, either without an error or with an error in each.

        A process that fails tells the others at their next exchange, wherever in the block that is.

        Raises:
            UserError: The error of the lowest rank that failed, in that process; `EndedElsewhereError` in the others.
        """
        try:
            yield
        except EndedElsewhereError:
            raise
        except UserError as error:
            if self.count > 1 and not self._ended:
                self._exchange(None, error)
            raise
        self.wait()

    def gather(self, value: T) -> list[T]:
        """The values of all processes, in rank order; waits for all of them.

        Raises:
            EndedElsewhereError: Another process has failed, and says why.
        """
        return [value] if self.count == 1 else self._exchange(value, None)

    def _exchange(self, value: Any, failure: UserError | None) -> list[Any]:
        """Exchange values, or the message of an error, after which no process exchanges anything."""
        import torch.distributed as dist

        values: list[Any] = [None] * self.count
        mine = (value, None if failure is None else str(failure))
        self.talk(lambda: dist.all_gather_object(values, mine, group=self._group))
        failed = [rank for rank, (_, message) in enumerate(values) if message is not None]
        self._ended = bool(failed)
        if failed and (failure is None or failed[0] != self.index):
            raise EndedElsewhereError(values[failed[0]][1]) from None
        return [found for found, _ in values]

    def talk(self, message: Callable[[], Any]) -> None:
        """Exchange a message of torch.distributed; raise the error that tells of an ended process if it fails."""
        try:
            _talk(message, self.index)
        except StoreError:
            self._ended = True
            raise

    def tensor_group(self, device: str) -> Any:
        """The group in which tensors of a device are exchanged: nccl between GPUs, gloo otherwise.

        Raises:
            ConfigError: Two processes of a machine use one GPU.
        """
        if self.count == 1 or not device.startswith("cuda"):
            return self._group
        import torch
        import torch.distributed as dist

        places = self.gather((platform.node(), torch.device(device).index or 0))
        if len(set(places)) < self.count:
            raise ConfigError(
                "Two processes use one GPU; start as many processes as there are GPUs, with --device cuda."
            )
        torch.cuda.set_device(device)
        return dist.new_group(backend="nccl", timeout=_WORKING)

    @contextmanager
    def own_copy(self, folder: Path) -> Iterator[Path]:
        """The folder in the first process, a temporary copy of it in the others, whose files are not kept."""
        with TemporaryDirectory(prefix="mechprobe_rank_") if not self.is_first else nullcontext(folder) as own:
            if not self.is_first:
                shutil.copytree(folder, own, dirs_exist_ok=True)
            self.wait()
            yield Path(own)

    def wait(self) -> None:
        """Wait until every process has reached this call."""
        self.gather(None)


class _Process:
    """The processes that run this command, and whether they divide its work at this place."""

    ranks, divides = Ranks(), False


def is_first() -> bool:
    """Whether this process writes, prints and shows progress: the first of several, or the only one."""
    return _Process.ranks.is_first


def processes() -> Ranks:
    """The processes that run this command, whether they divide its work here or not."""
    return _Process.ranks


def sharing() -> Ranks:
    """The processes that divide the work at this place; this one alone inside a piece of divided work."""
    return _Process.ranks if _Process.divides else Ranks()


@contextmanager
def _within(ranks: Ranks, *, divides: bool) -> Iterator[None]:
    before = _Process.ranks, _Process.divides
    _Process.ranks, _Process.divides = ranks, divides
    try:
        yield
    finally:
        _Process.ranks, _Process.divides = before


def in_turns(work: Callable[[T], R], items: Sequence[T], *, device: Any = "cpu") -> Iterator[R]:
    """Results of ``work`` on all items, in order, in every process; item ``i`` is done by process ``i mod count``.

    After each round, which gives an item to every process, the results are exchanged.

    Args:
        work: Its result must not depend on which items a process has done before.
        items: The items.
        device: Where the tensors of the results are.
    """
    ranks = sharing()
    if ranks.count == 1:
        yield from map(work, items)
        return
    for start in range(0, len(items), ranks.count):
        found: list[R] = []
        number = start + ranks.index
        if number < len(items):
            with _within(ranks, divides=False):
                found.append(_moved(work(items[number]), "cpu"))
        for results in ranks.gather(found):
            yield from (_moved(result, device) for result in results)


def _moved(value: Any, device: Any) -> Any:
    """A result with its tensors on a device; they are in tuples, lists, dictionaries and dataclasses."""
    import torch

    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, list | tuple):
        moved = [_moved(one, device) for one in value]
        return type(value)(*moved) if hasattr(value, "_fields") else type(value)(moved)
    if isinstance(value, dict):
        return {key: _moved(one, device) for key, one in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{field.name: _moved(getattr(value, field.name), device) for field in fields(value)})
    return value


def _talk(message: Callable[[], Any], index: int) -> None:
    """Exchange a message; when another process has closed the connection, the first process reports it in one sentence."""
    try:
        message()
    except RuntimeError:
        raise (StoreError if index == 0 else EndedElsewhereError)(_ENDED) from None


@contextmanager
def ranks_of_environment(*, divides: bool = False) -> Iterator[Ranks]:
    """The processes that a launcher started, or this process alone.

    Args:
        divides: Whether `in_turns` divides the work of the block.

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
        ranks = Ranks(index, count, dist.new_group(backend="gloo", timeout=_WORKING))
        with _within(ranks, divides=divides), ranks.agreeing() if divides else nullcontext():
            yield ranks
    finally:
        dist.destroy_process_group()


SEVERAL = ("cache", "train-sae", "features", "evaluate", "select", "intervene")
"""Commands that several processes can run together."""


@contextmanager
def ranks_of_command(command: str) -> Iterator[Ranks]:
    """The processes that run a command together; they divide its work, except for ``cache``, which divides its files.

    Raises:
        ConfigError: Several processes were started for a command that runs in one.
    """
    if command not in SEVERAL:
        require_one_process(f"mechprobe {command}")
    with ranks_of_environment(divides=command != "cache") as ranks:
        yield ranks


def require_one_process(command: str) -> None:
    """Raise `ConfigError` when a launcher started several processes for a command that runs in one."""
    if _rank_and_count()[1] > 1:
        raise ConfigError(
            f"`{command}` runs in one process, but WORLD_SIZE sets several; run it without torchrun. "
            f"Under torchrun run {', '.join(SEVERAL)}."
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
