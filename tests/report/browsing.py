"""What the tests of pages ask a browser: what axe-core finds, and what is clipped."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from playwright.sync_api import Page


def serious(
    page: "Page", *, include: Sequence[str] = ("html",), exclude: Sequence[str] = (), rules: Sequence[str] = ()
) -> list[Any]:
    """The serious and critical issues that axe-core finds, by all rules or some: rule, and the first elements.

    The policy of a page forbids scripts that are added to it, so axe runs through the debugger.
    """
    from axe_playwright_python.sync_playwright import Axe

    if not page.evaluate("'axe' in window"):
        page.evaluate(Axe().axe_script)
    found = page.evaluate(
        """([include, exclude, rules]) => axe.run({include, exclude}, {
          preload: false, resultTypes: ['violations'], ...(rules.length ? {runOnly: rules} : {}),
        })""",
        [list(include), list(exclude), list(rules)],
    )
    items = [item for item in found["violations"] if item["impact"] in ("serious", "critical")]
    return [(item["id"], [node["html"][:160] for node in item["nodes"][:3]]) for item in items]


def clipped(page: "Page", *, apart: str) -> list[str]:
    """Elements beyond the right edge of the window, but those within ``apart``; and the page, if it scrolls sideways."""
    return page.evaluate(
        """apart => {
          const wide = document.documentElement.scrollWidth - innerWidth;
          const seen = n => !n.closest(apart) && n.getBoundingClientRect().right > innerWidth + 1;
          const all = document.querySelectorAll('button, input, select, summary, h1, h2, h3, h4, p, a, figure, svg, img, dt, dd, li');
          const found = Array.from(all).filter(seen).map(n => n.outerHTML.slice(0, 120));
          return wide > 0 ? [`the page is ${wide} px wider than the window`, ...found] : found;
        }""",
        apart,
    )
