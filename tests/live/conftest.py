"""Tests of the live server: those of real workers are skipped where torch is missing, each saying so."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.calibration.conftest import bear_with_others


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    bear_with_others(items, Path(__file__).parent)
