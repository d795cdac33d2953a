"""NIRVANA (Agarwal et al., NSDI'24): approximate caching, one prompt at a time.

Every prompt is looked up in the cache, and how many denoising steps it skips depends on how similar the nearest
cached prompt is (the table of the Argus artefact, ``pipeline/cache/cache_utils.py``, which the paper shares).
Load plays no part in it: all workers hold the base model and take whatever comes.

The original runs prompts one by one. The artefact grants every system the same batching gain, and so does the
engine's default here: requests that skip the same steps run together when they wait together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from pydantic import Field, model_validator

from argus_sim.core.view import ClusterView
from argus_sim.domain import CacheHit, Request, VariantId
from argus_sim.errors import InputError
from argus_sim.policies.base import AskCache, Decision, Params, Plan, Policy, Route, Setup, keep_or_move


class NirvanaParams(Params):
    """Parameters of :class:`Nirvana`."""

    thresholds: dict[int, float] = Field(
        default={5: 0.65, 10: 0.75, 15: 0.85, 20: 0.90, 25: 0.95},
        description="Steps to skip -> the similarity above which they may be skipped.",
    )
    one_by_one: bool = Field(default=False, description="No batching at all, as in the original.")

    @model_validator(mode="after")
    def _rising(self) -> NirvanaParams:
        values = [self.thresholds[k] for k in sorted(self.thresholds)]
        if values != sorted(values):
            raise ValueError("thresholds must rise with the number of steps skipped")
        return self


class Nirvana(Policy):
    """Skips as many steps as the similarity of the nearest cached prompt allows."""

    name: ClassVar[str] = "nirvana"
    Params: ClassVar[type[Params]] = NirvanaParams

    def __init__(self, setup: Setup, params: Any) -> None:
        super().__init__(setup, params)
        catalog = setup.catalog
        ladder = catalog.ladder("AC", where="policy nirvana")
        by_steps = {catalog.variants[v].skipped_steps: v for v in ladder}
        unknown = set(params.thresholds) - set(by_steps)
        if unknown:
            raise InputError(
                f"profile {catalog.name!r} skips {sorted(by_steps)} steps, not {sorted(unknown)}",
                where="policy nirvana: thresholds",
            )
        self._serves = tuple(sorted(ladder))
        self._ask = AskCache("similarity decides")
        self._base = Route(catalog.base, "no similar prompt cached")
        #: Deepest first: the first threshold that the similarity exceeds decides.
        self._levels = [
            (params.thresholds[k], k, Route(by_steps[k], f"similar enough to skip {k} steps"))
            for k in sorted(params.thresholds, reverse=True)
        ]
        self._most = 1 if params.one_by_one else max(b for kind in catalog.kinds for b in kind.max_batch)

    def plan(self, view: ClusterView) -> Plan:
        return keep_or_move({self._serves: view.workers_up}, view, self.setup.catalog, "base model everywhere")

    def route(self, request: Request, view: ClusterView) -> Decision:
        hit: CacheHit | None = request.hit
        if hit is None:
            return self._ask
        for threshold, steps, route in self._levels:
            if hit.similarity > threshold and hit.max_skipped_steps >= steps:
                return route
        return self._base

    def batch(self, queue: Sequence[int], variant: VariantId, worker: int, view: ClusterView) -> int:
        fit = self.setup.catalog.of_worker(worker).fit[variant]
        return fit[min(len(queue), self._most, len(fit) - 1)]
