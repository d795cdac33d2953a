"""A rate that varies in time, and arrivals drawn from it: what all kinds of arrivals are made of."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from argus_sim.trace.trace import Floats

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


def ascending(points: Sequence[tuple[float, float]]) -> list[float]:
    """The times of ``(time_s, rate)`` points; ValueError unless they start at 0 s and ascend."""
    times = [time_s for time_s, _ in points]
    if times[0] != 0:
        raise ValueError(f"the first point must be at 0 s, found {times[0]:g}")
    for before, after in pairwise(times):
        if before >= after:
            raise ValueError(f"points must ascend in time, found {before:g} s before {after:g} s")
    return times


@dataclass(frozen=True, slots=True)
class RateCurve:
    """A rate that is linear within each of k segments and may jump between them.

    Attributes:
        edge_s: float64[k + 1], ascending from 0.
        left_per_s: float64[k], >= 0: the rate at the left end of each segment.
        right_per_s: float64[k], >= 0: the rate at its right end.
    """

    edge_s: Floats
    left_per_s: Floats
    right_per_s: Floats

    def wobbled(self, cv: float, rng: np.random.Generator) -> RateCurve:
        """The curve with every aligned minute multiplied by its own Gamma variable of mean 1 and this cv.

        Counts per minute around a mean m then have the variance m + (cv m)^2 instead of m.
        """
        if cv == 0:
            return self
        minute_s = np.arange(0.0, self.edge_s[-1], 60.0)
        factor = rng.gamma(cv**-2, cv**2, size=len(minute_s))
        edge_s = np.union1d(self.edge_s, minute_s)
        left_s, right_s = edge_s[:-1], edge_s[1:]
        segment = np.searchsorted(self.edge_s, left_s, side="right") - 1
        start_s, base = self.edge_s[segment], self.left_per_s[segment]
        slope = ((self.right_per_s - self.left_per_s) / np.diff(self.edge_s))[segment]
        scale = factor[np.searchsorted(minute_s, left_s, side="right") - 1]
        # Rounding must not take a rate that falls to 0 below it.
        return RateCurve(
            edge_s,
            np.maximum(base + slope * (left_s - start_s), 0.0) * scale,
            np.maximum(base + slope * (right_s - start_s), 0.0) * scale,
        )

    def sample(self, rng: np.random.Generator) -> Floats:
        """Arrival times of a Poisson process with this rate: float64[n], ascending; n may be 0."""
        width_s = np.diff(self.edge_s)
        count = rng.poisson((self.left_per_s + self.right_per_s) / 2.0 * width_s)
        segment = np.repeat(np.arange(len(width_s)), count)
        left, right = self.left_per_s[segment], self.right_per_s[segment]
        # The share x of a segment that holds the share u of its area solves a quadratic; this form of its
        # root neither cancels nor minds a slope of 0. u is in (0, 1]: a rate that starts at 0 gives no 0/0.
        u = 1.0 - rng.random(len(segment))
        x = u * (left + right) / (left + np.sqrt(left**2 + u * (right**2 - left**2)))
        return np.sort(np.minimum(self.edge_s[segment] + x * width_s[segment], self.edge_s[segment + 1]))


class Arrivals(BaseModel, ABC):
    """What all kinds have in common.

    Attributes:
        duration_s: Length of the trace.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    duration_s: Positive

    @abstractmethod
    def times(self, rng: np.random.Generator) -> Floats:
        """Arrival times in [0, duration_s]: float64[n], ascending, s; n may be 0."""


def steps(edge_s: Sequence[float], per_min: Sequence[float]) -> RateCurve:
    """A rate that is constant within each segment: k + 1 edges (s), k rates per minute."""
    per_s = np.array(per_min, dtype=np.float64) / 60.0
    return RateCurve(np.array(edge_s, dtype=np.float64), per_s, per_s)


def lines(edge_s: Sequence[float] | Floats, per_min: Sequence[float] | Floats) -> RateCurve:
    """A rate that is linear from edge to edge: k + 1 edges (s), k + 1 rates per minute."""
    per_s = np.array(per_min, dtype=np.float64) / 60.0
    return RateCurve(np.array(edge_s, dtype=np.float64), per_s[:-1], per_s[1:])
