"""PAC: Argus' allocation without prompt awareness, a baseline of the authors' artefact (2024).

The artefact names it only in its plots; that it has the same levels and the same allocation, and sends any
prompt to any level, is inferred from its quality at the peak, which is that of the solver's prompt-agnostic
answer. So it is :class:`Argus` to whom all prompts are alike, and nothing else.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from argus_sim.core.affinity import QualityPredictor
from argus_sim.core.catalog import Catalog
from argus_sim.core.solvers import Allocation, Row
from argus_sim.core.view import ClusterView
from argus_sim.domain import VariantId
from argus_sim.policies.argus import Argus, BlindParams
from argus_sim.policies.base import Params, Route
from argus_sim.policies.ladders import Ladder


class PacParams(BlindParams):
    """Parameters of :class:`Pac`."""


class Pac(Argus):
    """Forecast, allocate, and draw a level for each request by the levels' shares."""

    name: ClassVar[str] = "pac"
    predicts: ClassVar[bool] = False
    Params: ClassVar[type[Params]] = PacParams

    def read(self, catalog: Catalog, variants: tuple[VariantId, ...]) -> Ladder:
        """Each prompt has the mean quality of the training prompts: one affinity, and the same losses for all."""
        known = self.setup.predictor
        blind = QualityPredictor(
            predicted=np.broadcast_to(catalog.quality, known.predicted.shape),
            train=known.train,
            observed=np.broadcast_to(catalog.quality, known.observed.shape),
        )
        ladder = Ladder.of(catalog, variants, blind, 0.0, self.setup.slo_s)
        routes = [Route(v, f"level {j} by its share") for j, v in enumerate(variants)]
        return replace(ladder, routes=[routes] * len(variants))

    def histogram(self, view: ClusterView, ladder: Ladder) -> Row:
        levels = len(ladder.variants)
        return (1.0 / levels,) * levels

    def shares(self, allocation: Allocation, view: ClusterView) -> npt.NDArray[np.float64]:
        return np.tile(allocation.share, (len(self.ladder), 1))
