"""Memory of a live server over ten thousand requests: the record's columns grow, and nothing else does."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="needs the live extra: fastapi")
aiohttp = pytest.importorskip("aiohttp", reason="needs the live extra: aiohttp")

from argus_sim.live.client import Target, play  # noqa: E402
from argus_sim.live.wire import PATH, body  # noqa: E402
from argus_sim.validate_live import server  # noqa: E402
from tests.make_experiment import write_experiment  # noqa: E402

pytestmark = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")

REQUESTS = 10_000
#: Where the curve is read: the first of them is after what starts once.
MARKS = range(2000, REQUESTS + 1, 1000)
#: Bytes that a request may leave. The record's columns are 48, and lists have room ahead; an image behind a link
#: takes a few hundred more until the oldest are dropped.
ALLOWED, ALLOWED_WITH_LINK = 256, 1024


@pytest.mark.parametrize(
    ("fields", "allowed"),
    [({"response_format": "b64_json"}, ALLOWED), ({}, ALLOWED_WITH_LINK)],
    ids=["in the answer", "behind a link"],
)
def test_memory_is_flat(tmp_path: Path, fields: dict[str, str], allowed: int) -> None:
    arguments = [str(write_experiment(tmp_path)), "--policy", "static", "--speed", "1000", "--hold"]
    curve: dict[int, int] = {}
    with server(arguments, ready_s=60) as (url, process):
        resident = resident_of(Path(f"/proc/{process}"))

        def look(sent: int) -> None:
            for mark in MARKS:
                if sent >= mark and mark not in curve:
                    curve[mark] = resident()

        answers = asyncio.run(
            play(
                Target(url, keepalive_s=60),
                np.arange(REQUESTS) / 0.3,  # 300 a second
                [body("a fox", fields)],
                [0] * REQUESTS,
                speed=1000,
                on_progress=look,
            )
        )
        curve[REQUESTS] = resident()
    assert set(answers.status.tolist()) <= {200, 429}
    assert grown_bytes(curve) < allowed


def test_clients_that_are_no_good_leave_nothing_behind(tmp_path: Path) -> None:
    """They send nonsense, too much, other alphabets, or do not wait; 500 of them at a time."""
    kinds = [
        body("a fox"),
        b"{not json",
        b'{"prompt": "a fox", "n": 0}',
        body("лиса 🦊 " * 100),
        b'{"prompt": "' + b"a" * 300_000 + b'"}',
        b"",  # waits for no answer
    ]
    expected = ({200, 429}, {400}, {400}, {200, 429}, {413}, {None})
    curve: dict[int, int] = {}
    wrong: list[object] = []

    async def ask(session: aiohttp.ClientSession, url: str, number: int) -> None:
        kind = number % len(kinds)
        leaves = not kinds[kind]
        status = None
        with contextlib.suppress(TimeoutError):
            wait = aiohttp.ClientTimeout(total=0.002 if leaves else 100)
            async with session.post(f"{url}{PATH}", data=kinds[kind] or body("a fox"), timeout=wait) as response:
                await response.read()
                status = response.status
        if status not in expected[kind] and not leaves:
            wrong.append((number, status))

    async def all_of_them(url: str, resident: Callable[[], int]) -> None:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            for first in range(0, REQUESTS, 500):
                await asyncio.gather(*(ask(session, url, first + i) for i in range(500)))
                if first + 500 in MARKS:
                    curve[first + 500] = resident()

    arguments = [str(write_experiment(tmp_path)), "--policy", "static", "--speed", "1000", "--hold"]
    with server(arguments, ready_s=60) as (url, process):
        asyncio.run(all_of_them(url, resident_of(Path(f"/proc/{process}"))))
    assert not wrong
    assert grown_bytes(curve) < ALLOWED_WITH_LINK


def grown_bytes(curve: dict[int, int]) -> float:
    """Bytes per request, by a line through the curve, which is printed."""
    print("\n" + "  ".join(f"{sent}: {held / 2**20:.1f} MiB" for sent, held in sorted(curve.items())))
    slope = float(np.polyfit(list(curve), list(curve.values()), 1)[0])
    print(f"{slope:.0f} bytes a request")
    return slope


def resident_of(process: Path) -> Callable[[], int]:
    """Reads how much memory a process holds, bytes."""

    def resident() -> int:
        line = next(x for x in (process / "status").read_text().splitlines() if x.startswith("VmRSS"))
        return int(line.split()[1]) * 1024

    return resident
