"""The simulated cluster: a host that carries out the engine's commands in simulated time.

A command becomes an event at the time when the hardware would have answered: a batch ends after a service time
drawn from the profile, a model is in place after a load time, the cache answers after its latency.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Generator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from argus_sim.core.commands import Command, LoadModel, LookUpCache, RunBatch, WakeUp
from argus_sim.core.engine import Engine
from argus_sim.errors import InputError
from argus_sim.record import FaultRecord, LoadRecord
from argus_sim.simulation.discriminator import Discriminator
from argus_sim.simulation.environment import Environment, StreamEnvironment, Tick
from argus_sim.simulation.filling import FillingCache
from argus_sim.simulation.network import SimulatedCache
from argus_sim.simulation.service import LoadTimes, ServiceTimes


class CannotCatchUp(InputError):
    """More arrives than this cluster serves, and nothing is dropped."""


class SimulatedCluster:
    """Runs an engine over a trace.

    Args:
        engine: With all requests of the run in its columns.
        arrival_s: float64[n], when each row reaches the engine; sorted.
        service: How long batches run.
        loads: How long models take to load.
        cache: The approximate cache, or None where no variant needs one.
        discriminator: Judges images for a policy that is a cascade; others do not need it.
        env: The SimPy environment; a fast one by default.
        max_wait_s: A run in which a request has waited this long while more keep arriving is stopped: with
            nothing ever dropped, it would never catch up.
    """

    def __init__(
        self,
        engine: Engine,
        arrival_s: npt.NDArray[np.float64],
        service: ServiceTimes,
        loads: LoadTimes | None = None,
        cache: SimulatedCache | FillingCache | None = None,
        discriminator: Discriminator | None = None,
        *,
        env: Environment | None = None,
        max_wait_s: float = float("inf"),
    ) -> None:
        self.env: Environment = StreamEnvironment() if env is None else env
        self.engine = engine
        self.loads: list[LoadRecord] = []
        self.faults: list[FaultRecord] = []
        self._arrivals = len(arrival_s)
        self._end_s = float(arrival_s[-1]) if len(arrival_s) else 0.0
        self._arrival_s = arrival_s
        #: The table of each worker's kind.
        self._times_s = [service.kinds[worker.kind] for worker in engine.workers]
        self._draw = service.draw
        #: How long batches take after a pause, where a profile says so, and when each worker became idle.
        self._after = service.after_s if any(service.pauses) else None
        self._idle_from_s = [0.0] * len(engine.workers)
        self._tick_at = self.env.tick_at
        self._load_times = loads
        self._cache = cache if isinstance(cache, SimulatedCache) else None
        self._filling = cache if isinstance(cache, FillingCache) else None
        self._prompt = engine.requests.prompt
        self._answer_at: Callable[[float, int], None] | None = None
        self._cache_latency_s = 0.0
        if self._cache is not None and self._cache.constant:
            self._cache_latency_s = self._cache.latency_s
            self._answer_at = self.env.lane(self._cache_answered)
        self._max_wait_s = max_wait_s
        workers = len(engine.workers)
        #: Per worker: the event that ends what it is doing, the load under way, and how slow it is if it is.
        self._batch_done: Callable[[float, int], Sequence[Command]] = engine.batch_done
        if engine.judges:
            if discriminator is None:
                raise ValueError(f"policy {engine.policy.name!r} needs a discriminator")
            self._batch_done = self._judged
            self._discriminator = discriminator
        if self._filling is not None:
            self._told = self._batch_done
            self._batch_done = self._stored
        self._ends = [Tick(self._batch_done, worker) for worker in range(workers)]
        self._slowdown: dict[int, float] = {}
        self._slow_by: dict[int, list[float]] = {}
        self._loading: list[int | None] = [None] * workers
        #: Per worker: how many faults keep it down.
        self._outages = [0] * workers
        self.env.stream(arrival_s, engine.arrive, self._carry_out)
        if engine.policy.tick_s is not None:
            self.env.process(self._control(engine.policy.tick_s))
        if max_wait_s < float("inf"):
            self.env.process(self._guard())

    def run(self) -> None:
        """Until every request has ended."""
        # A replay allocates a few objects per request and makes no cycles: looking for them takes a sixth of it.
        collecting = gc.isenabled()
        gc.disable()
        try:
            self._carry_out(0.0, self.engine.start())
            self.env.run()
        finally:
            if collecting:
                gc.enable()

    @property
    def finished(self) -> bool:
        """True when all have arrived and nothing waits or runs."""
        engine = self.engine
        return engine.arrived == self._arrivals and engine.is_idle()

    # -- what a fault may do; after the last request it is not part of the run any more ------------------------

    def lose(self, *workers: int) -> None:
        """Workers fail at one instant, with whatever they were doing."""
        lost = []
        for worker in workers:
            self._outages[worker] += 1
            if self._outages[worker] == 1:
                lost.append(worker)
        if not lost or self.finished:
            return
        now = self.env.now
        for worker in lost:
            self._ends[worker].cancel()
            self._ends[worker] = Tick(self._batch_done, worker)
            index = self._loading[worker]
            if index is not None:
                load = self.loads[index]
                self.loads[index] = LoadRecord(load.worker, load.model, load.start_s, float("nan"))
                self._loading[worker] = None
            self.faults.append(FaultRecord(now, worker, "lost"))
        self._carry_out(now, self.engine.worker_lost(now, *lost))

    def restore(self, *workers: int) -> None:
        """A fault is over; those that no other keeps down are back, empty."""
        joined = []
        for worker in workers:
            self._outages[worker] -= 1
            if not self._outages[worker]:
                joined.append(worker)
        if not joined or self.finished:
            return
        now = self.env.now
        self.faults += [FaultRecord(now, worker, "joined") for worker in joined]
        self._carry_out(now, self.engine.worker_joined(now, *joined))

    def slow_down(self, worker: int, factor: float) -> None:
        """From its next batch on the worker takes ``factor`` times as long, on top of what slows it already."""
        if not self.finished:
            self._slow_by.setdefault(worker, []).append(factor)
            self._set_speed(worker)

    def speed_up(self, worker: int, factor: float) -> None:
        """End a slowdown by this factor."""
        if not self.finished:
            self._slow_by[worker].remove(factor)
            self._set_speed(worker)

    def _set_speed(self, worker: int) -> None:
        factors = self._slow_by[worker]
        self._slowdown[worker] = math.prod(factors)
        if not factors:
            del self._slowdown[worker]
        self.faults.append(FaultRecord(self.env.now, worker, "slow" if factors else "normal"))

    # -- events --------------------------------------------------------------------------------------------

    def _model_loaded(self, now: float, worker: int) -> Sequence[Command]:
        self._ends[worker].fire = self._batch_done
        self._loading[worker] = None
        return self.engine.model_loaded(now, worker)

    def _judged(self, now: float, worker: int) -> Sequence[Command]:
        """A batch ended, and the discriminator has looked at its images."""
        batch = self.engine.workers[worker].batch
        return self.engine.batch_done(now, worker, self._discriminator.confidence(batch.rows, batch.variant))

    def _stored(self, now: float, worker: int) -> Sequence[Command]:
        """A batch ended; the latents of images that were generated in full go into the cache."""
        batch = self.engine.workers[worker].batch
        if self._filling is not None and batch.rows and batch.variant == self.engine.catalog.base:
            self._filling.generated(now, batch.rows)
        return self._told(now, worker)

    def _woken(self, now: float, _: int) -> Sequence[Command]:
        return self.engine.woken(now)

    def _carry_out(self, now: float, commands: Sequence[Command]) -> None:
        for command in commands:
            if command.__class__ is RunBatch:
                rows, worker = command.rows, command.worker
                seconds = self._times_s[worker][command.variant][len(rows)][self._draw[rows[0]]]
                if self._after is not None:
                    seconds = self._rested(now, worker, command.variant, rows)
                if self._slowdown:
                    seconds *= self._slowdown.get(worker, 1.0)
                if self._after is not None:
                    self._idle_from_s[worker] = now + seconds
                self._tick_at(now + seconds, self._ends[worker])
            elif command.__class__ is LookUpCache:
                if self._answer_at is not None:
                    self._answer_at(now + self._cache_latency_s, command.row)
                else:
                    self._look_up(now, command.row)
            elif isinstance(command, LoadModel):
                self._load(now, command)
            elif isinstance(command, WakeUp):
                self._tick_at(max(now, command.at_s), Tick(self._woken))

    def _rested(self, now: float, worker: int, variant: int, rows: Sequence[int]) -> float:
        """How long a batch takes on a worker that may have been idle before."""
        assert self._after is not None
        kind, idle_s = self.engine.workers[worker].kind, now - self._idle_from_s[worker]
        return self._after(kind, variant, len(rows), self._draw[rows[0]], idle_s)

    def _load(self, now: float, command: LoadModel) -> None:
        worker, model = command
        if self._load_times is None:
            raise InputError("this cluster has no load times, but the policy wants to load a model")
        seconds = self._load_times.seconds(model, self.engine.workers[worker].kind)
        end = self._ends[worker]
        end.fire = self._model_loaded
        self._loading[worker] = len(self.loads)
        self._idle_from_s[worker] = now + seconds
        self.loads.append(LoadRecord(worker, self.engine.catalog.models[model], now, now + seconds))
        self._tick_at(now + seconds, end)

    def _look_up(self, now: float, row: int) -> None:
        """Ask a cache whose answers take different times."""
        if self._filling is not None:
            self._filling.look_up(now, row, self._tick_at, self.engine.cache_answered)
            return
        if self._cache is None:
            raise InputError("a variant that skips steps needs a cache; the profile has no similarity table")
        hit = self._cache.answer(now, self.engine.requests.prompt[row])

        def answered(now: float, row: int) -> Sequence[Command]:
            return self.engine.cache_answered(now, row, hit)

        self._tick_at(now + hit.latency_s, Tick(answered, row))

    def _cache_answered(self, now: float, row: int) -> Sequence[Command]:
        """A cache that always takes the same time has answered; what, can be looked up now as well as then."""
        assert self._cache is not None
        return self.engine.cache_answered(now, row, self._cache.answer(now, self._prompt[row]))

    # -- processes -----------------------------------------------------------------------------------------

    def _control(self, period_s: float) -> Generator[Any, Any, None]:
        while True:
            yield self.env.timeout(period_s)
            if self.finished:
                return
            now = self.env.now
            self._carry_out(now, self.engine.tick(now))

    def _guard(self) -> Generator[Any, Any, None]:
        engine = self.engine
        while self.env.now < self._end_s:
            yield self.env.timeout(self._max_wait_s / 4.0)
            now = self.env.now
            oldest = min((queue[0] for queue in engine.queues if queue), default=None)
            if oldest is not None and now < self._end_s and now - self._arrival_s[oldest] > self._max_wait_s:
                waiting = sum(map(len, engine.queues))
                raise CannotCatchUp(
                    f"stopped at {now:.0f} s: this run cannot catch up. {engine.arrived / now:.3g} requests/s "
                    f"arrive, {(engine.arrived - waiting) / now:.3g} requests/s are served, {waiting} wait, and "
                    f"nothing is dropped. Allow dropping (drop: late), add workers, or lower the load."
                )
