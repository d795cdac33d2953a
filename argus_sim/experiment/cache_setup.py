"""A run's simulated cache, put together: texts, vectors, levels, what is in it at the start."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from argus_sim.core.cache import ARTEFACT_THRESHOLDS, Future, LatentCache
from argus_sim.core.nearest import Vector
from argus_sim.errors import InputError
from argus_sim.experiment.config import expand
from argus_sim.experiment.scene import Scene
from argus_sim.profile import Profile
from argus_sim.provenance import Provenance
from argus_sim.similarity import HASHED, Embeddings, SimilarityScale, hashed
from argus_sim.simulation.filling import FillingCache, FillingCacheConfig
from argus_sim.textfile import texts_in
from argus_sim.trace import Trace
from argus_sim.workload import Workload, stream

Ints = npt.NDArray[np.int64]


def filling_cache(
    scene: Scene, config: FillingCacheConfig, trace: Trace, workload: Workload, seed: int
) -> FillingCache:
    """The cache of a run, warmed up.

    Raises:
        InputError: The configuration does not fit the profile, or a file is not what it should be.
    """
    where = f"experiment {scene.experiment.name!r}: cluster.cache"
    texts, text, earlier = _texts(scene, config, trace, workload, seed)
    embedding, vectors = _vectors(config, texts, where)
    scale = scale_of(config, embedding, where)
    u = stream(seed, "similarity").random(len(texts))
    levels = levels_of(config, scene.profile, where)

    def similarity_of(index: int, cosine: float) -> float:
        return scale.similarity_of(cosine, quantile[index]) if scale else cosine

    quantile = u.tolist()
    latent_bytes = config.latent_bytes or latent_size_bytes(scene.profile)
    cache = LatentCache(
        levels,
        vectors.shape[1],
        capacity=capacity_of(config, latent_bytes, len(levels), where),
        eviction=config.eviction,
        future=_future(levels, text, vectors, scale, u) if config.eviction == "oracle" else None,
    )
    everything = config.warm_up is not None and config.warm_up.file is not None
    for index in earlier.tolist():
        found = cache.lookup(vectors[index], lambda cosine, i=index: similarity_of(i, cosine))  # type: ignore[misc]
        if everything or not found.steps:
            cache.insert(index, vectors[index])
    return FillingCache(
        config,
        cache,
        text.tolist(),
        vectors,
        similarity_of if scale else None,
        latent_bytes,
        workload.arrival_s + scene.experiment.cluster.dispatch_s,
        stream(seed, "cache"),
    )


def levels_of(config: FillingCacheConfig, profile: Profile, where: str) -> dict[int, float]:
    """Steps skipped -> the similarity that has to be exceeded, for the levels of the profile's ladder AC.

    Raises:
        InputError: The profile has no such ladder, or the thresholds are not one for each of its levels, rising.
    """
    cached = {v.skipped_steps: v for v in profile.variants if v.skipped_steps and v.strategy == "AC"}
    if not cached:
        raise InputError(f"profile {profile.name!r} has no ladder AC: nothing could be cached", where=where)
    if config.thresholds is not None:
        if set(config.thresholds) != set(cached):
            raise InputError(
                f"needs a similarity for each of the steps {sorted(cached)} that profile {profile.name!r} skips, "
                f"found {sorted(config.thresholds)}",
                where=f"{where}.thresholds",
            )
        levels = {k: config.thresholds[k] for k in sorted(cached)}
    else:
        parts, above = list(ARTEFACT_THRESHOLDS), list(ARTEFACT_THRESHOLDS.values())
        share = {k: k / v.steps for k, v in sorted(cached.items())}
        deep = [k for k, part in share.items() if part > parts[-1] + 1e-9]
        if deep:
            raise InputError(
                f"the artefact's thresholds end at {parts[-1]:.0%} of the steps, and profile {profile.name!r} "
                f"skips {deep[0]} of {cached[deep[0]].steps}; give thresholds",
                where=where,
            )
        levels = {k: round(float(np.interp(part, parts, above)), 4) for k, part in share.items()}
    if list(levels.values()) != sorted(levels.values()):
        raise InputError(f"must rise with the steps skipped, found {levels}", where=f"{where}.thresholds")
    return levels


def capacity_of(config: FillingCacheConfig, latent_bytes: int, levels: int, where: str) -> int | None:
    """Room in entries; :class:`InputError` where it does not hold the latents of a single prompt."""
    entries = config.capacity_entries
    key, found, least = "capacity_entries", entries, levels
    if config.capacity_bytes is not None:
        entries = config.capacity_bytes // latent_bytes
        key, found, least = "capacity_bytes", config.capacity_bytes, levels * latent_bytes
    if entries is not None and entries < levels:
        raise InputError(
            f"must hold the {levels} latents of a prompt: at least {least}, found {found}", where=f"{where}.{key}"
        )
    return entries


def latent_size_bytes(profile: Profile) -> int:
    """4 channels of 2 bytes at an eighth of the resolution: 131,072 for 1024 x 1024."""
    width, height = profile.manifest.resolution
    return 4 * (width // 8) * (height // 8) * 2


def scale_of(config: FillingCacheConfig, embedding: str, where: str) -> SimilarityScale | None:
    """From the cosines of an embedding to similarities; None where these are the cosines."""
    return None if config.scale == "cosine" else SimilarityScale.of(embedding, where=f"{where}.scale")


def assumptions(scene: Scene, config: FillingCacheConfig) -> list[tuple[str, Provenance]]:
    """What a simulated cache adds to what the results rest on."""
    where = f"experiment {scene.experiment.name!r}: cluster.cache"
    name, made = "hashed", hashed(("",)).provenance
    if config.embeddings is not None:
        read = _read(str(expand(config.embeddings, where=f"{where}.embeddings")))
        name, made = read.name, read.provenance
    scale = scale_of(config, name, where)
    assumed = Provenance(
        kind="synthetic", source="assumed: look-up time, bandwidth and capacity, in the configuration"
    )
    return [
        *((f"cache: embedding {name}", part) for part in made),
        *((f"cache: similarity from cosines of {name}", part) for part in (scale.provenance if scale else ())),
        ("cache: speed and size", assumed),
    ]


def _future(
    levels: dict[int, float], text: Ints, vectors: npt.NDArray[np.float32], scale: SimilarityScale | None,
    u: npt.NDArray[np.float64],
) -> Future:  # fmt: skip
    cuts, depths = list(levels.values()), np.array([0, *levels])

    def steps(vector: Vector) -> Ints:
        cosines = np.asarray(np.round(vectors @ vector, 5), dtype=np.float64)
        similar = cosines if scale is None else scale.similarities_of(cosines, u)
        allowed: Ints = depths[np.searchsorted(cuts, similar, side="left")]
        return allowed

    return Future(text.astype(np.int64), steps)


def _texts(
    scene: Scene, config: FillingCacheConfig, trace: Trace, workload: Workload, seed: int
) -> tuple[tuple[str, ...], Ints, Ints]:
    """Distinct texts, that of each request, and those that the cache is warmed up with, in their order."""
    texts = workload.texts or tuple(scene.profile.prompt_texts)
    text = (workload.prompt if workload.text is None else workload.text).astype(np.int64)
    warm_up = config.warm_up
    if warm_up is None:
        return texts, text, np.empty(0, dtype=np.int64)
    if warm_up.file is not None:
        where = f"experiment {scene.experiment.name!r}: cluster.cache.warm_up"
        stored = texts_in(expand(warm_up.file, where=where), warm_up.column)
        at: dict[str, int] = {}
        for index, known in enumerate((*texts, *stored)):
            at.setdefault(known, index)
        everything = (*texts, *stored)
        return everything, text, np.array([at[t] for t in stored], dtype=np.int64)
    assert warm_up.requests is not None
    recorded = scene.recorded(trace)
    if recorded is not None:
        return texts, text, recorded.before(warm_up.requests)
    return texts, text, _earlier(scene, trace, seed, warm_up.requests)


def _earlier(scene: Scene, trace: Trace, seed: int, requests: int) -> Ints:
    """Prompts of the same stream that are not the run's: those of a trace that goes on for as long again, after
    its end.

    The same popularity (which is drawn first), another draw.
    """
    more_s = trace.duration_s * (1.0 + np.arange(1, requests + 1) / requests)
    longer = Trace(
        trace.name, np.concatenate([trace.arrival_s, more_s]), 2.0 * trace.duration_s, provenance=trace.provenance
    )
    prompts = Workload.of(
        longer, scene.profile, scene.slo_s, stream(seed, "prompts"), scene.experiment.prompts
    ).prompt
    return prompts[len(trace) :].astype(np.int64)


def _vectors(
    config: FillingCacheConfig, texts: tuple[str, ...], where: str
) -> tuple[str, npt.NDArray[np.float32]]:
    """The name of the embedding, and a row for each text."""
    if config.embeddings is None:
        return HASHED, _hashed(texts)
    path = expand(config.embeddings, where=f"{where}.embeddings")
    read = _read(str(path))
    return read.name, read.of(texts, where=str(path))


@lru_cache(maxsize=4)
def _hashed(texts: tuple[str, ...]) -> npt.NDArray[np.float32]:
    return hashed(texts).vectors


@lru_cache(maxsize=2)
def _read(path: str) -> Embeddings:
    return Embeddings.read(Path(path))


def forget() -> None:
    """Read files anew from now on."""
    _read.cache_clear()
