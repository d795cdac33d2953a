"""What is made from all runs of an experiment: ``summary.csv``, the figures and the report."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from argus_sim import metrics
from argus_sim.experiment.basis import provenance_rows, unused
from argus_sim.experiment.config import Experiment
from argus_sim.experiment.scene import Scene
from argus_sim.experiment.sections import TraceConfig
from argus_sim.files import write_atomically
from argus_sim.metrics.cache import cache_table
from argus_sim.report import plots, write_report
from argus_sim.report.charts.story import TraceStory, tell
from argus_sim.report.charts.svg import efficient
from argus_sim.simulation.filling import FillingCacheConfig


def conclude(
    scene: Scene, out: Path, summary: pd.DataFrame, lock: dict[str, Any], *, report: bool = True
) -> None:
    """Write what is made from all runs, whose folders are there; ``summary`` is the table of ``summary.csv``."""
    experiment = scene.experiment
    write_atomically(out / "summary.csv", summary.to_csv(index=False).encode())
    if not report:
        return
    aggregate = metrics.aggregate(summary)
    for name, figure in _figures(scene, out, aggregate):
        plots.save(figure, out / "figures", name)
    write_report(
        out / "report.html",
        title=experiment.name,
        lock=lock,
        summary=summary,
        aggregate=aggregate,
        provenance=provenance_rows(scene),
        stories=[_story(experiment, out, trace) for trace in experiment.traces],
        front=_profile_front(scene),
        facts=_facts(scene),
        caches=[(trace.name, *_cache(experiment, out, trace)) for trace in experiment.traces]
        if isinstance(experiment.cluster.cache, FillingCacheConfig)
        else (),
        notes=[*([experiment.description] if experiment.description else []), *unused(scene)],
    )


def _timelines(experiment: Experiment, out: Path, trace: TraceConfig) -> dict[str, list[pd.DataFrame]]:
    return {
        policy.label: [
            pd.read_parquet(out / policy.label / trace.name / str(seed) / "timeline.parquet")
            for seed in experiment.seeds
        ]
        for policy in experiment.policies
    }


def _figures(scene: Scene, out: Path, aggregate: pd.DataFrame) -> Iterator[tuple[str, Any]]:
    for trace in scene.experiment.traces:
        timelines = _timelines(scene.experiment, out, trace)
        yield f"timeline-{trace.name}", plots.figure_timeline(timelines, trace.name)
    yield "totals", plots.figure_totals(aggregate)
    yield "front", plots.figure_front(aggregate)


#: Columns of ``outcomes.parquet`` that a report is made from.
_TOLD = [
    "arrival_s",
    "start_s",
    "finish_s",
    "deadline_s",
    "variant",
    "worker",
    "batch_size",
    "outcome",
    "reason",
    "relative_quality",
]


def _story(experiment: Experiment, out: Path, trace: TraceConfig) -> TraceStory:
    first = {p.label: out / p.label / trace.name / str(experiment.seed) for p in experiment.policies}
    return tell(
        trace.name,
        _timelines(experiment, out, trace),
        {label: pd.read_parquet(folder / "outcomes.parquet", columns=_TOLD) for label, folder in first.items()},
        {label: pd.read_parquet(folder / "attempts.parquet") for label, folder in first.items()},
        {label: json.loads((folder / "events.json").read_text("utf-8")) for label, folder in first.items()},
    )


def _cache(experiment: Experiment, out: Path, trace: TraceConfig) -> tuple[list[str], list[list[str]]]:
    """The table of what each policy's cache did."""

    def totals(policy: str, seed: int) -> dict[str, Any]:
        summary = out / policy / trace.name / str(seed) / "summary.json"
        found: dict[str, Any] = json.loads(summary.read_text("utf-8"))["cache"]
        return found

    return cache_table(
        {p.label: [totals(p.label, seed) for seed in experiment.seeds] for p in experiment.policies}
    )


def _profile_front(scene: Scene) -> list[tuple[float, float]]:
    """Batch-1 latency (s) and mean relative quality of the variants that no other beats in both."""
    catalog, quality = scene.catalog, np.nanmean(scene.profile.relative_quality(), axis=0)
    points = [
        (float(catalog.mean_s[v][catalog.batch_sizes[v][0]]), float(quality[v])) for v in range(len(quality))
    ]
    return efficient(points)


def _facts(scene: Scene) -> list[tuple[str, str]]:
    """What was run, in a few words each."""
    experiment = scene.experiment
    cluster = experiment.cluster
    first, last = experiment.seeds[0], experiment.seeds[-1]
    seeds = f"{first} to {last}" if last > first else f"{first}"
    gpus = " + ".join(f"{kind.workers} {kind.name}" for kind in cluster.kinds) or f"{cluster.workers}"
    drop = {"late": "what can no longer be on time", "never": "nothing"}
    return [
        ("GPUs", gpus),
        ("profile", scene.profile.name),
        ("deadline after arrival", f"{scene.slo_s:.3g} s"),
        ("given up", drop.get(str(experiment.drop)) or f"after {experiment.drop_rule.factor:g} deadlines"),
        ("faults", ", ".join(sorted({fault.kind for fault in cluster.faults})) or "none"),
        ("seeds", seeds),
        ("made with", f"argus-sim {version('argus-sim')}"),
    ]
