"""Running a whole experiment: all its runs, in parallel, resumable, and the results beside them.

What is left under the folder (see the documentation of the layout in the README): a folder for each run with
``outcomes.parquet``, ``attempts.parquet``, ``timeline.parquet``, ``events.json`` and ``summary.json``; what
:mod:`argus_sim.experiment.conclude` makes from all of them; and ``experiment.lock.yaml``, from which the same
bytes come again.
Nothing that is written depends on the clock, the machine or the number of processes.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from threading import Thread
from typing import Any

import pandas as pd

from argus_sim import metrics
from argus_sim.errors import InputError
from argus_sim.experiment import cache_setup, foreign
from argus_sim.experiment.config import Experiment
from argus_sim.experiment.folder import digest_of, prepared, summary_in
from argus_sim.experiment.lockfile import LOCK, check_inputs, dump_lock, make_lock
from argus_sim.experiment.rehearsal import rehearse
from argus_sim.experiment.results import Results
from argus_sim.experiment.scene import Scene, forget
from argus_sim.experiment.sections import PolicyConfig, TraceConfig
from argus_sim.experiment.simulate import hindsight, simulate
from argus_sim.files import write_atomically
from argus_sim.metrics.cache import cache_timeline, summarise_cache
from argus_sim.policies import registry
from argus_sim.record import RunRecord
from argus_sim.trace import Trace


@dataclass(frozen=True)
class Run:
    """One policy on one trace with one seed."""

    policy: PolicyConfig
    trace: TraceConfig
    seed: int

    def folder(self, out: Path) -> Path:
        return out / self.policy.label / self.trace.name / str(self.seed)


def runs_of(experiment: Experiment) -> list[Run]:
    """All runs, those on the same arrivals next to each other."""
    return [
        Run(policy, trace, seed)
        for trace in experiment.traces
        for seed in experiment.seeds
        for policy in experiment.policies
    ]


def run_experiment(
    experiment: Experiment,
    out: Path,
    *,
    jobs: int | None = None,
    resume: bool = False,
    report: bool = True,
    digests: dict[str, str] | None = None,
    on_start: Callable[[int, int], None] = lambda total, done: None,
    on_run: Callable[[Run, dict[str, Any]], None] = lambda run, summary: None,
) -> Results:
    """Run what is not done yet, then write what is made from all runs.

    Args:
        experiment: What to run.
        out: The folder for the results; an earlier run's folder is replaced.
        jobs: Processes; as many as there are cores by default.
        resume: Keep the finished runs of the folder; it must be of the same experiment.
        report: Draw the figures and write the report as well. The points of a sweep have tables only.
        digests: Those of a lock file; the inputs must still have them.
        on_start: Told how many runs there are, and how many of them are done.
        on_run: Told of each run as it ends.

    Raises:
        InputError: Something is wrong with the experiment or one of its inputs.
    """
    begin_anew()
    scene = Scene.of(experiment)
    points = {point.name: Scene.of(point.experiment) for point in experiment.points()}
    lock = make_lock(scene, points)
    check_inputs(lock, digests or {})
    scenes = {out / name: point for name, point in points.items()} or {out: scene}
    for each in scenes.values():
        rehearse(each)
    # A point is an experiment of its own: with its lock file all can be done to it that can be done to one.
    locks = {out / name: make_lock(point) for name, point in points.items()} or {out: lock}
    with prepared(out, lock, resume=resume):
        for name in points:
            write_atomically(out / name / LOCK, dump_lock(locks[out / name]))
        summaries = _summaries(scenes, locks, jobs or os.cpu_count() or 1, resume, on_start, on_run)
        tables = {
            folder: table_of(s.experiment, [summaries[run.folder(folder)] for run in runs_of(s.experiment)])
            for folder, s in scenes.items()
        }
        # Imported here: matplotlib takes a quarter of a second, and the processes that make the runs need none.
        from argus_sim.experiment import conclude, sweep

        if points:
            by_point = {point: tables[out / point] for point in points}
            table = sweep.conclude(experiment, out, by_point, points, lock, report=report)
            return Results(out, experiment, table)
        conclude.conclude(scene, out, tables[out], lock, report=report)
        return Results(out, experiment, tables[out])


def _summaries(
    scenes: Mapping[Path, Scene],
    locks: Mapping[Path, dict[str, Any]],
    jobs: int,
    resume: bool,
    on_start: Callable[[int, int], None],
    on_run: Callable[[Run, dict[str, Any]], None],
) -> dict[Path, dict[str, Any]]:
    """Run what is not done yet in these folders; the summary of every run by its folder."""
    digests = {folder: digest_of(lock) for folder, lock in locks.items()}
    tasks = [
        (scene.experiment, run, folder, digests[folder])
        for folder, scene in scenes.items()
        for run in runs_of(scene.experiment)
    ]
    todo, summaries = [], {}
    for task in tasks:
        _, run, folder, digest = task
        done = summary_in(run.folder(folder), digest) if resume else None
        if done is None:
            todo.append(task)
        else:
            summaries[run.folder(folder)] = done
    on_start(len(tasks), len(summaries))
    for (_, run, folder, _), summary in run_all(deque(todo), jobs):
        summaries[run.folder(folder)] = summary
        on_run(run, summary)
    return summaries


# -- the runs ----------------------------------------------------------------------------------------------


#: A run of an experiment, the folder of that experiment's results, and the digest of its lock file.
Task = tuple[Experiment, Run, Path, str]


def run_all(
    tasks: deque[Task], jobs: int, run: Callable[[Experiment, Run, Path, str], dict[str, Any]] | None = None
) -> Generator[tuple[Task, dict[str, Any]]]:
    """Take and run these on so many processes (``run``: :func:`run_one`): each with its summary, as it ends.

    For each that has ended, the reader may add others.
    """
    run = run or run_one
    if jobs == 1 or len(tasks) <= 1:
        while tasks:
            task = tasks.popleft()
            yield task, run(*task)
        return
    # Fresh interpreters rather than forks: forking a process with threads (Arrow's, BLAS') can deadlock.
    context, processes = get_context("spawn"), min(jobs, len(tasks))
    theirs, ours = context.Pipe(duplex=False)
    with (
        theirs,
        ours,
        ProcessPoolExecutor(processes, mp_context=context, initializer=_begin, initargs=(theirs,)) as pool,
    ):
        pending: dict[Future[dict[str, Any]], Task] = {}
        try:
            while True:
                # A few at a time, as they are pickled.
                with _interrupts_held_back():
                    while tasks and len(pending) < 2 * jobs:
                        task = tasks.popleft()
                        pending[pool.submit(run, *task)] = task
                if not pending:
                    return
                for future in wait(pending, return_when=FIRST_COMPLETED).done:
                    yield pending.pop(future), future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            ours.close()
            raise


@contextmanager
def _interrupts_held_back() -> Iterator[None]:
    """Processes that are started in here hear of Ctrl-C only once they are ready to, see the next function."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin(pipe: Connection) -> None:
    """A process has nothing to save, a run is there whole or not at all: it ends at once when it is to.

    Ctrl-C reaches every process. ``pipe`` closes when the runs are given up, or whoever wants them is dead.
    """
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as it is in the background of a script
        signal.signal(signal.SIGINT, lambda number, frame: os._exit(128 + signal.SIGINT))
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    Thread(target=_end_with, args=(pipe,), daemon=True).start()


def _end_with(pipe: Connection) -> None:
    with suppress(EOFError, OSError):
        pipe.recv_bytes()
    os._exit(1)


def run_one(experiment: Experiment, run: Run, out: Path, lock: str) -> dict[str, Any]:
    """Simulate one run and write its folder; returns its summary. ``lock`` is the lock file's digest."""
    scene = _scene(experiment)
    trace, bound = _stage(experiment, run.trace, run.seed)
    where = f"{run.policy.label} on {run.trace.name}, seed {run.seed}"
    try:
        record = simulate(scene, run.policy, trace, run.seed)
    except InputError as error:
        raise type(error)(str(error), where=where) from None
    except (Exception, SystemExit) as error:
        if (what := foreign.raised(registry.find(run.policy.name), error)) is None:
            raise
        raise InputError(what, where=where) from error
    return write_run(record, run, out, lock=lock, window_s=experiment.window_s, bound=bound)


def write_run(
    record: RunRecord,
    run: Run,
    out: Path,
    *,
    lock: str,
    window_s: float,
    bound: float = 0.0,
    tables: Mapping[str, pd.DataFrame] | None = None,
) -> dict[str, Any]:
    """Write a run's folder: whole, or not at all. Returns its summary.

    Args:
        lock: The digest of the lock file, from which a resumed run tells whose this is.
        bound: The quality yield that no policy can exceed; 0 where it was not computed.
        tables: More of them, by the name of their Parquet file.
    """
    summary: dict[str, Any] = {
        "policy": run.policy.label,
        "trace": run.trace.name,
        "seed": run.seed,
        **metrics.summarise(record),
        "peak": metrics.peak(record),
    }
    if record.cache is not None:
        summary["cache"] = summarise_cache(record.cache, record.duration_s)
    summary["share_of_bound"] = summary["quality_yield"] / bound if bound else math.nan
    folder = run.folder(out)
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    _write_parquet(record.frame(), partial / "outcomes.parquet")
    _write_parquet(record.attempts_frame(), partial / "attempts.parquet")
    timeline = metrics.timeline(record, window_s)
    if record.cache is not None:
        timeline = timeline.join(cache_timeline(record, window_s))
    _write_parquet(timeline, partial / "timeline.parquet")
    for name, table in (tables or {}).items():
        _write_parquet(table, partial / f"{name}.parquet")
    (partial / "events.json").write_text(json.dumps(no_nan(record.events())) + "\n", "utf-8")
    (partial / "summary.json").write_text(json.dumps(no_nan({**summary, "lock": lock}), indent=1) + "\n", "utf-8")
    if folder.exists():
        shutil.rmtree(folder)
    os.replace(partial, folder)
    return summary


@lru_cache(maxsize=2)
def _scene_of(text: str) -> Scene:
    return Scene.of(Experiment.model_validate_json(text))


def _scene(experiment: Experiment) -> Scene:
    return _scene_of(experiment.model_dump_json())


_last_stage: dict[tuple[str, int, str], tuple[Trace, float]] = {}


def _stage(experiment: Experiment, config: TraceConfig, seed: int) -> tuple[Trace, float]:
    """The trace of a run, and the quality yield that no policy can exceed on it (0 where it is not wanted).

    The last one is kept, since the runs on a trace come one after the other.
    """
    key = (config.name, seed, experiment.model_dump_json())
    if key not in _last_stage:
        _last_stage.clear()
        scene = _scene(experiment)
        trace = scene.trace(config, seed)
        _last_stage[key] = (trace, hindsight(scene, trace, seed).quality_yield if experiment.bound else 0.0)
    return _last_stage[key]


def begin_anew() -> None:
    """Drop what is kept between runs: since the last experiment of this process, files may have changed."""
    forget()
    cache_setup.forget()
    _scene_of.cache_clear()
    _last_stage.clear()


def _write_parquet(frame: pd.DataFrame, path: Path) -> None:
    frame.to_parquet(path, engine="pyarrow", index=False, compression="zstd")


def no_nan(value: Any) -> Any:
    """JSON has no NaN: undefined is null."""
    if isinstance(value, dict):
        return {key: no_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [no_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


# -- what is made from all runs ----------------------------------------------------------------------------


def table_of(experiment: Experiment, summaries: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """The table of ``summary.csv``, by trace and policy as the experiment has them."""
    summary = pd.DataFrame([{k: v for k, v in s.items() if k not in ("peak", "cache")} for s in summaries])
    summary = summary.fillna(value=math.nan).infer_objects()
    order = {policy.label: i for i, policy in enumerate(experiment.policies)}
    traces = {trace.name: i for i, trace in enumerate(experiment.traces)}
    return summary.sort_values(
        by=["trace", "policy", "seed"],
        key=lambda column: column.map({**traces, **order}) if column.name != "seed" else column,
        ignore_index=True,
    )
