"""How long things take on the simulated cluster, drawn from the profile."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import numpy as np

from argus_sim.profile import Profile

#: A service time is one of this many equally probable quantiles of its distribution.
STRATA = 1024


class ServiceTimes:
    """How long a batch runs: ``times_s[variant][size][draw[row]]``, where ``row`` is its first request.

    Each request carries its own luck, drawn before the run, and a batch takes that of its first request. So all
    policies are compared on common random numbers, however they batch and route. Tables rather than a method:
    this is looked up for every batch of a replay.
    """

    __slots__ = ("draw", "times_s")

    def __init__(self, times_s: list[dict[int, list[float]]], draw: Sequence[int]) -> None:
        self.times_s = times_s
        self.draw = draw

    @classmethod
    def of(cls, profile: Profile, requests: int, rng: np.random.Generator) -> ServiceTimes:
        """From a profile's latency distributions, in :data:`STRATA` equally probable quantiles."""
        draw = array("H", rng.integers(0, STRATA, size=requests, dtype=np.uint16).tobytes())
        middle = (np.arange(STRATA) + 0.5) / STRATA
        distribution = profile.manifest.service_distribution
        times_s = [
            {
                size: profile.latency(variant, size).quantile_s(middle, distribution).tolist()
                for size in profile.batch_sizes(variant)
            }
            for variant in range(len(profile.variants))
        ]
        return cls(times_s, draw)


class LoadTimes:
    """Model load times drawn from a profile's observed ones."""

    __slots__ = ("_rng", "_samples_s")

    def __init__(self, profile: Profile, rng: np.random.Generator) -> None:
        self._samples_s = [profile.load_samples_s(model) for model in profile.models]
        self._rng = rng

    def seconds(self, model: int) -> float:
        return float(self._rng.choice(self._samples_s[model]))
