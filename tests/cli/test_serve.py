"""``argus-sim serve`` as a process, and what it says to a bad input."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pandas as pd
import pytest

from argus_sim.cli import main
from tests.make_experiment import write_experiment

pytest.importorskip("fastapi", reason="needs the live extra: fastapi")


def test_a_server_answers_and_ends_at_sigterm(tmp_path: Path) -> None:
    experiment, outcomes = write_experiment(tmp_path), tmp_path / "outcomes.parquet"
    command = [sys.executable, "-c", "import sys; from argus_sim.cli import main; sys.exit(main(sys.argv[1:]))"]
    command += ["serve", str(experiment), "--policy", "static", "--port", "0", "--speed", "1000"]
    command += ["--record", str(outcomes)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        url = server.stdout.readline().rsplit(" ", 1)[-1].strip()
        body = json.dumps({"prompt": "a prompt number 3", "n": 2}).encode()
        with urllib.request.urlopen(f"{url}/v1/images/generations", body) as response:
            assert len(json.load(response)["data"]) == 2
        server.send_signal(signal.SIGTERM)
        _, err = server.communicate(timeout=30)
    finally:
        server.kill()
    assert server.returncode == 0, err
    assert "Traceback" not in err
    frame = pd.read_parquet(outcomes)
    assert frame["prompt"].tolist() == ["p3", "p3"]
    assert frame["finish_s"].notna().all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "several policies"),
        (["--policy", "argos"], "did you mean 'argus'"),
        (["--policy", "argus", "--speed", "0"], "--speed"),
        (["--policy", "argus", "--workers", "abacus"], "Allowed: diffusers, emulated"),
        (["--policy", "argus", "--workers", "diffusers"], "--zoo: diffusers workers need it"),
        (["--policy", "argus", "--zoo", "shapes"], "--zoo: is for --workers diffusers"),
        (["--policy", "argus", "--timings", "t.json"], "--timings: is for --workers diffusers"),
        (["--policy", "argus", "--time", "big@1"], "--time: says what --timings times"),
        (["--policy", "argus", "--workers", "diffusers", "--zoo", "shape"], "did you mean 'shapes'"),
        (["--policy", "argus", "--workers", "diffusers", "--zoo", "shapes"], "zoo 'shapes' has no model 'big'"),
        (["--policy", "argus", "--workers", "diffusers", "--zoo", "shapes", "--speed", "2"], "--speed"),
        (
            ["--policy", "argus", "--workers", "diffusers", "--zoo", "shapes", "--device", "tpu"],
            "Allowed: cpu, cuda",
        ),
        (["--policy", "argus", "--set", "cluster.faults=[{kind: crash, at_s: 1}]"], "faults"),
        (["--policy", "argus", "--set", "policies.1.predictor=perfect"], "perfect"),
        (["--set", "policies=[diffserve]"], "needs a discriminator"),
    ],
)
def test_a_bad_input_is_one_message(
    tmp_path: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", str(write_experiment(tmp_path)), *arguments]) == 2
    out, err = capsys.readouterr()
    assert message in err
    assert err.count("\n") == 1
    assert out == ""
