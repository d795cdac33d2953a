"""The simulated cluster beside what other files hold it to: the guard, its tables, and what it is not given."""

from __future__ import annotations

import gc
import math
import re

import numpy as np
import numpy.typing as npt
import pytest

from argus_sim.core.batching import DropRule
from argus_sim.errors import InputError
from argus_sim.simulation.cluster import SimulatedCluster
from argus_sim.simulation.environment import Environment, StockEnvironment, StreamEnvironment, Tick
from argus_sim.simulation.service import STRATA, LoadTimes, ServiceTimes
from tests.make_cluster import columns_of, make_cluster
from tests.make_engine import NEVER, make_engine, make_policy, make_requests
from tests.make_profile import ladder, make_profile

#: Exactly 4 s for one: a cluster of 2 serves 0.5 requests/s.
PROFILE = make_profile({"big": {1: 4.0}})


def arrivals(rate_per_s: float, seconds: float) -> npt.NDArray[np.float64]:
    rng = np.random.default_rng(0)
    times = np.cumsum(rng.exponential(1.0 / rate_per_s, int(2 * rate_per_s * seconds) + 10))
    return times[times < seconds]


def loaded(
    rate_per_s: float,
    seconds: float,
    *,
    drop: DropRule = NEVER,
    max_wait_s: float = 100.0,
    env: Environment | None = None,
) -> SimulatedCluster:
    requests = make_requests(arrivals(rate_per_s, seconds), 12.0)
    policy = make_policy("static", PROFILE, 2)
    return make_cluster(PROFILE, policy, requests, drop=drop, max_wait_s=max_wait_s, env=env)


# -- the guard ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [StreamEnvironment, StockEnvironment])
def test_a_run_that_never_catches_up_is_stopped(make: type[Environment]) -> None:
    """Twice the capacity and nothing ever dropped: a wait of 100 s is reached after about 200 s."""
    host = loaded(1.0, 50_000.0, env=make())
    with pytest.raises(InputError) as caught:
        host.run()
    message = caught.value.message
    assert "this run cannot catch up" in message
    assert "requests/s arrive" in message
    assert re.search(r"0\.50\d requests/s are served", message)
    assert "drop: late" in message
    assert host.env.now < 400.0
    assert gc.isenabled()


def test_a_run_that_keeps_up_is_not() -> None:
    host = loaded(0.4, 5000.0)
    host.run()
    assert host.finished


def test_a_crowd_that_is_served_after_the_last_arrival_is_not() -> None:
    """Everybody comes within 100 s; the last waits longer than the guard allows, but no more keep coming."""
    host = loaded(4.0, 100.0, max_wait_s=150.0)
    host.run()
    waits = columns_of(host)["start_s"] - np.array(host.engine.requests.arrival_s)
    assert waits.max() > 150.0


def test_with_dropping_there_is_nothing_to_guard_against() -> None:
    host = loaded(1.0, 5000.0, drop=DropRule("late"))
    host.run()
    waits = columns_of(host)["start_s"] - np.array(host.engine.requests.arrival_s)
    assert np.nanmax(waits) <= 8.0


# -- what a host must be given --------------------------------------------------------------------------------


def test_a_cluster_without_load_times_says_so() -> None:
    policy = make_policy("static", PROFILE, 1)
    engine = make_engine(policy, make_requests([0.0, 50.0]))
    host = SimulatedCluster(engine, np.array([0.0, 50.0]), ServiceTimes([{1: [4.0] * STRATA}], [0, 0]))

    def fail() -> object:
        yield host.env.timeout(1.0)
        host.lose(0)
        host.restore(0)

    host.env.process(fail())
    with pytest.raises(InputError, match="has no load times"):
        host.run()


def test_no_requests_at_all() -> None:
    host = make_cluster(PROFILE, make_policy("argus", ladder(), 2), make_requests([]), max_wait_s=10.0)
    host.run()
    assert host.finished
    assert len(columns_of(host)["start_s"]) == 0


# -- service and load times -----------------------------------------------------------------------------------


def test_a_batch_takes_what_its_first_request_drew() -> None:
    """So all policies meet the same luck, however they batch."""
    profile = make_profile({"big": {1: 4.0, 2: 6.0}}, distribution="lognormal", std_s=0.3)
    service = ServiceTimes.of(profile, 200, np.random.default_rng(1))
    requests = make_requests(np.repeat(np.arange(100) * 20.0, 2), 100.0)
    policy = make_policy("static", profile, 1)
    host = make_cluster(profile, policy, requests, drop=NEVER, service=service)
    host.run()
    columns = columns_of(host)
    took = columns["finish_s"] - columns["start_s"]
    expected = [service.times_s[0][1][service.draw[row]] for row in range(200)]
    assert columns["batch_size"].tolist() == [1] * 200
    assert took == pytest.approx(expected)


def test_draws_are_equally_probable_quantiles() -> None:
    profile = make_profile({"big": {1: 4.0, 2: 6.0}}, distribution="lognormal", std_s=0.3)
    service = ServiceTimes.of(profile, 100_000, np.random.default_rng(1))
    counts = np.bincount(np.array(service.draw), minlength=STRATA)
    assert len(counts) == STRATA
    assert abs(counts - 100_000 / STRATA).max() < 6 * math.sqrt(100_000 / STRATA)
    for size, mean_s in ((1, 4.0), (2, 6.0)):
        times = service.times_s[0][size]
        assert times == sorted(times)
        assert np.mean(times) == pytest.approx(mean_s, rel=1e-3)
        assert np.std(times) == pytest.approx(0.3 * mean_s, rel=1e-2)


def test_loads_take_as_long_as_those_observed() -> None:
    profile = ladder()
    loads = LoadTimes(profile, np.random.default_rng(0))
    for index, model in enumerate(profile.models):
        seen = {loads.seconds(index) for _ in range(20)}
        assert seen == set(profile.load_samples_s(model).tolist())


# -- after a pause --------------------------------------------------------------------------------------------


RESTING = make_profile(
    {"big": {1: 4.0, 2: 6.0}, "small": {1: 1.0}}, after_idle_s={"big": {1.0: 5.0, 3.0: 3.0}, "small": {1.0: 2.0}}
)


def test_the_longest_pause_counts_that_was_as_long() -> None:
    service = ServiceTimes.of(RESTING, 1, np.random.default_rng(0))
    assert [service.after_s(0, 0, 1, 7, idle_s) for idle_s in (0.0, 0.9, 1.0, 2.9, 3.0, 1e9)] == [
        4,
        4,
        5,
        5,
        3,
        3,
    ]
    assert [service.after_s(0, 0, 2, 7, idle_s) for idle_s in (0.0, 9.0)] == [6, 6]  # of pairs nothing is known
    assert [service.after_s(0, 1, 1, 7, idle_s) for idle_s in (0.0, 9.0)] == [1, 2]
    (least,) = service.least()
    assert [least[0][1][7], least[0][2][7], least[1][1][7]] == [3, 6, 1]
    usual = ServiceTimes.of(PROFILE, 1, np.random.default_rng(0))
    assert usual.least() == usual.kinds
    assert usual.pauses == ((),)


def test_a_worker_is_as_slow_as_its_pause_makes_it() -> None:
    """One worker: idle for 2 s, then busy, then idle for half a second and for 10."""
    profile = make_profile({"big": {1: 4.0}}, after_idle_s={"big": {1.0: 5.0, 3.0: 3.0}})
    arrival_s = np.array([2.0, 3.0, 11.5, 25.5])
    host = make_cluster(
        profile,
        make_policy("static", profile, 1),
        make_requests(arrival_s, 60.0),
        service=ServiceTimes.of(profile, 4, np.random.default_rng(0)),
    )
    host.run()
    columns = columns_of(host)
    assert columns["start_s"].tolist() == [2.0, 7.0, 11.5, 25.5]
    assert (columns["finish_s"] - columns["start_s"]).tolist() == [5.0, 4.0, 4.0, 3.0]


def test_a_load_ends_a_pause() -> None:
    """The worker that changed its model is not idle while it loads."""
    profile = make_profile({"big": {1: 4.0}}, after_idle_s={"big": {1.0: 5.0}}, loads_s={"big": 10.0})
    host = make_cluster(
        profile,
        make_policy("static", profile, 1),
        make_requests(np.array([20.0]), 60.0),
        service=ServiceTimes.of(profile, 1, np.random.default_rng(0)),
    )
    host.env.tick_at(5.0, Tick(lambda now, _: host.lose(0) or []))
    host.env.tick_at(9.5, Tick(lambda now, _: host.restore(0) or []))
    host.run()
    columns = columns_of(host)
    assert [load.finish_s for load in host.loads] == [19.5]
    assert columns["finish_s"].tolist() == [24.0]  # half a second after the load
