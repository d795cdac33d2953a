"""From the cells of a run to a valid profile, with the provenance of every table."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd

from argus_sim.errors import InputError
from argus_sim.profile import Manifest, Profile
from argus_sim.provenance import Provenance
from calibration import scorers
from calibration.details import details
from calibration.hardware import Hardware
from calibration.plan import CHUNK, Cell, Plan, PlannedVariant, Settings
from calibration.pooling import timed
from calibration.store import FAILED, OK, Store, plain

#: The metric of a profile whose images mean nothing, or were not made: every score is 1.
ABSENT = "absent"
#: In the provenance of latencies that --quality-only takes on the way.
ROUGH_LATENCY = "no precise latency"


@dataclass(frozen=True, slots=True)
class Assembled:
    """A profile.

    Attributes:
        profile: What is done, put together.
        left_out: One line for everything that did not get into it.
        notes: What a reader should know before trusting it.
    """

    profile: Profile
    left_out: tuple[str, ...]
    notes: tuple[str, ...]


def assemble(
    name: str,
    settings: Settings,
    plan: Plan,
    store: Store,
    prompts: pd.DataFrame,
    prompts_origin: str,
    similarity: pd.DataFrame,
    hardware: Hardware,
) -> Assembled:
    """Put together what is done.

    A variant gets in whole or not at all: with its batch-1 latency and its scores for every prompt that the base
    has scores for.

    Raises:
        InputError: The base is not among what is done.
    """
    left_out = [f"{variant}: {reason}" for variant, reason in plan.left_out]
    latency = _latency(plan, settings, store, left_out)
    kept_prompts, quality = _quality(plan, settings, store, prompts)
    rested = {variant: record for (variant, _), record in timed(plan, store, "idle").items()}
    usable = [v for v in plan.variants if v.name in latency]
    if settings.quality:
        for variant in [v for v in usable if v.name not in quality]:
            left_out.append(f"{variant.name}: {_why_no_quality(plan, store, variant)}")
        usable = [v for v in usable if v.name in quality]
    if plan.base.name in quality:
        kept_prompts = _with_ratios(settings, kept_prompts, quality, plan.base.name, left_out)
    if not usable or usable[0].name != plan.base.name or kept_prompts.empty:
        if kept_prompts.empty and plan.base.name in quality:
            raise InputError(
                "no profile: the base scores 0 for every prompt; is the scorer made for these models?"
            )
        why = _why_no_quality(plan, store, plan.base) if plan.base.name in latency else "no latency measured"
        reasons = "; ".join(line for line in left_out if line.startswith(f"{plan.base.name}:")) or why
        raise InputError(f"no profile yet: the base variant {plan.base.name!r} is not done ({reasons})")
    usable, levels = _levels(usable, latency, left_out)
    tables = _tables(settings, plan, store, usable, levels, latency, rested, quality, kept_prompts, similarity)
    manifest = _manifest(name, settings, plan, store, tables, usable, prompts_origin, hardware, left_out)
    notes = manifest.generator["notes"]
    assert isinstance(notes, list)
    return Assembled(Profile.from_tables(manifest, tables), tuple(left_out), tuple(map(str, notes)))


# ---- what is there


def _latency(
    plan: Plan, settings: Settings, store: Store, left_out: list[str]
) -> dict[str, list[dict[str, Any]]]:
    """Variant -> latency cells that are done, for variants that have one of batch 1 and whose model loads."""
    out: dict[str, list[dict[str, Any]]] = {}
    absent: set[str] = set()
    for cell in plan.cells:
        record = store.get(cell.key)
        if record is None or cell.kind == "quality" or cell.model in absent:
            continue
        if record["status"] != OK:
            if (line := f"{_what(cell)} {_outcome(record)}") not in left_out:  # else of another round
                left_out.append(line)
            if cell.kind == "load":
                absent.add(cell.model)
    for (variant, batch), record in timed(plan, store, "latency").items():
        if plan.variant(variant).model not in absent:
            out.setdefault(variant, []).append({"batch_size": batch, **record})
    return {name: rows for name, rows in out.items() if any(row["batch_size"] == 1 for row in rows)}


def _what(cell: Cell) -> str:
    """What a cell is about, as the subject of a sentence."""
    if cell.kind == "latency":
        return f"{cell.variant}: a batch of {cell.batch}"
    if cell.kind == "idle":
        return f"{cell.variant}: an image after a pause"
    return f"{cell.model}: " + {"load": "loading it", "parts": "timing its parts"}.get(cell.kind, cell.kind)


def _outcome(record: dict[str, Any]) -> str:
    """The end of that sentence, without the names of the machine's folders."""
    if record["status"] != FAILED:
        return str(record["status"])
    because = re.sub(r"(?<![\w.:/])(/[\w.~+-]+){2,}/?", "...", record["because"])
    return f"failed ({because})"


def _quality(
    plan: Plan, settings: Settings, store: Store, prompts: pd.DataFrame
) -> tuple[pd.DataFrame, dict[str, pd.DataFrame]]:
    """The prompts that the base has all its scores for, and the scores of each variant that has those as well."""
    if not settings.quality:
        return prompts, {}
    done: dict[str, dict[int, set[int]]] = {}
    keys: dict[str, list[tuple[int, str]]] = {}
    for cell in plan.cells:
        if cell.kind == "quality" and (record := store.get(cell.key)) is not None and record["status"] == OK:
            done.setdefault(cell.variant, {}).setdefault(cell.chunk, set()).add(cell.seed)
            keys.setdefault(cell.variant, []).append((cell.chunk, cell.key))
    every_seed = set(range(settings.seeds))
    chunks = {c for c, seeds in done.get(plan.base.name, {}).items() if seeds == every_seed}
    quality = {
        name: pd.concat([store.rows(key) for chunk, key in keys[name] if chunk in chunks], ignore_index=True)
        for name, by_chunk in done.items()
        if chunks and all(by_chunk.get(chunk) == every_seed for chunk in chunks)
    }
    kept = [position // CHUNK in chunks for position in range(len(prompts))]
    return prompts.loc[kept].reset_index(drop=True), quality


def _with_ratios(
    settings: Settings, prompts: pd.DataFrame, quality: dict[str, pd.DataFrame], base: str, left_out: list[str]
) -> pd.DataFrame:
    """Prompts that the base scores above 0 for; of the others no ratio can be formed: out, everywhere."""
    scores = quality[base]
    means = scores.loc[scores["metric"] == settings.metric].groupby("prompt")["score"].mean()
    failed = set(means.index[means <= 0.0])
    if failed:
        left_out.append(
            f"{len(failed)} of {len(prompts)} prompts: the base scores 0 for them, so no ratio can be formed"
        )
        for name, rows in quality.items():
            quality[name] = rows.loc[~rows["prompt"].isin(failed)]
    return prompts.loc[~prompts["prompt"].isin(failed)].reset_index(drop=True)


def _why_no_quality(plan: Plan, store: Store, variant: PlannedVariant) -> str:
    records = [store.get(c.key) for c in plan.cells if c.kind == "quality" and c.variant == variant.name]
    reasons = sorted({_outcome(r) for r in records if r is not None and r["status"] != OK})
    if reasons:
        bad = sum(1 for r in records if r is not None and r["status"] != OK)
        return f"{', '.join(reasons)} in {bad} of {len(records)} quality cells"
    missing = sum(r is None for r in records)
    return f"{missing} of {len(records)} quality cells are not done"


def _levels(
    usable: list[PlannedVariant], latency: dict[str, list[dict[str, Any]]], left_out: list[str]
) -> tuple[list[PlannedVariant], dict[str, int]]:
    """Position of each variant in its ladder: by how approximate it is, or by latency where those disagree.

    What is slower than the base beyond the spread of the two is no approximation on this device and is left out.
    """

    def batch1(variant: PlannedVariant) -> tuple[float, float]:
        row = next(row for row in latency[variant.name] if row["batch_size"] == 1)
        return row["mean_s"], row["std_s"]

    def slower(below: PlannedVariant, above: PlannedVariant) -> bool:
        (b, b_std), (a, a_std) = batch1(below), batch1(above)
        return b - a > float(np.hypot(b_std, a_std))

    base = usable[0]
    kept, levels = [base], {base.name: 0}
    ladders: dict[str, list[PlannedVariant]] = {}
    for variant in usable[1:]:
        if slower(variant, base):
            left_out.append(
                f"{variant.name}: slower than the base here ({batch1(variant)[0]:.4g} s, {batch1(base)[0]:.4g} s)"
            )
        else:
            kept.append(variant)
            ladders.setdefault(variant.strategy, []).append(variant)
    for rungs in ladders.values():
        ordered = sorted(rungs, key=lambda v: (v.rank, -batch1(v)[0]))
        if any(slower(below, above) for above, below in pairwise(ordered)):
            ordered = sorted(rungs, key=lambda v: -batch1(v)[0])
        levels |= {variant.name: i for i, variant in enumerate(ordered, start=1)}
    return kept, levels


# ---- tables


def _tables(
    settings: Settings,
    plan: Plan,
    store: Store,
    usable: list[PlannedVariant],
    levels: dict[str, int],
    latency: dict[str, list[dict[str, Any]]],
    rested: dict[str, dict[str, Any]],
    quality: dict[str, pd.DataFrame],
    prompts: pd.DataFrame,
    similarity: pd.DataFrame,
) -> dict[str, pd.DataFrame]:
    def memory(name: str) -> Any:
        return next(row["memory_bytes"] for row in latency[name] if row["batch_size"] == 1)

    variants = [(v.name, v.model, v.strategy, levels[v.name], v.steps, v.skipped, memory(v.name)) for v in usable]
    columns = ("samples", "mean_s", "std_s", "p50_s", "p90_s", "p99_s", "energy_j")
    timed = [
        (v.name, row["batch_size"], row["side"], row["side"], *(row[c] for c in columns))
        for v in usable
        for row in latency[v.name]
    ]
    loads: list[tuple[str, str, float, int]] = []
    for model in dict.fromkeys(v.model for v in usable):
        record = store.get(f"load--{model}")
        assert record is not None  # it comes before everything else of its model
        for source in ("disk", "host", "gpu"):
            size = record["file_bytes" if source == "disk" else "weight_bytes"]
            loads += [(model, source, s, size) for s in record[f"{source}_s"]]
    if quality:
        scores = pd.concat([quality[v.name] for v in usable], ignore_index=True)
    else:
        scores = pd.DataFrame(
            [(p, v.name, ABSENT, 1.0, 0) for v in usable for p in prompts["prompt"]],
            columns=["prompt", "variant", "metric", "score", "seed"],
        )
    tables = {
        "variants": pd.DataFrame(
            variants, columns=["variant", "model", "strategy", "level", "steps", "skipped_steps", "memory_bytes"]
        ),
        "latency": pd.DataFrame(timed, columns=["variant", "batch_size", "width", "height", *columns]),
        "loads": pd.DataFrame(loads, columns=["model", "source", "seconds", "bytes"]),
        "prompts": prompts,
        "quality": scores,
    }
    if any(v.name in rested for v in usable):
        columns = ("idle_s", *columns[:-1])
        after = [
            (v.name, 1, row["side"], row["side"], *(row[c] for c in columns))
            for v in usable
            if (row := rested.get(v.name)) is not None
        ]
        tables["after_idle"] = pd.DataFrame(after, columns=["variant", "batch_size", "width", "height", *columns])
    if any(v.skipped for v in usable):
        tables["similarity"] = similarity.loc[similarity["prompt"].isin(set(prompts["prompt"]))]
    return tables


def _manifest(
    name: str,
    settings: Settings,
    plan: Plan,
    store: Store,
    tables: dict[str, pd.DataFrame],
    usable: list[PlannedVariant],
    prompts_origin: str,
    hardware: Hardware,
    left_out: Sequence[str],
) -> Manifest:
    side = int(next(iter(tables["latency"]["width"])))
    where = f"argus-calibrate on {hardware.name}"
    weights = "random weights of the exact architectures" if settings.random_weights else "trained weights"
    measured: Callable[..., Provenance] = lambda how: Provenance(kind="measured", source=where, derived=how)  # noqa: E731
    how_long = (
        "median to 1 % where the machine allows it, after warm-up; CUDA events on a GPU, perf_counter elsewhere"
        if settings.latency
        else f"a few runs beside the quality measurement: {ROUGH_LATENCY}"
    )
    provenance = {
        "variants": measured("read from the pipelines; memory is the peak on a GPU, the weights' size elsewhere"),
        "latency": measured(f"{how_long}; {weights}"),
        "after_idle": measured(f"as latency, each run after a pause of {settings.idle_seconds:g} s; {weights}"),
        "loads": measured(
            "page cache dropped before each load from disk where the system allows it;"
            " bytes are those of the files read, and of the weights moved"
        ),
        "prompts": measured(f"the prompts that were run: {prompts_origin}"),
        "similarity": measured(f"nearest other prompt, cosine of sentence embeddings ({settings.embedding})"),
    }
    rated = ", ".join(scorers.metric_of(s) for s in settings.scorers)
    if settings.quality:
        provenance["quality"] = measured(
            f"{rated} and similarity to the base's image, {settings.seeds} images per prompt and variant;"
            " approximate caching from the latents of the nearest other prompt"
        )
    else:
        provenance["quality"] = Provenance(
            kind="synthetic",
            source="quality is absent: every score is 1",
            derived="random weights or --latency-only",
        )
    loads = [store.get(f"load--{v.model}") for v in usable]
    dtypes = {record["dtype"] for record in loads if record is not None}
    dtype = dtypes.pop() if len(dtypes) == 1 else settings.dtype  # half: each model has its own
    what = f"zoo {settings.zoo}: {', '.join(dict.fromkeys(v.model for v in usable))}"
    absent = "" if settings.quality else " Quality is absent: every score is 1 and means nothing."
    return Manifest(
        name=re.sub(r"[^A-Za-z0-9._-]+", "-", name).lstrip("._-") or "profile",
        description=f"Measured with {weights} on {hardware.name}, {dtype}; {what}.{absent}",
        gpu=hardware.name,
        driver=hardware.driver,
        libraries=hardware.libraries,
        dtype=dtype,
        resolution=(side, side),
        seeds=tuple(range(settings.seeds)) if settings.quality else (0,),
        base=plan.base.name,
        metric=settings.metric if settings.quality else ABSENT,
        service_distribution="empirical",
        provenance={table: (provenance[table],) for table in tables},
        generator=plain(details(settings, plan, store, usable, hardware, left_out)),
    )
