"""What a run was worth: totals, a timeline and the peak.

Every function reads columns and returns numbers; none reads a clock or a file. Two rules hold throughout:

* Every request that arrived is in the denominator. Rejecting, dropping or losing a request is a violation.
* A mean over nothing is NaN, which says "undefined", and never 0 or 1, which would say "worst" or "best".
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from argus_sim.domain import Outcome
from argus_sim.record import Floats, RunRecord

#: Edges of timeline windows closer than this to the end of the trace are that end (relative to the window).
_EDGE_TOLERANCE = 1e-9


@dataclass(frozen=True, slots=True)
class Metric:
    """A column of ``summary.csv``: how to read it.

    Attributes:
        name: The column.
        label: What a table heading or an axis calls it.
        definition: Formula, unit and bounds in a sentence.
        better: ``"high"``, ``"low"``, or None where neither is.
        digits: Decimals worth showing.
        unit: What it is shown in, empty for counts and shares; ``"%"`` shows a ratio in percent.
    """

    name: str
    label: str
    definition: str
    better: str | None = None
    digits: int = 0
    unit: str = ""

    @property
    def heading(self) -> str:
        """Label and unit.

        >>> METRICS["effective_throughput_per_min"].heading
        'effective throughput (images/min)'
        """
        return f"{self.label} ({self.unit})" if self.unit else self.label

    @property
    def scale(self) -> float:
        """What to multiply by to get from the column to the unit."""
        return 100.0 if self.unit == "%" else 1.0

    def text(self, mean: float, half_width: float = math.nan, *, plus_minus: str = " ± ") -> str:
        """`mean ± half-width` in this unit and these decimals; a half-width that is undefined is left out.

        >>> METRICS["slo_violation_ratio"].text(0.0321, 0.004)
        '3.21 ± 0.40'
        >>> METRICS["quality_yield"].text(0.91)
        '0.910'
        """
        if math.isnan(mean):
            return "–"
        text = f"{mean * self.scale:,.{self.digits}f}"
        if not math.isnan(half_width):
            text += f"{plus_minus}{half_width * self.scale:,.{self.digits}f}"
        return text


#: The metrics of a run by name, in the order of ``summary.csv``.
METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("arrived", "arrived", "Requests that arrived: the sum of the next four."),
        Metric("on_time", "on time", "Requests finished by their deadline.", "high"),
        Metric("late", "late", "Requests finished after their deadline.", "low"),
        Metric("rejected", "rejected", "Requests refused, or dropped on purpose.", "low"),
        Metric("lost", "lost", "Requests lost with a worker, or unfinished at the end of the run.", "low"),
        Metric(
            "effective_throughput_per_min",
            "effective throughput",
            "Images finished on time per minute of trace: on_time / (duration_s / 60).",
            "high",
            1,
            "images/min",
        ),
        Metric(
            "relative_quality",
            "relative quality",
            "Mean over on-time images of expected quality / the best of any variant for the same prompt; "
            "in [0, 1].",
            "high",
            3,
        ),
        Metric(
            "quality_relative_to_base",
            "quality relative to base",
            "The same over the base variant's quality; above 1 where another variant is better.",
            "high",
            3,
        ),
        Metric(
            "served_relative_quality",
            "served quality",
            "Mean relative quality of all finished images, late ones included; in [0, 1].",
            "high",
            3,
        ),
        Metric(
            "quality_yield",
            "quality yield",
            "Sum of on-time relative quality / arrived; in [0, 1]. It is relative quality x (1 - violation "
            "ratio), so neither rejecting nor degrading raises it for free.",
            "high",
            3,
        ),
        Metric(
            "slo_violation_ratio",
            "SLO violations",
            "(late + rejected + lost) / arrived; in [0, 1].",
            "low",
            2,
            unit="%",
        ),
        Metric("latency_mean_s", "mean latency", "Mean of finish - arrival of finished images.", "low", 2, "s"),
        Metric("latency_p50_s", "p50 latency", "Median latency of finished images.", "low", 2, "s"),
        Metric("latency_p90_s", "p90 latency", "90th percentile latency of finished images.", "low", 2, "s"),
        Metric("latency_p99_s", "p99 latency", "99th percentile latency of finished images.", "low", 2, "s"),
        Metric(
            "utilisation",
            "utilisation",
            "Time spent running batches / (workers x duration_s). Work after the trace counts too, so a "
            "backlog can lift it above 1.",
            None,
            1,
            unit="%",
        ),
        Metric("model_loads", "model loads", "Times a model was put onto a GPU."),
        Metric(
            "share_of_bound",
            "share of bound",
            "Quality yield / the hindsight bound on it; in [0, 1]. Empty where no bound was computed.",
            "high",
            1,
            unit="%",
        ),
    )
}


def _ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole else math.nan


def _mean(values: Floats) -> float:
    return float(values.mean()) if len(values) else math.nan


def _completed(outcome: npt.NDArray[np.int8]) -> npt.NDArray[np.bool_]:
    """Requests whose image was finished, in time or not."""
    return outcome <= Outcome.LATE


def _request_metrics(
    record: RunRecord, chosen: npt.NDArray[np.bool_] | slice, duration_s: float
) -> dict[str, float | int]:
    """The metrics that are about requests only, over the chosen ones; rates are per ``duration_s``."""
    outcome = record.outcome[chosen]
    counts = np.bincount(outcome, minlength=len(Outcome)).tolist()
    arrived, on_time = len(outcome), counts[Outcome.ON_TIME]
    completed = _completed(outcome)
    timely = outcome == Outcome.ON_TIME
    quality = record.relative_quality[chosen]
    latency = (record.finish_s[chosen] - record.arrival_s[chosen])[completed]
    p50, p90, p99 = np.quantile(latency, (0.5, 0.9, 0.99)).tolist() if len(latency) else (math.nan,) * 3
    return {
        "arrived": arrived,
        "on_time": on_time,
        "late": counts[Outcome.LATE],
        "rejected": counts[Outcome.REJECTED],
        "lost": counts[Outcome.LOST] + counts[Outcome.UNFINISHED],
        "effective_throughput_per_min": _ratio(60.0 * on_time, duration_s),
        "relative_quality": _mean(quality[timely]),
        "quality_relative_to_base": _mean(record.quality_relative_to_base[chosen][timely]),
        "served_relative_quality": _mean(quality[completed]),
        "quality_yield": _ratio(float(quality[timely].sum()), arrived),
        "slo_violation_ratio": _ratio(arrived - on_time, arrived),
        "latency_mean_s": _mean(latency),
        "latency_p50_s": p50,
        "latency_p90_s": p90,
        "latency_p99_s": p99,
    }


def summarise(record: RunRecord) -> dict[str, float | int]:
    """The totals of a run: the columns of ``summary.csv``, defined in :data:`METRICS`.

    A request that was still unfinished when the run was cut off is counted as ``lost``: its user never got an
    image. ``share_of_bound`` is NaN here; it takes a bound to fill it in.
    """
    return {
        **_request_metrics(record, slice(None), record.duration_s),
        "utilisation": _ratio(record.busy_s, record.workers * record.duration_s),
        "model_loads": len(record.loads),
        "share_of_bound": math.nan,
    }


def batches(record: RunRecord) -> pd.DataFrame:
    """Every batch of the run, by worker and start: those that were lost or passed on are here too.

    Columns: ``worker, start_s, finish_s, variant, size``. Their times add up to ``busy_s``. A batch is what
    shares a worker, a start and a finish; an answer with an image that a cascade had kept ran in none.
    """
    # Kept images have their answer as start and finish; without a finish the difference is NaN.
    served, again = np.flatnonzero(record.finish_s - record.start_s > 0.0), record.attempts

    def both(ends: npt.NDArray[Any], attempts: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return np.concatenate((ends[served], attempts))

    worker = both(record.worker, again.worker)
    start, finish = both(record.start_s, again.start_s), both(record.finish_s, again.finish_s)
    order = np.lexsort((finish, start, worker))
    worker, start, finish = worker[order], start[order], finish[order]
    new = (np.diff(worker) != 0) | (np.diff(start) != 0) | (np.diff(finish) != 0)
    first = np.flatnonzero(np.concatenate(([True], new))[: len(order)])
    return pd.DataFrame(
        {
            "worker": worker[first],
            "start_s": start[first],
            "finish_s": finish[first],
            "variant": both(record.variant, again.variant)[order][first],
            "size": np.diff(first, append=len(order)),
        }
    )


def _edges(duration_s: float, window_s: float) -> Floats:
    """Boundaries of the windows that tile [0, duration]; the last may be shorter than the others."""
    if not (duration_s > 0 and window_s > 0):
        raise ValueError(f"need a positive duration and window, got {duration_s} s and {window_s} s")
    count = max(1, math.ceil(duration_s / window_s - _EDGE_TOLERANCE))
    edges: Floats = np.arange(count + 1, dtype=np.float64) * window_s
    edges[-1] = duration_s
    return edges


def windows_of(record: RunRecord, window_s: float) -> tuple[npt.NDArray[np.intp], int]:
    """The timeline's window of each request, and how many windows there are."""
    edges = _edges(record.duration_s, window_s)
    return _window_of(record.arrival_s, edges), len(edges) - 1


def _window_of(at_s: Floats, edges: Floats) -> npt.NDArray[np.intp]:
    """The window each moment is in; what is past the end is in the last one, so that nothing is dropped."""
    return np.clip(np.searchsorted(edges, at_s, side="right") - 1, 0, len(edges) - 2)


def _time_in_windows(start_s: Floats, finish_s: Floats, weight: Floats, edges: Floats) -> Floats:
    """Weighted time that spans spend in each window, exactly: ``sum of weight x |span ∩ window|``."""
    start, finish = (np.clip(at_s, edges[0], edges[-1]) for at_s in (start_s, finish_s))
    count = len(edges) - 1
    first = _window_of(start, edges)
    last = np.maximum(first, np.searchsorted(edges, finish, side="left") - 1)
    within = first == last
    head = np.where(within, finish, edges[first + 1]) - start
    tail = np.where(within, 0.0, finish - edges[last])
    # Windows strictly between the first and the last are covered whole: count how many spans cover each.
    crossing = np.where(within, 0.0, weight)
    covered = np.cumsum(
        np.bincount(first + 1, crossing, minlength=count + 1) - np.bincount(last, crossing, minlength=count + 1)
    )[:count]
    ends = np.bincount(first, weight * head, minlength=count) + np.bincount(last, weight * tail, minlength=count)
    return np.asarray(ends + covered * np.diff(edges), dtype=np.float64)


def _workers_by_group(record: RunRecord, edges: Floats) -> dict[str, Floats]:
    """Mean number of workers per group and window: each plan holds until the next; none before the first."""
    plans = sorted(record.plans, key=lambda plan: plan.at_s)
    start = np.array([plan.at_s for plan in plans], dtype=np.float64)
    finish = np.append(start[1:], math.inf) if len(start) else start
    groups = dict.fromkeys(group for plan in plans for group in plan.workers)
    lengths = np.diff(edges)
    return {
        group: _time_in_windows(
            start, finish, np.array([plan.workers.get(group, 0) for plan in plans], dtype=np.float64), edges
        )
        / lengths
        for group in groups
    }


def timeline(record: RunRecord, window_s: float = 60.0) -> pd.DataFrame:
    """The run over time: one row per window of *arrival* time, so every request is in exactly one row.

    Columns, named as in :data:`METRICS` where they are the same thing over the window's requests:

    * ``window_start_s``, ``window_s`` (the last window may be shorter);
    * ``arrived, on_time, late, rejected, lost``: counts; in every row the last four sum to the first;
    * ``offered_per_min, effective_throughput_per_min``: rates;
    * ``relative_quality, quality_relative_to_base, slo_violation_ratio, latency_mean_s``: NaN where there is
      nothing to average;
    * ``utilisation``: the part of the cluster's time in the window that went into :func:`batches`;
    * ``served:<variant>``: images finished by each variant of the profile; they sum to ``on_time + late``, to
      less where a live server does not say what made an image;
    * ``workers:<group>``: time-weighted number of workers that the plan in force gave to each group.
    """
    edges = _edges(record.duration_s, window_s)
    count, lengths = len(edges) - 1, np.diff(edges)
    window = _window_of(record.arrival_s, edges)
    kinds = len(Outcome)
    outcomes = np.bincount(window * kinds + record.outcome, minlength=count * kinds).reshape(count, kinds)
    arrived, on_time = outcomes.sum(axis=1), outcomes[:, Outcome.ON_TIME]

    def mean(values: Floats, chosen: npt.NDArray[np.bool_]) -> Floats:
        where = window[chosen]
        total = np.bincount(where, values[chosen], minlength=count)
        return divide(total, np.bincount(where, minlength=count))

    def divide(part: npt.NDArray[Any], whole: npt.NDArray[Any]) -> Floats:
        quotient: Floats = np.divide(part, whole, out=np.full(count, math.nan), where=whole > 0)
        return quotient

    timely, completed = record.outcome == Outcome.ON_TIME, _completed(record.outcome)
    ran = batches(record)
    busy = _time_in_windows(ran["start_s"].to_numpy(), ran["finish_s"].to_numpy(), np.ones(len(ran)), edges)
    variants = len(record.variants)
    known = completed & (record.variant >= 0)
    served = np.bincount(window[known] * variants + record.variant[known], minlength=count * variants).reshape(
        count, variants
    )
    return pd.DataFrame(
        {
            "window_start_s": edges[:-1],
            "window_s": lengths,
            "arrived": arrived,
            "on_time": on_time,
            "late": outcomes[:, Outcome.LATE],
            "rejected": outcomes[:, Outcome.REJECTED],
            "lost": outcomes[:, Outcome.LOST] + outcomes[:, Outcome.UNFINISHED],
            "offered_per_min": arrived * 60.0 / lengths,
            "effective_throughput_per_min": on_time * 60.0 / lengths,
            "relative_quality": mean(record.relative_quality, timely),
            "quality_relative_to_base": mean(record.quality_relative_to_base, timely),
            "slo_violation_ratio": divide(arrived - on_time, arrived),
            "latency_mean_s": mean(record.finish_s - record.arrival_s, completed),
            "utilisation": divide(busy, record.workers * lengths),
            **{f"served:{name}": served[:, i] for i, name in enumerate(record.variants)},
            **{f"workers:{group}": mean for group, mean in _workers_by_group(record, edges).items()},
        }
    )


def peak(
    record: RunRecord, threshold: float = 0.9, *, window_s: float = 60.0, smooth_windows: int = 30
) -> dict[str, float | int]:
    """The run at its busiest: the request metrics over the windows of highest offered load.

    The offered load per window of ``window_s`` is smoothed by a centred moving mean over ``smooth_windows``
    windows (fewer at the ends); the windows at ``threshold`` times its largest value or above are the peak.
    The last window is half of ``window_s`` or more, and less than one and a half: no sliver is the busiest.
    Adds ``duration_s`` (the summed length of these windows), ``offered_per_min`` and ``violations_per_min``:
    the latter and ``effective_throughput_per_min`` sum to the former.
    """
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold is a share of the largest load, in [0, 1]; got {threshold}")
    edges = _edges(record.duration_s, window_s)
    if len(edges) > 2 and edges[-1] - edges[-2] < window_s / 2:
        edges = np.delete(edges, -2)
    lengths = np.diff(edges)
    window = _window_of(record.arrival_s, edges)
    counts = pd.DataFrame({"arrived": np.bincount(window, minlength=len(lengths)), "time_s": lengths})
    moving = counts.rolling(smooth_windows, center=True, min_periods=1).sum()
    smooth = (moving["arrived"] / moving["time_s"]).to_numpy()
    busiest = smooth >= threshold * smooth.max()
    duration_s = float(lengths[busiest].sum())
    totals = _request_metrics(record, busiest[window], duration_s)
    return {
        "duration_s": duration_s,
        "offered_per_min": 60.0 * totals["arrived"] / duration_s,
        "violations_per_min": 60.0 * (totals["arrived"] - totals["on_time"]) / duration_s,
        **totals,
    }
