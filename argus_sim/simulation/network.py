"""The approximate cache as the cluster sees it: an answer that takes a while and sometimes does not come.

Here are a cache that is always warm and what it shares with one that fills (:mod:`argus_sim.simulation.filling`).
"""

from __future__ import annotations

import math
from typing import Annotated, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, model_validator

from argus_sim.domain import CacheHit

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class CacheTrouble(BaseModel):
    """A time in which the cache answers slowly, or (without ``latency_s``) not at all."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    at_s: NonNegative
    for_s: Positive
    latency_s: Positive | None = None


class Answers(BaseModel):
    """How soon a cache knows the nearest prompt.

    Attributes:
        latency_s: Mean time to find the nearest prompt and fetch its latents. The default is what MoDM
            (ASPLOS'26) reports for 100,000 embeddings on a GPU.
        latency_cv: Coefficient of variation of that time (lognormal); 0 for a constant.
        timeout_s: After this time an answer that did not come counts as a miss.
        trouble: When the cache is slow or out.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    latency_s: NonNegative = 0.05
    latency_cv: NonNegative = 0.0
    timeout_s: Positive = 1.0
    trouble: tuple[CacheTrouble, ...] = ()

    @model_validator(mode="after")
    def _answers_in_time(self) -> Self:
        if not self.latency_cv and self.latency_s > self.timeout_s:
            raise ValueError(
                f"latency_s is {self.latency_s:g} s, above the {self.timeout_s:g} s of timeout_s: "
                "every look-up would be a miss"
            )
        return self


class CacheConfig(Answers):
    """A warm cache: every prompt has a neighbour, as similar as the profile's similarity table says."""

    kind: Literal["warm"] = "warm"


class LookUpTimes:
    """How long look-ups take."""

    def __init__(self, config: Answers, rng: np.random.Generator) -> None:
        self._config = config
        self._rng = rng
        variance = math.log1p(config.latency_cv**2)
        self._mu = -variance / 2.0
        self._sigma = math.sqrt(variance)

    def draw(self, now: float) -> float | None:
        """The time of one that begins now; None if it would exceed the time-out."""
        config = self._config
        latency_s: float | None = config.latency_s
        for trouble in config.trouble:
            if trouble.at_s <= now < trouble.at_s + trouble.for_s:
                latency_s = trouble.latency_s
        if latency_s is not None and config.latency_cv:
            latency_s *= math.exp(self._mu + self._sigma * float(self._rng.standard_normal()))
        return None if latency_s is None or latency_s > config.timeout_s else latency_s


class SimulatedCache:
    """A warm cache: every prompt has a neighbour, as similar as the profile's similarity table says.

    Args:
        config: Latency and trouble.
        similarity: float64[prompts], similarity of the nearest cached prompt.
        deepest: The most steps that a stored latent spares.
        rng: Draws the latencies.
    """

    def __init__(
        self,
        config: CacheConfig,
        similarity: npt.NDArray[np.float64],
        deepest: int,
        rng: np.random.Generator,
    ) -> None:
        self._timeout_s = config.timeout_s
        self._hit = [CacheHit(float(s), deepest, config.latency_s) for s in similarity]
        self.latency_s = config.latency_s
        self._deepest = deepest
        self._times = LookUpTimes(config, rng)
        #: True when every answer takes ``latency_s``.
        self.constant = not config.trouble and not config.latency_cv

    def answer(self, now: float, prompt: int) -> CacheHit:
        """What the cache says of a prompt asked now, and how long that takes (``latency_s`` of the answer)."""
        hit = self._hit[prompt]
        if self.constant:
            return hit
        latency_s = self._times.draw(now)
        if latency_s is None:
            return CacheHit(math.nan, 0, self._timeout_s)
        return CacheHit(hit.similarity, self._deepest, latency_s)


class Link:
    """A network of finite bandwidth: one transfer at a time, first come, first served.

    Args:
        bandwidth_bytes_per_s: None for no limit.
    """

    def __init__(self, bandwidth_bytes_per_s: float | None) -> None:
        self._seconds_per_byte = 1.0 / bandwidth_bytes_per_s if bandwidth_bytes_per_s else 0.0
        self._free_s = 0.0
        #: How long it has been busy, or will have been with what it was given.
        self.busy_s = 0.0

    def send(self, now: float, size_bytes: int, *, until_s: float = math.inf) -> float | None:
        """When a transfer that is asked for now ends; None if that is after ``until_s``.

        One that has not begun by then never does; one that has is cut off, and its time was wasted.
        """
        start_s = max(now, self._free_s)
        if start_s >= until_s:
            return None
        end_s = start_s + size_bytes * self._seconds_per_byte
        self._free_s = min(end_s, until_s)
        self.busy_s += self._free_s - start_s
        return end_s if end_s <= until_s else None
