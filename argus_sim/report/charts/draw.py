"""From the story of a trace to what the template draws and what the script shows under the pointer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from argus_sim.report.charts.chart import Chart, Dot, Path, dashes, rounded
from argus_sim.report.charts.faults import spans
from argus_sim.report.charts.labels import place_labels
from argus_sim.report.charts.policy import policy_charts
from argus_sim.report.charts.story import TraceStory
from argus_sim.report.charts.svg import (
    HEIGHT,
    WIDTH,
    Scale,
    Tick,
    area,
    around,
    box,
    efficient,
    line,
    rounds,
    steps,
    ticks,
)
from argus_sim.report.moving import Floats

#: What the lines show: title, what one reads there, whether it is a ratio, whether its axis starts at zero.
_PANELS = {
    "effective_throughput_per_min": ("Images on time per minute", "grey area: the load that was offered"),
    "relative_quality": ("Relative quality", "of the images on time, 1 is the best that any variant makes"),
    "slo_violation_ratio": ("SLO violations", "late, refused, dropped or lost, of all that arrived"),
    "quality_yield": ("Quality yield", "on-time quality per request that arrived"),
}
_FROM_ZERO = ("effective_throughput_per_min", "slo_violation_ratio")
_RATIOS = ("slo_violation_ratio",)


class Drawing:
    """Charts of a whole report; ``data`` is what its script reads."""

    def __init__(self, policies: Sequence[str], patterns: Sequence[Any]) -> None:
        self.number = {name: i for i, name in enumerate(policies)}
        self.dashes = [dashes(pattern) for pattern in patterns]
        self.data: dict[str, Any] = {"policies": list(policies), "groups": [], "charts": {}}

    def trace(
        self, story: TraceStory, front: list[tuple[float, float]], totals: dict[str, Any]
    ) -> dict[str, Any]:
        """All of a trace's charts.

        Args:
            story: The trace.
            front: Latency (s) and relative quality of the variants that no other of the profile beats in both.
            totals: Policy -> its row of the aggregate, as a mapping.
        """
        group = len(self.data["groups"])
        clock = story.clock
        unit = clock.label.partition(" ")[0]
        self.data["groups"].append({"x": rounded(clock.at), "end": clock.end, "unit": unit})
        return {
            "name": story.name,
            "index": group,
            "lines": [self._lines(story, group, metric) for metric in _PANELS],
            "cdf": self._cdf(story, group),
            "fronts": [
                self._latency_front(story, group, front, totals),
                self._violation_front(story, group, totals),
            ],
            "policies": [policy_charts(self, story, policy, group) for policy in story.policies],
            **{
                kind: sum(fault["kind"] == kind for fault in story.policies[0].events["faults"])
                for kind in ("lost", "slow")
            },
            "smooth": clock.note,
            "seeds": story.seeds,
        }

    # -- lines over time -----------------------------------------------------------------------------------

    def time(self, story: TraceStory) -> tuple[Scale, list[Tick]]:
        scale = Scale(0.0, story.clock.end)
        unit = " min" if "minutes" in story.clock.label else " h"
        return scale, [Tick(tick.at, tick.text + unit) for tick in ticks(scale, 8)]

    def _lines(self, story: TraceStory, group: int, metric: str) -> Chart:
        title, note = _PANELS[metric]
        x, x_ticks = self.time(story)
        load = metric == "effective_throughput_per_min"
        values = [float(v) for policy in story.policies for v in policy.lines[metric]]
        values += story.offered.tolist() if load else []
        zero, ratio = metric in _FROM_ZERO, metric not in _FROM_ZERO or metric in _RATIOS
        y = around(values, zero=zero, most=1.0 if ratio else math.inf)
        at = x.x(story.clock.at)
        paths = [Path(area(at, np.full(len(at), float(HEIGHT)), y.y(story.offered)), "load")] if load else []
        paths += self._outages(story, x)
        # The first policies of the experiment are drawn last, on top.
        for policy in reversed(story.policies):
            number = self.number[policy.name]
            d = line(at, y.y(policy.lines[metric]))
            paths.append(Path(d, "line", number, f"var(--p{number})", self.dashes[number]))
        said = ", ".join(f"{p.name} {_mean(p.lines[metric]):.3g}" for p in story.policies)
        chart = Chart(
            id=f"t{group}-{metric}",
            title=title,
            note=note,
            label=f"{title} on {story.name}, over time. Means of the lines: {said}.",
            x=x_ticks,
            y=ticks(y, 4, percent=metric in _RATIOS),
            x_label=story.clock.label if metric == list(_PANELS)[-1] else "",
            paths=paths,
            height=230 if load else 180,
        )
        series = [[self.number[p.name], rounded(p.lines[metric])] for p in story.policies]
        self.data["charts"][chart.id] = {
            "kind": "lines",
            "group": group,
            "percent": metric in _RATIOS,
            "series": series,
            **({"load": rounded(story.offered)} if load else {}),
        }
        return chart

    def _outages(self, story: TraceStory, x: Scale) -> list[Path]:
        """Shades over the times at which workers were down or slow, the darker the more."""
        per_x = 60.0 if "minutes" in story.clock.label else 3600.0
        faults = story.policies[0].events["faults"]
        return [
            Path(box(x.part(a / per_x) * WIDTH, x.part(b / per_x) * WIDTH, 0, HEIGHT), kind)
            for state, kind in (("slow", "slowed"), ("down", "outage"))
            for _, a, b in spans(faults, state, story.clock.end * per_x)
        ]

    # -- distributions and fronts --------------------------------------------------------------------------

    def _cdf(self, story: TraceStory, group: int) -> Chart:
        longest = max(
            (float(np.quantile(p.latency_s, 0.995)) for p in story.policies if len(p.latency_s)), default=1
        )
        x = Scale(0.0, max(longest, 1.08 * (story.slo_s or 0.0)))
        y = Scale(0.0, 1.0)
        paths = []
        for policy in reversed(story.policies):
            if not len(policy.latency_s):
                continue
            inside = policy.latency_s <= x.high
            at = np.append(policy.latency_s[inside], x.high)
            share = np.append(policy.served[inside], policy.served[inside][-1] if inside.any() else 0.0)
            number = self.number[policy.name]
            d = line(x.x(at), y.y(share))
            paths.append(Path(d, "line", number, f"var(--p{number})", self.dashes[number]))
        said = ", ".join(f"{p.name} {100 * (p.served[-1] if len(p.served) else 0):.1f} %" for p in story.policies)
        chart = Chart(
            id=f"t{group}-cdf",
            title="Time from arrival to image",
            note="share of all requests that had their image by then; what was never served never arrives",
            label=f"Distribution of the time to the image on {story.name}. Share ever served: {said}.",
            x=ticks(x, 7),
            y=ticks(y, 4, percent=True),
            x_label="seconds from arrival to image",
            paths=paths,
            height=300,
            zooms=False,
            rule=None if story.slo_s is None else (x.percent(story.slo_s), f"SLO {story.slo_s:.3g} s"),
        )
        self.data["charts"][chart.id] = {
            "kind": "cdf",
            "end": x.high,
            "series": [
                [self.number[p.name], rounded(p.latency_s), float(p.served[-1]) if len(p.served) else 0.0]
                for p in story.policies
            ],
        }
        return chart

    def _front(
        self, story: TraceStory, totals: dict[str, Any], metric: str, id: str, extra: list[tuple[float, float]]
    ) -> tuple[Chart, Scale, Scale]:
        rows = [
            (p.name, float(totals[p.name][metric]), float(totals[p.name]["relative_quality"]))
            for p in story.policies
            if p.name in totals and math.isfinite(totals[p.name]["relative_quality"])
        ]
        most = max([row[1] for row in rows], default=1.0)
        x = around([0.0, most, *(e[0] for e in extra if e[0] < 1.6 * most)], zero=True, room=0.22)
        y = around([*(row[2] for row in rows), *(e[1] for e in extra if e[0] <= x.high)], most=1.0, room=0.12)
        percent = metric == "slo_violation_ratio"
        at = [(x.part(row[1]), y.part(row[2])) for row in rows]
        labels = place_labels(at, [row[0] for row in rows])
        dots = [
            Dot(
                x.percent(latency),
                y.percent(quality),
                f"{100 * label.x:.2f}%",
                f"{100 * label.y:.2f}%",
                name,
                f"{name}: quality {quality:.3f}, "
                + (f"{100 * latency:.2f} % violations" if percent else f"{latency:.2f} s"),
                self.number[name],
                left=label.left,
            )
            for (name, latency, quality), label in zip(rows, labels, strict=True)
        ]
        label = "Quality against " + ("SLO violations" if percent else "mean time to the image")
        chart = Chart(
            id=id,
            title=label,
            note="",
            label=f"{label} on {story.name}. " + "; ".join(dot.text for dot in dots) + ".",
            x=ticks(x, 5, percent=percent),
            y=ticks(y, 5),
            x_label="SLO violations" if percent else "seconds from arrival to image, mean",
            dots=dots,
            height=320,
            live=False,
        )
        border = efficient([(row[1], row[2]) for row in rows])
        chart.paths.append(Path(steps(border, x, y), "front"))
        for dot, (across, up), place in zip(dots, at, labels, strict=True):
            if place.led:
                ends = np.array([across, place.x]), np.array([up, place.y])
                chart.paths.append(Path(line(WIDTH * ends[0], HEIGHT * (1 - ends[1])), "lead", dot.policy))
        return chart, x, y

    def _latency_front(
        self, story: TraceStory, group: int, front: list[tuple[float, float]], totals: dict[str, Any]
    ) -> Chart:
        chart, x, y = self._front(story, totals, "latency_mean_s", f"t{group}-latency", front)
        chart.note = (
            "up and left is better; dashed: the policies that none beats in both; grey: the profile's variants, "
            "alone and without a queue"
        )
        inside = [point for point in front if point[0] <= x.high]
        if inside:
            chart.paths.insert(0, Path(steps(inside, x, y), "variants"))
        return chart

    def _violation_front(self, story: TraceStory, group: int, totals: dict[str, Any]) -> Chart:
        chart, x, y = self._front(story, totals, "slo_violation_ratio", f"t{group}-violations", [])
        chart.note = "up and left is better; thin lines join points of equal quality yield"
        ratio = np.linspace(0.0, min(x.high, 0.999), 60)
        for value in rounds(Scale(max(0.0, y.low * (1 - ratio[-1])), y.high), 7):
            quality = value / (1 - ratio)
            quality[(quality < y.low) | (quality > y.high)] = math.nan
            if not np.isnan(quality).all():
                chart.paths.insert(0, Path(line(x.x(ratio), y.y(quality)), "iso"))
        return chart


def _mean(values: Floats) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else math.nan
