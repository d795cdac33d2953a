"""A simulated cache beside a recorded one: the same queries, the same start."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from argus_sim.similarity import SimilarityScale
from calibration.cache_log import THRESHOLDS, CacheLog, Floats, fit_scale, hit_ratios, shares, steps_of


@dataclass(frozen=True)
class Part:
    """Some rows of the log: percent of the queries at each depth, recorded and simulated (mean over replays)."""

    name: str
    recorded: Floats
    simulated: Floats

    @property
    def worst(self) -> float:
        """The largest difference, in percentage points."""
        return float(np.abs(self.simulated - self.recorded).max())


@dataclass(frozen=True)
class Halves:
    """What a scale fitted to one half of a log says of the other, given what the log says was cached.

    Largest differences of a depth's share, in percentage points. Where halves in time are further apart than
    random ones, the log drifts; more rows or a better fit do not help then.

    Attributes:
        forward: Fitted to the first half, judged on the second.
        backward: The other way round.
        random: float64[draws], of halves drawn at random, ascending: what sampling alone does.
    """

    forward: float
    backward: float
    random: Floats


@dataclass(frozen=True)
class Study:
    """What was fitted, and what the replays came to.

    Attributes:
        fit_rows: The rows from the start that the scale was fitted to; those after are held out.
        parts: All rows, those of the fit, those held out.
        recorded, simulated: Hit ratio of each 2,000 successive queries; simulated ones are means over replays.
        halves: Whether the log drifts.
        spread: Standard deviation over replays of the share of misses, in percentage points; NaN for one replay.
    """

    embedding: str
    scale: SimilarityScale
    fit_rows: int
    seeds: int
    at_start: int
    parts: tuple[Part, ...]
    recorded: Floats
    simulated: Floats
    halves: Halves
    spread: float

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "embedding": self.embedding,
            "fit_rows": self.fit_rows,
            "seeds": self.seeds,
            "at_start": self.at_start,
            "steps": [0, *THRESHOLDS],
            "parts": {
                part.name: {
                    "recorded": part.recorded.round(2).tolist(),
                    "simulated": part.simulated.round(2).tolist(),
                    "worst": round(part.worst, 2),
                }
                for part in self.parts
            },
            "hit_ratio": {
                "recorded": self.recorded.round(3).tolist(),
                "simulated": self.simulated.round(3).tolist(),
            },
            "halves": {
                "forward": round(self.halves.forward, 2),
                "backward": round(self.halves.backward, 2),
                "random": self.halves.random.round(2).tolist(),
            },
            "spread": None if np.isnan(self.spread) else round(self.spread, 2),
        }


def study(
    log: CacheLog,
    vector_of: dict[str, npt.NDArray[np.float32]],
    embedding: str,
    *,
    fit_rows: int,
    seeds: int,
) -> Study:
    """Fit a scale to the first rows of a log, then replay all of it."""
    n = len(log.query)
    fit_rows = min(fit_rows, n)
    derived = (
        f"quantiles of the similarity given the largest cosine to what was cached, rows 1 to {fit_rows} of {n}; "
        "isotonic in the cosine"
    )
    cosine = log.nearest(vector_of)
    scale = fit_scale(cosine[:fit_rows], log.similarity[:fit_rows], embedding, derived)
    replays = [log.replay(vector_of, scale, np.random.default_rng(seed)) for seed in range(1, seeds + 1)]
    slices = {"all": slice(None), "fitted": slice(0, fit_rows), "held out": slice(fit_rows, None)}
    parts = tuple(
        Part(name, shares(log.steps[rows]), np.mean([shares(steps[rows]) for steps in replays], axis=0))
        for name, rows in slices.items()
        if len(log.steps[rows])
    )
    missed = [shares(steps)[0] for steps in replays]
    return Study(
        embedding,
        scale,
        fit_rows,
        seeds,
        len(log.at_start()),
        parts,
        hit_ratios(log.steps),
        np.mean([hit_ratios(steps) for steps in replays], axis=0),
        halves(cosine, log.similarity),
        float(np.std(missed, ddof=1)) if seeds > 1 else float("nan"),
    )


def halves(cosine: Floats, similarity: Floats, draws: int = 20) -> Halves:
    """Fit to halves of a log and judge by the others.

    Args:
        cosine, similarity: float64[n], as for :func:`~calibration.cache_log.fit_scale`.
        draws: How many random halves.
    """
    n = len(cosine)
    rng = np.random.default_rng(0)
    u = rng.random(n)

    def worst(fitted: npt.NDArray[np.int64], judged: npt.NDArray[np.int64]) -> float:
        scale = fit_scale(cosine[fitted], similarity[fitted], "", "half of a log")
        told = shares(steps_of(scale.similarities_of(cosine[judged], u[judged])))
        return float(np.abs(told - shares(steps_of(similarity[judged]))).max())

    first, second = np.arange(n // 2), np.arange(n // 2, n)
    mixed = [rng.permutation(n) for _ in range(draws)]
    return Halves(
        worst(first, second),
        worst(second, first),
        np.sort([worst(order[: n // 2], order[n // 2 :]) for order in mixed]),
    )


def lines(found: Study) -> list[str]:
    """The study as text."""
    told = [
        f"{found.at_start} prompts cached at the start; scale of {found.embedding} fitted to "
        f"{found.fit_rows} rows"
    ]
    told.append("steps skipped, % of queries  " + "".join(f"{k:>8}" for k in (0, *THRESHOLDS)) + "   worst")
    for part in found.parts:
        for kind, values in (("log", part.recorded), ("simulated", part.simulated)):
            worst = f"{part.worst:8.2f}" if kind == "simulated" else ""
            told.append(f"  {part.name:<10}{kind:<17}" + "".join(f"{v:8.2f}" for v in values) + worst)
    for kind, values in (("log", found.recorded), ("simulated", found.simulated)):
        told.append(f"hit ratio by 2,000, {kind:<10}" + "".join(f"{v:7.3f}" for v in values))
    of = found.halves
    told.append(
        f"fitted to half, judged by the other, worst: first to second {of.forward:.2f}, second to first "
        f"{of.backward:.2f}, {len(of.random)} random halves up to {of.random[-1]:.2f}"
    )
    return told
