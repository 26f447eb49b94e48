"""The page in Chromium: drawn, quiet, sealed, and usable by keyboard, screen reader and phone."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import BrowserContext, Page, sync_playwright

from edgekd.report import report

from .conftest import Maker, make_whole
from .latencies import latency, offline, samples, scenario

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
WIDTHS, SCHEMES = (390, 1280), ("light", "dark")
PLOTS = "svg.plot"
# Of every figure: its box, its title, and of each drawn thing its classes, box and colours.
DRAWN = """svgs => svgs.map(svg => ({
  box: svg.getBoundingClientRect().toJSON(),
  title: svg.closest('figure').querySelector('figcaption').firstChild.textContent.trim(),
  parts: [...svg.querySelectorAll('path, text')].map(part => ({
    tag: part.tagName, classes: part.getAttribute('class') || '', text: part.textContent,
    box: part.getBoundingClientRect().toJSON(),
    stroke: getComputedStyle(part).stroke, fill: getComputedStyle(part).fill,
    opacity: +getComputedStyle(part).opacity,
  })),
}))"""


@pytest.fixture(scope="module")
def chromium(
    needs: Callable[[str, bool, str], None], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[BrowserContext]:
    """The system's browser with a profile of its own; nothing is downloaded."""
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    needs("chromium", found is not None, "make system-deps")
    with sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            tmp_path_factory.mktemp("profile"), executable_path=found, args=list(FLAGS)
        )
        yield context
        context.close()


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page with everything on it."""
    folder = tmp_path_factory.mktemp("page")
    return report(make_whole(Maker(folder / "out")), folder / "report.html")


@pytest.fixture
def page(chromium: BrowserContext, file: Path) -> Iterator[Page]:
    opened = chromium.new_page()
    opened.goto(file.as_uri())
    yield opened
    opened.close()


def show(page: Page, width: int, scheme: str) -> None:
    page.set_viewport_size({"width": width, "height": 900})
    page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]


def drawn(page: Page) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = page.eval_on_selector_all(PLOTS, DRAWN)
    return found


def test_nothing_is_said_on_the_console_and_nothing_is_asked_for(
    chromium: BrowserContext, file: Path
) -> None:
    page = chromium.new_page()
    said: list[str] = []
    asked: set[str] = set()
    page.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.add(request.url))
    page.goto(file.as_uri())
    for width in WIDTHS:
        for scheme in SCHEMES:
            show(page, width, scheme)
            page.wait_for_load_state("networkidle")
    page.close()
    assert said == []
    assert {url for url in asked if not url.startswith("data:")} == {file.as_uri()}


@pytest.mark.parametrize("width", WIDTHS)
def test_every_plot_is_drawn_within_its_box(page: Page, width: int) -> None:
    show(page, width, "light")
    found = drawn(page)
    titles = [each["title"] for each in found]
    assert titles.count("How latency is distributed") == 3
    assert {"Accuracy against p90", "Accuracy against throughput"} < set(titles)
    assert "Student, logits loss" in titles
    for plot in found:
        box = plot["box"]
        assert box["width"] > 250
        assert box["height"] > 150
        marks = [p for p in plot["parts"] if re.match(r"(line|mark|bar|faint) ", p["classes"])]
        assert marks, plot["title"]
        assert len([part for part in plot["parts"] if part["tag"] == "text"]) >= 4
        for part in plot["parts"]:
            inner = part["box"]
            assert inner["width"] + inner["height"] > 1, (plot["title"], part["classes"])
            assert inner["left"] >= box["left"] - 2, (plot["title"], part)
            assert inner["right"] <= box["right"] + 2, (plot["title"], part)
            assert inner["top"] >= box["top"] - 2, (plot["title"], part)
            assert inner["bottom"] <= box["bottom"] + 2, (plot["title"], part)


def test_a_plot_shows_each_engine_and_each_process(page: Page) -> None:
    by_title = {plot["title"]: [p["classes"] for p in plot["parts"]] for plot in drawn(page)[:2]}
    classes = by_title["How latency is distributed"]
    for look in ("s0", "s1", "s2"):
        assert classes.count(f"line {look}") == 1
        assert classes.count(f"faint {look}") == 12
    classes = by_title["Accuracy against p90"]
    assert [classes.count(f"mark s{look}") for look in range(3)] == [1, 1, 1]
    assert [classes.count(f"bar s{look}") for look in range(3)] == [2, 2, 2]


@pytest.mark.parametrize("width", WIDTHS)
def test_no_two_texts_of_a_plot_overlap(page: Page, width: int) -> None:
    show(page, width, "light")
    for plot in drawn(page):
        texts = [part for part in plot["parts"] if part["tag"] == "text"]
        for number, one in enumerate(texts):
            for other in texts[number + 1 :]:
                a, b = one["box"], other["box"]
                across = min(a["right"], b["right"]) - max(a["left"], b["left"])
                down = min(a["bottom"], b["bottom"]) - max(a["top"], b["top"])
                assert across <= 0 or down <= 2, (plot["title"], one["text"], other["text"])


def luminance(colour: str) -> float:
    """Relative luminance (WCAG 2.2)."""
    channels = [int(number) / 255 for number in re.findall(r"\d+", colour)[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_ink_can_be_told_from_the_paper_by_day_and_by_night(page: Page) -> None:
    inks: dict[str, set[str]] = {}
    for scheme in SCHEMES:
        show(page, 1280, scheme)
        paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
        for plot in drawn(page):
            for part in plot["parts"]:
                if part["tag"] == "text":
                    assert contrast(part["fill"], paper) >= 4.5, (scheme, part["text"])
                elif re.match(r"(line|bar|axis)", part["classes"]):
                    assert contrast(part["stroke"], paper) >= 3, (scheme, part["classes"])
                    assert part["fill"] == "none"
                elif part["classes"].startswith("mark"):
                    assert contrast(part["fill"], paper) >= 3, (scheme, part["classes"])
                inks.setdefault(scheme, set()).add(part["stroke"])
    assert len(inks["light"]) >= 6
    assert inks["light"] & inks["dark"] == {"none"}


@pytest.mark.parametrize("width", WIDTHS)
def test_the_page_never_scrolls_sideways(page: Page, width: int) -> None:
    show(page, width, "light")
    over = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert page.evaluate(over) == 0
    page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
    assert page.evaluate(over) == 0


def test_everything_that_unfolds_does_so_by_keyboard(page: Page) -> None:
    """Tab goes through the page in order; Enter opens each summary it meets."""
    expected = page.locator("summary").count()
    assert expected > 20
    opened = 0
    where = """() => { const e = document.activeElement; const look = getComputedStyle(e);
      return [e.tagName, e === document.body, look.outlineStyle, parseFloat(look.outlineWidth)] }"""
    for _ in range(1000):
        page.keyboard.press("Tab")
        tag, done, outline, pixels = page.evaluate(where)
        if done:
            break
        assert outline != "none"
        assert pixels >= 1
        if tag == "SUMMARY":
            page.keyboard.press("Enter")
            opened += 1
    assert opened == expected
    assert page.locator("details:not([open])").count() == 0
    # Behind every plot its numbers, in a table.
    for figure in page.locator("figure").all():
        assert figure.locator("details[open] table tbody tr").first.is_visible()


def test_a_screen_reader_finds_a_name_and_the_numbers_of_every_figure(
    page: Page, chromium: BrowserContext
) -> None:
    session = chromium.new_cdp_session(page)
    nodes = session.send("Accessibility.getFullAXTree")["nodes"]
    names: dict[str, list[str]] = {}
    for node in nodes:
        if not node["ignored"]:
            role, name = node["role"]["value"], node.get("name", {}).get("value", "")
            names.setdefault(role, []).append(name)
    plots = page.locator(PLOTS).count()
    assert len(names["figure"]) == plots
    assert all(len(name) > 15 for name in names["figure"])
    images = names.get("image", []) + names.get("img", []) + names.get("graphics-document", [])
    assert len(images) == plots
    assert all(re.search(r"\d", name) and len(name) > 40 for name in images)
    # What is drawn is told by that name; a reader is not led through ticks.
    inside = {text for text in page.locator(f"{PLOTS} text").all_text_contents() if len(text) > 6}
    assert "p90 of a query" in inside
    assert inside.isdisjoint(names["StaticText"])


def test_a_page_of_realistic_measurements_stays_below_2_mb(tmp_path: Path) -> None:
    maker = Maker(tmp_path / "out")
    whole = make_whole(maker)
    engines = [
        made for made in whole if made.kind == "Engine" and made.config["target"]["name"] == "cpu"
    ]
    eight = {"scenario": "MultiStream", "batch": 8, "percentile": 99, "queries": 2000}
    for asked in (scenario(queries=2000), scenario(name="eight", **eight), offline()):
        times = samples([800, 420, 410], asked, spread=0.6)
        whole.append(latency(maker, engines[::-1], times, asked))
    size = report(whole, tmp_path / "report.html").stat().st_size
    assert 200_000 < size < 2_000_000
