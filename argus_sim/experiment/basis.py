"""What a result rests on: the provenance of profile and traces, and what the cluster assumes."""

from __future__ import annotations

import re

from argus_sim.experiment import cache_setup
from argus_sim.experiment.config import Experiment
from argus_sim.experiment.scene import Scene
from argus_sim.policies import registry
from argus_sim.provenance import Provenance
from argus_sim.simulation.discriminator import RECORDED, DiscriminatorConfig
from argus_sim.simulation.filling import FillingCacheConfig
from argus_sim.simulation.network import CacheConfig


def provenance_rows(scene: Scene) -> list[tuple[str, str, str]]:
    """What the numbers rest on: (what, kind, source) for each part of the profile and the traces."""
    profile = scene.profile
    rows: list[tuple[str, str, str]] = [
        (
            f"{profile.name}: {table}" + (f" ({part.covers})" if part.covers != "*" else ""),
            part.kind,
            part.source + (f"; derived: {part.derived}" if part.derived else ""),
        )
        for table in profile.tables
        for part in profile.provenance_of(table)
    ]
    for config in scene.experiment.traces:
        trace = scene.trace(config, scene.experiment.seed)
        changes = "; ".join(trace.transformations)
        for origin in trace.provenance:
            covers = f" ({origin.covers})" if origin.covers != "*" else ""
            source = origin.source + (f"; derived: {origin.derived}" if origin.derived else "")
            source += f"; {changes}" if changes else ""
            rows.append((f"trace {config.name}{covers}", origin.kind, source))
    return rows + [(what, origin.kind, origin.source) for what, origin in assumptions(scene)]


def assumptions(scene: Scene) -> list[tuple[str, Provenance]]:
    """What the cluster adds to what profile and traces rest on."""
    experiment = scene.experiment
    judged = _cascades(experiment)
    hardware = [
        (f"kind {kind.name}: {table}", part)
        for kind in scene.kinds
        for table in ("latency", "after_idle", "loads")
        if table in kind.hardware.tables
        for part in kind.hardware.provenance_of(table)
    ]
    if isinstance(experiment.cluster.cache, FillingCacheConfig):
        hardware += cache_setup.assumptions(scene, experiment.cluster.cache)
    if not judged:
        return hardware
    what = f"discriminator of {', '.join(judged)}"
    config = experiment.cluster.discriminator
    if config == DiscriminatorConfig():
        hardware.append((f"{what}: correlation {config.correlation:g}", RECORDED))
        origin = "recorded"
    else:
        origin = "the experiment's"
    source = (
        "argus_sim.simulation.discriminator (Gaussian copula with relative quality,"
        f" correlation {config.correlation:g}, {origin}), seed of the run"
    )
    return [*hardware, (what, Provenance(kind="synthetic", source=source))]


def unused(scene: Scene) -> list[str]:
    """What of the cluster's description changes nothing in any run; and a deadline that nothing can meet."""
    cluster, found = scene.experiment.cluster, []
    if cluster.discriminator != DiscriminatorConfig() and not _cascades(scene.experiment):
        found.append("cluster.discriminator changes nothing: none of the policies is a cascade")
    warm = isinstance(cluster.cache, CacheConfig) and cluster.cache != CacheConfig()
    if warm and scene.profile.similarity() is None:
        found.append(
            f"cluster.cache changes nothing: profile {scene.profile.name!r} has no similarity table, so no cache"
        )
    fastest_s = min(min(means) for timings in scene.catalog.kinds for means in timings.mean_s)
    if fastest_s > scene.slo_s:
        found.append(
            f"nothing can be on time: the deadline is {scene.slo_s:.3g} s, "
            f"and the fastest image takes {fastest_s:.3g} s"
        )
    return found


def rescaled(experiment: Experiment) -> list[str]:
    """Axes of a sweep that change the cluster, where loads are a multiple of what it serves."""
    traces = [t.name for t in experiment.traces if any(part.peak is not None for part in t.parts())]
    axes = experiment.sweep.axes if experiment.sweep is not None else {}
    return [
        f"{name} changes the cluster, and with it the load of {', '.join(traces)}: peak.of_capacity "
        "is a multiple of what the cluster serves; scale_rate gives one load at all points"
        for name, axis in axes.items()
        if traces and any(re.fullmatch(r"cluster|cluster\.workers|cluster\.kinds.*", key) for key in axis.keys)
    ]


def _cascades(experiment: Experiment) -> list[str]:
    """Labels of the policies that look at images."""
    kinds = [(p, registry.find(p.name, where=f"policy {p.label!r}")) for p in experiment.policies]
    return [
        config.label
        for config, kind in kinds
        if kind.may_judge(registry.parameters(kind, config.params, where=f"policy {config.label!r}"))
    ]
