"""Tests of the harness: where torch is missing they are skipped, each saying so."""

from __future__ import annotations

import gc
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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


@pytest.fixture(scope="session")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of two tiny models, ``big`` and ``small``, and of a scorer, ``judge``."""
    from tests.calibration.make_pipelines import tiny_scorer, tiny_sd

    folder = tmp_path_factory.mktemp("zoo")
    tiny_sd(width=24).save_pretrained(folder / "big")
    tiny_sd(width=16, seed=1).save_pretrained(folder / "small")
    tiny_scorer(folder / "judge")
    # Every load and release collects garbage: what was imported for these, and stays, need not be looked through.
    gc.collect()
    gc.freeze()
    return folder


@pytest.fixture(scope="module")
def orderly_time() -> Iterator[None]:
    """Latency by the number of steps and of weights, whatever else this machine is doing."""
    from calibration.approximations import Run
    from calibration.latency import Workload
    from calibration.pipelines import weight_bytes

    timed = Workload.timed

    def by_the_book(self: Workload, approximation: Any, batch: int) -> Any:
        once = timed(self, approximation, batch)
        run = approximation.adjust(Run(self.steps))
        seconds = 1e-9 * weight_bytes(self.pipe) * (run.steps - run.skipped + 2) * (1 + batch)

        def timed_run() -> float:
            once()
            return seconds

        return timed_run

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Workload, "timed", by_the_book)
        yield


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    bear_with_others(items, Path(__file__).parent)


def bear_with_others(items: list[pytest.Item], here: Path) -> None:
    """What other packages do against their own dependencies' advice is not ours to fix."""
    for item in items:
        if here in item.path.parents:
            for package in ("diffusers", "transformers", "torch", "torchmetrics", "DeepCache", "tomesd"):
                for kind in ("DeprecationWarning", "FutureWarning", "UserWarning"):
                    item.add_marker(pytest.mark.filterwarnings(f"ignore::{kind}:{package}.*"))
