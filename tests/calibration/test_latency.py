"""Timing: when it stops, what it reports, and that the parts add up."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import numpy as np
import pytest

from calibration.latency import Samples, measure, median_half_width


class FakeTime:
    """Every run takes what the script says, and moves the clock by it."""

    def __init__(self, seconds: Iterator[float]) -> None:
        self.seconds, self.now, self.runs = seconds, 0.0, 0

    def once(self) -> float:
        took = next(self.seconds)
        self.now += took
        self.runs += 1
        return took


def timed(seconds: Iterator[float], budget_s: float) -> tuple[Samples, FakeTime]:
    fake = FakeTime(seconds)
    return measure(fake.once, budget_s=budget_s, now=lambda: fake.now), fake


def test_stops_when_the_median_is_known() -> None:
    samples, fake = timed(itertools.repeat(1.0), budget_s=1e9)
    assert samples.steady
    assert samples.half_width == 0.0
    assert samples.median_s == 1.0
    assert fake.runs == samples.warm_up + len(samples.seconds) == 6 + 8


def test_slow_first_runs_are_warm_up() -> None:
    samples, _ = timed(itertools.chain([50.0, 20.0, 9.0, 4.0], itertools.repeat(1.0)), budget_s=1e9)
    assert set(samples.seconds) == {1.0}
    assert samples.warm_up >= 7


def test_the_budget_ends_what_does_not_settle() -> None:
    noise = np.random.default_rng(0)
    samples, fake = timed((float(x) for x in noise.uniform(0.5, 1.5, 10_000)), budget_s=40.0)
    assert 40.0 <= fake.now < 42.0
    assert samples.half_width > 0.01
    assert len(samples.seconds) > 10


def test_three_samples_whatever_the_budget() -> None:
    samples, _ = timed(itertools.repeat(5.0), budget_s=0.0)
    assert len(samples.seconds) == 3
    assert not samples.steady
    assert math.isnan(samples.half_width)


def test_the_interval_of_the_median_covers_it() -> None:
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(400):
        draw = rng.lognormal(0.0, 0.3, 40)
        width = median_half_width(list(draw)) * np.median(draw)
        covered += abs(np.median(draw) - 1.0) <= 2 * width  # the interval may lie to one side
    assert covered / 400 > 0.93


def test_drift_compares_the_end_with_the_beginning() -> None:
    assert Samples((1.0,) * 5 + (1.1,) * 5, 0, True, 0.0).drift == pytest.approx(0.1)


def test_the_row_has_the_percentiles() -> None:
    row = Samples(tuple(float(x) for x in range(1, 102)), 0, True, 0.0).row()
    assert (row["samples"], row["p50_s"], row["p90_s"], row["p99_s"]) == (101, 51.0, 91.0, 100.0)
