"""Timelines as lines: smoothed by a moving window, thinned to what can be seen, averaged over seeds.

Ratios are ratios of moving sums, so that a quiet minute does not weigh as much as a busy one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

Floats = npt.NDArray[np.float64]

#: Points along a line: more cannot be seen at the printed width and only make the files big.
MAX_POINTS = 288
#: Default of the moving window, minutes; a twentieth of the trace where that is shorter.
SMOOTH_MIN = 15.0


class Clock:
    """The time axis of timelines: which windows to draw, where, and how many to smooth over.

    Args:
        tables: One for each run. Where each seed has arrivals of its own, they may differ in length: the axis is
            as long as the longest.
        smooth_min: Length of the moving window; None for what suits the axis.

    Raises:
        ValueError: They have windows of different lengths.
    """

    def __init__(self, tables: Sequence[pd.DataFrame], smooth_min: float | None) -> None:
        table = max(tables, key=len)
        self.rows = len(table)
        width_s = float(table["window_s"].iloc[0])
        if any(float(other["window_s"].iloc[0]) != width_s for other in tables if len(other) > 1):
            raise ValueError("the timelines of a figure need the same windows")
        middle_s = (table["window_start_s"] + table["window_s"] / 2).to_numpy(dtype=np.float64)
        in_hours = middle_s[-1] > 2 * 3600.0
        self.step = max(1, math.ceil(len(table) / MAX_POINTS))
        unit_s = 3600.0 if in_hours else 60.0
        self.at = middle_s[:: self.step] / unit_s
        self.end_s = max(float(t["window_start_s"].iloc[-1] + t["window_s"].iloc[-1]) for t in tables)
        self.end = self.end_s / unit_s
        self.label = f"{'hours' if in_hours else 'minutes'} since the start of the trace"
        if smooth_min is None:
            smooth_min = min(SMOOTH_MIN, self.end_s / 60.0 / 20)
        self.windows = max(1, round(60.0 * smooth_min / width_s))
        self.note = f"Centred moving window of {self.windows * width_s / 60.0:.3g} min"
        if len({len(other) for other in tables}) > 1:
            self.note += "; seeds have traces of different lengths"

    def ratio(self, part: pd.Series[Any], whole: pd.Series[Any]) -> Floats:
        """Moving sum of the part over that of the whole, at the windows to draw.

        NaN over nothing, and past the end of a timeline that is shorter than the axis.
        """

        def moving(values: pd.Series[Any]) -> Floats:
            # Differences of running sums: exact for counts, unlike pandas' rolling sums.
            total = np.concatenate(([0.0], values.fillna(0.0).cumsum()))
            rows = np.arange(self.rows)
            first = np.clip(rows - (self.windows - 1) // 2, 0, len(values))
            last = np.minimum(rows + self.windows // 2 + 1, len(values))
            return np.where(rows < len(values), total[last] - total[first], 0.0)

        above, below = moving(part)[:: self.step], moving(whole)[:: self.step]
        quotient: Floats = np.divide(above, below, out=np.full(len(below), math.nan), where=below > 0)
        return quotient

    def line(self, table: pd.DataFrame, metric: str) -> Floats:
        """A metric of a timeline, smoothed."""
        arrived, on_time, minutes = table["arrived"], table["on_time"], table["window_s"] / 60.0
        quality = table["relative_quality"] * on_time
        part, whole = {
            "offered_per_min": (arrived, minutes),
            "effective_throughput_per_min": (on_time, minutes),
            "relative_quality": (quality, on_time),
            "quality_yield": (quality, arrived),
            "slo_violation_ratio": (arrived - on_time, arrived),
        }[metric]
        return self.ratio(part, whole)

    def over_seeds(self, tables: Iterable[pd.DataFrame], metric: str) -> tuple[Floats, Floats, Floats]:
        """Mean, lowest and highest over the seeds, window by window, of those that have a value there."""
        stack = np.array([self.line(table, metric) for table in tables])
        known = ~np.isnan(stack)
        count, total = known.sum(axis=0), np.where(known, stack, 0.0).sum(axis=0)
        mean = np.divide(total, count, out=np.full(len(count), math.nan), where=count > 0)
        return mean, np.fmin.reduce(stack, axis=0), np.fmax.reduce(stack, axis=0)
