"""Running commands in this process, and the results of a small experiment for them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from argus_sim.cli import main
from tests.make_experiment import write_experiment


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command that must succeed; returns its stdout."""

    def run(*arguments: str | Path) -> str:
        code = main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        assert code == 0, err
        assert "Traceback" not in err
        return out

    return run


@pytest.fixture
def call_json(call: Callable[..., str]) -> Callable[..., Any]:
    """Run a command with --json; returns what it says, which must be JSON to the letter: without NaN."""

    def no_json(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    return lambda *arguments: json.loads(call(*arguments, "--json"), parse_constant=no_json)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``small.yaml``, its results in ``out``, and a trace in two forms; tests only read it."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "trace.csv").write_text("arrival_s\n1\n2.5\n")
    (folder / "spec.yaml").write_text(
        "{name: s, seed: 1, arrivals: {kind: poisson, duration_s: 600, rate_per_min: 60}}"
    )
    arguments = ["run", str(write_experiment(folder)), "--out", str(folder / "out"), "--jobs", "1", "--quiet"]
    assert main(arguments) == 0
    return folder
