"""That an engine wrote down what happened."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from argus_sim.core.endings import FAILED_TWICE, NO_WORKER
from argus_sim.core.outcomes import OutcomeLog
from argus_sim.domain import Outcome

#: What the log says of a run, in the order of the tuples below.
RAN = ("worker", "variant", "batch_size", "start_s", "finish_s")


def check_log(
    log: OutcomeLog,
    deadline_s: Sequence[float],
    ended: Mapping[int, Any],
    attempts: Sequence[tuple[Any, ...]],
    *,
    arrived: int,
) -> None:
    """Hold a log to what its host knows.

    Args:
        ended: Row -> what of :data:`RAN` it ended with; or why it was not served.
        attempts: Runs that did not end their request: the row, :data:`RAN`, and whether the worker was lost.
        arrived: Rows from here on have not arrived.
    """
    columns = log.columns(np.array(deadline_s))
    for row, how in ended.items():
        outcome, reason = columns["outcome"][row], log.reasons[columns["reason"][row]]
        if isinstance(how, str):
            assert outcome == (Outcome.LOST if how in (NO_WORKER, FAILED_TWICE) else Outcome.REJECTED)
            assert reason == how
            assert [columns[name][row] for name in RAN[:3]] == [-1, -1, 0]  # type: ignore[literal-required]
            assert np.isnan(columns["start_s"][row])
        else:
            assert outcome == (Outcome.ON_TIME if how[-1] <= deadline_s[row] else Outcome.LATE)
            assert reason == "why not"
            assert tuple(columns[name][row] for name in RAN) == how  # type: ignore[literal-required]
    assert (columns["outcome"][arrived:] == Outcome.UNFINISHED).all()
    found = log.attempts()
    rows = [getattr(found, name).tolist() for name in ("request", *RAN, "lost")]
    # Those of one batch are in no order.
    assert sorted(zip(*rows, strict=True)) == sorted(attempts)
