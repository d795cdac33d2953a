"""How long a batch takes: a mean, percentiles, and draws from the distribution that they say."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy.special import ndtri

from argus_sim.profile.tables import ServiceDistribution

Floats = npt.NDArray[np.float64]

_Z90: Final = 1.2815515655446004  # standard normal quantiles
_Z99: Final = 2.3263478740408408


@dataclass(frozen=True, slots=True)
class Latency:
    """Service time of one batch, seconds.

    Where the table has no standard deviation it is 0; where it has no percentiles they are those of the
    lognormal with this mean and standard deviation.
    """

    mean_s: float
    std_s: float
    p50_s: float
    p90_s: float
    p99_s: float

    @classmethod
    def lognormal(cls, mean_s: float, std_s: float) -> Latency:
        """The latency whose percentiles are those of the lognormal with this mean and standard deviation."""
        if not std_s:  # exp(log(mean)) may be off in the last digit
            return cls(mean_s, std_s, mean_s, mean_s, mean_s)
        mu, sigma = _lognormal(mean_s, std_s)
        return cls(mean_s, std_s, math.exp(mu), math.exp(mu + _Z90 * sigma), math.exp(mu + _Z99 * sigma))

    def quantile_s(self, u: npt.ArrayLike, distribution: ServiceDistribution) -> Floats:
        """Service times at probabilities `u` in (0, 1): inverse-transform sampling, the caller's uniforms.

        ``deterministic`` is the mean whatever `u`. ``lognormal`` has the mean and standard deviation.
        ``empirical`` is linear between the percentiles; its lowest value is chosen such that the mean is
        met as well (as far as [0, p50] allows), and no value exceeds p99.
        """
        u = np.asarray(u, dtype=np.float64)
        if distribution == "deterministic":
            return np.full(u.shape, self.mean_s)
        if distribution == "lognormal":
            mu, sigma = _lognormal(self.mean_s, self.std_s)
            return np.asarray(np.exp(mu + sigma * ndtri(u)), dtype=np.float64)
        # The mean is the area under the piecewise-linear quantile function; solve it for the value at u = 0.
        above = 0.2 * (self.p50_s + self.p90_s) + 0.045 * (self.p90_s + self.p99_s) + 0.01 * self.p99_s
        low = min(max(4.0 * (self.mean_s - above) - self.p50_s, 0.0), self.p50_s)
        knots = [low, self.p50_s, self.p90_s, self.p99_s, self.p99_s]
        return np.asarray(np.interp(u, [0.0, 0.5, 0.9, 0.99, 1.0], knots), dtype=np.float64)


def latency_row(seconds: npt.ArrayLike) -> dict[str, float]:
    """The columns that a latency table has of these times: how many, their mean, deviation and percentiles.

    Args:
        seconds: One or more times.
    """
    s = np.asarray(seconds, dtype=np.float64)
    p50_s, p90_s, p99_s = (float(q) for q in np.quantile(s, [0.5, 0.9, 0.99]))
    std_s = float(s.std(ddof=1)) if len(s) > 1 else 0.0
    told = {"samples": len(s), "mean_s": float(s.mean()), "std_s": std_s}
    return {**told, "p50_s": p50_s, "p90_s": p90_s, "p99_s": p99_s}


def _lognormal(mean_s: float, std_s: float) -> tuple[float, float]:
    sigma2 = math.log1p((std_s / mean_s) ** 2)
    return math.log(mean_s) - sigma2 / 2.0, math.sqrt(sigma2)
