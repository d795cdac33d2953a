"""A policy in somebody else's package, found by its entry point, as docs/write_a_policy.md says."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from argus_sim.cli import main
from tests.make_experiment import content, write_experiment

PAGE = (Path(__file__).parent.parent / "docs" / "write_a_policy.md").read_text("utf-8")


def block(language: str) -> str:
    """The only block of code in a language."""
    (code,) = re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    return str(code)


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The package of the page, and the metadata that an installer would leave; nothing is downloaded."""
    site = tmp_path / "site"
    (site / "my_policies").mkdir(parents=True)
    (site / "my_policies" / "__init__.py").write_text(block("python"))
    info = site / "my_policies-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-policies\nVersion: 1.0\n")
    (group, name, value) = re.findall(r'\[project\.entry-points\."(.*?)"\]\n(\S+) = "(.*?)"', block("toml"))[0]
    (info / "entry_points.txt").write_text(f"[{group}]\n{name} = {value}\n")
    monkeypatch.syspath_prepend(str(site))
    # The processes of a parallel run look for it as well.
    monkeypatch.setenv("PYTHONPATH", str(site))
    yield site
    sys.modules.pop("my_policies", None)


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_it_runs_by_its_name(
    installed: Path, tmp_path: Path, jobs: str, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment = write_experiment(tmp_path, content() | {"policies": ["argus", "shortest-queue"]})
    out = tmp_path / "out"
    assert main(["run", str(experiment), "--out", str(out), "--jobs", jobs, "--quiet"]) == 0
    summary = pd.read_csv(out / "summary.csv")
    assert set(summary["policy"]) == {"argus", "shortest-queue"}
    outcomes = pd.read_parquet(out / "shortest-queue" / "rush" / "3" / "outcomes.parquet")
    assert outcomes["reason"].str.startswith("fewest waiting").any()
    capsys.readouterr()
    assert main(["policies", "shortest-queue"]) == 0
    said = capsys.readouterr().out
    assert "my_policies" in (installed / "my_policies-1.0.dist-info" / "entry_points.txt").read_text()
    assert said.startswith("shortest-queue: ")


def test_without_it_the_name_is_unknown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    experiment = write_experiment(tmp_path, content() | {"policies": ["shortest-queue"]})
    assert main(["run", str(experiment), "--out", str(tmp_path / "out"), "--quiet"]) == 2
    assert "unknown policy 'shortest-queue'" in capsys.readouterr().err


def test_it_runs_by_its_class_too(installed: Path, tmp_path: Path) -> None:
    experiment = write_experiment(tmp_path, content() | {"policies": ["my_policies:ShortestQueue"]})
    out = tmp_path / "out"
    assert main(["run", str(experiment), "--out", str(out), "--jobs", "1", "--quiet"]) == 0
    assert (out / "ShortestQueue").is_dir()
