"""The solvers against the artefact's own numbers, and against trying everything."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linprog

from argus_sim.core import counting, solvers
from argus_sim.core.solvers import Allocation, align, align_one_pass, allocate, allocate_kinds

#: github.com/skejriwal44/Argus_T2I, solver_milp_oda.py: relative quality in percent, queries/min of one GPU.
QUALITY = (100.0, 97.046, 95.808, 94.378, 93.235, 91.52)
PER_MINUTE = tuple(1.65 * q for q in (14.29, 15.87, 17.86, 20.41, 23.81, 28.57))


def mean_quality(allocation: Allocation, quality: tuple[float, ...]) -> float:
    return float(np.dot(allocation.load_per_s, quality) / sum(allocation.load_per_s))


def enumerated(quality: tuple[float, ...], throughput: tuple[float, ...], workers: int, demand: float) -> float:
    """The best total quality by trying every way to give workers levels, and filling the best levels first."""
    levels, best = range(len(quality)), -1.0
    for chosen in itertools.combinations_with_replacement(levels, workers):
        left, total = demand, 0.0
        for level in sorted(chosen, key=lambda i: -quality[i]):
            load = min(left, throughput[level])
            total += load * quality[level]
            left -= load
        if left <= 1e-9 * demand:
            best = max(best, total)
    return best


@pytest.mark.parametrize(
    ("load", "quality", "workers"),
    [
        (188.0, 100.0, (8, 0, 0, 0, 0, 0)),
        (200.0, 98.82, (7, 0, 0, 0, 1, 0)),
        (225.0, 97.15, (6, 0, 0, 0, 1, 1)),
        (250.0, 95.79, (5, 0, 0, 0, 1, 2)),
        (275.0, 94.68, (3, 0, 0, 0, 4, 1)),
        (300.0, 93.63, (1, 0, 0, 1, 5, 1)),
        (325.0, 92.76, (0, 0, 0, 0, 6, 2)),
        (350.0, 92.10, (0, 0, 0, 0, 3, 5)),
        (375.0, 91.52, (0, 0, 0, 0, 0, 8)),
    ],
)
def test_allocation_of_the_artefact(load: float, quality: float, workers: tuple[int, ...]) -> None:
    """The best mean quality at each load, for 8 GPUs and the artefact's tables."""
    found = allocate(QUALITY, PER_MINUTE, 8, load)
    assert found.workers == workers
    assert mean_quality(found, QUALITY) == pytest.approx(quality, abs=0.01)
    assert sum(found.load_per_s) == pytest.approx(load)


@pytest.mark.parametrize("workers", [1, 8, 1000])
def test_spare_workers_get_the_best_level(workers: int) -> None:
    found = allocate(QUALITY, PER_MINUTE, workers, 0.01 * workers * PER_MINUTE[0])
    assert found.workers == (workers, 0, 0, 0, 0, 0)


def test_allocation_beyond_capacity_serves_the_most() -> None:
    found = allocate(QUALITY, PER_MINUTE, 8, 1000.0)
    assert found.workers == (0, 0, 0, 0, 0, 8)
    assert sum(found.load_per_s) == pytest.approx(8 * PER_MINUTE[-1])


@given(
    st.integers(2, 4).flatmap(
        lambda n: st.tuples(
            st.lists(st.floats(0.5, 1.0), min_size=n, max_size=n),
            st.lists(st.floats(0.1, 2.0), min_size=n, max_size=n),
        )
    ),
    st.integers(1, 5),
    st.floats(0.05, 0.99),
)
def test_allocation_is_optimal(levels: tuple[list[float], list[float]], workers: int, used: float) -> None:
    quality, throughput = (tuple(round(x, 3) for x in column) for column in levels)
    demand = used * workers * max(throughput)
    found = allocate(quality, throughput, workers, demand)
    assert sum(found.workers) == workers
    assert sum(found.load_per_s) == pytest.approx(demand)
    for load, rate, count in zip(found.load_per_s, throughput, found.workers, strict=True):
        assert load <= rate * count * (1 + 1e-6) + 1e-9
    best = enumerated(quality, throughput, workers, demand)
    assert np.dot(found.load_per_s, quality) == pytest.approx(best, rel=1e-5)


@pytest.mark.parametrize("workers", [3, 40, 1000])
def test_counting_is_as_good_as_highs(workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there are too many ways to try them all: 12 levels."""
    rng = np.random.default_rng(workers)
    cases = [(rng.uniform(0.5, 1.0, 12), rng.uniform(0.1, 2.0, 12), rng.uniform(0.2, 0.98)) for _ in range(15)]

    def found() -> list[Allocation]:
        solve = allocate_kinds.__wrapped__
        return [solve(tuple(q), (tuple(r),), (workers,), used * workers * max(r)) for q, r, used in cases]

    with monkeypatch.context() as patch:
        patch.delattr(solvers, "_solved")  # HiGHS is not asked
        counted = found()
    with monkeypatch.context() as patch:
        patch.setattr(counting, "MOST_TRIED", 0)
        solved = found()
    for (quality, rate, _), one, other in zip(cases, counted, solved, strict=True):
        assert np.dot(one.load_per_s, quality) == pytest.approx(np.dot(other.load_per_s, quality), rel=1e-8)
        assert (np.array(one.load_per_s) <= rate * one.workers * (1 + 1e-9)).all()
        assert sum(one.workers) == workers


def test_levels_on_one_line_are_left_to_highs() -> None:
    """Quality falls as the time per image does: any mixture of one throughput is as good as any other."""
    seconds = np.linspace(10.0, 5.0, 7)
    quality, rates = tuple((0.5 + 0.05 * seconds).tolist()), tuple((1 / seconds).tolist())
    assert counting.best_counts(quality, rates, 1000, 123.4567) is None
    found = allocate(quality, rates, 1000, 123.4567)
    assert np.dot(found.load_per_s, quality) == pytest.approx(0.5 * 123.4567 + 0.05 * 1000, rel=1e-6)


def enumerated_kinds(
    quality: tuple[float, ...], rates: list[tuple[float, ...]], workers: tuple[int, ...], demand: float
) -> float:
    """The best total quality by trying every way to give the workers of each kind levels."""
    levels, best = range(len(quality)), -1.0
    ways = [itertools.combinations_with_replacement(levels, n) for n in workers]
    for chosen in itertools.product(*ways):
        room = [0.0] * len(quality)
        for kind, of_kind in enumerate(chosen):
            for level in of_kind:
                room[level] += rates[kind][level]
        left, total = demand, 0.0
        for level in sorted(levels, key=lambda i: -quality[i]):
            load = min(left, room[level])
            total += load * quality[level]
            left -= load
        if left <= 1e-9 * demand:
            best = max(best, total)
    return best


@given(st.integers(0, 2**32 - 1))
def test_allocation_of_several_kinds_is_optimal(seed: int) -> None:
    rng = np.random.default_rng(seed)
    levels, kinds = int(rng.integers(2, 4)), int(rng.integers(2, 4))
    quality = tuple(rng.uniform(0.5, 1.0, levels).round(3).tolist())
    rates = rng.uniform(0.1, 2.0, (kinds, levels)).round(3)
    rates[:, 0] *= rng.random(kinds) < 0.7  # some kinds cannot serve the first level
    table = [tuple(row) for row in rates.tolist()]
    workers = tuple(rng.integers(0, 4, kinds).tolist())
    if not sum(workers):
        return
    capacity = sum(n * max(row) for n, row in zip(workers, table, strict=True))
    demand = float(rng.uniform(0.05, 0.99)) * capacity
    found = allocate_kinds(quality, tuple(table), workers, demand)
    assert tuple(map(sum, found.by_kind)) == workers
    assert found.workers == tuple(np.sum(found.by_kind, axis=0).tolist())
    assert sum(found.load_per_s) == pytest.approx(demand)
    room = (np.array(found.by_kind) * rates).sum(axis=0)
    assert (np.array(found.load_per_s) <= room * (1 + 1e-6) + 1e-9).all()
    assert all(not n or table[k][j] for k, row in enumerate(found.by_kind) for j, n in enumerate(row))
    best = enumerated_kinds(quality, table, workers, demand)
    assert np.dot(found.load_per_s, quality) == pytest.approx(best, rel=1e-5)


def test_beyond_capacity_each_kind_is_at_its_own_fastest_level() -> None:
    found = allocate_kinds((1.0, 0.8), ((1.0, 2.0), (3.0, 1.0)), (2, 3), 99.0)
    assert found.by_kind == ((0, 2), (3, 0))
    assert found.load_per_s == (9.0, 4.0)
    assert found.workers == (3, 2)


def test_kinds_that_are_alike_are_as_good_as_one() -> None:
    for demand in (100.0, 225.0, 300.0):
        one = allocate(QUALITY, PER_MINUTE, 8, demand)
        two = allocate_kinds(QUALITY, (PER_MINUTE, PER_MINUTE), (3, 5), demand)
        assert mean_quality(two, QUALITY) == pytest.approx(mean_quality(one, QUALITY), abs=1e-6)


def shares(n: int) -> st.SearchStrategy[np.ndarray]:
    return st.lists(st.integers(1, 50), min_size=n, max_size=n).map(lambda x: np.array(x) / sum(x))


@given(shares(5), shares(5), st.integers(0, 2**32 - 1))
def test_alignment_meets_both_margins_at_the_least_loss(have: np.ndarray, want: np.ndarray, seed: int) -> None:
    loss = np.random.default_rng(seed).random((5, 5)).round(3)
    found = align(tuple(have), tuple(want), tuple(map(tuple, loss)))
    assert np.allclose(found.sum(axis=1), 1.0)
    assert np.allclose(have @ found, want, atol=1e-7)
    # Another algorithm (interior point) on the same problem, written out variable by variable.
    equal, right = [], []
    for i in range(5):
        equal.append([float(k // 5 == i) for k in range(25)])
        right.append(have[i])
    for j in range(5):
        equal.append([float(k % 5 == j) for k in range(25)])
        right.append(want[j])
    other = linprog(loss.ravel(), A_eq=equal, b_eq=right, method="highs-ipm")
    assert (have[:, None] * found * loss).sum() == pytest.approx(other.fun, abs=1e-7)


def test_one_pass_is_right_when_load_pushes_prompts_to_more_approximate_levels() -> None:
    have = np.array([0.30, 0.25, 0.20, 0.10, 0.10, 0.05])
    want = np.array([0.00, 0.00, 0.00, 0.00, 0.40, 0.60])
    assert np.allclose(have @ align_one_pass(tuple(have), tuple(want)), want, atol=0.01)


def test_one_pass_is_wrong_when_surplus_cascades_and_the_exact_alignment_is_not() -> None:
    have = np.array([0.30, 0.25, 0.20, 0.10, 0.10, 0.05])
    want = np.array([1.00, 0.00, 0.00, 0.00, 0.00, 0.00])
    got = have @ align_one_pass(tuple(have), tuple(want))
    assert np.allclose(align_one_pass(tuple(have), tuple(want)).sum(axis=1), 1.0)
    assert abs(got - want).max() > 0.2
    loss = np.abs(np.subtract.outer(np.arange(6.0), np.arange(6.0)))
    assert np.allclose(have @ align(tuple(have), tuple(want), tuple(map(tuple, loss))), want)


@given(st.integers(0, 2**32 - 1))
def test_two_levels_are_aligned_as_by_highs(seed: int) -> None:
    rng = np.random.default_rng(seed)
    levels = int(rng.integers(2, 7))
    have, want = tuple(rng.dirichlet(np.ones(levels)).tolist()), np.zeros(levels)
    used = rng.choice(levels, int(rng.integers(1, 3)), replace=False)
    want[used] = rng.dirichlet(np.ones(len(used)))
    loss = tuple(map(tuple, rng.random((levels, levels)).tolist()))
    first, last = int(used.min()), int(used.max())
    flow = solvers._flow_to_two(have, tuple(want.tolist()), loss, first, last)
    assert flow == pytest.approx(solvers._flow(have, tuple(want.tolist()), loss), abs=1e-6)
