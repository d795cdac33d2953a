"""The engine as transcripts: the cache, what a policy sees, and what it may not say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from argus_sim.core.commands import LookUpCache, Reject, WakeUp
from argus_sim.core.floor import PolicyError
from argus_sim.core.view import ClusterView
from argus_sim.domain import CacheHit, Request, VariantId
from argus_sim.policies.base import AskCache, Decision, Params, Policy, Refuse, Route, Serves, Wait
from tests.make_engine import make_engine, make_policy, make_requests, make_setup
from tests.transcripts import (
    AC10,
    AC25,
    BIG,
    HIT,
    M_BIG,
    MISS,
    PROFILE,
    SMALL,
    Run,
    Scripted,
    always,
    make,
    outcomes,
    play,
    tell,
)

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
    """It has latents now, but no place: that is for the policy to say, which hears what they allow."""
    engine, policy = make([(AC25,)], always(AC25))
    play(engine, ("arrive", 0.0, 0, [LookUpCache(0)]))
    seen: list[CacheHit | None] = []

    def shallower(request: Request, view: ClusterView) -> Decision:
        seen.append(request.hit)
        return Route(AC10, "as the test says")

    policy.next_plan, policy.decide, policy.jumped = ((AC10,),), shallower, True
    play(engine, ("tick", 0.05, []), ("cache_answered", 0.1, 0, HIT, [Run(0, AC10, (0,))]))
    assert seen == [HIT]


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
            assert view.waiting_s([(BIG, 4.0), (SMALL, 1.0)]) == 4.0 * view.queued(BIG) + view.queued(SMALL)
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
    with pytest.raises(IndexError, match=f"row {view.arrived} has not arrived"):
        view.deadline_s(view.arrived)  # less the SLO it would tell when the next one comes


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


@pytest.mark.parametrize(
    "answer",
    [Route(4, "beyond"), Route(-1, "before"), 3, None, Route("big", "a name"), Route(0.0, "a float")],  # type: ignore[arg-type]
)
def test_an_answer_that_is_none(answer: Any) -> None:
    engine, _ = make([(BIG,)], lambda request, view: answer)
    with pytest.raises(PolicyError, match="allowed are Refuse, AskCache and Route to a variant from 0 to 3"):
        engine.arrive(0.0, 0)


def test_a_variant_as_numpy_counts() -> None:
    engine, _ = make([(BIG,)], lambda request, view: Route(np.argmin([BIG, SMALL]), "the least"))  # type: ignore[arg-type]
    play(engine, ("arrive", 0.0, 0, [Run(0, BIG, (0,))]))


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
        ([("big",)] * 2, r"a worker for \('big',\); allowed are tuples of variants from 0 to 3"),
        ([(4,)] * 2, r"a worker for \(4,\); allowed are tuples"),
        ([[BIG]] * 2, r"a worker for \[0\]; allowed are tuples"),
    ],
)
def test_a_plan_that_cannot_be(plan: list[Serves], message: str) -> None:
    policy = Scripted([(BIG,)] * 2, always(BIG))
    policy.next_plan = tuple(plan)
    with pytest.raises(PolicyError, match=message):
        make_engine(policy, make_requests([0.0])).start()


def test_a_plan_that_is_none() -> None:
    class Forgets(Scripted):
        def plan(self, view: ClusterView) -> Any:
            return None

    with pytest.raises(PolicyError, match="'scripted' planned None; allowed is a Plan"):
        make_engine(Forgets([(BIG,)] * 2, always(BIG)), make_requests([0.0])).start()


def test_what_a_policy_leaves_out_is_named() -> None:
    class Half(Policy):
        name = "half"

    policy = Half(make_setup(PROFILE, 1), Params())
    engine = make_engine(policy, make_requests([0.0]))
    with pytest.raises(NotImplementedError, match="Half does not define plan: what each worker serves"):
        engine.start()
    with pytest.raises(NotImplementedError, match="Half does not define route: which variant a request gets"):
        policy.route(Request([0.0], [1.0], [0]), engine.view)
