"""The shop floor: which worker serves what, and who runs which batch next."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import SupportsIndex

from argus_sim.core.batching import BatchFormer
from argus_sim.core.catalog import Catalog
from argus_sim.core.commands import Command, LoadModel, WakeUp
from argus_sim.core.policy import Plan, Policy, Serves, Wait
from argus_sim.core.view import ClusterView
from argus_sim.core.workers import Pool, Worker
from argus_sim.domain import VariantId, WorkerStatus
from argus_sim.errors import InputError
from argus_sim.record import PlanRecord

NOTHING: Sequence[Command] = ()


class PolicyError(InputError):
    """A policy answered something that cannot be done; says which policy and what."""


def is_variant(answer: object, known: int) -> bool:
    """Whether a policy's answer is the number of one of so many variants; NumPy's integers are, 1.0 is not."""
    return isinstance(answer, SupportsIndex) and 0 <= answer.__index__() < known


class Floor:
    """Workers, their pools, and the queues that they take from.

    Args:
        catalog: What variants there are and how long they take.
        policy: Asked for batch sizes, where it has an opinion.
        workers: How many workers there are, all up and empty.
        formers: Form batches for each kind of workers, dropping what is late.
        least_s: Kept up to date for them: see :class:`argus_sim.core.batching.YieldingFormer`.
        rejects: Where they leave their commands.
        never_drops: True when nothing is ever dropped, so that a batch of one needs no forming.
        look: Brings the view up to date and returns it.
    """

    __slots__ = (
        "_batch",
        "_catalog",
        "_formers",
        "_least_s",
        "_look",
        "_never_drops",
        "_policy",
        "_pools",
        "_rejects",
        "changes",
        "in_force",
        "membership",
        "now_s",
        "plans",
        "pools_of",
        "queues",
        "workers",
        "workers_up",
    )

    def __init__(
        self,
        catalog: Catalog,
        policy: Policy,
        workers: int,
        formers: Sequence[BatchFormer],
        least_s: list[float],
        rejects: list[Command],
        *,
        never_drops: bool,
        look: Callable[[float], ClusterView],
    ) -> None:
        self._catalog = catalog
        self._policy = policy
        self._batch = policy.batch if type(policy).batch is not Policy.batch else None
        self._formers = formers
        self._least_s = least_s
        self._rejects = rejects
        self._never_drops = never_drops
        self._look = look
        variants = len(catalog.variants)
        kind_of = catalog.kind_of or (0,) * workers
        if len(kind_of) != workers:
            raise ValueError(f"the catalog has kinds for {len(kind_of)} workers; there are {workers}")
        self.workers = [Worker(index, kind) for index, kind in enumerate(kind_of)]
        self.workers_up = workers
        #: Changes whenever workers come or go.
        self.membership = 0
        #: Changes whenever they do, or what one of them serves, holds or loads.
        self.changes = 0
        self.queues: list[deque[int]] = [deque() for _ in range(variants)]
        self.pools_of: list[tuple[Pool, ...]] = [()] * variants
        #: By what is served and the kind of the workers.
        self._pools: dict[tuple[Serves, int], Pool] = {}
        #: The last plan applied; None when a worker has come or gone since.
        self.in_force: Plan | None = None
        self.plans: list[PlanRecord] = []
        #: When a former was last asked for a batch.
        self.now_s = 0.0

    def is_idle(self) -> bool:
        """True when nothing waits or runs."""
        return not (any(self.queues) or any(worker.batch.rows for worker in self.workers))

    # -- batches -------------------------------------------------------------------------------------------

    def fill(self, now: float, pool: Pool) -> Sequence[Command]:
        """Give work to the idle workers of a pool, as far as there is any."""
        commands: list[Command] = []
        idle = pool.idle
        left: Serves = ()
        while idle:
            variant, queue = pool.variant, pool.queue
            if queue is None:
                variant = self._oldest(left or pool.serves)
                queue = self.queues[variant]
            if not queue:
                break
            if self._batch is None:
                fit = pool.fit or pool.timings.fit[variant]
                size = fit[len(queue)] if len(queue) < len(fit) else fit[-1]
            else:
                size = self._ask_batch(now, pool, queue, variant, commands)
                if not size:
                    break
            if size == 1 and self._never_drops:
                rows = [queue.popleft()]
            else:
                self.now_s = now
                rows = pool.former.take(now, queue, variant, size)
                if self._rejects:
                    commands += self._rejects
                    self._rejects.clear()
                if not rows:
                    if queue:  # what is left there is for a faster kind
                        left = tuple(v for v in left or pool.serves if v != variant)
                        if not left:
                            break
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
        answer = self._batch(queue, variant, pool.idle[-1].index, self._look(now))
        if isinstance(answer, Wait):
            if not now < answer.until_s < float("inf"):
                raise PolicyError(
                    f"policy {self._policy.name!r} wants to wait until {answer.until_s}; allowed are times after "
                    f"{now}"
                )
            if not now < pool.wake_s <= answer.until_s:
                pool.wake_s = answer.until_s
                commands.append(WakeUp(answer.until_s))
            return 0
        batch_sizes = pool.timings.batch_sizes[variant]
        if not (0 < answer <= len(queue) and answer in batch_sizes):
            sizes = ", ".join(map(str, batch_sizes))
            raise PolicyError(
                f"policy {self._policy.name!r} asked for a batch of {answer} of "
                f"{self._catalog.variants[variant].name!r} with {len(queue)} waiting; profile "
                f"{pool.timings.name!r} has batch sizes {sizes}"
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

    def wake(self, now: float) -> Sequence[Command]:
        """Look at all idle workers again: a batch that was left to fill up may have to go."""
        commands: list[Command] = []
        for pool in list(self._pools.values()):
            if pool.idle:
                commands += self.fill(now, pool)
        return commands

    # -- workers that come and go --------------------------------------------------------------------------

    def lose(self, indices: Iterable[int]) -> list[tuple[Worker, list[int]]]:
        """Workers failed; returns those of them that were up, each with the rows that it was running."""
        lost: list[tuple[Worker, list[int]]] = []
        for worker in map(self.workers.__getitem__, sorted(indices)):
            if not worker.down:
                self.leave(worker)
                rows, worker.batch.rows = worker.batch.rows, []
                worker.down, worker.loading, worker.model = True, False, None
                lost.append((worker, rows))
        self._count(-len(lost))
        return lost

    def join(self, indices: Iterable[int]) -> int:
        """Workers came (back), empty; returns how many of them were not up."""
        joined = 0
        for worker in map(self.workers.__getitem__, indices):
            joined += worker.down
            worker.down = False
        self._count(joined)
        return joined

    def _count(self, more: int) -> None:
        if more:
            self.workers_up += more
            self.membership += 1
            self.changes += 1
            self.in_force = None

    def abandon(self) -> list[tuple[int, VariantId]]:
        """No worker is up: empty the queues; returns the rows that waited, each with its variant."""
        self.index_pools()
        rows = [(row, variant) for variant, queue in enumerate(self.queues) for row in queue]
        for queue in self.queues:
            queue.clear()
        return rows

    # -- placement -----------------------------------------------------------------------------------------

    def leave(self, worker: Worker) -> None:
        """Take a worker out of its pool; a running batch goes on."""
        pool, worker.pool = worker.pool, None
        if pool is not None and not worker.batch.rows:
            pool.idle.remove(worker)

    def settle(self, now: float, worker: Worker) -> Sequence[Command]:
        """A free worker outside any pool joins the one it is meant for, loading its model first if need be."""
        needed = self._catalog.model[worker.serves[0]]
        if worker.model != needed:
            worker.loading = True
            worker.model = needed
            self.changes += 1
            return [LoadModel(worker.index, needed)]
        pool = worker.pool = self._pools[worker.serves, worker.kind]
        pool.idle.append(worker)
        return self.fill(now, pool)

    def loaded(self, now: float, worker: Worker) -> Sequence[Command]:
        """A worker has the model that it was loading."""
        worker.loading = False
        self.changes += 1
        return self.settle(now, worker)

    def validate(self, plan: Plan) -> None:
        """Raises :class:`PolicyError` when a plan cannot be carried out."""
        who = f"policy {self._policy.name!r} planned"
        if not isinstance(plan, Plan):
            raise PolicyError(f"{who} {plan!r}; allowed is a Plan")
        if len(plan.serves) != len(self.workers):
            raise PolicyError(f"{who} for {len(plan.serves)} workers; there are {len(self.workers)}")
        known = len(self._catalog.variants)
        for serves in plan.serves:
            if not isinstance(serves, tuple) or not all(is_variant(v, known) for v in serves):
                raise PolicyError(
                    f"{who} a worker for {serves!r}; allowed are tuples of variants from 0 to {known - 1}"
                )
        for serves in set(plan.serves):
            if not serves or len({self._catalog.model[v] for v in serves}) != 1:
                names = [self._catalog.variants[v].name for v in serves]
                raise PolicyError(f"{who} a worker for {names}; allowed are variants of one model, at least one")

    def apply(self, now: float, plan: Plan) -> tuple[list[Command], list[int]]:
        """Change what workers serve. Idle ones change at once, busy and loading ones when they are done.

        Returns the commands, and the requests whose queue nobody serves any more, which need a new place.
        """
        self.in_force = plan
        self.changes += 1
        moved = []
        for worker, serves in zip(self.workers, plan.serves, strict=True):
            if serves != worker.serves or worker.pool is None:
                self.leave(worker)
                worker.serves = serves
                moved.append(worker)
        self.index_pools()
        self._record(now, plan)
        commands: list[Command] = []
        for worker in moved:
            if worker.status is WorkerStatus.IDLE:
                commands += self.settle(now, worker)
        orphans: list[int] = []
        for queue, pools in zip(self.queues, self.pools_of, strict=True):
            if queue and not pools:
                orphans += queue
                queue.clear()
        if len(self._formers) > 1:
            # Those that a kind was waited for which is gone would wait for ever.
            commands += self.wake(now)
        return commands, orphans

    def index_pools(self) -> None:
        """Bring the pools in line with what the workers that are up are to serve."""
        wanted = {(worker.serves, worker.kind) for worker in self.workers if not worker.down}
        kinds = self._catalog.kinds
        self._pools = {
            key: self._pools.get(key) or Pool(key[0], self.queues, kinds[key[1]], self._formers[key[1]])
            for key in sorted(wanted)
        }
        self.pools_of[:] = [
            tuple(pool for (serves, _), pool in self._pools.items() if variant in serves)
            for variant in range(len(self._catalog.variants))
        ]
        if len(kinds) > 1:
            # Whoever is first here gets work first. By the measure that rows are left for a faster kind by: with
            # another one, a row could be left for a kind that was passed over and stays idle.
            for v, pools in enumerate(self.pools_of):
                self.pools_of[v] = tuple(sorted(pools, key=lambda pool, v=v: pool.timings.p99_s[v][1]))  # type: ignore[misc]
                self._least_s[v] = min((pool.timings.p99_s[v][1] for pool in pools), default=float("inf"))

    def _record(self, now: float, plan: Plan) -> None:
        """Keep what changed for the report: repeating the same placement is not an event."""
        counts: dict[str, int] = {}
        for worker in self.workers:
            if not worker.down:
                name = "+".join(self._catalog.variants[v].name for v in worker.serves)
                counts[name] = counts.get(name, 0) + 1
        if not self.plans or self.plans[-1].workers != counts:
            self.plans.append(PlanRecord(now, plan.reason, counts))
