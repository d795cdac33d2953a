"""Queues whose mean waiting time is known in closed form, through the real engine and the SimPy host.

Each test replays independent replications and holds that the 99 % confidence interval of their mean (Student's t)
contains the closed form, and that the interval is narrow enough for a wrong formula to miss it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import pytest
from scipy import stats

from argus_sim.simulation.service import STRATA, ServiceTimes
from tests.make_cluster import Served, run_queue
from tests.make_profile import make_profile

Floats = npt.NDArray[np.float64]

REPLICATIONS = 30
#: Requests of a replication that are left out: it starts with an empty queue.
WARM_UP = 2000
#: Service times have mean 1 s; nothing of the profile but its one variant matters unless a test says so.
PROFILE = make_profile({"model": {1: 1.0}}, prompts=2)


def replications(replicate: Callable[[np.random.Generator], Served], seed: int) -> list[Served]:
    return [replicate(rng) for rng in np.random.default_rng(seed).spawn(REPLICATIONS)]


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half the width of its 99 % confidence interval."""
    half = stats.t.ppf(0.995, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values))
    return float(np.mean(values)), float(half)


def mean_wait_s(served: Served) -> float:
    return float(np.nanmean(served.wait_s[WARM_UP:]))


def refused(served: Served) -> float:
    return float(np.isnan(served.wait_s[WARM_UP:]).mean())


def poisson(rate_per_s: float, n: int, rng: np.random.Generator) -> Floats:
    return np.cumsum(rng.exponential(1.0 / rate_per_s, n))


@pytest.fixture
def note(record_property: Callable[[str, object], None]) -> Callable[..., None]:
    """Tells the page of validation what a test has found."""

    def tell(what: str, exact: float, found: tuple[float, float]) -> None:
        record_property("figure", json.dumps({"what": what, "exact": exact, "mean": found[0], "half": found[1]}))

    return tell


def assert_contains(
    runs: list[Served],
    exact: float,
    *,
    within: float,
    statistic: Callable[[Served], float] = mean_wait_s,
    note: tuple[Callable[..., None], str] | None = None,
) -> None:
    """``within``: the widest half-interval allowed, relative to the closed form."""
    mean, half = interval([statistic(run) for run in runs])
    if note is not None:
        note[0](note[1], exact, (mean, half))
    assert half < within * exact, f"{mean:.5f} +- {half:.5f} is too wide to tell anything about {exact:.5f}"
    assert abs(mean - exact) <= half, f"{exact:.5f} is outside {mean:.5f} +- {half:.5f}"


# -- the closed forms; service rate 1/s ----------------------------------------------------------------------


def erlang_c(servers: int, load: float) -> float:
    """Probability that an arrival waits in M/M/c; ``load`` is the arrival rate over the service rate."""
    blocked = 1.0
    for n in range(1, servers + 1):
        blocked = load * blocked / (n + load * blocked)
    return blocked / (1.0 - load / servers * (1.0 - blocked))


def pollaczek_khinchine(rate_per_s: float, mean_s: float, second_moment: float) -> float:
    """Mean wait in M/G/1."""
    return rate_per_s * second_moment / (2.0 * (1.0 - rate_per_s * mean_s))


def exceptional_first(rate_per_s: float, usual: tuple[float, float], first: tuple[float, float]) -> float:
    """Mean wait in M/G/1 where whoever finds the server idle is served otherwise (Welch 1964, Oper. Res. 12).

    Args:
        usual, first: Mean and second moment of service.
    """
    left = 1.0 - rate_per_s * usual[0]
    return rate_per_s / 2.0 * (usual[1] / left + (first[1] - usual[1]) / (left + rate_per_s * first[0]))


def finite_queue(servers: int, room: int, load: float) -> tuple[float, float]:
    """M/M/c/K with K = room: probability of being refused, and the mean wait of those who are not."""
    ratios = load / np.minimum(np.arange(1, room + 1), servers)
    p = np.concatenate([[1.0], np.cumprod(ratios)])
    p /= p.sum()
    waiting = float((np.maximum(np.arange(room + 1) - servers, 0) * p).sum())
    return float(p[-1]), waiting / (load * (1.0 - float(p[-1])))


def test_closed_forms_agree_where_they_meet() -> None:
    assert erlang_c(1, 0.7) == pytest.approx(0.7)
    assert pollaczek_khinchine(0.7, 1.0, 2.0) == pytest.approx(0.7 / 0.3)
    assert exceptional_first(0.7, (1.0, 2.0), (1.0, 2.0)) == pytest.approx(0.7 / 0.3)
    assert finite_queue(2, 2000, 1.4)[1] == pytest.approx(erlang_c(2, 1.4) / (2 - 1.4))
    # Erlang B, from a table: 5 servers, 3 erlang.
    assert finite_queue(5, 5, 3.0)[0] == pytest.approx(0.1101, abs=5e-5)


# -- the simulator ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("servers", "utilisation", "n"), [(1, 0.7, 50_000), (2, 0.7, 50_000), (4, 0.75, 50_000), (8, 0.75, 80_000)]
)
def test_mmc(servers: int, utilisation: float, n: int, note: Callable[..., None]) -> None:
    """M/M/1, and Erlang C for more servers."""
    load = utilisation * servers

    def replicate(rng: np.random.Generator) -> Served:
        return run_queue(PROFILE, poisson(load, n, rng), rng.exponential(1.0, n), servers)

    exact = erlang_c(servers, load) / (servers - load)
    name = f"M/M/{servers}, {utilisation:.0%} utilised: mean wait (s)"
    assert_contains(replications(replicate, seed=10 + servers), exact, within=0.03, note=(note, name))


def test_md1(note: Callable[..., None]) -> None:
    """Deterministic service, drawn from a profile that says so."""
    profile = make_profile({"model": {1: 2.0}}, prompts=2, distribution="deterministic")
    rate_per_s, n = 0.35, 25_000

    def replicate(rng: np.random.Generator) -> Served:
        return run_queue(profile, poisson(rate_per_s, n, rng), ServiceTimes.of(profile, n, rng), 1)

    exact = pollaczek_khinchine(rate_per_s, 2.0, 4.0)
    name = "M/D/1, 70% utilised: mean wait (s)"
    assert_contains(replications(replicate, seed=20), exact, within=0.02, note=(note, name))


@pytest.mark.parametrize("cv", [0.3, 0.8])
def test_mg1(cv: float, note: Callable[..., None]) -> None:
    """Lognormal service with a coefficient of variation, drawn from a profile that says so."""
    profile = make_profile({"model": {1: 2.0}}, prompts=2, distribution="lognormal", std_s=cv)
    rate_per_s, n = 0.35, 30_000

    def replicate(rng: np.random.Generator) -> Served:
        return run_queue(profile, poisson(rate_per_s, n, rng), ServiceTimes.of(profile, n, rng), 1)

    exact = pollaczek_khinchine(rate_per_s, 2.0, 4.0 * (1.0 + cv**2))
    name = f"M/G/1, 70% utilised, lognormal with cv {cv}: mean wait (s)"
    assert_contains(replications(replicate, seed=30 + int(10 * cv)), exact, within=0.03, note=(note, name))


def test_mg1_that_is_slower_after_idleness(note: Callable[..., None]) -> None:
    """A profile with times after a pause, however short."""
    profile = make_profile(
        {"model": {1: 2.0}},
        prompts=2,
        distribution="lognormal",
        std_s=0.3,
        after_idle_s={"model": {1e-9: 5.0}},
    )
    rate_per_s, n = 0.3, 50_000

    def replicate(rng: np.random.Generator) -> Served:
        return run_queue(profile, poisson(rate_per_s, n, rng), ServiceTimes.of(profile, n, rng), 1)

    exact = exceptional_first(rate_per_s, (2.0, 4.0 * 1.09), (5.0, 25.0 * 1.09))
    assert exact > 1.5 * pollaczek_khinchine(rate_per_s, 2.0, 4.0 * 1.09)
    name = "M/G/1, 60% utilised, first of a busy period 2.5 times as long: mean wait (s)"
    assert_contains(replications(replicate, seed=60), exact, within=0.03, note=(note, name))


def test_service_times_have_the_moments_of_the_profile() -> None:
    """A service time is one of so many quantiles: that costs little of the mean and of the variance."""
    profile = make_profile({"model": {1: 2.0}}, prompts=2, distribution="lognormal", std_s=0.8)
    times = np.array(ServiceTimes.of(profile, 1, np.random.default_rng(0)).times_s[0][1])
    assert len(times) == STRATA
    assert times.mean() == pytest.approx(2.0, rel=1e-3)
    assert (times**2).mean() == pytest.approx(4.0 * (1 + 0.8**2), rel=1e-2)


@pytest.mark.parametrize(("servers", "room", "utilisation"), [(1, 5, 0.9), (4, 4, 0.8), (4, 10, 1.3)])
def test_mmck(servers: int, room: int, utilisation: float, note: Callable[..., None]) -> None:
    """Rejection by a queue limit: the share refused, and the wait of those accepted; overload included."""
    load, n = utilisation * servers, 25_000

    def replicate(rng: np.random.Generator) -> Served:
        arrival_s, service_s = poisson(load, n, rng), rng.exponential(1.0, n)
        return run_queue(PROFILE, arrival_s, service_s, servers, queue_limit=room - servers)

    share, wait_s = finite_queue(servers, room, load)
    runs = replications(replicate, seed=40 + room)
    name = f"M/M/{servers}/{room}, offered {utilisation:.0%}"
    assert_contains(runs, share, within=0.03, statistic=refused, note=(note, f"{name}: share refused"))
    if room > servers:
        assert_contains(runs, wait_s, within=0.03, note=(note, f"{name}: mean wait (s)"))
    else:
        assert all(mean_wait_s(run) == 0.0 for run in runs)


def test_a_wrong_formula_is_noticed() -> None:
    """The interval of M/D/1 contains neither the wait of M/M/1 nor that of 3 % more load."""
    profile = make_profile({"model": {1: 1.0}}, prompts=2)
    n = 25_000

    def replicate(rng: np.random.Generator) -> Served:
        return run_queue(profile, poisson(0.7, n, rng), ServiceTimes.of(profile, n, rng), 1)

    runs = replications(replicate, seed=50)
    for wrong in (pollaczek_khinchine(0.7, 1.0, 2.0), pollaczek_khinchine(0.721, 1.0, 1.0)):
        with pytest.raises(AssertionError, match="is outside"):
            assert_contains(runs, wrong, within=0.05)
