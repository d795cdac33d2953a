"""What an experiment found, for people: one HTML file that needs nothing else, and a table for the terminal.

The same results give the same bytes: nothing here reads a clock, a locale or the network.
"""

from __future__ import annotations

import base64
import importlib.resources
import json
import math
import os
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
from argus_sim.intervals import KEYS, paired
from argus_sim.metrics import METRICS, Metric
from argus_sim.provenance import KINDS

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
#: A report is to be mailed and opened on a phone: figures beyond this many bytes stay in their folder.
_MAX_FIGURE_BYTES = 2_700_000
#: Runs listed one by one; beyond, ``summary.csv`` is the better place to look.
_MAX_RUNS = 300


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a file that appears whole or not at all, creating its folder where needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(content)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class _Cell:
    text: str
    best: bool


@dataclass(frozen=True, slots=True)
class _Row:
    policy: str
    cells: list[_Cell]


def _columns(aggregate: pd.DataFrame) -> list[Metric]:
    """The headline metrics there are; the bound's column only where a bound was computed."""
    return [METRICS[name] for name in HEADLINE if name in aggregate and aggregate[name].notna().any()]


def _headline(aggregate: pd.DataFrame, plus_minus: str) -> dict[str, list[_Row]]:
    """Rows by trace, by falling quality yield; the best of each column, as printed, is marked, ties together."""
    columns = _columns(aggregate)
    tables: dict[str, list[_Row]] = {}
    for trace, rows in aggregate.groupby("trace", sort=False):
        ranked = rows.sort_values("quality_yield", ascending=False, kind="stable", na_position="last")
        best = {metric.name: _best(ranked, metric) for metric in columns}
        tables[str(trace)] = [
            _Row(
                str(row["policy"]),
                [
                    _Cell(
                        metric.text(row[metric.name], row[f"{metric.name}_half_width"], plus_minus=plus_minus),
                        row["policy"] != _BOUND and metric.text(row[metric.name]) == best[metric.name],
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


def findings(summary: pd.DataFrame) -> list[str]:
    """A sentence per trace: which policy has the highest quality yield, and whether the next is truly behind.

    The comparison is paired by seed, so that it is about the policies and not about the luck of a seed.
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
        if ahead.n < 2:
            sentences.append(f"{first}: {ahead.mean:.4f} more than {ranked[1]} (one seed: no interval).")
        elif ahead.low > 0:
            by = f"{ahead.mean:.4f} ± {ahead.half_width:.4f}"
            sentences.append(f"{first}: {by} more than {ranked[1]} (paired over {ahead.n} seeds).")
        else:
            by = f"{ahead.mean:.4f} ± {ahead.half_width:.4f} over {ahead.n} paired seeds"
            sentences.append(f"{first}, but {ranked[1]} cannot be told from it: the difference is {by}.")
    return sentences


def _data_uri(image: bytes) -> str:
    """An image as an address that holds it. Inside ``<img>`` an SVG can neither run scripts nor load files."""
    kind = "image/png" if image.startswith(b"\x89PNG") else "image/svg+xml"
    return f"data:{kind};base64,{base64.b64encode(image).decode('ascii')}"


def _figures(figures: Sequence[tuple[str, bytes]]) -> tuple[list[dict[str, str]], list[str]]:
    """Figures to show, as many as fit, and the captions of the others."""
    shown: list[dict[str, str]] = []
    left_out: list[str] = []
    room = _MAX_FIGURE_BYTES
    for caption, image in figures:
        uri = _data_uri(image)
        if len(uri) > room:
            left_out.append(caption)
            continue
        room -= len(uri)
        lead, _, rest = caption.partition(". ")
        shown.append({"lead": lead.removesuffix(".") + ".", "rest": rest, "alt": caption, "uri": uri})
    return shown, left_out


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
    figures: Sequence[tuple[str, bytes]],
    notes: Sequence[str] = (),
) -> None:
    """Writes an experiment's report: one HTML file with everything in it, as a whole or not at all.

    Args:
        path: Where to, e.g. ``runs/fig7/report.html``.
        title: What the experiment is called.
        lock: The resolved configuration, as in ``experiment.lock.yaml``.
        summary: One row per run, as in ``summary.csv``.
        aggregate: :func:`argus_sim.metrics.aggregate` of it.
        provenance: What the numbers rest on: ``(what, kind, source)``, the kind one of
            :data:`argus_sim.provenance.KINDS`.
        figures: ``(caption, SVG or PNG bytes)``; the first sentence of a caption is its title, the whole is
            what a screen reader says.
        notes: Warnings and remarks, one paragraph each.
    """
    unknown = {kind for _, kind, _ in provenance} - set(KINDS)
    if unknown:
        raise ValueError(f"unknown kinds of provenance: {', '.join(sorted(unknown))}")
    shown, left_out = _figures(figures)
    source = importlib.resources.files("argus_sim").joinpath("templates/report.html.j2").read_text("utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    # By way of JSON, so that paths, enums and tuples in a configuration come out as plain text and lists.
    config = yaml.safe_dump(json.loads(json.dumps(lock, default=str)), sort_keys=False, allow_unicode=True)
    kinds = [kind for kind in KINDS if any(kind == of for _, of, _ in provenance)]
    seeds = summary.groupby(["policy", "trace"])["seed"].nunique()
    html = environment.from_string(source).render(
        title=title,
        kinds=kinds,
        policies=summary["policy"].nunique(),
        traces=summary["trace"].nunique(),
        seeds=int(seeds.max()) if len(seeds) else 0,
        runs=len(summary),
        requests=_mean_text(summary["arrived"]),
        findings=findings(summary),
        notes=list(notes),
        columns=_columns(aggregate),
        tables=_headline(aggregate, " ± "),
        figures=shown,
        left_out=left_out,
        provenance=list(provenance),
        definitions=[metric for metric in METRICS.values() if metric.name in summary],
        all_runs=_runs(summary),
        config=config,
    )
    write_atomically(path, html.encode("utf-8"))


def _mean_text(values: pd.Series[Any]) -> str:
    mean = float(values.mean())
    return "no" if math.isnan(mean) else f"{mean:,.0f}"
