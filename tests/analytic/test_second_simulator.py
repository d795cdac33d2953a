"""A second simulator, written from the pages on the policies alone, serves every request as the first one does.

Where nothing is random, two programs that were written from the same rules must agree on each request: which
variant served it, when it started and finished, or that it was dropped. This one shares no code with the engine
and has none of its shortcuts: a heap of events, a list per queue, and every rule where it is used.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import count
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tests.make_cluster import columns_of, make_cluster
from tests.make_engine import make_policy, make_requests
from tests.make_profile import make_profile

BIG, SMALL, TINY = range(3)
LATENCY_S = {
    "big": {1: 4.0, 2: 5.3, 4: 9.1},
    "small": {1: 2.1, 2: 2.6, 4: 4.7},
    "tiny": {1: 0.31, 2: 0.43, 4: 0.62, 8: 1.07},
}
LOADS_S = {"big": 21.3, "small": 9.7, "tiny": 5.9}
TIMES_S, NAMES, SLO_S = list(LATENCY_S.values()), list(LATENCY_S), 12.0


@dataclass
class Worker:
    """What it serves (or is to), what it holds, and since when it has been idle, if it is."""

    serves: int
    holds: int
    idle_since: float
    is_busy: bool = False
    is_loading: bool = False
    ran: tuple[int, int] = (0, 0)

    @property
    def is_ready(self) -> bool:
        return self.serves == self.holds and not self.is_loading


class Second:
    """``serves``: of each worker at the start. Subclasses have the rules of a policy."""

    look_s = 0.0

    def __init__(self, arrival_s: npt.NDArray[np.float64], serves: list[int]) -> None:
        self.arrival_s: list[float] = arrival_s.tolist()
        # Who has been idle for the shortest time works first; at the start the last one.
        self.workers = [Worker(v, v, i - len(serves)) for i, v in enumerate(serves)]
        self.queues: list[list[int]] = [[] for _ in TIMES_S]
        self.events: list[tuple[float, int, int, Any]] = []
        self.served: dict[int, tuple[int, float, float, int]] = {}
        self.now, self.count_of_events = 0.0, count(len(arrival_s))

    def route(self) -> int:
        raise NotImplementedError

    def look(self) -> None:
        """What is done every ``look_s``."""

    def ended(self, size: int, variant: int) -> None:
        """A batch ended."""

    def limit(self, variant: int) -> int:
        return max(TIMES_S[variant])

    def after(self, seconds: float, rank: int, what: Any) -> None:
        heappush(self.events, (self.now + seconds, rank, next(self.count_of_events), what))

    def run(self) -> dict[int, tuple[int, float, float, int]]:
        """Request -> variant, start, finish and batch size, of those that were served."""
        for row, at_s in enumerate(self.arrival_s):
            heappush(self.events, (at_s, 0, row, row))
        if self.look_s:
            self.after(self.look_s, 3, None)
        while self.events:
            self.now, rank, _, what = heappop(self.events)
            if rank == 0:
                self.enqueue(what)
            elif rank < 3:
                if what.is_busy:
                    self.ended(*what.ran)
                what.is_busy = what.is_loading = False
                self.settle(what)
            else:
                self.look()
                if self.events:
                    self.after(self.look_s, 3, None)
        return self.served

    def enqueue(self, row: int) -> None:
        variant = self.route()
        self.queues[variant].append(row)
        self.fill(variant)

    def settle(self, worker: Worker) -> None:
        """A worker that does nothing: it loads what it is to serve, or takes a batch."""
        if worker.is_ready:
            worker.idle_since = self.now
            self.fill(worker.serves)
        else:
            worker.holds, worker.is_loading = worker.serves, True
            self.after(LOADS_S[NAMES[worker.serves]], 1, worker)

    def fill(self, variant: int) -> None:
        idle = [w for w in self.workers if w.serves == variant and w.is_ready and not w.is_busy]
        for worker in sorted(idle, key=lambda w: -w.idle_since):
            batch = self.batch(variant)
            if batch:
                took_s = TIMES_S[variant][len(batch)]
                worker.is_busy, worker.ran = True, (len(batch), variant)
                self.served |= {row: (variant, self.now, self.now + took_s, len(batch)) for row in batch}
                self.after(took_s, 2, worker)

    def batch(self, variant: int) -> list[int]:
        """The oldest that can be in time, as many as make a batch; the others are given up."""
        queue, times_s = self.queues[variant], TIMES_S[variant]
        sizes = sorted(times_s)

        def largest(most: int) -> int:
            return sizes[bisect_right(sizes, most) - 1] if most else 0

        def late(row: int, size: int) -> bool:
            return self.now + times_s[size] > self.arrival_s[row] + SLO_S

        size, overload = largest(min(len(queue), self.limit(variant))), len(queue) > sizes[-1]
        while overload and size > 1 and late(queue[-size], size):
            size = largest(size - 1)
        batch: list[int] = []
        while queue and len(batch) < size:
            if not late(queue[0], size):
                batch.append(queue.pop(0))
            elif overload or late(queue[0], 1):
                queue.pop(0)
            else:
                size = largest(size - 1)
        size = largest(min(size, len(batch)))
        queue[:0] = batch[size:]
        return batch[:size]


class SecondStatic(Second):
    def route(self) -> int:
        def ahead(variant: int) -> float:
            mine = [w for w in self.workers if w.serves == variant]
            return (len(self.queues[variant]) + sum(w.is_busy for w in mine) + 1) / len(mine)

        return min(sorted({w.serves for w in self.workers}), key=ahead)


class SecondClipper(Second):
    most = 1

    def route(self) -> int:
        return self.workers[0].serves

    def limit(self, variant: int) -> int:
        return self.most

    def ended(self, size: int, variant: int) -> None:
        if size == max(b for b in TIMES_S[variant] if b <= self.most):  # none of these takes longer than the SLO
            self.most = min(self.most + 1, max(TIMES_S[variant]))


class SecondInfaas(Second):
    look_s = 1.0

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.take_stock()

    def take_stock(self) -> None:
        self.ready = [sum(w.serves == v and w.is_ready for w in self.workers) for v in range(3)]
        self.held = [v for v in range(3) if any(w.serves == v for w in self.workers)]

    def expected_s(self, variant: int) -> float:
        if not self.ready[variant]:
            return float("inf")
        per_s = max(b / s for b, s in TIMES_S[variant].items() if s <= SLO_S)
        return len(self.queues[variant]) / (self.ready[variant] * per_s) + TIMES_S[variant][1]

    def route(self) -> int:
        return next((v for v in self.held if self.expected_s(v) <= SLO_S), min(self.held, key=self.expected_s))

    def look(self) -> None:
        self.take_stock()
        if sum(self.ready) < len(self.workers):
            return
        expected_s = [self.expected_s(v) for v in self.held]
        if min(expected_s) > SLO_S and self.held[0] < TINY:
            self.step(self.held[0], 1)
        elif max(expected_s) < 0.89 * SLO_S and self.held[-1] > BIG:
            self.step(self.held[-1], -1)

    def step(self, origin: int, by: int) -> None:
        worker = [w for w in self.workers if w.serves == origin][-1]
        worker.serves = origin + by
        self.take_stock()
        if not worker.is_busy:
            self.settle(worker)
        if origin not in self.held:
            rows, self.queues[origin] = self.queues[origin], []
            for row in rows:
                self.enqueue(row)


def arrivals(seed: int) -> npt.NDArray[np.float64]:
    """Quiet, twice what the big model can carry, and quiet; then six times as much for some minutes."""
    rng = np.random.default_rng(seed)
    gaps_s = np.repeat([1.5, 0.45, 2.0, 0.15, 1.5], [150, 300, 100, 1500, 150]) * rng.exponential(1.0, 2200)
    return np.cumsum(gaps_s)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("name", "params", "second", "serves"),
    [
        ("static", {"placement": {"big": 2, "small": 1, "tiny": 1}}, SecondStatic, [BIG, BIG, SMALL, TINY]),
        ("clipper-ha", {}, SecondClipper, [BIG] * 4),
        ("clipper-ht", {}, SecondClipper, [TINY] * 4),
        ("infaas", {}, SecondInfaas, [BIG] * 4),
    ],
)
def test_the_same_of_every_request(
    name: str, params: dict[str, Any], second: type[Second], serves: list[int], seed: int
) -> None:
    arrival_s = arrivals(seed)
    profile = make_profile(LATENCY_S, loads_s=LOADS_S)
    policy = make_policy(name, profile, len(serves), slo_s=SLO_S, **params)
    cluster = make_cluster(profile, policy, make_requests(arrival_s, SLO_S))
    cluster.run()
    columns = columns_of(cluster)
    found = {
        row: tuple(columns[key][row].item() for key in ("variant", "start_s", "finish_s", "batch_size"))
        for row in np.flatnonzero(np.isfinite(columns["finish_s"])).tolist()
    }
    expected = second(arrival_s, serves).run()
    assert found.keys() == expected.keys()
    np.testing.assert_allclose(list(found.values()), [expected[row] for row in found], rtol=0, atol=1e-9)
    dropped = len(arrival_s) - len(expected)
    assert dropped == 0 if name == "clipper-ht" else 50 < dropped < 1800
    assert name != "infaas" or {v for v, *_ in expected.values()} == {BIG, SMALL, TINY}
