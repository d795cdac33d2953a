"""Real workers that are timed before their first request and after their last: has the machine kept its pace?

A profile is as good as the machine's likeness to itself. The variants are timed as calibration times them, but in
the very processes that serve, so that whatever differs is the machine's doing and not the method's.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from argus_sim.errors import InputError, did_you_mean
from argus_sim.live.executor import Executor
from argus_sim.live.painter import Load, Loaded, Time, Timed
from argus_sim.live.seams import Job
from argus_sim.live.telemetry import event
from argus_sim.live.workers import DiffusersWorkers
from argus_sim.profile import Profile

#: Keeps what was found.
Save = Callable[[bytes], None]

#: Real seconds that one variant and batch size get, each time.
BUDGET_S = 5.0
#: A worker that is to be timed at the end is waited for so long at the most, real seconds per cell.
_LONGEST_S = 60.0


@dataclass(frozen=True, slots=True)
class Cell:
    """A variant and a batch size, and the pause before each batch."""

    variant: str
    size: int
    idle_s: float = 0.0

    @classmethod
    def parse(cls, text: str, profile: Profile) -> list[Cell]:
        """From ``VARIANT@SIZE``: right after one another, and after the pauses that the profile has.

        Raises:
            InputError: The profile has no such variant, or no such batch size of it.
        """
        name, _, size = text.rpartition("@")
        names = [v.name for v in profile.variants]
        if name not in names:
            raise InputError(
                f"no variant {name!r}{did_you_mean(name, names)}, found {text!r}; it is VARIANT@SIZE",
                where="--time",
            )
        sizes = profile.batch_sizes(profile.variant_id(name))
        if size not in map(str, sizes):
            raise InputError(
                f"no batches of {size!r} of {name!r}. Allowed: {', '.join(map(str, sizes))}", where="--time"
            )
        return cls.of(profile, name, int(size))

    @classmethod
    def of(cls, profile: Profile, name: str, size: int) -> list[Cell]:
        """All that a profile says of a variant in one batch size."""
        pauses = (idle_s for idle_s, _ in profile.after_idle(profile.variant_id(name), size))
        return [cls(name, size, idle_s) for idle_s in (0.0, *pauses)]

    @classmethod
    def all_of(cls, profile: Profile) -> list[Cell]:
        """All that a profile has latencies of."""
        return [
            cell
            for v in profile.variants
            for size in profile.batch_sizes(profile.variant_id(v.name))
            for cell in cls.of(profile, v.name, size)
        ]


class TimedWorkers:
    """Workers, timed at their start and at their end.

    Args:
        workers: Who serves.
        profile: What they serve.
        cells: What is timed. Every worker does, all at once, as under load.
        save: Is given JSON at the end, unless a worker is down then: ``before`` and ``after``, each a list of
            ``{variant, batch_size, idle_s, seconds}``.
    """

    def __init__(self, workers: DiffusersWorkers, profile: Profile, cells: Sequence[Cell], save: Save) -> None:
        self._workers, self._profile, self._save = workers, profile, save
        self._cells = list(cells)
        self._count = 0
        self._found: dict[str, list[dict[str, Any]]] = {}

    async def start(self, host: Executor, models: Sequence[str]) -> None:
        await self._workers.start(host, models)
        self._count = len(models)
        self._found["before"] = await self._time(models)

    def load(self, now: float, worker: int, model: str) -> None:
        self._workers.load(now, worker, model)

    def run(self, now: float, worker: int, variant: int, jobs: Sequence[Job]) -> None:
        self._workers.run(now, worker, variant, jobs)

    async def stop(self) -> None:
        try:
            if "before" in self._found:
                longest_s = _LONGEST_S * (len(self._cells) + 1)
                self._found["after"] = await asyncio.wait_for(self._time(None), longest_s)
                self._save((json.dumps(self._found) + "\n").encode())
        except (InputError, TimeoutError) as error:
            event("not timed at the end", level=logging.WARNING, why=str(error) or "took too long")
        finally:
            await self._workers.stop()

    async def _time(self, models: Sequence[str] | None) -> list[dict[str, Any]]:
        """Time every cell; then the workers hold these models, if any are named."""
        seconds: dict[Cell, list[float]] = {cell: [] for cell in self._cells}

        async def one(worker: int) -> None:
            held = None if models is None else models[worker]
            for cell in sorted(self._cells, key=lambda c: (self._model(c) != held, self._model(c))):
                if self._model(cell) != held:
                    held = self._model(cell)
                    await self._workers.ask(worker, Load(held), Loaded)
                message = Time(self._number(cell), cell.size, BUDGET_S, cell.idle_s)
                timed = await self._workers.ask(worker, message, Timed)
                seconds[cell] += timed.seconds
            if models is not None and held != models[worker]:
                await self._workers.ask(worker, Load(models[worker]), Loaded)

        await asyncio.gather(*(one(worker) for worker in range(self._count)))
        return [
            {"variant": c.variant, "batch_size": c.size, "idle_s": c.idle_s, "seconds": s}
            for c, s in seconds.items()
        ]

    def _number(self, cell: Cell) -> int:
        return self._profile.variant_id(cell.variant)

    def _model(self, cell: Cell) -> str:
        return self._profile.variants[self._number(cell)].model
