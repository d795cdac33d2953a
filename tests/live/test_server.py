"""What clients get from the server, good ones and bad ones; and what a run leaves."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import math
import socket
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="needs the live extra: fastapi")
pytest.importorskip("uvicorn", reason="needs the live extra: uvicorn")
httpx = pytest.importorskip("httpx", reason="needs the test extra: httpx")

from starlette.datastructures import URL  # noqa: E402
from starlette.requests import Request  # noqa: E402

from argus_sim.core.endings import WITHDRAWN  # noqa: E402
from argus_sim.domain import Outcome  # noqa: E402
from argus_sim.experiment.simulate import simulate  # noqa: E402
from argus_sim.live import server  # noqa: E402
from argus_sim.live.clock import Clock  # noqa: E402
from argus_sim.live.emulation import EmulatedWorkers  # noqa: E402
from argus_sim.live.executor import Executor  # noqa: E402
from argus_sim.live.server import _url  # noqa: E402
from argus_sim.live.transcript import replay  # noqa: E402
from argus_sim.serve import choose_policy, fresh_engine, record  # noqa: E402
from argus_sim.trace import Trace  # noqa: E402
from argus_sim.workload import Workload, stream  # noqa: E402
from tests.live.make_processes import play, until  # noqa: E402
from tests.live.make_server import HandClock, http, make_scene, running  # noqa: E402
from tests.patience import LONG_S  # noqa: E402

PATH = "/v1/images/generations"


def test_the_openai_client_gets_an_image(tmp_path: Path) -> None:
    openai = pytest.importorskip("openai", reason="needs the test extra: openai")

    async def test() -> None:
        async with running(make_scene(tmp_path), api_key="secret") as (url, _):
            patient = {"base_url": f"{url}/v1", "max_retries": 0, "timeout": LONG_S}
            async with openai.AsyncOpenAI(api_key="secret", **patient) as client:
                made = await client.images.generate(prompt="a fox", n=2, response_format="b64_json", size="64x64")
                assert len(made.data) == 2
                assert base64.b64decode(made.data[0].b64_json).startswith(b"\x89PNG")
                linked = await client.images.generate(prompt="лиса 🦊", model="anything")
            async with http(url) as client:
                image = await client.get(linked.data[0].url)
                assert image.content.startswith(b"\x89PNG")
            async with openai.AsyncOpenAI(api_key="wrong", **patient) as stranger:
                with pytest.raises(openai.AuthenticationError):
                    await stranger.images.generate(prompt="a fox")

    play(test())


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        (b"{not json", 400, None),
        (b"\xff\xfe", 400, None),
        (b'{"prompt": "\\ud800"}', 400, None),
        (b"[" * 100_000, 400, None),
        (b"[]", 400, None),
        (b"{}", 400, "prompt"),
        (b'{"prompt": ""}', 400, "prompt"),
        (b'{"prompt": 7}', 400, "prompt"),
        (b'{"prompt": "a", "n": 0}', 400, "n"),
        (b'{"prompt": "a", "n": 11}', 400, "n"),
        (b'{"prompt": "a", "size": "7x7"}', 400, "size"),
        (b'{"prompt": "a", "response_format": "gif"}', 400, "response_format"),
        (b'{"prompt": "' + b"a" * 40_000 + b'"}', 400, "prompt"),
        (b'{"prompt": "' + b"a" * 10_000_000 + b'"}', 413, None),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_what_is_wrong_is_said_in_the_api_s_format(
    tmp_path: Path, body: bytes, status: int, param: str | None
) -> None:
    async def test() -> None:
        async with running(make_scene(tmp_path)) as (url, service), http(url) as client:
            response = await client.post(PATH, content=body)
            assert response.status_code == status, response.text
            error = response.json()["error"]
            assert (error["param"], error["type"]) == (param, "invalid_request_error")
            assert response.headers["x-request-id"]
            assert service.executor.engine.arrived == 0

    play(test())


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        ("Bearer sch\u00fcssel", 200),
        ("bearer sch\u00fcssel", 200),
        ("Bearer wrong", 401),
        ("sch\u00fcssel", 401),
        ("Basic sch\u00fcssel", 401),
        ("", 401),
    ],
)
def test_a_key_is_a_bearer_token(tmp_path: Path, sent: str, status: int) -> None:
    async def test() -> None:
        scene, headers = make_scene(tmp_path), {b"authorization": sent.encode()}
        async with running(scene, api_key="sch\u00fcssel") as (url, _), http(url) as client:
            assert (await client.get("/v1/models", headers=headers)).status_code == status

    play(test())


def test_no_host_gets_by_without_a_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Older web frameworks make the URL of whatever the client says of the host, and its path of that."""
    monkeypatch.setattr(Request, "url", property(lambda r: URL(f"http://{r.headers['host']}{r.scope['path']}")))

    async def test() -> None:
        scene = make_scene(tmp_path)
        async with running(scene, api_key="secret") as (url, _), http(url) as client:
            for host in ("a", "a/?", "a/x#", "a:80/?"):
                assert (await client.get("/v1/models", headers={"host": host})).status_code == 401

    play(test())


def test_what_is_not_there_is_said_in_the_api_s_format(tmp_path: Path) -> None:
    async def test() -> None:
        async with running(make_scene(tmp_path)) as (url, _), http(url) as client:
            put = await client.put(PATH)
            assert (put.status_code, put.headers["allow"]) == (405, "POST")
            assert put.json()["error"]["code"] == "method_not_allowed"
            for path in (f"{PATH}/", "/v1/nothing"):
                answer = await client.post(path, json={"prompt": "a fox"})
                assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")
                assert answer.headers["x-request-id"]

    play(test())


def test_a_client_that_leaves_within_its_body_is_no_error_of_ours(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def test() -> None:
        async with running(make_scene(tmp_path)) as (url, service):
            reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rsplit(":", 1)[1]))
            head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\nExpect: 100-continue\r\n\r\n{{"
            writer.write(head.encode())
            assert await reader.readline() == b"HTTP/1.1 100 Continue\r\n"  # it waits for the body now
            writer.close()
            await until(lambda: service.telemetry.http.labels("499")._value.get())

    play(test())
    assert "internal error" not in caplog.text


def test_an_address_of_the_newer_kind_is_in_brackets() -> None:
    assert _url("::1", 80) == "http://[::1]:80"


def test_the_port_is_taken_before_the_workers_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until then requests are refused, and nobody else gets the port."""
    begun, may_end = asyncio.Event(), asyncio.Event()
    taken: list[socket.socket] = []
    listen = server._listen

    def noted(host: str, port: int) -> Any:
        taken.append(listen(host, port))
        return taken[0]

    async def start(self: EmulatedWorkers, host: Executor, models: Sequence[str]) -> None:
        begun.set()
        await may_end.wait()
        self._host = host

    monkeypatch.setattr(EmulatedWorkers, "start", start)
    monkeypatch.setattr(server, "_listen", noted)

    async def test() -> None:
        async def early() -> None:
            await begun.wait()
            port = taken[0].getsockname()[1]
            with socket.socket() as other:
                other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                with pytest.raises(OSError, match="in use"):
                    other.bind(("127.0.0.1", port))
            async with http(f"http://127.0.0.1:{port}") as client:
                answer = await client.post(PATH, json={"prompt": "a fox", "n": 3})
                assert answer.status_code == 503
                assert answer.headers["retry-after"]
                assert (await client.get("/readyz")).status_code == 503
                assert 'violations_total{kind="lost"} 3.0' in (await client.get("/metrics")).text
            may_end.set()

        asking = asyncio.create_task(early())
        async with (
            running(make_scene(tmp_path)) as (url, _),
            http(url) as client,
        ):
            await asking
            assert (await client.post(PATH, json={"prompt": "a fox"})).status_code == 200

    play(test())


def test_refusals_for_too_much_that_is_open_count(tmp_path: Path) -> None:
    async def test() -> None:
        async with running(make_scene(tmp_path), max_open=2) as (url, service):
            async with http(url) as client:
                assert (await client.post(PATH, json={"prompt": "a fox", "n": 3})).status_code == 429
                assert 'violations_total{kind="rejected"} 3.0' in (await client.get("/metrics")).text
            assert service.executor.engine.arrived == 0

    play(test())


def test_a_rejection_says_when_to_come_back(tmp_path: Path) -> None:
    """All at once is more than two workers can do within the deadline."""

    async def test() -> None:
        limits, clock = httpx.Limits(max_connections=None), HandClock()
        async with (
            running(make_scene(tmp_path), clock=clock) as (url, service),
            http(url, limits=limits) as client,
        ):
            asked = asyncio.gather(*[client.post(PATH, json={"prompt": f"fox {i}"}) for i in range(100)])
            await until(lambda: service.executor.engine.arrived == 100)
            await clock.let_pass(service)
            responses = await asked
            statuses = [r.status_code for r in responses]
            assert set(statuses) == {200, 429}
            refused = next(r for r in responses if r.status_code == 429)
            assert int(refused.headers["retry-after"]) >= 1
            assert float(refused.headers["x-argus-arrival-s"]) >= 0
            assert refused.json()["error"]["code"] == "rate_limit_exceeded"
            assert service.executor.waiting == 0
            metrics = (await client.get("/metrics")).text
            assert f'argus_slo_violations_total{{kind="rejected"}} {statuses.count(429)}.0' in metrics
            assert 'argus_queue_depth{variant="big"} 0.0' in metrics
            assert (await client.get("/readyz")).json() == {"ready": True, "workers_up": 2, "speed": 1.0}

    play(test())


def test_to_come_back_is_for_the_gpus_that_there_are(tmp_path: Path) -> None:
    kinds = [{"name": "new", "workers": 1, "speed": 4}, {"name": "old", "workers": 1, "speed": 0.5}]

    async def test() -> None:
        async with running(make_scene(tmp_path, "argus", kinds=kinds), speed=1.0) as (_, service):
            catalog, queue = service.executor.engine.catalog, service.executor.engine.queues[0]
            queue.extend(range(1000))
            told_s = service._retry_after_s()
            queue.clear()
            assert told_s == math.ceil(1000 / sum(kind.throughput_per_s(catalog.base) for kind in catalog.kinds))

    play(test())


def test_a_client_that_leaves_leaves_nothing_behind(tmp_path: Path) -> None:
    """Images that are under way are made; those that wait are not."""
    transcript = io.StringIO()

    async def test() -> None:
        scene, clock = make_scene(tmp_path, slo={"seconds": 1000.0}), HandClock()
        async with running(scene, clock=clock, api_key="secret", transcript=transcript) as (url, service):
            executor, engine = service.executor, service.executor.engine
            headers = {"authorization": "bearer secret"}
            limits = httpx.Limits(max_connections=None)
            async with http(url, headers=headers, limits=limits) as client:
                post = partial(client.post, PATH, json={"prompt": "a fox", "n": 2})
                asked = [asyncio.create_task(post()) for _ in range(20)]
                await until(lambda: executor.waiting == 40)
                for task in asked:
                    task.cancel()
            await until(lambda: service.telemetry.http.labels("499")._value.get() == 20)
            assert not executor.waiting
            await clock.let_pass(service, engine.is_idle)
            outcomes = engine.log.columns(np.array(engine.requests.deadline_s))["outcome"].tolist()
            assert len(outcomes) == 40
            assert 0 < outcomes.count(Outcome.ON_TIME) < 20
            assert outcomes.count(Outcome.ON_TIME) + outcomes.count(Outcome.REJECTED) == 40
            assert {engine.log.reasons[code] for code in engine.log.reason} >= {WITHDRAWN}

    play(test())
    scene = make_scene(tmp_path, slo={"seconds": 1000.0})
    lines = transcript.getvalue().splitlines()
    assert replay(lines, fresh_engine(scene, choose_policy(scene, None), scene.experiment.seed)) == len(lines)


def test_a_stop_answers_what_is_open_first(tmp_path: Path) -> None:
    async def test() -> None:
        stop, clock = asyncio.Event(), HandClock()
        async with (
            running(make_scene(tmp_path), clock=clock, stop=stop) as (url, service),
            http(url) as client,
        ):
            asked = asyncio.create_task(client.post(PATH, json={"prompt": "a fox"}))
            await until(lambda: service.executor.waiting)
            stop.set()
            await until(lambda: not service.ready)
            await clock.let_pass(service)
            assert (await asked).status_code == 200

    play(test())


def test_an_image_that_came_out_spoilt_is_lost_and_the_others_of_its_batch_are_not(tmp_path: Path) -> None:
    async def test() -> None:
        async with running(make_scene(tmp_path)) as (url, service), http(url) as client:
            workers: Any = service.executor._workers
            good, workers._images = workers._images, [None] * len(workers._images)
            spoilt = await client.post(PATH, json={"prompt": "a fox"})
            assert spoilt.status_code == 503
            assert "spoilt" in spoilt.json()["error"]["message"]
            workers._images = good
            assert (await client.post(PATH, json={"prompt": "a fox"})).status_code == 200
            log, requests = service.executor.engine.log, service.executor.engine.requests
            columns = log.columns(np.array(requests.deadline_s))
            assert columns["outcome"].tolist() == [Outcome.LOST, Outcome.ON_TIME]
            assert np.isnan(columns["finish_s"]).tolist() == [True, False]
            assert log.attempts().request.tolist() == [0]
            assert service.executor.engine.is_idle()

    play(test())


@pytest.mark.parametrize("policy", ["static", "argus"])
def test_the_transcript_of_a_live_run_drives_a_fresh_engine_the_same_way(tmp_path: Path, policy: str) -> None:
    """With a worker lost and found on the way."""
    scene, transcript, clock = make_scene(tmp_path, policy), io.StringIO(), HandClock()

    async def test() -> None:
        async with (
            running(scene, transcript=transcript, clock=clock) as (url, service),
            http(url) as client,
        ):
            executor = service.executor
            for wave in range(4):
                asked = [client.post(PATH, json={"prompt": f"a prompt number {i}"}) for i in range(12)]
                waiting = asyncio.gather(*asked)
                await until(lambda wave=wave: executor.engine.arrived == 12 * (wave + 1))
                if wave == 1:
                    executor.worker_lost(executor.now(), 0, "a test")
                if wave == 2:
                    executor.worker_joined(executor.now(), 0)
                await clock.let_pass(service)
                assert {r.status_code for r in await waiting} <= {200, 429, 503}
            assert executor.engine.arrived == 48
            assert ('"cache_answered"' in transcript.getvalue()) == (policy == "argus")

    play(test())
    lines = transcript.getvalue().splitlines()
    for line in lines:
        json.loads(line, parse_constant=pytest.fail)  # a miss has no similarity, and JSON no NaN
    assert replay(lines, fresh_engine(scene, choose_policy(scene, None), scene.experiment.seed)) == len(lines)
    broken = [line.replace('["RunBatch", 1', '["RunBatch", 0', 1) for line in lines]
    with pytest.raises(ValueError, match="led to"):
        replay(broken, fresh_engine(scene, choose_policy(scene, None), scene.experiment.seed))


@pytest.mark.parametrize(
    ("policy", "kinds"),
    [
        ("static", []),
        ("argus", []),
        ("clipper-ht", []),
        ("argus", [{"name": "new", "workers": 1, "speed": 2}, {"name": "old", "workers": 1, "speed": 0.5}]),
        ("static", [{"name": "old", "workers": 2, "speed": 0.5}]),
    ],
)
def test_the_executor_at_a_trace_s_times_is_the_simulator(
    tmp_path: Path, policy: str, kinds: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Time moved by hand from arrival to arrival: what is left of the live host then must agree to the bit."""
    scene = make_scene(tmp_path, policy, dispatch_s=0.02, kinds=kinds)
    seed = scene.experiment.seed
    trace: Trace = scene.trace(scene.experiment.traces[0], seed)
    workload = Workload.of(trace, scene.profile, scene.slo_s, stream(seed, "prompts"))
    now_s = 0.0
    monkeypatch.setattr(Clock, "now", lambda self: now_s)
    live = None

    async def test() -> None:
        nonlocal now_s, live
        async with running(scene) as (_, service):
            executor = service.executor
            for at_s, prompt in zip(workload.arrival_s.tolist(), workload.prompt.tolist(), strict=True):
                now_s = at_s
                executor.submit(prompt, "text")
            while executor.waiting:
                now_s += 0.25
                executor.now()
            live = record(scene, executor, workload.duration_s)

    play(test())
    assert live is not None
    simulated = simulate(scene, choose_policy(scene, None), trace, seed)
    assert (simulated.outcome == Outcome.ON_TIME).any()
    for column in ("arrival_s", "start_s", "finish_s", "deadline_s", "variant", "worker", "outcome"):
        np.testing.assert_array_equal(getattr(live, column), getattr(simulated, column), err_msg=column)
