"""An open-loop client of the OpenAI images API: every request is sent when it is due, whatever the server does.

So there is no coordinated omission: while a server stalls, requests go on falling due, and each one's latency
counts from the time it was due, not from the time at which somebody got round to sending it.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import numpy as np

from argus_sim.errors import InputError
from argus_sim.live.wire import PATH, image_in, reason_of, why
from argus_sim.record import Floats

#: Statuses of HTTP of which no other request of a load will have a better one.
_HOPELESS = (401, 403, 404)

#: Statuses beside those of HTTP: not answered (yet), and no answer that HTTP knows.
OPEN, FAILED = 0, -1

#: The last stretch before a request is due is waited for without sleeping: timers are a millisecond late.
_SPIN_S = 0.0012
#: Distinct variants or reasons that are told apart.
_MAX_TEXTS = 1000
#: Whether anybody is there must be known within this, real seconds.
_KNOCK_S = 30.0
#: A server that says that it has more workers is none of ours.
_MAX_WORKERS = 100_000
#: Most of an error's body that is read.
_MAX_ERROR_BYTES = 8192


@dataclass(frozen=True, slots=True)
class Target:
    """Who is asked, and how.

    Attributes:
        url: Of the server, without ``/v1``.
        api_key: Sent as a bearer token.
        timeout_s: Real seconds after which an answer is given up.
        max_open: While so many requests are open, those that fall due are not sent, and count as lost.
        keepalive_s: Idle connections are closed after this; below what servers wait, or a request may be sent on
            a connection that the server is just closing.
        due_times: Say in a header when a request is due.
        began: Say in a header when the trace began, by the monotonic clock of this machine: for a server on it
            whose time begins with the first request.
    """

    url: str
    api_key: str | None = None
    timeout_s: float = 300.0
    max_open: int = 10_000
    keepalive_s: float = 4.0
    due_times: bool = False
    began: bool = False

    def __post_init__(self) -> None:
        if self.api_key is not None and not self.api_key.isprintable():
            raise InputError("holds a line's end or the like, which no header can", where="ARGUS_API_KEY")


@dataclass
class Answers:
    """What came back, as columns, n long. Times are seconds of the trace (real ones x speed); NaN is unknown.

    Attributes:
        due_s: When each request was due.
        sent_s, received_s: When it was sent, and when its answer had been read.
        status: int16[n], of HTTP; :data:`FAILED` for timeouts and connections that broke, :data:`OPEN` for none.
        bytes: int64[n], of the answer's body.
        arrival_s, finish_s: On the server's own clock, where it says so; when the request came and the image
            was there.
        service_s: How long the batch ran.
        worker, batch_size: int32[n]; -1 and 0 where the server does not say.
        quality: As the server says.
        variant, reason: int32[n], indices into ``variants`` (-1: not said) and ``reasons`` (0: none).
        stopped_s: When it was stopped before its end, else None.
        sent: How many fell due; the others were not sent.
        workers_up: How many workers the server had at the beginning; 0 where it does not say.
    """

    due_s: Floats
    speed: float
    sent_s: Floats = field(init=False)
    received_s: Floats = field(init=False)
    arrival_s: Floats = field(init=False)
    finish_s: Floats = field(init=False)
    service_s: Floats = field(init=False)
    quality: Floats = field(init=False)
    variants: list[str] = field(default_factory=list)
    reasons: list[str] = field(default_factory=lambda: [""])

    def __post_init__(self) -> None:
        n = len(self.due_s)
        for name in ("sent_s", "received_s", "arrival_s", "finish_s", "service_s", "quality"):
            setattr(self, name, np.full(n, math.nan))
        self.status = np.zeros(n, dtype=np.int16)
        self.bytes = np.zeros(n, dtype=np.int64)
        self.worker = np.full(n, -1, dtype=np.int32)
        self.batch_size = np.zeros(n, dtype=np.int32)
        self.variant = np.full(n, -1, dtype=np.int32)
        self.reason = np.zeros(n, dtype=np.int32)
        self.stopped_s: float | None = None
        self.sent = 0
        self.workers_up = 0
        self._codes: dict[str, dict[str, int]] = {"variants": {}, "reasons": {"": 0}}

    def __len__(self) -> int:
        return len(self.due_s)

    @property
    def lag_s(self) -> Floats:
        """Real seconds from due to sent, of what was sent."""
        lag: Floats = ((self.sent_s - self.due_s) / self.speed)[np.isfinite(self.sent_s)]
        return lag

    def code(self, kind: str, text: str) -> int:
        """The number of a variant or a reason; each distinct text is held once, and so many of them."""
        codes = self._codes[kind]
        if text not in codes and len(codes) >= _MAX_TEXTS:
            text = "other"
        if text not in codes:
            codes[text] = len(codes)
            getattr(self, kind).append(text)
        return codes[text]

    def said(self, row: int, headers: Mapping[str, str]) -> None:
        """Note what a server of ours says of a request; what is not said or not sound stays unknown."""
        for name, column in (
            ("arrival-s", self.arrival_s),
            ("finish-s", self.finish_s),
            ("service-s", self.service_s),
            ("quality", self.quality),
            ("worker", self.worker),
            ("batch-size", self.batch_size),
        ):
            text = headers.get(f"x-argus-{name}")
            if text is not None:
                with contextlib.suppress(ValueError, OverflowError):
                    column[row] = float(text) if column.dtype == np.float64 else int(text)
        variant = headers.get("x-argus-variant")
        if variant is not None:
            self.variant[row] = self.code("variants", variant[:200])


async def play(
    target: Target,
    due_s: Floats,
    bodies: Sequence[bytes],
    body_of: Sequence[int],
    *,
    speed: float = 1.0,
    stop: asyncio.Event | None = None,
    warm_up: int = 0,
    on_progress: Callable[[int], None] = lambda sent: None,
    on_image: Callable[[int, bytes], None] | None = None,
) -> Answers:
    """Send every request when it is due.

    Args:
        due_s: float64[n], ascending, seconds of the trace.
        bodies: The distinct bodies.
        body_of: Index into ``bodies`` of each request.
        speed: Seconds of the trace in a real one.
        stop: When set, no more is sent, and what is open is given up: it stays :data:`OPEN`.
        warm_up: So many connections are opened first, by requests that ask for no image. For servers of ours.
        on_progress: Told now and then how many have been sent.
        on_image: Given the image of each request (its row) that an answer holds: bodies must have asked for
            ``b64_json``. What it raises ends the load, and is raised.

    Raises:
        InputError: There is no server at the address, its clock runs at another speed, or its first answer says
            that no request will be served.
    """
    answers = Answers(due_s, speed)
    headers = {"content-type": "application/json"}
    if target.api_key:
        headers["authorization"] = f"Bearer {target.api_key}"
    session = aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=target.keepalive_s),
        timeout=aiohttp.ClientTimeout(total=target.timeout_s),
        headers=headers,
        auto_decompress=False,
        cookie_jar=aiohttp.DummyCookieJar(),
    )
    async with session:
        await _knock(session, target.url, warm_up)
        ready = await _ready(session, target.url)
        _check_speed(ready.get("speed"), speed, target.url)
        answers.workers_up = _workers_up(ready.get("workers_up"))
        sender = _Sender(session, target, answers, stop or asyncio.Event(), on_image)
        gc.collect()
        gc.freeze()  # collections that walked all that is here would make requests late
        try:
            await sender.send_all(bodies, body_of, on_progress)
        finally:
            gc.unfreeze()
    if sender.trouble is not None:
        raise sender.trouble
    return answers


async def _knock(session: aiohttp.ClientSession, url: str, connections: int) -> None:
    """See whether anybody is there, open connections, and walk the paths once. Whatever is answered is fine.

    What is posted asks for no image, so that no policy hears of it.
    """

    async def ask() -> None:
        async with session.get(f"{url}/v1/models", timeout=aiohttp.ClientTimeout(total=_KNOCK_S)) as response:
            await response.read()

    async def ask_for_none() -> None:
        async with session.post(f"{url}{PATH}", data=b'{"prompt": "warm-up", "n": 0}') as response:
            await response.read()

    try:
        await ask()
        if connections:
            await asyncio.gather(*(ask() for _ in range(connections)))
            await asyncio.gather(*(ask_for_none() for _ in range(connections)))
    except aiohttp.InvalidURL:
        raise InputError(f"{url!r} is no address", where="--url") from None
    except (aiohttp.ClientError, OSError) as error:
        raise InputError(f"no server answers: {why(error)}", where=f"--url {url}") from None


async def _ready(session: aiohttp.ClientSession, url: str) -> dict[str, Any]:
    """What a server of ours says of itself; nothing of any other."""
    try:
        async with session.get(f"{url}/readyz", timeout=aiohttp.ClientTimeout(total=_KNOCK_S)) as response:
            said = json.loads(await response.content.read(_MAX_ERROR_BYTES))
    except (aiohttp.ClientError, OSError, TimeoutError, ValueError):
        return {}
    return said if isinstance(said, dict) else {}


def _workers_up(said: object) -> int:
    return said if type(said) is int and 0 < said <= _MAX_WORKERS else 0


def _check_speed(said: object, speed: float, url: str) -> None:
    """A server whose time runs faster would see a load that is thinner by as much."""
    if isinstance(said, int | float) and not isinstance(said, bool) and said != speed:
        raise InputError(
            f"the server's clock runs at {said:g} times real speed, the load at {speed:g}; give both one --speed",
            where=f"--url {url}",
        )


class _Sender:
    """The requests of one run."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        target: Target,
        answers: Answers,
        stop: asyncio.Event,
        on_image: Callable[[int, bytes], None] | None,
    ) -> None:
        self._session, self._target, self._answers, self._stop = session, target, answers, stop
        self._on_image = on_image
        self._answered = False
        #: What ended the load early.
        self.trouble: Exception | None = None
        self._url = f"{target.url}{PATH}"
        self._loop = asyncio.get_running_loop()
        self._zero_s = 0.0
        self._open: set[asyncio.Task[None]] = set()

    def _now_s(self) -> float:
        return (self._loop.time() - self._zero_s) * self._answers.speed

    async def send_all(
        self, bodies: Sequence[bytes], body_of: Sequence[int], on_progress: Callable[[int], None]
    ) -> None:
        answers, target = self._answers, self._target
        due = answers.due_s.tolist()
        self._zero_s = self._loop.time() + 0.05 - due[0] / answers.speed
        for row, due_s in enumerate(due):
            if not await self._until(self._zero_s + due_s / answers.speed):
                break
            if len(self._open) >= target.max_open:
                answers.status[row] = FAILED
                answers.reason[row] = answers.code("reasons", f"not sent: {target.max_open} requests were open")
            else:
                task = self._loop.create_task(self._send(row, due_s, bodies[body_of[row]]))
                self._open.add(task)
                task.add_done_callback(self._open.discard)
            answers.sent = row + 1
            if answers.sent % 64 == 0:
                on_progress(answers.sent)
        if self._open:
            stopped = self._loop.create_task(self._stop.wait())
            answered = self._loop.create_task(_all_of(self._open))
            await asyncio.wait([answered, stopped], return_when=asyncio.FIRST_COMPLETED)
            stopped.cancel()
            answered.cancel()
        if self._stop.is_set():
            answers.stopped_s = self._now_s()
            for task in self._open:
                task.cancel()
        await _all_of(self._open)
        on_progress(answers.sent)

    async def _until(self, at_s: float) -> bool:
        """Wait until a time of the loop; False where it is to stop."""
        while not self._stop.is_set():
            left_s = at_s - self._loop.time()
            if left_s <= 0:
                return True
            # Short sleeps, so that a stop is heard of.
            await asyncio.sleep(min(left_s - _SPIN_S, 0.25) if left_s > _SPIN_S else 0)
        return False

    async def _send(self, row: int, due_s: float, body: bytes) -> None:
        image = await self._ask(row, due_s, body)
        try:
            self._check_first(row)
            if image is not None and self._on_image is not None:
                self._on_image(row, image)
        except Exception as error:
            self.trouble = self.trouble or error
            self._stop.set()

    def _check_first(self, row: int) -> None:
        """A wrong key or address fails every request: better said at once than after a day's trace."""
        status, first = self._answers.status[row], not self._answered
        self._answered = True
        if first and status in _HOPELESS:
            hint = "; the key is taken from ARGUS_API_KEY" if status == 401 else ""
            reason = self._answers.reasons[self._answers.reason[row]]
            raise InputError(f"serves no images: {reason}{hint}", where=f"--url {self._target.url}")

    async def _ask(self, row: int, due_s: float, body: bytes) -> bytes | None:
        """Send a request and note the answer; the image in it, where that is wanted."""
        answers = self._answers
        headers = {}
        if self._target.due_times:
            headers["x-argus-due-s"] = f"{due_s:.9f}"
        if self._target.began:
            headers["x-argus-began-s"] = f"{time.monotonic() - self._now_s() / answers.speed:.9f}"
        answers.sent_s[row] = self._now_s()
        try:
            async with self._session.post(self._url, data=body, headers=headers) as response:
                kept = bytearray()
                if response.status == 200:
                    size = 0
                    async for chunk in response.content.iter_any():
                        size += len(chunk)
                        if self._on_image is not None:
                            kept += chunk
                    answers.received_s[row] = self._now_s()
                    answers.bytes[row] = size
                    answers.said(row, response.headers)
                else:
                    text = await response.content.read(_MAX_ERROR_BYTES)
                    answers.received_s[row] = self._now_s()
                    answers.bytes[row] = len(text)
                    answers.said(row, response.headers)
                    answers.reason[row] = answers.code("reasons", reason_of(response.status, text))
                answers.status[row] = response.status
                return image_in(kept) if kept else None
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            answers.received_s[row] = self._now_s()
            answers.status[row] = FAILED
            answers.reason[row] = answers.code("reasons", why(error))
            return None


async def _all_of(tasks: set[asyncio.Task[None]]) -> None:
    if tasks:
        await asyncio.wait(tasks)
