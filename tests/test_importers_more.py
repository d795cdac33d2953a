"""More formats, as small files to the published description and as recorded, and importing without holding."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from argus_sim.errors import InputError
from argus_sim.importers import import_file, import_trace
from argus_sim.trace import Trace
from tests.recordings import FILES, REQUESTS, counted_per_minute, rng

# -- importing to a file ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("format", "text", "sorted_by_time"),
    [
        ("azure-llm-2023", "t_s\n0.5\n1\n1\n200\n", False),
        ("azure-llm-2023", "t_s\n0.5\n1\n0.25\n200\n", True),
        ("gentd26-requests", REQUESTS.format("t_s", 1, 5, 5, 90), False),
        ("burstgpt", "Timestamp,Model,Log Type\n100,GPT-4,API log\n160,ChatGPT,API log\n", False),
        ("csv", "arrival_s\n1\n2\n", False),
        ("nab-twitter-volume", "timestamp,A\n2015-02-26 21:42:53,3\n2015-02-26 21:47:53,4\n", False),
    ],
)
def test_a_file_written_while_it_is_read_is_that_of_the_trace(
    file: Callable[[str], Path], tmp_path: Path, format: str, text: str, sorted_by_time: bool
) -> None:
    path = file(text)
    trace = import_trace(format, path, rng=np.random.default_rng(3))
    for suffix in (".parquet", ".csv"):
        summary = import_file(format, path, tmp_path / f"out{suffix}", seed=3)
        back = Trace.read(tmp_path / f"out{suffix}")
        assert summary == trace.summary() == back.summary()
        assert (back.provenance, back.duration_s) == (trace.provenance, trace.duration_s)
        assert back.transformations == (("sorted by time",) if sorted_by_time else ())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine.csv", "out.csv", "out.parquet"]


def test_batches_join_to_what_one_batch_gives(file: Callable[[str], Path], tmp_path: Path) -> None:
    """Long enough for several batches of Arrow's reader, in order and not."""
    times = np.arange(300_000) * 0.25
    path = file("t_s,other\n" + "".join(f"{t},some text to fill the row\n" for t in times))
    assert path.stat().st_size > 3 << 20
    summary = import_file("azure-llm-2023", path, tmp_path / "a.parquet")
    assert summary.count == 300_000
    assert Trace.read(tmp_path / "a.parquet").arrival_s.tolist() == times.tolist()
    late = "t_s,other\n" + "".join(f"{t},some text to fill the row\n" for t in [*times[1:], 0.0])
    summary = import_file("azure-llm-2023", file(late), tmp_path / "b.parquet")
    assert summary.header.transformations == ("sorted by time",)
    assert Trace.read(tmp_path / "b.parquet").arrival_s.tolist() == times.tolist()


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_compressed_log(tmp_path: Path, suffix: str) -> None:
    """As logs are when they have been rotated; what is wrong in one is found by its line all the same."""
    path, out = tmp_path / "log.csv.gz", tmp_path / f"out{suffix}"
    rows = ["when", "2026-03-02T12:00:00Z", "2026-03-02T13:00:01+01:00", "2026-03-02T12:00:03Z"]
    path.write_bytes(gzip.compress("\n".join(rows).encode()))
    import_file("csv", path, out, time_column="when", unit="timestamp")
    assert Trace.read(out).arrival_s.tolist() == [0.0, 1.0, 3.0]
    path.write_bytes(gzip.compress("\n".join([*rows, "soon"]).encode()))
    with pytest.raises(InputError, match=r"log\.csv\.gz: line 5, column 'when': 'soon' is not an ISO 8601"):
        import_file("csv", path, out, time_column="when", unit="timestamp")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"when\n1\n2\n", "log.csv.gz: not a CSV file that can be read: Not a gzipped file"),
        (
            gzip.compress(b"when\n" + b"".join(b"%d\n" % i for i in range(100_000)))[:-50_000],
            "log.csv.gz: not a CSV",
        ),
        (gzip.compress(b"when\n1\n2\n")[:12], "log.csv.gz: not a CSV file that can be read"),
    ],
)
def test_a_compressed_log_that_is_none(tmp_path: Path, content: bytes, message: str) -> None:
    path, out = tmp_path / "log.csv.gz", tmp_path / "out.parquet"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        import_file("csv", path, out, time_column="when")
    assert not out.exists()


def test_an_import_that_fails_leaves_nothing(file: Callable[[str], Path], tmp_path: Path) -> None:
    path = file("t_s\n" + "1\n" * 300_000 + "x\n")
    with pytest.raises(InputError, match="line 300002, column 't_s': 'x' is not a number"):
        import_file("azure-llm-2023", path, tmp_path / "out" / "a.parquet")
    assert list((tmp_path / "out").iterdir()) == []


# -- formats of which no file is at hand: small files to the published description ---------------------


def test_azure_llm_2024(file: Callable[[str], Path]) -> None:
    path = file(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n2024-05-10 00:00:00.009930+00:00,2162,5\n"
        "2024-05-10 00:00:00.017335+00:00,2399,6\n2024-05-10 00:01:00+00:00,76,15\n"
    )
    trace = import_trace("azure-llm-2024", path, rng=rng())
    assert trace.arrival_s.tolist() == pytest.approx([0.0, 0.007405, 59.99007], abs=1e-9)
    assert "2024" in trace.provenance[0].source


def test_azure_functions_2021_arrive_when_they_began(file: Callable[[str], Path]) -> None:
    path = file("app,func,end_timestamp,duration\na,f,5160.5,0.25\nb,f,5161,42\na,g,5162.25,1.25\n")
    trace = import_trace("azure-functions-2021", path, rng=rng())
    assert trace.arrival_s.tolist() == [0.0, 41.25, 42.0]
    assert trace.transformations == ("sorted by time",)
    assert import_trace("azure-functions-2021", path, rng=rng(), app="a").arrival_s.tolist() == [0.0, 0.75]


def functions_day(path: Path, rows: list[tuple[str, dict[int, int]]]) -> None:
    header = ["HashOwner", "HashApp", "HashFunction", "Trigger", *map(str, range(1, 1441))]
    lines = [["o", "a", "f", trigger, *(str(c.get(m, 0)) for m in range(1, 1441))] for trigger, c in rows]
    path.write_text("\n".join(",".join(line) for line in [header, *lines]) + "\n")


def test_azure_functions_2019_counts_are_summed_and_days_follow_each_other(tmp_path: Path) -> None:
    folder = tmp_path / "maf"
    folder.mkdir()
    functions_day(
        folder / "invocations_per_function_md.anon.d01.csv",
        [("http", {1: 3, 1440: 2}), ("timer", {1: 1, 2: 7})],
    )
    functions_day(folder / "invocations_per_function_md.anon.d02.csv", [("http", {5: 4})])
    trace = import_trace("azure-functions-2019", folder, rng=rng())
    assert trace.duration_s == 2 * 86_400
    per_minute = trace.rate(60.0)[1]
    assert {int(m): int(per_minute[m]) for m in np.flatnonzero(per_minute)} == {0: 4, 1: 7, 1439: 2, 1444: 4}
    day = import_trace(
        "azure-functions-2019", folder / "invocations_per_function_md.anon.d01.csv", rng=rng(), trigger="http"
    )
    assert (len(day), day.duration_s) == (5, 86_400.0)
    with pytest.raises(InputError, match=r"holds no file 'invocations_per_function_md\.anon\.d\*\.csv'"):
        import_trace("azure-functions-2019", tmp_path, rng=rng())


def test_azure_functions_2019_can_be_thinned(tmp_path: Path) -> None:
    path = tmp_path / "d.csv"
    functions_day(path, [("http", dict.fromkeys(range(1, 1441), 100))])
    thin = import_trace("azure-functions-2019", path, rng=rng(), share=0.1)
    assert abs(len(thin) - 14_400) < 4 * np.sqrt(144_000 * 0.09)
    assert "probability 0.1" in (thin.provenance[1].derived or "")


def test_burstgpt(file: Callable[[str], Path]) -> None:
    head = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
    path = file(
        head + "5,ChatGPT,472,18,490,Conversation log\n45,ChatGPT,1087,230,1317,API log\n"
        "118,GPT-4,417,276,693,API log\n"
    )
    assert import_trace("burstgpt", path, rng=rng()).arrival_s.tolist() == [0.0, 40.0, 113.0]
    some = import_trace("burstgpt", path, rng=rng(), model="ChatGPT", log_type="API log")
    assert (some.arrival_s.tolist(), some.duration_s) == ([40.0], 113.0)


def test_mooncake(file: Callable[[str], Path]) -> None:
    path = file(
        '{"timestamp": 0, "input_length": 6758, "output_length": 500, "hash_ids": [0, 1]}\n'
        '{"timestamp": 3052, "input_length": 7319, "output_length": 490, "hash_ids": [0]}\n\n'
    )
    assert import_trace("mooncake", path, rng=rng()).arrival_s.tolist() == [0.0, 3.052]
    for bad, expected in (("{", "line 1: not JSON"), ('{"time": 1}', "line 1: timestamp must be .* found None")):
        with pytest.raises(InputError, match=expected):
            import_trace("mooncake", file(bad), rng=rng())


def test_diffserve_as_published_and_with_prompts(file: Callable[[str], Path], tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("a cat\na dog\n")
    for text in ("636.0,2\n1058,1\n", "t_ms,prompt_id\n636.0,2\n1058,1\n"):
        path = file(text)
        trace = import_trace("diffserve", path, rng=rng(), prompts=tmp_path / "texts.txt")
        assert trace.arrival_s.tolist() == [0.636, 1.058]
        assert trace.prompt == ("a dog", "a cat")
        assert import_trace("diffserve", path, rng=rng()).prompt is None
    assert [part.kind for part in trace.provenance] == ["recorded", "synthetic"]
    with pytest.raises(InputError, match=r"line 2, column 'prompt_id': '3\.0' is none of 1 to 2"):
        import_trace("diffserve", file("1,1\n2,3\n"), rng=rng(), prompts=tmp_path / "texts.txt")


def test_a_byte_order_mark_is_part_of_no_prompt(file: Callable[[str], Path], tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a cat\u2028and more\na dog\n", "utf-8-sig")
    trace = import_trace("diffserve", file("0,1\n1000,2\n"), rng=rng(), prompts=str(tmp_path / "prompts.txt"))
    assert trace.prompt == ("a cat\u2028and more", "a dog")


@pytest.mark.parametrize("format", ["mooncake", "diffserve"])
def test_what_is_not_utf8_is_named(format: str, tmp_path: Path) -> None:
    path = tmp_path / "latin.txt"
    path.write_bytes(b'{"timestamp": 1, "text": "\xe9"}\n')
    with pytest.raises(InputError, match=r"latin\.txt: is not UTF-8"):
        import_trace(format, path, rng=rng())


@pytest.mark.parametrize("rates", [False, True])
def test_counts_beyond_all_measure_are_named(file: Callable[[str], Path], rates: bool) -> None:
    with pytest.raises(InputError, match=r"line 2, column 'count': '1e\+20' is above 1e\+09"):
        import_trace("counts", file("3\n1e20\n"), rng=rng(), rates=rates)


def test_days_of_a_folder_follow_each_other(tmp_path: Path) -> None:
    for day in ("d01", "d03"):
        functions_day(tmp_path / f"invocations_per_function_md.anon.{day}.csv", [("http", {1: 3})])
    with pytest.raises(InputError, match=r"d03\.csv: is not of the day after .*d01\.csv"):
        import_trace("azure-functions-2019", tmp_path, rng=rng())


def test_stamps_since_1970_must_be_counted_from_the_first(file: Callable[[str], Path], tmp_path: Path) -> None:
    path = file("arrival_s\n1700000001000\n1700000000000\n")
    with pytest.raises(InputError, match=r"begins at 1\.7e\+09 s; count .*\(from_first=true\)"):
        import_trace("csv", path, rng=rng(), unit="ms")
    with pytest.raises(InputError, match="from_first=true"):
        import_file("csv", path, tmp_path / "out.parquet", unit="ms")
    assert not (tmp_path / "out.parquet").exists()
    trace = import_trace("csv", path, rng=rng(), unit="ms", from_first=True)
    assert trace.arrival_s.tolist() == [0.0, 1.0]


@pytest.mark.parametrize("text", ["9999-01-01", "1600-01-01"])
def test_years_that_no_clock_here_has_are_named(file: Callable[[str], Path], text: str) -> None:
    with pytest.raises(InputError, match=rf"line 3, .*'{text}' is not an ISO 8601 timestamp of the years"):
        import_trace("csv", file(f"arrival_s\n2020-01-01\n{text}\n"), rng=rng(), unit="timestamp")


def test_proteus_superposes_its_families(tmp_path: Path) -> None:
    (tmp_path / "fam").mkdir()
    (tmp_path / "fam" / "bert.txt").write_text("288660,1,300\n288717,1,300\n")
    (tmp_path / "fam" / "yolo.txt").write_text("288700,1,100\n")
    trace = import_trace("proteus", tmp_path / "fam", rng=rng())
    assert trace.arrival_s.tolist() == [288.66, 288.7, 288.717]
    assert "bert, yolo" in (trace.provenance[0].derived or "")
    assert len(import_trace("proteus", tmp_path / "fam" / "yolo.txt", rng=rng())) == 1


def test_diffusiondb_gives_prompts_with_their_times(file: Callable[[str], Path], tmp_path: Path) -> None:
    frame = pd.DataFrame(
        {
            "image_name": ["a.png", "b.png", "c.png"],
            "prompt": ["late", "early", "never"],
            "timestamp": pd.to_datetime(["2022-08-07 22:58:00+00:00", "2022-08-07 22:57:00+00:00", None]),
        }
    )
    frame.to_parquet(tmp_path / "metadata.parquet")
    as_csv = file("prompt,timestamp\nlate,2022-08-07 22:58:00+00:00\nearly,2022-08-07 22:57:00+00:00\nnever,\n")
    for path in (tmp_path / "metadata.parquet", as_csv):
        trace = import_trace("diffusiondb", path, rng=rng())
        assert trace.arrival_s.tolist() == [0.0, 60.0]
        assert trace.prompt == ("early", "late")
        assert trace.provenance[0].licence == "CC0-1.0"
    with pytest.raises(InputError, match="row 2: 'soon' is not"):
        import_trace("diffusiondb", file("prompt,timestamp\na,2022-08-07\nb,soon\n"), rng=rng())


def test_counts_one_a_line_or_in_a_column(file: Callable[[str], Path]) -> None:
    for text, options in (
        ("3\n0\n2\n", {}),
        ("second,tweets\n0,3\n1,0\n2,2\n", {"column": "tweets"}),
    ):
        trace = import_trace("counts", file(text), rng=rng(), interval_s="2", **options)
        assert trace.duration_s == 6.0
        assert np.rint(trace.rate(2.0)[1] / 30).tolist() == [3, 0, 2]
    means = import_trace("counts", file("1000.5\n0\n"), rng=rng(), rates="true", origin="Twitter", terms="none")
    assert abs(len(means) - 1000.5) < 4 * np.sqrt(1000)
    assert (means.provenance[0].source, means.provenance[0].licence) == ("Twitter (mine.csv)", "none")
    with pytest.raises(InputError, match=r"line 2, column 'count': '0\.5' is not a whole number"):
        import_trace("counts", file("1\n0.5\n"), rng=rng())


def test_any_parquet_file(tmp_path: Path) -> None:
    path = tmp_path / "log.parquet"
    stamps = pd.to_datetime(["2026-01-01T10:00:00+01:00", "2026-01-01T09:00:00.5Z"], utc=True, format="ISO8601")
    pd.DataFrame({"ts": [1500, 250], "when": stamps, "text": ["a cat", "a dog"]}).to_parquet(path)
    trace = import_trace("parquet", path, rng=rng(), time_column="ts", unit="ms", prompt_column="text")
    assert (trace.arrival_s.tolist(), trace.prompt) == ([0.25, 1.5], ("a dog", "a cat"))
    trace = import_trace(
        "parquet", path, rng=rng(), time_column="when", unit="timestamp", origin="me", terms="MIT"
    )
    assert trace.arrival_s.tolist() == [0.0, 0.5]
    assert (trace.provenance[0].source, trace.provenance[0].licence) == ("me (log.parquet)", "MIT")
    for options, expected in (
        ({"time_column": "t"}, "no column 't'"),
        ({"time_column": "text"}, "must hold numbers, found"),
        ({"time_column": "ts", "prompt_column": "when"}, "must hold text"),
        ({"time_column": "text", "unit": "timestamp"}, "row 1, column 'text': 'a cat' is not an ISO 8601"),
    ):
        with pytest.raises(InputError, match=expected):
            import_trace("parquet", path, rng=rng(), **options)


def test_servegen_as_published_has_its_rates(tmp_path: Path) -> None:
    pool = tmp_path / "pool"
    pool.mkdir()
    (pool / "chunk-0-trace.csv").write_text("0,5.0,0.5,Gamma,4.0,0.05\n600,0.0,0.0,,0.0,0.0\n")
    (pool / "chunk-1-trace.csv").write_text("0,0,0,,0,0\n600,10.0,2.0,Weibull,0.542,0.0573\n")
    trace = import_trace("servegen", pool, rng=rng())
    assert trace.duration_s == 1200.0
    first, second = trace.rate(600.0)[1] * 10
    assert abs(first - 3000) < 4 * 0.5 * np.sqrt(3000)  # counts of a renewal process vary by its cv
    assert abs(second - 6000) < 4 * 2.0 * np.sqrt(6000)
    assert import_trace("servegen", pool / "chunk-0-trace.csv", rng=rng()).duration_s == 1200.0
    with pytest.raises(InputError, match=r"pool: clients' files are of one model .*; leave model= out"):
        import_trace("servegen", pool, rng=rng(), model="mm-image")
    (pool / "chunk-2-trace.csv").write_text("0,5.0,0.5,Pareto,4.0,0.05\n")
    with pytest.raises(InputError, match="'Pareto' is neither Gamma nor Weibull"):
        import_trace("servegen", pool, rng=rng())


# -- the recorded data sets, the other formats -----------------------------------------------------------


@pytest.mark.data
@pytest.mark.parametrize(("name", "count"), [("1to8qps", 1633), ("2_5to20qps", 4180)])
def test_diffserve_recorded(name: str, count: int, data: Path) -> None:
    path = data / "unclear_licence" / f"diffserve_maf_trace_{name}.csv"
    texts = data / "prompts" / "diffusiondb_2m_first_5k.txt"
    trace, frame = import_trace("diffserve", path, rng=rng(), prompts=texts), pd.read_csv(path)
    seconds = frame["t_ms"] / 1000
    assert trace.arrival_s.tolist() == sorted(seconds.tolist())
    assert len(trace) == count
    full = int(trace.duration_s // 60)
    assert trace.rate(60.0)[1][:full].tolist() == counted_per_minute(seconds, full)
    lines = texts.read_text().removesuffix("\n").split("\n")
    assert len(lines) == 5000
    assert trace.prompt is not None
    assert sorted(trace.prompt) == sorted(lines[i - 1] for i in frame["prompt_id"])


@pytest.mark.data
@pytest.mark.parametrize("model", ["mm-image", "deepseek-r1"])
def test_servegen_recorded(model: str, data: Path) -> None:
    path = data / "traces" / "servegen_clients_mmimage_r1.parquet"
    frame = pd.read_parquet(path)
    frame = frame[frame["model"] == model]
    trace = import_trace("servegen", path, rng=rng(), model=model)
    assert trace.duration_s == 86_400.0
    expected = frame.groupby("start_s")["rate_rps"].sum().to_numpy(dtype=float) * 600
    got = trace.rate(600.0)[1] * 10
    assert len(got) == len(expected) == 144
    # The variance of a superposition is that of its clients: rate x cv^2, about.
    spread = (frame["rate_rps"] * 600 * frame["cv"] ** 2).groupby(frame["start_s"]).sum().to_numpy(dtype=float)
    z = (got - expected) / np.sqrt(spread)
    assert np.mean(z) == pytest.approx(0, abs=0.5)
    assert got.sum() == pytest.approx(expected.sum(), rel=0.01)
    with pytest.raises(InputError, match="holds several models"):
        import_trace("servegen", path, rng=rng())


@pytest.mark.data
def test_the_hours_of_azure_functions_recorded(tmp_path: Path, data: Path) -> None:
    path = data / "traces" / "maf_hourly_shape_347h.csv"
    frame = pd.read_csv(path)
    scaled = frame["invocations"] / 1000
    small = tmp_path / "hours.csv"
    scaled.to_csv(small, index=False)
    trace = import_trace("counts", small, rng=rng(), column="invocations", interval_s=3600, rates=True)
    assert trace.duration_s == 347 * 3600
    z = (trace.rate(3600.0)[1] * 60 - scaled) / np.sqrt(scaled)
    assert np.var(z) == pytest.approx(1, abs=0.3)


@pytest.mark.data
@pytest.mark.parametrize("name", ["azure-llm-2023", "gentd26-requests", "nab-twitter-volume", "csv"])
def test_recorded_files_are_the_same_when_written_while_read(name: str, tmp_path: Path, data: Path) -> None:
    path = data / "traces" / FILES.get(name, "azure_llm_2023_code.csv")
    options = {"time_column": "t_s"} if name == "csv" else {}
    trace = import_trace(name, path, rng=np.random.default_rng(5), **options)
    summary = import_file(name, path, tmp_path / "a.parquet", seed=5, **options)
    assert summary == trace.summary() == Trace.read(tmp_path / "a.parquet").summary()
