"""``argus-sim compare`` and ``argus-sim table``: what to make of results that are there."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Hashable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from argus_sim.cli import output
from argus_sim.errors import InputError, did_you_mean

if TYPE_CHECKING:
    import pandas as pd

app = typer.Typer()


@app.command(
    epilog=output.examples(
        "argus-sim compare runs/fig7 runs/twelve",
        "argus-sim compare runs/fig7 --policies argus pac --metric quality_yield",
        "argus-sim compare runs/fitted --traces gentd26 gentd26-fit",
    )
)
def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN [RUN]", help="Folders of results (or their summary.csv), A and B."),
    ],
    policies: Annotated[
        tuple[str, str] | None,
        typer.Option(
            metavar="A B", help="Compare two policies of one run.", autocompletion=output.complete_policies
        ),
    ] = None,
    traces: Annotated[
        tuple[str, str] | None,
        typer.Option(metavar="A B", help="Compare how the policies of one run rank on two traces."),
    ] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="Compare this column of summary.csv; repeatable. Default: the headline's."
        ),
    ] = None,
    confidence: Annotated[float, typer.Option(min=0.5, max=0.9999, help="Of the intervals.")] = 0.95,
    as_json: output.Json = False,
    quiet: output.Quiet = False,
) -> None:
    """Compare two runs, or two policies of a run, seed by seed.

    Both sides faced the same requests under the same seed, so the interval is that of the paired differences
    A - B. A difference whose interval leaves out 0 is marked with *.

    With --traces: two policies are told apart on a trace where that interval leaves out 0, and swapped where both
    traces tell them apart, the other way round.
    """
    from argus_sim.cli.tables import read_summary

    if len(runs) + (policies is not None) + (traces is not None) != 2:
        raise InputError("compare takes two runs, or one run and --policies A B or --traces A B")
    summaries = [read_summary(run) for run in runs]
    if traces is not None:
        _rankings(summaries[0], traces, metric or ["quality_yield"], confidence, as_json)
        return
    if policies is None:
        a, b = summaries
        sides = (str(runs[0]), str(runs[1]))
    else:
        a, b = _of_policies(summaries[0], policies)
        sides = policies
    table = _of_runs(a, b, metric, confidence)
    for note in _not_in_both(a, b):
        output.remark(f"note: {note}", quiet=quiet)
    table["significant"] = table["difference"].abs() > table["half_width"]
    if as_json:
        output.show_json(
            {"a": sides[0], "b": sides[1], "confidence": confidence, "rows": table.to_dict("records")}
        )
        return
    output.say(f"A is {sides[0]}, B is {sides[1]}; * where the {confidence:.4g} interval of A - B leaves out 0")
    _print(table)
    if (table["pairs"] < 2).any():
        output.remark("note: with one common seed there is no interval", quiet=quiet)


def _rankings(
    summary: pd.DataFrame, traces: tuple[str, str], metrics: list[str], confidence: float, as_json: bool
) -> None:
    from argus_sim.metrics.intervals import agreement, ranking

    found = {name: agreement(summary, *traces, name, confidence=confidence) for name in metrics}
    if as_json:
        output.show_json(
            {
                "a": traces[0],
                "b": traces[1],
                "confidence": confidence,
                "rankings": {name: [ranking(summary, t, name).to_dict() for t in traces] for name in metrics},
                "agreement": {name: dataclasses.asdict(got) for name, got in found.items()},
            }
        )
        return
    for name, got in found.items():
        for trace in traces:
            means = ranking(summary, trace, name)
            output.say(f"{name} on {trace}: {', '.join(f'{p} {mean:.4g}' for p, mean in means.items())}")
        told = f"told apart alike {got.same} of {got.pairs} pairs"
        output.say(
            f"Kendall's tau {got.tau:.2f}; {told}, swapped {len(got.swapped)}, undecided {len(got.undecided)}"
        )
        for better, worse in got.swapped:
            output.say(f"  swapped: {better} is better than {worse} on {traces[0]}, and worse on {traces[1]}")


def _of_runs(a: pd.DataFrame, b: pd.DataFrame, wanted: list[str] | None, confidence: float) -> pd.DataFrame:
    from argus_sim.metrics import intervals

    table = intervals.compare(a, b, confidence)
    names = _chosen(wanted, list(dict.fromkeys(table.loc[table["pairs"] > 0, "metric"])))
    return table[table["metric"].isin(names)].reset_index(drop=True)


def _of_policies(summary: pd.DataFrame, policies: tuple[str, str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Two policies' rows as those of one policy in two runs, so that they can be compared like runs."""
    known = list(dict.fromkeys(summary["policy"]))
    for policy in policies:
        if policy not in known:
            raise InputError(f"the run has no policy {policy!r}{did_you_mean(policy, known)}")
    a, b = (summary[summary["policy"] == policy].assign(policy=" - ".join(policies)) for policy in policies)
    return a, b


def _not_in_both(a: pd.DataFrame, b: pd.DataFrame) -> Iterator[str]:
    """What one side has and the other has not, so that the comparison leaves it out: a sentence each."""
    for key, plural in (("policy", "policies"), ("trace", "traces"), ("seed", "seeds")):
        of_a, of_b = dict.fromkeys(a[key]), dict.fromkeys(b[key])
        alone = {
            "A": [str(name) for name in of_a if name not in of_b],
            "B": [str(name) for name in of_b if name not in of_a],
        }
        if any(alone.values()):
            only = "; ".join(f"only in {side}: {', '.join(names)}" for side, names in alone.items() if names)
            common = len(of_a) - len(alone["A"])
            yield f"{common} of {len(of_a | of_b)} {plural} in common; {only}"


def _chosen(wanted: list[str] | None, there: list[str]) -> list[str]:
    from argus_sim.report import HEADLINE

    if not wanted:
        return [name for name in HEADLINE if name in there]
    for name in wanted:
        if name not in there:
            raise InputError(f"no metric {name!r} in both{did_you_mean(name, there)}", where="--metric")
    return wanted


def _print(table: pd.DataFrame) -> None:
    from argus_sim.metrics import METRICS

    def text(row: dict[Hashable, Any], *columns: str) -> str:
        metric = METRICS.get(row["metric"])
        values = [row[column] for column in columns]
        if metric is None:  # a column that the user added
            return " ± ".join(f"{value:.6g}" for value in values if not math.isnan(value))
        return metric.text(*values)

    for (policy, trace), rows in table.groupby(["policy", "trace"], sort=False):
        cells = [
            (
                METRICS[row["metric"]].heading if row["metric"] in METRICS else row["metric"],
                text(row, "a"),
                text(row, "b"),
                text(row, "difference", "half_width"),
                "*" if row["significant"] else "",
            )
            for row in rows.to_dict("records")
        ]
        heading = f"{policy} on {trace}, pairs: {rows['pairs'].max()}"
        output.say()
        output.show(output.grid((heading, "A", "B", "A - B", ""), cells))


@app.command(
    epilog=output.examples(
        "argus-sim table runs/fig7",
        "argus-sim table runs/fig7 --into README.md",
    )
)
def table(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A folder of results, or its summary.csv.")],
    into: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Put the table into this file, between `<!-- NAME table -->` and `<!-- end of NAME table -->`.",
        ),
    ] = None,
    name: Annotated[str | None, typer.Option(help="The NAME of that place; by default the run's folder.")] = None,
    quiet: output.Quiet = False,
) -> None:
    """Print a run's headline table as Markdown, or keep one in a document up to date.

    Of a sweep it is a table for each axis: quality yield, and SLO violations in brackets.
    """
    from argus_sim import metrics
    from argus_sim.cli import tables
    from argus_sim.experiment.lockfile import LOCK
    from argus_sim.experiment.results import Results
    from argus_sim.files import write_atomically

    if name is not None and into is None:
        raise InputError("is the NAME of a place in a document; say with --into in which", where="--name")
    swept = Results.load(run) if run.is_dir() and (run / LOCK).is_file() else None
    if swept is not None and swept.experiment.sweep is not None:
        text = tables.swept_markdown(swept.experiment, swept.summary)
    else:
        text = tables.markdown(metrics.aggregate(tables.read_summary(run)))
    if into is None:
        output.say(text)
        return
    if not into.is_file():
        raise InputError("there is no such file", where=str(into))
    marked = tables.put_between_marks(into.read_text("utf-8"), name or run.resolve().name, text, where=str(into))
    write_atomically(into, marked.encode())
    output.remark(f"put the table of {run} into {into}", quiet=quiet)
