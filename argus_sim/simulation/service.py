"""How long things take on the simulated cluster, drawn from the profile."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import numpy as np

from argus_sim.core.catalog import Kind
from argus_sim.profile import Profile

#: A service time is one of this many equally probable quantiles of its distribution.
STRATA = 1024


#: ``times_s[variant][size][stratum]``.
Table = list[dict[int, list[float]]]


class ServiceTimes:
    """How long a batch runs: ``times_s[variant][size][draw[row]]``, where ``row`` is its first request.

    Each request carries its own luck, drawn before the run, and a batch takes that of its first request. So all
    policies are compared on common random numbers, however they batch and route. Tables rather than a method:
    this is looked up for every batch of a replay. Where a profile says how long batches take after a pause,
    :meth:`after_s` has to be asked instead.

    Attributes:
        kinds: The table of each kind of worker.
        draw: The stratum of each request.
        pauses: By kind: ``(idle_s, table)`` of batches after that much idleness of the worker, the longest pause
            first; with what the profile has.
    """

    __slots__ = ("draw", "kinds", "pauses")

    def __init__(self, times_s: Table, draw: Sequence[int], *others: Table) -> None:
        self.kinds = (times_s, *others)
        self.draw = draw
        self.pauses: tuple[tuple[tuple[float, Table], ...], ...] = ((),) * len(self.kinds)

    @property
    def times_s(self) -> Table:
        """The table of the first kind of worker."""
        return self.kinds[0]

    @classmethod
    def of(
        cls, profile: Profile, requests: int, rng: np.random.Generator, kinds: Sequence[Kind] = ()
    ) -> ServiceTimes:
        """From a profile's latency distributions, in :data:`STRATA` equally probable quantiles.

        Args:
            profile: What the variants are, and how long they take if there are no kinds.
            requests: How many to draw for.
            kinds: Of the cluster's workers.
        """
        draw = array("H", rng.integers(0, STRATA, size=requests, dtype=np.uint16).tobytes())
        names = [variant.name for variant in profile.variants]
        hardware = [k.hardware for k in kinds] or [profile]
        times = cls(_table(hardware[0], names), draw, *(_table(other, names) for other in hardware[1:]))
        times.pauses = tuple(_pauses(each, names) for each in hardware)
        return times

    def after_s(self, kind: int, variant: int, size: int, luck: int, idle_s: float) -> float:
        """How long a batch takes on a worker that has had nothing to do for `idle_s`.

        That of the longest pause in the profile which is not longer, or of a batch right after another.
        """
        for pause_s, table in self.pauses[kind]:
            if idle_s >= pause_s and size in table[variant]:
                return table[variant][size][luck]
        return self.kinds[kind][variant][size][luck]

    def least(self) -> tuple[Table, ...]:
        """The table of each kind of worker with the least that a batch can take, whatever came before it."""
        return tuple(
            [
                {
                    size: np.minimum.reduce([times, *(t[v][size] for _, t in pauses if size in t[v])]).tolist()
                    for size, times in sizes.items()
                }
                for v, sizes in enumerate(table)
            ]
            if pauses
            else table
            for table, pauses in zip(self.kinds, self.pauses, strict=True)
        )


def _pauses(profile: Profile, variants: Sequence[str]) -> tuple[tuple[float, Table], ...]:
    middle = (np.arange(STRATA) + 0.5) / STRATA
    distribution = profile.manifest.service_distribution
    found: dict[float, Table] = {}
    for position, variant in enumerate(map(profile.variant_id, variants)):
        for size in profile.batch_sizes(variant):
            for idle_s, latency in profile.after_idle(variant, size):
                table = found.setdefault(idle_s, [{} for _ in variants])
                table[position][size] = latency.quantile_s(middle, distribution).tolist()
    return tuple(sorted(found.items(), reverse=True))


def _table(profile: Profile, variants: Sequence[str]) -> Table:
    middle = (np.arange(STRATA) + 0.5) / STRATA
    distribution = profile.manifest.service_distribution
    return [
        {
            size: profile.latency(variant, size).quantile_s(middle, distribution).tolist()
            for size in profile.batch_sizes(variant)
        }
        for variant in map(profile.variant_id, variants)
    ]


class LoadTimes:
    """Model load times drawn from a profile's observed ones, or from those of each kind of worker."""

    __slots__ = ("_rng", "_samples_s")

    def __init__(self, profile: Profile, rng: np.random.Generator, kinds: Sequence[Kind] = ()) -> None:
        self._samples_s = [
            [hardware.load_samples_s(model) for model in profile.models]
            for hardware in [k.hardware for k in kinds] or [profile]
        ]
        self._rng = rng

    def seconds(self, model: int, kind: int = 0) -> float:
        """How long a worker of this kind takes for this model, this time."""
        return float(self._rng.choice(self._samples_s[kind][model]))
