"""Images of a policy that has every one of them judged: which are the answer, and which are kept meanwhile."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence

from argus_sim.core.commands import Command, Deliver, WakeUp
from argus_sim.core.decisions import Decisions
from argus_sim.core.floor import PolicyError
from argus_sim.core.gallery import Gallery
from argus_sim.core.outcomes import OutcomeLog
from argus_sim.core.policy import Again, Keep, Policy
from argus_sim.core.requests import Requests
from argus_sim.core.view import ClusterView
from argus_sim.core.workers import Worker
from argus_sim.domain import Request, VariantId

KEPT = "the image made before: another could not be had in time"
#: Of an image that does not pass: its request, what the host is to do, and the variant that makes another one.
Step = tuple[int, Command | None, VariantId | None]


class Cascade:
    """The part of the engine that deals with judged images.

    Args:
        policy: Its ``review`` says which images pass.
        known: What decisions come to.
        skipped: Steps that each variant skips.
        log: Where outcomes are written.
        requests: The engine's.
    """

    __slots__ = ("_known", "_log", "_policy", "_requests", "_skipped", "gallery", "passed_on", "passed_on_s")

    def __init__(
        self, policy: Policy, known: Decisions, skipped: Sequence[int], log: OutcomeLog, requests: Requests
    ) -> None:
        self._policy, self._known, self._skipped = policy, known, skipped
        self._log, self._requests = log, requests
        self.gallery = Gallery()
        #: Rows that another image is made for, after one that did not pass.
        self.passed_on: set[int] = set()
        #: Time that workers spent on images that were not the answer when they were made.
        self.passed_on_s = 0.0

    def judge(
        self,
        now: float,
        worker: Worker,
        ran: int,
        confidence: Sequence[float] | None,
        request: Request,
        view: ClusterView,
        good: list[int],
    ) -> Iterator[Step]:
        """Have one image of the worker's batch after the other judged; those that do not pass follow.

        Args:
            now: When the batch ended.
            worker: What ran it.
            ran: Variant, worker and batch size, packed as in ``OutcomeLog``.
            confidence: Of each image, in [0, 1].
            request: The engine's cursor.
            view: The cluster, up to date.
            good: Is given the rows whose image passes.

        Raises:
            ValueError: There is no confidence for each image.
            PolicyError: The policy answered what cannot be.
        """
        batch, name = worker.batch, self._policy.name
        if confidence is None or len(confidence) != len(batch.rows):
            raise ValueError(f"policy {name!r} needs a confidence for each of {len(batch.rows)} images")
        review, gallery, made_by = self._policy.review, self.gallery, batch.variant
        for row, sure in zip(batch.rows, confidence, strict=True):
            request.row = row
            if len(gallery):
                request.images = gallery.images(row)
                decision = review(request, made_by, sure, view)
                request.images = ()
            else:
                decision = review(request, made_by, sure, view)
            if decision is None:
                gallery.forget(row)
                self.passed_on.discard(row)
                good.append(row)
                continue
            self._log.attempted((row,), worker.started_s, now, ran, lost=False)
            self.passed_on_s += (now - worker.started_s) / len(batch.rows)
            if isinstance(decision, Keep):
                self.passed_on.discard(row)
                kept = gallery.take(row, decision.variant)
                if kept is None:
                    raise PolicyError(f"policy {name!r} answered {decision}, but kept no such image")
                yield row, self._deliver(now, row, kept, decision.reason), None
                continue
            variant, reason = self._known[decision.route if isinstance(decision, Again) else decision]
            if variant < 0 or self._skipped[variant]:
                raise PolicyError(
                    f"policy {name!r} answered {decision} to an image; allowed are None, Keep, and "
                    f"Again or Route to a variant that needs no cache"
                )
            self._log.reason[row] = reason
            self.passed_on.add(row)
            wake: WakeUp | None = None
            if isinstance(decision, Again):
                gallery.keep(row, made_by, sure, ran, decision.keep)
                wake = WakeUp(self._requests.deadline_s[row])
            yield row, wake, variant

    def due(self, now: float, queues: Sequence[deque[int]]) -> list[Command]:
        """Requests that still wait for another image at their deadline get one that is there."""
        due = {row for row in self.gallery if self._requests.deadline_s[row] <= now}
        commands: list[Command] = []
        for queue in queues if due else ():
            for row in sorted(due.intersection(queue)):
                queue.remove(row)
                kept = self.instead(now, row)
                assert kept is not None
                commands.append(kept)
        return commands

    def instead(self, now: float, row: int) -> Deliver | None:
        """An image made before, for a request that gets no other; None where it has none."""
        self.passed_on.discard(row)
        kept = self.gallery.take(row)
        return None if kept is None else self._deliver(now, row, kept, KEPT)

    def _deliver(self, now: float, row: int, kept: tuple[VariantId, int], reason: str) -> Deliver:
        """An image made before is the answer. Its batch is an attempt; start and finish are both now."""
        variant, ran = kept
        log = self._log
        log.start_s[row] = log.finish_s[row] = now
        log.ran[row] = ran
        log.reason[row] = log.code(reason)
        return Deliver(row, variant)
