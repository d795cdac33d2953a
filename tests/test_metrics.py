"""Metrics against numbers worked out by hand, and the identities that every run obeys."""

from __future__ import annotations

import doctest
import itertools
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from argus_sim.domain import Outcome
from argus_sim.metrics import METRICS, batches, metrics, peak, summarise, timeline
from argus_sim.record import FaultRecord, PlanRecord, RunRecord
from tests.make_record import VARIANTS, make_record, of_requests

NAN = math.nan
ON_TIME, LATE, REJECTED, LOST, UNFINISHED = Outcome


@pytest.fixture(scope="module")
def run() -> RunRecord:
    return make_record(1, requests=2_500, duration_s=7_210.0)


@pytest.fixture
def by_hand() -> RunRecord:
    """Two minutes, two workers, one request of every outcome and then some."""
    return of_requests(
        [
            # arrival, start, finish, deadline, variant, worker, outcome, quality
            (0.0, 0.0, 4.0, 12.0, 0, 0, ON_TIME, 1.0),
            (1.0, 5.0, 9.0, 13.0, 1, 1, ON_TIME, 0.8),
            (2.0, 5.0, 9.0, 14.0, 1, 1, ON_TIME, 0.6),
            (30.0, 50.0, 54.0, 42.0, 0, 0, LATE, 1.0),
            (59.0, NAN, NAN, 71.0, -1, -1, REJECTED, NAN),
            (60.0, NAN, NAN, 72.0, -1, -1, LOST, NAN),
            (61.0, 110.0, 130.0, 140.0, 2, 1, ON_TIME, 0.5),
            (119.0, NAN, NAN, 131.0, -1, -1, UNFINISHED, NAN),
        ],
        busy_s=60.0,
        attempts=[(5, 61.0, 64.0, 0, 0, 1, 0, True)],
        faults=[FaultRecord(64.0, 0, "lost")],
    )


def test_totals_by_hand(by_hand: RunRecord) -> None:
    got = summarise(by_hand)
    assert list(got) == list(METRICS), "the columns of summary.csv, in order"
    assert got == pytest.approx(
        {
            "arrived": 8,
            "on_time": 4,
            "late": 1,
            "rejected": 1,
            "lost": 2,  # One with its worker, one unfinished.
            "effective_throughput_per_min": 2.0,
            "relative_quality": (1.0 + 0.8 + 0.6 + 0.5) / 4,
            "quality_relative_to_base": 1.1 * (1.0 + 0.8 + 0.6 + 0.5) / 4,
            "served_relative_quality": (1.0 + 0.8 + 0.6 + 1.0 + 0.5) / 5,
            "quality_yield": (1.0 + 0.8 + 0.6 + 0.5) / 8,
            "slo_violation_ratio": 0.5,
            "latency_mean_s": (4 + 8 + 7 + 24 + 69) / 5,
            "latency_p50_s": 8.0,
            "latency_p90_s": np.quantile([4, 8, 7, 24, 69], 0.9),
            "latency_p99_s": np.quantile([4, 8, 7, 24, 69], 0.99),
            "utilisation": 60.0 / (2 * 120.0),
            "model_loads": 0,
            "share_of_bound": NAN,
        },
        nan_ok=True,
    )


def test_totals_are_plain_numbers(run: RunRecord) -> None:
    assert {type(value) for value in summarise(run).values()} == {int, float}
    json.dumps(summarise(run))


def test_nothing_arrived_is_undefined_and_silent() -> None:
    got = summarise(of_requests([]))
    assert got["arrived"] == got["on_time"] == 0
    assert got["effective_throughput_per_min"] == 0.0
    for name in ("relative_quality", "quality_yield", "slo_violation_ratio", "latency_p99_s"):
        assert math.isnan(got[name]), name
    table = timeline(of_requests([]))
    assert table["arrived"].sum() == 0
    assert table["slo_violation_ratio"].isna().all()
    assert peak(of_requests([]))["arrived"] == 0


def test_nothing_on_time_has_no_quality_but_a_yield_of_zero() -> None:
    got = summarise(of_requests([(0.0, NAN, NAN, 1.0, -1, -1, REJECTED, NAN)] * 3))
    assert math.isnan(got["relative_quality"])
    assert got["quality_yield"] == 0.0
    assert got["slo_violation_ratio"] == 1.0


def test_yield_is_quality_times_what_was_kept(run: RunRecord) -> None:
    got = summarise(run)
    assert got["quality_yield"] == pytest.approx(got["relative_quality"] * (1 - got["slo_violation_ratio"]))


def test_a_metric_prints_itself() -> None:
    assert METRICS["effective_throughput_per_min"].text(1234.56, 7.0) == "1,234.6 ± 7.0"
    assert METRICS["utilisation"].text(0.5) == "50.0"
    assert METRICS["utilisation"].heading == "utilisation (%)"
    assert METRICS["on_time"].text(NAN) == "–"
    assert all(metric.definition.endswith(".") for metric in METRICS.values())


def test_examples_in_docstrings() -> None:
    failed, attempted = doctest.testmod(metrics)
    assert attempted
    assert not failed


# ---------------------------------------------------------------------------------------------- timeline


@pytest.mark.parametrize("window_s", [60.0, 7.3, 100_000.0])
def test_every_request_is_in_one_window(run: RunRecord, window_s: float) -> None:
    table, totals = timeline(run, window_s), summarise(run)
    kinds = ["on_time", "late", "rejected", "lost"]
    assert (table[kinds].sum(axis=1) == table["arrived"]).all()
    assert table[["arrived", *kinds]].sum().to_dict() == {name: totals[name] for name in ["arrived", *kinds]}
    served = table.filter(like="served:")
    assert list(served) == [f"served:{name}" for name in VARIANTS]
    assert (served.sum(axis=1) == table["on_time"] + table["late"]).all()
    assert table["window_s"].sum() == pytest.approx(run.duration_s)
    assert (table["effective_throughput_per_min"] * table["window_s"] / 60).sum() == pytest.approx(
        totals["on_time"]
    )
    quality = (table["relative_quality"] * table["on_time"]).sum() / totals["on_time"]
    assert quality == pytest.approx(totals["relative_quality"])


def test_timeline_by_hand(by_hand: RunRecord) -> None:
    first, second = (row for _, row in timeline(by_hand, 60.0).iterrows())
    assert (first["arrived"], second["arrived"]) == (5, 3), "an arrival on the edge opens the next window"
    assert first["slo_violation_ratio"] == pytest.approx(0.4)
    assert first["latency_mean_s"] == pytest.approx((4 + 8 + 7 + 24) / 4)
    assert second["relative_quality"] == pytest.approx(0.5)
    assert second["lost"] == 2
    # Busy: 4 + 4 (a batch of two, once) + 4 of 120 s; then 61 to the fault at 64, and 110 to the window's end.
    assert first["utilisation"] == pytest.approx(12 / 120)
    assert second["utilisation"] == pytest.approx((3 + 10) / 120)


def test_the_last_window_may_be_short() -> None:
    row = (115.0, 115.0, 119.0, 127.0, 0, 0, ON_TIME, 1.0)
    last = timeline(of_requests([row] * 3, duration_s=120.0), 50.0).iloc[-1]
    assert last["window_start_s"] == 100.0
    assert last["window_s"] == 20.0
    assert last["offered_per_min"] == pytest.approx(9.0)


@pytest.mark.parametrize(("duration_s", "window_s", "windows"), [(0.3, 0.1, 3), (60.0, 60.0, 1), (61.0, 60.0, 2)])
def test_no_empty_window_from_rounding(duration_s: float, window_s: float, windows: int) -> None:
    assert len(timeline(of_requests([], duration_s=duration_s), window_s)) == windows


def test_a_window_has_to_be_positive(by_hand: RunRecord) -> None:
    with pytest.raises(ValueError, match="positive"):
        timeline(by_hand, 0.0)


def test_utilisation_adds_up_to_the_busy_time(run: RunRecord) -> None:
    ran = batches(run)
    assert (ran["finish_s"] - ran["start_s"]).sum() == pytest.approx(run.busy_s)
    within = (ran["finish_s"].clip(upper=run.duration_s) - ran["start_s"].clip(upper=run.duration_s)).sum()
    table = timeline(run, 37.0)
    assert (table["utilisation"] * table["window_s"]).sum() * run.workers == pytest.approx(within)
    assert table["utilisation"].max() <= 1 + 1e-9


@settings(max_examples=60)
@given(
    spans=st.lists(st.tuples(st.floats(0, 100), st.floats(0, 60), st.integers(0, 3)), max_size=12),
    duration_s=st.floats(1, 100),
    window_s=st.floats(0.7, 120),
)
def test_overlaps_are_exact(spans: list[tuple[float, float, int]], duration_s: float, window_s: float) -> None:
    edges = metrics._edges(duration_s, window_s)
    start = np.array([span[0] for span in spans], dtype=float)
    finish = start + np.array([span[1] for span in spans], dtype=float)
    weight = np.array([span[2] for span in spans], dtype=float)
    naive = [
        sum(w * max(0.0, min(f, high) - max(s, low)) for s, f, w in zip(start, finish, weight, strict=True))
        for low, high in itertools.pairwise(edges)
    ]
    assert metrics._time_in_windows(start, finish, weight, edges) == pytest.approx(naive, abs=1e-9)


def test_workers_follow_the_plans() -> None:
    plans = [PlanRecord(90.0, "rise", {"tiny-sd": 2}), PlanRecord(15.0, "start", {"sdxl": 1, "tiny-sd": 1})]
    table = timeline(of_requests([], plans=plans, duration_s=180.0), 60.0)
    # None before the first plan; means over the window where the plan changes within it.
    assert table["workers:sdxl"].to_list() == pytest.approx([0.75, 0.5, 0.0])
    assert table["workers:tiny-sd"].to_list() == pytest.approx([0.75, 1.5, 2.0])


def test_batches_by_hand(by_hand: RunRecord) -> None:
    got = [tuple(row) for row in batches(by_hand).itertuples(index=False)]
    assert got == [
        (0, 0.0, 4.0, 0, 1),
        (0, 50.0, 54.0, 0, 1),
        (0, 61.0, 64.0, 0, 1),  # Cut short by the fault.
        (1, 5.0, 9.0, 1, 2),
        (1, 110.0, 130.0, 2, 1),
    ]


def test_a_batch_of_which_a_part_runs_again_is_one_batch() -> None:
    """A cascade's first stage: one image of two is good, the other is made once more by worker 1."""
    rows = [
        (0.0, 1.0, 2.0, 9.0, 4, 0, ON_TIME, 0.8),
        (0.5, 2.0, 6.0, 9.0, 0, 1, ON_TIME, 1.0),
    ]
    record = of_requests(rows, attempts=[(1, 1.0, 2.0, 0, 4, 2, 0, False)], busy_s=5.0)
    got = [tuple(row) for row in batches(record).itertuples(index=False)]
    assert got == [(0, 1.0, 2.0, 4, 2), (1, 2.0, 6.0, 0, 1)]
    assert (timeline(record, 60.0)["utilisation"] * 60.0 * 2).sum() == pytest.approx(record.busy_s)


def test_an_answer_with_a_kept_image_is_no_batch() -> None:
    rows = [(0.0, 3.0, 3.0, 9.0, 4, 0, ON_TIME, 0.8), (0.5, 2.0, 6.0, 9.0, 0, 1, ON_TIME, 1.0)]
    record = of_requests(rows, attempts=[(0, 1.0, 2.0, 0, 4, 1, 0, False)], busy_s=5.0)
    assert batches(record)["start_s"].to_list() == [1.0, 2.0]


# -------------------------------------------------------------------------------------------------- peak


def test_peak_is_the_busy_part_only() -> None:
    quiet = [(float(t), float(t), t + 1.0, t + 9.0, 0, 0, ON_TIME, 1.0) for t in range(0, 3600, 30)]
    busy = [(3600 + t / 2, 3600.0, 3601.0, 3700.0, 1, 1, ON_TIME, 0.5) for t in range(3600)]
    refused = [(3600 + t / 2, NAN, NAN, 3700.0, -1, -1, REJECTED, NAN) for t in range(1, 3600, 2)]
    record = of_requests(sorted(quiet + busy + refused), duration_s=7200.0)
    got = peak(record, smooth_windows=1)
    assert got["duration_s"] == pytest.approx(1800.0)
    assert got["offered_per_min"] == pytest.approx(180.0)
    assert got["effective_throughput_per_min"] == pytest.approx(120.0)
    assert got["violations_per_min"] == pytest.approx(60.0)
    assert got["slo_violation_ratio"] == pytest.approx(1 / 3)
    assert got["relative_quality"] == pytest.approx(0.5)
    assert got["quality_relative_to_base"] == pytest.approx(0.55)
    smoothed = peak(record)
    assert smoothed["duration_s"] < 3600.0
    assert smoothed["offered_per_min"] == pytest.approx(
        smoothed["effective_throughput_per_min"] + smoothed["violations_per_min"]
    )


@pytest.mark.parametrize("smooth_windows", [1, 30])
def test_a_sliver_at_the_end_is_no_peak(smooth_windows: int) -> None:
    times = [*np.arange(0.0, 3600.0, 10.0), *np.arange(3600.0, 7200.0, 5.0), 7200.05]
    rows = [(t, t, t + 1.0, t + 9.0, 0, 0, ON_TIME, 1.0) for t in times]
    got = peak(of_requests(rows, duration_s=7200.1), smooth_windows=smooth_windows)
    assert got["offered_per_min"] == pytest.approx(12.0, rel=0.02)
    assert got["duration_s"] == pytest.approx(3600.0, rel=0.2)


def test_a_peak_without_threshold_is_the_whole_run(run: RunRecord) -> None:
    whole, totals = peak(run, threshold=0.0), summarise(run)
    assert whole["duration_s"] == pytest.approx(run.duration_s)
    assert {name: whole[name] for name in totals if name in whole} == pytest.approx(
        {name: value for name, value in totals.items() if name in whole}
    )


def test_a_threshold_is_a_share(run: RunRecord) -> None:
    with pytest.raises(ValueError, match="share"):
        peak(run, threshold=90)
