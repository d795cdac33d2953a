"""Several runs: intervals over seeds, and what one policy or one experiment gains over another.

Works on ``summary.csv`` as a table: a row per policy, trace and seed, a column per metric
(:data:`argus_sim.metrics.METRICS`), and any numeric column beside them that a user adds.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import stdtrit

from argus_sim.errors import InputError, did_you_mean

#: What a row of ``summary.csv`` is about; the other columns are metrics.
KEYS: tuple[str, ...] = ("policy", "trace", "seed")


def read_table(path: Path) -> pd.DataFrame:
    """A ``summary.csv``. Policies and traces are what they are called, be it 7 or NA.

    Raises:
        ValueError: It is no table.
    """
    return pd.read_csv(path, dtype={"policy": "str", "trace": "str"}, keep_default_na=False, na_values=[""])


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean over ``n`` independent values and the ends of its confidence interval (NaN below two values)."""

    mean: float
    low: float
    high: float
    n: int

    @property
    def half_width(self) -> float:
        return (self.high - self.low) / 2


def interval(values: Iterable[float], confidence: float = 0.95) -> Interval:
    """Student's t interval of the mean: ``mean ± t((1 + confidence) / 2, n - 1) x s / sqrt(n)``.

    NaN values are left out (``n`` says how many are left): a metric that a seed leaves undefined says nothing
    about its mean. One value has no spread to judge by, so its interval is NaN.

    >>> got = interval([1.0, 2.0, 3.0])
    >>> got.mean, round(got.half_width, 3), got.n
    (2.0, 2.484, 3)
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is in (0, 1), got {confidence}")
    data = np.asarray(list(values), dtype=np.float64)
    data = data[~np.isnan(data)]
    n = len(data)
    mean = float(data.mean()) if n else math.nan
    if n < 2:
        return Interval(mean, math.nan, math.nan, n)
    half = float(stdtrit(n - 1, (1 + confidence) / 2)) * float(data.std(ddof=1)) / math.sqrt(n)
    return Interval(mean, mean - half, mean + half, n)


def _metrics_of(summary: pd.DataFrame) -> list[str]:
    """The columns to average; complains about a table that is no summary."""
    missing = [key for key in KEYS if key not in summary.columns]
    if missing:
        raise InputError(f"not a summary: it has no column {', '.join(missing)}")
    if len(twice := summary[summary.duplicated(list(KEYS))]):
        key = " ".join(str(twice.iloc[0][name]) for name in KEYS)
        raise InputError(f"has two rows for {key}; of a sweep, choose the rows of one point")
    return [
        str(name) for name in summary.columns if name not in KEYS and pd.api.types.is_numeric_dtype(summary[name])
    ]


def aggregate(summary: pd.DataFrame, confidence: float = 0.95) -> pd.DataFrame:
    """Seeds averaged: a row per policy and trace, in order of appearance.

    Columns: ``policy, trace, seeds``, then for every metric its mean and ``<metric>_half_width``, that of its
    :func:`interval` over the seeds.
    """
    names = _metrics_of(summary)
    rows: list[dict[str, object]] = []
    for (policy, trace), runs in summary.groupby(["policy", "trace"], sort=False):
        row: dict[str, object] = {"policy": policy, "trace": trace, "seeds": len(runs)}
        for name in names:
            got = interval(runs[name], confidence)
            row[name], row[f"{name}_half_width"] = got.mean, got.half_width
        rows.append(row)
    columns = [column for name in names for column in (name, f"{name}_half_width")]
    return pd.DataFrame(rows, columns=["policy", "trace", "seeds", *columns])


def _differences(a: pd.DataFrame, b: pd.DataFrame, on: Sequence[str], names: Sequence[str]) -> pd.DataFrame:
    """Runs that both have, side by side; a row of ``a`` meets at most one of ``b``."""
    keep = [*on, *names]
    return a[keep].merge(b[keep], on=list(on), suffixes=("_a", "_b"), validate="one_to_one")


def paired(
    summary: pd.DataFrame, a: str, b: str, metric: str, *, trace: str | None = None, confidence: float = 0.95
) -> Interval:
    """The difference ``a - b`` of a metric between two policies, over the (trace, seed) pairs both ran.

    Policies of an experiment face the same arrivals and prompts per seed (common random numbers), so the
    interval of the differences is far narrower than the two policies' own. With ``trace`` only that trace's
    seeds are paired; without, all traces are pooled.
    """
    names = _metrics_of(summary)
    if metric not in names:
        raise InputError(f"no metric {metric!r}{did_you_mean(metric, names)}")
    for policy in (a, b):
        if policy not in set(summary["policy"]):
            raise InputError(f"no policy {policy!r}{did_you_mean(policy, map(str, summary['policy'].unique()))}")
    runs = summary if trace is None else summary[summary["trace"] == trace]
    both = _differences(runs[runs["policy"] == a], runs[runs["policy"] == b], ("trace", "seed"), (metric,))
    if both.empty:
        raise InputError(f"{a} and {b} have no run in common" + (f" on trace {trace!r}" if trace else ""))
    return interval(both[f"{metric}_a"] - both[f"{metric}_b"], confidence)


def compare(summary_a: pd.DataFrame, summary_b: pd.DataFrame, confidence: float = 0.95) -> pd.DataFrame:
    """Two experiments' summaries, run by run: a row per policy, trace and metric that both have.

    Columns: ``policy, trace, metric, a, b`` (means over the common seeds), ``difference`` (``a - b``),
    ``half_width`` (of the paired interval of the difference) and ``pairs`` (how many runs it rests on).
    """
    in_b = set(_metrics_of(summary_b))
    names = [name for name in _metrics_of(summary_a) if name in in_b]
    both = _differences(summary_a, summary_b, KEYS, names)
    if both.empty:
        raise InputError("the two summaries have no policy, trace and seed in common")
    rows: list[tuple[object, ...]] = []
    for (policy, trace), runs in both.groupby(["policy", "trace"], sort=False):
        for name in names:
            of_a, of_b = runs[f"{name}_a"], runs[f"{name}_b"]
            got = interval(of_a - of_b, confidence)
            rows.append((policy, trace, name, of_a.mean(), of_b.mean(), got.mean, got.half_width, got.n))
    columns = ["policy", "trace", "metric", "a", "b", "difference", "half_width", "pairs"]
    return pd.DataFrame(rows, columns=columns)


def ranking(summary: pd.DataFrame, trace: str, metric: str = "quality_yield") -> pd.Series:
    """Mean of a metric by policy on a trace, the largest first."""
    means = summary[summary["trace"] == trace].groupby("policy", sort=False)[metric].mean()
    return means.sort_values(ascending=False, kind="stable")


@dataclass(frozen=True, slots=True)
class Agreement:
    """How alike policies rank on two traces.

    Attributes:
        tau: Kendall's tau-b of the means; 1 for the same ranking, -1 for the reverse.
        pairs: Pairs of policies.
        same: Pairs that both traces tell apart (the paired interval of the difference does not hold zero), alike.
        swapped: Those that both tell apart, the other way round: better and worse on ``a``.
        undecided: Pairs that at least one trace does not tell apart.
    """

    tau: float
    pairs: int
    same: int
    swapped: tuple[tuple[str, str], ...]
    undecided: tuple[tuple[str, str], ...]


def agreement(
    summary: pd.DataFrame, a: str, b: str, metric: str = "quality_yield", *, confidence: float = 0.95
) -> Agreement:
    """Compare the ranking of the policies on trace ``a`` with that on trace ``b``.

    Raises:
        InputError: No such trace or metric, or a policy that ran on one of them only.
    """
    from scipy.stats import kendalltau  # takes half a second to import

    for trace in (a, b):
        if trace not in set(summary["trace"]):
            raise InputError(f"no trace {trace!r}{did_you_mean(trace, map(str, summary['trace'].unique()))}")
    if metric not in (names := _metrics_of(summary)):
        raise InputError(f"no metric {metric!r}{did_you_mean(metric, names)}")
    means = {t: ranking(summary, t, metric) for t in (a, b)}
    if set(means[a].index) != set(means[b].index):
        raise InputError(f"traces {a!r} and {b!r} were not run under the same policies")
    policies = [str(name) for name in means[a].index]
    same, swapped, undecided = 0, [], []
    for better, worse in combinations(policies, 2):
        signs = [
            (got.low > 0) - (got.high < 0)
            for got in (paired(summary, better, worse, metric, trace=t, confidence=confidence) for t in (a, b))
        ]
        if 0 in signs:
            undecided.append((better, worse))
        elif signs[0] != signs[1]:
            swapped.append((better, worse))
        else:
            same += 1
    tau = float(kendalltau(means[a][policies], means[b][policies]).statistic)
    pairs = len(policies) * (len(policies) - 1) // 2
    return Agreement(tau, pairs, same, tuple(swapped), tuple(undecided))
