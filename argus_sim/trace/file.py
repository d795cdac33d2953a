"""The two file formats of a trace, told apart by suffix.

Both carry the same JSON object, a :class:`Header`:

* ``.parquet``: a column ``arrival_s`` and, where known, ``prompt``; the header is in the schema's metadata
  under the key ``argus_sim.trace``.
* ``.csv``: the same columns under a line that names them; the header is the line before that one,
  ``# argus_sim.trace: {...}``.

The header may be missing. The trace is then named after the file, ends with its last arrival, and its
provenance is ``recorded`` with the file as the source.
"""

from __future__ import annotations

import codecs
import csv
import hashlib
import math
import os
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, ValidationError

from argus_sim.columns import cell, read_batches, read_header, read_numbers, read_texts
from argus_sim.errors import InputError, did_you_mean, wording
from argus_sim.provenance import Provenance

Floats = npt.NDArray[np.float64]

_KEY = "argus_sim.trace"
_COMMENT = f"# {_KEY}: ".encode()
_SUFFIXES = (".csv", ".parquet")
#: No trace that counts from its own start has its first arrival later, 3 years.
LATEST_START_S = 3 * 365 * 86_400.0


class Header(BaseModel):
    """What a file says about its arrivals; the fields are those of :class:`~argus_sim.trace.Trace`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    duration_s: float
    provenance: tuple[Provenance, ...]
    transformations: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Summary:
    """What can be said of a trace without holding it; ``digest`` is :meth:`argus_sim.trace.Trace.digest`."""

    header: Header
    count: int
    digest: str


def read(path: Path) -> tuple[Header, Floats, list[str] | None]:
    """Header, arrival times (ascending seconds, at least one) and prompts of a file.

    Raises:
        InputError: No such file, another suffix, or contents that are no trace; names the file and the line
            (CSV) or row (Parquet, from 1).
    """
    _check_suffix(path)
    if not path.is_file():
        raise InputError("no such file", where=str(path))
    return _read_csv(path) if path.suffix == ".csv" else _read_parquet(path)


def write(path: Path, header: Header, arrival_s: Floats, prompt: Sequence[str] | None) -> None:
    """Write a file that :func:`read` gives back exactly; it appears whole or not at all.

    Raises:
        InputError: Another suffix.
    """
    _check_suffix(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        (_write_csv if path.suffix == ".csv" else _write_parquet)(part, header, arrival_s, prompt)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def read_in_batches(path: Path) -> tuple[Header | None, Iterator[Floats]]:
    """Header, where there is one, and arrival times in batches: a file of any length takes the same memory.

    Raises:
        InputError: As :func:`read`; what is wrong with the arrivals, while iterating.
    """
    _check_suffix(path)
    if not path.is_file():
        raise InputError("no such file", where=str(path))
    if path.suffix == ".csv":
        text, skip_lines = _csv_header(path)
        _check_names(read_header(path, skip_lines=skip_lines), path)
        where = f"{path}: line 1"
        batches = (
            batch["arrival_s"] for batch in read_batches(path, {"arrival_s": "number"}, skip_lines=skip_lines)
        )

        def at(row: int) -> str:
            return cell(path, row, "arrival_s", skip_lines=skip_lines)
    else:
        file = _parquet_file(path)
        text = (file.schema_arrow.metadata or {}).get(_KEY.encode())
        where = f"{path}: metadata {_KEY!r}"
        batches = (
            np.asarray(batch["arrival_s"].cast(pa.float64()).to_numpy(zero_copy_only=False), dtype=np.float64)
            for batch in file.iter_batches(columns=["arrival_s"])
        )

        def at(row: int) -> str:
            return f"{path}: row {row + 1}, column 'arrival_s'"

    if text is None:
        return None, _in_order(_from_its_start(batches, path), at)
    return _validated(text, where), _in_order(batches, at)


def _from_its_start(batches: Iterable[Floats], path: Path) -> Iterator[Floats]:
    first = True
    for times in batches:
        if first and len(times):
            _check_start(float(times[0]), path)
            first = False
        yield times


def _check_start(first_s: float, path: Path) -> None:
    """Refuse times that count from 1970, or are in another unit."""
    if LATEST_START_S < first_s < math.inf:
        format = path.suffix[1:]
        raise InputError(
            f"begins at {first_s:.4g} s, years after its start; 'argus-sim traces import {format}' counts from "
            "the first arrival (-o from_first=true) and knows other units (-o unit=ms)",
            where=str(path),
        )


def _in_order(batches: Iterable[Floats], at: Callable[[int], str]) -> Iterator[Floats]:
    row, last_s = 0, -math.inf
    for times in batches:
        fault = first_fault(times, after_s=last_s)
        if fault:
            raise InputError(fault[1], where=at(row + fault[0]))
        if len(times):
            row, last_s = row + len(times), float(times[-1])
            yield times


def write_batches(path: Path, batches: Iterable[Floats], header: Callable[[], Header]) -> Summary:
    """Write a ``.parquet`` file of ascending times without holding them.

    Args:
        header: Called when all batches are written.

    Raises:
        InputError: Another suffix, not one arrival, or whatever the batches raise; nothing is left behind then.
    """
    if path.suffix != ".parquet":
        raise InputError(f"only .parquet can be written in batches, found {path.suffix!r}", where=str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    schema = pa.schema([("arrival_s", pa.float64())])
    content, count = hashlib.sha256(), 0
    try:
        with pq.ParquetWriter(part, schema, compression="zstd", use_dictionary=False) as file:
            for times in batches:
                file.write_batch(pa.record_batch([pa.array(times)], schema=schema))
                content.update(times.astype("<f8").tobytes())
                count += len(times)
            if not count:
                raise InputError("has no arrivals", where=str(path))
            said = header()
            file.add_key_value_metadata({_KEY: said.model_dump_json(exclude_defaults=True)})
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    content.update(struct.pack("<d", said.duration_s))
    return Summary(said, count, content.hexdigest())


def first_fault(arrival_s: Floats, *, after_s: float = -math.inf) -> tuple[int, str] | None:
    """Position and description of an arrival time that cannot be one, or None.

    Args:
        after_s: The arrival before the first.
    """
    for faulty, what in (
        (~np.isfinite(arrival_s), "is not a finite number"),
        (arrival_s < 0, "is negative; a trace starts at 0"),
        (np.diff(arrival_s, prepend=after_s) < 0, "is earlier than the arrival before it"),
    ):
        if faulty.any():
            row = int(np.argmax(faulty))
            return row, f"arrival time {arrival_s[row]:g} {what}"
    return None


def _read_csv(path: Path) -> tuple[Header, Floats, list[str] | None]:
    header, skip = _csv_header(path)
    names = read_header(path, skip_lines=skip)
    _check_names(names, path)
    prompted = "prompt" in names
    times = read_numbers(path, "arrival_s", skip_lines=skip)
    fault = first_fault(times)
    if fault:
        raise InputError(fault[1], where=cell(path, fault[0], "arrival_s", skip_lines=skip))
    prompt = read_texts(path, "prompt", skip_lines=skip) if prompted else None
    return _parse_header(header, path, times, where=f"{path}: line 1"), times, prompt


def _csv_header(path: Path) -> tuple[bytes | None, int]:
    """The header as JSON, where there is one, and the lines that it takes."""
    with path.open("rb") as file:
        line = file.readline().removeprefix(codecs.BOM_UTF8)
    return (line.removeprefix(_COMMENT), 1) if line.startswith(_COMMENT) else (None, 0)


def _write_csv(path: Path, header: Header, arrival_s: Floats, prompt: Sequence[str] | None) -> None:
    times = arrival_s.tolist()
    with path.open("w", newline="", encoding="utf-8") as file:
        file.write(f"{_COMMENT.decode()}{header.model_dump_json(exclude_defaults=True)}\n")
        file.write("arrival_s\n" if prompt is None else "arrival_s,prompt\n")
        # Minimal quoting would leave a lone carriage return bare, which reads back as the end of the row.
        rows = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
        rows.writerows(zip(times, strict=True) if prompt is None else zip(times, prompt, strict=True))


def _read_parquet(path: Path) -> tuple[Header, Floats, list[str] | None]:
    with _parquet_file(path) as file:
        table = file.read(columns=[n for n in ("arrival_s", "prompt") if n in file.schema_arrow.names])
    names, column = table.column_names, table["arrival_s"]
    times = np.asarray(column.cast(pa.float64()).to_numpy(), dtype=np.float64)
    fault = first_fault(times)
    if fault:
        raise InputError(fault[1], where=f"{path}: row {fault[0] + 1}, column 'arrival_s'")
    prompt = table["prompt"].to_pylist() if "prompt" in names else None
    if prompt is not None and not all(isinstance(text, str) for text in prompt):
        raise InputError("column 'prompt' must hold text in every row", where=str(path))
    header = (table.schema.metadata or {}).get(_KEY.encode())
    return _parse_header(header, path, times, where=f"{path}: metadata {_KEY!r}"), times, prompt


def _parquet_file(path: Path) -> pq.ParquetFile:
    """An open file that has arrival times."""
    try:
        file = pq.ParquetFile(path, pre_buffer=False)  # a buffer would grow to the size of the file
    except pa.ArrowInvalid as error:
        raise InputError(f"not a Parquet file: {error}", where=str(path)) from error
    schema = file.schema_arrow
    _check_names(schema.names, path)
    found = schema.field("arrival_s").type
    if not (pa.types.is_floating(found) or pa.types.is_integer(found)):
        raise InputError(f"column 'arrival_s' must hold numbers, found {found}", where=str(path))
    return file


def _check_names(names: Sequence[str], path: Path) -> None:
    if "arrival_s" not in names:
        hint = did_you_mean("arrival_s", names)
        other = f"'argus-sim traces import {path.suffix[1:]}' reads another one (-o time_column=NAME)."
        raise InputError(f"no column 'arrival_s'{hint} {other}", where=str(path))


def _write_parquet(path: Path, header: Header, arrival_s: Floats, prompt: Sequence[str] | None) -> None:
    columns = {"arrival_s": pa.array(arrival_s)}
    if prompt is not None:
        columns["prompt"] = pa.array(prompt, pa.string())
    metadata = {_KEY: header.model_dump_json(exclude_defaults=True)}
    table = pa.table(columns).replace_schema_metadata(metadata)
    pq.write_table(table, path, compression="zstd", use_dictionary=["prompt"])


def _parse_header(text: bytes | None, path: Path, arrival_s: Floats, *, where: str) -> Header:
    if not len(arrival_s):
        raise InputError("has no arrivals", where=str(path))
    if text is None:
        _check_start(float(arrival_s[0]), path)
        origin = Provenance(kind="recorded", source=f"{path.name} (the file does not state its origin)")
        return Header(name=path.stem, duration_s=float(arrival_s[-1]), provenance=(origin,))
    return _validated(text, where)


def _validated(text: bytes, where: str) -> Header:
    try:
        return Header.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise InputError(f"{field}: {wording(first)}" if field else wording(first), where=where) from error


def _check_suffix(path: Path) -> None:
    if path.suffix not in _SUFFIXES:
        raise InputError(f"not a trace file{did_you_mean(path.suffix, _SUFFIXES)}", where=str(path))
