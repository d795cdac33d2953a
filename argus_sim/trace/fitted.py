"""Arrivals like those of a recorded trace: the model that :mod:`argus_sim.trace.fit` estimates."""

from __future__ import annotations

from typing import Annotated, Literal, Self

import numpy as np
from pydantic import Field, model_validator
from scipy.special import gammaincinv, ndtr

from argus_sim.trace.rate import Arrivals, NonNegative, Positive, ascending
from argus_sim.trace.trace import Floats

Finite = Annotated[float, Field(ge=-50, le=50)]

#: Gaps drawn before the start, so that the process is in equilibrium there.
_WARM_UP = 50


class Fitted(Arrivals):
    """A rate in steps, minutes that vary around it and remember, and gaps that cluster.

    Over the steps lies, where there are harmonics, a periodic factor: the exponential of a sum of cosines and
    sines. The rate is multiplied, minute by minute, by a Gamma variable of mean 1 and coefficient of variation
    ``noise_cv`` whose quantiles are those of a Gaussian autoregression of order 1. Arrivals are a renewal process
    in the time that this rate measures (the area under it): gaps of 1 on average, Gamma-distributed.

    Attributes:
        points: ``[time_s, per_min]`` pairs, the first at 0 s, ascending in time; a rate holds until the next.
        harmonics: ``[period_s, a, b]``: the rate is multiplied by exp(a cos(2 pi t / period_s) + b sin(the
            same)), taken at the middle of each minute.
        noise_cv: Of the factor of a minute; 0 is none.
        noise_correlation: From minute to minute, of the Gaussian behind the factor.
        gap_cv: Coefficient of variation of gaps; 1 is a Poisson process, more are clusters.
        resolution_s: Times are rounded down to multiples of it, as the recorded stamps are; 0 is not at all.
    """

    kind: Literal["fitted"] = "fitted"
    points: tuple[tuple[NonNegative, NonNegative], ...] = Field(min_length=1)
    harmonics: tuple[tuple[Positive, Finite, Finite], ...] = ()
    noise_cv: NonNegative = 0.0
    noise_correlation: Annotated[float, Field(ge=0, lt=1)] = 0.0
    gap_cv: Positive = 1.0
    resolution_s: NonNegative = 0.0

    @model_validator(mode="after")
    def _points_in_order(self) -> Self:
        times = ascending(self.points)
        if times[-1] >= self.duration_s:
            raise ValueError(f"a point at {times[-1]:g} s is not before the end ({self.duration_s:g} s)")
        if not any(rate for _, rate in self.points):
            raise ValueError("the rate must not be 0 throughout")
        return self

    def described(self) -> str:
        """The model in a few words."""
        waves = f", {len(self.harmonics)} harmonics" if self.harmonics else ""
        return (
            f"fitted: {len(self.points)} steps{waves} over {self.duration_s:g} s, noise_cv {self.noise_cv:g}, "
            f"noise_correlation {self.noise_correlation:g}, gap_cv {self.gap_cv:g}"
        )

    def expected_area(self) -> tuple[Floats, Floats]:
        """Edges of the steps, and with harmonics of minutes (s), and arrivals expected up to each."""
        edge_s = np.array([*(time_s for time_s, _ in self.points), self.duration_s])
        per_s = np.array([rate for _, rate in self.points]) / 60.0
        if self.harmonics:
            fine_s = np.union1d(edge_s, np.arange(0.0, self.duration_s, 60.0))
            per_s = per_s[np.searchsorted(edge_s, fine_s[:-1], side="right") - 1]
            middle_s = (fine_s[1:] + fine_s[:-1]) / 2.0
            period_s, a, b = (np.array(column)[:, None] for column in zip(*self.harmonics, strict=True))
            angle = 2.0 * np.pi * middle_s / period_s
            edge_s, per_s = fine_s, per_s * np.exp(np.sum(a * np.cos(angle) + b * np.sin(angle), axis=0))
        return edge_s, np.append(0.0, np.cumsum(per_s * np.diff(edge_s)))

    def times(self, rng: np.random.Generator) -> Floats:
        edge_s: Floats
        area: Floats
        edge_s, area = self.expected_area()
        if self.noise_cv > 0:
            minute_s = np.arange(0.0, self.duration_s, 60.0)
            factor = self._factors(len(minute_s), rng)
            fine_s = np.union1d(edge_s, minute_s)
            part = np.diff(np.interp(fine_s, edge_s, area))
            part = part * factor[np.searchsorted(minute_s, fine_s[:-1], side="right") - 1]
            edge_s, area = fine_s, np.append(0.0, np.cumsum(part))
        at = self._renewal(float(area[-1]), rng)
        # The sum of the factors may round past the end.
        times = np.minimum(np.interp(at, area, edge_s), self.duration_s)
        if self.resolution_s > 0:
            times = np.floor(times / self.resolution_s) * self.resolution_s
        return np.sort(times)

    def _factors(self, minutes: int, rng: np.random.Generator) -> Floats:
        normal: Floats = rng.standard_normal(minutes)
        phi, fresh = self.noise_correlation, (1.0 - self.noise_correlation**2) ** 0.5
        if phi > 0:
            values = normal.tolist()
            for i in range(1, minutes):
                values[i] = phi * values[i - 1] + fresh * values[i]
            normal = np.array(values, dtype=np.float64)
        shape = self.noise_cv**-2
        share = np.clip(ndtr(normal), 1e-12, 1.0 - 1e-12)
        return np.asarray(gammaincinv(shape, share) / shape, dtype=np.float64)

    def _renewal(self, until: float, rng: np.random.Generator) -> Floats:
        """Renewal points in [0, until) with gaps of mean 1."""
        shape = self.gap_cv**-2
        parts, last = [], -float(_WARM_UP)
        while last < until:
            n = int(min(max(until - last, 0.0) * 1.05 + 100, 4_000_000))
            gaps = rng.gamma(shape, 1.0 / shape, n) if shape != 1.0 else rng.exponential(1.0, n)
            parts.append(last + np.cumsum(gaps))
            last = float(parts[-1][-1])
        points = np.concatenate(parts)
        return points[(points >= 0) & (points < until)]
