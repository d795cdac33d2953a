"""Workers that run real pipelines: a process each, with a GPU each where there are GPUs."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from argus_sim.errors import InputError
from argus_sim.live.cache import LatentFiles
from argus_sim.live.executor import Executor
from argus_sim.live.painter import Load, Loaded, Paint, Painted, Wish, prepare
from argus_sim.live.processes import Kept, Owner, Patience, Supervised
from argus_sim.live.seams import Job
from argus_sim.live.zoo import LiveZoo


class Machines(Protocol):
    """Where workers' processes run, and who starts them."""

    async def open(self, workers: int) -> None:
        """Get ready for so many workers; raises InputError where that cannot be."""

    def worker(self, number: int, owner: Owner) -> Kept:
        """The process of a worker, not yet started."""

    async def close(self) -> None:
        """All workers have been stopped."""


class ThisMachine:
    """Processes of the host's own: worker by worker, the GPU of its number.

    Args:
        zoo: What they run.
        patience: With them.
    """

    def __init__(self, zoo: LiveZoo, patience: Patience) -> None:
        self._zoo, self._patience = zoo, patience

    async def open(self, workers: int) -> None:
        pass

    def worker(self, number: int, owner: Owner) -> Kept:
        return Supervised(f"worker {number}", prepare, (self._zoo, number), owner, self._patience)

    async def close(self) -> None:
        pass


class DiffusersWorkers:
    """Processes that run the zoo's pipelines.

    One that dies, hangs, takes far too long or runs out of memory is lost to the engine, which tries its batch
    once more elsewhere. It is started again, and joins again as soon as it can.

    Args:
        zoo: What they run.
        machines: Where they run.
        cache: The approximate cache, where there is one: stored latents come from and go to it.
    """

    def __init__(self, zoo: LiveZoo, machines: Machines, cache: LatentFiles | None = None) -> None:
        self._zoo, self._machines, self._cache = zoo, machines, cache
        self._workers: list[_Worker] = []

    async def start(self, host: Executor, models: Sequence[str]) -> None:
        """Raises InputError when one of them cannot start."""
        await self._machines.open(len(models))
        self._workers = [_Worker(self._machines, i, host, self._cache) for i in range(len(models))]
        starts = [worker.start(model) for worker, model in zip(self._workers, models, strict=True)]
        if self._cache is not None:
            starts.append(self._cache.start(host))
        tasks = [asyncio.create_task(start) for start in starts]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()

    def load(self, now: float, worker: int, model: str) -> None:
        self._workers[worker].load(model)

    def run(self, now: float, worker: int, variant: int, jobs: Sequence[Job]) -> None:
        recipe, cache = self._zoo.recipes[variant], self._cache
        fills = cache is not None and recipe.model == self._zoo.cached_model and not recipe.approximation
        wishes = []
        for job in jobs:
            start = keep = None
            if cache is not None and recipe.skipped:
                start = cache.held(job.row)
            elif cache is not None and fills:
                keep = cache.wanted(job.prompt)
            wishes.append(Wish(job.prompt, job.seed, start, keep))
        self._workers[worker].run(Paint(variant, tuple(wishes)), recipe.usual_s[len(jobs)])

    async def stop(self) -> None:
        stops = [worker.process.stop() for worker in self._workers]
        if self._cache is not None:
            stops.append(self._cache.stop())
        await asyncio.gather(*stops)
        await self._machines.close()

    async def ask(self, worker: int, message: Any, answer: type[Any]) -> Any:
        """Say something to a worker that the engine is not to hear of; returns the answer, of that type.

        It may take as long as a load.

        Raises:
            InputError: The worker went down instead.
        """
        return await self._workers[worker].ask(message, answer)

    @property
    def pids(self) -> list[int | None]:
        """Process ids, in the workers' order."""
        return [worker.process.pid for worker in self._workers]


class _Worker:
    def __init__(self, machines: Machines, index: int, host: Executor, cache: LatentFiles | None) -> None:
        self._index, self._host, self._cache = index, host, cache
        self._first_load: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._first_load.add_done_callback(lambda first: first.cancelled() or first.exception())
        self._running: Paint | None = None
        self._asked: tuple[asyncio.Future[Any], type[Any]] | None = None
        self.process = machines.worker(index, self)

    async def start(self, model: str) -> None:
        """Bring it up, holding this model."""
        await self.process.start()
        self.load(model)
        await self._first_load

    def load(self, model: str) -> None:
        self.process.send(Load(model), answer_s=self.process.patience.start_s)

    def run(self, batch: Paint, usual_s: float) -> None:
        self._running = batch
        self.process.send(batch, answer_s=self.process.patience.for_answer_s(usual_s))

    async def ask(self, message: Any, answer: type[Any]) -> Any:
        if not self.process.is_up:
            raise InputError(f"worker {self._index} is not up")
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._asked = future, answer
        self.process.send(message, answer_s=self.process.patience.start_s)
        try:
            return await future
        finally:
            self._asked = None

    def on_message(self, message: Any) -> None:
        host = self._host
        if self._asked is not None and isinstance(message, self._asked[1]) and not self._asked[0].done():
            self._asked[0].set_result(message)
            return
        match message:
            case Loaded() if not self._first_load.done():
                self._first_load.set_result(None)
            case Loaded():
                host.model_loaded(host.now(), self._index)
            case Painted(images, kept, unreadable):
                self.process.has_worked()
                self._tell_cache([file for file in kept if isinstance(file, Path)], unreadable)
                host.batch_done(host.now(), self._index, images)

    def on_up(self) -> None:
        self._host.worker_joined(self._host.now(), self._index)

    def on_down(self, why: str) -> None:
        self._tell_cache((), ())
        if self._asked is not None and not self._asked[0].done():
            self._asked[0].set_exception(InputError(f"worker {self._index} went down while it was timed: {why}"))
        if not self._first_load.done():
            self._first_load.set_exception(InputError(f"worker {self._index} cannot start: {why}"))
            return
        self._host.worker_lost(self._host.now(), self._index, why)

    def _tell_cache(self, kept: Sequence[Path], unreadable: Sequence[Path]) -> None:
        """The batch is over: these files were written, of those that were to be, and these could not be read."""
        running, self._running = self._running, None
        if running is None or self._cache is None:
            return
        for wish in running.wishes:
            if wish.keep is None:
                continue
            if wish.keep in kept:
                self._cache.keep(wish.keep)
            else:
                self._cache.give_up(wish.keep)
        for file in unreadable:
            self._cache.forget(file)
