"""``trace.json`` is in Chrome's trace event format and holds every batch of the run."""

from __future__ import annotations

import json
import math
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from argus_sim import metrics
from argus_sim.chrome_trace import LOAD, POLICY, WORKERS, trace_json
from argus_sim.cli import main
from argus_sim.experiment import Experiment
from argus_sim.record import RunRecord
from argus_sim.simulate import Scene, simulate
from tests.make_experiment import content, write_experiment
from tests.make_record import make_record


def check_format(text: str) -> list[dict[str, Any]]:
    """The events of a trace, after holding each to the format's rules for its phase."""

    def no_json(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    whole = json.loads(text, parse_constant=no_json)
    assert set(whole) <= {"traceEvents", "displayTimeUnit", "otherData", "metadata", "systemTraceEvents"}
    assert whole["displayTimeUnit"] in ("ms", "ns")
    for event in whole["traceEvents"]:
        assert isinstance(event["name"], str)
        assert event["name"]
        for key in ("pid", "tid"):
            assert isinstance(event[key], int)
        assert isinstance(event["ts"], int | float)
        assert event["ts"] >= 0
        match event["ph"]:
            case "X":
                assert event["dur"] >= 0
            case "i":
                assert event["s"] in ("g", "p", "t")
            case "C":
                assert event["args"]
                assert all(isinstance(value, int | float) for value in event["args"].values())
            case "M":
                assert event["name"] in ("process_name", "thread_name")
                assert isinstance(event["args"]["name"], str)
            case other:
                raise AssertionError(f"phase {other!r} is not one that we write")
    times = [event["ts"] for event in whole["traceEvents"] if event["ph"] != "M"]
    assert times == sorted(times)
    return list(whole["traceEvents"])


def events_of(record: RunRecord) -> list[dict[str, Any]]:
    plain = json.loads(json.dumps(record.events(), default=str).replace("NaN", "null"))
    return check_format(trace_json(record.frame(), metrics.timeline(record), plain, title="a run"))


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> RunRecord:
    """A run of the real engine in which a worker is lost and comes back."""
    data = content()
    data["cluster"]["faults"] = [{"kind": "crash", "at_s": 20, "for_s": 15, "workers": [1]}]
    experiment = Experiment.load(write_experiment(tmp_path_factory.mktemp("trace"), data))
    scene = Scene.of(experiment)
    return simulate(scene, experiment.policies[1], scene.trace(experiment.traces[0], 3), 3)


@pytest.fixture(params=["toy", "simulated"])
def record(request: pytest.FixtureRequest, simulated: RunRecord) -> RunRecord:
    return simulated if request.param == "simulated" else make_record(2, requests=600, duration_s=3600.0)


def test_every_batch_is_there_once(record: RunRecord) -> None:
    found = [event for event in events_of(record) if event.get("cat") == "batch"]
    want = metrics.batches(record)
    assert len(found) == len(want)
    # Counted in another way: each request of a batch of n is an n-th of it.
    ran = record.batch_size[np.isfinite(record.start_s)]
    assert len(found) == pytest.approx((1.0 / ran).sum())
    key = [(e["tid"], e["ts"], e["dur"], e["name"], e["args"]["size"]) for e in found]
    names = [record.variants[v] for v in want["variant"]]
    for event, row, name in zip(sorted(key), want.itertuples(), names, strict=True):
        assert event[0] == row.worker
        assert event[1] / 1e6 == pytest.approx(row.start_s, abs=1e-6)
        assert event[2] / 1e6 == pytest.approx(row.finish_s - row.start_s, abs=1e-6)
        assert event[3:] == (name, row.size)


def test_every_request_is_in_a_batch_or_refused(record: RunRecord) -> None:
    events = events_of(record)
    run = [request for e in events if e.get("cat") == "batch" for request in e["args"]["requests"]]
    gone = [e["args"]["request"] for e in events if e.get("cat") == "request"]
    assert sorted({*run, *gone}) == list(range(len(record)))
    assert len(run) == len(set(run))


def test_a_worker_does_one_thing_at_a_time(record: RunRecord) -> None:
    for worker in range(record.workers):
        spans = sorted(
            (e["ts"], e["ts"] + e["dur"])
            for e in events_of(record)
            if e["ph"] == "X" and e["tid"] == worker and e["cat"] == "batch"
        )
        for (_, end), (start, _) in pairwise(spans):
            assert end <= start + 0.01


def test_decisions_loads_and_faults(record: RunRecord) -> None:
    events = events_of(record)
    count = Counter(e.get("cat") for e in events)
    assert count["placement"] == len(record.plans)
    assert count["load"] == 3 * len(metrics.timeline(record)) + len(record.loads)  # counters, and models
    assert count["fault"] == sum(fault.kind == "lost" for fault in record.faults) == 1
    assert {e["pid"] for e in events} == {WORKERS, POLICY, LOAD}


def test_a_load_cut_short_ends_with_its_worker() -> None:
    from argus_sim.record import LoadRecord

    record = make_record(1, requests=50, duration_s=600.0)
    record.loads.append(LoadRecord(0, "sdxl", 350.0, math.nan))
    (load,) = [e for e in events_of(record) if e.get("cat") == "load" and e["ts"] == 350e6 and e["ph"] == "X"]
    assert load["dur"] == pytest.approx(10e6)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["run", str(write_experiment(tmp_path)), "--out", str(out), "--jobs", "1", "--quiet"]) == 0
    run = out / "argus" / "rush" / "3"
    capsys.readouterr()
    assert main(["trace", str(run)]) == 0
    said = capsys.readouterr()
    assert said.out == f"{run / 'trace.json'}\n"
    check_format((run / "trace.json").read_text("utf-8"))
    assert main(["trace", str(run), "--json", "--out", str(tmp_path / "t.json")]) == 0
    said_of = json.loads(capsys.readouterr().out)
    assert said_of == {"file": str(tmp_path / "t.json"), "bytes": (run / "trace.json").stat().st_size}
    assert main(["trace", str(out)]) == 2
    assert "holds no outcomes.parquet; a run's folder is" in capsys.readouterr().err
