"""A compact model of a recorded trace (:class:`argus_sim.trace.fitted.Fitted`) and how well it reproduces it.

Three scales are fitted one after the other. The rate is cut into steps where the counts change most (best-first
binary segmentation by Poisson likelihood); the busiest minute is a step of its own. Gaps in the time that the
rate measures are Gamma (maximum likelihood). What both leave is over-dispersion: Gamma factors per minute with a
memory of one minute, sized so that simulated counts per minute have the recorded dispersion index. The number of
steps is the smallest, among powers of two and their middles, with which simulations are within ``TOLERANCE`` of
the recorded statistics: more steps follow the recording more closely, fewer leave more to chance. Counts of 5 s
are among these statistics: a burst of seconds does not show in its minute, but a cluster has to live through it.
"""

from __future__ import annotations

import heapq
import json
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy.special import digamma
from scipy.stats import ks_2samp

from argus_sim.errors import InputError
from argus_sim.trace.fitted import Fitted
from argus_sim.trace.fourier import series
from argus_sim.trace.stats import autocorrelation
from argus_sim.trace.trace import Floats, Trace

#: How close simulations must come: relative (dispersion index, peak to mean) and absolute (autocorrelation).
TOLERANCE = 0.07
MOST_STEPS = 1024
DAY_S = 86_400.0
LAGS = 60
#: Width of the counts that bursts within a minute are judged by.
FINE_S = 5.0
_SEEDS = range(900, 908)
_BINS_S = (60.0, 30.0, 20.0, 10.0, 5.0, 2.0, 1.0)


@dataclass(frozen=True, slots=True)
class Measures:
    """What a model is judged by. Counts are those of complete minutes.

    Attributes:
        arrivals: Number of them.
        dispersion_index: Variance over mean of counts.
        fine_dispersion_index: The same for windows of ``FINE_S``.
        peak_to_mean: Largest count over their mean.
        acf: float64[lags], autocorrelation of counts at 1, 2, ... minutes; fewer where the trace is short.
        gaps_s: Gaps between arrivals.
    """

    arrivals: int
    dispersion_index: float
    fine_dispersion_index: float
    peak_to_mean: float
    acf: Floats
    gaps_s: Floats

    @classmethod
    def of(cls, times: Floats, duration_s: float) -> Measures:
        x, fine = minute_counts(times, duration_s), minute_counts(times, duration_s, FINE_S)
        mean = float(np.mean(x))
        lags = range(1, min(LAGS, len(x) - 2) + 1)
        return cls(
            len(times),
            float(np.var(x) / mean) if mean else math.nan,
            float(np.var(fine) / np.mean(fine)) if mean else math.nan,
            float(np.max(x) / mean) if mean else math.nan,
            np.array([autocorrelation(x, lag) for lag in lags]),
            np.diff(times),
        )


@dataclass(frozen=True, slots=True)
class Quality:
    """How well a model reproduces a trace: means over simulations, beside the recorded value.

    Attributes:
        recorded, fitted: ``arrivals``, ``dispersion_index_per_min``, ``dispersion_index_per_5s``,
            ``peak_to_mean``.
        acf_difference: Largest absolute difference of autocorrelations at lags 1 to 60 min, of the means.
        acf_difference_mean: Mean of the absolute differences.
        ks_gaps: Kolmogorov-Smirnov distance of gaps, mean over simulations.
        seeds: Simulations.
    """

    recorded: dict[str, float]
    fitted: dict[str, float]
    acf_difference: float
    acf_difference_mean: float
    ks_gaps: float
    seeds: int

    @property
    def worst(self) -> float:
        """The largest of the relative differences and the difference of autocorrelations."""
        names = ("dispersion_index_per_min", "dispersion_index_per_5s", "peak_to_mean")
        return max(self.acf_difference, *(abs(self.fitted[n] / self.recorded[n] - 1.0) for n in names))


def minute_counts(times: Floats, duration_s: float, width_s: float = 60.0) -> Floats:
    """Arrivals in each complete minute, or window of another width: float64[windows]."""
    windows = int(duration_s // width_s)
    count = np.bincount((times // width_s).astype(np.int64), minlength=windows)[:windows]
    return count.astype(np.float64)


def fit(
    trace: Trace, *, steps: int | None = None, harmonics: int | None = None, period_s: float | None = None
) -> Fitted:
    """A model of a trace.

    By default the rate has steps, and bursts come when they came. With ``harmonics`` it is a Fourier series
    (:mod:`argus_sim.trace.fourier`): the same on each day, so that the model can be run for longer than was
    recorded, and all else is noise that remembers.

    Args:
        trace: At least ten minutes and a hundred arrivals.
        steps: Number of steps of the rate; by default the fewest that reproduce the trace.
        harmonics: Of ``period_s``, instead of steps.
        period_s: Of the first harmonic; a day by default. At least ten minutes, and no longer than the trace.

    Raises:
        InputError: The trace is too short, ``steps`` or ``harmonics`` is below 1, both are given, or ``period_s``
            without ``harmonics``.
    """
    if trace.duration_s < 600 or len(trace) < 100:
        found = f"{len(trace)} arrivals in {trace.duration_s:g} s"
        raise InputError(f"a fit needs 100 arrivals in 600 s, found {found}", where=f"trace {trace.name!r}")
    if steps is not None and steps < 1:
        raise InputError(f"steps must be at least 1, found {steps}")
    if period_s is not None and harmonics is None:
        raise InputError("period_s is that of harmonics, and steps have none; say how many harmonics")
    recorded = Measures.of(trace.arrival_s, trace.duration_s)
    if harmonics is not None:
        if steps is not None:
            raise InputError("a rate has steps or harmonics, not both")
        period_s = DAY_S if period_s is None else period_s
        level, waves = series(minute_counts(trace.arrival_s, trace.duration_s), harmonics, period_s)
        return _completed(
            trace,
            Fitted(
                duration_s=trace.duration_s,
                points=((0.0, level),),
                harmonics=waves,
                resolution_s=_resolution(trace.arrival_s),
            ),
            recorded,
        )
    resolution_s = _resolution(trace.arrival_s)
    cuts = list(_cuts(trace, steps or MOST_STEPS))
    best: tuple[float, Fitted] | None = None
    for k in _ladder(len(cuts) + 1) if steps is None else [len(cuts) + 1]:
        model = _with_steps(trace, cuts[: k - 1], resolution_s, recorded)
        worst = _distance(model, recorded)
        if best is None or worst < best[0]:
            best = worst, model
        if worst < TOLERANCE:
            break
    assert best is not None
    return best[1]


def _distance(model: Fitted, recorded: Measures) -> float:
    """What the number of steps is chosen by: :attr:`Quality.worst`, and by the error of single peaks."""
    runs = [Measures.of(model.times(np.random.default_rng(seed)), model.duration_s) for seed in _SEEDS]
    peak = np.array([run.peak_to_mean for run in runs]) / recorded.peak_to_mean - 1.0
    dispersion = [
        abs(float(np.mean([getattr(run, at) for run in runs])) / getattr(recorded, at) - 1.0)
        for at in ("dispersion_index", "fine_dispersion_index")
    ]
    acf = np.abs(np.mean([run.acf for run in runs], axis=0) - recorded.acf)
    return float(max(abs(np.mean(peak)), 0.65 * np.mean(np.abs(peak)), *dispersion, np.max(acf, initial=0.0)))


def judge(model: Fitted, recorded: Measures, seeds: Sequence[int]) -> Quality:
    """Compare simulations of a model with what was recorded."""
    runs = [Measures.of(model.times(np.random.default_rng(seed)), model.duration_s) for seed in seeds]
    acf = np.abs(np.mean([run.acf for run in runs], axis=0) - recorded.acf)
    fitted = {name: float(np.mean([getattr(run, at) for run in runs])) for name, at in _NAMES.items()}
    ks = [float(ks_2samp(run.gaps_s, recorded.gaps_s).statistic) for run in runs if len(run.gaps_s)]
    return Quality(
        {name: float(getattr(recorded, at)) for name, at in _NAMES.items()},
        fitted,
        float(np.max(acf, initial=0.0)),
        float(np.mean(acf)),
        float(np.mean(ks)),
        len(runs),
    )


_NAMES = {
    "arrivals": "arrivals",
    "dispersion_index_per_min": "dispersion_index",
    "dispersion_index_per_5s": "fine_dispersion_index",
    "peak_to_mean": "peak_to_mean",
}


def _ladder(most: int) -> Iterator[int]:
    k = 16
    while k < most:
        yield k
        if k + k // 2 < most:
            yield k + k // 2
        k *= 2
    yield most


def _resolution(times: Floats) -> float:
    """Whole seconds, milliseconds, or 0."""
    return 1.0 if not (times % 1.0).any() else 0.0


def _rate_words(model: Fitted) -> str:
    if model.harmonics:
        return f"{len(model.harmonics)} harmonics of {model.harmonics[0][0]:g} s"
    return f"{len(model.points)} steps"


def write_model(path: Path, name: str, model: Fitted, trace: Trace, quality: Quality) -> None:
    """Write a model as a file that :func:`argus_sim.trace.arrivals.generate_file` reads; whole or not at all.

    Where the trace came from, what was done to it, and how well the model reproduces it goes along.
    """
    recorded, got = quality.recorded, quality.fitted
    dispersion, peak = (
        f"{got[key]:.4g} (recorded {recorded[key]:.4g})" for key in ("dispersion_index_per_min", "peak_to_mean")
    )
    how = (
        f"argus_sim.trace.fit: {_rate_words(model)}; dispersion index {dispersion}, peak to mean {peak}, "
        f"autocorrelation within {quality.acf_difference:.2g} at 1 to {LAGS} min, "
        f"means of {quality.seeds} simulations"
    )
    done = "; ".join((*trace.transformations, how))
    shape = [
        part.model_copy(update={"derived": "; ".join(text for text in (part.derived, done) if text)})
        for part in trace.provenance
    ]
    fields = model.model_dump(mode="json", exclude={"points"})
    if not model.harmonics:
        del fields["harmonics"]
    lines = [
        f"name: {json.dumps(name)}",
        "seed: 1",
        "shape:",
        *(f"  - {json.dumps(part.model_dump(exclude_defaults=True), ensure_ascii=False)}" for part in shape),
        "arrivals:",
        *(f"  {key}: {json.dumps(value)}" for key, value in fields.items()),
        "  points: # [time_s, images per minute]",
    ]
    pairs = [f"[{time_s:.10g}, {rate:.10g}]" for time_s, rate in model.points]
    lines += [f"    {'[' if i == 0 else ' '}{', '.join(pairs[i : i + 6])}," for i in range(0, len(pairs), 6)]
    lines[-1] = lines[-1].removesuffix(",") + "]"
    path.parent.mkdir(parents=True, exist_ok=True)
    part_path = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part_path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        os.replace(part_path, path)
    finally:
        part_path.unlink(missing_ok=True)


# -- the rate --------------------------------------------------------------------------------------


def _cuts(trace: Trace, most: int) -> Iterator[float]:
    """Where to cut the rate into steps (s), the most telling cut first."""
    width_s = next((w for w in _BINS_S if trace.duration_s / w >= 720), 1.0)
    bins = max(1, math.ceil(trace.duration_s / width_s - 1e-9))
    count = np.bincount(np.minimum((trace.arrival_s // width_s).astype(np.int64), bins - 1), minlength=bins)
    area = np.append(0, np.cumsum(count))
    heap: list[tuple[float, int, int, int]] = []

    def consider(first: int, after: int) -> None:
        found = _best_cut(area, first, after)
        if found is not None and found[0] > 2.0:
            heapq.heappush(heap, (-found[0], first, found[1], after))

    consider(0, bins)
    for _ in range(most - 1):
        if not heap:
            return
        _, first, cut, after = heapq.heappop(heap)
        yield cut * width_s
        consider(first, cut)
        consider(cut, after)


def _best_cut(area: npt.NDArray[np.int64], first: int, after: int) -> tuple[float, int] | None:
    """Gain in log likelihood and place of the best cut of the bins first..after."""
    if after - first < 2:
        return None
    at = np.arange(first + 1, after)
    left, right = area[at] - area[first], area[after] - area[at]
    whole = _likelihood(np.array([area[after] - area[first]]), np.array([after - first]))[0]
    gain = _likelihood(left, at - first) + _likelihood(right, after - at) - whole
    best = int(np.argmax(gain))
    return float(gain[best]), int(at[best])


def _likelihood(count: npt.NDArray[np.int64], bins: npt.NDArray[np.int64]) -> Floats:
    """Of Poisson counts at their own mean rate, but for what all cuts share."""
    return np.asarray(count * np.log(np.maximum(count, 1) / bins), dtype=np.float64)


def _with_steps(trace: Trace, cuts: Sequence[float], resolution_s: float, recorded: Measures) -> Fitted:
    x = minute_counts(trace.arrival_s, trace.duration_s)
    peak_s = float(np.argmax(x)) * 60.0
    start_s = np.array(sorted({0.0, *cuts, peak_s, min(peak_s + 60.0, (len(x) - 1) * 60.0)}))
    edge_s = np.append(start_s, trace.duration_s)
    after = np.searchsorted(trace.arrival_s, edge_s[1:])
    after[-1] = len(trace)
    per_min = np.diff(after, prepend=0) / np.diff(edge_s) * 60.0
    points = tuple((float(s), float(f"{rate:.4g}")) for s, rate in zip(start_s, per_min, strict=True))
    model = Fitted(duration_s=trace.duration_s, points=points, resolution_s=resolution_s)
    return _completed(trace, model, recorded)


# -- what the rate leaves --------------------------------------------------------------------------


def _completed(trace: Trace, model: Fitted, recorded: Measures) -> Fitted:
    """The model with clusters and noise for what its rate leaves."""
    gap_cv = _gap_cv(trace, model)
    model = model.model_copy(update={"gap_cv": gap_cv})
    found = _dispersion(model)
    if found > recorded.dispersion_index * (1.0 + TOLERANCE / 2.0):
        # Clusters alone are too much: the steps have taken what is left.
        if _dispersion(model.model_copy(update={"gap_cv": 1.0})) >= recorded.dispersion_index:
            return model.model_copy(update={"gap_cv": min(gap_cv, 1.0)})
        return _bisected(model, "gap_cv", 1.0, gap_cv, recorded.dispersion_index)
    if found > recorded.dispersion_index:
        return model
    model = model.model_copy(update={"noise_correlation": _memory(trace, model)})
    high = 0.25
    while high < 16 and _dispersion(model.model_copy(update={"noise_cv": high})) < recorded.dispersion_index:
        high *= 2
    return _bisected(model, "noise_cv", 0.0, high, recorded.dispersion_index)


def _gap_cv(trace: Trace, model: Fitted) -> float:
    """Of Gamma gaps in the time that the rate measures, by maximum likelihood."""
    # Ties of rounded stamps are spread over what they were rounded from, by a fixed pattern: a fit has no seed.
    spread = np.random.default_rng(0).random(len(trace)) * model.resolution_s
    times = np.sort(np.minimum(trace.arrival_s + spread, trace.duration_s))
    edge_s, area = model.expected_area()
    gaps = np.diff(np.interp(times, edge_s, area))
    gaps = gaps[gaps > 0]
    if len(gaps) < 2:
        return 1.0
    spare = math.log(float(np.mean(gaps))) - float(np.mean(np.log(gaps)))
    low, high = 1e-2, 1e2  # of the shape: log(k) - digamma(k) falls
    for _ in range(60):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if math.log(middle) - float(digamma(middle)) > spare else (low, middle)
    return float(f"{min(max(low**-0.5, 0.2), 5.0):.4g}")


def _memory(trace: Trace, model: Fitted) -> float:
    """Correlation of neighbouring minutes around the rate."""
    edge_s, area = model.expected_area()
    minutes = int(trace.duration_s // 60.0)
    mean = np.diff(np.interp(np.arange(minutes + 1) * 60.0, edge_s, area))
    off = minute_counts(trace.arrival_s, trace.duration_s) - mean
    extra = float(np.mean(off**2) - np.mean(mean) * model.gap_cv**2)
    if extra <= 0 or minutes < 3:
        return 0.0
    return float(
        f"{min(max(float(np.mean(off[1:] * off[:-1])) / extra, 0.0), 0.95 if not model.harmonics else 0.999):.3g}"
    )


def _dispersion(model: Fitted) -> float:
    runs = []
    for seed in _SEEDS[:4]:
        x = minute_counts(model.times(np.random.default_rng(seed)), model.duration_s)
        runs.append(float(np.var(x) / np.mean(x)) if np.any(x) else 0.0)
    return float(np.mean(runs))


def _bisected(model: Fitted, name: str, low: float, high: float, wanted: float) -> Fitted:
    """The model with the value of a parameter that gives the wanted dispersion index, which grows with it."""
    for _ in range(8):
        middle = (low + high) / 2.0
        if _dispersion(model.model_copy(update={name: middle})) < wanted:
            low = middle
        else:
            high = middle
    return model.model_copy(update={name: float(f"{(low + high) / 2.0:.4g}")})
