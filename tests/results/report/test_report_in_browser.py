"""report.html in a real browser: it opens without complaint, sorts, filters, and fits on a phone."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from browser import EXECUTABLE, Page, browser
from convbench.results import compare
from convbench.results.report.write import write_all, write_comparison
from result_rows import row
from synthetic_run import synthetic_run

pytestmark = pytest.mark.skipif(
    EXECUTABLE is None, reason="there is no Chromium (Debian: apt install chromium)"
)

HOSTILE = "a<script>document.title = 'taken'</script><img src=x onerror=\"document.title = 'taken'\">"
LONG = "a_name_that_knows_no_end_and_has_no_blank_" * 4
BACKENDS = {"torch": 10.0, "im2col": 100.0, HOSTILE: 55.0, LONG: 1000.0}


@pytest.fixture(scope="module")
def chromium() -> Iterator[Page]:
    with browser() as page:
        yield page


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    failed = row(backend="mine", status="crashed", error=f"signal 11 in {LONG}")
    return synthetic_run(
        tmp_path_factory.mktemp("run"), BACKENDS, architectures=("lenet", "alexnet"), seeds=2, more=[failed]
    )


@pytest.fixture(scope="module")
def pages(run_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    here = tmp_path_factory.mktemp("pages")
    new = synthetic_run(here / "new", BACKENDS | {"torch": 15.0}, seeds=2)
    comparison = compare(run_dir, new, run_dir)
    return {
        "report": write_all(run_dir)[1],
        "comparison": write_comparison(comparison, here / "comparison.html"),
    }


def column(name: str, number: int) -> str:
    """An expression for the texts in a column of a table, in the rows that are shown."""
    rows = f"[...document.querySelectorAll('#{name} tbody tr:not([hidden])')]"
    return f"{rows}.map(row => row.cells[{number}].textContent)"


@pytest.mark.parametrize("kind", ["report", "comparison"])
@pytest.mark.parametrize("width", [360, 768, 1280])
def test_it_opens_without_complaint_and_fits(
    chromium: Page, pages: dict[str, Path], kind: str, width: int
) -> None:
    chromium.complaints.clear()
    chromium.requests.clear()
    chromium.open(pages[kind], width=width)
    chromium.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true })")
    assert chromium.complaints == []
    assert chromium.requests == [pages[kind].as_uri()]
    assert chromium.evaluate("document.title").endswith(" · convbench")
    assert chromium.evaluate("document.documentElement.scrollWidth <= innerWidth")
    wide = """[...document.querySelectorAll('main *')].filter(e => !e.closest('.scroll, pre, svg'))
        .filter(e => e.getBoundingClientRect().right > document.documentElement.clientWidth + 1)
        .map(e => e.outerHTML.slice(0, 200))"""
    assert chromium.evaluate(wide) == []


def test_it_sorts_by_number_and_by_name(chromium: Page, pages: dict[str, Path]) -> None:
    chromium.open(pages["report"])
    titles = chromium.evaluate("[...document.querySelectorAll('#results th')].map(e => e.textContent)")
    step = titles.index("step, ms")
    for direction in (1, -1):
        chromium.click(f"#results th:nth-child({step + 1}) button")
        shown = chromium.evaluate(column("results", step))
        assert shown[-1] == "–"  # what was not measured comes last, either way
        numbers = [float(text.replace(",", "")) for text in shown[:-1]]
        assert numbers == sorted(numbers, reverse=direction < 0)
        assert len(numbers) == 8
        sorting = ["ascending", "descending"][direction < 0]
        assert chromium.evaluate("document.querySelector('#results [aria-sort]').ariaSort") == sorting
    chromium.click("#results th:nth-child(1) button")
    names = chromium.evaluate(column("results", 0))
    assert names[-5:] == ["im2col", "im2col", "mine", "torch", "torch"]
    assert chromium.evaluate("document.querySelectorAll('#results [aria-sort]').length") == 1


def test_it_sorts_from_the_keyboard(chromium: Page, pages: dict[str, Path]) -> None:
    chromium.open(pages["report"])
    chromium.evaluate("document.querySelector('#results th button').focus()")
    chromium.press("Enter", "\r")
    assert chromium.evaluate("document.querySelector('#results th').ariaSort") == "ascending"
    chromium.press("Tab")
    assert chromium.evaluate("document.activeElement.textContent") == "architecture"


def test_it_filters_by_words_and_by_choice(chromium: Page, pages: dict[str, Path]) -> None:
    chromium.open(pages["report"])
    count = "document.querySelector('#results-table output').value"
    assert chromium.evaluate(count) == "9 rows"
    chromium.click("#results-table input")
    for letter in "ALEX im2":
        chromium.press(letter, letter)
    assert chromium.evaluate(column("results", 0)) == ["im2col"]
    assert chromium.evaluate(count) == "1 of 9 rows"
    chromium.evaluate(
        "(() => { const box = document.querySelector('#results-table input'); box.value = '';"
        " box.dispatchEvent(new Event('input', {bubbles: true})); })()"
    )
    chromium.evaluate(
        "(() => { const select = document.querySelector('#results-table select'); select.value = 'torch';"
        " select.dispatchEvent(new Event('input', {bubbles: true})); })()"
    )
    assert chromium.evaluate(column("results", 0)) == ["torch", "torch"]
    assert chromium.evaluate(count) == "2 of 9 rows"


def test_everything_to_be_pressed_has_a_name(chromium: Page, pages: dict[str, Path]) -> None:
    chromium.open(pages["report"])
    chromium.call("Accessibility.enable")
    nodes = chromium.call("Accessibility.getFullAXTree")["nodes"]
    roles = ("button", "combobox", "searchbox", "link", "region", "image", "table", "search")
    nameless = [
        node["role"]["value"]
        for node in nodes
        if not node.get("ignored")
        and node["role"]["value"] in roles
        and not node.get("name", {}).get("value")
    ]
    assert nameless == []
    chromium.call("Accessibility.disable")


def test_an_injected_script_would_not_run(chromium: Page, pages: dict[str, Path], tmp_path: Path) -> None:
    """Should escaping ever fail, the page's policy is still there."""
    html = pages["report"].read_text(encoding="utf-8")
    taken = tmp_path / "taken.html"
    taken.write_text(
        html.replace("<main", "<script>document.title = 'taken'</script><main", 1), encoding="utf-8"
    )
    chromium.open(taken)
    assert chromium.evaluate("document.title") != "taken"
    assert any("Content Security Policy" in complaint for complaint in chromium.complaints)


def test_it_follows_the_colour_scheme(chromium: Page, pages: dict[str, Path]) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    chromium.open(pages["report"], prefers_color_scheme="dark")
    assert chromium.evaluate(ground) == "rgb(20, 23, 28)"
    chromium.open(pages["report"], prefers_color_scheme="light")
    assert chromium.evaluate(ground) == "rgb(255, 255, 255)"


CHART = "document.querySelector('figure svg')"
READ = "[...document.querySelectorAll('figure .point.read')].map(e => e.getAttribute('aria-label'))"
SHOWN = "document.querySelector('figure .reading:not([hidden])')?.textContent"


def test_charts_are_read_from_the_keyboard(chromium: Page, pages: dict[str, Path]) -> None:
    chromium.complaints.clear()
    chromium.open(pages["report"])
    assert chromium.evaluate("document.querySelectorAll('figure svg > title, .point title').length") == 0
    stops = "[...document.querySelectorAll('figure')].map(f => f.querySelectorAll('[tabindex=\"0\"]').length)"
    assert set(chromium.evaluate(stops)) == {1}  # a chart is one stop of the tabulator
    chromium.evaluate(f"{CHART}.querySelector('.point').focus()")
    first = chromium.evaluate(SHOWN)
    assert first.startswith("torch: 1")
    assert chromium.evaluate(READ) == [first]
    chromium.press("ArrowRight")
    assert chromium.evaluate(SHOWN) not in (first, None)
    chromium.press("End")
    assert chromium.evaluate(SHOWN).startswith(LONG)
    chromium.press("Home")
    assert chromium.evaluate(SHOWN) == first
    chromium.press("Escape")
    assert chromium.evaluate(SHOWN) is None
    chromium.press("ArrowRight")
    chromium.press("Tab")
    assert not chromium.evaluate(f"{CHART}.contains(document.activeElement)")
    assert chromium.complaints == []


@pytest.mark.parametrize("width", [360, 1280])
def test_charts_are_read_with_the_pointer(chromium: Page, pages: dict[str, Path], width: int) -> None:
    chromium.open(pages["report"], width=width)
    for chart in ("Training throughput", "Step times", "Validation accuracy"):
        where = f"figure svg[aria-label^='{chart}'] .point"
        expected = chromium.evaluate(f"document.querySelector(\"{where}\").getAttribute('aria-label')")
        chromium.hover(where)
        assert chromium.evaluate(READ) == [expected]
        assert chromium.evaluate(SHOWN) == expected
        inside = "document.querySelector('.reading:not([hidden])').getBoundingClientRect()"
        assert chromium.evaluate(f"{inside}.left >= 0 && {inside}.right <= innerWidth")
    chromium.hover("h1")
    assert chromium.evaluate(SHOWN) is None


def test_what_a_chart_shows_is_told_to_assistive_technology(chromium: Page, pages: dict[str, Path]) -> None:
    chromium.open(pages["report"])
    chromium.call("Accessibility.enable")
    nodes = chromium.call("Accessibility.getFullAXTree")["nodes"]
    names = [n.get("name", {}).get("value", "") for n in nodes if not n.get("ignored")]
    groups = [name for name in names if name.startswith("Training throughput. ")]
    assert len(groups) == 2
    assert "torch: 12," in groups[0]
    assert any(name.startswith("torch, process 1: median 9.") for name in names) or any(
        name.startswith("torch, process 1: median 10") for name in names
    )
    chromium.call("Accessibility.disable")


@pytest.mark.parametrize(("kind", "width"), [("report", 700), ("comparison", 700)])
def test_nothing_is_cut_off_on_paper(
    chromium: Page, pages: dict[str, Path], tmp_path: Path, kind: str, width: int
) -> None:
    """Letter and A4, less their margins, are 700 pixels wide; pages with a table of many columns are landscape."""
    chromium.open(pages[kind], width=width, medium="print", prefers_color_scheme="dark")
    assert chromium.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    tables = "[...document.querySelectorAll('table')].filter(t => t.checkVisibility())"
    narrow = chromium.evaluate(f"{tables}.filter(t => !t.closest('.wide')).map(t => t.offsetWidth)")
    assert narrow
    assert max(narrow) <= width
    chromium.open(pages[kind], width=960, medium="print")
    assert max(chromium.evaluate(f"{tables}.map(t => t.offsetWidth)")) <= 960
    chromium.pdf(tmp_path / "report.pdf")
    written = (tmp_path / "report.pdf").read_bytes()
    assert written.startswith(b"%PDF-")
    assert len(set(re.findall(rb"/MediaBox \[[^\]]*\]", written))) == 1  # another size begins another page
