"""A server within the test's own process: of a small experiment with emulated workers, or of the shapes zoo."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TextIO

from argus_sim.experiment import Experiment
from argus_sim.experiment.scene import Scene
from argus_sim.live.clock import Clock
from argus_sim.live.processes import Patience
from argus_sim.live.server import ServerConfig, Service, serve
from argus_sim.real_workers import PipelinesConfig
from argus_sim.serve import LiveConfig, build, choose_policy
from tests.make_experiment import content, write_experiment
from tests.patience import LONG_S


def make_scene(
    folder: Path, policy: str | dict[str, Any] = "static", *, slo: dict[str, float] | None = None, **cluster: Any
) -> Scene:
    """The small experiment with one policy."""
    data = {**content(), "policies": [policy], "cluster": {"workers": 2, **cluster}, "bound": False}
    if slo is not None:
        data["slo"] = slo
    return Scene.of(Experiment.load(write_experiment(folder, data)))


#: Real pipelines on a CPU, for tests that kill them; nobody is taken for dead who is only slow.
SHAPES = PipelinesConfig(
    "shapes",
    patience=Patience(
        beat_s=0.2, silent_beats=5 * int(LONG_S), start_s=LONG_S, answer_s=LONG_S, wait_s=0.1, longest_wait_s=1.0
    ),
)


class HandClock(Clock):
    """Stands still but when a test lets time pass, so that nothing depends on how fast the machine is."""

    now_s = 0.0

    def release(self, at_s: float = 0.0) -> None:
        pass

    def now(self) -> float:
        return self.now_s

    async def let_pass(self, service: Service, done: Callable[[], Any] | None = None) -> None:
        """Until something holds; by default, until every request has been answered."""
        async with asyncio.timeout(LONG_S):
            while not done() if done is not None else service.executor.waiting:
                self.now_s += 0.25
                service.executor.now()
                await asyncio.sleep(0)  # clients that leave are heard of meanwhile


def http(url: str, **options: Any) -> Any:
    """A client of as much patience as a test has: by default httpx's has 5 s."""
    import httpx

    return httpx.AsyncClient(base_url=url, **{"timeout": LONG_S, **options})


async def under_way(client: Any, ask: Callable[[], Coroutine[Any, Any, Any]]) -> asyncio.Task[Any]:
    """A request whose image is being made: one is asked for after the other, until one is seen at that."""
    async with asyncio.timeout(LONG_S):
        while True:
            asked = asyncio.create_task(ask())
            while not asked.done():
                if 'argus_workers{status="busy"} 1.0' in (await client.get("/metrics")).text:
                    return asked


#: All the time in the world, of requests and of the cache's answers.
AMPLE = ("slo.seconds=1000", "drop=never", "cluster.cache.timeout_s=500")


def shapes_scene(policy: str, *settings: str) -> Scene:
    """The shipped experiment on measured models, with one policy, two workers and all the time in the world."""
    usual = (f"policies=[{policy}]", "cluster.workers=2", *AMPLE)
    path = Path(__file__).parents[2] / "experiments" / "shapes.yaml"
    return Scene.of(Experiment.load(path, [*usual, *settings]))


@asynccontextmanager
async def running(
    scene: Scene,
    *,
    speed: float = 1000.0,
    transcript: TextIO | None = None,
    stop: asyncio.Event | None = None,
    due_times: float | None = None,
    pipelines: PipelinesConfig | None = None,
    clock: Clock | None = None,
    **server: Any,
) -> AsyncIterator[tuple[str, Service]]:
    """The address and the service, while it runs; drained at the end."""
    listen = ServerConfig(**{"port": 0, "grace_s": LONG_S, **server})
    seed = scene.experiment.seed
    config = LiveConfig(
        listen, 1.0 if pipelines else speed, hold=True, seed=seed, pipelines=pipelines, due_times=due_times
    )
    service = build(scene, choose_policy(scene, None), config, transcript=transcript)
    if clock is not None:
        service.executor.clock = clock
    ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    stop = stop or asyncio.Event()
    task = asyncio.create_task(serve(service, stop=stop, on_ready=ready.set_result))
    await asyncio.wait([task, ready], return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        task.result()
    try:
        yield ready.result(), service
    finally:
        stop.set()
        await task
