"""What an experiment found, for people: one HTML file that needs nothing else, and a table for the terminal.

The same results give the same bytes: nothing here reads a clock, a locale or the network.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.resources
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
import yaml
from rich import box
from rich.table import Table
from rich.text import Text

from argus_sim.errors import InputError
from argus_sim.files import write_atomically
from argus_sim.metrics import METRICS, Metric, interval, paired
from argus_sim.metrics import aggregate as aggregate_of
from argus_sim.metrics.intervals import KEYS
from argus_sim.provenance import KINDS
from argus_sim.report.charts.axis import AxisStory, axis_charts
from argus_sim.report.charts.chart import dashes
from argus_sim.report.charts.draw import Drawing
from argus_sim.report.charts.story import TraceStory
from argus_sim.report.charts.svg import readable
from argus_sim.report.policy_style import styles

#: Columns of the headline table, and their headings where there are but 80 characters for all of them.
HEADLINE: dict[str, str] = {
    "quality_yield": "qual.\nyield",
    "effective_throughput_per_min": "on time\n/min",
    "relative_quality": "rel.\nqual.",
    "slo_violation_ratio": "viol.\n%",
    "latency_p50_s": "p50\ns",
    "latency_p99_s": "p99\ns",
    "utilisation": "busy\n%",
    "model_loads": "model\nloads",
    "share_of_bound": "bound\n%",
}
#: Not a policy but a bound on all of them, so never "the best".
_BOUND = "hindsight"
#: Colour of the page, by day and by night.
LIGHT, DARK = "#ffffff", "#14181d"
#: Runs listed one by one; beyond, ``summary.csv`` is the better place to look.
_MAX_RUNS = 300


@dataclass(frozen=True, slots=True)
class _Cell:
    """``best``: none is printed better. ``level``: paired by seed, it cannot be told from the best."""

    text: str
    best: bool
    level: bool = False


@dataclass(frozen=True, slots=True)
class _Row:
    policy: str
    cells: list[_Cell]


def _columns(aggregate: pd.DataFrame) -> list[Metric]:
    """The headline metrics there are; the bound's column only where a bound was computed."""
    return [METRICS[name] for name in HEADLINE if name in aggregate and aggregate[name].notna().any()]


def _headline(
    aggregate: pd.DataFrame, plus_minus: str, summary: pd.DataFrame | None = None
) -> dict[str, list[_Row]]:
    """Rows by trace, by falling quality yield; the best of each column, as printed, is marked, ties together.

    With a summary, so is what is not the best but cannot be told from it.
    """
    columns = _columns(aggregate)
    tables: dict[str, list[_Row]] = {}
    for trace, rows in aggregate.groupby("trace", sort=False):
        ranked = rows.sort_values("quality_yield", ascending=False, kind="stable", na_position="last")
        best = {metric.name: _best(ranked, metric) for metric in columns}
        level = {metric.name: _level(ranked, metric, summary, str(trace)) for metric in columns}
        tables[str(trace)] = [
            _Row(
                str(row["policy"]),
                [
                    _Cell(
                        metric.text(row[metric.name], row[f"{metric.name}_half_width"], plus_minus=plus_minus),
                        row["policy"] != _BOUND and metric.text(row[metric.name]) == best[metric.name],
                        row["policy"] in level[metric.name],
                    )
                    for metric in columns
                ],
            )
            for _, row in ranked.iterrows()
        ]
    return tables


def _best(rows: pd.DataFrame, metric: Metric) -> str | None:
    """The best mean as printed, or None where nothing is to be compared."""
    means = rows.loc[rows["policy"] != _BOUND, metric.name].dropna()
    if metric.better is None or len(means) < 2:
        return None
    return metric.text(float(means.max() if metric.better == "high" else means.min()))


def _level(rows: pd.DataFrame, metric: Metric, summary: pd.DataFrame | None, trace: str) -> set[str]:
    """The policies whose difference from the best, paired by seed, has an interval that holds zero."""
    means = rows[rows["policy"] != _BOUND].set_index("policy")[metric.name].dropna()
    if summary is None or metric.better is None or len(means) < 2:
        return set()
    best = str(means.idxmax() if metric.better == "high" else means.idxmin())
    runs = summary[summary["trace"] == trace].pivot(index="seed", columns="policy", values=metric.name)
    ahead = {policy: interval(runs[best] - runs[policy]) for policy in map(str, means.index) if policy != best}
    return {policy for policy, by in ahead.items() if by.n > 1 and by.low <= 0 <= by.high}


def terminal_table(aggregate: pd.DataFrame) -> Table:
    """The headline numbers by trace and policy as ``mean ±half-width``, by falling quality yield, best in bold.

    ``aggregate`` is that of :func:`argus_sim.metrics.aggregate`.
    """
    table = Table(box=box.MINIMAL, padding=0, show_edge=False)
    table.add_column("trace\n  policy", no_wrap=True)
    for metric in _columns(aggregate):
        table.add_column(HEADLINE[metric.name], justify="right")
    for trace, rows in _headline(aggregate, " ±").items():
        table.add_row(Text(trace))
        for row in rows:
            cells = [Text(cell.text, style="bold" if cell.best else "") for cell in row.cells]
            table.add_row(Text(f"  {row.policy}"), *cells)
        table.add_section()
    return table


def headline_html(summary: pd.DataFrame) -> str:
    """The headline numbers as plain HTML tables, for a notebook."""
    tables = _headline(aggregate_of(summary), " ± ", summary)
    return (
        _environment()
        .get_template("headline.html.j2")
        .render(columns=_columns(aggregate_of(summary)), tables=tables)
    )


def findings(summary: pd.DataFrame) -> list[str]:
    """A sentence per trace: which policy has the highest quality yield, and whether the next is truly behind.

    The comparison is paired by seed, so that it is about the policies and not about the luck of a seed. Another
    sentence names the traces on which the bound tells nothing.
    """
    metric = METRICS["quality_yield"]
    sentences = []
    for trace, runs in summary[summary["policy"] != _BOUND].groupby("trace", sort=False):
        means = runs.groupby("policy", sort=False)["quality_yield"].mean().dropna()
        ranked = [str(name) for name in means.sort_values(ascending=False, kind="stable").index]
        if not ranked:
            continue
        first = f"On {trace}, {ranked[0]} has "
        value = metric.text(float(means.max()))
        if len(ranked) == 1:
            sentences.append(f"{first}a quality yield of {value}.")
            continue
        first += f"the highest quality yield, {value}"
        try:
            ahead = paired(runs, ranked[0], ranked[1], "quality_yield")
        except InputError:  # No seed that both ran.
            sentences.append(f"{first}; {ranked[1]} is next, with no seed in common to compare by.")
            continue
        if ahead.n < 2 and f"{ahead.mean:.4f}" == "0.0000":
            sentences.append(f"{first}, and {ranked[1]} the same within 0.0001 (one seed: no interval).")
        elif ahead.n < 2:
            sentences.append(f"{first}: {ahead.mean:.4f} more than {ranked[1]} (one seed: no interval).")
        elif ahead.low > 0:
            by = f"{ahead.mean:.4f} ± {ahead.half_width:.4f}"
            sentences.append(f"{first}: {by} more than {ranked[1]} (paired over {ahead.n} seeds).")
        else:
            by = f"{ahead.mean:.4f} ± {ahead.half_width:.4f} over {ahead.n} paired seeds"
            sentences.append(f"{first}, but {ranked[1]} cannot be told from it: the difference is {by}.")
    if "share_of_bound" in summary:
        bound = (
            (summary["quality_yield"] / summary["share_of_bound"]).groupby(summary["trace"], sort=False).mean()
        )
        if full := [str(trace) for trace in bound.index[bound > 0.999]]:
            on = ", ".join(full) if len(full) <= 6 else f"{len(full)} of {len(bound)}"
            sentences.append(f"On {on}, the bound is above 0.999: a share of it is the quality yield once more.")
    return sentences


def _runs(summary: pd.DataFrame) -> dict[str, Any]:
    """Every run as printed cells: the keys, then the metrics we know how to print."""
    metrics = [
        metric for metric in METRICS.values() if metric.name in summary and summary[metric.name].notna().any()
    ]
    listed = summary.head(_MAX_RUNS)
    rows = [
        [*(str(row[key]) for key in KEYS), *(metric.text(float(row[metric.name])) for metric in metrics)]
        for _, row in listed.iterrows()
    ]
    return {"headings": [*KEYS, *(metric.heading for metric in metrics)], "rows": rows, "total": len(summary)}


def write_report(
    path: Path,
    *,
    title: str,
    lock: Mapping[str, Any],
    summary: pd.DataFrame,
    aggregate: pd.DataFrame,
    provenance: Sequence[tuple[str, str, str]],
    stories: Sequence[TraceStory] = (),
    front: Sequence[tuple[float, float]] = (),
    facts: Sequence[tuple[str, str]] = (),
    axes: Sequence[AxisStory] = (),
    case: str = "trace",
    notes: Sequence[str] = (),
    caches: Sequence[tuple[str, Sequence[str], Sequence[Sequence[str]]]] = (),
) -> None:
    """Writes an experiment's report: one HTML file with everything in it, as a whole or not at all.

    Charts are inline SVG that is there without scripts; a script of our own adds what follows the pointer.

    Args:
        path: Where to, e.g. ``runs/fig7/report.html``.
        title: What the experiment is called.
        lock: The resolved configuration, as in ``experiment.lock.yaml``.
        summary: One row per run, as in ``summary.csv``.
        aggregate: :func:`argus_sim.metrics.aggregate` of it.
        provenance: What the numbers rest on: ``(what, kind, source)``, the kind one of
            :data:`argus_sim.provenance.KINDS`.
        stories: One for each trace.
        front: Latency (s) and relative quality of the profile's variants that no other beats in both.
        facts: What was run: ``(what, value)``.
        axes: Those of a sweep.
        case: What the column ``trace`` names: a trace, or something of a sweep.
        notes: Warnings and remarks, one paragraph each.
        caches: What simulated caches did: ``(trace, headings, rows of cells)``, the first cell a policy.
    """
    unknown = {kind for _, kind, _ in provenance} - set(KINDS)
    if unknown:
        raise ValueError(f"unknown kinds of provenance: {', '.join(sorted(unknown))}")
    # By way of JSON, so that paths, enums and tuples in a configuration come out as plain text and lists.
    config = yaml.safe_dump(json.loads(json.dumps(lock, default=str)), sort_keys=False, allow_unicode=True)
    kinds = [kind for kind in KINDS if any(kind == of for _, of, _ in provenance)]
    seeds = summary.groupby(["policy", "trace"])["seed"].nunique()
    policies = list(dict.fromkeys(map(str, summary["policy"])))
    style = styles(policies)
    drawing = Drawing(policies, [style[name][1] for name in policies])
    traces = [drawing.trace(story, list(front), _totals(aggregate, story.name)) for story in stories]
    script = _template("report.js")
    html = (
        _environment()
        .get_template("report.html.j2")
        .render(
            title=title,
            kinds=kinds,
            policies=policies,
            colours=[
                (readable(style[name][0], LIGHT), readable(style[name][0], DARK), dashes(style[name][1]))
                for name in policies
            ],
            cases=summary["trace"].nunique(),
            case=case,
            seeds=int(seeds.max()) if len(seeds) else 0,
            runs=len(summary),
            requests=_mean_text(summary["arrived"]),
            facts=list(facts),
            findings=findings(summary),
            notes=list(notes),
            axes=[axis_charts(drawing, axis) for axis in axes],
            caches=list(caches),
            columns=_columns(aggregate),
            tables=_headline(aggregate, " ± ", summary),
            bars=_bars(aggregate),
            traces=traces,
            timed=any(policy["planning"] for trace in traces for policy in trace["policies"]),
            provenance=list(provenance),
            definitions=[metric for metric in METRICS.values() if metric.name in summary],
            all_runs=_runs(summary),
            config=config,
            style=_template("report.css"),
            script=script,
            script_digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
            # Within <script> nothing but its end tag means anything; with no "<" there is none.
            data=json.dumps(drawing.data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c"),
        )
    )
    write_atomically(path, html.encode("utf-8"))


def _template(name: str) -> str:
    return importlib.resources.files("argus_sim.report").joinpath("templates", name).read_text("utf-8")


def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FunctionLoader(_template),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _totals(aggregate: pd.DataFrame, trace: str) -> dict[str, dict[str, Any]]:
    rows = aggregate[aggregate["trace"] == trace]
    return {str(row["policy"]): {str(k): v for k, v in row.items()} for row in rows.to_dict("records")}


def _bars(aggregate: pd.DataFrame) -> dict[str, list[dict[str, Any]]]:
    """Share of the bound by trace and policy, for bars; empty where no bound was computed."""
    metric = METRICS["share_of_bound"]
    found: dict[str, list[dict[str, Any]]] = {}
    known = aggregate[(aggregate["policy"] != _BOUND) & aggregate[metric.name].notna()]
    for trace, rows in known.groupby("trace", sort=False):
        ranked = rows.sort_values(metric.name, ascending=False, kind="stable")
        found[str(trace)] = [
            {
                "policy": row["policy"],
                "percent": 100 * row[metric.name],
                "half": 0.0 if math.isnan(half) else 100 * half,
                "text": metric.text(row[metric.name], half),
            }
            for row in ranked.to_dict("records")
            for half in [float(row[f"{metric.name}_half_width"])]
        ]
    return found


def _mean_text(values: pd.Series[Any]) -> str:
    mean = float(values.mean())
    return "no" if math.isnan(mean) else f"{mean:,.0f}"
