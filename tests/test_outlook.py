"""What argus expects of an allocation: who is in time, what the load yields, where climbing ends."""

from __future__ import annotations

import numpy as np
import pytest

from argus_sim.core.batching import DropRule
from argus_sim.core.solvers import Allocation, align
from argus_sim.domain import Outcome
from argus_sim.policies.outlook import (
    Outlook,
    alignment_gain,
    all_at,
    carried,
    climb,
    in_time,
    placed,
    spread,
)
from tests.make_cluster import columns_of, make_cluster
from tests.make_engine import make_policy, make_requests
from tests.make_profile import make_profile

LONG = (1e6, 1e6, 1e6)


@pytest.mark.parametrize("utilisation", [0.85, 0.95, 1.0, 1.1, 1.4])
@pytest.mark.parametrize("slack_s", [2.0, 8.0])
@pytest.mark.parametrize("clump", [1, 4])
def test_the_share_in_time_is_that_of_a_simulated_queue(utilisation: float, slack_s: float, clump: int) -> None:
    """Poisson arrivals, and clumps of 4 at a time: the variance of their number is four times the mean."""
    one = make_profile({"only": {1: 1.0}}, prompts=2)
    rng = np.random.default_rng(3)
    demand = 8 * utilisation
    arrival_s = np.cumsum(rng.exponential(clump / demand, 60_000 // clump)).repeat(clump)
    requests = make_requests(arrival_s, slack_s + 1.0)
    cluster = make_cluster(
        one, make_policy("clipper-ha", one, 8, slo_s=slack_s + 1.0), requests, drop=DropRule("late")
    )
    cluster.run()
    on_time = float((columns_of(cluster)["outcome"] == Outcome.ON_TIME).mean())
    assert in_time(8.0, demand, slack_s, clump) == pytest.approx(on_time, abs=0.012 if clump == 1 else 0.03)


def test_the_share_in_time_at_its_limits() -> None:
    assert in_time(10.0, 1.0, 5.0) == pytest.approx(1.0)
    assert in_time(1.0, 10.0, 5.0) == pytest.approx(0.1, abs=0.001)
    assert in_time(10.0, 1.0, 0.0) == 0.0
    at = in_time(4.0, 4.0, 5.0)
    assert in_time(4.0, 4.0 + 1e-7, 5.0) == pytest.approx(at, abs=1e-6)
    assert in_time(4.0, 4.0 - 1e-7, 5.0) == pytest.approx(at, abs=1e-6)


def test_without_queueing_the_best_levels_carry_first() -> None:
    quality = (0.9, 1.0, 0.8)
    load, worth = carried(quality, (1.0, 2.0, 3.0), LONG, 2.5)
    assert load == pytest.approx((0.5, 2.0, 0.0), abs=0.026)
    assert worth == pytest.approx(0.9 * load[0] + load[1], rel=1e-4)
    assert carried(quality, (0.0, 2.0, 3.0), LONG, 2.5)[0][0] == 0.0
    assert sum(carried(quality, (1.0, 2.0, 3.0), LONG, 9.0)[0]) == pytest.approx(9.0)


def test_the_load_yields_most_in_time() -> None:
    """Against every split of the demand over two levels, in steps of the same size."""
    rng = np.random.default_rng(6)
    for _ in range(200):
        quality = tuple(rng.uniform(0.5, 1.0, 2).tolist())
        capacity, slack_s = rng.uniform(0.2, 4.0, 2).tolist(), tuple(rng.uniform(0.5, 15.0, 2).tolist())
        demand = float(rng.uniform(0.2, 1.2) * sum(capacity))
        spread_of = float(rng.uniform(1.0, 5.0))

        def worth(load, q=quality, c=capacity, s=slack_s, d=spread_of):  # type: ignore[no-untyped-def]
            return sum(q[j] * y * float(in_time(c[j], y, s[j], d)) for j, y in enumerate(load) if y)

        load, found = carried(quality, tuple(capacity), slack_s, demand, spread_of)
        assert found == pytest.approx(worth(load), rel=1e-9)
        splits = [(demand * k / 100, demand * (100 - k) / 100) for k in range(101)]
        assert 0.999 * max(worth(y) for y in splits) <= found


def test_a_level_that_is_hardly_better_is_not_filled() -> None:
    """2 workers at 6 s and 6 at 0.5 s, 18 s: of 1.5 requests/s hardly any go to the slow ones' queue."""
    slow, _ = carried((0.862, 0.861), (0.33, 12.0), (12.0, 17.5), 1.5)[0]
    assert slow < 0.2
    slow, _ = carried((0.962, 0.861), (0.33, 12.0), (12.0, 17.5), 1.5)[0]
    assert 0.2 < slow < 0.33


def random_outlook(rng: np.random.Generator, levels: int, workers: int) -> Outlook:
    rate = np.sort(rng.uniform(0.1, 1.0, levels))
    too_deep = np.maximum(0, np.arange(levels) - np.arange(levels)[:, None])
    loss = 0.1 * too_deep + rng.uniform(0.0, 0.02, (levels, levels))
    return Outlook(
        quality=tuple(np.sort(rng.uniform(0.6, 1.0, levels))[::-1].tolist()),
        rate_per_s=tuple(rate.tolist()),
        slack_s=tuple(rng.uniform(2.0, 12.0, levels).tolist()),
        demand_per_s=float(workers * rng.uniform(rate[0] / 2, rate[-1])),
        dispersion=float(rng.uniform(1.0, 4.0)),
        prompts=tuple(rng.dirichlet(np.ones(levels)).tolist()),
        loss=tuple(map(tuple, loss.tolist())),
    )


def test_what_aligning_gains_is_never_more_than_can_be() -> None:
    rng = np.random.default_rng(9)
    gains = []
    for _ in range(200):
        o = random_outlook(rng, 4, 8)
        share = tuple(rng.dirichlet(np.ones(4)).tolist())
        by_lot = float(np.array(o.prompts) @ np.array(o.loss) @ np.array(share))
        best = by_lot - float(
            (align(o.prompts, share, o.loss) * np.array(o.loss) * np.array(o.prompts)[:, None]).sum()
        )
        gain = alignment_gain(o.prompts, share, o.loss)
        assert -1e-12 <= gain <= best + 1e-7
        gains.append((gain, best))
    found, possible = np.array(gains).sum(axis=0)
    assert found > 0.9 * possible
    nested = ((0.0, 0.2, 0.4), (0.0, 0.0, 0.2), (0.0, 0.0, 0.0))
    third = (1 / 3, 1 / 3, 1 / 3)
    assert alignment_gain(third, (1.0, 1.0, 1.0), nested) == pytest.approx(0.8 / 9)  # all at their own level
    assert alignment_gain(third, (0.0, 5.0, 0.0), nested) == pytest.approx(0.0)


def test_climbing_finds_nearly_the_best_workers() -> None:
    """Against all ways to put 8 workers on 3 levels."""
    rng = np.random.default_rng(10)
    every = [(a, b, 8 - a - b) for a in range(9) for b in range(9 - a)]
    short = []
    for _ in range(200):
        o = random_outlook(rng, 3, 8)
        found = climb([(8, 0, 0), (0, 8, 0), (0, 0, 8)], o.yield_per_s, 3)
        assert sum(found) == 8
        short.append(1.0 - o.yield_per_s(found) / max(map(o.yield_per_s, every)))
    assert np.mean(short) < 0.001
    assert max(short) < 0.05
    assert climb([(2, 0), (0, 2)], lambda counts: 1.0, 2) == (2, 0)  # the first of equals
    assert climb([(1000, 0)], lambda counts: -abs(counts[0] - 137), 2) == (137, 863)


def test_of_several_kinds_nearly_the_best_workers_are_found() -> None:
    """Against all ways to put 5 workers of one kind and 3 slower ones on 3 levels."""
    rng = np.random.default_rng(11)
    ways = {n: [(a, b, n - a - b) for a in range(n + 1) for b in range(n + 1 - a)] for n in (5, 3)}
    short = []
    for _ in range(50):
        o = random_outlook(rng, 3, 8)
        slow = tuple(0.5 * rate if rng.random() < 0.8 else 0.0 for rate in o.rate_per_s[:2])
        both = o._replace(
            rate_per_s=(*o.rate_per_s, *slow, 0.5 * o.rate_per_s[2]),
            slack_s=(*o.slack_s, *(0.7 * s for s in o.slack_s)),
        )
        starts = [all_at(level, (5, 3), both) for level in range(3)]
        found = climb(starts, both.yield_per_s, 3)
        assert (sum(found[:3]), sum(found[3:])) == (5, 3)
        assert all(rate for n, rate in zip(found, both.rate_per_s, strict=True) if n)
        assert sum(both.load_per_s(found)) == pytest.approx(o.demand_per_s)
        best = max(both.yield_per_s((*a, *b)) for a in ways[5] for b in ways[3])
        short.append(1.0 - both.yield_per_s(found) / best)
    assert np.mean(short) < 0.001
    assert max(short) < 0.05


def test_kinds_that_are_alike_are_one() -> None:
    rng = np.random.default_rng(12)
    for _ in range(20):
        o = random_outlook(rng, 3, 8)
        o = o._replace(slack_s=tuple(round(s, 1) for s in o.slack_s))
        twice = o._replace(rate_per_s=2 * o.rate_per_s, slack_s=2 * o.slack_s)
        assert twice.yield_per_s((1, 1, 0, 2, 0, 4)) == pytest.approx(o.yield_per_s((3, 1, 4)))
        assert twice.load_per_s((1, 1, 0, 2, 0, 4)) == pytest.approx(o.load_per_s((3, 1, 4)))


def test_workers_by_kind_are_an_allocation() -> None:
    allocation = placed((1, 0, 2, 3), (0.5, 0.7))
    assert allocation == Allocation((3, 3), (0.5, 0.7), ((1, 0), (2, 3)))
    outlook = outlook_of((1.0, 0.25), (0.9, 0.5), demand_per_s=1.0)
    one_cannot = outlook._replace(rate_per_s=(0.25, 0.5, 0.0, 0.3), slack_s=(9.0, 9.0, 0.0, 9.0))
    assert all_at(0, (2, 3), one_cannot) == (2, 0, 0, 3)


def outlook_of(*levels: tuple[float, float], demand_per_s: float) -> Outlook:
    """Levels by quality and rate, without queueing and without affinity."""
    quality, rate = zip(*levels, strict=True)
    n = len(levels)
    return Outlook(quality, rate, LONG[:n], demand_per_s, 1.0, (1 / n,) * n, ((0.0,) * n,) * n)


def test_load_goes_where_workers_are_ready() -> None:
    outlook = outlook_of((1.0, 0.25), (0.9, 0.3), (0.8, 0.5), demand_per_s=1.2)
    allocation = spread((4, 0, 4), (4, 0, 1), outlook)
    assert allocation.load_per_s == pytest.approx((1.0, 0.0, 0.2), abs=0.013)
    outlook = outlook_of((1.0, 0.25), (0.9, 0.5), demand_per_s=1.0)
    assert spread((0, 4), (0, 0), outlook).share == pytest.approx((0.0, 1.0))
