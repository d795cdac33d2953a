"""One run: one policy, one trace, one seed, from its configuration to its record.

Everything that several runs share (the profile, the predictors, a trace) is made once per process.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np

from argus_sim.core import affinity
from argus_sim.core.bound import Bound, least_work_s, pooled_work_s, quality_bound
from argus_sim.core.catalog import Catalog, Kind
from argus_sim.core.engine import Engine
from argus_sim.core.policy import Policy, Setup
from argus_sim.domain import Outcome
from argus_sim.errors import InputError
from argus_sim.experiment import cache_setup
from argus_sim.experiment.cache_setup import filling_cache
from argus_sim.experiment.config import Experiment, PolicyConfig, TraceConfig, expand
from argus_sim.experiment.planning_times import time_plans
from argus_sim.experiment.sections import PerfectPredictor
from argus_sim.importers import import_trace
from argus_sim.policies import registry
from argus_sim.profile import Profile
from argus_sim.profile.changes import ProfileChanges
from argus_sim.profile.importing import import_profile
from argus_sim.provenance import Provenance
from argus_sim.record import CacheRecord, FaultRecord, LoadRecord, RunRecord
from argus_sim.simulation import faults
from argus_sim.simulation.cluster import SimulatedCluster
from argus_sim.simulation.discriminator import RECORDED, Discriminator, DiscriminatorConfig
from argus_sim.simulation.environment import Environment
from argus_sim.simulation.filling import FillingCache, FillingCacheConfig
from argus_sim.simulation.network import SimulatedCache
from argus_sim.simulation.service import LoadTimes, ServiceTimes
from argus_sim.textfile import texts_in
from argus_sim.trace import Trace, find_trace, is_model
from argus_sim.trace.arrivals import generate, generate_file
from argus_sim.workload import Workload, stream
from argus_sim.workload.prompts import RecordedTexts
from argus_sim.workload.stand_ins import with_stand_ins


@dataclass(frozen=True)
class Scene:
    """What an experiment plays with, loaded: its profile and what follows from it.

    Attributes:
        kinds: Of GPUs, where the cluster has kinds of its own.
        lessons: What predictors learn from, if not ``profile``: the same qualities, whatever the latencies are.
    """

    experiment: Experiment
    profile: Profile
    catalog: Catalog
    slo_s: float
    kinds: tuple[Kind, ...] = ()
    lessons: Profile | None = None

    @classmethod
    def of(cls, experiment: Experiment) -> Scene:
        """Load the profiles; :class:`InputError` says what is wrong with them.

        Raises:
            InputError: A profile is not there or not sound, or has not the variants that it must have.
        """
        profile = _profile(experiment)
        kinds = tuple(_kind(experiment, k) for k in range(len(experiment.cluster.kinds)))
        catalog = Catalog.of(profile, kinds, where=f"experiment {experiment.name!r}: cluster.kinds")
        slo = experiment.slo
        base_s = profile.latency(profile.base, 1).mean_s
        slo_s = slo.seconds or slo.multiplier * base_s
        return cls(experiment, profile, catalog, slo_s, kinds, _lessons(experiment))

    @property
    def capacity_per_s(self) -> float:
        """Images/s that the whole cluster serves at the base variant."""
        return self.catalog.cluster_throughput_per_s(
            self.catalog.base, self.experiment.cluster.workers, limit_s=self.slo_s
        )

    def trace(self, config: TraceConfig, seed: int) -> Trace:
        """The trace as the configuration wants it, rescaled."""
        return self._trace(config, stream(seed, "arrivals"))

    def _trace(self, config: TraceConfig, rng: np.random.Generator) -> Trace:
        where = f"experiment {self.experiment.name!r}: trace {config.name!r}"
        if config.superpose:
            first, *others = (self._trace(part, rng) for part in config.superpose)
            trace = replace(first.superpose(*others), name=config.name)
        elif config.generate is not None:
            trace = generate(config.generate, rng, name=config.name)
        else:
            assert config.file is not None
            path = expand(config.file, where=where)
            if config.format is None:
                path = find_trace(path)
                trace = generate_file(path, rng, name=config.name) if is_model(path) else Trace.read(path)
            else:
                trace = import_trace(config.format, path, rng=rng, **config.options)
        if config.clip_s is not None:
            trace = trace.clip(*config.clip_s)
        if config.scale_time is not None:
            trace = trace.scale_time(config.scale_time)
        if config.scale_rate is not None:
            trace = trace.scale_rate(config.scale_rate, rng)
        if config.peak is not None:
            if config.peak.window_s > trace.duration_s:
                longer = f"window_s is {config.peak.window_s:g} s, the trace lasts {trace.duration_s:g} s"
                raise InputError(longer, where=f"{where}: peak")
            factor = config.peak.of_capacity * self.capacity_per_s / trace.peak_per_s(config.peak.window_s)
            trace = trace.scale_time(1.0 / factor) if config.peak.by == "time" else trace.scale_rate(factor, rng)
        return trace

    def workload(self, trace: Trace, seed: int) -> Workload:
        """The requests of a run."""
        rng = stream(seed, "prompts")
        prompts = self.experiment.prompts
        return Workload.of(trace, self.profile, self.slo_s, rng, prompts, self.recorded(trace))

    def rehearse(self, trace: Trace, seed: int) -> None:
        """:class:`InputError` where a run's prompts or its cache could not be made."""
        if self.experiment.prompts is not None and self.experiment.prompts.recorded is not None:
            self.workload(trace, seed)
        if isinstance(self.experiment.cluster.cache, FillingCacheConfig):
            filling_cache(self, self.experiment.cluster.cache, trace, self.workload(trace, seed), seed)

    def recorded(self, trace: Trace) -> RecordedTexts | None:
        """The texts of the log that the experiment takes its prompts from, if it does.

        Raises:
            InputError: The file is none of texts, or the trace has none.
        """
        config = self.experiment.prompts.recorded if self.experiment.prompts else None
        if config is None:
            return None
        where = f"experiment {self.experiment.name!r}: prompts.recorded"
        if config.file is not None:
            path = str(expand(config.file, where=where))
            return _recorded(self.lessons or self.profile, path, config.column, config.start)
        if trace.prompt is None:
            raise InputError(f"trace {trace.name!r} has no texts; name a file that has", where=where)
        lessons = self.lessons or self.profile
        predictor = _predictors(lessons, "text")
        return with_stand_ins(trace.prompt, lessons, predictor, config.start, f"trace {trace.name!r}")

    def assumptions(self) -> list[tuple[str, Provenance]]:
        """What the cluster adds to what profile and traces rest on."""
        experiment = self.experiment
        kinds = [(p, registry.find(p.name, where=f"policy {p.label!r}")) for p in experiment.policies]
        judged = [
            config.label
            for config, kind in kinds
            if kind.may_judge(registry.parameters(kind, config.params, where=f"policy {config.label!r}"))
        ]
        hardware = [
            (f"kind {kind.name}: {table}", part)
            for kind in self.kinds
            for table in ("latency", "loads")
            for part in kind.hardware.provenance_of(table)
        ]
        if isinstance(experiment.cluster.cache, FillingCacheConfig):
            hardware += cache_setup.assumptions(self, experiment.cluster.cache)
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

    def policy(
        self, config: PolicyConfig, seed: int, trace: Trace | None = None, *, judge: bool = True
    ) -> Policy:
        """A fresh policy, knowing what a policy may know.

        Args:
            config: Which.
            seed: Of the run.
            trace: For a perfect forecast.
            judge: Whether there is a discriminator for cascades.
        """
        experiment = self.experiment
        where = f"experiment {experiment.name!r}: policy {config.label!r}"
        kind = registry.find(config.name, where=where)
        params = registry.parameters(kind, config.params, where=where)
        predictor = _predictor(self.lessons or self.profile, config.predictor, seed)
        judged = None
        if judge and kind.may_judge(params):
            quality = (self.lessons or self.profile).relative_quality()
            known, rng = predictor.train, stream(seed, "judged")
            judged = Discriminator(experiment.cluster.discriminator, quality, len(known), rng).of_all(known)
        setup = Setup(
            catalog=self.catalog,
            workers=experiment.cluster.workers,
            slo_s=self.slo_s,
            rng=stream(seed, "policy"),
            predictor=predictor,
            future_s=None if config.forecast == "own" or trace is None else trace.arrival_s,
            judged=judged,
        )
        return kind(setup, params)


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
        return Discriminator(cluster.discriminator, profile.relative_quality(), len(trace), rng("discriminator"))

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
    fastest = min([1.0, *(f.factor for f in cluster.faults if isinstance(f, faults.Slowdown))])
    limit_s = (scene.slo_s - cluster.dispatch_s) / fastest
    work_s, workers = pooled_work_s(
        [least_work_s(times_s, limit_s) * fastest for times_s in service.kinds],
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


# -- made once per process ---------------------------------------------------------------------------------


def forget() -> None:
    """Read profiles anew from now on: their files may have changed."""
    _load_profile.cache_clear()
    _import_profile.cache_clear()
    _changed.cache_clear()
    _predictors.cache_clear()
    _recorded.cache_clear()
    cache_setup.forget()


def _profile(experiment: Experiment) -> Profile:
    where = f"experiment {experiment.name!r}: profile"
    return _changed(_original(experiment, where), experiment.profile_changes, where)


def _lessons(experiment: Experiment) -> Profile:
    """The profile with changes to its qualities alone: often the same for many points of a sweep."""
    where = f"experiment {experiment.name!r}: profile"
    changes = ProfileChanges(quality_spread=experiment.profile_changes.quality_spread)
    return _changed(_original(experiment, where), changes, where)


def _kind(experiment: Experiment, index: int) -> Kind:
    """A kind of GPUs: a profile of its own or the experiment's, at its speed."""
    config = experiment.cluster.kinds[index]
    where = f"experiment {experiment.name!r}: cluster.kinds.{index}"
    if config.profile is None:
        hardware = _original(experiment, where)
    else:
        hardware = _load_profile(str(expand(config.profile, where=where)))
    hardware = _changed(hardware, experiment.profile_changes, where)
    hardware = _changed(hardware, ProfileChanges(latency_factor=1.0 / config.speed), where)
    return Kind(config.name, config.workers, hardware)


def _original(experiment: Experiment, where: str) -> Profile:
    """The experiment's profile before any changes."""
    if isinstance(experiment.profile, str):
        return _load_profile(str(expand(experiment.profile, where=where)))
    config = experiment.profile
    options = {
        key: str(expand(value, where=where)) if isinstance(value, str) else value
        for key, value in config.options.items()
    }
    return _import_profile(config.format, str(expand(config.file, where=where)), tuple(sorted(options.items())))


@lru_cache(maxsize=8)
def _load_profile(name_or_path: str) -> Profile:
    return Profile.load(name_or_path)


@lru_cache(maxsize=8)
def _import_profile(format: str, file: str, options: tuple[tuple[str, object], ...]) -> Profile:
    profile: Profile = import_profile(format, file, **dict(options))
    return profile


@lru_cache(maxsize=32)
def _changed(profile: Profile, changes: ProfileChanges, where: str) -> Profile:
    try:
        return changes.apply(profile)
    except InputError as error:
        raise InputError(str(error), where=where) from None


@lru_cache(maxsize=4)
def _recorded(profile: Profile, path: str, column: str, start: int) -> RecordedTexts:
    return with_stand_ins(texts_in(Path(path), column), profile, _predictors(profile, "text"), start, path)


def _predictor(
    profile: Profile, config: Literal["text", "perfect"] | PerfectPredictor, seed: int
) -> affinity.QualityPredictor:
    if isinstance(config, str):
        return _predictors(profile, config)
    return affinity.blurred(profile, config.accuracy, stream(seed, "predictor"))


@lru_cache(maxsize=16)
def _predictors(profile: Profile, kind: str) -> affinity.QualityPredictor:
    return affinity.PREDICTORS[kind](profile)
