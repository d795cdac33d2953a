"""The approximate cache as the cluster sees it: how long it takes, and when it does not answer."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from argus_sim.domain import CacheHit, Outcome
from argus_sim.errors import InputError
from argus_sim.simulation.cluster import SimulatedCluster
from argus_sim.simulation.network import CacheConfig, CacheTrouble, SimulatedCache
from tests.make_cluster import columns_of, make_cluster
from tests.make_engine import make_policy, make_requests
from tests.make_profile import ladder

PROFILE = ladder()
BIG, AC10, AC25, SMALL = range(4)
SIMILARITY = np.array([0.5, 0.7, 0.9, 0.99])


def cache(*, seed: int = 0, **config: Any) -> SimulatedCache:
    return SimulatedCache(CacheConfig(**config), SIMILARITY, 25, np.random.default_rng(seed))


def outage(at_s: float, for_s: float, latency_s: float | None = None) -> CacheTrouble:
    return CacheTrouble(at_s=at_s, for_s=for_s, latency_s=latency_s)


def is_miss(hit: CacheHit, after_s: float) -> bool:
    return math.isnan(hit.similarity) and (hit.max_skipped_steps, hit.latency_s) == (0, after_s)


# -- answers --------------------------------------------------------------------------------------------------


def test_a_constant_cache() -> None:
    """Similarity by prompt, the deepest latents for all, the same latency each time."""
    constant = cache(latency_s=0.2)
    assert [constant.answer(now, 2) for now in (0.0, 1e6)] == [CacheHit(0.9, 25, 0.2)] * 2
    assert constant.answer(0.0, 0) == CacheHit(0.5, 25, 0.2)


@pytest.mark.parametrize("cv", [0.2, 1.0])
def test_latency_has_its_mean_and_spread(cv: float) -> None:
    jittery = cache(latency_s=0.1, latency_cv=cv, timeout_s=1e6)
    seconds = np.array([jittery.answer(0.0, 0).latency_s for _ in range(40_000)])
    assert seconds.mean() == pytest.approx(0.1, rel=0.02)
    assert seconds.std() / seconds.mean() == pytest.approx(cv, rel=0.06)
    # Lognormal: the logarithm is symmetric, with this median.
    assert np.median(seconds) == pytest.approx(0.1 / math.sqrt(1 + cv**2), rel=0.02)
    assert cache(latency_s=0.1, latency_cv=cv, timeout_s=1e6).answer(0.0, 0).latency_s == seconds[0]


def test_who_takes_too_long_has_missed() -> None:
    """The share of time-outs is what the lognormal has beyond the limit; they are known at the limit."""
    jittery = cache(latency_s=0.1, latency_cv=1.0, timeout_s=0.2)
    hits = [jittery.answer(0.0, 3) for _ in range(20_000)]
    missed = [hit for hit in hits if math.isnan(hit.similarity)]
    assert all(is_miss(hit, 0.2) for hit in missed)
    assert max(hit.latency_s for hit in hits) <= 0.2
    sigma = math.sqrt(math.log(2.0))
    z = (math.log(0.2) - math.log(0.1 / math.sqrt(2.0))) / sigma
    beyond = 0.5 * math.erfc(z / math.sqrt(2.0))
    assert len(missed) / len(hits) == pytest.approx(beyond, rel=0.06)


def test_a_cache_that_always_takes_too_long_is_none() -> None:
    with pytest.raises(ValidationError, match="latency_s is 2 s, above the 1 s of timeout_s"):
        CacheConfig(latency_s=2.0, timeout_s=1.0)
    assert is_miss(cache(latency_s=2.0, latency_cv=0.1, timeout_s=1.0).answer(0.0, 3), 1.0)


def test_trouble_begins_and_ends() -> None:
    """From its start until just before its end; slow, or not at all."""
    troubled = cache(latency_s=0.1, timeout_s=1.0, trouble=(outage(10.0, 5.0), outage(20.0, 5.0, 0.5)))
    fine = CacheHit(0.99, 25, 0.1)
    assert [troubled.answer(now, 3) for now in (0.0, 9.99, 15.0, 19.9, 25.0)] == [fine] * 5
    assert is_miss(troubled.answer(10.0, 3), 1.0)
    assert is_miss(troubled.answer(14.99, 3), 1.0)
    assert troubled.answer(20.0, 3) == CacheHit(0.99, 25, 0.5)
    assert troubled.answer(24.99, 3) == CacheHit(0.99, 25, 0.5)


def test_of_two_troubles_the_later_in_the_list_counts() -> None:
    troubled = cache(latency_s=0.1, timeout_s=1.0, trouble=(outage(0.0, 10.0, 0.5), outage(5.0, 10.0)))
    assert troubled.answer(4.0, 3).latency_s == 0.5
    assert is_miss(troubled.answer(5.0, 3), 1.0)


def test_trouble_jitters_like_the_rest() -> None:
    troubled = cache(latency_s=0.1, latency_cv=0.3, timeout_s=1e6, trouble=(outage(0.0, 1e6, 5.0),))
    seconds = np.array([troubled.answer(1.0, 0).latency_s for _ in range(5000)])
    assert seconds.mean() == pytest.approx(5.0, rel=0.03)
    assert seconds.std() / seconds.mean() == pytest.approx(0.3, rel=0.1)


# -- on the cluster -------------------------------------------------------------------------------------------


def run(
    policy: str, *, service: SimulatedCache | None, every_s: float = 8.0, n: int = 20, **params: Any
) -> SimulatedCluster:
    """Requests of prompt 2 (similarity 0.9), far enough apart never to wait."""
    if policy == "nirvana":
        params = {"thresholds": {10: 0.65, 25: 0.8}} | params
    host = make_cluster(
        PROFILE,
        make_policy(policy, PROFILE, 1, **params),
        make_requests(np.arange(n) * every_s, 12.0, [2] * n),
        cache=service,
    )
    host.run()
    assert host.finished
    return host


def reasons(host: SimulatedCluster) -> list[str]:
    return [host.engine.log.reasons[code] for code in host.engine.log.reason]


def test_a_request_waits_for_its_answer() -> None:
    host = run("nirvana", service=cache(latency_s=0.25))
    columns = columns_of(host)
    assert (columns["start_s"] - np.arange(20) * 8.0).tolist() == [0.25] * 20
    assert (columns["finish_s"] - columns["start_s"]).tolist() == pytest.approx([2.0] * 20)
    assert columns["variant"].tolist() == [AC25] * 20


def test_a_slow_cache_delays_and_a_dead_one_costs_the_time_out() -> None:
    """From 40 s it takes half a second, from 80 s it does not answer: full service after the time-out of 1 s."""
    trouble = (outage(40.0, 40.0, 0.5), outage(80.0, 40.0))
    host = run("nirvana", service=cache(latency_s=0.25, trouble=trouble))
    columns = columns_of(host)
    waits = (columns["start_s"] - np.arange(20) * 8.0).tolist()
    assert waits == [0.25] * 5 + [0.5] * 5 + [1.0] * 5 + [0.25] * 5
    assert columns["variant"].tolist() == [AC25] * 10 + [BIG] * 5 + [AC25] * 5
    assert set(reasons(host)[10:15]) == {"no similar prompt cached"}
    assert (columns["outcome"] == Outcome.ON_TIME).all()


@pytest.mark.parametrize("policy", ["argus", "pac"])
def test_an_outage_is_survived_by_those_who_counted_on_the_cache(policy: str) -> None:
    """Offered 1.7 times what `big` can serve: all workers are on approximate levels when the cache goes away."""
    n = 300
    asked_s = np.arange(n) * 0.8
    host = make_cluster(
        PROFILE,
        make_policy(policy, PROFILE, 2, switch=False),
        make_requests(asked_s, 12.0, [2] * n),
        cache=cache(latency_s=0.25, trouble=(outage(100.0, 50.0),)),
    )
    host.run()
    columns = columns_of(host)
    before = (asked_s > 50.0) & (asked_s < 100.0)
    during = (asked_s >= 100.0) & (asked_s < 150.0)
    after = asked_s > 180.0
    assert not (columns["variant"][before] == BIG).any()
    assert set(columns["variant"][during]) <= {BIG, -1}
    assert (columns["variant"][during] == BIG).any()
    assert (columns["outcome"][after] == Outcome.ON_TIME).all()
    missed = {reason for reason, d in zip(reasons(host), during, strict=True) if d}
    assert "cache miss: served in full" in missed


def test_an_answer_finds_no_worker() -> None:
    host = make_cluster(
        PROFILE,
        make_policy("nirvana", PROFILE, 1, thresholds={10: 0.65, 25: 0.8}),
        make_requests([0.0]),
        cache=cache(latency_s=0.5),
    )

    def fail() -> Any:
        yield host.env.timeout(0.25)
        host.lose(0)

    host.env.process(fail())
    host.run()
    assert columns_of(host)["outcome"].tolist() == [Outcome.LOST]


def test_a_cluster_without_a_cache_says_so() -> None:
    with pytest.raises(InputError, match="needs a cache; the profile has no similarity table"):
        run("nirvana", service=None)


# -- what may be configured -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "field"),
    [
        ({"latency_s": -0.1}, "latency_s"),
        ({"latency_cv": math.nan}, "latency_cv"),
        ({"timeout_s": 0.0}, "timeout_s"),
        ({"trouble": [{"at_s": 0.0, "for_s": 0.0}]}, "for_s"),
        ({"latency": 1.0}, "latency"),
    ],
)
def test_a_cache_that_cannot_be(config: dict[str, Any], field: str) -> None:
    with pytest.raises(ValidationError, match=field):
        CacheConfig.model_validate(config)
