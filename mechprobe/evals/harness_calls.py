"""Calls into lm-evaluation-harness: where its output goes, and how its exceptions become errors of mechprobe."""

import io
import logging
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout

from mechprobe.errors import InputError, MechprobeError
from mechprobe.models.devices import is_out_of_memory


@contextmanager
def harness_output() -> Iterator[None]:
    """Send the harness' stdout to stderr, silence its warnings, and show progress bars only if stderr is a terminal."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    with ExitStack() as stack:
        if not sys.stderr.isatty():
            stack.enter_context(redirect_stderr(io.StringIO()))
        stack.enter_context(redirect_stdout(sys.stderr))
        try:
            yield
        finally:
            logger.setLevel(level)


@contextmanager
def as_input_error(failure: str) -> Iterator[None]:
    """Raise an `InputError` of one sentence, ``failure`` and the reason, for any exception of the harness.

    Errors of mechprobe and out-of-memory errors pass unchanged.
    """
    try:
        yield
    except MechprobeError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise InputError(f"{failure} ({reason(error)}).") from error


def reason(error: BaseException) -> str:
    """Type and message of an exception on one line of at most 300 characters."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text or 'no reason given'}"[:300].rstrip(".")
