"""Tests of the harness: where torch is missing they are skipped, each saying so."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Results to the bit do not depend on how work is split; and a shared machine is not ours alone."""
    if importlib.util.find_spec("torch") is None:
        yield
        return
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    bear_with_others(items, Path(__file__).parent)


def bear_with_others(items: list[pytest.Item], here: Path) -> None:
    """What other packages do against their own dependencies' advice is not ours to fix."""
    for item in items:
        if here in item.path.parents:
            for package in ("diffusers", "transformers", "torch", "torchmetrics", "DeepCache", "tomesd"):
                for kind in ("DeprecationWarning", "FutureWarning", "UserWarning"):
                    item.add_marker(pytest.mark.filterwarnings(f"ignore::{kind}:{package}.*"))
