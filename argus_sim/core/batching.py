"""Forming a batch: which waiting requests run now, and which can no longer make it."""

from __future__ import annotations

import math
from array import array
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from argus_sim.core.catalog import Timings
from argus_sim.domain import VariantId


@dataclass(frozen=True, slots=True)
class DropRule:
    """When a waiting request is given up, judged at dispatch.

    ``late``: it could no longer finish by its deadline in the batch it would run in (by the 99th percentile of
    the batch's latency). ``never``: it always runs. ``factor``: ``factor`` times its SLO has passed.
    """

    kind: Literal["late", "never", "factor"] = "late"
    factor: float = math.inf


class BatchFormer:
    """Takes a batch off a queue under a drop rule.

    Late heads are dropped one by one until the first that fits (Nexus' early drop: without it, under overload,
    every batch would run for requests that are about to be late). While no more than one full batch waits,
    the batch is made smaller before anything is dropped: there is nothing else that the worker could do. Nor is
    anything dropped for a batch that the requests after it could not fill: some sizes take longer than the SLO.

    Args:
        timings: Of the workers that the batches are for.
        rule: What is dropped.
        arrival_s, deadline_s: Columns of the requests.
        drop: Told of each row that is dropped.
    """

    __slots__ = ("_drop", "_limit_s", "_margin_s", "_timings")

    def __init__(
        self,
        timings: Timings,
        rule: DropRule,
        arrival_s: array[float],
        deadline_s: array[float],
        drop: Callable[[int], None],
    ) -> None:
        self._timings = timings
        self._drop = drop
        self._margin_s = timings.p99_s if rule.kind == "late" else tuple((0.0,) * len(b) for b in timings.p99_s)
        #: By when a request must have finished (late) or started (factor); None where it does not matter.
        self._limit_s: Callable[[int], float] | None = None
        if rule.kind == "late":
            self._limit_s = deadline_s.__getitem__
        elif rule.kind == "factor":
            self._limit_s = lambda row: arrival_s[row] + rule.factor * (deadline_s[row] - arrival_s[row])

    def take(self, now: float, queue: deque[int], variant: VariantId, size: int) -> list[int]:
        """Remove up to ``size`` requests that can run together now, oldest first, dropping those that cannot.

        Returns a profiled batch size of rows, or an empty list when all that waited were dropped.
        """
        limit_s = self._limit_s
        if limit_s is None:
            return [queue.popleft() for _ in range(size)]
        margin_s = self._margin_s[variant]
        if size == 1:
            latest_s = now + margin_s[1]
            while queue:
                row = queue.popleft()
                if latest_s <= limit_s(row):
                    return [row]
                self._drop(row)
            return []
        return self._take_many(now, queue, variant, size, limit_s, margin_s)

    def _take_many(
        self,
        now: float,
        queue: deque[int],
        variant: VariantId,
        size: int,
        limit_s: Callable[[int], float],
        margin_s: tuple[float, ...],
    ) -> list[int]:
        fit, full = self._timings.fit[variant], self._timings.max_batch[variant]
        overloaded = len(queue) > full
        while overloaded and size > 1 and now + margin_s[size] > limit_s(queue[-size]):
            size = fit[size - 1]  # not even the newest `size` of them could make it
        rows: list[int] = []
        ends_s = now + margin_s[size]
        while queue and len(rows) < size:
            limit = limit_s(queue[0])
            if ends_s <= limit:
                rows.append(queue.popleft())
            elif overloaded or now + margin_s[1] > limit:
                self._drop(queue.popleft())
            else:
                size = fit[size - 1]
                ends_s = now + margin_s[size]
        runnable = size if len(rows) >= size else fit[len(rows)]
        while len(rows) > runnable:
            queue.appendleft(rows.pop())
        return rows


class YieldingFormer(BatchFormer):
    """For clusters of several kinds: what is too late for these workers but not for faster ones stays.

    Without it, a slow worker that falls free would drop what a fast one could still do.

    Args:
        least_s: By variant, how long a single request takes (99th percentile) on the fastest kind that serves it.
    """

    __slots__ = ("_aside", "_deadline_s", "_least_s", "_lost", "_now_s", "_variant")

    def __init__(
        self,
        timings: Timings,
        rule: DropRule,
        arrival_s: array[float],
        deadline_s: array[float],
        drop: Callable[[int], None],
        least_s: Sequence[float],
    ) -> None:
        super().__init__(timings, rule, arrival_s, deadline_s, self._pass)
        self._lost = drop
        self._least_s = least_s
        self._deadline_s = deadline_s
        self._aside: list[int] = []
        self._now_s, self._variant = 0.0, -1

    def take(self, now: float, queue: deque[int], variant: VariantId, size: int) -> list[int]:
        """As :meth:`BatchFormer.take`, but the queue may not be empty when nothing is returned."""
        self._now_s, self._variant = now, variant
        rows = super().take(now, queue, variant, size)
        if self._aside:
            queue.extendleft(reversed(self._aside))
            self._aside.clear()
            if not rows and size > 1:
                # A full batch would have been too late for all; one of them alone may not be.
                return self.take(now, queue, variant, 1)
        return rows

    def _pass(self, row: int) -> None:
        least_s = self._least_s[self._variant]
        if least_s < self._timings.p99_s[self._variant][1] and self._now_s + least_s <= self._deadline_s[row]:
            self._aside.append(row)
        else:
            self._lost(row)


def formers(
    kinds: Sequence[Timings],
    rule: DropRule,
    arrival_s: array[float],
    deadline_s: array[float],
    drop: Callable[[int], None],
    least_s: Sequence[float],
) -> list[BatchFormer]:
    """One former for each kind of workers; see the classes for the arguments."""
    if len(kinds) == 1 or rule.kind != "late":
        return [BatchFormer(kind, rule, arrival_s, deadline_s, drop) for kind in kinds]
    return [YieldingFormer(kind, rule, arrival_s, deadline_s, drop, least_s) for kind in kinds]
