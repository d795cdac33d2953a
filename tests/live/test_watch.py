"""``argus-sim watch URL``: what a real server says of itself, and addresses where there is none of ours."""

from __future__ import annotations

import asyncio
import io
import json
import math
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="needs the live extra: fastapi")
pytest.importorskip("prometheus_client", reason="needs the live extra: prometheus-client")
pytest.importorskip("httpx", reason="needs the test extra: httpx")

from argus_sim.cli import main
from argus_sim.cli.watch_server import dashboard
from argus_sim.live.look import Look, look
from argus_sim.live.server import Service
from tests.live.make_processes import play, until
from tests.live.make_server import HandClock, http, make_scene, running
from tests.patience import LONG_S


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A look waits for as long as a test does."""
    monkeypatch.setattr("argus_sim.live.look._TIMEOUT_S", LONG_S)


async def ask(url: str, service: Service, clock: HandClock, images: int) -> None:
    """Ask for so many images at the same moment; whether they come is not our concern."""
    async with http(url) as client:
        body = {"prompt": "a fox"}
        asked = asyncio.gather(*[client.post("/v1/images/generations", json=body) for _ in range(images)])
        await until(lambda: service.executor.engine.arrived == images)
        await clock.let_pass(service)
        await asked


def test_a_look_is_what_happened(tmp_path: Path) -> None:
    async def test() -> None:
        clock = HandClock()
        async with running(make_scene(tmp_path), clock=clock) as (url, service):
            before = await asyncio.to_thread(look, f"{url}/")
            assert (before.answered, before.violated) == (0, 0)
            assert math.isnan(before.latency_s(0.5))
            await ask(url, service, clock, 12)
            now = await asyncio.to_thread(look, url)
            engine = service.executor.engine
            columns = engine.log.columns(np.array(engine.requests.deadline_s))
            outcome = [int(code) for code in columns["outcome"]]
            assert now.answered == len(outcome) == 12
            assert now.violations == {"late": outcome.count(1), "rejected": outcome.count(2), "lost": 0}
            assert now.violations["rejected"] > 0
            made = {v.name: int((columns["variant"] == i).sum()) for i, v in enumerate(engine.catalog.variants)}
            assert now.images == made
            assert now.workers == {"idle": 2, "busy": 0, "loading": 0, "lost": 0}
            served = sorted((columns["finish_s"] - engine.requests.arrival_s)[columns["variant"] >= 0])
            for share in (0.5, 0.99):
                # As near as the buckets tell: in the same bucket as one of the images about there.
                bounds = sorted(now.latency[engine.catalog.variants[0].name])
                got, exact = now.latency_s(share), served[math.ceil(share * len(served)) - 1]
                assert next(b for b in bounds if b >= got) == next(b for b in bounds if b >= exact)

    play(test())


def test_the_command_shows_a_server(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async def test() -> None:
        clock = HandClock()
        async with running(make_scene(tmp_path), clock=clock) as (url, service):
            await ask(url, service, clock, 12)
            assert await asyncio.to_thread(main, ["watch", url]) == 0
            said = capsys.readouterr().out
            assert f"{url}  serving, workers: 2 idle" in said
            assert "12 requests answered, 0 wait" in said
            assert "rejected)" in said
            (line,) = [line for line in said.splitlines() if line.startswith("big ")]
            assert line.split()[2] == "100.0"
            assert await asyncio.to_thread(main, ["watch", url, "--json"]) == 0
            found = json.loads(capsys.readouterr().out)
            assert found["answered"] == 12
            assert found["variants"]["big"]["images"] == int(line.split()[1])
            assert found["variants"]["small"]["latency_p50_s"] is None

    play(test())


def test_in_a_terminal_it_ends_with_the_server(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "100")

    async def test() -> int:
        clock = HandClock()
        async with running(make_scene(tmp_path), clock=clock) as (url, service):
            watching = asyncio.create_task(asyncio.to_thread(main, ["watch", url, "--every", "0.1"]))
            await ask(url, service, clock, 6)
            await until(
                lambda: service.telemetry.http.labels("200")._value.get() >= 14
            )  # it has looked a few times
        return await watching

    assert play(test()) == 0
    said = capsys.readouterr().out
    assert "violations, look by look" in said
    assert "has ended" in said.split("serving")[-1]


def test_rates_and_violations_are_those_since_the_look_before() -> None:
    def at(at_s: float, images: int, late: int) -> Look:
        buckets = {"a": {1.0: images / 2, 2.0: float(images), math.inf: float(images)}}
        violations = {"late": late, "rejected": 0, "lost": 0}
        return Look(at_s, {"a": images}, {"a": 3}, buckets, violations, {"busy": 1}, 0, 3, 1)

    from rich.console import Console

    written = io.StringIO()
    console = Console(width=100, file=written, highlight=False)
    console.print(dashboard("http://x", [at(0.0, 10, 0), at(5.0, 20, 5), at(7.0, 20, 5)]))
    console.print(dashboard("http://x", [at(0.0, 10, 0), at(5.0, 20, 5)]))
    said = written.getvalue().split("http://x")
    assert "look by look: ▅" in said[1]
    assert said[1].splitlines()[-1].split() == ["a", "20", "100.0", "0", "3", "1.0", "2.0"]
    assert said[2].splitlines()[-1].split() == ["a", "20", "100.0", "120", "3", "1.0", "2.0"]
    assert "25.00 % (5 late)" in said[1]
    assert "75.0 % of 4 look-ups hit" in said[1]


class Stranger(BaseHTTPRequestHandler):
    """Says of itself what the test wants."""

    pages: dict[str, tuple[int, bytes]]

    def do_GET(self) -> None:
        status, body = self.pages.get(self.path, (404, b""))
        self.send_response(status)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None: ...


@pytest.fixture
def stranger() -> Iterator[Callable[[dict[str, tuple[int, bytes]]], str]]:
    """Start a server of somebody else; returns its address."""
    server = HTTPServer(("127.0.0.1", 0), Stranger)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()

    def say(pages: dict[str, tuple[int, bytes]]) -> str:
        Stranger.pages = pages
        return f"http://127.0.0.1:{server.server_address[1]}"

    yield say
    server.shutdown()
    thread.join()
    server.server_close()


FOREIGN = b"# HELP up Up.\n# TYPE up gauge\nup 1.0\n"


@pytest.mark.parametrize(
    "pages",
    [
        {},
        {"/healthz": (200, b"ok\n")},
        {"/healthz": (200, b"ok\n"), "/metrics": (200, FOREIGN)},
        {"/healthz": (200, b"ok\n"), "/metrics": (200, b"<html>{{{</html>\n")},
        {"/healthz": (200, b"ok\n"), "/metrics": (200, b"\xff\xfe")},
        {"/healthz": (500, b"no"), "/metrics": (500, b"")},
    ],
    ids=["nothing", "no metrics", "other metrics", "a page", "bytes", "broken"],
)
def test_a_server_of_somebody_else(
    pages: dict[str, tuple[int, bytes]],
    stranger: Callable[[dict[str, tuple[int, bytes]]], str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    url = stranger(pages)
    assert main(["watch", url, "--once"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err == f"error: {url}: is not a server of argus-sim serve: its /healthz and /metrics say otherwise\n"


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://127.0.0.1:1", "no server answers there (Connection refused"),
        ("http://", "is no address; one looks like http://127.0.0.1:8000"),
        ("http://[", "is no address"),
        ("http://127.0.0.1:port", "no server answers there"),
    ],
)
def test_nobody_there(url: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["watch", url]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert err.count("\n") == 1
