"""Profiles side by side: joining several into one, and saying how two differ."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import pandas as pd

from argus_sim.errors import InputError
from argus_sim.profile import Manifest, Profile
from argus_sim.profile.tables import BASE_STRATEGY
from argus_sim.provenance import Provenance
from calibration.assemble import ABSENT, ROUGH_LATENCY

_QUALITY_KEY: Final = ["prompt", "variant", "metric", "seed"]


def merge(profiles: Sequence[Profile], name: str) -> Profile:
    """One profile out of several of the same device: models, batch sizes or metrics measured in separate runs.

    Where two have the same cell, the earlier one's counts; but precise latency beats rough latency, and quality
    beats absent quality, whoever is first. The base is the first profile's.

    Raises:
        InputError: The profiles do not fit together.
    """
    if len(profiles) < 2:
        raise InputError("at least two profiles are needed")
    first = profiles[0]
    for other in profiles[1:]:
        for what in ("gpu", "dtype"):
            a, b = getattr(first.manifest, what), getattr(other.manifest, what)
            if a != b:
                raise InputError(f"{first.name!r} and {other.name!r} are not of one kind: {what} {a!r} and {b!r}")
    rated = [p for p in profiles if p.manifest.metric != ABSENT]
    timed = sorted(profiles, key=_is_rough)
    with_quality = rated or [first]
    metric = with_quality[0].manifest.metric
    prompts = _prompts(with_quality)
    quality = _first_of([p.table("quality") for p in with_quality], _QUALITY_KEY)
    latency = pd.concat([p.table("latency").assign(order=i) for i, p in enumerate(timed)], ignore_index=True)
    best = latency.groupby("variant")["order"].transform("min")  # a variant's latencies come from one run
    latency = latency.loc[latency["order"] == best]
    chosen = latency.groupby("variant")["order"].first()
    sources = {"latency": [timed[i] for i in sorted(set(latency["order"]))]}
    latency = latency.drop(columns="order")
    loads = pd.concat([p.table("loads").assign(order=i) for i, p in enumerate(timed)], ignore_index=True)
    best = loads.groupby(["model", "source"])["order"].transform("min")
    loads = loads.loc[loads["order"] == best]
    sources["loads"] = [timed[i] for i in sorted(set(loads["order"]))]
    loads = loads.drop(columns="order")
    variants = _variants(profiles, latency, quality, metric)
    quality = quality.loc[quality["variant"].isin(set(variants["variant"]))]
    base_rows = quality.loc[(quality["variant"] == first.manifest.base) & (quality["metric"] == metric)]
    prompts = prompts.loc[prompts["prompt"].isin(set(base_rows["prompt"]))]
    quality = quality.loc[quality["prompt"].isin(set(prompts["prompt"]))]
    tables = {
        "variants": variants,
        "latency": latency.loc[latency["variant"].isin(set(variants["variant"]))],
        "loads": loads.loc[loads["model"].isin(set(variants["model"]))],
        "prompts": prompts,
        "quality": quality,
    }
    after = [p.table("after_idle").assign(order=i) for i, p in enumerate(timed) if "after_idle" in p.tables]
    if after:
        rows = pd.concat(after, ignore_index=True)
        rows = rows.loc[rows["order"] == rows["variant"].map(chosen)]  # from the run that its latencies come from
        rows = rows.loc[rows["variant"].isin(set(variants["variant"]))]
        if len(rows):
            sources["after_idle"] = [timed[i] for i in sorted(set(rows["order"]))]
            tables["after_idle"] = rows.drop(columns="order")
    with_similarity = [p for p in with_quality if "similarity" in p.tables]
    if with_similarity:
        rows = _first_of([p.table("similarity") for p in with_similarity], ["prompt", "neighbour"])
        tables["similarity"] = rows.loc[rows["prompt"].isin(set(prompts["prompt"]))]
    return Profile.from_tables(_manifest(profiles, name, tables, metric, sources), tables)


def _is_rough(profile: Profile) -> bool:
    return any(ROUGH_LATENCY in (part.derived or "") for part in profile.provenance_of("latency"))


def _first_of(frames: Sequence[pd.DataFrame], key: list[str]) -> pd.DataFrame:
    return pd.concat(frames, ignore_index=True).drop_duplicates(key, keep="first")


def _prompts(profiles: Sequence[Profile]) -> pd.DataFrame:
    prompts = _first_of([p.table("prompts") for p in profiles], ["prompt", "text"])
    again = prompts["prompt"].duplicated()
    if again.any():
        name = prompts.loc[again, "prompt"].iloc[0]
        texts = list(prompts.loc[prompts["prompt"] == name, "text"])
        raise InputError(f"prompt {name!r} is {texts[0]!r} in one profile and {texts[1]!r} in another")
    return prompts


def _variants(
    profiles: Sequence[Profile], latency: pd.DataFrame, quality: pd.DataFrame, metric: str
) -> pd.DataFrame:
    """All variants that have a latency and a score, in ladders under the first profile's base."""
    base = profiles[0].manifest.base
    frames = []
    for profile in profiles:
        frame = profile.table("variants")
        if (
            profile.manifest.base != base
        ):  # its base is one model among others here, and its ladders are that model's
            own = frame["strategy"].isin({BASE_STRATEGY, "SM"})
            plain = ~own & ~frame["strategy"].str.contains("@")
            frame.loc[plain, "strategy"] += "@" + frame.loc[plain, "model"]
            frame.loc[own, "strategy"] = "SM"
        frames.append(frame)
    rows = pd.concat(frames, ignore_index=True).drop_duplicates("variant", keep="first")
    if metric != ABSENT:
        rated = set(quality.loc[quality["metric"] == metric, "variant"])
        rows = rows.loc[rows["variant"].isin(rated)]
    if base not in set(rows["variant"]):
        raise InputError(f"no profile has scores of the base {base!r} in {metric!r}")
    single = latency.loc[latency["batch_size"] == 1].groupby("variant")["mean_s"].mean()
    rows = rows.loc[rows["variant"].isin(set(single.index))].copy()
    for _, rungs in rows.loc[rows["strategy"] != BASE_STRATEGY].groupby("strategy"):
        # By the latencies that count now: those of a quality-only run, whose levels these may be, are rough.
        ranked = rungs.assign(single=rungs["variant"].map(single)).sort_values("single", ascending=False)
        rows.loc[ranked.index, "level"] = np.arange(1, len(ranked) + 1)
    return rows


def _manifest(
    profiles: Sequence[Profile],
    name: str,
    tables: dict[str, pd.DataFrame],
    metric: str,
    sources: dict[str, list[Profile]],
) -> Manifest:
    """``sources``: the profiles that a table's rows come from, where those are not all that have it."""
    provenance: dict[str, tuple[Provenance, ...]] = {}
    for table in tables:
        parts = [
            part
            for p in sources.get(table, profiles)
            if table in p.tables and not (table == "quality" and metric != ABSENT and p.manifest.metric == ABSENT)
            for part in p.provenance_of(table)
        ]
        provenance[table] = tuple(dict.fromkeys(parts))
    first = profiles[0].manifest
    # What the whole is, says a part that has its metric: not one whose quality is absent.
    described = next(p for p in profiles if p.manifest.metric == metric).manifest.description
    described = re.sub(r"^Merged from [^.]*\. ", "", described)
    seeds = sorted(set(tables["quality"]["seed"]))
    return first.model_copy(
        update={
            "name": name,
            "description": f"Merged from {', '.join(p.name for p in profiles)}. {described}",
            "metric": metric,
            "seeds": tuple(int(seed) for seed in seeds),
            "provenance": provenance,
            "generator": {"merged": [run for p in profiles for run in _runs(p, timed=p in sources["latency"])]},
        }
    )


def _runs(profile: Profile, *, timed: bool) -> list[Any]:
    """What a manifest says of each run a profile was measured in; of a merged one, those of its parts.

    Args:
        profile: One of those that are merged.
        timed: Its latencies count; else its runs without quality have left nothing in the whole.
    """
    made: Any = profile.manifest.generator
    runs = made["merged"] if "merged" in made else [{"name": profile.name, "digest": profile.digest(), **made}]
    return [run for run in runs if timed or run.get("settings", {}).get("quality", True)]


def diff(a: Profile, b: Profile) -> dict[str, Any]:
    """What is different: facts of the manifest, variants on one side only, and ratios B over A of the rest."""
    facts: dict[str, tuple[Any, Any]] = {}
    for field in ("gpu", "driver", "dtype", "resolution", "base", "metric", "seeds", "libraries"):
        x, y = getattr(a.manifest, field), getattr(b.manifest, field)
        if field == "libraries":
            facts |= {
                f"library {key}": (x.get(key), y.get(key)) for key in sorted({*x, *y}) if x.get(key) != y.get(key)
            }
        elif x != y:
            facts[field] = (x, y)
    names_a, names_b = ([v.name for v in p.variants] for p in (a, b))
    shared = [name for name in names_a if name in set(names_b)]
    same_metric = a.manifest.metric == b.manifest.metric
    means = [np.nanmean(p.quality(), axis=0) for p in (a, b)]
    ratios = [np.nanmean(p.relative_quality(), axis=0) for p in (a, b)]
    rows = []
    for name in shared:
        i, j = a.variant_id(name), b.variant_id(name)
        for batch in sorted(set(a.batch_sizes(i)) & set(b.batch_sizes(j))):
            x, y = a.latency(i, batch).p50_s, b.latency(j, batch).p50_s
            rows.append(
                {
                    "variant": name,
                    "batch_size": batch,
                    "a_s": x,
                    "b_s": y,
                    "latency_ratio": y / x,
                    "quality_ratio": float(means[1][j] / means[0][i]) if same_metric else None,
                    "relative_quality_change": float(ratios[1][j] - ratios[0][i]),
                }
            )
    loads = {
        model: float(b.load_samples_s(model, source).mean() / a.load_samples_s(model, source).mean())
        for model in a.models
        if model in b.models
        for source in ("disk",)
        if _has_load(a, model, source) and _has_load(b, model, source)
    }
    return {
        "a": a.name,
        "b": b.name,
        "equal": a.digest() == b.digest(),
        "facts": facts,
        "only_a": [n for n in names_a if n not in set(names_b)],
        "only_b": [n for n in names_b if n not in set(names_a)],
        "latency": rows,
        "disk_load_ratio": loads,
    }


def _has_load(profile: Profile, model: str, source: str) -> bool:
    rows = profile.table("loads")
    return bool(((rows["model"] == model) & (rows["source"] == source)).any())
