"""The approximate cache against trivial references, on random streams."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from argus_sim.core.cache import EVICTIONS, Found, Future, Latent, LatentCache
from argus_sim.core.nearest import Vector

LEVELS = {5: 0.65, 10: 0.75, 15: 0.85, 20: 0.90, 25: 0.95}
#: Vectors at right angles: a prompt is similar to itself alone.
APART = np.eye(16, dtype=np.float32)


def cloud(n: int, seed: int, dimension: int = 6) -> npt.NDArray[np.float32]:
    """Random directions, close enough to each other that neighbours are found at every level."""
    vectors = np.random.default_rng(seed).normal(size=(n, dimension)) + 0.8
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def cache_of(
    vectors: npt.NDArray[np.float32],
    stream: list[int],
    eviction: str,
    capacity: int | None,
    levels: dict[int, float],
) -> LatentCache:
    reader = LatentCache(levels, vectors.shape[1])

    def steps(vector: Vector) -> npt.NDArray[np.int64]:
        return np.array([reader.deepest(c) for c in (vectors @ vector).tolist()])

    future = Future(np.array(stream, dtype=np.int64), steps) if eviction == "oracle" else None
    return LatentCache(levels, vectors.shape[1], capacity=capacity, eviction=eviction, future=future)


def play(
    vectors: npt.NDArray[np.float32],
    stream: list[int],
    eviction: str,
    capacity: int | None,
    levels: dict[int, float] = LEVELS,
) -> tuple[LatentCache, list[tuple[Found, tuple[Latent, ...]]]]:
    """Look each up; store what is missed. What was found, and what had to go."""
    cache = cache_of(vectors, stream, eviction, capacity, levels)
    told = []
    for position, text in enumerate(stream):
        cache.position = position
        found = cache.lookup(vectors[text])
        gone = [] if found.steps else cache.insert(text, vectors[text])
        told.append((found, tuple(gone)))
        assert capacity is None or len(cache) <= capacity
    return cache, told


streams = st.lists(st.integers(0, 15), max_size=200)
rules = st.sampled_from(EVICTIONS)


@given(streams, rules, st.integers(5, 40), st.integers(0, 99))
def test_what_is_stored_is_never_more_than_fits_and_is_accounted_for(
    stream: list[int], eviction: str, capacity: int, seed: int
) -> None:
    cache, told = play(cloud(16, seed), stream, eviction, capacity)
    names = {Latent(text, steps) for text in stream for steps in LEVELS}
    held = [name for name in names if name in cache]
    assert len(held) == len(cache) == cache.stored - cache.evicted
    assert len({name.key for name in held}) == cache.prompts
    assert sum(len(gone) for _, gone in told) == cache.evicted
    if eviction == "oracle":  # what goes has been there
        assert all(name in names for _, gone in told for name in gone)


@given(streams, rules, st.none() | st.integers(5, 40), st.integers(0, 99))
def test_the_same_stream_gives_the_same_answers(
    stream: list[int], eviction: str, capacity: int | None, seed: int
) -> None:
    vectors = cloud(16, seed)
    first, second = (play(vectors, stream, eviction, capacity)[1] for _ in range(2))
    assert repr(first) == repr(second)


@given(streams, st.integers(0, 99), st.integers(5, 40))
def test_the_nearest_is_found_by_brute_force(stream: list[int], seed: int, capacity: int) -> None:
    """Also after rows have moved because others were dropped."""
    vectors = cloud(16, seed).astype(np.float64)
    cache = LatentCache(LEVELS, 6, capacity=capacity)
    held: set[Latent] = set()
    for text in stream:
        found = cache.lookup(vectors[text].astype(np.float32))
        if held:
            cosine = {key: float(vectors[key] @ vectors[text]) for key in {int(str(name.key)) for name in held}}
            assert found.similarity == pytest.approx(max(cosine.values()), abs=2e-5)
            assert cosine[int(str(found.key))] == pytest.approx(found.similarity, abs=2e-5)
            allowed = max((k for k, above in LEVELS.items() if found.similarity > above), default=0)
            of_it = [name.steps for name in held if name.key == found.key and name.steps <= allowed]
            assert found.steps == max(of_it, default=0)
        else:
            assert found.key is None
        if not found.steps:
            held -= set(cache.insert(text, vectors[text].astype(np.float32)))
            held |= {Latent(text, steps) for steps in LEVELS}
        assert all(name in cache for name in held)


@given(streams, st.integers(1, 12))
def test_lru_is_the_textbook_one(stream: list[int], capacity: int) -> None:
    _, told = play(APART, stream, "lru", capacity, {25: 0.95})
    book: OrderedDict[int, None] = OrderedDict()
    for text, (found, gone) in zip(stream, told, strict=True):
        assert (found.steps > 0) == (text in book)
        dropped = []
        if text not in book and len(book) == capacity:
            dropped = [Latent(book.popitem(last=False)[0], 25)]
        book[text] = None
        book.move_to_end(text)
        assert list(gone) == dropped


@given(streams, st.integers(1, 12), st.sampled_from([e for e in EVICTIONS if e != "oracle"]))
def test_nobody_has_more_hits_than_the_oracle(stream: list[int], capacity: int, other: str) -> None:
    """Belady's theorem: prompts served by themselves alone, entries of one size."""

    def hits(eviction: str) -> int:
        return sum(found.steps > 0 for found, _ in play(APART, stream, eviction, capacity, {25: 0.95})[1])

    assert hits("oracle") >= hits(other)


def test_the_oracle_can_be_better_than_all() -> None:
    """A round of four in a cache of three: least recently used never hits, the oracle keeps two of three."""
    stream = [0, 1, 2, 3] * 10
    hits = {e: sum(f.steps > 0 for f, _ in play(APART, stream, e, 3, {25: 0.95})[1]) for e in EVICTIONS}
    assert hits["lru"] == hits["fifo"] == 0
    assert hits["oracle"] > max(n for e, n in hits.items() if e != "oracle")


@given(streams, st.integers(5, 40), st.integers(0, 99))
def test_lcbfu_drops_the_lowest_product(stream: list[int], capacity: int, seed: int) -> None:
    """The artefact's score, kept by hand: uses x K, and of equals the one used longest ago."""
    vectors = cloud(16, seed)
    _, told = play(vectors, stream, "lcbfu", capacity)
    uses: dict[Latent, list[int]] = {}
    for at, (text, (found, gone)) in enumerate(zip(stream, told, strict=True)):
        if found.steps:
            score = uses[Latent(found.key, found.steps)]
            uses[Latent(found.key, found.steps)] = [score[0] + 1, 2 * at]
            continue
        for name in gone:
            lowest = min((n * key.steps, when) for key, (n, when) in uses.items())
            assert (uses[name][0] * name.steps, uses[name][1]) == lowest
            del uses[name]
        uses |= {Latent(text, k): [1, 2 * at + 1] for k in LEVELS}


# -- by hand --------------------------------------------------------------------------------------------------


def test_depth_follows_similarity_strictly() -> None:
    cache = LatentCache(LEVELS, 2)
    found = [cache.deepest(s) for s in (0.65, 0.651, 0.75, 0.76, 0.85, 0.86, 0.9, 0.91, 0.95, 0.951, 1.0)]
    assert found == [0, 5, 5, 10, 10, 15, 15, 20, 20, 25, 25]
    assert cache.deepest(float("nan")) == 0


def test_frequency_and_age_decide() -> None:
    """Three prompts apart, one level, room for three: 0 is asked for twice, then 1 once, and 2 never."""
    expected = {"lru": 0, "lfu": 2, "lcbfu": 2, "fifo": 0}
    for eviction, goes in expected.items():
        cache = LatentCache({25: 0.95}, 16, capacity=3, eviction=eviction)
        for text in (0, 1, 2):
            cache.insert(text, APART[text])
            if text == 0:
                assert [cache.lookup(APART[0]).steps for _ in range(2)] == [25, 25]
        cache.lookup(APART[1])
        assert cache.insert(3, APART[3]) == [Latent(goes, 25)], eviction


def test_shallow_entries_go_first_under_lcbfu_and_the_rest_still_serves() -> None:
    cache = LatentCache(LEVELS, 16, capacity=7, eviction="lcbfu")
    cache.insert("old", APART[0])
    assert cache.insert("new", APART[1]) == [Latent("old", 5), Latent("old", 10), Latent("old", 15)]
    assert cache.lookup(APART[0]) == Found("old", 1.0, 25)
    # Similar enough for 10 steps, but what is left of the nearest prompt is deeper than that.
    near = np.array([0.8, 0.0, 0.6] + [0.0] * 13, dtype=np.float32)
    assert cache.lookup(near) == Found("old", 0.8, 0)


def test_what_is_there_is_not_stored_twice_and_what_was_dropped_comes_back() -> None:
    cache = LatentCache({5: 0.65, 25: 0.95}, 16, capacity=3)
    cache.insert("a", APART[0])
    assert cache.insert("a", APART[0]) == []
    assert (len(cache), cache.stored) == (2, 2)
    assert cache.evict() == Latent("a", 5)
    assert cache.insert("a", APART[0]) == []
    assert (len(cache), cache.stored, cache.evicted) == (2, 3, 1)
    assert cache.insert("b", APART[1], [25]) == []
    assert Latent("b", 25) in cache
    assert Latent("b", 5) not in cache
    assert "b" not in cache


def test_a_scale_translates_cosines() -> None:
    cache = LatentCache(LEVELS, 16)
    cache.insert("a", APART[0])
    half = np.array([0.5, 0.75**0.5] + [0.0] * 14, dtype=np.float32)
    assert cache.lookup(half) == Found("a", 0.5, 0)
    assert cache.lookup(half, lambda cosine: 2.0 * cosine - 0.2) == Found("a", 0.8, 10)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"levels": {}}, "must rise"),
        ({"levels": {5: 0.8, 10: 0.7}}, "must rise"),
        ({"levels": LEVELS, "capacity": 4}, "room for 4 entries, but one prompt has 5"),
        ({"levels": LEVELS, "eviction": "mru"}, "no eviction 'mru'; allowed are lru"),
        ({"levels": LEVELS, "eviction": "oracle"}, "needs to know the future"),
    ],
)
def test_a_cache_that_cannot_be(arguments: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        LatentCache(dimension=4, **arguments)  # type: ignore[arg-type]


def test_nothing_can_be_dropped_from_an_empty_cache() -> None:
    cache = LatentCache(LEVELS, 4)
    with pytest.raises(IndexError, match="nothing is cached"):
        cache.evict()
    assert cache.lookup(np.ones(4, dtype=np.float32) / 2).latent is None
