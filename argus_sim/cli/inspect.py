"""``argus-sim trace`` and ``argus-sim watch``: look into one run, and at an experiment while it runs."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from argus_sim.cli import output
from argus_sim.cli.watch_server import watch_server
from argus_sim.errors import InputError

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import RenderableType

    from argus_sim.experiment import Experiment

app = typer.Typer()

#: A line of these, low to high, draws a series in a row of text.
_BARS = "▁▂▃▄▅▆▇█"
_SPARK = 40


@app.command(epilog=output.examples("argus-sim trace runs/fig7/argus/bursty/1"))
def trace(
    run: Annotated[
        Path,
        typer.Argument(
            metavar="RUN",
            help="The folder of one run: runs/EXP/POLICY/TRACE/SEED, or below a sweep's runs/EXP/POINT.",
        ),
    ],
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Where to; by default trace.json in the run's folder.")
    ] = None,
    as_json: output.Json = False,
    quiet: output.Quiet = False,
) -> None:
    """Write a run in Chrome's trace event format.

    Perfetto (ui.perfetto.dev) and chrome://tracing show its batches, model loads, decisions and faults.
    """
    import pandas as pd

    from argus_sim.files import write_atomically
    from argus_sim.report.chrome_trace import trace_json

    for name in ("outcomes.parquet", "attempts.parquet", "timeline.parquet", "events.json"):
        if not (run / name).is_file():
            raise InputError(f"holds no {name}; a run's folder is runs/EXP/POLICY/TRACE/SEED", where=str(run))
    path = out or run / "trace.json"
    text = trace_json(
        pd.read_parquet(run / "outcomes.parquet"),
        pd.read_parquet(run / "attempts.parquet"),
        pd.read_parquet(run / "timeline.parquet"),
        json.loads((run / "events.json").read_text("utf-8")),
        title=" ".join(run.resolve().parts[-3:]),
    )
    write_atomically(path, text.encode("utf-8"))
    if as_json:
        output.show_json({"file": path, "bytes": path.stat().st_size})
        return
    output.say(str(path))
    output.remark("open it at ui.perfetto.dev; it is read in the browser and sent nowhere", quiet=quiet)


@app.command(
    epilog=output.examples(
        "argus-sim watch runs/fig7", "argus-sim watch runs/fig7 --once", "argus-sim watch http://127.0.0.1:8000"
    )
)
def watch(
    run: Annotated[
        str,
        typer.Argument(
            metavar="RUN",
            help="The folder of an experiment's results, runs/EXP, or of a sweep's point; or the address of a "
            "server that argus-sim serve has started, http://HOST:PORT.",
        ),
    ],
    every_s: Annotated[
        float | None, typer.Option("--every", min=0.1, metavar="S", help="Seconds between looks; 1 by default.")
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="Look once and stop; so does --json.")] = False,
    as_json: output.Json = False,
    quiet: output.Quiet = False,
) -> None:
    """Watch an experiment or a server from another terminal while it runs.

    Of an experiment it shows what the runner has written so far: the runs that are finished, their means, and the
    course of the last one of each policy. Of a server: what its workers do, what waits, what each variant has
    made since the start and lately, and violations look by look. Stops when what it watches has ended.
    """
    if every_s is not None and (once or as_json):
        raise InputError("is between looks, and with --once and --json there is but one", where="--every")
    every_s = every_s or 1.0
    if run.startswith(("http://", "https://")):
        watch_server(run, every_s, once=once, as_json=as_json, quiet=quiet)
    else:
        _watch_folder(Path(run), every_s, once=once, as_json=as_json, quiet=quiet)


def _watch_folder(run: Path, every_s: float, *, once: bool, as_json: bool, quiet: bool) -> None:
    from rich.console import Console
    from rich.live import Live

    from argus_sim.experiment import Experiment
    from argus_sim.experiment.folder import SIZED
    from argus_sim.experiment.lockfile import LOCK
    from argus_sim.experiment.settings import read_yaml

    lock = run / LOCK
    if not lock.is_file():
        raise InputError(f"holds no {LOCK}: no experiment has begun there", where=str(run))
    if SIZED in read_yaml(lock):
        raise InputError("holds the sizes of argus-sim size; watch one of its folders", where=str(run))
    experiment = Experiment.load(lock, to_run=False)
    places = _places(run, experiment)
    if as_json:
        output.show_json(_so_far(run, experiment, places))
        return
    console = Console(highlight=False)
    if once or not console.is_terminal:
        output.show(dashboard(run, experiment, places)[0])
        return
    output.remark("Ctrl-C stops watching, not the experiment", quiet=quiet)
    try:
        with Live(console=console, auto_refresh=False) as live:
            while True:
                shown, ended = dashboard(run, experiment, places)
                live.update(shown, refresh=True)
                if ended:
                    return
                time.sleep(every_s)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


#: Where runs go: the point of a sweep (else ""), its folder and its experiment.
_Place = tuple[str, Path, "Experiment"]


def _places(folder: Path, experiment: Experiment) -> list[_Place]:
    points = [(point.name, folder / point.name, point.experiment) for point in experiment.points(to_run=False)]
    return points or [("", folder, experiment)]


def _concluded(folder: Path) -> bool:
    """Whether what comes last is there: the report, or the table of one point of a sweep."""
    from argus_sim.experiment.lockfile import LOCK

    is_point = (folder.resolve().parent / LOCK).is_file()
    return (folder / ("summary.csv" if is_point else "report.html")).is_file()


def _so_far(folder: Path, experiment: Experiment, places: list[_Place]) -> dict[str, Any]:
    """The summaries of the runs that are finished, and how many there will be."""
    from argus_sim.experiment.folder import summary_in

    runs = [
        (point, summary_in(place / policy.label / config.name / str(seed)))
        for point, place, of in places
        for config in of.traces
        for policy in of.policies
        for seed in of.seeds
    ]
    found: list[dict[str, Any]] = [
        {**({"point": point} if point else {}), **summary} for point, summary in runs if summary is not None
    ]
    ended = len(found) == len(runs) and _concluded(folder)
    return {"experiment": experiment.name, "ended": ended, "runs": len(runs), "finished": found}


#: A policy's label, the summaries of its finished runs, and the folder of the last one.
_Row = tuple[str, list[dict[str, Any]], "Path | None"]


def dashboard(folder: Path, experiment: Experiment, places: list[_Place]) -> tuple[RenderableType, bool]:
    """What there is so far, and whether that is all."""
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.text import Text

    from argus_sim.experiment.folder import summary_in

    tables: list[tuple[str, str, list[_Row], int]] = []
    total = done = 0
    for point, place, of in places:
        for config in of.traces:
            rows: list[_Row] = []
            for policy in of.policies:
                runs = [place / policy.label / config.name / str(seed) for seed in of.seeds]
                finished = {path: summary for path in runs if (summary := summary_in(path)) is not None}
                total, done = total + len(runs), done + len(finished)
                rows.append((policy.label, list(finished.values()), next(reversed(finished), None)))
            tables.append((point, config.name, rows, len(of.seeds)))
    parts: list[RenderableType] = []
    if experiment.sweep is None:
        parts += [part for _, name, rows, seeds in tables for part in (Text(""), _table(name, rows, seeds))]
    else:
        parts += [Text(""), _points(tables)]
    ended = done == total and _concluded(folder)
    state = "ended" if ended else "figures and report" if done == total else "running"
    head = Text.assemble((experiment.name, "bold"), f"  {done} of {total} runs, {state}")
    return Group(head, ProgressBar(total=total, completed=done, width=_SPARK), *parts), ended


def _points(tables: list[tuple[str, str, list[_Row], int]]) -> RenderableType:
    """A line for each trace of each point of a sweep."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("point", no_wrap=True)
    table.add_column("trace", no_wrap=True)
    table.add_column("runs", justify="right")
    table.add_column("highest quality yield so far")
    for point, trace, rows, seeds in tables:
        means = {policy: _mean(found, "quality_yield") for policy, found, _ in rows}
        known = {policy: mean for policy, mean in means.items() if mean is not None}
        best = max(known, key=known.__getitem__, default=None)
        said = "" if best is None else f"{best} {known[best]:.3f}"
        runs = f"{sum(len(found) for _, found, _ in rows)}/{seeds * len(rows)}"
        table.add_row(Text(point), Text(trace), Text(runs), Text(said))
    return table


def _table(trace: str, rows: list[_Row], seeds: int) -> RenderableType:
    import pandas as pd
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column(trace, no_wrap=True)
    for heading in ("runs", "quality\nyield", "violations\n%", "on time\n/min", "p99\ns"):
        table.add_column(heading, justify="right")
    table.add_column("violations over the last run", no_wrap=True)
    means = {policy: _mean(found, "quality_yield") for policy, found, _ in rows}
    for policy, found, last in sorted(rows, key=lambda row: -(means[row[0]] or -1.0)):
        cells = [f"{len(found)}/{seeds}"]
        for name, scale, digits in (
            ("quality_yield", 1, 3),
            ("slo_violation_ratio", 100, 2),
            ("effective_throughput_per_min", 1, 1),
            ("latency_p99_s", 1, 2),
        ):
            value = _mean(found, name)
            cells.append("" if value is None else f"{scale * value:,.{digits}f}")
        spark = "" if last is None else sparkline(pd.read_parquet(last / "timeline.parquet"))
        table.add_row(Text(policy), *map(Text, cells), Text(spark, style="red"))
    return table


def _mean(found: list[dict[str, Any]], name: str) -> float | None:
    values = [run[name] for run in found if run[name] is not None]
    return sum(values) / len(values) if values else None


def sparkline(timeline: pd.DataFrame) -> str:
    """The share of violations over a run, from none (a blank) to all (a full block)."""
    import numpy as np

    width = min(_SPARK, len(timeline))
    part = np.arange(len(timeline)) * width // len(timeline)
    arrived = np.bincount(part, timeline["arrived"], minlength=width)
    missed = np.bincount(part, timeline["arrived"] - timeline["on_time"], minlength=width)
    share = np.divide(missed, arrived, out=np.zeros(width), where=arrived > 0)
    return "".join(" " if s == 0 else _BARS[min(len(_BARS) - 1, int(s * len(_BARS)))] for s in share)
