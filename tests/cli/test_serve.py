"""``argus-sim serve`` as a process, and what it says to a bad input."""

from __future__ import annotations

import concurrent.futures
import contextlib
import fcntl
import json
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from argus_sim.cli import main
from tests.make_experiment import write_experiment
from tests.patience import LONG_S

pytest.importorskip("fastapi", reason="needs the live extra: fastapi")


REAL = ("--policy", "static", "--workers", "diffusers", "--zoo", "shapes")
PROGRAM = "import sys; from argus_sim.cli import main; sys.exit(main(sys.argv[1:]))"


@contextlib.contextmanager
def serving(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server that takes requests, and its address."""
    command = [sys.executable, "-c", PROGRAM, "serve", *arguments, "--policy", "static", "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        yield server, server.stdout.readline().rsplit(" ", 1)[-1].strip()
    finally:
        server.kill()
        server.communicate()


def test_a_log_that_nobody_reads_stops_nothing(tmp_path: Path) -> None:
    """Its pipe is full after some lines. The last of them are waited for, but not for long."""
    with serving(str(write_experiment(tmp_path))) as (server, url):
        assert server.stderr is not None
        fcntl.fcntl(server.stderr, fcntl.F_SETPIPE_SZ, 4096)
        for _ in range(300):
            with urllib.request.urlopen(f"{url}/v1/models", timeout=LONG_S) as response:
                assert response.status == 200
        server.send_signal(signal.SIGTERM)
        assert server.wait(timeout=LONG_S) == 0
        lines = server.stderr.read().splitlines()
        assert 10 < len(lines) < 200
        assert json.loads(lines[0])["event"] == "answered"


def test_a_second_signal_does_not_wait_for_what_is_open(tmp_path: Path) -> None:
    """And a run without requests says that it leaves no record."""
    record = tmp_path / "outcomes.parquet"
    arguments = [str(write_experiment(tmp_path)), "--speed", "0.001", "--record", str(record)]
    with serving(*arguments) as (server, url), concurrent.futures.ThreadPoolExecutor(1) as pool:

        def ask() -> int:
            try:
                urllib.request.urlopen(f"{url}/v1/images/generations", b'{"prompt": "a fox"}', timeout=LONG_S)
            except urllib.error.HTTPError as error:
                return error.code
            return 200

        def is_ready() -> bool:
            try:
                return urllib.request.urlopen(f"{url}/readyz").status == 200
            except urllib.error.HTTPError:
                return False

        asked = pool.submit(ask)
        while 'argus_workers{status="busy"} 1.0' not in urllib.request.urlopen(f"{url}/metrics").read().decode():
            time.sleep(0.01)
        server.send_signal(signal.SIGTERM)
        while is_ready():  # two signals that come together are heard as one
            time.sleep(0.01)
        server.send_signal(signal.SIGTERM)
        assert asked.result(timeout=LONG_S) == 503
        _, err = server.communicate(timeout=LONG_S)
        assert server.returncode == 0, err
    with serving(*arguments) as (server, _):
        server.send_signal(signal.SIGTERM)
        _, err = server.communicate(timeout=LONG_S)
        assert server.returncode == 0, err
        assert f"no requests came: {record} is not written" in err


def test_a_port_that_is_taken_costs_no_transcript(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    experiment, transcript = write_experiment(tmp_path), tmp_path / "happenings.jsonl"
    transcript.write_text("of yesterday\n")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        arguments = ["serve", str(experiment), "--policy", "static", "--transcript", str(transcript)]
        assert main([*arguments, "--port", port]) == 2
        arguments[-1] = str(tmp_path / "new.jsonl")
        assert main([*arguments, "--port", port]) == 2
    said = f"error: http://127.0.0.1:{port}: Address already in use; --port N listens on another port\n"
    assert said in capsys.readouterr().err
    assert transcript.read_text() == "of yesterday\n"
    assert not (tmp_path / "new.jsonl").exists()
    with serving(str(experiment), "--transcript", str(transcript)) as (server, _):
        server.send_signal(signal.SIGTERM)
        server.communicate(timeout=LONG_S)
    assert transcript.read_text().startswith('{"start": []')


def test_a_server_answers_and_ends_at_sigterm(tmp_path: Path) -> None:
    outcomes = tmp_path / "outcomes.parquet"
    arguments = [str(write_experiment(tmp_path)), "--speed", "1000", "--record", str(outcomes)]
    with serving(*arguments) as (server, url):
        body = json.dumps({"prompt": "a prompt number 3", "n": 2}).encode()
        with urllib.request.urlopen(f"{url}/v1/images/generations", body) as response:
            assert len(json.load(response)["data"]) == 2
        server.send_signal(signal.SIGTERM)
        _, err = server.communicate(timeout=LONG_S)
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
        (["--policy", "argus", "--set", "policies.1.predictor={kind: perfect, accuracy: 0.5}"], "perfect"),
        (["--policy", "argus", "--set", "policies.1.forecast=perfect"], "perfect forecast"),
        (["--policy", "argus", "--record", "/dev/null/outcomes.parquet"], "--record: /dev/null/outcomes.parquet"),
        (["--policy", "argus", "--record", "."], "--record: . cannot be written: Is a directory"),
        (["--set", "policies=[diffserve]"], "needs a discriminator"),
        (
            ["--policy", "argus", "--set", "sweep={axes: {deadline: {key: slo.seconds, values: [1, 2]}}}"],
            "sweep: varies deadline; a server can be one of its points only: give --set sweep=null",
        ),
        ([*REAL, "--set", "cluster={kinds: [{name: old, workers: 2, speed: 0.5}]}"], "cluster.kinds: diffusers"),
        ([*REAL, "--set", "profile_changes.latency_factor=2"], "profile_changes: real workers stay as they are"),
        (
            [*REAL, "--set", "cluster.cache.trouble=[{at_s: 1, for_s: 1}]"],
            "cluster.cache.trouble: is not made for a real cache",
        ),
        ([*REAL, "--device", "cuda", "--threads", "2"], "--threads: is for workers on a CPU"),
        (
            [*REAL, "--set", "profile=diffserve-a100", "--cache-bytes", "0"],
            "--cache-bytes: no variant of profile 'diffserve-a100' starts from a cached image",
        ),
        ([*REAL, "--set", "profile=diffserve-a100", "--embedding", "clip"], "--embedding: no variant of profile"),
        ([*REAL, "--zoo", "sd", "--embedding", "clip"], "--embedding: clip is the shapes zoo's own"),
        ([*REAL, "--zoo", "shape", "--embedding", "clip"], "did you mean 'shapes'"),
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
