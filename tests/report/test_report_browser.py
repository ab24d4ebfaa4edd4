"""The pages of a report in a browser without network, from the file system: what a reader does, with scripts and without."""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from benchmarks.browser import BROWSER, browser_path, wait_until
from mechprobe.dynamics import DynamicsConfig, dynamics
from mechprobe.emergence.config import EmergenceConfig
from mechprobe.files import write_json
from mechprobe.report.figures import style
from mechprobe.report.stage import report
from tests.report import test_drift_page as drift_parts, test_timeline as timeline_parts
from tests.report.browsing import clipped, serious
from tests.report.conftest import evaluation, examples, interventions, write_run

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.skipif(
    browser_path() is None and BROWSER not in os.environ, reason=f"no chromium is installed, and {BROWSER} names none"
)
PAGES = ("index.html", "drift.html", "timeline.html", "examples.html")
NASTY = "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
HOSTILE = ("a", NASTY, "\n", "\x1b[31mred", "\u202egnp.exe", "\u2028", "{{ 7 * 7 }}", "x" * 400, "\x00", " ")
ALIKE = ("tr ~ tr ~ tr", ".tokens ~ .tokens", "#terms dt ~ dt", "circle ~ circle")
"""Parts that are built alike, of which the first ones stand for all: axe need not read every row."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with every stage, whose names and texts try to be markup."""
    folder = tmp_path_factory.mktemp("pages") / "run"
    found, results = evaluation(), interventions()
    for model in found["accuracy"].values():
        model[NASTY] = model.pop("diagnostic")
    results["verdict"] = f"Verdict {NASTY}"
    timeline_parts.evaluated(folder)
    dynamics(folder / "evals", out=folder / "dynamics", config=DynamicsConfig(draws=1000, resamples=0), arms=EmergenceConfig(final_steps={"rl": 80}))  # fmt: skip
    write_run(folder, without=("evaluate",), examples=examples(HOSTILE), interventions=results)
    write_json(folder / "evals" / "summary.json", found)
    timeline_parts.swept(folder)
    timeline_parts.emerged(folder, (10, 20, 40, 80))
    drift_parts.weights(folder)
    drift_parts.divergence(folder)
    drift_parts.probe(folder)
    write_json(folder / "run.json", {"name": f"run {NASTY}", "emergence": {"final_steps": {"rl": 80}}})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(style, "DPI", 30)
        report(folder)
    return folder


@pytest.fixture
def page(browser: "Page") -> "Iterator[Page]":
    """The page, which must say nothing on the console and ask for no file but its own."""
    problems: list[str] = []

    def console(message: Any) -> None:
        problems.append(f"{message.type}: {message.text}")

    def error(found: Any) -> None:
        problems.append(str(found))

    def request(asked: Any) -> None:
        if not asked.url.startswith(("file:", "data:", "about:")):
            problems.append(asked.url)

    listeners = {"console": console, "pageerror": error, "request": request}
    for name, listener in listeners.items():
        browser.on(name, listener)  # pyright: ignore[reportCallIssue, reportArgumentType]
    yield browser
    for name, listener in listeners.items():
        browser.remove_listener(name, listener)
    assert not problems


def show(page: "Page", run: Path, name: str = "index.html", theme: str = "light") -> None:
    url = (run / "report" / name).as_uri()
    if page.url.partition("#")[0] != url:
        page.goto(url)
    else:
        page.evaluate("scrollTo(0, 0)")
    if page.evaluate("getComputedStyle(document.documentElement).colorScheme") != theme:
        page.click("#theme")


def test_the_first_screen_holds_the_verdict_and_its_numbers(page: "Page", run: Path) -> None:
    show(page, run)
    for part in (".verdict", ".shown figure svg, .shown figure img", ".number.gate"):
        box = page.locator(part).first.bounding_box()
        assert box is not None
        assert box["y"] < 700, part
    assert page.locator(".number").count() >= 3
    names = page.evaluate("Array.from(document.querySelectorAll('h1, h2, h3'), node => +node.localName[1])")
    assert names[0] == 1
    assert set(names[1:]) == {2}


def opened(page: "Page") -> None:
    """Open everything that is folded."""
    page.evaluate("document.querySelectorAll('details:not(.menu)').forEach(part => { part.open = true; })")


@pytest.mark.parametrize("name", PAGES)
def test_texts_are_shown_as_text(page: "Page", run: Path, name: str) -> None:
    show(page, run, name)
    opened(page)
    assert page.title().startswith("run </script><script>document.title='owned'")
    foreign = (
        "script:not(head > script):not(body > script), iframe, object, embed, base, form, meta[http-equiv=refresh]"
    )
    assert page.locator(foreign).count() == 0
    assert page.locator("script").count() <= 3
    assert page.locator("img:not(figure img)").count() == 0
    handlers = "Array.from(document.querySelectorAll('*')).filter(n => Array.from(n.attributes).some(a => a.name.startsWith('on'))).length"
    assert page.evaluate(handlers) == 0
    assert not {"\x1b", "\u202e", "\u2028", "\x00"} & set(page.evaluate("document.documentElement.textContent"))


@pytest.mark.parametrize("name", PAGES[:3])
def test_the_contents_lead_to_every_section_and_mark_the_current_one(page: "Page", run: Path, name: str) -> None:
    show(page, run, name)
    links = page.evaluate("Array.from(document.querySelectorAll('nav.side a'), a => a.hash.slice(1))")
    assert links == page.evaluate("Array.from(document.querySelectorAll('main > section[id]'), s => s.id)")
    assert len(links) >= 4
    current = "document.querySelector('nav.side a[aria-current]')?.hash.slice(1)"
    assert page.evaluate(current) == links[0]
    page.click(f"nav.side a[href='#{links[2]}']")
    wait_until(page, f"wanted => ({current}) === wanted", links[2])
    top = f"document.getElementById({links[2]!r}).getBoundingClientRect().top"
    wait_until(page, f"Math.abs({top}) < 60 || innerHeight + scrollY >= document.documentElement.scrollHeight - 2")
    page.evaluate("scrollTo({top: document.documentElement.scrollHeight, behavior: 'instant'})")
    wait_until(page, f"wanted => ({current}) === wanted", links[-1])
    targets = page.evaluate("Array.from(document.querySelectorAll('a[href^=\"#\"]'), link => link.hash.slice(1))")
    ids = page.evaluate("Array.from(document.querySelectorAll('[id]'), node => node.id)")
    assert set(targets) <= set(ids)
    assert len(ids) == len(set(ids))


def test_the_theme_is_kept_on_all_pages(page: "Page", run: Path) -> None:
    paper = "getComputedStyle(document.body).backgroundColor"
    show(page, run)
    assert page.evaluate(paper) == "rgb(255, 255, 255)"
    page.click("#theme")
    assert page.evaluate(paper) == "rgb(21, 23, 27)"
    page.goto((run / "report" / "drift.html").as_uri())
    assert page.evaluate(paper) == "rgb(21, 23, 27)"
    page.focus("#theme")
    page.keyboard.press("Enter")
    assert page.evaluate(paper) == "rgb(255, 255, 255)"


def test_terms_are_explained_where_they_stand(page: "Page", run: Path) -> None:
    show(page, run)
    tip = ".tip:popover-open"
    term = page.locator("main .term:visible").first
    term.hover()
    page.wait_for_selector(tip)
    said = page.inner_text(tip)
    assert said.lower().startswith(term.inner_text().lower()[:4]) or len(said) > 40
    box = page.locator(tip).bounding_box()
    assert box
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= 1440
    page.mouse.move(0, 0)
    wait_until(page, f"!document.querySelector({tip!r})")
    term.focus()
    page.wait_for_selector(tip)
    page.keyboard.press("Escape")
    wait_until(page, f"!document.querySelector({tip!r})")


def test_tables_unfold_and_keep_their_first_column(page: "Page", run: Path) -> None:
    show(page, run)
    fold = page.locator("main > section > details.fold:has(table)").first
    assert not fold.locator("table").first.is_visible()
    fold.locator("summary").first.click()
    assert fold.locator("table").first.is_visible()
    opened(page)
    wide = page.evaluate(
        """Array.from(document.querySelectorAll('.frame'))
          .filter(frame => frame.querySelector('tbody') && frame.scrollWidth > frame.clientWidth + 60).map(frame => {
            frame.scrollLeft = 10000;
            const [edge, cells] = [frame.getBoundingClientRect().left, frame.querySelectorAll('tbody th')];
            return [frame.scrollLeft, ...Array.from(cells, cell => Math.abs(cell.getBoundingClientRect().left - edge))];
          })"""
    )
    assert wide
    for moved, *shifts in wide:
        assert moved > 0
        assert max(shifts) <= 1
    page.evaluate("document.querySelectorAll('details').forEach(part => { part.open = false; })")
    page.evaluate("location.hash = 'rule'")
    wait_until(page, "document.getElementById('rule').open")


@pytest.mark.parametrize("name", PAGES[:3])
def test_every_figure_has_a_text_with_its_numbers(page: "Page", run: Path, name: str) -> None:
    show(page, run, name)
    found = page.evaluate(
        "Array.from(document.querySelectorAll('figure svg'), drawn => [drawn.closest('figure').id, drawn.getAttribute('role'), drawn.getAttribute('aria-label')])"
    )
    assert len(found) == page.locator("figure").count() > 0
    for which, role, text in found:
        assert role == "img"
        assert re.search(r"\d", text), which
        assert not set(text) & {"\x1b", "\u202e"}


@pytest.mark.parametrize("name", PAGES[:3])
def test_a_hand_and_the_keyboard_reach_the_marks_of_a_figure(page: "Page", run: Path, name: str) -> None:
    show(page, run, name)
    figure = page.locator("figure:has(.marks circle):visible").first
    mark = figure.locator(".marks circle").first
    mark.evaluate(
        "mark => mark.scrollIntoView({block: 'center', behavior: 'instant'})"
    )  # a figure may be taller than the page
    spot = mark.bounding_box()
    assert spot
    tip = page.locator("#chart-tip")
    page.mouse.move(spot["x"] + spot["width"] / 2, spot["y"] + spot["height"] / 2)
    assert re.search(r"\d", tip.inner_text())
    page.mouse.move(1, 1)
    assert tip.inner_text() == ""
    page.evaluate("figure => figure.querySelector('.frame').focus({preventScroll: true})", figure.element_handle())
    texts = []
    for key in ("ArrowRight", "ArrowRight", "End", "Home"):
        page.keyboard.press(key)
        page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
        texts.append(tip.inner_text())
        box = tip.bounding_box()
        assert box
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 1440
    assert texts[3] == texts[0] != texts[1]
    page.keyboard.press("Escape")
    assert tip.inner_text() == ""


def test_hovers_say_value_interval_and_n(page: "Page", run: Path) -> None:
    show(page, run)
    texts = page.evaluate("Array.from(document.querySelectorAll('.first .marks circle'), mark => mark.dataset.text)")
    assert texts
    complete = [
        text for text in texts if re.search(r"points\n95 % interval [-−]?[\d.]+ to [-−]?[\d.]+\nn = [\d,]+$", text)
    ]
    assert complete
    assert page.locator(".marks circle title").count() == 0  # or the browser shows a second hover


def test_series_are_hidden_and_shown(page: "Page", run: Path) -> None:
    show(page, run)
    button = page.locator("main .series button:visible").first
    figure = page.locator("figure:has(.series button:visible)").first
    parts = "figure => Array.from(figure.querySelectorAll('[data-in]')).filter(n => n.getClientRects().length).length"
    before = page.evaluate(parts, figure.element_handle())
    button.focus()
    page.keyboard.press("Enter")
    assert button.get_attribute("aria-pressed") == "false"
    assert page.evaluate(parts, figure.element_handle()) < before
    page.keyboard.press("Enter")
    assert button.get_attribute("aria-pressed") == "true"
    assert page.evaluate(parts, figure.element_handle()) == before


def test_figures_have_the_colors_of_the_theme(page: "Page", run: Path) -> None:
    ink = "getComputedStyle(document.querySelector('svg.chart')).getPropertyValue('--chart-ink').trim()"
    show(page, run)
    light = page.evaluate(ink)
    show(page, run, theme="dark")
    assert page.evaluate(ink) != light
    assert page.locator("figure img").count() == 0
    show(page, run)


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("name", PAGES)
def test_axe_finds_nothing_serious(page: "Page", run: Path, name: str, theme: str) -> None:
    show(page, run, name, theme)
    opened(page)
    # Only colors differ between the themes.
    assert not serious(page, exclude=ALIKE, rules=("color-contrast",) if theme == "dark" else ())


@pytest.mark.parametrize("width", [1440, 1024, 390])
def test_nothing_is_clipped(browser: "Page", run: Path, width: int) -> None:
    browser.set_viewport_size({"width": width, "height": 844})
    for name in PAGES:
        show(browser, run, name)
        opened(browser)
        assert not clipped(browser, apart=".frame, .tokens, .skip, .tip, .side"), name
    browser.set_viewport_size({"width": 1440, "height": 900})


def test_nothing_is_cut_in_print(browser: "Page", run: Path) -> None:
    browser.set_viewport_size({"width": 688, "height": 1000})  # the width between the margins of A4
    for name in PAGES:
        browser.goto((run / "report" / name).as_uri())
        browser.evaluate("dispatchEvent(new Event('beforeprint'))")
        browser.emulate_media(media="print")
        assert not clipped(browser, apart=".skip, .tip"), name
        hidden = "Array.from(document.querySelectorAll('main table')).filter(table => !table.getBoundingClientRect().height).length"
        assert browser.evaluate(hidden) == 0
        cut = "Array.from(document.querySelectorAll('.frame, .tokens')).filter(n => n.scrollWidth > n.clientWidth + 1 && getComputedStyle(n).overflowX !== 'visible').length"
        assert browser.evaluate(cut) == 0
        assert browser.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        browser.evaluate("dispatchEvent(new Event('afterprint'))")
        assert browser.locator("details.fold[open]").count() == 0
        browser.emulate_media(media="null")
    browser.set_viewport_size({"width": 1440, "height": 900})


def test_without_scripts_everything_is_there(browser: "Page", run: Path) -> None:
    engine = browser.context.browser
    assert engine is not None
    for name in PAGES[:3]:
        show(browser, run, name)
        counts = {part: browser.locator(part).count() for part in ("figure", "table", "details", "main > section")}
        plain = engine.new_page(java_script_enabled=False)
        plain.goto((run / "report" / name).as_uri())
        assert {part: plain.locator(part).count() for part in counts} == counts
        assert not plain.locator("#theme").is_visible()
        sizes = "all => all.filter(n => !n.closest('details')).map(n => n.getBoundingClientRect()).map(box => Math.min(box.width, box.height))"
        assert min(plain.locator("figure > .frame > *").evaluate_all(sizes)) > 50
        fold = plain.locator("main details.fold:has(table)").first
        fold.locator("summary").first.click()
        assert fold.get_attribute("open") is not None
        term = plain.locator("main .term:visible").first
        term.click()
        assert plain.locator(f"#{term.get_attribute('popovertarget')}").is_visible()
        plain.close()


def test_the_policy_forbids_network_and_foreign_scripts(browser: "Page", run: Path) -> None:
    browser.goto((run / "report" / "index.html").as_uri())  # without the listeners: the browser reports what it forbids
    for code, refused in (
        ("const i = new Image(); i.src = 'https://example.org/x.png'; document.body.append(i);", "img-src"),
        ("const s = document.createElement('script'); s.textContent = '1'; document.head.append(s);", "script-src-elem"),
        ("setTimeout('1', 0);", "script-src"),
    ):  # fmt: skip
        blocked = f"""() => new Promise(done => {{
          document.addEventListener('securitypolicyviolation', event => done(event.effectiveDirective), {{once: true}}); {code}
        }})"""
        assert browser.evaluate(blocked) == refused
    browser.goto("about:blank")


def test_labels_of_figures_can_be_read_on_a_phone(browser: "Page", run: Path) -> None:
    browser.set_viewport_size({"width": 390, "height": 844})
    for name in PAGES[:3]:
        show(browser, run, name)
        scales = browser.evaluate(
            "Array.from(document.querySelectorAll('.drawing > svg')).filter(n => n.getClientRects().length).map(n => n.getBoundingClientRect().width / n.getAttribute('width'))"
        )
        assert scales
        assert min(scales) > 0.79
    browser.set_viewport_size({"width": 1440, "height": 900})
