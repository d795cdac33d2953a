"""The smallest cluster that keeps a promise is found, whatever else is tried on the way."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from argus_sim.errors import InputError
from argus_sim.experiment import Experiment
from argus_sim.experiment.lockfile import LOCK, read_lock
from argus_sim.experiment.runner import Run, run_experiment
from argus_sim.experiment.sizing import Promise, Sizing, figure_sizes, size_experiment, smallest
from tests.make_experiment import content, write_experiment
from tests.test_runner import tree


def search(meets: Callable[[int], bool], start: int, fewest: int, largest: int) -> tuple[int | None, list[int]]:
    """The answer, and what was tried on the way."""
    sizes, tried = smallest(start, fewest, largest), []
    try:
        size = next(sizes)
        while True:
            tried.append(size)
            size = sizes.send(meets(size))
    except StopIteration as end:
        return end.value, tried


bounds = st.integers(1, 40).flatmap(lambda fewest: st.tuples(st.just(fewest), st.integers(fewest, 300)))


@given(bounds, st.integers(1, 400), st.integers(1, 400))
def test_of_a_monotone_curve_it_is_the_smallest(bound: tuple[int, int], start: int, edge: int) -> None:
    fewest, largest = bound
    answer, tried = search(lambda size: size >= edge, start, fewest, largest)
    assert answer == next((size for size in range(fewest, largest + 1) if size >= edge), None)
    assert len(tried) == len(set(tried)) <= 2 * largest.bit_length() + 2
    assert all(fewest <= size <= largest for size in tried)
    assert tried[0] == min(max(start, fewest), largest)


@given(bounds, st.integers(1, 400), st.sets(st.integers(1, 300)))
def test_of_any_curve_it_is_an_edge(bound: tuple[int, int], start: int, meeting: set[int]) -> None:
    fewest, largest = bound
    answer, tried = search(meeting.__contains__, start, fewest, largest)
    if answer is None:
        assert tried[-1] == largest
        assert not meeting & set(tried)
        return
    assert answer in meeting & set(tried)
    assert answer == fewest or (answer - 1 in tried and answer - 1 not in meeting)
    # So whoever sees what was tried, sees one edge.
    assert {size for size in tried if size in meeting} == {size for size in tried if size >= answer}


def test_where_one_begins_only_says_how_long_it_takes() -> None:
    assert search(lambda size: size >= 9, 8, 1, 512) == (9, [8, 16, 12, 10, 9])
    assert search(lambda size: size >= 3, 8, 1, 512) == (3, [8, 4, 2, 3])
    assert search(lambda size: True, 2, 1, 512) == (1, [2, 1])
    assert search(lambda size: False, 8, 1, 20) == (None, [8, 16, 20])


def busy(**changes: Any) -> dict[str, Any]:
    """The small experiment with a load that takes several workers."""
    rush = {"name": "rush", "generate": {"kind": "poisson", "duration_s": 120, "rate_per_min": 150}}
    return content() | {"traces": [rush], "bound": False} | changes


def answers(found: Sizing) -> dict[str, int | None]:
    return {row["policy"]: row["workers"] for row in found.answers}


@pytest.fixture(scope="module")
def sized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The experiment (``small.yaml``) and what a search left (``out``); tests only read them."""
    folder = tmp_path_factory.mktemp("sized")
    size_experiment(Experiment.load(write_experiment(folder, busy())), Promise(), folder / "out")
    return folder


@pytest.fixture
def experiment(sized: Path) -> Experiment:
    return Experiment.load(sized / "small.yaml")


@pytest.fixture(scope="module")
def of_all_sizes(sized: Path) -> dict[tuple[str, int], tuple[float, float]]:
    """Brute force, every size as a point of a sweep: (policy, size) -> mean violations and quality yield."""
    sweep = {"axes": {"gpus": {"key": "cluster.workers", "values": list(range(1, 17))}}}
    swept = Experiment.load(write_experiment(sized, busy(sweep=sweep), "swept.yaml"))
    summary = run_experiment(swept, sized / "all", jobs=1, report=False).summary
    return {
        (str(policy), int(str(gpus))): (rows["slo_violation_ratio"].mean(), rows["quality_yield"].mean())
        for (policy, gpus), rows in summary.groupby(["policy", "gpus"])
    }


@pytest.mark.parametrize("promise", [Promise(), Promise(0.1), Promise(0.05, quality=0.95)], ids=str)
def test_it_is_that_of_all_sizes(
    experiment: Experiment,
    of_all_sizes: dict[tuple[str, int], tuple[float, float]],
    tmp_path: Path,
    promise: Promise,
) -> None:
    found = size_experiment(experiment, promise, tmp_path / "out", largest=16)
    for policy, workers in answers(found).items():
        meeting = [
            size
            for (of, size), (late, quality) in of_all_sizes.items()
            if of == policy and late <= promise.violations and quality >= (promise.quality or 0.0)
        ]
        assert workers == min(meeting)
        assert 1 < min(meeting) < 16
    for row in found.sizes:
        late, quality = of_all_sizes[row["policy"], row["workers"]]
        assert row["slo_violation_ratio"] == pytest.approx(late, abs=1e-12)
        assert row["quality_yield"] == pytest.approx(quality, abs=1e-12)


def test_layout(experiment: Experiment, sized: Path) -> None:
    out = sized / "out"
    sizes, sizing = (pd.read_csv(out / name).to_dict("records") for name in ("sizes.csv", "sizing.csv"))
    assert {path.name for path in out.iterdir()} == {
        *(LOCK, "figures", "sizes.csv", "sizing.csv"),
        *(f"trace=rush,policy={row['policy']},gpus={row['workers']}" for row in sizes),
    }
    assert {path.name for path in (out / "figures").iterdir()} == {"sizes.png", "sizes.svg"}
    assert yaml.safe_load((out / LOCK).read_text())["experiment"] == experiment.model_dump(mode="json")
    for row in sizing:
        mine = {size["workers"]: size for size in sizes if size["policy"] == row["policy"]}
        workers = row["workers"]
        at, fewer = mine[workers], mine[workers - 1]
        assert at["meets"]
        assert not fewer["meets"]
        assert row["slo_violation_ratio"] == at["slo_violation_ratio"] <= 0.01
        assert row["slo_violation_ratio_with_one_fewer"] == fewer["slo_violation_ratio"] > 0.01
        assert row["quality_yield_with_one_fewer"] == fewer["quality_yield"]
        summary = pd.read_csv(out / f"trace=rush,policy={row['policy']},gpus={workers}" / "summary.csv")
        assert list(summary["seed"]) == [3, 4]
        per_hour = summary["on_time"].mean() * 3600 / 120 / workers
        assert row["on_time_per_gpu_hour"] == pytest.approx(per_hour, rel=1e-12)


def test_a_size_is_a_run_that_its_lock_file_repeats(sized: Path, tmp_path: Path) -> None:
    folder = next((sized / "out").glob("*policy=argus*"))
    lock = folder / LOCK
    again = run_experiment(
        Experiment.load(lock), tmp_path / "again", digests=read_lock(lock).inputs, jobs=1, report=False
    )
    assert tree(again.folder) == tree(folder)


def test_the_number_of_processes_changes_no_byte(experiment: Experiment, sized: Path, tmp_path: Path) -> None:
    size_experiment(experiment, Promise(), tmp_path / "out", jobs=2)
    assert tree(tmp_path / "out") == tree(sized / "out")


def test_resumed_is_uninterrupted(experiment: Experiment, sized: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(sized / "out", tmp_path / "out"))
    all_runs = len(list(out.glob("*/*/*/*/summary.json")))
    (out / "sizing.csv").unlink()
    gone = next(out.glob("*policy=static*"))
    (gone / "summary.csv").unlink()
    shutil.rmtree(gone / "static" / "rush" / "4")
    shutil.rmtree(next(out.glob("*policy=argus*")))
    ran: list[Run] = []
    told: list[tuple[int, int]] = []
    size_experiment(
        experiment,
        Promise(),
        out,
        resume=True,
        on_more=lambda runs, kept: told.append((runs, kept)),
        on_run=lambda run, summary: ran.append(run),
    )
    assert tree(out) == tree(sized / "out")
    assert len(ran) == 3
    assert (sum(runs for runs, _ in told), sum(kept for _, kept in told)) == (all_runs, all_runs - 3)


def test_another_promise_keeps_the_runs(experiment: Experiment, sized: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(sized / "out", tmp_path / "out"))
    runs = len(list(out.glob("*/*/*/*/summary.json")))
    ran: list[Run] = []
    found = size_experiment(
        experiment, Promise(0.1), out, resume=True, on_run=lambda run, summary: ran.append(run)
    )
    assert answers(found) == answers(size_experiment(experiment, Promise(0.1), tmp_path / "anew"))
    assert (out / "sizes.csv").read_bytes() == (tmp_path / "anew" / "sizes.csv").read_bytes()
    assert len(list(out.glob("*/*/*/*/summary.json"))) == runs + len(ran)
    assert len(ran) < 2 * len(found.sizes)


def test_the_folders_of_run_and_size_are_not_mixed(experiment: Experiment, sized: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(sized / "out", tmp_path / "out"))
    before = tree(out)
    with pytest.raises(InputError, match=r"different run \(sized differ\)"):
        run_experiment(experiment, out, resume=True)
    (out / "static").mkdir()
    with pytest.raises(InputError, match="holds static, which is of no run"):
        size_experiment(experiment, Promise(), out)
    (out / "static").rmdir()
    assert tree(out) == before
    run_experiment(experiment, out, jobs=1, report=False)
    assert {path.name for path in out.iterdir()} == {LOCK, "summary.csv", "static", "argus"}
    with pytest.raises(InputError, match=r"different run \(sized differ\)"):
        size_experiment(experiment, Promise(), out, resume=True)
    size_experiment(experiment, Promise(), out)
    assert tree(out) == before


def test_a_promise_that_no_size_keeps(experiment: Experiment, tmp_path: Path) -> None:
    many = size_experiment(experiment, Promise(), tmp_path / "few", largest=2)
    assert [(row["workers"], row["broken"]) for row in many.answers] == [(None, "violations")] * 2
    none = size_experiment(experiment, Promise(quality=1.0), tmp_path / "good", largest=16)
    assert [(row["workers"], row["broken"]) for row in none.answers] == [(None, "quality")] * 2
    assert [row["workers"] for row in none.sizes] == [2, 4, 8, 16] * 2
    table = pd.read_csv(tmp_path / "good" / "sizing.csv")
    assert table["workers"].isna().all()
    assert table["quality_yield"].isna().all()
    figure = figure_sizes(none.sizes, none.answers, Promise(quality=1.0), "GPUs")
    assert [ax.get_title("left") for ax in figure.axes] == ["SLO violations (%)", "quality yield"]


def test_a_cluster_that_cannot_catch_up_keeps_nothing(tmp_path: Path) -> None:
    """Where nothing is dropped, a run on too few GPUs is given up."""
    data = busy(drop="never", max_wait_slos=1.5, policies=["static"])
    found = size_experiment(Experiment.load(write_experiment(tmp_path, data)), Promise(), tmp_path / "out")
    given_up = [row for row in found.sizes if pd.isna(row["slo_violation_ratio"])]
    assert given_up
    assert not any(row["meets"] for row in given_up)
    (answer,) = found.answers
    assert answer["workers"] > max(row["workers"] for row in given_up)
    assert answer["slo_violation_ratio"] <= 0.01


def test_no_cluster_lacks_a_worker_that_fails(tmp_path: Path) -> None:
    data = busy(cluster={"workers": 8, "faults": [{"kind": "crash", "workers": [0, 6], "at_s": 30}]})
    experiment = Experiment.load(write_experiment(tmp_path, data))
    found = size_experiment(experiment, Promise(0.9), tmp_path / "out")
    assert answers(found) == {"static": 7, "argus": 7}
    assert all(pd.isna(row["slo_violation_ratio_with_one_fewer"]) for row in found.answers)
    with pytest.raises(InputError, match="--largest: is 6, and the faults name worker 6"):
        size_experiment(experiment, Promise(), tmp_path / "few", largest=6)


KINDS = [{"name": "old", "workers": 2, "speed": 0.5}, {"name": "new", "workers": 1}]


def test_of_kinds_one_is_varied(tmp_path: Path) -> None:
    path = write_experiment(tmp_path, busy(cluster={"kinds": KINDS}, policies=["argus"]))
    found = size_experiment(Experiment.load(path), Promise(), tmp_path / "out", kind="new")
    (answer,) = found.answers
    folder = tmp_path / "out" / f"trace=rush,policy=argus,new={answer['workers']}"
    (old, new), total = (lambda c: (c.kinds, c.workers))(Experiment.load(folder / LOCK).cluster)
    assert (old.workers, new.workers, total) == (2, answer["workers"], 2 + answer["workers"])
    summaries = [json.loads(path.read_text()) for path in folder.glob("argus/rush/*/summary.json")]
    on_time = sum(summary["on_time"] for summary in summaries) / len(summaries)
    assert answer["on_time_per_gpu_hour"] == pytest.approx(on_time * 30 / total)


PEAK = {"of_capacity": 1.2, "window_s": 30}
CRASH = {"kind": "crash", "workers": [0], "at_s": 30}


@pytest.mark.parametrize(
    ("changes", "kind", "says"),
    [
        (
            {"traces": [busy()["traces"][0] | {"peak": PEAK}]},
            None,
            r"^experiment 'small': trace 'rush': peak: makes the load a multiple of what the cluster serves, .*"
            r"write scale_rate or scale_time, for 2 GPUs: rush: rate scaled by [\d.]+$",
        ),
        (
            {"traces": [{"name": "two", "superpose": [busy()["traces"][0] | {"peak": {**PEAK, "by": "time"}}]}]},
            None,
            r"trace 'rush': peak: .* for 2 GPUs: rush: time scaled by",
        ),
        (
            {"sweep": {"axes": {"slo": {"key": "slo.multiplier", "values": [2, 3]}}}},
            None,
            r"^experiment 'small': sweep: a search for a size varies that alone \(--set sweep=null\)$",
        ),
        ({"cluster": {"kinds": KINDS}, "policies": ["argus"]}, None, "say with --kind .*: old, new$"),
        ({"cluster": {"kinds": KINDS}, "policies": ["argus"]}, "nwe", "--kind: .*; did you mean 'new'?"),
        ({}, "new", "--kind: the cluster has no kind 'new'; without cluster.kinds leave --kind out"),
        ({"cluster": {"kinds": KINDS, "faults": [CRASH]}, "policies": ["argus"]}, "new", "faults: name workers"),
        (
            {"policies": [{"name": "static", "params": {"placement": {"big": 2}}}]},
            None,
            r"^static with \d+ GPUs: policy static: placement: .* places 2 workers; .*; leave out what is for",
        ),
    ],
)
def test_what_is_not_for_several_sizes_is_refused(
    tmp_path: Path, changes: dict[str, Any], kind: str | None, says: str
) -> None:
    experiment = Experiment.load(write_experiment(tmp_path, busy(**changes)))
    with pytest.raises(InputError, match=says):
        size_experiment(experiment, Promise(), tmp_path / "out", kind=kind)
    assert not (tmp_path / "out").exists()


#: Of four workers it forgets one; that shows in a run only.
PICKY = """
from argus_sim.policies.static import Static

class Picky(Static):
    def plan(self, view):
        plan = super().plan(view)
        return plan if view.workers_up != 4 else plan._replace(serves=plan.serves[:3])
"""


def test_what_a_size_runs_into_is_said_with_the_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "picky.py").write_text(PICKY)
    monkeypatch.syspath_prepend(str(tmp_path))
    experiment = Experiment.load(write_experiment(tmp_path, busy(policies=["picky:Picky"])))
    with pytest.raises(
        InputError, match=r"^with 4 GPUs: Picky on rush, seed 3: .* planned for 3 workers; there are 4$"
    ):
        size_experiment(experiment, Promise(), tmp_path / "out")
