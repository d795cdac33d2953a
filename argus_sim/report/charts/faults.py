"""When workers were down or slow, from the faults of a run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

#: What begins each state of a worker, and what ends it.
_STATES = {"down": ("lost", "joined"), "slow": ("slow", "normal")}


def spans(faults: Iterable[Mapping[str, Any]], state: str, end_s: float) -> list[tuple[int, float, float]]:
    """Worker, start and end (s) of each time that a worker was ``"down"`` or ``"slow"``; at most up to ``end_s``.

    >>> spans([{"at_s": 5.0, "worker": 1, "kind": "lost"}], "down", 60.0)
    [(1, 5.0, 60.0)]
    """
    begins, ends = _STATES[state]
    since: dict[int, float] = {}
    found = []
    for fault in sorted(faults, key=lambda fault: float(fault["at_s"])):
        worker = int(fault["worker"])
        if fault["kind"] == begins:
            since.setdefault(worker, float(fault["at_s"]))
        elif fault["kind"] == ends and worker in since:
            found.append((worker, since.pop(worker), float(fault["at_s"])))
    found += [(worker, at_s, end_s) for worker, at_s in since.items()]
    return sorted((worker, at_s, min(to_s, end_s)) for worker, at_s, to_s in found if at_s < end_s)
