"""What the YAML of an experiment means."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from argus_sim.core.batching import DropRule
from argus_sim.errors import InputError
from argus_sim.experiment import Experiment, ProfileConfig, expand, is_lock
from argus_sim.simulation.faults import Crash
from tests.make_experiment import content, write_experiment

SHIPPED = sorted((Path(__file__).parent.parent / "experiments").glob("*.yaml"))


RUSH = {"kind": "poisson", "duration_s": 60, "rate_per_min": 60}


def check(**changes: object) -> Experiment:
    return Experiment.check(content() | changes, where="test")


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_experiments_are_sound_and_named_after_their_file(path: Path) -> None:
    experiment = Experiment.load(path)
    assert experiment.name == path.stem
    assert experiment.description


def test_defaults() -> None:
    experiment = check()
    assert experiment.slo.of(4.0) == 12.0
    assert experiment.drop_rule == DropRule("late")
    assert experiment.cluster.staleness_s == 0.0
    assert list(experiment.seeds) == [3, 4]


def test_a_bare_name_is_a_trace_or_a_policy() -> None:
    experiment = check(traces=["bursty"], policies=["argus"])
    (trace,) = experiment.traces
    assert (trace.name, trace.file) == ("bursty", "bursty")
    (policy,) = experiment.policies
    assert (policy.name, policy.label, policy.params) == ("argus", "argus", {})


def test_a_policy_of_a_module_is_labelled_by_its_class() -> None:
    (policy,) = check(policies=["argus_sim.policies.argus:Argus"]).policies
    assert policy.label == "Argus"


def test_a_policy_runs_twice_under_two_labels() -> None:
    twice = [{"name": "argus", "label": f"argus-{t}", "params": {"tolerance": t}} for t in (0.1, 0.2)]
    assert [policy.label for policy in check(policies=twice).policies] == ["argus-0.1", "argus-0.2"]


@pytest.mark.parametrize(
    ("drop", "rule"),
    [("late", DropRule("late")), ("never", DropRule("never")), ({"factor": 2.0}, DropRule("factor", 2.0))],
)
def test_drop_rules(drop: object, rule: DropRule) -> None:
    assert check(drop=drop).drop_rule == rule


def test_faults() -> None:
    cluster = {"workers": 2, "faults": [{"kind": "crash", "at_s": 5, "for_s": 9, "workers": [1]}]}
    assert check(cluster=cluster).cluster.faults == (Crash(kind="crash", at_s=5, for_s=9, workers=(1,)),)


def test_a_deadline_is_said_in_one_way() -> None:
    assert check(slo={"seconds": 5}).slo.of(4.0) == 5.0
    assert check(slo={"multiplier": 2}).slo.of(4.0) == 8.0
    with pytest.raises(InputError, match="test: slo: seconds and multiplier both say the deadline"):
        check(slo={"seconds": 5, "multiplier": 3})
    axis = {"key": "slo.multiplier", "values": [2, 4]}
    with pytest.raises(InputError, match="sweep a=2: slo: seconds and multiplier both say"):
        check(slo={"seconds": 5}, sweep={"axes": {"a": axis}})
    axis = {"key": "slo.seconds", "values": [2, 4]}
    points = check(sweep={"axes": {"a": axis}}).points()
    assert [point.experiment.slo.of(4.0) for point in points] == [2.0, 4.0]


@pytest.mark.parametrize(
    ("trace", "says"),
    [
        ({"file": "bursty", "options": {"unit": "ms"}}, "options are those of a format"),
        ({"generate": RUSH, "options": {"unit": "ms"}}, "options are those of a format"),
        ({"generate": RUSH, "format": "csv"}, "format says how a file is read, and this trace has none"),
        ({"superpose": ["bursty"], "format": "csv"}, "format says how a file is read, and this trace has none"),
        ({"file": "bursty", "scale_rate": 2, "peak": {"of_capacity": 1}}, "peak .*, whatever scale_rate is"),
    ],
)
def test_keys_of_a_trace_that_would_change_nothing(trace: dict[str, object], says: str) -> None:
    with pytest.raises(InputError, match=f"traces.0: {says}"):
        check(traces=[{"name": "t", **trace}])


@pytest.mark.parametrize(
    "setting", ["cluster.workers", "seed", "replications", "slo.multiplier", "cluster.dispatch_s"]
)
def test_true_is_no_number(tmp_path: Path, setting: str) -> None:
    with pytest.raises(InputError, match=rf"{setting}: must be a number; found True"):
        Experiment.load(write_experiment(tmp_path), [f"{setting}=true"])


def test_a_fault_names_a_worker_once() -> None:
    slow = {"kind": "slow", "at_s": 0, "for_s": 60, "factor": 0.5, "workers": [0, 0]}
    with pytest.raises(InputError, match=r"cluster: .*a slow fault names worker 0 twice"):
        check(cluster={"workers": 2, "faults": [slow]})


def test_a_fault_hits_somebody() -> None:
    with pytest.raises(InputError, match=r"cluster: .*a crash fault names no worker; leave workers out"):
        check(cluster={"workers": 2, "faults": [{"kind": "crash", "at_s": 0, "workers": []}]})


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"prompts": {"recorded": {"column": "text"}}}, r"prompts\.recorded: .*there is no file"),
        ({"prompts": {"recorded": {"file": "a.txt", "column": "text"}}}, r"recorded: .*a \.txt file has lines"),
        (
            {"cluster": {"cache": {"kind": "simulated", "warm_up": {"requests": 5, "column": "text"}}}},
            r"warm_up: .*there is no file; leave column 'text' out",
        ),
    ],
)
def test_a_column_is_that_of_a_table(changes: dict[str, object], says: str) -> None:
    with pytest.raises(InputError, match=says):
        check(**changes)
    check(prompts={"recorded": {"file": "a.csv", "column": "text"}})


def test_a_star_stands_for_something(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cluster.faults has no items, so cluster.faults.\*.at_s sets nothing"):
        Experiment.load(
            write_experiment(tmp_path, content() | {"cluster": {"faults": []}}), ["cluster.faults.*.at_s=5"]
        )


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    traces = [
        {"name": "near", "file": "near.csv"},
        {"name": "shipped", "file": "bursty"},
        {"name": "public", "file": "public", "format": "csv"},
        {"name": "absolute", "file": "/data/t.csv"},
        {"name": "variable", "file": "${SOMEWHERE}/t.csv"},
    ]
    experiment = Experiment.load(write_experiment(tmp_path, content() | {"traces": traces}))
    assert experiment.profile == str(tmp_path / "profile")
    assert [trace.file for trace in experiment.traces] == [
        str(tmp_path / "near.csv"),
        "bursty",
        str(tmp_path / "public"),
        "/data/t.csv",
        "${SOMEWHERE}/t.csv",
    ]
    profile = {"format": "genai-bench", "file": "ratings.csv"}
    experiment = Experiment.load(write_experiment(tmp_path, content() | {"profile": profile}))
    assert isinstance(experiment.profile, ProfileConfig)
    assert experiment.profile.file == str(tmp_path / "ratings.csv")


def test_paths_of_the_command_line_may_be_relative_to_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    near, here = tmp_path / "near", tmp_path / "here"
    for folder in (near / "profile", near / "both", here / "both", here / "mine"):
        folder.mkdir(parents=True)
    file = write_experiment(near, content())
    monkeypatch.chdir(here)
    assert Experiment.load(file, ["profile=./mine"]).profile == str(here / "mine")
    assert Experiment.load(file, ["profile=./both"]).profile == str(near / "both")
    assert Experiment.load(file, ["profile=./nowhere"]).profile == str(near / "nowhere")
    assert Experiment.load(file).profile == str(near / "profile")


def test_files_of_a_profile_s_format_are_relative_to_the_file(tmp_path: Path) -> None:
    options = {"latency_from": "diffserve-a100", "loads_file": "loads.csv", "models": ["SDXL_Base"]}
    profile = {"format": "genai-bench", "file": "ratings.csv", "options": options}
    found = Experiment.load(write_experiment(tmp_path, content() | {"profile": profile})).profile
    assert isinstance(found, ProfileConfig)
    assert found.file == str(tmp_path / "ratings.csv")
    assert found.options == options | {"loads_file": str(tmp_path / "loads.csv")}


def test_variables_are_replaced_when_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOMEWHERE", "/data")
    assert expand("${SOMEWHERE}/t.csv", where="here") == Path("/data/t.csv")
    monkeypatch.delenv("SOMEWHERE")
    with pytest.raises(InputError, match=r"here: .*SOMEWHERE, which is not set"):
        expand("${SOMEWHERE}/t.csv", where="here")


def test_settings_reach_everything(tmp_path: Path) -> None:
    path = write_experiment(tmp_path, content() | {"traces": ["bursty"]})
    experiment = Experiment.load(
        path,
        [
            "cluster.workers=5",
            "cluster.cache.latency_s=0.2",
            "slo.seconds=7.5",
            "drop={factor: 3}",
            "traces.0.peak.of_capacity=1.5",
            "policies.1.params.tolerance=0.2",
            "policies.1.label=lax",
        ],
    )
    assert experiment.cluster.workers == 5
    assert experiment.cluster.cache.latency_s == 0.2
    assert experiment.slo.seconds == 7.5
    assert experiment.drop_rule == DropRule("factor", 3.0)
    (trace,) = experiment.traces
    assert trace.peak is not None
    assert (trace.name, trace.file, trace.peak.of_capacity) == ("bursty", "bursty", 1.5)
    assert experiment.policies[1].params == {"tolerance": 0.2}
    assert experiment.policies[1].label == "lax"


def test_a_setting_may_replace_an_item(tmp_path: Path) -> None:
    experiment = Experiment.load(write_experiment(tmp_path), ["policies.0=pac", "policies.1={name: argus}"])
    assert [policy.name for policy in experiment.policies] == ["pac", "argus"]


def test_what_a_lock_file_says_is_the_same_experiment(tmp_path: Path) -> None:
    experiment = Experiment.load(write_experiment(tmp_path))
    lock = {"experiment": experiment.model_dump(mode="json"), "inputs": {}, "versions": {}}
    (tmp_path / "elsewhere").mkdir()
    path = tmp_path / "elsewhere" / "experiment.lock.yaml"
    path.write_text(yaml.safe_dump(lock))
    assert is_lock(lock)
    assert not is_lock(content())
    assert Experiment.load(path) == experiment
    assert Experiment.load(path, ["cluster.workers=7"]).cluster.workers == 7
