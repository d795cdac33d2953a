"""What a trace looks like, from one pass over its arrivals: memory grows with minutes, not with arrivals."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from argus_sim.errors import InputError
from argus_sim.trace import file as tracefile

Floats = npt.NDArray[np.float64]

#: A trace with more minutes than this (19 years) is taken for a mistake in its unit of time.
MOST_MINUTES = 10_000_000


def statistics(batches: Iterable[Floats], duration_s: float | None = None) -> dict[str, float]:
    """The statistics that :meth:`argus_sim.trace.Trace.stats` describes.

    Args:
        batches: Arrival times, ascending across batches, s.
        duration_s: Length of the trace; by default its last arrival.

    Raises:
        InputError: No arrival, or more than :data:`MOST_MINUTES` minutes.
    """
    per_minute = np.zeros(1, dtype=np.int64)
    count, last_s = 0, math.nan
    gaps, mean_gap, squares = 0, 0.0, 0.0  # Chan's merging of means and sums of squares
    for times in batches:
        if not len(times):
            continue
        minute = (times // 60.0).astype(np.int64)
        if minute[-1] >= MOST_MINUTES:
            raise InputError(
                f"an arrival at {times[-1]:g} s is more than {MOST_MINUTES:,} minutes from the start"
            )
        if minute[-1] >= len(per_minute):
            per_minute = np.concatenate(
                [per_minute, np.zeros(max(len(per_minute), minute[-1] + 1), dtype=np.int64)]
            )
        first = int(minute[0])
        found = np.bincount(minute - first)
        per_minute[first : first + len(found)] += found
        new = np.diff(times) if count == 0 else np.diff(times, prepend=last_s)
        if len(new):
            mean, off = float(np.mean(new)), float(np.mean(new)) - mean_gap
            total = gaps + len(new)
            squares += float(np.var(new)) * len(new) + off * off * gaps * len(new) / total
            mean_gap += (mean - mean_gap) * (len(new) / total)
            gaps = total
        count, last_s = count + len(times), float(times[-1])
    if not count:
        raise InputError("has no arrivals")
    end_s = last_s if duration_s is None else duration_s
    full = int(end_s // 60.0)
    x = np.zeros(full)
    known = per_minute[:full]
    x[: len(known)] = known
    mean_per_min = count * 60.0 / end_s if end_s > 0 else math.nan
    peak_per_min = float(np.max(x)) if full else math.nan
    return {
        "count": float(count),
        "duration_s": end_s,
        "mean_per_min": mean_per_min,
        "peak_per_min": peak_per_min,
        "p99_per_min": float(np.percentile(x, 99)) if full else math.nan,
        "peak_to_mean": peak_per_min / mean_per_min,
        "dispersion_index_per_min": float(np.var(x) / np.mean(x)) if np.any(x) else math.nan,
        "cv_interarrival": math.sqrt(squares / gaps) / mean_gap if gaps and mean_gap > 0 else math.nan,
        "acf_lag1_min": autocorrelation(x, 1),
        "acf_lag60_min": autocorrelation(x, 60),
    }


def statistics_of_file(path: str | Path) -> dict[str, float]:
    """The same for a trace file (see :mod:`argus_sim.trace.file`), which is never held as a whole.

    Raises:
        InputError: What :meth:`argus_sim.trace.Trace.read` would say.
    """
    header, batches = tracefile.read_in_batches(Path(path))
    try:
        found = statistics(batches, None if header is None else header.duration_s)
    except InputError as error:
        raise error if error.where else InputError(error.message, where=str(path)) from None
    return found


def autocorrelation(x: Floats, lag: int) -> float:
    """Of a series at one lag, in [-1, 1]; NaN where it is constant or too short."""
    if len(x) < lag + 2:
        return math.nan
    centred = x - np.mean(x)
    power = float(centred @ centred)
    return float(centred[:-lag] @ centred[lag:]) / power if power > 0 else math.nan
