"""How long plans take is recorded where it was asked for, and changes nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from argus_sim.experiment import Experiment
from argus_sim.experiment.runner import run_experiment
from tests.make_experiment import write_experiment


@pytest.mark.parametrize("asked", [False, True])
def test_they_are_there_when_asked_for(tmp_path: Path, asked: bool) -> None:
    path = write_experiment(tmp_path)
    plain = Experiment.load(path)
    out = tmp_path / "out"
    run_experiment(plain.model_copy(update={"planning_times": asked}), out, jobs=1)
    report = (out / "report.html").read_text("utf-8")
    for policy in plain.policies:
        run = out / policy.label / "rush" / "3"
        events = json.loads((run / "events.json").read_text("utf-8"))
        assert ("planning_s" in events) == asked
        if asked:
            # Each placement was planned, and plans that changed nothing took time too.
            assert len(events["planning_s"]) >= len(events["plans"])
            assert all(took_s > 0 for took_s in events["planning_s"])
    assert ("worked out, in" in report) == asked
    assert ("<code>--set planning_times=true</code>" in report) != asked


def test_they_change_nothing_else(tmp_path: Path) -> None:
    experiment = Experiment.load(write_experiment(tmp_path))
    for name, asked in (("plain", False), ("timed", True)):
        run_experiment(
            experiment.model_copy(update={"planning_times": asked}), tmp_path / name, jobs=1, report=False
        )
    for plain in (tmp_path / "plain").rglob("*.parquet"):
        timed = tmp_path / "timed" / plain.relative_to(tmp_path / "plain")
        assert timed.read_bytes() == plain.read_bytes(), plain
    assert (tmp_path / "timed" / "summary.csv").read_bytes() == (tmp_path / "plain" / "summary.csv").read_bytes()
