"""Workers that fail, come back and slow down, on the simulated cluster."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError

from argus_sim.core.endings import FAILED_TWICE, NO_WORKER
from argus_sim.domain import Outcome
from argus_sim.record import FaultRecord, LoadRecord
from argus_sim.simulation import faults
from argus_sim.simulation.cluster import SimulatedCluster
from argus_sim.simulation.faults import Crash, Fault, RandomCrashes, Slowdown
from tests.make_cluster import columns_of, make_cluster
from tests.make_engine import NEVER, make_policy, make_requests
from tests.make_profile import make_profile

#: Exactly 4 s for one, loads take exactly 10 s.
PROFILE = make_profile({"big": {1: 4.0}})


def crash(at_s: float, *workers: int, for_s: float | None = None) -> Crash:
    return Crash(kind="crash", workers=workers or None, at_s=at_s, for_s=for_s)


def slow(at_s: float, for_s: float, factor: float, *workers: int) -> Slowdown:
    return Slowdown(kind="slow", workers=workers or None, at_s=at_s, for_s=for_s, factor=factor)


def chaos(mtbf_s: float, mttr_s: float, *workers: int) -> RandomCrashes:
    return RandomCrashes(kind="random", workers=workers or None, mtbf_s=mtbf_s, mttr_s=mttr_s)


def run(
    arrival_s: Sequence[float], workers: int, *trouble: Crash | RandomCrashes | Slowdown, seed: int = 0
) -> SimulatedCluster:
    policy = make_policy("static", PROFILE, workers)
    host = make_cluster(PROFILE, policy, make_requests(arrival_s), drop=NEVER, seed=seed)
    rng = np.random.default_rng(seed)
    for fault, stream in zip(trouble, rng.spawn(len(trouble)), strict=True):
        faults.start(fault, host, workers, stream)
    host.run()
    assert host.finished
    return host


def times(host: SimulatedCluster) -> list[tuple[float, float, int]]:
    """Start, finish and worker of each request."""
    columns = columns_of(host)
    return list(
        zip(columns["start_s"].tolist(), columns["finish_s"].tolist(), columns["worker"].tolist(), strict=True)
    )


def reasons(host: SimulatedCluster) -> list[str]:
    return [host.engine.log.reasons[code] for code in host.engine.log.reason]


# -- crashes --------------------------------------------------------------------------------------------------


def test_a_crash_costs_the_time_spent_so_far() -> None:
    """Worker 1 fails 1 s into its batch; worker 0 starts it anew, and the first attempt never ends."""
    host = run([0.0], 2, crash(1.0, 1))
    assert times(host) == [(1.0, 5.0, 0)]
    assert host.engine.wasted_s == 1.0
    assert host.faults == [FaultRecord(1.0, 1, "lost")]
    assert host.loads == []


def test_a_crash_with_a_repair() -> None:
    """The worker comes back empty: it loads its model for 10 s and then serves what has waited for it."""
    host = run([0.0, 1.0, 2.0, 3.0, 9.0, 10.0], 2, crash(1.5, 0, for_s=5.0))
    assert [(start_s, worker) for start_s, _, worker in times(host)] == [
        *((0.0, 1), (4.0, 1), (8.0, 1), (12.0, 1), (16.0, 1), (16.5, 0))
    ]
    host = run([0.0, 1.0, 30.0], 2, crash(1.5, 0, 1, for_s=5.0))
    assert reasons(host)[:2] == [NO_WORKER] * 2
    assert times(host)[2] == (30.0, 34.0, 1)
    assert host.loads == [LoadRecord(0, "big", 6.5, 16.5), LoadRecord(1, "big", 6.5, 16.5)]
    assert [f.kind for f in host.faults] == ["lost", "lost", "joined", "joined"]


def test_a_crash_without_a_repair_is_for_good() -> None:
    host = run(np.arange(0.0, 400.0, 4.0).tolist(), 2, crash(10.0, 1))
    columns = columns_of(host)
    assert set(columns["worker"][columns["start_s"] > 10.0]) == {0}
    assert not (columns["outcome"] == Outcome.LOST).any()


def test_two_crashes_are_too_many() -> None:
    host = run([0.0], 3, crash(1.0, 2), crash(2.0, 1))
    assert reasons(host) == [FAILED_TWICE]
    assert columns_of(host)["outcome"].tolist() == [Outcome.LOST]


@pytest.mark.parametrize("rack", [(1, 2), (2, 1)])
def test_a_rack_that_dies_is_one_failure(rack: tuple[int, ...]) -> None:
    """The request is not tried again on the next worker of the same rack, whatever their order."""
    host = run([0.0], 3, crash(1.0, *rack, for_s=50.0))
    assert times(host) == [(1.0, 5.0, 0)]
    host = run([0.0, 0.0, 0.0, 100.0], 3, crash(1.0, *rack, for_s=50.0))
    assert [(start_s, worker) for start_s, _, worker in times(host)[:3]] == [(4.0, 0), (8.0, 0), (0.0, 0)]
    assert host.engine.floor.membership == 2  # planned for once when they went, and once when they came


def test_a_crash_in_the_middle_of_a_load() -> None:
    """The load does not finish; after the second repair it begins anew."""
    host = run([0.0, 50.0], 1, crash(1.0, for_s=4.0), crash(8.0, for_s=2.0))
    assert [(load.start_s, load.finish_s) for load in host.loads] == [
        (5.0, pytest.approx(math.nan, nan_ok=True)),
        (10.0, 20.0),
    ]
    assert times(host)[1] == (50.0, 54.0, 0)


def test_everybody_is_down_at_once() -> None:
    """What runs, waits and arrives while nobody is up is lost, each once."""
    host = run([0.0, 1.0, 2.0, 3.0, 20.0], 2, crash(2.5, for_s=1.0))
    assert reasons(host)[:4] == [NO_WORKER] * 4
    assert reasons(host)[4] == "placed"
    assert times(host)[4] == (20.0, 24.0, 1)


def test_a_crash_at_the_start() -> None:
    host = run([0.0, 1.0], 2, crash(0.0, 0, 1, for_s=0.5))
    # At equal times the arrival goes first: it was running when its worker failed.
    assert reasons(host) == [NO_WORKER, "placed"]
    assert times(host)[1][:2] == (10.5, 14.5)


def test_an_outage_lasts_until_the_last_of_its_causes_is_over() -> None:
    host = run([0.0, 100.0], 1, crash(10.0, for_s=50.0), crash(20.0, for_s=5.0))
    assert host.faults == [FaultRecord(10.0, 0, "lost"), FaultRecord(60.0, 0, "joined")]
    host = run([0.0, 100.0], 1, crash(10.0), crash(20.0, for_s=5.0))
    assert host.faults == [FaultRecord(10.0, 0, "lost")]


def test_what_happens_after_the_last_request_is_not_part_of_the_run() -> None:
    host = run([0.0], 2, crash(1e6, for_s=10.0), slow(1e6, 10.0, 2.0), crash(3.0, 0, for_s=10.0))
    assert host.faults == [FaultRecord(3.0, 0, "lost")]
    assert host.loads == []


# -- random crashes -------------------------------------------------------------------------------------------


def test_random_crashes_have_their_rates() -> None:
    """Up times have mean MTBF, down times MTTR, and both are exponential (mean = standard deviation)."""
    arrival_s = np.arange(0.0, 200_000.0, 50.0).tolist()
    host = run(arrival_s, 4, chaos(600.0, 60.0), seed=3)
    up_s, down_s = [], []
    for worker in range(4):
        mine = [(f.at_s, f.kind) for f in host.faults if f.worker == worker]
        assert [kind for _, kind in mine[::2]] == ["lost"] * len(mine[::2])
        assert [kind for _, kind in mine[1::2]] == ["joined"] * len(mine[1::2])
        at_s = np.array([0.0] + [at for at, _ in mine])
        up_s += np.diff(at_s)[::2].tolist()
        down_s += np.diff(at_s)[1::2].tolist()
    for gaps, mean_s in ((up_s, 600.0), (down_s, 60.0)):
        assert len(gaps) > 1000
        error = 4.0 / math.sqrt(len(gaps))
        assert np.mean(gaps) == pytest.approx(mean_s, rel=error)
        assert np.std(gaps) == pytest.approx(mean_s, rel=2 * error)
    assert not (columns_of(host)["outcome"] == Outcome.UNFINISHED).any()


def test_random_crashes_are_those_of_the_seed() -> None:
    arrival_s = np.arange(0.0, 5000.0, 5.0).tolist()
    first, again, other = (run(arrival_s, 3, chaos(300.0, 30.0), seed=seed) for seed in (1, 1, 2))
    assert first.faults == again.faults != other.faults
    assert repr(times(first)) == repr(times(again))
    # And a worker's are its own, whoever else may fail.
    alone = run(arrival_s, 3, chaos(300.0, 30.0, 0), seed=1)
    mine = [f for f in first.faults if f.worker == 0]
    both = min(len(mine), len(alone.faults))
    assert both > 10
    assert mine[:both] == alone.faults[:both]


# -- stragglers -----------------------------------------------------------------------------------------------


def test_a_straggler_is_slow_from_its_next_batch_on() -> None:
    host = run([0.0, 6.0, 20.0], 1, slow(2.0, 10.0, 3.0))
    assert times(host) == [(0.0, 4.0, 0), (6.0, 18.0, 0), (20.0, 24.0, 0)]
    assert host.faults == [FaultRecord(2.0, 0, "slow"), FaultRecord(12.0, 0, "normal")]


def test_others_are_not() -> None:
    host = run([1.0, 1.0], 2, slow(0.5, 10.0, 2.0, 0))
    assert times(host) == [(1.0, 5.0, 1), (1.0, 9.0, 0)]


# -- what may be configured -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "field"),
    [
        ({"kind": "crash", "at_s": -1.0}, "at_s"),
        ({"kind": "crash", "at_s": math.nan}, "at_s"),
        ({"kind": "crash", "at_s": 1.0, "for_s": 0.0}, "for_s"),
        ({"kind": "crash", "at_s": 1.0, "fro_s": 2.0}, "fro_s"),
        ({"kind": "random", "mtbf_s": 0.0, "mttr_s": 1.0}, "mtbf_s"),
        ({"kind": "random", "mtbf_s": math.inf, "mttr_s": 1.0}, "mtbf_s"),
        ({"kind": "slow", "at_s": 1.0, "for_s": 1.0, "factor": 0.0}, "factor"),
        ({"kind": "explosion", "at_s": 1.0}, "kind"),
    ],
)
def test_a_fault_that_cannot_be(config: dict[str, Any], field: str) -> None:
    with pytest.raises(ValidationError, match=field):
        TypeAdapter(Fault).validate_python(config)


def test_the_fastest_that_a_worker_ever_is() -> None:
    assert faults.fastest([crash(1.0), chaos(5.0, 1.0), slow(0.0, 9.0, 3.0)]) == 1.0
    assert faults.fastest([slow(0.0, 10.0, 0.5), slow(20.0, 10.0, 0.8)]) == 0.5
    assert faults.fastest([slow(0.0, 10.0, 0.5), slow(5.0, 10.0, 0.8)]) == 0.4
    assert faults.fastest([slow(0.0, 10.0, 0.5, 0, 1), slow(5.0, 10.0, 0.8, 2)]) == 0.5
    assert faults.fastest([slow(0.0, 10.0, 0.5, 1), slow(5.0, 10.0, 0.8), slow(2.0, 1.0, 0.1, 2)]) == 0.1
    # A slowdown may be over at the same moment; then it does not slow what begins there.
    assert faults.fastest([slow(0.0, 10.0, 0.5), slow(0.0, 10.0, 2.0)]) == 0.5
