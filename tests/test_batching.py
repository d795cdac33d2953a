"""Forming batches: what runs together, what is given up, and what stays in the queue."""

from __future__ import annotations

from array import array
from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from argus_sim.core.batching import BatchFormer, DropRule
from argus_sim.core.catalog import Catalog
from tests.make_profile import make_profile

#: Batches of 1, 2 and 4 take 4, 6 and 10 s; in the variant ``noisy`` the 99th percentile is longer than the mean.
CELLS = {1: 4.0, 2: 6.0, 4: 10.0}
CATALOG = Catalog.of(make_profile({"big": CELLS}))
GAPS = Catalog.of(make_profile({"big": {1: 4.0, 4: 10.0}}))
NOISY = Catalog.of(make_profile({"noisy": CELLS}, std_s=0.25))


def take(
    deadline_s: list[float],
    size: int,
    *,
    now: float = 100.0,
    rule: DropRule | None = None,
    catalog: Catalog = CATALOG,
    arrival_s: list[float] | None = None,
) -> tuple[list[int], list[int], list[int]]:
    """Rows taken, dropped and left, of a queue 0, 1, 2, ... with these deadlines."""
    dropped: list[int] = []
    arrivals = array("d", arrival_s or [0.0] * len(deadline_s))
    former = BatchFormer(catalog, rule or DropRule(), arrivals, array("d", deadline_s), dropped.append)
    queue = deque(range(len(deadline_s)))
    return former.take(now, queue, 0, size), dropped, list(queue)


def test_what_fits_runs() -> None:
    assert take([200.0] * 6, 4) == ([0, 1, 2, 3], [], [4, 5])


def test_a_deadline_may_just_be_met() -> None:
    assert take([104.0], 1) == ([0], [], [])
    assert take([103.99], 1) == ([], [0], [])
    assert take([106.0, 106.0], 2) == ([0, 1], [], [])


def test_late_heads_make_way() -> None:
    assert take([90.0, 103.0, 104.0, 200.0], 1) == ([2], [0, 1], [3])


def test_all_may_be_late() -> None:
    assert take([90.0, 90.0, 90.0], 2) == ([], [0, 1, 2], [])


def test_a_smaller_batch_before_a_drop() -> None:
    """Four wait, and the first has time for a batch of two only."""
    assert take([107.0, 200.0, 200.0, 200.0], 4) == ([0, 1], [], [2, 3])
    assert take([105.0, 200.0, 200.0, 200.0], 4) == ([0], [], [1, 2, 3])


def test_under_overload_a_drop_before_a_smaller_batch() -> None:
    """More than a full batch waits: the first would make all behind it later."""
    assert take([107.0, *[200.0] * 4], 4) == ([1, 2, 3, 4], [0], [])


def test_nobody_is_dropped_for_a_batch_that_takes_longer_than_the_slo() -> None:
    """A batch of four takes 10 s and nobody has more than 8.5: with five waiting, all would go, none run."""
    assert take([104.5, 105.5, 106.5, 107.5, 108.5], 4) == ([2, 3], [0, 1], [4])
    assert take([104.5] * 5, 4) == ([0], [], [1, 2, 3, 4])


def test_one_in_the_middle_makes_the_batch_smaller() -> None:
    assert take([200.0, 200.0, 107.0, 200.0], 4) == ([0, 1], [], [2, 3])
    # Three would be left, which is no profiled size; the third goes back where it was.
    assert take([200.0, 200.0, 200.0, 105.0], 4) == ([0, 1], [], [2, 3])


def test_those_who_do_not_fill_a_batch_go_back_in_order() -> None:
    assert take([200.0, 200.0, 200.0, 105.0], 4, catalog=GAPS) == ([0], [], [1, 2, 3])
    assert take([200.0, 200.0, 90.0, 200.0, 90.0], 4, catalog=GAPS) == ([0], [2, 4], [1, 3])


def test_a_hopeless_head_does_not_make_the_batch_smaller() -> None:
    """No batch is small enough for it, so it is no reason to run the others one by one."""
    assert take([90.0, 200.0, 200.0, 200.0], 4) == ([1, 2], [0], [3])
    assert take([200.0, 90.0, 200.0], 2) == ([0, 2], [1], [])


def test_the_99th_percentile_decides() -> None:
    p99_s = NOISY.p99_s[0]
    assert p99_s[2] > 8.0
    assert take([106.5, 106.5], 2, catalog=NOISY) == ([], [0, 1], [])
    assert take([100.0 + p99_s[1]] * 2, 2, catalog=NOISY) == ([0], [], [1])
    assert take([100.0 + p99_s[2]] * 2, 2, catalog=NOISY) == ([0, 1], [], [])


def test_never_means_never() -> None:
    assert take([0.0] * 5, 4, rule=DropRule("never")) == ([0, 1, 2, 3], [], [4])


def test_factor_counts_from_the_arrival() -> None:
    """Twice an SLO of 10 s after the arrival; how long the batch takes does not matter."""
    arrival_s = [79.0, 80.0, 81.0, 99.0]
    deadline_s = [a + 10.0 for a in arrival_s]
    rule = DropRule("factor", 2.0)
    assert take(deadline_s, 1, rule=rule, arrival_s=arrival_s) == ([1], [0], [2, 3])
    assert take(deadline_s, 2, rule=rule, arrival_s=arrival_s) == ([1, 2], [0], [3])


@pytest.mark.parametrize("rule", [DropRule("late"), DropRule("never"), DropRule("factor", 2.0)])
def test_a_size_that_does_not_pay_is_still_a_size(rule: DropRule) -> None:
    """Two at once are slower per image than one, and whoever asks for it gets it."""
    catalog = Catalog.of(make_profile({"flat": {1: 1.0, 2: 2.5, 4: 3.0}}))
    assert catalog.fit[0] == (0, 1, 1, 1, 4)
    assert take([200.0] * 3, 2, rule=rule, catalog=catalog, arrival_s=[100.0] * 3) == ([0, 1], [], [2])


SLACK = st.sampled_from([-1.0, 0.0, 3.9, 4.0, 5.9, 6.0, 9.9, 10.0, 12.0, 50.0])


@given(
    slack_s=st.lists(SLACK, min_size=1, max_size=9),
    size=st.sampled_from([1, 2, 4]),
    catalog=st.sampled_from([CATALOG, GAPS, NOISY]),
)
def test_late_in_general(slack_s: list[float], size: int, catalog: Catalog) -> None:
    if size > len(slack_s) or size not in catalog.batch_sizes[0]:
        size = catalog.fit[0][min(size, len(slack_s))]
    now, sizes = 100.0, catalog.batch_sizes[0]
    deadline_s = [now + s for s in slack_s]
    taken, dropped, left = take(deadline_s, size, now=now, catalog=catalog)

    def in_time(row: int, batch: int) -> bool:
        return now + catalog.p99_s[0][batch] <= deadline_s[row]

    # Everybody is in one place, in order, and nobody behind the batch was looked at for nothing.
    rows = range(len(slack_s))
    assert sorted(taken + dropped + left) == list(rows)
    assert [taken, dropped, left] == [sorted(taken), sorted(dropped), sorted(left)]
    assert not left or max(taken, default=-1) < left[0]

    # What runs will be on time (by the 99th percentile), in a batch of a profiled size, no larger than asked for.
    assert len(taken) in (0, *(b for b in sizes if b <= size))
    assert all(in_time(row, len(taken)) for row in taken)

    # Nobody is given up who could run; but under overload, who holds a batch up is.
    enough = size if len(rows) > sizes[-1] else 1
    assert not any(in_time(row, enough) for row in dropped)
    assert taken or not any(in_time(row, enough) for row in rows)

    # Nothing is made smaller for nothing.
    if all(in_time(row, size) for row in rows):
        assert taken == list(range(size))
