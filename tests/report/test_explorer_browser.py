"""The explorer in a browser without network, from the file system: what a reader does, and that nothing runs that should not."""

import csv
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest

from benchmarks.browser import BROWSER, browser_path, wait_until
from benchmarks.explorer import made_up_run
from mechprobe.files import write_json
from mechprobe.report import stage as render
from mechprobe.report.explorer.pages import write_explorer
from mechprobe.report.run_files import RunFiles
from mechprobe.report.stage import report
from mechprobe.stage_folder import Stage
from tests.report.browsing import clipped, serious
from tests.report.conftest import interventions
from tests.report.test_explorer import HOSTILE

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.skipif(
    browser_path() is None and BROWSER not in os.environ, reason=f"no chromium is installed, and {BROWSER} names none"
)
ROWS = "#grid .body .row"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("explorer") / "run"
    made_up_run(folder, n_features=200, n_contexts=11, words=tuple(f" w{k}" for k in range(300)) + HOSTILE)
    write_json(folder / "run.json", {"name": "run " + HOSTILE[0]})
    with Stage.open(folder / "interventions", name="intervene", config={}) as stage:
        write_json(stage.folder / "results.json", {**interventions(), "features": list(range(50))})
        stage.finish(outputs=["results.json"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(render, "draw_figures", lambda *_: {})
        report(folder)
    return folder


@pytest.fixture(scope="module")
def frame(run: Path) -> pd.DataFrame:
    return pd.read_parquet(run / "features" / "table.parquet").query("~dead").reset_index(drop=True)


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a pair with long and hostile names, missing numbers, and neither selection nor contexts."""
    folder = tmp_path_factory.mktemp("odd") / "run"
    models = ("</script><b>" + "long-name-" * 9, "\u202e<img src=x onerror=alert(1)>" + "x" * 90)
    made_up_run(folder, n_features=40, n_contexts=2, models=models)
    write_json(folder / "run.json", {"name": HOSTILE[0] * 4})
    shutil.rmtree(folder / "selection")
    shutil.rmtree(folder / "contexts")
    table = pd.read_parquet(folder / "features" / "table.parquet")
    table.loc[table["feature"] % 5 == 2, table.columns[3:]] = np.nan
    table.loc[table["feature"] == 3, "density_joint"] = 0.0
    table.to_parquet(folder / "features" / "table.parquet", index=False)
    write_explorer(RunFiles.read(folder), folder / "report" / "features")
    return folder


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
    assert browser.title() == "run </script><script>document.title='owned'</script>: feature explorer"


def show(page: "Page", run: Path, fragment: str = "", *, fresh: bool = False) -> None:
    """Show a fragment of the explorer, by a link in the page where it is open already."""
    url = (run / "report" / "features" / "index.html").as_uri()
    if not fresh and page.url.partition("#")[0] == url:
        page.evaluate(
            """fragment => new Promise(done => {
              app.editsOpen = false;
              if ((location.hash || '#') === (fragment || '#')) return done();
              addEventListener('hashchange', () => setTimeout(done), {once: true});
              location.hash = fragment;
            })""",
            fragment,
        )
        return
    page.goto("about:blank")
    page.goto(url + fragment)
    wait_until(page, "document.body.dataset.ready")


def listed(page: "Page") -> list[int]:
    return page.evaluate("Array.from(app.order, place => explorer.table.feature[place])")


def first_rows(page: "Page", n: int) -> list[int]:
    rows = page.evaluate(
        f"Array.from(document.querySelectorAll('{ROWS}'), row => [+row.ariaRowIndex, +row.children[0].textContent])"
    )
    return [feature for _, feature in sorted(rows)[:n]]


def opened(page: "Page") -> list[int]:
    wait_until(page, "document.getElementById('pane').hidden || document.querySelector('.feature h2')")
    return page.evaluate(
        "Array.from(document.querySelectorAll('.feature h2'), title => +title.textContent.split(' ')[1])"
    )


def wait_open(page: "Page", *features: int) -> None:
    wait_until(
        page,
        "wanted => JSON.stringify(Array.from(document.querySelectorAll('.feature h2'), t => +t.textContent.split(' ')[1])) === JSON.stringify(wanted)",
        list(features),
    )


def test_search_sort_and_filter(page: "Page", frame: pd.DataFrame) -> None:
    assert first_rows(page, 3) == [0, 1, 2]  # the selected ones come first
    page.fill("#search", "W12")
    found = listed(page)
    texts = page.evaluate(
        "Array.from(app.order, p => ['peaks', 'promoted'].flatMap(k => { const {start, token} = explorer.table.tokens[k]; return Array.from(token.subarray(start[p], start[p + 1]), t => explorer.table.tokens.texts[t]); }))"
    )
    assert 0 < len(found) < len(frame)
    assert all(any("w12" in text for text in mine) or feature == 12 for feature, mine in zip(found, texts, strict=True))
    page.fill("#search", "77")
    assert 77 in listed(page)
    page.fill("#search", "")
    page.click(".head [data-key='nrn_rl'] button")
    assert listed(page) == frame.sort_values("nrn_rl", ascending=False, kind="stable")["feature"].tolist()
    assert page.get_attribute(".head [data-key='nrn_rl']", "aria-sort") == "descending"
    page.click(".head [data-key='nrn_rl'] button")
    assert listed(page) == frame.sort_values("nrn_rl", kind="stable")["feature"].tolist()
    page.click(".chips [data-class='rl-only']")
    assert set(listed(page)) == set(frame.loc[frame["class"] == "rl-only", "feature"])
    page.click("#reset")
    page.click("summary")
    page.fill("input[data-key='density_joint'][data-end='0']", "0.01")
    page.press("input[data-key='density_joint'][data-end='0']", "Enter")
    assert set(listed(page)) == set(frame.loc[frame["density_joint"].astype("float32") >= 0.01, "feature"])
    page.click("#selected")
    assert set(listed(page)) <= set(range(50))
    shown = page.inner_text("#count")
    assert shown.startswith(f"{len(listed(page))} of {len(frame)} live features")


def test_brush_and_click_in_the_plots(page: "Page", frame: pd.DataFrame) -> None:
    for plot, keys in (("ternary", ()), ("nrn", ("nrn_rl", "density_joint"))):
        box = page.evaluate(
            f"(() => {{ const p = app.plots.find(p => p.kind === '{plot}'); const b = p.canvas.getBoundingClientRect(); const i = p.box; return [b.left + i.left, b.top + i.top, i.width, i.height]; }})()"
        )
        left, top, width, height = box
        page.mouse.move(left + 0.2 * width, top + 0.3 * height)
        page.mouse.down()
        page.mouse.move(left + 0.5 * width, top + 0.7 * height, steps=4)
        page.mouse.up()
        found = set(listed(page))
        assert 0 < len(found) < len(frame)
        mas = frame.loc[frame["feature"].isin(found), "mas_sft"].astype("float32").sort_values().iloc[len(found) // 2]
        text = f"MAS sft {page.evaluate('value => number(value)', float(mas))}"
        wait_until(page, "text => document.querySelector('canvas').ariaLabel.includes(text)", text)
        if keys:
            ranges = page.evaluate("app.state.ranges")
            inside = np.logical_and.reduce([frame[key].astype("float32").between(*ranges[key]) for key in keys])
            assert found == set(frame.loc[inside, "feature"])
            assert ranges["nrn_rl"] == pytest.approx([0.2, 0.5], abs=0.01)
            assert page.input_value("input[data-key='nrn_rl'][data-end='1']") == str(ranges["nrn_rl"][1])
        page.click(".plot button >> visible=true")
        assert len(listed(page)) == len(frame)
    feature = page.evaluate("explorer.table.feature[5]")
    spot = page.evaluate(
        "(() => { const p = app.plots.find(p => p.kind === 'nrn'); const b = p.canvas.getBoundingClientRect(); const [x, y] = p.toPixel(p.x[5], p.y[5]); return [b.left + x, b.top + y]; })()"
    )
    page.mouse.click(*spot)
    [shown] = opened(page)
    near = page.evaluate("Array.from(app.plots.find(p => p.kind === 'nrn').x)")
    assert abs(near[page.evaluate(f"explorer.table.place.get({shown})")] - near[5]) < 0.05, feature


def test_the_page_of_a_feature(page: "Page", run: Path, frame: pd.DataFrame) -> None:
    show(page, run, "#f=1")
    assert opened(page) == [1]
    contexts = pd.read_parquet(run / "contexts" / "contexts.parquet").query("feature == 1")
    assert page.locator(".context").count() == len(contexts)
    assert page.locator(".part h4").all_inner_texts()[0] == "Highest activations"
    assert "75 to 100 %" in page.locator(".part h4").all_inner_texts()[1]
    first = contexts.iloc[0]
    line = page.evaluate(
        "Array.from(document.querySelector('.context .tokens').childNodes, n => n.textContent).join('')"
    )
    assert line == page.evaluate("tokens => tokens.map(visible).join('')", [str(token) for token in first["tokens"]])
    peak = page.locator(".context .peak").first
    assert peak.get_attribute("title").startswith(
        page.evaluate("value => number(value)", float(max(first["act_joint"])))
    )
    assert "same as joint: base" in page.locator(".context .about").first.inner_text()
    assert "selected, 2 of 50" in page.inner_text(".facts")
    models = page.inner_text(".feature [aria-label='Models']")
    assert all(name in models for name in ("joint", "base", "sft", "rl", "NRN", "cosine"))
    assert "calculation" in page.inner_text("[aria-label='Attribution per task']")
    assert page.locator("[aria-label='Promoted tokens'] tbody tr").count() == 3
    page.click(".feature summary")
    edits = page.inner_text("[aria-label='Edits']")
    assert "first 2" in edits
    assert "this feature alone" not in edits
    page.click("text=Difference from base")
    assert "sft − base" in page.inner_text(".context .lines >> nth=0")
    value = float(first["act_sft"][first["peak"]]) - float(first["act_base"][first["peak"]])
    shown = page.evaluate(
        "context => document.querySelectorAll('.context')[0].querySelectorAll('.line')[1].innerHTML", None
    )
    assert ("cold" in shown) or ("hot" in shown) or value == 0


def test_courses_over_checkpoints_are_charts_with_a_text_alternative(page: "Page") -> None:
    course = {"arm": "rl", "matched": 7, "cosine": 0.91, "progress": [0, 0.5, 1], "models": ["base", "<b>", "rl"],
              "norms": [2, None, 4.5], "cosines": [1, 0.8, -0.6]}  # fmt: skip
    other = {**course, "arm": "<i>", "matched": 8, "norms": [1, 1, 1], "cosines": [None, None, None]}
    page.evaluate("courses => document.getElementById('filters').append(courseCharts(courses))", [course, other])
    charts = page.locator("#filters svg.chart")
    assert charts.count() == 2
    text = "decoder norm (L1) by checkpoint; arm rl: base 2.00, <b> –, rl 4.50; arm <i>: base 1.00, <b> 1.00, rl 1.00"
    assert charts.first.get_attribute("aria-label") == text
    assert charts.first.locator("circle").count() == 5
    heights = [float(circle.get_attribute("cy")) for circle in charts.nth(1).locator("circle").all()]
    assert heights == sorted(heights)
    assert charts.nth(1).locator("text").first.text_content() == "−1.00"
    assert "feature 7 in arm rl (cosine 0.91" in page.inner_text("#filters .charts p")
    assert page.locator("#filters b, #filters i:not(.dot)").count() == 0
    page.evaluate("buildFilters()")


def test_keys_fragments_and_comparing(page: "Page", run: Path) -> None:
    page.keyboard.press("j")
    wait_open(page, 0)
    page.keyboard.press("j")
    wait_open(page, 1)
    page.keyboard.press("k")
    wait_open(page, 0)
    page.keyboard.press("c")
    page.keyboard.press("j")
    wait_open(page, 0, 1)
    assert page.evaluate("location.hash") == "#f=1&with=0"
    page.go_back()
    wait_open(page, 0)
    page.go_forward()
    wait_open(page, 0, 1)
    page.go_back()
    wait_open(page, 0)
    page.keyboard.press("d")
    assert page.evaluate("location.hash") == "#f=0&with=0&contexts=difference"
    page.keyboard.press("d")
    page.keyboard.press("Escape")
    wait_open(page)
    page.keyboard.press("/")
    page.keyboard.type("w3")
    assert page.evaluate("location.hash") == "#q=w3"
    found = listed(page)
    page.keyboard.press("Escape")
    assert page.input_value("#search") == "w3", "the table stays filtered, so the text stays"
    page.keyboard.press("?")
    assert page.is_visible("#keys")
    page.keyboard.press("Escape")
    assert not page.is_visible("#keys")
    show(page, run, "#q=w3&class=shared&sort=-mas_base&nrn_sft=0.2..0.9&f=5&selected=1")
    assert opened(page) == [5]
    assert set(listed(page)) <= set(found) & set(range(50))
    assert page.input_value("#search") == "w3"
    show(page, run, "#f=99999&class=none&sort=nothing&nrn_sft=x..y&mas=1,2&with=a")  # what is not there is left out
    assert page.evaluate("app.state.open") == -1
    assert len(listed(page)) == page.evaluate("explorer.table.feature.length")


def focused(page: "Page") -> str:
    return page.evaluate(
        "(n => n.id || n.getAttribute('aria-label') || n.className || n.textContent)(document.activeElement)"
    )


def test_everything_is_done_by_keyboard(page: "Page") -> None:
    page.keyboard.press("/")
    order = []
    while not order or order[-1] not in ("BODY", "feature"):
        page.keyboard.press("Tab")
        order.append(focused(page))
    assert [name for name in order if name in ("theme", "help", "Tuned model", "selected", "reset", "csv", "Features")] == [
        "theme", "help", "Tuned model", "selected", "reset", "csv", "Features",
    ]  # fmt: skip
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    assert page.evaluate("app.state.sort") == "-tokens"
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    assert page.evaluate("app.state.sort") == "-nrn_sft"
    page.keyboard.press("Shift+Tab")
    assert focused(page) == "Features"
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    marked = page.evaluate("app.order[1]")
    assert page.get_attribute(".frame", "aria-activedescendant") == f"row-{marked}"
    assert page.get_attribute(f"#row-{marked}", "aria-selected") == "true"
    page.keyboard.press("Enter")
    opened(page)
    page.focus("text=Difference from base")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.textContent") == "Difference from base"
    assert page.evaluate("app.state.difference")
    page.focus(".jumps button >> nth=-1")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.textContent") == "Contexts"
    top = page.evaluate("document.activeElement.getBoundingClientRect().top - document.querySelector('.bar-top').getBoundingClientRect().bottom")  # fmt: skip
    assert 0 <= top < 40
    page.keyboard.press("Escape")
    assert focused(page) == "Features"  # not lost with the page that had it


def test_a_peak_is_in_view(page: "Page", run: Path) -> None:
    show(page, run, "#f=1&with=2")
    wait_open(page, 2, 1)
    outside = """Array.from(document.querySelectorAll('.lines'), box => {
      const [a, b] = [box.getBoundingClientRect(), box.querySelector('.peak').getBoundingClientRect()];
      return b.right > a.right + 1 || (b.left < a.left && b.width < a.width);
    }).filter(Boolean).length"""
    assert page.evaluate(outside) == 0
    tops = page.evaluate("Array.from(document.querySelectorAll('.feature'), f => Array.from(f.querySelectorAll('h3'), h => h.getBoundingClientRect().top))")  # fmt: skip
    assert tops[0] == pytest.approx(tops[1], abs=1)


def test_theme_is_kept(page: "Page", run: Path) -> None:
    assert page.evaluate("document.documentElement.dataset.theme") == "light"
    page.keyboard.press("t")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(21, 23, 27)"
    show(page, run, fresh=True)
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    page.click("#theme")
    assert page.evaluate("document.documentElement.dataset.theme") == "light"


def test_hostile_texts_are_shown_as_text(page: "Page", run: Path) -> None:
    owner = page.evaluate(
        "(() => { const t = explorer.table.tokens; const k = t.texts.findIndex(text => text.startsWith('</script>')); for (let p = 0; p < explorer.table.feature.length; p++) for (const kind of ['peaks', 'promoted']) if (t[kind].token.subarray(t[kind].start[p], t[kind].start[p + 1]).includes(k)) return explorer.table.feature[p]; return -1; })()"
    )
    assert owner >= 0
    show(page, run, f"#f={owner}")
    assert opened(page) == [owner]
    names = set(page.evaluate("Array.from(document.querySelectorAll('#list *, #pane *'), node => node.localName)"))
    assert not names & {"script", "img", "iframe", "object", "base", "form"}
    assert not page.evaluate(
        "Array.from(document.querySelectorAll('*')).some(node => Array.from(node.attributes).some(a => a.name.startsWith('on')))"
    )
    text = page.evaluate("document.body.textContent")
    assert not {"\u202e", "\x1b", "\u2028"} & set(text)
    assert "\\x202e" in page.evaluate("visible('a\\u202eb')")


def test_the_policy_forbids_network_and_eval(browser: "Page", run: Path) -> None:
    show(browser, run, fresh=True)  # without the listeners: the browser reports what it forbids
    refused = "async () => { try { await fetch('data.js'); return 'fetched'; } catch { return 'refused'; } }"
    assert browser.evaluate(refused) == "refused"
    blocked = """() => new Promise(done => {
      document.addEventListener('securitypolicyviolation', event => done(event.effectiveDirective), {once: true});
      const image = new Image(); image.src = 'https://example.org/x.png'; document.body.append(image);
    })"""
    assert browser.evaluate(blocked) == "img-src"
    run_text = """() => new Promise(done => {
      document.addEventListener('securitypolicyviolation', event => done(event.blockedURI), {once: true});
      const script = document.createElement('script'); script.textContent = 'document.title = 1'; document.head.append(script);
    })"""
    assert browser.evaluate(run_text) == "inline"
    evaluate = """() => new Promise(done => {
      document.addEventListener('securitypolicyviolation', event => done(event.blockedURI), {once: true});
      setTimeout('document.title = 2', 0);
    })"""
    assert browser.evaluate(evaluate) == "eval"
    browser.goto("about:blank")


def test_copy_and_export(page: "Page", run: Path, frame: pd.DataFrame, tmp_path: Path) -> None:
    show(page, run, "#f=1&sort=-nrn_rl&class=shared")
    opened(page)
    page.click(".feature button:has-text('Copy')")
    wait_until(page, "document.getElementById('said').textContent === 'Copied.'")
    text = page.evaluate("navigator.clipboard.readText()")
    assert text.startswith("## Feature 1\n")
    assert "| model | decoder norm |" in text
    assert "top, " in text
    with page.expect_download() as download:
        page.click("#csv")
    download.value.save_as(tmp_path / "features.csv")
    with (tmp_path / "features.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    wanted = frame.loc[frame["class"] == "shared"].sort_values("nrn_rl", ascending=False, kind="stable")
    assert [int(row["feature"]) for row in rows] == wanted["feature"].tolist()
    assert [float(row["nrn_rl"]) for row in rows] == pytest.approx(wanted["nrn_rl"].tolist(), rel=1e-6)
    assert not [row for row in rows if row["active_at"][:1] in ("=", "+", "-", "@")]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(page: "Page", run: Path, scheme: str) -> None:
    if page.evaluate("document.documentElement.dataset.theme") != scheme:
        page.keyboard.press("t")
    # All parts of the contexts and all rows are built alike, so the first ones stand for them.
    only = ("color-contrast",) if scheme == "dark" else ()  # only colors differ between the themes
    alike = ["." + name + " ~ ." + name for name in ("part", "context", "row")]
    for fragment in ("#f=1&class=shared", "#f=1&with=2&contexts=difference"):
        show(page, run, fragment)
        opened(page)
        page.evaluate("document.querySelectorAll('details').forEach(part => { part.open = true; })")
        assert not serious(page, exclude=alike, rules=only)
    page.keyboard.press("?")
    assert not serious(page, include=["#keys"], rules=only)
    page.keyboard.press("Escape")
    if scheme == "dark":
        page.keyboard.press("t")


@pytest.mark.parametrize("width", [1440, 1024, 390])
def test_nothing_is_clipped(run: Path, odd: Path, browser: "Page", width: int) -> None:
    browser.set_viewport_size({"width": width, "height": 844})
    for which, fragments in ((run, ("", "#f=1", "#f=1&with=2")), (odd, ("", "#f=1", "#f=2&with=3"))):
        for fragment in fragments:
            show(browser, which, fragment)
            opened(browser)
            assert not clipped(browser, apart=".frame, .scroll, .lines, .hidden"), (which, fragment)
    browser.set_viewport_size({"width": 1440, "height": 900})


def test_missing_numbers_and_parts(odd: Path, browser: "Page") -> None:
    show(browser, odd, "#f=2")
    assert opened(browser) == [2]
    assert "NaN" not in browser.inner_text("body")
    assert browser.locator("#selected, [data-key='tokens'], [data-key='rank'], select").count() == 0
    assert browser.evaluate("app.plots.map(plot => plot.kind)") == ["nrn"]
    assert "mechprobe features with the models writes them" in browser.inner_text(".contexts")
    assert browser.evaluate("app.plots[0].y[explorer.table.place.get(3)]") == 0  # of density 0, on the axis
    show(browser, odd, "#q=nowhere")
    browser.click(".empty button")
    assert len(listed(browser)) == 40
    browser.evaluate("app.change({ranges: {density_joint: [0, 1]}})")
    assert len(listed(browser)) == 32  # those without a number are in no range
    assert browser.inner_text("#ranges") == "(1 set)"


def test_of_a_single_model_there_is_no_plot(tmp_path: Path, browser: "Page") -> None:
    folder = made_up_run(tmp_path / "run", n_features=10, n_contexts=2, models=("base",))
    write_explorer(RunFiles.read(folder), folder / "report" / "features")
    show(browser, folder, "#f=3&contexts=difference")
    assert opened(browser) == [3]
    assert browser.locator("canvas").count() == 0
    assert len(listed(browser)) == 10


def test_without_scripts_the_page_says_where_to_look(run: Path, browser: "Page") -> None:
    engine = browser.context.browser
    assert engine is not None
    page = engine.new_page(java_script_enabled=False)
    page.goto((run / "report" / "features" / "index.html").as_uri())
    assert "needs scripts" in page.inner_text("body")
    assert page.locator("noscript a").count() == 2
    page.close()


def test_a_missing_shard_is_one_sentence(run: Path, browser: "Page", tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run / "report" / "features", copy)
    (copy / "data" / "shard_1.js").unlink()
    browser.goto((copy / "index.html").as_uri() + "#f=100")
    browser.wait_for_selector("#pane .warn")
    assert browser.inner_text("#pane .warn") == "data/shard_1.js cannot be read; make the report again."
