"""One run: one policy, one trace, one seed, from its scene to its record; and what no run can exceed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from argus_sim.core.bound import Bound, least_work_s, pooled_work_s, quality_bound
from argus_sim.core.engine import Engine
from argus_sim.domain import Outcome
from argus_sim.experiment.cache_setup import filling_cache
from argus_sim.experiment.planning_times import time_plans
from argus_sim.experiment.scene import Scene
from argus_sim.experiment.sections import PolicyConfig
from argus_sim.profile import Profile
from argus_sim.record import CacheRecord, FaultRecord, LoadRecord, RunRecord
from argus_sim.simulation import faults
from argus_sim.simulation.cluster import SimulatedCluster
from argus_sim.simulation.discriminator import Discriminator
from argus_sim.simulation.environment import Environment
from argus_sim.simulation.filling import FillingCache, FillingCacheConfig
from argus_sim.simulation.network import SimulatedCache
from argus_sim.simulation.service import LoadTimes, ServiceTimes
from argus_sim.trace import Trace
from argus_sim.workload import Workload, stream


def simulate(
    scene: Scene,
    policy_config: PolicyConfig,
    trace: Trace,
    seed: int,
    *,
    env: Environment | None = None,
    workload: Workload | None = None,
    hardware: Profile | None = None,
    judge: bool = True,
) -> RunRecord:
    """Replay a trace under a policy.

    Args:
        workload: The requests, if not those that the scene makes of the trace.
        hardware: How long workers really take, where that is not what the scene's profile says. The policy goes
            on believing the scene's.
        judge: Whether a policy that looks at images has a discriminator to ask; a live server has none.

    Raises:
        InputError: The run can never catch up, or the policy did what cannot be done.
    """
    experiment, profile = scene.experiment, scene.profile
    cluster = experiment.cluster

    def rng(purpose: str) -> np.random.Generator:
        return stream(seed, purpose)

    workload = workload or scene.workload(trace, seed)
    policy = scene.policy(policy_config, seed, trace, judge=judge)
    planning_s = time_plans(policy) if experiment.planning_times else []
    engine = Engine(
        scene.catalog,
        policy,
        workload.requests(),
        cluster.workers,
        drop=experiment.drop_rule,
        staleness_s=cluster.staleness_s,
    )

    def discriminator() -> Discriminator | None:
        if not engine.judges:
            return None
        quality = profile.relative_quality()
        return Discriminator(cluster.discriminator, quality, workload.prompt, rng("discriminator"))

    def cache() -> SimulatedCache | FillingCache | None:
        if isinstance(cluster.cache, FillingCacheConfig):
            return filling_cache(scene, cluster.cache, trace, workload, seed)
        similarity = profile.similarity()
        if similarity is None:
            return None
        deepest = max(v.skipped_steps for v in profile.variants)
        return SimulatedCache(cluster.cache, similarity, deepest, rng("cache"))

    service = cache()
    host = SimulatedCluster(
        engine,
        workload.arrival_s + cluster.dispatch_s,
        ServiceTimes.of(hardware or profile, len(trace), rng("service"), scene.kinds),
        LoadTimes(profile, rng("loads"), scene.kinds),
        service,
        discriminator(),
        env=env,
        max_wait_s=experiment.max_wait_slos * scene.slo_s if experiment.drop == "never" else float("inf"),
    )
    for fault, fault_rng in zip(cluster.faults, rng("faults").spawn(len(cluster.faults)), strict=True):
        faults.start(fault, host, cluster.workers, fault_rng)
    host.run()
    told = service.record() if isinstance(service, FillingCache) else None
    return replace(record_of(scene, engine, workload, host.loads, host.faults, told), planning_s=planning_s)


def hindsight(scene: Scene, trace: Trace, seed: int) -> Bound:
    """What no policy can exceed in :func:`simulate` with the same trace and seed."""
    cluster = scene.experiment.cluster
    workload = scene.workload(trace, seed)
    service = ServiceTimes.of(scene.profile, len(trace), stream(seed, "service"), scene.kinds)
    # A worker that is sped up for a while may do everything at that speed.
    fastest = faults.fastest(cluster.faults)
    limit_s = (scene.slo_s - cluster.dispatch_s) / fastest
    work_s, workers = pooled_work_s(
        [least_work_s(times_s, limit_s) * fastest for times_s in service.least()],
        [kind.workers for kind in scene.kinds] or [cluster.workers],
    )
    return quality_bound(
        workload.arrival_s + cluster.dispatch_s,
        workload.deadline_s,
        workload.prompt,
        scene.profile.relative_quality(),
        work_s,
        workers,
        draw=np.array(service.draw, dtype=np.int64),
    )


def record_of(
    scene: Scene,
    engine: Engine,
    workload: Workload,
    loads: list[LoadRecord],
    faults: list[FaultRecord],
    cache: CacheRecord | None = None,
) -> RunRecord:
    """Put the columns of a run together and look up what no policy may: the quality of what was served."""
    profile = scene.profile
    columns = engine.log.columns(workload.deadline_s)
    variant, outcome = columns["variant"], columns["outcome"]
    # Each request of a batch of n stands for an n-th of the time that the batch took.
    busy_s = float(np.nansum((columns["finish_s"] - columns["start_s"]) / np.maximum(columns["batch_size"], 1)))
    busy_s += engine.wasted_s + engine.cascade.passed_on_s
    served = (outcome == Outcome.ON_TIME) | (outcome == Outcome.LATE)
    relative = np.full(len(variant), np.nan)
    to_base = np.full(len(variant), np.nan)
    relative[served] = profile.relative_quality()[workload.prompt[served], variant[served]]
    to_base[served] = profile.quality_relative_to_base()[workload.prompt[served], variant[served]]
    return RunRecord(
        variants=tuple(v.name for v in profile.variants),
        prompts=profile.prompts,
        reasons=tuple(engine.log.reasons),
        arrival_s=workload.arrival_s,
        deadline_s=workload.deadline_s,
        prompt=workload.prompt,
        relative_quality=relative,
        quality_relative_to_base=to_base,
        duration_s=workload.duration_s,
        workers=len(engine.workers),
        busy_s=busy_s,
        attempts=engine.log.attempts(),
        loads=loads,
        plans=engine.floor.plans,
        faults=faults,
        cache=cache,
        **columns,
    )
