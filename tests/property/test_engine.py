"""The engine against a host that does anything in any order, and a policy that answers anything allowed.

The machine below is the host: it keeps what it was told to do, makes things happen in whatever order hypothesis
likes, and holds the engine to its invariants after each. In the end it lets everything finish, and then tells the
same story to a fresh engine, which must answer the same.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from argus_sim.core.batching import DropRule
from argus_sim.core.commands import LoadModel, LookUpCache, Reject, WakeUp
from argus_sim.core.endings import DROPPED, FAILED_TWICE, NO_WORKER
from argus_sim.core.engine import Engine
from argus_sim.domain import BatchResult, CacheHit, VariantId
from argus_sim.policies.base import (
    Decision,
    Refuse,
    Route,
    Setup,
)
from tests.make_engine import make_requests
from tests.property.any_policy import (
    CATALOG,
    DROP_RULES,
    PREDICTOR,
    REQUESTS,
    SKIPPED,
    AnyBatch,
    Anything,
    Cascade,
    Constant,
    Temper,
    tell,
)
from tests.property.check_log import check_log

SOON = st.sampled_from([0.0, 0.0, 0.25, 1.0, 4.0])
PICK = st.integers(0, 11)


def placement_of(engine: Engine) -> list[tuple[object, ...]]:
    """All that the view says of placement."""
    view = engine.view
    return [(view.serves(w), view.is_up(w), view.is_loading(w), view.holds(w)) for w in range(view.workers)]


class Host(RuleBasedStateMachine):
    """What a host knows: what each worker does and holds, what was asked of the cache, who has arrived."""

    sound = False

    @initialize(
        workers=st.integers(1, 5),
        kind=st.sampled_from([Anything, Cascade, Constant, AnyBatch]),
        seed=st.integers(0, 2**32 - 1),
        refuse=st.sampled_from([0.0, 0.1]),
        ask=st.sampled_from([0.0, 0.3]),
        wait=st.sampled_from([0.0, 0.0, 0.4]),
        replan=st.sampled_from([0.0, 0.7]),
        period_s=st.sampled_from([None, 10.0]),
        drop=st.sampled_from(DROP_RULES),
        staleness_s=st.sampled_from([0.0, 3.0]),
        gap_s=st.sampled_from([0.2, 1.0, 5.0]),
    )
    def set_up(
        self,
        workers: int,
        kind: type[Anything],
        seed: int,
        refuse: float,
        ask: float,
        wait: float,
        replan: float,
        period_s: float | None,
        drop: DropRule,
        staleness_s: float,
        gap_s: float,
    ) -> None:
        rng = np.random.default_rng(seed)
        temper = Temper(seed, refuse, ask, wait if kind is AnyBatch else 0.0, replan, period_s)
        arrival_s = np.cumsum(rng.exponential(gap_s, REQUESTS) * rng.integers(0, 2, REQUESTS))
        slo_s = rng.choice([3.0, 12.0, 60.0, 1e6], REQUESTS, p=[0.1, 0.3, 0.3, 0.3])

        def build() -> Engine:
            setup = Setup(CATALOG, workers, 12.0, np.random.default_rng(seed), PREDICTOR)
            requests = make_requests(arrival_s, slo_s.tolist())
            return Engine(CATALOG, kind(setup, temper), requests, workers, drop=drop, staleness_s=staleness_s)

        self.build, self.drop, self.workers, self.staleness_s = build, drop, workers, staleness_s
        self.engine = build()
        assert isinstance(self.engine.policy, Anything)
        self.policy = self.engine.policy
        self.arrival_s, self.deadline_s = self.engine.requests.arrival_s, self.engine.requests.deadline_s
        self.story: list[tuple[tuple[Any, ...], list[Any]]] = []
        self.now, self.next = 0.0, 0
        self.up = set(range(workers))
        self.running: dict[int, tuple[VariantId, tuple[int, ...], float]] = {}
        self.loading: dict[int, int] = {}
        self.holds: dict[int, int] = {}
        self.looking: set[int] = set()
        self.wakes: list[float] = []
        #: Per request: how deep a latent the cache has for it since it was last placed; crashes; how it ended.
        self.depth: dict[int, int] = {}
        self.crashes: Counter[int] = Counter()
        self.ended: dict[int, Any] = {}
        self.wasted_s = self.passed_on_s = 0.0
        #: Runs that did not end their request: row, worker, variant, batch size, start, finish, if it was lost.
        self.attempts: list[tuple[Any, ...]] = []
        self.sound = True
        self.happens("start")
        # The first models are in place before the first request.
        assert not self.loading

    # -- what happens ------------------------------------------------------------------------------------------

    @rule(count=st.integers(1, 8))
    @precondition(lambda self: self.next < REQUESTS)
    def arrive(self, count: int) -> None:
        """An arrival may reach the engine late, never early."""
        for row in range(self.next, min(self.next + count, REQUESTS)):
            self.next = row + 1
            self.now = max(self.now, self.arrival_s[row])
            self.happens("arrive", self.now, row)

    @rule(after_s=SOON, pick=PICK)
    @precondition(lambda self: self.running)
    def finish(self, after_s: float, pick: int) -> None:
        self.now += after_s
        worker = sorted(self.running)[pick % len(self.running)]
        variant, rows, started_s = self.running.pop(worker)
        self.done = {row: (worker, variant, len(rows), started_s, self.now) for row in rows}
        if isinstance(self.policy, Cascade):
            confidence = [row / REQUESTS for row in rows]
            self.happens("batch_done", self.now, worker, confidence)
            assert self.policy.heard[-len(rows) :] == confidence
        else:
            self.happens("batch_done", self.now, worker)
        if isinstance(self.policy, AnyBatch):
            late = sum(self.deadline_s[row] < self.now for row in rows)
            heard = [e for e in self.policy.heard if isinstance(e, BatchResult)][-1]
            assert heard == BatchResult(worker, variant, len(rows), self.now - started_s, late)

    @rule(after_s=SOON, pick=PICK)
    @precondition(lambda self: self.loading)
    def load(self, after_s: float, pick: int) -> None:
        self.now += after_s
        worker = sorted(self.loading)[pick % len(self.loading)]
        self.holds[worker] = self.loading.pop(worker)
        self.happens("model_loaded", self.now, worker)

    @rule(after_s=SOON, pick=PICK, depth=st.sampled_from([0, 10, 25]))
    @precondition(lambda self: self.looking)
    def answer(self, after_s: float, pick: int, depth: int) -> None:
        self.now += after_s
        row = sorted(self.looking)[pick % len(self.looking)]
        self.looking.remove(row)
        self.depth[row] = depth
        self.happens("cache_answered", self.now, row, CacheHit(0.9, depth, 0.1))

    @rule(after_s=SOON, pick=PICK, again=st.sampled_from([False, False, False, True]))
    def fault(self, after_s: float, pick: int, again: bool) -> None:
        """A worker fails or comes back, or (again) there is old news of it."""
        self.now += after_s
        worker = pick % self.workers
        if (worker in self.up) == again:
            self.up.add(worker)
            self.happens("worker_joined", self.now, worker)
            return
        self.up.discard(worker)
        self.holds.pop(worker, None)
        self.loading.pop(worker, None)
        variant, rows, started_s = self.running.pop(worker, (0, (), self.now))
        self.wasted_s += self.now - started_s
        self.attempts += [(row, worker, variant, len(rows), started_s, self.now, True) for row in rows]
        self.crashes.update(rows)
        self.happens("worker_lost", self.now, worker)

    @rule(after_s=SOON)
    def tick(self, after_s: float) -> None:
        self.now += after_s
        self.happens("tick", self.now)

    @rule()
    @precondition(lambda self: self.wakes)
    def wake(self) -> None:
        self.wakes.sort()
        self.now = max(self.now, self.wakes.pop(0))
        self.happens("woken", self.now)

    # -- what the engine wants -----------------------------------------------------------------------------------

    def happens(self, *happening: Any) -> None:
        """Tell the engine, do what it says, and check that all is as it must be."""
        self.sound = False
        waiting = [list(queue) for queue in self.engine.queues]
        asked, decided = len(self.policy.asked_at_s), len(self.policy.decisions)
        wanted = len(self.policy.wanted) if isinstance(self.policy, AnyBatch) else 0
        changes, before = self.engine.view.changes, placement_of(self.engine)
        commands = tell(self.engine, happening)
        assert self.engine.view.changes != changes or placement_of(self.engine) == before
        self.story.append((happening, commands))
        if happening[0] == "arrive" and self.policy.constant is not None:
            self.policy.decisions.append((happening[2], self.policy.constant))
        if happening == ("start",):
            first = self.policy.plans[-1].serves
            self.holds = {worker: CATALOG.model[serves[0]] for worker, serves in enumerate(first)}
        decisions = dict(self.policy.decisions[decided:])
        if happening[0] == "batch_done":
            for row, how in self.done.items():
                if row in decisions:
                    self.passed_on_s += (how[-1] - how[-2]) / len(self.done)
                    self.attempts.append((row, *how, False))
                else:
                    self.end(row, how)
        placed = Counter(d.variant for _, d in self.policy.decisions[decided:] if isinstance(d, Route))
        started: list[list[int]] = [[] for _ in CATALOG.variants]
        dropped: set[int] = set()
        for command in commands:
            match command:
                case ("run", worker, variant, rows):
                    self.run_batch(worker, variant, rows)
                    started[variant] += rows
                case LoadModel(worker, model):
                    self.load_model(worker, model)
                case LookUpCache(row):
                    assert self.is_open(row)
                    assert row not in self.looking
                    self.looking.add(row)
                    self.depth.pop(row, None)
                case WakeUp(at_s):
                    assert at_s > self.now
                    self.wakes.append(at_s)
                case Reject(row, reason):
                    self.rejected(row, reason, decisions)
                    if reason == DROPPED:
                        dropped.add(row)
        for row in dropped:
            at = next((v for v, queue in enumerate(waiting) if row in queue and row not in decisions), None)
            self.check_dropped(row, self.variant_of(row) if at is None else at, waiting, placed, happening)
        self.check_order(waiting, started, set(decisions))
        if isinstance(self.policy, AnyBatch):
            self.check_sizes(started, commands, self.policy.wanted[wanted:])
        assert set(self.policy.asked_at_s[asked:]) <= {self.now}
        self.check()
        self.sound = True

    def run_batch(self, worker: int, variant: VariantId, rows: tuple[int, ...]) -> None:
        assert worker in self.up
        assert worker not in self.running
        assert worker not in self.loading
        assert self.holds[worker] == CATALOG.model[variant]
        assert variant in self.policy.plans[-1].serves[worker]
        assert len(rows) in CATALOG.batch_sizes[variant]
        for row in rows:
            assert self.is_open(row)
            assert row not in self.looking
            assert self.depth.get(row, 0) >= SKIPPED[variant]
            if self.drop.kind == "late":
                assert self.now + CATALOG.p99_s[variant][len(rows)] <= self.deadline_s[row]
            if self.drop.kind == "factor":
                slo_s = self.deadline_s[row] - self.arrival_s[row]
                assert self.now <= self.arrival_s[row] + self.drop.factor * slo_s
        self.running[worker] = (variant, rows, self.now)

    def load_model(self, worker: int, model: int) -> None:
        assert worker in self.up
        assert worker not in self.running
        assert worker not in self.loading
        assert self.holds.pop(worker, None) != model
        assert model == CATALOG.model[self.policy.plans[-1].serves[worker][0]]
        self.loading[worker] = model

    def rejected(self, row: int, reason: str, decisions: dict[int, Decision]) -> None:
        assert self.is_open(row)
        self.looking.discard(row)
        if reason == NO_WORKER:
            assert not self.up
        elif reason == FAILED_TWICE:
            assert self.crashes[row] == 2
        elif reason == DROPPED:
            assert self.drop.kind != "never"
        else:
            assert decisions[row] == Refuse(reason)
        self.end(row, reason)

    def end(self, row: int, how: Any) -> None:
        assert row not in self.ended
        self.ended[row] = how

    def is_open(self, row: int) -> bool:
        """Arrived, not ended, not running."""
        return row < self.next and row not in self.ended and not any(row in rows for _, rows, _ in self.at_work())

    def at_work(self) -> list[tuple[VariantId, tuple[int, ...], float]]:
        return list(self.running.values())

    def variant_of(self, row: int) -> VariantId:
        """What the policy last wanted for a request."""
        return next(d.variant for r, d in reversed(self.policy.decisions) if r == row and isinstance(d, Route))

    # -- what must hold ------------------------------------------------------------------------------------------

    def check_dropped(
        self,
        row: int,
        variant: VariantId,
        waiting: list[list[int]],
        placed: Counter[VariantId],
        happening: tuple[Any, ...],
    ) -> None:
        """Nothing is given up while there is a way to serve it."""
        if self.drop.kind == "factor":
            slo_s = self.deadline_s[row] - self.arrival_s[row]
            assert self.now > self.arrival_s[row] + self.drop.factor * slo_s
            return
        p99_s = CATALOG.p99_s[variant]
        assert self.now + max(p for p in p99_s if p < math.inf) > self.deadline_s[row]
        # At most so many can have waited at once: those before, those placed now, and one whose latents came.
        most = len(waiting[variant]) + placed[variant] + (happening[0] == "cache_answered")
        if most <= CATALOG.max_batch[variant]:
            assert self.now + p99_s[1] > self.deadline_s[row]

    def check_order(self, waiting: list[list[int]], started: list[list[int]], moved: set[int]) -> None:
        """First come, first served within a variant, but for those that were placed anew."""
        for before, went, queue in zip(waiting, started, self.engine.queues, strict=True):
            stayed = [row for row in before if row not in moved and not isinstance(self.ended.get(row), str)]
            assert (went + list(queue))[: len(stayed)] == stayed

    def check_sizes(
        self, started: list[list[int]], commands: list[Any], wanted: list[tuple[VariantId, int]]
    ) -> None:
        """A batch has the size that the policy wants, unless its requests could then not make it."""
        batches = [(variant, len(rows)) for variant, rows in (c[2:] for c in commands if c[0] == "run")]
        if self.drop.kind == "never":
            assert batches == wanted
        else:
            assert len(batches) <= len(wanted)

    def check(self) -> None:
        engine = self.engine
        # Every request is in exactly one place.
        places = [row for queue in engine.queues for row in queue]
        places += [row for _, rows, _ in self.at_work() for row in rows]
        places += [*self.looking, *self.ended]
        assert sorted(places) == list(range(self.next))
        twice = {row for row, crashes in self.crashes.items() if crashes > 1}
        assert all(self.ended[row] in (FAILED_TWICE, NO_WORKER) for row in twice)
        assert engine.arrived == self.next
        assert engine.is_idle() == (len(self.ended) == self.next)
        assert engine.floor.workers_up == len(self.up)
        assert engine.view.in_service() == sum(len(rows) for _, rows, _ in self.at_work())
        assert engine.wasted_s == pytest.approx(self.wasted_s)
        assert engine.cascade.passed_on_s == pytest.approx(self.passed_on_s)
        assert self.policy.oldest_view_s <= self.staleness_s
        # A worker that is up and does nothing holds what it needs; nothing waits for it, or we are to wake it.
        for worker in self.up - set(self.running) - set(self.loading):
            serves = self.policy.plans[-1].serves[worker]
            assert self.holds[worker] == CATALOG.model[serves[0]]
            if any(engine.queues[v] for v in serves):
                assert self.policy.temper.wait
                assert self.wakes

    def teardown(self) -> None:
        """Everything that is under way ends, and then everything has ended."""
        if not self.sound:
            return
        self.story.append((("drain",), tell(self.engine, ("drain",))))
        for turn in range(100_000):
            if self.running:
                self.finish(1.0, turn)
            elif self.loading:
                self.load(1.0, turn)
            elif self.looking:
                self.answer(1.0, turn, (0, 10, 25)[turn % 3])
            elif self.wakes:
                self.wake()
            else:
                break
        assert sorted(self.ended) == list(range(self.next))
        check_log(self.engine.log, self.deadline_s, self.ended, self.attempts, arrived=self.next)
        again = self.build()
        for happening, commands in self.story:
            # As text, for commands are tuples, and 1 == 1.0.
            assert repr(tell(again, happening)) == repr(commands)
        assert again.log.start_s.tobytes() == self.engine.log.start_s.tobytes()
        assert again.log.ran == self.engine.log.ran
        assert repr(again.log.attempts()) == repr(self.engine.log.attempts())


Host.TestCase.settings = settings(max_examples=400, stateful_step_count=60)
TestEngine = Host.TestCase
