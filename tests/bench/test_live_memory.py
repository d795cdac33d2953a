"""Memory of a live server over ten thousand requests: the record's columns grow, and nothing else does."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="needs the live extra: fastapi")
pytest.importorskip("aiohttp", reason="needs the live extra: aiohttp")

from argus_sim.live.client import Target, body, play
from argus_sim.validate_live import server
from tests.make_experiment import write_experiment

REQUESTS = 10_000


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")
def test_memory_is_flat(tmp_path: Path) -> None:
    arguments = [str(write_experiment(tmp_path)), "--policy", "static", "--speed", "1000", "--hold"]
    with server(arguments, ready_s=60) as (url, process):
        resident = resident_of(Path(f"/proc/{process}"))
        seen: list[int] = []
        answers = asyncio.run(
            play(
                Target(url, keepalive_s=60),
                np.arange(REQUESTS) / 0.3,  # 300 a second
                [body("a fox")],
                [0] * REQUESTS,
                speed=1000,
                on_progress=lambda sent: seen.append(resident()) if sent > 1000 else None,
            )
        )
    assert set(answers.status.tolist()) <= {200, 429}
    grown = (seen[-1] - seen[0]) / (REQUESTS - 1000)
    print(f"{grown:.0f} bytes a request, from {seen[0] / 2**20:.0f} MiB")
    # 48 bytes are the record's; links to the last images are kept as well, up to a bound.
    assert grown < 1024


def resident_of(process: Path) -> Callable[[], int]:
    """Reads how much memory a process holds, bytes."""

    def resident() -> int:
        line = next(x for x in (process / "status").read_text().splitlines() if x.startswith("VmRSS"))
        return int(line.split()[1]) * 1024

    return resident
