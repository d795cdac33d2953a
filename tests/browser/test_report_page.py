"""The report in a browser: opened from disk with the network off, read, pointed at, switched, printed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.browser.pages import check_widths
from tests.patience import LONG_S
from tests.test_report import written


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    written(folder)
    return folder / "report.html"


def test_no_text_is_cut_off_at_any_width(page: Any) -> None:
    check_widths(page)


def test_pointing_at_a_chart_reads_it_on_all_charts_of_the_trace(page: Any) -> None:
    plot = page.locator('[data-chart="t0-quality_yield"] .plot')
    plot.hover()
    tip = page.locator("#tip")
    assert tip.is_visible()
    assert "0:30:" in tip.inner_text() or "0:29:" in tip.inner_text()
    for policy in ("pac", "argus", "<b>x</b>"):
        assert policy in tip.inner_text()
    assert page.locator('[data-chart^="t0-"] .hair:not([hidden])').count() >= 4
    assert page.locator('[data-chart^="t1-"] .hair:not([hidden])').count() == 0
    page.mouse.move(5, 5)
    assert not tip.is_visible()


def test_the_keyboard_reads_it_aloud(page: Any) -> None:
    page.locator('[data-chart="t0-slo_violation_ratio"]').focus()
    page.keyboard.press("ArrowRight")
    first = page.locator("#said").inner_text()
    assert "argus" in first
    assert "%" in first
    page.keyboard.press("ArrowRight")
    assert page.locator("#said").inner_text() != first
    page.keyboard.press("Escape")
    assert not page.locator("#tip").is_visible()


def test_a_policy_can_be_switched_off_and_on_everywhere(page: Any) -> None:
    button = page.locator('[data-switch="1"]').first
    lines = page.locator('path.line[data-p="1"]')
    assert lines.count() == 10
    button.click()
    assert [b.get_attribute("aria-pressed") for b in page.locator('[data-switch="1"]').all()] == ["false"] * 2
    assert page.locator('[data-p="1"]:not([hidden])').count() == 0
    page.locator('[data-chart="t0-cdf"] .plot').hover()
    assert "argus" not in page.locator("#tip").inner_text()
    button.click()
    assert page.locator('[data-p="1"][hidden]').count() == 0
    button.click(modifiers=["Shift"])
    assert page.locator('[data-p="0"]:not([hidden])').count() == 0
    page.locator("[data-all]").first.click()
    assert page.locator("[data-p][hidden]").count() == 0


def test_dragging_zooms_and_a_button_goes_back(page: Any) -> None:
    plot = page.locator('[data-chart="t1-relative_quality"] .plot')
    plot.scroll_into_view_if_needed()
    box = plot.bounding_box()
    y = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + box["width"] * 0.25, y)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.5, y, steps=4)
    page.mouse.up()
    views = {svg.get_attribute("viewBox") for svg in page.locator('[data-chart^="t1-q"] svg').all()}
    (view,) = views
    left, _, width, _ = map(float, view.split())
    assert left == pytest.approx(500, abs=10)
    assert width == pytest.approx(500, abs=10)
    page.locator('[data-reset="1"]').click()
    assert page.locator('[data-chart="t1-relative_quality"] svg').get_attribute("viewBox") == "0 0 2000 1000"
    assert not page.locator('[data-reset="1"]').is_visible()


def test_light_and_dark_by_hand(page: Any) -> None:
    def background() -> str:
        return str(page.evaluate("getComputedStyle(document.body).backgroundColor"))

    before = background()
    page.locator("#theme").click()
    assert background() != before
    page.locator("#theme").click()
    assert background() == before


def test_all_text_has_contrast(page: Any) -> None:
    """Ink, soft ink and accent on page and panel reach the 4.5 that the web's rules ask for."""
    from argus_sim.report.charts.svg import contrast

    def colour(name: str) -> str:
        return str(
            page.evaluate(f"getComputedStyle(document.documentElement).getPropertyValue('--{name}').trim()")
        )

    for ink in ("ink", "soft", "accent"):
        for paper in ("page", "panel"):
            assert contrast(colour(ink), colour(paper)) >= 4.5, (ink, paper)
    for kind in ("measured", "recorded", "published", "synthetic"):
        assert contrast(colour(kind), colour(f"{kind}-bg")) >= 4.5


def test_a_point_says_what_it_is_by_keyboard_too(page: Any) -> None:
    dot = page.locator(".dot").first
    dot.focus()
    tip = page.locator("#tip")
    assert tip.is_visible()
    name = dot.get_attribute("data-name")
    assert tip.inner_text().count(name) == 1
    assert "quality" in tip.inner_text()
    page.keyboard.press("Escape")
    assert not tip.is_visible()


def test_a_finger_reads_a_chart(browser: Any, path: Path) -> None:
    context = browser.new_context(offline=True, has_touch=True, viewport={"width": 390, "height": 800})
    context.set_default_timeout(1e3 * LONG_S)
    page = context.new_page()
    page.goto(path.as_uri())
    plot = page.locator('[data-chart="t0-quality_yield"] .plot')
    plot.tap()
    tip = page.locator("#tip")
    assert "argus" in tip.inner_text()
    assert tip.is_visible()
    box = tip.bounding_box()
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= 390
    page.locator("#time").tap()
    assert not tip.is_visible()
    context.close()


def test_marks_of_faults_have_a_legend(page: Any) -> None:
    text = page.locator("#time ~ p", has_text="Shaded").first.inner_text()
    assert "workers were down" in text
    assert page.locator("path.outage").count() > 0


def test_without_scripts_it_is_all_there(browser: Any, path: Path) -> None:
    context = browser.new_context(offline=True, java_script_enabled=False)
    context.set_default_timeout(1e3 * LONG_S)
    page = context.new_page()
    page.goto(path.as_uri())
    assert page.locator("#theme").is_hidden()
    assert page.locator('path.line[data-p="1"]').first.is_visible()
    closed = page.locator("details:not([open])").count()
    page.locator("details:not([open]) summary").first.click()
    assert page.locator("details:not([open])").count() == closed - 1
    context.close()


def test_on_paper_everything_is_open_and_light(browser: Any, path: Path, tmp_path: Path) -> None:
    context = browser.new_context(offline=True, color_scheme="dark")
    context.set_default_timeout(1e3 * LONG_S)
    page = context.new_page()
    page.goto(path.as_uri())
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("details:not([open])").count() == 0
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.locator(".bar").is_hidden()
    assert len(page.pdf()) > 20_000
    context.close()
