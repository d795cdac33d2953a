"""When images are asked for: a trace of arrivals, its scaling and its statistics.

A trace is an array of times and an account of where they come from. It says nothing about models or
deadlines; those join it in the workload. Times are seconds since the start of the trace.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from argus_sim.errors import InputError, did_you_mean
from argus_sim.provenance import Provenance
from argus_sim.trace import file as tracefile
from argus_sim.trace.stats import statistics

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Trace:
    """Arrivals over a stretch of time. Immutable; compare two by :meth:`digest`.

    Attributes:
        name: What reports call it.
        arrival_s: float64[n], n > 0, ascending, finite, >= 0; read-only.
        duration_s: How long the arrivals were watched: > 0 and no shorter than the last arrival. Rates are
            per this time.
        provenance: Where the arrivals come from, at least one part.
        prompt: The text of each arrival, or None where the trace does not know it. Each distinct text is held
            once.
        transformations: What was done to the arrivals since, oldest first, in words.

    Raises:
        InputError: A value breaks one of the rules above; names the first offending arrival.
    """

    name: str
    arrival_s: Floats
    duration_s: float
    provenance: tuple[Provenance, ...]
    prompt: tuple[str, ...] | None = None
    transformations: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        where = f"trace {self.name!r}"
        try:
            times = np.array(self.arrival_s, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise InputError(f"arrival times must be numbers: {error}", where=where) from error
        if times.ndim != 1 or not len(times):
            raise InputError(f"needs a list of at least one arrival, found shape {times.shape}", where=where)
        fault = tracefile.first_fault(times)
        if fault:
            raise InputError(fault[1], where=f"{where}: arrival_s[{fault[0]}]")
        if not (self.duration_s > 0 and times[-1] <= self.duration_s < math.inf):
            raise InputError(
                f"duration_s must be finite, above 0 and no less than the last arrival ({times[-1]:g}), "
                f"found {self.duration_s:g}",
                where=where,
            )
        if not self.provenance:
            raise InputError("carries no provenance", where=where)
        if self.prompt is not None and len(self.prompt) != len(times):
            raise InputError(f"{len(self.prompt)} prompts for {len(times)} arrivals", where=where)
        times.setflags(write=False)
        object.__setattr__(self, "arrival_s", times)
        object.__setattr__(self, "duration_s", float(self.duration_s))
        if self.prompt is not None:
            seen: dict[str, str] = {}
            object.__setattr__(self, "prompt", tuple(seen.setdefault(text, text) for text in self.prompt))

    def __len__(self) -> int:
        return len(self.arrival_s)

    @classmethod
    def read(cls, path: str | Path) -> Trace:
        """The trace in a ``.csv`` or ``.parquet`` file; :mod:`argus_sim.trace.file` describes both.

        Raises:
            InputError: No such file, another suffix, or contents that are no trace; names the file and the
                line (CSV) or row (Parquet, from 1).
        """
        header, arrival_s, prompt = tracefile.read(Path(path))
        return cls(
            name=header.name,
            arrival_s=arrival_s,
            duration_s=header.duration_s,
            provenance=header.provenance,
            prompt=None if prompt is None else tuple(prompt),
            transformations=header.transformations,
        )

    def save(self, path: str | Path) -> None:
        """Write a ``.csv`` or ``.parquet`` file that :meth:`read` gives back exactly.

        The file appears whole or not at all, and the same trace always gives the same bytes.

        Raises:
            InputError: Another suffix.
        """
        tracefile.write(Path(path), self._header(), self.arrival_s, self.prompt)

    def summary(self) -> tracefile.Summary:
        """What a list says of a trace."""
        return tracefile.Summary(self._header(), len(self), self.digest())

    def _header(self) -> tracefile.Header:
        return tracefile.Header(
            name=self.name,
            duration_s=self.duration_s,
            provenance=self.provenance,
            transformations=self.transformations,
        )

    def scale_time(self, factor: float) -> Trace:
        """Every time multiplied by ``factor`` > 0: a shorter day with the same number of images.

        Raises:
            InputError: The factor is not a finite number above 0.
        """
        _check_positive("factor", factor)
        return replace(
            self,
            arrival_s=self.arrival_s * factor,
            duration_s=self.duration_s * factor,
            transformations=(*self.transformations, f"time scaled by {factor:g}"),
        )

    def scale_rate(self, factor: float, rng: np.random.Generator) -> Trace:
        """More or fewer images in the same time, by ``factor`` > 0 on average.

        Every arrival becomes floor(factor) arrivals, or one more with probability factor - floor(factor);
        below 1 that is independent thinning. The first keeps its time, the others are spread uniformly over
        the gap to the next later arrival (or the end), so that the rate curve keeps its shape at every scale
        above that gap. The copies of one arrival come and go together: above 1, the counts of a Poisson trace
        are no longer Poisson. To ask for more *independent* users, generate a trace at the higher rate.

        Raises:
            InputError: The factor is not a finite number above 0, thinning left no arrival, or it would make more
                than 10^9.
        """
        _check_positive("factor", factor)
        if factor * len(self) > 1e9:
            raise InputError(
                f"a factor of {factor:g} would make {factor * len(self):.3g} arrivals; allowed are 1e9"
            )
        whole = math.floor(factor)
        copies = whole + (rng.random(len(self)) < factor - whole)
        source = np.repeat(np.arange(len(self)), copies)
        # Recorded stamps tie (whole seconds), so the gap is to the next *later* arrival: a tie leaves none.
        later = np.searchsorted(self.arrival_s, self.arrival_s, side="right")
        gap_end = np.append(self.arrival_s, self.duration_s)[later][source]
        times = self.arrival_s[source]
        is_copy = np.diff(source, prepend=-1) == 0
        jitter = np.where(is_copy, rng.random(len(source)), 0.0)
        times = np.minimum(times + jitter * (gap_end - times), gap_end)  # the sum may round past the end
        order = np.argsort(times, kind="stable")
        return self._pick(source[order], times[order], self.duration_s, f"rate scaled by {factor:g}")

    def superpose(self, *others: Trace) -> Trace:
        """The arrivals of several traces together, from the same start; the longest gives the length.

        Prompts stay with their arrivals where all traces have some, and are left out otherwise.
        """
        traces = (self, *others)
        times = np.concatenate([trace.arrival_s for trace in traces])
        order = np.argsort(times, kind="stable")
        texts = [text for trace in traces for text in trace.prompt or ()]
        left_out = "; prompts left out, as not all have some" if 0 < len(texts) < len(times) else ""
        return Trace(
            name=self.name,
            arrival_s=times[order],
            duration_s=max(trace.duration_s for trace in traces),
            provenance=tuple(dict.fromkeys(part for trace in traces for part in trace.provenance)),
            prompt=tuple(texts[row] for row in order) if len(texts) == len(times) else None,
            transformations=(
                *(f"{trace.name}: {change}" for trace in traces for change in trace.transformations),
                f"superposed: {', '.join(trace.name for trace in traces)}{left_out}",
            ),
        )

    def clip(self, start_s: float, end_s: float) -> Trace:
        """The arrivals in [start_s, end_s), as a trace that starts at 0.

        An arrival at the very end of the trace belongs to a clip that ends there.

        Raises:
            InputError: Not 0 <= start_s < end_s <= duration_s, or nothing arrives in between.
        """
        if not 0 <= start_s < end_s <= self.duration_s:
            raise InputError(
                f"cannot clip to {start_s:g}..{end_s:g} s; it lasts from 0 to {self.duration_s:g} s",
                where=f"trace {self.name!r}",
            )
        first = int(np.searchsorted(self.arrival_s, start_s))
        after = len(self) if end_s == self.duration_s else int(np.searchsorted(self.arrival_s, end_s))
        return self._pick(
            np.arange(first, after),
            self.arrival_s[first:after] - start_s,
            end_s - start_s,
            f"clipped to [{start_s:g}, {end_s:g}) s",
        )

    def _pick(self, source: npt.NDArray[np.int64], times: Floats, duration_s: float, note: str) -> Trace:
        if not len(source):
            raise InputError(f"no arrival is left ({note})", where=f"trace {self.name!r}")
        return replace(
            self,
            arrival_s=times,
            duration_s=duration_s,
            prompt=None if self.prompt is None else tuple(self.prompt[row] for row in source),
            transformations=(*self.transformations, note),
        )

    def peak_per_s(self, window_s: float) -> float:
        """The most arrivals in any half-open window of this length, wherever it starts, per second."""
        _check_positive("window_s", window_s)
        after = np.searchsorted(self.arrival_s, self.arrival_s + window_s)
        return float(np.max(after - np.arange(len(self)))) / window_s

    def rate(self, window_s: float) -> tuple[Floats, Floats]:
        """The rate curve: starts of aligned windows (s) and their arrivals per minute, both float64[windows].

        The last window ends with the trace: it is half a window long or more, and less than one and a half. A
        rate over a shorter one would be luck.
        """
        _check_positive("window_s", window_s)
        windows = max(1, math.floor(self.duration_s / window_s + 0.5))
        start_s = np.arange(windows, dtype=np.float64) * window_s
        count = np.bincount(np.searchsorted(start_s, self.arrival_s, side="right") - 1, minlength=windows)
        per_min: Floats = count * 60.0 / np.diff(start_s, append=self.duration_s)
        return start_s, per_min

    def stats(self) -> dict[str, float]:
        """What the trace looks like, by name. Here x is the counts of its complete aligned minutes.

        * ``count``: arrivals; ``duration_s``: seconds; ``mean_per_min``: count / duration.
        * ``peak_per_min``, ``p99_per_min``: the largest x and their 99th percentile.
        * ``peak_to_mean``: peak_per_min / mean_per_min.
        * ``dispersion_index_per_min``: var(x) / mean(x); 1 for a Poisson process, more for bursts.
        * ``cv_interarrival``: standard deviation over mean of the gaps; 1 for a Poisson process.
        * ``acf_lag1_min``, ``acf_lag60_min``: autocorrelation of x at 1 and 60 minutes, in [-1, 1].

        NaN where undefined: no gaps, no complete minute with arrivals, x constant or too short for the lag.
        """
        return statistics([self.arrival_s], self.duration_s)

    def digest(self) -> str:
        """SHA-256 (hex) of arrivals, duration and prompts: equal for traces that ask for the same work."""
        content = hashlib.sha256(self.arrival_s.astype("<f8").tobytes())
        content.update(struct.pack("<d", self.duration_s))
        if self.prompt is not None:
            content.update(json.dumps(self.prompt).encode())
        return content.hexdigest()


def shipped_traces() -> list[str]:
    """Names of the traces that come with argus-sim."""
    return sorted(path.stem for path in _shipped_folder().glob("*.parquet"))


def shipped_models() -> list[str]:
    """Names of the fitted models that come with argus-sim: each seed makes a trace of its own from one."""
    return sorted({path.stem for path in _shipped_folder().glob("*.yaml")} - set(shipped_traces()))


def is_model(path: Path) -> bool:
    """Whether a file describes arrivals to generate, and is no trace itself."""
    return path.suffix in (".yaml", ".yml")


def find_trace(name_or_path: str | Path) -> Path:
    """The file of a shipped trace or model, or the path itself where it has a suffix or is a file.

    Raises:
        InputError: Neither a path nor a shipped name.
    """
    path = Path(name_or_path)
    if path.suffix or path.is_file():
        return path
    traces, models = shipped_traces(), shipped_models()
    if path.name not in (*traces, *models) or path.parent != Path():
        raise InputError(f"no trace is called {str(path)!r}{did_you_mean(path.name, (*traces, *models))}")
    return _shipped_folder() / f"{path.name}.{'parquet' if path.name in traces else 'yaml'}"


def _shipped_folder() -> Path:
    # A wheel carries the folder inside the package; a checkout has it beside the package.
    package = Path(__file__).parent.parent
    inside = package / "_shipped" / "traces"
    return inside if inside.is_dir() else package.parent / "traces"


def _check_positive(name: str, value: float) -> None:
    if not (value > 0 and math.isfinite(value)):
        raise InputError(f"{name} must be a finite number above 0, found {value!r}")
