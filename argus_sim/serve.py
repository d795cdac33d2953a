"""One live run: a policy of an experiment behind an HTTP server; the live counterpart of ``simulate``.

Needs the ``live`` extra.
"""

from __future__ import annotations

import asyncio
import gc
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TextIO

import numpy as np

from argus_sim.core.engine import Engine
from argus_sim.core.requests import Requests
from argus_sim.errors import InputError, did_you_mean
from argus_sim.experiment import Experiment, PolicyConfig
from argus_sim.experiment.scene import Scene
from argus_sim.experiment.simulate import record_of
from argus_sim.live.clock import Clock
from argus_sim.live.emulation import EmulatedCache, EmulatedWorkers
from argus_sim.live.executor import Executor
from argus_sim.live.seams import Cache, Workers
from argus_sim.live.server import ServerConfig, Service, serve
from argus_sim.live.telemetry import Telemetry
from argus_sim.profile import Profile
from argus_sim.real_workers import PipelinesConfig, real_workers
from argus_sim.record import RunRecord
from argus_sim.simulation.network import CacheConfig, SimulatedCache
from argus_sim.workload import Workload, stream


@dataclass(frozen=True, slots=True)
class LiveConfig:
    """How an experiment is served.

    Attributes:
        server: How it listens; its size and name are set from the experiment.
        speed: Seconds that pass on the cluster in a second, for emulated workers.
        hold: Time begins with the first request.
        seed: Of the run: the same luck as the simulated run of this seed.
        pipelines: What real workers run; None for emulated ones.
        due_times: Requests arrive when their header ``x-argus-due-s`` says; the clock runs this many real seconds
            late, so that they are here by then. For emulated workers; implies ``hold``.
    """

    server: ServerConfig = field(default_factory=ServerConfig)
    speed: float = 1.0
    hold: bool = False
    seed: int = 1
    pipelines: PipelinesConfig | None = None
    due_times: float | None = None


def scene_of(path: Path, settings: Sequence[str]) -> Scene:
    """What an experiment plays with; see :meth:`Experiment.load` and :meth:`Scene.of`.

    Raises:
        InputError: Also where it is many experiments: a sweep.
    """
    experiment = Experiment.load(path, settings)
    if experiment.sweep is not None:
        raise InputError(
            f"varies {', '.join(experiment.sweep.axes)}; a server can be one of its points only: give --set "
            "sweep=null, and --set for what is other than the experiment itself says",
            where=f"experiment {experiment.name!r}: sweep",
        )
    return Scene.of(experiment)


def choose_policy(scene: Scene, label: str | None) -> PolicyConfig:
    """The policy of a label; without one, the experiment's only policy.

    Raises:
        InputError: There is no such policy, or there are several to choose from.
    """
    policies = {p.label: p for p in scene.experiment.policies}
    if label is None:
        if len(policies) > 1:
            raise InputError(
                f"experiment {scene.experiment.name!r} has several policies; name one with --policy. Allowed: "
                + ", ".join(sorted(policies))
            )
        return next(iter(policies.values()))
    if label not in policies:
        raise InputError(f"no policy {label!r}{did_you_mean(label, policies)}", where="--policy")
    return policies[label]


def build(scene: Scene, policy: PolicyConfig, config: LiveConfig, *, transcript: TextIO | None = None) -> Service:
    """Everything of a server, ready to start.

    Raises:
        InputError: The experiment cannot be served; says why.
    """
    experiment, profile = scene.experiment, scene.profile
    where = f"experiment {experiment.name!r}"
    if experiment.cluster.faults:
        raise InputError("faults are for simulations; remove them to serve", where=f"{where}: cluster.faults")
    if policy.predictor != "text":
        raise InputError(
            "a perfect predictor, of any accuracy, knows only the profile's prompts; serve with 'text'",
            where=f"{where}: policy {policy.label!r}.predictor",
        )
    if policy.forecast != "own":
        raise InputError(
            "a perfect forecast knows what is still to come; serve with 'own'",
            where=f"{where}: policy {policy.label!r}.forecast",
        )
    if not 0 < config.speed < float("inf"):
        raise InputError(f"must be above 0, found {config.speed}", where="--speed")
    if config.due_times is not None and not 0 < config.due_times <= 60:
        raise InputError(f"must be above 0 s and at most 60 s, found {config.due_times}", where="--due-times")

    engine = fresh_engine(scene, policy, config.seed)
    telemetry = Telemetry(profile.variants)
    telemetry.watch(engine)
    workers, cache = _workers(scene, config)
    executor = Executor(
        engine,
        workers,
        Clock(config.speed, config.due_times or 0.0),
        slo_s=scene.slo_s,
        cache=cache,
        dispatch_s=experiment.cluster.dispatch_s if config.pipelines is None else 0.0,
        listener=telemetry,
        transcript=transcript,
        hold=config.hold or config.due_times is not None,
        seed=config.seed,
    )
    width, height = profile.manifest.resolution
    listen = config.server
    server = ServerConfig(
        listen.host, listen.port, listen.api_key, f"{width}x{height}", experiment.name, listen.max_open,
        listen.grace_s, config.due_times is not None,
    )  # fmt: skip
    return Service(executor, server, _positions(scene, engine), telemetry, _quality(profile))


def _workers(scene: Scene, config: LiveConfig) -> tuple[Workers, Cache | None]:
    """Emulated or real ones, with their cache; a real one's time cannot be changed."""
    if config.pipelines is None:
        return _emulated(scene, config)
    if config.speed != 1.0:
        raise InputError("real workers take the time they take", where="--speed")
    if config.due_times is not None:
        raise InputError("real workers cannot run late", where="--due-times")
    return real_workers(scene, config.pipelines)


def _emulated(scene: Scene, config: LiveConfig) -> tuple[Workers, Cache | None]:
    profile = scene.profile
    workers = EmulatedWorkers(profile, stream(config.seed, "service"), stream(config.seed, "loads"), scene.kinds)
    similarity = profile.similarity()
    if similarity is None:
        return workers, None
    deepest = max(v.skipped_steps for v in profile.variants)
    settings = scene.experiment.cluster.cache
    if not isinstance(settings, CacheConfig):
        raise InputError(
            "a simulated cache is for simulations; emulated workers have a warm one (kind: warm)",
            where=f"experiment {scene.experiment.name!r}: cluster.cache",
        )
    return workers, EmulatedCache(SimulatedCache(settings, similarity, deepest, stream(config.seed, "cache")))


def fresh_engine(scene: Scene, policy: PolicyConfig, seed: int) -> Engine:
    """The engine of a live run, without requests: they are admitted as they come."""
    experiment = scene.experiment
    engine = Engine(
        scene.catalog,
        scene.policy(policy, seed, judge=False),
        Requests(),
        experiment.cluster.workers,
        drop=experiment.drop_rule,
        staleness_s=experiment.cluster.staleness_s,
    )
    if engine.judges:
        raise InputError(
            f"policy {policy.label!r} is a cascade: it needs a discriminator, and the server has none yet"
        )
    return engine


def _positions(scene: Scene, engine: Engine) -> Callable[[str], int]:
    """Text -> position of the prompt in the profile; of its stand-in where the profile does not know it."""
    known: dict[str, int] = {}
    for index, text in enumerate(scene.profile.prompt_texts):
        known.setdefault(text, index)
    stand_in = lru_cache(maxsize=4096)(engine.policy.setup.predictor.stand_in)

    def position(text: str) -> int:
        index = known.get(text)
        return stand_in(text) if index is None else index

    return position


def _quality(profile: Profile) -> Callable[[int, str], float]:
    table = profile.relative_quality()
    column = {v.name: index for index, v in enumerate(profile.variants)}
    return lambda prompt, variant: float(table[prompt, column[variant]])


async def run(service: Service, *, on_ready: Callable[[str], None], stop: asyncio.Event | None = None) -> None:
    """Serve until SIGTERM or SIGINT, or until ``stop`` is set; a second one ends the wait for what is open."""
    stop, at_once = stop or asyncio.Event(), asyncio.Event()

    def heed() -> None:
        (at_once if stop.is_set() else stop).set()

    loop = asyncio.get_running_loop()
    # What is here now stays: collections that walked all of it stopped the loop for 0.1 to 0.2 s each.
    gc.collect()
    gc.freeze()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, heed)
    try:
        await serve(service, stop=stop, on_ready=on_ready, at_once=at_once)
    finally:
        gc.unfreeze()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


def record(scene: Scene, executor: Executor, duration_s: float) -> RunRecord:
    """What a finished live run leaves: the same columns as a simulated one.

    A text that the profile does not know stands under its stand-in's name, with the stand-in's quality.
    """
    requests = executor.engine.requests
    arrival_s = np.array(requests.arrival_s, dtype=np.float64)
    workload = Workload(
        arrival_s,
        np.array(requests.deadline_s, dtype=np.float64),
        np.array(requests.prompt, dtype=np.int32),
        scene.slo_s,
        duration_s,
    )
    return record_of(scene, executor.engine, workload, executor.loads, executor.faults)
