"""Processes for tests: what they do at a message is in its first word. Imported in the process itself, too."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

from argus_sim.core.engine import Engine
from argus_sim.errors import InputError
from argus_sim.live.painter import Load, Loaded, Paint, Painted
from argus_sim.live.zoo import LiveZoo
from tests.patience import LONG_S

T = TypeVar("T")


def echo() -> Callable[[Any], Any]:
    """Answers with what it was told, and does as it was told first."""

    def handle(message: Any) -> Any:
        match message:
            case "raise":
                raise ValueError("no such luck")
            case "exit":
                os._exit(7)
            case "stop yourself":
                os.kill(os.getpid(), signal.SIGSTOP)
            case ["sleep", seconds]:
                time.sleep(seconds)
            case "nothing":
                return None
        return message

    return handle


def refuse(why: str) -> Callable[[Any], Any]:
    raise InputError(why, where="--device")


def crash() -> Callable[[Any], Any]:
    raise RuntimeError("CUDA error: no kernel image")


def never() -> Callable[[Any], Any]:
    time.sleep(3600)
    raise AssertionError


#: Of those that never get ready: what they do, how long they have, and what is said.
NEVER_READY: list[tuple[Callable[..., Any], tuple[Any, ...], float, str]] = [
    (refuse, ("no GPU 4",), LONG_S, "^--device: no GPU 4$"),
    (crash, (), LONG_S, "^worker 3 cannot start: RuntimeError: CUDA error: no kernel image$"),
    (never, (), 2.0, "^worker 3 cannot start: not ready after 2 s$"),
]


def paint(seconds: float) -> Callable[[Any], Any]:
    """A worker whose images are their seeds and whose batches take the same time each; "never" takes for ever."""

    def handle(message: Any) -> Any:
        match message:
            case Load(model):
                return Loaded(model)
            case Paint(_, wishes):
                time.sleep(LONG_S if any(wish.prompt == "never" for wish in wishes) else seconds)
                return Painted(tuple(str(wish.seed).encode() for wish in wishes))
        raise TypeError(message)

    return handle


def empty_zoo() -> LiveZoo:
    return LiveZoo({}, {}, (), "cpu", "fp32", 8, 1, None, ())


class Diary:
    """Hears of a process."""

    def __init__(self) -> None:
        self.messages: list[Any] = []
        self.downs: list[str] = []
        self.ups = 0

    def on_message(self, message: Any) -> None:
        self.messages.append(message)

    def on_down(self, why: str) -> None:
        self.downs.append(why)

    def on_up(self) -> None:
        self.ups += 1


def is_gone(pid: int) -> bool:
    """Whether a process has ended, buried or not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"


def play(test: Coroutine[Any, Any, T]) -> T:
    """Run a test on an event loop of its own."""
    return asyncio.run(asyncio.wait_for(test, LONG_S))


async def until(condition: Callable[[], Any]) -> None:
    """Wait until something holds."""
    async with asyncio.timeout(LONG_S):
        while not condition():
            await asyncio.sleep(0.01)


def are_able(engine: Engine) -> bool:
    """Whether all workers are up and have their models: until then, one of them may serve all that is asked."""
    return not any(worker.down or worker.loading or worker.model is None for worker in engine.workers)


async def asked_until(
    condition: Callable[[], Any], ask: Callable[[int], Awaitable[T]], count: int
) -> list[asyncio.Future[T]]:
    """Ask so often at once, and again where all were answered before something was seen to hold."""
    async with asyncio.timeout(LONG_S):
        while True:
            asked = [asyncio.ensure_future(ask(number)) for number in range(count)]
            while not all(future.done() for future in asked):
                if condition():
                    return asked
                await asyncio.sleep(0.01)
