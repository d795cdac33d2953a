"""A trace refuses what cannot be one, and survives its files exactly."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given

from argus_sim.errors import InputError
from argus_sim.trace import Trace, find_trace, shipped_models, shipped_traces
from tests.make_trace import ORIGIN, make, traces

SUFFIXES = pytest.mark.parametrize("suffix", [".csv", ".parquet"])


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
        ("", "a.csv: is empty"),
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
