"""What if: a profile with other latencies, loads, batching or qualities, and a provenance that says so.

A changed number was measured by nobody. So the tables that a change touches are called synthetic, with their
source as before, and what was done to them under ``derived``.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict, Field

from argus_sim.errors import InputError
from argus_sim.profile.profile import Profile
from argus_sim.provenance import Provenance

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]

_LATENCIES = ["mean_s", "std_s", "p50_s", "p90_s", "p99_s"]


class Batching(BaseModel):
    """Batches of other sizes, with a latency that is affine in the size.

    Attributes:
        gain: Images/s in batches of ``largest`` over those in batches of one.
        largest: The largest batch; the sizes are the powers of two up to it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    gain: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 1.0
    largest: Annotated[int, Field(ge=1, le=512)] = 4


class ProfileChanges(BaseModel):
    """What to change; nothing by default.

    Attributes:
        latency_factor: All batches take this many times as long.
        load_factor: All model loads take this many times as long.
        batching: Replaces what the profile says of batches larger than one.
        quality_spread: How much prompts differ in what an approximation costs them, over what the profile says: 0
            makes all prompts lose the mean of their variant. The mean stays, unless a factor above 1 would take
            prompts below a quality of 0: they get 0, the mean rises, and the provenance says of how many.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    latency_factor: Positive = 1.0
    load_factor: Positive = 1.0
    batching: Batching | None = None
    quality_spread: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0

    def apply(self, profile: Profile) -> Profile:
        """The changed profile; the same one if there is nothing to change.

        Raises:
            InputError: The change leaves no sound profile.
        """
        tables = {name: profile.table(name) for name in profile.tables}
        done: dict[str, list[str]] = {}
        if self.latency_factor != 1.0:
            for table in tables.keys() & {"latency", "after_idle"}:
                tables[table][_LATENCIES] *= self.latency_factor
                done[table] = [f"latencies x {self.latency_factor:g}"]
        if self.load_factor != 1.0:
            tables["loads"]["seconds"] *= self.load_factor
            done["loads"] = [f"load times x {self.load_factor:g}"]
        if self.batching is not None:
            tables["latency"] = _batched(tables["latency"], self.batching)
            done.setdefault("latency", []).append(
                f"batches of up to {self.batching.largest} with a gain of {self.batching.gain:g}"
            )
            if "after_idle" in tables:
                tables["after_idle"] = tables["after_idle"].loc[lambda rows: rows["batch_size"] == 1]
                if tables["after_idle"].empty:
                    del tables["after_idle"]
        if self.quality_spread != 1.0:
            tables["quality"], cut = _spread(profile, tables["quality"], self.quality_spread)
            done["quality"] = [f"spread of quality over prompts x {self.quality_spread:g}"]
            if cut:
                done["quality"].append(f"{cut} qualities that would be below 0 are 0, which raises their mean")
        if not done:
            return profile
        manifest = profile.manifest.model_copy(
            update={
                "provenance": {
                    table: tuple(_derived(part, done[table]) if table in done else part for part in parts)
                    for table, parts in profile.manifest.provenance.items()
                    if table in tables
                }
            }
        )
        return Profile.from_tables(manifest, tables)


def _derived(part: Provenance, changes: list[str]) -> Provenance:
    text = f"changed by the experiment: {', '.join(changes)}"
    return part.model_copy(
        update={"kind": "synthetic", "derived": f"{part.derived}; {text}" if part.derived else text}
    )


def _batched(latency: pd.DataFrame, batching: Batching) -> pd.DataFrame:
    """Latency ``t(b) = t(1) (1 + s (b - 1))`` with the slope s at which the largest batch has the gain."""
    largest = batching.largest
    if batching.gain > largest:
        raise InputError(
            f"batches of {largest} cannot gain {batching.gain:g}; at most {largest} is allowed",
            where="profile_changes.batching",
        )
    slope = (largest / batching.gain - 1.0) / (largest - 1.0) if largest > 1 else 0.0
    single = latency.loc[latency["batch_size"] == 1]
    sizes = [2**k for k in range(largest.bit_length())]
    if sizes[-1] != largest:
        sizes.append(largest)
    changed = pd.concat([single] * len(sizes), ignore_index=True)
    size = np.repeat(sizes, len(single))
    changed["batch_size"] = size
    changed[_LATENCIES] = changed[_LATENCIES].mul(1.0 + slope * (size - 1), axis=0)
    for unknown in ("samples", "energy_j"):
        changed[unknown] = changed[unknown].where(size == 1)
    return changed


def _spread(profile: Profile, quality: pd.DataFrame, factor: float) -> tuple[pd.DataFrame, int]:
    """Scale each prompt's deviation from its variant's mean quality relative to the base; the base stays.

    Returns:
        The table, and how many qualities would have fallen below 0.
    """
    to_base = profile.quality_relative_to_base()
    mean = np.nanmean(to_base, axis=0)
    base = profile.quality()[:, [profile.base]]
    scaled = mean + factor * (to_base - mean)
    shift = pd.DataFrame(
        (np.maximum(scaled, 0.0) - to_base) * base,
        index=pd.Index(profile.prompts, name="prompt"),
        columns=pd.Index([v.name for v in profile.variants], name="variant"),
    )
    by_row = pd.MultiIndex.from_frame(quality[["prompt", "variant"]])
    primary = (quality["metric"] == profile.manifest.metric).to_numpy()
    moved = shift.stack().reindex(by_row).to_numpy()
    score = quality["score"].to_numpy() + np.where(primary, moved, 0.0)
    # Several seeds of a prompt are moved together; one of them may fall below 0.
    return quality.assign(score=np.maximum(score, 0.0)), int((scaled < 0.0).sum())
