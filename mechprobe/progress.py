"""A progress bar on stderr for long work; silent where stderr is no terminal."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, runtime_checkable


@runtime_checkable
class Advance(Protocol):
    """Moves the bar on by ``n`` units and shows ``fields`` behind it."""

    def __call__(self, n: int | float = 1, **fields: object) -> None:
        """Advance by ``n``."""
        ...


def _silent(n: int | float = 1, **fields: object) -> None:
    del n, fields


@contextmanager
def progress(total: int | float | None, description: str, *, unit: str = "", quiet: bool = False) -> Iterator[Advance]:
    """Show a bar while the block runs.

    Args:
        total: Units in all, or None where they are not known.
        description: What is being done, in two or three words.
        unit: Name of the unit, shown behind the count.
        quiet: Show nothing; for all but the first of several processes.

    Yields:
        A function ``advance(n, **fields)``.
    """
    if quiet or not sys.stderr.isatty():
        yield _silent
        return

    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(description, total=total, note="")

        def advance(n: int | float = 1, **fields: object) -> None:
            note = "  ".join(
                f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}"
                for name, value in fields.items()
            )
            bar.update(task, advance=n, note=note)

        yield advance
