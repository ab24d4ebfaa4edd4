"""Work in the background that keeps its order and needs bounded memory."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any


class Background:
    """One thread that does pieces of work in order. An error of a piece is raised by the next `submit` or `finish`.

    Leaving the context waits for the pieces that began or wait, also after an error, so that finished work is kept.
    """

    def __init__(self, name: str, *, ahead: int = 1) -> None:
        """Start the thread.

        Args:
            name: Name of the thread.
            ahead: Most pieces that may be unfinished; `submit` waits for the oldest of them.
        """
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)
        self._ahead = ahead
        self._pending: deque[Future[Any]] = deque()

    def submit(self, work: Callable[..., Any], *args: Any, **options: Any) -> None:
        """Begin a piece of work once fewer than ``ahead`` pieces are unfinished."""
        self._wait(self._ahead - 1)
        self._pending.append(self._executor.submit(work, *args, **options))

    def finish(self) -> None:
        """Wait for all pieces."""
        self._wait(0)

    def _wait(self, n_left: int) -> None:
        while len(self._pending) > n_left:
            self._pending.popleft().result()

    def __enter__(self) -> "Background":
        return self

    def __exit__(self, kind: object, *_raised: object) -> None:
        try:
            if kind is None:
                self.finish()
        finally:
            self._executor.shutdown(wait=True)
