"""How far a simulation is from the live run of the same requests: a table, and a page with Q-Q plots."""

from __future__ import annotations

import base64
import importlib.resources
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import numpy as np
from matplotlib.figure import Figure

from argus_sim import metrics
from argus_sim.domain import Outcome
from argus_sim.files import write_atomically
from argus_sim.metrics import METRICS, Interval, interval
from argus_sim.record import Attempts, Floats, RunRecord
from argus_sim.report.plot_style import embed, head, styled

if TYPE_CHECKING:
    from argus_sim.live.drift import Drift
    from argus_sim.live.scoring import Scored

#: What is compared.
COMPARED = (
    "effective_throughput_per_min",
    "slo_violation_ratio",
    "latency_mean_s",
    "latency_p50_s",
    "latency_p90_s",
    "latency_p99_s",
    "relative_quality",
    "quality_yield",
)
#: Share of the images that another variant made: half the summed difference of the shares, in [0, 1].
MIX = "level_mix_distance"


@dataclass(frozen=True)
class Row:
    """One metric of both runs.

    Attributes:
        error: ``live / simulated - 1``; NaN where nothing can be divided by. Of the level mix, the distance.
    """

    metric: str
    simulated: float
    live: float
    error: float

    @property
    def difference(self) -> float:
        return self.live - self.simulated


def compare(live: RunRecord, simulated: RunRecord) -> list[Row]:
    """Both runs' metrics, and how far apart they are."""
    of_live, of_simulated = metrics.summarise(live), metrics.summarise(simulated)
    rows = [_row(name, float(of_simulated[name]), float(of_live[name])) for name in COMPARED]
    shares = mix(live, simulated)
    distance = sum(abs(a - b) for a, b in shares.values()) / 2 if shares else math.nan
    return [*rows, Row(MIX, 0.0, distance, distance)]


def _row(metric: str, simulated: float, live: float) -> Row:
    if simulated == live:
        return Row(metric, simulated, live, 0.0)
    return Row(metric, simulated, live, live / simulated - 1 if simulated else math.nan)


def mix(live: RunRecord, simulated: RunRecord) -> dict[str, tuple[float, float]]:
    """Variant -> its share of the images, simulated and live; those that made any."""

    def shares(record: RunRecord) -> dict[str, float]:
        made = record.variant[(record.outcome <= Outcome.LATE) & (record.variant >= 0)]
        counts = np.bincount(made, minlength=len(record.variants))
        return {
            name: n / max(len(made), 1) for name, n in zip(record.variants, counts.tolist(), strict=True) if n
        }

    a, b = shares(simulated), shares(live)
    return {name: (a.get(name, 0.0), b.get(name, 0.0)) for name in {**a, **b}}


def counted(record: RunRecord, first: int, begin_s: float) -> RunRecord:
    """Without the first requests, which were only there to warm up: what remains, from ``begin_s`` on."""
    if first == 0:
        return record
    columns = {
        field.name: getattr(record, field.name)[first:]
        for field in fields(record)
        if isinstance(getattr(record, field.name), np.ndarray)
    }
    shorter_s = record.duration_s - begin_s
    return replace(record, duration_s=shorter_s, attempts=Attempts.none(), **columns)


def latency_s(record: RunRecord) -> Floats:
    """Of what was finished, ascending."""
    done = record.outcome <= Outcome.LATE
    latency: Floats = np.sort(record.finish_s[done] - record.arrival_s[done])
    return latency


@dataclass(frozen=True)
class Twin:
    """A live run and the simulation of the same requests.

    Attributes:
        live: By the clock whose comparison counts.
        at_client: By the client's clock, from due to read.
        at_arrivals: The simulation at the very times at which the live run's requests arrived, if it was made.
        jittered: Simulations in which other requests were as late.
        drift: What became of the machine's pace, if that was measured.
        scored: What images were rated, if any were.
    """

    seed: int
    simulated: RunRecord
    live: RunRecord
    at_client: RunRecord
    http: dict[str, float]
    at_arrivals: RunRecord | None = None
    jittered: tuple[RunRecord, ...] = ()
    drift: Drift | None = None
    scored: Scored | None = None

    def rows(self) -> list[tuple[Row, Row]]:
        """The comparison that counts, and beside it that with the client's clock."""
        return list(zip(compare(self.live, self.simulated), compare(self.at_client, self.simulated), strict=True))


def sensitivity(twin: Twin) -> list[tuple[str, float, float, float, float]]:
    """How much of an error is due to when requests arrived, of each metric.

    Returns:
        Metric; the error; that against the simulation at the live run's times of arrival; and the least and the
        most by which simulations with jittered arrivals differ from the one without.
    """
    if twin.at_arrivals is None:
        return []
    same = compare(twin.live, twin.at_arrivals)
    copies = [compare(record, twin.simulated) for record in twin.jittered]
    found = []
    for index, (row, _) in enumerate(twin.rows()):
        scatter = [copy[index].error for copy in copies]
        low, high = (min(scatter), max(scatter)) if scatter else (math.nan, math.nan)
        found.append((row.metric, row.error, same[index].error, low, high))
    return found


def sensitivity_table(twin: Twin) -> list[list[str]]:
    """:func:`sensitivity` in words."""

    def text(share: float) -> str:
        return "–" if math.isnan(share) else f"{100 * share:+.2f} %"

    return [
        [named(metric), text(error), text(same), f"{text(low)} to {text(high)}"]
        for metric, error, same, low, high in sensitivity(twin)
    ]


def drift_table(twin: Twin) -> list[list[str]]:
    """Live against simulations by whose times the workers had: metric, and the errors."""
    if twin.drift is None:
        return []
    records = {"the profile": twin.simulated, **twin.drift.simulated}
    compared = [compare(twin.live, record) for record in records.values()]
    return [
        [
            named(rows[0].metric),
            *(error_text(row) if row.metric != MIX else f"{100 * row.error:.2f} %" for row in rows),
        ]
        for rows in zip(*compared, strict=True)
        if rows[0].metric
        in ("latency_mean_s", "latency_p50_s", "latency_p90_s", "latency_p99_s", "slo_violation_ratio")
    ]


def errors(twins: Sequence[Twin]) -> dict[str, Interval]:
    """Metric -> the mean error over several runs, and its interval."""
    by_metric: dict[str, list[float]] = {}
    for twin in twins:
        for row, _ in twin.rows():
            by_metric.setdefault(row.metric, []).append(row.error)
    return {metric: interval(values) for metric, values in by_metric.items()}


def plain(twins: Sequence[Twin]) -> dict[str, Any]:
    """The comparison as JSON has it; NaN where something is undefined."""

    def row_of(row: Row) -> dict[str, Any]:
        return {"simulated": row.simulated, "live": row.live, "difference": row.difference, "error": row.error}

    return {
        "errors": {
            metric: {"mean": got.mean, "low": got.low, "high": got.high, "n": got.n}
            for metric, got in errors(twins).items()
        },
        "runs": [
            {
                "seed": twin.seed,
                "requests": len(twin.simulated),
                "metrics": {row.metric: row_of(row) for row, _ in twin.rows()},
                "at_client": {row.metric: row_of(row) for _, row in twin.rows()},
                "level_mix": {
                    name: {"simulated": a, "live": b} for name, (a, b) in mix(twin.live, twin.simulated).items()
                },
                "http": twin.http,
                **_extra(twin),
            }
            for twin in twins
        ],
    }


def _extra(twin: Twin) -> dict[str, Any]:
    """What was asked for beside the comparison."""
    told: dict[str, Any] = {}
    if twin.at_arrivals is not None:
        found = sensitivity(twin)
        told["error_at_live_arrivals"] = {metric: same for metric, _, same, _, _ in found}
        spread = {metric: {"low": low, "high": high} for metric, _, _, low, high in found}
        told["jittered"] = {"copies": len(twin.jittered), "errors": spread}
    if twin.drift is not None:
        simulated = {
            whose: {row.metric: row.error for row in compare(twin.live, record)}
            for whose, record in twin.drift.simulated.items()
        }
        told["drift"] = {**twin.drift.plain(), "errors_with_times_of": simulated}
    if twin.scored is not None:
        told["scored"] = twin.scored.plain()
    return told


def table(twin: Twin) -> list[list[str]]:
    """The comparison in words: metric, simulated, live, error, and live and error by the client's clock."""
    cells = []
    for row, client in twin.rows():
        if row.metric == MIX:
            texts = ["", f"{100 * row.live:.2f}", "", f"{100 * client.live:.2f}", ""]
            cells.append(["images by another variant, %", *texts])
            continue
        metric = METRICS[row.metric]
        texts = [metric.text(row.simulated)]
        for of in (row, client):
            texts += [metric.text(of.live), error_text(of)]
        cells.append([metric.heading, *texts])
    return cells


def error_text(row: Row) -> str:
    """The error in per cent; of a share, the difference in points as well.

    >>> error_text(Row("latency_mean_s", 4.0, 4.1, 4.1 / 4.0 - 1))
    '+2.50 %'
    >>> error_text(Row("slo_violation_ratio", 0.20, 0.21, 0.05))
    '+5.00 % (+1.00)'
    """
    if math.isnan(row.error) and math.isnan(row.difference):
        return "–"
    text = "–" if math.isnan(row.error) else f"{100 * row.error:+.2f} %"
    metric = METRICS[row.metric]
    return text if metric.unit != "%" else f"{text} ({metric.scale * row.difference:+.2f})"


# -- the page ----------------------------------------------------------------------------------------------


@styled
def figure_quantiles(twins: Sequence[Twin]) -> Figure:
    """Quantiles of the latency, live over simulated (a Q-Q plot), and the mix of variants, of the first run."""
    figure = Figure(figsize=(9.5, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.0, 1.0))
    head(
        figure,
        "Live over simulated",
        "Left: quantiles of the latency, on the diagonal where both agree. Right: what made the images.",
    )
    top = 0.0
    clocks = [("client's clock", "#B8BEC6", [twin.at_client for twin in twins])]
    if twins[0].live is not twins[0].at_client:
        clocks.append(("server's clock", "#D55E00", [twin.live for twin in twins]))
    for name, colour, records in clocks:
        for index, (twin, record) in enumerate(zip(twins, records, strict=True)):
            a, b = latency_s(twin.simulated), latency_s(record)
            if len(a) and len(b):
                share = np.linspace(0.0, 1.0, min(len(a), len(b), 400))
                x, y = np.quantile(a, share), np.quantile(b, share)
                left.plot(x, y, ".", ms=3, color=colour, label=name if index == 0 else None)
                top = max(top, float(x[-1]), float(y[-1]))
    left.plot([0, top], [0, top], color="#444444", lw=0.8)
    left.set_xlabel("simulated latency, s")
    left.set_ylabel("live latency, s")
    if top:
        left.legend(loc="upper left")
    shares = mix(twins[0].live, twins[0].simulated)
    at = np.arange(len(shares))
    for offset, index, name, colour in ((-0.2, 0, "simulated", "#0072B2"), (0.2, 1, "live", "#D55E00")):
        right.barh(at + offset, [100 * pair[index] for pair in shares.values()], 0.38, label=name, color=colour)
    right.set_yticks(at, list(shares))
    right.set_ylim(max(len(shares), 4) - 0.5, -0.5)
    right.set_xlabel("share of the images, %")
    if shares:
        right.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    return figure


def write_page(
    path: Path, title: str, twins: Sequence[Twin], facts: Sequence[tuple[str, str]], notes: Sequence[str]
) -> None:
    """One HTML file with everything in it, written as a whole or not at all."""
    template = (
        importlib.resources.files("argus_sim.report").joinpath("templates", "fidelity.html.j2").read_text("utf-8")
    )
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    html = environment.from_string(template).render(
        title=title,
        facts=facts,
        notes=notes,
        figure=as_uri(embed(figure_quantiles(twins))),
        tables=[(twin.seed, table(twin), extra_tables(twin), words(twin)) for twin in twins],
        errors=[(named(metric), interval_text(got)) for metric, got in errors(twins).items()]
        if len(twins) > 1
        else [],
    )
    write_atomically(path, html.encode("utf-8"))


def named(metric: str) -> str:
    """What a metric of the comparison is called."""
    return METRICS[metric].heading if metric in METRICS else "images by another variant"


def as_uri(image: bytes) -> str:
    """An SVG or PNG as an address that holds it. In ``<img>`` an SVG can neither run scripts nor load files."""
    kind = "image/png" if image.startswith(b"\x89PNG") else "image/svg+xml"
    return f"data:{kind};base64,{base64.b64encode(image).decode('ascii')}"


def interval_text(got: Interval) -> str:
    """An error with its interval, in per cent."""
    if math.isnan(got.mean):
        return "–"
    text = f"{100 * got.mean:+.2f} %"
    return text if math.isnan(got.half_width) else f"{text} ± {100 * got.half_width:.2f}"


def extra_tables(twin: Twin) -> list[tuple[tuple[str, ...], list[list[str]]]]:
    """Tables of what was asked for beside the comparison: headings and rows."""
    tables: list[tuple[tuple[str, ...], list[list[str]]]] = []
    if twin.at_arrivals is not None:
        headings = (
            "error of live",
            "simulated",
            "simulated at live's arrivals",
            f"{len(twin.jittered)} jittered copies",
        )
        tables.append((headings, sensitivity_table(twin)))
    if twin.drift is not None:
        tables.append(
            (("error, workers having the times of", "the profile", *twin.drift.simulated), drift_table(twin))
        )
    return tables


def words(twin: Twin) -> list[tuple[str, str]]:
    """What else is known of a run."""
    told = [(f"{what}, median / p99", value) for what, value in http_words(twin.http)]
    for part in (twin.drift, twin.scored):
        told += part.words() if part is not None else []
    return told


def http_words(http: Mapping[str, float]) -> list[tuple[str, str]]:
    """What HTTP and the client cost, median and 99th percentile, in real milliseconds."""
    names = (
        ("sent after due", "send_lag"),
        ("on the way and in the server's HTTP", "round_trip"),
        ("arrived after due, by the server's clock", "arrival_lag"),
    )
    return [
        (words, f"{1e3 * http[f'{key}_p50_s']:.2f} / {1e3 * http[f'{key}_p99_s']:.2f} ms")
        for words, key in names
        if not math.isnan(http[f"{key}_p50_s"])
    ]
