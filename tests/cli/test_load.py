"""``argus-sim load`` and ``validate-live`` as commands."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from argus_sim.cli import load, main, output
from argus_sim.experiment import Experiment
from argus_sim.experiment.results import Results
from tests.make_experiment import content, write_experiment
from tests.patience import LONG_S

pytest.importorskip("fastapi", reason="needs the live extra: fastapi")
pytest.importorskip("aiohttp", reason="needs the live extra: aiohttp")

from argus_sim import validate_live

KNOWN = ("bursty", "--url", "http://x", "--profile", "artefact-a100")
COMMAND = [sys.executable, "-c", "import sys; from argus_sim.cli import main; sys.exit(main(sys.argv[1:]))"]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """``argus-sim serve`` of the small experiment."""
    command = [*COMMAND, "serve", str(write_experiment(tmp_path)), "--policy", "static", "--port", "0"]
    process = subprocess.Popen([*command, "--speed", "100", "--quiet"], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield process.stdout.readline().rsplit(" ", 1)[-1].strip()
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=LONG_S)
    finally:
        process.kill()
        process.wait()


class Mute(ThreadingHTTPServer):
    """Takes requests for images and never answers; all else it does not know."""

    daemon_threads = True

    def __init__(self, handler: type[BaseHTTPRequestHandler]) -> None:
        super().__init__(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.asked = threading.Semaphore(0)


@pytest.fixture
def mute() -> Iterator[Mute]:
    free = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(404)

        def do_POST(self) -> None:
            mute.asked.release()
            free.wait(LONG_S)

        def log_message(self, *arguments: Any) -> None: ...

    with Mute(Handler) as mute:
        threading.Thread(target=mute.serve_forever, daemon=True).start()
        yield mute
        free.set()
        mute.shutdown()


def write_trace(folder: Path) -> Path:
    path = folder / "rush hour.csv"
    path.write_text("arrival_s\n" + "".join(f"{1 + 0.5 * i}\n" for i in range(40)))
    return path


def test_a_load_leaves_a_run(tmp_path: Path, server: str, call_json: Callable[..., Any]) -> None:
    out = tmp_path / "out"
    said = call_json(
        "load", write_trace(tmp_path), "--url", f"{server}/v1/", "--profile", tmp_path / "profile",
        "--speed", "100", "--policy-label", "static", "--out", out, "--requests", "30", "--from-s", "2",
        "--seed", "3",
    )  # fmt: skip
    assert said["summary"]["arrived"] == 30
    results = Results.load(out)
    run = results.run("static", "rush-hour")
    assert len(run.outcomes) == 30
    assert run.outcomes["arrival_s"].tolist() == [0.5 * i for i in range(30)]
    assert set(run.outcomes["outcome"].astype(str)) <= {"on_time", "late", "rejected"}
    served = run.outcomes[run.outcomes["finish_s"].notna()]
    assert len(served)
    assert served["variant"].notna().all()
    assert served["relative_quality"].notna().all()
    assert (served["start_s"] <= served["finish_s"]).all()
    http = pd.read_parquet(run.folder / "http.parquet")
    assert (http["lag_s"] >= 0).all()
    assert set(http["status"]) <= {200, 429}
    assert main(["trace", str(run.folder), "--quiet"]) == 0
    assert main(["table", str(out)]) == 0
    assert main(["compare", str(out), str(out), "--quiet"]) == 0


def test_images_are_kept_by_request(tmp_path: Path, server: str, call: Callable[..., str]) -> None:
    images = tmp_path / "images"
    arguments = ["load", write_trace(tmp_path), "--url", server, "--profile", tmp_path / "profile"]
    arguments += ["--speed", "100", "--requests", "5", "--out", tmp_path / "out", "--images", images]
    call(*arguments, "--quiet")
    outcomes = Results.load(tmp_path / "out").run("measured").outcomes
    served = outcomes[outcomes["finish_s"].notna()]
    assert len(served)
    assert sorted(os.listdir(images)) == [f"{row:06d}.png" for row in served["request"]]
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in images.iterdir())


def test_ctrl_c_writes_what_is_there(tmp_path: Path, mute: Mute) -> None:
    out, trace = tmp_path / "out", tmp_path / "two and none.csv"
    trace.write_text("arrival_s\n1\n1.5\n9999\n")
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a fox\n\nлиса 🦊\n", "utf-8")
    command = [*COMMAND, "load", str(trace), "--url", mute.url, "--prompts", str(prompts), "--slo-s", "5"]
    process = subprocess.Popen(
        [*command, "--out", str(out)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        for _ in range(2):
            assert mute.asked.acquire(timeout=LONG_S)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=LONG_S)
    finally:
        process.kill()
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert "interrupted" in err
    outcomes = Results.load(out).run("measured").outcomes
    assert len(outcomes) == 2
    assert set(outcomes["outcome"].astype(str)) == {"unfinished"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bursty", "--url", "http://127.0.0.1:9", "--profile", "artefact-a100"], "no server answers"),
        (["bursty", "--url", "ftp://x", "--profile", "artefact-a100"], "--url"),
        (["bursty", "--url", "http://", "--profile", "artefact-a100"], "--url"),
        (["burstie", "--url", "http://x", "--profile", "artefact-a100"], "did you mean 'bursty'"),
        (["none.csv", "--url", "http://x", "--profile", "artefact-a100"], "none.csv"),
        (["bursty", "--url", "http://x", "--profile", "artefact-a101"], "artefact-a100"),
        (["bursty", "--url", "http://x", "--slo-s", "5"], "give --profile or --prompts"),
        (["bursty", "--url", "http://x", "--slo-s", "5", "--prompts", "none.txt"], "none.txt"),
        (["bursty", "--url", "http://x", "--prompts", "none.txt"], "--slo-s"),
        (["bursty", "--url", "http://x", "--profile", "artefact-a100", "--speed", "0"], "--speed"),
        (["bursty", "--url", "http://x", "--profile", "artefact-a100", "--from-s", "1e9"], "--from-s"),
        (["bursty", "--url", "http://x", "--profile", "artefact-a100", "--policy-label", "a b"], "label"),
        ([*KNOWN, "--field", "model"], "--field model: must look like key=value"),
        ([*KNOWN, "--field", "model=a", "--field", "model=b"], "--field model=b: is given twice"),
        ([*KNOWN, "--field", "prompt=a fox"], "--field prompt: is load's own"),
        ([*KNOWN, "--field", "n=2"], "--field n: is load's own"),
        ([*KNOWN, "--field", "response_format=url", "--images", "images"], "--field response_format: --images"),
        ([*KNOWN, "--prompts", "prompts.txt", "--slo-s", "5"], "--profile: has nothing left to say"),
    ],
)
def test_a_bad_load_is_one_message(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["load", *arguments, "--out", str(tmp_path / "out"), "--quiet"]) == 2
    out, err = capsys.readouterr()
    assert message in err
    assert err.count("\n") == 1
    assert out == ""
    assert not (tmp_path / "out").exists()
    assert not Path("images").exists()


def test_fields_are_what_json_has() -> None:
    fields = load._fields(["size=512x512", "seed=3", "when=2020-01-01", "scale=.nan", "tags={a: 1}"])
    assert fields == {"size": "512x512", "seed": 3, "when": "2020-01-01", "scale": ".nan", "tags": {"a": 1}}


def test_images_of_others_are_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "precious.txt").write_text("mine")
    arguments = ["bursty", "--url", "http://127.0.0.1:9", "--profile", "artefact-a100", "--quiet"]
    assert main(["load", *arguments, "--out", str(tmp_path / "out"), "--images", str(tmp_path)]) == 2
    assert "is not an empty folder" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["precious.txt"]


@pytest.mark.parametrize("images", [".", "images", "a/b"])
def test_images_are_not_kept_where_results_go(
    images: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    arguments = ["bursty", "--url", "http://127.0.0.1:9", "--profile", "artefact-a100", "--quiet"]
    assert main(["load", *arguments, "--out", str(out), "--images", str(out / images)]) == 2
    assert "where the results go" in capsys.readouterr().err
    assert not out.exists()


def test_another_folder_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "precious.txt").write_text("mine")
    arguments = ["bursty", "--url", "http://127.0.0.1:9", "--profile", "artefact-a100", "--out", str(tmp_path)]
    assert main(["load", *arguments]) == 2
    assert "choose another --out" in capsys.readouterr().err
    assert (tmp_path / "precious.txt").read_text() == "mine"


def test_validate_live_compares_both(tmp_path: Path, call: Callable[..., str]) -> None:
    out = tmp_path / "out"
    text = call(
        "validate-live", write_experiment(tmp_path), "--policy", "argus", "--speed", "60", "--requests", "30",
        "--from-s", "5", "--lead-in-s", "3", "--due-times", "3", "--repeat", "2", "--out", out, "--quiet",
        "--", "--host", "127.0.0.1",
    )  # fmt: skip
    assert "mean latency (s)" in text
    said = json.loads((out / "validation.json").read_text("utf-8"))
    assert said["policy"] == "argus"
    assert [run["seed"] for run in said["runs"]] == [3, 4]
    for run in said["runs"]:
        assert run["requests"] == 30
        assert set(run["metrics"]["latency_p99_s"]) == {"simulated", "live", "difference", "error"}
        assert sum(share["live"] for share in run["level_mix"].values()) == pytest.approx(1.0)
        assert run["http"]["send_lag_p99_s"] >= 0
    assert said["errors"]["latency_mean_s"]["n"] == 2
    page = (out / "validation.html").read_text("utf-8")
    assert "live and simulated" in page
    assert "data:image/" in page
    assert sorted(os.listdir(out)) == ["validation.html", "validation.json"]


def test_what_jitter_alone_does_is_said(tmp_path: Path, call: Callable[..., str]) -> None:
    out = tmp_path / "out"
    text = call(
        "validate-live", write_experiment(tmp_path), "--policy", "static", "--speed", "20", "--requests", "30",
        "--jittered", "3", "--out", out, "--quiet",
    )  # fmt: skip
    assert "3 jittered copies" in text
    run = json.loads((out / "validation.json").read_text("utf-8"))["runs"][0]
    assert run["jittered"]["copies"] == 3
    for metric, error in run["error_at_live_arrivals"].items():
        assert abs(error) < 1e-5, metric
    spread = run["jittered"]["errors"]["latency_mean_s"]
    assert spread["low"] <= spread["high"]
    # Nothing arrives before it is due: the server's time began when the client's did.
    assert run["http"]["arrival_lag_p50_s"] > 0
    assert "3 jittered copies" in (out / "validation.html").read_text("utf-8")


def test_a_trace_with_too_few_says_how_many_counted(tmp_path: Path, call: Callable[..., str]) -> None:
    text = call(
        "validate-live", write_experiment(tmp_path), "--policy", "static", "--speed", "60", "--jittered", "0",
        "--out", tmp_path / "out", "--quiet",
    )  # fmt: skip
    said = json.loads((tmp_path / "out" / "validation.json").read_text("utf-8"))
    assert said["requests"].startswith(f"{said['runs'][0]['requests']} of rush, ")
    assert f"requests: {said['requests']}" in text


@pytest.mark.parametrize("of", ["a file", "the trace"])
def test_validate_live_sends_the_texts_that_the_simulator_has(tmp_path: Path, of: str) -> None:
    from argus_sim.experiment.scene import Scene
    from argus_sim.validate_live import asked_of

    texts = [f"owl number {i}" for i in range(5)]
    rows = "".join(f"{i},{text}\n" for i, text in enumerate(texts))
    (tmp_path / "trace.csv").write_text(f"arrival_s,prompt\n{rows}")
    (tmp_path / "texts.txt").write_text("\n".join(texts))
    recorded = {"file": "texts.txt"} if of == "a file" else {}
    data = {**content(), "traces": [{"name": "log", "file": "trace.csv"}], "prompts": {"recorded": recorded}}
    scene = Scene.of(Experiment.load(write_experiment(tmp_path, data)))
    trace = scene.trace(scene.experiment.traces[0], 3)
    workload = scene.workload(trace, 3)
    asked = asked_of(scene, trace, workload)
    assert [asked.texts[row] for row in asked.sent] == texts
    assert asked.prompt.tolist() == workload.prompt.tolist()  # whose qualities the images have


@pytest.mark.skipif(os.name != "posix", reason="signals are of POSIX")
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGHUP])
def test_validate_live_is_ended_by_signals(
    how: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the server that it has started: Ctrl-C's way out of it ends that."""

    def killed(*arguments: Any) -> Any:
        os.kill(os.getpid(), how)

    before = signal.signal(how, lambda number, frame: pytest.fail("the signal was not taken"))
    try:
        monkeypatch.setattr(validate_live, "twin_of", killed)
        arguments = ["validate-live", str(write_experiment(tmp_path)), "--policy", "static", "--quiet"]
        assert main([*arguments, "--out", str(tmp_path / "out")]) == 130
    finally:
        signal.signal(how, before)
    assert "interrupted; nothing was written" in capsys.readouterr().err


@pytest.mark.skipif(os.name != "posix", reason="signals are of POSIX")
def test_a_load_leaves_signals_as_they_were(tmp_path: Path, mute: Mute) -> None:
    (tmp_path / "one.csv").write_text("arrival_s\n0\n1\n")
    (tmp_path / "prompts.txt").write_text("a fox\n")
    arguments = ["load", tmp_path / "one.csv", "--url", mute.url, "--prompts", tmp_path / "prompts.txt"]
    arguments += ["--quiet", "--slo-s", "5", "--timeout-s", "0.2", "--out", tmp_path / "out"]
    with output.ended_by_signals():
        assert main([str(argument) for argument in arguments]) == 0
        assert set(output.ending().values()) == {signal.default_int_handler}


@pytest.mark.skipif(os.name != "posix", reason="signals are of POSIX")
def test_a_server_ends_with_whoever_started_it(tmp_path: Path) -> None:
    program = (
        "import sys, time; from argus_sim.validate_live import server\n"
        "with server(sys.argv[1:], ready_s=600) as (url, _): print(url, flush=True); time.sleep(3600)"
    )
    command = [sys.executable, "-c", program, str(write_experiment(tmp_path)), "--policy", "static"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        host, port = process.stdout.readline().strip().removeprefix("http://").split(":")
        process.kill()
    until_s = time.monotonic() + LONG_S
    while True:
        try:
            socket.create_connection((host, int(port)), timeout=1).close()
        except OSError:
            break
        assert time.monotonic() < until_s
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "several policies"),
        (["--policy", "argos"], "did you mean 'argus'"),
        (["--policy", "argus", "--trace", "bust"], "Allowed: rush"),
        (["--policy", "argus", "--from-s", "later"], "'peak'"),
        (["--policy", "argus", "--from-s", "1e9"], "--from-s"),
        (["--policy", "argus", "--from-s", "59.99", "--lead-in-s", "30"], "nothing arrives after 59.99 s"),
        (["--policy", "argus", "--speed", "-1"], "--speed"),
        (["--policy", "argus", "--workers", "diffusers", "--speed", "2"], "only emulated workers"),
        (["--policy", "argus", "--workers", "abacus"], "abacus"),
        (["--policy", "argus", "--due-times", "0"], "--due-times"),
        (["--policy", "argus", "--time-workers"], "--time-workers: is for real workers"),
        (["--policy", "argus", "--score", "5"], "--score: is for real workers"),
        (["--policy", "argus", "--scorer", "clip"], "--scorer: says what rates"),
        (["--policy", "argus", "--set", "cluster.faults=[{kind: crash, at_s: 1}]"], "faults"),
        (["--policy", "argus", "--from-s", "5", "--lead-in-s", "9"], "--lead-in-s: the trace has but 5 s before"),
        (["--policy", "argus", "--jittered", "3", "--due-times", "1"], "--jittered: moves no delays here"),
        (["--policy", "argus", "--jittered", "3", "--workers", "diffusers"], "--jittered: moves no delays here"),
        (
            ["--policy", "argus", "--", "--set", "slo.seconds=9"],
            "--set: is validate-live's own; give it before --",
        ),
        (["--policy", "argus", "--", "--speed=2"], "--speed: is validate-live's own; give it before --"),
        (["--policy", "argus", "--", "--port", "80"], "--port: is validate-live's to say"),
        (
            ["--policy", "argus", "--set", "sweep={axes: {deadline: {key: slo.seconds, values: [1]}}}"],
            "sweep: varies",
        ),
    ],
)
def test_a_bad_validation_is_one_message(
    tmp_path: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    data = {**content(), "bound": False}
    command = ["validate-live", str(write_experiment(tmp_path, data)), "--out", str(tmp_path / "out"), "--quiet"]
    assert main([*command, *arguments]) == 2
    out, err = capsys.readouterr()
    assert message in err
    assert err.count("\n") == 1
    assert out == ""
    assert not (tmp_path / "out").exists()
