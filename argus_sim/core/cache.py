"""The approximate cache: latents of earlier images, found by how similar their prompts are.

For each cached prompt there is an entry per depth K: the latents after K of N denoising steps (NIRVANA, NSDI'24).
A prompt asks for its nearest neighbour; how similar the two are says how many steps it may skip. What is full
drops entries, one at a time, by one of these rules (``EVICTIONS``):

* ``lru``: the one not retrieved for longest; ``fifo``: the one stored first;
* ``lfu``: the one retrieved least often;
* ``lcbfu``: the one of the lowest retrievals x K / N, NIRVANA's least computationally beneficial and frequently
  used (as in the Argus authors' artefact of 2024, ``pipeline/cache/cache_utils.py``);
* ``oracle``: the one whose next possible use is furthest away (Belady, IBM Systems Journal 1966). It knows the
  future. No rule has more hits where a prompt is served by its own latents alone; where it may be served by
  several, it is a yardstick and no bound.

An insertion counts as the first use of its entries; of equals the one used longest ago goes.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from argus_sim.core.nearest import ExactIndex, Vector

#: Where the thresholds of the artefact lie: part of the steps skipped -> similarity that has to be exceeded.
ARTEFACT_THRESHOLDS = {0.1: 0.65, 0.2: 0.75, 0.3: 0.85, 0.4: 0.90, 0.5: 0.95}

#: Cosines are rounded to this many decimals: the last bits depend on how a matrix product is carried out.
_DECIMALS = 5


class Latent(NamedTuple):
    """The name of an entry: whose latents, after how many steps."""

    key: Hashable
    steps: int


class Found(NamedTuple):
    """What a look-up found.

    Attributes:
        key: The nearest cached prompt; None in an empty cache.
        similarity: How similar it is; NaN in an empty cache.
        steps: The deepest of its latents that the similarity allows; 0 for a miss.
    """

    key: Hashable | None
    similarity: float
    steps: int

    @property
    def latent(self) -> Latent | None:
        """The entry to fetch; None for a miss."""
        return Latent(self.key, self.steps) if self.steps else None


class Future(NamedTuple):
    """What only hindsight knows, for ``oracle``.

    Attributes:
        stream: int64[n], the text that each request asks for, in the order of arrival.
        steps: Vector of a prompt -> int64[texts]: the steps that each text may skip with its latents.
    """

    stream: npt.NDArray[np.int64]
    steps: Callable[[Vector], npt.NDArray[np.int64]]


@dataclass(slots=True, eq=False)
class Entry:
    """Latents of a prompt, of one depth or up to it. Times are counts of look-ups and insertions.

    Attributes:
        key: Of the prompt; hashable.
    """

    key: Any
    steps: int
    inserted: int
    used: int
    uses: int = 1

    def use(self, now: int) -> None:
        self.used = now
        self.uses += 1


class Eviction(Protocol):
    """Which entry goes. Every entry is added once, and gone once it was the victim."""

    def added(self, entry: Entry, vector: Vector) -> None: ...

    def victim(self, position: int) -> Entry:
        """Forget an entry and return it."""


Rank = tuple[float, int]

_RANKS: dict[str, Callable[[Entry], Rank]] = {
    "lru": lambda e: (0.0, e.used),
    "lfu": lambda e: (e.uses, e.used),
    "lcbfu": lambda e: (e.uses * e.steps, e.used),
    "fifo": lambda e: (0.0, e.inserted),
}


class Ranked:
    """The lowest rank goes. A rank never falls, so one noted earlier is a lower bound: look again before use.

    Args:
        rule: One of :data:`RULES`.
    """

    def __init__(self, rule: str) -> None:
        self._rank = _RANKS[rule]
        self._heap: list[tuple[Rank, int, Entry]] = []
        self._count = 0

    def __len__(self) -> int:
        """How many entries have been added and not been the victim."""
        return len(self._heap)

    def added(self, entry: Entry, vector: Vector | None = None) -> None:
        self._count += 1
        heappush(self._heap, (self._rank(entry), self._count, entry))

    def victim(self, position: int = -1) -> Entry:
        while True:
            noted, _, entry = heappop(self._heap)
            if noted == self._rank(entry):
                return entry
            self.added(entry)


class _Belady:
    def __init__(self, future: Future) -> None:
        self._future = future
        self._uses: dict[Entry, npt.NDArray[np.int64]] = {}
        self._next: dict[Entry, float] = {}
        self._last: tuple[Hashable, npt.NDArray[np.int64]] = (None, np.empty(0, dtype=np.int64))

    def added(self, entry: Entry, vector: Vector) -> None:
        if self._last[0] != entry.key:
            self._last = (entry.key, self._future.steps(vector)[self._future.stream])
        self._uses[entry] = np.flatnonzero(self._last[1] == entry.steps)
        self._next[entry] = -1.0

    def victim(self, position: int) -> Entry:
        for entry, at in self._next.items():
            if at <= position:
                uses = self._uses[entry]
                coming = int(np.searchsorted(uses, position, side="right"))
                self._next[entry] = float(uses[coming]) if coming < len(uses) else float("inf")
        furthest = max(self._next, key=self._next.__getitem__)
        del self._next[furthest], self._uses[furthest]
        return furthest


#: Rules that know only the past.
RULES = tuple(_RANKS)
EVICTIONS = (*RULES, "oracle")


class LatentCache:
    """Which latents are stored, which of them a prompt may start from, and which go when room is needed.

    It holds names and vectors; where the latents themselves are is the host's business.

    >>> cache = LatentCache({5: 0.65, 25: 0.95}, dimension=2, capacity=2)
    >>> cache.insert("a fox", np.array([1.0, 0.0], dtype=np.float32))
    []
    >>> cache.lookup(np.array([0.8, 0.6], dtype=np.float32))
    Found(key='a fox', similarity=0.8, steps=5)
    >>> cache.insert("an owl", np.array([0.0, 1.0], dtype=np.float32))
    [Latent(key='a fox', steps=25), Latent(key='a fox', steps=5)]

    Args:
        levels: Depth K -> the similarity that has to be exceeded to skip K steps; rising.
        dimension: Of the vectors, which have length 1.
        capacity: The most entries (latents of one depth) there may be; None for no limit.
        eviction: One of :data:`EVICTIONS`.
        future: For ``oracle``.

    Raises:
        ValueError: No levels or falling ones, an unknown rule, no future for the oracle, or a capacity that does
            not hold the levels of one prompt.
    """

    def __init__(
        self,
        levels: Mapping[int, float],
        dimension: int,
        *,
        capacity: int | None = None,
        eviction: str = "lru",
        future: Future | None = None,
    ) -> None:
        self._depths, self._above = sorted(levels), [levels[k] for k in sorted(levels)]
        if not levels or self._above != sorted(self._above):
            raise ValueError(f"similarities must rise with the steps skipped, found {dict(levels)}")
        if capacity is not None and capacity < len(levels):
            raise ValueError(f"room for {capacity} entries, but one prompt has {len(levels)}")
        if eviction not in EVICTIONS:
            raise ValueError(f"no eviction {eviction!r}; allowed are {', '.join(EVICTIONS)}")
        if eviction == "oracle" and future is None:
            raise ValueError("the oracle needs to know the future")
        self._eviction: Eviction = _Belady(future) if eviction == "oracle" and future else Ranked(eviction)
        self.capacity = capacity
        self._index = ExactIndex(dimension)
        #: Of each prompt, its latents by depth.
        self._prompts: dict[Hashable, dict[int, Entry]] = {}
        self._entries = 0
        self._clock = 0
        #: Entries stored and dropped so far.
        self.stored = self.evicted = 0
        #: The last request that has arrived, for the oracle.
        self.position = -1

    def __len__(self) -> int:
        """How many entries there are."""
        return self._entries

    def __contains__(self, latent: object) -> bool:
        if not isinstance(latent, Latent):
            return False
        return latent.steps in self._prompts.get(latent.key, ())

    @property
    def prompts(self) -> int:
        """How many prompts have entries."""
        return len(self._prompts)

    def deepest(self, similarity: float) -> int:
        """The most steps that a similarity allows to skip; 0 for none."""
        passed = bisect_left(self._above, similarity)
        return self._depths[passed - 1] if passed else 0

    def lookup(self, vector: Vector, scale: Callable[[float], float] | None = None) -> Found:
        """The nearest prompt and the deepest of its latents that may be used, which counts as a use of it.

        A prompt is served by its nearest neighbour or not at all, as in the artefact: where the latents of that
        one were dropped, the next is not asked.

        Args:
            vector: float32[dimension], of length 1.
            scale: From the cosine to the scale of the thresholds, where these are not the same.
        """
        self._clock += 1
        if not self._prompts:
            return Found(None, float("nan"), 0)
        key, cosine = self._index.nearest(vector)
        similarity = round(cosine, _DECIMALS)
        if scale is not None:
            similarity = scale(similarity)
        allowed, entries = self.deepest(similarity), self._prompts[key]
        steps = max((k for k in entries if k <= allowed), default=0)
        if steps:
            entries[steps].use(self._clock)
        return Found(key, similarity, steps)

    def insert(self, key: Hashable, vector: Vector, steps: Iterable[int] | None = None) -> list[Latent]:
        """Store the latents of a prompt at all levels, or at some; those that it has already stay as they are.

        Room is made first, so that what is new does not push itself out.

        Returns:
            What had to go, in this order.
        """
        self._clock += 1
        wanted = self._depths if steps is None else sorted(steps)
        gone: list[Latent] = []

        def lacking() -> list[int]:
            have = self._prompts.get(key, {})
            return [k for k in wanted if k not in have]

        while self.capacity is not None and self._entries + len(lacking()) > self.capacity:
            gone.append(self.evict())
        new = lacking()
        if key not in self._prompts:
            self._prompts[key] = {}
            self._index.add(key, vector)
        for k in new:
            self._prompts[key][k] = entry = Entry(key, k, self._clock, self._clock)
            self._eviction.added(entry, vector)
        self._entries += len(new)
        self.stored += len(new)
        return gone

    def evict(self) -> Latent:
        """Drop the entry that is worth least; IndexError where there is none."""
        if not self._entries:
            raise IndexError("nothing is cached")
        entry = self._eviction.victim(self.position)
        entries = self._prompts[entry.key]
        del entries[entry.steps]
        self._entries -= 1
        self.evicted += 1
        if not entries:
            del self._prompts[entry.key]
            self._index.remove(entry.key)
        return Latent(entry.key, entry.steps)
