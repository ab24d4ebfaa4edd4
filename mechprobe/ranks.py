"""Several processes that do the work of one command: how it is divided, and how all end when one fails.

Under ``torchrun`` (or another launcher that sets RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT) the processes connect
through torch.distributed (gloo). All run the same command with the same arguments and share one folder.

* Where a stage does the same work on many items, `in_turns` gives every process its share and all of them all results, in
  the order of the items. An item is done in one process as it would be alone, so the results have the same bytes.
* What cannot be divided, such as questions to a server, the first process does for all (`once`).
* Everything else, every process does itself. The first one writes the files, prints, and shows the progress; the others
  write into a temporary copy of the stage folder (`mechprobe.stage_folder.Stage.open`).
* `mechprobe cache` divides its files instead: each process writes its own shards into the shared folder.
"""

import os
import secrets
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import fields, is_dataclass, replace
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import Any, TypeVar, cast

from mechprobe.errors import ConfigError, EndedElsewhereError, StoreError
from sae_training.atomic import PARTIAL

T = TypeVar("T")
R = TypeVar("R")

_MEETING = timedelta(minutes=10)
"""Maximum time to wait until all processes have started."""
_WORKING = timedelta(days=365)
"""Maximum time to wait for the work of another process. A closed connection, not this limit, shows that it has ended."""
_ENDED = (
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

        A process that fails tells the others at their next exchange in the block.

        Raises:
            Exception: The error of the lowest rank that failed, in that process; `EndedElsewhereError` in the others.
        """
        try:
            yield
        except EndedElsewhereError:
            raise
        except Exception as error:
            if self.count > 1 and not self._ended:
                self._tell(error)
            raise
        self.wait()

    def _tell(self, error: Exception) -> None:
        try:
            self._exchange(None, error)
        except EndedElsewhereError:
            raise
        except StoreError:  # the own error says more than that another process has ended
            return

    def gather(self, value: T) -> list[T]:
        """The values of all processes, in rank order; waits for all of them.

        Raises:
            EndedElsewhereError: Another process has failed, and says why.
        """
        return [value] if self.count == 1 else self._exchange(value, None)

    def _exchange(self, value: Any, failure: Exception | None) -> list[Any]:
        """Exchange values, or the message of an error, after which no process exchanges anything."""
        import torch.distributed as dist

        values: list[Any] = [None] * self.count
        mine = (value, None if failure is None else str(failure))
        try:
            _talk(lambda: dist.all_gather_object(values, mine, group=self._group))
        except StoreError:
            self._ended = True
            raise
        failed = [rank for rank, (_, message) in enumerate(values) if message is not None]
        self._ended = _Process.reported = bool(failed)
        if failed and (failure is None or failed[0] != self.index):
            raise EndedElsewhereError(values[failed[0]][1]) from None
        return [found for found, _ in values]

    @contextmanager
    def own_copy(self, folder: Path, *, needed: bool = True) -> Iterator[Path]:
        """The folder in the first process, a temporary copy in the others, if one is ``needed``, whose files are not kept."""
        self.require_shared(folder)
        copied = needed and not self.is_first
        with TemporaryDirectory(prefix="mechprobe_rank_") if copied else nullcontext(folder) as own:
            if copied:
                shutil.copytree(folder, own, dirs_exist_ok=True)
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


class _Process:
    """The processes that run this command, whether they divide its work at this place, and how the command ends.

    The processes meet in ``store``. ``reported`` says that an error that ends all is known.
    """

    ranks, divides = Ranks(), False
    store: Any = None
    n_meetings, reported = 0, False


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
            with _within(ranks, divides=False):
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
        with _within(ranks, divides=False):
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


def _talk(message: Callable[[], R]) -> R:
    """Exchange a message; when another process has closed the connection, one of the others reports it in one sentence."""
    try:
        return message()
    except RuntimeError:
        raise (StoreError if _reports() else EndedElsewhereError)(_ENDED) from None


def _reports() -> bool:
    """Whether this process is the first one that noticed the end of another, which says so."""
    index, count = _rank_and_count()
    _Process.reported = True
    if _Process.store is None:
        return index == 0 or count == 2
    try:
        return int(_Process.store.add("ended", 1)) == 1
    except RuntimeError:  # the store was in the process that ended
        return index <= 1


def speaks() -> bool:
    """Whether this process says why the command ends: any that has an error of its own, or, before they meet, one on each machine."""
    first = os.environ.get("LOCAL_RANK", os.environ.get("RANK", "0")) == "0"
    return first or _Process.store is not None


@contextmanager
def ranks_of_environment(*, divides: bool = False, given: str = "") -> Iterator[Ranks]:
    """The processes that a launcher started, or this process alone; `in_turns` ``divides`` the work of the block or not.

    Raises:
        ConfigError: The environment sets several processes but no address to connect to, or the arguments of the command (``given``) differ.
    """
    index, count = _rank_and_count()
    _Process.store, _Process.reported = None, False
    if count == 1:
        yield Ranks()
        return
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise ConfigError(f"WORLD_SIZE is {count}, but {missing[0]} is not set; start with torchrun, or use --part.")
    before = signal.signal(signal.SIGTERM, _ended)
    import torch.distributed as dist

    _Process.n_meetings += 1
    try:
        _talk(_meet)
        ranks = Ranks(index, count, dist.new_group(backend="gloo", timeout=_WORKING))
        with ranks.agreeing():
            _require_same(ranks.gather(given))
        with _within(ranks, divides=divides), ranks.agreeing():
            yield ranks
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    signal.signal(signal.SIGTERM, before)  # after an error, the launcher still ends this process with exit code 2


def _meet() -> None:
    """Connect the processes."""
    import torch.distributed as dist

    found, index, count = next(dist.rendezvous("env://", timeout=_MEETING))
    store = dist.PrefixStore(f"mechprobe {_Process.n_meetings}", found)
    dist.init_process_group("gloo", store=store, rank=index, world_size=count, timeout=_MEETING)
    _Process.store = store


def _require_same(given: Sequence[str]) -> None:
    other = next((index for index, one in enumerate(given) if one != given[0]), None)
    if other is not None:
        raise ConfigError(
            f"Process {other} was started with other arguments than process 0; start all with the same command."
        )


SEVERAL = ("localize", "cache", "features", "evaluate", "select", "intervene", "drift", "logprobs", "sweep")
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
    """Handle the signal that a launcher sends to the processes that are left when one has died."""
    if _Process.reported:  # this process is ending, perhaps about to say why
        return
    if _reports():
        sys.stderr.write(f"mechprobe: {_ENDED}\n")
    raise SystemExit(2)
