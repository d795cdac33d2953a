"""One live run: a policy of an experiment behind an HTTP server; the live counterpart of ``simulate``.

Needs the ``live`` extra.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from argus_sim.core.cache import RULES
from argus_sim.core.engine import Engine
from argus_sim.core.requests import Requests
from argus_sim.errors import InputError, did_you_mean
from argus_sim.experiment import Experiment, PolicyConfig
from argus_sim.experiment.cache_setup import levels_of
from argus_sim.experiment.scene import Scene
from argus_sim.experiment.simulate import record_of
from argus_sim.files import write_atomically
from argus_sim.live import qdrant
from argus_sim.live.cache import CacheSettings, LatentFiles
from argus_sim.live.clock import Clock
from argus_sim.live.emulation import EmulatedCache, EmulatedWorkers
from argus_sim.live.executor import Executor
from argus_sim.live.painter import prepare
from argus_sim.live.processes import Patience
from argus_sim.live.seams import Cache, Workers
from argus_sim.live.server import ServerConfig, Service, serve
from argus_sim.live.telemetry import Telemetry, event
from argus_sim.live.timing import Cell, TimedWorkers
from argus_sim.live.workers import DiffusersWorkers, Machines, ThisMachine
from argus_sim.live.zoo import LiveZoo, live_zoo
from argus_sim.profile import Profile
from argus_sim.profile.changes import ProfileChanges
from argus_sim.record import RunRecord
from argus_sim.simulation.filling import FillingCacheConfig
from argus_sim.simulation.network import CacheConfig, SimulatedCache
from argus_sim.workload import Workload, stream


@dataclass(frozen=True, slots=True)
class PipelinesConfig:
    """What real workers run.

    Attributes:
        zoo: The zoo that the profile was calibrated on.
        weights: Holds a folder of weights per model, where the zoo has none of its own.
        device: ``cpu`` or ``cuda``.
        threads: Of each worker on a CPU; by default as many as the profile was measured with.
        cache: Where latents are kept from one server to the next; None to forget them.
        cache_bytes: The most that they take; 1 GiB by default.
        embedding: Of prompts in the cache; None for that of the profile's similarity table.
        qdrant: URL of a Qdrant server that holds the cache's index; None for one of the cache's own process.
        ray_address: Of the Ray cluster, in place of the experiment's.
        patience: With processes.
        timings: Time the variants before the first request and after the last, and write that here.
        timed: Which of them, as ``VARIANT@SIZE``; all by default.
    """

    zoo: str
    weights: Path | None = None
    device: str = "cpu"
    threads: int | None = None
    cache: Path | None = None
    cache_bytes: int | None = None
    embedding: str | None = None
    qdrant: str | None = None
    ray_address: str | None = None
    patience: Patience = field(default_factory=Patience)
    timings: Path | None = None
    timed: tuple[str, ...] = ()


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
    workers, cache = _emulated(scene, config) if config.pipelines is None else _real(scene, config)
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


def _real(scene: Scene, config: LiveConfig) -> tuple[Workers, Cache | None]:
    """Worker processes, and the cache of their latents where a variant skips steps."""
    wanted, profile = config.pipelines, scene.profile
    assert wanted is not None
    _check_real(scene, config, wanted)
    threads = wanted.threads or threads_of(profile) or 1
    zoo = live_zoo(profile, wanted.zoo, folders=wanted.weights, device=wanted.device, threads=threads)
    cache = None if zoo.cached_model is None else _latents(scene, wanted, zoo)
    workers = DiffusersWorkers(zoo, machines(scene, wanted, zoo), cache)
    _warn_of_hardware(profile, zoo)
    if wanted.timings is None:
        return workers, cache
    cells = [Cell.parse(text, profile) for text in wanted.timed] or Cell.all_of(profile)
    return TimedWorkers(workers, profile, cells, partial(write_atomically, wanted.timings)), cache


def _warn(what: str, **fields: Any) -> None:
    event(what, level=logging.WARNING, **fields)


def _check_real(scene: Scene, config: LiveConfig, wanted: PipelinesConfig) -> None:
    """Raises InputError where real workers cannot be as it is said."""
    experiment = scene.experiment
    where = f"experiment {experiment.name!r}"
    if config.speed != 1.0:
        raise InputError("real workers take the time they take", where="--speed")
    if config.due_times is not None:
        raise InputError("real workers cannot run late", where="--due-times")
    if wanted.threads is not None and wanted.device == "cuda":
        raise InputError("is for workers on a CPU", where="--threads")
    if scene.kinds:
        raise InputError(
            "diffusers workers are all of one kind; this cluster has several", where=f"{where}: cluster.kinds"
        )
    if experiment.profile_changes != ProfileChanges():
        raise InputError(
            "real workers stay as they are whatever the profile says; remove the changes to serve with them",
            where=f"{where}: profile_changes",
        )
    if experiment.cluster.cache.trouble:
        raise InputError(
            "is not made for a real cache; remove it to serve with real workers",
            where=f"{where}: cluster.cache.trouble",
        )
    if any(v.skipped_steps for v in scene.profile.variants):
        return
    of_cache = {"cache": wanted.cache, "cache-bytes": wanted.cache_bytes, "embedding": wanted.embedding}
    for option, value in (of_cache | {"qdrant": wanted.qdrant}).items():
        if value is not None:
            raise InputError(
                f"no variant of profile {scene.profile.name!r} starts from a cached image", where=f"--{option}"
            )


def _warn_of_hardware(profile: Profile, zoo: LiveZoo) -> None:
    """Policies believe the profile's latencies: say so where the workers are other hardware."""
    there, measured = threads_of(profile), profile.manifest.gpu
    if (zoo.device == "cpu") != measured.startswith("CPU"):  # calibration calls no GPU so
        _warn("workers have another device than the profile", profile=measured, workers=zoo.device)
    elif zoo.device == "cpu" and zoo.threads != (there or zoo.threads):
        _warn("workers have other threads than the profile", profile=there, workers=zoo.threads)


def _latents(scene: Scene, wanted: PipelinesConfig, zoo: LiveZoo) -> LatentFiles:
    """The cache of a zoo some of whose variants skip steps."""
    assert zoo.cached_model is not None
    profile, settings = scene.profile, scene.experiment.cluster.cache
    simulated = _as_simulated(settings, profile, f"experiment {scene.experiment.name!r}: cluster.cache")
    if wanted.qdrant is not None:
        qdrant.check(wanted.qdrant)
    similarity, there = profile.similarity(), embedding_of(profile)
    embedding = wanted.embedding or there or "ngrams"
    if embedding.partition("=")[0] != (there or "").partition("=")[0]:
        # Where a hit begins, and how deep policies take one, is for the profile's similarities.
        _warn("the cache's embedding is not known to be the profile's", profile=there, cache=embedding)
    return LatentFiles(
        CacheSettings(
            zoo.cached_model,
            zoo.cached_steps,
            folder=wanted.cache,
            max_bytes=1 << 30 if wanted.cache_bytes is None else wanted.cache_bytes,
            embedding=embedding,
            # Further away than any neighbour that the profile's quality was measured with is a miss.
            min_similarity=-1.0 if similarity is None else float(similarity.min()),
            timeout_s=settings.timeout_s,
            qdrant=wanted.qdrant,
            **simulated,
        ),
        patience=wanted.patience,
    )


def machines(scene: Scene, wanted: PipelinesConfig, zoo: LiveZoo) -> Machines:
    """Where the experiment says that workers run.

    Raises:
        InputError: That is on Ray, and Ray is not installed; or it is not, and there is an address of Ray.
    """
    cluster = scene.experiment.cluster
    if cluster.kind == "local":
        if wanted.ray_address is not None:
            raise InputError(
                "is for workers on Ray; this experiment's are on this machine: --set cluster.kind=ray",
                where="--ray-address",
            )
        return ThisMachine(zoo, wanted.patience)
    from argus_sim.live.ray_actors import RayConfig
    from argus_sim.live.ray_cluster import RayMachines, import_ray

    on_gpus = zoo.device != "cpu"
    cpus = cluster.cpus_per_worker or (1.0 if on_gpus else float(zoo.threads))
    config = RayConfig(wanted.ray_address or cluster.address, cpus, int(on_gpus))
    import_ray(config.address)
    # Ray shows a worker no GPU but its own.
    return RayMachines(config, prepare, (zoo, 0), wanted.patience)


def _as_simulated(settings: CacheConfig | FillingCacheConfig, profile: Profile, where: str) -> dict[str, Any]:
    """What of a simulated cache holds for the real one too; the rest of it describes what is real here."""
    if not isinstance(settings, FillingCacheConfig):
        return {}
    if settings.eviction not in RULES:
        raise InputError(
            f"{settings.eviction!r} knows the future; a server can have {', '.join(RULES)}",
            where=f"{where}.eviction",
        )
    thresholds = levels_of(settings, profile, where)
    if settings.scale == "fitted":
        _warn("thresholds are held against cosines, not against fitted similarities", thresholds=thresholds)
    return {"eviction": settings.eviction, "thresholds": thresholds}


def threads_of(profile: Profile) -> int | None:
    """The threads of a CPU that a profile's latencies were measured with, as far as its manifest says so."""
    known = [part.get("machine", {}).get("threads") for part in _calibrations(profile, "latency")]
    return next((threads for threads in known if isinstance(threads, int)), None)


def embedding_of(profile: Profile) -> str | None:
    """The embedding that a profile's similarities were measured with, as far as its manifest says so."""
    known = [part.get("settings", {}).get("embedding") for part in _calibrations(profile, "quality")]
    return next((embedding for embedding in known if isinstance(embedding, str)), None)


def _calibrations(profile: Profile, what: str) -> list[Any]:
    """What a manifest says of the calibrations that measured this: ``latency`` or ``quality``."""
    generator: Any = profile.manifest.generator
    parts = [generator, *generator.get("merged", [])]
    return [part for part in parts if part.get("settings", {}).get(what, True)]


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
