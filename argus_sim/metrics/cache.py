"""What a simulated cache did in a run: totals for ``summary.json``, columns for ``timeline.parquet``.

A look-up ends as a hit (some steps may be skipped), a miss, or a time-out. Ratios are over look-ups that have
ended; a request that never asked is in none of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from argus_sim.metrics.metrics import windows_of
from argus_sim.record import CacheRecord, RunRecord


def summarise_cache(record: CacheRecord, duration_s: float) -> dict[str, Any]:
    """Totals of a run.

    * ``lookups, hits, misses, timeouts``: the last three sum to the first; * ``hit_ratio`` = hits / lookups,
    ``skipped_steps`` = mean over look-ups (0 for a miss); * ``hits_by_steps``: hits for each number of steps; *
    ``retrieval_mean_s, retrieval_p99_s``: from the question to the answer, of hits; * ``read_bytes,
    written_bytes``: latents fetched for hits, and stored; * ``stored, evicted, held, prompts_held, held_bytes,
    started_with``: entries; the last is at the start, ``held`` at the end, and ``started_with + stored -
    evicted = held``; * ``link_utilisation``: time that the network was busy with latents / the trace's
    duration.
    """
    ended = record.steps >= 0
    steps = record.steps[ended]
    hit = steps > 0
    late = record.timed_out[ended]
    took_s = (record.answered_s - record.asked_s)[ended][hit]
    lookups, hits = len(steps), int(hit.sum())
    depths, counts = np.unique(steps[hit], return_counts=True)
    return {
        "lookups": lookups,
        "hits": hits,
        "misses": lookups - hits - int(late.sum()),
        "timeouts": int(late.sum()),
        "hit_ratio": hits / lookups if lookups else math.nan,
        "skipped_steps": float(steps.mean()) if lookups else math.nan,
        "hits_by_steps": {str(k): n for k, n in zip(depths.tolist(), counts.tolist(), strict=True)},
        "retrieval_mean_s": float(took_s.mean()) if hits else math.nan,
        "retrieval_p99_s": float(np.quantile(took_s, 0.99)) if hits else math.nan,
        "read_bytes": hits * record.latent_bytes,
        "written_bytes": record.stored * record.latent_bytes,
        "stored": record.stored,
        "evicted": record.evicted,
        "held": record.held,
        "prompts_held": record.prompts_held,
        "held_bytes": record.held * record.latent_bytes,
        "started_with": record.started_with,
        "link_utilisation": record.link_busy_s / duration_s,
    }


#: Columns of the report's table: heading -> the key of the totals, its factor and its decimals.
_TABLE = {
    "look-ups": ("lookups", 1.0, 0),
    "hits, %": ("hit_ratio", 100.0, 1),
    "time-outs": ("timeouts", 1.0, 0),
    "steps skipped": ("skipped_steps", 1.0, 2),
    "p99 retrieval, s": ("retrieval_p99_s", 1.0, 3),
    "read, MB": ("read_bytes", 1e-6, 0),
    "entries stored": ("stored", 1.0, 0),
    "dropped": ("evicted", 1.0, 0),
    "at the end": ("held", 1.0, 0),
    "network busy, %": ("link_utilisation", 100.0, 1),
}


def cache_table(totals: Mapping[str, Sequence[dict[str, Any]]]) -> tuple[list[str], list[list[str]]]:
    """Headings, and a row of printed cells for each policy: means over its runs.

    Args:
        totals: Policy -> :func:`summarise_cache` of each of its runs, with None for NaN as in ``summary.json``.
    """
    depths = sorted({int(k) for runs in totals.values() for run in runs for k in run["hits_by_steps"]})
    rows = []
    for policy, runs in totals.items():
        row = [policy]
        for key, factor, digits in _TABLE.values():
            known = [factor * run[key] for run in runs if run[key] is not None]
            row.append(f"{np.mean(known):,.{digits}f}" if known else "–")
        asked = sum(run["lookups"] for run in runs)
        for k in depths:
            hits = sum(run["hits_by_steps"].get(str(k), 0) for run in runs)
            row.append(f"{100.0 * hits / asked:.1f}" if asked else "–")
        rows.append(row)
    return ["policy", *_TABLE, *(f"{k} steps, %" for k in depths)], rows


def cache_timeline(run: RunRecord, window_s: float) -> pd.DataFrame:
    """A row per window of arrival time, as in :func:`argus_sim.metrics.timeline`.

    Columns: ``cache_lookups``, ``cache_hit_ratio`` (NaN without look-ups), ``cache_skipped_steps`` (mean over
    look-ups), and ``cache_hits:K`` for each number of steps K that was ever skipped.
    """
    record = run.cache
    assert record is not None
    window, count = windows_of(run, window_s)
    ended = record.steps >= 0
    steps, window = record.steps[ended], window[ended]
    lookups = np.bincount(window, minlength=count)

    def per_lookup(total: Any) -> Any:
        return np.divide(total, lookups, out=np.full(count, math.nan), where=lookups > 0)

    hits = {k: np.bincount(window[steps == k], minlength=count) for k in np.unique(steps[steps > 0]).tolist()}
    return pd.DataFrame(
        {
            "cache_lookups": lookups,
            "cache_hit_ratio": per_lookup(np.bincount(window[steps > 0], minlength=count)),
            "cache_skipped_steps": per_lookup(np.bincount(window, steps, minlength=count)),
            **{f"cache_hits:{k}": n for k, n in hits.items()},
        }
    )
