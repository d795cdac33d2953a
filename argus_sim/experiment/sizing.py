"""The smallest cluster that keeps a promise: for each policy and trace of an experiment, by simulating sizes.

What is left under the folder: a folder for each policy, trace and size, which is that of an ordinary experiment
without the report; ``sizes.csv``, a row for each size that was tried; ``sizing.csv``, the answers; a figure; and
``experiment.lock.yaml``.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from argus_sim import metrics
from argus_sim.errors import InputError, did_you_mean
from argus_sim.experiment import sweep
from argus_sim.experiment.config import Experiment
from argus_sim.experiment.folder import SIZED, digest_of, prepared, summary_in
from argus_sim.experiment.lockfile import LOCK, check_inputs, dump_lock, make_lock
from argus_sim.experiment.rehearsal import rehearse
from argus_sim.experiment.runner import Run, Task, begin_anew, run_all, run_one, runs_of, table_of
from argus_sim.experiment.scene import Scene
from argus_sim.files import write_atomically
from argus_sim.metrics import METRICS
from argus_sim.report import plots
from argus_sim.report.charts.axis import is_wide
from argus_sim.report.plot_style import head, legend, styled, styles
from argus_sim.simulation.cluster import CannotCatchUp

#: Means and half-widths of 95 % intervals that are told of a size.
_TOLD = ("slo_violation_ratio", "quality_yield", "utilisation")
#: What a mean may miss its promise by: the error of a sum, not of a simulation.
_EPSILON = 1e-12


@dataclass(frozen=True)
class Promise:
    """What is to hold of the means over seeds.

    The quality is the *yield*: over all requests, so that nobody keeps the promise by answering the easy ones.

    Attributes:
        violations: The largest ``slo_violation_ratio``, in [0, 1].
        quality: The smallest ``quality_yield``, in [0, 1]; None promises nothing.
    """

    violations: float = 0.01
    quality: float | None = None

    def broken(self, row: dict[str, Any]) -> str:
        """What of it does not hold, ``violations`` before ``quality``; empty where all does."""
        if not row["slo_violation_ratio"] <= self.violations + _EPSILON:  # nor is it kept where it is NaN
            return "violations"
        return "quality" if self.quality is not None and row["quality_yield"] < self.quality - _EPSILON else ""


@dataclass(frozen=True)
class Sizing:
    """What a search came to.

    Attributes:
        folder: Where it is.
        sizes: For each size tried: ``trace, policy, workers``, the means over seeds and their half-widths (NaN
            where a run could not catch up), ``on_time_per_gpu_hour``, and ``meets``.
        answers: For each trace and policy that of its smallest size, the means ``_with_one_fewer``, and an empty
            ``broken``. Where no size keeps the promise, ``workers`` is None, and ``broken`` what of it the
            largest size does not keep.
    """

    folder: Path
    sizes: list[dict[str, Any]]
    answers: list[dict[str, Any]]


def smallest(start: int, fewest: int, largest: int) -> Generator[int, bool | None, int | None]:
    """Search the smallest size that meets: yields the next to try, is sent whether it does.

    Doubles or halves from ``start`` until the answer is enclosed, then bisects. Returns a size that meets, the
    next smaller one having been tried in vain (unless there is none); or None, where ``largest`` does not meet.
    That it is the smallest of all takes a larger size to be no worse.
    """
    below, above = fewest - 1, largest + 1  # does not meet, meets: as far as is known
    size = min(max(start, fewest), largest)
    while above - below > 1:
        if (yield size):
            above = size
        else:
            below = size
        if above > largest:
            size = min(2 * below, largest)
        elif below < fewest:
            size = max(above // 2, fewest)
        else:
            size = (below + above) // 2
    return above if above <= largest else None


def size_experiment(
    experiment: Experiment,
    promise: Promise,
    out: Path,
    *,
    largest: int = 512,
    kind: str | None = None,
    jobs: int = 1,
    resume: bool = False,
    digests: dict[str, str] | None = None,
    on_more: Callable[[int, int], None] = lambda runs, kept: None,
    on_run: Callable[[Run, dict[str, Any]], None] = lambda run, summary: None,
) -> Sizing:
    """Search the smallest size for each policy and trace, beginning at the experiment's.

    Args:
        experiment: Its load must not depend on the size of the cluster.
        promise: What is to be kept.
        out: The folder for the results; an earlier search's folder is replaced.
        largest: No size above it is tried.
        kind: Of GPUs, where the cluster has kinds: their number is varied. Else it is that of all GPUs.
        jobs: Processes.
        resume: Keep the finished runs of the folder, whatever they were to promise.
        digests: Those of a lock file; the inputs must still have them.
        on_more: Told how many runs are needed beside those before, and how many of them are done already.
        on_run: Told of each run as it ends; the summary is empty where it could not catch up.

    Raises:
        InputError: Something is wrong with the experiment or one of its inputs, or it is not for several sizes.
    """
    begin_anew()
    fewest = _fewest(experiment, kind)
    if largest < fewest:
        raise InputError(f"is {largest}, and the faults name worker {fewest - 1}", where="--largest")
    scene = Scene.of(experiment)
    _refuse_peaks(scene)
    lock = make_lock(scene) | {SIZED: kind or "gpus"}
    check_inputs(lock, digests or {})
    rehearse(scene)
    searches = {
        (trace.name, policy.label): _Search(
            experiment.model_copy(update={"traces": (trace,), "policies": (policy,), "bound": False}),
            promise,
            out,
            kind,
            resume,
            on_more,
            smallest(_count(experiment, kind), fewest, largest),
        )
        for trace in experiment.traces
        for policy in experiment.policies
    }
    for search in searches.values():
        for size in {fewest, largest}:
            search.rehearse(size)
    with prepared(out, lock, resume=resume):
        tasks: deque[Task] = deque()
        for search in searches.values():
            tasks += search.next_size(None)
        with closing(run_all(tasks, jobs, _run_or_nothing)) as ended:
            for (_, run, _, _), summary in ended:
                tasks += searches[run.trace.name, run.policy.label].took(run.seed, summary)
                on_run(run, summary or {"arrived": 0})
        return _conclude(out, list(searches.values()), promise, kind)


def _count(experiment: Experiment, kind: str | None) -> int:
    """The size that an experiment has."""
    cluster = experiment.cluster
    return next((k.workers for k in cluster.kinds if k.name == kind), cluster.workers)


def _sized(experiment: Experiment, kind: str | None, size: int) -> Experiment:
    """The same with another size."""
    cluster, kinds = experiment.cluster, experiment.cluster.kinds
    if kind is not None:
        kinds = tuple(k.model_copy(update={"workers": size}) if k.name == kind else k for k in kinds)
        size = sum(k.workers for k in kinds)
    return experiment.model_copy(update={"cluster": cluster.model_copy(update={"workers": size, "kinds": kinds})})


def _fewest(experiment: Experiment, kind: str | None) -> int:
    """The smallest size that the experiment can have: faults name workers.

    Raises:
        InputError: It is not clear what is to be varied.
    """
    where = f"experiment {experiment.name!r}"
    if experiment.sweep is not None:
        raise InputError("a search for a size varies that alone (--set sweep=null)", where=f"{where}: sweep")
    kinds = [k.name for k in experiment.cluster.kinds]
    if kinds and kind is None:
        message = f"say with --kind whose number is asked for: {', '.join(kinds)}"
        raise InputError(message, where=f"{where}: cluster.kinds")
    if kind is not None and kind not in kinds:
        known = did_you_mean(kind, kinds) if kinds else "; without cluster.kinds leave --kind out"
        raise InputError(f"the cluster has no kind {kind!r}{known}", where="--kind")
    named = [worker for fault in experiment.cluster.faults for worker in fault.workers or ()]
    if named and kind is not None:
        raise InputError(
            "name workers by numbers, which are others with another size; with --kind leave workers out",
            where=f"{where}: cluster.faults",
        )
    return 1 + max(named, default=0)


def _refuse_peaks(scene: Scene) -> None:
    """:class:`InputError` where the load depends on the size of the cluster."""
    experiment = scene.experiment
    parts = [part for trace in experiment.traces for part in trace.parts() if part.peak is not None]
    if not parts:
        return
    now = [f"{part.name}: {scene.trace(part, experiment.seed).transformations[-1]}" for part in parts]
    raise InputError(
        "makes the load a multiple of what the cluster serves, and its size is what is asked for; in its place "
        f"write scale_rate or scale_time, for {experiment.cluster.workers} GPUs: {', '.join(now)}",
        where=f"experiment {experiment.name!r}: trace {parts[0].name!r}: peak",
    )


def _run_or_nothing(experiment: Experiment, run: Run, out: Path, lock: str) -> dict[str, Any]:
    """As :func:`run_one`; nothing where so small a cluster cannot catch up."""
    try:
        return run_one(experiment, run, out, lock)
    except CannotCatchUp:
        return {}
    except InputError as error:
        raise InputError(str(error), where=f"with {experiment.cluster.workers} GPUs") from None


@dataclass
class _Search:
    """The search for one policy on one trace.

    Attributes:
        experiment: Of that policy and trace alone.
        sizes: Those to try, from :func:`smallest`.
        size: What is tried now.
        folder: Its results.
        summaries: Those of its runs that have ended, by seed.
        rows: What came of the sizes that were tried.
        answer: The smallest size, once it is known.
    """

    experiment: Experiment
    promise: Promise
    out: Path
    kind: str | None
    resume: bool
    on_more: Callable[[int, int], None]
    sizes: Generator[int, bool | None, int | None]
    size: int = 0
    folder: Path = Path()
    summaries: dict[int, dict[str, Any]] = field(default_factory=dict)
    rows: dict[int, dict[str, Any]] = field(default_factory=dict)
    answer: int | None = None

    def __post_init__(self) -> None:
        self.trace, self.policy = self.experiment.traces[0].name, self.experiment.policies[0].label
        self.lock = make_lock(Scene.of(self.experiment))  # but for the experiment, that of all sizes

    def rehearse(self, size: int) -> None:
        """:class:`InputError` where the policy is for another size."""
        scene = Scene.of(_sized(self.experiment, self.kind, size))
        try:
            scene.policy(self.experiment.policies[0], self.experiment.seed)
        except InputError as error:
            where = f"{self.policy} with {size} GPUs"
            raise InputError(f"{error}; leave out what is for one size", where=where) from None

    def next_size(self, met: bool | None) -> list[Task]:
        """The runs to do now that the last size has met or not; none where the search has ended."""
        try:
            self.size = self.sizes.send(met)
        except StopIteration as end:
            self.answer = end.value
            return []
        experiment = _sized(self.experiment, self.kind, self.size)
        lock = self.lock | {"experiment": experiment.model_dump(mode="json")}
        digest = digest_of(lock)
        self.folder = self.out / f"trace={self.trace},policy={self.policy},{self.kind or 'gpus'}={self.size}"
        write_atomically(self.folder / LOCK, dump_lock(lock))
        self.summaries, todo = {}, []
        for run in runs_of(experiment):
            done = summary_in(run.folder(self.folder), digest) if self.resume else None
            if done is None:
                todo.append((experiment, run, self.folder, digest))
            else:
                self.summaries[run.seed] = done
        self.on_more(len(experiment.seeds), len(self.summaries))
        return todo or self._ended()

    def took(self, seed: int, summary: dict[str, Any]) -> list[Task]:
        """The runs to do now that one has ended."""
        self.summaries[seed] = summary
        return self._ended() if len(self.summaries) == self.experiment.replications else []

    def _ended(self) -> list[Task]:
        """The runs to do now that all of this size have ended."""
        self.rows[self.size] = row = self._row()
        return self.next_size(row["meets"])

    def _row(self) -> dict[str, Any]:
        names = [name for metric in _TOLD for name in (metric, f"{metric}_half_width")]
        row: dict[str, Any] = {"trace": self.trace, "policy": self.policy, "workers": self.size}
        row |= dict.fromkeys((*names, "on_time_per_gpu_hour"), math.nan)
        if all(self.summaries.values()):  # that of a run that could not catch up is empty
            table = table_of(self.experiment, [self.summaries[seed] for seed in self.experiment.seeds])
            write_atomically(self.folder / "summary.csv", table.to_csv(index=False).encode())
            (means,) = metrics.aggregate(table).to_dict("records")
            row |= {name: means[name] for name in names}
            gpus = _sized(self.experiment, self.kind, self.size).cluster.workers
            row["on_time_per_gpu_hour"] = 60.0 * means["effective_throughput_per_min"] / gpus
        return row | {"meets": not self.promise.broken(row)}

    def found(self) -> dict[str, Any]:
        """The row of the answer."""
        known = [name for name in self.rows[self.size] if name != "meets"]
        if self.answer is None:
            row = dict.fromkeys(known, math.nan) | {"trace": self.trace, "policy": self.policy, "workers": None}
            broken = self.promise.broken(self.rows[max(self.rows)])
        else:
            row, broken = {name: self.rows[self.answer][name] for name in known}, ""
        fewer = self.rows.get((self.answer or 0) - 1, {})
        row |= {f"{name}_with_one_fewer": fewer.get(name, math.nan) for name in _TOLD[:2]}
        return row | {"broken": broken}


def _conclude(out: Path, searches: list[_Search], promise: Promise, kind: str | None) -> Sizing:
    """Write the tables and the figure."""
    sizes = [search.rows[size] for search in searches for size in sorted(search.rows)]
    answers = [search.found() for search in searches]
    for name, rows in (("sizes.csv", sizes), ("sizing.csv", answers)):
        table = pd.DataFrame(rows).astype({"workers": "Int64"})  # which may be missing
        write_atomically(out / name, table.to_csv(index=False).encode())
    plots.save(figure_sizes(sizes, answers, promise, kind or "GPUs"), out / "figures", "sizes")
    return Sizing(out, sizes, answers)


@styled
def figure_sizes(
    sizes: list[dict[str, Any]], answers: list[dict[str, Any]], promise: Promise, name: str
) -> Figure:
    """What was tried: a row for each trace, a panel for each promise; dotted what it is, ringed the answers."""
    table = pd.DataFrame(sizes)
    colours = styles(table["policy"])
    traces = list(dict.fromkeys(table["trace"]))
    targets = {"slo_violation_ratio": promise.violations}
    targets |= {} if promise.quality is None else {"quality_yield": promise.quality}
    figure = Figure(figsize=(5.0 * max(len(targets), 1.4), 2.9 * len(traces) + 1.0), layout="constrained")
    panels = figure.subplots(len(traces), len(targets), squeeze=False)
    for trace, row in zip(traces, panels, strict=True):
        tried = table[table["trace"] == trace]
        found = [answer for answer in answers if answer["trace"] == trace and answer["workers"] is not None]
        for (target, value), ax in zip(targets.items(), row, strict=True):
            metric = METRICS[target]
            places = {str(size): float(size) for size in tried["workers"]}
            sweep.lines(ax, tried.assign(value=tried["workers"].astype("str")), metric, places, True)
            ax.axhline(metric.scale * value, color="#444444", linestyle=":", linewidth=1.0)
            for answer in found:
                at, colour = (answer["workers"], metric.scale * answer[target]), colours[answer["policy"]][0]
                ax.plot(*at, "o", color=colour, markerfacecolor="none", markersize=9, clip_on=False)
            if target == "slo_violation_ratio":  # from 0 to 100 %, and what matters is near the promise
                ax.set_yscale("symlog", linthresh=max(metric.scale * value, 0.1))
                ax.set_ylim(bottom=0.0)
                ax.yaxis.set_major_formatter("{x:g}")
            ax.set_title(metric.heading if len(traces) == 1 else f"{metric.heading}, {trace}")
            if is_wide(list(places.values())):
                ax.set_xscale("log", base=2)
                ax.xaxis.set_major_formatter("{x:g}")
            ax.set_xlabel(name)
    note = "Means over seeds. Dotted: what is promised. Ringed: the smallest size that keeps it."
    head(figure, "Sizes tried", note)
    legend(figure, panels[0, 0])
    return figure
