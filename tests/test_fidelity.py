"""Comparing a live run with its simulation: exact where both are the same, and right where they are not."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from argus_sim.domain import Outcome
from argus_sim.experiment.runner import no_nan
from argus_sim.fidelity import (
    COMPARED,
    MIX,
    Twin,
    compare,
    counted,
    errors,
    extra_tables,
    mix,
    plain,
    sensitivity,
    table,
    write_page,
)
from argus_sim.metrics import summarise
from argus_sim.record import RunRecord
from tests.make_record import make_record

HTTP = {f"{k}_{q}_s": 0.001 for k in ("send_lag", "round_trip", "arrival_lag") for q in ("p50", "p99", "max")}


def test_the_same_outcomes_have_no_error_at_all() -> None:
    record = make_record()
    rows = compare(record, make_record())
    assert [row.metric for row in rows] == [*COMPARED, MIX]
    assert all(row.error == 0 and row.difference == 0 for row in rows if row.metric != MIX)
    assert rows[-1].error == 0


def test_an_error_is_that_of_the_simulation_s_twin() -> None:
    simulated = make_record()
    longer = replace(simulated, finish_s=simulated.finish_s + 0.1 * (simulated.finish_s - simulated.arrival_s))
    rows = {row.metric: row for row in compare(longer, simulated)}
    for name in ("latency_mean_s", "latency_p50_s", "latency_p90_s", "latency_p99_s"):
        assert rows[name].error == pytest.approx(0.1)
    assert rows["slo_violation_ratio"].error == 0
    fewer = replace(simulated, outcome=np.where(np.arange(len(simulated)) % 2, Outcome.LOST, simulated.outcome))
    rows = {row.metric: row for row in compare(fewer, simulated)}
    assert rows["effective_throughput_per_min"].error == pytest.approx(-0.5, abs=0.05)
    assert rows["slo_violation_ratio"].difference > 0


def test_what_cannot_be_divided_by_has_no_error() -> None:
    good = replace(make_record(), outcome=np.zeros(3000, dtype=np.int8))
    bad = replace(good, outcome=np.where(np.arange(3000) < 30, Outcome.LATE, good.outcome).astype(np.int8))
    row = next(row for row in compare(bad, good) if row.metric == "slo_violation_ratio")
    assert math.isnan(row.error)
    assert row.difference == pytest.approx(0.01)


def test_the_mix_is_by_name_whatever_the_order() -> None:
    record = make_record()
    turned = replace(
        record,
        variants=tuple(reversed(record.variants)),
        variant=np.where(record.variant < 0, -1, len(record.variants) - 1 - record.variant).astype(np.int32),
    )
    shares = mix(turned, record)
    assert all(a == b for a, b in shares.values())
    assert sum(a for a, _ in shares.values()) == pytest.approx(1.0)
    moved = replace(record, variant=np.where(record.variant == 0, 1, record.variant).astype(np.int32))
    distance = next(row.error for row in compare(moved, record) if row.metric == MIX)
    assert distance == pytest.approx(mix(record, record)["sdxl"][0])


def test_what_only_warms_up_does_not_count() -> None:
    record = make_record()
    part = counted(record, 1000, float(record.arrival_s[1000]))
    assert len(part) == 2000
    assert part.duration_s == record.duration_s - record.arrival_s[1000]
    assert summarise(part)["arrived"] == 2000
    assert counted(record, 0, 0.0) is record


def test_what_arrivals_did_is_told_from_what_else_differs() -> None:
    simulated = make_record()

    def slower(factor: float) -> RunRecord:
        return replace(
            simulated, finish_s=simulated.arrival_s + factor * (simulated.finish_s - simulated.arrival_s)
        )

    live = slower(1.1)
    twin = Twin(1, simulated, live, live, HTTP, at_arrivals=slower(1.1), jittered=(slower(0.95), slower(1.2)))
    rows = {metric: values for metric, *values in sensitivity(twin)}
    assert rows["latency_mean_s"] == pytest.approx([0.1, 0.0, -0.05, 0.2])
    assert rows["slo_violation_ratio"] == pytest.approx([0.0, 0.0, 0.0, 0.0])
    headings, cells = extra_tables(twin)[0]
    assert headings[-1] == "2 jittered copies"
    assert cells[2][1:] == ["+10.00 %", "+0.00 %", "-5.00 % to +20.00 %"]
    said = plain([twin])["runs"][0]
    assert said["jittered"]["copies"] == 2
    assert said["error_at_live_arrivals"]["latency_mean_s"] == pytest.approx(0.0)
    assert extra_tables(replace(twin, at_arrivals=None)) == []


def test_several_runs_have_an_interval_and_one_page(tmp_path: Path) -> None:
    twins = []
    for seed, factor in ((1, 1.01), (2, 1.03)):
        simulated = make_record(seed)
        live = replace(
            simulated, finish_s=simulated.arrival_s + factor * (simulated.finish_s - simulated.arrival_s)
        )
        twins.append(Twin(seed, simulated, live, simulated, HTTP))
    got = errors(twins)["latency_mean_s"]
    assert got.mean == pytest.approx(0.02)
    assert got.low < 0.02 < got.high
    assert [cells[0] for cells in table(twins[0])][2] == "mean latency (s)"
    assert table(twins[0])[2][3] == "+1.00 %"
    said = json.loads(json.dumps(no_nan(plain(twins)), allow_nan=False))
    assert said["runs"][1]["metrics"]["latency_mean_s"]["error"] == pytest.approx(0.03)
    assert said["runs"][0]["at_client"]["latency_mean_s"]["error"] == 0
    write_page(tmp_path / "page.html", "<b>both</b>", twins, [("speed", "60")], ["a note"])
    page = (tmp_path / "page.html").read_text("utf-8")
    assert "&lt;b&gt;both" in page
    assert "data:image/" in page
    assert "http" not in page.replace("http-equiv", "")


def test_runs_in_which_nothing_was_served_have_a_page_too(tmp_path: Path) -> None:
    record = make_record(requests=20)
    nothing = replace(
        record,
        outcome=np.full(20, Outcome.LOST, dtype=np.int8),
        variant=np.full(20, -1, dtype=np.int32),
        finish_s=np.full(20, np.nan),
    )
    write_page(tmp_path / "page.html", "nothing", [Twin(1, nothing, nothing, nothing, HTTP)], [], [])
    assert (tmp_path / "page.html").stat().st_size > 1000
