"""Public traces in the formats they are published in: each format is one class here.

A data set of requests gives arrivals as they were recorded; those out of order are sorted, and the trace says
so. A data set of rates or counts does not know when requests arrived within an interval: that is drawn at
random, and the provenance then has two parts.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from argus_sim.arrivals import RateCurve, first_problem, seed_of
from argus_sim.columns import cell, read_header, read_numbers, read_texts
from argus_sim.errors import InputError, did_you_mean
from argus_sim.provenance import Provenance
from argus_sim.trace import Floats, Trace

Unit = Literal["s", "ms", "us", "ns", "min", "h", "timestamp"]

_SECONDS: dict[Unit, float] = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9, "min": 60.0, "h": 3600.0}


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
    def read(self, path: Path, rng: np.random.Generator) -> Trace:
        """The trace in a file of this format, named after the file.

        Args:
            path: The file.
            rng: Draws what the format does not record; untouched where it records all.

        Raises:
            InputError: The file is not what the format says; names line and column.
        """

    def _recorded(self, path: Path, *, covers: str = "*", derived: str | None = None) -> Provenance:
        source = f"{self.source} ({path.name})"
        return Provenance(kind="recorded", source=source, covers=covers, derived=derived, licence=self.licence)

    def _drawn(self, how: str, rng: np.random.Generator) -> Provenance:
        source = f"argus_sim.importers {self.name}, {seed_of(rng)}"
        return Provenance(kind="synthetic", source=source, covers="arrival times", derived=how)


class GenTD26Requests(Format):
    """One row per request of a production Stable Diffusion service, to the second, over 23 days.

    Reads ``lora_request_trace.csv`` as published (column ``gmt_create``), or with ``t_s``, seconds, instead.
    """

    name = "gentd26-requests"
    description = "Alibaba GenTD26: requests of a text-to-image service (23 days, 1-s stamps)"
    source = "GenTD26, Lin et al., SoCC 2025, github.com/alibaba/clusterdata cluster-trace-v2026-GenAI"
    licence = "research or study purposes; cite the paper"

    predict_type: Literal["TXT_2_IMG", "IMG_2_IMG", "INPAINTING", "all"] = Field(
        "TXT_2_IMG", description="Keep only requests of this type."
    )

    def read(self, path: Path, rng: np.random.Generator) -> Trace:
        times = _seconds_or_stamps(path, "t_s", "gmt_create")
        types = np.array(read_texts(path, "predict_type"))
        keep = np.full(len(times), True) if self.predict_type == "all" else types == self.predict_type
        origin = self._recorded(path, derived=f"requests of predict_type {self.predict_type}")
        # The service was watched until the last request, whatever its type.
        return _trace(path, times[keep], float(times.max()), (origin,))


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

    def read(self, path: Path, rng: np.random.Generator) -> Trace:
        start_s = _seconds(path, "t_s", "s")
        width_s = _interval(path, start_s, "t_s")
        per_s = _amounts(path, "generative_qps") * self.scale
        curve = RateCurve(np.append(start_s, start_s[-1] + width_s) - start_s[0], per_s, per_s)
        how = f"Poisson arrivals at {self.scale:g} x generative_qps within each {width_s:g}-s sample"
        origin = (self._recorded(path, covers="rate per sample"), self._drawn(how, rng))
        return _trace(path, curve.sample(rng), float(curve.edge_s[-1]), origin)


class AzureLLM2023(Format):
    """One row per request of a language-model service over an hour: real bursts, though not of images.

    Reads ``AzureLLMInferenceTrace_code.csv`` or ``_conv.csv`` as published (column ``TIMESTAMP``), or with
    ``t_s``, seconds, instead.
    """

    name = "azure-llm-2023"
    description = "Azure LLM inference 2023: requests of a language-model service (1 h, code or conversation)"
    source = "Azure LLM inference trace 2023, Patel et al., ISCA 2024, github.com/Azure/AzurePublicDataset"
    licence = "CC-BY-4.0"

    def read(self, path: Path, rng: np.random.Generator) -> Trace:
        times = _seconds_or_stamps(path, "t_s", "TIMESTAMP")
        return _trace(path, times, float(times.max()), (self._recorded(path),))


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

    def read(self, path: Path, rng: np.random.Generator) -> Trace:
        start_s = _seconds(path, "timestamp", "timestamp")
        width_s = _interval(path, start_s, "timestamp")
        taken = [self.column] if self.column else [c for c in read_header(path) if c != "timestamp"]
        count = sum((_counts(path, column) for column in taken), np.zeros(len(start_s), dtype=np.int64))
        times = np.repeat(start_s, count)
        times = np.sort(times + rng.random(len(times)) * width_s)
        how = f"uniform within each {width_s:g}-s count"
        origin = (
            self._recorded(path, covers="counts", derived=f"sum of {', '.join(taken)}"),
            self._drawn(how, rng),
        )
        return _trace(path, times, float(start_s[-1] + width_s), origin)


class CSV(Format):
    """Any CSV file with a header and one row per arrival."""

    name = "csv"
    description = "Any CSV file with one row per arrival"
    source = "CSV file"
    licence = "the file's own"

    time_column: str = Field("arrival_s", description="Column of the arrival time.")
    unit: Unit = Field("s", description="What the times are in; timestamps are ISO 8601.")
    from_first: bool = Field(
        False, description="Count from the first arrival (always so for timestamps) instead of from 0."
    )
    prompt_column: str | None = Field(None, description="Column of the prompt text.")

    def read(self, path: Path, rng: np.random.Generator) -> Trace:
        times = _seconds(path, self.time_column, self.unit)
        if self.from_first:
            times -= times.min()
        prompt = None if self.prompt_column is None else read_texts(path, self.prompt_column)
        return _trace(path, times, float(times.max()), (self._recorded(path),), prompt)


FORMATS: dict[str, type[Format]] = {
    kind.name: kind for kind in (GenTD26Requests, GenTD26Gateway, AzureLLM2023, NABTwitterVolume, CSV)
}


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
    if format not in FORMATS:
        raise InputError(f"no trace format is called {format!r}{did_you_mean(format, FORMATS)}")
    kind = FORMATS[format]
    try:
        reader = kind.model_validate(options)
    except ValidationError as error:
        option = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise InputError(first_problem(error, kind.model_fields), where=f"format {format}: {option}") from error
    return reader.read(Path(path), rng)


def _seconds_or_stamps(path: Path, seconds: str, stamps: str) -> Floats:
    if seconds in read_header(path):
        return _seconds(path, seconds, "s")
    return _seconds(path, stamps, "timestamp")


def _seconds(path: Path, column: str, unit: Unit) -> Floats:
    """A column of times in seconds, in the order of the file; timestamps count from the earliest of them."""
    if unit != "timestamp":
        return _amounts(path, column) * _SECONDS[unit]
    texts = read_texts(path, column)
    stamps = pd.to_datetime(texts, errors="coerce", format="ISO8601", utc=True)
    _check_rows(path, column, np.asarray(stamps.isna()), texts, "is not an ISO 8601 timestamp")
    return np.asarray((stamps - stamps.min()).total_seconds(), dtype=np.float64)


def _amounts(path: Path, column: str, *, missing: float = math.nan) -> Floats:
    """A column of finite numbers >= 0, in the order of the file; ``missing`` stands for empty cells."""
    numbers = read_numbers(path, column)
    numbers[np.isnan(numbers)] = missing
    _check_rows(path, column, ~(np.isfinite(numbers) & (numbers >= 0)), numbers, "is not a finite number >= 0")
    return numbers


def _counts(path: Path, column: str) -> npt.NDArray[np.int64]:
    numbers = _amounts(path, column, missing=0.0)
    _check_rows(path, column, numbers % 1 != 0, numbers, "is not a whole number")
    return numbers.astype(np.int64)


def _check_rows(
    path: Path, column: str, faulty: npt.NDArray[np.bool_], found: Sequence[str] | Floats, what: str
) -> None:
    if not len(found):
        raise InputError("has no rows", where=str(path))
    if faulty.any():
        row = int(np.argmax(faulty))
        raise InputError(f"{str(found[row])!r} {what}", where=cell(path, row, column))


def _interval(path: Path, start_s: Floats, column: str) -> float:
    """The usual distance of ascending times."""
    if len(start_s) < 2:
        raise InputError("needs at least two rows", where=str(path))
    steps = np.diff(start_s)
    if (steps <= 0).any():
        row = int(np.argmax(steps <= 0)) + 1
        raise InputError("is no later than the row before it", where=cell(path, row, column))
    return float(np.median(steps))


def _trace(
    path: Path,
    times: Floats,
    duration_s: float,
    provenance: tuple[Provenance, ...],
    prompt: list[str] | None = None,
) -> Trace:
    order = np.argsort(times, kind="stable")
    moved = bool((np.diff(order) < 0).any())
    return Trace(
        name=path.stem,
        arrival_s=times[order],
        duration_s=duration_s,
        provenance=provenance,
        prompt=None if prompt is None else tuple(prompt[row] for row in order),
        transformations=("sorted by time",) if moved else (),
    )
