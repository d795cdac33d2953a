"""Importers keep what was recorded, draw only what was not, and say which is which.

Small files by hand stand for the public ones; where ``ARGUS_DATA`` names a folder with the recorded data sets,
the importers are compared with plain pandas on them too.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from argus_sim.errors import InputError
from argus_sim.importers import FORMATS, import_trace
from argus_sim.trace import Trace
from tests.recordings import FILES, REQUESTS, counted_per_minute, rng

# -- files by hand ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        REQUESTS.format("t_s", 0, 5, 5, 90),
        REQUESTS.format(
            "gmt_create",
            "2024-11-15 23:59:00",
            "2024-11-15 23:59:05",
            "2024-11-15 23:59:05",
            "2024-11-16 00:00:30",
        ),
    ],
)
def test_gentd26_requests_are_of_one_type_unless_all_are_asked_for(
    file: Callable[[str], Path], text: str
) -> None:
    path = file(text)
    trace = import_trace("gentd26-requests", path, rng=rng())
    assert (trace.name, trace.arrival_s.tolist(), trace.duration_s) == ("mine", [0.0, 5.0], 90.0)
    assert [(part.kind, part.covers) for part in trace.provenance] == [("recorded", "*")]
    assert trace.transformations == ()
    every = import_trace("gentd26-requests", path, rng=rng(), predict_type="all")
    assert every.arrival_s.tolist() == [0.0, 5.0, 5.0, 90.0]
    edits = import_trace("gentd26-requests", path, rng=rng(), predict_type="IMG_2_IMG")
    assert edits.arrival_s.tolist() == [5.0]


def test_gentd26_gateway_rates_become_poisson_arrivals_within_their_sample(
    file: Callable[[str], Path],
) -> None:
    path = file("t_s,api_qps,generative_qps\n100,9,0.0\n157,9,40.0\n214,9,10.0\n")
    trace = import_trace("gentd26-gateway", path, rng=rng(), scale="2.5")
    assert trace.duration_s == 3 * 57
    _, per_min = trace.rate(57.0)
    expected = np.array([0.0, 40.0, 10.0]) * 2.5
    np.testing.assert_allclose(per_min / 60.0, expected, atol=4 * np.sqrt(100 / 57))
    assert per_min[0] == 0
    recorded, drawn = trace.provenance
    assert (recorded.kind, drawn.kind) == ("recorded", "synthetic")
    assert drawn.source.endswith("seed 11")
    again = import_trace("gentd26-gateway", path, rng=rng(), scale=2.5)
    assert again.digest() == trace.digest()


@pytest.mark.parametrize(
    "text",
    [
        "t_s,context_tokens,generated_tokens\n0.0,4808,10\n0.052,3180,8\n0.0982,110,27\n",
        "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03.9799600,4808,10\n"
        "2023-11-16 18:17:04.0319600,3180,8\n2023-11-16 18:17:04.0781600,110,27\n",
    ],
)
def test_azure_llm_is_read_with_seconds_or_as_published(file: Callable[[str], Path], text: str) -> None:
    trace = import_trace("azure-llm-2023", file(text), rng=rng())
    assert trace.arrival_s.tolist() == pytest.approx([0.0, 0.052, 0.0982])
    assert trace.duration_s == trace.arrival_s[-1]
    assert trace.provenance[0].licence == "CC-BY-4.0"


def test_nab_counts_are_spread_over_their_five_minutes(file: Callable[[str], Path]) -> None:
    path = file(
        "timestamp,AAPL,KO\n2015-02-26 21:42:53,3,2.0\n2015-02-26 21:47:53,0,\n2015-02-26 21:52:53,4,1.0\n"
    )
    for options, counts in (({}, [5, 0, 5]), ({"column": "KO"}, [2, 0, 1])):
        trace = import_trace("nab-twitter-volume", path, rng=rng(), **options)
        assert trace.duration_s == 900.0
        assert (trace.rate(300.0)[1] * 5).tolist() == counts
        assert [part.kind for part in trace.provenance] == ["recorded", "synthetic"]
    published = file("timestamp,value\n2015-02-26 21:42:53,3\n2015-02-26 21:47:53,1\n")
    assert len(import_trace("nab-twitter-volume", published, rng=rng())) == 4


@given(counts=st.lists(st.integers(0, 50), min_size=2, max_size=20).filter(any), seed=st.integers(0, 99))
def test_nab_counts_are_kept_whatever_the_seed(
    tmp_path_factory: pytest.TempPathFactory, counts: list[int], seed: int
) -> None:
    stamps = pd.date_range("2015-02-26 21:42:53", periods=len(counts), freq="5min")
    path = tmp_path_factory.mktemp("nab") / "a.csv"
    pd.DataFrame({"timestamp": stamps, "value": counts}).to_csv(path, index=False)
    trace = import_trace("nab-twitter-volume", path, rng=np.random.default_rng(seed))
    assert np.rint(trace.rate(300.0)[1] * 5).tolist() == counts


def test_any_csv_file_is_read_by_column_and_unit(file: Callable[[str], Path]) -> None:
    path = file('when,text\n1500,a cat\n250,"a dog, running"\n')
    trace = import_trace("csv", path, rng=rng(), time_column="when", unit="ms", prompt_column="text")
    assert trace.arrival_s.tolist() == [0.25, 1.5]
    assert trace.prompt == ("a dog, running", "a cat")
    assert trace.transformations == ("sorted by time",)
    first = import_trace("csv", path, rng=rng(), time_column="when", unit="min", from_first="true")
    assert first.arrival_s.tolist() == [0.0, 75_000.0]
    stamps = file("arrival_s\n2026-01-01T10:00:00+01:00\n2026-01-01T09:00:00.5Z\n")
    assert import_trace("csv", stamps, rng=rng(), unit="timestamp").arrival_s.tolist() == [0.0, 0.5]


@pytest.mark.parametrize(
    ("format", "text", "options", "expected"),
    [
        (
            "azure-llm-2023",
            "TIMESTAMP\n2023-11-16 18:17:03.97\nsoon\n",
            {},
            "line 3, column 'TIMESTAMP': 'soon' is",
        ),
        ("azure-llm-2023", "t_s,x\n0,1\n,1\n", {}, "line 3, column 't_s': 'nan' is not a finite number >= 0"),
        ("azure-llm-2023", "t_s\n-1\n", {}, "line 2, column 't_s': '-1.0' is not"),
        ("azure-llm-2023", "time\n1\n", {}, "mine.csv: no column 'TIMESTAMP'"),
        ("azure-llm-2023", "t_s\n", {}, "mine.csv: has no rows"),
        ("csv", "", {}, "mine.csv: is empty"),
        (
            "csv",
            "arrival_s;user\n1;a\n2;b\n",
            {},
            "mine.csv: line 1: has ';' between its columns; allowed are commas",
        ),
        ("csv", "arrival_s\n5\n5\n", {"from_first": True}, "mine.csv: all arrivals are at the same time"),
        ("csv", "arrival_s\n0\n", {}, "mine.csv: all arrivals are at the same time"),
        ("gentd26-requests", "t_s\n1\n", {}, "no column 'predict_type'"),
        ("gentd26-requests", "t_s,predict_type\n1,INPAINTING\n", {}, "at least one arrival"),
        ("gentd26-gateway", "t_s,generative_qps\n0,1\n57,-1\n", {}, "line 3, column 'generative_qps': '-1.0'"),
        ("gentd26-gateway", "t_s,generative_qps\n0,1\n0,1\n", {}, "line 3, column 't_s': is no later"),
        ("gentd26-gateway", "t_s,generative_qps\n0,1\n", {}, "at least two rows"),
        ("gentd26-gateway", "", {"scale": 0}, "format gentd26-gateway: scale: .* greater than 0, found 0"),
        (
            "nab-twitter-volume",
            "timestamp,value\n2015-01-01,1\n2015-01-02,0.5\n",
            {},
            "line 3.*not a whole number",
        ),
        ("nab-twitter-volume", "timestamp,AAPL\n", {"column": "APL"}, "no column 'APL'; did you mean 'AAPL'"),
        ("nab-twitter-volume", "timestamp,AAPL\n", {"column": "AAPL"}, "has no rows"),
        ("csv", "a,b\n1,2\n", {"time_column": "c"}, "no column 'c'.* Allowed: a, b. Say which has the times"),
        ("csv", "a\n2025-03-04 12:00\n", {"time_column": "a"}, "is not a number; dates need unit=timestamp"),
        ("csv", "", {"unit": "days"}, "format csv: unit: .*, found 'days'"),
        ("csv", "", {"time_colum": "a"}, "time_colum: unknown field; did you mean 'time_column'"),
        ("azure-llm", "", {}, "no trace format is called 'azure-llm'; did you mean 'azure-llm-202"),
    ],
)
def test_what_is_wrong_is_named(
    file: Callable[[str], Path], format: str, text: str, options: dict[str, object], expected: str
) -> None:
    with pytest.raises(InputError, match=expected):
        import_trace(format, file(text), rng=rng(), **options)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    for format in FORMATS:
        with pytest.raises(InputError, match=r"gone\.csv: no such file"):
            import_trace(format, tmp_path / "gone.csv", rng=rng())


def test_every_format_describes_itself_and_its_options() -> None:
    for name, kind in FORMATS.items():
        assert kind.name == name
        assert kind.description
        assert "\n" not in kind.description
        assert kind.source
        assert kind.licence
        assert all(option.description for option in kind.model_fields.values())


# -- the recorded data sets ------------------------------------------------------------------------


def load(data: Path, name: str, **options: object) -> tuple[Trace, pd.DataFrame]:
    path = data / "traces" / FILES[name]
    return import_trace(name, path, rng=rng(), **options), pd.read_csv(path)


@pytest.mark.data
@pytest.mark.parametrize(("predict_type", "count"), [("TXT_2_IMG", 24_438), ("all", 26_823)])
def test_gentd26_requests_recorded(data: Path, predict_type: str, count: int) -> None:
    trace, frame = load(data, "gentd26-requests", predict_type=predict_type)
    times = frame["t_s"] if predict_type == "all" else frame["t_s"][frame["predict_type"] == predict_type]
    assert len(trace) == len(times) == count
    assert trace.arrival_s[0] == times.iloc[0] == 0
    assert trace.arrival_s[-1] == times.max()
    assert trace.duration_s == frame["t_s"].max() == 1_989_367
    full = int(trace.duration_s // 60) - 1  # the last window ends with the trace
    assert trace.rate(60.0)[1][:full].tolist() == counted_per_minute(times[times < 60 * full], full)


@pytest.mark.data
def test_gentd26_gateway_recorded(data: Path) -> None:
    trace, frame = load(data, "gentd26-gateway")
    assert trace.duration_s == frame["t_s"].iloc[-1] + 57
    _, per_min = trace.rate(57.0)
    expected = frame["generative_qps"].to_numpy()
    assert len(per_min) == len(expected) == 1410
    assert (per_min[expected == 0] == 0).all()
    mean = expected * 57
    z = (per_min / 60 * 57 - mean)[mean > 0] / np.sqrt(mean[mean > 0])
    assert np.mean(z) == pytest.approx(0, abs=0.15)
    assert np.var(z) == pytest.approx(1, abs=0.2)  # Poisson around each recorded rate


@pytest.mark.data
def test_azure_llm_recorded(data: Path) -> None:
    trace, frame = load(data, "azure-llm-2023")
    assert trace.arrival_s.tolist() == frame["t_s"].tolist()
    assert trace.rate(60.0)[1][:57].tolist() == counted_per_minute(frame["t_s"][frame["t_s"] < 57 * 60.0], 57)
    assert len(trace) == 19_366


@pytest.mark.data
@pytest.mark.parametrize("column", [None, "GOOG"])
def test_nab_recorded(data: Path, column: str | None) -> None:
    trace, frame = load(data, "nab-twitter-volume", column=column)
    counts = frame[column] if column else frame.drop(columns="timestamp").sum(axis=1)
    assert np.rint(trace.rate(300.0)[1] * 5).tolist() == counts.fillna(0).tolist()
    assert trace.duration_s == 300 * len(frame)
    assert 0 <= trace.arrival_s[0] < 300
