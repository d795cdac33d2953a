"""Synthetic arrivals have the rate, the dispersion and the determinism that their parameters promise."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from scipy import stats

from argus_sim.errors import InputError
from argus_sim.trace import Trace, find_trace
from argus_sim.trace.arrivals import (
    MMPP,
    RESOLUTION_S,
    ArrivalSpec,
    Diurnal,
    Piecewise,
    Poisson,
    Sinusoid,
    State,
    generate,
    generate_file,
    seed_of,
)
from argus_sim.trace.rate import RateCurve

SPECS: TypeAdapter[ArrivalSpec] = TypeAdapter(ArrivalSpec)
SHIPPED = Path(__file__).parent.parent / "traces"

rates = st.floats(0.0, 2000.0)
wobbles = st.sampled_from([0.0, 0.3])


@st.composite
def specs(draw: st.DrawFn) -> ArrivalSpec:
    duration_s = draw(st.floats(1.0, 900.0))
    kind = draw(st.sampled_from(["poisson", "piecewise", "sinusoid", "diurnal", "mmpp"]))
    if kind == "poisson":
        return Poisson(duration_s=duration_s, rate_per_min=draw(st.floats(0.1, 2000.0)))
    if kind == "piecewise":
        shares = draw(st.lists(st.floats(0.001, 1.0), max_size=4, unique=True))
        points = [(time_s, draw(rates)) for time_s in [0.0, *(share * duration_s for share in sorted(shares))]]
        between = draw(st.sampled_from(["linear", "step"]))
        return Piecewise(duration_s=duration_s, points=points, between=between, wobble_cv=draw(wobbles))
    if kind == "sinusoid":
        trough, peak = sorted([draw(rates), draw(st.floats(0.1, 2000.0))])
        period_s = draw(st.floats(1.0, 1000.0))
        return Sinusoid(
            duration_s=duration_s,
            trough_per_min=trough,
            peak_per_min=peak,
            period_s=period_s,
            wobble_cv=draw(wobbles),
        )
    if kind == "diurnal":
        hours = draw(st.lists(rates, min_size=24, max_size=24).filter(any))
        return Diurnal(duration_s=duration_s, hours=hours, peak_per_min=100.0, wobble_cv=draw(wobbles))
    states = draw(
        st.lists(st.builds(State, per_min=rates, mean_dwell_s=st.floats(5, 500)), min_size=2, max_size=4)
    )
    return MMPP(duration_s=duration_s, states=states)


@given(spec=specs(), seed=st.integers(0, 99))
def test_every_kind_gives_ascending_times_within_the_trace_and_the_same_for_the_same_seed(
    spec: ArrivalSpec, seed: int
) -> None:
    times = spec.times(np.random.default_rng(seed))
    assert (np.diff(times) >= 0).all()
    assert ((times >= 0) & (times <= spec.duration_s)).all()
    assert times.tolist() == spec.times(np.random.default_rng(seed)).tolist()
    assert SPECS.validate_json(spec.model_dump_json()) == spec


# -- distributions ---------------------------------------------------------------------------------


def per_minute(spec: ArrivalSpec, seed: int = 1) -> np.ndarray:
    return generate(spec, np.random.default_rng(seed)).rate(60.0)[1]


def mean_within(x: np.ndarray, mean: float, var: float) -> bool:
    """The mean of independent counts is within 4 standard errors of what it should be."""
    return abs(float(np.mean(x)) - mean) < 4 * np.sqrt(var / len(x))


def test_poisson_counts_and_gaps_are_poissonian() -> None:
    trace = generate(Poisson(duration_s=240_000, rate_per_min=30), np.random.default_rng(1))
    x = trace.rate(60.0)[1]
    assert mean_within(x, 30, 30)
    # Variance over mean of n Poisson counts, times n - 1, is about chi-squared.
    low, high = stats.chi2.ppf([1e-4, 1 - 1e-4], len(x) - 1) / (len(x) - 1)
    assert low < trace.stats()["dispersion_index_per_min"] < high
    assert stats.kstest(np.diff(trace.arrival_s), stats.expon(scale=2.0).cdf).pvalue > 1e-4
    assert abs(trace.stats()["acf_lag1_min"]) < 4 / np.sqrt(len(x))


@pytest.mark.parametrize(("left", "right"), [(0.0, 9.0), (9.0, 0.0), (2.0, 9.0), (5.0, 5.0)])
def test_arrivals_along_a_ramp_follow_its_area(left: float, right: float) -> None:
    curve = RateCurve(np.array([0.0, 4000.0]), np.array([left]), np.array([right]))
    times = curve.sample(np.random.default_rng(3))
    area = (left + right) / 2 * 4000
    assert abs(len(times) - area) < 4 * np.sqrt(area)

    def share(t: np.ndarray) -> np.ndarray:
        return (left * t + (right - left) * t**2 / 8000) / area

    assert stats.kstest(times, share).pvalue > 1e-4


def test_points_are_joined_by_lines_or_held() -> None:
    points = [(0, 60), (6000, 120), (12_000, 0)]
    line = Piecewise(duration_s=18_000, points=points)
    step = Piecewise(duration_s=18_000, points=points, between="step")
    assert generate(line, np.random.default_rng(2)).rate(6000.0)[1] == pytest.approx([90, 60, 0], abs=4)
    assert generate(step, np.random.default_rng(2)).rate(6000.0)[1] == pytest.approx([60, 120, 0], abs=5)
    to_the_end = Piecewise(duration_s=12_000, points=points)
    assert generate(to_the_end, np.random.default_rng(2)).rate(6000.0)[1] == pytest.approx([90, 60], abs=4)


@pytest.mark.parametrize("cv", [0.05, 0.5])
def test_wobble_adds_the_variance_it_says_and_leaves_the_mean(cv: float) -> None:
    mean = 50.0
    x = per_minute(Piecewise(duration_s=600_000, points=[(0, mean)], wobble_cv=cv))
    var = mean + (cv * mean) ** 2
    assert mean_within(x, mean, var)
    assert np.var(x) == pytest.approx(var, rel=0.08)


@given(cv=st.floats(0.01, 2.0), seed=st.integers(0, 99))
def test_a_wobbled_curve_is_the_curve_times_one_factor_per_minute(cv: float, seed: int) -> None:
    curve = RateCurve(np.array([0.0, 90.0, 200.0]), np.array([1.0, 8.0]), np.array([4.0, 0.0]))
    wobbled = curve.wobbled(cv, np.random.default_rng(seed))
    assert wobbled.edge_s.tolist() == [0.0, 60.0, 90.0, 120.0, 180.0, 200.0]
    factor = np.random.default_rng(seed).gamma(cv**-2, cv**2, 4)[[0, 1, 1, 2, 3]]
    slope = 8 / 110
    left = [1.0, 3.0, 8.0, 8 - 30 * slope, 8 - 90 * slope]
    right = [3.0, 4.0, 8 - 30 * slope, 8 - 90 * slope, 0.0]
    np.testing.assert_allclose(wobbled.left_per_s, left * factor, atol=1e-12)
    np.testing.assert_allclose(wobbled.right_per_s, right * factor, atol=1e-12)


def test_a_sinusoid_peaks_and_dips_where_it_should() -> None:
    spec = Sinusoid(duration_s=40 * 3600, trough_per_min=10, peak_per_min=90, period_s=7200, peak_at_s=900)
    times = generate(spec, np.random.default_rng(4)).arrival_s
    phase = times % 7200

    def share(t: np.ndarray) -> np.ndarray:
        angle = 2 * np.pi / 7200
        return (50 * t + 40 / angle * (np.sin(angle * (t - 900)) + np.sin(angle * 900))) / (50 * 7200)

    assert abs(len(times) - 50 * 2400) < 4 * np.sqrt(50 * 2400)
    assert stats.kstest(phase, share).pvalue > 1e-4


def test_a_day_repeats_and_is_linear_between_full_hours() -> None:
    hours = [0.0] * 24
    hours[0], hours[23] = 4.0, 2.0
    trace = generate(Diurnal(duration_s=2.5 * 86_400, hours=hours, peak_per_min=400), np.random.default_rng(6))
    _, per_min = trace.rate(3600.0)
    expected = np.zeros(60)
    expected[[0, 22, 23]] = 200, 100, 300
    expected[24:48] = expected[:24]
    expected[48:] = expected[:12]
    np.testing.assert_allclose(per_min, expected, atol=15)
    assert (per_min[expected == 0] == 0).all()


def test_mmpp_is_in_equilibrium_from_the_start() -> None:
    spec = MMPP(
        duration_s=1.0,
        states=[
            State(per_min=600, mean_dwell_s=10),
            State(per_min=6000, mean_dwell_s=40),
            State(per_min=0, mean_dwell_s=20),
        ],
        transitions=[[0, 0.5, 0.5], [1, 0, 0], [0, 1, 0]],
    )
    # Visits: balance gives 0.4, 0.4, 0.2; times the stays 10, 40, 20.
    np.testing.assert_allclose(spec.shares(), np.array([4, 16, 4]) / 24)
    rng = np.random.default_rng(8)
    counts = np.array([len(spec.times(rng)) for _ in range(3000)])
    assert mean_within(counts, (600 * 4 + 6000 * 16) / 24 / 60, float(np.var(counts)))


def test_mmpp_of_two_states_has_the_dispersion_of_theory() -> None:
    # Heffes & Lucantoni 1986: for rates a, b and switching rates p (a to b), q, counts over t have
    # var/mean = 1 + 2 (a - b)^2 p q / ((p + q)^2 (a q + b p)) * (1 - (1 - exp(-(p + q) t)) / ((p + q) t)).
    a, b, p, q, t = 2.0, 0.2, 1 / 50, 1 / 150, 60.0
    spec = MMPP(
        duration_s=3_000_000,
        states=[State(per_min=60 * a, mean_dwell_s=1 / p), State(per_min=60 * b, mean_dwell_s=1 / q)],
    )
    x = per_minute(spec)
    s = p + q
    theory = 1 + 2 * (a - b) ** 2 * p * q / (s**2 * (a * q + b * p)) * (1 - (1 - np.exp(-s * t)) / (s * t))
    assert np.mean(x) == pytest.approx(60 * (a * q + b * p) / s, rel=0.02)
    assert np.var(x) / np.mean(x) == pytest.approx(theory, rel=0.03)


# -- parameters ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({"kind": "poisson", "duration_s": 0, "rate_per_min": 1}, "greater than 0"),
        ({"kind": "poisson", "duration_s": 1, "rate_per_min": float("inf")}, "finite"),
        ({"kind": "piecewise", "duration_s": 9, "points": []}, "at least 1"),
        ({"kind": "piecewise", "duration_s": 9, "points": [[1, 1]]}, "first point must be at 0 s, found 1"),
        ({"kind": "piecewise", "duration_s": 9, "points": [[0, 1], [5, 1], [5, 2]]}, "5 s before 5 s"),
        ({"kind": "piecewise", "duration_s": 9, "points": [[0, 1], [10, 1]]}, r"10 s is after the end \(9 s\)"),
        ({"kind": "sinusoid", "duration_s": 9, "trough_per_min": 5, "peak_per_min": 4}, "is below"),
        ({"kind": "diurnal", "duration_s": 9, "peak_per_min": 4, "hours": [1] * 23}, "at least 24"),
        ({"kind": "diurnal", "duration_s": 9, "peak_per_min": 4, "hours": [0] * 24}, "must not all be 0"),
        ({"kind": "mmpp", "duration_s": 9, "states": [{"per_min": 1, "mean_dwell_s": 1}]}, "at least 2"),
    ],
)
def test_parameters_that_make_no_sense_are_refused(spec: dict[str, object], expected: str) -> None:
    with pytest.raises(ValidationError, match=expected):
        SPECS.validate_python(spec)


@pytest.mark.parametrize(
    ("transitions", "expected"),
    [
        ([[0, 1], [1, 0]], "must be 3 rows of 3"),
        ([[0, 1, 0], [0.5, 0, 0.4], [0, 1, 0]], "row 1 of transitions must sum to 1"),
        ([[0, 1, 0], [1, 0, 0], [0, 0, 1]], "row 2 .* with 0 on the diagonal"),
        ([[0, 1, 0], [1, 0, 0], [1, 0, 0]], "from every state to every other"),
    ],
)
def test_transitions_must_be_an_irreducible_chain(transitions: list[list[float]], expected: str) -> None:
    states = [{"per_min": 1, "mean_dwell_s": 1}] * 3
    with pytest.raises(ValidationError, match=expected):
        SPECS.validate_python({"kind": "mmpp", "duration_s": 9, "states": states, "transitions": transitions})


def test_a_generated_trace_says_how_it_was_made() -> None:
    spec = Poisson(duration_s=60, rate_per_min=100)
    trace = generate(spec, np.random.default_rng(17), name="steady")
    assert (trace.name, trace.duration_s) == ("steady", 60.0)
    (part,) = trace.provenance
    assert part.kind == "synthetic"
    assert part.source.endswith("seed 17")
    assert spec.model_dump_json() in part.source
    assert generate(spec, np.random.default_rng(17)).name == "poisson"


def test_a_trace_in_which_nothing_arrives_is_an_error_of_the_user() -> None:
    with pytest.raises(InputError, match="at least one arrival"):
        generate(Poisson(duration_s=1, rate_per_min=1e-9), np.random.default_rng(0))


def test_the_seed_of_a_generator_is_what_it_was_made_from() -> None:
    assert seed_of(np.random.default_rng(3)) == "seed 3"
    child = np.random.SeedSequence(3).spawn(2)[1]
    assert seed_of(np.random.default_rng(child)) == "seed 3, child (1,)"


# -- files -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["bursty", "diurnal"])
def test_the_shipped_traces_are_what_their_specs_give(name: str) -> None:
    made = generate_file(SHIPPED / f"{name}.yaml")
    shipped = Trace.read(find_trace(name))
    np.testing.assert_array_equal(made.arrival_s, shipped.arrival_s)
    assert (made.name, made.duration_s) == (name, shipped.duration_s)
    assert (made.provenance, made.transformations) == (shipped.provenance, shipped.transformations)
    assert (made.arrival_s / RESOLUTION_S % 1 == 0).all()
    assert (SHIPPED / f"{name}.parquet").stat().st_size < 700_000


def test_the_bursty_trace_has_the_plateaus_of_the_artefact() -> None:
    _, x = Trace.read(find_trace("bursty")).rate(60.0)
    assert len(x) == 840
    high = np.zeros(840, dtype=bool)
    for start, end in ((160, 270), (420, 530), (680, 790)):
        high[start:end] = True
        assert np.mean(x[start + 2 : end - 2]) == pytest.approx(389, rel=0.02)
    assert 53 < np.mean(x[~high & ~np.roll(high, 2) & ~np.roll(high, -2)]) < 59


def test_the_diurnal_trace_peaks_at_1_2_times_the_base_capacity() -> None:
    _, x = Trace.read(find_trace("diurnal")).rate(3600.0)
    assert len(x) == 24
    assert np.max(x) == pytest.approx(1.2 * 188.6, rel=0.05)
    assert np.min(x) == pytest.approx(np.max(x) / 5, rel=0.1)
    humps = [h for h in range(1, 23) if x[h] > x[h - 1] and x[h] > x[h + 1]]
    assert len(humps) == 2


GOOD = {"name": "x", "seed": 1, "arrivals": {"kind": "poisson", "duration_s": 60, "rate_per_min": 100}}


def write(path: Path, **changes: object) -> Path:
    path.write_text(json.dumps({**GOOD, **changes}))  # JSON is YAML
    return path


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"sed": 1}, r"x.yaml: sed: unknown field; did you mean 'seed'\?"),
        ({"seed": -1}, "x.yaml: seed: .* greater than or equal to 0, found -1"),
        ({"arrivals": {"kind": "poison"}}, r"x.yaml: arrivals: unknown kind 'poison'; did you mean 'poisson'\?"),
        ({"arrivals": {"duration_s": 1}}, "x.yaml: arrivals: .*'kind'"),
        (
            {"arrivals": {"kind": "poisson", "duration_s": 60, "rate_per_min": "many"}},
            "x.yaml: arrivals.rate_per_min: .* valid number.*, found 'many'",
        ),
        (
            {"arrivals": {**GOOD["arrivals"], "rate_per_mn": 1}},  # type: ignore[dict-item]
            r"x.yaml: arrivals.rate_per_mn: unknown field; did you mean 'rate_per_min'\?",
        ),
        (
            {"arrivals": {"kind": "mmpp", "duration_s": 60, "states": [{"per_min": 1, "dwell_s": 1}] * 2}},
            r"x.yaml: arrivals.states.0.mean_dwell_s: is required",
        ),
        (
            {"arrivals": {"kind": "piecewise", "duration_s": 60, "points": [[1, 2]]}},
            "x.yaml: arrivals: the first point must be at 0 s, found 1",
        ),
    ],
)
def test_what_is_wrong_in_a_spec_is_named_by_field(
    tmp_path: Path, changes: dict[str, object], expected: str
) -> None:
    with pytest.raises(InputError, match=expected):
        generate_file(write(tmp_path / "x.yaml", **changes))


def test_an_unknown_field_of_a_state_is_compared_with_those_of_a_state(tmp_path: Path) -> None:
    states = [{"per_min": 1, "mean_dwell_s": 1, "per_mn": 1}] * 2
    path = write(tmp_path / "x.yaml", arrivals={"kind": "mmpp", "duration_s": 60, "states": states})
    with pytest.raises(InputError, match=r"states\.0\.per_mn: unknown field; did you mean 'per_min'"):
        generate_file(path)


def test_a_spec_that_is_no_yaml_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone\.yaml: no such file"):
        generate_file(tmp_path / "gone.yaml")
    path = tmp_path / "x.yaml"
    path.write_text("name: [x\nseed: 1\n")
    with pytest.raises(InputError, match=r"x\.yaml: line 2: not YAML: expected ',' or ']', but got ':'"):
        generate_file(path)
    path.write_bytes(b"name: \xff")
    with pytest.raises(InputError, match=r"x\.yaml: not YAML: "):
        generate_file(path)
    path.write_text("just text")
    with pytest.raises(InputError, match=r"x\.yaml: must be a mapping"):
        generate_file(path)
