"""The engine as transcripts: what happens, and what it answers. No clock, no SimPy, no luck.

Each line of a transcript is a happening (the name of the engine's method and its arguments, time first) and the
commands it must answer with. Workers are taken from the end: the last one that became idle is the next to work.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pytest

from argus_sim.core.batching import DropRule
from argus_sim.core.commands import LoadModel, LookUpCache, Reject, RunBatch, WakeUp
from argus_sim.core.engine import DROPPED, FAILED_TWICE, NO_WORKER, Engine
from argus_sim.core.floor import PolicyError
from argus_sim.core.view import ClusterView
from argus_sim.domain import BatchResult, CacheHit, Outcome, Request, VariantId
from argus_sim.policies.base import AskCache, Decision, Params, Plan, Policy, Refuse, Route, Serves, Wait
from argus_sim.record import PlanRecord
from tests.make_engine import NEVER, make_engine, make_policy, make_requests, make_setup
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


# -- queueing and batching -------------------------------------------------------------------------------------


def test_an_arrival_finds_an_idle_worker() -> None:
    engine, _ = make([(BIG,)] * 2, always(BIG))
    play(
        engine,
        ("arrive", 0.0, 0, [Run(1, BIG, (0,))]),
        ("arrive", 1.0, 1, [Run(0, BIG, (1,))]),
        ("batch_done", 4.0, 1, []),
        ("batch_done", 5.0, 0, []),
    )
    assert engine.is_idle()
    columns = engine.log.columns(np.array(engine.requests.deadline_s))
    assert columns["start_s"][:2].tolist() == [0.0, 1.0]
    assert columns["finish_s"][:2].tolist() == [4.0, 5.0]
    assert columns["worker"][:3].tolist() == [1, 0, -1]
    assert columns["variant"][:3].tolist() == [BIG, BIG, -1]
    assert columns["batch_size"][:3].tolist() == [1, 1, 0]
    assert outcomes(engine)[:3] == ["ON_TIME", "ON_TIME", "UNFINISHED"]


def test_the_rest_queues_and_runs_in_twos() -> None:
    engine, policy = make([(BIG,)], always(BIG), slo_s=12.0)
    play(
        engine,
        ("arrive", 0.0, 0, [Run(0, BIG, (0,))]),
        ("arrive", 1.0, 1, []),
        ("arrive", 2.0, 2, []),
        ("arrive", 3.0, 3, []),
        ("batch_done", 4.0, 0, [Run(0, BIG, (1, 2))]),
        ("batch_done", 9.5, 0, [Run(0, BIG, (3,))]),
        ("batch_done", 15.5, 0, []),
    )
    assert outcomes(engine)[:4] == ["ON_TIME", "ON_TIME", "ON_TIME", "LATE"]
    assert policy.heard[1:] == [BatchResult(0, BIG, 2, 5.5, 0), BatchResult(0, BIG, 1, 6.0, 1)]


def test_finishing_at_the_deadline_is_on_time() -> None:
    engine, _ = make([(BIG,)], always(BIG), slo_s=4.0, drop=NEVER)
    play(engine, ("arrive", 0.0, 0, [Run(0, BIG, (0,))]), ("batch_done", 4.0, 0, []))
    assert outcomes(engine)[0] == "ON_TIME"


def test_a_worker_of_several_variants_takes_the_oldest_request() -> None:
    variants = [BIG, AC10, BIG, AC10]
    engine, _ = make([(BIG, AC10)], lambda request, view: Route(variants[request.row], "one or the other"))
    play(
        engine,
        ("arrive", 0.0, 0, [Run(0, BIG, (0,))]),
        ("arrive", 1.0, 1, [LookUpCache(1)]),
        ("arrive", 2.0, 2, []),
        ("arrive", 3.0, 3, [LookUpCache(3)]),
        ("cache_answered", 3.5, 1, HIT, []),
        ("cache_answered", 3.6, 3, HIT, []),
        ("batch_done", 4.0, 0, [Run(0, AC10, (1, 3))]),
        ("batch_done", 9.0, 0, [Run(0, BIG, (2,))]),
    )


def test_a_patient_policy_is_woken() -> None:
    engine, _ = make([(BIG,)], always(BIG), kind=Patient)
    play(
        engine,
        ("arrive", 0.0, 0, [WakeUp(10.0)]),
        ("woken", 10.0, [Run(0, BIG, (0,))]),
        ("batch_done", 14.0, 0, []),
    )


def test_a_batch_that_fills_up_does_not_wait() -> None:
    engine, _ = make([(BIG,)], always(BIG), kind=Patient)
    play(
        engine,
        ("arrive", 0.0, 0, [WakeUp(10.0)]),
        ("arrive", 1.0, 1, [Run(0, BIG, (0, 1))]),
        # It still waits for the next, and the host need not be asked twice.
        ("batch_done", 6.0, 0, []),
        ("arrive", 7.0, 2, []),
        ("woken", 10.0, [Run(0, BIG, (2,))]),
        ("woken", 11.0, []),
    )


def test_a_refusal() -> None:
    engine, _ = make([(BIG,)], lambda request, view: Refuse("closed"))
    play(engine, ("arrive", 0.0, 0, [Reject(0, "closed")]))
    assert outcomes(engine)[0] == "REJECTED"
    assert engine.log.reasons[engine.log.reason[0]] == "closed"
    assert engine.is_idle()


def test_a_refusal_and_a_question_with_the_same_words() -> None:
    answers: list[Decision] = [AskCache("full"), Refuse("full"), AskCache("full")]
    engine, _ = make([(BIG,)], lambda request, view: answers[request.row])
    play(
        engine,
        ("arrive", 0.0, 0, [LookUpCache(0)]),
        ("arrive", 1.0, 1, [Reject(1, "full")]),
        ("arrive", 2.0, 2, [LookUpCache(2)]),
    )


# -- dropping -------------------------------------------------------------------------------------------------


def test_drop_late() -> None:
    """Request 1 could not finish by 13 s if it started at 9.5 s; 2 just can, by 14 s."""
    engine, _ = make([(BIG,)], always(BIG), slo_s=12.0)
    play(
        engine,
        ("arrive", 0.0, 0, [Run(0, BIG, (0,))]),
        ("arrive", 1.0, 1, []),
        ("arrive", 2.0, 2, []),
        ("batch_done", 9.5, 0, [Reject(1, DROPPED), Run(0, BIG, (2,))]),
    )
    assert outcomes(engine)[1] == "REJECTED"


def test_drop_late_gives_up_all() -> None:
    engine, _ = make([(BIG,)], always(BIG), slo_s=12.0)
    play(
        engine,
        ("arrive", 0.0, 0, [Run(0, BIG, (0,))]),
        ("arrive", 1.0, 1, []),
        ("arrive", 2.0, 2, []),
        ("batch_done", 30.0, 0, [Reject(1, DROPPED), Reject(2, DROPPED)]),
        # And a new one that comes too late is not even begun.
        ("arrive", 30.0, 3, [Reject(3, DROPPED)]),
    )
    assert engine.is_idle()


def test_drop_never() -> None:
    engine, _ = make([(BIG,)], always(BIG), slo_s=12.0, drop=NEVER)
    play(
        engine,
        ("arrive", 0.0, 0, [Run(0, BIG, (0,))]),
        ("arrive", 1.0, 1, []),
        ("batch_done", 500.0, 0, [Run(0, BIG, (1,))]),
        ("batch_done", 504.0, 0, []),
    )
    assert outcomes(engine)[:2] == ["LATE", "LATE"]


def test_drop_factor() -> None:
    """Twice the SLO of 12 s: 1 waits until 25 s, 2 until 26 s."""
    engine, _ = make([(BIG,)], always(BIG), slo_s=12.0, drop=DropRule("factor", 2.0))
    play(
        engine,
        ("arrive", 0.0, 0, [Run(0, BIG, (0,))]),
        ("arrive", 1.0, 1, []),
        ("arrive", 2.0, 2, []),
        ("batch_done", 26.0, 0, [Reject(1, DROPPED), Run(0, BIG, (2,))]),
    )


# -- placement ------------------------------------------------------------------------------------------------


def test_a_new_plan_drains_and_loads() -> None:
    """Worker 0 is idle and loads at once; worker 1 first finishes its batch."""
    engine, policy = make([(BIG,), (BIG,)], always(BIG))
    play(engine, ("arrive", 0.0, 0, [Run(1, BIG, (0,))]))
    policy.next_plan, policy.decide, policy.jumped = ((SMALL,), (SMALL,)), always(SMALL), True
    play(
        engine,
        ("tick", 1.0, [LoadModel(0, M_SMALL)]),
        ("arrive", 2.0, 1, []),
        ("arrive", 3.0, 2, []),
        ("arrive", 3.0, 3, []),
        ("batch_done", 4.0, 1, [LoadModel(1, M_SMALL)]),
        ("model_loaded", 11.0, 0, [Run(0, SMALL, (1, 2))]),
        ("model_loaded", 12.0, 1, [Run(1, SMALL, (3,))]),
    )
    assert engine.floor.plans == [
        PlanRecord(0.0, "as the test says", {"big": 2}),
        PlanRecord(1.0, "as the test says", {"small": 2}),
    ]


def test_another_variant_of_the_same_model_costs_nothing() -> None:
    engine, policy = make([(BIG,)], always(BIG))
    policy.next_plan, policy.decide, policy.jumped = ((AC25,),), always(AC25), True
    play(
        engine,
        ("tick", 1.0, []),
        ("arrive", 2.0, 0, [LookUpCache(0)]),
        ("cache_answered", 2.1, 0, HIT, [Run(0, AC25, (0,))]),
    )


def test_a_busy_worker_changes_variant_when_it_is_done() -> None:
    engine, policy = make([(BIG,)], always(BIG))
    play(engine, ("arrive", 0.0, 0, [Run(0, BIG, (0,))]))
    policy.next_plan, policy.decide, policy.jumped = ((AC25,),), always(AC25), True
    play(
        engine,
        ("tick", 1.0, []),
        ("arrive", 2.0, 1, [LookUpCache(1)]),
        ("cache_answered", 2.1, 1, HIT, []),
        ("batch_done", 4.0, 0, [Run(0, AC25, (1,))]),
    )


def test_a_plan_that_is_taken_back_before_it_took_effect() -> None:
    engine, policy = make([(BIG,)], always(BIG))
    play(engine, ("arrive", 0.0, 0, [Run(0, BIG, (0,))]))
    policy.next_plan, policy.jumped = ((SMALL,),), True
    play(engine, ("tick", 1.0, []))
    policy.next_plan, policy.jumped = ((BIG,),), True
    play(engine, ("tick", 2.0, []), ("batch_done", 4.0, 0, []))
    play(engine, ("arrive", 5.0, 1, [Run(0, BIG, (1,))]))


def test_a_load_goes_on_and_another_follows() -> None:
    """A load that has begun is not broken off when plans change: what is needed is loaded after it."""
    engine, policy = make([(BIG,)], always(BIG))
    policy.next_plan, policy.jumped = ((SMALL,),), True
    play(engine, ("tick", 1.0, [LoadModel(0, M_SMALL)]))
    policy.next_plan, policy.jumped = ((BIG,),), True
    play(
        engine,
        ("tick", 2.0, []),
        ("arrive", 3.0, 0, []),
        ("model_loaded", 11.0, 0, [LoadModel(0, M_BIG)]),
        ("model_loaded", 21.0, 0, [Run(0, BIG, (0,))]),
    )


def test_orphans_are_placed_anew() -> None:
    """Nobody serves `big` any more: the policy is asked again about those who wait for it."""
    engine, policy = make([(BIG,)], always(BIG))
    play(engine, ("arrive", 0.0, 0, [Run(0, BIG, (0,))]), ("arrive", 1.0, 1, []), ("arrive", 2.0, 2, []))
    answers: dict[int, Decision] = {1: Route(SMALL, "second choice"), 2: Refuse("no longer")}
    policy.next_plan, policy.decide, policy.jumped = ((SMALL,),), lambda r, view: answers[r.row], True
    play(
        engine,
        ("tick", 3.0, [Reject(2, "no longer")]),
        ("batch_done", 4.0, 0, [LoadModel(0, M_SMALL)]),
        ("model_loaded", 14.0, 0, [Run(0, SMALL, (1,))]),
        ("batch_done", 15.0, 0, []),
    )
    assert engine.log.reasons[engine.log.reason[1]] == "second choice"


def test_plans_are_made_every_period() -> None:
    policy = Scripted([(BIG,)], always(BIG))
    policy.every_s = 30.0
    engine = make_engine(policy, make_requests([]))
    engine.start()
    policy.next_plan = ((SMALL,),)
    play(engine, ("tick", 5.0, []), ("tick", 29.0, []), ("tick", 30.0, [LoadModel(0, M_SMALL)]))
    policy.next_plan = ((BIG,),)
    play(engine, ("model_loaded", 40.0, 0, []), ("tick", 59.0, []), ("tick", 60.0, [LoadModel(0, M_BIG)]))


# -- the cache ------------------------------------------------------------------------------------------------


def test_a_variant_that_skips_steps_waits_for_the_cache() -> None:
    engine, policy = make([(AC25,)], always(AC25))
    play(engine, ("arrive", 0.0, 0, [LookUpCache(0)]))
    assert not engine.is_idle()
    play(engine, ("cache_answered", 0.1, 0, HIT, [Run(0, AC25, (0,))]))
    assert policy.heard == [HIT]


def test_a_miss_is_the_policy_s_business() -> None:
    """It is asked again, now with the answer; a latent that is not deep enough is a miss too."""
    answers: dict[int, Decision] = {0: Route(BIG, "missed"), 1: Route(AC10, "not as deep"), 2: Refuse("missed")}
    engine, _ = make(
        [(BIG, AC10, AC25)], lambda request, view: answers[request.row] if request.hit else Route(AC25, "hope")
    )
    play(
        engine,
        ("arrive", 0.0, 0, [LookUpCache(0)]),
        ("arrive", 0.0, 1, [LookUpCache(1)]),
        ("arrive", 0.0, 2, [LookUpCache(2)]),
        ("cache_answered", 0.1, 0, MISS, [Run(0, BIG, (0,))]),
        ("cache_answered", 0.2, 1, CacheHit(0.9, 10, 0.1), []),
        ("cache_answered", 0.3, 2, MISS, [Reject(2, "missed")]),
        ("batch_done", 4.0, 0, [Run(0, AC10, (1,))]),
    )
    assert [engine.log.reasons[engine.log.reason[row]] for row in range(3)] == ["missed", "not as deep", "missed"]


def test_asking_the_cache_first() -> None:
    engine, _ = make(
        [(BIG, AC10, AC25)],
        lambda request, view: Route(AC25, "similar enough") if request.hit else AskCache("let us see"),
    )
    play(
        engine,
        ("arrive", 0.0, 0, [LookUpCache(0)]),
        ("cache_answered", 0.1, 0, HIT, [Run(0, AC25, (0,))]),
    )


def test_the_answer_comes_when_nobody_serves_the_variant_any_more() -> None:
    """It has latents now, but no place: that is for the policy to say."""
    engine, policy = make([(AC25,)], always(AC25))
    play(engine, ("arrive", 0.0, 0, [LookUpCache(0)]))
    policy.next_plan, policy.decide, policy.jumped = ((AC10,),), always(AC10), True
    play(
        engine,
        ("tick", 0.05, []),
        ("cache_answered", 0.1, 0, HIT, [LookUpCache(0)]),
        ("cache_answered", 0.2, 0, HIT, [Run(0, AC10, (0,))]),
    )


# -- failures -------------------------------------------------------------------------------------------------


def test_a_lost_batch_is_tried_once_more() -> None:
    engine, _ = make([(BIG,)] * 3, always(BIG))
    play(
        engine,
        ("arrive", 0.0, 0, [Run(2, BIG, (0,))]),
        ("worker_lost", 1.0, 2, [Run(1, BIG, (0,))]),
        # News may come twice.
        ("worker_lost", 1.0, 2, []),
        ("worker_lost", 3.0, 1, [Reject(0, FAILED_TWICE)]),
    )
    assert outcomes(engine)[0] == "LOST"
    assert engine.wasted_s == pytest.approx(1.0 + 2.0)
    assert engine.is_idle()


def test_a_batch_of_two_fails_together_and_is_placed_one_by_one() -> None:
    engine, _ = make([(BIG,)] * 2, always(BIG))
    play(
        engine,
        ("arrive", 0.0, 0, [Run(1, BIG, (0,))]),
        ("arrive", 0.0, 1, [Run(0, BIG, (1,))]),
        ("arrive", 0.0, 2, []),
        ("arrive", 0.0, 3, []),
        ("batch_done", 4.0, 0, [Run(0, BIG, (2, 3))]),
        ("batch_done", 5.0, 1, []),
        ("worker_lost", 6.0, 0, [Run(1, BIG, (2,))]),
        ("batch_done", 10.0, 1, [Run(1, BIG, (3,))]),
    )


def test_a_worker_comes_back_empty() -> None:
    engine, _ = make([(BIG,)] * 2, always(BIG))
    play(
        engine,
        ("worker_lost", 1.0, 1, []),
        ("worker_joined", 5.0, 1, [LoadModel(1, M_BIG)]),
        ("worker_joined", 6.0, 1, []),
        ("arrive", 7.0, 0, [Run(0, BIG, (0,))]),
        ("arrive", 8.0, 1, []),
        ("model_loaded", 15.0, 1, [Run(1, BIG, (1,))]),
    )


def test_a_worker_that_was_loading_is_lost() -> None:
    engine, policy = make([(BIG,)] * 2, always(BIG))
    policy.next_plan, policy.jumped = ((BIG,), (SMALL,)), True
    play(
        engine,
        ("tick", 1.0, [LoadModel(1, M_SMALL)]),
        ("worker_lost", 2.0, 1, []),
        ("worker_joined", 3.0, 1, [LoadModel(1, M_SMALL)]),
    )


def test_no_worker_is_left() -> None:
    """Whatever runs, waits, is looked up or arrives is lost, until somebody is back."""
    routes = [BIG, BIG, AC10, BIG, BIG]
    engine, _ = make([(BIG, AC10)], lambda request, view: Route(routes[request.row], "as the test says"))
    play(
        engine,
        ("arrive", 0.0, 0, [Run(0, BIG, (0,))]),
        ("arrive", 1.0, 1, []),
        ("arrive", 2.0, 2, [LookUpCache(2)]),
        ("worker_lost", 2.05, 0, [Reject(0, NO_WORKER), Reject(1, NO_WORKER)]),
        ("cache_answered", 2.1, 2, HIT, [Reject(2, NO_WORKER)]),
        ("arrive", 3.0, 3, [Reject(3, NO_WORKER)]),
        ("tick", 4.0, []),
        ("worker_joined", 5.0, 0, [LoadModel(0, M_BIG)]),
        ("arrive", 6.0, 4, []),
        ("model_loaded", 15.0, 0, [Run(0, BIG, (4,))]),
    )
    assert outcomes(engine)[:4] == ["LOST"] * 4


def test_the_last_one_of_its_kind_is_lost() -> None:
    """The others serve something else: the policy plans anew, and then is asked where the requests are to go."""
    engine, policy = make([(BIG,), (SMALL,)], always(SMALL))
    play(
        engine,
        ("arrive", 0.0, 0, [Run(1, SMALL, (0,))]),
        ("arrive", 0.0, 1, []),
    )
    policy.decide = always(BIG)
    policy.next_plan = ((BIG,), (BIG,))
    play(
        engine,
        ("worker_lost", 0.5, 1, [Run(0, BIG, (1,))]),
        ("batch_done", 4.5, 0, [Run(0, BIG, (0,))]),
    )


# -- what a policy sees ---------------------------------------------------------------------------------------


def test_the_view_is_exact_unless_it_is_to_be_stale() -> None:
    for staleness_s, expected in ((0.0, [0, 0, 1, 2, 3]), (2.0, [0, 0, 0, 0, 3])):
        seen: list[int] = []
        ages: list[float] = []

        def look(
            request: Request, view: ClusterView, seen: list[int] = seen, ages: list[float] = ages
        ) -> Decision:
            seen.append(view.queued(BIG))
            ages.append(view.age_s)
            return Route(BIG, "as the test says")

        engine, _ = make([(BIG,)], look, staleness_s=staleness_s)
        for row, now in enumerate([0.0, 0.5, 1.0, 1.5, 2.0]):
            engine.arrive(now, row)
        assert seen == expected
        assert max(ages) <= staleness_s


def test_the_view_of_placement_and_load() -> None:
    engine, policy = make([(BIG,), (BIG,), (SMALL,)], always(BIG))
    view = engine.view
    engine.arrive(0.0, 0)
    policy.next_plan, policy.jumped = ((BIG,), (BIG,), (AC10,)), True
    engine.tick(1.0)
    engine.worker_lost(2.0, 0)
    assert (view.workers, view.workers_up, [view.is_up(w) for w in range(3)]) == (3, 2, [False, True, True])
    assert [view.serves(w) for w in range(3)] == [(BIG,), (BIG,), (AC10,)]
    assert [view.holds(w) for w in range(3)] == [None, M_BIG, M_BIG]
    assert (view.idle(BIG), view.idle(AC10), view.in_service(), view.arrived) == (0, 0, 1, 1)
    assert view.recent_prompts(5).tolist() == [0]
    assert view.deadline_s(0) == 1000.0


def test_everything_a_policy_shipped_says_can_be_done() -> None:
    """The same few happenings for each of them: nobody raises, and all that arrived ends."""
    for name in ("static", "clipper-ha", "clipper-ht", "nirvana", "proteus", "pac", "argus"):
        params: dict[str, Any] = {"thresholds": {10: 0.7, 25: 0.95}} if name == "nirvana" else {}
        engine = make_engine(make_policy(name, PROFILE, 2, **params), make_requests(np.arange(4.0), 60.0))
        engine.start()
        work = [(float(row), command) for row in range(4) for command in tell(engine, "arrive", float(row), row)]
        while work:
            now, command = work.pop(0)
            match command:
                case Run(worker):
                    work += [(now + 5.0, c) for c in tell(engine, "batch_done", now + 5.0, worker)]
                case LookUpCache(row):
                    work += [(now, c) for c in tell(engine, "cache_answered", now, row, CacheHit(0.8, 25, 0.0))]
                case WakeUp(at_s):
                    work += [(at_s, c) for c in tell(engine, "woken", at_s)]
        assert outcomes(engine) == ["ON_TIME"] * 4, name


# -- what a policy may not say --------------------------------------------------------------------------------


def test_a_route_to_nowhere() -> None:
    engine, _ = make([(BIG,)], always(SMALL))
    with pytest.raises(PolicyError, match="'scripted' routed to 'small', which no worker serves"):
        engine.arrive(0.0, 0)


@pytest.mark.parametrize("answer", [Route(4, "beyond"), Route(-1, "before"), 3])
def test_an_answer_that_is_none(answer: Any) -> None:
    engine, _ = make([(BIG,)], lambda request, view: answer)
    with pytest.raises(PolicyError, match="allowed are Refuse, AskCache and Route to a variant from 0 to 3"):
        engine.arrive(0.0, 0)


@pytest.mark.parametrize("answer", [Route(AC25, "anyway"), AskCache("again")])
def test_insisting_after_a_miss(answer: Decision) -> None:
    engine, _ = make([(BIG, AC25)], lambda request, view: answer)
    engine.arrive(0.0, 0)
    with pytest.raises(PolicyError, match=r"but the cache said .*max_skipped_steps=0"):
        engine.cache_answered(0.1, 0, MISS)


@pytest.mark.parametrize("size", [0, 2, 3, -1])
def test_a_batch_that_cannot_be(size: int) -> None:
    class Greedy(Scripted):
        def batch(self, queue: Sequence[int], variant: VariantId, worker: int, view: ClusterView) -> int:
            return size

    engine, _ = make([(BIG,)], always(BIG), kind=Greedy)
    with pytest.raises(PolicyError, match=f"asked for a batch of {size} of 'big' with 1 waiting.*sizes 1, 2"):
        engine.arrive(0.0, 0)


@pytest.mark.parametrize("until_s", [-1.0, 5.0, float("inf"), float("nan")])
def test_a_wait_that_does_not_end(until_s: float) -> None:
    """Until now, or before: the host would wake it at once, for ever."""

    class Lazy(Scripted):
        def batch(self, queue: Sequence[int], variant: VariantId, worker: int, view: ClusterView) -> Wait:
            return Wait(until_s)

    engine, _ = make([(BIG,)], always(BIG), kind=Lazy)
    with pytest.raises(PolicyError, match=f"wants to wait until {until_s}; allowed are times after 5.0"):
        engine.arrive(5.0, 0)


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ([(BIG, SMALL), (BIG,)], r"a worker for \['big', 'small'\]; allowed are variants of one model"),
        ([(BIG,), ()], r"a worker for \[\]"),
        ([(BIG,)], "for 1 workers; there are 2"),
    ],
)
def test_a_plan_that_cannot_be(plan: list[Serves], message: str) -> None:
    policy = Scripted([(BIG,)] * 2, always(BIG))
    policy.next_plan = tuple(plan)
    with pytest.raises(PolicyError, match=message):
        make_engine(policy, make_requests([0.0])).start()


# -- the command itself ---------------------------------------------------------------------------------------


def test_a_run_command_is_read_at_once() -> None:
    """It is one object per worker, which changes with its next batch; whoever keeps it keeps the tuple."""
    engine, _ = make([(BIG,)], always(BIG))
    (first,) = engine.arrive(0.0, 0)
    assert isinstance(first, RunBatch)
    kept = first.as_tuple()
    assert repr(first) == "RunBatch(worker=0, variant=0, rows=[0])"
    engine.batch_done(4.0, 0)
    (second,) = engine.arrive(5.0, 1)
    assert second is first
    assert (kept, first.as_tuple()) == ((0, BIG, (0,)), (0, BIG, (1,)))
