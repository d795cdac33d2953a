"""Settings of the whole test suite."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# The same examples in every run, so that what fails has been broken; and no example fails for the time that it or
# drawing it takes. To look for others: pytest --hypothesis-profile=search tests/property
settings.register_profile(
    "argus", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.register_profile("search", settings.get_profile("argus"), derandomize=False)
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
