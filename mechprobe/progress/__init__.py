"""Progress of long work: what runs now, how much is done, the rate, the remaining time and the memory.

Work says what it is with `progress` (counted) and `activity` (not counted). A command of the command line shows all of it on
stderr from its beginning to its end; in Python only counted work is shown, while it runs.
"""

import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from mechprobe.progress.display import screen
from mechprobe.progress.meter import Advance, Meter
from mechprobe.progress.processes import is_first_process, other_rank

__all__ = ["Advance", "Meter", "activity", "forget_told", "is_log", "loading", "progress", "stage", "tell_once"]

_told: set[str] = set()


def tell_once(sentence: str, *, of_each_rank: bool = False) -> None:
    """Say something on stderr once per command.

    Args:
        sentence: What to say.
        of_each_rank: Whether it can be true of one rank alone, so that each says it, with its number. Otherwise only the first does.
            Workers say nothing.
    """
    rank = other_rank() if of_each_rank else ""
    if sentence not in _told and (rank or is_first_process()):
        _told.add(sentence)
        logging.getLogger("mechprobe").warning("%s", f"Process {rank}: {sentence}" if rank else sentence)


def forget_told() -> None:
    """Begin a new command, which says everything again."""
    _told.clear()


def is_log(path: Path) -> bool:
    """Whether a path is the file of ``--log-json``, which may lie in the folder of a run."""
    return screen.log is not None and path.resolve() == screen.log.path.resolve()


@contextmanager
def progress(
    total: int | float | None, description: str, *, unit: str = "", quiet: bool = False, inner: bool = False
) -> Iterator[Meter]:
    """Show count, rate, remaining time and memory while the ``with`` block runs.

    Args:
        total: Number of units, or None if it is unknown.
        description: The work in two or three words.
        unit: Name of the unit, in the plural.
        quiet: Whether to show nothing; for all but the first of several processes.
        inner: Whether to show it only beside other work; for a part that is usually short.

    Yields:
        A `Meter`: ``advance(n, **fields)`` counts units, and ``advance.found(n)`` those that an earlier command did.
    """
    meter = Meter(total, unit, screen.clock, description=description)
    if quiet:
        yield meter
        return
    with screen.during(meter, opens=not inner):
        yield meter


def activity(description: str) -> AbstractContextManager[None]:
    """Name work that is not counted, for the lines of a command or of the counted work around it."""
    return screen.during(screen.uncounted(description), opens=False)


def loading(description: str) -> AbstractContextManager[None]:
    """Name what is loaded, as `activity` does; it is an event of its own."""
    return screen.during(screen.uncounted(f"loading {description}"), opens=False, loading=True)


def stage(name: str) -> AbstractContextManager[None]:
    """Name the stage that runs."""
    return screen.during(screen.uncounted(name), "stage", opens=False)
