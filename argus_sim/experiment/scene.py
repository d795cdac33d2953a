"""What an experiment plays with, loaded: profile, catalog, traces, policies.

Everything that several runs share (the profile, the predictors) is made once per process.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Final, Literal

import numpy as np

from argus_sim.core import affinity
from argus_sim.core.catalog import Catalog, Kind
from argus_sim.core.policy import Policy, Setup
from argus_sim.errors import InputError
from argus_sim.experiment import foreign
from argus_sim.experiment.config import Experiment, expand
from argus_sim.experiment.sections import PerfectPredictor, PolicyConfig, ProfileConfig, TraceConfig
from argus_sim.importers import import_trace
from argus_sim.policies import registry
from argus_sim.profile import Profile
from argus_sim.profile.changes import ProfileChanges
from argus_sim.profile.importing import import_profile
from argus_sim.simulation.discriminator import Discriminator
from argus_sim.textfile import texts_in
from argus_sim.trace import Trace, find_trace, is_model
from argus_sim.trace.arrivals import generate, generate_file
from argus_sim.workload import Workload, stream
from argus_sim.workload.prompts import RecordedTexts
from argus_sim.workload.stand_ins import with_stand_ins

#: Of a period: each is a step of the simulation, and a run is to end.
_SHORTEST_S: Final = 0.001


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
        slo_s = experiment.slo.of(profile.latency(profile.base, 1).mean_s)
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
            streams = rng.spawn(len(config.superpose))  # else the parts' provenances would name the same one
            first, *others = map(self._trace, config.superpose, streams)
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
                files = {key: expand(file, where=where) for key, file in config.beside().items()}
                trace = import_trace(config.format, path, rng=rng, **config.options | files)
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
            rng = stream(seed, "judged")
            judged = Discriminator(experiment.cluster.discriminator, quality, predictor.train, rng).of_all()
        setup = Setup(
            catalog=self.catalog,
            workers=experiment.cluster.workers,
            slo_s=self.slo_s,
            rng=stream(seed, "policy"),
            predictor=predictor,
            future_s=None if config.forecast == "own" or trace is None else trace.arrival_s,
            judged=judged,
        )
        try:
            policy = kind(setup, params)
        except (Exception, SystemExit) as error:
            if (what := foreign.raised(kind, error)) is None:
                raise
            raise InputError(what, where=where) from error
        for name in ("period_s", "monitor_s"):
            every_s = getattr(policy, name)
            if every_s is not None and not every_s >= _SHORTEST_S:
                raise InputError(
                    f"{name} is {every_s!r}; allowed are seconds from {_SHORTEST_S:g} on, or None", where=where
                )
        return policy


# -- made once per process ---------------------------------------------------------------------------------


def forget() -> None:
    """Read profiles anew from now on: their files may have changed."""
    _load_profile.cache_clear()
    _import_profile.cache_clear()
    _changed.cache_clear()
    _predictors.cache_clear()
    _recorded.cache_clear()


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
    config = experiment.profile.with_paths(lambda file, _: str(expand(file, where=where)))
    return _import_profile(config.model_dump_json())  # as text: options may be lists and mappings


@lru_cache(maxsize=8)
def _load_profile(name_or_path: str) -> Profile:
    return Profile.load(name_or_path)


@lru_cache(maxsize=8)
def _import_profile(text: str) -> Profile:
    config = ProfileConfig.model_validate_json(text)
    profile: Profile = import_profile(config.format, config.file, **config.options)
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
