"""Columns of a CSV file that somebody else wrote, with errors that name file, line and column."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv

from argus_sim.errors import InputError, did_you_mean

# A byte order mark is not part of the first column's name.
_ENCODING = "utf-8-sig"


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
        return next(_records(path, skip_lines), (0, list[str]()))[1]
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"not a CSV file that can be read: {error}", where=str(path)) from error


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


def cell(path: Path, row: int, column: str, *, skip_lines: int = 0) -> str:
    """Where a row (from 0) is: ``"file: line 7, column 'x'"``. Reads the file: a row may span lines."""
    for number, (line, _) in enumerate(_records(path, skip_lines), start=-1):
        if number == row:
            return f"{path}: line {line}, column {column!r}"
    raise IndexError(f"{path} has no row {row}")


def _records(path: Path, skip_lines: int) -> Iterator[tuple[int, list[str]]]:
    """The line that each record (header included) begins on, and its fields; blank lines are none."""
    with path.open(newline="", encoding=_ENCODING) as file:
        for _ in range(skip_lines):
            next(file, None)
        reader = csv.reader(file)
        line = skip_lines + 1
        for record in reader:
            if record:
                yield line, record
            line = skip_lines + reader.line_num + 1


def _read(path: Path, column: str, kind: pa.DataType, skip_lines: int) -> pa.ChunkedArray:
    header = read_header(path, skip_lines=skip_lines)
    if header.count(column) != 1:
        what = "more than one column" if column in header else "no column"
        raise InputError(f"{what} {column!r}{did_you_mean(column, header)}", where=str(path))
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


def _diagnosis(path: Path, column: str, kind: pa.DataType, skip_lines: int, error: pa.ArrowInvalid) -> InputError:
    """What Arrow found wrong, with the line, which Arrow does not tell."""
    records = _records(path, skip_lines)
    try:
        _, header = next(records)
        at = header.index(column)
        for line, record in records:
            where = f"{path}: line {line}"
            if len(record) != len(header):
                return InputError(f"has {len(record)} fields, the header has {len(header)}", where=where)
            if kind == pa.float64() and not _is_number(record[at]):
                return InputError(f"{record[at]!r} is not a number", where=f"{where}, column {column!r}")
    except (UnicodeDecodeError, csv.Error):
        pass  # what Arrow says is all there is
    return InputError(f"not a CSV file that can be read: {error}", where=str(path))


def _is_number(text: str) -> bool:
    try:
        float(text or "nan")
    except ValueError:
        return False
    return True
