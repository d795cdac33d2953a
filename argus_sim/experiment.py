"""An experiment: which policies replay which traces on which cluster, as YAML says it.

The schema is these classes: every field that a YAML file may have is a field here, and an unknown one is an
error that names the nearest.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from argus_sim.arrivals import ArrivalSpec
from argus_sim.core.batching import DropRule
from argus_sim.errors import InputError, did_you_mean
from argus_sim.policies import registry
from argus_sim.simulation.discriminator import DiscriminatorConfig
from argus_sim.simulation.faults import Fault
from argus_sim.simulation.network import CacheConfig

if TYPE_CHECKING:
    from argus_sim.results import Results

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Peak(_Section):
    """Rescale a trace so that its peak meets the cluster.

    Attributes:
        of_capacity: The peak rate wanted, as a multiple of what the cluster serves at the base variant.
        window_s: The peak is the highest rate over windows of this length.
        by: ``rate`` drops or repeats arrivals and keeps the time scale; ``time`` stretches or compresses time
            and keeps the arrivals.
    """

    of_capacity: Positive
    window_s: Positive = 300.0
    by: Literal["rate", "time"] = "rate"


class TraceConfig(_Section):
    """One trace: a file, or a generator.

    Attributes:
        name: How results call it.
        file: A shipped name, or a path (relative to the experiment's file; ``${VARIABLES}`` are replaced).
        format: The public format of the file; without it the file is one of argus-sim's own.
        options: Parameters of the format.
        generate: Arrivals to generate, in place of a file; each seed gets its own.
        clip_s: Keep only arrivals between these times.
        scale_time, scale_rate: Multiply all times, or the number of arrivals.
        peak: Rescale to the cluster.
    """

    name: Name
    file: str | None = None
    format: str | None = None
    options: dict[str, Any] = {}
    generate: ArrivalSpec | None = None
    clip_s: tuple[NonNegative, Positive] | None = None
    scale_time: Positive | None = None
    scale_rate: Positive | None = None
    peak: Peak | None = None

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.file is None) == (self.generate is None):
            raise ValueError("a trace needs either file or generate")
        return self


class ProfileConfig(_Section):
    """A profile made from a public data set of ratings when the experiment runs.

    Attributes:
        format: The public format, e.g. ``genai-bench``.
        file: The data set.
        options: Parameters of the format.
    """

    format: str
    file: str
    options: dict[str, Any] = {}


class PolicyConfig(_Section):
    """One policy.

    Attributes:
        name: Of an installed policy, or ``package.module:Class``.
        label: How results call it; the name by default. Needed to run a policy twice.
        params: Its parameters.
        predictor: What it may know of a prompt's quality: ``text`` is learnt from the training prompts,
            ``perfect`` is past the oracle boundary.
    """

    name: str
    label: Name = ""
    params: dict[str, Any] = {}
    predictor: Literal["text", "perfect"] = "text"

    @model_validator(mode="before")
    @classmethod
    def _label(cls, data: Any) -> Any:
        if isinstance(data, dict) and "label" not in data and isinstance(data.get("name"), str):
            return {**data, "label": data["name"].rsplit(":")[-1]}
        return data


class Cluster(_Section):
    """The machines.

    Attributes:
        workers: GPUs.
        dispatch_s: Time from a request's arrival to the engine: network and routing decision.
        staleness_s: How old the queue lengths may be that a policy sees.
        cache: The approximate cache.
        discriminator: What a cascade judges images with.
        faults: What goes wrong.
    """

    workers: Annotated[int, Field(ge=1, le=100_000)] = 8
    dispatch_s: NonNegative = 0.0
    staleness_s: NonNegative = 0.0
    cache: CacheConfig = CacheConfig()
    discriminator: DiscriminatorConfig = DiscriminatorConfig()
    faults: tuple[Fault, ...] = ()

    @model_validator(mode="after")
    def _workers_exist(self) -> Self:
        for fault in self.faults:
            for worker in fault.workers or ():
                if not 0 <= worker < self.workers:
                    raise ValueError(f"there is no worker {worker}; they are 0 to {self.workers - 1}")
        return self


class Slo(_Section):
    """The deadline of a request: in seconds, or as a multiple of the base variant's batch-1 latency."""

    seconds: Positive | None = None
    multiplier: Positive = 3.0


class DropFactor(_Section):
    """Give a request up once this many times its SLO has passed."""

    factor: Annotated[float, Field(ge=1, allow_inf_nan=False)]


def _named(key: str) -> BeforeValidator:
    """A bare string stands for ``{key: string}``, with the string as name as well."""

    def expand(value: Any) -> Any:
        return {"name": value, key: value} if isinstance(value, str) else value

    return BeforeValidator(expand)


class Experiment(_Section):
    """A whole experiment; see the classes of its fields.

    Attributes:
        seed: All random numbers come from it: the runs have the seeds ``seed``, ``seed + 1``, ...
        replications: Runs of each policy on each trace, each with a seed of its own.
        drop: When waiting requests are given up: ``late`` (could not finish by the deadline), ``never``, or
            ``{factor: x}``.
        window_s: Resolution of the timeline.
        bound: Compute the hindsight bound of each trace and every policy's share of it.
        max_wait_slos: A run is stopped as hopeless when a request has waited this many SLOs.
    """

    name: Name
    description: str = ""
    seed: Annotated[int, Field(ge=0)] = 1
    replications: Annotated[int, Field(ge=1)] = 1
    profile: str | ProfileConfig
    traces: tuple[Annotated[TraceConfig, _named("file")], ...] = Field(min_length=1)
    policies: tuple[Annotated[PolicyConfig, _named("name")], ...] = Field(min_length=1)
    cluster: Cluster = Cluster()
    slo: Slo = Slo()
    drop: Literal["late", "never"] | DropFactor = "late"
    window_s: Positive = 60.0
    bound: bool = True
    max_wait_slos: Positive = 100.0

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
    def load(cls, path: str | Path, overrides: Iterable[str] = ()) -> Experiment:
        """Read and check a YAML file.

        Args:
            path: An experiment, or the ``experiment.lock.yaml`` of a run.
            overrides: ``key.path=value`` each, the value as YAML; list items by number.

        Raises:
            InputError: Names the file, the field, what was found and what is allowed.
        """
        path = Path(path)
        data = read_yaml(path)
        if is_lock(data):
            data = data["experiment"]
        for override in overrides:
            _override(data, override)
        return cls.check(data, where=str(path), folder=path.parent)

    def run(
        self,
        out: str | Path | None = None,
        *,
        jobs: int | None = None,
        resume: bool = False,
        report: bool = True,
    ) -> Results:
        """Run it, as ``argus-sim run`` does; see :func:`argus_sim.runner.run_experiment`.

        Args:
            out: The folder for the results; ``runs/NAME`` by default. An earlier run's folder is replaced.
            jobs: Processes; as many as there are cores by default.
            resume: Keep the runs that are finished.
            report: Draw the figures and write ``report.html``; a sweep of many experiments may not need them.

        Raises:
            InputError: Something is wrong with the experiment or one of its inputs.
        """
        from argus_sim.runner import run_experiment

        return run_experiment(
            self, Path(out or Path("runs") / self.name), jobs=jobs, resume=resume, report=report
        )

    @classmethod
    def check(cls, data: dict[str, Any], *, where: str, folder: Path = Path()) -> Experiment:
        """Validate the content of an experiment file; paths in it are relative to ``folder``."""
        try:
            experiment = cls.model_validate(data)
        except ValidationError as error:
            raise _input_error(error, cls, data, where) from None
        for index, policy in enumerate(experiment.policies):
            field = f"{where}: policies.{index}"
            found = registry.find(policy.name, where=f"{field}.name")
            registry.parameters(found, policy.params, where=f"{field}.params")
        return experiment._with_paths_from(folder)

    def _with_paths_from(self, folder: Path) -> Experiment:
        def absolute(file: str | None, *, or_name: bool) -> str | None:
            if file is None or file.startswith("${") or Path(file).is_absolute():
                return file
            if or_name and "/" not in file and not Path(file).suffix:
                return file  # a shipped name
            return str((folder / file).resolve())

        profile = self.profile
        if isinstance(profile, ProfileConfig):
            profile = profile.model_copy(update={"file": absolute(profile.file, or_name=False)})
        else:
            profile = absolute(profile, or_name=True) or profile
        traces = tuple(
            t.model_copy(update={"file": absolute(t.file, or_name=t.format is None)}) for t in self.traces
        )
        return self.model_copy(update={"profile": profile, "traces": traces})


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


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; :class:`InputError` names the file and the line."""
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError("there is no such file", where=str(path)) from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot be read: {error}", where=str(path)) from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark is not None else ""
        raise InputError(f"not YAML: {getattr(error, 'problem', error)}", where=f"{path}{line}") from None
    if not isinstance(data, dict):
        found = "nothing" if data is None else f"a {type(data).__name__}"
        raise InputError(f"an experiment is a mapping of keys to values, found {found}", where=str(path))
    return data


def _override(data: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    where = f"--set {override}"
    if not equals or not key:
        raise InputError("must look like key=value or section.key=value", where=where)
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise InputError(f"the value {text!r} is not YAML", where=where) from None
    parts = key.split(".")
    at: Any = data
    for depth, part in enumerate(parts):
        last = depth == len(parts) - 1
        if isinstance(at, list):
            if not part.isdigit() or int(part) >= len(at):
                items = f"{'.'.join(parts[:depth])} has items 0 to {len(at) - 1}"
                raise InputError(f"{items}, not {part!r}", where=where)
            if last:
                at[int(part)] = value
            elif isinstance(at[int(part)], str):
                name = at[int(part)]  # a trace or a policy in short
                at[int(part)] = {"name": name, "file": name} if parts[0] == "traces" else {"name": name}
            at = at[int(part)]
        elif isinstance(at, dict):
            if last:
                at[part] = value
            else:
                at = at.setdefault(part, {})
        else:
            raise InputError(f"{'.'.join(parts[:depth])} is a value, it has no {part!r}", where=where)


def _input_error(error: ValidationError, model: type[BaseModel], data: Any, where: str) -> InputError:
    """The first problem, with the YAML path, what was found, and the nearest allowed key."""
    problems = error.errors(include_url=False)
    # A misspelt key often leaves a required one missing: the misspelling is what to tell.
    first = next((p for p in problems if p["type"] == "extra_forbidden"), problems[0])
    path = _yaml_path(first["loc"], data)
    if first["type"] == "extra_forbidden":
        allowed = _fields_at(model, first["loc"][:-1])
        return InputError(
            f"unknown key {path[-1]!r}{did_you_mean(path[-1], allowed)}", where=f"{where}: {'.'.join(path)}"
        )
    if first["type"] == "union_tag_invalid":
        tag, expected = first["ctx"]["tag"], re.findall(r"'(.*?)'", first["ctx"]["expected_tags"])
        return InputError(
            f"unknown kind {tag!r}{did_you_mean(tag, expected)}", where=f"{where}: {'.'.join(path)}"
        )
    found = first["input"]
    text = "" if isinstance(found, dict) or first["type"] == "missing" else f"; found {found!r}"
    message = "is required" if first["type"] == "missing" else first["msg"].removeprefix("Value error, ")
    return InputError(f"{message}{text}", where=f"{where}: {'.'.join(path)}" if path else where)


def _yaml_path(location: tuple[int | str, ...], data: Any) -> list[str]:
    """The place in the YAML: pydantic also puts the names of the members of a union into it."""
    path: list[str] = []
    for depth, part in enumerate(location):
        inside = isinstance(data, dict) and part in data
        if inside or (isinstance(data, list) and isinstance(part, int)):
            data = data[part]
        elif not (isinstance(data, dict) and depth == len(location) - 1):
            continue
        path.append(str(part))
    return path


def _fields_at(model: Any, location: tuple[int | str, ...]) -> list[str]:
    """The fields of the section at a place in the YAML, followed through lists and unions."""
    for part in location:
        if isinstance(part, int):
            continue
        options = [m for m in _models(model) if part in m.model_fields]
        named = [m for m in _models(model) if m.__name__ == part or _kind(m) == part]
        if named:
            model = named[0]
        elif options:
            model = options[0].model_fields[part].annotation
        else:
            return []
    return sorted({name for m in _models(model) for name in m.model_fields})


def _kind(model: type[BaseModel]) -> str | None:
    field = model.model_fields.get("kind")
    choices = getattr(field.annotation, "__args__", ()) if field else ()
    return choices[0] if choices else None


def _models(annotation: Any) -> list[type[BaseModel]]:
    """All pydantic models within a type annotation."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    inner = getattr(annotation, "__value__", annotation)
    return [m for argument in getattr(inner, "__args__", ()) for m in _models(argument)]
