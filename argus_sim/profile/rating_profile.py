"""A profile from human ratings of images and the latencies of another profile.

What a rating data set does not have (latencies, load times) is borrowed, variant by variant, and the profile says
so.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import pandas as pd

from argus_sim.errors import InputError, did_you_mean
from argus_sim.profile.profile import Profile
from argus_sim.profile.tables import SCHEMAS, Manifest
from argus_sim.provenance import Provenance


@dataclass(frozen=True, slots=True)
class Stand:
    """A rated model: its name here, its steps, whose latency it gets and why that is fair."""

    variant: str
    steps: int
    latency_of: str
    because: str | None


def build(
    name: str,
    description: str,
    source: Profile,
    stands: Sequence[tuple[str, Stand]],
    ratings: pd.DataFrame,
    *,
    metric: str,
    rated: Provenance,
    loads: Borrowed | None = None,
    where: str,
) -> Profile:
    """The profile of rated models on a ladder ``SM``.

    Args:
        source: Lender of latencies, and of load times where `loads` is None.
        stands: Rated models and what they stand for, the slowest, which becomes the base, first.
        ratings: A row per rating: prompt, text, model, seed (the rater, from 1), score.
        metric: What a score is.
        rated: Where the ratings are from.
        loads: Rows of the table ``loads`` and their origin.
        where: For errors.
    """
    names = {model: stand.variant for model, stand in stands}
    prompts = ratings[["prompt", "text"]].drop_duplicates("prompt").sort_values("prompt")
    latency, latency_origin = borrowed_latency(source, [stand for _, stand in stands])
    rested = {}
    if "after_idle" in source.tables:
        after_idle = borrowed_latency(source, [stand for _, stand in stands], "after_idle")
        rested = {"after_idle": after_idle} if len(after_idle[0]) else {}
    table, loads_origin = loads or borrowed_loads(source, [stand for _, stand in stands])
    manifest = Manifest(
        name=name,
        description=description,
        gpu=source.manifest.gpu,
        driver=source.manifest.driver,
        libraries=source.manifest.libraries,
        dtype=source.manifest.dtype,
        resolution=source.manifest.resolution,
        seeds=tuple(sorted({int(rater) for rater in ratings["seed"]})),
        base=stands[0][1].variant,
        metric=metric,
        service_distribution=source.manifest.service_distribution,
        provenance={
            "variants": (rated,),
            "latency": latency_origin,
            "loads": loads_origin,
            "prompts": (rated,),
            "quality": (rated,),
            **{table: origin for table, (_, origin) in rested.items()},
        },
    )
    tables = {
        "variants": pd.DataFrame(
            {
                "variant": list(names.values()),
                "model": list(names.values()),
                "strategy": ["BASE", *["SM"] * (len(stands) - 1)],
                "level": range(len(stands)),
                "steps": [stand.steps for _, stand in stands],
                "skipped_steps": 0,
            }
        ),
        "latency": latency,
        "loads": table,
        "prompts": pd.DataFrame(
            {
                "prompt": prompts["prompt"],
                "text": prompts["text"],
                "split": [_split(text) for text in prompts["text"]],
            }
        ),
        "quality": pd.DataFrame(
            {
                "prompt": ratings["prompt"],
                "variant": [names[model] for model in ratings["model"]],
                "metric": metric,
                "score": ratings["score"],
                "seed": ratings["seed"],
            }
        ),
    }
    tables |= {table: rows for table, (rows, _) in rested.items()}
    return Profile.from_tables(manifest, tables, where=where)


#: Rows of a table and where they come from.
Borrowed = tuple[pd.DataFrame, tuple[Provenance, ...]]


def read_table(path: str | os.PathLike[str], columns: Sequence[str]) -> pd.DataFrame:
    try:
        if Path(path).suffix == ".parquet":
            frame = pd.read_parquet(path)
        else:
            frame = pd.read_csv(path, dtype={"prompt_id": str, "human_scores": str})
    except (OSError, ValueError) as error:
        raise InputError(f"cannot be read: {error}", where=str(path)) from None
    for column in columns:
        if column not in frame.columns:
            raise InputError(
                f"column {column!r} is missing{did_you_mean(column, frame.columns)}", where=str(path)
            )
    return frame


def borrowed_latency(source: Profile, stands: Sequence[Stand], table: str = "latency") -> Borrowed:
    """The stands' rows of `latency` or `after_idle`, which may have none."""
    rows = source.table(table)
    stands = [stand for stand in stands if stand.latency_of in set(rows["variant"])]
    frames = [rows.loc[rows["variant"] == stand.latency_of].assign(variant=stand.variant) for stand in stands]
    origin = (
        part for stand in stands for part in _inherited(source.provenance_of(table), stand.latency_of, stand)
    )
    return pd.concat(frames) if frames else rows.iloc[:0], tuple(dict.fromkeys(origin))


def borrowed_loads(source: Profile, stands: Sequence[Stand]) -> Borrowed:
    rows = source.table("loads")
    models = [source.variants[source.variant_id(stand.latency_of)].model for stand in stands]
    frames = [
        rows.loc[rows["model"] == model].assign(model=stand.variant)
        for model, stand in zip(models, stands, strict=True)
    ]
    origin = (
        part
        for model, stand in zip(models, stands, strict=True)
        for part in _inherited(source.provenance_of("loads"), model, stand)
    )
    return pd.concat(frames), tuple(dict.fromkeys(origin))


def _inherited(parts: Sequence[Provenance], of: str, stand: Stand) -> list[Provenance]:
    """The source's provenance for one of its rows, speaking for `stand`; what speaks for a column stays."""
    out = []
    for part in parts:
        if fnmatchcase(of, part.covers):
            derived = "; ".join(text for text in (part.derived, stand.because) if text)
            out.append(part.model_copy(update={"covers": stand.variant, "derived": derived or None}))
        elif any(fnmatchcase(column, part.covers) for column in SCHEMAS["latency"]):
            out.append(part)
    return out


def _split(text: str) -> str:
    """Half and half, by the text alone: a prompt stays in its split whatever else is imported."""
    return "train" if hashlib.sha256(text.encode()).digest()[0] % 2 == 0 else "test"
