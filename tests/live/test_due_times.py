"""Requests that say when they are due: over HTTP, the live run is then the simulated one."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="needs the live extra: fastapi")
pytest.importorskip("uvicorn", reason="needs the live extra: uvicorn")
pytest.importorskip("aiohttp", reason="needs the live extra: aiohttp")
pytest.importorskip("httpx", reason="needs the test extra: httpx")

from argus_sim.experiment.simulate import simulate
from argus_sim.fidelity import compare
from argus_sim.live.client import Target, play
from argus_sim.live.wire import body
from argus_sim.load import Asked, record_of
from argus_sim.profile import Profile
from argus_sim.serve import choose_policy
from tests.live.make_processes import play as run
from tests.live.make_processes import until
from tests.live.make_server import http, make_scene, running

PATH = "/v1/images/generations"


def slower_after_pauses(profile: Profile) -> Profile:
    """The same profile; an image takes half as long again on a worker that has had nothing to do for 0.2 s."""
    tables = {name: profile.table(name) for name in profile.tables}
    ones = tables["latency"].loc[lambda rows: rows["batch_size"] == 1].drop(columns="energy_j").assign(idle_s=0.2)
    times = ["mean_s", "std_s", "p50_s", "p90_s", "p99_s"]
    tables["after_idle"] = ones.assign(**{column: 1.5 * ones[column] for column in times})
    provenance = profile.manifest.provenance
    manifest = profile.manifest.model_copy(
        update={"provenance": provenance | {"after_idle": provenance["latency"]}}
    )
    return Profile.from_tables(manifest, tables)


@pytest.mark.parametrize(("policy", "pauses"), [("static", False), ("argus", False), ("static", True)])
def test_over_http_it_is_the_simulation(tmp_path: Path, policy: str, pauses: bool) -> None:
    scene = make_scene(tmp_path, policy)
    usual = scene.profile
    if pauses:
        scene = replace(scene, profile=slower_after_pauses(usual))
    seed, config = scene.experiment.seed, scene.experiment.traces[0]
    trace = scene.trace(config, seed)
    trace = trace.clip(float(trace.arrival_s[0]), trace.duration_s)
    asked = Asked.of_profile(trace, scene.profile, scene.slo_s, seed)

    async def test() -> None:
        # A minute late: more than the most loaded machine takes to send all requests.
        async with running(scene, speed=60.0, due_times=60.0) as (url, service):
            sending = play(
                Target(url, due_times=True),
                trace.arrival_s,
                [body(text) for text in asked.texts],
                asked.prompt.tolist(),
                speed=60.0,
                warm_up=4,
            )
            answered = asyncio.create_task(sending)
            await until(lambda: service.executor.waiting == len(trace.arrival_s))
            assert service.executor.clock_s == 0
            # All are here: it need not be that late any more.
            service.executor.clock._zero_s = asyncio.get_running_loop().time()
            service.executor._arm()
            answers = await answered
        live = record_of(asked, answers, by="server")
        simulated = simulate(scene, choose_policy(scene, None), trace, seed)
        np.testing.assert_array_equal(live.outcome, simulated.outcome)
        np.testing.assert_array_equal(live.variant, simulated.variant)
        np.testing.assert_array_equal(live.worker, simulated.worker)
        np.testing.assert_array_equal(live.batch_size, simulated.batch_size)
        np.testing.assert_allclose(live.finish_s, simulated.finish_s, atol=2e-6)
        np.testing.assert_allclose(live.relative_quality, simulated.relative_quality)
        assert all(abs(row.error) < 1e-5 for row in compare(live, simulated))
        assert live.workers == 2
        if pauses:
            here = replace(scene, profile=usual)
            without = simulate(here, choose_policy(here, None), trace, seed)
            assert np.nanmean(simulated.finish_s - without.finish_s) > 0.0

    run(test())


@pytest.mark.parametrize("due", ["soon", "-1", "nan", "inf", "1e999", "1e9"])
def test_a_time_that_is_none_is_refused(tmp_path: Path, due: str) -> None:
    """So is one that time would have to begin with: the policy's ticks until then would keep the server busy."""

    async def test() -> None:
        async with running(make_scene(tmp_path), due_times=0.1) as (url, service):
            async with http(url) as client:
                response = await client.post(PATH, json={"prompt": "a fox"}, headers={"x-argus-due-s": due})
                assert response.status_code == 400
                assert response.json()["error"]["param"] == "x-argus-due-s"
            assert service.executor.engine.arrived == 0

    run(test())


def test_time_begins_when_the_client_says_and_only_once(tmp_path: Path) -> None:
    """Else the first request would arrive at 0, and all that take less time on the way before they are due."""

    async def test() -> None:
        async with running(make_scene(tmp_path)) as (url, _), http(url) as client:
            began = {"x-argus-began-s": str(time.monotonic() - 0.25)}
            first = await client.post(PATH, json={"prompt": "a fox"}, headers=began)
            assert float(first.headers["x-argus-arrival-s"]) >= 250  # at a thousand times real speed
            later = {"x-argus-began-s": str(time.monotonic() - 40)}
            second = await client.post(PATH, json={"prompt": "a fox"}, headers=later)
            assert float(second.headers["x-argus-arrival-s"]) < 40_000

    run(test())


@pytest.mark.parametrize("began", ["soon", "nan", "1e999", "-1e9", "{now} + 9000"])
def test_a_beginning_that_is_none_is_refused(tmp_path: Path, began: str) -> None:
    async def test() -> None:
        async with running(make_scene(tmp_path)) as (url, service), http(url) as client:
            header = began if "now" not in began else str(time.monotonic() + 9000)
            response = await client.post(PATH, json={"prompt": "a fox"}, headers={"x-argus-began-s": header})
            assert response.status_code == 400
            assert response.json()["error"]["param"] == "x-argus-began-s"
            assert service.executor.engine.arrived == 0

    run(test())


def test_without_the_option_the_header_is_ignored(tmp_path: Path) -> None:
    async def test() -> None:
        async with running(make_scene(tmp_path)) as (url, _), http(url) as client:
            response = await client.post(PATH, json={"prompt": "a fox"}, headers={"x-argus-due-s": "1e6"})
            assert response.status_code == 200
            assert float(response.headers["x-argus-arrival-s"]) < 1e5

    run(test())


def test_what_is_not_due_yet_is_answered_at_a_stop(tmp_path: Path) -> None:
    async def test() -> None:
        stop = asyncio.Event()
        async with running(make_scene(tmp_path), due_times=0.1, stop=stop, grace_s=0.2) as (url, service):
            async with http(url) as client:
                first = await client.post(PATH, json={"prompt": "a fox"}, headers={"x-argus-due-s": "0"})
                assert first.status_code == 200
                later = client.post(PATH, json={"prompt": "a fox"}, headers={"x-argus-due-s": "1e6"})
                asked = asyncio.create_task(later)
                await until(lambda: service.executor.waiting)
                stop.set()
                assert (await asked).status_code == 503
            assert service.executor.engine.arrived == 1

    run(test())
