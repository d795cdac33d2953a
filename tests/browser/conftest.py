"""A headless Chromium without network, or a reason why there is none."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.patience import LONG_S

#: Under these names a system has the browser.
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Closed with its module: while it runs, no other test of the process can have an event loop of its own."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (extra: test)")
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"no browser: none of {', '.join(NAMES)} is on the PATH")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=found, args=["--no-sandbox"], timeout=1e3 * LONG_S)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module", params=["light", "dark"])
def page(browser: Any, path: Path, request: pytest.FixtureRequest) -> Iterator[Any]:
    """The page of the module's fixture ``path``; it may say nothing on the console and fetch nothing."""
    context = browser.new_context(
        offline=True, color_scheme=request.param, viewport={"width": 1280, "height": 900}
    )
    context.set_default_timeout(1e3 * LONG_S)
    page = context.new_page()
    page.said = []
    page.on("console", lambda message: page.said.append(message.text))
    page.on("pageerror", lambda error: page.said.append(str(error)))
    page.on(
        "request", lambda sent: None if sent.url.startswith(("file:", "data:")) else page.said.append(sent.url)
    )
    page.goto(path.as_uri())
    yield page
    assert page.said == []
    context.close()
