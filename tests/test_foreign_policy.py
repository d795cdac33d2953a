"""What goes wrong in a policy of another package is one message that names the run and the line."""

from __future__ import annotations

import importlib
import sys
import textwrap
from pathlib import Path

import pytest

from argus_sim.cli import main
from argus_sim.errors import InputError
from argus_sim.experiment import Experiment, foreign
from argus_sim.experiment.results import Results
from argus_sim.experiment.runner import run_experiment
from argus_sim.policies import registry
from tests.make_experiment import content, write_experiment

CODE = """
    from argus_sim.policies.base import Policy, Route, keep_or_move

    class Base(Policy):
        name = "base"

        def plan(self, view):
            return keep_or_move({(0,): view.workers_up}, view, self.setup.catalog, "all")

        def route(self, request, view):
            return Route(0, "the only one")

    class Divides(Base):
        def route(self, request, view):
            return self.share(0)

        def share(self, parts):
            return 1 / parts  # here

    class Leaves(Base):
        def route(self, request, view):
            raise SystemExit(0)

    class TooMany(Base):
        def plan(self, view):
            return keep_or_move({(0,): 99}, view, self.setup.catalog, "more than there are")  # line

    class NotMade(Base):
        def __init__(self, setup, params):
            raise KeyError("rate")

    class Alone(Base):
        def __init__(self):
            pass

    class Deaf(Base):
        def route(self, request):
            return Route(0, "the only one")

    class Backwards(Base):
        period_s = -5

    class Restless(Base):
        monitor_s = 1e-9

    class Plain(Base):
        class Params:
            share = 0.5
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module with these policies; each test imports its own."""
    name = f"foreign_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(textwrap.dedent(CODE))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))  # of the processes that simulate
    return name


@pytest.mark.parametrize(
    ("kind", "place", "message"),
    [
        ("Divides", "Divides on rush, seed 3", "policy 'base' raised ZeroDivisionError: division by zero ("),
        ("Leaves", "Leaves on rush, seed 3", "policy 'base' raised SystemExit: 0 ("),
        ("TooMany", "TooMany on rush, seed 3", "policy 'base' raised ValueError: 99 workers wanted, "),
        ("NotMade", "policy 'NotMade'", "policy 'base' raised KeyError: 'rate' ("),
        ("Backwards", "policy 'Backwards'", "period_s is -5; allowed are seconds from 0.001 on, or None"),
        ("Restless", "policy 'Restless'", "monitor_s is 1e-09; allowed are seconds from 0.001 on, or None"),
        (
            "Alone",
            "policy 'Alone'",
            "'base' is called as argus_sim.policies.base.Policy says, but Alone.__init__",
        ),
        ("Deaf", "Deaf on rush, seed 3", "but Deaf.route() takes 2 positional arguments but 3 were given"),
        ("Plain", "policies.1.name", "is not a subclass of argus_sim.policies.base.Params"),
    ],
)
def test_one_message(
    module: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    kind: str,
    place: str,
    message: str,
) -> None:
    data = content()
    data.update(policies=["static", f"{module}:{kind}"], replications=1)
    write_experiment(tmp_path, data)
    assert main(["run", str(tmp_path / "small.yaml"), "--out", str(tmp_path / "out"), "--jobs", "1"]) == 2
    (error,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert place in error
    assert message in error


def test_the_innermost_of_its_lines_is_named(module: str, tmp_path: Path) -> None:
    """Not where the library noticed it, nor where the library called it."""
    data = content()
    data["policies"] = [f"{module}:Divides"]
    experiment = Experiment.load(write_experiment(tmp_path, data))
    line = 1 + textwrap.dedent(CODE).splitlines().index("        return 1 / parts  # here")
    with pytest.raises(InputError, match=rf"{module}\.py, line {line}, in share\)$") as raised:
        run_experiment(experiment, tmp_path / "out", jobs=1)
    assert isinstance(raised.value.__cause__, ZeroDivisionError)


def test_it_comes_from_another_process(module: str, tmp_path: Path) -> None:
    data = content()
    data["policies"] = [f"{module}:Divides"]
    experiment = Experiment.load(write_experiment(tmp_path, data))
    with pytest.raises(InputError, match=r"Divides on rush, seed [34]: policy 'base' raised ZeroDivisionError"):
        run_experiment(experiment, tmp_path / "out", jobs=2)


def test_what_a_shipped_policy_raises_keeps_its_traceback() -> None:
    assert foreign.raised(registry.find("static"), ValueError("ours")) is None


def test_what_was_raised_elsewhere_is_not_the_policy_s(module: str) -> None:
    with pytest.raises(ValueError, match="not there") as raised:
        raise ValueError("not there")
    assert foreign.raised(registry.find(f"{module}:Base"), raised.value) is None


@pytest.mark.parametrize("swept", [False, True])
def test_results_can_be_read_without_the_policy(
    module: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    swept: bool,
) -> None:
    """By those who were sent the folder: they have not the package; to run it again they need it."""
    data = content()
    data["policies"] = [f"{module}:Base"]
    if swept:
        data["sweep"] = {"axes": {"gpus": {"key": "cluster.workers", "values": [1, 2]}}}
    out = tmp_path / "out"
    run_experiment(Experiment.load(write_experiment(tmp_path, data)), out, jobs=1)
    (tmp_path / f"{module}.py").unlink()
    monkeypatch.delitem(sys.modules, module)
    importlib.invalidate_caches()
    assert list(Results.load(out).aggregate["policy"].unique()) == ["Base"]
    assert len(Results.load(out).points) == 2 * swept
    assert main(["table", str(out)]) == 0
    assert main(["watch", str(out), "--once"]) == 0
    assert main(["run", str(out / "experiment.lock.yaml"), "--out", str(tmp_path / "again")]) == 2
    assert "cannot be imported" in capsys.readouterr().err
