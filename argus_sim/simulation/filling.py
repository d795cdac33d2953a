"""An approximate cache that fills while the cluster runs, behind a network.

A look-up finds the nearest cached prompt (that takes ``latency_s``); a hit then waits for its latents on the
link. An image that was generated in full leaves its latents in the cache; one that skipped steps has none of
the first ones to leave. What is found, and what is in the way, depends on what was served before: on the
policy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Annotated, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, model_validator

from argus_sim.core.cache import LatentCache
from argus_sim.core.commands import Command
from argus_sim.core.nearest import Vector
from argus_sim.domain import CacheHit
from argus_sim.record import CacheRecord
from argus_sim.simulation.environment import Tick
from argus_sim.simulation.network import Answers, Link, LookUpTimes, Positive
from argus_sim.textfile import COLUMN, check_column


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class WarmUp(_Section):
    """What is in the cache at the start: one of the two.

    Attributes:
        requests: So many earlier requests of the same prompt stream: those that missed were stored.
        file: The prompts in a file, ``.csv`` or ``.txt`` (one per line), in this order.
        column: Of a ``.csv`` file.
    """

    requests: Annotated[int, Field(ge=1)] | None = None
    file: str | None = None
    column: str = COLUMN

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.requests is None) == (self.file is None):
            raise ValueError("warm_up needs one of requests and file")
        check_column(self.column, self.file)
        return self


class Network(_Section):
    """What latents travel over.

    Attributes:
        bandwidth_bytes_per_s: Shared by all transfers; null for no limit. The default is 10 Gbit/s, an
            assumption.
        writes: Whether latents that are stored take their time on it, too.
    """

    bandwidth_bytes_per_s: Positive | None = 1.25e9
    writes: bool = True


class FillingCacheConfig(Answers):
    """A cache that fills.

    Attributes:
        latency_s: Here the time to find the nearest prompt alone; the latents' way comes on top.
        capacity_entries, capacity_bytes: Room, in latents of one depth or in bytes (one of the two); without any,
            nothing is ever dropped.
        eviction: What goes when there is no room; see :mod:`argus_sim.core.cache`.
        thresholds: Steps skipped -> the similarity that has to be exceeded, for each level of the profile's
            ladder AC. By default those of the artefact, by the part of the steps that is skipped.
        latent_bytes: Size of one latent; by default 4 channels of 2 bytes at an eighth of the resolution.
        embeddings: File that ``argus-calibrate embed`` made; without one, hashed words and character n-grams.
        scale: ``fitted``: from cosines to the similarities that thresholds are made for; ``cosine``: cosines.
        warm_up: What is in it at the start; nothing by default.
    """

    kind: Literal["simulated"]
    capacity_entries: Annotated[int, Field(ge=1)] | None = None
    capacity_bytes: Annotated[int, Field(ge=1)] | None = None
    eviction: Literal["lru", "lfu", "lcbfu", "fifo", "oracle"] = "lcbfu"
    thresholds: dict[int, Annotated[float, Field(ge=-1, le=1)]] | None = None
    latent_bytes: Annotated[int, Field(ge=1)] | None = None
    embeddings: str | None = None
    scale: Literal["fitted", "cosine"] = "fitted"
    warm_up: WarmUp | None = None
    network: Network = Network()

    @model_validator(mode="after")
    def _one_capacity(self) -> Self:
        if self.capacity_entries is not None and self.capacity_bytes is not None:
            raise ValueError("give capacity_entries or capacity_bytes, not both")
        return self

    def with_paths(self, absolute: Callable[[str | None], str | None]) -> Self:
        """The same with other paths."""
        warm_up = self.warm_up
        if warm_up is not None:
            warm_up = warm_up.model_copy(update={"file": absolute(warm_up.file)})
        return self.model_copy(update={"embeddings": absolute(self.embeddings), "warm_up": warm_up})

    def files(self) -> dict[str, str]:
        """Key -> file, of those that it reads."""
        named = {"embeddings": self.embeddings, "warm_up.file": self.warm_up.file if self.warm_up else None}
        return {key: file for key, file in named.items() if file is not None}


class FillingCache:
    """See the module's docstring.

    Args:
        config: Latency, trouble, network.
        cache: What is stored; may hold something already.
        text: int[n], the text of each request.
        vectors: float32[texts, d].
        scale: For each text, from a cosine to a similarity; None where cosines are similarities.
        latent_bytes: Size of one latent.
        arrival_s: float64[n], when each request reaches the cluster.
        rng: Draws the look-up times.
    """

    #: Answers take different times.
    constant = False

    def __init__(
        self,
        config: FillingCacheConfig,
        cache: LatentCache,
        text: Sequence[int],
        vectors: npt.NDArray[np.float32],
        scale: Callable[[int, float], float] | None,
        latent_bytes: int,
        arrival_s: npt.NDArray[np.float64],
        rng: np.random.Generator,
    ) -> None:
        self._timeout_s = config.timeout_s
        self._times = LookUpTimes(config, rng)
        self._cache = cache
        self._text = text
        self._vectors: list[Vector] = list(vectors)
        self._scale = scale
        self._latent_bytes = latent_bytes
        self._arrival_s = arrival_s
        self._writes = config.network.writes
        self._link = Link(config.network.bandwidth_bytes_per_s)
        #: What the warm-up did is not part of the run.
        self._stored, self._evicted = cache.stored, cache.evicted
        self._knows_the_future = config.eviction == "oracle"
        self._record = CacheRecord.empty(len(arrival_s), latent_bytes, started_with=len(cache))

    def look_up(
        self,
        now: float,
        row: int,
        at: Callable[[float, Tick], None],
        answered: Callable[[float, int, CacheHit], Sequence[Command]],
    ) -> None:
        """Find latents for a request.

        Args:
            now: The time.
            row: The request.
            at: Has something happen later.
            answered: To be told the answer, when it is there.
        """
        self._record.asked_s[row] = now
        latency_s = self._times.draw(now)
        too_late_s = now + self._timeout_s

        def finish(at_s: float, hit: CacheHit, timed_out: bool = False) -> Sequence[Command]:
            self._record.answer(row, at_s, hit, timed_out=timed_out)
            return answered(at_s, row, hit)

        def timed_out(at_s: float, _: int) -> Sequence[Command]:
            return finish(at_s, CacheHit(math.nan, 0, self._timeout_s), timed_out=True)

        def searched(at_s: float, _: int) -> Sequence[Command]:
            text = self._text[row]
            self._look_ahead(at_s)
            scale = self._scale
            found = self._cache.lookup(
                self._vectors[text], None if scale is None else lambda cosine: scale(text, cosine)
            )
            if not found.steps:
                return finish(at_s, CacheHit(found.similarity, 0, at_s - now))
            arrives_s = self._link.send(at_s, self._latent_bytes, until_s=too_late_s)
            if arrives_s is None:
                at(too_late_s, Tick(timed_out, row))
                return ()
            hit = CacheHit(found.similarity, found.steps, arrives_s - now)
            at(arrives_s, Tick(lambda then_s, _: finish(then_s, hit), row))
            return ()

        if latency_s is None:
            at(too_late_s, Tick(timed_out, row))
        else:
            at(now + latency_s, Tick(searched, row))

    def generated(self, now: float, rows: Sequence[int]) -> None:
        """These requests' images were generated in full: their latents are stored."""
        self._look_ahead(now)
        cache = self._cache
        for row in rows:
            text = self._text[row]
            before = cache.stored
            cache.insert(text, self._vectors[text])
            new = cache.stored - before
            if new and self._writes:
                self._link.send(now, new * self._latent_bytes)

    def record(self) -> CacheRecord:
        """What has happened so far."""
        cache, record = self._cache, self._record
        record.held, record.prompts_held = len(cache), cache.prompts
        record.stored, record.evicted = cache.stored - self._stored, cache.evicted - self._evicted
        record.link_busy_s = self._link.busy_s
        return record

    def _look_ahead(self, now: float) -> None:
        if self._knows_the_future:
            self._cache.position = int(np.searchsorted(self._arrival_s, now, side="right")) - 1
