"""A report's page: what is in it, and that it works in a browser (Chromium, where it is there)."""

from __future__ import annotations

import fnmatch
import io
import math
import re
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gdfq.errors import InputError
from gdfq.report.charts import log_ticks, nice_ticks, short
from gdfq.report.contents import ClassImages, Confusion, Curve, LayerRow, Measured
from gdfq.report.page import render
from gdfq.report.text import compact, duration, size
from tests.helpers.report_contents import bare, run

NASTY = "<script>throw 1</script>\"'&amp;<img src=x onerror=throw 2>"
LONG = "a_run_with_a_very_long_name_that_has_no_space_in_it_at_all_and_goes_on_and_on_and_on"

# ---- what is in it ----


def test_no_runs():
    with pytest.raises(InputError, match="at least one"):
        render([])


def test_one_run_has_every_section():
    page = render([run()])
    for id in ("result", "training", "images", "statistics", "layers", "confusion", "facts"):
        assert f'<section id="{id}"' in page
        assert f'href="#{id}"' in page
    assert "The student classifies 93.49% of 10,000 test images of fashion-mnist correctly" in page
    assert "0.73 points fewer than its teacher" in page
    assert "7.6 times less than the teacher&#39;s 1.10 MB" in page


def test_a_run_without_anything():
    page = render([bare()])
    for id in ("training", "images", "statistics", "layers", "confusion"):
        assert f'id="{id}"' not in page
    assert "has not finished" in page
    assert "Accuracy was not measured: the recipe names no data set to measure on." in page


def test_failure_and_notes_are_told():
    measured = Measured(step=500, notes=["The test images are not there."])
    page = render([run(failure="loss is NaN", finished=False, measured=measured)])
    assert "failed at step 600: loss is NaN" in page
    assert "The test images are not there." in page
    assert "was measured at step 500" in page


def test_runs_are_compared():
    page = render([run("first"), run("second", 3, seed=1), bare("third")])
    assert "3 runs compared" in page
    assert page.index("The runs compared") < page.index("Training</h2>")
    # Both are in the charts, and each has a table of layers.
    assert page.count('class="sortable layers"') == 2
    assert len(re.findall(r'<g class="series s1">', page)) > 5


def test_more_runs_than_colours():
    page = render([run(f"run {i}", seed=i) for i in range(8)])
    assert "run 7" in page


def test_runs_of_different_networks_are_not_drawn_over_each_other():
    page = render([run("small", layers=4), run("large", layers=12)])
    notes = re.findall(r"higher is better; (\w+)</span>", page)
    assert notes == ["small", "small", "large", "large"]


def test_many_classes_show_the_most_frequent_mistakes():
    page = render([run(classes=[f"class {i}" for i in range(150)])])
    assert 'id="pairs-0"' in page
    assert 'id="confusion-0"' not in page


def test_names_are_escaped():
    first = run(NASTY, classes=[NASTY, "b"], sentence=NASTY, evaluation=NASTY, environment=NASTY)
    first.measured.layers[0].name = first.measured.norms[0].name = NASTY
    first.measured.notes = [NASTY]
    first.curves.append(Curve(NASTY, "loss", [1, 2], [1.0, 2.0]))
    for page in (render([first]), render([first, run()])):
        assert "<script>throw" not in page
        assert "<img src=x" not in page
        assert page.count("<script>") == 1


def test_what_is_not_a_number_is_left_out():
    odd = run(
        teacher=None,
        before=None,
        after=90.0,
        curves=[
            Curve("student", "loss", [1, 2, 3], [1.0, math.nan, math.inf]),
            Curve("bns", "loss", [1, 2], [math.nan, math.nan]),
            Curve("generator", "loss", [7], [2.0]),
            Curve("generator_ce", "loss", [], []),
        ],
    )
    odd.measured.layers = [
        LayerRow("only", "Conv2d", weight_sqnr=math.nan, act_sqnr=math.inf, sensitivity=0.0),
        LayerRow("zero", "Conv2d", clipped=0.0, act_low=-0.0, act_high=0.0, mismatch_after=-0.0),
    ]
    odd.measured.norms[0].running_std[:] = [0.0] * 16
    odd.measured.norms[1].generated[3] = math.nan
    page = render([odd])
    assert not re.search(r"\b(nan|inf|None|NaN|Infinity)\b", page.partition("<script>")[0])


def test_colour_images_and_large_ones():
    content = run()
    pixels = np.zeros((64, 96, 3), np.uint8)
    content.measured.classes = [ClassImages(0, "red", [pixels], pixels, 1)]
    page = render([content])
    assert 'class="reduced" src="data:image/png;base64,' in page
    assert 'width="96" height="64"' in page


def test_a_confusion_of_counts_alone():
    content = run()
    content.measured.confusion = Confusion(["a", "b"], [], [[0, 0], [1, 2]], [])
    page = render([content])
    assert 'id="confusion-0"' in page
    assert 'id="pairs-0"' not in page


def test_nothing_is_fetched():
    page = render([run(), run("other")])
    style = (resources.files("gdfq.report") / "template" / "page.css").read_text()
    assert "url(" not in style
    assert "@import" not in style
    for source in re.findall(r'(?:src|href)="([^"]*)"', page):
        assert source.startswith(("data:", "#"))


def test_the_page_is_packaged():
    root = Path(__file__).parents[2]
    patterns = re.search(r"^gdfq = \[(.*)\]", (root / "pyproject.toml").read_text(), re.M)[1]
    for name in ("page.html", "page.css", "page.js"):
        path = f"report/template/{name}"
        assert (root / "gdfq" / path).is_file()
        assert any(fnmatch.fnmatch(path, p) for p in re.findall(r'"([^"]+)"', patterns))


def test_numbers():
    assert [compact(v) for v in (0.0, 12.345, 0.00123, 4.5e-5, -1234.0, None, math.nan)] == [
        "0", "12.3", "0.00123", "4.50×10⁻⁵", "−1,234", "–", "–",  # noqa: RUF001
    ]  # fmt: skip
    assert [size(v) for v in (None, 12, 144_000, 1_101_224, 5_000_000_000)] == [
        "–", "12 bytes", "144 kB", "1.10 MB", "5.00 GB",  # noqa: RUF001
    ]  # fmt: skip
    assert [duration(v) for v in (None, 3.2, 118.4, 7260)] == [
        "–", "3 s", "1 min 58 s", "2 h 1 min",  # noqa: RUF001
    ]  # fmt: skip
    assert [short(v) for v in (0.0, 2.5, -1000.0, 1e-4, 5e-5, 2e6)] == [
        "0", "2.5", "−1,000", "10⁻⁴", "5×10⁻⁵", "2×10⁶",  # noqa: RUF001
    ]  # fmt: skip


@pytest.mark.parametrize(("low", "high"), [(0, 1), (91.5, 94.2), (-3e-5, 2e-4), (5, 5), (0, 0)])
def test_ticks_span_what_is_drawn(low, high):
    ticks = nice_ticks(low, high, 5)
    assert 3 <= len(ticks) <= 9
    assert ticks[0] <= low
    assert ticks[-1] >= high


@pytest.mark.parametrize(("low", "high"), [(1e-5, 1e-2), (0.003, 0.1), (1, 10), (0.99, 1001)])
def test_logarithmic_ticks_span_what_is_drawn(low, high):
    ticks = log_ticks(low, high)
    assert 3 <= len(ticks) <= 9
    assert ticks[0] <= low * (1 + 1e-9)
    assert ticks[-1] >= high * (1 - 1e-9)


# ---- colours ----


def colours(scheme):
    """The style sheet's variables."""
    style = (resources.files("gdfq.report") / "template" / "page.css").read_text()
    blocks = re.findall(r":root \{(.*?)\}", style, re.S)
    assert len(blocks) == 2
    found = {}
    for block in blocks[: 1 + (scheme == "dark")]:
        found |= dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", block))
    return found


def luminance(colour):
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return sum(w * p for w, p in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one, other):
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast(scheme):
    of = colours(scheme)
    text = [
        (name, ground) for name in ("ink", "soft", "link", "mark") for ground in ("paper", "panel")
    ]
    text += [("ink", f"h{i}") for i in range(4)] + [("ink", "hit"), ("soft", "h0")]
    text += [("on-dark-heat", "h4"), ("on-dark-heat", "h5")]
    graphics = [(f"s{i}", ground) for i in range(6) for ground in ("paper", "panel")]
    graphics += [("s0", "band"), ("s1", "band"), ("strong-rule", "paper")]
    for least, pairs in ((4.5, text), (3.0, graphics)):
        for name, ground in pairs:
            found = contrast(of[name], of[ground])
            assert found >= least, f"{scheme}: {name} on {ground} is {found:.2f}"


def test_series_differ_without_colour():
    style = (resources.files("gdfq.report") / "template" / "page.css").read_text()
    dashes = re.findall(r"^\.s\d \{.*--dash: ([^;]+);", style, re.M)
    assert len(dashes) == len(set(dashes)) == 6
    page = render([run(f"run {i}", seed=i) for i in range(6)])
    legend = re.search(r'<ul class="legend" aria-label="Runs">(.*?)</ul>', page, re.S)[1]
    marks = re.findall(r'class="mark" (?:d="[^"]+"|cx)', legend)
    assert len(set(marks)) == 6


# ---- in a browser ----


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Files: of one run, of several, and of ones with long and nasty names."""
    folder = tmp_path_factory.mktemp("report")
    odd = run(LONG, classes=[f"{LONG} {i}" for i in range(25)], side=64, sentence=LONG)
    for row in odd.measured.layers:
        row.name = f"{LONG}.{row.name}"
    contents = {
        "one": [run()],
        "two": [run(), run("w3a3", 3, seed=1)],
        "odd": [odd, run(NASTY, layers=3), bare()],
        "bare": [bare()],
    }
    for name, runs in contents.items():
        (folder / f"{name}.html").write_text(render(runs), encoding="utf-8")
    return folder


def pixels(page, **options):
    return np.asarray(Image.open(io.BytesIO(page.screenshot(**options))).convert("RGB"))


@pytest.mark.parametrize("name", ["one", "two", "odd", "bare"])
def test_the_page_shows_something(visit, name):
    shown = pixels(visit(name), full_page=True)
    assert len(np.unique(shown @ np.array([1, 256, 65536]))) > 20
    assert shown.std() > 5


def column(page, index):
    """Texts of a column of the table of layers."""
    rows = page.locator("table.layers").first.locator("tbody tr")
    return [row.locator("th, td").nth(index).inner_text() for row in rows.all()]


def sorted_values(texts):
    return [float(t) for t in texts if t != "–"]  # noqa: RUF001


def test_sorting_by_click_and_by_keyboard(visit):
    page = visit("one")
    headers = page.locator("table.layers thead th")
    header = headers.nth(2)
    assert header.get_attribute("aria-sort") == "none"
    before = column(page, 2)

    header.get_by_role("button").click()
    assert header.get_attribute("aria-sort") == "ascending"
    values = sorted_values(column(page, 2))
    assert values == sorted(values)
    assert column(page, 2)[-1] == "–"  # noqa: RUF001
    header.get_by_role("button").click()
    assert header.get_attribute("aria-sort") == "descending"
    values = sorted_values(column(page, 2))
    assert values == sorted(values, reverse=True)
    assert column(page, 2)[-1] == "–"  # noqa: RUF001

    # By Tab to the next header, and Enter and the space bar there.
    page.keyboard.press("Tab")
    assert headers.nth(3).get_by_role("button").evaluate("b => b === document.activeElement")
    page.keyboard.press("Enter")
    assert headers.nth(3).get_attribute("aria-sort") == "ascending"
    assert header.get_attribute("aria-sort") == "none"
    values = sorted_values(column(page, 3))
    assert values == sorted(values)
    page.keyboard.press("Space")
    assert headers.nth(3).get_attribute("aria-sort") == "descending"

    # By the first column, in the network's order again.
    headers.nth(0).get_by_role("button").press("Enter")
    assert column(page, 2) == before


def test_focus_is_seen(visit):
    page = visit("one")
    button = page.locator("table.layers thead button").first
    button.focus()
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Tab")
    assert button.evaluate("b => getComputedStyle(b).outlineStyle") == "solid"
    assert button.evaluate("b => parseFloat(getComputedStyle(b).outlineWidth)") >= 2


def test_skip_link(visit):
    page = visit("one")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    assert page.locator(".skip").bounding_box()["x"] >= 0
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "content"


def test_charts_read_out(visit):
    page = visit("two")
    chart = page.locator("#training figure").nth(1)
    readout = chart.locator(".readout")
    summary = readout.inner_text()
    assert "w4a4: " in summary
    chart.locator("svg.chart").focus()
    page.keyboard.press("End")
    assert readout.inner_text().startswith("step 600: w4a4 ")
    page.keyboard.press("ArrowLeft")
    assert readout.inner_text().startswith("step 580: w4a4 ")
    page.keyboard.press("Home")
    assert readout.inner_text().startswith("step 160: w4a4 ")
    assert chart.locator(".cursor circle").count() == 2
    page.locator("#training figure").nth(2).locator("svg.chart").focus()
    assert readout.inner_text() == summary
    chart.locator("svg.chart").hover(position={"x": 300, "y": 100})
    assert "step" in readout.inner_text().split(":")[0]
    assert "w3a3" in readout.inner_text()


def test_one_run_is_shown_at_a_time(visit):
    page = visit("two")
    tables = page.locator("table.layers")
    assert [t.is_visible() for t in tables.all()] == [True, False]
    picker = page.locator("#layers .picker")
    picker.get_by_label("w3a3").check()
    assert [t.is_visible() for t in tables.all()] == [False, True]
    picker.get_by_label("w3a3").press("ArrowRight")
    assert [t.is_visible() for t in tables.all()] == [True, True]


def test_without_javascript(visit):
    page = visit("two", java_script_enabled=False)
    assert page.locator("svg.chart").count() > 8
    assert all(chart.is_visible() for chart in page.locator("svg.chart").all())
    for table in page.locator("table.layers").all():
        assert table.is_visible()
        assert table.locator("tbody tr").count() == 11
    assert page.locator("button, fieldset").count() == 0
    assert "Point at a chart" not in page.inner_text("body")
    summary = page.locator("#training summary").first
    summary.click()
    assert page.locator("#training details table").first.is_visible()


def test_dark_and_print(visit):
    light, dark = visit("one"), visit("one", color_scheme="dark")
    assert np.median(pixels(light)) > 240
    assert np.median(pixels(dark)) < 40
    dark.emulate_media(media="print", color_scheme="dark")
    assert np.median(pixels(dark)) > 240


@pytest.mark.parametrize("name", ["one", "two", "odd", "bare"])
@pytest.mark.parametrize("script", [True, False])
def test_a_phone_needs_no_sideways_scrolling(visit, name, script):
    page = visit(name, width=390, java_script_enabled=script)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_table_that_goes_on_has_a_shadow_at_its_edge(visit, scheme):
    paper = np.array([int(colours(scheme)["paper"][i : i + 2], 16) for i in (1, 3, 5)])

    def shadowed(page, table, to_the_end=False):
        """Share of the table's right edge, as far as it is seen, that has not the page's colour."""
        area = page.locator(table).first.locator("..")
        area.evaluate(f"area => area.scrollLeft = {9999 * to_the_end}")
        page.wait_for_timeout(100)
        box = area.bounding_box()
        clip = {
            "x": box["x"] + box["width"] - 3,
            "y": box["y"],
            "width": 2,
            "height": box["height"],
        }
        edge = pixels(page, clip=clip, full_page=True)
        return (np.abs(edge - paper) > 8).any(2).mean()

    phone, desk = visit("one", width=390, color_scheme=scheme), visit("one", color_scheme=scheme)
    for table in ("table.layers", "#confusion table.heat"):
        at_first, at_the_end = shadowed(phone, table), shadowed(phone, table, to_the_end=True)
        assert at_first > at_the_end + 0.2
        # Rules and borders, as where the whole table is seen.
        assert at_the_end == pytest.approx(shadowed(desk, table), abs=0.02)


@pytest.mark.parametrize("name", ["one", "two", "bare"])
def test_printing(visit, name):
    page = visit(name)
    pdf = page.pdf(prefer_css_page_size=True)
    assert pdf.startswith(b"%PDF")
    assert len(re.findall(rb"/Type\s*/Page\b", pdf)) >= 1
    # Tables are not cut: on A4 upright, and for the widest across.
    page.emulate_media(media="print")
    for millimetres, tables in ((180, "table"), (269, ".wide table")):
        width = int(millimetres / 25.4 * 96)
        page.set_viewport_size({"width": width, "height": 900})
        for table in page.locator(tables).all():
            wide = table.evaluate("t => t.closest('.wide') !== null")
            if table.is_visible() and (tables != "table" or not wide):
                right = table.bounding_box()["x"] + table.bounding_box()["width"]
                assert right <= width + 1
    if name == "two":
        assert all(table.is_visible() for table in page.locator("table.layers").all())


@pytest.mark.parametrize("name", ["one", "two", "odd"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_accessibility_rules(visit, name, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    results = axe.Axe().run(visit(name, color_scheme=scheme))
    assert results.response["violations"] == [], results.generate_report()
