"""The sections of an experiment's YAML, one class each; :mod:`argus_sim.experiment.config` puts them together."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from argus_sim.simulation.discriminator import DiscriminatorConfig
from argus_sim.simulation.faults import Fault
from argus_sim.simulation.filling import FillingCacheConfig
from argus_sim.simulation.network import CacheConfig
from argus_sim.trace.arrivals import ArrivalSpec


def _number(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("must be a number")
    return value


#: True is no 1.
Number = BeforeValidator(_number)
Positive = Annotated[float, Number, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Number, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Number, Field(ge=1)]
Workers = Annotated[int, Number, Field(ge=1, le=100_000)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


def named(key: str) -> BeforeValidator:
    """A bare string stands for ``{key: string}``, with the string as name as well."""

    def expand(value: Any) -> Any:
        return {"name": value, key: value} if isinstance(value, str) else value

    return BeforeValidator(expand)


class Peak(Section):
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


class TraceConfig(Section):
    """One trace: a file, a generator, or several of them at once.

    Attributes:
        name: How results call it.
        file: A shipped name, or a path (relative to the experiment's file; ``${VARIABLES}`` are replaced). From
            a model (YAML), each seed gets its own arrivals.
        format: The public format of the file; without it the file is one of argus-sim's own.
        options: Parameters of the format.
        generate: Arrivals to generate, in place of a file; each seed gets its own.
        superpose: Traces whose arrivals are put together, in place of a file; they start at the same time, and
            the longest gives the length. Each may be rescaled by itself, and the whole as well.
        clip_s: Keep only arrivals between these times.
        scale_time, scale_rate: Multiply all times, or the number of arrivals.
        peak: Rescale to the cluster.
    """

    name: Name
    file: str | None = None
    format: str | None = None
    options: dict[str, Any] = {}
    generate: ArrivalSpec | None = None
    superpose: tuple[Annotated[TraceConfig, named("file")], ...] = ()
    clip_s: tuple[NonNegative, Positive] | None = None
    scale_time: Positive | None = None
    scale_rate: Positive | None = None
    peak: Peak | None = None

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.file is not None) + (self.generate is not None) + bool(self.superpose) != 1:
            raise ValueError("a trace needs one of file, generate and superpose")
        if self.format is not None and self.file is None:
            raise ValueError("format says how a file is read, and this trace has none")
        if self.options and self.format is None:
            raise ValueError("options are those of a format; name it, or leave them out")
        if self.scale_rate is not None and self.peak is not None and self.peak.by == "rate":
            raise ValueError(
                "peak (by: rate) scales the rate to the cluster, whatever scale_rate is; leave one out"
            )
        return self

    def parts(self) -> Iterator[TraceConfig]:
        """Itself and what it is put together from."""
        yield self
        for part in self.superpose:
            yield from part.parts()

    def beside(self) -> dict[str, str]:
        """The options that name files, and those files."""
        if not self.options or self.format is None:
            return {}
        # Imported here: it takes a while, and few traces have such options.
        from argus_sim.importers import file_options

        return {key: str(self.options[key]) for key in file_options(self.format) if self.options.get(key)}

    def with_paths(self, absolute: Callable[[str, bool], str]) -> TraceConfig:
        """The same with other paths, in its parts too.

        Args:
            absolute: Takes a path, and whether it may be the name of what is shipped.
        """
        changed = {
            "file": None if self.file is None else absolute(self.file, self.format is None),
            "options": self.options | {key: absolute(file, False) for key, file in self.beside().items()},
            "superpose": tuple(part.with_paths(absolute) for part in self.superpose),
        }
        return self.model_copy(update=changed)


class ProfileConfig(Section):
    """A profile made from a public data set of ratings when the experiment runs.

    Attributes:
        format: The public format, e.g. ``genai-bench``.
        file: The data set.
        options: Parameters of the format.
    """

    format: str
    file: str
    options: dict[str, Any] = {}

    def with_paths(self, absolute: Callable[[str, bool], str]) -> Self:
        """The same with other paths; see :meth:`TraceConfig.with_paths`."""
        may_be_name = {"latency_from": True, "loads_file": False}
        options = {
            key: absolute(value, may_be_name[key]) if key in may_be_name and isinstance(value, str) else value
            for key, value in self.options.items()
        }
        return self.model_copy(update={"file": absolute(self.file, False), "options": options})


class PerfectPredictor(Section):
    """Knows every prompt's quality, or confuses prompts to some degree.

    Attributes:
        accuracy: Correlation over prompts of predicted with true qualities; see
            :func:`argus_sim.core.affinity.blurred`.
    """

    kind: Literal["perfect"]
    accuracy: Annotated[float, Field(ge=0, le=1)] = 1.0


class PolicyConfig(Section):
    """One policy.

    Attributes:
        name: Of an installed policy, or ``package.module:Class``.
        label: How results call it; the name by default. Needed to run a policy twice.
        params: Its parameters.
        predictor: What it may know of a prompt's quality: ``text`` is learnt from the training prompts,
            ``perfect`` is past the oracle boundary, and so is a perfect one of less accuracy.
        forecast: ``perfect`` is past the oracle boundary, too: the policy knows all arrivals.
    """

    name: str
    label: Name = ""
    params: dict[str, Any] = {}
    predictor: Literal["text", "perfect"] | PerfectPredictor = "text"
    forecast: Literal["own", "perfect"] = "own"

    @model_validator(mode="before")
    @classmethod
    def _label(cls, data: Any) -> Any:
        if isinstance(data, dict) and "label" not in data and isinstance(data.get("name"), str):
            return {**data, "label": data["name"].rsplit(":")[-1]}
        return data


class KindConfig(Section):
    """Some GPUs that are alike, and other than the rest.

    Attributes:
        name: How results call them.
        workers: How many there are.
        profile: What batches and loads take on them, a shipped one or a folder; the experiment's by default. It
            must have the same variants. Its qualities do not count.
        speed: Batches take 1 / speed of what the profile says. Loads do not: they wait for a disk.
    """

    name: Name
    workers: Workers
    profile: str | None = None
    speed: Positive = 1.0


def _warm(data: Any) -> Any:
    """A cache that does not say of which kind it is, is a warm one."""
    return {"kind": "warm", **data} if isinstance(data, dict) else data


class Cluster(Section):
    """The machines.

    Attributes:
        workers: GPUs.
        kinds: GPUs of several kinds, in place of ``workers``. Those of the first kind have the first numbers.
        kind: Where a server's workers run: on its own machine (``local``), or where Ray has room for them
            (``ray``). All the same to a simulation, as are the next two.
        address: Of the Ray cluster to join, ``HOST:PORT`` or ``auto``; without it the server starts its own.
        cpus_per_worker: That Ray reserves; by default one, or as many as a worker has threads.
        dispatch_s: Time from a request's arrival to the engine: network and routing decision.
        staleness_s: How old the queue lengths may be that a policy sees.
        cache: The approximate cache: ``warm`` (every prompt has a neighbour; the default) or ``simulated`` (it
            fills, and what it holds decides).
        discriminator: What a cascade judges images with.
        faults: What goes wrong.
    """

    workers: Workers = 8
    kinds: tuple[KindConfig, ...] = ()
    kind: Literal["local", "ray"] = "local"
    address: str | None = None
    cpus_per_worker: Positive | None = None
    dispatch_s: NonNegative = 0.0
    staleness_s: NonNegative = 0.0
    cache: Annotated[CacheConfig | FillingCacheConfig, BeforeValidator(_warm), Field(discriminator="kind")] = (
        CacheConfig()
    )
    discriminator: DiscriminatorConfig = DiscriminatorConfig()
    faults: tuple[Fault, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _count(cls, data: Any) -> Any:
        """Where there are kinds, they say how many workers there are."""
        kinds = data.get("kinds") if isinstance(data, dict) else None
        if not kinds or "workers" in data:
            return data
        counts = [kind.get("workers") if isinstance(kind, dict) else None for kind in kinds]
        return {**data, "workers": sum(n for n in counts if isinstance(n, int)) or 1}

    @model_validator(mode="after")
    def _ray_s_alone(self) -> Self:
        for key in ("address", "cpus_per_worker"):
            if self.kind != "ray" and getattr(self, key) is not None:
                raise ValueError(f"{key} is for kind: ray")
        return self

    @model_validator(mode="after")
    def _kinds_add_up(self) -> Self:
        names = [kind.name for kind in self.kinds]
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise ValueError(f"kind {twice[0]!r} appears twice; give one another name")
        total = sum(kind.workers for kind in self.kinds)
        if self.kinds and total != self.workers:
            raise ValueError(f"workers is {self.workers}, but the kinds have {total}; leave workers out")
        return self

    @model_validator(mode="after")
    def _workers_exist(self) -> Self:
        for fault in self.faults:
            if fault.workers == ():
                raise ValueError(
                    f"a {fault.kind} fault names no worker; leave workers out, and it hits all of them"
                )
            named = fault.workers or ()
            for worker in named:
                if not 0 <= worker < self.workers:
                    raise ValueError(f"there is no worker {worker}; they are 0 to {self.workers - 1}")
                if named.count(worker) > 1:
                    raise ValueError(f"a {fault.kind} fault names worker {worker} twice")
        return self


class Slo(Section):
    """The deadline of a request: in seconds, or as a multiple of the base variant's batch-1 latency.

    Attributes:
        seconds: After the arrival.
        multiplier: Of that latency; 3 where neither is given.
    """

    seconds: Positive | None = None
    multiplier: Positive | None = None

    @model_validator(mode="after")
    def _one_of_them(self) -> Self:
        if self.seconds is not None and self.multiplier is not None:
            raise ValueError("seconds and multiplier both say the deadline; set one of them to null")
        return self

    def of(self, base_s: float) -> float:
        """In seconds, where the base variant takes so long."""
        return self.seconds or (self.multiplier or 3.0) * base_s


class DropFactor(Section):
    """Give a request up once this many times its SLO has passed."""

    factor: Annotated[float, Field(ge=1, allow_inf_nan=False)]


class Axis(Section):
    """One quantity that a sweep varies.

    Attributes:
        key: The path of what is set, e.g. ``slo.multiplier`` or ``policies.0.params.period_s``; ``*`` is every
            item of a list. Or several, all set to the same value.
        values: The values, or names for them: ``{name: value}``.
        policies: Labels of the policies to run; all by default.
    """

    key: str | tuple[str, ...]
    values: Annotated[tuple[Any, ...] | dict[str, Any], Field(min_length=1)]
    policies: tuple[str, ...] | None = None

    @property
    def keys(self) -> tuple[str, ...]:
        return (self.key,) if isinstance(self.key, str) else self.key

    @model_validator(mode="after")
    def _labels(self) -> Self:
        if not isinstance(self.values, dict):
            nameless = [value for value in self.values if not isinstance(value, str | int | float)]
            if nameless:
                raise ValueError(f"give {nameless[0]!r} a name: values: {{name: value, ...}}")
        labels = list(self.labelled)
        for label in labels:
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", label):
                raise ValueError(f"{label!r} cannot name a folder; give the values names: {{name: value, ...}}")
        if not isinstance(self.values, dict) and len(labels) != len(self.values):
            raise ValueError("a value appears twice")
        return self

    @property
    def labelled(self) -> dict[str, Any]:
        """Each value by what results call it."""
        if isinstance(self.values, dict):
            return self.values
        return {f"{v:g}" if isinstance(v, float) else str(v): v for v in self.values}


def _overlap(a: str, b: str) -> bool:
    """Whether two keys set the same, or one of them something within what the other sets."""
    return all(x == y or "*" in (x, y) for x, y in zip(a.split("."), b.split("."), strict=False))


class Sweep(Section):
    """Variants of the experiment: one for each value of each axis, all else as the experiment says.

    Attributes:
        axes: What is varied, by the name that results call it.
        grid: Every combination of values instead.
    """

    axes: Annotated[dict[Name, Axis], Field(min_length=1)]
    grid: bool = False

    @model_validator(mode="after")
    def _keys_differ(self) -> Self:
        pairs = itertools.combinations(self.axes.items(), 2) if self.grid else ()
        for (first, earlier), (second, later) in pairs:
            for a, b in itertools.product(earlier.keys, later.keys):
                if _overlap(a, b):
                    both = f"both set {a}" if a == b else f"set {a} and {b}, which overlap"
                    raise ValueError(f"axes {first!r} and {second!r} {both}: at a point of the grid one is lost")
        return self

    @model_validator(mode="after")
    def _columns(self) -> Self:
        # Imported here: pandas takes a while, and few experiments have a sweep.
        from argus_sim.metrics import METRICS
        from argus_sim.metrics.intervals import KEYS

        for name in self.axes:
            if name in (*KEYS, *METRICS):
                raise ValueError(f"an axis cannot be called {name!r}: results have a column of that name")
        return self
