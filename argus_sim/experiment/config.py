"""An experiment: which policies replay which traces on which cluster, as YAML says it.

The schema is these classes: every field that a YAML file may have is a field here, and an unknown one is an
error that names the nearest.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from argus_sim.core.batching import DropRule
from argus_sim.errors import InputError, did_you_mean
from argus_sim.experiment.sections import (
    Cluster,
    Count,
    DropFactor,
    Name,
    Number,
    PolicyConfig,
    Positive,
    ProfileConfig,
    Section,
    Slo,
    Sweep,
    TraceConfig,
    named,
)
from argus_sim.experiment.settings import input_error, override, put, read_yaml
from argus_sim.policies import registry
from argus_sim.profile.changes import ProfileChanges
from argus_sim.simulation.filling import FillingCacheConfig
from argus_sim.workload.prompts import PromptsConfig

if TYPE_CHECKING:
    from argus_sim.experiment.results import Results


class Experiment(Section):
    """A whole experiment; see the classes of its fields.

    Attributes:
        seed: All random numbers come from it: the runs have the seeds ``seed``, ``seed + 1``, ...
        replications: Runs of each policy on each trace, each with a seed of its own.
        prompts: How prompts are drawn; by default independently and uniformly from the test prompts.
        drop: When waiting requests are given up: ``late`` (could not finish by the deadline), ``never``, or
            ``{factor: x}``.
        window_s: Resolution of the timeline.
        bound: Compute the hindsight bound of each trace and every policy's share of it.
        max_wait_slos: A run is stopped as hopeless when a request has waited this many SLOs.
        planning_times: Record how long each plan took on this machine; no two runs then have the same bytes.
        profile_changes: What if the profile were different.
        sweep: Vary some of all this.
    """

    name: Name
    description: str = ""
    seed: Annotated[int, Number, Field(ge=0)] = 1
    replications: Count = 1
    profile: str | ProfileConfig
    traces: tuple[Annotated[TraceConfig, named("file")], ...] = Field(min_length=1)
    policies: tuple[Annotated[PolicyConfig, named("name")], ...] = Field(min_length=1)
    cluster: Cluster = Cluster()
    slo: Slo = Slo()
    prompts: PromptsConfig | None = None
    drop: Literal["late", "never"] | DropFactor = "late"
    window_s: Positive = 60.0
    bound: bool = True
    max_wait_slos: Positive = 100.0
    planning_times: bool = False
    profile_changes: ProfileChanges = ProfileChanges()
    sweep: Sweep | None = None

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        for kind, found in (
            ("trace", [t.name for t in self.traces]),
            ("policy label", [p.label for p in self.policies]),
        ):
            twice = {name for name in found if found.count(name) > 1}
            if twice:
                raise ValueError(f"{kind} {sorted(twice)[0]!r} appears twice; give one another name")
        taken = {"figures", "report.html", "summary.csv", "experiment.lock.yaml"}
        for policy in self.policies:
            if policy.label in taken:
                raise ValueError(f"policy label {policy.label!r} is taken by the results; give it another")
        return self

    @property
    def seeds(self) -> range:
        return range(self.seed, self.seed + self.replications)

    @property
    def drop_rule(self) -> DropRule:
        if isinstance(self.drop, DropFactor):
            return DropRule("factor", self.drop.factor)
        return DropRule(self.drop)

    @classmethod
    def load(cls, path: str | Path, overrides: Iterable[str] = (), *, to_run: bool = True) -> Experiment:
        """Read and check a YAML file.

        Args:
            path: An experiment, or the ``experiment.lock.yaml`` of a run.
            overrides: ``key.path=value`` each, the value as YAML; list items by number. With them, a file
                that is not there relative to ``path`` may be so relative to the current folder.
            to_run: Whether its policies must be there; results can be read without.

        Raises:
            InputError: Names the file, the field, what was found and what is allowed.
        """
        path = Path(path)
        data = read_yaml(path)
        if is_lock(data):
            data = data["experiment"]
        settings = list(overrides)
        for setting in settings:
            override(data, setting)
        folders = (path.parent, Path()) if settings else (path.parent,)
        return cls.check(data, where=str(path), folders=folders, to_run=to_run)

    def run(
        self,
        out: str | Path | None = None,
        *,
        jobs: int | None = None,
        resume: bool = False,
        report: bool = True,
    ) -> Results:
        """Run it, as ``argus-sim run`` does; see :func:`argus_sim.experiment.runner.run_experiment`.

        Args:
            out: The folder for the results; ``runs/NAME`` by default. An earlier run's folder is replaced.
            jobs: Processes; as many as there are cores by default.
            resume: Keep the runs that are finished.
            report: Draw the figures and write ``report.html``; many experiments in a row may not need them.

        Raises:
            InputError: Something is wrong with the experiment or one of its inputs.
        """
        from argus_sim.experiment.runner import run_experiment

        where = Path(out or Path("runs") / self.name)
        return run_experiment(self, where, jobs=jobs, resume=resume, report=report)

    @classmethod
    def check(
        cls, data: dict[str, Any], *, where: str, folders: Sequence[Path] = (Path(),), to_run: bool = True
    ) -> Experiment:
        """Validate the content of an experiment file; paths are relative to the first folder that has them."""
        try:
            experiment = cls.model_validate(data)
        except ValidationError as error:
            raise input_error(error, cls, data, where) from None
        for index, policy in enumerate(experiment.policies if to_run else ()):
            field = f"{where}: policies.{index}"
            found = registry.find(policy.name, where=f"{field}.name")
            registry.parameters(found, policy.params, where=f"{field}.params")
            if policy.forecast == "perfect" and not found.forecasts:
                raise InputError(f"policy {policy.name!r} does not forecast", where=f"{field}.forecast")
            if policy.forecast == "perfect" and "forecast" in policy.params:
                message = "has no effect beside forecast: perfect of the policy; leave one of them out"
                raise InputError(message, where=f"{field}.params.forecast")
            if len(experiment.cluster.kinds) > 1 and not found.mixes:
                message = f"policy {policy.name!r} takes all GPUs to be of one kind; cluster.kinds names several"
                raise InputError(message, where=f"{field}.name")
            if policy.predictor != "text" and not found.predicts:
                raise InputError(f"policy {policy.name!r} does not predict quality", where=f"{field}.predictor")
        experiment = experiment._with_paths_from(folders)
        experiment.points(where=where, to_run=to_run)
        return experiment

    def points(self, *, where: str = "sweep", to_run: bool = True) -> list[Point]:
        """The variants of a sweep; none without one. ``to_run`` is that of :meth:`load`.

        Raises:
            InputError: A value makes no sound experiment.
        """
        if self.sweep is None:
            return []
        data = self.model_dump(mode="json", exclude={"sweep"})
        axes = self.sweep.axes
        if self.sweep.grid:
            combinations = [
                dict(zip(axes, labels, strict=True))
                for labels in itertools.product(*(axis.labelled for axis in axes.values()))
            ]
        else:
            combinations = [{name: label} for name, axis in axes.items() for label in axis.labelled]
        return [self._point(data, labels, where, to_run) for labels in combinations]

    def _point(self, data: dict[str, Any], labels: dict[str, str], where: str, to_run: bool) -> Point:
        assert self.sweep is not None
        name = ",".join(f"{axis}={label}" for axis, label in labels.items())
        where = f"{where}: sweep {name}"
        data = deepcopy(data)
        # Who runs is settled last: keys name policies by their number.
        wanted = [axis.policies for axis in map(self.sweep.axes.__getitem__, labels) if axis.policies is not None]
        for axis, label in labels.items():
            for key in self.sweep.axes[axis].keys:
                put(data, key, self.sweep.axes[axis].labelled[label], where=where)
        known = [policy.label for policy in self.policies]
        for policy in (label for labels_ in wanted for label in labels_):
            if policy not in known:
                raise InputError(f"no policy {policy!r}{did_you_mean(policy, known)}", where=where)
        data["policies"] = [p for p in data["policies"] if all(p["label"] in some for some in wanted)]
        experiment = Experiment.check(data, where=where, to_run=to_run)
        if experiment != Experiment.check(data, where=where, folders=(Path("/"),), to_run=to_run):
            raise InputError("a path in a sweep must be absolute, a shipped name, or a ${VARIABLE}", where=where)
        return Point(name, labels, experiment)

    def _with_paths_from(self, folders: Sequence[Path]) -> Experiment:
        def absolute(file: str | None, *, or_name: bool) -> str | None:
            if file is None or file.startswith("${") or Path(file).is_absolute():
                return file
            if or_name and "/" not in file and not Path(file).suffix:
                return file  # a shipped name
            places = [folder / file for folder in folders]
            return str(next((place for place in places if place.exists()), places[0]).resolve())

        def there(file: str, or_name: bool) -> str:
            return absolute(file, or_name=or_name) or file

        profile = self.profile
        profile = profile.with_paths(there) if isinstance(profile, ProfileConfig) else there(profile, True)
        traces = tuple(trace.with_paths(there) for trace in self.traces)
        kinds = tuple(
            k.model_copy(update={"profile": absolute(k.profile, or_name=True)}) for k in self.cluster.kinds
        )
        cache = self.cluster.cache
        if isinstance(cache, FillingCacheConfig):
            cache = cache.with_paths(lambda file: absolute(file, or_name=False))
        prompts = self.prompts
        if prompts is not None and prompts.recorded is not None:
            log = prompts.recorded.model_copy(update={"file": absolute(prompts.recorded.file, or_name=False)})
            prompts = prompts.model_copy(update={"recorded": log})
        cluster = self.cluster.model_copy(update={"kinds": kinds, "cache": cache})
        changed = {"profile": profile, "traces": traces, "cluster": cluster, "prompts": prompts}
        return self.model_copy(update=changed)


@dataclass(frozen=True)
class Point:
    """One variant of an experiment with a sweep.

    Attributes:
        name: Of its folder.
        values: Axis -> what the value is called.
        experiment: Without the sweep.
    """

    name: str
    values: dict[str, str]
    experiment: Experiment


def is_lock(data: Any) -> bool:
    """Whether the content of a YAML file is that of an ``experiment.lock.yaml``."""
    return isinstance(data, dict) and set(data) >= {"experiment", "versions"}


def expand(file: str, *, where: str) -> Path:
    """Replace ``${VARIABLES}`` in a path; :class:`InputError` names one that is not set."""

    def value(match: re.Match[str]) -> str:
        name = match.group(1)
        if name not in os.environ:
            raise InputError(f"{file!r} needs the environment variable {name}, which is not set", where=where)
        return os.environ[name]

    return Path(re.sub(r"\$\{(\w+)\}", value, file))
