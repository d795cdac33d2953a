"""Policies that answer whatever is allowed, and remember what they were asked and answered."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from argus_sim.core import affinity
from argus_sim.core.batching import DropRule
from argus_sim.core.catalog import Catalog
from argus_sim.core.commands import RunBatch
from argus_sim.core.engine import Engine
from argus_sim.core.view import ClusterView
from argus_sim.domain import BatchResult, CacheHit, Request, VariantId
from argus_sim.policies.base import (
    AskCache,
    Decision,
    Params,
    Plan,
    Policy,
    Refuse,
    Route,
    Serves,
    Setup,
    Wait,
)
from tests.make_profile import make_profile

# Three models; two of them have variants that skip steps; batch sizes with gaps, and one (small: 2) that does not
# pay. With a spread, so that the 99th percentile is not the mean.
# Three models; two of them have variants that skip steps; batch sizes with gaps, and one (small: 2) that does not
# pay. With a spread, so that the 99th percentile is not the mean.
PROFILE = make_profile(
    {
        "big": {1: 4.0, 2: 6.0, 4: 10.0},
        "big/ac-10": {1: 3.2, 2: 4.8, 4: 8.0},
        "big/ac-25": {1: 2.0, 3: 4.0},
        "mid": {1: 2.5, 2: 4.0},
        "mid/ac-20": {1: 1.5},
        "small": {1: 1.0, 2: 2.2, 3: 2.4},
    },
    std_s=0.05,
)
CATALOG = Catalog.of(PROFILE)
SKIPPED = [v.skipped_steps for v in CATALOG.variants]
PREDICTOR = affinity.perfect(PROFILE)
REQUESTS = 100

DROP_RULES = [DropRule("late"), DropRule("never"), DropRule("factor", 1.5)]


@dataclass(frozen=True)
class Temper:
    """How a policy behaves; the chances are those of each answer."""

    seed: int
    refuse: float
    ask: float
    wait: float
    replan: float
    period_s: float | None


class Anything(Policy):
    """Answers whatever is allowed, and remembers what it was asked and answered."""

    name = "anything"

    def __init__(self, setup: Setup, temper: Temper) -> None:
        super().__init__(setup, Params())
        self._rng = random.Random(temper.seed)
        self.temper = temper
        self.plans: list[Plan] = []
        self.decisions: list[tuple[int, Decision]] = []
        self.asked_at_s: list[float] = []
        self.oldest_view_s = 0.0
        self.draining = False

    @property
    def period_s(self) -> float | None:
        return self.temper.period_s

    def chance(self, of: float) -> bool:
        return self._rng.random() < of

    def _look(self, view: ClusterView) -> None:
        self.asked_at_s.append(view.now_s)
        self.oldest_view_s = max(self.oldest_view_s, view.age_s)

    def monitor(self, view: ClusterView) -> bool:
        self._look(view)
        return self.chance(self.temper.replan)

    def plan(self, view: ClusterView) -> Plan:
        self._look(view)
        serves = [
            view.serves(w) if view.serves(w) and self.chance(0.5) else self._something_to_serve()
            for w in range(view.workers)
        ]
        self.plans.append(Plan(tuple(serves), "anything"))
        return self.plans[-1]

    def _something_to_serve(self) -> Serves:
        model = self._rng.randrange(len(CATALOG.models))
        variants = [v for v in range(len(CATALOG.variants)) if CATALOG.model[v] == model]
        return tuple(self._rng.sample(variants, self._rng.randint(1, len(variants))))

    def route(self, request: Request, view: ClusterView) -> Decision:
        self._look(view)
        decision = self._decide(request, view)
        self.decisions.append((request.row, decision))
        return decision

    def _decide(self, request: Request, view: ClusterView) -> Decision:
        hit = request.hit
        if self.chance(self.temper.refuse):
            return Refuse("no")
        if hit is None and self.chance(self.temper.ask):
            return AskCache("who knows")
        up = [w for w in range(view.workers) if view.is_up(w)]
        served = sorted({v for w in up for v in view.serves(w)}) or range(len(CATALOG.variants))
        allowed = [v for v in served if hit is None or SKIPPED[v] <= hit.max_skipped_steps]
        return Route(self._rng.choice(allowed), "why not") if allowed else Refuse("nothing fits")


class Cascade(Anything):
    """Has some images made again, by any variant that is served and needs no cache."""

    def __init__(self, setup: Setup, temper: Temper) -> None:
        super().__init__(setup, temper)
        self.heard: list[float] = []

    def review(self, request: Request, variant: VariantId, confidence: float, view: ClusterView) -> Route | None:
        self._look(view)
        self.heard.append(confidence)
        up = [w for w in range(view.workers) if view.is_up(w)]
        served = sorted({v for w in up for v in view.serves(w) if not SKIPPED[v]})
        if self.draining or not served or self.chance(0.5):
            return None
        decision = Route(self._rng.choice(served), "why not")
        self.decisions.append((request.row, decision))
        return decision


class Constant(Anything):
    """Has one decision for every arrival: the engine asks for it once, and only again when things go wrong."""

    def __init__(self, setup: Setup, temper: Temper) -> None:
        super().__init__(setup, temper)
        always: list[Decision] = [Route(v, "why not") for v in range(len(CATALOG.variants))]
        self._always = self._rng.choice([*always, AskCache("who knows"), Refuse("no")])

    @property
    def constant(self) -> Decision:
        return self._always

    def plan(self, view: ClusterView) -> Plan:
        """There is always somebody for what every request gets."""
        plan = super().plan(view)
        if isinstance(self._always, Route):
            first = next(w for w in range(view.workers) if view.is_up(w))
            serves = [(self._always.variant,) if w == first else s for w, s in enumerate(plan.serves)]
            self.plans[-1] = plan = Plan(tuple(serves), plan.reason)
        return plan


class AnyBatch(Anything):
    """Also chooses its own batch sizes, waits now and then, and listens."""

    def __init__(self, setup: Setup, temper: Temper) -> None:
        super().__init__(setup, temper)
        self.heard: list[BatchResult | CacheHit] = []
        self.wanted: list[tuple[VariantId, int]] = []

    def batch(self, queue: Sequence[int], variant: VariantId, worker: int, view: ClusterView) -> int | Wait:
        self._look(view)
        assert queue
        if not self.draining and self.chance(self.temper.wait):
            return Wait(view.now_s + self._rng.choice([0.5, 2.0, 20.0]))
        size = self._rng.choice([b for b in CATALOG.batch_sizes[variant] if b <= len(queue)])
        self.wanted.append((variant, size))
        return size

    def observe(self, result: BatchResult) -> None:
        self.heard.append(result)

    def observe_cache(self, hit: CacheHit) -> None:
        self.heard.append(hit)


def tell(engine: Engine, happening: tuple[Any, ...]) -> list[Any]:
    """Tell an engine what happened; its answer as values that stay what they are."""
    what, *arguments = happening
    if what == "drain":
        assert isinstance(engine.policy, Anything)
        engine.policy.draining = True
        return []
    commands = getattr(engine, what)(*arguments)
    return [("run", *c.as_tuple()) if isinstance(c, RunBatch) else c for c in commands]
