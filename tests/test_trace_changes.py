"""A trace scales, is cut and joined without losing its shape; and its statistics."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from argus_sim.errors import InputError
from argus_sim.trace import Trace
from tests.make_trace import make, traces

# -- scaling ---------------------------------------------------------------------------------------


@given(trace=traces(), factor=st.floats(1e-3, 1e3))
def test_scaling_time_and_back_gives_the_same_times(trace: Trace, factor: float) -> None:
    scaled = trace.scale_time(factor)
    assert scaled.transformations == (*trace.transformations, f"time scaled by {factor:g}")
    assert scaled.prompt == trace.prompt
    back = scaled.scale_time(1 / factor)
    np.testing.assert_allclose(back.arrival_s, trace.arrival_s, rtol=1e-12, atol=1e-300)
    assert back.duration_s == pytest.approx(trace.duration_s, rel=1e-12)


@given(trace=traces(), factor=st.integers(1, 7), seed=st.integers(0, 9))
def test_a_whole_factor_repeats_every_arrival_before_the_next_later_one(
    trace: Trace, factor: int, seed: int
) -> None:
    scaled = trace.scale_rate(factor, np.random.default_rng(seed))
    assert len(scaled) == factor * len(trace)
    assert scaled.duration_s == trace.duration_s
    # Up to each arrival, the scaled trace has had at least the copies of all that came strictly before.
    for time in trace.arrival_s:
        before = np.sum(trace.arrival_s < time)
        through = np.sum(trace.arrival_s <= time)
        assert factor * before <= np.sum(scaled.arrival_s <= time) <= factor * through
    if trace.prompt is not None and scaled.prompt is not None:
        assert sorted(scaled.prompt) == sorted(trace.prompt * factor)
    if factor == 1:
        assert scaled.digest() == trace.digest()


def test_a_factor_below_one_thins_and_one_above_one_keeps_the_shape() -> None:
    rng = np.random.default_rng(5)
    times = np.sort(np.concatenate([rng.uniform(0, 1800, 2_000), rng.uniform(1800, 3600, 18_000)]))
    trace = make(times, 3600.0, prompt=tuple(map(str, range(20_000))))
    for factor in (0.25, 2.5):
        scaled = trace.scale_rate(factor, np.random.default_rng(1))
        assert scaled.transformations == (f"rate scaled by {factor:g}",)
        np.testing.assert_allclose(scaled.rate(1800.0)[1], factor * trace.rate(1800.0)[1], rtol=0.06)
        assert scaled.prompt is not None
        # A prompt stays with its arrival: copies come after it.
        source = np.array(scaled.prompt, dtype=np.int64)
        assert (scaled.arrival_s >= trace.arrival_s[source]).all()
    assert set(trace.scale_rate(0.25, np.random.default_rng(1)).arrival_s) <= set(times)


def test_thinning_may_not_leave_nothing() -> None:
    with pytest.raises(InputError, match="no arrival is left"):
        make([1.0]).scale_rate(1e-9, np.random.default_rng(0))


@pytest.mark.parametrize("bad", [0.0, -1.0, np.nan, np.inf])
@pytest.mark.parametrize(
    "use",
    [
        lambda trace, bad: trace.scale_time(bad),
        lambda trace, bad: trace.scale_rate(bad, np.random.default_rng(0)),
        lambda trace, bad: trace.rate(bad),
        lambda trace, bad: trace.peak_per_s(bad),
    ],
)
def test_factors_and_windows_are_finite_and_above_zero(use: Callable[[Trace, float], object], bad: float) -> None:
    with pytest.raises(InputError, match="must be a finite number above 0"):
        use(make([1.0]), bad)


@given(trace=traces(), cut=st.floats(0.01, 0.99))
def test_two_clips_share_the_arrivals_between_them(trace: Trace, cut: float) -> None:
    at = trace.duration_s * cut
    parts = []
    for start_s, end_s in ((0.0, at), (at, trace.duration_s)):
        inside = (trace.arrival_s >= start_s) & (trace.arrival_s < end_s)
        if inside.any():
            parts.append(trace.clip(start_s, end_s))
        else:
            with pytest.raises(InputError, match="no arrival is left"):
                trace.clip(start_s, end_s)
    assert sum(map(len, parts)) == len(trace)
    assert sum((part.prompt or () for part in parts), ()) == (trace.prompt or ())


def test_a_clip_starts_at_zero_and_must_lie_within_the_trace() -> None:
    trace = make([0.0, 10.0, 20.0, 30.0], 30.0)
    clipped = trace.clip(10.0, 30.0)
    assert clipped.arrival_s.tolist() == [0.0, 10.0, 20.0]
    assert clipped.duration_s == 20.0
    assert clipped.transformations == ("clipped to [10, 30) s",)
    assert trace.clip(10.0, 20.0).arrival_s.tolist() == [0.0]
    for start_s, end_s in ((-1.0, 5.0), (5.0, 5.0), (5.0, 31.0)):
        with pytest.raises(InputError, match="it lasts from 0 to 30 s"):
            trace.clip(start_s, end_s)


@given(one=traces(), other=traces())
def test_superposed_traces_keep_all_their_arrivals(one: Trace, other: Trace) -> None:
    both = one.superpose(other)
    assert both.arrival_s.tolist() == sorted([*one.arrival_s.tolist(), *other.arrival_s.tolist()])
    assert both.duration_s == max(one.duration_s, other.duration_s)
    if one.prompt is not None and other.prompt is not None:
        pairs = zip(both.arrival_s.tolist(), both.prompt or (), strict=True)
        mine, others = (zip(t.arrival_s.tolist(), t.prompt or (), strict=True) for t in (one, other))
        assert sorted(pairs) == sorted([*mine, *others])
    else:
        assert both.prompt is None
    some = (one.prompt is None) != (other.prompt is None)
    left_out = "; prompts left out, as not all have some" if some else ""
    assert both.transformations[-1] == f"superposed: made, made{left_out}"


# -- statistics ------------------------------------------------------------------------------------


def test_the_peak_is_that_of_the_busiest_window_wherever_it_starts() -> None:
    trace = make([0.0, 9.0, 9.5, 10.5, 18.9, 19.0, 40.0, 40.0])
    assert trace.peak_per_s(10.0) == pytest.approx(0.4)  # from 9.0 up to, not including, 19.0
    assert trace.peak_per_s(1e-6) == pytest.approx(2e6)


def test_the_last_window_of_a_rate_is_per_the_time_that_is_left() -> None:
    start_s, per_min = make([0.0, 59.9, 60.0, 90.0], 90.0).rate(60.0)
    assert start_s.tolist() == [0.0, 60.0]
    assert per_min.tolist() == [2.0, 4.0]
    # 3 x 0.1 is a little over 0.3: no fourth window for that.
    assert len(make([0.1], 3 * 0.1).rate(0.1)[0]) == 3


def test_a_sliver_at_the_end_is_no_window_of_a_rate() -> None:
    start_s, per_min = make([0.0, 60.0, 120.0, 120.5], 121.0).rate(60.0)
    assert start_s.tolist() == [0.0, 60.0]
    assert per_min.tolist() == pytest.approx([1.0, 3 * 60 / 61])


@given(trace=traces(prompts=False), window_s=st.floats(1.0, 1e6))
def test_a_rate_counts_every_arrival_once(trace: Trace, window_s: float) -> None:
    start_s, per_min = trace.rate(window_s)
    width = np.diff(start_s, append=trace.duration_s)
    assert np.sum(per_min / 60.0 * width) == pytest.approx(len(trace))


def test_statistics_by_hand() -> None:
    # Complete minutes hold 1, 3, 2; the half minute at the end holds 1.
    stats = make([0.0, 60.0, 70.0, 119.0, 120.0, 130.0, 190.0], 210.0).stats()
    gaps = [60.0, 10.0, 49.0, 1.0, 10.0, 60.0]
    assert " ".join(stats) == (
        "count duration_s mean_per_min peak_per_min p99_per_min peak_to_mean dispersion_index_per_min "
        "cv_interarrival acf_lag1_min acf_lag60_min"
    )
    assert (stats["count"], stats["duration_s"], stats["peak_per_min"]) == (7.0, 210.0, 3.0)
    assert stats["mean_per_min"] == pytest.approx(2.0)
    assert stats["p99_per_min"] == pytest.approx(2.98)
    assert stats["peak_to_mean"] == pytest.approx(1.5)
    assert stats["dispersion_index_per_min"] == pytest.approx((2 / 3) / 2)
    assert stats["cv_interarrival"] == pytest.approx(np.std(gaps) / np.mean(gaps))
    assert stats["acf_lag1_min"] == pytest.approx(-1 / 2)
    assert np.isnan(stats["acf_lag60_min"])


def test_statistics_that_are_undefined_are_nan() -> None:
    stats = make([1.0], 30.0).stats()
    assert np.isnan([stats[name] for name in list(stats)[3:]]).all()
    regular = make(np.arange(0.0, 7200.0, 30.0), 7200.0).stats()
    assert regular["dispersion_index_per_min"] == 0.0
    assert regular["cv_interarrival"] == pytest.approx(0.0)
    assert np.isnan([regular["acf_lag1_min"], regular["acf_lag60_min"]]).all()


def test_autocorrelation_sees_a_two_hour_cycle() -> None:
    minute = np.arange(1440)
    count = np.where(minute // 60 % 2 == 0, 20, 2)
    trace = make(np.repeat(minute * 60.0 + 1.0, count), 86_400.0)
    stats = trace.stats()
    assert stats["acf_lag1_min"] > 0.9
    assert stats["acf_lag60_min"] < -0.9
