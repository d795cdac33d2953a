"""What the benchmarks time: a replay, and the least that any event simulation of it must do.

Run as a program it makes one replay and prints what that took as JSON, so that memory is that of a fresh process:

    python -m tests.bench.replay argus 64 1000000
"""

from __future__ import annotations

import gc
import json
import resource
import sys
import time
from collections import deque
from heapq import heappop, heappush

import numpy as np

from argus_sim.core import affinity
from argus_sim.core.batching import DropRule
from argus_sim.core.catalog import Catalog
from argus_sim.core.engine import Engine
from argus_sim.core.requests import Requests
from argus_sim.policies.base import Setup
from argus_sim.policies.registry import find
from argus_sim.simulation.cluster import SimulatedCluster
from argus_sim.simulation.network import CacheConfig, SimulatedCache
from argus_sim.simulation.service import ServiceTimes
from tests.make_profile import make_profile

#: Offered load over the capacity at the base. Above 1 for argus, so that levels mix and the cache is asked
LOAD = {"static": 0.9, "argus": 1.2}


def make_replay(policy: str, workers: int, requests: int) -> SimulatedCluster:
    """A cluster ready to run: batches of one, so that there is one service time per request."""
    cells = {"big": 4.2} | {f"big/ac-{k}": 4.2 * (50 - k) / 50 for k in (5, 10, 15, 20, 25)}
    profile = make_profile(
        {name: {1: s} for name, s in cells.items()},
        std_s=0.01,
        distribution="lognormal",
        spread=0.05,
        prompts=2000,
    )
    catalog = Catalog.of(profile)
    rng = np.random.default_rng(1)
    rate_per_s = LOAD[policy] * workers / cells["big"]
    arrival_s = np.cumsum(rng.exponential(1.0 / rate_per_s, requests))
    slo_s = 3 * cells["big"]
    prompt = rng.choice(np.flatnonzero(~profile.is_train), requests).astype(np.int32)
    kind = find(policy)
    setup = Setup(catalog, workers, slo_s, np.random.default_rng(2), affinity.from_text(profile))
    similarity = profile.similarity()
    assert similarity is not None
    engine = Engine(
        catalog,
        kind(setup, kind.Params()),
        Requests.of(arrival_s, arrival_s + slo_s, prompt),
        workers,
        drop=DropRule("never"),
    )
    return SimulatedCluster(
        engine,
        arrival_s,
        ServiceTimes.of(profile, requests, rng),
        cache=SimulatedCache(CacheConfig(), similarity, 25, rng),
    )


def bare_heapq(arrivals: list[float], service: list[float], workers: int) -> tuple[list[float], list[float]]:
    """Start and finish of each request on a FCFS cluster: a bare event loop, every event through one heap.

    As a script would have it, the garbage collector included (a replay turns it off: it knows that it may).
    """
    started, finished = [0.0] * len(arrivals), [0.0] * len(arrivals)
    free, queue = list(range(workers)), deque[int]()
    heap = [(arrivals[0], 0, -1, 0)]
    order = 1
    while heap:
        now, _, worker, row = heappop(heap)
        if worker < 0:
            if row + 1 < len(arrivals):
                heappush(heap, (arrivals[row + 1], order, -1, row + 1))
                order += 1
            if not free:
                queue.append(row)
                continue
            worker = free.pop()
        else:
            finished[row] = now
            if not queue:
                free.append(worker)
                continue
            row = queue.popleft()
        started[row] = now
        heappush(heap, (now + service[row], order, worker, row))
        order += 1
    return started, finished


def service_times(cluster: SimulatedCluster) -> list[float]:
    """The service time that each request of a finished replay had."""
    log = cluster.engine.log
    return [finish - start for start, finish in zip(log.start_s, log.finish_s, strict=True)]


def main(policy: str, workers: int, requests: int) -> None:
    cluster = make_replay(policy, workers, requests)
    arrivals = cluster.engine.requests.arrival_s.tolist()
    gc.collect()
    gc.freeze()
    started = time.perf_counter()
    cluster.run()
    replay_s = time.perf_counter() - started
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    service = service_times(cluster)
    started = time.perf_counter()
    bare_heapq(arrivals, service, workers)
    heapq_s = time.perf_counter() - started
    print(
        json.dumps(
            {
                "policy": policy,
                "workers": workers,
                "requests": requests,
                "replay_requests_per_s": requests / replay_s,
                "heapq_requests_per_s": requests / heapq_s,
                "ratio": heapq_s / replay_s,
                "peak_memory_mb": peak_bytes / 1e6,
            }
        )
    )


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
