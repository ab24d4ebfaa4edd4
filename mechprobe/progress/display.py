"""What a process shows of its work: live lines on a terminal, otherwise a line at least every ten seconds.

A thread writes the lines, so that they come during a long call, too. Only one process of a command shows anything: neither
processes that it starts nor the other ranks of a launcher do.
"""

import io
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, cast

from mechprobe.formatting import inert
from mechprobe.progress.live import Stream, can_redraw, live_lines
from mechprobe.progress.meter import Meter
from mechprobe.progress.processes import is_first_process

if TYPE_CHECKING:
    from rich.live import Live

    from mechprobe.progress.events import Event, EventLog

LOG_SECONDS = 5.0
"""Time between two lines where stderr is no terminal. Ten seconds are promised; calls that hold the interpreter may take the rest."""
FIRST_SECONDS = 0.5
"""A command that has said nothing after this time writes a line."""


@dataclass
class _Entry:
    work: Meter
    kind: Literal["command", "stage", "work"]
    thread: int
    logged: bool = False


class Display:
    """The running work of one process, outermost first, and where it is shown."""

    def __init__(self, stream: Stream | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock, self.log = clock, cast("EventLog | None", None)
        self._given, self._entries, self._users = stream, list[_Entry](), 0
        self._stream: Stream = stream or io.StringIO()
        self._beside: list[Meter] = []
        self._lock, self._ended = threading.RLock(), threading.Event()
        self._live: Live | None = None
        self._thread: threading.Thread | None = None
        self._preface: Meter | None = None
        self._due = self._first = 0.0

    @contextmanager
    def command(
        self, name: str, log: "EventLog | None" = None, *, loads: str = "", soon: bool = True
    ) -> Iterator[None]:
        """Show the work of a command.

        Args:
            name: Name of the command.
            log: Where its events go.
            loads: What it loads first, which is said at once.
            soon: Whether its first line comes soon, not only when lines are due.
        """
        self._first = min(FIRST_SECONDS, LOG_SECONDS) if soon else LOG_SECONDS
        self.log, handler = log, _Warnings(self)
        logging.getLogger("mechprobe").addHandler(handler)
        try:
            with self.during(self.uncounted(name), "command", opens=True):
                if loads:
                    self._say_loading(name, f"loading {loads}")
                yield
        finally:
            logging.getLogger("mechprobe").removeHandler(handler)
            self.log = self._preface = None

    def uncounted(self, description: str) -> Meter:
        """Work that is not counted."""
        return Meter(None, clock=self.clock, description=description, counted=False)

    def _say_loading(self, name: str, what: str) -> None:
        """Name what is loaded until the first work begins."""
        with self._lock:
            if not self._entries:  # another process shows the progress
                return
            self._preface = self.uncounted(what)
            self._event("loading", self._preface)
            if self._live is not None:
                self._live.refresh()  # what is loaded may hold the interpreter, and the thread that draws
            else:
                self._write(f"mechprobe {name}: {what}")
                self._due = self.clock() + LOG_SECONDS

    @contextmanager
    def during(
        self, work: Meter, kind: Literal["command", "stage", "work"] = "work", *, opens: bool, loading: bool = False
    ) -> Iterator[None]:
        """Show a piece of work while the block runs; ``opens``: even if nothing else is shown at the moment."""
        entry = _Entry(work, kind, threading.get_ident())
        with self._lock:
            shown = (opens or self._users > 0) and is_first_process()
            beside = bool(self._entries) and self._entries[0].thread != entry.thread
            if shown and not beside:
                self._begin(entry, opens, loading)
            elif shown:
                self._beside.append(work)
        if not shown or beside:
            try:
                yield
            finally:
                if work in self._beside:
                    self._beside.remove(work)
            return
        try:
            yield
        except BaseException as error:
            self._end(entry, opens, error)
            raise
        self._end(entry, opens, None)

    def _begin(self, entry: _Entry, opens: bool, loading: bool) -> None:
        inside = any(each.kind == "work" for each in self._entries)
        self._preface = None
        self._entries.append(entry)
        if loading or not inside:
            entry.logged = not loading
            self._event("loading" if loading else "start", entry.work)
        if opens:
            self._users += 1
            if self._users == 1:
                self._open(self._first if entry.kind == "command" else LOG_SECONDS)
        if self._live is None and self._users and can_redraw(self._stream):
            self._live = live_lines(self._stream, self._drawn)

    def _end(self, entry: _Entry, opens: bool, error: BaseException | None) -> None:
        with self._lock:
            if entry.logged:
                reason = None if error is None or entry.kind != "command" else str(error) or type(error).__name__
                self._event("finish", entry.work, ok=error is None, message=reason)
            self._entries.remove(entry)
            self._users -= opens
            last = not self._users
        if last and opens:
            self._close()

    def _open(self, seconds: float) -> None:
        self._stream = self._given or sys.stderr or io.StringIO()  # a process may have no stderr
        self._due = self.clock() + seconds
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, args=(self._ended,), name="progress", daemon=True)
        self._thread.start()

    def _close(self) -> None:
        self._ended.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
        self._thread = None
        self.hide()

    def hide(self) -> None:
        """Take the live lines away until further work begins, because results are printed."""
        live, self._live = self._live, None
        if live is not None:
            live.stop()

    def _beat(self, ended: threading.Event) -> None:
        while not ended.wait(max(0.02, min(self._due - self.clock(), LOG_SECONDS))):
            self.tick()

    def tick(self) -> None:
        """Write a line, and the events of the running work, if they are due."""
        with self._lock:
            if not self._entries or self.clock() < self._due:
                return
            self._due = self.clock() + LOG_SECONDS
            if self._live is None:
                self._write(self.line())
            works, inner = [entry.work for entry in self._entries if entry.work.counted], self._drawn()[-1]
            for work in works if inner.counted else [*works, inner]:
                self._event("progress", work)

    def line(self) -> str:
        """The running work on one line, for example ``sweep, sweeping 3/24 cells 9:10 left, generating: 64/256 prompts``."""
        *outer, inner = self._drawn()
        beside = [work.short_text() for work in list(self._beside) if work.counted]
        text = f"{', '.join([*(work.short_text() for work in outer), inner.description])}: {inner.text()}"
        return f"{text}  (meanwhile {', '.join(beside)})" if beside else text

    def _drawn(self) -> Sequence[Meter]:
        """The work to show: the outermost stage, or the command where there is none, and all work in it."""
        entries = list(self._entries)
        stage = next((each for each in entries if each.kind == "stage"), None)
        top = stage or (entries[0] if entries and entries[0].kind == "command" else None)
        work = [each.work for each in entries if each.kind == "work"]
        if self._preface is not None:
            work.append(self._preface)
        return [top.work, *work] if top is not None else work

    def _write(self, line: str) -> None:
        try:
            self._stream.write(f"{inert(line)}\n")
            self._stream.flush()
        except (OSError, ValueError):  # a reader that has ended stops no work
            return

    def warn(self, message: str) -> None:
        """Log a warning that was given on stderr."""
        with self._lock:
            self._event("warning", message=message)

    def _event(self, event: "Event", work: Meter | None = None, **values: object) -> None:
        if self.log is None or not is_first_process():
            return
        kinds = {each.kind: each.work.description for each in reversed(self._entries)}
        self.log.write(event, command=kinds.get("command", ""), stage=kinds.get("stage", ""), work=work, **values)  # type: ignore[arg-type]

    def forget(self) -> None:
        """Show nothing more: this process is the copy of one that shows its work, and has no thread for it."""
        proxied = getattr(sys.stderr, "rich_proxied_file", None)
        if proxied is not None:
            sys.stderr = proxied
        self.__init__()


class _Warnings(logging.Handler):
    """Logs warnings as events, and leaves their printing as it was."""

    def __init__(self, display: Display) -> None:
        super().__init__(logging.WARNING)
        self.display = display

    def emit(self, record: logging.LogRecord) -> None:
        self.display.warn(record.getMessage())
        others = [each for each in logging.getLogger("mechprobe").handlers if each is not self]
        if not others and not logging.getLogger().handlers and logging.lastResort is not None:
            logging.lastResort.handle(record)


screen = Display()
os.register_at_fork(after_in_child=screen.forget)
