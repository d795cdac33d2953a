"""The report of a sweep in a browser: charts along its axes, read with pointer and keyboard, at any width."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.browser.pages import check_widths
from tests.make_story import make_axis
from tests.patience import LONG_S
from tests.test_report import written


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sweep")
    numbers = make_axis("gpus", {"4": 4.0, "8": 8.0, "512": 512.0}, traces=("day", "night"))
    names = make_axis("trouble", {"none": None, "a-whole-rack-is-lost": None, "stragglers": None})
    written(folder, stories=[], axes=[numbers, names], case="case")
    return folder / "report.html"


def test_no_text_is_cut_off_at_any_width(page: Any) -> None:
    check_widths(page)


def test_labels_of_an_axis_do_not_lie_on_each_other(page: Any) -> None:
    overlap = """() => [...document.querySelectorAll("#along ~ .trio .box:not(.names) .xts")].filter((row) => {
      const boxes = [...row.children].map((tick) => tick.getBoundingClientRect()).filter((box) => box.width);
      return boxes.some((box, i) => i && box.left < boxes[i - 1].right);
    }).length"""
    for width in (1280, 390):
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate(overlap) == 0
    page.set_viewport_size({"width": 1280, "height": 900})


def test_pointing_reads_the_nearest_value_in_all_charts_of_the_trace(page: Any) -> None:
    page.locator('[data-chart="axis0-0-quality_yield"] .plot').hover(position={"x": 20, "y": 60})
    tip = page.locator("#tip")
    assert tip.is_visible()
    assert "gpus 4" in tip.inner_text()
    assert "0.900 ± 0.010" in tip.inner_text()
    hairs = page.locator('[data-chart^="axis0-0-"] .hair:not([hidden])')
    assert {hair.get_attribute("style") for hair in hairs.all()} == {"left: 5%;"}
    assert hairs.count() == 3
    assert page.locator('[data-chart^="axis0-1-"] .hair:not([hidden])').count() == 0
    page.mouse.move(5, 5)
    assert not tip.is_visible()


def test_the_keyboard_goes_from_value_to_value(page: Any) -> None:
    page.locator('[data-chart="axis1-0-slo_violation_ratio"]').focus()
    heard = []
    for key in ("ArrowRight", "ArrowRight", "ArrowRight", "ArrowRight", "ArrowLeft"):
        page.keyboard.press(key)
        heard.append(page.locator("#said").inner_text().partition(":")[0])
    stations = ["trouble none", "trouble a-whole-rack-is-lost", "trouble stragglers"]
    assert heard == [*stations, stations[-1], stations[1]]
    assert "argus 12.00 ± 1.00 %" in page.locator("#said").inner_text()
    page.keyboard.press("Escape")
    assert not page.locator("#tip").is_visible()


def test_a_policy_is_switched_off_with_its_points_and_intervals(page: Any) -> None:
    button = page.locator('[data-switch="1"]').first
    shown = page.locator('#along ~ .trio [data-p="1"]:not([hidden])')
    assert shown.count() == 2 * 3 * 3 + 3 * 2  # line, intervals and points of two traces; names have no line
    button.click()
    assert shown.count() == 0
    page.locator('[data-chart="axis0-0-quality_yield"] .plot').hover()
    assert "argus" not in page.locator("#tip").inner_text()
    button.click()
    assert shown.count() > 0


def test_a_drag_zooms_nothing(page: Any) -> None:
    plot = page.locator('[data-chart="axis0-0-relative_quality"] .plot')
    box = plot.bounding_box()
    page.mouse.move(box["x"] + 20, box["y"] + 50)
    page.mouse.down()
    page.mouse.move(box["x"] + 150, box["y"] + 50, steps=3)
    page.mouse.up()
    assert plot.locator("svg").get_attribute("viewBox") == "0 0 2000 1000"


def test_without_scripts_it_is_all_there(browser: Any, path: Path) -> None:
    context = browser.new_context(offline=True, java_script_enabled=False)
    context.set_default_timeout(1e3 * LONG_S)
    page = context.new_page()
    page.goto(path.as_uri())
    assert page.locator('#along ~ .trio path.points[data-p="0"]').first.is_visible()
    assert page.locator("#along ~ .trio .xt").first.is_visible()
    context.close()
