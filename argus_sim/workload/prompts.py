"""Which prompts are asked for: some more often than others, in sessions, and of a difficulty that changes.

Without a ``prompts`` section an experiment draws every prompt independently and uniformly from the profile's test
prompts (:class:`argus_sim.workload.Workload`). What is here replaces that draw, never the arrivals.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, model_validator
from scipy.optimize import minimize_scalar

from argus_sim.errors import InputError
from argus_sim.profile import Profile
from argus_sim.textfile import COLUMN, check_column
from argus_sim.trace import Trace
from argus_sim.trace.trace import Floats

Ints = npt.NDArray[np.int64]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]

#: The tilt towards difficult prompts is rounded to this: one table of probabilities per value.
_TILT_STEP = 0.05


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Sessions(_Section):
    """Users who try variations of an idea.

    Attributes:
        mean_length: Requests of a session on average; its length is geometric.
        concurrent: Sessions at a time: each request belongs to one of them, all alike.
        neighbours: A session asks for prompts among this many whose texts are the most similar to its first
            (cosine of TF-IDF vectors), the first included.
    """

    mean_length: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 5.0
    concurrent: Annotated[int, Field(ge=1)] = 20
    neighbours: Annotated[int, Field(ge=1)] = 10


class Drift(_Section):
    """Difficulty that swings as a sine: hardest a quarter of a period after the start.

    Attributes:
        strength: At the hardest time, the most difficult prompt is exp(2 x strength) times as likely, against the
            easiest, as without drift; at the easiest time as much less.
        period_s: From hardest to hardest.
    """

    strength: NonNegative = 1.0
    period_s: Positive = 86_400.0


class Bursts(_Section):
    """A mix of prompts that goes with the load.

    Attributes:
        strength: As for drift, while the load is one standard deviation over its mean; negative where bursts
            bring easy prompts.
        window_s: The load is counted in windows of this length.
    """

    strength: Annotated[float, Field(ge=-5, le=5)] = 0.5
    window_s: Positive = 60.0


class Recorded(_Section):
    """The texts of a log, one per request and in its order.

    The profile knows the quality of some hundred prompts only; a service sees many more texts, and it is texts
    that an approximate cache finds. So each text stands with the profile's prompt of the nearest predicted
    quality, as it
    does in the live server: all that a policy may know of a prompt is that prediction. The cache sees the text.

    Attributes:
        file: ``.csv`` or ``.txt`` (a text per line); without one, the texts are those of the trace.
        column: Of a ``.csv`` file.
        start: How many texts come before the first request's.
    """

    file: str | None = None
    column: str = COLUMN
    start: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _column_of_a_table(self) -> Self:
        check_column(self.column, self.file)
        return self


@dataclass(frozen=True)
class RecordedTexts:
    """Texts in the order of a log.

    Attributes:
        texts: The distinct ones.
        order: int64[n], which of them each line of the log has.
        prompt: int64[texts], the profile's prompt that stands in for each.
        start: The line that the first request has.
        where: Whose they are, for messages.
    """

    texts: tuple[str, ...]
    order: Ints
    prompt: Ints
    start: int
    where: str

    def take(self, requests: int) -> Ints:
        """int64[requests]: the text of each request; :class:`InputError` where there are not enough."""
        if self.start + requests > len(self.order):
            raise InputError(
                f"has {len(self.order)} texts; {requests} requests from text {self.start} on need more. Use a "
                "shorter trace (clip_s) or a longer log",
                where=self.where,
            )
        return self.order[self.start : self.start + requests]

    def before(self, requests: int) -> Ints:
        """int64[requests]: the texts just before the first request's."""
        if requests > self.start:
            raise InputError(
                f"has {self.start} texts before the first request's (prompts.recorded.start), and the cache is "
                f"to start with those of {requests} earlier requests",
                where=self.where,
            )
        return self.order[self.start - requests : self.start]


class PromptsConfig(_Section):
    """How prompts are drawn; what is left out is as without the section.

    Attributes:
        zipf: Exponent of popularity: the r-th most popular prompt has a weight of r^-zipf. Which prompt has which
            rank is drawn. ``trace`` fits the exponent to the prompts of the trace, which must have some.
        recorded: Texts of a log instead of all this.
        sessions, drift, bursts: See there. The difficulty of a prompt is how much quality the variants of the
            profile lose on it, on average, as a rank from -1 (easiest) to 1.
    """

    zipf: NonNegative | Literal["trace"] = 0.0
    sessions: Sessions | None = None
    drift: Drift | None = None
    bursts: Bursts | None = None
    recorded: Recorded | None = None

    @model_validator(mode="after")
    def _drawn_or_recorded(self) -> Self:
        named = {"zipf": self.zipf, "sessions": self.sessions, "drift": self.drift, "bursts": self.bursts}
        drawn = [name for name, value in named.items() if value]
        if self.recorded is not None and drawn:
            raise ValueError(f"recorded prompts are taken as they are; leave out {', '.join(drawn)}")
        return self

    def draw(self, trace: Trace, profile: Profile, test: Ints, rng: np.random.Generator) -> Ints:
        """A prompt for each arrival.

        Args:
            trace: The arrivals.
            profile: Whose prompts.
            test: Indices of the prompts to choose from.
            rng: The random numbers for prompts.

        Returns:
            int64[arrivals], indices of prompts.

        Raises:
            InputError: ``zipf: trace`` and a trace without prompts, or a single window of ``bursts``.
        """
        exponent = self.zipf if isinstance(self.zipf, float | int) else _fitted_exponent(trace)
        weight = np.arange(1.0, len(test) + 1) ** -exponent
        chosen = _tilted(rng.permutation(weight), difficulty(profile)[test], self._tilt(trace), rng)
        if self.sessions is not None:
            chosen = _in_sessions(self.sessions, chosen, [profile.prompt_texts[i] for i in test], rng)
        return test[chosen]

    def _tilt(self, trace: Trace) -> Floats:
        tilt = np.zeros(len(trace))
        if self.drift is not None:
            tilt += self.drift.strength * np.sin(2.0 * np.pi * trace.arrival_s / self.drift.period_s)
        if self.bursts is not None:
            start_s, load = trace.rate(self.bursts.window_s)
            if len(load) < 2:
                found = (
                    f"{self.bursts.window_s:g} s are all of the {trace.duration_s:g} s of trace {trace.name!r}"
                )
                raise InputError(
                    f"{found}: no window has a higher load than others", where="prompts.bursts.window_s"
                )
            spread = float(np.std(load))
            if spread > 0:
                at = np.searchsorted(start_s, trace.arrival_s, side="right") - 1
                tilt += self.bursts.strength * np.clip((load[at] - np.mean(load)) / spread, -3.0, 3.0)
        return tilt


def difficulty(profile: Profile) -> Floats:
    """float64[P]: rank of each prompt by the relative quality that the variants lose on it, in [-1, 1]."""
    lost = 1.0 - np.nanmean(np.nan_to_num(profile.relative_quality(), nan=0.0), axis=1)
    if len(lost) < 2:
        return np.zeros(len(lost))
    # Equal losses share a rank: the order of the table must not make one prompt harder than another.
    _, at, count = np.unique(lost, return_inverse=True, return_counts=True)
    middle = np.cumsum(count) - (count + 1) / 2.0
    ranks: Floats = middle[at] / (len(lost) - 1) * 2.0 - 1.0
    return ranks


def zipf_exponent(counts: npt.ArrayLike) -> float:
    """The exponent of Zipf's law with which these counts of distinct texts are the most likely, in [0, 5].

    Ranks are those of the counts themselves, so that few requests of many equal texts look less than equal.
    """
    sorted_counts = np.sort(np.asarray(counts, dtype=np.float64))[::-1]
    log_rank = np.log(np.arange(1.0, len(sorted_counts) + 1))

    def loss(exponent: float) -> float:
        weights = -exponent * log_rank
        return float(np.sum(sorted_counts) * np.logaddexp.reduce(weights) - sorted_counts @ weights)

    return float(minimize_scalar(loss, bounds=(0.0, 5.0), method="bounded").x)


def _fitted_exponent(trace: Trace) -> float:
    if trace.prompt is None:
        where = f"trace {trace.name!r}"
        raise InputError("has no prompts to fit the popularity to (prompts.zipf: trace)", where=where)
    return zipf_exponent(np.unique(np.array(trace.prompt, dtype=object).astype(str), return_counts=True)[1])


def _tilted(weight: Floats, rank: Floats, tilt: Floats, rng: np.random.Generator) -> Ints:
    """A prompt per arrival, with probabilities in proportion to weight x exp(tilt x rank)."""
    level = np.rint(tilt / _TILT_STEP).astype(np.int64)
    u = rng.random(len(tilt))
    chosen = np.empty(len(tilt), dtype=np.int64)
    for value in np.unique(level).tolist():
        rows = level == value
        area = np.cumsum(weight * np.exp(value * _TILT_STEP * rank))
        chosen[rows] = np.searchsorted(area, u[rows] * area[-1], side="right")
    return np.minimum(chosen, len(weight) - 1)


def _in_sessions(config: Sessions, chosen: Ints, texts: list[str], rng: np.random.Generator) -> Ints:
    """Sessions keep to the neighbourhood of the prompt that they began with."""
    n = len(chosen)
    slot = rng.integers(0, config.concurrent, size=n)
    begins = rng.random(n) < 1.0 / config.mean_length
    which = rng.random(n)
    order = np.argsort(slot, kind="stable")
    begins_there = begins[order] | (np.diff(slot[order], prepend=-1) != 0)
    # In the order of slots, the last beginning at or before each request is that of its session.
    first = np.maximum.accumulate(np.where(begins_there, np.arange(n), 0))
    anchor = chosen[order[first]]
    near = neighbours(texts, config.neighbours)
    prompt = near[anchor, (which[order] * near.shape[1]).astype(np.int64)]
    prompt[begins_there] = anchor[begins_there]
    result = np.empty(n, dtype=np.int64)
    result[order] = prompt
    return result


def neighbours(texts: list[str], k: int) -> Ints:
    """int64[texts, min(k, texts)]: the texts most similar to each, itself first."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    k = min(k, len(texts))
    try:
        vectors = TfidfVectorizer(sublinear_tf=True).fit_transform(texts)
    except ValueError:  # no words at all: nothing is similar to anything
        return np.tile(np.arange(len(texts))[:, None], (1, k))
    near = np.empty((len(texts), k), dtype=np.int64)
    for start in range(0, len(texts), 1000):
        block = (vectors[start : start + 1000] @ vectors.T).toarray()
        rows = np.arange(block.shape[0])
        block[rows, start + rows] = math.inf
        near[start : start + len(rows)] = np.argsort(-block, axis=1, kind="stable")[:, :k]
    return near
