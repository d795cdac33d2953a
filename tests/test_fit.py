"""A fitted model gives back what it was made from, and says how nearly."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from argus_sim.errors import InputError
from argus_sim.importers import import_trace
from argus_sim.trace import Trace, find_trace, shipped_models
from argus_sim.trace.arrivals import Piecewise, Poisson, generate, generate_file, read_spec
from argus_sim.trace.fit import Measures, fit, judge, minute_counts, write_model
from argus_sim.trace.fitted import Fitted


def seeded(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def measured(trace: Trace) -> Measures:
    return Measures.of(trace.arrival_s, trace.duration_s)


# -- the model -------------------------------------------------------------------------------------


def test_a_model_has_the_rates_of_its_steps() -> None:
    model = Fitted(duration_s=36_000, points=((0, 60), (12_000, 0), (24_000, 240)))
    times = model.times(seeded(1))
    assert (np.diff(times) >= 0).all()
    first, second, third = (np.sum((times >= a) & (times < a + 12_000)) for a in (0, 12_000, 24_000))
    assert abs(first - 12_000) < 4 * np.sqrt(12_000)
    assert second == 0
    assert abs(third - 48_000) < 4 * np.sqrt(48_000)


@pytest.mark.parametrize("gap_cv", [0.5, 1.0, 2.0])
def test_gaps_have_the_variation_asked_for_and_counts_follow(gap_cv: float) -> None:
    model = Fitted(duration_s=600_000, points=((0, 60),), gap_cv=gap_cv)
    times = model.times(seeded(2))
    gaps = np.diff(times)
    assert float(np.std(gaps) / np.mean(gaps)) == pytest.approx(gap_cv, rel=0.03)
    x = minute_counts(times, model.duration_s)
    assert float(np.var(x) / np.mean(x)) == pytest.approx(gap_cv**2, rel=0.1)


def test_noise_has_the_dispersion_and_the_memory_asked_for() -> None:
    model = Fitted(duration_s=60.0 * 40_000, points=((0, 100),), noise_cv=0.5, noise_correlation=0.8)
    x = minute_counts(model.times(seeded(3)), model.duration_s)
    assert float(np.var(x)) == pytest.approx(100 + 50**2, rel=0.1)
    c = x - x.mean()
    # A Gamma variable of a Gaussian is a little less correlated than the Gaussian.
    assert float(c[1:] @ c[:-1] / (c @ c)) == pytest.approx(0.8 * 2500 / 2600, abs=0.05)


def test_stamps_are_rounded_as_the_recorded_ones() -> None:
    times = Fitted(duration_s=600, points=((0, 600),), resolution_s=1.0).times(seeded(4))
    assert (times % 1 == 0).all()


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ([(1, 5)], "first point must be at 0 s"),
        ([(0, 5), (20, 1), (10, 1)], "must ascend"),
        ([(0, 5), (100, 1)], "is not before the end"),
        ([(0, 0)], "must not be 0 throughout"),
    ],
)
def test_points_that_make_no_rate_are_refused(points: list[tuple[float, float]], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        Fitted(duration_s=100, points=tuple(points))


# -- the fit ---------------------------------------------------------------------------------------


def test_a_poisson_trace_needs_no_noise() -> None:
    trace = generate(Poisson(duration_s=36_000, rate_per_min=60), seeded(5))
    model = fit(trace, steps=1)
    assert model.gap_cv == pytest.approx(1.0, abs=0.03)
    assert model.noise_cv < 0.1
    assert judge(model, measured(trace), range(3)).ks_gaps < 0.02


def test_a_model_is_found_again_in_what_it_makes() -> None:
    known = Fitted(
        duration_s=86_400, points=((0, 30), (30_000, 90), (60_000, 20)), noise_cv=0.4, noise_correlation=0.6
    )
    trace = generate(known, seeded(6))
    model = fit(trace, steps=3)
    starts = [time_s for time_s, _ in model.points]
    assert any(abs(s - 30_000) < 600 for s in starts)
    assert any(abs(s - 60_000) < 600 for s in starts)
    assert model.noise_cv == pytest.approx(0.4, abs=0.08)
    assert model.noise_correlation == pytest.approx(0.6, abs=0.15)


def test_a_fit_reproduces_a_burst_that_it_was_shown() -> None:
    points = ((0, 20), (20_000, 20), (20_060, 400), (20_600, 400), (20_660, 20))
    trace = generate(Piecewise(duration_s=43_200, points=points, wobble_cv=0.2), seeded(7))
    quality = judge(fit(trace), measured(trace), range(5))
    assert quality.worst < 0.15
    assert quality.fitted["arrivals"] == pytest.approx(quality.recorded["arrivals"], rel=0.03)
    flat = judge(Fitted(duration_s=43_200, points=((0, 25),)), measured(trace), range(3))
    assert flat.worst > 0.5


def test_a_fourier_series_is_found_again_and_goes_on() -> None:
    waves = ((86_400.0, 0.8, -0.5), (43_200.0, 0.0, 0.3))
    known = Fitted(duration_s=3 * 86_400, points=((0, 30),), harmonics=waves)
    trace = generate(known, seeded(11))
    model = fit(trace, harmonics=2)
    assert model.points[0][1] == pytest.approx(30, rel=0.02)
    for found, (period_s, a, b) in zip(model.harmonics, waves, strict=True):
        assert found == pytest.approx((period_s, a, b), abs=0.02)
    assert model.noise_cv < 0.1
    quality = judge(model, measured(trace), range(2))
    assert quality.worst < 0.15
    week = model.model_copy(update={"duration_s": 7 * 86_400.0})
    by_day = np.bincount((week.times(seeded(12)) // 86_400).astype(int))
    assert by_day == pytest.approx(len(trace) / 3, rel=0.03)


def test_a_series_lets_noise_do_what_does_not_repeat() -> None:
    points = ((0, 60), (100_000, 60), (100_010, 180), (102_000, 180), (102_010, 60))
    trace = generate(Piecewise(duration_s=172_800, points=points), seeded(13))
    model = fit(trace, harmonics=1)
    assert model.noise_cv > 0.1
    assert model.noise_correlation > 0.9
    quality = judge(model, measured(trace), range(4))
    for name in ("arrivals", "dispersion_index_per_min"):
        assert quality.fitted[name] == pytest.approx(quality.recorded[name], rel=0.3)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"harmonics": 0}, "harmonics must be at least 1"),
        ({"harmonics": 2, "steps": 3}, "steps or harmonics, not both"),
        ({"harmonics": 2}, r"period_s must be from 600 to the trace's 7200 s, found 86400"),
        ({"harmonics": 31, "period_s": 3600.0}, "shorter than two minutes"),
        ({"period_s": 3600.0}, "period_s is that of harmonics"),
    ],
)
def test_a_series_that_cannot_be(options: dict[str, float], says: str) -> None:
    trace = generate(Poisson(duration_s=7200, rate_per_min=60), seeded(14))
    with pytest.raises(InputError, match=says):
        fit(trace, **options)  # type: ignore[arg-type]


def test_a_written_series_is_read_back(tmp_path: Path) -> None:
    trace = generate(Poisson(duration_s=7200, rate_per_min=60), seeded(15))
    model = fit(trace, harmonics=2, period_s=3600.0)
    write_model(tmp_path / "m.yaml", "mine", model, trace, judge(model, measured(trace), range(2)))
    assert read_spec(tmp_path / "m.yaml").arrivals == model
    assert "2 harmonics of 3600 s" in (generate_file(tmp_path / "m.yaml").provenance[0].derived or "")


def test_a_short_trace_cannot_be_fitted() -> None:
    with pytest.raises(InputError, match="a fit needs 100 arrivals in 600 s"):
        fit(generate(Poisson(duration_s=300, rate_per_min=60), seeded(8)))
    with pytest.raises(InputError, match="steps must be at least 1"):
        fit(generate(Poisson(duration_s=700, rate_per_min=60), seeded(8)), steps=0)


def test_a_written_model_is_read_back_with_its_origin(tmp_path: Path) -> None:
    trace = generate(Poisson(duration_s=3600, rate_per_min=60), seeded(9))
    model = fit(trace, steps=4)
    write_model(tmp_path / "m.yaml", "mine", model, trace, judge(model, measured(trace), range(2)))
    made = generate_file(tmp_path / "m.yaml")
    assert made.name == "mine"
    assert "argus_sim.trace.fit: " in (made.provenance[0].derived or "")
    assert made.provenance[-1].kind == "synthetic"
    other = generate_file(tmp_path / "m.yaml", seeded(1), name="other")
    assert other.name == "other"
    assert other.arrival_s.tolist() == model.times(seeded(1)).tolist()


# -- the shipped models ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", shipped_models())
def test_a_shipped_model_is_small_and_says_where_it_is_from(name: str) -> None:
    path = find_trace(name)
    assert path.stat().st_size < 10_000
    spec = read_spec(path)
    assert isinstance(spec.arrivals, Fitted)
    assert spec.name == name
    assert spec.shape[0].kind == "recorded"
    assert all("argus_sim.trace.fit: " in (part.derived or "") for part in spec.shape)


def recorded(name: str) -> Trace:
    folder = Path(os.environ["ARGUS_DATA"]) / "traces"
    rng = np.random.default_rng(1)
    if name == "gentd26-fit":
        return import_trace("gentd26-requests", folder / "gentd26_t2i_requests.csv", rng=rng)
    if name == "gateway-day-fit":
        return import_trace("gentd26-gateway", folder / "gentd26_gateway_qps.csv", rng=rng)
    if name == "twitter-week-fit":
        whole = import_trace("nab-twitter-volume", folder / "nab_twitter_volume_5min.csv", rng=rng)
        return whole.clip(604_800, 1_209_600)
    kind = name.removeprefix("azure-").removesuffix("-fit")
    return import_trace("azure-llm-2023", folder / f"azure_llm_2023_{kind}.csv", rng=rng)


@pytest.mark.data
@pytest.mark.parametrize("name", shipped_models())
def test_a_shipped_model_reproduces_its_trace(name: str) -> None:
    spec = read_spec(find_trace(name))
    assert isinstance(spec.arrivals, Fitted)
    # Seeds that neither the fit nor its own account used.
    quality = judge(spec.arrivals, measured(recorded(name)), range(50, 58))
    for key in ("dispersion_index_per_min", "dispersion_index_per_5s", "peak_to_mean"):
        assert quality.fitted[key] == pytest.approx(quality.recorded[key], rel=0.15)
    assert quality.fitted["arrivals"] == pytest.approx(quality.recorded["arrivals"], rel=0.03)
    assert quality.acf_difference < 0.1
    assert quality.ks_gaps < 0.15
