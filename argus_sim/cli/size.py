"""``argus-sim size``: how many GPUs each policy needs."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from argus_sim.cli import output
from argus_sim.cli.run import find_experiment, kept_when_cut_off, note_differences, progress

if TYPE_CHECKING:
    from rich.table import Table

    from argus_sim.experiment.scene import Scene
    from argus_sim.experiment.sizing import Promise, Sizing

app = typer.Typer()


@app.command(
    epilog=output.examples(
        "argus-sim size sizes.yaml",
        "argus-sim size sizes.yaml --violations 0.5 --quality 0.9 --seeds 5",
        "argus-sim size sizes.yaml --set slo.seconds=8 --out runs/eight-seconds",
    )
)
def size(
    experiment: output.Experiment,
    violations: Annotated[
        float, typer.Option(min=0, max=100, metavar="PERCENT", help="How many requests may violate the SLO.")
    ] = 1.0,
    quality: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="The least quality yield; none is asked for by default."),
    ] = None,
    largest: Annotated[int, typer.Option(min=1, max=100_000, help="Try no more GPUs than this.")] = 512,
    kind: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Of cluster.kinds: how many of this kind, the others as they are."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where the results go; by default runs/NAME-size.")
    ] = None,
    settings: output.Settings = None,
    seeds: output.Seeds = None,
    jobs: output.Jobs = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Keep the runs that are finished, also those for another promise."),
    ] = False,
    as_json: output.Json = False,
    quiet: output.Quiet = False,
) -> None:
    """Find the smallest number of GPUs that keeps a promise, for each policy and trace.

    The promise is one of means over seeds: at most so many violations and, with --quality, at least such a
    quality yield, which is the quality over all requests: nobody keeps it by answering only the easy ones.

    The search begins with the experiment's number, doubles or halves it, then bisects; all sizes face the same
    requests. The answer keeps the promise, and one GPU fewer was simulated too and does not. Between the sizes
    tried (sizes.csv) more GPUs are taken to be no worse, which near the edge may not be so.

    The results are under --out: sizing.csv (the answers), sizes.csv, a figure, and for each size a folder whose
    experiment.lock.yaml argus-sim run can repeat.
    """
    from argus_sim.experiment import Experiment, lockfile, sizing
    from argus_sim.experiment.scene import Scene

    path = find_experiment(experiment)
    changes = [*(settings or []), *([f"replications={seeds}"] if seeds else [])]
    loaded = Experiment.load(path, changes)
    lock = lockfile.read_lock(path)
    note_differences(lock, changed=bool(changes), quiet=quiet)
    promise = sizing.Promise(violations / 100.0, quality)
    folder = out or Path("runs") / f"{loaded.name}-size"
    begun: list[Path] = []
    with kept_when_cut_off(begun, lambda _: "the same command with --resume"), progress(quiet) as meter:

        def more(runs: int, kept: int) -> None:
            begun[:] = [folder]
            meter.more(runs, kept)

        found = sizing.size_experiment(
            loaded,
            promise,
            folder,
            largest=largest,
            kind=kind,
            jobs=jobs or os.cpu_count() or 1,
            resume=resume,
            digests=None if changes else lock.inputs,
            on_more=more,
            on_run=meter.ran,
        )
    _show(Scene.of(loaded), found, promise, largest, kind, as_json=as_json)


def _show(
    scene: Scene, found: Sizing, promise: Promise, largest: int, kind: str | None, *, as_json: bool
) -> None:
    from argus_sim.cli import tables

    basis = tables.basis(scene)
    if as_json:
        output.show_json(
            {
                "experiment": scene.experiment.name,
                "folder": found.folder,
                "promise": {"slo_violation_ratio": promise.violations, "quality_yield": promise.quality},
                "kind": kind,
                "largest": largest,
                "sizing": found.answers,
                "sizes": found.sizes,
                "provenance": basis,
            }
        )
        return
    quality = "" if promise.quality is None else f" and a quality yield of at least {promise.quality:g}"
    what = "GPUs" if kind is None else f"{kind} GPUs"
    output.say(f"The fewest {what} with at most {100 * promise.violations:g} % violations{quality}:")
    output.show(_table(found, what, largest))
    for sentence in _unkept(found):
        output.say(sentence)
    output.say()
    output.say(tables.basis_sentence(basis))
    output.say(
        f"Results: {found.folder / 'sizing.csv'}, and beside it sizes.csv, a figure and a folder for each size."
    )


def _table(found: Sizing, what: str, largest: int) -> Table:
    from argus_sim.metrics import METRICS

    late, good, busy = (METRICS[name] for name in ("slo_violation_ratio", "quality_yield", "utilisation"))
    none = {"violations": f"more than {largest}", "quality": f"none up to {largest}"}
    rows = []
    for answer in found.answers:
        made = answer["on_time_per_gpu_hour"]
        rows.append(
            (
                answer["trace"],
                answer["policy"],
                none[answer["broken"]] if answer["workers"] is None else str(answer["workers"]),
                late.text(answer[late.name], answer[f"{late.name}_half_width"], plus_minus=" ±"),
                late.text(answer[f"{late.name}_with_one_fewer"]),
                good.text(answer[good.name]),
                good.text(answer[f"{good.name}_with_one_fewer"]),
                busy.text(answer[busy.name]),
                "–" if math.isnan(made) else f"{made:,.0f}",
            )
        )
    fewer = "one\nfewer"
    numbers = ("viol.\n%", fewer, "qual.\nyield", fewer, "busy\n%", "on time\n/GPU-h")
    return output.grid(("trace", "policy", what, *numbers), rows, left=2)


def _unkept(found: Sizing) -> Iterator[str]:
    """Of whom no size keeps the promise: what the largest sizes that were tried come to."""
    from argus_sim.metrics import METRICS

    late, good = METRICS["slo_violation_ratio"], METRICS["quality_yield"]
    for answer in found.answers:
        if answer["workers"] is None:
            trace, policy = answer["trace"], answer["policy"]
            tried = [row for row in found.sizes if (row["trace"], row["policy"]) == (trace, policy)]
            came = (
                f"with {row['workers']} {late.text(row[late.name])} % violations and a quality yield of "
                f"{good.text(row[good.name])}"
                for row in tried[-2:]
            )
            yield f"{policy} on {trace}: {', '.join(came)}."
