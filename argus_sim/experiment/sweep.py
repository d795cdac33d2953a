"""What is made of an experiment with a sweep: one table of all points, and a figure for each axis.

Each point is an experiment of its own, with its runs and its ``summary.csv`` in a folder of its name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from argus_sim import metrics
from argus_sim.experiment.basis import provenance_rows, rescaled, unused
from argus_sim.experiment.config import Experiment
from argus_sim.experiment.scene import Scene
from argus_sim.files import write_atomically
from argus_sim.metrics import METRICS, Metric
from argus_sim.metrics.intervals import KEYS
from argus_sim.report import plots, write_report
from argus_sim.report.charts.axis import SHOWN, AxisStory, is_wide
from argus_sim.report.plot_style import head, legend, styled, styles


def conclude(
    experiment: Experiment,
    out: Path,
    summaries: Mapping[str, pd.DataFrame],
    scenes: Mapping[str, Scene],
    lock: dict[str, Any],
    *,
    report: bool = True,
) -> pd.DataFrame:
    """Write ``summary.csv``, the figures and the report of a sweep whose runs are done; returns the table.

    Args:
        experiment: With the sweep.
        out: The folder of the results.
        summaries: By point: its table, as in ``summary.csv``.
        scenes: By point.
        lock: What goes into the report.
        report: Draw the figures and write the report as well.
    """
    for point, summary in summaries.items():
        write_atomically(out / point / "summary.csv", summary.to_csv(index=False).encode())
    summary = together(experiment, summaries)
    write_atomically(out / "summary.csv", summary.to_csv(index=False).encode())
    if not report:
        return summary
    stories = list(_stories(experiment, summary))
    for story in stories:
        plots.save(figure_axis(story), out / "figures", story.name)
    by_point = cases(experiment, summaries)
    write_report(
        out / "report.html",
        title=experiment.name,
        lock=lock,
        summary=by_point,
        aggregate=metrics.aggregate(by_point),
        provenance=list(dict.fromkeys(row for scene in scenes.values() for row in provenance_rows(scene))),
        axes=stories,
        case="case",
        facts=_facts(experiment, scenes),
        notes=[
            *([experiment.description] if experiment.description else []),
            *rescaled(experiment),
            *dict.fromkeys(remark for scene in scenes.values() for remark in unused(scene)),
        ],
    )
    return summary


def _facts(experiment: Experiment, scenes: Mapping[str, Scene]) -> list[tuple[str, str]]:
    assert experiment.sweep is not None
    return [
        ("points", f"{len(experiment.points())}"),
        ("varied", ", ".join(experiment.sweep.axes) + (", all combinations" if experiment.sweep.grid else "")),
        ("profile", ", ".join(dict.fromkeys(scene.profile.name for scene in scenes.values()))),
        ("traces", ", ".join(trace.name for trace in experiment.traces)),
        ("made with", f"argus-sim {version('argus-sim')}"),
    ]


def cases(experiment: Experiment, summaries: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """All points' tables under each other, each trace of each point with a name of its own as ``trace``."""
    tables = [
        table.assign(trace=point if len(experiment.traces) == 1 else point + " on " + table["trace"])
        for point, table in summaries.items()
    ]
    return pd.concat(tables, ignore_index=True)


def together(experiment: Experiment, summaries: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """All points' tables under each other, led by a column for each axis.

    An axis has no value in the rows of points on other axes: there, all is as the experiment says.
    """
    assert experiment.sweep is not None
    tables = []
    for point in experiment.points(to_run=False):
        table = summaries[point.name]
        columns = {axis: point.values.get(axis) for axis in experiment.sweep.axes}
        tables.append(pd.concat([pd.DataFrame(columns, index=table.index, dtype="str"), table], axis=1))
    return pd.concat(tables, ignore_index=True)


def of_axis(experiment: Experiment, summary: pd.DataFrame, axis: str) -> pd.DataFrame:
    """The means over seeds (of a grid, of the means over its other axes) by value of an axis, policy and trace.

    Columns: ``value``, then those of :func:`argus_sim.metrics.aggregate`.
    """
    assert experiment.sweep is not None
    tables = []
    for label in experiment.sweep.axes[axis].labelled:
        rows = summary[summary[axis] == label].drop(columns=list(experiment.sweep.axes))
        # Within a seed first: what the other axes' values do is no luck of a seed.
        of_seeds = rows.groupby(list(KEYS), sort=False, as_index=False).mean(numeric_only=True)
        tables.append(metrics.aggregate(of_seeds).assign(value=label))
    return pd.concat(tables, ignore_index=True)


def _stories(experiment: Experiment, summary: pd.DataFrame) -> Iterator[AxisStory]:
    """What there is to draw of each axis."""
    assert experiment.sweep is not None
    for name, axis in experiment.sweep.axes.items():
        labelled = axis.labelled
        numeric = all(isinstance(v, int | float) and not isinstance(v, bool) for v in labelled.values())
        labels = sorted(labelled, key=labelled.__getitem__) if numeric else list(labelled)
        note = "Means over seeds" + (" and the other axes" if experiment.sweep.grid else "")
        yield AxisStory(
            name,
            f"{note}. Varied: {', '.join(axis.keys)}.",
            tuple(labels),
            tuple(float(labelled[label]) for label in labels) if numeric else (),
            of_axis(experiment, summary, name),
        )


@styled
def figure_axis(story: AxisStory) -> Figure:
    """What the policies come to along an axis: a row for each trace, a panel for each of :data:`SHOWN`."""
    table, numbers = story.table, list(story.numbers)
    traces = list(dict.fromkeys(table["trace"]))
    figure = Figure(figsize=(10.0, 2.9 * len(traces) + 1.0), layout="constrained")
    panels = figure.subplots(len(traces), len(SHOWN), squeeze=False)
    at = numbers or list(range(len(story.labels)))
    for trace, row in zip(traces, panels, strict=True):
        for metric, ax in zip(map(METRICS.__getitem__, SHOWN), row, strict=True):
            places = dict(zip(story.labels, at, strict=True))
            lines(ax, table[table["trace"] == trace], metric, places, bool(numbers))
            ax.set_title(metric.heading if len(traces) == 1 else f"{metric.heading}, {trace}")
            if not numbers:
                ax.set_xticks(at, story.labels, rotation=25, ha="right", fontsize=8)
            elif is_wide(numbers):
                ax.set_xscale("log")
                ax.minorticks_off()
                ax.set_xticks(at, story.labels)
            else:  # at the values that were run, as in the report, where their labels have room
                kept = _apart(numbers)
                ax.set_xticks([numbers[i] for i in kept], [story.labels[i] for i in kept])
            ax.set_xlabel(story.name)
    head(
        figure,
        f"Along {story.name}",
        f"{story.note} Strokes: 95 % intervals, where they are longer than the dot.",
    )
    legend(figure, panels[0, 0])
    return figure


def _apart(numbers: Sequence[float]) -> list[int]:
    """Which of some rising numbers can have a label without running into the one before."""
    kept = [0]
    for i, number in enumerate(numbers):
        if number - numbers[kept[-1]] >= 0.12 * (numbers[-1] - numbers[0]) > 0:
            kept.append(i)
    return kept


def lines(ax: Axes, table: pd.DataFrame, metric: Metric, at: Mapping[str, float], joined: bool) -> None:
    """A line for each policy of a metric with its intervals; ``at`` is where a ``value`` stands."""
    for policy, style in styles(table["policy"]).items():
        mine = table[table["policy"] == policy]
        if mine.empty:
            continue
        colour, dashes = style
        ax.errorbar(
            [at[label] for label in mine["value"]],
            metric.scale * mine[metric.name],
            yerr=metric.scale * mine[f"{metric.name}_half_width"].fillna(0.0),
            color=colour,
            linestyle=dashes if joined else "none",
            marker="o",
            markersize=3.5,
            elinewidth=0.8,
            label=policy,
        )
