"""The cache's index in a Qdrant server: the client's own local mode, and a stand-in for a server over HTTP."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("qdrant_client", reason="needs the qdrant extra: qdrant-client")

from argus_sim.errors import InputError
from argus_sim.live.qdrant import QdrantIndex, QdrantPlace, check
from tests.live.fake_qdrant import fake_qdrant
from tests.live.make_processes import play, until
from tests.live.test_cache import SETTINGS, ask, opened, store

PLACE = QdrantPlace("local", "ours")


def test_an_index_finds_the_nearest_of_what_was_not_removed() -> None:
    from qdrant_client import QdrantClient

    rng = np.random.default_rng(1)
    vectors = rng.standard_normal((60, 16)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors[7] = 0.0  # a text without words
    client = QdrantClient(":memory:")
    index = QdrantIndex(client, PLACE, 16)
    for key, vector in enumerate(vectors):
        index.add(key, vector)
    for key in range(0, 60, 3):
        index.remove(key)
    kept = [key for key in range(60) if key % 3]
    assert len(index) == len(kept)
    for vector in vectors:
        products = vectors[kept] @ vector
        key, similarity = index.nearest(vector)
        assert similarity == pytest.approx(float(products.max()), abs=1e-5)
        assert float(vectors[key] @ vector) == pytest.approx(similarity, abs=1e-5)
        assert key % 3
    again = QdrantIndex(client, PLACE, 16)  # nothing of the other one is left
    again.add(1, vectors[1])
    assert again.nearest(vectors[2])[0] == 1
    again.close()
    assert not client.collection_exists("ours")


def test_the_cache_finds_by_a_server_and_misses_while_it_is_out() -> None:
    async def test() -> None:
        with fake_qdrant() as server:
            cache, host = await opened(replace(SETTINGS, qdrant=server.url))
            assert len(server.collections) == 1
            store(cache, "a red circle")
            store(cache, "a green cross")
            assert (await ask(cache, host, 0, "a red circle")).similarity == pytest.approx(1.0, abs=1e-6)
            (collection,) = server.collections.values()
            assert len(collection) == 2
            server.is_out = True
            assert (await ask(cache, host, 1, "a red circle")).max_skipped_steps == 0
            await until(lambda: not cache._process.is_up)
            server.is_out = False
            await until(lambda: cache._process.is_up)
            assert (await ask(cache, host, 2, "a green cross")).max_skipped_steps == 25
            await cache.stop()
            assert not server.collections

    play(test())


def test_a_server_that_is_not_there_is_one_message() -> None:
    async def test() -> None:
        with pytest.raises(InputError, match=r"^--qdrant: http://127\.0\.0\.1:9 does not answer: "):
            await opened(replace(SETTINGS, qdrant="http://127.0.0.1:9"))

    play(test())


@pytest.mark.parametrize(("url", "missing"), [("localhost:6333", False), ("http://127.0.0.1:6333", True)])
def test_what_can_be_said_before_is(url: str, missing: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    if missing:
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        InputError, match=r"pip install 'argus-sim\[live,qdrant\]'" if missing else "must be a URL"
    ):
        check(url)
