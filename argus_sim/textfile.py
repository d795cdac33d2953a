"""Texts in a file: a column of a CSV file, or a line each."""

from __future__ import annotations

from pathlib import Path

from argus_sim.columns import read_texts
from argus_sim.errors import InputError

#: What the column of texts is called where nobody says.
COLUMN = "prompt"


def lines_in(path: Path) -> list[str]:
    """The lines of a file in UTF-8: other ends of lines than a new line's, which prompts may hold, end none.

    Raises:
        OSError: It cannot be read.
        UnicodeDecodeError: It is something else.
    """
    return path.read_text("utf-8-sig").removesuffix("\n").split("\n")


def check_column(column: str, file: str | None) -> None:
    """That a column is only named where there is a ``.csv`` file.

    Raises:
        ValueError: It is another than :data:`COLUMN`, and there is no file or one of lines.
    """
    if column != COLUMN and (file is None or file.endswith(".txt")):
        found = "a .txt file has lines" if file else "there is no file"
        raise ValueError(f"column is that of a .csv file, and {found}; leave column {column!r} out")


def texts_in(path: Path, column: str) -> list[str]:
    """The texts in their order; empty lines and cells are left out.

    Args:
        path: ``.csv``, or ``.txt`` with a text per line.
        column: Of a ``.csv`` file.

    Raises:
        InputError: No such file or column, another suffix, or no text at all.
    """
    if path.suffix not in (".csv", ".txt"):
        raise InputError(
            f"texts are in .csv or .txt files, not {path.suffix or 'one without a suffix'}", where=str(path)
        )
    if not path.is_file():
        raise InputError("no such file", where=str(path))
    try:
        lines = read_texts(path, column) if path.suffix == ".csv" else lines_in(path)
    except UnicodeDecodeError as error:
        raise InputError(f"is not text in UTF-8: {error.reason}", where=str(path)) from None
    texts = [text for text in lines if text]
    if not texts:
        raise InputError("holds no text", where=str(path))
    return texts
