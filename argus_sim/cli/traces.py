"""``argus-sim traces``: the traces there are, what one looks like, and making one."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from argus_sim.cli import output
from argus_sim.cli.output import duration
from argus_sim.errors import InputError

if TYPE_CHECKING:
    from argus_sim.trace import Trace
    from argus_sim.trace.file import Summary

app = typer.Typer(no_args_is_help=True, help="List, show, generate and import traces: when images are asked for.")

#: Levels of the curve that ``show`` draws.
_BLOCKS = " ▁▂▃▄▅▆▇█"

Name = Annotated[
    str,
    typer.Argument(
        metavar="NAME", help="A shipped trace, or a .csv or .parquet file.", autocompletion=output.complete_traces
    ),
]


@app.command("list", epilog=output.examples("argus-sim traces list", "argus-sim traces list --json"))
def list_traces(as_json: output.Json = False, quiet: output.Quiet = False) -> None:
    """List the traces that come with argus-sim, and the fitted models that traces are made from."""
    from argus_sim.trace import shipped_models, shipped_traces

    traces = [_read(name) for name in (*shipped_traces(), *shipped_models())]
    if as_json:
        output.show_json([_head(trace.summary()) for trace in traces])
        return
    for trace in traces:
        output.say(f"{trace.name}: {len(trace):,} images in {duration(trace.duration_s)}; {_kinds(trace)}")


def _read(name: str) -> Trace:
    from argus_sim.trace import Trace, find_trace, is_model
    from argus_sim.trace.arrivals import generate_file

    path = find_trace(name)
    return generate_file(path) if is_model(path) else Trace.read(path)


def _kinds(trace: Trace) -> str:
    return ", ".join(part.kind + (f" ({part.covers})" if part.covers != "*" else "") for part in trace.provenance)


def _head(summary: Summary) -> dict[str, Any]:
    header = summary.header
    return {
        "name": header.name,
        "count": summary.count,
        "duration_s": header.duration_s,
        "provenance": [part.model_dump() for part in header.provenance],
        "transformations": header.transformations,
        "digest": summary.digest,
    }


@app.command(epilog=output.examples("argus-sim traces show bursty", "argus-sim traces show my_trace.csv"))
def show(name: Name, as_json: output.Json = False, quiet: output.Quiet = False) -> None:
    """Show a trace: its rate over time, its statistics, and where it comes from."""
    trace = _read(name)
    stats = trace.stats()
    if as_json:
        output.show_json({**_head(trace.summary()), "stats": stats})
        return
    output.say(f"{trace.name}: {len(trace):,} images in {duration(trace.duration_s)}")
    _, per_min = trace.rate(trace.duration_s / 72)
    top = float(per_min.max())
    output.say("".join(_BLOCKS[round(rate / top * (len(_BLOCKS) - 1))] for rate in per_min.tolist()))
    output.say(f"0 to {top:,.1f} images/min; {duration(trace.duration_s / 72)} per character")
    output.say()
    _print(stats)
    output.say()
    for part in trace.provenance:
        covers = f" ({part.covers})" if part.covers != "*" else ""
        derived = f"; derived: {part.derived}" if part.derived else ""
        output.say(f"{part.kind}{covers}: {part.source}{derived}")
    for change in trace.transformations:
        output.say(f"then: {change}")


@app.command(
    epilog=output.examples("argus-sim traces stats bursty", "argus-sim traces stats my_trace.csv --json")
)
def stats(
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE",
            help="A .csv or .parquet file, or a shipped trace.",
            autocompletion=output.complete_traces,
        ),
    ],
    as_json: output.Json = False,
    quiet: output.Quiet = False,
) -> None:
    """Print the statistics of a trace: rates, burstiness, autocorrelation.

    The file is read in batches: memory does not grow with the number of arrivals.
    """
    from argus_sim.trace import find_trace, is_model
    from argus_sim.trace.stats import statistics_of_file

    path = find_trace(file)
    found = _read(file).stats() if is_model(path) else statistics_of_file(path)
    if as_json:
        output.show_json(found)
    else:
        _print(found)


def _print(stats: dict[str, float]) -> None:
    for key, value in stats.items():
        output.say(f"{key:<26}{value:>16,.6g}" if key != "count" else f"{key:<26}{value:>16,.0f}")


@app.command(epilog=output.examples("argus-sim traces generate traces/bursty.yaml --out bursty.parquet"))
def generate(
    spec: Annotated[
        Path, typer.Argument(metavar="SPEC", help="YAML: name, seed and arrivals (see traces/*.yaml).")
    ],
    out: Annotated[Path, typer.Option(metavar="FILE", help="Where to: .parquet or .csv.")],
    as_json: output.Json = False,
    quiet: output.Quiet = False,
) -> None:
    """Generate a trace from its specification; the same file always gives the same trace."""
    from argus_sim.trace.arrivals import generate_file

    trace = generate_file(spec)
    trace.save(out)
    _wrote(trace.summary(), out, as_json, quiet)


@app.command(
    "import",
    epilog=output.examples(
        "argus-sim traces import azure-llm-2023 AzureLLMInferenceTrace_conv.csv --out conv.parquet",
        "argus-sim traces import csv log.csv --out log.parquet -o time_column=ts -o unit=ms -o from_first=true",
    ),
)
def import_(
    format: Annotated[
        str,
        typer.Argument(
            metavar="FORMAT",
            help="One of those that 'argus-sim traces formats' lists.",
            autocompletion=output.complete_trace_formats,
        ),
    ],
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The file as published.")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="Where to: .parquet or .csv.")],
    options: output.Options = [],  # noqa: B006 - typer copies it
    seed: Annotated[int, typer.Option(min=0, help="For arrival times that the format does not record.")] = 0,
    as_json: output.Json = False,
    quiet: output.Quiet = False,
) -> None:
    """Make a trace from a public data set, in the format it is published in."""
    from argus_sim.importers import import_file

    _wrote(import_file(format, file, out, seed=seed, **output.key_values(options)), out, as_json, quiet)


def _wrote(summary: Summary, out: Path, as_json: bool, quiet: bool) -> None:
    header = summary.header
    output.remark(f"wrote {out}: {summary.count:,} images in {duration(header.duration_s)}", quiet=quiet)
    if as_json:
        output.show_json({**_head(summary), "file": out})


@app.command(
    epilog=output.examples(
        "argus-sim traces fit conv.parquet --out conv-model.yaml",
        "argus-sim traces generate conv-model.yaml --out like-conv.parquet",
    )
)
def fit(
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="A trace: .csv, .parquet, or a shipped one; import it first.")
    ],
    out: Annotated[Path, typer.Option(metavar="FILE", help="The model, as YAML.")],
    name: Annotated[str | None, typer.Option(help="Its name; by default the file's.")] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Steps of the rate; by default the fewest that reproduce the trace.")
    ] = None,
    harmonics: Annotated[
        int | None,
        typer.Option(
            min=1, help="A Fourier series of this many harmonics instead of steps: the same every period."
        ),
    ] = None,
    period_s: Annotated[float | None, typer.Option(help="Of the first harmonic; a day by default.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Simulations to judge the model by.")] = 5,
    as_json: output.Json = False,
    quiet: output.Quiet = False,
) -> None:
    """Fit a compact model to a trace, and say how well it reproduces the trace.

    The model is a YAML file for `traces generate` and for `file:` in an experiment, where each seed gets arrivals
    of its own.
    """
    from argus_sim.trace.fit import Measures, judge, write_model
    from argus_sim.trace.fit import fit as fitted

    if out.suffix not in (".yaml", ".yml"):
        raise InputError(f"a model is a .yaml file, found {str(out)!r}", where="--out")
    trace = _read(file)
    model = fitted(trace, steps=steps, harmonics=harmonics, period_s=period_s)
    quality = judge(model, Measures.of(trace.arrival_s, trace.duration_s), range(seeds))
    write_model(out, name or out.stem, model, trace, quality)
    output.remark(f"wrote {out}: {model.described()}", quiet=quiet)
    found = {**dataclasses.asdict(quality), "worst": quality.worst}
    if as_json:
        output.show_json({"file": out, "steps": len(model.points), **found})
        return
    output.say(f"{'':<26}{'recorded':>16}{'fitted':>16}")
    for key, value in quality.recorded.items():
        output.say(f"{key:<26}{value:>16,.6g}{quality.fitted[key]:>16,.6g}")
    for key in ("acf_difference", "acf_difference_mean", "ks_gaps"):
        output.say(f"{key:<26}{'':>16}{found[key]:>16,.4g}")


@app.command(epilog=output.examples("argus-sim traces formats", "argus-sim traces formats --json"))
def formats(as_json: output.Json = False, quiet: output.Quiet = False) -> None:
    """List the public formats that can be imported, and their options."""
    from argus_sim.cli.check import type_of
    from argus_sim.importers import FORMATS

    found: list[dict[str, Any]] = [
        {
            "name": name,
            "description": kind.description,
            "source": kind.source,
            "licence": kind.licence,
            "options": [
                {
                    "name": key,
                    "type": type_of(field),
                    "default": field.get("default"),
                    "description": field.get("description", ""),
                }
                for key, field in kind.model_json_schema().get("properties", {}).items()
            ],
        }
        for name, kind in FORMATS.items()
    ]
    if as_json:
        output.show_json(found)
        return
    for format in found:
        output.say(f"{format['name']}: {format['description']}")
        output.say(f"    {format['source']}; licence: {format['licence']}")
        for o in format["options"]:
            output.say(f"    -o {o['name']}={o['default']}  ({o['type']})  {o['description']}")
