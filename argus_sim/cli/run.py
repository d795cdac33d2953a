"""``argus-sim run``: run an experiment and say what came of it."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Iterator
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from argus_sim.cli import output
from argus_sim.errors import InputError, did_you_mean

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from argus_sim.experiment.lockfile import Lock
    from argus_sim.experiment.results import Results
    from argus_sim.experiment.runner import Run
    from argus_sim.experiment.scene import Scene

app = typer.Typer()

#: Seconds between lines of progress where nobody watches a bar.
_LINE_EVERY_S = 10.0


@app.command(
    epilog=output.examples(
        "argus-sim run experiments/fig7.yaml",
        "argus-sim run fig7 --set cluster.workers=12 --seeds 2 --out runs/twelve",
        "argus-sim run runs/fig7/experiment.lock.yaml --out runs/again",
    )
)
def run(
    experiment: output.Experiment,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where the results go; by default runs/NAME.")
    ] = None,
    settings: output.Settings = None,
    seeds: output.Seeds = None,
    jobs: output.Jobs = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Keep the runs that are finished and do the others.")
    ] = False,
    as_json: output.Json = False,
    quiet: output.Quiet = False,
) -> None:
    """Run an experiment and print its headline numbers.

    Each policy replays each trace with each seed. The results are under --out: a folder for each run,
    summary.csv, figures, report.html, and experiment.lock.yaml, from which the same bytes come again.
    Results that are there already are replaced, unless --resume is given.
    """
    begun: list[Path] = []
    with kept_when_cut_off(begun, _command_to_go_on):
        scene, results = _run(experiment, out, settings or [], seeds, jobs, resume, quiet, begun)
    _conclude(scene, results, as_json=as_json)


def _run(
    name_or_path: str,
    out: Path | None,
    settings: list[str],
    seeds: int | None,
    jobs: int | None,
    resume: bool,
    quiet: bool,
    begun: list[Path],
) -> tuple[Scene, Results]:
    """Run with progress; ``begun`` gets the folder as soon as there is something in it to go on from."""
    from argus_sim.experiment import Experiment, lockfile, runner
    from argus_sim.experiment.basis import rescaled
    from argus_sim.experiment.scene import Scene

    path = find_experiment(name_or_path)
    changes = [*settings, *([f"replications={seeds}"] if seeds else [])]
    experiment = Experiment.load(path, changes)
    for remark in rescaled(experiment):
        output.remark(f"note: {remark}", quiet=quiet)
    folder = out or Path("runs") / experiment.name
    lock = lockfile.read_lock(path)
    note_differences(lock, changed=bool(changes), quiet=quiet)
    with progress(quiet) as meter:

        def start(total: int, done: int) -> None:
            begun.append(folder)
            meter.start(total, done)

        results = runner.run_experiment(
            experiment,
            folder,
            jobs=jobs,
            resume=resume,
            digests=None if changes else lock.inputs,
            on_start=start,
            on_run=meter.ran,
        )
    return Scene.of(experiment), results


def find_experiment(name_or_path: str) -> Path:
    """The file of a shipped experiment, or the path itself where it has a suffix or is a file.

    Raises:
        InputError: Neither a path nor a shipped name.
    """
    path = Path(name_or_path)
    if path.suffix or path.is_file():
        return path
    shipped = output.shipped_experiments()
    if name_or_path not in shipped:
        raise InputError(
            f"no experiment {name_or_path!r}: neither a file nor shipped{did_you_mean(name_or_path, shipped)}"
        )
    return shipped[name_or_path]


def note_differences(lock: Lock, *, changed: bool, quiet: bool) -> None:
    """A lock file promises the same bytes only from the same libraries."""
    from argus_sim.experiment import lockfile

    now = lockfile.versions()
    other = [
        f"{name} {was} (here {now.get(name)})" for name, was in lock.versions.items() if now.get(name) != was
    ]
    if other:
        output.remark(f"note: made with {', '.join(other)}; results may differ in their bytes", quiet=quiet)
    if lock.inputs and changed:
        output.remark("note: with changes to a lock file, its inputs may have changed as well", quiet=quiet)


@contextmanager
def kept_when_cut_off(begun: list[Path], go_on: Callable[[Path], str]) -> Iterator[None]:
    """Whoever is cut off in here says how to go on with what was ``begun``, and ends."""

    def kept() -> str:
        return f"finished runs are kept. To go on: {go_on(begun[0])}" if begun else "nothing was written"

    try:
        with output.ended_by_signals():
            yield
    except KeyboardInterrupt:
        output.remark(f"interrupted; {kept()}")
        raise typer.Exit(130) from None
    except BrokenProcessPool:
        output.remark(f"error: a process was killed, perhaps for want of memory (see --jobs); {kept()}")
        raise typer.Exit(1) from None


def _command_to_go_on(folder: Path) -> str:
    from argus_sim.experiment.lockfile import LOCK

    return f"argus-sim run {shlex.quote(str(folder / LOCK))} --out {shlex.quote(str(folder))} --resume"


# -- progress ----------------------------------------------------------------------------------------------


class _Meter:
    """How far a run is, as text."""

    def __init__(self) -> None:
        self.total = self.done = self.kept = self.requests = 0
        self.grows = False
        self.started_s = time.monotonic()

    def start(self, total: int, done: int) -> None:
        self.total, self.done, self.kept = total, done, done
        self.started_s = time.monotonic()

    def more(self, total: int, done: int) -> None:
        """So many runs beside those before; nobody knows yet how many there will be."""
        self.grows = True
        self.total, self.done, self.kept = self.total + total, self.done + done, self.kept + done

    def ran(self, run: Run, summary: dict[str, Any]) -> None:
        self.done += 1
        self.requests += int(summary["arrived"])

    def text(self) -> str:
        if self.total and self.done == self.total:
            return "figure" if self.grows else "figures and report"
        elapsed_s, ended = time.monotonic() - self.started_s, self.done - self.kept
        if not ended:
            return "simulating"
        rate = f"{self.requests / elapsed_s:,.0f} requests/s"
        if self.grows:
            return f"{rate}, more sizes to come"
        minutes, seconds = divmod(round(elapsed_s / ended * (self.total - self.done)), 60)
        return f"{rate}, about {minutes}:{seconds:02d} left"


class _Bar(_Meter):
    """A bar that moves."""

    def __init__(self, bar: Progress) -> None:
        super().__init__()
        self._bar = bar
        self._task: TaskID = bar.add_task("loading", total=None)

    def start(self, total: int, done: int) -> None:
        super().start(total, done)
        self._update()

    def ran(self, run: Run, summary: dict[str, Any]) -> None:
        super().ran(run, summary)
        self._update()

    def _update(self) -> None:
        self._bar.update(self._task, total=self.total, completed=self.done, description=self.text())


class _Lines(_Meter):
    """A line now and then, for logs."""

    def __init__(self) -> None:
        super().__init__()
        self._last_s = time.monotonic()

    def ran(self, run: Run, summary: dict[str, Any]) -> None:
        super().ran(run, summary)
        now_s = time.monotonic()
        if now_s - self._last_s >= _LINE_EVERY_S or self.done == self.total:
            self._last_s = now_s
            output.remark(f"{self.done} of {self.total} runs; {self.text()}")


@contextmanager
def progress(quiet: bool) -> Iterator[_Meter]:
    """A meter of runs on stderr: a bar for who watches, else lines."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    if quiet:
        yield _Meter()
    elif not console.is_terminal:
        yield _Lines()
    else:
        columns = (MofNCompleteColumn(), BarColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
        with Progress(*columns, console=console, transient=True) as bar:
            yield _Bar(bar)


# -- conclusion --------------------------------------------------------------------------------------------


def _conclude(scene: Scene, results: Results, *, as_json: bool) -> None:
    from argus_sim import report
    from argus_sim.cli import tables

    if scene.experiment.sweep is not None:
        _conclude_sweep(scene, results, as_json=as_json)
        return
    peak = tables.peak(results.folder, results.summary)
    basis = tables.basis(scene)
    found = report.findings(results.summary)
    if as_json:
        output.show_json(
            {
                "experiment": scene.experiment.name,
                "folder": results.folder,
                "results": results.aggregate.to_dict("records"),
                "peak": peak.to_dict("records"),
                "findings": found,
                "provenance": basis,
            }
        )
        return
    output.show(report.terminal_table(results.aggregate))
    output.say()
    output.say("At the peak of each trace (where its load over 30 min is at least 90 % of the highest):")
    output.show(tables.peak_table(peak, results.aggregate))
    output.say()
    for sentence in found:
        output.say(sentence)
    output.say(tables.basis_sentence(basis))
    output.say(f"Results: {results.folder / 'report.html'}, and beside it the figures, summary.csv and all runs.")


def _conclude_sweep(scene: Scene, results: Results, *, as_json: bool) -> None:
    from argus_sim.cli import tables

    if as_json:
        output.show_json(
            {
                "experiment": scene.experiment.name,
                "folder": results.folder,
                "runs": results.summary.to_dict("records"),
                "provenance": tables.basis(scene),
            }
        )
        return
    output.say("Quality yield / SLO violations (%), means over seeds:")
    for trace, table in tables.axis_tables(scene.experiment, results.summary):
        output.say()
        output.say(f"On {trace}:")
        output.show(table)
    output.say()
    output.say(tables.basis_sentence(tables.basis(scene)))
    output.say(f"Results: {results.folder / 'report.html'}, and beside it a folder for each point of the sweep.")
