"""What pages must hold, whatever is on them."""

from __future__ import annotations

from typing import Any


def check_widths(page: Any) -> None:
    """On a desktop and on phones nothing has to be scrolled sideways."""
    for width in (1280, 390, 320):
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth") == width
    page.set_viewport_size({"width": 1280, "height": 900})
