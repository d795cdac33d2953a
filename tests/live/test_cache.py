"""The real approximate cache: what it finds, what it keeps, and what it does without its process."""

from __future__ import annotations

import asyncio
import fcntl
import math
import os
import signal
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from argus_sim.core.nearest import ExactIndex
from argus_sim.domain import CacheHit
from argus_sim.errors import InputError
from argus_sim.live.cache import CacheSettings, LatentFiles
from argus_sim.live.librarian import Add, Find, UsearchIndex, prepare
from argus_sim.live.processes import Patience
from tests.live.make_processes import play, until
from tests.patience import LONG_S

#: Nobody is taken for dead who is only slow.
QUICK = Patience(beat_s=0.2, silent_beats=5 * int(LONG_S), wait_s=0.01, longest_wait_s=0.1)
SETTINGS = CacheSettings("shapes-large", (5, 25), max_bytes=1000, min_similarity=0.5, timeout_s=LONG_S)


class Host:
    """Hears the answers. Its clock is the loop's."""

    def __init__(self) -> None:
        self.hits: dict[int, CacheHit] = {}

    def now(self) -> float:
        return asyncio.get_running_loop().time()

    def at(self, time_s: float, call: Callable[[float], None]) -> None:
        asyncio.get_running_loop().call_soon(call, time_s)

    def cache_answered(self, now: float, row: int, hit: CacheHit) -> None:
        assert row not in self.hits, "answered twice"
        self.hits[row] = hit


async def opened(settings: CacheSettings = SETTINGS) -> tuple[LatentFiles, Any]:
    cache, host = LatentFiles(settings, patience=QUICK), Host()
    await cache.start(host)  # type: ignore[arg-type]
    return cache, host


def store(cache: LatentFiles, text: str, size_bytes: int = 100) -> Path:
    file = cache.wanted(text)
    assert file is not None
    file.write_bytes(b"x" * size_bytes)
    cache.keep(file)
    return file


async def ask(cache: LatentFiles, host: Any, row: int, text: str) -> CacheHit:
    cache.look_up(host, host.now(), row, 0, text)
    await until(lambda: row in host.hits)
    hit: CacheHit = host.hits[row]
    return hit


def test_the_most_similar_prompt_is_found() -> None:
    async def test() -> None:
        cache, host = await opened()
        hit = await ask(cache, host, 0, "a red circle")
        assert (math.isnan(hit.similarity), hit.max_skipped_steps) == (True, 0)
        file = store(cache, "a red circle left of a blue square")
        store(cache, "a green cross")
        hit = await ask(cache, host, 1, "a red circle left of a square")
        assert hit.max_skipped_steps == 25
        assert 0.5 < hit.similarity < 1.0
        assert 0.0 < hit.latency_s < LONG_S
        assert cache.held(1) == file
        assert (await ask(cache, host, 2, "a green cross")).similarity == pytest.approx(1.0, abs=1e-6)
        far = await ask(cache, host, 3, "nothing of the kind")
        assert far.similarity < 0.5
        assert far.max_skipped_steps == 0
        assert cache.wanted("a green cross") is None
        await cache.stop()
        assert not file.parent.exists()

    play(test())


def test_the_bound_holds_and_what_is_waited_for_stays() -> None:
    async def test() -> None:
        cache, host = await opened()
        files = [store(cache, name, 300) for name in ("zero", "one", "two")]
        assert cache.used_bytes == 900
        await ask(cache, host, 0, "zero")  # used and waited for, so 1 is the next to go
        files.append(store(cache, "three", 300))
        assert [file.exists() for file in files] == [True, False, True, True]
        await ask(cache, host, 2, "two")
        await ask(cache, host, 3, "three")
        # All that there is will be needed: what is new has to go.
        assert not store(cache, "four", 300).exists()
        assert (cache.used_bytes, len(cache)) == (900, 3)
        for row in (0, 2, 3):
            assert cache.held(row).exists()
            cache.release(row)
        store(cache, "four", 300)
        assert [file.exists() for file in files] == [False, False, True, True]
        assert (await ask(cache, host, 4, "zero")).max_skipped_steps == 0
        assert (await ask(cache, host, 5, "four")).max_skipped_steps == 25
        assert not store(cache, "six", 1001).exists()  # alone too large
        total = sum(file.stat().st_size for file in cache.held(5).parent.glob("*.safetensors"))
        assert cache.used_bytes == total <= SETTINGS.max_bytes
        await cache.stop()

    play(test())


@pytest.mark.parametrize(("eviction", "kept"), [("lru", "circle square cross"), ("fifo", "ring square cross")])
def test_the_rule_says_what_goes_first(eviction: str, kept: str) -> None:
    """Room for three. The first is used again before the fourth comes; the second was forgotten and came back."""

    async def test() -> None:
        cache, host = await opened(replace(SETTINGS, eviction=eviction, max_bytes=300))
        cache.forget(store(cache, "ring"))
        for text in ("circle", "ring", "square"):
            store(cache, text)
        await ask(cache, host, 0, "circle")
        cache.release(0)
        store(cache, "cross")
        stored = [text for text in ("circle", "ring", "square", "cross") if cache.wanted(text) is None]
        assert stored == kept.split()
        await cache.stop()

    play(test())


def test_thresholds_say_how_deep_a_hit_is() -> None:
    async def test() -> None:
        cache, host = await opened(replace(SETTINGS, thresholds={5: 0.5, 25: 0.99}))
        store(cache, "a red circle")
        assert (await ask(cache, host, 0, "a red circle")).max_skipped_steps == 25
        assert (await ask(cache, host, 1, "a red circle left of it")).max_skipped_steps == 5
        assert (await ask(cache, host, 2, "zebras")).max_skipped_steps == 0
        await cache.stop()

    play(test())


def test_without_its_process_every_answer_is_a_miss_until_it_is_back() -> None:
    async def test() -> None:
        cache, host = await opened()
        store(cache, "a red circle")
        await ask(cache, host, 0, "a red circle")
        process = cache._process
        assert process.pid is not None
        os.kill(process.pid, signal.SIGSTOP)
        cache.look_up(host, host.now(), 1, 0, "a red circle")
        os.kill(process.pid, signal.SIGKILL)
        await until(lambda: 1 in host.hits)
        assert host.hits[1].max_skipped_steps == 0
        assert (await ask(cache, host, 2, "a red circle")).max_skipped_steps == 0
        store(cache, "a blue square")
        await until(lambda: process.is_up)
        for row, text in ((3, "a red circle"), (4, "a blue square")):
            assert (await ask(cache, host, row, text)).max_skipped_steps == 25
        await cache.stop()

    play(test())


def test_an_answer_that_does_not_come_in_time_is_a_miss() -> None:
    async def test() -> None:
        cache, host = await opened(replace(SETTINGS, timeout_s=0.2))
        store(cache, "a red circle")
        await ask(cache, host, 0, "a red circle")
        assert cache._process.pid is not None
        os.kill(cache._process.pid, signal.SIGSTOP)
        hit = await ask(cache, host, 1, "a red circle")
        assert (hit.max_skipped_steps, math.isnan(hit.similarity)) == (0, True)
        assert hit.latency_s > 0.19
        os.kill(cache._process.pid, signal.SIGCONT)
        cache.settings = SETTINGS
        assert (await ask(cache, host, 2, "a red circle")).max_skipped_steps == 25  # and row 1 has one answer
        await cache.stop()

    play(test())


def test_nothing_is_looked_up_for_a_question_that_is_too_old() -> None:
    """Else a process that has fallen behind never catches up."""
    handle = prepare("ngrams")
    handle(Add(1, "a red circle"))
    assert handle(Find(5, "a red circle", time.monotonic() + 60)).key == 1
    assert handle(Find(6, "a red circle", time.monotonic() - 1)).key is None


def test_a_folder_that_a_killed_server_left_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not that of one that runs, nor of one that has only begun."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    left, others, begun, strange = (tmp_path / f"argus-sim-latents-{name}" for name in ("a", "b", "c", "d"))
    for folder in (left, others, begun, strange):
        folder.mkdir()
    for folder in (left, others, begun):
        (folder / ".lock").touch()
    (left / "1.latents.safetensors").write_bytes(b"x")
    for folder in (left, others):
        os.utime(folder / ".lock", (0, 0))
    os.utime(begun / ".lock", (time.time() + LONG_S,) * 2)

    async def test() -> None:
        with (others / ".lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            cache, _ = await opened()
            await cache.stop()

    play(test())
    assert sorted(tmp_path.iterdir()) == [others, begun, strange]


def test_what_was_not_written_after_all_may_be_written_again() -> None:
    async def test() -> None:
        cache, _ = await opened()
        file = cache.wanted("a red circle")
        assert file is not None
        assert cache.wanted("a red circle") is None
        part = file.with_name(file.name + ".part")
        part.write_bytes(b"half")
        cache.give_up(file)
        assert not part.exists()
        assert cache.wanted("a red circle") is not None
        await cache.stop()

    play(test())


def test_what_cannot_be_read_is_forgotten_whoever_waits_for_it() -> None:
    async def test() -> None:
        cache, host = await opened()
        file = store(cache, "a red circle")
        await ask(cache, host, 0, "a red circle")
        await ask(cache, host, 1, "a red circle")
        file.unlink()
        cache.forget(file)  # says the worker that was to start row 0 from it
        cache.forget(file)  # and another one
        assert cache.held(1) == file
        cache.release(0)
        cache.release(1)
        assert (cache.used_bytes, len(cache)) == (0, 0)
        assert math.isnan((await ask(cache, host, 2, "a red circle")).similarity)
        assert cache.wanted("a red circle") is not None
        await cache.stop()

    play(test())


def test_a_folder_is_used_again_and_by_one_server_at_a_time(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.numpy", reason="needs the calibrate extra: safetensors")
    settings = replace(SETTINGS, folder=tmp_path / "latents", max_bytes=10_000)

    def write(file: Path, model: str, steps: tuple[int, ...], text: str) -> None:
        latents = {str(step): np.zeros((1, 2, 2), np.float32) for step in steps}
        safetensors.save_file(latents, str(file), {"model": model, "prompt": text})

    async def test() -> None:
        cache, host = await opened(settings)
        for text in ("a red circle", "a blue square"):
            file = cache.wanted(text)
            assert file is not None
            write(file, "shapes-large", (5, 25), text)
            cache.keep(file)
        with pytest.raises(InputError, match="another server uses this cache"):
            await opened(settings)
        await cache.stop()

        folder = file.parent
        write(folder / "7.latents.safetensors", "shapes-tiny", (5, 25), "of another model")
        write(folder / "8.latents.safetensors", "shapes-large", (5,), "of other steps")
        (folder / "9.latents.safetensors").write_bytes(b"torn")
        (folder / "10.latents.safetensors.part").write_bytes(b"half")
        (folder / "notes.txt").write_text("somebody's")
        cache, host = await opened(settings)
        assert len(cache) == 2
        assert (await ask(cache, host, 0, "a blue square")).max_skipped_steps == 25
        assert cache.wanted("a red circle") is None
        fresh = cache.wanted("a green cross")
        assert fresh is not None
        assert fresh.name == "10.latents.safetensors"
        left = {path.name for path in folder.iterdir()} - {".lock"}
        assert left == {"0.latents.safetensors", "1.latents.safetensors", "notes.txt"}
        await cache.stop()
        cache, host = await opened(replace(settings, max_bytes=file.stat().st_size))
        assert len(cache) == 1
        await cache.stop()

    play(test())


def test_a_folder_that_cannot_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")

    async def test() -> None:
        with pytest.raises(InputError, match="cannot be written to"):
            await opened(replace(SETTINGS, folder=tmp_path / "file" / "latents"))

    play(test())


@pytest.mark.parametrize("kind", [ExactIndex, UsearchIndex])
def test_an_index_finds_the_nearest_of_what_was_not_removed(kind: Any) -> None:
    if kind is UsearchIndex:
        pytest.importorskip("usearch", reason="needs the live extra: usearch")
    rng = np.random.default_rng(1)
    vectors = rng.standard_normal((300, 32)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    index = kind(32)
    assert not len(index)
    for key, vector in enumerate(vectors):
        index.add(key, vector)
    gone = set(range(0, 300, 3))
    for key in gone:
        index.remove(key)
    kept = np.array(sorted(set(range(300)) - gone))
    right = 0
    for vector in vectors:
        products = vectors[kept] @ vector
        key, similarity = index.nearest(vector)
        assert key not in gone
        right += key == kept[products.argmax()]
        assert similarity == pytest.approx(float(vectors[key] @ vector), abs=1e-5)
    assert right == 300 if kind is ExactIndex else right >= 290  # the graph's answers are approximate
    for key in kept.tolist():
        index.remove(key)
    assert not len(index)
