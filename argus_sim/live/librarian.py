"""What the cache's process does: embed prompts and find the nearest stored one.

That work would keep the host's loop from everything else.
Imported by the host for its messages only; what embeds is imported by :func:`prepare`, in the process.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from argus_sim.core.nearest import ExactIndex, Vector
from argus_sim.live.qdrant import QdrantIndex, QdrantPlace, connect


@dataclass(frozen=True, slots=True)
class Add:
    """Remember a prompt under a key."""

    key: int
    text: str


@dataclass(frozen=True, slots=True)
class Remove:
    key: int


@dataclass(frozen=True, slots=True)
class Close:
    """What is not in this process goes, too: there will be no other message."""


@dataclass(frozen=True, slots=True)
class Find:
    """Which remembered prompt is nearest? The token comes back with the answer.

    Attributes:
        until_s: After this time of the machine's monotonic clock, nobody cares.
    """

    token: int
    text: str
    until_s: float


@dataclass(frozen=True, slots=True)
class Found:
    """Key and cosine similarity of the nearest one; None where nothing is remembered, or it is too late."""

    token: int
    key: int | None
    similarity: float


class Index(Protocol):
    """Vectors of length 1 (or 0) by key."""

    def __len__(self) -> int: ...

    def add(self, key: int, vector: Vector) -> None: ...

    def remove(self, key: int) -> None: ...

    def nearest(self, vector: Vector) -> tuple[Any, float]:
        """Key and inner product of the nearest one; there must be one."""


class UsearchIndex:
    """Approximate search in a graph (package usearch): for more vectors than can be compared one by one."""

    def __init__(self, dimension: int) -> None:
        from usearch.index import Index as Graph

        self._index = Graph(ndim=dimension, metric="ip", dtype="f32")

    def __len__(self) -> int:
        return len(self._index)

    def add(self, key: int, vector: Vector) -> None:
        self._index.add(key, vector)

    def remove(self, key: int) -> None:
        self._index.remove(key)

    def nearest(self, vector: Vector) -> tuple[int, float]:
        match: Any = self._index.search(vector, 1)[0]
        return int(match.key), 1.0 - float(match.distance)


def make_index(dimension: int, qdrant: QdrantPlace | None = None) -> Index:
    """A Qdrant server's where there is one, else usearch's where it is installed."""
    if qdrant is not None:
        return connect(qdrant, dimension)
    has_usearch = importlib.util.find_spec("usearch") is not None
    return UsearchIndex(dimension) if has_usearch else ExactIndex(dimension)


def prepare(embedding: str, qdrant: QdrantPlace | None = None) -> Callable[[Any], Any]:
    """Set the process up.

    Args:
        embedding: As :func:`calibration.text.embedder` knows it.
        qdrant: Where the index is; None for in this process.

    Raises:
        InputError: There is no such embedding, or its weights are not to be had; or no such server.
    """
    from calibration.text import embedder

    embed = embedder(embedding)
    index = make_index(len(_vector(embed, "")), qdrant)

    def handle(message: Any) -> Any:
        match message:
            case Find(token, text, until_s):
                if not len(index) or time.monotonic() > until_s:
                    return Found(token, None, float("nan"))
                return Found(token, *index.nearest(_vector(embed, text)))
            case Add(key, text):
                index.add(key, _vector(embed, text))
            case Remove(key):
                index.remove(key)
            case Close():
                if isinstance(index, QdrantIndex):
                    index.close()
            case _:
                raise TypeError(f"no message for the cache: {message!r}")
        return None

    return handle


def _vector(embed: Callable[[list[str]], Any], text: str) -> Vector:
    return np.asarray(embed([text])[0], dtype=np.float32)
