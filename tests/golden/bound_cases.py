"""Small cases of the hindsight bound, and the best of all their schedules."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from argus_sim.core.bound import Bound, least_work_s, pooled_work_s, quality_bound

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Times = list[dict[int, list[float]]]

#: For sums that are added up in another order.
CLOSE = 1e-9


@dataclass(frozen=True)
class Case:
    """Some requests, each with a prompt and a luck of its own."""

    arrival_s: Floats
    deadline_s: Floats
    quality: Floats
    times_s: Times
    workers: int
    #: Further kinds of workers: their times, and how many of them there are.
    others: tuple[tuple[Times, int], ...] = ()

    def __len__(self) -> int:
        return len(self.arrival_s)

    def bound(self, **options: int) -> Bound:
        own = np.arange(len(self))
        slack_s = float((self.deadline_s - self.arrival_s).max())
        work_s, workers = pooled_work_s(
            [least_work_s(times_s, slack_s) for times_s in (self.times_s, *(t for t, _ in self.others))],
            [self.workers, *(n for _, n in self.others)],
        )
        return quality_bound(
            self.arrival_s, self.deadline_s, own, self.quality, work_s, workers, draw=own, **options
        )


def best_schedule(case: Case) -> float:
    """The most on-time quality of all schedules: of any order, assignment, batching and dropping.

    A schedule is its batches in the order in which they start, each as soon as its worker and its requests are
    there. Who of a batch is first counts; late requests may fill a batch up or lend it their luck.
    """
    arrival, deadline, quality = case.arrival_s.tolist(), case.deadline_s.tolist(), case.quality.tolist()
    best_of = [max(row) for row in quality]
    best = 0.0
    kinds = [case.times_s, *(times_s for times_s, _ in case.others)]
    # When each worker is free, and of which kind it is.
    workers = [(0.0, 0)] * case.workers + [(0.0, k + 1) for k, (_, n) in enumerate(case.others) for _ in range(n)]
    seen: dict[tuple[frozenset[int], tuple[tuple[float, int], ...], float], float] = {}

    def search(left: frozenset[int], free_s: tuple[tuple[float, int], ...], since_s: float, got: float) -> None:
        nonlocal best
        best = max(best, got)
        if got + sum(best_of[k] for k in left) <= best or seen.get((left, free_s, since_s), -1.0) >= got:
            return
        seen[left, free_s, since_s] = got
        for worker in {f: i for i, f in enumerate(free_s)}.values():
            others = free_s[:worker] + free_s[worker + 1 :]
            ready_s, kind = free_s[worker]
            for variant, batches in enumerate(kinds[kind]):
                for size, time_s in batches.items():
                    for rows in itertools.combinations(left, size):
                        start_s = max(ready_s, *(arrival[k] for k in rows))
                        if start_s < since_s:
                            continue
                        for end_s in {start_s + time_s[first] for first in rows}:
                            gain = sum(quality[k][variant] for k in rows if end_s <= deadline[k])
                            if gain:
                                then = tuple(sorted((*others, (end_s, kind))))
                                search(left - {*rows}, then, start_s, got + gain)

    search(frozenset(range(len(arrival))), tuple(workers), 0.0, 0.0)
    return best


def random_case(seed: int, *, requests: tuple[int, int] = (2, 5), tidy: bool = False) -> Case:
    """A crowded one. ``tidy``: one SLO for all and no luck."""
    rng = np.random.default_rng(seed)
    n, variants, workers = int(rng.integers(*requests)), int(rng.integers(2, 4)), int(rng.integers(1, 3))
    arrival_s = np.sort(rng.integers(0, rng.choice([1, 200, 500]), n)) / 100
    slo_s = float(rng.uniform(1.0, 6.0))
    alike = tidy or rng.random() < 0.5
    slack_s: Floats = slo_s * (np.ones(n) if alike else rng.uniform(0.3, 1.0, n))
    spread = 0.0 if tidy else float(rng.choice([0.0, 0.05, 0.6]))
    times_s: Times = []
    for _ in range(variants):
        time_s = rng.uniform(0.3, 3.0)
        luck = np.exp(spread * rng.standard_normal(n))
        batches = {1: (time_s * luck).tolist()}
        if rng.random() < 0.7:
            batches[2] = (time_s * rng.uniform(0.9, 2.2) * luck).tolist()
        times_s.append(batches)
    return Case(arrival_s, arrival_s + slack_s, rng.uniform(0.1, 1.0, (n, variants)), times_s, workers)
