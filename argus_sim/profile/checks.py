"""What must hold of a profile. Private to :mod:`argus_sim.profile`, which is the door."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from itertools import pairwise
from typing import Final

import numpy as np
import pandas as pd

from argus_sim.errors import did_you_mean
from argus_sim.profile.tables import BASE_STRATEGY, KEYS, Manifest, native_latency

SPLITS: Final = ("train", "test")
LOAD_SOURCES: Final = ("disk", "host", "gpu")


def check(manifest: Manifest, tables: Mapping[str, pd.DataFrame]) -> tuple[list[str], list[str]]:
    """All that is wrong with normalised tables, and what is only odd: ``(problems, remarks)``."""
    problems: list[str] = []
    remarks: list[str] = []
    for table, keys in KEYS.items():
        if keys and table in tables:
            again = tables[table].duplicated(keys)
            if again.any():
                row = tables[table].loc[again, keys].iloc[0].to_dict()
                problems.append(f"table {table}: {int(again.sum())} rows repeat a key, first {row}")
    problems.extend(f"table {table} is empty" for table, frame in tables.items() if frame.empty)
    variants = set(tables["variants"]["variant"])
    prompts = set(tables["prompts"]["prompt"])
    _unknown(problems, "latency", "variant", tables["latency"], variants)
    _unknown(problems, "quality", "variant", tables["quality"], variants)
    _unknown(problems, "quality", "prompt", tables["quality"], prompts)
    _unknown(problems, "loads", "model", tables["loads"], set(tables["variants"]["model"]))
    _unknown(problems, "loads", "source", tables["loads"], LOAD_SOURCES)
    _unknown(problems, "prompts", "split", tables["prompts"], SPLITS)
    if "similarity" in tables:
        _unknown(problems, "similarity", "prompt", tables["similarity"], prompts)
        outside = ~tables["similarity"]["similarity"].between(-1.0, 1.0)
        if outside.any():
            problems.append(f"table similarity: {int(outside.sum())} similarities outside [-1, 1]")
    _check_variants(manifest, tables["variants"], problems)
    _check_latency(manifest, tables, problems, remarks)
    remarks.extend(
        f"no prompts with split {split!r}: no experiment can use the profile"
        for split in SPLITS
        if split not in set(tables["prompts"]["split"])
    )
    _check_loads(tables, problems)
    _check_quality(manifest, tables, problems)
    _check_provenance(manifest, tables, problems)
    return problems, remarks


def _unknown(problems: list[str], table: str, column: str, frame: pd.DataFrame, allowed: Iterable[str]) -> None:
    names = set(allowed)
    strange = sorted(set(frame[column]) - names)
    if strange:
        # A profile may know thousands of prompts: naming the close one is help, listing them all is not.
        listed = did_you_mean(strange[0], names) if len(names) <= 40 else ""
        more = f" and {len(strange) - 1} more" if len(strange) > 1 else ""
        problems.append(f"table {table}: unknown {column} {strange[0]!r}{more}{listed}")


def _check_variants(manifest: Manifest, variants: pd.DataFrame, problems: list[str]) -> None:
    bases = variants.loc[variants["strategy"] == BASE_STRATEGY]
    names = list(variants["variant"])
    if manifest.base not in names:
        problems.append(
            f"base variant {manifest.base!r} is not in table variants{did_you_mean(manifest.base, names)}"
        )
    elif list(bases["variant"]) != [manifest.base] or list(bases["level"]) != [0]:
        problems.append(
            f"table variants: the base {manifest.base!r} and no other must have strategy {BASE_STRATEGY!r}"
            f" and level 0, found {bases[['variant', 'level']].to_dict('records')}"
        )
    for strategy, rungs in variants.loc[variants["strategy"] != BASE_STRATEGY].groupby("strategy"):
        levels = sorted(rungs["level"])
        if levels != list(range(1, len(levels) + 1)):
            problems.append(f"table variants: ladder {strategy!r} must have levels 1, 2, ..., found {levels}")
    bad = (variants["steps"] < 1) | (variants["skipped_steps"] < 0)
    bad |= variants["skipped_steps"] >= variants["steps"]
    problems.extend(
        f"table variants: {name!r} must have steps >= 1 and 0 <= skipped_steps < steps"
        for name in variants["variant"][bad]
    )


def _check_latency(
    manifest: Manifest, tables: Mapping[str, pd.DataFrame], problems: list[str], remarks: list[str]
) -> None:
    latency, variants = tables["latency"], tables["variants"]
    _check_times("latency", latency, problems)
    if "after_idle" in tables:
        _check_after_idle(tables["after_idle"], latency, problems)
    native = native_latency(manifest, latency)
    for name in variants["variant"]:
        rows = native.loc[native["variant"] == name].sort_values("batch_size")
        if not (rows["batch_size"] == 1).any():
            problems.append(f"table latency: variant {name!r} has no row for batch size 1")
        if rows["batch_size"].duplicated().any():
            problems.append(f"table latency: variant {name!r} has several resolutions, none the profile's")
        rate = (rows["batch_size"] / rows["mean_s"]).to_numpy()
        remarks.extend(
            f"{name!r} gives fewer images per second in batches of {b} than in smaller ones"
            for b, slower in zip(rows["batch_size"].iloc[1:], np.diff(rate) < 0, strict=True)
            if slower
        )
    if not problems:
        _check_ladders(native, variants, problems)


def _check_times(table: str, rows: pd.DataFrame, problems: list[str]) -> None:
    """The columns that ``latency`` and ``after_idle`` share, and those that one of them has."""
    for column in ("mean_s", "batch_size", "width", "height", "idle_s"):
        if column in rows and (bad := ~(rows[column] > 0)).any():
            problems.append(f"table {table}: {int(bad.sum())} rows whose {column} is not positive")
    for column in ("std_s", "p50_s", "p90_s", "p99_s", "energy_j"):
        if column in rows and (rows[column] < 0).any():
            problems.append(f"table {table}: negative values in {column}")
    quantiles = rows[["p50_s", "p90_s", "p99_s"]]
    part = quantiles.isna().any(axis=1) & quantiles.notna().any(axis=1)
    falling = (rows["p50_s"] > rows["p90_s"]) | (rows["p90_s"] > rows["p99_s"])
    if part.any() or falling.any():
        problems.append(f"table {table}: p50_s <= p90_s <= p99_s must be given together or not at all")


def _check_after_idle(after_idle: pd.DataFrame, latency: pd.DataFrame, problems: list[str]) -> None:
    _check_times("after_idle", after_idle, problems)
    key = KEYS["latency"]
    known = set(latency[key].itertuples(index=False, name=None))
    strange = [row for row in after_idle[key].itertuples(index=False, name=None) if row not in known]
    if strange:
        name, batch, width, height = strange[0]
        problems.append(
            f"table after_idle: {len(strange)} rows without one in table latency, first {name!r} in batches of"
            f" {batch} at {width} x {height}"
        )


def _check_ladders(native: pd.DataFrame, variants: pd.DataFrame, problems: list[str]) -> None:
    single = native.loc[native["batch_size"] == 1].set_index("variant")
    mean, std = single["mean_s"].to_dict(), single["std_s"].fillna(0.0).to_dict()
    base = variants.loc[variants["strategy"] == BASE_STRATEGY, "variant"].iloc[0]
    for strategy, rungs in variants.loc[variants["strategy"] != BASE_STRATEGY].groupby("strategy"):
        names = [base, *rungs.sort_values("level")["variant"]]
        for above, below in pairwise(names):
            # A rise within the spread of the two is noise of a measurement, not a wrong order.
            if mean[below] - mean[above] > float(np.hypot(std[above], std[below])):
                problems.append(
                    f"ladder {strategy!r}: {below!r} ({mean[below]:.4g} s) is slower than {above!r}"
                    f" ({mean[above]:.4g} s) above it; order levels by batch-1 latency, slowest first"
                )


def _check_loads(tables: Mapping[str, pd.DataFrame], problems: list[str]) -> None:
    loads = tables["loads"]
    if (loads["seconds"] < 0).any():
        problems.append("table loads: negative seconds")
    for model in dict.fromkeys(tables["variants"]["model"]):
        if model not in set(loads["model"]):
            problems.append(f"table loads: no load time of model {model!r}")


def _check_quality(manifest: Manifest, tables: Mapping[str, pd.DataFrame], problems: list[str]) -> None:
    quality = tables["quality"]
    primary = quality.loc[quality["metric"] == manifest.metric]
    if primary.empty:
        hint = did_you_mean(manifest.metric, set(quality["metric"]))
        problems.append(f"table quality: no scores in the profile's metric {manifest.metric!r}{hint}")
        return
    if (primary["score"] < 0).any():
        problems.append(f"table quality: metric {manifest.metric!r} has negative scores: no ratio can be formed")
    base = primary.loc[primary["variant"] == manifest.base].groupby("prompt")["score"].mean()
    bad = base[~(base > 0)]
    if len(bad):
        problems.append(f"table quality: the base scores 0 for {len(bad)} prompts, first {bad.index[0]!r}")
    absent = set(tables["prompts"]["prompt"]) - set(base.index)
    if absent:
        problems.append(f"table quality: no score of the base for {len(absent)} prompts, first {min(absent)!r}")
    absent = set(tables["variants"]["variant"]) - set(primary["variant"])
    problems.extend(f"table quality: no score of variant {name!r}" for name in sorted(absent))


def _check_provenance(manifest: Manifest, tables: Mapping[str, pd.DataFrame], problems: list[str]) -> None:
    for table in manifest.provenance:
        if table not in tables:
            problems.append(f"provenance of a table that is not there: {table!r}{did_you_mean(table, tables)}")
    for table, frame in tables.items():
        parts = manifest.provenance.get(table, ())
        if not parts:
            problems.append(f"table {table} has no provenance")
            continue
        column = {"loads": "model"}.get(table, "variant")
        rows = set(frame[column]) if column in frame.columns else set()
        for part in parts:
            names = rows | set(frame.columns) | {"*"}
            if not any(fnmatchcase(name, part.covers) for name in names):
                problems.append(f"provenance of {table} covers {part.covers!r}, which is nothing in it")
        bare = sorted(name for name in rows if not any(fnmatchcase(name, part.covers) for part in parts))
        if bare:
            problems.append(f"table {table}: no provenance covers {', '.join(map(repr, bare))}")
