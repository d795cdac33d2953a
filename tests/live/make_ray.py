"""A Ray cluster of several nodes on this machine, on loopback; and an executor with workers on it."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from argus_sim.experiment import Experiment
from argus_sim.experiment.scene import Scene
from argus_sim.live.clock import Clock
from argus_sim.live.executor import Executor
from argus_sim.live.processes import Patience
from argus_sim.live.ray_actors import RayConfig
from argus_sim.live.ray_cluster import RayMachines, import_ray
from argus_sim.live.workers import DiffusersWorkers
from argus_sim.live.zoo import Recipe
from argus_sim.serve import choose_policy, fresh_engine
from tests.live.make_processes import empty_zoo, paint
from tests.make_experiment import content, write_experiment
from tests.patience import LONG_S

#: Nobody is taken for dead who is only slow.
QUICK = Patience(beat_s=0.2, silent_beats=5 * int(LONG_S), start_s=LONG_S, wait_s=0.01, longest_wait_s=0.1)


@contextlib.contextmanager
def ray_cluster() -> Iterator[Any]:
    """One node without room for workers, and one with room for two."""
    import_ray(None)
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        yield cluster
    finally:
        cluster.shutdown()


def make_scene(folder: Path) -> Scene:
    """The small experiment with all the time in the world."""
    more = {"policies": ["static"], "slo": {"seconds": 1000.0}, "drop": "never", "bound": False}
    return Scene.of(Experiment.load(write_experiment(folder, {**content(), **more})))


@contextlib.asynccontextmanager
async def working(scene: Scene, address: str, seconds: float = 0.05) -> AsyncIterator[Executor]:
    """An executor whose two workers, on Ray, take that long for every batch."""
    profile = scene.profile
    recipes = tuple(
        Recipe(v.name, v.model, "", 0, dict.fromkeys(profile.batch_sizes(i), 1.0))
        for i, v in enumerate(profile.variants)
    )
    zoo = replace(empty_zoo(), recipes=recipes)
    machines = RayMachines(RayConfig(address), paint, (seconds,), QUICK)
    engine = fresh_engine(scene, choose_policy(scene, None), 1)
    executor = Executor(engine, DiffusersWorkers(zoo, machines), Clock(), slo_s=scene.slo_s)
    try:
        await executor.start()
        yield executor
    finally:
        await executor.stop()
