"""Workers as Ray actors, on as many machines as a Ray cluster has.

Ray starts their processes, carries messages, starts a process again where one ended, and fails the calls of one
that is lost; what is here turns that into what the host hears of any process
(:class:`argus_sim.live.processes.Kept`). The cluster itself is in :mod:`argus_sim.live.ray_cluster`. Needs the
extra ``ray``.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import time
import traceback
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from argus_sim.errors import InputError
from argus_sim.live.channel import Failed, Handler
from argus_sim.live.freight import pack, unpack
from argus_sim.live.processes import Kept, Owner, Patience
from argus_sim.live.telemetry import event


@dataclass(frozen=True, slots=True)
class RayConfig:
    """Which cluster, and what a worker takes of it.

    Attributes:
        address: Of the cluster, ``HOST:PORT``, or ``auto`` for the one that this machine belongs to; None starts
            one on this machine that goes with the server.
        cpus, gpus: That Ray reserves for each worker.
    """

    address: str | None = None
    cpus: float = 1.0
    gpus: int = 0


class Place(NamedTuple):
    """A process of an actor: no two are equal."""

    token: str
    pid: int
    node: str
    version: str


class Actor:
    """What runs in Ray's process: the handler of a worker, and a sign of life beside it."""

    def __init__(self) -> None:
        self._handle: Handler | None = None
        self._token = uuid.uuid4().hex

    def here(self) -> Place:
        import ray

        return Place(self._token, os.getpid(), ray.get_runtime_context().get_node_id(), _version())

    def prepare(self, prepare: Callable[..., Handler], args: tuple[Any, ...]) -> Failed | None:
        try:
            self._handle = prepare(*args)
        except BaseException as error:
            return self._failed(error)
        return None

    def handle(self, token: str, message: Any) -> Any:
        if token != self._token or self._handle is None:
            return Failed("its process is another one")
        try:
            return self._handle(message)
        except BaseException as error:
            return self._failed(error)

    def beat(self, seconds: float) -> None:
        time.sleep(seconds)

    def _failed(self, error: BaseException) -> Failed:
        self._handle = None
        if not isinstance(error, InputError):
            traceback.print_exc()  # Ray keeps it in the session's logs
        return Failed.of(error)


class RayWorker(Kept):
    """An actor. Its time to start counts from when Ray has found room for it, but for the first time.

    Args:
        config: What it takes; the others are those of :class:`Kept`.
    """

    def __init__(
        self,
        config: RayConfig,
        name: str,
        prepare: Callable[..., Handler],
        args: tuple[Any, ...],
        owner: Owner,
        patience: Patience,
    ) -> None:
        super().__init__(name, prepare, args, owner, patience)
        self._config = config
        self._actor: Any = None
        self._place: Place | None = None
        self._messages: asyncio.Queue[Any] = asyncio.Queue()

    @property
    def pid(self) -> int | None:
        return None if self._place is None else self._place.pid

    def _post(self, message: Any) -> None:
        self._messages.put_nowait(message)

    async def stop(self) -> None:
        await super().stop()
        self._is_up = False
        self._dismiss()

    def _dismiss(self) -> None:
        """The actor goes, and its room is free."""
        if self._actor is not None:
            with contextlib.suppress(Exception):  # Ray may be gone before us
                ray_library().kill(self._actor)
            self._actor = None

    # ---- one life after another

    async def _live(self, ready: asyncio.Future[None]) -> str:
        self._failed, self._messages = None, asyncio.Queue()
        try:
            self._place = await self._arrive(None if ready.done() else self.patience.start_s)
            if self._place is None:
                return await asyncio.to_thread(self._no_room)
            why = await self._get_ready(self._place)
            if not why:
                event("worker placed", worker=self.name, node=self._place.node, pid=self._place.pid)
                self._set_up(ready)
                why = await self._work(self._place)
            # It may still be there, of no use any more.
            ray_library().kill(self._actor, no_restart=False)
            return why
        except ray_library().exceptions.RayError as error:
            return await asyncio.to_thread(self._why, error)

    async def _get_ready(self, place: Place) -> str:
        """Returns why it is not ready, or ""."""
        if place.version != _version():
            return f"argus-sim is {place.version} on its machine, and {_version()} here"
        try:
            async with asyncio.timeout(self.patience.start_s):
                self._failed = await self._actor.prepare.remote(self._prepare, self._args)
        except TimeoutError:
            return f"not ready after {self.patience.start_s:g} s"
        return "" if self._failed is None else self._failed.reason

    async def _arrive(self, timeout_s: float | None) -> Place | None:
        """A process that is none of the earlier ones, once Ray has started it; None after the time.

        While its machine is gone and no other has room, that may take as long as it takes.
        """
        ray, before = ray_library(), self._place
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                for attempt in itertools.count():
                    if self._actor is None:
                        self._actor = _create(self._config)
                    try:
                        place: Place = await self._actor.here.options(
                            concurrency_group="beside", max_task_retries=-1
                        ).remote()
                    except ray.exceptions.ActorUnavailableError:
                        await asyncio.sleep(0.1)
                        continue
                    except ray.exceptions.ActorDiedError:
                        self._dismiss()  # for good; the next one is another actor
                        if before is None or attempt:
                            raise
                        continue
                    if before is None or place.token != before.token:
                        return place
                    ray.kill(self._actor, no_restart=False)
                    await asyncio.sleep(0.1)
        return None

    async def _work(self, place: Place) -> str:
        """Returns why it ended."""
        parts = [asyncio.create_task(part) for part in (self._converse(place.token), self._watch())]
        try:
            await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
            return next(part.result() for part in parts if part.done())
        finally:
            for part in parts:
                part.cancel()
            await asyncio.gather(*parts, return_exceptions=True)

    async def _converse(self, token: str) -> str:
        """Message by message; returns when it has failed."""
        while True:
            message = await pack(await self._messages.get())
            answer = await unpack(await self._actor.handle.remote(token, message))
            if isinstance(answer, Failed):
                self._failed = answer
                return answer.reason
            if answer is not None:
                self._hear(answer)

    async def _watch(self) -> str:
        """Returns when it has been silent or busy for too long, in rounds: a host that slept blames nobody."""
        patience, loop = self.patience, asyncio.get_running_loop()
        while True:
            beat = self._actor.beat.options(concurrency_group="beside").remote(patience.beat_s).as_future()
            silent_beats = 0
            try:
                while not beat.done():
                    before_s = loop.time()
                    await asyncio.wait({beat}, timeout=patience.beat_s)
                    silent_beats += 1
                    if overdue := self._overdue(min(loop.time() - before_s, patience.beat_s)):
                        return overdue
                    if silent_beats > patience.silent_beats:
                        return f"no heartbeat for {silent_beats * patience.beat_s:g} s"
                beat.result()
            finally:
                beat.cancel()

    # ---- why

    def _why(self, error: Exception) -> str:
        exceptions = ray_library().exceptions
        if isinstance(error, exceptions.OutOfMemoryError):
            return "its machine ran out of memory, and Ray ended it"
        if self._place is None or not isinstance(error, exceptions.RayActorError):
            last = str(error).strip().splitlines()[-1:] or [type(error).__name__]
            return last[0][:300]
        there = {node["NodeID"] for node in ray_library().nodes() if node["Alive"]}
        # A machine counts as there for some seconds after it has gone.
        return "its process ended, or is out of reach" if self._place.node in there else "its machine was lost"

    def _no_room(self) -> str:
        there = ray_library().cluster_resources()
        parts = [f"{there.get(kind, 0.0):g} {kind}s" for kind in ("CPU", "GPU")]
        wanted = [f"{self._config.cpus:g} CPUs"] + [f"{self._config.gpus} GPU"] * bool(self._config.gpus)
        return (
            f"Ray has found no room for it after {self.patience.start_s:g} s: it needs {' and '.join(wanted)}, "
            f"the cluster has {' and '.join(parts)} in all"
        )


def _create(config: RayConfig) -> Any:
    return (
        ray_library()
        .remote(
            num_cpus=config.cpus,
            num_gpus=config.gpus,
            max_restarts=-1,
            max_task_retries=0,
            concurrency_groups={"beside": 2},
        )(Actor)
        .remote()
    )


def _version() -> str:
    from importlib.metadata import version

    return version("argus-sim")


def ray_library() -> Any:
    import ray

    return ray
