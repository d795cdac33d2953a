"""The cache's index in a Qdrant server. Needs the extra ``qdrant``."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from argus_sim.core.nearest import Vector
from argus_sim.errors import InputError

#: For an answer of the server, in whole seconds. A look-up counts as a miss long before.
_TIMEOUT_S: Final = 5


@dataclass(frozen=True, slots=True)
class QdrantPlace:
    """Where the index is.

    Attributes:
        url: Of the server. Its key is the environment's ``QDRANT_API_KEY``.
        collection: The index's own: what is in it goes when the index is made.
    """

    url: str
    collection: str


class QdrantIndex:
    """Vectors in a collection of a server.

    Only one index at a time may use a collection. It knows by itself what it holds; vectors are the server's.
    Whatever the server does not do ends in :class:`InputError`.

    Args:
        client: A ``QdrantClient``.
        place: The collection is emptied first, if it is there.
        dimension: Of the vectors.
    """

    def __init__(self, client: Any, place: QdrantPlace, dimension: int) -> None:
        from qdrant_client import models

        self._client, self._place, self._models = client, place, models
        self._keys: set[int] = set()
        # Not cosine, which has no answer for a text that is embedded as zero.
        size = models.VectorParams(size=dimension, distance=models.Distance.DOT)
        with self._blamed():
            client.delete_collection(place.collection)
            client.create_collection(place.collection, vectors_config=size)

    def __len__(self) -> int:
        return len(self._keys)

    def add(self, key: int, vector: Vector) -> None:
        point = self._models.PointStruct(id=key, vector=vector.tolist())
        with self._blamed():
            self._client.upsert(self._place.collection, points=[point], wait=True)
        self._keys.add(key)

    def remove(self, key: int) -> None:
        selected = self._models.PointIdsList(points=[key])
        with self._blamed():
            self._client.delete(self._place.collection, points_selector=selected, wait=True)
        self._keys.discard(key)

    def nearest(self, vector: Vector) -> tuple[int, float]:
        with self._blamed():
            answer = self._client.query_points(
                self._place.collection, query=vector.tolist(), limit=1, with_payload=False, with_vectors=False
            )
            return int(answer.points[0].id), float(answer.points[0].score)

    def close(self) -> None:
        """The collection goes."""
        with self._blamed():
            self._client.delete_collection(self._place.collection)

    @contextlib.contextmanager
    def _blamed(self) -> Iterator[None]:
        """The client passes on what its own HTTP client raises, and more."""
        try:
            yield
        except Exception as error:
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise InputError(f"{self._place.url} does not answer: {first}", where="--qdrant") from None


def connect(place: QdrantPlace, dimension: int) -> QdrantIndex:
    """An empty index; raises InputError where there is no such server."""
    from qdrant_client import QdrantClient

    key = os.environ.get("QDRANT_API_KEY") or None
    # The check of versions only warns.
    client = QdrantClient(url=place.url, api_key=key, timeout=_TIMEOUT_S, check_compatibility=False)
    return QdrantIndex(client, place, dimension)


def check(url: str) -> None:
    """Raises InputError when this is no URL, or the client is not installed."""
    import importlib.util

    if not url.startswith(("http://", "https://")):
        raise InputError(f"must be a URL, http:// or https://, found {url!r}", where="--qdrant")
    if importlib.util.find_spec("qdrant_client") is None:
        raise InputError(
            "needs the qdrant extra, and 'qdrant_client' is missing: pip install 'argus-sim[live,qdrant]'",
            where="--qdrant",
        )
