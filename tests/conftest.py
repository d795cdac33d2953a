"""Settings of the whole test suite."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

# A shared machine stalls now and then; a slow example is not a failure.
settings.register_profile("argus", deadline=None, print_blob=True)
settings.load_profile("argus")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of recorded data say that they are skipped where the data is not."""
    if os.environ.get("ARGUS_DATA"):
        return
    skip = pytest.mark.skip(reason="ARGUS_DATA is not set: it names the folder of recorded data sets")
    for item in items:
        if "data" in item.keywords:
            item.add_marker(skip)


@pytest.fixture
def data() -> Path:
    """The folder of recorded data sets; for tests marked ``data``."""
    return Path(os.environ["ARGUS_DATA"])


@pytest.fixture
def file(tmp_path: Path) -> Callable[[str], Path]:
    """Write a file ``mine.csv``; returns where it is."""

    def write(text: str) -> Path:
        path = tmp_path / "mine.csv"
        path.write_text(text)
        return path

    return write
