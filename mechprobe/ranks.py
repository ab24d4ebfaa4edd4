"""Several processes that do the work of one command: how it is divided, and how all end when one fails.

All processes run the same command with the same arguments and share one folder; `mechprobe.launcher` connects them.

* Where a stage does the same work on many items, `in_turns` gives every process its share and all of them all results, in
  the order of the items. An item is done in one process as it would be alone, so the results have the same bytes.
* What cannot be divided, such as questions to a server, the first process does for all (`once`).
* Everything else, every process does itself. The first one writes the files, prints, and shows the progress; the others
  write into a temporary copy of the stage folder (`mechprobe.stage_folder.Stage.open`).
* `mechprobe cache` divides its files instead: each process writes its own shards into the shared folder.
"""

import ctypes
import os
import pickle  # noqa: TID251 - among the processes of one command, as in all_gather_object of torch, which no signal interrupts
import platform
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import fields, is_dataclass, replace
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar, cast

from mechprobe.errors import ConfigError, EndedElsewhereError, StoreError
from sae_training.atomic import PARTIAL

WORKING = timedelta(days=365)
"""Maximum time to wait for the work of another process. `Watch` or a closed connection, not this limit, shows that it has ended."""

BEAT = 0.5
"""Seconds between two signs of life of a process."""
LATE = 600.0
"""Seconds without a sign of life after which a process counts as ended, such as one whose machine is lost."""

T = TypeVar("T")
R = TypeVar("R")

ENDED = (
    "Another process of this command has ended; run the same command again, with any number of processes, to resume."
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

        A process that fails notes it in the store, which the others see while they wait for any exchange.

        Raises:
            Exception: The error of the first process that failed, in that process; `EndedElsewhereError` in the others.
        """
        try:
            yield
        except EndedElsewhereError:
            raise
        except Exception as error:
            if self.count > 1 and not self._ended:
                self._ended = True
                if not reports():
                    raise EndedElsewhereError(str(error)) from None
            raise
        self.wait()

    def gather(self, value: T) -> list[T]:
        """The values of all processes, in rank order; waits for all of them.

        Raises:
            EndedElsewhereError: Another process has failed, and says why.
            StoreError: Another process has ended, and this one says so.
        """
        return [value] if self.count == 1 else self._exchange(value)

    def _exchange(self, value: Any) -> list[Any]:
        import torch

        mine = torch.frombuffer(bytearray(pickle.dumps(value)), dtype=torch.uint8)
        sizes = torch.cat(self._gathered(torch.tensor([mine.numel()]))).tolist()
        padded = mine.new_zeros(max(sizes))
        padded[: mine.numel()] = mine
        parts = self._gathered(padded)
        return [pickle.loads(part[:size].numpy().tobytes()) for part, size in zip(parts, sizes, strict=True)]  # noqa: S301

    def _gathered(self, tensor: Any) -> list[Any]:
        """The tensors of all processes, of one shape."""
        import torch.distributed as dist

        found = [tensor.new_empty(tensor.shape) for _ in range(self.count)]
        self.talk(lambda: dist.all_gather(found, tensor, group=self._group, async_op=True))
        return found

    def talk(self, message: Callable[[], Any]) -> None:
        """Exchange a message, and wait for it if it gives a work of torch.distributed.

        Raises:
            EndedElsewhereError: Another process has ended, and says why, or a third one says so.
            StoreError: Another process has ended, and this one says so.
        """
        try:
            work = message()
            if work is not None:
                try:
                    self.poll(work.is_completed)
                except BaseException:  # the group's destructor waits for the work, which a lost process never ends
                    ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._group))
                    raise
                work.wait()
        except RuntimeError:
            raise self._end() from None

    def poll(self, done: Callable[[], bool]) -> None:
        """Wait in short steps, between which this process handles signals and notices that another one has ended.

        Raises:
            EndedElsewhereError: Another process has ended, and says why, or a third one says so.
            StoreError: Another process has ended, and this one says so.
        """
        pause, waited, beats = 2e-5, 0.0, -1
        while not done():
            watch = Process.watch
            if watch is not None:
                waited = waited + pause if watch.beats == beats else 0.0
                beats = watch.beats
                if watch.over or waited > LATE:
                    watch.stuck = waited > LATE
                    raise self._end()
            time.sleep(pause)
            pause = min(1.3 * pause, 0.01)

    def _end(self) -> StoreError:
        self._ended = True
        return (StoreError if reports() else EndedElsewhereError)(ENDED)

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
        return dist.new_group(backend="nccl", timeout=WORKING)

    @contextmanager
    def own_copy(self, folder: Path, *, needed: bool = True) -> Iterator[Path]:
        """The folder in the first process, a temporary copy in the others, if one is ``needed``, whose files are not kept."""
        self.require_shared(folder)
        copied = needed and not self.is_first
        with TemporaryDirectory(prefix="mechprobe_rank_") if copied else nullcontext(folder) as own:
            if copied:
                # the first process may be removing a temporary file, such as the mark of `require_shared`
                shutil.copytree(folder, own, dirs_exist_ok=True, ignore=shutil.ignore_patterns(f"*{PARTIAL}"))
            self.wait()
            yield Path(own)

    def wait(self) -> None:
        """Wait until every process has reached this call."""
        self.gather(None)

    def require_shared(self, folder: Path) -> None:
        """Check that all processes see what the first one writes into a folder, if it can write there.

        Raises:
            StoreError: Another process does not see it.
        """
        if self.count == 1:
            return
        mark = folder / f".{secrets.token_hex(8)}{PARTIAL}"
        try:
            if self.is_first:
                with suppress(OSError):
                    mark.touch()
            name = self.gather(mark.name if mark.exists() else "")[0]
            if name and not (folder / name).exists():
                raise StoreError(
                    f"Process {self.index} does not see what process 0 writes into {folder}; share the folder."
                )
            self.wait()
        finally:
            mark.unlink(missing_ok=True)


class Process:
    """The processes that run this command, whether they divide its work at this place, and how the command ends.

    The processes meet in ``store``, which ``watch`` (`mechprobe.launcher.Watch`) looks at. ``reported`` says that an error that ends all is known.
    """

    ranks, divides = Ranks(), False
    store: Any = None
    watch: Any = None
    n_meetings, reported = 0, False


def is_first() -> bool:
    """Whether this process writes, prints and shows progress: the first of several, or the only one."""
    return Process.ranks.is_first


def processes() -> Ranks:
    """The processes that run this command, whether they divide its work here or not."""
    return Process.ranks


def sharing() -> Ranks:
    """The processes that divide the work at this place; this one alone inside a piece of divided work."""
    return Process.ranks if Process.divides else Ranks()


@contextmanager
def within(ranks: Ranks, *, divides: bool) -> Iterator[None]:
    """Set the processes that run this command, and whether they divide its work, for a block."""
    before = Process.ranks, Process.divides
    Process.ranks, Process.divides = ranks, divides
    try:
        yield
    finally:
        Process.ranks, Process.divides = before


def in_turns(work: Callable[[T], R], items: Sequence[T], *, device: Any = "cpu") -> Iterator[R]:
    """Results of ``work`` on all items, in order, in every process; item ``i`` is done by process ``i mod count``.

    After each round, which gives an item to every process, the results are exchanged; their tensors are on ``device``. A result
    must not depend on which items a process has done before.
    """
    ranks = sharing()
    if ranks.count == 1:
        yield from map(work, items)
        return
    for start in range(0, len(items), ranks.count):
        found: list[R] = []
        number = start + ranks.index
        if number < len(items):
            with within(ranks, divides=False):
                found.append(_moved(work(items[number]), "cpu"))
        for results in ranks.gather(found):
            yield from (_moved(result, device) for result in results)


def once(work: Callable[[], R]) -> R:
    """The result of ``work``, which only the first process does, and which all get."""
    ranks = sharing()
    if ranks.count == 1:
        return work()
    found: R | None = None
    if ranks.is_first:
        with within(ranks, divides=False):
            found = _moved(work(), "cpu")
    return cast("R", ranks.gather(found)[0])


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


def reports() -> bool:
    """Whether this process is the first one that ends, or that noticed the end of another, and says why."""
    index, count = rank_and_count()
    Process.reported = True
    if Process.store is None:
        return index == 0 or count == 2
    if Process.watch is not None and Process.watch.stuck:
        return os.environ.get("LOCAL_RANK", "0") == "0"
    try:
        return int(Process.store.add("ended", 1)) == 1
    except RuntimeError:  # the store was in the process that ended
        return index <= 1


def rank_and_count() -> tuple[int, int]:
    """Index of this process and number of processes, as the launcher says."""
    try:
        return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    except ValueError:
        raise ConfigError("The variables RANK and WORLD_SIZE must be numbers; start with torchrun.") from None
