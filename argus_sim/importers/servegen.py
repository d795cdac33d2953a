"""The windows of a ServeGen client pool, and arrivals drawn from them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from argus_sim.errors import InputError, did_you_mean
from argus_sim.importers.base import files_in
from argus_sim.trace.trace import Floats

COLUMNS = ("client", "start_s", "rate_rps", "cv", "dist", "p1", "p2")


@dataclass(frozen=True)
class Windows:
    """Clients' windows; ``table`` has :data:`COLUMNS`, ordered by start and client."""

    table: pd.DataFrame
    width_s: float

    def sample(self, rng: np.random.Generator) -> Iterator[tuple[float, Floats]]:
        """Start of each window and its arrivals, ascending: float64[n], s."""
        used = self.table[(self.table["rate_rps"] > 0) & (self.table["dist"] != "")]
        start_s = used["start_s"].to_numpy(dtype=np.float64)
        columns = [used[name].to_numpy(dtype=np.float64) for name in ("p1", "p2", "rate_rps")]
        dist = [str(name) for name in used["dist"]]
        for start in np.unique(self.table["start_s"].to_numpy(dtype=np.float64)).tolist():
            rows = np.flatnonzero(start_s == start).tolist()
            parts = []
            for row in rows:
                shape, scale, rate = (float(column[row]) for column in columns)
                parts.append(self._arrivals(dist[row], shape, scale, rate, rng))
            yield start, np.sort(np.concatenate([np.empty(0), *parts])) + start

    def _arrivals(self, dist: str, shape: float, scale: float, rate: float, rng: np.random.Generator) -> Floats:
        """Arrival times of one client within the window.

        The published parameters give the published rate only nearly (they are fitted to the gaps); gaps are
        rescaled to the rate, and the first gap is cut at random: the window opens between two arrivals.
        """
        mean = shape * scale if dist == "Gamma" else scale * math.gamma(1.0 + 1.0 / shape)
        scale *= 1.0 / (rate * mean)
        times = np.empty(0)
        last = -rng.random() / rate
        while last < self.width_s:
            n = int(rate * self.width_s * 1.1) + 16
            gaps = rng.gamma(shape, scale, n) if dist == "Gamma" else scale * rng.weibull(shape, n)
            times = np.append(times, last + np.cumsum(gaps))
            last = float(times[-1])
        return times[(times >= 0) & (times < self.width_s)]


def read_windows(path: Path, model: str | None) -> Windows:
    """The windows in a Parquet table, a client's file, or a folder of clients' files.

    Raises:
        InputError: No such file, a missing column, a model chosen where files do not name theirs, or a
            distribution that is neither Gamma nor Weibull.
    """
    if model is not None and path.suffix != ".parquet":
        raise InputError(
            "clients' files are of one model and do not say which; leave model= out", where=str(path)
        )
    table = _table(path, model) if path.suffix == ".parquet" else _chunks(path)
    table = table.sort_values(["start_s", "client"], kind="stable", ignore_index=True)
    used = table[(table["rate_rps"] > 0) & (table["dist"] != "")]
    strange = used.loc[~used["dist"].isin(["Gamma", "Weibull"]), "dist"]
    if len(strange):
        raise InputError(f"distribution {strange.iloc[0]!r} is neither Gamma nor Weibull", where=str(path))
    if used.empty:
        raise InputError("no client has a rate above 0", where=str(path))
    if not ((used["p1"] > 0) & (used["p2"] > 0)).all():
        raise InputError("parameters of a distribution must be above 0", where=str(path))
    starts = np.unique(table["start_s"].to_numpy(dtype=np.float64))
    return Windows(table, float(np.median(np.diff(starts))) if len(starts) > 1 else 600.0)


def _table(path: Path, model: str | None) -> pd.DataFrame:
    try:
        table = pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot be read: {error}", where=str(path)) from None
    for column in ("model", *COLUMNS):
        if column not in table.columns:
            raise InputError(f"no column {column!r}{did_you_mean(column, table.columns)}", where=str(path))
    models = [str(name) for name in table["model"].unique()]
    if model is None and len(models) > 1:
        raise InputError(f"holds several models: choose one with model=. Allowed: {', '.join(models)}.")
    if model is not None and model not in models:
        raise InputError(f"no model {model!r}{did_you_mean(model, models)}", where=str(path))
    rows = table if model is None else table[table["model"] == model]
    return rows.astype({"dist": str})[list(COLUMNS)]


def _chunks(path: Path) -> pd.DataFrame:
    parts = []
    for number, file in enumerate(files_in(path, "chunk-*-trace.csv")):
        try:
            part = pd.read_csv(
                file, names=list(COLUMNS[1:]), dtype={"dist": str}, keep_default_na=False, index_col=False
            )
            parts.append(part.astype(dict.fromkeys(("start_s", "rate_rps", "cv", "p1", "p2"), float)))
        except (OSError, ValueError) as error:
            raise InputError(
                f"not rows of start, rate, cv, distribution, 2 parameters: {error}", where=str(file)
            ) from None
        parts[-1].insert(0, "client", number)
    return pd.concat(parts, ignore_index=True)
