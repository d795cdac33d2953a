"""What a worker's second costs at each wait, and what it buys: one market for each model, behind ``argus-x``.

The pool of a model's workers is priced by its backlog (:mod:`argus_sim.core.pricing`), with the other models' at
the price that the placement gives them (:mod:`argus_sim.core.placement`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from argus_sim.core import placement, pricing
from argus_sim.core.catalog import Catalog
from argus_sim.domain import VariantId

#: From this part of the capacity on, demand counts as an overload; then workers are sure to have work from this
#: part of the longest wait on, and the price may be this part of what every class of prompts can pay. Found by
#: experiment on the trace `bursty`.
_OVERLOAD, _SURE, _AFFORDABLE = 0.92, 0.05, 0.8

#: Variants that can still be in time, with the cost of each.
Offer = tuple[tuple[VariantId, float], ...]
#: Workers of each model.
Counts = tuple[int, ...]


class Market(NamedTuple):
    """A pool as routing sees it.

    Attributes:
        work_s: The work of each variant.
        cell_s: The work per grid cell.
        offers: The offer in each cell.
        prices: The price of a worker's second in each cell.
        workers: How many can serve.
        last_s: For each variant that later images are made by: how long one takes once a worker is free.
    """

    work_s: tuple[tuple[VariantId, float], ...]
    cell_s: float
    offers: tuple[Offer, ...]
    prices: tuple[float, ...]
    workers: int
    last_s: tuple[tuple[VariantId, float], ...]


@dataclass(frozen=True)
class Terms:
    """What all markets of a cluster have in common.

    Attributes:
        catalog: Of the cluster.
        slo_s: The deadline of a request after its arrival.
        within_s: The part of it that an image is planned to be made in.
        work_s: float64[V], worker-seconds per image in full batches.
        alone_s: How long one image of each variant takes (99th percentile).
        sequences: The ways to serve by more than one image, which come after the variants among all ways.
        cells: Points of the grid of waits.
        horizon_s: How far ahead a price counts quality.
    """

    catalog: Catalog
    slo_s: float
    within_s: float
    work_s: npt.NDArray[np.float64]
    alone_s: Sequence[float]
    sequences: tuple[tuple[VariantId, ...], ...]
    cells: int
    horizon_s: float

    def of_model(self, model: int) -> list[VariantId]:
        """The variants of a model."""
        return [v for v, of in enumerate(self.catalog.model) if of == model]

    def batch(self, variant: VariantId) -> int:
        """The batch with the best throughput that makes the deadline at all."""
        sizes, mean_s = self.catalog.batch_sizes[variant], self.catalog.mean_s[variant]
        able = [b for b in sizes if b == sizes[0] or self.catalog.p99_s[variant][b] <= self.slo_s]
        return max(able, key=lambda b: b / mean_s[b])

    def once_s(self, variant: VariantId) -> float:
        """How long a batch of one takes on average."""
        return self.catalog.mean_s[variant][self.catalog.batch_sizes[variant][0]]


def markets(
    terms: Terms, wanted: placement.Demand, price: tuple[float, ...], dispersion: float, counts: Counts
) -> tuple[Market, ...]:
    """The market of each model that has workers.

    Args:
        terms: What they have in common.
        wanted: What is to be served.
        price: What a second of each model's workers is worth then: :func:`placement.worker_prices`.
        dispersion: Variance of the number of arrivals over its mean.
        counts: Workers of each model that can serve.
    """
    capacity_per_s = sum(
        n * max(1.0 / terms.work_s[v] for v in terms.of_model(m)) for m, n in enumerate(counts) if n
    )
    overload = wanted.per_s > _OVERLOAD * capacity_per_s
    return tuple(_market(terms, m, n, price, wanted, dispersion, overload) for m, n in enumerate(counts) if n)


def _market(
    terms: Terms,
    model: int,
    workers: int,
    price: tuple[float, ...],
    wanted: placement.Demand,
    dispersion: float,
    overload: bool,
) -> Market:
    """Price the seconds of one model's workers, the others' being at their planned price."""
    mine, work_s = terms.of_model(model), terms.work_s
    pool = _pool(terms, model, workers, price, wanted)
    latest_s = pool.latest_s[: len(mine)].tolist()
    waits_s = np.linspace(0.0, max(max(latest_s), 0.1 * terms.slo_s), terms.cells).tolist()
    prices = pricing.backlog_prices(pool, wanted.per_s, dispersion, waits_s, terms.horizon_s)
    if overload:
        # It lasts: whatever the noise, the backlog does not empty, and a second is worth what the program says
        # as soon as all workers are sure to have work.
        affordable = _AFFORDABLE * float((wanted.quality[:, mine] / work_s[mine]).max(axis=1).min())
        sure_s = _SURE * waits_s[-1]
        prices = [
            max(p, min(price[model], affordable) * min(1.0, x / sure_s))
            for x, p in zip(waits_s, prices, strict=True)
        ]
    offers = [
        tuple((v, p * float(work_s[v])) for v, last in zip(mine, latest_s, strict=True) if x <= last + 1e-9)
        for x, p in zip(waits_s, prices, strict=True)
    ]
    later = {v for way in terms.sequences for v in way[1:]}
    return Market(
        tuple((v, float(work_s[v])) for v in mine),
        workers * waits_s[1],
        (*offers, ()),
        tuple(prices),
        workers,
        tuple((v, terms.alone_s[v] + terms.once_s(v) / (workers + 1)) for v in mine if v in later),
    )


def _pool(
    terms: Terms, model: int, workers: int, price: tuple[float, ...], wanted: placement.Demand
) -> pricing.Pool:
    """One model's workers, and what may be asked of them: first its variants, then its part of sequences."""
    catalog, use_s = terms.catalog, wanted.work_s
    mine = terms.of_model(model)
    several = range(len(catalog.variants), use_s.shape[1])
    # What a way to serve costs elsewhere; where it cannot be had, infinitely much.
    outside = [m for m in range(len(price)) if m != model]
    absent = [m for m in outside if not math.isfinite(price[m])]
    missing = [any(use_s[m, w] > 0.0 for m in absent) for w in range(use_s.shape[1])]
    there = [m for m in outside if math.isfinite(price[m])]
    cost = np.array([price[m] for m in there]) @ use_s[there] if there else np.zeros(use_s.shape[1])
    others = [w for w in range(use_s.shape[1]) if not use_s[model, w] and not missing[w]]
    elsewhere = np.zeros(len(wanted.share))
    if others:
        elsewhere = np.maximum(0.0, (wanted.quality[:, others] - cost[others]).max(axis=1))
    batch = {v: terms.batch(v) for v in mine}
    latest_s = [
        pricing.longest_wait_s(terms.within_s, catalog.p99_s[v][b], workers, catalog.mean_s[v][b])
        for v, b in batch.items()
    ]
    partly = [w for w in several if use_s[model, w] and not missing[w]]
    ways = [terms.sequences[w - several.start] for w in partly]
    whole_s = [sum(terms.work_s[v] for v in way if catalog.model[v] == model) for way in ways]
    once_s = max(terms.once_s(v) for v in mine)
    last_s = [
        pricing.longest_wait_s(terms.within_s, sum(terms.alone_s[v] for v in way), workers, once_s)
        for way in ways
    ]
    return pricing.Pool(
        quality=np.hstack([wanted.quality[:, mine], wanted.quality[:, partly] - cost[partly]]),
        work_s=use_s[model, [*mine, *partly]],
        chance=np.append(np.ones(len(mine)), use_s[model, partly] / whole_s),
        latest_s=np.array([*latest_s, *last_s]),
        share=wanted.share,
        otherwise=elsewhere,
        workers=workers,
        # About two variants are in use at a time: both need a full batch waiting for the next worker.
        full_wait_s=2.0 * (max(batch.values()) - 1) * float(terms.work_s[mine].mean()) / workers,
        half_full=float(min(terms.work_s[v] * 1.0 / terms.once_s(v) for v in mine)),
    )
