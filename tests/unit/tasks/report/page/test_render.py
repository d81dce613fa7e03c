"""The page in a browser: nothing of a name runs, nothing is loaded, and no screen is too narrow for it."""

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tasks.measurement.sweep import SizeTimes
from tasks.report.page.charts import Point, draw_latencies, draw_pareto, draw_sizes
from tasks.report.page.document import ReportInputs, describe_release
from tasks.report.page.render import name_headline, render_page
from tests.support.browser import CHROMIUM, Page, open_browser
from tests.support.reports import ATTACK, HOSTILE, make_report_inputs

# WCAG 2.2, 1.4.3: the least contrast of text.
LEAST_CONTRAST = 4.5
CONTRAST = """
(() => {
  const parse = (color) => color.match(/[\\d.]+/g).slice(0, 3).map((each) => each / 255);
  const light = (color) => parse(color)
    .map((each) => (each <= 0.04045 ? each / 12.92 : ((each + 0.055) / 1.055) ** 2.4))
    .reduce((sum, each, place) => sum + each * [0.2126, 0.7152, 0.0722][place], 0);
  const behind = (element) => {
    for (let each = element; each; each = each.parentElement) {
      const color = getComputedStyle(each).backgroundColor;
      if (!color.endsWith(", 0)")) return color;
    }
    return "rgb(255, 255, 255)";
  };
  const texts = [...document.querySelectorAll("body *")].filter((each) =>
    [...each.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim()) && each.tagName !== "SCRIPT"
    && each.tagName !== "STYLE" && each.tagName !== "style" && each.tagName !== "title");
  return Math.min(...texts.map((each) => {
    const style = getComputedStyle(each);
    const [one, other] = [light(each.ownerSVGElement ? style.fill : style.color), light(behind(each))];
    return (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
  }));
})()
"""


def calls_of(inputs: ReportInputs) -> dict[tuple[str, str], NDArray[np.float64]]:
    return {
        (each.row.target, each.row.precision.value): each.call_seconds
        for each in inputs.engines
        if each.call_seconds is not None
    }


def render(model: str = "sst2") -> str:
    inputs = make_report_inputs(model)
    return render_page(describe_release(inputs), calls_of(inputs))


def test_the_sizes_of_the_profile_are_drawn_with_the_speed_up_over_fp32_at_each() -> None:
    page = render()
    assert "<title>cpu" not in page
    assert "<title>fp32, batch 8, sequence 32, 30 ms</title>" in page
    titles = re.findall(r"<title>int8, batch 32, sequence 64, ([^<]+)</title>", page)
    assert len(titles) == 1
    assert titles[0].endswith(" times")


def test_sizes_of_one_axis_are_one_column() -> None:
    drawn = draw_sizes({"fp32": [SizeTimes((("batch", size),), 3, size / 4) for size in (8, 1, 32)]}, "fp32")
    assert drawn.count(" ms</title>") == 3
    assert "batch" in drawn


def test_the_machine_card_says_which_engines_windows_ran_beside_other_work() -> None:
    card = render().split("<dt>windows beside other work</dt>")[1].partition("</dd>")[0]
    assert card == "<dd>cpu int8: 6, cpu fp16: 12"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    if CHROMIUM is None:
        pytest.skip("chromium is not installed")
    with open_browser(tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("page") / "report.html"
    file.write_text(render(HOSTILE), encoding="utf-8")
    return file


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_fits_loads_nothing_and_complains_of_nothing(
    browser: Page, page_file: Path, width: int, scheme: str
) -> None:
    browser.open(page_file, width=width, scheme=scheme)
    assert browser.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    browser.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    assert browser.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    assert browser.evaluate(CONTRAST) >= LEAST_CONTRAST
    assert browser.complaints() == []
    assert browser.addresses() - {"data:,"} == {page_file.as_uri()}


def test_no_name_becomes_markup_or_runs(browser: Page, page_file: Path) -> None:
    browser.open(page_file, width=1280, scheme="light")
    assert browser.evaluate("document.title") == f"{HOSTILE}, release 0123456789ab"
    assert browser.evaluate("document.querySelectorAll('img, iframe, object').length") == 0
    assert browser.evaluate("document.scripts.length") == 1
    assert HOSTILE in browser.evaluate("document.body.textContent")


def test_one_click_copies_a_digest_or_selects_it(browser: Page, page_file: Path) -> None:
    browser.open(page_file, width=1280, scheme="light")
    browser.evaluate("document.querySelector('dd .copy').scrollIntoView()")
    at = browser.evaluate(
        "(() => { const box = document.querySelector('dd .copy').getBoundingClientRect();"
        " return [box.x + 20, box.y + 5]; })()"
    )
    for kind in ("mousePressed", "mouseReleased"):
        browser.send("Input.dispatchMouseEvent", type=kind, x=at[0], y=at[1], button="left", clickCount=1)
    assert browser.evaluate("getSelection().toString()") == "1" * 64


class Tags(HTMLParser):
    """The tags of a page, in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.names: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:  # noqa: ARG002 - html.parser's signature
        self.names.append(tag)


def test_a_hostile_name_adds_no_tag() -> None:
    hostile, plain = Tags(render(HOSTILE)).names, Tags(render()).names
    assert hostile == plain
    assert ATTACK not in render(HOSTILE)


def test_a_name_in_a_chart_is_text() -> None:
    point = Point("<script>$x$", (1.0, 0.9, 1.1), (0.9, 0.8, 0.95), is_reference=True, is_dominated=False)
    svg = draw_pareto("<b>", [point], 0.85)
    assert "&lt;script&gt;$x$" in svg
    assert not {"script", "b"} & set(Tags(svg).names)


@pytest.mark.parametrize("engines", [1, 8, 24])
def test_engines_that_are_all_alike_are_drawn_each_with_its_name(engines: int) -> None:
    same = [
        Point(f"int{number}", (1.0, 1.0, 1.0), (0.9, 0.9, 0.9), number == 0, number > 0) for number in range(engines)
    ]
    svg = draw_pareto("accuracy", same, 0.9)
    assert all(f">int{number}<" in svg for number in range(engines))
    calls = {point.name: np.full((1, 1), 0.01) for point in same[:8]}
    assert draw_latencies(calls, 5.0).count("<title>") == len(calls)


def test_a_limit_far_from_every_point_is_not_drawn() -> None:
    points = [Point("fp32", (1.0, 0.9, 1.1), (0.9, 0.88, 0.92), is_reference=True, is_dominated=False)]
    assert "the gate's limit" in draw_pareto("accuracy", points, 0.87)
    assert "the gate's limit" not in draw_pareto("accuracy", points, -0.1)


@pytest.mark.parametrize(
    ("verdicts", "words"),
    [
        (["inconclusive", "failed"], "Undecided"),
        (["unmeasured", "failed"], "Not measured"),
        (["failed"], "no engine passed"),
        ([None], "no engine was built"),
    ],
)
def test_the_headline_is_the_best_that_came_of_it(verdicts: list[str | None], words: str) -> None:
    engines: list[dict[str, Any]] = [
        {"verdict": verdict, "aliases": [], "target": "cpu", "precision": "fp32", "digest": verdict and "d"}
        for verdict in verdicts
    ]
    assert words in name_headline({"engines": engines})
