"""``argus-sim validate`` and ``argus-sim policies``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from argus_sim.cli import main
from argus_sim.policies import registry


@pytest.mark.parametrize(
    ("what", "kind"),
    [
        ("small.yaml", "experiment"),
        ("out/experiment.lock.yaml", "experiment"),
        ("profile", "profile"),
        ("artefact-a100", "profile"),
        ("trace.csv", "trace"),
        ("bursty", "trace"),
        ("spec.yaml", "specification of a trace"),
    ],
)
def test_validate_knows_what_it_is_given(
    what: str,
    kind: str,
    finished: Path,
    monkeypatch: pytest.MonkeyPatch,
    call: Callable[..., str],
    call_json: Any,
) -> None:
    monkeypatch.chdir(finished)
    assert f": a sound {kind}\n" in call("validate", what)
    got = call_json("validate", what)
    assert got["kind"] == kind
    assert got["facts"]


def test_validate_says_how_much_an_experiment_is(finished: Path, call: Callable[..., str]) -> None:
    said = call("validate", finished / "small.yaml")
    assert "4 runs: 2 policies x 1 traces x 2 seeds" in said
    assert "2 workers serve 45.0 images/min at the base variant; the SLO is 12 s" in said
    assert "/min over 60 s: " in said


def test_validate_names_what_changes_nothing(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["validate", str(finished / "small.yaml")]) == 0
    assert capsys.readouterr().err == ""
    text = (finished / "small.yaml").read_text()
    path = finished / "judged.yaml"
    path.write_text(text.replace("workers: 2", "workers: 2\n  discriminator: {correlation: 0.9}"))
    assert main(["validate", str(path)]) == 0
    path.unlink()
    said = "note: cluster.discriminator changes nothing: none of the policies is a cascade\n"
    assert capsys.readouterr().err == said


def test_validate_takes_the_settings_of_a_run(
    finished: Path, call: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    small = str(finished / "small.yaml")
    assert "3 workers serve" in call("validate", small, "--set", "cluster.workers=3")
    assert main(["validate", "artefact-a100", "--set", "cluster.workers=3"]) == 2
    assert "error: --set: is for experiments; 'artefact-a100' is a profile" in capsys.readouterr().err
    assert main(["validate", small, "--set", "cluster.worker=3"]) == 2
    assert "did you mean 'workers'" in capsys.readouterr().err


def test_validate_notes_a_deadline_that_nothing_meets(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Milliseconds in place of seconds, say."""
    path = finished / "rushed.yaml"
    path.write_text((finished / "small.yaml").read_text() + "slo: {seconds: 0.01}\n")
    assert main(["validate", str(path)]) == 0
    path.unlink()
    said = capsys.readouterr().err
    assert said.startswith("note: nothing can be on time: the deadline is 0.01 s, and the fastest image takes ")


def test_policies_lists_all_with_their_parameters(call: Callable[..., str], call_json: Any) -> None:
    said = call("policies")
    got = call_json("policies")
    assert [policy["name"] for policy in got] == registry.names()
    for policy in got:
        kind = registry.find(policy["name"])
        assert policy["class"] == f"{kind.__module__}:{kind.__name__}"
        assert policy["description"]
        assert policy["source"]
        assert [p["name"] for p in policy["parameters"]] == list(kind.Params.model_fields)
        assert f"{policy['name']}: {policy['description']}\n" in said
    (argus,) = call_json("policies", "argus")
    tolerance = next(p for p in argus["parameters"] if p["name"] == "tolerance")
    assert tolerance["default"] == 0.05
    assert tolerance["type"] == "number >= 0 < 1"
    assert "- tolerance: 0.05 (number >= 0 < 1). Relative quality that may be lost" in said


def test_policies_shows_one_of_a_module(call_json: Any) -> None:
    (got,) = call_json("policies", "argus_sim.policies.clipper:ClipperHA")
    assert got["description"] == "Always the base variant."


def test_one_broken_policy_does_not_hide_the_others(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = registry.names()
    monkeypatch.setattr(registry, "names", lambda: [*names, "no.such:Policy"])
    assert main(["policies", "--json"]) == 0
    out, err = capsys.readouterr()
    assert [policy["name"] for policy in json.loads(out)] == names
    assert err.startswith("note: policy 'no.such:Policy' cannot be imported")
