"""The hindsight bound of clusters of several kinds: against every schedule, and where it must be tight."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from argus_sim.core.bound import least_work_s, pooled_work_s
from tests.golden.bound_cases import CLOSE, Case, Times, best_schedule, random_case


def scaled(times_s: Times, factor: float) -> Times:
    return [{b: [factor * t for t in row] for b, row in batches.items()} for batches in times_s]


def mixed_case(seed: int) -> Case:
    """One or two workers more, of a kind that is faster or slower as a whole, or at each variant by itself."""
    case = random_case(seed, requests=(2, 5))
    rng = np.random.default_rng([seed, 1])
    if rng.random() < 0.4:
        other = scaled(case.times_s, float(rng.choice([0.3, 0.5, 2.0])))
    else:
        factors = np.exp(rng.normal(0.0, 0.7, len(case.times_s)))
        other = [scaled([batches], float(f))[0] for batches, f in zip(case.times_s, factors, strict=True)]
        # Kinds may have other batch sizes, and be too slow for a variant at all.
        other = [{b: t for b, t in batches.items() if b == 1 or rng.random() < 0.6} for batches in other]
        if rng.random() < 0.3:
            other[0] = {1: [100.0] * len(case)}
        if rng.random() < 0.2:
            case = replace(case, times_s=[{1: [100.0] * len(case)}, *case.times_s[1:]])
    return replace(case, workers=1, others=((other, int(rng.integers(1, 3))),))


@pytest.mark.parametrize("seeds", [range(i, i + 50) for i in range(0, 300, 50)], ids=lambda r: f"{r.start}-")
def test_no_schedule_beats_it(seeds: range) -> None:
    reached = []
    for seed in seeds:
        case = mixed_case(seed)
        best, bound = best_schedule(case), case.bound().total_quality
        assert best <= bound * (1 + CLOSE), f"seed {seed}"
        reached.append(best / bound if bound else 1.0)
    assert np.mean(reached) > 0.6


def test_the_search_uses_the_faster_worker() -> None:
    """One request that only the second kind can make; and two that need both."""
    slow: Times = [{1: [5.0, 5.0]}]
    one = Case(np.zeros(2), np.full(2, 2.0), np.ones((2, 1)), slow, 1, ((scaled(slow, 0.3), 1),))
    assert best_schedule(one) == 1.0
    assert best_schedule(replace(one, deadline_s=np.full(2, 5.0))) == 2.0


def test_kinds_that_are_all_alike_are_one() -> None:
    for seed in range(30):
        case = random_case(seed)
        split = replace(case, workers=1, others=((case.times_s, 2),))
        whole = replace(case, workers=3)
        assert split.bound().total_quality == pytest.approx(whole.bound().total_quality, rel=1e-9)


def test_twice_the_speed_counts_as_two_workers() -> None:
    for seed in range(30):
        case = random_case(seed)
        fast = replace(case, workers=1, others=((scaled(case.times_s, 0.5), 2),))
        slack_s = float((case.deadline_s - case.arrival_s).max())
        if any(t > slack_s for batches in case.times_s for row in batches.values() for t in row):
            continue  # what is too long for one kind may not be for the other
        assert fast.bound().total_quality == pytest.approx(
            replace(case, workers=5).bound().total_quality, rel=1e-9
        )


def test_more_or_faster_workers_are_never_worth_less() -> None:
    for seed in range(40):
        case = mixed_case(seed)
        ((other, n),) = case.others
        bound = case.bound().total_quality * (1 - CLOSE)
        assert replace(case, others=((other, n + 1),)).bound().total_quality >= bound
        assert replace(case, workers=2).bound().total_quality >= bound


def test_the_unit_does_not_matter_and_useless_kinds_add_nothing() -> None:
    works = [np.array([[2.0], [1.0]]), np.array([[4.0], [1.0]]), np.full((2, 1), np.inf)]
    pooled, units = pooled_work_s(works, [1, 2, 5])
    sigma = np.sqrt(0.5)
    assert units == pytest.approx(1 + 2 * sigma)
    np.testing.assert_allclose(pooled, [[2.0], [sigma]])
    again, more = pooled_work_s([works[2], works[0], works[1]], [5, 1, 2])
    assert more == pytest.approx(units)
    np.testing.assert_allclose(again, pooled)
    assert pooled_work_s([works[0]], [3])[1] == 3
    lonely = pooled_work_s([np.array([[2.0], [np.inf]]), np.array([[np.inf], [8.0]])], [1, 1])
    np.testing.assert_allclose(lonely[0], [[2.0], [2.0]])
    assert lonely[1] == 1.25


def test_work_of_a_single_kind_is_left_as_it_is() -> None:
    work_s = least_work_s([{1: [4.2], 2: [5.1]}], 100.0)
    assert pooled_work_s([work_s], [8]) == (work_s, 8)
