"""Sweeps: which points they have, and what is left of them."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from argus_sim.cli import main
from argus_sim.errors import InputError
from argus_sim.experiment import Experiment, sweep
from argus_sim.experiment.lockfile import LOCK
from argus_sim.experiment.results import Results
from argus_sim.experiment.runner import run_experiment
from argus_sim.report.charts.axis import SHOWN, AxisStory
from tests.make_experiment import content, write_experiment
from tests.test_runner import tree

AXES: dict[str, Any] = {
    "slo": {"key": "slo.multiplier", "values": [2, 3.5]},
    "trouble": {
        "key": "cluster.faults",
        "values": {"none": [], "a-crash": [{"kind": "crash", "at_s": 10, "workers": [0]}]},
        "policies": ["argus"],
    },
}


def check(axes: dict[str, Any], *, grid: bool = False, **changes: Any) -> Experiment:
    return Experiment.check(content() | changes | {"sweep": {"axes": axes, "grid": grid}}, where="test")


def test_one_axis_at_a_time() -> None:
    points = check(AXES).points()
    assert [p.name for p in points] == ["slo=2", "slo=3.5", "trouble=none", "trouble=a-crash"]
    assert [p.experiment.slo.multiplier for p in points] == [2, 3.5, None, None]
    assert [len(p.experiment.cluster.faults) for p in points] == [0, 0, 0, 1]
    assert [[q.label for q in p.experiment.policies] for p in points] == [["static", "argus"]] * 2 + [
        ["argus"]
    ] * 2
    assert all(p.experiment.sweep is None for p in points)
    assert points[3].values == {"trouble": "a-crash"}


def test_a_grid() -> None:
    points = check(AXES, grid=True).points()
    assert [p.name for p in points] == [
        "slo=2,trouble=none",
        "slo=2,trouble=a-crash",
        "slo=3.5,trouble=none",
        "slo=3.5,trouble=a-crash",
    ]
    assert [p.experiment.slo.multiplier for p in points] == [2, 2, 3.5, 3.5]


@pytest.mark.parametrize(("seeds", "half_width"), [([1], np.nan), ([1, 2], 12.706 * 0.01 / 2)])
def test_along_an_axis_of_a_grid_the_interval_is_over_seeds(seeds: list[int], half_width: float) -> None:
    axes = {"slo": AXES["slo"], "workers": {"key": "cluster.workers", "values": [1, 4]}}
    experiment = check(axes, grid=True)
    tables = {
        point.name: pd.DataFrame(
            [
                {"policy": "argus", "trace": "rush", "seed": seed, "quality_yield": value + 0.01 * seed}
                for seed in seeds
            ]
        )
        for point, value in zip(experiment.points(), [0.5, 0.9, 0.6, 0.8], strict=True)
    }
    got = sweep.of_axis(experiment, sweep.together(experiment, tables), "slo")
    assert got[["value", "seeds"]].to_numpy().tolist() == [["2", len(seeds)], ["3.5", len(seeds)]]
    assert got["quality_yield"].to_list() == pytest.approx([0.7 + 0.01 * np.mean(seeds)] * 2)
    assert got["quality_yield_half_width"].to_list() == pytest.approx([half_width] * 2, nan_ok=True, rel=1e-3)


def test_several_keys_and_all_items_of_a_list() -> None:
    keys = ["policies.*.predictor", "policies.1.predictor"]
    policies = [{"name": "argus", "label": label} for label in "ab"]
    (point,) = check({"p": {"key": keys, "values": ["perfect"]}}, policies=policies).points()
    assert [p.predictor for p in point.experiment.policies] == ["perfect", "perfect"]
    (point,) = check({"g": {"key": "profile_changes.batching.gain", "values": [2]}}).points()
    assert point.experiment.profile_changes.batching is not None
    assert point.experiment.profile_changes.batching.gain == 2


@pytest.mark.parametrize(
    ("axis", "message"),
    [
        (
            {"key": "slo.multiplyer", "values": [1]},
            r"test: sweep a=1: slo.multiplyer: .*did you mean 'multiplier'",
        ),
        ({"key": "slo.multiplier", "values": [-1]}, r"test: sweep a=-1: slo.multiplier: .*; found -1"),
        ({"key": "slo.multiplier", "values": []}, r"sweep.axes.a.values"),
        ({"key": "cluster.faults", "values": [[]]}, r"sweep.axes.a: give \[\] a name"),
        ({"key": "slo.multiplier", "values": [1, 1]}, r"sweep.axes.a: a value appears twice"),
        ({"key": "profile", "values": ["a/b"]}, r"sweep.axes.a: 'a/b' cannot name a folder"),
        ({"key": "profile", "values": {"x": "./a"}}, r"a path in a sweep must be absolute"),
        ({"key": "traces.7.scale_rate", "values": [1]}, r"sweep a=1: traces has items 0 to 0, not '7'"),
        ({"key": "slo.*.x", "values": [1]}, r"sweep a=1: slo is no list"),
        ({"key": "cluster.faults.*.at_s", "values": [1]}, r"sweep a=1: cluster.faults has no items"),
        ({"key": "slo.multiplier", "values": [1], "policies": ["agrus"]}, r"no policy 'agrus'.*'argus'"),
        ({"key": "policies.1.params.tolerance", "values": [7]}, r"sweep a=7: policies.1.params.tolerance"),
    ],
)
def test_what_an_axis_cannot_be(axis: dict[str, Any], message: str) -> None:
    if axis["values"] == [-1]:
        axis = axis | {"values": {"minus": -1}}
        message = message.replace("a=-1", "a=minus")
    with pytest.raises(InputError, match=message):
        check({"a": axis})


def test_axes_of_a_grid_set_what_no_other_sets() -> None:
    axes = {"slo": AXES["slo"], "late": {"key": ["cluster.workers", "slo.multiplier"], "values": [4]}}
    check({"slo": axes["slo"], "lateness": axes["late"]})
    with pytest.raises(InputError, match=r"sweep: axes 'slo' and 'lateness' both set slo.multiplier"):
        check({"slo": axes["slo"], "lateness": axes["late"]}, grid=True)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("cluster", "cluster.workers"),
        ("cluster.workers", "cluster"),
        ("policies.*.params", "policies.1.params.tolerance"),
        ("policies.1.predictor", "policies.*.predictor"),
    ],
)
def test_an_axis_of_a_grid_sets_no_part_of_what_another_sets(a: str, b: str) -> None:
    axes = {"a": {"key": a, "values": {"one": 1}}, "b": {"key": ["slo.seconds", b], "values": [4]}}
    message = rf"sweep: axes 'a' and 'b' set {re.escape(a)} and {re.escape(b)}, which overlap: .* one is lost"
    with pytest.raises(InputError, match=message):
        check(axes, grid=True)


def test_keys_of_one_beginning_are_apart() -> None:
    """As are neighbours: only whole steps of a path count."""
    axes = {"a": {"key": "policies.0.label", "values": ["x", "y"]}, "b": AXES["slo"]}
    axes["c"] = {"key": "policies.1.label", "values": ["z"]}
    axes["d"] = {"key": "window_s", "values": [30]}
    assert len(check(axes, grid=True).points()) == 4


def test_an_axis_is_no_column_of_the_results() -> None:
    with pytest.raises(InputError, match="an axis cannot be called 'late'"):
        check({"late": AXES["slo"]})


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small experiment with a sweep (``small.yaml``) and its results (``out``); tests only read them."""
    folder = tmp_path_factory.mktemp("swept")
    path = write_experiment(folder, content() | {"sweep": {"axes": AXES}})
    run_experiment(Experiment.load(path), folder / "out", jobs=1)
    return folder


def test_all_points_are_in_one_table(swept: Path) -> None:
    summary = pd.read_csv(swept / "out" / "summary.csv", dtype={"slo": "str"})
    assert list(summary.columns[:5]) == ["slo", "trouble", "policy", "trace", "seed"]
    assert len(summary) == 2 * 2 * 2 + 2 * 2
    assert summary["slo"].fillna("").tolist() == ["2"] * 4 + ["3.5"] * 4 + [""] * 4
    assert summary["trouble"].fillna("").tolist() == [""] * 8 + ["none"] * 2 + ["a-crash"] * 2
    for row in summary.to_dict("records"):
        point = f"slo={row['slo']}" if row["slo"] == row["slo"] else f"trouble={row['trouble']}"
        run = swept / "out" / point / row["policy"] / row["trace"] / str(row["seed"])
        assert json.loads((run / "summary.json").read_text())["quality_yield"] == row["quality_yield"]
        own = pd.read_csv(swept / "out" / point / "summary.csv")
        assert row["quality_yield"] in own["quality_yield"].tolist()
    # A longer deadline is easier to keep, and a worker less is worse.
    static = summary[summary["policy"] == "static"].groupby("slo")["slo_violation_ratio"].mean()
    assert static["3.5"] < static["2"]
    argus = summary[summary["slo"].isna()].groupby("trouble")["quality_yield"].mean()
    assert argus["a-crash"] < argus["none"]


def test_a_point_is_what_an_experiment_of_its_own_would_be(swept: Path, tmp_path: Path) -> None:
    experiment = Experiment.load(swept / "small.yaml", ["sweep=null", "slo.multiplier=3.5"])
    run_experiment(experiment, tmp_path / "alone", jobs=1)
    one = (tmp_path / "alone" / "summary.csv").read_bytes()
    assert one == (swept / "out" / "slo=3.5" / "summary.csv").read_bytes()


def test_figures_and_report(swept: Path) -> None:
    assert {p.name for p in (swept / "out" / "figures").iterdir()} == {
        f"{axis}.{kind}" for axis in AXES for kind in ("png", "svg")
    }
    page = (swept / "out" / "report.html").read_text("utf-8")
    for point in ("slo=2", "slo=3.5", "trouble=none", "trouble=a-crash"):
        assert point in page
    assert re.search(r"2 policies,\s+4 cases,\s+2 seeds", page)
    assert "<dt>varied</dt><dd>slo, trouble</dd>" in page
    charts = json.loads(page.partition('id="data">')[2].partition("</script>")[0])["charts"]
    assert set(charts) == {f"axis{k}-0-{metric}" for k in range(2) for metric in SHOWN}
    summary = pd.read_csv(swept / "out" / "summary.csv", dtype={"slo": "str"})
    mean = summary[(summary["slo"] == "2") & (summary["policy"] == "argus")]["quality_yield"].mean()
    chart = charts["axis0-0-quality_yield"]
    policies = json.loads(page.partition('id="data">')[2].partition("</script>")[0])["policies"]
    drawn = {policies[p]: values for p, values, _ in chart["series"]}
    assert chart["labels"] == ["2", "3.5"]
    assert drawn["argus"][0] == pytest.approx(mean, rel=1e-3)
    assert drawn["static"][1] == pytest.approx(
        summary[(summary["slo"] == "3.5") & (summary["policy"] == "static")]["quality_yield"].mean(), rel=1e-3
    )


def test_the_lock_file_gives_the_same_bytes_in_parallel_and_after_an_interruption(
    swept: Path, tmp_path: Path
) -> None:
    lock = swept / "out" / LOCK
    run_experiment(Experiment.load(lock), tmp_path / "again", jobs=2)
    want = tree(swept / "out")
    assert tree(tmp_path / "again") == want
    run = tmp_path / "again" / "slo=2" / "argus" / "rush" / "4"
    for file in run.iterdir():
        file.unlink()
    (tmp_path / "again" / "summary.csv").unlink()
    ran: list[str] = []
    run_experiment(
        Experiment.load(lock),
        tmp_path / "again",
        jobs=1,
        resume=True,
        on_run=lambda run, summary: ran.append(str(run.folder(Path()))),
    )
    assert ran == ["argus/rush/4"]
    assert tree(tmp_path / "again") == want


def test_the_lock_file_names_what_points_rest_on(tmp_path: Path) -> None:
    axes = {"loads": {"key": "profile_changes.load_factor", "values": [1, 2], "policies": ["static"]}}
    path = write_experiment(tmp_path, content() | {"sweep": {"axes": axes}, "replications": 1})
    run_experiment(Experiment.load(path), tmp_path / "out", jobs=1)
    inputs = yaml.safe_load((tmp_path / "out" / LOCK).read_text())["inputs"]
    assert set(inputs) == {"profile test", "loads=2: profile test"}
    page = (tmp_path / "out" / "report.html").read_text("utf-8")
    assert "load times x 2" in page


def test_the_command_line_says_it_by_axis(
    swept: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")

    def call(*arguments: str) -> str:
        code = main([str(a) for a in arguments])
        out, err = capsys.readouterr()
        assert code == 0, err
        return out

    said = call("run", str(swept / "small.yaml"), "--out", str(tmp_path / "o"), "--jobs", "1", "--quiet")
    assert "Quality yield / SLO violations (%)" in said
    assert [line.split("│")[0].strip() for line in said.splitlines() if "/ " in line and "│" in line] == [
        "2",
        "3.5",
        "none",
        "a-crash",
    ]
    got = json.loads(
        call("run", str(swept / "small.yaml"), "--out", str(tmp_path / "o"), "--jobs", "1", "--quiet", "--json")
    )
    assert len(got["runs"]) == 12
    said = call("validate", str(swept / "small.yaml"))
    assert "12 runs: 4 points of a sweep x up to 2 policies x 1 traces x 2 seeds" in said
    assert "sweep over trouble: none, a-crash" in said


def test_compare_wants_one_point(swept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = swept / "out"
    assert main(["compare", str(out), "--policies", "argus", "static"]) == 2
    assert "has a sweep over slo, trouble; choose one point of it" in capsys.readouterr().err
    assert main(["compare", str(out / "slo=2"), "--policies", "argus", "static"]) == 0


def test_the_table_of_a_sweep_has_one_for_each_axis(swept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["table", str(swept / "out")]) == 0
    first, second = capsys.readouterr().out.strip().split("\n\n")
    heading, rule, *rows = first.splitlines()
    assert heading == "| slo: quality yield (SLO violations (%)) | static | argus |"
    assert rule == "| --- | ---: | ---: |"
    summary = pd.read_csv(swept / "out" / "slo=2" / "summary.csv").query("policy == 'static'")
    mean, late = summary["quality_yield"].mean(), 100.0 * summary["slo_violation_ratio"].mean()
    cell = rows[0].split(" | ")[1]
    assert rows[0].startswith("| 2 | ")
    assert (cell.split(" ")[0], cell.rpartition(" ")[2]) == (f"{mean:.3f}", f"({late:.2f})")
    assert second.startswith("| trouble: ")


def test_validate_finds_what_is_wrong_at_a_point(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    axes = {"gain": {"key": "profile_changes.batching.gain", "values": [2, 9]}}
    path = write_experiment(tmp_path, content() | {"sweep": {"axes": axes}})
    assert main(["validate", str(path)]) == 2
    assert "batches of 4 cannot gain 9; at most 4 is allowed" in capsys.readouterr().err
    assert main(["run", str(path), "--out", str(tmp_path / "out")]) == 2
    assert not (tmp_path / "out").exists()


def test_a_load_that_follows_the_cluster_is_remarked_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gpus = {"axes": {"gpus": {"key": "cluster.workers", "values": [2, 3]}}}
    data = content() | {"sweep": gpus}
    write_experiment(tmp_path, data)
    assert main(["validate", str(tmp_path / "small.yaml")]) == 0
    assert capsys.readouterr().err == ""
    data["traces"][0]["peak"] = {"of_capacity": 1.2, "window_s": 30}
    path = write_experiment(tmp_path, data)
    for command in (["validate", str(path)], ["run", str(path), "--out", str(tmp_path / "out"), "--jobs", "1"]):
        assert main(command) == 0
        assert "note: gpus changes the cluster, and with it the load of rush: peak" in capsys.readouterr().err
    assert "gpus changes the cluster" in (tmp_path / "out" / "report.html").read_text()


def test_results_of_a_sweep_are_those_of_its_points(swept: Path, tmp_path: Path) -> None:
    out = swept / "out"
    loaded = Results.load(out)
    ran = run_experiment(loaded.experiment, tmp_path / "again", jobs=1, report=False)
    pd.testing.assert_frame_equal(loaded.summary, ran.summary)
    assert not (tmp_path / "again" / "report.html").exists()
    assert list(loaded.points) == ["slo=2", "slo=3.5", "trouble=none", "trouble=a-crash"]
    point = loaded.points["slo=3.5"]
    assert point.experiment.slo.multiplier == 3.5
    assert len(point.outcomes) == point.summary["arrived"].sum()
    assert not point.points
    table = loaded.aggregate
    assert list(table.columns[:3]) == ["point", "policy", "trace"]
    assert len(table) == 2 * 2 + 2
    (row,) = table[(table["point"] == "slo=2") & (table["policy"] == "argus")].to_dict("records")
    mine = loaded.summary[(loaded.summary["slo"] == "2") & (loaded.summary["policy"] == "argus")]
    assert row["quality_yield"] == pytest.approx(mine["quality_yield"].mean(), abs=1e-12)
    assert "trouble=a-crash" in loaded._repr_html_()
    asked: tuple[Callable[[], object], ...] = (
        lambda: loaded.outcomes,
        lambda: loaded.timelines,
        lambda: loaded.plot,
        lambda: loaded.run("argus"),
        loaded.compare,
        lambda: point.compare(loaded),
    )
    for ask in asked:
        with pytest.raises(InputError, match=r"has a sweep over slo, trouble; ask one .*points\['slo=2'\]"):
            ask()


def test_a_point_gets_a_report_of_its_own_from_its_lock_file(swept: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(swept / "out", tmp_path / "out"))
    point = out / "trouble=a-crash"
    before = (point / "summary.csv").read_bytes()
    ran: list[object] = []
    run_experiment(
        Experiment.load(point / LOCK), point, jobs=1, resume=True, on_run=lambda run, summary: ran.append(run)
    )
    assert not ran
    assert (point / "report.html").is_file()
    assert (point / "summary.csv").read_bytes() == before


def test_watch_and_trace_look_into_points(
    swept: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = Path(shutil.copytree(swept / "out", tmp_path / "out"))

    def call(*arguments: str) -> str:
        assert main(list(arguments)) == 0
        return capsys.readouterr().out

    said = call("watch", str(out))
    assert "12 of 12 runs, ended" in said
    (line,) = [line.split() for line in said.splitlines() if line.startswith("trouble=a-crash")]
    table = pd.read_csv(out / "trouble=a-crash" / "summary.csv")
    assert line[1:] == ["rush", "2/2", "argus", f"{table['quality_yield'].mean():.3f}"]
    assert "4 of 4 runs, ended" in call("watch", str(out / "slo=2"))
    call("trace", str(out / "slo=2" / "argus" / "rush" / "3"))
    assert json.loads((out / "slo=2" / "argus" / "rush" / "3" / "trace.json").read_text())["traceEvents"]
    # As it is while the last point still runs.
    shutil.rmtree(out / "trouble=a-crash" / "argus")
    for path in (out / "report.html", out / "summary.csv", out / "trouble=a-crash" / "summary.csv"):
        path.unlink()
    said = call("watch", str(out), "--once")
    assert "10 of 12 runs, running" in said
    assert "0/2" in next(line for line in said.splitlines() if line.startswith("trouble=a-crash"))
    got = json.loads(call("watch", str(out), "--json"))
    assert (got["ended"], got["runs"], len(got["finished"])) == (False, 12, 10)
    assert {run["point"] for run in got["finished"]} == {"slo=2", "slo=3.5", "trouble=none"}


def story_of(values: list[str], numbers: list[float], level: Callable[[int], float]) -> AxisStory:
    """An axis ``x`` along which ``argus`` and ``pac`` rise from value to value."""
    rows = [
        {
            "value": value,
            "policy": policy,
            "trace": "t",
            **{name: level(i) for name in SHOWN},
            **{f"{name}_half_width": np.nan for name in SHOWN},
        }
        for i, value in enumerate(values)
        for policy in ("argus", "pac")
    ]
    return AxisStory("x", "note", tuple(values), tuple(numbers), pd.DataFrame(rows))


def test_a_figure_has_its_values_where_they_are() -> None:
    figure = sweep.figure_axis(story_of(["1", "10", "100"], [1.0, 10.0, 100.0], lambda i: 0.1 * i))
    ax = figure.axes[SHOWN.index("quality_yield")]
    assert ax.get_xscale() == "log"
    assert [text.get_text() for text in ax.get_xticklabels()] == ["1", "10", "100"]
    assert ax.lines[0].get_xdata().tolist() == [1.0, 10.0, 100.0]  # type: ignore[union-attr]
    assert ax.lines[0].get_ydata().tolist() == pytest.approx([0.0, 0.1, 0.2])  # type: ignore[union-attr]
    violations = figure.axes[SHOWN.index("slo_violation_ratio")].lines[0].get_ydata()
    assert violations.tolist() == pytest.approx([0.0, 10.0, 20.0])  # type: ignore[union-attr]
    close = sweep.figure_axis(story_of(["0", "0.25", "0.3", "1"], [0.0, 0.25, 0.3, 1.0], float)).axes[0]
    assert [tick.get_text() for tick in close.get_xticklabels()] == ["0", "0.25", "1"]
    named = sweep.figure_axis(story_of(["none", "some"], [], float)).axes[0]
    assert [text.get_text() for text in named.get_xticklabels()] == ["none", "some"]
    assert named.lines[0].get_linestyle() == "None"
