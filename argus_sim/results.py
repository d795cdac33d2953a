"""What an experiment came to, and what its numbers rest on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from argus_sim.simulate import Scene


@dataclass(frozen=True)
class Results:
    """What an experiment came to.

    Attributes:
        folder: Where it is.
        summary: One row per run, the columns of ``summary.csv``.
        aggregate: Means and half-widths of 95 % intervals by policy and trace.
    """

    folder: Path
    summary: pd.DataFrame
    aggregate: pd.DataFrame


def provenance_rows(scene: Scene) -> list[tuple[str, str, str]]:
    """What the numbers rest on: (what, kind, source) for each part of the profile and the traces."""
    profile = scene.profile
    rows: list[tuple[str, str, str]] = [
        (
            f"{profile.name}: {table}" + (f" ({part.covers})" if part.covers != "*" else ""),
            part.kind,
            part.source + (f"; derived: {part.derived}" if part.derived else ""),
        )
        for table in profile.tables
        for part in profile.provenance_of(table)
    ]
    for config in scene.experiment.traces:
        trace = scene.trace(config, scene.experiment.seed)
        changes = "; ".join(trace.transformations)
        for origin in trace.provenance:
            covers = f" ({origin.covers})" if origin.covers != "*" else ""
            source = origin.source + (f"; derived: {origin.derived}" if origin.derived else "")
            source += f"; {changes}" if changes else ""
            rows.append((f"trace {config.name}{covers}", origin.kind, source))
    return rows + [(what, origin.kind, origin.source) for what, origin in scene.assumptions()]
