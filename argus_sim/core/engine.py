"""The serving core: happenings in, commands out.

The engine is a state machine that never sleeps, samples or touches a device. A host tells it what happened and
when, and carries out the commands that it answers with. The simulated and the live host run the same engine,
which is why the simulator can be trusted.

Requests wait in one queue per variant, and whoever serves a variant takes from its queue when free. So a
request is bound to a worker at the last moment, which is what "the least loaded worker" comes to when nothing
has to be guessed about how long running batches will still take.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from argus_sim.core.batching import DropRule, formers
from argus_sim.core.cascade import Cascade
from argus_sim.core.catalog import Catalog
from argus_sim.core.commands import Command, LookUpCache
from argus_sim.core.decisions import ASKED, REFUSED, Decisions
from argus_sim.core.endings import DROPPED, FAILED_TWICE, NO_WORKER, WITHDRAWN, Endings
from argus_sim.core.floor import NOTHING, Floor, PolicyError
from argus_sim.core.outcomes import SIZES, WORKERS, OutcomeLog
from argus_sim.core.policy import Decision, Plan, Policy
from argus_sim.core.requests import Requests
from argus_sim.core.view import ClusterView
from argus_sim.core.workers import Worker
from argus_sim.domain import BatchResult, CacheHit, VariantId

#: A named tuple's own constructor takes half as long again.
_new = tuple.__new__


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
        "_columns",
        "_constant",
        "_endings",
        "_fill",
        "_known",
        "_next_plan_s",
        "_observe",
        "_observe_cache",
        "_reason",
        "_rejects",
        "_request",
        "_retried",
        "_route",
        "_simple",
        "_skipped",
        "_staleness_s",
        "arrived",
        "cascade",
        "catalog",
        "floor",
        "judges",
        "log",
        "policy",
        "pools_of",
        "queues",
        "requests",
        "view",
        "wasted_s",
        "workers",
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
        self.catalog = catalog = catalog.up_to(policy.max_batch)
        self.policy = policy
        self.requests = requests
        self.log = log = OutcomeLog(len(requests))
        self._columns, self._reason = (log.start_s, log.finish_s, log.ran), log.reason
        self.arrived = 0
        #: Time that workers spent on batches they were lost with.
        self.wasted_s = 0.0
        #: Rows whose cache look-up is under way, with the variant they wait for (or ASKED).
        self._asked: dict[int, VariantId] = {}
        self._retried: set[int] = set()
        self._skipped = [v.skipped_steps for v in catalog.variants]
        self._known = Decisions(policy.name, catalog, log)
        #: Whether ``batch_done`` has to say how good the images are: the policy is a cascade.
        self.judges = policy.judges
        self.cascade = Cascade(policy, self._known, self._skipped, log, requests)
        self._endings = Endings(self.cascade, log)
        self._request = requests.cursor()
        self._staleness_s = staleness_s
        self._rejects: list[Command] = []
        drop = drop or DropRule()
        least_s = [float("inf")] * len(catalog.variants)
        self.floor = Floor(
            catalog,
            policy,
            workers,
            formers(catalog.kinds, drop, requests.arrival_s, requests.deadline_s, self._drop, least_s),
            least_s,
            self._rejects,
            never_drops=drop.kind == "never",
            look=self._look,
        )
        # What the hot paths read, without the detour.
        self.workers, self.queues, self.pools_of = self.floor.workers, self.floor.queues, self.floor.pools_of
        self._fill = self.floor.fill
        self.view = ClusterView(self)
        self._route = policy.route
        self._constant = None if policy.constant is None else self._known[policy.constant]
        self._observe: Callable[[BatchResult], None] | None = (
            policy.observe if type(policy).observe is not Policy.observe else None
        )
        self._observe_cache: Callable[[CacheHit], None] | None = (
            policy.observe_cache if type(policy).observe_cache is not Policy.observe_cache else None
        )
        self._simple = drop.kind == "never" and type(policy).batch is Policy.batch
        self._next_plan_s = policy.period_s if policy.period_s is not None else float("inf")

    # -- happenings ----------------------------------------------------------------------------------------

    def start(self) -> Sequence[Command]:
        """Before the first arrival: the policy's first plan, with the models already in place."""
        plan = self.policy.plan(self.view)
        self.floor.validate(plan)
        for worker, serves in zip(self.workers, plan.serves, strict=True):
            worker.model = self.catalog.model[serves[0]]
        return self._apply(0.0, plan)

    def admit(self, arrival_s: float, deadline_s: float, prompt: int) -> int:
        """Make room for a request that is about to arrive (live host); returns its row."""
        self.log.append()
        return self.requests.append(arrival_s, deadline_s, prompt)

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
            known = self._known[decision]
        variant, reason = known
        self._reason[row] = reason
        if variant < 0:
            return self._decided_specially(now, row, variant)
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
            return self._nobody_serves(now, queue.pop(), variant)
        return NOTHING

    def batch_done(self, now: float, index: int, confidence: Sequence[float] | None = None) -> Sequence[Command]:
        """The batch on this worker ended. News of a worker that has been lost meanwhile changes nothing.

        Args:
            now: The time.
            index: The worker.
            confidence: For each request of the batch, how good a discriminator thinks its image is, in [0, 1].
                Needed where :attr:`judges` is true.
        """
        worker = self.workers[index]
        batch = worker.batch
        rows = batch.rows
        if not rows:
            return NOTHING
        started_s = worker.started_s
        size = len(rows)
        ran = (batch.variant * WORKERS + index) * SIZES + size
        passed_on = NOTHING
        if self.judges:
            rows, passed_on = self._judge(now, worker, ran, confidence)
        start_column, finish_column, ran_column = self._columns
        for row in rows:
            start_column[row] = started_s
            finish_column[row] = now
            ran_column[row] = ran
        batch.rows = []
        if self._observe is not None:
            deadline_s = self.requests.deadline_s
            late = sum(deadline_s[row] < now for row in rows)
            self._observe(BatchResult(index, batch.variant, size, now - started_s, late))
        pool = worker.pool
        if pool is None:
            return [*passed_on, *self.floor.settle(now, worker)]
        if passed_on:
            pool.idle.append(worker)
            return [*passed_on, *self._fill(now, pool)]
        queue = pool.queue
        if queue is not None and self._simple:
            # As `_fill` does it, for the commonest case: one variant, and nobody to ask about size or dropping.
            if not queue:
                pool.idle.append(worker)
                return NOTHING
            fit = pool.fit
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
        if not worker.loading:  # lost meanwhile
            return NOTHING
        return self.floor.loaded(now, worker)

    def cache_answered(self, now: float, row: int, hit: CacheHit) -> Sequence[Command]:
        """The cache answered ``LookUpCache``.

        Where it holds too little for the variant that was meant, or nobody serves that any more, the policy is
        asked again, knowing the answer.
        """
        variant = self._asked.pop(row)
        if self._observe_cache is not None:
            self._observe_cache(hit)
        if not self.floor.workers_up:
            return self._endings.lose(now, row, NO_WORKER)
        if variant >= 0 and hit.max_skipped_steps >= self._skipped[variant] and self.pools_of[variant]:
            return self._enqueue(now, row, variant)
        decision = self._ask(now, row, hit)
        variant, reason = self._known[decision]
        if variant == REFUSED:
            self._reason[row] = reason
            return self._decided_specially(now, row, variant)
        if variant == ASKED or self._skipped[variant] > hit.max_skipped_steps:
            raise PolicyError(f"policy {self.policy.name!r} answered {decision}, but the cache said {hit}")
        self._reason[row] = reason
        return self._enqueue(now, row, variant)

    def worker_lost(self, now: float, *indices: int) -> Sequence[Command]:
        """Workers failed, all at once. What they ran is tried once more elsewhere; the policy plans anew.

        A second image of a cascade is made by the same variant where somebody serves it: the first one has been
        judged.
        """
        lost = self.floor.lose(indices)
        if not lost:
            return NOTHING
        rows: list[tuple[int, VariantId]] = []
        for worker, batch in lost:
            if batch:
                self.wasted_s += now - worker.started_s
                ran = (worker.batch.variant * WORKERS + worker.index) * SIZES + len(batch)
                self.log.attempted(batch, worker.started_s, now, ran, lost=True)
                rows += [(row, worker.batch.variant) for row in batch]
        commands: list[Command] = []
        if self.floor.workers_up:
            commands += self._replan(now)
        else:
            rows += self.floor.abandon()
        for row, variant in sorted(rows):
            if not self.floor.workers_up:
                commands += self._endings.lose(now, row, NO_WORKER)
            elif row in self._retried:
                commands += self._endings.lose(now, row, FAILED_TWICE)
            else:
                self._retried.add(row)
                if row in self.cascade.passed_on and self.pools_of[variant]:
                    commands += self._enqueue(now, row, variant)
                else:
                    commands += self._place(now, row)
        return commands

    def worker_joined(self, now: float, *indices: int) -> Sequence[Command]:
        """Workers came (back), at one instant, empty; the policy plans anew."""
        return self._replan(now) if self.floor.join(indices) else NOTHING

    def tick(self, now: float) -> Sequence[Command]:
        """Time for the policy to look around; the host calls it every ``policy.tick_s``."""
        self._look(now)
        if self.floor.workers_up and (self.policy.monitor(self.view) or now >= self._next_plan_s):
            return self._replan(now)
        return NOTHING

    def withdraw(self, now: float, row: int) -> Sequence[Command]:
        """Nobody wants the image any more (live host): a request that waits is over, one that runs goes on."""
        for queue in self.queues:
            if row in queue:
                queue.remove(row)
                return self._endings.refuse(now, row, WITHDRAWN)
        return NOTHING

    def woken(self, now: float) -> Sequence[Command]:
        """The time of a ``WakeUp`` has come."""
        commands = self.cascade.due(now, self.queues) if len(self.cascade.gallery) else NOTHING
        return [*commands, *self.floor.wake(now)]

    def is_idle(self) -> bool:
        """True when nothing waits, runs or is being looked up."""
        return not self._asked and self.floor.is_idle()

    def _look(self, now: float) -> ClusterView:
        """The view, up to date, or as stale as it may be."""
        view = self.view
        view.now_s = now
        if self._staleness_s:
            view.refresh(self._staleness_s)
        return view

    # -- requests ------------------------------------------------------------------------------------------

    def _ask(self, now: float, row: int, hit: CacheHit | None) -> Decision:
        """Put the routing question again for a request that has already arrived."""
        self._look(now)
        request = self._request
        request.row, request.hit = row, hit
        decision = self._route(request, self.view)
        request.hit = None
        return decision

    def _judge(
        self, now: float, worker: Worker, ran: int, confidence: Sequence[float] | None
    ) -> tuple[list[int], Sequence[Command]]:
        """The rows whose image the policy lets pass, and what follows for the others."""
        good: list[int] = []
        commands: list[Command] = []
        for row, command, variant in self.cascade.judge(
            now, worker, ran, confidence, self._request, self._look(now), good
        ):
            if command is not None:
                commands.append(command)
            if variant is not None:
                commands += self._enqueue(now, row, variant)
        return good, commands

    def _place(self, now: float, row: int) -> Sequence[Command]:
        """Find a new place for a request whose worker or queue is gone; a cascade begins again."""
        self.cascade.passed_on.discard(row)
        decision = self._ask(now, row, None)
        variant, reason = self._known[decision]
        self._reason[row] = reason
        if variant < 0 or self._skipped[variant]:
            return self._decided_specially(now, row, variant)
        return self._enqueue(now, row, variant)

    def _decided_specially(self, now: float, row: int, variant: VariantId) -> Sequence[Command]:
        """A refusal, a question to the cache, or a variant that needs the cache's answer first."""
        if variant == REFUSED:
            return self._endings.refuse(now, row, self.log.reasons[self._reason[row]])
        self._asked[row] = variant
        return [LookUpCache(row)]

    def _enqueue(self, now: float, row: int, variant: VariantId) -> Sequence[Command]:
        pools = self.pools_of[variant]
        if not pools:
            return self._nobody_serves(now, row, variant)
        self.queues[variant].append(row)
        for pool in pools:
            if pool.idle:
                return self._fill(now, pool)
        return NOTHING

    def _nobody_serves(self, now: float, row: int, variant: VariantId) -> Sequence[Command]:
        if self.floor.workers_up:
            name = self.catalog.variants[variant].name
            raise PolicyError(f"policy {self.policy.name!r} routed to {name!r}, which no worker serves")
        return self._endings.lose(now, row, NO_WORKER)

    def _drop(self, row: int) -> None:
        self._rejects += self._endings.refuse(self.floor.now_s, row, DROPPED)

    # -- placement -----------------------------------------------------------------------------------------

    def _replan(self, now: float) -> Sequence[Command]:
        plan = self.policy.plan(self._look(now))
        if self.policy.period_s is not None:
            self._next_plan_s = now + self.policy.period_s
        if plan is self.floor.in_force:
            return NOTHING
        self.floor.validate(plan)
        return self._apply(now, plan)

    def _apply(self, now: float, plan: Plan) -> Sequence[Command]:
        commands, orphans = self.floor.apply(now, plan)
        for row in orphans:
            commands += self._place(now, row)
        return commands
