"""The live host of the engine: one asyncio loop through which everything that happens goes.

What the simulated cluster does in simulated time, this does in real time: happenings go to the very same
:class:`~argus_sim.core.engine.Engine`, and its commands to workers. The engine is single-threaded, so nothing
here may be called from another thread.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from heapq import heappop, heappush
from itertools import count
from typing import Any, TextIO

from argus_sim.core.commands import Command, LoadModel, LookUpCache, Reject, RunBatch, WakeUp
from argus_sim.core.engine import Engine
from argus_sim.domain import CacheHit
from argus_sim.live.clock import Clock
from argus_sim.live.seams import Cache, EmptyCache, Job, Listener, Rejected, Served, Workers
from argus_sim.live.transcript import plain_commands, plain_hit
from argus_sim.record import FaultRecord, LoadRecord

SPOILT = "lost: its image came out spoilt"


class Executor:
    """Owns the engine.

    Args:
        engine: Without requests; they are admitted as they come.
        workers, cache: What carries commands out.
        clock: Its time is the engine's.
        slo_s: The deadline of a request after its arrival.
        dispatch_s: Emulated time from a request's arrival to the engine.
        listener: Hears of what happens.
        transcript: Gets every happening and the commands it led to, a line of JSON each.
        hold: Time begins with the first request instead of the start.
    """

    def __init__(
        self,
        engine: Engine,
        workers: Workers,
        clock: Clock,
        *,
        slo_s: float,
        cache: Cache | None = None,
        dispatch_s: float = 0.0,
        listener: Listener | None = None,
        transcript: TextIO | None = None,
        hold: bool = False,
        seed: int = 0,
    ) -> None:
        self.engine = engine
        self.clock = clock
        self.slo_s = slo_s
        self.loads: list[LoadRecord] = []
        self.faults: list[FaultRecord] = []
        #: Set with the reason when the engine failed: nothing can be served any more.
        self.failure: asyncio.Future[BaseException] | None = None
        self._workers = workers
        self._cache: Cache = EmptyCache() if cache is None else cache
        self._dispatch_s = dispatch_s
        self._listener = listener or Listener()
        self._transcript = transcript
        self._hold = hold
        self._seed = seed
        #: Rows until they are answered, and the clients that wait for them: some leave before.
        self._jobs: dict[int, Job] = {}
        self._open: dict[int, asyncio.Future[Served]] = {}
        #: Of requests that are here before they are due.
        self._early: set[asyncio.Future[Served]] = set()
        self._due: list[tuple[float, int, Callable[[float], None]]] = []
        self._order = count()
        self._timer: asyncio.TimerHandle | None = None
        self._now_s = 0.0
        self._has_stopped = False
        #: Losses and returns of workers before all of them were there; None since then.
        self._news: list[Callable[[], None]] | None = []
        #: Per worker: the load under way, as an index into ``loads``.
        self._loading: dict[int, int] = {}

    @property
    def clock_s(self) -> float:
        """The time of the last thing that happened."""
        return self._now_s

    @property
    def waiting(self) -> int:
        """Requests that have not been answered."""
        return len(self._open) + len(self._early)

    async def start(self) -> None:
        """Bring the workers up with the models of the policy's first plan; then time begins."""
        self.failure = asyncio.get_running_loop().create_future()
        if self._transcript is not None:
            # Only now: an earlier one stays where the server has no port to listen on.
            self._transcript.truncate(0)
        commands = self._tell("start")
        models = self.engine.catalog.models
        held = [models[w.model] for w in self.engine.workers if w.model is not None]
        await self._workers.start(self, held)
        self._carry_out(0.0, commands)
        news, self._news = self._news or [], None
        for tell in news:
            tell()
        tick_s = self.engine.policy.tick_s
        if tick_s is not None:
            self._tick_every(tick_s, tick_s)
        if not self._hold:
            self.clock.release()
        self._arm()

    async def stop(self, why: str = "the server is shutting down") -> None:
        """Answer what is still open with a refusal and end the workers."""
        if self._timer is not None:
            self._timer.cancel()
        for row in list(self._jobs):
            self._answer(row, Rejected(why, lost=True))
        for future in self._early:
            _refuse(future, Rejected(why, lost=True))
        self._has_stopped = True
        await self._workers.stop()

    async def drain(self, grace_s: float) -> None:
        """Wait until all that is open has been answered, but no longer than this (real seconds)."""
        futures = [*self._open.values(), *self._early]
        if futures:
            await asyncio.wait(futures, timeout=grace_s)

    def begin(self, at_s: float) -> None:
        """Let a held clock begin: it is ``at_s`` now, less the time by which it is late on purpose."""
        if self.clock.held:
            self.clock.release(at_s)
            self._arm()

    def submit(
        self, prompt: int, text: str, seed: int | None = None, *, due_s: float | None = None
    ) -> asyncio.Future[Served]:
        """A request arrived now.

        Args:
            prompt: Its position in the profile, or that of its stand-in.
            text: What the image is to show.
            seed: Of the image; by default one of its own.
            due_s: It arrives at this time of the clock instead, if that is still to come.

        Returns:
            A future of the image; its exception is :class:`Rejected`. Cancel it where nobody wants it any more.
        """
        self.begin(due_s or 0.0)
        now = self._advance()
        future: asyncio.Future[Served] = asyncio.get_running_loop().create_future()
        if due_s is None or due_s <= now:
            self._admit(now, prompt, text, seed, future)
        else:
            self._early.add(future)
            self.at(due_s, lambda at_s: self._admit(at_s, prompt, text, seed, future))
        return future

    def _admit(
        self, now: float, prompt: int, text: str, seed: int | None, future: asyncio.Future[Served]
    ) -> None:
        self._early.discard(future)
        if future.done():  # the client left before its time had come
            return
        row = self.engine.admit(now, now + self.slo_s, prompt)
        self._note({"admit": [now, now + self.slo_s, prompt]})
        future.add_done_callback(lambda future: self._close(row, future))
        self._jobs[row] = Job(row, text, self._seed + row if seed is None else seed)
        self._open[row] = future
        if self._dispatch_s:
            self.at(now + self._dispatch_s, lambda at_s: self._happen("arrive", at_s, row))
        else:
            self._happen("arrive", now, row)

    def _close(self, row: int, future: asyncio.Future[Served]) -> None:
        """It has been answered, or cancelled: then its image need not be made, unless it is under way."""
        self._open.pop(row, None)
        if future.cancelled() and row in self._jobs:
            self._happen("withdraw", self._advance(), row)

    # -- what workers and the cache report ------------------------------------------------------------------

    def batch_done(self, now: float, worker: int, images: Sequence[bytes | None]) -> None:
        """The batch of a worker ended at ``now``; for each of its rows an image, None for one that is spoilt."""
        state = self.engine.workers[worker]
        rows, variant, started_s = tuple(state.batch.rows), state.batch.variant, state.started_s
        if not rows:
            return
        name = self.engine.catalog.variants[variant].name
        requests = self.engine.requests
        self._happen("batch_done", now, worker)
        self._listener.batch(variant, len(rows), now - started_s)
        for row, image in zip(rows, images, strict=True):
            if image is None:
                self.engine.log.spoilt(row, SPOILT)
                self._answer(row, Rejected(SPOILT, lost=True))
                continue
            arrival_s, on_time = requests.arrival_s[row], now <= requests.deadline_s[row]
            self._answer(row, Served(image, name, worker, len(rows), arrival_s, started_s, now, on_time))

    def model_loaded(self, now: float, worker: int) -> None:
        index = self._loading.pop(worker, None)
        if index is not None:
            load = self.loads[index]
            self.loads[index] = LoadRecord(load.worker, load.model, load.start_s, now)
            self._listener.loaded(load.model, now - load.start_s)
        self._happen("model_loaded", now, worker)

    def worker_lost(self, now: float, worker: int, why: str) -> None:
        if self._news is not None:  # what follows from it may be for workers that are not there yet
            self._news.append(lambda: self.worker_lost(now, worker, why))
        elif not self.engine.workers[worker].down:
            self._loading.pop(worker, None)
            self.faults.append(FaultRecord(now, worker, "lost"))
            self._listener.worker(worker, "lost", why)
            self._happen("worker_lost", now, worker)

    def worker_joined(self, now: float, worker: int) -> None:
        if self._news is not None:
            self._news.append(lambda: self.worker_joined(now, worker))
            return
        self.faults.append(FaultRecord(now, worker, "joined"))
        self._listener.worker(worker, "joined", "")
        self._happen("worker_joined", now, worker)

    def cache_answered(self, now: float, row: int, hit: CacheHit) -> None:
        self._listener.cache(hit.max_skipped_steps > 0)
        self._happen("cache_answered", now, row, hit)
        if row in self._jobs and row not in self._open:  # the client left meanwhile
            self._happen("withdraw", now, row)

    # -- time -----------------------------------------------------------------------------------------------

    def at(self, time_s: float, call: Callable[[float], None]) -> None:
        """Call something at a time, with that very time.

        What is late because the loop was busy is still given the time it was meant for, and in order: so errors
        of timers do not add up, however fast the clock runs.
        """
        heappush(self._due, (time_s, next(self._order), call))
        if self._due[0][0] == time_s:
            self._arm()

    def now(self) -> float:
        """The time, with all that was due before it done."""
        return self._advance()

    def _advance(self) -> float:
        now = max(self.clock.now(), self._now_s)
        while self._due and self._due[0][0] <= now:
            time_s, _, call = heappop(self._due)
            self._now_s = max(self._now_s, time_s)
            call(self._now_s)
        self._now_s = now
        return now

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._due and not self.clock.held:
            when = self.clock.loop_time_s(self._due[0][0])
            self._timer = asyncio.get_running_loop().call_at(when, self._fire)

    def _fire(self) -> None:
        self._timer = None
        self._advance()
        self._arm()

    def _tick_every(self, period_s: float, at_s: float) -> None:
        def tick(now: float) -> None:
            self._happen("tick", now)
            self._tick_every(period_s, at_s + period_s)

        self.at(at_s, tick)

    # -- the engine -----------------------------------------------------------------------------------------

    def _happen(self, what: str, now: float, *details: Any) -> None:
        """Tell the engine, and carry out what it answers. An engine that fails ends the server."""
        if self._has_stopped:
            return
        try:
            self._carry_out(now, self._tell(what, now, *details))
        except Exception as error:
            if self.failure is None:
                raise
            if not self.failure.done():
                self.failure.set_result(error)
            for row in list(self._jobs):
                self._answer(row, Rejected("internal error", lost=True))

    def _tell(self, what: str, *details: Any) -> Sequence[Command]:
        commands: Sequence[Command] = getattr(self.engine, what)(*details)
        if self._transcript is not None:
            plain = [plain_hit(d) if isinstance(d, CacheHit) else d for d in details]
            self._note({what: plain, "commands": plain_commands(commands)})
        return commands

    def _note(self, line: dict[str, Any]) -> None:
        if self._transcript is not None:
            self._transcript.write(json.dumps(line, allow_nan=False) + "\n")

    def _carry_out(self, now: float, commands: Sequence[Command]) -> None:
        for command in commands:
            match command:
                case RunBatch():
                    jobs = [self._jobs[row] for row in command.rows]
                    self._workers.run(now, command.worker, command.variant, jobs)
                case LoadModel(worker, model):
                    name = self.engine.catalog.models[model]
                    self._loading[worker] = len(self.loads)
                    self.loads.append(LoadRecord(worker, name, now, float("nan")))
                    self._workers.load(now, worker, name)
                case LookUpCache(row):
                    prompt = self.engine.requests.prompt[row]
                    self._cache.look_up(self, now, row, prompt, self._jobs[row].prompt)
                case Reject(row, reason):
                    self._answer(row, Rejected(reason, lost=reason.startswith("lost")))
                case WakeUp(at_s):
                    self.at(max(now, at_s), lambda at_s: self._happen("woken", at_s))

    def _answer(self, row: int, result: Served | Rejected) -> None:
        if isinstance(result, Served):
            self._listener.served(result)
        else:
            result.arrival_s = self.engine.requests.arrival_s[row]
            self._listener.rejected(result.reason, result.lost)
        self._jobs.pop(row, None)
        self._cache.release(row)
        future = self._open.pop(row, None)
        if future is None or future.done():  # the client left
            return
        if isinstance(result, Served):
            future.set_result(result)
        else:
            _refuse(future, result)


def _refuse(future: asyncio.Future[Served], why: Rejected) -> None:
    if not future.done():
        future.set_exception(why)
        future.exception()  # retrieved: a client that left will not ask for it
