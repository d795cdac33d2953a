"""Results as a Python object: what notebooks and scripts use."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

import argus_sim
from argus_sim import Experiment, InputError, Results
from argus_sim.metrics import aggregate, paired
from argus_sim.metrics.intervals import KEYS
from tests.make_experiment import write_experiment


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    folder = tmp_path_factory.mktemp("results")
    return Experiment.load(write_experiment(folder)).run(folder / "out", jobs=1)


def test_public_names_exist_and_load_late() -> None:
    for name in argus_sim.__all__:
        assert getattr(argus_sim, name) is not None
    with pytest.raises(AttributeError, match="nosuch"):
        _ = argus_sim.nosuch
    quick = "import sys, argus_sim; sys.exit('pandas' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", quick], check=False).returncode == 0


def test_loaded_results_are_those_of_the_run(results: Results) -> None:
    loaded = Results.load(results.folder)
    pd.testing.assert_frame_equal(loaded.summary, results.summary, check_exact=False)
    assert loaded.experiment == results.experiment
    pd.testing.assert_frame_equal(results.aggregate, aggregate(results.summary))


def test_outcomes_and_timelines_hold_every_run(results: Results) -> None:
    for table, column in ((results.outcomes, "request"), (results.timelines, "arrived")):
        assert list(table.columns[:3]) == list(KEYS)
        counts = table.groupby(list(KEYS))[column].agg("size" if column == "request" else "sum")
        want = results.summary.set_index(list(KEYS))["arrived"]
        assert counts.sort_index().to_dict() == want.sort_index().to_dict()


def test_one_run(results: Results) -> None:
    run = results.run("argus")
    assert run.folder == results.folder / "argus" / "rush" / "3"
    assert run.events["workers"] == 2
    assert len(run.outcomes) == run.timeline["arrived"].sum()
    assert results.run("argus", "rush", 4).folder.name == "4"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("argos",), "no policy 'argos'.*argus"),
        (("argus", "rash"), "no trace 'rash'.*rush"),
        (("argus", "rush", 9), "no seed 9; they are 3 to 4"),
    ],
)
def test_what_is_not_there_is_named(results: Results, arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        results.run(*arguments)  # type: ignore[arg-type]


def test_compare_is_paired_by_seed(results: Results) -> None:
    table = results.compare()
    means = results.summary.groupby("policy")["quality_yield"].mean()
    (row,) = table.itertuples()
    assert (row.a, row.b) == (means.idxmax(), means.idxmin())
    want = paired(results.summary, str(row.a), str(row.b), "quality_yield")
    assert row.difference == want.mean
    assert row.half_width == want.half_width
    assert row.differ == (not want.low <= 0 <= want.high)
    other = results.compare("static", metric="latency_p99_s")
    assert list(other["b"]) == ["argus"]
    with pytest.raises(InputError, match=r"no metric 'qualty_yield'.*quality_yield"):
        results.compare(metric="qualty_yield")


def test_compare_with_other_results(results: Results) -> None:
    table = results.compare(results)
    assert len(table) > 10
    assert not np.nan_to_num(table["difference"]).any()


def test_plots(results: Results) -> None:
    figures = (
        results.plot.timeline(),
        results.plot.totals(),
        results.plot.front(),
        results.plot.level_mix("argus"),
        results.plot.latency_cdf("rush"),
    )
    for figure in figures:
        assert isinstance(figure, Figure)
        assert figure._repr_png_().startswith(b"\x89PNG")  # type: ignore[attr-defined]


def test_in_a_notebook_it_is_the_headline_table(results: Results) -> None:
    html = results._repr_html_()
    assert html.count("<tr>") == 3
    assert "<b>" in html


def test_elsewhere_it_is_a_line(results: Results) -> None:
    assert repr(results) == f"<Results {results.folder}: 4 runs of static, argus>"


def test_without_a_report_only_tables_are_left(tmp_path: Path) -> None:
    results = Experiment.load(write_experiment(tmp_path)).run(tmp_path / "out", jobs=1, report=False)
    assert {path.name for path in results.folder.iterdir()} == {
        "argus",
        "static",
        "summary.csv",
        "experiment.lock.yaml",
    }
    resumed = results.experiment.run(tmp_path / "out", jobs=1, resume=True)
    assert (resumed.folder / "report.html").is_file()
    shutil.rmtree(resumed.folder / "argus")


def test_no_results(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no experiment has ended there"):
        Results.load(tmp_path)
