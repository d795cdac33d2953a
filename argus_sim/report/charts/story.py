"""What a report tells of one trace: the tables of its runs, thinned to what a page can show.

Lines are means over the seeds. What is about single requests or workers (time to image, placement, decisions)
is of the first seed, as a mean over seeds would be of nothing that happened.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from argus_sim.report.moving import Clock, Floats

#: Metrics of a timeline that the page draws as lines, by policy.
LINES = ("effective_throughput_per_min", "relative_quality", "slo_violation_ratio", "quality_yield")
#: Points along a distribution, and columns of the placement of workers.
CDF_POINTS, COLUMNS = 160, 240
#: Workers drawn one by one, and reasons and plans listed one by one.
MAX_WORKERS, MAX_REASONS, MAX_PLANS = 24, 12, 16


@dataclass(frozen=True)
class Reason:
    """Why requests went where they went, or were dropped: one reason and what came of its requests."""

    text: str
    requests: int
    share: float
    on_time: float
    quality: float


@dataclass(frozen=True)
class PolicyStory:
    """One policy on one trace.

    Attributes:
        lines: Metric -> its values at the clock's points, means over seeds.
        latency_s, served: The distribution of the time to the image: at most ``latency_s[i]`` for the share
            ``served[i]`` of all requests that arrived.
        mix: Variant -> images per minute at the clock's points; only variants that served.
        doing: int[worker, column]: index into ``mix`` of the variant that a worker ran longest in a stretch
            of time; -1 where it ran none.
        busy: float[worker, column]: the part of the stretch that it ran anything.
        events: As in ``events.json``.
        reasons: By falling number of requests.
    """

    name: str
    lines: dict[str, Floats]
    latency_s: Floats
    served: Floats
    mix: dict[str, Floats]
    doing: npt.NDArray[np.int64]
    busy: Floats
    events: dict[str, Any]
    reasons: list[Reason]


@dataclass(frozen=True)
class TraceStory:
    """All policies on one trace. ``slo_s`` is None where requests have different deadlines."""

    name: str
    clock: Clock
    offered: Floats
    policies: list[PolicyStory]
    slo_s: float | None
    seeds: int


def tell(
    name: str,
    timelines: Mapping[str, Sequence[pd.DataFrame]],
    outcomes: Mapping[str, pd.DataFrame],
    attempts: Mapping[str, pd.DataFrame],
    events: Mapping[str, dict[str, Any]],
) -> TraceStory:
    """The story of a trace.

    Args:
        name: Of the trace.
        timelines: Policy -> the table of ``timeline.parquet`` of each seed.
        outcomes: Policy -> the table of ``outcomes.parquet`` of the first seed.
        attempts: Policy -> the table of ``attempts.parquet`` of the first seed.
        events: Policy -> the content of ``events.json`` of the first seed.
    """
    tables = [table for seeds in timelines.values() for table in seeds]
    clock = Clock(tables, None)
    policies = [
        _policy(policy, clock, seeds, outcomes[policy], attempts[policy], events[policy])
        for policy, seeds in timelines.items()
    ]
    allowed = pd.concat([table["deadline_s"] - table["arrival_s"] for table in outcomes.values()])
    low, high = (float(allowed.min()), float(allowed.max())) if len(allowed) else (0.0, 1.0)
    return TraceStory(
        name,
        clock,
        clock.over_seeds(tables, "offered_per_min")[0],
        policies,
        low if high - low < 1e-6 * high else None,
        max(len(seeds) for seeds in timelines.values()),
    )


def _policy(
    name: str,
    clock: Clock,
    seeds: Sequence[pd.DataFrame],
    outcomes: pd.DataFrame,
    attempts: pd.DataFrame,
    events: dict[str, Any],
) -> PolicyStory:
    first = seeds[0]
    served = first.filter(regex="^served:").rename(columns=lambda column: column.removeprefix("served:"))
    minutes = first["window_s"] / 60.0
    mix = {
        str(variant): clock.ratio(served[variant], minutes)
        for variant in served.columns
        if served[variant].sum() > 0
    }
    done = outcomes["outcome"].isin(("on_time", "late"))
    latency = (outcomes["finish_s"] - outcomes["arrival_s"])[done].to_numpy(dtype=np.float64)
    share = np.linspace(0.0, 1.0, CDF_POINTS)
    ran = pd.concat([table[_RAN].astype({"variant": "str"}) for table in (outcomes, attempts)], ignore_index=True)
    doing, busy = _placement(ran, list(mix), int(events["workers"]), clock.end_s)
    return PolicyStory(
        name=name,
        lines={metric: clock.over_seeds(seeds, metric)[0] for metric in LINES},
        latency_s=np.quantile(latency, share) if len(latency) else np.zeros(0),
        served=share * len(latency) / max(1, len(outcomes)) if len(latency) else np.zeros(0),
        mix=mix,
        doing=doing,
        busy=busy,
        events=events,
        reasons=_reasons(outcomes),
    )


#: Columns that say what a worker did.
_RAN = ["start_s", "finish_s", "variant", "worker", "batch_size"]


def _placement(
    ran: pd.DataFrame, variants: list[str], workers: int, end_s: float
) -> tuple[npt.NDArray[np.int64], Floats]:
    """What each of the first workers ran longest in each stretch of the trace, and how busy it was."""
    rows = min(workers, MAX_WORKERS)
    ran = ran[ran["finish_s"].notna() & (ran["worker"] >= 0) & (ran["worker"] < rows)]
    width_s = end_s / COLUMNS
    worker = ran["worker"].to_numpy(dtype=np.int64)
    code = pd.Categorical(ran["variant"], categories=variants).codes.astype(np.int64)
    start, finish = ran["start_s"].to_numpy(), ran["finish_s"].to_numpy()
    # Each request of a batch of n stands for an n-th of its time. A batch counts where its middle is.
    time_s = (finish - start) / ran["batch_size"].to_numpy()
    column = np.floor((start + finish) / 2 / width_s).astype(np.int64)
    inside = (column < COLUMNS) & (code >= 0)
    kinds = max(1, len(variants))
    cell = ((worker * COLUMNS + column) * kinds + code)[inside]
    spent = np.bincount(cell, time_s[inside], minlength=rows * COLUMNS * kinds).reshape(rows, COLUMNS, kinds)
    total = spent.sum(axis=2)
    return np.where(total > 0, spent.argmax(axis=2), -1), np.minimum(1.0, total / width_s)


def _reasons(outcomes: pd.DataFrame) -> list[Reason]:
    grouped = outcomes.assign(ok=outcomes["outcome"] == "on_time").groupby("reason", observed=True)
    table = pd.DataFrame(
        {"n": grouped.size(), "ok": grouped["ok"].mean(), "quality": grouped["relative_quality"].mean()}
    ).sort_values("n", ascending=False, kind="stable")
    return [
        Reason(str(text) or "none given", int(row["n"]), row["n"] / len(outcomes), row["ok"], row["quality"])
        for text, row in table.iterrows()
    ]
