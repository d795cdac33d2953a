"""Has the machine kept its pace? Service times before, in and after a live run, and simulations with each.

A profile that was measured a minute ago need not hold now: on a shared machine, work that took 0.26 s takes
0.32 s a minute later. So what live and simulated differ by is told apart: by how much the machine's pace has
changed, and what is left when the simulated workers have the times that this machine had.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pandas as pd

from argus_sim.live.client import Answers
from argus_sim.profile import Profile, latency_row
from argus_sim.record import RunRecord

#: A variant, a batch size, and the pause of the worker before the batch that its times are for; 0: none.
Cell = tuple[str, int, float]
#: A machine further than this from its profile, before or after a run, is no longer the one that was measured; as
#: `argus-calibrate` notes a machine that changes by more while it is measured.
KEPT: Final = 0.05
#: How long each batch took, seconds.
Times = Mapping[Cell, Sequence[float]]


@dataclass(frozen=True, slots=True)
class Pace:
    """Mean times of one variant and batch size, seconds; NaN where nothing was timed.

    Attributes:
        idle_s: They are of batches after this much idleness of the worker, and up to the profile's next pause.
        batches: So many of them the live run had.
        profile_s: As the profile says.
        before_s, after_s: On the worker itself, as calibration times.
        during_s: In the live run, from command to images: with images to PNG and between processes.
    """

    variant: str
    size: int
    idle_s: float
    batches: int
    profile_s: float
    before_s: float
    during_s: float
    after_s: float


@dataclass(frozen=True)
class Drift:
    """What became of the machine's pace.

    Attributes:
        paces: The variants and batch sizes that were timed.
        simulated: Whose times the simulated workers had -> that simulation.
    """

    paces: tuple[Pace, ...]
    simulated: Mapping[str, RunRecord]

    def ratio(self, what: str, *of: str) -> float:
        """Time of the live run's batches at one pace over that at the mean of others, minus 1."""
        known = [p for p in self.paces if p.batches and all(math.isfinite(p_s) for p_s in _of(p, (what, *of)))]
        above = sum(p.batches * _of(p, (what,))[0] for p in known)
        below = sum(p.batches * float(np.mean(_of(p, of))) for p in known)
        return above / below - 1 if below else math.nan

    @property
    def furthest(self) -> float:
        """How far the worker was off the profile's pace before or after the load, a share; NaN if not known."""
        return float(np.abs([self.ratio("before_s", "profile_s"), self.ratio("after_s", "profile_s")]).max())

    @property
    def kept_pace(self) -> bool:
        """Whether the machine had the profile's pace on both sides of the load; within it, that is not known."""
        return self.furthest <= KEPT

    def words(self) -> list[tuple[str, str]]:
        """The drift in a few words each."""
        if math.isnan(self.furthest):
            verdict = "its pace is not known"
        elif self.kept_pace:
            verdict = f"kept the profile's pace within {100 * KEPT:g} %"
        else:
            verdict = (
                f"was {100 * self.furthest:.1f} % off the profile's pace: so the errors above are not the"
                " simulator's alone; measure it again, and run again"
            )
        return [
            ("worker before the load over the profile", _percent(self.ratio("before_s", "profile_s"))),
            ("worker after the load over the profile", _percent(self.ratio("after_s", "profile_s"))),
            (
                "batches of the live run over the mean of both",
                _percent(self.ratio("during_s", "before_s", "after_s")),
            ),
            ("the machine", verdict),
        ]

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "before_over_profile": self.ratio("before_s", "profile_s"),
            "after_over_profile": self.ratio("after_s", "profile_s"),
            "during_over_both": self.ratio("during_s", "before_s", "after_s"),
            "kept_pace": self.kept_pace,
            "cells": [{name: getattr(p, name) for name in Pace.__slots__} for p in self.paces],
        }


def _of(pace: Pace, names: Sequence[str]) -> list[float]:
    return [getattr(pace, name) for name in names]


def _percent(share: float) -> str:
    return "–" if math.isnan(share) else f"{100 * share:+.1f} %"


def cells_of(record: RunRecord, profile: Profile) -> list[tuple[str, int]]:
    """The variants that a run had, in all their batch sizes: a live run may have other ones."""
    variants = np.unique(record.variant[record.variant >= 0]).tolist()
    names = [record.variants[variant] for variant in variants]
    return [(name, size) for name in names for size in profile.batch_sizes(profile.variant_id(name))]


def batches_of(
    record: RunRecord, answers: Answers, profile: Profile, requests: slice = slice(None)
) -> dict[Cell, list[float]]:
    """How long each batch of a live run took, by what the server said of these requests of it.

    A batch counts as one after the profile's longest pause that is not longer than its worker was idle before.
    """
    n = len(record)
    said = (record.variant >= 0) & (record.batch_size > 0) & np.isfinite(answers.service_s[:n])
    wanted = np.zeros(n, dtype=np.bool_)
    wanted[requests] = True
    found: dict[Cell, list[float]] = {}
    finished_s: dict[int, float] = {}
    rows = np.flatnonzero(said)
    for row in rows[np.argsort(answers.finish_s[rows], kind="stable")].tolist():
        worker, finish_s, took_s = int(record.worker[row]), float(answers.finish_s[row]), answers.service_s[row]
        before_s = finished_s.get(worker, 0.0)
        if finish_s > before_s:  # else it is of the same batch
            finished_s[worker] = finish_s
            if not wanted[row]:
                continue
            name, size = record.variants[record.variant[row]], int(record.batch_size[row])
            pauses = profile.after_idle(profile.variant_id(name), size)
            idle_s = max((p for p, _ in pauses if p <= finish_s - took_s - before_s), default=0.0)
            found.setdefault((name, size, idle_s), []).append(float(took_s))
    return found


def at_pace(profile: Profile, times: Times) -> Profile:
    """The profile with these times in the place of its own, where there are any."""
    tables: dict[str, pd.DataFrame] = {name: profile.table(name) for name in profile.tables}
    for (variant, size, idle_s), seconds in times.items():
        table = tables["after_idle" if idle_s else "latency"]
        rows = (table["variant"] == variant) & (table["batch_size"] == size)
        if idle_s:
            rows &= table["idle_s"] == idle_s
        if len(seconds) and rows.any():
            for column, value in latency_row(seconds).items():
                table.loc[rows, column] = value
    return Profile(profile.manifest, tables)


def paces(profile: Profile, before: Times, during: Times, after: Times) -> tuple[Pace, ...]:
    """The means beside each other."""

    def mean(times: Times, cell: Cell) -> float:
        seconds = times.get(cell, ())
        return float(np.mean(seconds)) if len(seconds) else math.nan

    rows = []
    for cell in sorted({*before, *during}):
        variant, size, idle_s = cell
        index = profile.variant_id(variant)
        known = {0.0: profile.latency(index, size)} if size in profile.batch_sizes(index) else {}
        known |= dict(profile.after_idle(index, size))
        said_s = known[idle_s].mean_s if idle_s in known else math.nan
        counts = len(during.get(cell, ()))
        means = (mean(times, cell) for times in (before, during, after))
        rows.append(Pace(variant, size, idle_s, counts, said_s, *means))
    return tuple(rows)


def pooled(*of: Times) -> dict[Cell, list[float]]:
    """All of them together."""
    cells = {cell for times in of for cell in times}
    return {cell: [s for times in of for s in times.get(cell, ())] for cell in sorted(cells)}
