"""Whatever is wrong with an input: exit code 2, one message that says where and what, and nothing written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from argus_sim.cli import main
from tests.make_experiment import write_experiment


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to be in, with the small experiment in it."""
    monkeypatch.chdir(tmp_path)
    write_experiment(tmp_path)
    return tmp_path


@pytest.fixture
def complains(here: Path, capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command that must fail; returns its message."""

    def run(*arguments: str | Path, says: tuple[str, ...]) -> str:
        before = {path: path.is_file() and path.read_bytes() for path in here.rglob("*")}
        code = main([str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        assert code == 2, err
        assert out == ""
        assert "Traceback" not in err
        assert err.startswith("error: ")
        assert err.count("error:") == 1
        for fragment in says:
            assert fragment in err
        assert {path: path.is_file() and path.read_bytes() for path in here.rglob("*")} == before
        return err

    return run
