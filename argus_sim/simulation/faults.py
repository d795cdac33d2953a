"""What goes wrong with workers: failures, repairs, stragglers; each a SimPy process."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterable
from typing import Annotated, Any, Literal, Protocol

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class _Fault(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    #: Which workers; None for all.
    workers: tuple[int, ...] | None = None


class Crash(_Fault):
    """These workers fail at a time and come back, empty, after another."""

    kind: Literal["crash"]
    at_s: NonNegative
    for_s: Positive | None = Field(default=None, description="None: they do not come back.")


class RandomCrashes(_Fault):
    """Each worker fails and is repaired independently, with exponential times."""

    kind: Literal["random"]
    mtbf_s: Positive
    mttr_s: Positive


class Slowdown(_Fault):
    """These workers take ``factor`` times as long for a while (stragglers)."""

    kind: Literal["slow"]
    at_s: NonNegative
    for_s: Positive
    factor: Positive


Fault = Annotated[Crash | RandomCrashes | Slowdown, Field(discriminator="kind")]


def fastest(faults: Iterable[Crash | RandomCrashes | Slowdown]) -> float:
    """The smallest share of its time that a batch ever takes: where speed-ups of a worker overlap, all hold."""
    ups = [fault for fault in faults if isinstance(fault, Slowdown) and fault.factor < 1.0]
    # None stands for all workers that no speed-up names.
    workers = {None, *(worker for up in ups for worker in up.workers or ())}
    return min(
        (
            math.prod(
                up.factor
                for up in ups
                if up.at_s <= start_s <= up.at_s + up.for_s and (up.workers is None or worker in up.workers)
            )
            for start_s in {up.at_s for up in ups}
            for worker in workers
        ),
        default=1.0,
    )


class Host(Protocol):
    """What a fault may do to a cluster."""

    @property
    def env(self) -> Any: ...

    @property
    def finished(self) -> bool: ...

    def lose(self, *workers: int) -> None: ...

    def restore(self, *workers: int) -> None: ...

    def slow_down(self, worker: int, factor: float) -> None: ...

    def speed_up(self, worker: int, factor: float) -> None: ...


def start(fault: Crash | RandomCrashes | Slowdown, host: Host, workers: int, rng: np.random.Generator) -> None:
    """Put a fault's processes into the host's environment."""
    hit = range(workers) if fault.workers is None else fault.workers
    match fault:
        case Crash():
            host.env.process(_crash(fault, host, list(hit)))
        case RandomCrashes():
            for worker, stream in zip(hit, rng.spawn(len(hit)), strict=True):
                host.env.process(_random(fault, host, worker, stream))
        case Slowdown():
            host.env.process(_slow(fault, host, list(hit)))


def _crash(fault: Crash, host: Host, workers: list[int]) -> Generator[Any, Any, None]:
    yield host.env.timeout(fault.at_s)
    host.lose(*workers)
    if fault.for_s is not None:
        yield host.env.timeout(fault.for_s)
        host.restore(*workers)


def _random(fault: RandomCrashes, host: Host, worker: int, rng: np.random.Generator) -> Generator[Any, Any, None]:
    while True:
        yield host.env.timeout(float(rng.exponential(fault.mtbf_s)))
        if host.finished:
            return
        host.lose(worker)
        yield host.env.timeout(float(rng.exponential(fault.mttr_s)))
        host.restore(worker)


def _slow(fault: Slowdown, host: Host, workers: list[int]) -> Generator[Any, Any, None]:
    yield host.env.timeout(fault.at_s)
    for worker in workers:
        host.slow_down(worker, fault.factor)
    yield host.env.timeout(fault.for_s)
    for worker in workers:
        host.speed_up(worker, fault.factor)
