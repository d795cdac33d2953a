"""A trace refuses what cannot be one, survives its files exactly, and scales without losing its shape."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from argus_sim.errors import InputError
from argus_sim.provenance import Provenance
from argus_sim.trace import Trace, find_trace, shipped_models, shipped_traces

ORIGIN = (Provenance(kind="synthetic", source="by hand"),)
SUFFIXES = pytest.mark.parametrize("suffix", [".csv", ".parquet"])


def make(times: object, duration_s: float = 100.0, **other: object) -> Trace:
    return Trace("made", np.asarray(times), duration_s, ORIGIN, **other)  # type: ignore[arg-type]


@st.composite
def traces(draw: st.DrawFn, *, prompts: bool = True) -> Trace:
    times = sorted(draw(st.lists(st.floats(0, 1e6), min_size=1, max_size=30)))
    duration_s = times[-1] + draw(st.floats(1e-3, 1e3))
    prompt = None
    if prompts and draw(st.booleans()):
        prompt = tuple(draw(st.lists(st.text(), min_size=len(times), max_size=len(times))))
    return make(times, duration_s, prompt=prompt, transformations=tuple(draw(st.lists(st.text(), max_size=2))))


# -- what a trace is -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("times", "duration_s", "expected"),
    [
        ([0.0, np.nan], 9.0, r"trace 'made': arrival_s\[1\]: arrival time nan is not a finite number"),
        ([0.0, np.inf], 9.0, r"arrival_s\[1\]: arrival time inf is not a finite number"),
        ([-1.0, 0.0], 9.0, r"arrival_s\[0\]: arrival time -1 is negative"),
        ([0.0, 2.0, 1.0], 9.0, r"arrival_s\[2\]: arrival time 1 is earlier than the arrival before it"),
        ([], 9.0, r"at least one arrival, found shape \(0,\)"),
        ([[1.0]], 9.0, r"found shape \(1, 1\)"),
        (["soon"], 9.0, r"must be numbers: .*'soon'"),
        ([0.0, 2.0], 1.5, r"no less than the last arrival \(2\), found 1.5"),
        ([0.0], 0.0, r"above 0"),
        ([0.0], np.inf, r"must be finite"),
        ([0.0], np.nan, r"must be finite"),
    ],
)
def test_what_is_no_trace_is_refused(times: list[object], duration_s: float, expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        make(times, duration_s)


def test_provenance_and_a_prompt_per_arrival_are_required() -> None:
    with pytest.raises(InputError, match="no provenance"):
        Trace("made", np.array([1.0]), 2.0, ())
    with pytest.raises(InputError, match="1 prompts for 2 arrivals"):
        make([1.0, 2.0], prompt=("a cat",))


def test_a_trace_owns_its_arrivals() -> None:
    times = np.array([1.0, 2.0])
    trace = make(times)
    times[0] = 5.0
    assert trace.arrival_s.tolist() == [1.0, 2.0]
    with pytest.raises(ValueError, match="read-only"):
        trace.arrival_s[0] = 0.0


def test_equal_prompts_are_held_once() -> None:
    trace = make([1.0, 2.0], prompt=("".join(["a ", "cat"]), "".join(["a ", "cat"])))
    assert trace.prompt is not None
    assert trace.prompt[0] is trace.prompt[1]


def test_the_digest_tells_traces_apart_by_the_work_they_ask_for() -> None:
    trace = make([1.0, 2.0])
    same = Trace("other name", trace.arrival_s, 100.0, ORIGIN, transformations=("clipped",))
    others = [make([1.0, 2.5]), make([1.0, 2.0], 101.0), make([1.0, 2.0], prompt=("a", "b"))]
    others.append(make([1.0, 2.0], prompt=("b", "a")))
    assert trace.digest() == same.digest()
    assert len({trace.digest(), *(other.digest() for other in others)}) == 5


# -- files -----------------------------------------------------------------------------------------


@SUFFIXES
@given(trace=traces())
def test_a_saved_trace_reads_back_exactly_and_saves_to_the_same_bytes(suffix: str, trace: Trace) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"a{suffix}"
        trace.save(path)
        back = Trace.read(path)
        again = Path(folder) / f"b{suffix}"
        back.save(again)
        assert path.read_bytes() == again.read_bytes()
    assert back.arrival_s.tolist() == trace.arrival_s.tolist()
    assert (back.name, back.duration_s, back.prompt) == (trace.name, trace.duration_s, trace.prompt)
    assert (back.provenance, back.transformations) == (trace.provenance, trace.transformations)
    assert back.digest() == trace.digest()


@SUFFIXES
def test_saving_makes_the_folder_and_leaves_nothing_else_behind(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / "new" / f"a{suffix}"
    make([1.0]).save(path)
    assert list(path.parent.iterdir()) == [path]


@SUFFIXES
def test_a_save_that_fails_leaves_the_old_file_as_it_was(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    make([1.0]).save(path)
    before = path.read_bytes()
    with pytest.raises(UnicodeEncodeError):
        make([1.0], prompt=("\ud800",)).save(path)  # a lone surrogate has no UTF-8
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_without_a_header_is_a_recording_that_ends_with_its_last_arrival(tmp_path: Path) -> None:
    plain = tmp_path / "mine.csv"
    plain.write_text("prompt,arrival_s,user\nNA,0.5,7\nnull,2,8\n")
    parquet = tmp_path / "mine.parquet"
    pq.write_table(pa.table({"arrival_s": pa.array([0.5, 2.0], pa.float32()), "prompt": ["NA", "null"]}), parquet)
    for path in (plain, parquet):
        trace = Trace.read(path)
        assert trace.arrival_s.tolist() == [0.5, 2.0]
        assert trace.prompt == ("NA", "null")
        assert (trace.name, trace.duration_s) == ("mine", 2.0)
        assert [part.kind for part in trace.provenance] == ["recorded"]
        assert path.name in trace.provenance[0].source


def test_a_byte_order_mark_is_no_part_of_a_name(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("arrival_s\n3\n", encoding="utf-8-sig")
    assert Trace.read(path).arrival_s.tolist() == [3.0]
    path.write_text(f"{HEADER}arrival_s\n3\n", encoding="utf-8-sig")
    assert (Trace.read(path).name, Trace.read(path).duration_s) == ("x", 9.0)


HEADER = (
    '# argus_sim.trace: {"name": "x", "duration_s": 9, "provenance": [{"kind": "recorded", "source": "s"}]}\n'
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("arrival_s\n1\nsoon\n", "a.csv: line 3, column 'arrival_s': 'soon' is not a number"),
        ("arrival_s\n1\n\n\n0.5\n", "a.csv: line 5, column 'arrival_s': arrival time 0.5 is earlier"),
        ('prompt,arrival_s\n"a\ncat",1\n"a\ndog",-1\n', "a.csv: line 4, column 'arrival_s': .* is negative"),
        (HEADER + "arrival_s\n1\nx\n", "a.csv: line 4, column 'arrival_s': 'x' is not a number"),
        (HEADER + "arrival_s\n1\n0\n", "a.csv: line 4, column 'arrival_s': .* is earlier"),
        (HEADER + "arrival_s\n11\n", "trace 'x': duration_s .* last arrival .11., found 9"),
        ("arrival_s,prompt\n1,a\n,b\n", "a.csv: line 3, column 'arrival_s': .*nan is not a finite number"),
        ("arrival_s,prompt\n1,a\n2\n", "a.csv: line 3: has 1 fields, the header has 2"),
        ("arrival,prompt\n1,a\n", "a.csv: no column 'arrival_s'; did you mean 'arrival'?"),
        ("arrival_s,arrival_s\n1,1\n", "a.csv: more than one column 'arrival_s'"),
        ("when,user\n1,a\n", r"a.csv: no column 'arrival_s'.*'argus-sim traces import csv' .* time_column=NAME"),
        ("arrival_s\n1741089600\n1741089601\n", r"a.csv: begins at 1.741e\+09 s, years .* from_first=true"),
        ("arrival_s\n", "a.csv: has no arrivals"),
        ("", "a.csv: no column 'arrival_s'"),
        ("# argus_sim.trace: {}\narrival_s\n1\n", "a.csv: line 1: name: is required"),
        ("# argus_sim.trace: {\narrival_s\n1\n", "a.csv: line 1: Invalid JSON"),
    ],
)
def test_what_is_wrong_in_a_csv_file_is_named_by_line(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "a.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=expected):
        Trace.read(path)


@pytest.mark.parametrize("content", [b"arrival_s\n1\n\xff\n", b"\xff\xfe\n1\n"])
def test_a_csv_file_that_is_no_text_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"a\.csv"):
        Trace.read(path)


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"arrival_s": [1.0, 3.0, 2.0]}, "a.parquet: row 3, column 'arrival_s': arrival time 2 is earlier"),
        ({"arrival_s": [1.0, None]}, "a.parquet: row 2, column 'arrival_s': .* not a finite number"),
        ({"arrival_s": ["1"]}, "column 'arrival_s' must hold numbers, found string"),
        ({"arrivals": [1.0]}, "no column 'arrival_s'; did you mean 'arrivals'?"),
        ({"arrival_s": [1.0, 2.0], "prompt": ["a", None]}, "column 'prompt' must hold text in every row"),
        ({"arrival_s": pa.array([], pa.float64())}, "has no arrivals"),
    ],
)
def test_what_is_wrong_in_a_parquet_file_is_named_by_row(
    tmp_path: Path, columns: dict[str, object], expected: str
) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table(columns), path)
    with pytest.raises(InputError, match=expected):
        Trace.read(path)


def test_only_files_that_are_there_and_of_a_known_kind_are_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone\.csv: no such file"):
        Trace.read(tmp_path / "gone.csv")
    with pytest.raises(InputError, match=r"did you mean '\.parquet'"):
        Trace.read(tmp_path / "a.parqet")
    with pytest.raises(InputError, match="not a trace file"):
        make([1.0]).save(tmp_path / "a.txt")
    (tmp_path / "a.parquet").write_text("arrival_s\n1\n")
    with pytest.raises(InputError, match=r"a\.parquet: not a Parquet file"):
        Trace.read(tmp_path / "a.parquet")


def test_shipped_traces_are_found_by_name_and_files_by_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert shipped_traces() == ["bursty", "diurnal"]
    assert "gentd26-fit" in shipped_models()
    assert find_trace("gentd26-fit").suffix == ".yaml"
    for name in shipped_traces():
        assert Trace.read(find_trace(name)).name == name
    assert find_trace("runs/mine.csv") == Path("runs/mine.csv")
    with pytest.raises(InputError, match="no trace is called 'busty'; did you mean 'bursty'"):
        find_trace("busty")
    with pytest.raises(InputError, match="no trace is called 'elsewhere/bursty'"):
        find_trace("elsewhere/bursty")
    monkeypatch.chdir(tmp_path)
    Path("bursty").write_text("")
    assert find_trace("bursty") == Path("bursty")


def test_a_wheel_brings_its_traces_inside_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside = tmp_path / "argus_sim" / "_shipped" / "traces"
    make([1.0]).save(inside / "wheel-only.parquet")
    monkeypatch.setattr("argus_sim.trace.trace.__file__", str(tmp_path / "argus_sim" / "trace" / "trace.py"))
    assert shipped_traces() == ["wheel-only"]
    assert find_trace("wheel-only") == inside / "wheel-only.parquet"


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
