"""Any table with one row per arrival."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import Field

from argus_sim.columns import read_header
from argus_sim.errors import InputError, did_you_mean
from argus_sim.importers.base import (
    NO_STAMP,
    SECONDS,
    Batch,
    Clock,
    Format,
    Kinds,
    Recording,
    Rows,
    Unit,
    parquet_batches,
    times_of,
)
from argus_sim.provenance import Provenance
from argus_sim.trace.file import LATEST_START_S
from argus_sim.trace.trace import Floats


class _Table(Format):
    licence = "the file's own"

    time_column: str = Field("arrival_s", description="Column of the arrival time.")
    unit: Unit = Field("s", description="What the times are in; timestamps are ISO 8601.")
    from_first: bool = Field(
        False, description="Count from the first arrival (always so for timestamps) instead of from 0."
    )
    prompt_column: str | None = Field(None, description="Column of the prompt text.")
    origin: str = Field("", description="Source to state, where the file is of a known data set.")
    terms: str = Field("", description="Its licence.")

    def record(self, path: Path, rng: np.random.Generator) -> Recording:
        origin = self._recorded(path)
        if self.origin:
            origin = Provenance(kind="recorded", source=f"{self.origin} ({path.name})", licence=origin.licence)
        if self.terms:
            origin = origin.model_copy(update={"licence": self.terms})
        from_first = self.from_first or self.unit == "timestamp"
        batches = self._batches(path) if from_first else _from_zero(self._batches(path), path)
        return Recording(batches, (origin,), from_first=from_first)

    def _batches(self, path: Path) -> Iterator[Batch]:
        raise NotImplementedError


def _from_zero(batches: Iterator[Batch], path: Path) -> Iterator[Batch]:
    """Those that count from 0; a trace that begins after years counts from 1970, or is in another unit."""
    first_s = math.inf
    for batch in batches:
        first_s = min(first_s, batch.start_s)
        yield batch
    if LATEST_START_S < first_s < math.inf:
        raise InputError(
            f"begins at {first_s:.4g} s; count from its first arrival (from_first=true), or see to the unit",
            where=str(path),
        )


class CSV(_Table):
    """Any CSV file with a header and one row per arrival."""

    name = "csv"
    description = "Any CSV file with one row per arrival"
    source = "CSV file"

    def _batches(self, path: Path) -> Iterator[Batch]:
        kinds: Kinds = {self.time_column: "text" if self.unit == "timestamp" else "number"}
        if self.prompt_column is not None:
            kinds = {**kinds, self.prompt_column: "text"}
        if self.time_column not in (names := read_header(path)):
            hint = did_you_mean(self.time_column, names)
            raise InputError(
                f"no column {self.time_column!r}{hint} Say which has the times: time_column=NAME", where=str(path)
            )
        rows, clock = Rows(path, kinds), Clock()
        for batch in self._of(rows):
            times = times_of(rows, batch, self.time_column, self.unit, clock)
            yield Batch(times, None if self.prompt_column is None else batch[self.prompt_column])

    def _of(self, rows: Rows) -> Iterator[dict[str, Any]]:
        """The batches; where a time is no number, the error says how dates are read."""
        try:
            yield from rows
        except InputError as error:
            is_time = f"column {self.time_column!r}" in (error.where or "")
            if not is_time or self.unit == "timestamp" or not error.message.endswith("is not a number"):
                raise
            raise InputError(f"{error.message}; dates need unit=timestamp", where=error.where) from error


class Parquet(_Table):
    """Any Parquet file with one row per arrival; a column of timestamps may hold texts or Parquet's own."""

    name = "parquet"
    description = "Any Parquet file with one row per arrival"
    source = "Parquet file"

    def _batches(self, path: Path) -> Iterator[Batch]:
        clock = Clock()
        wanted = [self.time_column, *([] if self.prompt_column is None else [self.prompt_column])]
        for row, batch in parquet_batches(path, wanted):
            prompt = None
            if self.prompt_column is not None:
                prompt = batch[self.prompt_column].to_pylist()
                if not all(isinstance(text, str) for text in prompt):
                    what = f"column {self.prompt_column!r} must hold text in every row"
                    raise InputError(what, where=str(path))
            yield Batch(self._times(path, row, batch[self.time_column], clock), prompt)

    def _times(self, path: Path, before: int, column: pa.Array, clock: Clock) -> Floats:
        def check(bad: np.ndarray[tuple[int], np.dtype[np.bool_]], what: str) -> None:
            if bad.any():
                row = int(np.argmax(bad))
                where = f"{path}: row {before + row + 1}, column {self.time_column!r}"
                raise InputError(f"{str(column[row].as_py())!r} {what}", where=where)

        if self.unit == "timestamp":
            texts = column.cast(pa.string()).to_pylist()
            return clock.seconds(texts, lambda bad: check(bad, NO_STAMP))
        if not (pa.types.is_floating(column.type) or pa.types.is_integer(column.type)):
            what = f"column {self.time_column!r} must hold numbers, found {column.type}"
            raise InputError(what, where=str(path))
        times = np.array(column.cast(pa.float64()).to_numpy(zero_copy_only=False)) * SECONDS[self.unit]
        check(~(np.isfinite(times) & (times >= 0)), "is not a finite number >= 0")
        return times
