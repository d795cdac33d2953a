"""Clipper (Crankshaw et al., NSDI'17) as the T2I serving papers use it: one variant everywhere, adaptive batches.

Proteus (Ahmad et al., ASPLOS'24, section 6) defines the two baselines: high accuracy (HA) serves all requests
with the best variant, high throughput (HT) with the fastest model. Neither scales or looks at the prompt.

Batching (Clipper, section 4.3): the batch size limit grows by one with every full batch that runs within the
SLO and shrinks by a tenth when a batch exceeds it (additive increase, multiplicative decrease).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from pydantic import Field

from argus_sim.core.catalog import Catalog
from argus_sim.core.view import ClusterView
from argus_sim.domain import BatchResult, Request, VariantId
from argus_sim.policies.base import Decision, Params, Plan, Policy, Route, Setup, keep_or_move


class ClipperParams(Params):
    """Parameters of :class:`ClipperHA` and :class:`ClipperHT`."""

    backoff: float = Field(
        default=0.9, gt=0, lt=1, description="What the batch limit is multiplied by when a batch was too slow."
    )


class _Clipper(Policy):
    Params: ClassVar[type[Params]] = ClipperParams

    def __init__(self, setup: Setup, params: Any) -> None:
        super().__init__(setup, params)
        self._variant = self.choose(setup.catalog)
        self._decision = Route(self._variant, "the only variant")
        self._largest = max(kind.max_batch[self._variant] for kind in setup.catalog.kinds)
        self._limit = 1.0

    def choose(self, catalog: Catalog) -> VariantId:
        raise NotImplementedError

    @property
    def constant(self) -> Decision:
        return self._decision

    def plan(self, view: ClusterView) -> Plan:
        return keep_or_move({(self._variant,): view.workers_up}, view, self.setup.catalog, "one variant")

    def route(self, request: Request, view: ClusterView) -> Decision:
        return self._decision

    def batch(self, queue: Sequence[int], variant: VariantId, worker: int, view: ClusterView) -> int:
        fit = self.setup.catalog.of_worker(worker).fit[variant]
        return fit[min(len(queue), int(self._limit), len(fit) - 1)]

    def observe(self, event: BatchResult) -> None:
        fit = self.setup.catalog.of_worker(event.worker).fit[event.variant]
        if event.service_s > self.setup.slo_s:
            self._limit = max(1.0, self._limit * self.params.backoff)
        elif event.size >= fit[min(int(self._limit), len(fit) - 1)]:
            self._limit = min(float(self._largest), self._limit + 1.0)


class ClipperHA(_Clipper):
    """Always the base variant."""

    name: ClassVar[str] = "clipper-ha"

    def choose(self, catalog: Catalog) -> VariantId:
        return catalog.base


class ClipperHT(_Clipper):
    """Always the model with the highest throughput; approximations of a model are not its business."""

    name: ClassVar[str] = "clipper-ht"

    def choose(self, catalog: Catalog) -> VariantId:
        models = catalog.ladders.get("SM", (catalog.base,))
        workers, slo_s = self.setup.workers, self.setup.slo_s
        return max(models, key=lambda v: (catalog.cluster_throughput_per_s(v, workers, limit_s=slo_s), -v))
