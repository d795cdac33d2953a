"""How each request ended, as columns that the engine fills in."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable
from typing import TypedDict

import numpy as np
import numpy.typing as npt

from argus_sim.domain import Outcome
from argus_sim.record import Attempts

#: In the ``ran`` column: not ended yet, and the two ways of ending without having run.
OPEN, REJECTED, LOST = -1, -2, -3

#: ``ran`` packs what is common to a batch: ``(variant * WORKERS + worker) * SIZES + size``.
SIZES = 1 << 10
WORKERS = 1 << 24


class OutcomeLog:
    """One entry per request; written once, when it ends.

    The engine writes a served batch itself (``start_s``, ``finish_s``, ``ran``), since that is its hottest loop.
    """

    __slots__ = ("_again", "_codes", "finish_s", "ran", "reason", "reasons", "start_s")

    def __init__(self, rows: int = 0) -> None:
        self.start_s = array("d", [math.nan]) * rows
        self.finish_s = array("d", [math.nan]) * rows
        self.ran = array("q", [OPEN]) * rows
        self.reason = array("i", [0]) * rows
        self.reasons: list[str] = [""]
        self._codes: dict[str, int] = {"": 0}
        #: Columns of the attempts: row, start, finish, ran, reason, lost.
        self._again = (array("i"), array("d"), array("d"), array("q"), array("i"), array("b"))

    def append(self) -> None:
        """Room for one more request (live host)."""
        self.start_s.append(math.nan)
        self.finish_s.append(math.nan)
        self.ran.append(OPEN)
        self.reason.append(0)

    def code(self, reason: str) -> int:
        """The number that stands for a reason in the ``reason`` column."""
        code = self._codes.get(reason)
        if code is None:
            code = self._codes[reason] = len(self.reasons)
            self.reasons.append(reason)
        return code

    def rejected(self, row: int, reason: str) -> None:
        self.ran[row] = REJECTED
        self.reason[row] = self.code(reason)

    def lost(self, row: int, reason: str) -> None:
        self.ran[row] = LOST
        self.reason[row] = self.code(reason)

    def spoilt(self, row: int, reason: str) -> None:
        """What was served cannot be used (live host): its run was an attempt, and the request is lost."""
        self.attempted((row,), self.start_s[row], self.finish_s[row], self.ran[row], lost=True)
        self.start_s[row] = self.finish_s[row] = math.nan
        self.lost(row, reason)

    def attempted(self, rows: Iterable[int], start_s: float, finish_s: float, ran: int, *, lost: bool) -> None:
        """These requests ran, and it was not their end: their worker was lost, or they run once more."""
        row_column, start_column, finish_column, ran_column, reason_column, lost_column = self._again
        for row in rows:
            row_column.append(row)
            start_column.append(start_s)
            finish_column.append(finish_s)
            ran_column.append(ran)
            reason_column.append(self.reason[row])
            lost_column.append(lost)

    def attempts(self) -> Attempts:
        """What :meth:`attempted` was told."""
        row, start_s, finish_s, ran, reason, lost = self._again
        packed = np.array(ran, dtype=np.int64)
        return Attempts(
            request=np.array(row, dtype=np.int32),
            start_s=np.array(start_s, dtype=np.float64),
            finish_s=np.array(finish_s, dtype=np.float64),
            worker=(packed // SIZES % WORKERS).astype(np.int32),
            variant=(packed // (SIZES * WORKERS)).astype(np.int32),
            batch_size=(packed % SIZES).astype(np.int32),
            reason=np.array(reason, dtype=np.int32),
            lost=np.array(lost, dtype=np.bool_),
        )

    def columns(self, deadline_s: npt.NDArray[np.float64]) -> OutcomeColumns:
        """One entry per request; a request that finished at its deadline was on time."""
        ran = np.frombuffer(self.ran, dtype=np.int64)
        finish_s = np.frombuffer(self.finish_s, dtype=np.float64).copy()
        served = ran >= 0
        outcome = np.full(len(ran), Outcome.UNFINISHED, dtype=np.int8)
        outcome[served] = np.where(finish_s[served] <= deadline_s[served], Outcome.ON_TIME, Outcome.LATE)
        outcome[ran == REJECTED] = Outcome.REJECTED
        outcome[ran == LOST] = Outcome.LOST
        return OutcomeColumns(
            start_s=np.frombuffer(self.start_s, dtype=np.float64).copy(),
            finish_s=finish_s,
            worker=np.where(served, ran // SIZES % WORKERS, -1).astype(np.int32),
            variant=np.where(served, ran // (SIZES * WORKERS), -1).astype(np.int32),
            batch_size=np.where(served, ran % SIZES, 0).astype(np.int32),
            outcome=outcome,
            reason=np.frombuffer(self.reason, dtype=np.int32).copy(),
        )


class OutcomeColumns(TypedDict):
    """What :meth:`OutcomeLog.columns` returns; names, types and missing values as in ``RunRecord``."""

    start_s: npt.NDArray[np.float64]
    finish_s: npt.NDArray[np.float64]
    worker: npt.NDArray[np.int32]
    variant: npt.NDArray[np.int32]
    batch_size: npt.NDArray[np.int32]
    outcome: npt.NDArray[np.int8]
    reason: npt.NDArray[np.int32]
