"""A run in Chrome's trace event format, which Perfetto opens: batches, loads, decisions and faults over time.

The format is that of the public document "Trace Event Format": a JSON object with ``traceEvents``, each with a
phase ``ph``: ``X`` for what lasts, ``i`` for a moment, ``C`` for a counter, ``M`` for the name of a process or
thread. Times are microseconds of the trace.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pandas as pd

#: The processes, which the viewer shows as groups of tracks.
WORKERS, POLICY, LOAD = 1, 2, 3
#: The threads of the policy's process.
PLACEMENTS, REFUSALS = 0, 1

Event = dict[str, Any]


def trace_json(
    outcomes: pd.DataFrame, attempts: pd.DataFrame, timeline: pd.DataFrame, events: dict[str, Any], *, title: str
) -> str:
    """The content of ``trace.json``, an event a line.

    Args:
        outcomes: The table of ``outcomes.parquet``.
        attempts: The table of ``attempts.parquet``.
        timeline: The table of ``timeline.parquet``.
        events: The content of ``events.json``.
        title: What the run is called.
    """
    found = [*_names(int(events["workers"]), title), *_in_order(outcomes, attempts, timeline, events)]
    lines = ",\n".join(json.dumps(event, ensure_ascii=False, allow_nan=False) for event in found)
    return (
        f'{{"displayTimeUnit": "ms", "otherData": {json.dumps({"run": title})}, "traceEvents": [\n{lines}\n]}}\n'
    )


def _in_order(
    outcomes: pd.DataFrame, attempts: pd.DataFrame, timeline: pd.DataFrame, events: dict[str, Any]
) -> list[Event]:
    found = [*batches(outcomes, attempts), *_loads(events), *_decisions(outcomes, events), *_counters(timeline)]
    return sorted(found, key=lambda event: float(event["ts"]))


def _names(workers: int, title: str) -> Iterator[Event]:
    def name(kind: str, pid: int, tid: int, value: str) -> Event:
        return {"ph": "M", "name": kind, "pid": pid, "tid": tid, "ts": 0, "args": {"name": value}}

    for pid, what in ((WORKERS, f"workers of {title}"), (POLICY, "policy"), (LOAD, "load")):
        yield name("process_name", pid, 0, what)
    for worker in range(workers):
        yield name("thread_name", WORKERS, worker, f"worker {worker}")
    yield name("thread_name", POLICY, PLACEMENTS, "placements")
    yield name("thread_name", POLICY, REFUSALS, "refused, dropped, lost")


def _micro(seconds: float) -> float:
    """Microseconds, to a nanosecond."""
    return round(1e6 * seconds, 3)


def _lasting(
    name: str, category: str, worker: int, start_s: float, finish_s: float, args: dict[str, Any]
) -> Event:
    start, finish = _micro(start_s), _micro(finish_s)
    event = {"ph": "X", "name": name, "cat": category, "pid": WORKERS, "tid": worker, "ts": start}
    return {**event, "dur": round(finish - start, 3), "args": args}


#: Ends of a request in a batch that are counted in the batch's event.
_NOT_SERVED_IN_TIME = ("late", "passed on", "lost")


def batches(outcomes: pd.DataFrame, attempts: pd.DataFrame) -> Iterator[Event]:
    """Every batch: what shares a worker, a start and a finish.

    A request that ran more than once is in each of its batches.
    """
    served = outcomes[outcomes["finish_s"].notna()]
    again = attempts.assign(outcome=attempts["ended"].astype("str")).merge(
        outcomes[["request", "arrival_s"]], on="request", validate="many_to_one"
    )
    columns = ["worker", "start_s", "finish_s", "request", "variant", "batch_size", "arrival_s"]
    texts = ["variant", "reason", "outcome"]
    ran = pd.concat(
        [table[[*columns, "reason", "outcome"]].astype(dict.fromkeys(texts, "str")) for table in (served, again)],
        ignore_index=True,
    )
    for _, batch in ran.groupby(["worker", "start_s", "finish_s"], sort=True):
        worker, start_s, finish_s = (batch[key].iloc[0] for key in ("worker", "start_s", "finish_s"))
        ended = batch["outcome"].value_counts()
        args = {
            "size": int(batch["batch_size"].iloc[0]),
            "requests": sorted(batch["request"].tolist()),
            "reasons": batch["reason"].value_counts().to_dict(),
            "waited_s": round(start_s - float(batch["arrival_s"].min()), 6),
            **{how.replace(" ", "_"): int(ended[how]) for how in _NOT_SERVED_IN_TIME if how in ended},
        }
        yield _lasting(str(batch["variant"].iloc[0]), "batch", int(worker), float(start_s), float(finish_s), args)


def _loads(events: dict[str, Any]) -> Iterator[Event]:
    """Model loads, and the times at which a worker was down."""
    end_s = float(events["duration_s"])
    down: dict[int, float] = {}
    for fault in sorted(events["faults"], key=lambda fault: float(fault["at_s"])):
        if fault["kind"] == "lost":
            down[fault["worker"]] = fault["at_s"]
        elif fault["kind"] == "joined" and fault["worker"] in down:
            at_s = down.pop(fault["worker"])
            yield _lasting("down", "fault", fault["worker"], at_s, fault["at_s"], {})
        elif fault["kind"] not in ("lost", "joined"):
            yield _moment(fault["kind"], "fault", WORKERS, fault["worker"], fault["at_s"], {})
    for worker, at_s in down.items():
        yield _lasting("down", "fault", worker, at_s, max(end_s, at_s), {})
    for load in events["loads"]:
        finish_s = load["finish_s"]
        if finish_s is None:  # cut short by the loss of the worker
            lost = (f["at_s"] for f in events["faults"] if f["kind"] == "lost" and f["worker"] == load["worker"])
            finish_s = min((at_s for at_s in lost if at_s >= load["start_s"]), default=load["start_s"])
        yield _lasting(f"load {load['model']}", "load", load["worker"], load["start_s"], finish_s, {})


def _moment(name: str, category: str, pid: int, tid: int, at_s: float, args: dict[str, Any]) -> Event:
    event = {"ph": "i", "s": "t", "name": name, "cat": category, "pid": pid, "tid": tid}
    return {**event, "ts": _micro(at_s), "args": args}


def _decisions(outcomes: pd.DataFrame, events: dict[str, Any]) -> Iterator[Event]:
    """Placements, and the requests that never became an image."""
    for plan in events["plans"]:
        yield _moment(plan["reason"], "placement", POLICY, PLACEMENTS, plan["at_s"], {"workers": plan["workers"]})
    gone = outcomes[~outcomes["outcome"].isin(("on_time", "late"))]
    columns = ["request", "arrival_s", "outcome", "reason"]
    for request, arrival_s, outcome, reason in gone[columns].itertuples(index=False):
        # When it was given up is not recorded; it stands at its arrival.
        args = {"request": int(request), "outcome": str(outcome)}
        yield _moment(str(reason) or str(outcome), "request", POLICY, REFUSALS, arrival_s, args)


def _counters(timeline: pd.DataFrame) -> Iterator[Event]:
    minutes = timeline["window_s"] / 60.0
    rates = {
        "offered": timeline["arrived"] / minutes,
        "on time": timeline["on_time"] / minutes,
        "violations": (timeline["arrived"] - timeline["on_time"]) / minutes,
    }
    for name, values in rates.items():
        for at_s, value in zip(timeline["window_start_s"], values, strict=True):
            event = {"ph": "C", "name": f"{name} per minute", "cat": "load", "pid": LOAD, "tid": 0}
            yield {**event, "ts": _micro(float(at_s)), "args": {name: round(float(value), 3)}}
