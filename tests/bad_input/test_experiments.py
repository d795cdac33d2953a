"""Experiments, settings and commands that are wrong."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from argus_sim.cli import main
from tests.bad_input.changed import changed
from tests.make_experiment import write_experiment

RUSH: dict[str, Any] = {"kind": "poisson", "duration_s": 60, "rate_per_min": 60}

#: What is wrong -> a change of the experiment, and what the message must hold: place, found, allowed.
EXPERIMENTS: dict[str, tuple[Callable[[dict[str, Any]], object], tuple[str, ...]]] = {
    "wrong key": (
        lambda e: e.update(polices=e.pop("policies")),
        ("small.yaml: polices: ", "unknown key 'polices'", "did you mean 'policies'?", "replications"),
    ),
    "wrong nested key": (
        lambda e: e["cluster"].update(worker=4),
        ("small.yaml: cluster.worker: ", "did you mean 'workers'?", "staleness_s"),
    ),
    "a key of a section": (
        lambda e: e.update(workers=e["cluster"].pop("workers")),
        ("small.yaml: workers: ", "unknown key 'workers'; did you mean 'cluster.workers'?", "replications"),
    ),
    "wrong key of an axis": (
        lambda e: e.update(sweep={"axes": {"gpus": {"key": "cluster.workers", "value": [2, 3]}}}),
        ("small.yaml: sweep.axes.gpus.value: ", "did you mean 'values'?", "key, policies, values"),
    ),
    "one of a list": (
        lambda e: e.update(policies="argus"),
        ("small.yaml: policies: must be a list; found 'argus'",),
    ),
    "no mapping": (lambda e: e.update(cluster=4), ("small.yaml: cluster: must be a mapping; found 4",)),
    "wrong key in a list, in a union": (
        lambda e: e["traces"][0].update(generate={**RUSH, "rate_per_minute": 3}),
        ("small.yaml: traces.0.generate.rate_per_minute: ", "did you mean 'rate_per_min'?", "duration_s"),
    ),
    "missing key": (lambda e: e.pop("profile"), ("small.yaml: profile: is required",)),
    "missing nested key": (
        lambda e: e["traces"][0].update(generate={"kind": "poisson", "duration_s": 60}),
        ("small.yaml: traces.0.generate.rate_per_min: is required",),
    ),
    "unknown kind": (
        lambda e: e["traces"][0].update(generate={**RUSH, "kind": "poison"}),
        ("small.yaml: traces.0.generate: ", "unknown kind 'poison'", "did you mean 'poisson'?", "mmpp"),
    ),
    "a value out of bounds": (
        lambda e: e["cluster"].update(workers=0),
        ("small.yaml: cluster.workers: ", "greater than or equal to 1", "found 0"),
    ),
    "a value of the wrong type": (
        lambda e: e.update(replications="many"),
        ("small.yaml: replications: ", "valid integer", "found 'many'"),
    ),
    "not a number": (
        lambda e: e["traces"][0].update(generate={**RUSH, "rate_per_min": float("nan")}),
        ("small.yaml: traces.0.generate.rate_per_min: ", "finite number", "found nan"),
    ),
    "no such choice": (
        lambda e: e.update(drop="sometimes"),
        ("small.yaml: drop: ", "'late' or 'never'", "'sometimes'"),
    ),
    "neither file nor generator": (
        lambda e: e["traces"][0].pop("generate"),
        ("small.yaml: traces.0: ", "one of file, generate and superpose"),
    ),
    "no policies": (lambda e: e.update(policies=[]), ("small.yaml: policies: ", "at least 1 item")),
    "a policy twice": (
        lambda e: e.update(policies=["argus", {"name": "argus", "params": {"tolerance": 0.2}}]),
        ("small.yaml: ", "policy label 'argus' appears twice"),
    ),
    "a label that results have themselves": (
        lambda e: e.update(policies=[{"name": "argus", "label": "figures"}]),
        ("small.yaml: ", "policy label 'figures' is taken"),
    ),
    "a peak over more than the trace": (
        lambda e: e["traces"][0].update(peak={"of_capacity": 1, "window_s": 300}),
        ("trace 'rush': peak: ", "window_s is 300 s", "lasts 60 s"),
    ),
    "a name that is no folder": (lambda e: e.update(name="../up"), ("small.yaml: name: ", "found '../up'")),
    "unknown policy": (
        lambda e: e.update(policies=["agrus"]),
        ("small.yaml: policies.0.name: ", "unknown policy 'agrus'", "did you mean 'argus'?", "clipper-ha"),
    ),
    "a policy's file": (
        lambda e: e.update(policies=["mine.py"]),
        ("small.yaml: policies.0.name: ", "unknown policy 'mine.py'", "One of your own is MODULE:CLASS"),
    ),
    "a policy that cannot be imported": (
        lambda e: e.update(policies=["no_such_package.policy:Mine"]),
        ("small.yaml: policies.0.name: ", "'no_such_package.policy:Mine' cannot be imported"),
    ),
    "a policy whose folder is not known": (
        lambda e: e.update(policies=["no_such_file:Mine"]),
        ("'no_such_file:Mine' cannot be imported: No module named 'no_such_file'; its folder", "PYTHONPATH=."),
    ),
    "a policy without a name": (
        lambda e: e.update(policies=["argus_sim.policies.base:Policy"]),
        ("small.yaml: policies.0.name: 'argus_sim.policies.base:Policy' has no name: give the class one",),
    ),
    "something that is no policy": (
        lambda e: e.update(policies=["pathlib:Path"]),
        ("small.yaml: policies.0.name: ", "'pathlib:Path' is not a subclass"),
    ),
    "unknown parameter of a policy": (
        lambda e: e.update(policies=[{"name": "argus", "params": {"tolerence": 0.1}}]),
        ("small.yaml: policies.0.params: ", "no parameter 'tolerence'", "did you mean 'tolerance'?"),
    ),
    "bad parameter of a policy": (
        lambda e: e.update(policies=[{"name": "argus", "params": {"tolerance": 1.5}}]),
        ("small.yaml: policies.0.params.tolerance: ", "less than 1", "found 1.5"),
    ),
    "unknown profile": (
        lambda e: e.update(profile="artefact-a10"),
        ("no profile 'artefact-a10'", "did you mean 'artefact-a100'?", "diffserve-a100"),
    ),
    "no profile in the folder": (
        lambda e: e.update(profile="./"),
        ("the folder has no profile.json",),
    ),
    "unknown variant": (
        lambda e: e.update(policies=[{"name": "static", "params": {"placement": {"bigger": 2}}}]),
        ("policy static: placement: ", "no variant 'bigger'", "did you mean 'big'?", "big/ac-25"),
    ),
    "impossible placement": (
        lambda e: e.update(policies=[{"name": "static", "params": {"placement": {"big": 2, "small": 1}}}]),
        ("policy static: placement: ", "places 3 workers", "sum to the cluster's 2"),
    ),
    "a placement of none": (
        lambda e: e.update(policies=[{"name": "static", "params": {"placement": {"big": 2, "small": 0}}}]),
        ("policy static: placement: ", "positive counts"),
    ),
    "no such ladder": (
        lambda e: e.update(policies=[{"name": "proteus", "params": {"ladder": "STEPS"}}]),
        ("policy proteus: ladder: ", "no ladder 'STEPS'", "AC, SM"),
    ),
    "looks that are rarer than plans": (
        lambda e: e.update(policies=[{"name": "argus", "params": {"monitor_s": 30, "period_s": 5}}]),
        ("small.yaml: policies.0.params: ", "monitor_s is 30 s, longer than the 5 s of period_s"),
    ),
    "a horizon that nothing is paid back in": (
        lambda e: e.update(policies=[{"name": "pac", "params": {"allocation": "solver", "horizon_s": 60}}]),
        ("small.yaml: policies.0.params: ", "horizon_s has no effect with allocation: solver"),
    ),
    "two forecasts": (
        lambda e: e.update(
            policies=[{"name": "pac", "forecast": "perfect", "params": {"forecast": {"kind": "ewma"}}}]
        ),
        ("small.yaml: policies.0.params.forecast: ", "no effect beside forecast: perfect"),
    ),
    "a prompt's quality for who does not know prompts": (
        lambda e: e.update(policies=[{"name": "pac", "params": {"tolerance": 0.1}}]),
        ("small.yaml: policies.0.params: ", "policy 'pac' has no parameter 'tolerance'"),
    ),
    "a prediction that nobody asks for": (
        lambda e: e.update(policies=[{"name": "pac", "predictor": "perfect"}]),
        ("small.yaml: policies.0.predictor: ", "policy 'pac' does not predict"),
    ),
    "no ladder of models": (
        lambda e: e.update(policies=[{"name": "sommelier", "params": {"ladder": "STEPS"}}]),
        ("policy sommelier: ladder: ", "no ladder 'STEPS'", "AC, SM"),
    ),
    "a period without plans": (
        lambda e: e.update(policies=[{"name": "sommelier", "params": {"period_s": 30}}]),
        ("small.yaml: policies.0.params", "policy 'sommelier' has no parameter 'period_s'"),
    ),
    "a placement that is never made": (
        lambda e: e.update(policies=[{"name": "sommelier", "params": {"monitor_s": None}}]),
        ("small.yaml: policies.0.params.monitor_s: ",),
    ),
    "a worker that is not there": (
        lambda e: e["cluster"].update(faults=[{"kind": "crash", "at_s": 1, "workers": [2]}]),
        ("small.yaml: cluster: ", "no worker 2", "0 to 1"),
    ),
    "unknown shipped trace": (
        lambda e: e.update(traces=["burtsy"]),
        ("no trace is called 'burtsy'", "did you mean 'bursty'?", "diurnal"),
    ),
    "unknown format": (
        lambda e: e.update(traces=[{"name": "t", "file": "t.csv", "format": "azure"}]),
        ("no trace format is called 'azure'", "azure-llm-2023"),
    ),
    "unknown option of a format": (
        lambda e: e.update(traces=[{"name": "t", "file": "t.csv", "format": "csv", "options": {"units": "ms"}}]),
        ("format csv: units: ", "did you mean 'unit'?"),
    ),
    "unknown variable": (
        lambda e: e.update(traces=[{"name": "t", "file": "${ARGUS_NOWHERE}/t.csv"}]),
        ("trace 't': ", "environment variable ARGUS_NOWHERE", "not set"),
    ),
    "a clip past the end": (
        lambda e: e["traces"][0].update(clip_s=[30, 90]),
        ("trace 'rush': ", "cannot clip to 30..90 s", "0 to 60 s"),
    ),
    "a clip of nothing": (
        lambda e: e["traces"][0].update(generate={**RUSH, "rate_per_min": 1.0}, clip_s=[0, 0.001]),
        ("trace 'rush': ", "no arrival is left"),
    ),
    "unknown profile format": (
        lambda e: e.update(profile={"format": "genai", "file": "x.csv"}),
        ("unknown format 'genai'", "did you mean 'genai-bench'?"),
    ),
}


@pytest.mark.parametrize("command", ["run", "validate"])
@pytest.mark.parametrize("what", EXPERIMENTS)
def test_experiment(what: str, command: str, here: Path, complains: Callable[..., str]) -> None:
    change, says = EXPERIMENTS[what]
    write_experiment(here, changed(change))
    (here / "t.csv").write_text("arrival_s\n1\n")
    complains(command, "small.yaml", says=says)


TEXTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "not YAML": ("name: small\ntraces: [a, b\npolicies: {\n", ("small.yaml:3: ", "not YAML")),
    "a tab": ("name: small\ncluster:\n\tworkers: 2\n", ("small.yaml:3: ", "not YAML")),
    "a list": ("- a\n- b\n", ("small.yaml: ", "a mapping of keys to values", "found a list")),
    "nothing": ("", ("small.yaml: ", "a mapping of keys to values", "found nothing")),
    "not text": ("\0\0\0", ("small.yaml: ",)),
}


@pytest.mark.parametrize("command", ["run", "validate"])
@pytest.mark.parametrize("what", TEXTS)
def test_file_that_is_no_experiment(what: str, command: str, here: Path, complains: Callable[..., str]) -> None:
    text, says = TEXTS[what]
    (here / "small.yaml").write_text(text)
    complains(command, "small.yaml", says=says)


def test_bytes_that_are_no_text(here: Path, complains: Callable[..., str]) -> None:
    (here / "small.yaml").write_bytes(b"name: \xff\xfe")
    complains("run", "small.yaml", says=("small.yaml: cannot be read",))


@pytest.mark.parametrize("command", ["run", "validate"])
def test_missing_files(command: str, complains: Callable[..., str]) -> None:
    complains(command, "nowhere.yaml", says=("nowhere.yaml: ", "no such file"))
    complains(command, "smal.yaml", says=("smal.yaml: there is no such file; did you mean 'small.yaml'?",))
    complains(command, "fig77", says=("'fig77'", "did you mean 'fig7'?"))


def test_a_folder_is_no_experiment(here: Path, complains: Callable[..., str]) -> None:
    (here / "folder.yaml").mkdir()
    complains("run", "folder.yaml", says=("folder.yaml: cannot be read",))


SETTINGS: dict[str, tuple[str, tuple[str, ...]]] = {
    "no value": ("cluster.workers", ("--set cluster.workers: ", "key=value")),
    "no key": ("=3", ("--set =3: ", "key=value")),
    "unknown key": ("cluster.worker=3", ("cluster.worker: ", "did you mean 'workers'?")),
    "no digit": ("traces.².name=x", ("--set traces.².name=x: ", "traces has items 0 to 0", "not '²'")),
    "no such item": ("traces.1.name=x", ("--set traces.1.name=x: ", "traces has items 0 to 0", "not '1'")),
    "within a value": ("seed.x=1", ("--set seed.x=1: ", "seed is a value, it has no 'x'")),
    "not YAML": ("seed={", ("--set seed={: ", "'{' is not YAML")),
    "wrong value": ("cluster.workers=lots", ("cluster.workers: ", "found 'lots'")),
}


@pytest.mark.parametrize("what", SETTINGS)
def test_setting(what: str, complains: Callable[..., str]) -> None:
    setting, says = SETTINGS[what]
    complains("run", "small.yaml", "--set", setting, says=says)


COMMANDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "no jobs": (("run", "small.yaml", "--jobs", "0"), ("'--jobs'", "1", "argus-sim run --help")),
    "no seeds": (("run", "small.yaml", "--seeds", "0"), ("'--seeds'", "1", "argus-sim run --help")),
    "seeds that are no number": (("run", "small.yaml", "--seeds", "few"), ("'--seeds'", "integer")),
    "no experiment": (("run",), ("Missing argument 'EXP'", "argus-sim run --help")),
    "unknown option": (("run", "small.yaml", "--seed", "1"), ("No such option: --seed", "--seeds")),
    "unknown command": (("runn", "small.yaml"), ("No such command 'runn'", "'run'")),
    "too much": (("run", "small.yaml", "other.yaml"), ("unexpected", "other.yaml")),
    "unknown policy": (("policies", "agrus"), ("unknown policy 'agrus'", "did you mean 'argus'?")),
    "unknown profile": (("profiles", "show", "nobody"), ("no profile 'nobody'", "artefact-a100")),
    "unknown trace": (("traces", "show", "nobody"), ("no trace is called 'nobody'", "bursty")),
    "unknown anything": (("validate", "nobody"), ("'nobody'", "artefact-a100", "bursty", "fig7")),
    "unknown trace format": (
        ("traces", "import", "azure", "x.csv", "--out", "y.csv"),
        ("no trace format is called 'azure'", "azure-llm-2023"),
    ),
    "unknown profile format": (
        ("profiles", "import", "genai", "x.csv", "--out", "y"),
        ("unknown format 'genai'", "did you mean 'genai-bench'?"),
    ),
    "an option without a value": (
        ("traces", "import", "csv", "x.csv", "--out", "y.csv", "--option", "unit"),
        ("--option unit: ", "key=value"),
    ),
    "an option of a profile that is not YAML": (
        ("profiles", "import", "genai-bench", "x.csv", "--out", "y", "--option", "models=[a"),
        ("--option models: ", "'[a' is not YAML"),
    ),
    "an import of nothing": (
        ("traces", "import", "csv", "nowhere.csv", "--out", "y.csv"),
        ("nowhere.csv: ", "no such file"),
    ),
    "a specification of nothing": (
        ("traces", "generate", "nowhere.yaml", "--out", "y.csv"),
        ("nowhere.yaml: ", "no such file"),
    ),
    "a specification that is none": (
        ("traces", "generate", "small.yaml", "--out", "y.csv"),
        ("small.yaml: ",),
    ),
    "a trace to a file of no kind": (
        ("traces", "generate", "spec.yaml", "--out", "y.txt"),
        ("y.txt: ", "not a trace file", ".csv, .parquet"),
    ),
    "a comparison of one": (("compare", "nowhere"), ("two runs, or one run and --policies",)),
    "a comparison of three": (("compare", "a", "b", "c"), ("two runs, or one run and --policies",)),
    "a comparison with nothing": (("compare", "nowhere", "nowhere"), ("nowhere: ", "no such file")),
    "a comparison with an empty folder": (("compare", "profile", "profile"), ("profile: ", "no summary.csv")),
    "a comparison with another file": (("compare", "spec.yaml", "spec.yaml"), ("spec.yaml: ", "not a summary")),
    "a table of nothing": (("table", "nowhere"), ("nowhere: ", "no such file")),
}


@pytest.mark.parametrize("what", COMMANDS)
def test_command(what: str, here: Path, complains: Callable[..., str]) -> None:
    spec = {"name": "s", "seed": 1, "arrivals": RUSH}
    (here / "spec.yaml").write_text(yaml.safe_dump(spec))
    arguments, says = COMMANDS[what]
    complains(*arguments, says=says)


def test_out_is_not_ours(here: Path, complains: Callable[..., str]) -> None:
    (here / "out").mkdir()
    (here / "out" / "thesis.txt").write_text("years of work")
    complains("run", "small.yaml", "--out", "out", says=("out: ", "not empty", "choose another --out"))
    complains("run", "small.yaml", "--out", "out", "--resume", says=("out: ", "not empty"))
    complains("run", "small.yaml", "--out", "out/thesis.txt", says=("thesis.txt: ", "not a folder"))


def test_a_run_that_can_never_catch_up_leaves_no_half(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    flood = {"kind": "poisson", "duration_s": 600, "rate_per_min": 600}
    data = changed(lambda e: e.update(drop="never", max_wait_slos=5.0, policies=["static"]))
    data["traces"][0]["generate"] = flood
    write_experiment(here, data)
    for jobs in ("1", "2"):
        assert main(["run", "small.yaml", "--jobs", jobs]) == 2
        out, err = capfd.readouterr()
        assert out == ""
        assert re.match("error: static on rush, seed [34]: ", err)
        assert "cannot catch up" in err
        assert "Traceback" not in err
        assert [path.name for path in (here / "runs" / "small").rglob("*")] == ["experiment.lock.yaml"]
