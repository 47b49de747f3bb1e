"""Can the built book be read? Every page in a browser, wide and narrow, without a network.

``make test`` builds the book and then runs this file; by itself it reads the last ``make book``.
"""

import functools
import http.server
import re
import shutil
import threading

import pytest

from egraff_utils import paths
from egraff_utils.running import pages

sync_api = pytest.importorskip("playwright.sync_api")

SITE = paths.ROOT / "_build" / "html"
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
OVERFLOWING = """() => {
  const width = document.documentElement.clientWidth;
  const scrolls = (e) => e !== document.body && e !== document.documentElement
    && ['auto', 'scroll', 'hidden'].includes(getComputedStyle(e).overflowX);
  const inside = (e) => e && (scrolls(e) || inside(e.parentElement));
  const over = (box) => box.width > 0 && box.right > width + 1;
  return [...document.querySelectorAll('main *')]
    .filter(e => over(e.getBoundingClientRect()) && !inside(e))
    .map(e => e.outerHTML.slice(0, 80));
}"""
"""What reaches over the right edge of the window and has no scroll bar of its own."""

SCROLLING = """() => [...document.querySelectorAll('main table.dataframe')]
  .filter(table => [table, table.parentElement].some(e => e.scrollWidth > e.clientWidth + 1))
  .map(table => table.id)"""
"""Tables that are wider than the text."""

pytestmark = [
    pytest.mark.site,
    pytest.mark.skipif(BROWSER is None, reason="no chromium: apt-get install chromium"),
    pytest.mark.skipif(not (SITE / "index.html").exists(), reason="no built book: make book"),
]


class Silent(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


@pytest.fixture(scope="module")
def address():
    handler = functools.partial(Silent, directory=str(SITE))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])


@pytest.fixture(scope="module", params=[1400, 390])
def window(request, browser, address):
    """A window, and what it complained of and asked others for since a page was opened in it."""
    page, said, asked = browser.new_page(viewport={"width": request.param, "height": 900}), [], []
    page.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on(
        "request", lambda r: None if r.url.startswith((address, "data:", "blob:")) else asked.append(r.url)
    )
    yield page, said, asked
    page.close()


def opened(window, address):
    """The window at a page, with nothing said or asked before."""
    page, said, asked = window
    said.clear()
    asked.clear()
    page.goto(address, wait_until="load")
    return window


@pytest.mark.parametrize("name", pages.contents())
def test_a_page_can_be_read_without_a_network(name, window, address):
    page, said, asked = opened(window, f"{address}{name}.html")
    page.wait_for_timeout(100)
    assert not said, "errors in the console"
    assert not asked, "requests that leave the machine"
    assert page.evaluate(OVERFLOWING) == []
    assert page.viewport_size["width"] < 1400 or page.evaluate(SCROLLING) == []
    texts = page.eval_on_selector_all("main img", "images => images.map(image => image.alt)")
    assert not [text for text in texts if len(text) < 10 or text.endswith((".png", ".svg"))]


def test_an_overflow_is_seen(window):
    page, _, _ = window
    page.set_content("<main><p id=wide style='width: 3000px'>wide</p></main>")
    assert [text[:10] for text in page.evaluate(OVERFLOWING)] == ['<p id="wid']


def test_formulas_are_set(window, address):
    page, _, _ = window
    page.goto(f"{address}book/method.html", wait_until="load")
    page.wait_for_selector("mjx-container", state="attached", timeout=10_000)


def test_a_term_shows_its_definition(window, address):
    page, _, _ = window
    page.goto(f"{address}book/intro.html", wait_until="load")
    tips = page.eval_on_selector_all("main a[href*='#term-']", "links => links.map(link => link.title)")
    assert len(tips) > 5
    assert min(map(len, tips)) > 30


def test_the_first_page_takes_two_screens(window, address):
    page, _, _ = window
    page.goto(f"{address}book/intro.html", wait_until="load")
    page.wait_for_load_state("networkidle")
    size = page.viewport_size
    if size["width"] < 1000:
        pytest.skip("a phone's screen holds less")
    assert page.query_selector("article").bounding_box()["height"] < 2 * 900


@pytest.mark.parametrize("name", ["floors", "models", "speed"])
def test_pages_of_many_tables_are_not_endless(name, window, address):
    page, _, _ = window
    page.goto(f"{address}book/report/{name}.html", wait_until="load")
    page.wait_for_load_state("networkidle")
    if page.viewport_size["width"] < 1000:
        pytest.skip("a phone's screen holds less")
    assert page.query_selector("article").bounding_box()["height"] < 10_000


@pytest.mark.parametrize("name", ["question", "leaderboard"])
def test_a_point_shows_its_values_and_leads_to_a_page(name, window, address):
    page, said, asked = opened(window, f"{address}book/report/{name}.html")
    page.wait_for_selector(".interactive .point")
    plot = page.query_selector(".interactive")
    points = plot.evaluate(
        "plot => plot.data.flatMap(trace => trace.customdata.map((to, k) => [trace.text[k], to]))"
    )
    assert all("Force MAE" in text for text, _ in points)
    assert {to for _, to in points if not (SITE / "book" / "report" / to).exists()} == set()
    assert not plot.query_selector("xpath=..//img").is_visible()
    assert not said + asked


def _column(table, place):
    """Numbers or else names in a column of a table, of the rows that a reader sees, without what has none."""
    cells = table.query_selector_all(f"tbody tr > :nth-child({place})")
    return re.findall(
        r"^[\d.]+|^[A-Z][\w-]+", "\n".join(c.inner_text().split()[0] for c in cells), re.MULTILINE
    )


def test_the_leaderboard_can_be_sorted_and_filtered(window, address):
    page, said, asked = opened(window, f"{address}book/report/leaderboard.html")
    page.wait_for_selector("input.filter")
    table = page.query_selector("table.sortable")
    rows = len(_column(table, 2))
    for reverse in (False, True):
        head = table.query_selector("thead tr:last-child > :nth-child(4)")
        head.click()
        order = "descending" if reverse else "ascending"
        page.wait_for_function("([head, order]) => head.ariaSort === order", arg=[head, order], timeout=5000)
        errors = [float(text) for text in _column(table, 4)]
        assert len(errors) > 20
        assert errors == sorted(errors, reverse=reverse)
    page.query_selector("input.filter").fill("nequip")
    assert set(_column(table, 2)) == {"NequIP"}
    assert 1 < len(_column(table, 2)) < rows
    assert page.evaluate(OVERFLOWING) == said == asked == []
    if page.viewport_size["width"] == 1400:
        boxes = page.query_selector_all("div:has(> div table.sortable)")
        assert all(box.evaluate("box => box.scrollWidth <= box.clientWidth") for box in boxes)


@pytest.mark.parametrize("name", ["question", "leaderboard"])
def test_without_a_program_the_picture_and_the_points_stay(name, browser, address):
    page = browser.new_page(java_script_enabled=False)
    page.goto(f"{address}book/report/{name}.html")
    figure = page.query_selector("figure:has(.interactive)")
    assert figure.query_selector("img").is_visible()
    link = figure.query_selector(".points a").get_attribute("href")
    assert page.request.get(f"{address}book/report/{link}").text().startswith("panel,line,series,")
    page.close()


def test_without_a_program_the_leaderboard_stays(browser, address):
    page = browser.new_page(java_script_enabled=False)
    page.goto(f"{address}book/report/leaderboard.html")
    assert len(_column(page.query_selector("table.sortable"), 2)) > 20
    assert page.query_selector("table.sortable").is_visible()
    assert page.query_selector("input.filter") is None
    page.close()
