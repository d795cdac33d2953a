"""Columns of a CSV file that somebody else wrote, with errors that name file, line and column."""

from __future__ import annotations

import csv
import gzip
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv

from argus_sim.errors import InputError, did_you_mean

# A byte order mark is not part of the first column's name.
_ENCODING = "utf-8-sig"
#: What reading a file raises that is no text, or no longer all there. Arrow unpacks what ends in .gz by itself.
_UNREADABLE = (UnicodeDecodeError, csv.Error, gzip.BadGzipFile, EOFError, zlib.error)


def read_header(path: Path, *, skip_lines: int = 0) -> list[str]:
    """The names of the columns.

    Args:
        skip_lines: Lines before the header.

    Raises:
        InputError: No such file, or no text.
    """
    if not path.is_file():
        raise InputError("no such file", where=str(path))
    try:
        header = next(_records(path, skip_lines), (0, list[str]()))[1]
    except _UNREADABLE as error:
        raise InputError(f"not a CSV file that can be read: {error}", where=str(path)) from error
    if not header:
        raise InputError("is empty", where=str(path))
    if len(header) == 1 and (other := next((mark for mark in ";\t|" if mark in header[0]), None)):
        raise InputError(
            f"has {other!r} between its columns; allowed are commas", where=f"{path}: line {skip_lines + 1}"
        )
    return header


def read_numbers(path: Path, column: str, *, skip_lines: int = 0) -> npt.NDArray[np.float64]:
    """A column of numbers: float64[rows], NaN for an empty cell.

    Raises:
        InputError: No such file, no such column, a cell that is no number, or a row of another length.
    """
    numbers = _read(path, column, pa.float64(), skip_lines)
    return np.array(numbers.to_numpy(), dtype=np.float64)  # Arrow's own memory is read-only


def read_texts(path: Path, column: str, *, skip_lines: int = 0) -> list[str]:
    """A column of texts, as they stand.

    Raises:
        InputError: No such file, no such column, or a row of another length.
    """
    texts: list[str] = _read(path, column, pa.string(), skip_lines).to_pylist()
    return texts


def read_batches(
    path: Path, kinds: Mapping[str, Literal["number", "text"]], *, names: Sequence[str] = (), skip_lines: int = 0
) -> Iterator[dict[str, Any]]:
    """Columns in batches of some thousand rows, so that a file of any size takes the same memory.

    Args:
        kinds: Which columns, and what they hold.
        names: Of all columns of a file that has no header.
        skip_lines: Lines before the header, or before the first row.

    Yields:
        column -> float64[rows] (NaN for an empty cell) or list of texts.

    Raises:
        InputError: No such file, no such column, a cell that is no number, or a row of another length.
    """
    header = list(names) or read_header(path, skip_lines=skip_lines)
    for column in kinds:
        _check_column(path, column, header)
    if not path.is_file():
        raise InputError("no such file", where=str(path))
    types = {column: pa.float64() if kind == "number" else pa.string() for column, kind in kinds.items()}
    try:
        yield from _batches(path, types, names, skip_lines)
    except (pa.ArrowInvalid, OSError, *_UNREADABLE) as error:
        for column, kind in types.items():
            found = _diagnosis(path, column, kind, skip_lines, error, names)
            if "line" in (found.where or ""):
                break
        raise found from error


def _batches(
    path: Path, types: Mapping[str, pa.DataType], names: Sequence[str], skip_lines: int
) -> Iterator[dict[str, Any]]:
    reader = pyarrow.csv.open_csv(
        path,
        pyarrow.csv.ReadOptions(skip_rows=skip_lines, column_names=list(names) or None),
        pyarrow.csv.ParseOptions(newlines_in_values=True),
        pyarrow.csv.ConvertOptions(include_columns=list(types), column_types=dict(types), null_values=[""]),
    )
    with reader:
        for batch in reader:
            yield {
                column: np.array(batch[column].to_numpy(zero_copy_only=False), dtype=np.float64)
                if kind == pa.float64()
                else batch[column].to_pylist()
                for column, kind in types.items()
            }


def _check_column(path: Path, column: str, header: Sequence[str]) -> None:
    if header.count(column) != 1:
        what = "more than one column" if column in header else "no column"
        raise InputError(f"{what} {column!r}{did_you_mean(column, header)}", where=str(path))


def cell(path: Path, row: int, column: str, *, skip_lines: int = 0, has_header: bool = True) -> str:
    """Where a row (from 0) is: ``"file: line 7, column 'x'"``. Reads the file: a row may span lines."""
    for number, (line, _) in enumerate(_records(path, skip_lines), start=-1 if has_header else 0):
        if number == row:
            return f"{path}: line {line}, column {column!r}"
    raise IndexError(f"{path} has no row {row}")


def _records(path: Path, skip_lines: int) -> Iterator[tuple[int, list[str]]]:
    """The line that each record (header included) begins on, and its fields; blank lines are none."""
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", newline="", encoding=_ENCODING) as file:
        for _ in range(skip_lines):
            next(file, None)
        reader = csv.reader(file)
        line = skip_lines + 1
        for record in reader:
            if record:
                yield line, record
            line = skip_lines + reader.line_num + 1


def _read(path: Path, column: str, kind: pa.DataType, skip_lines: int) -> pa.ChunkedArray:
    _check_column(path, column, read_header(path, skip_lines=skip_lines))
    try:
        table = pyarrow.csv.read_csv(
            path,
            pyarrow.csv.ReadOptions(skip_rows=skip_lines),
            pyarrow.csv.ParseOptions(newlines_in_values=True),
            pyarrow.csv.ConvertOptions(include_columns=[column], column_types={column: kind}, null_values=[""]),
        )
    except pa.ArrowInvalid as error:
        raise _diagnosis(path, column, kind, skip_lines, error) from error
    return table[column]


def _diagnosis(
    path: Path, column: str, kind: pa.DataType, skip_lines: int, error: Exception, names: Sequence[str] = ()
) -> InputError:
    """What Arrow found wrong, with the line, which Arrow does not tell."""
    records = _records(path, skip_lines)
    try:
        header = list(names) or next(records)[1]
        at = header.index(column)
        for line, record in records:
            where = f"{path}: line {line}"
            if len(record) != len(header):
                return InputError(f"has {len(record)} fields, the header has {len(header)}", where=where)
            if kind == pa.float64() and not _is_number(record[at]):
                return InputError(f"{record[at]!r} is not a number", where=f"{where}, column {column!r}")
    except _UNREADABLE:
        pass  # what Arrow says is all there is
    return InputError(f"not a CSV file that can be read: {error}", where=str(path))


def _is_number(text: str) -> bool:
    try:
        float(text or "nan")
    except ValueError:
        return False
    return True
