"""``argus-sim run``: what it prints where, and what it leaves."""

from __future__ import annotations

import itertools
import json
import math
import re
import shutil
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest

from argus_sim.cli import main, output, run, tables
from argus_sim.experiment import runner
from argus_sim.experiment.lockfile import LOCK
from argus_sim.experiment.runner import Run
from tests.make_experiment import write_experiment


def test_run_prints_the_result_and_tells_its_progress(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run, "_LINE_EVERY_S", math.inf)
    assert main(["run", str(finished / "small.yaml"), "--jobs", "1"]) == 0
    out, err = capsys.readouterr()
    headline, _, peak = out.partition("At the peak")
    for part in (headline, peak):
        assert "rush" in part
        assert re.search(r"argus\s*│\s*\d", part)
    assert "±" in headline
    assert "violations" in peak
    assert "On rush, " in out
    assert "synthetic (variants, latency, loads, prompts, quality, similarity, trace rush)" in out
    assert "nothing is measured here" in out
    assert str(Path("runs/small/report.html")) in out
    assert err == "4 of 4 runs; figures and report\n"
    assert (tmp_path / "runs" / "small" / "report.html").is_file()


def test_a_long_run_says_now_and_then_how_far_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter([0.0, 0.0, 0.0])  # made, and started
    monkeypatch.setattr(run, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    lines, any_run = run._Lines(), cast("Run", None)
    lines.start(6, 1)
    for now_s in (4.0, 12.0, 20.0, 24.0, 25.0):
        clock = itertools.repeat(now_s)
        lines.ran(any_run, {"arrived": 60})
    assert capsys.readouterr().err.splitlines() == [
        "3 of 6 runs; 10 requests/s, about 0:18 left",
        "5 of 6 runs; 10 requests/s, about 0:06 left",
        "6 of 6 runs; figures and report",
    ]


def test_run_quiet_and_json(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = Path(shutil.copytree(finished / "out", tmp_path / "out"))
    path = str(finished / "small.yaml")
    assert main(["run", path, "--out", str(out), "--resume", "--quiet", "--json"]) == 0
    said, err = capsys.readouterr()
    assert err == ""
    got = json.loads(said)
    assert got["experiment"] == "small"
    assert got["folder"] == str(out)
    assert [(row["policy"], row["trace"], row["seeds"]) for row in got["results"]] == [
        ("static", "rush", 2),
        ("argus", "rush", 2),
    ]
    summary = pd.read_csv(out / "summary.csv")
    for row in got["results"]:
        mean = summary.loc[summary["policy"] == row["policy"], "quality_yield"].mean()
        assert row["quality_yield"] == pytest.approx(mean)
    assert got["findings"] == [sentence for sentence in got["findings"] if sentence.startswith("On rush, ")]
    assert got["provenance"]["measured"] == []
    assert "quality" in got["provenance"]["synthetic"]


def test_the_peak_is_the_mean_of_the_runs_peaks(finished: Path) -> None:
    out = finished / "out"
    peaks = tables.peak(out, pd.read_csv(out / "summary.csv")).set_index("policy")
    runs = [json.loads((out / "argus" / "rush" / seed / "summary.json").read_text())["peak"] for seed in "34"]
    for name in ("offered_per_min", "violations_per_min", "quality_relative_to_base"):
        assert peaks.loc["argus", name] == pytest.approx(np.mean([run[name] for run in runs]))
    total = peaks["effective_throughput_per_min"] + peaks["violations_per_min"]
    np.testing.assert_allclose(total, peaks["offered_per_min"])


def test_run_takes_settings_and_seeds(tmp_path: Path, call: Callable[..., str]) -> None:
    out = tmp_path / "out"
    settings = ("--set", "policies=[static]", "--set", "slo.seconds=30", "--seeds", "1")
    call("run", write_experiment(tmp_path), "--out", out, "--jobs", "1", *settings)
    assert len(pd.read_csv(out / "summary.csv")) == 1
    outcomes = pd.read_parquet(out / "static" / "rush" / "3" / "outcomes.parquet")
    np.testing.assert_allclose(outcomes["deadline_s"] - outcomes["arrival_s"], 30.0)


@pytest.mark.parametrize(
    ("trouble", "code", "says"),
    [
        (KeyboardInterrupt(), 130, "interrupted; "),
        (BrokenProcessPool(), 1, "error: a process was killed, perhaps for want of memory (see --jobs); "),
    ],
)
@pytest.mark.parametrize("begun", [False, True])
def test_a_run_that_is_cut_off_says_how_to_go_on(
    trouble: BaseException,
    code: int,
    says: str,
    begun: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def cut_off(*arguments: Any, on_start: Callable[[int, int], None], **options: Any) -> None:
        if begun:
            on_start(4, 0)
        raise trouble

    monkeypatch.setattr(runner, "run_experiment", cut_off)
    out = tmp_path / "with space"
    assert main(["run", str(write_experiment(tmp_path)), "--out", str(out)]) == code
    said = capsys.readouterr()
    assert said.out == ""
    kept = f"finished runs are kept. To go on: argus-sim run '{out / LOCK}' --out '{out}' --resume"
    assert said.err == f"{says}{kept if begun else 'nothing was written'}\n"


def test_run_from_a_lock_file_notes_other_versions(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (finished / "out" / LOCK).read_text()
    lock = tmp_path / "old.lock.yaml"
    lock.write_text(re.sub(r"numpy: .*", "numpy: 1.0.0", text))
    out = Path(shutil.copytree(finished / "out", tmp_path / "out"))
    arguments = ["run", str(lock), "--out", str(out), "--resume"]
    assert main(arguments) == 0
    _, err = capsys.readouterr()
    assert err.startswith(f"note: made with numpy 1.0.0 (here {np.__version__})")


def test_a_shipped_experiment_is_known_by_name(call: Callable[..., str]) -> None:
    assert set(output.shipped_experiments()) >= {"fig7", "real"}
    assert call("validate", "fig7").startswith("fig7: a sound experiment")
