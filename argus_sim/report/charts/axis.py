"""Charts of a sweep: what the policies come to along one of its axes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from argus_sim.metrics import METRICS
from argus_sim.report.charts.chart import Chart, Path, rounded
from argus_sim.report.charts.svg import WIDTH, Tick, around, line, ticks
from argus_sim.report.moving import Floats

if TYPE_CHECKING:
    from argus_sim.report.charts.draw import Drawing

#: What is drawn along an axis, from left to right.
SHOWN = ("quality_yield", "slo_violation_ratio", "relative_quality")
#: Numbers over more than this factor stand on a logarithmic scale.
_WIDE = 20.0
#: Room at both ends of the numbers, and the part of a name's slot over which its policies are spread.
_MARGIN, _SPREAD = 0.05, 0.7


@dataclass(frozen=True)
class AxisStory:
    """One axis.

    Attributes:
        name: What results call it.
        note: What a reader must know.
        labels: Its values, as results call them; numbers in rising order.
        numbers: The values, where they are numbers; else empty.
        table: Means and half-widths of 95 % intervals: a column ``value`` (a label), then those of
            :func:`argus_sim.metrics.aggregate`.
    """

    name: str
    note: str
    labels: tuple[str, ...]
    numbers: tuple[float, ...]
    table: pd.DataFrame


def is_wide(numbers: Sequence[float]) -> bool:
    """Whether these values of an axis are to stand on a logarithmic scale."""
    return bool(numbers) and min(numbers) > 0 and max(numbers) / min(numbers) > _WIDE


def axis_charts(drawing: Drawing, story: AxisStory) -> dict[str, Any]:
    """All charts of an axis: for each trace, one for each of :data:`SHOWN`."""
    number = len({chart.partition("-")[0] for chart in drawing.data["charts"] if chart.startswith("axis")})
    rows = []
    for k, (trace, table) in enumerate(story.table.groupby("trace", sort=False)):
        charts = [
            _chart(drawing, story, table, metric, f"axis{number}-{k}-{metric}", str(trace)) for metric in SHOWN
        ]
        rows.append({"trace": trace, "charts": charts})
    return {"name": story.name, "note": story.note, "traces": rows}


def _places(story: AxisStory) -> Floats:
    """Where the values are along the chart, in [0, 1]."""
    if not story.numbers:
        return (np.arange(len(story.labels)) + 0.5) / len(story.labels)
    at: Floats = np.array(story.numbers, dtype=np.float64)
    at = np.log(at) if is_wide(story.numbers) else at
    width = float(np.ptp(at))
    places: Floats = (at - at.min()) / width if width else np.full(len(at), 0.5)
    return _MARGIN + (1 - 2 * _MARGIN) * places


def _chart(drawing: Drawing, story: AxisStory, table: pd.DataFrame, metric: str, id: str, trace: str) -> Chart:
    places, of = _places(story), METRICS[metric]
    percent = metric == "slo_violation_ratio"
    policies = list(dict.fromkeys(map(str, table["policy"])))
    half_name = f"{metric}_half_width"
    means, halves = (
        table.pivot_table(values=column, index="policy", columns="value", sort=False, dropna=False).reindex(
            index=policies, columns=list(story.labels)
        )
        for column in (metric, half_name)
    )
    mean, half = means.to_numpy(dtype=np.float64), halves.to_numpy(dtype=np.float64)
    # All that is shown is a share: an interval that reaches past 0 or 1 is drawn up to there.
    ends = [np.clip(mean + sign * np.nan_to_num(half), 0.0, 1.0) for sign in (-1, 1)]
    y = around(np.concatenate(ends).ravel().tolist(), zero=percent, most=1.0)
    low, high = map(y.y, ends)
    slot = _SPREAD / len(story.labels) / len(policies)
    paths = []
    # The first policies of the experiment are drawn last, on top.
    for i in reversed(range(len(policies))):
        p = drawing.number[policies[i]]
        aside = 0.0 if story.numbers else slot * (i - (len(policies) - 1) / 2)
        at, colour = WIDTH * (places + aside), f"var(--p{p})"
        if story.numbers:
            known = ~np.isnan(mean[i])  # a policy may run at some of the values only
            paths.append(Path(line(at[known], y.y(mean[i][known])), "line", p, colour, drawing.dashes[p]))
        paths.append(Path(_bars(at, low[i], high[i]), "interval", p, colour))
        paths.append(Path(_points(at, y.y(mean[i])), "points", p, colour))
    chart = Chart(
        id=id,
        title=of.label[:1].upper() + of.label[1:],
        note="lower is better" if percent else "higher is better",
        label=f"{of.label} along {story.name} on {trace}. {_said(policies, mean, story.labels, percent)}.",
        x=[Tick(f"{100 * at:.2f}%", label) for at, label in zip(places.tolist(), story.labels, strict=True)],
        y=ticks(y, 5, percent=percent),
        x_label=story.name + (" (logarithmic)" if is_wide(story.numbers) else ""),
        paths=paths,
        height=230,
        zooms=False,
        open=True,
        names=not story.numbers,
    )
    drawing.data["charts"][id] = {
        "kind": "axis",
        "family": id.rpartition("-")[0],
        "end": 1,
        "axis": story.name,
        "at": rounded(places),
        "labels": list(story.labels),
        "percent": percent,
        "series": [[drawing.number[name], rounded(mean[i]), rounded(half[i])] for i, name in enumerate(policies)],
    }
    return chart


def _bars(at: Floats, low: Floats, high: Floats) -> str:
    """A stroke over each interval that can be seen."""
    spans = zip(at.tolist(), low.tolist(), high.tolist(), strict=True)
    return "".join(f"M{x:.0f} {a:.0f}V{b:.0f}" for x, a, b in spans if not math.isnan(a) and round(a) != round(b))


def _points(at: Floats, heights: Floats) -> str:
    """A stroke without length, which round ends make a dot, at each value that there is."""
    found = zip(at.tolist(), heights.tolist(), strict=True)
    return "".join(f"M{x:.0f} {y:.0f}h0" for x, y in found if not math.isnan(y))


def _said(policies: Sequence[str], mean: Floats, labels: Sequence[str], percent: bool) -> str:
    """Each policy's lowest and highest value and where they are."""

    def value(number: float) -> str:
        return f"{100 * number:.2f} %" if percent else f"{number:.3f}"

    parts = []
    for name, row in zip(policies, mean, strict=True):
        if not np.isnan(row).all():
            low, high = int(np.nanargmin(row)), int(np.nanargmax(row))
            parts.append(f"{name} {value(row[low])} at {labels[low]} to {value(row[high])} at {labels[high]}")
    return "; ".join(parts) or "No values"
