"""The hindsight bound against every schedule there is, and against an explicit LP."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.optimize import linprog

from argus_sim.core.bound import Bound, _staircases, least_work_s, quality_bound
from tests.golden.bound_cases import CLOSE, Case, Floats, Ints, Times, best_schedule, random_case


@pytest.mark.parametrize("seeds", [range(i, i + 50) for i in range(0, 400, 50)], ids=lambda r: f"{r.start}-")
def test_no_schedule_beats_it(seeds: range) -> None:
    """And it is not far away: on average within a third, though in so small cases nothing is like a fluid."""
    reached = []
    for seed in seeds:
        case = random_case(seed)
        best, bound = best_schedule(case), case.bound().total_quality
        assert best <= bound * (1 + CLOSE), f"seed {seed}"
        reached.append(best / bound if bound else 1.0)
    assert np.mean(reached) > 0.67


def test_no_schedule_beats_it_with_one_more_request() -> None:
    for seed in range(1000, 1030):
        case = random_case(seed, requests=(5, 6))
        assert best_schedule(case) <= case.bound().total_quality * (1 + CLOSE), f"seed {seed}"


def test_a_schedule_reaches_it_where_whole_requests_use_up_the_time() -> None:
    """All there at once, one worker, batches of one, and a deadline at which the best whole requests just end."""
    for seed in range(60):
        rng = np.random.default_rng(seed)
        n = int(rng.integers(2, 5))
        times_s: Times = [{1: [float(t)] * n} for t in rng.integers(1, 8, 2) / 4]
        # One variant is worth it or not; then the steps of all requests by falling density.
        quality = rng.uniform(0.1, 1.0, (n, 2))
        price = float(rng.uniform(0.05, 0.6))
        net = quality - price * np.array([t[1][0] for t in times_s])
        taken = net.argmax(axis=1)
        some = net.max(axis=1) > 0.0
        if not some.any():
            continue
        end_s = sum(times_s[v][1][0] for v in taken[some])
        case = Case(np.zeros(n), np.full(n, end_s), quality, times_s, 1)
        expected = float(quality[some, taken[some]].sum())
        assert best_schedule(case) == pytest.approx(expected, rel=CLOSE)
        assert case.bound().total_quality == pytest.approx(expected, rel=CLOSE), f"seed {seed}"


def test_a_schedule_reaches_it_where_there_is_time_for_the_best_of_everything() -> None:
    for seed in range(40):
        case = random_case(seed, tidy=True)
        leisure = Case(case.arrival_s, case.deadline_s + 40.0, case.quality, case.times_s, case.workers)
        expected = float(case.quality.max(axis=1).sum())
        assert best_schedule(leisure) == pytest.approx(expected, rel=CLOSE)
        assert leisure.bound().total_quality == pytest.approx(expected, rel=CLOSE)


# -- the fluid ---------------------------------------------------------------------------------------------


def fluid(arrival_s: Floats, deadline_s: Floats, quality: Floats, work_s: Floats, workers: int) -> float:
    """The same relaxation, written down as what it is: shares by variant, and work by stretch of time."""
    times = np.unique(np.concatenate([arrival_s, deadline_s]))
    n, variants = quality.shape
    stretches = len(times) - 1
    shares, works = n * variants, n * stretches
    inside = (times[:-1] >= arrival_s[:, None]) & (times[1:] <= deadline_s[:, None])
    usable = np.isfinite(work_s)
    once = np.hstack([np.kron(np.eye(n), np.ones(variants)), np.zeros((n, works))])
    capacity = np.hstack([np.zeros((stretches, shares)), np.kron(np.ones(n), np.eye(stretches))])
    need = np.zeros((n, shares))
    for k in range(n):
        need[k, k * variants : (k + 1) * variants] = np.where(usable[k], work_s[k], 0.0)
    done = np.hstack([need, -np.kron(np.eye(n), np.ones(stretches))])
    result = linprog(
        c=np.concatenate([-quality.ravel(), np.zeros(works)]),
        A_ub=np.vstack([once, capacity, done]),
        b_ub=np.concatenate([np.ones(n), workers * np.diff(times), np.zeros(n)]),
        bounds=[(0, 1 if u else 0) for u in usable.ravel()] + [(0, None if i else 0) for i in inside.ravel()],
        method="highs",
    )
    assert result.fun is not None, result.message
    return -float(result.fun)


@pytest.mark.parametrize("deadlines", ["one SLO", "in order", "any"])
def test_it_is_the_optimum_of_the_fluid(deadlines: str) -> None:
    for seed in range(60):
        rng = np.random.default_rng(seed)
        n, variants, workers = int(rng.integers(1, 15)), int(rng.integers(1, 5)), int(rng.integers(1, 4))
        arrival_s = rng.uniform(0.0, rng.choice([0.0, 3.0, 10.0]), n)
        deadline_s = arrival_s + (2.5 if deadlines == "one SLO" else rng.uniform(0.2, 5.0, n))
        order = np.lexsort((deadline_s, arrival_s))
        arrival_s, deadline_s = arrival_s[order], deadline_s[order]
        latest_s = np.maximum.accumulate(deadline_s)
        if deadlines == "in order":
            deadline_s = latest_s
        quality = rng.uniform(0.0, 1.0, (n, variants))
        work_s = rng.uniform(0.2, 4.0, (variants, n))
        work_s[rng.random((variants, n)) < 0.1] = np.inf
        own, shuffled = np.arange(n), rng.permutation(n)
        bound = quality_bound(
            arrival_s[shuffled],
            deadline_s[shuffled],
            own[shuffled],
            quality,
            work_s,
            workers,
            draw=own[shuffled],
        )
        optimum = fluid(arrival_s, latest_s, quality, work_s.T, workers)
        assert bound.total_quality == pytest.approx(optimum, rel=1e-7, abs=1e-9), f"seed {seed}"
        assert bound.rounding == pytest.approx(0.0, abs=1e-9)
        assert bound.quality.sum() == pytest.approx(optimum, rel=1e-7, abs=1e-9)
        if deadlines == "any":
            assert fluid(arrival_s, deadline_s, quality, work_s.T, workers) <= optimum * (1 + 1e-7)


def crowd(requests: int = 4000, seed: int = 0) -> tuple[Floats, Ints, Floats]:
    """Arrivals that come in waves, prompts, and the qualities of five variants."""
    rng = np.random.default_rng(seed)
    gap_s = rng.exponential(1.0, requests) / (1.0 + 3.0 * (np.arange(requests) // 400 % 2))
    prompts = 300
    quality = np.sort(rng.uniform(0.3, 1.0, (prompts, 5)), axis=1)[:, ::-1]
    return np.cumsum(gap_s), rng.integers(0, prompts, requests), quality


CROWD_WORK_S = np.array([4.2, 3.4, 2.5, 1.6, 0.9])


def test_more_is_never_less() -> None:
    arrival_s, prompt, quality = crowd(1500)

    def bound(workers: int = 3, slo_s: float = 8.0, scale: float = 1.0, work: float = 1.0) -> float:
        return quality_bound(
            arrival_s, arrival_s + slo_s, prompt, quality * scale, work * CROWD_WORK_S, workers
        ).total_quality

    for less, more in itertools.pairwise([bound(workers=n) for n in (1, 2, 3, 5, 8, 20)]):
        assert less < more or more == pytest.approx(quality.max(axis=1)[prompt].sum())
    for less, more in itertools.pairwise([bound(slo_s=s) for s in (1.0, 4.0, 8.0, 30.0, 300.0)]):
        assert less < more
    assert bound(work=0.9) > bound()
    assert bound(scale=0.5) == pytest.approx(0.5 * bound(), rel=CLOSE)
    better = quality.copy()
    better[:, 2] = np.minimum(1.0, better[:, 2] * 1.1)
    assert quality_bound(arrival_s, arrival_s + 8.0, prompt, better, CROWD_WORK_S, 3).total_quality > bound()


@pytest.mark.parametrize("resolution", [1, 2, 10, 100])
def test_rounding_stays_above_and_says_how_far(resolution: int) -> None:
    arrival_s, prompt, quality = crowd(2000)

    def bound(resolution: int) -> Bound:
        return quality_bound(arrival_s, arrival_s + 8.0, prompt, quality, CROWD_WORK_S, 3, resolution=resolution)

    exact, rounded = bound(10_000), bound(resolution)
    assert exact.rounding == pytest.approx(0.0, abs=1e-9)
    assert exact.total_quality < rounded.total_quality <= exact.total_quality + rounded.rounding * (1 + CLOSE)
    assert rounded.rounding < 0.8 / resolution * exact.total_quality
    assert rounded.quality.sum() == pytest.approx(rounded.total_quality, rel=CLOSE)


def test_by_hand() -> None:
    """Two workers, 10 s, 30 requests at once; 1 s buys 0.6, another second 0.3 more: 20 s are 20 x 0.6.

    With 10 requests it is 10 x 0.6 for the first 10 s and 10 x 0.3 for the others.
    """
    quality, work_s = np.array([[0.9, 0.6, 0.1]]), np.array([2.0, 1.0, 1.9])
    for requests, total in ((30, 12.0), (20, 12.0), (16, 10.8), (10, 9.0), (1, 0.9)):
        zeros = np.zeros(requests)
        bound = quality_bound(zeros, zeros + 10.0, zeros.astype(int), quality, work_s, 2)
        assert bound.total_quality == pytest.approx(total)
        assert bound.quality_yield == pytest.approx(total / requests)


def test_a_long_overload_is_worth_what_the_workers_can_do() -> None:
    """Arrivals at twice the capacity for long: the backlog at the end is all that adds to workers x duration."""
    arrival_s = np.arange(0.0, 1000.0, 0.1)
    prompt = np.zeros(len(arrival_s), dtype=int)
    bound = quality_bound(arrival_s, arrival_s + 5.0, prompt, np.array([[0.8]]), np.array([0.8]), 4)
    assert bound.total_quality == pytest.approx(0.8 * (4 * (1000.0 + 5.0 - 0.1)) / 0.8)


def test_nothing_is_worth_nothing() -> None:
    none, no_prompt = np.zeros(0), np.zeros(0, dtype=int)
    empty = quality_bound(none, none, no_prompt, np.ones((1, 2)), np.ones(2), 4)
    assert empty.total_quality == 0.0
    assert np.isnan(empty.quality_yield)
    one, prompt = np.zeros(1), np.zeros(1, dtype=int)
    for quality, work_s, slo_s in ((0.0, 1.0, 9.0), (1.0, np.inf, 9.0), (1.0, 1.0, 0.0), (1.0, 1.0, -1.0)):
        bound = quality_bound(one, one + slo_s, prompt, np.array([[quality]]), np.array([work_s]), 4)
        assert bound.total_quality == bound.quality_yield == 0.0
        assert bound.quality.tolist() == [0.0]


@pytest.mark.parametrize(("quality", "work_s"), [(-0.1, 1.0), (np.nan, 1.0), (0.5, 0.0), (0.5, np.nan)])
def test_what_it_cannot_work_with(quality: float, work_s: float) -> None:
    one, prompt = np.zeros(1), np.zeros(1, dtype=int)
    with pytest.raises(ValueError, match="qualities must be 0 or more, and work more than 0"):
        quality_bound(one, one + 9.0, prompt, np.array([[quality]]), np.array([work_s]), 4)


def test_it_needs_the_draws_if_work_depends_on_them() -> None:
    one, prompt = np.zeros(1), np.zeros(1, dtype=int)
    with pytest.raises(ValueError, match="needs the draws"):
        quality_bound(one, one + 9.0, prompt, np.array([[0.5]]), np.array([[1.0, 2.0]]), 4)


def test_stairs_are_the_running_sums_of_their_steps() -> None:
    """To the bit; several steps may be of one price, and a kind may have fewer steps than others."""
    rng = np.random.default_rng(0)
    levels, kinds, most = 9, 200, 5
    level = np.sort(rng.integers(0, levels, (kinds, most)), axis=1)
    there = np.arange(most) < rng.integers(0, most + 1, (kinds, 1))
    level, steps_s = np.where(there, level, 0), np.where(there, rng.random((kinds, most)), 0.0)
    height_s, width = _staircases(steps_s, level, levels)
    for k in range(kinds):
        asked_s = np.bincount(level[k], steps_s[k], minlength=levels).cumsum()
        assert np.repeat(height_s[k], width[k]).tolist() == asked_s.tolist()


# -- the least work ----------------------------------------------------------------------------------------


def test_without_luck_the_least_work_is_the_best_share() -> None:
    times_s: Times = [{1: [4.2], 2: [5.1], 4: [12.0]}, {1: [1.0]}, {1: [7.0], 8: [8.0]}]
    assert least_work_s(times_s, 100.0).tolist() == [[2.55], [1.0], [1.0]]
    # Batches that last longer than there is time serve nobody, and single images of 7 s neither.
    assert least_work_s(times_s, 5.0).tolist() == [[4.2], [1.0], [np.inf]]
    assert least_work_s(times_s, 5.1).tolist() == [[2.55], [1.0], [np.inf]]


def test_a_variant_without_batches_costs_what_it_takes() -> None:
    """Each request at its own luck, when no other's can help it."""
    assert least_work_s([{1: [1.0, 3.0, 2.0]}], 100.0)[0] == pytest.approx([1.0, 3.0, 2.0])


@pytest.mark.parametrize("spread", [0.002, 0.1, 1.0])
def test_no_batch_is_charged_more_than_its_time(spread: float) -> None:
    """Whoever is in it and whoever is first."""
    rng = np.random.default_rng(0)
    luck = np.exp(spread * rng.standard_normal(500))
    times_s: Times = [{b: (4.0 * b**0.7 * luck).tolist() for b in (1, 2, 4, 8)}]
    for limit_s in (100.0, 12.0, 5.0):
        charge = least_work_s(times_s, limit_s)[0]
        assert charge.min() > 0.0
        for size, time_s in times_s[0].items():
            most = charge + (size - 1) * charge.max()
            assert (most <= np.array(time_s) * (1 + CLOSE))[np.array(time_s) <= limit_s].all()


def test_the_luckiest_do_not_make_everything_cheap() -> None:
    """At best an eighth of the requests are first of a batch of eight, and each the luckiest of them."""
    rng = np.random.default_rng(0)
    luck = np.sort(np.exp(0.03 * rng.standard_normal(1000)))
    work_s = least_work_s([{8: (4.0 * luck).tolist()}], 100.0)[0]
    assert 0.98 * luck[:125].mean() * 0.5 < work_s.mean() <= luck[:125].mean() * 0.5
    assert luck[0] < 0.95 * luck[:125].mean()
