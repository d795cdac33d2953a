"""What real workers of a live run are: worker processes of a zoo's pipelines, and the cache of their latents.

Needs the ``live`` extra.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from argus_sim.core.cache import RULES
from argus_sim.errors import InputError
from argus_sim.experiment.cache_setup import levels_of
from argus_sim.experiment.scene import Scene
from argus_sim.files import write_atomically
from argus_sim.live import qdrant
from argus_sim.live.cache import CacheSettings, LatentFiles
from argus_sim.live.painter import prepare
from argus_sim.live.processes import Patience
from argus_sim.live.seams import Cache, Workers
from argus_sim.live.telemetry import event
from argus_sim.live.timing import Cell, TimedWorkers
from argus_sim.live.workers import DiffusersWorkers, Machines, ThisMachine
from argus_sim.live.zoo import LiveZoo, check_embedding, live_zoo
from argus_sim.profile import Profile
from argus_sim.profile.changes import ProfileChanges
from argus_sim.simulation.filling import FillingCacheConfig
from argus_sim.simulation.network import CacheConfig


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


def real_workers(scene: Scene, wanted: PipelinesConfig) -> tuple[Workers, Cache | None]:
    """Worker processes, and the cache of their latents where a variant skips steps.

    Raises:
        InputError: They cannot be as it is said; says why.
    """
    profile = scene.profile
    _check(scene, wanted)
    threads = wanted.threads or threads_of(profile) or 1
    zoo = live_zoo(profile, wanted.zoo, folders=wanted.weights, device=wanted.device, threads=threads)
    cache = None if zoo.cached_model is None else _latents(scene, wanted, zoo)
    workers = DiffusersWorkers(zoo, machines(scene, wanted, zoo), cache)
    _warn_of_hardware(profile, zoo)
    if wanted.timings is None:
        return workers, cache
    cells = [cell for text in wanted.timed for cell in Cell.parse(text, profile)] or Cell.all_of(profile)
    return TimedWorkers(workers, profile, cells, partial(write_atomically, wanted.timings)), cache


def _warn(what: str, **fields: Any) -> None:
    event(what, level=logging.WARNING, **fields)


def _check(scene: Scene, wanted: PipelinesConfig) -> None:
    """Raises InputError where real workers cannot be as it is said."""
    experiment = scene.experiment
    where = f"experiment {experiment.name!r}"
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
        check_embedding(wanted.embedding or "", wanted.zoo)
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
