"""The hindsight bound against every schedule there is, against an explicit LP, and against the policies."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import pytest
from scipy.optimize import linprog

from argus_sim.arrivals import Poisson, generate
from argus_sim.core.bound import Bound, least_work_s, pooled_work_s, quality_bound
from argus_sim.core.catalog import Catalog
from argus_sim.domain import Outcome
from argus_sim.experiment import Experiment, PolicyConfig
from argus_sim.profile import Profile
from argus_sim.provenance import Provenance
from argus_sim.simulate import Scene, hindsight, simulate
from argus_sim.trace import Trace
from argus_sim.workload import stream
from tests.make_profile import make_profile

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


# -- schedules and policies --------------------------------------------------------------------------------


def test_a_schedule_with_hindsight_comes_close() -> None:
    """At a steady overload and a well chosen price, simple list scheduling in pairs gets 96 % of the bound."""
    rng = np.random.default_rng(0)
    n, workers, slo_s = 3000, 8, 12.6
    arrival_s = np.cumsum(rng.exponential(1.0 / 5.0, n))
    quality = np.sort(rng.uniform(0.5, 1.0, (n, 3)), axis=1)[:, ::-1]
    times_s: Times = [{1: [t] * n, 2: [1.21 * t] * n} for t in (4.2, 3.0, 2.1)]
    case = Case(arrival_s, arrival_s + slo_s, quality, times_s, workers)
    work_s = least_work_s(times_s, slo_s)[:, 0]
    reached = max(in_pairs(case, quality - price * work_s) for price in np.linspace(0.2, 0.6, 41))
    bound = case.bound().total_quality
    assert 0.96 * bound < reached <= bound


def in_pairs(case: Case, net: Floats) -> float:
    """Serve each request that is worth it at its best variant, in pairs, the longest waiting first."""
    chosen = np.where(net.max(axis=1) > 0.0, net.argmax(axis=1), -1).tolist()
    free_s, total = [0.0] * case.workers, 0.0
    waiting: list[deque[int]] = [deque() for _ in case.times_s]
    for row, variant in enumerate(chosen):
        if variant < 0:
            continue
        waiting[variant].append(row)
        if len(waiting[variant]) == 2:
            rows = [waiting[variant].popleft() for _ in range(2)]
            worker = min(range(case.workers), key=free_s.__getitem__)
            start_s = max(free_s[worker], float(case.arrival_s[row]))
            end_s = start_s + case.times_s[variant][2][rows[0]]
            on_time = [k for k in rows if end_s <= case.deadline_s[k]]
            if on_time:
                free_s[worker] = end_s
                total += float(case.quality[on_time, variant].sum())
    return total


@lru_cache(maxsize=1)
def profiles() -> tuple[Profile, ...]:
    cells = {"big": 4.0, "big/ac-10": 3.2, "big/ac-25": 2.0, "small": 1.0}
    latency_s = {name: {1: s, 2: s * 1.25, 4: s * 2.2} for name, s in cells.items()}
    return tuple(
        make_profile(latency_s, spread=0.1, std_s=std_s, distribution=distribution, loads_s={"small": 3.0})
        for distribution, std_s in (("deterministic", 0.0), ("lognormal", 0.2))
    )


POLICIES: Sequence[PolicyConfig] = [
    PolicyConfig.model_validate(policy)
    for policy in (
        {"name": "static", "params": {"placement": {"big/ac-25": 2, "small": 1}}},
        {"name": "clipper-ha"},
        {"name": "clipper-ht"},
        {"name": "nirvana", "params": {"thresholds": {10: 0.7, 25: 0.9}}},
        {"name": "pac"},
        {"name": "argus"},
        {"name": "argus", "predictor": "perfect", "label": "perfect"},
        {"name": "proteus"},
    )
]


def scene(profile: Profile, slo_s: float, **cluster: object) -> Scene:
    experiment = Experiment.model_validate(
        {
            "name": "bound",
            "profile": "given",
            "traces": ["given"],
            "policies": ["argus"],
            "cluster": {"workers": 3, **cluster},
        }
    )
    return Scene(experiment, profile, Catalog.of(profile), slo_s)


@pytest.mark.parametrize("distribution", [0, 1], ids=["deterministic", "lognormal"])
@pytest.mark.parametrize("seed", range(4))
def test_no_policy_beats_it(seed: int, distribution: int) -> None:
    rng = np.random.default_rng(seed)
    profile, slo_s = profiles()[distribution], float(rng.uniform(4.5, 14.0))
    faults = [
        {"kind": "crash", "at_s": 30.0, "for_s": 60.0, "workers": [0]},
        {"kind": "slow", "at_s": 100.0, "for_s": 50.0, "workers": [1], "factor": 0.8},
        {"kind": "slow", "at_s": 120.0, "for_s": 50.0, "workers": [2], "factor": 3.0},
    ]
    troubled = seed % 2 == 1
    here = scene(profile, slo_s, **({"faults": faults, "dispatch_s": 0.2} if troubled else {}))
    arrivals = Poisson(duration_s=300.0, rate_per_min=float(rng.uniform(30.0, 200.0)))
    trace = generate(arrivals, stream(seed, "arrivals"))
    bound = hindsight(here, trace, seed)
    assert bound.rounding < 1e-3 * bound.total_quality
    for policy in POLICIES:
        record = simulate(here, policy, trace, seed)
        reached = float(record.relative_quality[record.outcome == Outcome.ON_TIME].sum())
        assert reached <= bound.total_quality * (1 + CLOSE), policy.label


def test_a_policy_reaches_it_at_low_load() -> None:
    """One prompt at a time, each at its best variant: nothing to lose."""
    profile = make_profile({"big": {1: 1.0}, "big/ac-25": {1: 0.5}})
    steady = (Provenance(kind="synthetic", source="one every two seconds"),)
    trace = Trace("slow", np.arange(0.0, 100.0, 2.0), 100.0, steady)
    here = scene(profile, 3.0)
    record = simulate(here, PolicyConfig(name="clipper-ha", label="x"), trace, 1)
    assert record.relative_quality.sum() / len(trace) == pytest.approx(hindsight(here, trace, 1).quality_yield)
