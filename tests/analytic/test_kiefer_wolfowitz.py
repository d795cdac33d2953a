"""FCFS on c servers, exactly: the recursion of Kiefer and Wolfowitz (1955) says when each request starts.

With ``free`` the sorted times at which the servers will be free, a request that arrives at a with service time s
starts at max(a, free[0]), and that server is free again s later. No luck, no confidence interval: all starts and
finishes of a replay are compared.
"""

from __future__ import annotations

from heapq import heapify, heapreplace

import numpy as np
import numpy.typing as npt
import pytest

from argus_sim.simulation.environment import StockEnvironment
from tests.make_cluster import run_queue
from tests.make_profile import make_profile

Floats = npt.NDArray[np.float64]

PROFILE = make_profile({"model": {1: 1.0}}, prompts=2)


def kiefer_wolfowitz(arrival_s: Floats, service_s: Floats, servers: int) -> tuple[Floats, Floats]:
    """Start and finish of each request."""
    free = [0.0] * servers
    heapify(free)
    start_s = np.empty(len(arrival_s))
    for i, (a, s) in enumerate(zip(arrival_s.tolist(), service_s.tolist(), strict=True)):
        start_s[i] = max(a, free[0])
        heapreplace(free, start_s[i] + s)
    return start_s, start_s + service_s


def gaps(kind: str, mean_s: float, n: int, rng: np.random.Generator) -> Floats:
    """Times with a mean: smooth, bursty, heavy-tailed, or on a grid so that many are equal."""
    match kind:
        case "uniform":
            drawn = rng.uniform(0.0, 2.0, n)
        case "bursty":
            drawn = rng.gamma(0.1, 10.0, n)
        case "pareto":
            drawn = rng.pareto(2.2, n) * 1.2
        case _:
            drawn = rng.integers(0, 5, n) / 2.0
    return drawn * mean_s


@pytest.mark.parametrize("servers", [1, 2, 3, 8, 64])
@pytest.mark.parametrize("utilisation", [0.4, 0.95, 1.5])
@pytest.mark.parametrize(
    ("arrivals", "services"),
    [("uniform", "pareto"), ("bursty", "uniform"), ("pareto", "bursty"), ("grid", "grid")],
)
def test_starts_and_finishes(servers: int, utilisation: float, arrivals: str, services: str) -> None:
    rng = np.random.default_rng([servers, int(100 * utilisation)])
    n = 2000
    arrival_s = np.cumsum(gaps(arrivals, 1.0 / (utilisation * servers), n, rng))
    service_s = gaps(services, 1.0, n, rng) + 1e-3
    start_s, finish_s = kiefer_wolfowitz(arrival_s, service_s, servers)
    columns = run_queue(PROFILE, arrival_s, service_s, servers).columns
    np.testing.assert_allclose(columns["start_s"], start_s, rtol=0, atol=1e-9)
    np.testing.assert_allclose(columns["finish_s"], finish_s, rtol=0, atol=1e-9)
    assert (columns["batch_size"] == 1).all()


def test_a_long_trace() -> None:
    """Longer than the environment takes arrivals at a time."""
    rng = np.random.default_rng(2)
    arrival_s, service_s = np.cumsum(rng.exponential(0.3, 50_000)), rng.exponential(1.0, 50_000)
    start_s, finish_s = kiefer_wolfowitz(arrival_s, service_s, 4)
    columns = run_queue(PROFILE, arrival_s, service_s, 4).columns
    np.testing.assert_allclose(columns["start_s"], start_s, rtol=0, atol=1e-9)
    np.testing.assert_allclose(columns["finish_s"], finish_s, rtol=0, atol=1e-9)


def test_no_server_runs_two_at_once() -> None:
    """And each of them is used."""
    rng = np.random.default_rng(0)
    arrival_s = np.cumsum(rng.exponential(0.2, 3000))
    columns = run_queue(PROFILE, arrival_s, rng.exponential(1.0, 3000), 6).columns
    assert set(columns["worker"]) == set(range(6))
    for worker in range(6):
        mine = np.flatnonzero(columns["worker"] == worker)
        mine = mine[np.argsort(columns["start_s"][mine])]
        assert (columns["start_s"][mine][1:] >= columns["finish_s"][mine][:-1]).all()


def test_the_twin_is_exact_too() -> None:
    rng = np.random.default_rng(1)
    arrival_s, service_s = np.cumsum(rng.exponential(0.3, 2000)), rng.exponential(1.0, 2000)
    start_s, _ = kiefer_wolfowitz(arrival_s, service_s, 3)
    columns = run_queue(PROFILE, arrival_s, service_s, 3, env=StockEnvironment()).columns
    np.testing.assert_allclose(columns["start_s"], start_s, rtol=0, atol=1e-9)
