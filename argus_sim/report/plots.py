"""Figures of an experiment, from the tables it writes, as :class:`matplotlib.figure.Figure` objects.

Matplotlib's object interface only: no global state, no display. Ratios over time are ratios of moving sums,
so that a quiet minute does not weigh as much as a busy one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from argus_sim.metrics import METRICS, Metric
from argus_sim.report.moving import MAX_POINTS, Clock
from argus_sim.report.plot_style import DASHED, INK, head, label_points, legend, render, save, styled, styles

__all__ = [
    "figure_front",
    "figure_latency_cdf",
    "figure_level_mix",
    "figure_timeline",
    "figure_totals",
    "render",
    "save",
    "styles",
]

Floats = npt.NDArray[np.float64]

_GREY = "#CBCFD4"
#: Variants drawn one by one in a level mix; the least used of a larger ladder are drawn as one.
_MAX_LAYERS = 12


@styled
def figure_timeline(
    timelines: Mapping[str, Sequence[pd.DataFrame]], trace_name: str, *, smooth_min: float | None = None
) -> Figure:
    """Load and what each policy made of it, over the trace: four panels that share the time axis.

    ``timelines`` are, by policy, those of :func:`argus_sim.metrics.timeline` for each seed, all of one trace.
    Lines are means over seeds, bands reach from the lowest seed to the highest, the grey area is the offered
    load; all of it is smoothed by a centred moving window of ``smooth_min`` (15, or less on a short trace).
    """
    panels = (
        ("effective_throughput_per_min", "Images on time per minute, under the offered load (grey)"),
        ("relative_quality", "Relative quality of the images on time"),
        ("slo_violation_ratio", "SLO violation ratio"),
        ("quality_yield", "Quality yield: on-time quality per arrived request"),
    )
    tables = [table for seeds in timelines.values() for table in seeds]
    clock, style = Clock(tables, smooth_min), styles(timelines)
    figure = Figure(figsize=(9.0, 9.6), layout="constrained")
    axes: list[Axes] = list(figure.subplots(4, 1, sharex=True, height_ratios=(1.35, 1, 1, 1)))
    offered = clock.over_seeds(tables, "offered_per_min")[0]
    axes[0].fill_between(clock.at, offered, color=_GREY, linewidth=0, zorder=1)
    for ax, (metric, title) in zip(axes, panels, strict=True):
        for rank, (policy, seeds) in enumerate(timelines.items()):
            colour, dashes = style[policy]
            mean, low, high = clock.over_seeds(seeds, metric)
            # The first policies of the experiment are drawn last, on top.
            order = 3 + len(timelines) - rank
            ax.plot(clock.at, mean, color=colour, linestyle=dashes, zorder=order, label=policy)
            # Throughput mostly is the load, for all policies: its bands would only pile up.
            if len(seeds) > 1 and ax is not axes[0]:
                ax.fill_between(clock.at, low, high, color=colour, alpha=0.13, linewidth=0, zorder=2)
        ax.set_title(title)
        ax.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axes[2].yaxis.set_major_formatter(_percent)
    for ax in (axes[0], axes[2]):
        ax.set_ylim(bottom=0)
    _time_axis(axes[-1], clock)
    most = max(len(seeds) for seeds in timelines.values())
    bands = f"; bands from the lowest to the highest of {most} seeds" if most > 1 else ""
    head(figure, f"{trace_name}: policies over time", f"{clock.note}{bands}.")
    legend(figure, axes[0])
    return figure


def _percent(value: float, _: float) -> str:
    return f"{100 * value:.3g} %"


def _time_axis(ax: Axes, clock: Clock) -> None:
    ax.set_xlim(0, clock.end)
    ax.set_xlabel(clock.label)
    ax.xaxis.set_major_locator(MaxNLocator(9, steps=[1, 2, 3, 5, 6, 10]))


_TOTALS = ("quality_yield", "effective_throughput_per_min", "relative_quality", "slo_violation_ratio")


@styled
def figure_totals(aggregate: pd.DataFrame) -> Figure:
    """Totals by policy: a row per trace, a column per metric, policies by falling mean quality yield.

    ``aggregate`` is that of :func:`argus_sim.metrics.aggregate`; whiskers are its intervals. Quality is drawn
    as points, since its axis does not start at zero.
    """
    traces = list(dict.fromkeys(aggregate["trace"]))
    by_yield = aggregate.groupby("policy", sort=False)["quality_yield"].mean().sort_values(kind="stable")
    policies = [str(name) for name in by_yield.index]  # From the bottom of the chart to its top.
    # A row is as high as its bars, or as the name of its trace written along it.
    row = max(0.25 * len(policies), 0.085 * max(len(str(trace)) for trace in traces))
    height = 1.3 + len(traces) * (0.25 + row)
    figure = Figure(figsize=(10.0, height), layout="constrained")
    grid = figure.subplots(len(traces), len(_TOTALS), squeeze=False, sharex="col", sharey=True)
    for trace, axes in zip(traces, grid, strict=True):
        rows = aggregate[aggregate["trace"] == trace].set_index("policy").reindex(policies)
        for name, ax in zip(_TOTALS, axes, strict=True):
            _bars(ax, rows, METRICS[name], points=name == "relative_quality")
        axes[0].set_ylabel(str(trace), fontweight="bold")
    for ax, name in zip(grid[0], _TOTALS, strict=True):
        metric = METRICS[name]
        ax.set_title(metric.label, pad=20)
        better = "higher is better" if metric.better == "high" else "lower is better"
        subtitle = f"{metric.unit}, {better}" if metric.unit else better
        ax.annotate(
            subtitle,
            (0, 1),
            xytext=(0, 7),
            xycoords="axes fraction",
            textcoords="offset points",
            fontsize=8,
            color="#666666",
        )
        # Room for the number at the end of the longest bar, but no ticks that the metric cannot reach.
        left, right = ax.get_xlim()
        left = left if name == "relative_quality" else 0.0
        ax.set_xlim(left, right + 0.2 * (right - left))
        ax.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
        if name in ("quality_yield", "relative_quality"):
            ax.set_xticks([tick for tick in ax.get_xticks() if left <= tick <= 1.0])
    seeds = int(aggregate["seeds"].max())
    note = f"Mean and 95 % interval over {seeds} seeds." if seeds > 1 else "One seed: no interval."
    head(figure, "Totals by policy", note)
    return figure


def _bars(ax: Axes, rows: pd.DataFrame, metric: Metric, *, points: bool) -> None:
    """A horizontal bar (or a point) per policy, its whisker, and its value in numbers."""
    mean = rows[metric.name].to_numpy(dtype=np.float64) * metric.scale
    half = rows[f"{metric.name}_half_width"].to_numpy(dtype=np.float64) * metric.scale
    y = np.arange(len(rows))
    style = styles(map(str, rows.index))
    colours = [style[str(policy)][0] for policy in rows.index]
    whiskers: dict[str, Any] = {"ecolor": "#222222", "elinewidth": 1.0, "capsize": 2.0}
    if points:
        ax.errorbar(mean, y, xerr=half, fmt="none", **whiskers)
        ax.scatter(mean, y, color=colours, s=34, zorder=3)
        ax.margins(x=0.12)
    else:
        ax.barh(y, mean, xerr=half, color=colours, height=0.7, error_kw=whiskers)
    for at, value, reach in zip(y, mean, np.nan_to_num(half), strict=True):
        if not math.isnan(value):
            text, end = metric.text(value / metric.scale), (value + reach, at)
            ax.annotate(text, end, xytext=(6, 0), textcoords="offset points", va="center", fontsize=8, color=INK)
    ax.set_yticks(y, [str(policy) for policy in rows.index])
    ax.tick_params(axis="y", length=0)
    ax.grid(visible=False, axis="y")


@styled
def figure_front(aggregate: pd.DataFrame) -> Figure:
    """What each policy gave up for what: relative quality against SLO violations, a panel per trace.

    Up and to the left is better. Since ``quality yield = relative quality x (1 - violation ratio)``, the grey
    lines join points of equal yield: a policy on a higher line is better, wherever on it.
    """
    traces = list(dict.fromkeys(aggregate["trace"]))
    columns = min(3, len(traces))
    lines = math.ceil(len(traces) / columns)
    figure = Figure(figsize=(max(5.4, 4.2 * columns), 0.9 + 3.4 * lines), layout="constrained")
    panels = list(figure.subplots(lines, columns, squeeze=False).flat)
    style = styles(map(str, aggregate["policy"]))
    for trace, ax in zip(traces, panels, strict=False):
        rows = aggregate[aggregate["trace"] == trace].dropna(subset=["relative_quality"])
        names = [str(policy) for policy in rows["policy"]]
        x, x_half, y, y_half = (
            rows[column].fillna(0.0).to_numpy(dtype=np.float64)
            for name in ("slo_violation_ratio", "relative_quality")
            for column in (name, f"{name}_half_width")
        )
        ax.errorbar(x, y, xerr=x_half, yerr=y_half, fmt="none", ecolor="#222222", elinewidth=0.9, zorder=3)
        for rank, policy in enumerate(names):
            # The first policies of the experiment are drawn last, on top.
            ax.scatter(x[rank], y[rank], color=style[policy][0], s=44, edgecolor="white", zorder=99 - rank)
        ax.margins(y=0.15)
        # Room for a name to the right of the rightmost point.
        widest = max(0.01, float(x.max(initial=0.0)))
        ax.set_xlim(-0.06 * widest, 1.4 * widest)
        ax.set_ylim(ax.get_ylim()[0], min(1.0, ax.get_ylim()[1]))
        _iso_yield(ax)
        label_points(ax, names, x, y)
        ax.set_title(str(trace), pad=16)
        ax.xaxis.set_major_formatter(_percent)
        ax.grid(visible=False)
        ax.set_xlabel("SLO violation ratio")
    for ax in panels[::columns]:
        ax.set_ylabel("relative quality of the images on time")
    for ax in panels[len(traces) :]:
        ax.set_visible(False)
    head(figure, "Quality against violations", "Up and left is better. Grey: lines of equal quality yield.")
    return figure


def _iso_yield(ax: Axes) -> None:
    (left, right), (low, high) = ax.get_xlim(), ax.get_ylim()
    ratio = np.linspace(max(0.0, left), min(right, 0.999), 100)
    for level in MaxNLocator(8, steps=[1, 2, 2.5, 5, 10]).tick_values(low * (1 - right), high):
        quality = level / (1 - ratio)
        seen = (quality > low) & (quality < high)
        if level > 0 and seen.any():
            ax.plot(ratio[seen], quality[seen], color="#D5D8DC", linewidth=0.9, zorder=1)
            # The yield stands where the line leaves the panel, out of the way of the policies' names.
            end = int(np.flatnonzero(seen)[-1])
            at_side = end == len(ratio) - 1
            ax.annotate(
                f"{level:.3g}",
                (ratio[end], quality[end] if at_side else high),
                xytext=(3, 0) if at_side else (0, 3),
                textcoords="offset points",
                fontsize=7,
                color="#8A9097",
                ha="left" if at_side else "center",
                va="center" if at_side else "bottom",
                annotation_clip=False,
            )


@styled
def figure_level_mix(timeline: pd.DataFrame, policy: str, *, smooth_min: float | None = None) -> Figure:
    """Which variants served, over the trace: images per minute, stacked from the profile's first variant up.

    The dashed line is the offered load: what is between it and the stack was never finished.
    """
    clock, minutes = Clock([timeline], smooth_min), timeline["window_s"] / 60.0
    served = timeline.filter(regex="^served:").rename(columns=lambda name: name.removeprefix("served:"))
    counts = served.sum()
    rare = counts.sort_values(ascending=False, kind="stable").index[_MAX_LAYERS:]
    names = [str(name) for name in served.columns if counts[str(name)] > 0 and name not in rare]
    layers = {name: served[name] for name in names}
    colours = list(matplotlib.colormaps["viridis"](np.linspace(0.05, 0.92, max(len(layers), 2))))
    if counts[rare].sum() > 0:
        layers["others"], colours = served[rare].sum(axis=1), [*colours[: len(layers)], "#B0B4B9"]
    total = max(1.0, float(counts.sum()))
    labels = [f"{name}  {100 * float(layer.sum()) / total:.1f} %" for name, layer in layers.items()]
    figure = Figure(figsize=(9.0, 4.2), layout="constrained")
    ax: Axes = figure.subplots()
    if layers:
        heights = [clock.ratio(layer, minutes) for layer in layers.values()]
        ax.stackplot(clock.at, *heights, labels=labels, colors=colours[: len(layers)], linewidth=0)
    offered = clock.ratio(timeline["arrived"], minutes)
    ax.plot(clock.at, offered, color="black", linestyle=DASHED, linewidth=1.2, label="offered load")
    ax.set_ylim(bottom=0)
    _time_axis(ax, clock)
    ax.set_ylabel("images per minute")
    handles, texts = ax.get_legend_handles_labels()
    key = figure.legend(handles[::-1], texts[::-1], loc="outside right center", alignment="left")
    key.set_title("variant, share of images")
    head(figure, f"{policy}: which variants served", f"{clock.note}.")
    return figure


@styled
def figure_latency_cdf(outcomes: Mapping[str, pd.DataFrame]) -> Figure:
    """Share of all arrived requests whose image was there within a time, by policy.

    ``outcomes`` are, by policy, the tables of ``outcomes.parquet``. A line levels off at the share that was
    served at all: dropping requests cannot make a policy look fast. The vertical line is a common SLO.
    """
    figure = Figure(figsize=(7.6, 4.6), layout="constrained")
    ax: Axes = figure.subplots()
    style = styles(outcomes)
    slos: list[float] = []
    curves: dict[str, tuple[Floats, Floats]] = {}
    longest = 0.0
    share = np.linspace(0.0, 1.0, MAX_POINTS)
    for policy, table in outcomes.items():
        done = table["outcome"].isin(("on_time", "late"))
        latency = (table["finish_s"] - table["arrival_s"])[done].to_numpy(dtype=np.float64)
        slos += (table["deadline_s"] - table["arrival_s"]).quantile([0.0, 1.0]).dropna().to_list()
        if len(latency):
            curves[policy] = np.quantile(latency, share), share * len(latency) / len(table)
            longest = max(longest, float(np.quantile(latency, 0.999)))
    if slos and max(slos) - min(slos) < 1e-6 * max(slos):
        slo_s = float(np.median(slos))
        longest = max(longest, 1.05 * slo_s)
        ax.axvline(slo_s, color=INK, linewidth=1)
        ax.text(slo_s, 0.02, f"SLO {slo_s:.3g} s ", fontsize=8.5, color=INK, ha="right")
    for rank, (policy, (at_s, served)) in enumerate(curves.items()):
        colour, dashes = style[policy]
        level = np.append(at_s, max(longest, at_s[-1])), np.append(served, served[-1])
        ax.plot(*level, color=colour, linestyle=dashes, label=policy, zorder=3 + len(curves) - rank)
    ax.set_xlim(0, longest or 1.0)
    ax.set_ylim(0, 1.005)
    ax.yaxis.set_major_formatter(_percent)
    ax.set_xlabel("seconds from arrival to image")
    ax.set_ylabel("share of all arrived requests")
    head(figure, "Time from arrival to image", "Requests that were never served count as not there.")
    legend(figure, ax)
    return figure
