"""Synthetic arrivals: each kind is one class here, and its fields are what the YAML may say.

Every kind but ``fitted`` (:mod:`argus_sim.trace.fitted`, whose gaps may cluster) is a Poisson process with a rate
that varies in time, sampled exactly and without a time step: the number of arrivals in a stretch is a Poisson
variable of the area under its rate, and their times come from inverting that area (from thinning, where it has no
inverse). Rates are images per minute, as in the reports; times are seconds.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal, Self, get_args

import numpy as np
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from argus_sim.errors import InputError, did_you_mean, wording
from argus_sim.provenance import Provenance
from argus_sim.trace.fitted import Fitted
from argus_sim.trace.rate import Arrivals, NonNegative, Positive, ascending, lines, steps
from argus_sim.trace.trace import Floats, Trace

#: Times from :func:`generate_file` are multiples of this. Just under 1 ms, and a power of two: exact as
#: floats, and half the file size that milliseconds would give.
RESOLUTION_S = 2.0**-10


class Poisson(Arrivals):
    """Independent arrivals at a constant rate."""

    kind: Literal["poisson"] = "poisson"
    rate_per_min: Positive

    def times(self, rng: np.random.Generator) -> Floats:
        return steps([0.0, self.duration_s], [self.rate_per_min]).sample(rng)


class Piecewise(Arrivals):
    """A rate given by points; the last rate holds until the end.

    Attributes:
        points: ``[time_s, per_min]`` pairs, the first at 0 s, ascending in time, none after the end.
        between: ``linear`` joins the points by lines, ``step`` holds each rate until the next point.
        wobble_cv: Coefficient of variation of a Gamma factor that is drawn for each minute; 0 is none.
    """

    kind: Literal["piecewise"] = "piecewise"
    points: tuple[tuple[NonNegative, NonNegative], ...] = Field(min_length=1)
    between: Literal["linear", "step"] = "linear"
    wobble_cv: NonNegative = 0.0

    @model_validator(mode="after")
    def _points_in_order(self) -> Self:
        times = ascending(self.points)
        if times[-1] > self.duration_s:
            raise ValueError(f"a point at {times[-1]:g} s is after the end ({self.duration_s:g} s)")
        return self

    def times(self, rng: np.random.Generator) -> Floats:
        edges, per_min = (list(column) for column in zip(*self.points, strict=True))
        if edges[-1] < self.duration_s:
            edges.append(self.duration_s)
            per_min.append(per_min[-1])
        curve = lines(edges, per_min) if self.between == "linear" else steps(edges, per_min[:-1])
        return curve.wobbled(self.wobble_cv, rng).sample(rng)


class Sinusoid(Arrivals):
    """A rate that swings between two values as a cosine.

    Attributes:
        trough_per_min: Lowest rate.
        peak_per_min: Highest rate.
        period_s: From peak to peak.
        peak_at_s: When a peak is.
        wobble_cv: As for ``piecewise``.
    """

    kind: Literal["sinusoid"] = "sinusoid"
    trough_per_min: NonNegative
    peak_per_min: Positive
    period_s: Positive = 86_400.0
    peak_at_s: NonNegative = 0.0
    wobble_cv: NonNegative = 0.0

    @model_validator(mode="after")
    def _peak_over_trough(self) -> Self:
        if self.peak_per_min < self.trough_per_min:
            raise ValueError(f"the peak ({self.peak_per_min:g}) is below the trough ({self.trough_per_min:g})")
        return self

    def times(self, rng: np.random.Generator) -> Floats:
        # The area under a cosine has no inverse in closed form; thinning arrivals at the peak is as exact.
        ceiling = steps([0.0, self.duration_s], [self.peak_per_min]).wobbled(self.wobble_cv, rng).sample(rng)
        phase = 2.0 * np.pi * (ceiling - self.peak_at_s) / self.period_s
        swing = (self.peak_per_min - self.trough_per_min) / 2.0
        rate = self.trough_per_min + swing * (1.0 + np.cos(phase))
        kept: Floats = ceiling[rng.random(len(ceiling)) * self.peak_per_min < rate]
        return kept


class Diurnal(Arrivals):
    """A day given by its 24 hours, repeated; the rate is linear from one full hour to the next.

    Attributes:
        hours: Relative rate at 0:00, 1:00, ... 23:00; only their ratios count. The trace starts at 0:00.
        peak_per_min: Rate at the highest of them.
        wobble_cv: As for ``piecewise``.
    """

    kind: Literal["diurnal"] = "diurnal"
    hours: tuple[NonNegative, ...] = Field(min_length=24, max_length=24)
    peak_per_min: Positive
    wobble_cv: NonNegative = 0.0

    @model_validator(mode="after")
    def _some_hour_has_a_rate(self) -> Self:
        if not any(self.hours):
            raise ValueError("hours must not all be 0")
        return self

    def times(self, rng: np.random.Generator) -> Floats:
        edge_s = np.append(np.arange(0.0, self.duration_s, 3600.0), self.duration_s)
        hour = np.array([*self.hours, self.hours[0]]) * (self.peak_per_min / max(self.hours))
        rate = np.interp(edge_s % 86_400.0 / 3600.0, np.arange(25), hour)
        return lines(edge_s, rate).wobbled(self.wobble_cv, rng).sample(rng)


class State(BaseModel):
    """A state of ``mmpp``: its rate, and the mean of the exponential time that it lasts."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    per_min: NonNegative
    mean_dwell_s: Positive


class MMPP(Arrivals):
    """A Markov-modulated Poisson process: the rate jumps between states, in equilibrium from the start.

    Attributes:
        states: At least two.
        transitions: Probabilities of the next state, one row per state. The diagonal is 0 (how long a state
            lasts is its ``mean_dwell_s``) and every state is reachable from every other. By default, all
            other states are alike.
    """

    kind: Literal["mmpp"] = "mmpp"
    states: tuple[State, ...] = Field(min_length=2)
    transitions: tuple[tuple[NonNegative, ...], ...] | None = None

    @model_validator(mode="after")
    def _transitions_are_a_chain(self) -> Self:
        n = len(self.states)
        if self.transitions is not None:
            if [len(row) for row in self.transitions] != [n] * n:
                raise ValueError(f"transitions must be {n} rows of {n} probabilities")
            for number, row in enumerate(self.transitions):
                if row[number] != 0 or abs(sum(row) - 1) > 1e-9:
                    raise ValueError(f"row {number} of transitions must sum to 1 with 0 on the diagonal")
            if not (np.linalg.matrix_power(np.eye(n) + self._chain(), n) > 0).all():
                raise ValueError("transitions must lead from every state to every other")
        return self

    def _chain(self) -> Floats:
        n = len(self.states)
        if self.transitions is not None:
            rows = np.array(self.transitions, dtype=np.float64)
            exact: Floats = rows / rows.sum(axis=1, keepdims=True)
            return exact
        return (1.0 - np.eye(n)) / (n - 1)

    def shares(self) -> Floats:
        """The share of time in each state in the long run: float64[states], sums to 1."""
        chain = self._chain()
        n = len(chain)
        balance = np.vstack([chain.T - np.eye(n), np.ones(n)])
        visits = np.linalg.lstsq(balance, np.append(np.zeros(n), 1.0), rcond=None)[0].clip(min=0.0)
        time = visits * np.array([state.mean_dwell_s for state in self.states])
        shares: Floats = time / time.sum()
        return shares

    def times(self, rng: np.random.Generator) -> Floats:
        chain = self._chain()
        # What is left of an exponential stay is exponential too: the first needs only its state drawn.
        state = rng.choice(len(chain), p=self.shares())
        edges, per_min = [0.0], []
        while edges[-1] < self.duration_s:
            per_min.append(self.states[state].per_min)
            edges.append(edges[-1] + rng.exponential(self.states[state].mean_dwell_s))
            state = rng.choice(len(chain), p=chain[state])
        return steps([*edges[:-1], self.duration_s], per_min).sample(rng)


ArrivalSpec = Annotated[Poisson | Piecewise | Sinusoid | Diurnal | MMPP | Fitted, Field(discriminator="kind")]

_KINDS: dict[str, type[Arrivals]] = {
    kind.model_fields["kind"].default: kind for kind in get_args(get_args(ArrivalSpec)[0])
}


class TraceSpec(BaseModel):
    """A YAML file that a trace can be made from again.

    Attributes:
        name: Name of the trace.
        seed: Of the random numbers.
        arrivals: One of the kinds above.
        shape: Where the numbers in ``arrivals`` come from, if not from us.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1)
    seed: int = Field(ge=0)
    arrivals: ArrivalSpec
    shape: tuple[Provenance, ...] = ()


def generate(spec: ArrivalSpec, rng: np.random.Generator, *, name: str | None = None) -> Trace:
    """A trace of synthetic arrivals; its provenance holds the parameters and the seed of ``rng``.

    Args:
        spec: What to generate.
        rng: A fresh generator, or the recorded seed alone will not give the same trace again.
        name: Name of the trace; by default the kind.

    Raises:
        InputError: Not one arrival came of it.
    """
    text = spec.model_dump_json()
    if isinstance(spec, Fitted):  # hundreds of numbers
        text = f"{spec.described()}, SHA-256 {hashlib.sha256(text.encode()).hexdigest()[:12]}"
    origin = Provenance(kind="synthetic", source=f"argus_sim.arrivals {text}, {seed_of(rng)}")
    return Trace(name or spec.kind, spec.times(rng), spec.duration_s, (origin,))


def generate_file(
    spec_path: str | Path, rng: np.random.Generator | None = None, *, name: str | None = None
) -> Trace:
    """The trace that a :class:`TraceSpec` in YAML describes; the same file always gives the same trace.

    Args:
        rng: Another generator than that of the file's seed; times are not rounded then.
        name: Another name than the file's.

    Raises:
        InputError: No such file, no YAML, or a field that is wrong; names the file and the field or line.
    """
    spec = read_spec(spec_path)
    trace = generate(spec.arrivals, rng or np.random.default_rng(spec.seed), name=name or spec.name)
    trace = replace(trace, provenance=(*spec.shape, *trace.provenance))
    if rng is not None:
        return trace
    return replace(
        trace,
        arrival_s=np.floor(trace.arrival_s / RESOLUTION_S) * RESOLUTION_S,
        transformations=(f"times rounded down to 1/{1 / RESOLUTION_S:g} s",),
    )


def read_spec(spec_path: str | Path) -> TraceSpec:
    """The specification in a YAML file; raises as :func:`generate_file`."""
    path = Path(spec_path)
    if not path.is_file():
        raise InputError("no such file", where=str(path))
    try:
        return TraceSpec.model_validate(yaml.safe_load(path.read_bytes()))
    except yaml.MarkedYAMLError as error:
        line = f": line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise InputError(f"not YAML: {error.problem}", where=f"{path}{line}") from error
    except yaml.YAMLError as error:
        raise InputError(f"not YAML: {error}", where=str(path)) from error
    except ValidationError as error:
        raise _spec_error(error, path) from error


def seed_of(rng: np.random.Generator) -> str:
    """The seed that a generator was made from, in words, for a provenance."""
    sequence = rng.bit_generator.seed_seq
    if not isinstance(sequence, np.random.SeedSequence):
        return "seed unknown"
    return f"seed {sequence.entropy}" + (f", child {sequence.spawn_key}" if sequence.spawn_key else "")


def first_problem(error: ValidationError, fields: Iterable[str]) -> str:
    """The first thing a model found wrong: the value found or, for an unknown field, the nearest of these."""
    problem = error.errors(include_url=False)[0]
    found = problem["input"]
    if problem["type"] == "extra_forbidden":
        return f"unknown field{did_you_mean(str(problem['loc'][-1]), fields)}"
    if problem["type"] == "union_tag_invalid":
        tag = str(problem["ctx"]["tag"])
        return f"unknown kind {tag!r}{did_you_mean(tag, _KINDS)}"
    return wording(problem) + (f", found {found!r}" if isinstance(found, str | float | int | None) else "")


def _spec_error(error: ValidationError, path: Path) -> InputError:
    field = [str(part) for part in error.errors()[0]["loc"]]
    fields: Iterable[str] = TraceSpec.model_fields
    if field[:1] == ["arrivals"] and len(field) > 1:
        # Pydantic puts the kind into the path, YAML does not.
        fields = State.model_fields if "states" in field else _KINDS[field[1]].model_fields
        del field[1]
    where = f"{path}: {'.'.join(field)}" if field else str(path)
    return InputError(first_problem(error, fields), where=where)
