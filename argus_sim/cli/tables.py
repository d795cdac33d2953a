"""What the command line prints of an experiment's results."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
from rich import box
from rich.table import Table
from rich.text import Text

from argus_sim import metrics
from argus_sim.errors import InputError, did_you_mean
from argus_sim.metrics import METRICS
from argus_sim.metrics.intervals import KEYS, read_table
from argus_sim.provenance import KINDS, Kind
from argus_sim.report import HEADLINE

if TYPE_CHECKING:
    from argus_sim.experiment import Experiment
    from argus_sim.experiment.scene import Scene

#: What the table of an axis shows in a cell.
_SWEPT = ("quality_yield", "slo_violation_ratio")

#: Columns of the table at the peak: heading, and the metric that says how to print it.
_PEAK = {
    "offered_per_min": ("offered\n/min", "effective_throughput_per_min"),
    "effective_throughput_per_min": ("on time\n/min", "effective_throughput_per_min"),
    "violations_per_min": ("violations\n/min", "effective_throughput_per_min"),
    "relative_quality": ("rel.\nqual.", "relative_quality"),
    "quality_relative_to_base": ("quality\nto base", "quality_relative_to_base"),
}


def read_summary(run: Path) -> pd.DataFrame:
    """The ``summary.csv`` of a results folder, or the file itself.

    Raises:
        InputError: There is none, or it is not one.
    """
    path = run / "summary.csv" if run.is_dir() else run
    if not path.is_file():
        found = "holds no summary.csv: no experiment has ended there" if run.is_dir() else "there is no such file"
        raise InputError(found, where=str(run))
    try:
        summary = read_table(path)
    except ValueError as error:
        raise InputError(f"not a summary: {error}", where=str(path)) from None
    columns = list(summary.columns)
    other = columns[: columns.index("policy")] if "policy" in columns else []
    if other:
        example = next(iter(sorted(p.parent.name for p in path.parent.glob("*=*/summary.csv"))), "AXIS=VALUE")
        raise InputError(
            f"has a sweep over {', '.join(other)}; choose one point of it, e.g. {path.parent / example}",
            where=str(path),
        )
    missing = [key for key in KEYS if key not in summary]
    if missing:
        raise InputError(f"not a summary: it has no column {', '.join(missing)}", where=str(path))
    twice = summary[summary.duplicated(list(KEYS))]
    if len(twice):
        key = " ".join(str(twice.iloc[0][name]) for name in KEYS)
        raise InputError(f"has two rows for {key}", where=str(path))
    return summary


def peak(folder: Path, summary: pd.DataFrame) -> pd.DataFrame:
    """What the runs were like at the peak, with intervals over seeds: the ``peak`` of each ``summary.json``."""
    rows = []
    for policy, trace, seed in summary[list(KEYS)].itertuples(index=False):
        run = json.loads((folder / policy / trace / str(seed) / "summary.json").read_text("utf-8"))
        rows.append(
            {"policy": policy, "trace": trace, "seed": seed, **{name: run["peak"][name] for name in _PEAK}}
        )
    return metrics.aggregate(pd.DataFrame(rows).astype(dict.fromkeys(_PEAK, "float64")))


def axis_tables(experiment: Experiment, summary: pd.DataFrame) -> Iterator[tuple[str, Table]]:
    """For each axis of a sweep and each trace: quality yield and SLO violations by value (rows) and policy."""
    from argus_sim.experiment import sweep

    assert experiment.sweep is not None
    for axis in experiment.sweep.axes:
        means = sweep.of_axis(experiment, summary, axis)
        for trace, rows in means.groupby("trace", sort=False):
            table = Table(box=box.MINIMAL, padding=0, show_edge=False)
            table.add_column(axis, no_wrap=True)
            policies = list(dict.fromkeys(rows["policy"]))
            for policy in policies:
                table.add_column(policy, justify="right")
            for value, of_value in rows.groupby("value", sort=False):
                by_policy = of_value.set_index("policy")
                cells = [
                    " / ".join(METRICS[name].text(by_policy[name].get(policy, math.nan)) for name in _SWEPT)
                    for policy in policies
                ]
                table.add_row(Text(str(value)), *map(Text, cells))
            yield str(trace), table


def peak_table(peaks: pd.DataFrame, aggregate: pd.DataFrame) -> Table:
    """The peak by trace and policy, in the order of the headline table: by falling quality yield."""
    table = Table(box=box.MINIMAL, padding=0, show_edge=False)
    table.add_column("trace\n  policy", no_wrap=True)
    for heading, _ in _PEAK.values():
        table.add_column(heading, justify="right")
    order = aggregate[["policy", "trace", "quality_yield"]].rename(columns={"quality_yield": "rank"})
    for trace, rows in peaks.merge(order, on=["policy", "trace"]).groupby("trace", sort=False):
        table.add_row(Text(str(trace)))
        ranked = rows.sort_values("rank", ascending=False, kind="stable", na_position="last")
        for row in ranked.to_dict("records"):
            cells = (
                metrics.METRICS[like].text(row[name], row[f"{name}_half_width"], plus_minus=" ±")
                for name, (_, like) in _PEAK.items()
            )
            table.add_row(Text(f"  {row['policy']}"), *cells)
        table.add_section()
    return table


def basis(scene: Scene) -> dict[Kind, list[str]]:
    """Kind of provenance -> what is of it, or ``part of`` which is: tables, traces, what the cluster assumes."""
    from argus_sim.experiment.basis import assumptions

    parts = [(table, part) for table in scene.profile.tables for part in scene.profile.provenance_of(table)]
    for config in scene.experiment.traces:
        trace = scene.trace(config, scene.experiment.seed)
        parts += [(f"trace {config.name}", part) for part in trace.provenance]
    parts += assumptions(scene)
    kinds: dict[str, dict[Kind, None]] = {}
    for what, part in parts:
        kinds.setdefault(what, {})[part.kind] = None
    return {
        kind: [what if len(found) == 1 else f"part of {what}" for what, found in kinds.items() if kind in found]
        for kind in KINDS
    }


def basis_sentence(found: dict[Kind, list[str]]) -> str:
    """What the numbers rest on, in a line.

    >>> basis_sentence({"measured": [], "recorded": [], "published": ["latency"], "synthetic": ["quality"]})
    'These numbers rest on what is published (latency) and synthetic (quality); nothing is measured here.'
    """
    parts = [f"{kind} ({', '.join(what)})" for kind, what in found.items() if what]
    nothing = "" if found["measured"] else "; nothing is measured here"
    return f"These numbers rest on what is {' and '.join(parts)}{nothing}."


def markdown(aggregate: pd.DataFrame) -> str:
    """The headline table in Markdown: a table for each trace, by falling quality yield."""
    shown = [metrics.METRICS[name] for name in HEADLINE if name in aggregate and aggregate[name].notna().any()]
    lines = []
    for trace, rows in aggregate.groupby("trace", sort=False):
        lines += ["", f"| {trace} | " + " | ".join(metric.heading for metric in shown) + " |"]
        lines += ["| --- |" + " ---: |" * len(shown)]
        for row in rows.sort_values("quality_yield", ascending=False, kind="stable").to_dict("records"):
            cells = (metric.text(row[metric.name], row[f"{metric.name}_half_width"]) for metric in shown)
            lines.append(f"| {row['policy']} | " + " | ".join(cells) + " |")
    return "\n".join(lines[1:])


def swept_markdown(experiment: Experiment, summary: pd.DataFrame) -> str:
    """A sweep in Markdown: a table for each axis and trace, a row for each value, a column for each policy.

    A cell is the mean quality yield with its interval, and the SLO violations in brackets.
    """
    from argus_sim.experiment import sweep

    assert experiment.sweep is not None
    quality, late = (METRICS[name] for name in _SWEPT)
    lines = []
    for axis in experiment.sweep.axes:
        for trace, rows in sweep.of_axis(experiment, summary, axis).groupby("trace", sort=False):
            policies = list(dict.fromkeys(rows["policy"]))
            of_trace = "" if len(experiment.traces) == 1 else f" on {trace}"
            lines += ["", f"| {axis}{of_trace}: {quality.heading} ({late.heading}) | {' | '.join(policies)} |"]
            lines += ["| --- |" + " ---: |" * len(policies)]
            for value, of_value in rows.groupby("value", sort=False):
                by_policy = of_value.set_index("policy")
                cells = []
                for policy in policies:
                    if policy not in by_policy.index:
                        cells.append("")
                        continue
                    row = by_policy.loc[policy]
                    mean = quality.text(row[quality.name], row[f"{quality.name}_half_width"])
                    cells.append(f"{mean} ({late.text(row[late.name])})")
                lines.append(f"| {value} | {' | '.join(cells)} |")
    return "\n".join(lines[1:])


def put_between_marks(text: str, name: str, table: str, *, where: str) -> str:
    """The text with ``table`` between ``<!-- NAME table -->`` and ``<!-- end of NAME table -->``.

    >>> put_between_marks("<!-- a table -->old<!-- end of a table -->.", "a", "new", where="x").splitlines()
    ['<!-- a table -->', 'new', '<!-- end of a table -->.']

    Raises:
        InputError: The marks are not there.
    """
    first, last = f"<!-- {name} table -->", f"<!-- end of {name} table -->"
    before, start, rest = text.partition(first)
    _, end, after = rest.partition(last)
    if not (start and end):
        names = re.findall(r"<!-- end of (.*?) table -->", text)
        raise InputError(f"has no place marked {first} ... {last}{did_you_mean(name, names)}", where=where)
    return f"{before}{first}\n{table}\n{last}{after}"
