"""The program as a whole: help, completion, exit codes."""

from __future__ import annotations

import doctest
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

import argus_sim
from argus_sim.cli import app, check, main, output, tables
from argus_sim.metrics import METRICS
from tests.make_experiment import content, write_experiment

PROGRAM = [sys.executable, "-c", "import sys; from argus_sim.cli import main; sys.exit(main())"]


def commands() -> Iterator[tuple[tuple[str, ...], Any]]:
    """All commands with their words."""

    def walk(command: Any, words: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
        yield words, command
        for name, inner in getattr(command, "commands", {}).items():
            yield from walk(inner, (*words, name))

    return walk(typer.main.get_command(app), ())


@pytest.mark.parametrize("words", [words for words, _ in commands()], ids=" ".join)
def test_every_command_documents_its_flags_and_has_an_example(
    words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, "--help"]) == 0
    said = capsys.readouterr().out
    command = dict(commands())[words]
    for parameter in command.params:
        assert parameter.help, f"{parameter.name} says nothing"
    if not hasattr(command, "commands"):
        assert "Example" in said
        assert f"argus-sim {' '.join(words)}" in re.sub(r"\s+", " ", said)
        assert {"as_json", "quiet"} <= {p.name for p in command.params} or words in (("table",), ("serve",))


def test_help_says_what_marks_the_place_of_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    main(["table", "--help"])
    said = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "between <!-- NAME table --> and <!-- end of NAME table -->." in said


def test_version(call: Callable[..., str]) -> None:
    assert call("--version") == f"argus-sim {argus_sim.__version__}\n"


def test_no_command_is_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    out, err = capsys.readouterr()
    assert "Usage: argus-sim" in out
    assert err == ""


def test_help_imports_nothing_heavy() -> None:
    code = "import sys; from argus_sim.cli import main; main(['--help']); print(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stderr.split())
    assert not loaded & {"numpy", "pandas", "scipy", "matplotlib", "sklearn", "pyarrow", "simpy", "torch"}


def test_installed_program() -> None:
    program = shutil.which("argus-sim", path=str(Path(sys.executable).parent))
    assert program
    done = subprocess.run([program, "traces", "show", "nobody"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: no trace is called 'nobody'")


@pytest.mark.parametrize(
    ("typed", "offers"),
    [
        ("argus-sim pol", {"policies"}),
        ("argus-sim policies clip", {"clipper-ha", "clipper-ht"}),
        ("argus-sim run fig", {"fig7"}),
        ("argus-sim size fig", {"fig7"}),
        ("argus-sim profiles show art", {"artefact-a100"}),
        ("argus-sim traces show d", {"diurnal"}),
        ("argus-sim traces import gen", {"gentd26-requests", "gentd26-gateway"}),
        ("argus-sim profiles import g", {"genai-bench"}),
        ("argus-sim validate b", {"bursty"}),
        ("argus-sim run --re", {"--resume"}),
    ],
)
def test_shell_completion(typed: str, offers: set[str]) -> None:
    words = typed.split()
    environment = os.environ | {
        "_ARGUS_SIM_COMPLETE": "complete_bash",
        "COMP_WORDS": typed,
        "COMP_CWORD": str(len(words) - 1),
    }
    done = subprocess.run(PROGRAM, env=environment, capture_output=True, text=True, check=False)
    assert set(done.stdout.split()) == offers


def test_an_error_of_the_system_is_a_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    path = str(write_experiment(tmp_path, content()))
    assert main(["run", path, "--out", str(tmp_path / "file" / "out")]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert "Traceback" not in err


@pytest.mark.parametrize("module", [check, output, tables])
def test_examples_in_docstrings(module: Any) -> None:
    failed, attempted = doctest.testmod(module)
    assert attempted
    assert not failed


def test_metrics_are_printed_with_their_headings(finished: Path, call: Callable[..., str]) -> None:
    said = call("compare", finished / "out", "--policies", "static", "argus", "--metric", "slo_violation_ratio")
    assert METRICS["slo_violation_ratio"].heading in said
