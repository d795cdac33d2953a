"""Emulated workers and cache: they take the time that the profile says, and time may run fast.

They report the exact time at which the emulated hardware would have been done, with the same luck for the same
row as in the simulator. So a live run differs from a simulated one by what is truly live: HTTP, the order and the
times of arrival, and how late the host hears of things.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from argus_sim.core.catalog import Kind
from argus_sim.live.seams import Job
from argus_sim.profile import Profile
from argus_sim.simulation.network import SimulatedCache
from argus_sim.simulation.service import STRATA, LoadTimes, ServiceTimes

if TYPE_CHECKING:
    from argus_sim.live.executor import Executor

#: Luck is drawn this many rows at a time. Even, since NumPy draws 16-bit numbers in pairs.
_BLOCK = 1 << 12


class EmulatedWorkers:
    """Workers that are nothing but timers.

    Args:
        profile: Latencies and load times.
        service_rng, load_rng: The streams that the simulator would use.
        kinds: Of the cluster's workers, where it has kinds of its own.
    """

    def __init__(
        self,
        profile: Profile,
        service_rng: np.random.Generator,
        load_rng: np.random.Generator,
        kinds: Sequence[Kind] = (),
    ) -> None:
        self._rng = service_rng
        self._service = ServiceTimes.of(profile, _BLOCK, service_rng, kinds)
        self._draw = list(self._service.draw)
        self._profile = profile
        self._loads = LoadTimes(profile, load_rng, kinds)
        self._idle_from_s: dict[int, float] = {}
        self._images = [placeholder(v.level) for v in profile.variants]
        self._host: Executor | None = None

    async def start(self, host: Executor, models: Sequence[str]) -> None:
        self._host = host

    def load(self, now: float, worker: int, model: str) -> None:
        host = self._host
        assert host is not None
        seconds = self._loads.seconds(self._profile.models.index(model), host.engine.workers[worker].kind)
        self._idle_from_s[worker] = now + seconds
        host.at(now + seconds, lambda at_s: host.model_loaded(at_s, worker))

    def run(self, now: float, worker: int, variant: int, jobs: Sequence[Job]) -> None:
        host = self._host
        assert host is not None
        kind, idle_s = host.engine.workers[worker].kind, now - self._idle_from_s.get(worker, 0.0)
        seconds = self._service.after_s(kind, variant, len(jobs), self._luck(jobs[0].row), idle_s)
        self._idle_from_s[worker] = now + seconds
        images = [self._images[variant]] * len(jobs)
        host.at(now + seconds, lambda at_s: host.batch_done(at_s, worker, images))

    async def stop(self) -> None:
        pass

    def _luck(self, row: int) -> int:
        while row >= len(self._draw):
            self._draw += self._rng.integers(0, STRATA, size=_BLOCK, dtype=np.uint16).tolist()
        return self._draw[row]


class EmulatedCache:
    """The simulator's cache, answering in the host's time."""

    def __init__(self, cache: SimulatedCache) -> None:
        self._cache = cache

    def look_up(self, host: Executor, now: float, row: int, prompt: int, text: str) -> None:
        hit = self._cache.answer(now, prompt)
        host.at(now + hit.latency_s, lambda at_s: host.cache_answered(at_s, row, hit))

    def release(self, row: int) -> None:
        pass


def placeholder(level: int) -> bytes:
    """A grey PNG of 8 x 8 pixels, darker with the level: no image was made."""
    from PIL import Image

    out = io.BytesIO()
    Image.new("L", (8, 8), max(255 - 32 * level, 0)).save(out, "PNG")
    return out.getvalue()
