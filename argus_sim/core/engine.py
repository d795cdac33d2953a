"""The serving core: happenings in, commands out.

The engine is a state machine that never sleeps, samples or touches a device. A host tells it what happened and
when, and carries out the commands that it answers with. The simulated and the live host run the same engine,
which is why the simulator can be trusted.

Requests wait in one queue per variant, and whoever serves a variant takes from its queue when free. So a
request is bound to a worker at the last moment, which is what "the least loaded worker" comes to when nothing
has to be guessed about how long running batches will still take.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from argus_sim.core.batching import BatchFormer, DropRule
from argus_sim.core.catalog import Catalog
from argus_sim.core.commands import Command, LoadModel, LookUpCache, Reject, WakeUp
from argus_sim.core.outcomes import SIZES, WORKERS, OutcomeLog
from argus_sim.core.requests import Requests
from argus_sim.core.view import ClusterView
from argus_sim.core.workers import Pool, Worker
from argus_sim.domain import BatchResult, CacheHit, VariantId, WorkerStatus
from argus_sim.errors import InputError
from argus_sim.policies.base import AskCache, Decision, Plan, Policy, Refuse, Route, Serves, Wait
from argus_sim.record import PlanRecord

#: In place of a variant: the decision was a refusal, or a question to the cache.
_REFUSED, _ASKED = -1, -2

_NOTHING: Sequence[Command] = ()

#: A named tuple's own constructor takes half as long again.
_new = tuple.__new__

DROPPED = "dropped: could not finish by its deadline"
FAILED_TWICE = "lost: its worker failed twice"
NO_WORKER = "lost: no worker is up"


class PolicyError(InputError):
    """A policy answered something that cannot be done; says which policy and what."""


class Engine:
    """See the module's docstring.

    Args:
        catalog: What variants there are and how long they take.
        policy: Decides.
        requests: The columns of the requests; a row must be there before it arrives.
        workers: How many workers there are, all up and empty.
        drop: When a waiting request is given up.
        staleness_s: How old the view's queue lengths may be; 0 for exact.
    """

    # Slots, because an object with more than 30 attributes in a dictionary is slower to read.
    __slots__ = (
        "_asked",
        "_batch",
        "_columns",
        "_constant",
        "_fit",
        "_former",
        "_in_force",
        "_known",
        "_never_drops",
        "_next_plan_s",
        "_observe",
        "_pools",
        "_reason",
        "_rejects",
        "_request",
        "_retried",
        "_route",
        "_simple",
        "_skipped",
        "_staleness_s",
        "arrived",
        "catalog",
        "log",
        "membership",
        "plans",
        "policy",
        "pools_of",
        "queues",
        "requests",
        "view",
        "wasted_s",
        "workers",
        "workers_up",
    )

    def __init__(
        self,
        catalog: Catalog,
        policy: Policy,
        requests: Requests,
        workers: int,
        *,
        drop: DropRule | None = None,
        staleness_s: float = 0.0,
    ) -> None:
        self.catalog = catalog
        self.policy = policy
        self.requests = requests
        self.log = log = OutcomeLog(len(requests))
        self._columns, self._reason = (log.start_s, log.finish_s, log.ran), log.reason
        self.plans: list[PlanRecord] = []
        self.arrived = 0
        #: Time that workers spent on batches they were lost with.
        self.wasted_s = 0.0

        variants = len(catalog.variants)
        self.queues: list[deque[int]] = [deque() for _ in range(variants)]
        self.workers = [Worker(index) for index in range(workers)]
        self.workers_up = workers
        self.membership = 0
        #: The last plan applied; None when a worker has come or gone since.
        self._in_force: Plan | None = None
        self._pools: dict[Serves, Pool] = {}
        self.pools_of: list[tuple[Pool, ...]] = [()] * variants
        #: Rows whose cache look-up is under way, with the variant they wait for (or _ASKED).
        self._asked: dict[int, VariantId] = {}
        self._retried: set[int] = set()
        self._rejects: list[Command] = []

        self._skipped = [v.skipped_steps for v in catalog.variants]
        self._known: dict[Decision, tuple[VariantId, int]] = {}
        self._request = requests.cursor()
        self.view = ClusterView(self)
        self._staleness_s = staleness_s
        self._former = BatchFormer(
            catalog, drop or DropRule(), requests.arrival_s, requests.deadline_s, self._drop
        )
        self._fit = catalog.fit
        self._never_drops = (drop or DropRule()).kind == "never"
        self._route = policy.route
        self._constant = None if policy.constant is None else self._learn(policy.constant)
        self._batch = policy.batch if type(policy).batch is not Policy.batch else None
        self._observe: Callable[[BatchResult | CacheHit], None] | None = (
            policy.observe if type(policy).observe is not Policy.observe else None
        )
        self._simple = self._never_drops and self._batch is None
        self._next_plan_s = policy.period_s if policy.period_s is not None else float("inf")

    # -- happenings ----------------------------------------------------------------------------------------

    def start(self) -> Sequence[Command]:
        """Before the first arrival: the policy's first plan, with the models already in place."""
        plan = self.policy.plan(self.view)
        self._validate(plan)
        for worker, serves in zip(self.workers, plan.serves, strict=True):
            worker.model = self.catalog.model[serves[0]]
        return self._apply(0.0, plan)

    def arrive(self, now: float, row: int) -> Sequence[Command]:
        """A request arrived; its row is in ``requests``."""
        self.arrived += 1
        known = self._constant
        if known is None:
            view = self.view
            view.now_s = now
            if self._staleness_s:
                view.refresh(self._staleness_s)
            request = self._request
            request.row = row
            decision = self._route(request, view)
            known = self._known.get(decision) or self._learn(decision)
        variant, reason = known
        self._reason[row] = reason
        if variant < 0:
            return self._decided_specially(row, variant)
        if self._skipped[variant]:
            self._asked[row] = variant
            return (_new(LookUpCache, (row,)),)
        # From here as `_enqueue`, written out: a call less for every request.
        queue = self.queues[variant]
        queue.append(row)
        for pool in self.pools_of[variant]:
            if pool.idle:
                return self._fill(now, pool)
        if not self.pools_of[variant]:
            return self._nobody_serves(queue.pop(), variant)
        return _NOTHING

    def batch_done(self, now: float, index: int) -> Sequence[Command]:
        """The batch on this worker ended."""
        worker = self.workers[index]
        batch = worker.batch
        rows = batch.rows
        started_s = worker.started_s
        ran = (batch.variant * WORKERS + index) * SIZES + len(rows)
        start_column, finish_column, ran_column = self._columns
        for row in rows:
            start_column[row] = started_s
            finish_column[row] = now
            ran_column[row] = ran
        batch.rows = []
        if self._observe is not None:
            deadline_s = self.requests.deadline_s
            late = sum(deadline_s[row] < now for row in rows)
            self._observe(BatchResult(index, batch.variant, len(rows), now - started_s, late))
        pool = worker.pool
        if pool is None:
            return self._settle(now, worker)
        queue = pool.queue
        if queue is not None and self._simple:
            # As `_fill` does it, for the commonest case: one variant, and nobody to ask about size or dropping.
            if not queue:
                pool.idle.append(worker)
                return _NOTHING
            fit = self._fit[pool.variant]
            size = fit[len(queue)] if len(queue) < len(fit) else fit[-1]
            batch.variant = pool.variant
            batch.rows = [queue.popleft()] if size == 1 else [queue.popleft() for _ in range(size)]
            worker.started_s = now
            return worker.start
        pool.idle.append(worker)
        return self._fill(now, pool)

    def model_loaded(self, now: float, index: int) -> Sequence[Command]:
        """The model of the last ``LoadModel`` for this worker is in place."""
        worker = self.workers[index]
        worker.loading = False
        return self._settle(now, worker)

    def cache_answered(self, now: float, row: int, hit: CacheHit) -> Sequence[Command]:
        """The cache answered ``LookUpCache``. On a miss the policy is asked again, knowing the answer."""
        variant = self._asked.pop(row)
        if self._observe is not None:
            self._observe(hit)
        if not self.workers_up:
            return self._lose(row, NO_WORKER)
        if variant >= 0 and hit.max_skipped_steps >= self._skipped[variant]:
            if self.pools_of[variant]:
                return self._enqueue(now, row, variant)
            return self._place(now, row)
        decision = self._ask(now, row, hit)
        variant, reason = self._known[decision]
        if variant == _REFUSED:
            self._reason[row] = reason
            return self._decided_specially(row, variant)
        if variant == _ASKED or self._skipped[variant] > hit.max_skipped_steps:
            raise PolicyError(f"policy {self.policy.name!r} answered {decision}, but the cache said {hit}")
        self._reason[row] = reason
        return self._enqueue(now, row, variant)

    def worker_lost(self, now: float, index: int) -> Sequence[Command]:
        """A worker failed. What it was running is tried once more elsewhere; the policy plans anew."""
        worker = self.workers[index]
        if worker.down:
            return _NOTHING
        self._leave(worker)
        rows, worker.batch.rows = worker.batch.rows, []
        if rows:
            self.wasted_s += now - worker.started_s
        worker.down, worker.loading, worker.model = True, False, None
        self.workers_up -= 1
        self.membership += 1
        self._in_force = None
        commands: list[Command] = []
        if self.workers_up:
            commands += self._replan(now)
        else:
            self._index_pools()
            for queue in self.queues:
                rows += queue
                queue.clear()
        for row in rows:
            if not self.workers_up:
                commands += self._lose(row, NO_WORKER)
            elif row in self._retried:
                commands += self._lose(row, FAILED_TWICE)
            else:
                self._retried.add(row)
                commands += self._place(now, row)
        return commands

    def worker_joined(self, now: float, index: int) -> Sequence[Command]:
        """A worker came (back), empty; the policy plans anew."""
        worker = self.workers[index]
        if not worker.down:
            return _NOTHING
        worker.down = False
        self.workers_up += 1
        self.membership += 1
        self._in_force = None
        return self._replan(now)

    def tick(self, now: float) -> Sequence[Command]:
        """Time for the policy to look around; the host calls it every ``policy.tick_s``."""
        self._look(now)
        if self.workers_up and (self.policy.monitor(self.view) or now >= self._next_plan_s):
            return self._replan(now)
        return _NOTHING

    def woken(self, now: float) -> Sequence[Command]:
        """The time of a ``WakeUp`` has come."""
        commands: list[Command] = []
        for pool in list(self._pools.values()):
            if pool.idle:
                commands += self._fill(now, pool)
        return commands

    def is_idle(self) -> bool:
        """True when nothing waits, runs or is being looked up."""
        return not (self._asked or any(self.queues) or any(w.batch.rows for w in self.workers))

    def _look(self, now: float) -> None:
        """Bring the view up to date, or as far as it may be stale."""
        self.view.now_s = now
        if self._staleness_s:
            self.view.refresh(self._staleness_s)

    # -- requests ------------------------------------------------------------------------------------------

    def _learn(self, decision: Decision) -> tuple[VariantId, int]:
        """What a decision means; worked out once for each distinct one."""
        match decision:
            case Route(variant=variant) if 0 <= variant < len(self.catalog.variants):
                pass
            case Refuse():
                variant = _REFUSED
            case AskCache():
                variant = _ASKED
            case _:
                raise PolicyError(
                    f"policy {self.policy.name!r} answered {decision!r}; allowed are Refuse, AskCache and "
                    f"Route to a variant from 0 to {len(self.catalog.variants) - 1}"
                )
        known = self._known[decision] = (variant, self.log.code(decision.reason))
        return known

    def _ask(self, now: float, row: int, hit: CacheHit | None) -> Decision:
        """Put the routing question again for a request that has already arrived."""
        self._look(now)
        request = self._request
        request.row, request.hit = row, hit
        decision = self._route(request, self.view)
        request.hit = None
        if decision not in self._known:
            self._learn(decision)
        return decision

    def _place(self, now: float, row: int) -> Sequence[Command]:
        """Find a new place for a request whose worker or queue is gone."""
        decision = self._ask(now, row, None)
        variant, reason = self._known[decision]
        self._reason[row] = reason
        if variant < 0 or self._skipped[variant]:
            return self._decided_specially(row, variant)
        return self._enqueue(now, row, variant)

    def _decided_specially(self, row: int, variant: VariantId) -> Sequence[Command]:
        """A refusal, a question to the cache, or a variant that needs the cache's answer first."""
        if variant == _REFUSED:
            reason = self.log.reasons[self._reason[row]]
            self.log.rejected(row, reason)
            return [Reject(row, reason)]
        self._asked[row] = variant
        return [LookUpCache(row)]

    def _enqueue(self, now: float, row: int, variant: VariantId) -> Sequence[Command]:
        pools = self.pools_of[variant]
        if not pools:
            return self._nobody_serves(row, variant)
        self.queues[variant].append(row)
        for pool in pools:
            if pool.idle:
                return self._fill(now, pool)
        return _NOTHING

    def _nobody_serves(self, row: int, variant: VariantId) -> Sequence[Command]:
        if self.workers_up:
            name = self.catalog.variants[variant].name
            raise PolicyError(f"policy {self.policy.name!r} routed to {name!r}, which no worker serves")
        return self._lose(row, NO_WORKER)

    def _drop(self, row: int) -> None:
        self.log.rejected(row, DROPPED)
        self._rejects.append(Reject(row, DROPPED))

    def _lose(self, row: int, reason: str) -> Sequence[Command]:
        self.log.lost(row, reason)
        return [Reject(row, reason)]

    # -- workers -------------------------------------------------------------------------------------------

    def _fill(self, now: float, pool: Pool) -> Sequence[Command]:
        """Give work to the idle workers of a pool, as far as there is any."""
        commands: list[Command] = []
        idle = pool.idle
        while idle:
            variant, queue = pool.variant, pool.queue
            if queue is None:
                variant = self._oldest(pool.serves)
                queue = self.queues[variant]
            if not queue:
                break
            if self._batch is None:
                fit = self._fit[variant]
                size = fit[len(queue)] if len(queue) < len(fit) else fit[-1]
            else:
                size = self._ask_batch(now, pool, queue, variant, commands)
                if not size:
                    break
            if size == 1 and self._never_drops:
                rows = [queue.popleft()]
            else:
                rows = self._former.take(now, queue, variant, size)
                if self._rejects:
                    commands += self._rejects
                    self._rejects.clear()
                if not rows:
                    continue
            worker = idle.pop()
            batch = worker.batch
            batch.variant = variant
            batch.rows = rows
            worker.started_s = now
            if not commands and not (idle and queue):
                return worker.start
            commands.append(batch)
        return commands

    def _ask_batch(
        self,
        now: float,
        pool: Pool,
        queue: deque[int],
        variant: VariantId,
        commands: list[Command],
    ) -> int:
        """The policy's batch size, or 0 when it would rather wait (the host is then asked to wake us)."""
        assert self._batch is not None
        self._look(now)
        answer = self._batch(queue, variant, pool.idle[-1].index, self.view)
        if isinstance(answer, Wait):
            if not now < pool.wake_s <= answer.until_s:
                pool.wake_s = answer.until_s
                commands.append(WakeUp(answer.until_s))
            return 0
        if not (0 < answer <= len(queue) and answer in self.catalog.batch_sizes[variant]):
            sizes = ", ".join(map(str, self.catalog.batch_sizes[variant]))
            raise PolicyError(
                f"policy {self.policy.name!r} asked for a batch of {answer} of "
                f"{self.catalog.variants[variant].name!r} with {len(queue)} waiting; profile "
                f"{self.catalog.name!r} has batch sizes {sizes}"
            )
        return answer

    def _oldest(self, serves: Serves) -> VariantId:
        """The variant whose head has waited longest; any of them when nothing waits."""
        oldest, head = serves[0], -1
        for variant in serves:
            queue = self.queues[variant]
            if queue and (head < 0 or queue[0] < head):
                oldest, head = variant, queue[0]
        return oldest

    def _leave(self, worker: Worker) -> None:
        """Take a worker out of its pool; a running batch goes on."""
        pool, worker.pool = worker.pool, None
        if pool is not None and not worker.batch.rows:
            pool.idle.remove(worker)

    def _settle(self, now: float, worker: Worker) -> Sequence[Command]:
        """A free worker outside any pool joins the one it is meant for, loading its model first if need be."""
        needed = self.catalog.model[worker.serves[0]]
        if worker.model != needed:
            worker.loading = True
            worker.model = needed
            return [LoadModel(worker.index, needed)]
        pool = worker.pool = self._pools[worker.serves]
        pool.idle.append(worker)
        return self._fill(now, pool)

    # -- placement -----------------------------------------------------------------------------------------

    def _replan(self, now: float) -> Sequence[Command]:
        self._look(now)
        plan = self.policy.plan(self.view)
        if self.policy.period_s is not None:
            self._next_plan_s = now + self.policy.period_s
        if plan is self._in_force:
            return _NOTHING
        self._validate(plan)
        return self._apply(now, plan)

    def _validate(self, plan: Plan) -> None:
        who = f"policy {self.policy.name!r} planned"
        if len(plan.serves) != len(self.workers):
            raise PolicyError(f"{who} for {len(plan.serves)} workers; there are {len(self.workers)}")
        for serves in set(plan.serves):
            if not serves or len({self.catalog.model[v] for v in serves}) != 1:
                names = [self.catalog.variants[v].name for v in serves]
                raise PolicyError(f"{who} a worker for {names}; allowed are variants of one model, at least one")

    def _apply(self, now: float, plan: Plan) -> Sequence[Command]:
        """Change what workers serve. Idle ones change at once, busy and loading ones when they are done."""
        self._in_force = plan
        moved = []
        for worker, serves in zip(self.workers, plan.serves, strict=True):
            if serves != worker.serves or worker.pool is None:
                self._leave(worker)
                worker.serves = serves
                moved.append(worker)
        self._index_pools()
        self._record(now, plan)
        commands: list[Command] = []
        for worker in moved:
            if worker.status is WorkerStatus.IDLE:
                commands += self._settle(now, worker)
        for variant, queue in enumerate(self.queues):
            if queue and not self.pools_of[variant]:
                orphans = list(queue)
                queue.clear()
                for row in orphans:
                    commands += self._place(now, row)
        return commands

    def _index_pools(self) -> None:
        wanted = {worker.serves for worker in self.workers if not worker.down}
        self._pools = {serves: self._pools.get(serves) or Pool(serves, self.queues) for serves in sorted(wanted)}
        self.pools_of = [
            tuple(pool for serves, pool in self._pools.items() if variant in serves)
            for variant in range(len(self.catalog.variants))
        ]

    def _record(self, now: float, plan: Plan) -> None:
        """Keep what changed for the report: repeating the same placement is not an event."""
        counts: dict[str, int] = {}
        for worker in self.workers:
            if not worker.down:
                name = "+".join(self.catalog.variants[v].name for v in worker.serves)
                counts[name] = counts.get(name, 0) + 1
        if not self.plans or self.plans[-1].workers != counts:
            self.plans.append(PlanRecord(now, plan.reason, counts))
