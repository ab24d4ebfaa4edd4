"""The report in a browser without network, from the file system: themes, contents, definitions, widths, print, no scripts."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from benchmarks.browser import BROWSER, browser_page, browser_path, wait_until
from mechprobe.files import write_json
from mechprobe.report.stage import report
from tests.report.conftest import evaluation, examples, interventions, write_run
from tests.report.test_examples_page import HOSTILE

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.skipif(
    browser_path() is None and BROWSER not in os.environ, reason=f"no chromium is installed, and {BROWSER} names none"
)
DARK = "rgb(21, 23, 27)"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose names, tokens and notes are hostile, with its report."""
    accuracy, results = evaluation(), interventions()
    for model in accuracy["accuracy"].values():
        model[HOSTILE[0]] = model.pop("diagnostic")
    results["verdict"] = f"Verdict {' '.join(HOSTILE)}"
    folder = tmp_path_factory.mktemp("browsed") / "run"
    made = write_run(folder, evaluation=accuracy, interventions=results, examples=examples(HOSTILE))
    write_json(made / "run.json", {"name": "run " + HOSTILE[0], "notes": list(HOSTILE)})
    report(made)
    return made


@pytest.fixture(scope="module")
def browser() -> "Iterator[Page]":
    with browser_page(color_scheme="light") as page:
        yield page


@pytest.fixture
def page(browser: "Page", run: Path) -> "Iterator[Page]":
    problems: list[str] = []

    def console(message: Any) -> None:
        problems.append(f"{message.type}: {message.text}")

    def error(found: Any) -> None:
        problems.append(str(found))

    browser.on("console", console)
    browser.on("pageerror", error)
    show(browser, run)
    yield browser
    browser.remove_listener("console", console)
    browser.remove_listener("pageerror", error)
    assert not problems


def show(page: "Page", run: Path, name: str = "index.html") -> None:
    page.goto("about:blank")
    page.goto((run / "report").as_uri() + f"/{name}")


def test_the_first_screen_holds_the_verdict_and_its_numbers(page: "Page") -> None:
    for part in (".verdict", ".shown figure svg, .shown figure img", ".number.gate"):
        box = page.locator(part).first.bounding_box()
        assert box is not None
        assert box["y"] < 700, part
    assert page.locator(".number").count() == 3
    names = page.evaluate("Array.from(document.querySelectorAll('h1, h2, h3'), node => +node.localName[1])")
    assert names[0] == 1
    assert set(names[1:]) == {2}


def test_the_contents_follow_the_reader_and_fragments_open_folded_parts(page: "Page", run: Path) -> None:
    page.evaluate("document.getElementById('ceilings').scrollIntoView({behavior: 'instant'})")
    wait_until(page, "document.querySelector('.side a[aria-current]').hash === '#ceilings'")
    assert not page.evaluate("document.getElementById('rule').open")
    show(page, run, "index.html#rule")
    assert page.evaluate("document.getElementById('rule').open")
    targets = page.evaluate("Array.from(document.querySelectorAll('a[href^=\"#\"]'), link => link.hash.slice(1))")
    assert all(page.evaluate("name => !!document.getElementById(name)", name) for name in set(targets))
    ids = page.evaluate("Array.from(document.querySelectorAll('[id]'), node => node.id)")
    assert len(ids) == len(set(ids))


def test_a_term_shows_its_definition_on_hover_and_on_focus(page: "Page") -> None:
    term = page.locator(".number .term").first
    tip = page.locator(f"#{term.get_attribute('popovertarget')}")
    assert not tip.is_visible()
    term.hover()
    assert tip.is_visible()
    page.mouse.move(0, 0)
    assert not tip.is_visible()
    term.focus()
    assert tip.is_visible()
    assert tip.inner_text().startswith("Sufficiency, necessity.")
    page.keyboard.press("Escape")
    assert not tip.is_visible()


def test_the_theme_is_kept(page: "Page", run: Path) -> None:
    shade = "getComputedStyle(document.body).backgroundColor"
    assert page.evaluate(shade) == "rgb(255, 255, 255)"
    page.click("#theme")
    assert page.evaluate(shade) == DARK
    show(page, run, "examples.html")
    assert page.evaluate(shade) == DARK
    page.click("#theme")
    assert page.evaluate(shade) == "rgb(255, 255, 255)"


def test_hostile_texts_are_shown_as_text(page: "Page") -> None:
    assert page.title().startswith("run </script><script>alert(1)</script>:")
    assert page.locator("script").count() == 2
    assert page.locator("main img[onerror], iframe, form, base").count() == 0
    text = page.evaluate("document.body.textContent")
    assert not {"\u202e", "\x1b", "\u2028"} & set(text)
    assert "a\\x202eb" in text


def test_the_policy_forbids_network_and_foreign_scripts(browser: "Page", run: Path) -> None:
    show(browser, run)  # without the listeners: the browser reports what it forbids
    for code, refused in (
        ("const i = new Image(); i.src = 'https://example.org/x.png'; document.body.append(i);", "img-src"),
        (
            "const s = document.createElement('script'); s.textContent = '1'; document.head.append(s);",
            "script-src-elem",
        ),
        ("setTimeout('1', 0);", "script-src"),
    ):
        blocked = f"""() => new Promise(done => {{
          document.addEventListener('securitypolicyviolation', event => done(event.effectiveDirective), {{once: true}}); {code}
        }})"""
        assert browser.evaluate(blocked) == refused


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(page: "Page", run: Path, scheme: str) -> None:
    from axe_playwright_python.sync_playwright import Axe

    page.emulate_media(color_scheme=scheme)
    for name in ("index.html", "examples.html"):
        show(page, run, name)
        page.evaluate("document.querySelectorAll('details').forEach(part => { part.open = true; })")
        # Contexts and drawings are built alike, so the first ones stand for them.
        options = "{exclude: ['.tokens ~ .tokens', 'h2 ~ h2 ~ *']}, {preload: false, resultTypes: ['violations']}"
        found = page.evaluate(f"{Axe().axe_script}; axe.run({options})")
        serious = [item for item in found["violations"] if item["impact"] in ("serious", "critical")]
        assert not [(item["id"], [node["html"][:160] for node in item["nodes"][:3]]) for item in serious]
    page.emulate_media(color_scheme="light")


@pytest.mark.parametrize("width", [1440, 1024, 390])
def test_nothing_is_clipped(run: Path, browser: "Page", width: int) -> None:
    browser.set_viewport_size({"width": width, "height": 844})
    for name in ("index.html", "examples.html"):
        show(browser, run, name)
        browser.evaluate("document.querySelectorAll('details').forEach(part => { part.open = true; })")
        assert browser.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
        outside = browser.evaluate(
            "Array.from(document.querySelectorAll('button, h1, h2, p, dd, figure, summary, table'))"
            ".filter(n => !n.closest('.frame, .tokens, .skip') && n.getBoundingClientRect().right > innerWidth + 1).map(n => n.outerHTML.slice(0, 80))"
        )
        assert outside == []
    browser.set_viewport_size({"width": 1440, "height": 900})


def test_print_shows_what_is_folded_and_cuts_no_table(page: "Page") -> None:
    page.set_viewport_size({"width": 690, "height": 1000})  # A4 without its margins
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("details.fold:not([open])").count() == 0
    cut = "Array.from(document.querySelectorAll('.frame, .tokens')).filter(n => n.scrollWidth > n.clientWidth + 1 || n.scrollHeight > n.clientHeight + 1).map(n => n.getAttribute('aria-label'))"
    assert page.evaluate(cut) == []
    assert not page.locator("nav").first.is_visible()
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.locator("details.fold[open]").count() == 0
    page.emulate_media(media="screen")
    page.set_viewport_size({"width": 1440, "height": 900})


def test_without_scripts_everything_is_there(run: Path, browser: "Page") -> None:
    engine = browser.context.browser
    assert engine is not None
    page = engine.new_page(java_script_enabled=False)
    page.goto((run / "report" / "index.html").as_uri())
    assert page.locator("figure svg, figure img").count() >= 8
    assert page.locator("#theme").is_hidden()
    term = page.locator(".number .term").first
    term.click()
    assert page.locator(f"#{term.get_attribute('popovertarget')}").is_visible()
    page.close()
