"""An experiment's results, for notebooks and scripts: tables, figures and comparisons.

>>> from argus_sim import Experiment
>>> results = Experiment.load("experiments/fig7.yaml").run("runs/fig7")  # doctest: +SKIP
>>> results.plot.timeline("bursty")  # doctest: +SKIP
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from argus_sim.errors import InputError, did_you_mean
from argus_sim.experiment.config import Experiment
from argus_sim.experiment.lockfile import LOCK
from argus_sim.metrics import aggregate, compare, paired
from argus_sim.metrics.intervals import KEYS, read_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, repr=False)
class Results:
    """What an experiment came to.

    Attributes:
        folder: Where it is.
        experiment: What was run.
        summary: One row per run, the columns of ``summary.csv``.

    Of a sweep there are :attr:`summary` and :attr:`aggregate` of all points, and :attr:`points`, each of which is
    results like those of an experiment without a sweep. All else is for one point to answer, and an
    :class:`InputError` here.
    """

    folder: Path
    experiment: Experiment
    summary: pd.DataFrame

    @classmethod
    def load(cls, folder: str | Path) -> Results:
        """Results that ``argus-sim run`` or :meth:`Experiment.run` has left; of a sweep, or one of its points.

        Raises:
            InputError: No experiment has ended in the folder.
        """
        folder = Path(folder)
        for name in (LOCK, "summary.csv"):
            if not (folder / name).is_file():
                raise InputError(f"holds no {name}: no experiment has ended there", where=str(folder))
        experiment = Experiment.load(folder / LOCK, to_run=False)
        if experiment.sweep is None:
            summary = read_table(folder / "summary.csv")
        else:
            from argus_sim.experiment.sweep import together

            points = [point.name for point in experiment.points(to_run=False)]
            summary = together(experiment, {name: cls.load(folder / name).summary for name in points})
        return cls(folder, experiment, summary)

    @cached_property
    def points(self) -> dict[str, Results]:
        """The results of each point of a sweep by its name, e.g. ``slo=2``; empty without a sweep."""
        return {
            point.name: Results.load(self.folder / point.name) for point in self.experiment.points(to_run=False)
        }

    @cached_property
    def aggregate(self) -> pd.DataFrame:
        """A row per policy and trace: means, and half-widths of 95 % intervals over seeds.

        Of a sweep, a row per point, policy and trace, led by ``point``.
        """
        if self.experiment.sweep is None:
            return aggregate(self.summary)
        tables = {name: results.aggregate for name, results in self.points.items()}
        return pd.concat(tables, names=["point", None]).reset_index("point").reset_index(drop=True)

    @cached_property
    def outcomes(self) -> pd.DataFrame:
        """A row per request of every run: ``policy, trace, seed``, then the columns of ``outcomes.parquet``."""
        return self._all("outcomes.parquet")

    @cached_property
    def timelines(self) -> pd.DataFrame:
        """A row per window of every run: ``policy, trace, seed``, then the columns of ``timeline.parquet``."""
        return self._all("timeline.parquet")

    def run(self, policy: str, trace: str | None = None, seed: int | None = None) -> RunResults:
        """One run; by default on the first trace, with the first seed.

        Raises:
            InputError: There is no such run.
        """
        self._must_be_one()
        labels = [p.label for p in self.experiment.policies]
        traces = [t.name for t in self.experiment.traces]
        trace, seed = trace or traces[0], self.experiment.seed if seed is None else seed
        for what, name, known in (("policy", policy, labels), ("trace", trace, traces)):
            if name not in known:
                raise InputError(f"no {what} {name!r}{did_you_mean(name, known)}", where=str(self.folder))
        if seed not in self.experiment.seeds:
            seeds = self.experiment.seeds
            raise InputError(f"no seed {seed}; they are {seeds[0]} to {seeds[-1]}", where=str(self.folder))
        return RunResults(self.folder / policy / trace / str(seed))

    def compare(self, to: str | Results | None = None, metric: str = "quality_yield") -> pd.DataFrame:
        """How far apart policies are, paired by seed, so that it is about them and not about the luck of a seed.

        Args:
            to: A policy of this experiment (by default the best by ``metric`` on each trace), or other results.
            metric: A column of :attr:`summary`.

        Returns:
            A row per trace and other policy: ``trace, a, b, metric, difference`` (``a - b``), ``half_width`` (of
            its 95 % interval), ``pairs`` and ``differ`` (the interval does not hold zero; NaN widths never do).
            For other results, the table of :func:`argus_sim.metrics.intervals.compare`.

        Raises:
            InputError: No such policy or metric, or nothing in common.
        """
        self._must_be_one()
        if isinstance(to, Results):
            to._must_be_one()
            return compare(self.summary, to.summary)
        if metric not in self.summary:
            raise InputError(f"no metric {metric!r}{did_you_mean(metric, map(str, self.summary.columns))}")
        rows = []
        for trace, runs in self.summary.groupby("trace", sort=False):
            means = runs.groupby("policy", sort=False)[metric].mean().sort_values(ascending=False, kind="stable")
            a = to or str(means.index[0])
            for b in map(str, means.index):
                if b != a:
                    got = paired(self.summary, a, b, metric, trace=str(trace))
                    differ = got.low > 0 or got.high < 0
                    rows.append((trace, a, b, metric, got.mean, got.half_width, got.n, differ))
        names = ["trace", "a", "b", "metric", "difference", "half_width", "pairs", "differ"]
        return pd.DataFrame(rows, columns=names)

    @property
    def plot(self) -> Plots:
        """Figures, as Matplotlib draws them."""
        self._must_be_one()
        return Plots(self)

    def _must_be_one(self) -> None:
        if self.experiment.sweep is not None:
            axes, first = ", ".join(self.experiment.sweep.axes), self.experiment.points(to_run=False)[0].name
            raise InputError(
                f"has a sweep over {axes}; ask one of its points, e.g. results.points[{first!r}]",
                where=str(self.folder),
            )

    def _all(self, name: str) -> pd.DataFrame:
        self._must_be_one()
        parts = []
        for policy, trace, seed in self.summary[list(KEYS)].itertuples(index=False):
            table = pd.read_parquet(self.folder / policy / trace / str(seed) / name)
            parts.append(table.assign(policy=policy, trace=trace, seed=seed))
        table = pd.concat(parts, ignore_index=True)
        return table[[*KEYS, *(column for column in table.columns if column not in KEYS)]]

    def __repr__(self) -> str:
        policies = ", ".join(self.summary["policy"].unique())
        return f"<Results {self.folder}: {len(self.summary)} runs of {policies}>"

    def _repr_html_(self) -> str:
        """In a notebook: the headline numbers."""
        from argus_sim.report import headline_html

        if self.experiment.sweep is None:
            return headline_html(self.summary)
        from argus_sim.experiment.sweep import cases

        return headline_html(cases(self.experiment, {name: r.summary for name, r in self.points.items()}))


@dataclass(frozen=True)
class RunResults:
    """One run: one policy, one trace, one seed."""

    folder: Path

    @property
    def outcomes(self) -> pd.DataFrame:
        """A row per request."""
        return pd.read_parquet(self.folder / "outcomes.parquet")

    @property
    def attempts(self) -> pd.DataFrame:
        """A row for each time that a request ran and did not end with it; see :mod:`argus_sim.record`."""
        return pd.read_parquet(self.folder / "attempts.parquet")

    @property
    def timeline(self) -> pd.DataFrame:
        """A row per window of time."""
        return pd.read_parquet(self.folder / "timeline.parquet")

    @property
    def events(self) -> dict[str, Any]:
        """Placements, model loads and faults, with times in seconds."""
        found: dict[str, Any] = json.loads((self.folder / "events.json").read_text("utf-8"))
        return found


@dataclass(frozen=True)
class Plots:
    """Figures of results. A trace is the first one unless it is named."""

    results: Results

    def timeline(self, trace: str | None = None) -> Figure:
        """Load, throughput, quality and violations of every policy over a trace."""
        from argus_sim.report import plots

        labels = [policy.label for policy in self.results.experiment.policies]
        seeds = self.results.experiment.seeds
        name = trace or self.results.experiment.traces[0].name
        tables = {p: [self.results.run(p, name, seed).timeline for seed in seeds] for p in labels}
        return _shown(plots.figure_timeline(tables, name))

    def totals(self) -> Figure:
        """The headline numbers as bars with intervals."""
        from argus_sim.report import plots

        return _shown(plots.figure_totals(self.results.aggregate))

    def front(self) -> Figure:
        """Quality against violations."""
        from argus_sim.report import plots

        return _shown(plots.figure_front(self.results.aggregate))

    def level_mix(self, policy: str, trace: str | None = None) -> Figure:
        """Which variants served, over a trace."""
        from argus_sim.report import plots

        return _shown(plots.figure_level_mix(self.results.run(policy, trace).timeline, policy))

    def latency_cdf(self, trace: str | None = None) -> Figure:
        """Share of requests that had their image within a time, by policy."""
        from argus_sim.report import plots

        labels = [policy.label for policy in self.results.experiment.policies]
        return _shown(plots.figure_latency_cdf({p: self.results.run(p, trace).outcomes for p in labels}))


def _shown(figure: Figure) -> Figure:
    """The figure, such that a notebook shows it where it is the value of a cell, whatever has been imported."""
    from argus_sim.report.plot_style import render

    figure._repr_png_ = lambda: render(figure, "png", dpi=100)  # type: ignore[attr-defined]
    return figure
