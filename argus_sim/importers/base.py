"""What all formats have in common: a recording read in batches, and the checks of what is in it."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict

from argus_sim.columns import cell, read_batches, read_header
from argus_sim.errors import InputError, did_you_mean
from argus_sim.provenance import Provenance
from argus_sim.trace import Trace
from argus_sim.trace.arrivals import seed_of
from argus_sim.trace.trace import Floats

Unit = Literal["s", "ms", "us", "ns", "min", "h", "timestamp"]
Kinds = Mapping[str, Literal["number", "text"]]

SECONDS: dict[Unit, float] = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9, "min": 60.0, "h": 3600.0}

#: Arrivals that are drawn at a time, and the most that one cell may speak of: they are held at once.
DRAWN_AT_ONCE = 1_000_000
MOST_AT_ONCE = 1e9

#: What is said of a cell that holds no time.
NO_STAMP = "is not an ISO 8601 timestamp of the years 1678 to 2261"
#: Of a file with a row, or with several of the same time: a trace without a length has no rate.
ONE_MOMENT = "all arrivals are at the same time; a trace needs two times at least"


@dataclass(frozen=True, slots=True)
class Batch:
    """Some arrivals in the order of the file.

    Attributes:
        times: float64[k], s.
        prompt: k texts, or None where the format has none.
        since_s, until_s: The stretch over which arrivals like these were watched; by default from the first to
            the last of them.
    """

    times: Floats
    prompt: list[str] | None = None
    since_s: float = math.inf
    until_s: float = -math.inf

    @property
    def start_s(self) -> float:
        return min(self.since_s, float(self.times.min()) if len(self.times) else math.inf)

    @property
    def end_s(self) -> float:
        return max(self.until_s, float(self.times.max()) if len(self.times) else -math.inf)


@dataclass(frozen=True, slots=True)
class Recording:
    """A file as its format reads it.

    Attributes:
        batches: Its arrivals.
        provenance: Where they come from.
        from_first: Times count from the earliest instant of any batch, and not from 0.
    """

    batches: Iterator[Batch]
    provenance: tuple[Provenance, ...]
    from_first: bool = False


class Format(BaseModel, ABC):
    """A way to read a trace. The fields of a subclass are its options, described for the command line.

    Attributes:
        name: What the user calls it.
        description: One line.
        source: Citation or address of the data set.
        licence: Its terms.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: ClassVar[str]
    description: ClassVar[str]
    source: ClassVar[str]
    licence: ClassVar[str]

    @abstractmethod
    def record(self, path: Path, rng: np.random.Generator) -> Recording:
        """The arrivals in a file of this format, batch by batch.

        Args:
            path: The file.
            rng: Draws what the format does not record; untouched where it records all.

        Raises:
            InputError: The file is not what the format says; names line and column. Also while iterating.
        """

    def read(self, path: Path, rng: np.random.Generator) -> Trace:
        """The whole trace in memory, sorted and named after the file; raises what :meth:`record` raises."""
        if not path.exists():
            raise InputError("no such file", where=str(path))
        recording = self.record(path, rng)
        batches = list(recording.batches)
        times = np.concatenate([batch.times for batch in batches]) if batches else np.empty(0)
        start_s = min((batch.start_s for batch in batches), default=0.0) if recording.from_first else 0.0
        end_s = max((batch.end_s for batch in batches), default=-math.inf)
        order = np.argsort(times, kind="stable")
        moved = bool((np.diff(order) < 0).any())
        if len(times) and end_s <= start_s:
            raise InputError(ONE_MOMENT, where=str(path))
        texts = [text for batch in batches for text in batch.prompt or ()]
        return Trace(
            name=path.stem,
            arrival_s=times[order] - start_s if recording.from_first else times[order],
            duration_s=end_s - start_s,
            provenance=recording.provenance,
            prompt=tuple(texts[row] for row in order) if texts else None,
            transformations=("sorted by time",) if moved else (),
        )

    def _recorded(self, path: Path, *, covers: str = "*", derived: str | None = None) -> Provenance:
        source = f"{self.source} ({path.name})"
        return Provenance(kind="recorded", source=source, covers=covers, derived=derived, licence=self.licence)

    def _drawn(self, how: str, rng: np.random.Generator) -> Provenance:
        source = f"argus_sim.importers {self.name}, {seed_of(rng)}"
        return Provenance(kind="synthetic", source=source, covers="arrival times", derived=how)


class Rows:
    """The rows of a CSV file in batches, checked cell by cell.

    Args:
        path: The file.
        kinds: Columns wanted and what they hold.
        names: Of all columns, where the file has no header.
    """

    def __init__(self, path: Path, kinds: Kinds, *, names: Sequence[str] = ()) -> None:
        self.path, self.kinds, self.names = path, kinds, names
        self._before = 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        rows = 0
        for batch in read_batches(self.path, self.kinds, names=self.names):
            self._before = rows
            rows += len(next(iter(batch.values())))
            yield batch
        if not rows:
            raise InputError("has no rows", where=str(self.path))

    def check(self, column: str, faulty: npt.NDArray[np.bool_], found: Sequence[str] | Floats, what: str) -> None:
        """Complain about the first faulty row of the current batch."""
        if faulty.any():
            row = int(np.argmax(faulty))
            where = cell(self.path, self._before + row, column, has_header=not self.names)
            raise InputError(f"{str(found[row])!r} {what}", where=where)

    def amounts(self, batch: Mapping[str, Any], column: str, *, missing: float = math.nan) -> Floats:
        """A column of finite numbers >= 0; ``missing`` stands for empty cells."""
        numbers: Floats = batch[column]
        numbers[np.isnan(numbers)] = missing
        self.check(column, ~(np.isfinite(numbers) & (numbers >= 0)), numbers, "is not a finite number >= 0")
        return numbers

    def means(self, batch: Mapping[str, Any], column: str) -> Floats:
        """A column of numbers of arrivals >= 0, not more than can be drawn; an empty cell is 0."""
        numbers = self.amounts(batch, column, missing=0.0)
        self.check(column, numbers > MOST_AT_ONCE, numbers, f"is above {MOST_AT_ONCE:g}, too many at once")
        return numbers

    def counts(self, batch: Mapping[str, Any], column: str) -> npt.NDArray[np.int64]:
        """A column of whole numbers >= 0; an empty cell is 0."""
        numbers = self.means(batch, column)
        self.check(column, numbers % 1 != 0, numbers, "is not a whole number")
        return numbers.astype(np.int64)


class Clock:
    """Timestamps (ISO 8601, UTC unless they say otherwise) as seconds from the first that was read."""

    def __init__(self) -> None:
        self._zero_ns: int | None = None

    def seconds(self, texts: Sequence[Any], fault: Callable[[npt.NDArray[np.bool_]], None]) -> Floats:
        """float64[n], s, possibly negative; ``fault`` complains about rows that are no timestamps."""
        stamps = pd.to_datetime(pd.Series(texts), errors="coerce", format="ISO8601", utc=True)
        # In nanoseconds since 1970 there are no others.
        known = stamps.dt.year.between(1678, 2261)
        fault(~known.to_numpy())
        ns = pd.DatetimeIndex(stamps).as_unit("ns").asi8
        if self._zero_ns is None and len(ns):
            self._zero_ns = int(ns[0])
        return np.asarray((ns - (self._zero_ns or 0)) / 1e9, dtype=np.float64)


def times_of(rows: Rows, batch: Mapping[str, Any], column: str, unit: Unit, clock: Clock) -> Floats:
    """A column of times in seconds; timestamps count from the first of the file."""
    if unit != "timestamp":
        return rows.amounts(batch, column) * SECONDS[unit]
    texts = batch[column]
    return clock.seconds(texts, lambda bad: rows.check(column, bad, texts, NO_STAMP))


def seconds_or_stamps(path: Path, seconds: str, stamps: str) -> tuple[str, Unit]:
    """Which of two columns a file has its times in."""
    return (seconds, "s") if seconds in read_header(path) else (stamps, "timestamp")


def spread(
    start_s: Floats, width_s: float, count: npt.NDArray[np.int64], rng: np.random.Generator
) -> Iterator[Batch]:
    """Arrivals, uniform within intervals of the same width that hold these counts; ascending.

    A stretch of many arrivals is drawn piece by piece; an interval with more of them than are drawn at once is
    one piece.
    """
    total = np.cumsum(count)
    first = 0
    while first < len(count):
        done = total[first - 1] if first else 0
        after = max(first + 1, int(np.searchsorted(total, done + DRAWN_AT_ONCE, side="right")))
        times = np.repeat(start_s[first:after], count[first:after])
        times = np.sort(times + rng.random(len(times)) * width_s)
        yield Batch(times, since_s=float(start_s[first]), until_s=float(start_s[after - 1] + width_s))
        first = after


def interval(path: Path, start_s: Floats, column: str) -> float:
    """The usual distance of ascending times."""
    if len(start_s) < 2:
        raise InputError("needs at least two rows", where=str(path))
    steps = np.diff(start_s)
    if (steps <= 0).any():
        row = int(np.argmax(steps <= 0)) + 1
        raise InputError("is no later than the row before it", where=cell(path, row, column))
    return float(np.median(steps))


def parquet_batches(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Row number of the first row, and the columns wanted, batch by batch."""
    if not path.is_file():
        raise InputError("no such file", where=str(path))
    try:
        file = pq.ParquetFile(path, pre_buffer=False)
    except pa.ArrowInvalid as error:
        raise InputError(f"not a Parquet file: {error}", where=str(path)) from error
    with file:
        for column in columns:
            if column not in file.schema_arrow.names:
                hint = did_you_mean(column, file.schema_arrow.names)
                raise InputError(f"no column {column!r}{hint}", where=str(path))
        row = 0
        for batch in file.iter_batches(columns=list(columns)):
            yield row, batch
            row += batch.num_rows
        if not row:
            raise InputError("has no rows", where=str(path))


def files_in(path: Path, pattern: str) -> list[Path]:
    """The path itself, or the files of a folder whose names match, in the order of their names."""
    if not path.is_dir():
        return [path]
    found = sorted(path.glob(pattern))
    if not found:
        raise InputError(f"holds no file {pattern!r}", where=str(path))
    return found
