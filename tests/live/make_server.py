"""A server within the test's own process: of a small experiment with emulated workers, or of the shapes zoo."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TextIO

from argus_sim.experiment import Experiment
from argus_sim.experiment.scene import Scene
from argus_sim.live.processes import Patience
from argus_sim.live.server import ServerConfig, Service, serve
from argus_sim.real_workers import PipelinesConfig
from argus_sim.serve import LiveConfig, build, choose_policy
from tests.make_experiment import content, write_experiment


def make_scene(
    folder: Path, policy: str | dict[str, Any] = "static", *, slo: dict[str, float] | None = None, **cluster: Any
) -> Scene:
    """The small experiment with one policy."""
    data = {**content(), "policies": [policy], "cluster": {"workers": 2, **cluster}, "bound": False}
    if slo is not None:
        data["slo"] = slo
    return Scene.of(Experiment.load(write_experiment(folder, data)))


#: Real pipelines on a CPU, for tests that kill them.
SHAPES = PipelinesConfig("shapes", patience=Patience(beat_s=0.2, silent_beats=75, wait_s=0.1, longest_wait_s=1.0))


def shapes_scene(policy: str, *settings: str) -> Scene:
    """The shipped experiment on measured models, with one policy, two workers and all the time in the world."""
    usual = (f"policies=[{policy}]", "cluster.workers=2", "slo.seconds=100", "drop=never")
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
    **server: Any,
) -> AsyncIterator[tuple[str, Service]]:
    """The address and the service, while it runs; drained at the end."""
    listen = ServerConfig(**{"port": 0, **server})
    seed = scene.experiment.seed
    config = LiveConfig(
        listen, 1.0 if pipelines else speed, hold=True, seed=seed, pipelines=pipelines, due_times=due_times
    )
    service = build(scene, choose_policy(scene, None), config, transcript=transcript)
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
