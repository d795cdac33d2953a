"""The approximate cache for real: latents of earlier images on disk, found by the similarity of their prompts.

Entries are files of the latents with which the steps of the AC ladder began; workers write and read them, this
class knows which there are, keeps them within a bound, and answers the engine's look-ups. A file that a waiting
request will start from is never evicted.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from argus_sim.core.cache import Entry, Ranked
from argus_sim.domain import CacheHit
from argus_sim.errors import InputError
from argus_sim.live.executor import Executor
from argus_sim.live.librarian import Add, Close, Find, Found, Remove, prepare
from argus_sim.live.processes import Patience, Supervised
from argus_sim.live.qdrant import QdrantPlace
from argus_sim.live.telemetry import event

_SUFFIX = ".latents.safetensors"
#: Of the folders that go with their server.
_PREFIX = "argus-sim-latents-"
#: A server locks its folder within this time, seconds.
_UNLOCKED_S = 60.0


@dataclass(slots=True)
class _Entry:
    text: str
    file: Path
    size_bytes: int
    #: What the rule of eviction knows of it.
    use: Entry
    #: Requests that will start from it.
    pins: int = 0


@dataclass(frozen=True, slots=True)
class CacheSettings:
    """How the cache keeps and finds.

    Attributes:
        model: Whose latents.
        steps: At the beginning of which steps, ascending.
        folder: Where files are; what is there is used again. None for one that goes with the server.
        max_bytes: Of all files.
        embedding: Of prompts, as :func:`calibration.text.embedder` knows it.
        min_similarity: What is less similar is a miss.
        thresholds: Steps skipped -> the similarity that has to be exceeded; without them any similarity that is
            enough allows all steps.
        eviction: One of :data:`argus_sim.core.cache.RULES`: what goes where there is no room.
        timeout_s: After this time (real seconds) an answer that did not come is a miss.
        qdrant: URL of a Qdrant server that holds the index, in a collection of this cache's own.
    """

    model: str
    steps: tuple[int, ...]
    folder: Path | None = None
    max_bytes: int = 1 << 30
    embedding: str = "ngrams"
    min_similarity: float = -1.0
    thresholds: Mapping[int, float] | None = None
    eviction: str = "lru"
    timeout_s: float = 1.0
    qdrant: str | None = None


@dataclass(slots=True)
class _Question:
    row: int
    asked_s: float
    timer: asyncio.TimerHandle = field(repr=False)


class LatentFiles:
    """See the module's docstring.

    Look-ups are answered by a process of its own; while it is away they are misses.

    Args:
        settings: How it keeps and finds.
        patience: With the process.
    """

    def __init__(self, settings: CacheSettings, patience: Patience | None = None) -> None:
        self.settings = settings
        self.used_bytes = 0
        self._eviction = Ranked(settings.eviction)
        #: Counts uses and insertions.
        self._turns = count(1)
        self._entries: dict[int, _Entry] = {}
        self._texts: set[str] = set()  # stored, or being written
        self._written: dict[Path, tuple[int, str]] = {}
        self._held: dict[int, _Entry] = {}
        self._asked: dict[int, _Question] = {}
        self._keys, self._tokens = count(), count()
        place = None
        if settings.qdrant is not None:
            place = QdrantPlace(settings.qdrant, f"argus-sim-{uuid.uuid4().hex}")
        self._process = Supervised("cache", prepare, (settings.embedding, place), self, patience or Patience())
        self._host: Executor | None = None
        self._folder = Path()
        self._lock: Any = None

    def __len__(self) -> int:
        return len(self._entries)

    async def start(self, host: Executor) -> None:
        """Find what is there and get ready.

        Raises:
            InputError: The folder cannot be used, or the prompts cannot be embedded.
        """
        self._host = host
        self._folder = self._open_folder()
        try:
            self._take_stock()
            await self._process.start()
        except BaseException:
            await self.stop()
            raise
        self._teach()

    async def stop(self) -> None:
        self._process.send(Close())
        await self._process.stop()
        for question in self._asked.values():
            question.timer.cancel()
        self._asked.clear()
        if self._lock is not None:
            self._lock.close()
            self._lock = None
            if self.settings.folder is None:
                shutil.rmtree(self._folder, ignore_errors=True)

    # ---- what the engine asks

    def look_up(self, host: Executor, now: float, row: int, prompt: int, text: str) -> None:
        self.release(row)
        if not self._process.is_up:
            host.at(now, lambda at_s: host.cache_answered(at_s, row, CacheHit(math.nan, 0, 0.0)))
            return
        token = next(self._tokens)
        loop = asyncio.get_running_loop()
        until_s = loop.time() + self.settings.timeout_s
        timer = loop.call_at(until_s, self._answer, Found(token, None, math.nan))
        self._asked[token] = _Question(row, now, timer)
        self._process.send(Find(token, text, until_s))

    def held(self, row: int) -> Path:
        """The file that was found for a request."""
        return self._held[row].file

    def release(self, row: int) -> None:
        entry = self._held.pop(row, None)
        if entry is not None:
            entry.pins -= 1

    def _answer(self, found: Found) -> None:
        question = self._asked.pop(found.token, None)
        host = self._host
        if question is None or host is None:  # it had counted as a miss
            return
        question.timer.cancel()
        now = host.now()
        entry = None if found.key is None else self._entries.get(found.key)
        steps = 0 if entry is None else self._allowed(found.similarity)
        if entry is not None and steps:
            entry.pins += 1
            self._held[question.row] = entry
            entry.use.use(next(self._turns))
        host.cache_answered(now, question.row, CacheHit(found.similarity, steps, now - question.asked_s))

    def _allowed(self, similarity: float) -> int:
        """The most steps that may be skipped; 0 for a miss."""
        settings = self.settings
        if similarity < settings.min_similarity:
            return 0
        if settings.thresholds is None:
            return settings.steps[-1]
        return max((k for k, above in settings.thresholds.items() if similarity > above), default=0)

    # ---- what workers bring

    def wanted(self, text: str) -> Path | None:
        """The file to write the latents of this prompt to; None where they are not needed."""
        if text in self._texts:
            return None
        self._texts.add(text)
        key = next(self._keys)
        file = self._folder / f"{key}{_SUFFIX}"
        self._written[file] = key, text
        return file

    def keep(self, file: Path) -> None:
        """A wanted file is there. It takes the place of others where there is no room, or goes itself."""
        key, text = self._written[file]
        try:
            entry = self._entry(key, text, file)
        except OSError:  # somebody else has been at it
            self.give_up(file)
            return
        del self._written[file]
        if self._make_room(entry.size_bytes):
            self._add(key, entry)
            self._process.send(Add(key, text))
        else:
            self._texts.discard(text)
            file.unlink(missing_ok=True)

    def give_up(self, file: Path) -> None:
        """A wanted file will not come."""
        _, text = self._written.pop(file)
        self._texts.discard(text)
        for leftover in (file, file.with_name(file.name + ".part")):
            leftover.unlink(missing_ok=True)

    def forget(self, file: Path) -> None:
        """A file cannot be read: somebody else has been at it."""
        for key in [key for key, entry in self._entries.items() if entry.file == file]:
            event("latents lost", level=logging.WARNING, file=str(file))
            self._remove(key)

    def _make_room(self, size_bytes: int) -> bool:
        while self.used_bytes + size_bytes > self.settings.max_bytes:
            victim = self._victim()
            if victim is None:
                return False
            self._remove(victim)
        return True

    def _victim(self) -> int | None:
        """What goes first, of all that nobody waits for."""
        spared, victim = [], None
        while victim is None and len(self._eviction):
            use = self._eviction.victim()
            entry = self._entries.get(use.key)
            if entry is None:  # forgotten meanwhile
                continue
            if entry.pins:
                spared.append(use)
            else:
                victim = use.key
        for use in spared:
            self._eviction.added(use)
        return victim

    def _entry(self, key: int, text: str, file: Path) -> _Entry:
        turn = next(self._turns)
        return _Entry(text, file, file.stat().st_size, Entry(key, self.settings.steps[-1], turn, turn))

    def _remove(self, key: int) -> None:
        entry = self._entries.pop(key)
        self._texts.discard(entry.text)
        self.used_bytes -= entry.size_bytes
        entry.file.unlink(missing_ok=True)
        self._process.send(Remove(key))

    def _add(self, key: int, entry: _Entry) -> None:
        self._entries[key] = entry
        self._texts.add(entry.text)
        self._eviction.added(entry.use)
        self.used_bytes += entry.size_bytes

    # ---- its process

    def on_message(self, message: Found) -> None:
        self._process.has_worked()
        self._answer(message)

    def on_down(self, why: str) -> None:
        for token in list(self._asked):
            self._answer(Found(token, None, math.nan))

    def on_up(self) -> None:
        self._teach()

    def _teach(self) -> None:
        for key, entry in self._entries.items():
            self._process.send(Add(key, entry.text))

    # ---- its folder

    def _open_folder(self) -> Path:
        import fcntl

        folder = self.settings.folder
        if folder is None:
            _remove_orphans()
            folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = (folder / ".lock").open("w")
        except OSError as error:
            raise InputError(f"cannot be written to: {error.strerror}", where=str(folder)) from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.close()
            self._lock = None
            raise InputError("another server uses this cache", where=str(folder)) from None
        return folder

    def _take_stock(self) -> None:
        """Take over what an earlier server left, the oldest first; what is of no use goes."""
        for part in self._folder.glob(f"*{_SUFFIX}.part"):
            part.unlink()
        files = list(self._folder.glob(f"*{_SUFFIX}"))
        names = [file.name.removesuffix(_SUFFIX) for file in files]
        self._keys = count(max((int(name) for name in names if name.isdecimal()), default=-1) + 1)
        for file in sorted(files, key=lambda file: (file.stat().st_mtime_ns, file.name)):
            text = _prompt_of(file, self.settings.model, self.settings.steps)
            if text is None or text in self._texts or not self._make_room(file.stat().st_size):
                file.unlink()
            else:
                key = int(file.name.removesuffix(_SUFFIX))
                self._add(key, self._entry(key, text, file))


def _prompt_of(file: Path, model: str, steps: Sequence[int]) -> str | None:
    """The prompt of a file's latents; None where they are not of this model and these steps."""
    from safetensors import SafetensorError, safe_open

    if not file.name.removesuffix(_SUFFIX).isdecimal():
        return None
    with contextlib.suppress(SafetensorError, OSError), safe_open(str(file), framework="np") as tensors:
        about = tensors.metadata() or {}
        if about.get("model") == model and set(map(str, steps)) <= set(tensors.keys()):
            return str(about.get("prompt"))
    return None


def _remove_orphans() -> None:
    """Folders that were to go with their server, which was killed: nobody holds their lock any more."""
    import fcntl

    for lock in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*/.lock"):
        # It may be somebody else's, or be removed by another server right now.
        with contextlib.suppress(OSError), lock.open("r+") as file:
            if time.time() - os.fstat(file.fileno()).st_mtime > _UNLOCKED_S:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(lock.parent, ignore_errors=True)
