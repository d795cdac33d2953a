"""What a profile's manifest tells beside its tables: sizes, parts, drift, distances, and what is to be known."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from calibration import scorers
from calibration.hardware import Hardware
from calibration.latency import median_half_width
from calibration.plan import Plan, PlannedVariant, Settings
from calibration.pooling import timed
from calibration.store import FAILED, OK, Store, plain

#: A change of the base's latency over its run that is worth a note.
_DRIFT: Final = 0.05
#: How far approximate caching may be from what its parts predict without a note.
_OFF: Final = 0.05
#: Work whose energy is told apart from the steps of a GPU's counter. Users of NVML report that it may stand still
#: for 10 ms and more; we have measured none, so this leaves a hundred times as much.
_LONG_ENOUGH_S: Final = 1.0
_OF_A_LATENCY: Final = (
    "samples", "half_width", "warm_up", "steady", "drift", "reserved_bytes", "decoded_in_turn", "clocks",
)  # fmt: skip
_OF_A_MODEL: Final = (
    "parameters", "weight_bytes", "file_bytes", "cached", "pinned", "dtype", "side", "steps", "guidance",
    "scheduler", "evict_s",
)  # fmt: skip
#: A share of a model's files in the page cache that makes its loads from disk faster than a disk is.
_WARM: Final = 0.05


def details(
    settings: Settings,
    plan: Plan,
    store: Store,
    usable: list[PlannedVariant],
    hardware: Hardware,
    left_out: Sequence[str],
) -> dict[str, Any]:
    """What has no table: settings, parts, drift, sizes, distances between sets, and what is missing."""
    records = {cell.key: record for cell in plan.cells if (record := store.get(cell.key)) is not None}
    hidden = {"models", "scorers", "prompts"}  # may name folders of the machine
    out: dict[str, Any] = {
        "command": "argus-calibrate",
        "settings": {k: v for k, v in settings.as_json().items() if k not in hidden},
        "machine": hardware.facts,
        "left_out": list(left_out),
        "models": {},
        "latency": {
            f"{variant.replace('/', '~')}--b{batch}": {k: record.get(k) for k in _OF_A_LATENCY}
            for (variant, batch), record in timed(plan, store, "latency").items()
        },
    }
    for model in dict.fromkeys(v.model for v in usable):
        load, parts = records[f"load--{model}"], records.get(f"parts--{model}")
        out["models"][model] = {key: load.get(key) for key in _OF_A_MODEL}
        if parts is not None and parts["status"] == OK:
            out["models"][model]["parts_s"] = {
                k: v for k, v in parts.items() if k.endswith("_s") and k != "took_s"
            }
            out["models"][model]["skipping_predicted"] = _predicted(parts)
    ends = [records.get(f"drift--{plan.base.model}--{end}", {}).get("median_s") for end in (0, 1)]
    if ends[0] is not None and ends[1] is not None:
        out["drift"] = {"base_at_start_s": ends[0], "base_at_end_s": ends[1], "ratio": ends[1] / ends[0]}
    out["notes"] = _notes(out, list(records.values()))
    if distances := _distances(settings, plan, store, usable):
        out["set_distances"] = {
            "features": "image features of the CLIP scorer (not Inception's); against the base's images",
            **distances,
        }
    return out


def _notes(details: dict[str, Any], records: list[dict[str, Any]]) -> list[str]:
    """What failed, and signs that times are not what they are taken for."""
    notes = []
    failed = sum(record["status"] == FAILED for record in records)
    if failed:
        notes.append(f"{failed} cells failed and are left out, with what needs them: --resume tries them again")
    models = details["models"].items()
    if warm := {name: model["cached"] for name, model in models if (model["cached"] or 0.0) > _WARM}:
        notes.append(
            f"loads from disk of {', '.join(warm)} were warm: up to {100 * max(warm.values()):.0f} % of the files"
            " stayed in the page cache"
        )
    if unknown := [name for name, model in models if model["cached"] is None and model["file_bytes"] is not None]:
        notes.append(
            f"loads from disk of {', '.join(unknown)} may have been warm: this system does not say what is in its"
            " page cache"
        )
    slow = [name for name, model in models if not model["pinned"]]
    if slow and details["settings"]["device"].startswith("cuda"):
        notes.append(f"loads from host memory of {', '.join(slow)} were from pageable memory: pinning it failed")
    ratio = details.get("drift", {}).get("ratio", 1.0)
    if abs(ratio - 1.0) > _DRIFT:
        notes.append(
            f"the base took {ratio:.2f} times as long after its latencies as before:"
            " heat, or other work on the machine"
        )
    widths = {key: values["half_width"] for key, values in details["latency"].items()}
    unsettled = [key for key, width in widths.items() if width is None or not width < 0.05]
    if unsettled:
        notes.append(
            f"{len(unsettled)} of {len(widths)} latencies are not known to 5 %: few samples, or a busy machine;"
            " give them longer with --cell-seconds"
        )
    energies = [record for record in records if record.get("energy_j") is not None]
    if short := sum(record["samples"] * record["mean_s"] < _LONG_ENOUGH_S for record in energies):
        notes.append(
            f"{short} of {len(energies)} energies are of less than {_LONG_ENOUGH_S:g} s of work: rough,"
            " since a GPU's counter of joules moves in steps"
        )
    for model in details["models"].values():
        for name, values in model.get("skipping_predicted", {}).items():
            off, known = abs(values["ratio"] - 1.0), values["ratio"] * values["half_width"]
            if off - known > _OFF:  # not so with NaN, of too few rounds
                notes.append(
                    f"{name} takes {1.0 / values['ratio']:.2f} times what its parts predict"
                    f" (predicted / measured {values['ratio']:.2f} ± {known:.2f})"
                )
    return notes


def _predicted(parts: dict[str, Any]) -> dict[str, Any]:
    """Approximate caching's time from the parts of the full runs just before and after it, beside its own.

    On a busy machine single rounds scatter by a tenth and more, so the ratio comes with the half-width of its
    median's 95 % interval, as a share of it.
    """
    out = {}
    for name, runs in parts.get("skipping", {}).items():
        predicted, measured = np.array(runs).T
        out[name] = {
            "predicted_s": float(np.median(predicted)),
            "measured_s": float(np.median(measured)),
            "ratio": float(np.median(predicted / measured)),
            "half_width": median_half_width(list(predicted / measured)),
            "runs": len(runs),
        }
    return out


def _distances(settings: Settings, plan: Plan, store: Store, usable: list[PlannedVariant]) -> dict[str, Any]:
    """Distances between sets of images; those kept by the run that had the images, where they are gone."""

    def features(variant: PlannedVariant) -> Any:
        cells = [c for c in plan.cells if c.kind == "quality" and c.variant == variant.name]
        arrays = [store.array(f"features--{c.key}") for c in cells]
        return None if not arrays or any(a is None for a in arrays) else np.concatenate(arrays)  # type: ignore[arg-type]

    kept = store.folder / "set_distances.json"
    out: dict[str, Any] = dict(json.loads(kept.read_text("utf-8"))) if kept.is_file() else {}
    base = features(usable[0]) if settings.quality else None
    if base is not None and len(base) >= 8:
        for variant in usable[1:]:
            mine = features(variant)
            if mine is not None:
                out[variant.name] = scorers.set_distances(mine, base)
        store.write(kept.name, json.dumps(plain(out)).encode())
    return {variant.name: out[variant.name] for variant in usable[1:] if variant.name in out}
