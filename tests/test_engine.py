"""The engine as transcripts: queueing, batching and dropping."""

from __future__ import annotations

import numpy as np

from argus_sim.core.batching import DropRule
from argus_sim.core.commands import LookUpCache, Reject, RunBatch, WakeUp
from argus_sim.core.endings import DROPPED, WITHDRAWN
from argus_sim.domain import BatchResult
from argus_sim.policies.base import AskCache, Decision, Refuse, Route
from tests.make_engine import NEVER
from tests.transcripts import AC10, BIG, HIT, Patient, Run, always, make, outcomes, play

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


def test_what_waits_can_be_withdrawn_and_what_runs_cannot() -> None:
    engine, _ = make([(BIG,)], always(BIG))
    play(
        engine,
        ("arrive", 0.0, 0, [Run(0, BIG, (0,))]),
        ("arrive", 1.0, 1, []),
        ("arrive", 2.0, 2, []),
        ("withdraw", 3.0, 0, []),
        ("withdraw", 3.0, 1, [Reject(1, WITHDRAWN)]),
        ("withdraw", 3.0, 1, []),
        ("batch_done", 4.0, 0, [Run(0, BIG, (2,))]),
        ("withdraw", 5.0, 0, []),
        ("batch_done", 8.0, 0, []),
    )
    assert outcomes(engine)[:3] == ["ON_TIME", "REJECTED", "ON_TIME"]
    assert engine.is_idle()


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
