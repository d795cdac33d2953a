"""Who hears how far a calibration is: a bar, or nobody."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol

from argus_sim.cli.output import duration
from calibration.plan import Cell, Plan
from calibration.store import OK


class Progress(Protocol):
    """Who wants to know how far it is."""

    def begin(self, cell: Cell) -> None: ...

    def end(self, cell: Cell, record: dict[str, Any]) -> None: ...


class Bar:
    """Progress on stderr: a bar with the time left where someone watches, a line a minute where nobody does."""

    def __init__(self, plan: Plan, done: set[str], remark: Callable[[str], None]) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )
        from rich.progress import Progress as RichProgress

        self._remark = remark
        console = Console(stderr=True)
        self._bar = RichProgress(
            BarColumn(20), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(),
            TextColumn("{task.description}", markup=False), console=console, transient=True,
            disable=not console.is_terminal,
        )  # fmt: skip
        self._watched = console.is_terminal
        left = sum(cell.key not in done for cell in plan.cells)
        self._task = self._bar.add_task("", total=len(plan.cells), completed=len(plan.cells) - left)
        self._left, self._start, self._last, self._ended = left, time.monotonic(), time.monotonic(), 0

    def __enter__(self) -> Bar:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def begin(self, cell: Cell) -> None:
        self._bar.update(self._task, description=cell.key.replace("~", "/").replace("--", " "))

    def end(self, cell: Cell, record: dict[str, Any]) -> None:
        self._ended += 1
        self._bar.advance(self._task)
        if record["status"] != OK:
            self._remark(f"{cell.key.replace('~', '/').replace('--', ' ')}: {record['status']}")
        now = time.monotonic()
        if not self._watched and now - self._last >= 60.0:
            self._last = now
            left = (self._left - self._ended) * (now - self._start) / self._ended
            self._remark(f"{self._ended} of {self._left} cells, about {duration(left)} left")


class Silent:
    """Nobody wants to know."""

    def begin(self, cell: Cell) -> None:
        pass

    def end(self, cell: Cell, record: dict[str, Any]) -> None:
        pass
