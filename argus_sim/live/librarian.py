"""What the cache's process does: embed prompts and find the nearest stored one.

That work would keep the host's loop from everything else.
Imported by the host for its messages only; what embeds is imported by :func:`prepare`, in the process.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Vector = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Add:
    """Remember a prompt under a key."""

    key: int
    text: str


@dataclass(frozen=True, slots=True)
class Remove:
    key: int


@dataclass(frozen=True, slots=True)
class Find:
    """Which remembered prompt is nearest? The token comes back with the answer."""

    token: int
    text: str


@dataclass(frozen=True, slots=True)
class Found:
    """Key and cosine similarity of the nearest one; None where nothing is remembered."""

    token: int
    key: int | None
    similarity: float


class Index(Protocol):
    """Vectors of length 1 (or 0) by key."""

    def add(self, key: int, vector: Vector) -> None: ...

    def remove(self, key: int) -> None: ...

    def nearest(self, vector: Vector) -> tuple[int, float] | None:
        """Key and inner product of the nearest one."""


class ExactIndex:
    """All vectors as rows of a matrix, compared one by one.

    >>> index = ExactIndex()
    >>> index.nearest(np.array([1, 0], np.float32)) is None
    True
    >>> index.add(7, np.array([1, 0], np.float32))
    >>> index.add(8, np.array([0, 1], np.float32))
    >>> index.nearest(np.array([0.6, 0.8], np.float32))[0]
    8
    """

    def __init__(self) -> None:
        self._rows = np.empty((0, 0), dtype=np.float32)
        self._keys: list[int] = []
        self._row_of: dict[int, int] = {}

    def add(self, key: int, vector: Vector) -> None:
        row = len(self._keys)
        if row == len(self._rows):
            larger = np.empty((max(2 * row, 64), len(vector)), dtype=np.float32)
            if row:
                larger[:row] = self._rows
            self._rows = larger
        self._rows[row] = vector
        self._keys.append(key)
        self._row_of[key] = row

    def remove(self, key: int) -> None:
        """The last row takes its place."""
        row, last = self._row_of.pop(key), len(self._keys) - 1
        moved = self._keys.pop()
        if row != last:
            self._rows[row], self._keys[row], self._row_of[moved] = self._rows[last], moved, row

    def nearest(self, vector: Vector) -> tuple[int, float] | None:
        if not self._keys:
            return None
        products = self._rows[: len(self._keys)] @ vector
        row = int(products.argmax())
        return self._keys[row], float(products[row])


class UsearchIndex:
    """Approximate search in a graph (package usearch): for more vectors than can be compared one by one."""

    def __init__(self) -> None:
        self._index: Any = None

    def add(self, key: int, vector: Vector) -> None:
        if self._index is None:
            from usearch.index import Index as Graph

            self._index = Graph(ndim=len(vector), metric="ip", dtype="f32")
        self._index.add(key, vector)

    def remove(self, key: int) -> None:
        self._index.remove(key)

    def nearest(self, vector: Vector) -> tuple[int, float] | None:
        if self._index is None or not len(self._index):
            return None
        match = self._index.search(vector, 1)[0]
        return int(match.key), 1.0 - float(match.distance)


def make_index() -> Index:
    """Usearch's where it is installed."""
    return UsearchIndex() if importlib.util.find_spec("usearch") is not None else ExactIndex()


def prepare(embedding: str) -> Callable[[Any], Any]:
    """Set the process up.

    Args:
        embedding: As :func:`calibration.text.embedder` knows it.

    Raises:
        InputError: There is no such embedding, or its weights are not to be had.
    """
    from calibration.text import embedder

    embed, index = embedder(embedding), make_index()

    def handle(message: Any) -> Any:
        match message:
            case Find(token, text):
                found = index.nearest(_vector(embed, text))
                return Found(token, *(found or (None, float("nan"))))
            case Add(key, text):
                index.add(key, _vector(embed, text))
            case Remove(key):
                index.remove(key)
            case _:
                raise TypeError(f"no message for the cache: {message!r}")
        return None

    return handle


def _vector(embed: Callable[[list[str]], Any], text: str) -> Vector:
    return np.asarray(embed([text])[0], dtype=np.float32)
