"""The time of the live host."""

from __future__ import annotations

import asyncio


class Clock:
    """Seconds since the start, on a monotonic clock, ``speed`` times as fast as real ones.

    A held clock stands at 0 until :meth:`release`: so that time begins with the first request, as in a trace.

    Args:
        speed: Seconds that pass on this clock in a real one.
        behind_s: Real seconds by which this clock is late: what is due at a time may be heard of that much later.
    """

    def __init__(self, speed: float = 1.0, behind_s: float = 0.0) -> None:
        self.speed = speed
        self.held = True
        self._behind_s = behind_s
        self._zero_s = 0.0

    def release(self, at_s: float = 0.0) -> None:
        """Let time begin; without the delay, it would be ``at_s`` now."""
        if self.held:
            self.held = False
            self._zero_s = asyncio.get_running_loop().time() + self._behind_s - at_s / self.speed

    def now(self) -> float:
        return 0.0 if self.held else max(0.0, asyncio.get_running_loop().time() - self._zero_s) * self.speed

    def loop_time_s(self, at_s: float) -> float:
        """The event loop's time at a time of ours."""
        return self._zero_s + at_s / self.speed
