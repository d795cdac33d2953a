"""Transcripts of an engine: what happens, and what it answers. No clock, no SimPy, no luck.

Each line of a transcript is a happening (the name of the engine's method and its arguments, time first) and the
commands it must answer with. Workers are taken from the end: the last one that became idle is the next to work.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from argus_sim.core.batching import DropRule
from argus_sim.core.commands import RunBatch
from argus_sim.core.engine import Engine
from argus_sim.core.view import ClusterView
from argus_sim.domain import BatchResult, CacheHit, Outcome, Request, VariantId
from argus_sim.policies.base import Decision, Params, Plan, Policy, Route, Serves, Wait
from tests.make_engine import make_engine, make_requests, make_setup
from tests.make_profile import ladder

#: Batches of 1 and 2. `big` takes 4 s alone and 5.33 s for two, `small` 1 s and 1.33 s.
PROFILE = ladder()
BIG, AC10, AC25, SMALL = range(4)
#: Indices of the models.
M_BIG, M_SMALL = 0, 1

HIT, MISS = CacheHit(0.9, 25, 0.1), CacheHit(0.9, 0, 0.1)


class Run(NamedTuple):
    """A ``RunBatch`` as a value."""

    worker: int
    variant: VariantId
    rows: tuple[int, ...]


class Scripted(Policy):
    """Says what the test wants it to say."""

    name = "scripted"

    def __init__(self, plan: Sequence[Serves], route: Callable[[Request, ClusterView], Decision]) -> None:
        super().__init__(make_setup(PROFILE, len(plan)), Params())
        self.next_plan = tuple(plan)
        self.decide = route
        self.jumped = False
        self.every_s: float | None = None
        self.heard: list[BatchResult | CacheHit] = []

    @property
    def period_s(self) -> float | None:
        return self.every_s

    def plan(self, view: ClusterView) -> Plan:
        return Plan(self.next_plan, "as the test says")

    def monitor(self, view: ClusterView) -> bool:
        jumped, self.jumped = self.jumped, False
        return jumped

    def route(self, request: Request, view: ClusterView) -> Decision:
        return self.decide(request, view)

    def observe(self, result: BatchResult) -> None:
        self.heard.append(result)

    def observe_cache(self, hit: CacheHit) -> None:
        self.heard.append(hit)


class Patient(Scripted):
    """Waits until two can run together, but no longer than this."""

    until_s = 10.0

    def batch(self, queue: Sequence[int], variant: VariantId, worker: int, view: ClusterView) -> int | Wait:
        return 2 if len(queue) >= 2 else 1 if view.now_s >= self.until_s else Wait(self.until_s)


def always(variant: VariantId) -> Callable[[Request, ClusterView], Decision]:
    return lambda request, view: Route(variant, "as the test says")


def tell(engine: Engine, what: str, *arguments: Any) -> list[Any]:
    commands = getattr(engine, what)(*arguments)
    return [Run(*c.as_tuple()) if isinstance(c, RunBatch) else c for c in commands]


def play(engine: Engine, *transcript: tuple[Any, ...]) -> None:
    """Each line: a method's name, its arguments, and the list of commands to be answered."""
    for *happening, commands in transcript:
        answer = tell(engine, *happening)
        assert answer == commands, happening
        # Commands are tuples, and tuples of different kinds may be equal.
        assert [type(c) for c in answer] == [type(c) for c in commands], happening


def make(
    plan: Sequence[Serves],
    route: Callable[[Request, ClusterView], Decision],
    *,
    slo_s: float = 1000.0,
    drop: DropRule | None = None,
    kind: type[Scripted] = Scripted,
    staleness_s: float = 0.0,
) -> tuple[Engine, Scripted]:
    """A started engine with ten requests that arrived at 0, 1, ... 9 s, whatever time they are told at."""
    policy = kind(plan, route)
    engine = make_engine(policy, make_requests(np.arange(10.0), slo_s), drop=drop, staleness_s=staleness_s)
    assert engine.start() == []
    return engine, policy


def outcomes(engine: Engine) -> list[str]:
    columns = engine.log.columns(np.array(engine.requests.deadline_s))
    return [Outcome(o).name for o in columns["outcome"]]
