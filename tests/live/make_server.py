"""A server of a small experiment with emulated workers, within the test's own process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TextIO

from argus_sim.experiment import Experiment
from argus_sim.live.server import ServerConfig, Service, serve
from argus_sim.serve import LiveConfig, build, choose_policy
from argus_sim.simulate import Scene
from tests.make_experiment import content, write_experiment


def make_scene(folder: Path, policy: str = "static", **cluster: Any) -> Scene:
    """The small experiment with one policy."""
    data = {**content(), "policies": [policy], "cluster": {"workers": 2, **cluster}, "bound": False}
    return Scene.of(Experiment.load(write_experiment(folder, data)))


@asynccontextmanager
async def running(
    scene: Scene,
    *,
    speed: float = 1000.0,
    transcript: TextIO | None = None,
    stop: asyncio.Event | None = None,
    **server: Any,
) -> AsyncIterator[tuple[str, Service]]:
    """The address and the service, while it runs; drained at the end."""
    config = LiveConfig(ServerConfig(port=0, **server), speed, hold=True, seed=scene.experiment.seed)
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
