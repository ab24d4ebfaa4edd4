"""A headless browser without network, for the benchmark of the explorer and for the tests of pages."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from playwright.sync_api import Page

BROWSER = "MECHPROBE_BROWSER"
"""Environment variable with the path of a Chromium."""
_FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
_TIMEOUT_MS = 60_000


def browser_path() -> str | None:
    """Path of the browser: that of the variable, or an installed chromium."""
    return os.environ.get(BROWSER) or shutil.which("chromium")


@contextmanager
def browser_page(**options: Any) -> Iterator[Page]:
    """Yield a page of a new browser without network; ``options`` are those of Playwright's ``new_context``."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=browser_path(), args=list(_FLAGS))
        context = browser.new_context(**{"viewport": {"width": 1440, "height": 900}, "offline": True, **options})
        context.set_default_timeout(_TIMEOUT_MS)
        context.set_default_navigation_timeout(_TIMEOUT_MS)
        yield context.new_page()
        browser.close()


def wait_until(page: Page, expression: str, argument: Any = None) -> None:
    """Wait until an expression is true in the page, whose policy forbids Playwright's own way to wait for one."""
    deadline = time.monotonic() + _TIMEOUT_MS / 1000
    while not page.evaluate(expression, argument):
        if time.monotonic() > deadline:
            raise TimeoutError(f"never true: {expression}")
        page.wait_for_timeout(20)
