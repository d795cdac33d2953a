"""Public traces in the formats they are published in: each format is one class here.

A data set of requests gives arrivals as they were recorded; those out of order are sorted, and the trace says
so. A data set of rates or counts does not know when requests arrived within an interval: that is drawn at
random, and the provenance then has two parts.

Files are read in batches. :func:`import_trace` gives the trace as a whole; :func:`import_file` writes it as it is
read where it is in order and has no prompts, so that its length does not matter.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
from pydantic import ValidationError

from argus_sim.errors import InputError, did_you_mean
from argus_sim.importers.base import ONE_MOMENT, Batch, Format, Recording
from argus_sim.importers.counts import AzureFunctions2019, Counts, GenTD26Gateway, NABTwitterVolume, ServeGen
from argus_sim.importers.requests import (
    AzureFunctions2021,
    AzureLLM2023,
    AzureLLM2024,
    BurstGPT,
    DiffServe,
    DiffusionDB,
    GenTD26Requests,
    Mooncake,
    Proteus,
)
from argus_sim.importers.tables import CSV, Parquet
from argus_sim.trace import Trace
from argus_sim.trace import file as tracefile
from argus_sim.trace.arrivals import first_problem
from argus_sim.trace.trace import Floats

__all__ = ["FORMATS", "Batch", "Format", "Recording", "import_file", "import_trace"]

FORMATS: dict[str, type[Format]] = {
    kind.name: kind
    for kind in (
        *(GenTD26Requests, GenTD26Gateway, DiffusionDB, DiffServe, Proteus),
        *(AzureLLM2023, AzureLLM2024, AzureFunctions2019, AzureFunctions2021, BurstGPT, Mooncake, ServeGen),
        *(NABTwitterVolume, Counts, CSV, Parquet),
    )
}


def file_options(format: str) -> list[str]:
    """The options of a format that name files; none of an unknown format."""
    fields = FORMATS[format].model_fields if format in FORMATS else {}
    return [name for name, field in fields.items() if Path in (field.annotation, *get_args(field.annotation))]


def reader(format: str, **options: object) -> Format:
    """The format with its options; text is converted, as from a command line.

    Raises:
        InputError: Unknown format or option.
    """
    if format not in FORMATS:
        raise InputError(f"no trace format is called {format!r}{did_you_mean(format, FORMATS)}")
    kind = FORMATS[format]
    try:
        return kind.model_validate(options)
    except ValidationError as error:
        option = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise InputError(first_problem(error, kind.model_fields), where=f"format {format}: {option}") from error


def import_trace(format: str, path: str | Path, *, rng: np.random.Generator, **options: object) -> Trace:
    """The trace in a file of a public format.

    Args:
        format: A key of ``FORMATS``.
        path: The file.
        rng: A fresh generator, for what the format does not record.
        options: Fields of the format's class; text is converted, as from a command line.

    Raises:
        InputError: Unknown format or option, or the file is not in that format; names line and column.
    """
    return reader(format, **options).read(Path(path), rng)


class _NotInOrder(Exception):
    """The arrivals must be sorted first."""


@dataclass
class _Writer:
    """Passes times on as they are read, and knows at the end what the header must say."""

    recording: Recording
    zero_s: float | None = None
    last_s: float = 0.0
    end_s: float = 0.0

    def times(self) -> Iterator[Floats]:
        for batch in self.recording.batches:
            if batch.prompt is not None:
                raise _NotInOrder
            if self.zero_s is None:
                self.zero_s = batch.start_s if self.recording.from_first else 0.0
            times = batch.times - self.zero_s if self.recording.from_first else batch.times
            if batch.start_s < self.zero_s or (np.diff(times, prepend=self.last_s) < 0).any():
                raise _NotInOrder
            if len(times):
                self.last_s = float(times[-1])
                yield times
            self.end_s = max(self.end_s, batch.end_s - self.zero_s)


def import_file(
    format: str, path: str | Path, out: str | Path, *, seed: int = 0, **options: object
) -> tracefile.Summary:
    """Write the trace in a file of a public format to a ``.csv`` or ``.parquet`` file.

    The result is that of ``import_trace(...).save(out)``. A Parquet file is written while the source is read
    when that is in order and has no prompts: memory does not grow with its length. Otherwise all arrival times
    (8 bytes each) and prompts are held in memory.

    Raises:
        InputError: As :func:`import_trace`; nothing is left behind.
    """
    path, out = Path(path), Path(out)
    format_reader = reader(format, **options)
    if not path.exists():
        raise InputError("no such file", where=str(path))
    if out.suffix == ".parquet":
        writer = _Writer(format_reader.record(path, np.random.default_rng(seed)))

        def header() -> tracefile.Header:
            if not writer.end_s > 0:
                raise InputError(ONE_MOMENT, where=str(path))
            return tracefile.Header(
                name=path.stem, duration_s=writer.end_s, provenance=writer.recording.provenance
            )

        try:
            return tracefile.write_batches(out, writer.times(), header)
        except _NotInOrder:
            pass
    trace = format_reader.read(path, np.random.default_rng(seed))
    trace.save(out)
    return trace.summary()
