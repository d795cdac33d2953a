"""What clients get from the server, good ones and bad ones; and what a run leaves."""

from __future__ import annotations

import asyncio
import base64
import io
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="needs the live extra: fastapi")
pytest.importorskip("uvicorn", reason="needs the live extra: uvicorn")
httpx = pytest.importorskip("httpx", reason="needs the test extra: httpx")

from argus_sim.domain import Outcome  # noqa: E402
from argus_sim.experiment.simulate import simulate  # noqa: E402
from argus_sim.live.clock import Clock  # noqa: E402
from argus_sim.live.transcript import replay  # noqa: E402
from argus_sim.serve import choose_policy, fresh_engine, record  # noqa: E402
from argus_sim.trace import Trace  # noqa: E402
from argus_sim.workload import Workload, stream  # noqa: E402
from tests.live.make_server import make_scene, running  # noqa: E402

PATH = "/v1/images/generations"


def play(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(test, 60))


def test_the_openai_client_gets_an_image(tmp_path: Path) -> None:
    openai = pytest.importorskip("openai", reason="needs the test extra: openai")

    async def test() -> None:
        async with running(make_scene(tmp_path), api_key="secret") as (url, _):
            async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="secret", max_retries=0) as client:
                made = await client.images.generate(prompt="a fox", n=2, response_format="b64_json", size="64x64")
                assert len(made.data) == 2
                assert base64.b64decode(made.data[0].b64_json).startswith(b"\x89PNG")
                linked = await client.images.generate(prompt="лиса 🦊", model="anything")
            async with httpx.AsyncClient() as http:
                image = await http.get(linked.data[0].url)
                assert image.content.startswith(b"\x89PNG")
            async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="wrong", max_retries=0) as stranger:
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
        async with running(make_scene(tmp_path)) as (url, service), httpx.AsyncClient(base_url=url) as client:
            response = await client.post(PATH, content=body)
            assert response.status_code == status, response.text
            error = response.json()["error"]
            assert (error["param"], error["type"]) == (param, "invalid_request_error")
            assert response.headers["x-request-id"]
            assert service.executor.engine.arrived == 0

    play(test())


def test_a_rejection_says_when_to_come_back(tmp_path: Path) -> None:
    """All at once is more than two workers can do within the deadline."""

    async def test() -> None:
        limits = httpx.Limits(max_connections=None)
        async with (
            running(make_scene(tmp_path), speed=20.0) as (url, service),
            httpx.AsyncClient(base_url=url, limits=limits, timeout=30) as client,
        ):
            asked = [client.post(PATH, json={"prompt": f"fox {i}"}) for i in range(500)]
            responses = await asyncio.gather(*asked)
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
            assert (await client.get("/readyz")).json() == {"ready": True, "workers_up": 2}

    play(test())


def test_a_client_that_leaves_leaves_nothing_behind(tmp_path: Path) -> None:
    async def test() -> None:
        async with running(make_scene(tmp_path), speed=20.0) as (url, service):
            async with httpx.AsyncClient(base_url=url) as client:
                with pytest.raises(httpx.ReadTimeout):
                    await client.post(PATH, json={"prompt": "a fox"}, timeout=0.05)
            await service.executor.drain(10)
            assert service.executor.waiting == 0
            assert service.executor.engine.is_idle()

    play(test())


def test_a_stop_answers_what_is_open_first(tmp_path: Path) -> None:
    async def test() -> None:
        stop = asyncio.Event()
        async with (
            running(make_scene(tmp_path), speed=20.0, stop=stop) as (url, service),
            httpx.AsyncClient(base_url=url, timeout=30) as client,
        ):
            asked = asyncio.create_task(client.post(PATH, json={"prompt": "a fox"}))
            while not service.executor.waiting:
                await asyncio.sleep(0.005)
            stop.set()
            assert (await asked).status_code == 200

    play(test())


@pytest.mark.parametrize("policy", ["static", "argus"])
def test_the_transcript_of_a_live_run_drives_a_fresh_engine_the_same_way(tmp_path: Path, policy: str) -> None:
    """With a worker lost and found on the way."""
    scene, transcript = make_scene(tmp_path, policy), io.StringIO()

    async def test() -> None:
        async with (
            running(scene, transcript=transcript) as (url, service),
            httpx.AsyncClient(base_url=url, timeout=30) as client,
        ):
            executor = service.executor
            for wave in range(4):
                asked = [client.post(PATH, json={"prompt": f"a prompt number {i}"}) for i in range(12)]
                waiting = asyncio.gather(*asked)
                while not executor.waiting:
                    await asyncio.sleep(0.001)
                if wave == 1:
                    executor.worker_lost(executor.now(), 0, "a test")
                if wave == 2:
                    executor.worker_joined(executor.now(), 0)
                assert {r.status_code for r in await waiting} <= {200, 429, 503}
            assert executor.engine.arrived == 48

    play(test())
    lines = transcript.getvalue().splitlines()
    assert replay(lines, fresh_engine(scene, choose_policy(scene, None), scene.experiment.seed)) == len(lines)
    broken = [line.replace('["RunBatch", 1', '["RunBatch", 0', 1) for line in lines]
    with pytest.raises(ValueError, match="led to"):
        replay(broken, fresh_engine(scene, choose_policy(scene, None), scene.experiment.seed))


@pytest.mark.parametrize("policy", ["static", "argus", "clipper-ht"])
def test_the_executor_at_a_trace_s_times_is_the_simulator(
    tmp_path: Path, policy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Time moved by hand from arrival to arrival: what is left of the live host then must agree to the bit."""
    scene = make_scene(tmp_path, policy, dispatch_s=0.02)
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
