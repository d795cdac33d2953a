"""``trace.json`` is in Chrome's trace event format and holds every batch of the run."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from argus_sim import metrics
from argus_sim.cli import main
from argus_sim.core.commands import Command, RunBatch
from argus_sim.experiment import Experiment
from argus_sim.experiment.scene import Scene
from argus_sim.experiment.simulate import simulate
from argus_sim.record import RunRecord
from argus_sim.report.chrome_trace import LOAD, POLICY, WORKERS, trace_json
from argus_sim.simulation.cluster import SimulatedCluster
from tests.make_experiment import content, write_experiment
from tests.make_profile import make_profile
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
    return check_format(
        trace_json(record.frame(), record.attempts_frame(), metrics.timeline(record), plain, title="a run")
    )


#: A batch as the host was told to run it: worker, start, variant, requests.
Told = tuple[int, float, str, tuple[int, ...]]


class Spy(SimulatedCluster):
    """Writes down every batch that it is told to run."""

    told: list[Told]

    def _carry_out(self, now: float, commands: Sequence[Command]) -> None:
        names = [variant.name for variant in self.engine.catalog.variants]
        for command in commands:
            if isinstance(command, RunBatch):
                self.told.append((command.worker, now, names[command.variant], tuple(command.rows)))
        super()._carry_out(now, commands)


@pytest.fixture(scope="module", params=["argus", "diffserve"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[RunRecord, list[Told]]:
    """A run of the real engine in which workers are lost and come back; one policy is a cascade."""
    folder = tmp_path_factory.mktemp("trace")
    data = {**content(), "policies": [request.param]}
    data["cluster"] = {"workers": 3, "faults": [{"kind": "random", "mtbf_s": 40, "mttr_s": 5}]}
    data["traces"][0]["generate"]["duration_s"] = 300
    if request.param == "diffserve":
        cells = {"heavy": {1: 2.0, 2: 3.5}, "light": {1: 0.5, 2: 0.8}}
        make_profile(cells, spread=0.05, std_s=0.05, distribution="lognormal").save(folder / "profile")
    scene = Scene.of(Experiment.load(write_experiment(folder, data)))
    with pytest.MonkeyPatch.context() as patch:
        told: list[Told] = []
        patch.setattr(Spy, "told", told, raising=False)
        patch.setattr("argus_sim.experiment.simulate.SimulatedCluster", Spy)
        record = simulate(scene, scene.experiment.policies[0], scene.trace(scene.experiment.traces[0], 3), 3)
    return record, told


@pytest.fixture(params=["toy", "simulated"])
def record(request: pytest.FixtureRequest, run: tuple[RunRecord, list[Told]]) -> RunRecord:
    return run[0] if request.param == "simulated" else make_record(2, requests=600, duration_s=3600.0)


def test_every_batch_that_the_host_ran_is_there_once(run: tuple[RunRecord, list[Told]]) -> None:
    record, told = run
    assert {"lost", *(["passed on"] if "light" in record.variants else [])} == {
        str(how) for how in record.attempts_frame()["ended"].unique()
    }
    found = [event for event in events_of(record) if event.get("cat") == "batch"]
    got = [(e["tid"], e["ts"], e["name"], tuple(e["args"]["requests"])) for e in found]
    want = [(worker, round(1e6 * at_s, 3), name, tuple(sorted(rows))) for worker, at_s, name, rows in told]
    assert sorted(got) == sorted(want)
    assert all(e["args"]["size"] == len(e["args"]["requests"]) for e in found)
    counted = {key: sum(e["args"].get(key, 0) for e in found) for key in ("lost", "passed_on")}
    assert counted["lost"] == record.attempts.lost.sum() > 0
    assert counted["passed_on"] == (~record.attempts.lost).sum()


def test_batches_take_as_long_as_workers_were_busy(record: RunRecord) -> None:
    spans = [event["dur"] for event in events_of(record) if event.get("cat") == "batch"]
    assert sum(spans) / 1e6 == pytest.approx(record.busy_s, abs=1e-6 * len(spans))
    ran = metrics.batches(record)
    assert len(spans) == len(ran)
    assert (ran["finish_s"] - ran["start_s"]).sum() == pytest.approx(record.busy_s)


def test_every_request_is_in_a_batch_or_refused(record: RunRecord) -> None:
    events = events_of(record)
    ran = Counter(request for e in events if e.get("cat") == "batch" for request in e["args"]["requests"])
    gone = [e["args"]["request"] for e in events if e.get("cat") == "request"]
    assert sorted({*ran, *gone}) == list(range(len(record)))
    assert len(gone) == len(set(gone))
    again = Counter(record.attempts.request.tolist())
    assert all(ran[request] == again[request] + (request not in set(gone)) for request in range(len(record)))


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
    assert count["fault"] == sum(fault.kind == "lost" for fault in record.faults) > 0
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
