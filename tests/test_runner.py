"""The same lock file gives the same bytes: again, in parallel, and after a run that was cut off."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from argus_sim import metrics
from argus_sim.errors import InputError
from argus_sim.experiment import Experiment
from argus_sim.experiment.folder import prepared
from argus_sim.experiment.lockfile import LOCK, make_lock, read_lock, versions
from argus_sim.experiment.runner import Run, run_experiment, runs_of
from argus_sim.experiment.scene import Scene
from argus_sim.metrics import METRICS
from tests.make_experiment import content, write_experiment
from tests.patience import LONG_S

FILES = ("outcomes.parquet", "attempts.parquet", "timeline.parquet", "events.json", "summary.json")
RUNS = [
    f"{policy}/{trace}/{seed}" for policy in ("static", "argus") for trace in ("rush", "file") for seed in (3, 4)
]


def tree(folder: Path) -> dict[str, str]:
    """All files below a folder, hidden ones too, by their content."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def write(folder: Path) -> Path:
    """The small experiment with a second trace, in a file."""
    (folder / "trace.csv").write_text("arrival_s\n" + "".join(f"{2.5 * i}\n" for i in range(20)))
    data = content()
    data["traces"].append({"name": "file", "file": "trace.csv"})
    return write_experiment(folder, data)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An experiment (``small.yaml``) and its uninterrupted results (``out``); tests only read them."""
    folder = tmp_path_factory.mktemp("finished")
    run_experiment(Experiment.load(write(folder)), folder / "out", jobs=1)
    return folder


@pytest.fixture
def experiment(finished: Path) -> Experiment:
    return Experiment.load(finished / "small.yaml")


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """A copy of the results to tamper with."""
    return Path(shutil.copytree(finished / "out", tmp_path / "out"))


def test_layout(finished: Path) -> None:
    names = set(tree(finished / "out"))
    for run in RUNS:
        assert {f"{run}/{name}" for name in FILES} <= names
    assert {LOCK, "summary.csv", "report.html"} <= names
    figures = {name.removeprefix("figures/") for name in names if name.startswith("figures/")}
    assert {f"timeline-{trace}.{kind}" for trace in ("rush", "file") for kind in ("png", "svg")} <= figures
    assert not [name for name in names if "/." in name or name.startswith(".")]


def test_summary_has_a_row_for_each_run_in_the_order_of_the_experiment(finished: Path) -> None:
    summary = pd.read_csv(finished / "out" / "summary.csv")
    assert list(summary.columns) == ["policy", "trace", "seed", *METRICS]
    rows = [f"{policy}/{trace}/{seed}" for policy, trace, seed in summary[["policy", "trace", "seed"]].to_numpy()]
    assert rows == sorted(RUNS, key=lambda run: (run.split("/")[1] != "rush", RUNS.index(run)))
    assert (summary["arrived"] == summary[["on_time", "late", "rejected", "lost"]].sum(axis=1)).all()


def test_policies_face_the_same_requests_under_a_seed_and_others_under_another(finished: Path) -> None:
    def asked(policy: str, seed: int) -> pd.DataFrame:
        outcomes = pd.read_parquet(finished / "out" / policy / "rush" / str(seed) / "outcomes.parquet")
        return outcomes[["arrival_s", "deadline_s", "prompt"]]

    pd.testing.assert_frame_equal(asked("static", 3), asked("argus", 3))
    assert not asked("static", 3).equals(asked("static", 4))


@pytest.mark.parametrize("jobs", [1, 2])
def test_the_lock_file_gives_the_same_bytes(finished: Path, tmp_path: Path, jobs: int) -> None:
    lock = finished / "out" / LOCK
    run_experiment(Experiment.load(lock), tmp_path / "again", jobs=jobs, digests=read_lock(lock).inputs)
    assert tree(tmp_path / "again") == tree(finished / "out")


def test_resumed_is_uninterrupted(experiment: Experiment, finished: Path, copied: Path) -> None:
    for name in ("summary.csv", "report.html"):
        (copied / name).unlink()
    shutil.rmtree(copied / "figures")
    shutil.rmtree(copied / "argus")
    shutil.rmtree(copied / "static" / "rush" / "4")
    half = copied / "argus" / "file" / ".3.partial"
    half.mkdir(parents=True)
    (half / "outcomes.parquet").write_bytes(b"half of it")
    kept = copied / "static" / "rush" / "3" / "summary.json"
    before = kept.stat().st_mtime_ns
    told: list[tuple[int, int]] = []
    ran: list[Run] = []
    run_experiment(
        experiment,
        copied,
        resume=True,
        jobs=1,
        on_start=lambda total, done: told.append((total, done)),
        on_run=lambda run, summary: ran.append(run),
    )
    assert tree(copied) == tree(finished / "out")
    assert kept.stat().st_mtime_ns == before
    assert told == [(8, 3)]
    assert len(ran) == 5


def test_resuming_what_is_finished_changes_nothing(experiment: Experiment, finished: Path, copied: Path) -> None:
    run_experiment(experiment, copied, resume=True, on_run=lambda run, summary: pytest.fail(f"{run} ran again"))
    assert tree(copied) == tree(finished / "out")


def test_resuming_nothing_starts(experiment: Experiment, finished: Path, tmp_path: Path) -> None:
    run_experiment(experiment, tmp_path / "out", resume=True, jobs=1)
    assert tree(tmp_path / "out") == tree(finished / "out")


def test_resuming_something_else_is_refused(finished: Path, copied: Path) -> None:
    other = Experiment.load(finished / "small.yaml", ["cluster.workers=3"])
    before = tree(copied)
    with pytest.raises(InputError, match=r"different run \(experiment differ\)"):
        run_experiment(other, copied, resume=True)
    assert tree(copied) == before


def test_without_resume_old_results_go(experiment: Experiment, finished: Path, copied: Path) -> None:
    (copied / "static" / "rush" / "5").mkdir()
    (copied / "static" / "rush" / "5" / "summary.json").write_text("{}")
    run_experiment(experiment, copied, jobs=1)
    assert tree(copied) == tree(finished / "out")


@pytest.mark.parametrize("name", ["src/code.py", "notes.txt", ".git/config", "figure=a/plot.py"])
def test_what_is_of_no_run_is_never_deleted(experiment: Experiment, copied: Path, name: str) -> None:
    (copied / name).parent.mkdir(exist_ok=True)
    (copied / name).write_text("mine")
    before = tree(copied)
    with pytest.raises(InputError, match=f"holds {name.partition('/')[0]}, which is of no run"):
        run_experiment(experiment, copied, jobs=1)
    assert tree(copied) == before


def test_what_a_link_leads_to_is_never_deleted(experiment: Experiment, copied: Path, tmp_path: Path) -> None:
    shutil.move(copied / "figures", tmp_path / "mine")
    (copied / "figures").symlink_to(tmp_path / "mine")
    with pytest.raises(InputError, match="holds figures, which is of no run"):
        run_experiment(experiment, copied, jobs=1)
    assert list((tmp_path / "mine").iterdir())


@pytest.mark.parametrize("below", [".", "static/rush"])
def test_the_folder_that_one_is_in_is_not_replaced(
    experiment: Experiment, copied: Path, below: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(copied / below)
    before = tree(copied)
    with pytest.raises(InputError, match="the folder that you are in, or one above it"):
        run_experiment(experiment, copied, jobs=1)
    assert tree(copied) == before


@pytest.mark.parametrize("content", ["", "[]", "versions: {}", "{experiment: 1, versions: {}}"])
@pytest.mark.parametrize("resume", [False, True])
def test_a_lock_file_that_is_none_is_no_leave_to_delete(
    experiment: Experiment, copied: Path, content: str, resume: bool
) -> None:
    (copied / LOCK).write_text(content)
    before = tree(copied)
    with pytest.raises(InputError, match=LOCK):
        run_experiment(experiment, copied, jobs=1, resume=resume)
    assert tree(copied) == before


@pytest.mark.skipif(os.name != "posix", reason="folders are locked on POSIX only")
def test_two_do_not_write_into_one_folder(experiment: Experiment, copied: Path) -> None:
    lock = yaml.safe_load((copied / LOCK).read_text())
    before = tree(copied)
    for resume in (False, True):
        with (
            prepared(copied, lock, resume=True),
            pytest.raises(InputError, match="another process writes results there"),
        ):
            run_experiment(experiment, copied, jobs=1, resume=resume)
    assert tree(copied) == before


@pytest.mark.parametrize("summary", ["", "{}", '{"quality_yield": 1.0, "lock": "another"}'])
def test_runs_of_another_lock_file_are_not_kept(
    experiment: Experiment, finished: Path, copied: Path, summary: str
) -> None:
    """Left by a process that outlived its experiment, say."""
    (copied / "static" / "rush" / "3" / "summary.json").write_text(summary)
    ran: list[Run] = []
    run_experiment(experiment, copied, resume=True, jobs=1, on_run=lambda run, _: ran.append(run))
    assert len(ran) == 1
    assert tree(copied) == tree(finished / "out")


@pytest.mark.parametrize("what", ["trace", "profile"])
def test_a_lock_file_whose_input_changed_is_refused(tmp_path: Path, what: str) -> None:
    scene = Scene.of(Experiment.load(write(tmp_path)))
    lock = tmp_path / "experiment.lock.yaml"
    lock.write_text(yaml.safe_dump(make_lock(scene)))
    if what == "trace":
        (tmp_path / "trace.csv").write_text("arrival_s\n1\n")
    else:
        path = tmp_path / "profile" / "latency.parquet"
        table = pd.read_parquet(path)
        table.assign(mean_s=table["mean_s"] * 1.01).to_parquet(path, index=False)
    before = tree(tmp_path)
    with pytest.raises(InputError, match=rf"^{what} \w+ is not what the lock file was made with"):
        run_experiment(Experiment.load(lock), tmp_path / "again", digests=read_lock(lock).inputs)
    assert tree(tmp_path) == before


def test_a_lock_file_knows_the_code_of_a_policy_that_is_brought_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    module = tmp_path / "brought_along.py"
    module.write_text("from argus_sim.policies.static import Static\n\nclass Mine(Static):\n    pass\n")
    policies = ["static", {"name": "brought_along:Mine"}]
    scene = Scene.of(Experiment.load(write_experiment(tmp_path, content() | {"policies": policies})))
    lock = tmp_path / "experiment.lock.yaml"
    lock.write_text(yaml.safe_dump(make_lock(scene)))
    assert [what for what in read_lock(lock).inputs if what.startswith("policy")] == ["policy Mine"]
    module.write_text(module.read_text() + "\n")
    with pytest.raises(InputError, match=r"^policy Mine is not what the lock file was made with"):
        run_experiment(Experiment.load(lock), tmp_path / "again", digests=read_lock(lock).inputs)


def test_lock_file(experiment: Experiment, finished: Path) -> None:
    lock = yaml.safe_load((finished / "out" / LOCK).read_text())
    assert lock["experiment"] == experiment.model_dump(mode="json")
    assert set(lock["inputs"]) == {"profile test", "trace file"}  # what is generated is in the experiment itself
    assert lock["versions"]["argus-sim"]
    assert read_lock(finished / "out" / LOCK).versions == versions()
    assert read_lock(finished / "small.yaml").inputs == {}


def test_a_run_is_there_whole_or_not_at_all(
    experiment: Experiment, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: Any) -> Any:
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(metrics, "timeline", broken)  # after the outcomes have been written
        with pytest.raises(OSError, match="no space"):
            run_experiment(experiment, tmp_path / "out", jobs=1)
    left = tree(tmp_path / "out")
    partial = "static/rush/.3.partial"
    assert set(left) == {LOCK, f"{partial}/outcomes.parquet", f"{partial}/attempts.parquet"}
    run_experiment(experiment, tmp_path / "out", jobs=1, resume=True)
    assert tree(tmp_path / "out") == tree(finished / "out")


def test_runs_on_the_same_arrivals_are_next_to_each_other(experiment: Experiment) -> None:
    assert [f"{run.policy.label}/{run.trace.name}/{run.seed}" for run in runs_of(experiment)] == [
        f"{policy}/{trace}/{seed}"
        for trace in ("rush", "file")
        for seed in (3, 4)
        for policy in ("static", "argus")
    ]


RUSH = {"kind": "poisson", "duration_s": 1200, "rate_per_min": 60}


#: A policy whose runs end only once there is a file: so an experiment is under way until it has been cut off.
HELD = """
import time
from pathlib import Path
from argus_sim.policies.static import Static

class Held(Static):
    def plan(self, view):
        while not Path(__file__).with_name("go on").exists():
            time.sleep(0.01)
        return super().plan(view)
"""


@pytest.fixture
def held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The setting for it beside ``static``."""
    (tmp_path / "held.py").write_text(HELD)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    return "policies=[static, held:Held]"


def start(folder: Path, out: Path, *settings: str) -> subprocess.Popen[str]:
    """``argus-sim run`` in a process group of its own."""
    # As from a terminal: what starts the tests in the background may have Ctrl-C ignored, and nohup SIGHUP.
    heard = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    if os.name == "posix":
        heard += "; signal.signal(signal.SIGHUP, signal.SIG_DFL)"
    command = [sys.executable, "-c", f"{heard}; import sys; from argus_sim.cli import main; sys.exit(main())"]
    command += ["run", str(folder / "small.yaml"), "--jobs", "2", "--out", str(out), "--seeds", "8"]
    command += ["--set", f"traces=[{{name: rush, generate: {json.dumps(RUSH)}}}]"]
    command += [word for setting in settings for word in ("--set", setting)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, start_new_session=True, **pipes)  # type: ignore[call-overload,no-any-return]


def wait_for_runs(process: subprocess.Popen[str], out: Path, runs: int = 1) -> None:
    until_s = time.monotonic() + LONG_S
    while len(list(out.glob("*/*/*/summary.json"))) < runs:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until_s
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="process groups are of POSIX")
def test_killed_and_resumed_is_uninterrupted(finished: Path, tmp_path: Path, held: str) -> None:
    out = tmp_path / "out"
    process = start(finished, out, held)
    wait_for_runs(process, out)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert 1 <= len(list(out.glob("*/*/*/summary.json"))) < 16
    assert not (out / "summary.csv").exists()
    (tmp_path / "go on").touch()
    experiment = Experiment.load(out / LOCK)
    run_experiment(experiment, out, resume=True, jobs=1)
    run_experiment(experiment, tmp_path / "again", jobs=1)
    assert tree(out) == tree(tmp_path / "again")


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="process groups are of POSIX")
@pytest.mark.parametrize("how", ["Ctrl-C", "kill"])
def test_interrupted_says_how_to_go_on(finished: Path, tmp_path: Path, held: str, how: str) -> None:
    out = tmp_path / "out"
    process = start(finished, out, held)
    wait_for_runs(process, out)
    if how == "Ctrl-C":
        os.killpg(process.pid, signal.SIGINT)
    else:
        process.terminate()
    result, said = process.communicate(timeout=LONG_S)  # all ends of the pipes are closed: nobody is left
    assert process.returncode == 130
    assert result == ""
    assert "Traceback" not in said
    assert said.splitlines()[-1] == (
        f"interrupted; finished runs are kept. To go on: argus-sim run {out / LOCK} --out {out} --resume"
    )


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="signals are of POSIX")
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_nobody_outlives_the_experiment(finished: Path, tmp_path: Path, how: signal.Signals) -> None:
    """Runs that would take minutes end with the process that wants them, whatever ends it; not by themselves."""
    out = tmp_path / "out"
    long = {**RUSH, "duration_s": 2_000_000}
    process = start(
        finished,
        out,
        f"traces=[{{name: rush, generate: {json.dumps(RUSH)}}}, {{name: long, generate: {json.dumps(long)}}}]",
        "replications=1",
        "bound=false",
    )
    wait_for_runs(process, out, 2)  # now both are at the long ones
    process.send_signal(how)
    process.communicate(timeout=LONG_S)  # all ends of the pipes are closed: nobody is left
    assert process.returncode == (-how if how == signal.SIGKILL else 130)
    assert not list(out.glob("*/long/*/summary.json"))


def test_seeds_may_have_traces_of_different_lengths(tmp_path: Path) -> None:
    """Arrivals of their own, each rescaled in time to the same peak."""
    data = content() | {"policies": ["static"]}
    data["traces"][0] |= {"peak": {"of_capacity": 1.0, "window_s": 20, "by": "time"}}
    out = tmp_path / "out"
    results = run_experiment(Experiment.load(write_experiment(tmp_path, data)), out, jobs=1)
    lengths = {float(results.run("static", "rush", seed).events["duration_s"]) for seed in (3, 4)}
    assert len({len(results.run("static", "rush", seed).timeline) for seed in (3, 4)}) == len(lengths) == 2
    assert "traces of different lengths" in (out / "report.html").read_text("utf-8")
