"""The prompts to calibrate with: written by a grammar, or read from a file.

Files: one prompt a line (``.txt``), tables with a column ``prompt`` (``.csv``, ``.tsv``, ``.jsonl``,
``.parquet``), and so PartiPrompts' ``PartiPrompts.tsv`` and DrawBench's ``DrawBench Prompts.csv`` as they are.
"""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any, Final

import pandas as pd

from argus_sim.errors import InputError

DEFAULT_NUMBER: Final = 200
SEED: Final = 41
_COLUMNS: Final = ("prompt", "prompts", "caption", "text")


def read_prompts(source: str, zoo: str) -> tuple[pd.DataFrame, str]:
    """The table ``prompts`` (prompt, text, split) and a sentence about where it is from.

    Args:
        source: A number of prompts to write, or a file.
        zoo: Whose grammar writes them: ``shapes`` has its own.

    Raises:
        InputError: The file cannot be read, or holds no prompt.
    """
    if source.isdecimal():
        number = int(source)
        if number < 2:
            raise InputError(
                "at least 2 prompts are needed: one to learn from, one to test on", where="--prompts"
            )
        texts, origin = _written(number, zoo)
    else:
        texts, origin = read_file(Path(source)), f"file {Path(source).name}"
    texts = list(dict.fromkeys(texts))
    if len(texts) < 2:
        raise InputError(
            f"{source!r} holds {len(texts)} different prompts; at least 2 are needed", where="--prompts"
        )
    period = 5 if zoo == "shapes" else 6
    width = max(4, len(str(len(texts) - 1)))
    frame = pd.DataFrame(
        {
            "prompt": [f"p{i:0{width}d}" for i in range(len(texts))],
            "text": texts,
            # The grammars cycle through classes of difficulty; whole cycles alternate, so both halves have each.
            "split": ["train" if i // period % 2 == 0 else "test" for i in range(len(texts))],
        }
    )
    if len(set(frame["split"])) == 1:
        frame.loc[frame.index % 2 == 1, "split"] = "test"
    return frame, origin


def _written(number: int, zoo: str) -> tuple[list[str], str]:
    if zoo == "shapes":
        from calibration.shapes import captions

        return [str(p) for p in captions.write_prompts(number, SEED)], f"calibration.shapes.captions, seed {SEED}"
    from calibration.prompt_grammar import write_prompts

    return [p.text for p in write_prompts(number, SEED)], f"calibration.prompt_grammar, seed {SEED}"


def read_file(path: Path) -> list[str]:
    """Prompts of a file, in its order."""
    where = f"--prompts {path}"
    if not path.is_file():
        raise InputError("no such file; give a file, or a number of prompts to write", where=where)
    suffix = path.suffix.lower()
    try:
        if suffix == ".parquet":
            return _column(pd.read_parquet(path).to_dict("records"), where)
        text = path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"not UTF-8 text: byte {error.start} is {error.object[error.start]:#04x}", where=where
        ) from None
    except (OSError, ValueError) as error:
        raise InputError(f"cannot be read: {error}", where=where) from None
    if suffix in (".csv", ".tsv"):
        reader = csv.DictReader(io.StringIO(text), delimiter="\t" if suffix == ".tsv" else ",")
        return _column(list(reader), where)
    if suffix in (".jsonl", ".json"):
        return _column(_json_rows(text, suffix, where), where)
    return [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]


def _json_rows(text: str, suffix: str, where: str) -> list[Any]:
    lines = text.splitlines() if suffix == ".jsonl" else [text]
    rows: list[Any] = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                value = json.loads(line)
            except json.JSONDecodeError as error:
                raise InputError(f"line {number}: not JSON: {error.msg}", where=where) from None
            rows.extend(value if isinstance(value, list) else [value])
    return [{"prompt": row} if isinstance(row, str) else row for row in rows]


def _column(rows: list[Any], where: str) -> list[str]:
    if not rows:
        raise InputError("holds no rows", where=where)
    if not all(isinstance(row, dict) for row in rows):
        raise InputError("rows must be texts or objects with a field 'prompt'", where=where)
    names = {str(name).strip().lower(): name for name in rows[0] if name is not None}
    column = next((names[c] for c in _COLUMNS if c in names), None)
    if column is None:
        raise InputError(f"has no column 'prompt'; it has {', '.join(names) or 'none'}", where=where)
    return [text for row in rows if (text := str(row.get(column) or "").strip())]
