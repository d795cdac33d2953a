"""Processes that the host starts, listens to, and starts again when they end.

All of it happens on the event loop. Processes are spawned, not forked: CUDA and threads do not survive a fork,
and what a process imports stays out of the host.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import logging
import multiprocessing
import pickle
import signal
import socket
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from argus_sim.errors import InputError
from argus_sim.live.channel import GROUP_SIGNALS, HEAD, Beat, Failed, Handler, Ready, encode, run_process

_log = logging.getLogger("argus_sim.live")
_spawn = multiprocessing.get_context("spawn")


@dataclass(frozen=True, slots=True)
class Patience:
    """How long is waited for a process, in real seconds.

    Attributes:
        beat_s: Time between two heartbeats.
        silent_beats: This many missed ones in a row, and it counts as dead.
        start_s: Time to get ready (libraries are imported), silent or not; and to load a model.
        answer_s: Time to answer, however alive it is.
        slowness: An answer may also take so many times as long as it usually does.
        wait_s, longest_wait_s: Before it is started again: doubled each time, until it has done some work.
        stop_s: Time to end by itself, in the end.
    """

    beat_s: float = 1.0
    silent_beats: int = 15
    start_s: float = 300.0
    answer_s: float = 120.0
    slowness: float = 20.0
    wait_s: float = 1.0
    longest_wait_s: float = 60.0
    stop_s: float = 2.0

    def for_answer_s(self, usual_s: float) -> float:
        """How long an answer may take that usually takes so long."""
        return max(self.answer_s, self.slowness * usual_s)


class Owner(Protocol):
    """Hears of a process."""

    def on_message(self, message: Any) -> None:
        """It said something."""

    def on_down(self, why: str) -> None:
        """It ended; it will be started again."""

    def on_up(self) -> None:
        """It is back, and knows nothing of its predecessor."""


class Kept(ABC):
    """Something that runs apart from the host, and is started again whenever it ends.

    Args:
        name: For people.
        prepare: Called in it with `args`; returns what answers messages. Both are pickled.
        owner: Hears of it.
        patience: With it.
    """

    def __init__(
        self,
        name: str,
        prepare: Callable[..., Handler],
        args: tuple[Any, ...],
        owner: Owner,
        patience: Patience,
    ) -> None:
        self.name, self.patience = name, patience
        self._prepare, self._args = prepare, args
        self._owner = owner
        self._failed: Failed | None = None
        self._failures = 0
        self._is_up = False
        self._keeper: asyncio.Task[None] | None = None
        #: How long each answer that is to come may take, and how long the next one has taken.
        self._limits_s: deque[float] = deque()
        self._waited_s = 0.0

    @property
    def is_up(self) -> bool:
        return self._is_up

    @property
    @abstractmethod
    def pid(self) -> int | None:
        """Of the process that is there now, if any."""

    async def start(self) -> None:
        """Start it; returns when it is ready.

        Raises:
            InputError: It ended instead; says why.
        """
        ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._keeper = asyncio.create_task(self._keep(ready))
        await ready

    def send(self, message: Any, *, answer_s: float | None = None) -> None:
        """Say something to it; lost if it is not up, or goes before it hears it: :meth:`Owner.on_down` tells.

        Args:
            answer_s: It has so long to answer, from when it has answered what was said before; after that it
                counts as dead, though its heart may beat. None for what is not answered.
        """
        if not self._is_up:
            return
        if answer_s is not None:
            self._limits_s.append(answer_s)
        self._post(message)

    @abstractmethod
    def _post(self, message: Any) -> None:
        """Give it a message; it is up."""

    def has_worked(self) -> None:
        """It did what it is for: the next failure is a first one."""
        self._failures = 0

    async def stop(self) -> None:
        """End it, at once if it does not do so itself; the owner is not told."""
        if self._keeper is None:
            return
        self._keeper.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._keeper
        self._keeper = None

    # ---- one task for as long as it is wanted

    async def _keep(self, ready: asyncio.Future[None]) -> None:
        while True:
            try:
                why = await self._live(ready)
            except (
                Exception
            ):  # of the owner's: what follows from it is the owner's to say, not to lose a worker for
                _log.exception("internal error")
                why = "internal error"
            was_up, self._is_up = self._is_up, False
            if not ready.done():
                failed = self._failed
                where = failed.where if failed else None
                ready.set_exception(InputError(why if where else f"{self.name} cannot start: {why}", where=where))
                return
            self._failures += 1
            if was_up:
                self._owner.on_down(why)
            else:
                _log.warning("start failed", extra={"fields": {"process": self.name, "why": why}})
            wait_s = self.patience.wait_s * 2.0 ** min(self._failures - 1, 30)
            await asyncio.sleep(min(wait_s, self.patience.longest_wait_s))

    @abstractmethod
    async def _live(self, ready: asyncio.Future[None]) -> str:
        """From its start to its end; returns why it ended."""

    def _set_up(self, ready: asyncio.Future[None]) -> None:
        """It is ready for messages, the first time or again."""
        self._is_up = True
        self._limits_s.clear()
        self._waited_s = 0.0
        if ready.done():
            self._owner.on_up()
        else:
            ready.set_result(None)

    def _hear(self, answer: Any) -> None:
        if self._limits_s:
            self._limits_s.popleft()
            self._waited_s = 0.0
        self._owner.on_message(answer)

    def _overdue(self, seconds: float) -> str:
        """So many seconds have passed; why it counts as dead, or "" while its answer may still come."""
        if not (self._is_up and self._limits_s):
            return ""
        self._waited_s += seconds
        return f"no answer for {self._waited_s:g} s" if self._waited_s > self._limits_s[0] else ""


class Supervised(Kept):
    """A process on this machine."""

    _process: Any = None
    _writer: asyncio.StreamWriter | None = None
    _silent_beats = 0

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    def _post(self, message: Any) -> None:
        if self._writer is not None:
            self._writer.write(encode(message))

    async def _live(self, ready: asyncio.Future[None]) -> str:
        ours, theirs = socket.socketpair()
        args = (theirs, self._prepare, self._args, self.patience.beat_s)
        process = _spawn.Process(target=run_process, args=args, name=self.name, daemon=True)
        with _signals_held_back():
            process.start()
        theirs.close()
        atexit.register(process.kill)  # should the loop end without `stop`
        self._process, self._failed, self._silent_beats = process, None, 0
        watch: asyncio.Task[str] | None = None
        given_up = ""
        try:
            reader, self._writer = await asyncio.open_connection(sock=ours)
            watch = asyncio.create_task(self._watch())
            listen = asyncio.create_task(self._listen(reader, ready))
            try:
                await asyncio.wait({watch, listen}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                listen.cancel()
            if watch.done():
                given_up = watch.result()
                process.kill()
            else:
                listen.result()
            return await self._end(given_up)
        finally:
            if watch is not None:
                watch.cancel()
            if self._writer is not None:
                self._writer.close()  # tells it to end
                self._writer = None
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.shield(self._bury(process))

    async def _listen(self, reader: asyncio.StreamReader, ready: asyncio.Future[None]) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                (size,) = HEAD.unpack(await reader.readexactly(HEAD.size))
                message = pickle.loads(await reader.readexactly(size))
                self._silent_beats = 0
                match message:
                    case Beat():
                        pass
                    case Failed():
                        self._failed = message
                    case Ready():
                        self._set_up(ready)
                    case _:
                        self._hear(message)

    async def _watch(self) -> str:
        """Returns when it has been silent or busy for too long, in rounds: a host that slept blames nobody."""
        patience, seconds = self.patience, 0.0
        while True:
            await asyncio.sleep(patience.beat_s)
            seconds += patience.beat_s
            self._silent_beats += 1
            if self._is_up and self._silent_beats > patience.silent_beats:
                return f"no heartbeat for {self._silent_beats * patience.beat_s:g} s"
            if overdue := self._overdue(patience.beat_s):
                return overdue
            if not self._is_up and seconds > patience.start_s:
                return f"not ready after {patience.start_s:g} s"

    async def _end(self, given_up: str) -> str:
        process = self._process
        await asyncio.to_thread(process.join, self.patience.stop_s)
        if given_up:
            return given_up
        if self._failed is not None:
            return self._failed.reason
        code = process.exitcode
        if code is not None and code < 0:
            with contextlib.suppress(ValueError):
                return f"its process was ended by {signal.Signals(-code).name}"
        return f"its process ended with status {code}"

    async def _bury(self, process: Any) -> None:
        await asyncio.to_thread(process.join, self.patience.stop_s)
        if process.is_alive():
            process.kill()
            await asyncio.to_thread(process.join)
        atexit.unregister(process.kill)


@contextlib.contextmanager
def _signals_held_back() -> Iterator[None]:
    """A process that is started in here hears of them only once it has decided what to do about them."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, GROUP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
