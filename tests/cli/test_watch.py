"""``argus-sim watch`` shows what is there, while it is coming."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest

from argus_sim.cli import main
from argus_sim.cli.inspect import sparkline
from tests.make_experiment import write_experiment


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("watched")
    assert main(["run", str(write_experiment(folder)), "--out", str(folder / "out"), "--jobs", "1", "-q"]) == 0
    return folder / "out"


def test_finished(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["watch", str(finished)]) == 0
    said = capsys.readouterr().out
    assert "small  4 of 4 runs, ended" in said
    summary = pd.read_csv(finished / "summary.csv").groupby("policy")["quality_yield"].mean()
    for policy, value in summary.items():
        (line,) = [line for line in said.splitlines() if line.startswith(str(policy))]
        assert line.split()[1:3] == ["2/2", f"{value:.3f}"]


def test_half_way(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = Path(shutil.copytree(finished, tmp_path / "out"))
    for name in ("report.html", "summary.csv"):
        (out / name).unlink()
    shutil.rmtree(out / "argus")
    shutil.rmtree(out / "static" / "rush" / "4")
    assert main(["watch", str(out), "--once"]) == 0
    said = capsys.readouterr().out
    assert "1 of 4 runs, running" in said
    assert "0/2" in next(line for line in said.splitlines() if line.startswith("argus"))


def test_a_summary_that_is_cut_off_is_none_yet(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = Path(shutil.copytree(finished, tmp_path / "out"))
    (out / "argus" / "rush" / "3" / "summary.json").write_text("")
    assert main(["watch", str(out), "--once"]) == 0
    assert "3 of 4 runs" in capsys.readouterr().out
    assert main(["watch", str(out), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["finished"]) == 3


def test_as_json(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["watch", str(finished), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["experiment"], said["ended"], said["runs"]) == ("small", True, 4)
    assert [run["policy"] for run in said["finished"]] == ["static", "static", "argus", "argus"]


def test_nothing_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["watch", str(tmp_path)]) == 2
    assert "no experiment has begun there" in capsys.readouterr().err


@pytest.mark.parametrize("how", ["--once", "--json"])
def test_one_look_has_none_after_it(finished: Path, how: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["watch", str(finished), "--every", "5", how]) == 2
    assert "--every: is between looks" in capsys.readouterr().err


def test_sparkline_is_as_high_as_the_share_missed() -> None:
    table = pd.DataFrame({"arrived": [10, 10, 0, 10], "on_time": [10, 5, 0, 0]})
    assert sparkline(table) == " ▅ █"
