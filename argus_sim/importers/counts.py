"""Public data sets of counts or rates: when requests arrived within an interval is drawn."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
from pydantic import Field

from argus_sim.columns import read_header
from argus_sim.errors import InputError
from argus_sim.importers.base import (
    Batch,
    Clock,
    Format,
    Kinds,
    Recording,
    Rows,
    files_in,
    interval,
    spread,
    times_of,
)
from argus_sim.importers.requests import GenTD26Requests
from argus_sim.trace.rate import RateCurve
from argus_sim.trace.trace import Floats


class GenTD26Gateway(Format):
    """The rate at the gateway of the same service over a day, in units that a constant factor anonymises.

    Reads columns ``t_s`` (start of a sample) and ``generative_qps`` (what the containers published for that
    sample, summed).
    """

    name = "gentd26-gateway"
    description = "Alibaba GenTD26: rate at the gateway over one day (57-s samples, anonymised unit)"
    source = GenTD26Requests.source
    licence = GenTD26Requests.licence

    scale: float = Field(
        1.0, gt=0, allow_inf_nan=False, description="Images per second for one unit of generative_qps."
    )

    def record(self, path: Path, rng: np.random.Generator) -> Recording:
        start_s, per_s = _columns(path, "t_s", "generative_qps")
        width_s = interval(path, start_s, "t_s")
        per_s = per_s * self.scale
        curve = RateCurve(np.append(start_s, start_s[-1] + width_s) - start_s[0], per_s, per_s)
        how = f"Poisson arrivals at {self.scale:g} x generative_qps within each {width_s:g}-s sample"
        origin = (self._recorded(path, covers="rate per sample"), self._drawn(how, rng))
        batch = Batch(curve.sample(rng), since_s=0.0, until_s=float(curve.edge_s[-1]))
        return Recording(iter([batch]), origin)


def _columns(path: Path, *columns: str) -> tuple[Floats, ...]:
    """Columns of amounts, whole: for files with a row per interval."""
    rows = Rows(path, dict.fromkeys(columns, "number"))
    parts = [[rows.amounts(batch, column) for column in columns] for batch in rows]
    return tuple(np.concatenate(column) for column in zip(*parts, strict=True))


class NABTwitterVolume(Format):
    """Mentions of companies per 5 minutes over 55 days: how the public bursts, as counts.

    Reads one of the ``Twitter_volume_*.csv`` as published (columns ``timestamp``, ``value``), or several
    joined on ``timestamp`` with a column each, where an empty cell counts as 0.
    """

    name = "nab-twitter-volume"
    description = "NAB: Twitter mentions of companies (55 days, counts per 5 min)"
    source = "Numenta Anomaly Benchmark, realTweets, github.com/numenta/NAB"
    licence = "MIT"

    column: str | None = Field(None, description="The count to take; by default the sum of all columns.")

    def record(self, path: Path, rng: np.random.Generator) -> Recording:
        taken = [self.column] if self.column else [c for c in read_header(path) if c != "timestamp"]
        kinds: Kinds = {"timestamp": "text", **dict.fromkeys(taken, "number")}
        rows, clock = Rows(path, kinds), Clock()
        starts, counts = [], []
        for batch in rows:
            starts.append(times_of(rows, batch, "timestamp", "timestamp", clock))
            nothing = np.zeros(len(starts[-1]), dtype=np.int64)
            counts.append(sum((rows.counts(batch, column) for column in taken), nothing))
        start_s = np.concatenate(starts)
        width_s = interval(path, start_s, "timestamp")
        how = f"uniform within each {width_s:g}-s count"
        origin = (
            self._recorded(path, covers="counts", derived=f"sum of {', '.join(taken)}"),
            self._drawn(how, rng),
        )
        return Recording(spread(start_s, width_s, np.concatenate(counts), rng), origin)


class AzureFunctions2019(Format):
    """Invocations of each function of a serverless platform per minute, a file per day.

    Reads ``invocations_per_function_md.anon.d01.csv`` as published (columns ``Trigger`` and ``1`` to ``1440``),
    or a folder with several of them, which follow each other. The counts of all functions are added up.
    """

    name = "azure-functions-2019"
    description = "Azure Functions 2019: invocations per minute of a serverless platform (a file or 14 days)"
    source = "Azure Functions Trace 2019, Shahrad et al., ATC 2020, github.com/Azure/AzurePublicDataset"
    licence = "CC-BY-4.0"

    trigger: str | None = Field(None, description="Keep only functions with this trigger, e.g. http.")
    share: float = Field(
        1.0, gt=0, le=1, description="Share of the invocations to keep, each with this probability."
    )

    def record(self, path: Path, rng: np.random.Generator) -> Recording:
        files = files_in(path, "invocations_per_function_md.anon.d*.csv")
        _check_days(files)
        count = np.concatenate([self._day(file) for file in files])
        kept = f", each kept with probability {self.share:g}" if self.share < 1 else ""
        if self.share < 1:
            count = rng.binomial(count, self.share)
        what = f"sum over functions{f' with trigger {self.trigger}' if self.trigger else ''}"
        origin = (
            self._recorded(path, covers="counts", derived=what),
            self._drawn(f"uniform within each minute{kept}", rng),
        )
        return Recording(spread(np.arange(len(count), dtype=np.float64) * 60.0, 60.0, count, rng), origin)

    def _day(self, path: Path) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        minutes = [str(minute) for minute in range(1, 1441)]
        kinds: Kinds = {"Trigger": "text", **dict.fromkeys(minutes, "number")}
        rows = Rows(path, kinds)
        count = np.zeros(1440, dtype=np.int64)
        for batch in rows:
            keep = np.full(len(batch["Trigger"]), True)
            if self.trigger is not None:
                keep = np.array(batch["Trigger"]) == self.trigger
            count += [int(rows.counts(batch, minute)[keep].sum()) for minute in minutes]
        return count


def _check_days(files: list[Path]) -> None:
    """Days of a folder that do not follow each other would be put side by side as if they did."""
    for before, after in pairwise(files):
        first, second = (re.search(r"\.d(\d+)", file.name) for file in (before, after))
        if first and second and int(second[1]) != int(first[1]) + 1:
            raise InputError(f"is not of the day after {before.name}; days follow each other", where=str(after))


class Counts(Format):
    """Counts per interval, such as tweets per second: one number a line, or a column of a CSV file.

    Rows follow each other without gaps, one interval each.
    """

    name = "counts"
    description = "Counts per interval, e.g. tweets per second: one number a line, or a column of a CSV file"
    source = "counts"
    licence = "the file's own"

    column: str | None = Field(
        None, description="Column of the count; by default the file has no header and one number a line."
    )
    interval_s: float = Field(1.0, gt=0, allow_inf_nan=False, description="Length of an interval.")
    rates: bool = Field(
        False, description="The numbers are means per interval, not counts: arrivals are Poisson around them."
    )
    origin: str = Field("", description="Source to state, where the file is of a known data set.")
    terms: str = Field("", description="Its licence.")

    def record(self, path: Path, rng: np.random.Generator) -> Recording:
        column = self.column or "count"
        rows = Rows(path, {column: "number"}, names=() if self.column else (column,))
        if self.rates:
            count = rng.poisson(np.concatenate([rows.means(b, column) for b in rows]))
        else:
            count = np.concatenate([rows.counts(b, column) for b in rows])
        if not count.sum():
            raise InputError("no arrival in any interval", where=str(path))
        recorded = self._recorded(path, covers="counts", derived=f"per {self.interval_s:g} s")
        if self.origin:
            recorded = recorded.model_copy(update={"source": f"{self.origin} ({path.name})"})
        if self.terms:
            recorded = recorded.model_copy(update={"licence": self.terms})
        how = "Poisson counts, " if self.rates else ""
        drawn = self._drawn(f"{how}uniform within each {self.interval_s:g}-s count", rng)
        start_s = np.arange(len(count), dtype=np.float64) * self.interval_s
        return Recording(spread(start_s, self.interval_s, count, rng), (recorded, drawn))


class ServeGen(Format):
    """Rate and inter-arrival distribution of each client of a model service, per 10-minute window.

    Reads ``chunk-<client>-trace.csv`` as published (no header: start in s, rate per s, cv, distribution, two
    parameters), a folder of them, or one Parquet table with the columns ``model``, ``client``, ``start_s``,
    ``rate_rps``, ``cv``, ``dist``, ``p1``, ``p2``. Within a window a client's gaps are independent draws from its
    distribution (Gamma: shape, scale; Weibull: shape, scale), and clients are superposed.
    """

    name = "servegen"
    description = "ServeGen: rates and gap distributions of a model service's clients (a day, 10-min windows)"
    source = "ServeGen, Xiang et al., NSDI 2026 (arXiv 2505.09999), github.com/alibaba/ServeGen"
    licence = "Apache-2.0"

    model: str | None = Field(None, description="Model to take, where a table holds several, e.g. mm-image.")

    def record(self, path: Path, rng: np.random.Generator) -> Recording:
        from argus_sim.importers.servegen import read_windows

        windows = read_windows(path, self.model)
        of = f"model {self.model}" if self.model else "all clients"
        how = f"gaps drawn from each client's distribution per {windows.width_s:g}-s window"
        origin = (self._recorded(path, covers="rates", derived=of), self._drawn(how, rng))

        def batches() -> Iterator[Batch]:
            for start_s, times in windows.sample(rng):
                yield Batch(times, since_s=start_s, until_s=start_s + windows.width_s)

        return Recording(batches(), origin)
