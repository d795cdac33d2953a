"""The folder of a profile: its manifest, the columns of its tables, and their bytes.

Private to :mod:`argus_sim.profile`, which is the door.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from argus_sim.errors import InputError, did_you_mean
from argus_sim.provenance import Provenance

ServiceDistribution = Literal["lognormal", "empirical", "deterministic"]

#: Level 0 of every ladder: the strategy of the base variant.
BASE_STRATEGY: Final = "BASE"

#: What a batch's time is of, and what is known of it: columns of more than one table.
_CELL: Final = {"variant": "text", "batch_size": "int", "width": "int", "height": "int"}
_TIMES: Final = {
    "samples": "int?",
    "mean_s": "float",
    "std_s": "float?",
    "p50_s": "float?",
    "p90_s": "float?",
    "p99_s": "float?",
}

#: table -> column -> type; ``?`` marks a column that may hold nulls or be left out.
SCHEMAS: Final[dict[str, dict[str, str]]] = {
    "variants": {
        "variant": "text",
        "model": "text",
        "strategy": "text",
        "level": "int",
        "steps": "int",
        "skipped_steps": "int",
        "memory_bytes": "int?",
    },
    "latency": {**_CELL, **_TIMES, "energy_j": "float?"},
    "after_idle": {**_CELL, "idle_s": "float", **_TIMES},
    "loads": {"model": "text", "source": "text", "seconds": "float", "bytes": "int?"},
    "prompts": {"prompt": "text", "text": "text", "split": "text"},
    "quality": {"prompt": "text", "variant": "text", "metric": "text", "score": "float", "seed": "int"},
    "similarity": {"prompt": "text", "neighbour": "text?", "similarity": "float"},
}

OPTIONAL_TABLES: Final = frozenset({"after_idle", "similarity"})

#: What makes a row of a table unique. `loads` has no key: the rows of a model are a sample of its load time.
KEYS: Final[dict[str, list[str]]] = {
    "variants": ["variant"],
    "latency": [*_CELL],
    "after_idle": [*_CELL, "idle_s"],
    "loads": [],
    "prompts": ["prompt"],
    "quality": ["prompt", "variant", "metric", "seed"],
    "similarity": ["prompt", "neighbour"],
}

#: Order of rows where it carries no meaning, so that equal tables have equal bytes. The rows of `variants`
#: and `prompts` keep theirs: a variant and a prompt are known by their position.
_SORT: Final[dict[str, list[str]]] = {
    "latency": ["variant", "width", "height", "batch_size"],
    "after_idle": ["variant", "width", "height", "batch_size", "idle_s"],
    "loads": ["model", "source", "seconds"],
    "quality": ["metric", "variant", "seed", "prompt"],
    "similarity": ["prompt", "neighbour"],
}

_ARROW: Final = {"text": pa.string(), "int": pa.int64(), "float": pa.float64()}


class Manifest(BaseModel):
    """``profile.json``: all about a profile that is not a table.

    Attributes:
        schema_version: Of the folder's layout.
        name: Of the profile; a shipped one is known by it.
        description: What it stands for and, above all, what it does not.
        gpu: Device, e.g. ``"NVIDIA A100-SXM4-80GB"``.
        driver: Driver version, None where unknown.
        libraries: Package to version, as far as known.
        dtype: Precision of the weights, None where unknown.
        resolution: Width and height in pixels of the base variant's images.
        seeds: Image seeds that the quality table averages over.
        base: Name of the base variant: the one nothing approximates, level 0 of every ladder.
        metric: Primary quality metric: the rows of ``quality`` that ratios are formed from.
        service_distribution: How a service time is drawn; see :meth:`Latency.quantile_s`.
        provenance: Table to the origins of its rows; every table must be covered.
        generator: Parameters of whatever generated tables, for a rebuild.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    description: str = Field(min_length=1)
    gpu: str = Field(min_length=1)
    driver: str | None = None
    libraries: dict[str, str] = {}
    dtype: str | None = None
    resolution: tuple[int, int]
    seeds: tuple[int, ...]
    base: str
    metric: str
    service_distribution: ServiceDistribution
    provenance: dict[str, tuple[Provenance, ...]]
    generator: dict[str, JsonValue] = {}


def normalise(table: str, frame: pd.DataFrame, problems: list[str]) -> pd.DataFrame | None:
    """The table with exactly the columns of its schema, typed, in canonical order; None where it cannot be.

    What is wrong is appended to `problems`; nothing is raised.
    """
    schema = SCHEMAS[table]
    before = len(problems)
    for column in frame.columns:
        if column not in schema:
            problems.append(f"table {table}: unknown column {column!r}{did_you_mean(str(column), schema)}")
    missing = [c for c, kind in schema.items() if c not in frame.columns and not kind.endswith("?")]
    problems.extend(f"table {table}: column {column!r} is missing" for column in missing)
    if missing:
        return None
    columns = {
        column: _typed(
            table, column, kind, frame[column] if column in frame.columns else None, len(frame), problems
        )
        for column, kind in schema.items()
    }
    if len(problems) > before and any(series is None for series in columns.values()):
        return None
    out = pd.DataFrame({column: series for column, series in columns.items() if series is not None})
    if table in _SORT:
        out = out.sort_values(_SORT[table], kind="stable", na_position="last")
    return out.reset_index(drop=True)


def _typed(
    table: str, column: str, kind: str, series: pd.Series | None, rows: int, problems: list[str]
) -> pd.Series | None:
    nullable = kind.endswith("?")
    base = kind.rstrip("?")
    if series is None:
        series = pd.Series([None] * rows, dtype=object)
    series = series.reset_index(drop=True)
    nulls = series.isna()
    if not nullable and bool(nulls.any()):
        problems.append(f"table {table}: {int(nulls.sum())} empty values in column {column!r}")
        return None
    if base == "text":
        values: list[object] = [None if null else value for value, null in zip(series, nulls, strict=True)]
        strange = [value for value in values if not (value is None or isinstance(value, str))]
        if strange:
            problems.append(f"table {table}: column {column!r} must hold text, found {strange[0]!r}")
            return None
        return pd.Series(values, dtype=object)
    numbers = pd.to_numeric(series.where(~nulls, np.nan), errors="coerce").astype("float64")
    bad = numbers.isna() & ~nulls
    if base == "float":
        bad |= np.isinf(numbers)
    else:
        bad |= ~nulls & (numbers != np.floor(numbers))
    if bool(bad.any()):
        first = series[bad].iloc[0]
        problems.append(f"table {table}: column {column!r} must hold finite {base}s, found {first!r}")
        return None
    if base == "float":
        return numbers
    return numbers.astype("Int64") if nullable else numbers.astype("int64")


def native_latency(manifest: Manifest, latency: pd.DataFrame) -> pd.DataFrame:
    """The rows that count: at the profile's resolution, or at the variant's own where it has no such rows."""
    width, height = manifest.resolution
    native = (latency["width"] == width) & (latency["height"] == height)
    own = ~latency["variant"].isin(set(latency.loc[native, "variant"]))
    return latency.loc[native | own]


def digest(manifest: Manifest, tables: Mapping[str, pd.DataFrame]) -> str:
    """SHA-256 over the logical content: equal on any platform and for any Parquet writer."""
    sha = hashlib.sha256(_json(manifest).encode())
    for table in sorted(tables):
        for column, kind in SCHEMAS[table].items():
            series = tables[table][column]
            nulls = series.isna().to_numpy(dtype=bool)
            sha.update(f"\0{table}.{column}:{kind}:{len(series)}\0".encode())
            sha.update(np.packbits(nulls).tobytes())
            if kind.startswith("text"):
                text = [str(value).encode() for value in series[~nulls]]
                sha.update(np.array([len(t) for t in text], dtype="<i8").tobytes() + b"".join(text))
            else:
                dtype = "<i8" if kind.startswith("int") else "<f8"
                # Adding zero turns -0.0 into 0.0: one value, one encoding.
                sha.update((series[~nulls].to_numpy(dtype=dtype) + np.zeros(1, dtype)).tobytes())
    return sha.hexdigest()


def _json(manifest: Manifest, indent: int | None = None) -> str:
    return json.dumps(manifest.model_dump(mode="json"), sort_keys=True, indent=indent, ensure_ascii=False)


def read_folder(folder: Path) -> tuple[Manifest, dict[str, pd.DataFrame]]:
    """Read a profile's folder; checking the tables is for others.

    Raises:
        InputError: A file is not what it should be.
    """
    file = folder / "profile.json"
    try:
        manifest = Manifest.model_validate_json(file.read_bytes())
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, e['loc'])) or 'file'}: {e['msg']}" for e in error.errors()]
        raise InputError("; ".join(lines), where=str(file)) from None
    tables: dict[str, pd.DataFrame] = {}
    for file in sorted(folder.glob("*.parquet")):
        try:
            tables[file.stem] = pd.read_parquet(file)
        except (OSError, ValueError) as error:
            raise InputError(f"not a readable Parquet file: {error}", where=str(file)) from None
    return manifest, tables


def write_folder(folder: Path, manifest: Manifest, tables: Mapping[str, pd.DataFrame]) -> None:
    """Write a profile's folder at once: it is there whole or not at all.

    Equal profiles give equal bytes (with the same pyarrow).

    Raises:
        InputError: The folder holds something that is not of a profile and would be deleted.
    """
    own = {"profile.json", *(f"{table}.parquet" for table in SCHEMAS)}
    if folder.exists():
        strange = sorted(f.name for f in folder.iterdir() if f.name not in own) if folder.is_dir() else ["a file"]
        if strange:
            raise InputError(
                f"would delete what is no part of a profile: {', '.join(strange)}", where=str(folder)
            )
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = folder.with_name(f".{folder.name}.{os.getpid()}.new")
    stale = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir()
    try:
        (fresh / "profile.json").write_text(_json(manifest, indent=2) + "\n", encoding="utf-8")
        for table, frame in tables.items():
            arrays = {
                column: pa.array(frame[column], type=_ARROW[kind.rstrip("?")], from_pandas=True)
                for column, kind in SCHEMAS[table].items()
            }
            file = fresh / f"{table}.parquet"
            pq.write_table(pa.table(arrays), file, compression="zstd", compression_level=9)
        if folder.exists():
            folder.rename(stale)
        fresh.rename(folder)
    except BaseException:
        if stale.exists() and not folder.exists():
            stale.rename(folder)
        raise
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.rmtree(stale, ignore_errors=True)
