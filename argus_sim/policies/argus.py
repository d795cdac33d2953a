"""Argus (Agarwal, Mitra, Iqbal; Middleware '25): each prompt at the cheapest level that keeps its quality.

From the authors' artefact (2024, then named AccuScale; ``solver_milp_oda.py``): a solver gives each GPU a level
of approximate caching, such that the forecast demand is served at the highest mean quality. Prompts have an
*affinity*, the most approximate level that still serves them well. A second step aligns the two distributions:
it says with which probability a prompt of affinity i is served at level j. Solver period, SLO and the affinity
predictor of the published system are not known; they are parameters here.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from argus_sim.core.catalog import Catalog
from argus_sim.core.solvers import Allocation, Row, align, align_one_pass
from argus_sim.core.view import ClusterView
from argus_sim.domain import Request, VariantId
from argus_sim.policies.allocation import Allocating, AllocatingParams
from argus_sim.policies.base import Decision, Params, Route, Setup

#: Histograms are rounded to one part in this many, so that alignments recur and the solver remembers them.
_SHARES = 100


class ArgusParams(AllocatingParams):
    """Parameters of :class:`Argus`."""

    ladder: Literal["auto", "AC", "SM"] = Field(
        default="auto", description="AC: approximate caching; SM: smaller models; auto: AC where there is one."
    )
    tolerance: float = Field(
        default=0.05, ge=0, lt=1, description="Relative quality that may be lost to call a level good enough."
    )
    recent: int = Field(default=2000, ge=1, description="Arrivals that the affinity histogram is made of.")
    aligner: Literal["exact", "one-pass"] = Field(
        default="exact", description="one-pass: the artefact's heuristic, flaws included."
    )


def choose_ladder(catalog: Catalog, wanted: str, where: str) -> tuple[VariantId, ...]:
    """The ladder of a name; ``auto`` prefers approximate caching."""
    name = wanted if wanted != "auto" else "AC" if "AC" in catalog.ladders else "SM"
    return catalog.ladder(name, where=where)


class Argus(Allocating):
    """Forecast, allocate, align, route by affinity."""

    name: ClassVar[str] = "argus"
    Params: ClassVar[type[Params]] = ArgusParams

    def __init__(self, setup: Setup, params: Any) -> None:
        ladder = choose_ladder(setup.catalog, params.ladder, "policy argus: ladder")
        super().__init__(setup, params, ladder, limit_s=setup.slo_s)
        levels = len(ladder)
        affinity = setup.predictor.affinity(ladder, params.tolerance)
        # As a list for routing, one prompt at a time, and as an array for the histogram.
        self._affinity: list[int] = affinity.tolist()
        self._affinities = affinity
        self._levels = levels
        self._loss = _expected_loss(
            affinity[setup.predictor.train], setup.predictor.observed[:, list(ladder)], levels
        )
        self._routes = [
            [Route(v, f"affinity {i}, level {j}") for j, v in enumerate(ladder)] for i in range(levels)
        ]
        #: What the last alignment came to: shares, their running sums, and where there is nothing to draw.
        self._shares: npt.NDArray[np.float64] | None = None
        self._sure: list[Route | None] = [None] * levels
        self._upto: list[list[float]] = []

    def histogram(self, view: ClusterView) -> Row:
        """Share of each affinity among the recent prompts, to a hundredth; no level has a share of exactly 0."""
        prompts = view.recent_prompts(self.params.recent)
        if not len(prompts):
            return (1.0 / self._levels,) * self._levels
        counts = np.bincount(self._affinities[prompts], minlength=self._levels).tolist()
        rounded = [max(1, round(_SHARES * count / len(prompts))) for count in counts]
        return tuple(share / sum(rounded) for share in rounded)

    def aim(self, allocation: Allocation, view: ClusterView) -> None:
        have = self.histogram(view)
        if self.params.aligner == "exact":
            shares = align(have, allocation.share, self._loss)
        else:
            shares = align_one_pass(have, allocation.share)
            # The artefact may leave prompts at a level that has no workers: they go to the nearest that has.
            shares = _restrict(shares, np.asarray(allocation.workers) > 0)
        if shares is self._shares:
            return
        self._shares = shares
        self._upto = np.cumsum(shares, axis=1)[:, :-1].tolist()
        for i in range(self._levels):
            certain = np.flatnonzero(shares[i] >= 1.0 - 1e-12)
            self._sure[i] = self._routes[i][int(certain[0])] if len(certain) else None

    def route(self, request: Request, view: ClusterView) -> Decision:
        if request.hit is not None:
            return self._missed
        affinity = self._affinity[request.prompt]
        sure = self._sure[affinity]
        if sure is not None:
            return sure
        return self._routes[affinity][bisect_right(self._upto[affinity], self._draws[request.row])]


def _expected_loss(
    affinity: npt.NDArray[np.int64], observed: npt.NDArray[np.float64], levels: int
) -> tuple[Row, ...]:
    """L x L: mean quality that training prompts of affinity i lose at level j against their best.

    An affinity that no training prompt has gets the loss of all of them.
    """
    loss = observed.max(axis=1, keepdims=True) - observed
    rows = [
        loss[affinity == i].mean(axis=0) if (affinity == i).any() else loss.mean(axis=0) for i in range(levels)
    ]
    return tuple(tuple(np.round(row, 6).tolist()) for row in rows)


def _restrict(shares: npt.NDArray[np.float64], served: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    restricted = np.zeros_like(shares)
    for j in range(shares.shape[1]):
        levels = np.flatnonzero(served)
        restricted[:, levels[np.argmin(np.abs(levels - j))]] += shares[:, j]
    return restricted
