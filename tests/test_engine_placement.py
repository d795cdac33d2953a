"""The engine as transcripts: plans that take effect, and workers that fail."""

from __future__ import annotations

import pytest

from argus_sim.core.commands import LoadModel, LookUpCache, Reject
from argus_sim.core.endings import FAILED_TWICE, NO_WORKER
from argus_sim.policies.base import Decision, Plan, Refuse, Route, keep_or_move
from argus_sim.record import PlanRecord
from tests.make_engine import make_engine, make_requests
from tests.transcripts import (
    AC10,
    AC25,
    BIG,
    HIT,
    M_BIG,
    M_SMALL,
    SMALL,
    Run,
    Scripted,
    always,
    make,
    outcomes,
    play,
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


def test_who_has_not_begun_to_load_is_the_one_to_stay() -> None:
    """Worker 0 is to load `small`, but has a batch of `big` to finish: it can go on with `big` for nothing."""
    engine, policy = make([(BIG,), (SMALL,)], always(BIG))
    play(engine, ("arrive", 0.0, 0, [Run(0, BIG, (0,))]))
    policy.next_plan, policy.decide, policy.jumped = ((SMALL,), (SMALL,)), always(SMALL), True
    play(engine, ("tick", 1.0, []))
    plan = keep_or_move({(BIG,): 1, (SMALL,): 1}, engine.view, engine.catalog, "x")
    assert plan == Plan(((BIG,), (SMALL,)), "x")
    plan = keep_or_move({(BIG,): 1, (SMALL,): 1}, engine.view, engine.catalog, "x", each_its_own=True)
    assert plan == Plan(((SMALL,), (BIG,)), "x")


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


def test_a_worker_that_is_named_twice_goes_and_comes_once() -> None:
    engine, _ = make([(BIG,)] * 2, always(BIG))
    engine.worker_lost(1.0, 0, 0)
    assert (engine.view.workers_up, engine.view.membership) == (1, 1)
    engine.worker_joined(2.0, 0, 0)
    assert (engine.view.workers_up, engine.view.membership) == (2, 2)


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
