"""The approximate cache as the cluster sees it: an answer that takes a while and sometimes does not come."""

from __future__ import annotations

import math
from typing import Annotated

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from argus_sim.domain import CacheHit

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class CacheTrouble(BaseModel):
    """A time in which the cache answers slowly, or (without ``latency_s``) not at all."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    at_s: NonNegative
    for_s: Positive
    latency_s: Positive | None = None


class CacheConfig(BaseModel):
    """How the cache answers.

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
        self._config = config
        self._hit = [CacheHit(float(s), deepest, config.latency_s) for s in similarity]
        self.latency_s = config.latency_s
        self._deepest = deepest
        self._rng = rng
        variance = math.log1p(config.latency_cv**2)
        self._mu = -variance / 2.0
        self._sigma = math.sqrt(variance)
        #: True when every answer takes ``latency_s``.
        self.constant = not config.trouble and not config.latency_cv and config.latency_s <= config.timeout_s

    def answer(self, now: float, prompt: int) -> CacheHit:
        """What the cache says of a prompt asked now, and how long that takes (``latency_s`` of the answer)."""
        hit = self._hit[prompt]
        if self.constant:
            return hit
        config = self._config
        latency_s: float | None = config.latency_s
        for trouble in config.trouble:
            if trouble.at_s <= now < trouble.at_s + trouble.for_s:
                latency_s = trouble.latency_s
        if latency_s is not None and config.latency_cv:
            latency_s *= math.exp(self._mu + self._sigma * float(self._rng.standard_normal()))
        if latency_s is None or latency_s > config.timeout_s:
            return CacheHit(math.nan, 0, config.timeout_s)
        return CacheHit(hit.similarity, self._deepest, latency_s)
