"""How a request ends for which no image, or no other one, is made any more."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from argus_sim.core.cascade import Cascade
from argus_sim.core.commands import Command, Reject
from argus_sim.core.outcomes import OutcomeLog

DROPPED = "dropped: could not finish by its deadline"
FAILED_TWICE = "lost: its worker failed twice"
NO_WORKER = "lost: no worker is up"
WITHDRAWN = "withdrawn: its client left"


class Endings:
    """An image that a cascade has kept is the answer; without one the request is rejected or lost.

    Args:
        cascade: Keeps images.
        log: Where the end is written.
    """

    __slots__ = ("_cascade", "_log")

    def __init__(self, cascade: Cascade, log: OutcomeLog) -> None:
        self._cascade, self._log = cascade, log

    def refuse(self, now: float, row: int, reason: str) -> Sequence[Command]:
        """It was decided so: by the policy, by the deadline, or by the client."""
        return self._end(now, row, reason, self._log.rejected)

    def lose(self, now: float, row: int, reason: str) -> Sequence[Command]:
        """Those who were to make its image failed."""
        return self._end(now, row, reason, self._log.lost)

    def _end(self, now: float, row: int, reason: str, write: Callable[[int, str], None]) -> Sequence[Command]:
        kept = self._cascade.instead(now, row)
        if kept is not None:
            return [kept]
        write(row, reason)
        return [Reject(row, reason)]
