"""The latency cells of a run, those of several rounds put together."""

from __future__ import annotations

from typing import Any, Literal

from calibration.latency import Samples, median_half_width
from calibration.plan import Plan
from calibration.store import OK, Store


def timed(plan: Plan, store: Store, kind: Literal["latency", "idle"]) -> dict[tuple[str, int], dict[str, Any]]:
    """(Variant, batch size) -> what is known of it, in the plan's order; only what was done."""
    rounds: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for cell in plan.cells:
        if cell.kind == kind and (record := store.get(cell.key)) is not None and record["status"] == OK:
            rounds.setdefault((cell.variant, cell.batch), []).append(record)
    return {key: _together(records) for key, records in rounds.items()}


def _together(records: list[dict[str, Any]]) -> dict[str, Any]:
    """One record of several: percentiles are those of all samples, memory and energy the most and the mean."""
    first = records[0]
    if len(records) == 1:
        return first
    seconds = [s for record in records for s in record["seconds"]]
    samples = Samples(tuple(seconds), 0, all(r.get("steady", True) for r in records), median_half_width(seconds))
    pooled = {**first, **samples.row(), "half_width": samples.half_width}
    if "warm_up" in first:
        pooled |= {
            "warm_up": sum(r["warm_up"] for r in records), "steady": samples.steady, "drift": samples.drift
        }  # fmt: skip
    for most in ("memory_bytes", "reserved_bytes"):
        if first.get(most) is not None:
            pooled[most] = max(r[most] for r in records)
    known = [(r["energy_j"], r["samples"]) for r in records if r.get("energy_j") is not None]
    if known:  # in a round that was too short the counter did not move
        pooled["energy_j"] = sum(e * n for e, n in known) / sum(n for _, n in known)
    return pooled
