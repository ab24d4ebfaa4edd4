"""A figure in a browser: hovers, keys, buttons of series, themes, and no scripts."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from benchmarks.browser import BROWSER, browser_path
from mechprobe.evals.result import Accuracy
from mechprobe.report.figures.behaviour import accuracy_figure
from mechprobe.report.figures.drawing import draw
from mechprobe.report.pages.templates import asset
from mechprobe.report.pages.theme import theme_style
from mechprobe.statistics import Interval

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.skipif(
    browser_path() is None and BROWSER not in os.environ, reason=f"no chromium is installed, and {BROWSER} names none"
)
NASTY = "<img src=x onerror=\"document.title='owned'\">"


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with one figure: two models, two tasks."""
    found: dict[str, Accuracy] = {
        model: {task: Interval(value, value - 0.1, value + 0.1, 64) for task in ("first", NASTY)}
        for model, value in (("base", 0.4), ("rl", 0.6))
    }
    markup = draw(accuracy_figure(found), "accuracy", "Accuracy").markup
    path = tmp_path_factory.mktemp("figure") / "page.html"
    path.write_text(
        f"<!doctype html><html lang=en><meta charset=utf-8><title>figure</title><style>{theme_style()}{asset('page.css')}{asset('chart.css')}</style>"
        f'<main><div class="frame" tabindex="0" role="region" aria-label="Accuracy">{markup}</div></main><script>{asset("chart.js")}</script>',
        encoding="utf-8",
    )
    return path


@pytest.fixture
def page(browser: "Page", file: Path) -> "Page":
    browser.goto(file.as_uri())
    return browser


def test_a_hand_near_a_mark_shows_its_numbers(page: "Page") -> None:
    at = page.locator(".marks circle").first.bounding_box()
    assert at is not None
    page.mouse.move(at["x"] + at["width"] / 2 + 6, at["y"] + at["height"] / 2)
    assert page.inner_text("#chart-tip") == "base, first\n40.0 %\n95 % interval 30.0 to 50.0\nn = 64"
    page.keyboard.press("Escape")
    assert page.inner_text("#chart-tip") == ""


def test_keys_go_from_mark_to_mark(page: "Page") -> None:
    page.focus(".frame")
    for wanted in ("base, first", "rl, first", f"base, {NASTY}", f"rl, {NASTY}"):
        page.keyboard.press("ArrowRight")
        # The text comes with the next frame.
        page.wait_for_function("text => document.querySelector('#chart-tip').textContent.startsWith(text)", arg=wanted)
    assert page.title() == "figure"


def test_buttons_hide_models_and_tasks(page: "Page") -> None:
    groups = page.eval_on_selector_all(".series [role=group]", "all => all.map(n => n.getAttribute('aria-label'))")
    assert groups == ["Shown in the figure, by model", "Shown in the figure, by task"]

    def visible() -> int:
        return page.eval_on_selector_all(
            "[data-in]",
            "all => all.filter(n => n.getClientRects().length && getComputedStyle(n).display !== 'none').length",
        )

    every = visible()
    button = page.get_by_role("button", name="rl", exact=True)
    button.click()
    assert button.get_attribute("aria-pressed") == "false"
    assert visible() == every / 2
    page.get_by_role("button", name="first", exact=True).click()
    assert visible() == every / 4
    page.focus(".frame")
    page.keyboard.press("ArrowRight")
    page.wait_for_function(
        "text => document.querySelector('#chart-tip').textContent.startsWith(text)", arg=f"base, {NASTY}"
    )
    button.click()
    assert button.get_attribute("aria-pressed") == "true"
    assert visible() == every / 2


def test_colors_follow_the_theme(page: "Page") -> None:
    def color() -> str:
        return page.eval_on_selector("svg.chart text", "node => getComputedStyle(node).fill")

    light = color()
    page.evaluate("document.documentElement.dataset.theme = 'dark'")
    assert color() != light == "rgb(34, 34, 34)"


def test_without_scripts_the_figure_and_its_numbers_are_there(page: "Page", file: Path) -> None:
    assert page.context.browser is not None
    context = page.context.browser.new_context(java_script_enabled=False)
    still = context.new_page()
    still.goto(file.as_uri())
    assert still.locator("svg.chart").bounding_box() is not None
    assert still.locator(".marks circle title").count() == 4
    context.close()
