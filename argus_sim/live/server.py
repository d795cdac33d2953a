"""The HTTP server: the OpenAI images API in front of an executor."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hmac
import logging
import math
import re
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.requests import ClientDisconnect
from starlette.routing import Route

from argus_sim.errors import InputError
from argus_sim.live import api
from argus_sim.live.executor import Executor
from argus_sim.live.seams import Rejected, Served
from argus_sim.live.telemetry import Telemetry, event

_Endpoint = Callable[[Request], Awaitable[Response]]

_NO_ENDPOINT = "There is no such endpoint."
#: Connections that wait to be taken.
_BACKLOG = 2048
#: What is counted and logged where the client left before it was answered; no client ever reads it.
_CLIENT_LEFT = 499


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """How the server listens.

    Attributes:
        host, port: Loopback by default; port 0 takes a free one.
        api_key: What clients must send as a bearer token; None for nothing.
        size: The size of images, ``WIDTHxHEIGHT``.
        name: What ``/v1/models`` calls the service.
        max_open: More unanswered images than this are refused before the engine hears of them.
        grace_s: How long to wait, at the end, for what is open (real seconds).
        due_times: Take the time of arrival from the header ``x-argus-due-s`` where there is one.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    api_key: str | None = None
    size: str = "512x512"
    name: str = "argus-sim"
    max_open: int = 10_000
    grace_s: float = 30.0
    due_times: bool = False


class Service:
    """Answers requests.

    Args:
        executor: Makes the images.
        prompt_of: The position of a text in the profile, or of its stand-in.
        telemetry: Counts.
        quality_of: The relative quality of a prompt (its position) at a variant (its name).
    """

    def __init__(
        self,
        executor: Executor,
        config: ServerConfig,
        prompt_of: Callable[[str], int],
        telemetry: Telemetry,
        quality_of: Callable[[int, str], float] | None = None,
    ) -> None:
        self.executor, self.config, self.telemetry = executor, config, telemetry
        self.ready = False
        self._prompt_of = prompt_of
        self._quality_of = quality_of
        self._store = api.ImageStore()

    def app(self) -> FastAPI:
        routes = [
            ("POST", "/v1/images/generations", self.generate),
            ("GET", "/v1/models", self.models),
            ("GET", "/images/{name}", self.image),
            ("GET", "/healthz", self.healthz),
            ("GET", "/readyz", self.readyz),
            ("GET", "/metrics", self.metrics),
        ]
        # Plain routes and no middleware: those of the framework would take as long as all else together.
        return FastAPI(
            docs_url=None,
            redoc_url=None,
            openapi_url=None,
            redirect_slashes=False,  # its redirects would come without request id and authentication
            routes=[Route(path, self._answering(call), methods=[method]) for method, path, call in routes],
            exception_handlers=dict.fromkeys((404, 405), self._no_such),
        )

    def _answering(self, call: _Endpoint) -> _Endpoint:
        async def endpoint(request: Request) -> Response:
            return await self._with_id(request, call)

        return endpoint

    async def _no_such(self, request: Request, error: Exception) -> Response:
        async def say(request: Request) -> Response:
            headers = dict(getattr(error, "headers", None) or {})
            if getattr(error, "status_code", 404) == 405:
                said = f"{request.method} is not allowed here; allowed: {headers.get('Allow', 'none')}"
                wrong = api.ApiError(405, f"{said}.", code="method_not_allowed", headers=headers)
            else:
                said, wrong = "there is no such page", api.ApiError(404, _NO_ENDPOINT, code="not_found")
            if _is_api(request):
                raise wrong
            return PlainTextResponse(f"{said}\n", wrong.status, headers=headers)

        return await self._with_id(request, say)

    async def _with_id(self, request: Request, call: _Endpoint) -> Response:
        """A request id on every answer, every answer in the log, and errors in the API's format."""
        given = request.headers.get("x-request-id", "")
        request_id = given if re.fullmatch(r"[A-Za-z0-9._-]{1,128}", given) else uuid.uuid4().hex
        started_s = time.monotonic()
        try:
            self._check_key(request)
            response = await call(request)
        except api.ApiError as error:
            response = JSONResponse(error.body, error.status, headers=error.headers)
        except ClientDisconnect:
            response = Response(status_code=_CLIENT_LEFT)
        except Exception:
            logging.getLogger("argus_sim.live").exception("internal error")
            body = api.ApiError(500, "Internal error.", code="internal_error").body
            response = JSONResponse(body, 500)
        response.headers["x-request-id"] = request_id
        self.telemetry.http.labels(str(response.status_code)).inc()
        if _is_api(request):
            seconds = round(time.monotonic() - started_s, 6)
            event("answered", request_id=request_id, status=response.status_code, seconds=seconds)
        return response

    def _check_key(self, request: Request) -> None:
        key = self.config.api_key
        if key is None or not _is_api(request):
            return
        scheme, _, sent = request.headers.get("authorization", "").partition(" ")
        # Bytes as they were sent, against bytes as they stand in the environment: a key may be in any alphabet.
        is_right = hmac.compare_digest(sent.strip().encode("latin-1"), key.encode("utf-8", "surrogateescape"))
        if scheme.lower() != "bearer" or not is_right:
            raise api.ApiError(401, "The API key is missing or wrong.", code="invalid_api_key")

    async def generate(self, request: Request) -> Response:
        wish = api.parse(await _body(request), self.config.size)
        number = wish.n or 1
        if not self.ready:
            raise self._refusal(number, Rejected("the server is not ready", lost=True), 5)
        if self.executor.waiting + number > self.config.max_open:
            too_many = Rejected("too many requests are waiting", lost=False)
            raise self._refusal(number, too_many, self._retry_after_s())
        prompt = self._prompt_of(wish.prompt)
        due_s = None
        if self.config.due_times:
            due_s = api.due_s(request.headers.get("x-argus-due-s"), first=self.executor.clock.held)
        began = request.headers.get("x-argus-began-s")
        if began is not None and self.executor.clock.held:
            # Else the first request's time on the way would be taken off all others: they would come early.
            self.executor.begin(api.since_s(began) * self.executor.clock.speed)
        seeds = [None if wish.seed is None else wish.seed + i for i in range(number)]
        futures = [self.executor.submit(prompt, wish.prompt, seed, due_s=due_s) for seed in seeds]
        results = await _unless_it_leaves(request, futures)
        done: list[Served] = []
        for result in results:
            if isinstance(result, Rejected):
                raise api.rejection(result, self._retry_after_s())
            if isinstance(result, BaseException):
                raise result
            done.append(result)
        links = None
        if wish.response_format != "b64_json":
            base = str(request.base_url)
            links = [f"{base}images/{self._store.put(r.image)}" for r in done]
        headers = {
            "x-argus-variant": ",".join(r.variant for r in done),
            "x-argus-worker": ",".join(str(r.worker) for r in done),
            "x-argus-batch-size": ",".join(str(r.batch_size) for r in done),
            "x-argus-service-s": ",".join(f"{r.finish_s - r.start_s:.6f}" for r in done),
            "x-argus-arrival-s": ",".join(f"{r.arrival_s:.6f}" for r in done),
            "x-argus-finish-s": ",".join(f"{r.finish_s:.6f}" for r in done),
        }
        if self._quality_of is not None:
            headers["x-argus-quality"] = ",".join(f"{self._quality_of(prompt, r.variant):.6f}" for r in done)
        return JSONResponse(api.answer(int(time.time()), done, links=links), headers=headers)

    def _refusal(self, number: int, why: Rejected, retry_after_s: int) -> api.ApiError:
        """Of so many images that the engine never hears of: they count all the same."""
        for _ in range(number):
            self.telemetry.rejected(why.reason, why.lost)
        return api.rejection(why, retry_after_s)

    def _retry_after_s(self) -> int:
        """When a request may do better: once what waits has been served, at the base variant's throughput."""
        engine, catalog = self.executor.engine, self.executor.engine.catalog
        workers = len(engine.workers)
        mean_per_s = catalog.cluster_throughput_per_s(catalog.base, workers) / workers
        rate = max(engine.floor.workers_up, 1) * mean_per_s
        waiting = sum(map(len, engine.queues))
        return max(1, math.ceil(waiting / rate / self.executor.clock.speed))

    async def models(self, request: Request) -> Response:
        model = {"id": self.config.name, "object": "model", "owned_by": "argus-sim"}
        return JSONResponse({"object": "list", "data": [model]})

    async def image(self, request: Request) -> Response:
        image = self._store.get(request.path_params["name"])
        if image is None:
            return PlainTextResponse("no such image, or no longer\n", 404)
        return Response(image, media_type="image/png")

    async def healthz(self, request: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def readyz(self, request: Request) -> Response:
        up = self.executor.engine.floor.workers_up
        ready = self.ready and up > 0
        said = {"ready": ready, "workers_up": up, "speed": self.executor.clock.speed}
        return JSONResponse(said, 200 if ready else 503)

    async def metrics(self, request: Request) -> Response:
        return Response(generate_latest(self.telemetry.registry), media_type=CONTENT_TYPE_LATEST)


def _is_api(request: Request) -> bool:
    """By the path that routes go by: that of ``request.url`` may be made of the client's word for the host."""
    path: str = request.scope["path"]
    return path.startswith("/v1/")


async def _unless_it_leaves(request: Request, futures: Sequence[asyncio.Future[Served]]) -> list[Any]:
    """What becomes of them, exceptions too.

    Raises:
        ClientDisconnect: Nobody waits for it any more; they are cancelled.
    """
    leaving = asyncio.ensure_future(_leave(request))
    leaving.add_done_callback(lambda _: [future.cancel() for future in futures])
    try:
        results = await asyncio.gather(*futures, return_exceptions=True)
    finally:
        leaving.cancel()
    if any(isinstance(result, asyncio.CancelledError) for result in results):
        raise ClientDisconnect
    return results


async def _leave(request: Request) -> None:
    """Returns when the client has left; its request has been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _body(request: Request) -> bytes:
    """The body, refused as soon as it is seen to be too long."""
    too_long = api.ApiError(413, f"The body exceeds {api.MAX_BODY_BYTES} bytes.", code="body_too_large")
    declared = request.headers.get("content-length", "0")
    if declared.isdigit() and int(declared) > api.MAX_BODY_BYTES:
        raise too_long
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > api.MAX_BODY_BYTES:
            raise too_long
    return bytes(body)


class _Server(uvicorn.Server):
    """Leaves signals to :func:`serve`: a first one drains, where uvicorn's own would cut connections."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def serve(
    service: Service,
    *,
    stop: asyncio.Event,
    on_ready: Callable[[str], None],
    at_once: asyncio.Event | None = None,
) -> None:
    """Serve until ``stop`` is set, then answer what is open and end.

    The address is taken before the workers start: until they are there, what is asked of them is refused.

    Args:
        on_ready: Told the address as soon as requests are taken.
        at_once: Once it is set as well, what is open is refused.

    Raises:
        InputError: The address cannot be listened on.
        Exception: What the engine failed with, if it did.
    """
    config, executor = service.config, service.executor
    listener = uvicorn.Config(
        service.app(), host=config.host, port=config.port, log_config=None, access_log=False, lifespan="off",
        backlog=_BACKLOG, timeout_keep_alive=75, timeout_graceful_shutdown=5,
    )  # fmt: skip
    server = _Server(listener)
    socket = await asyncio.to_thread(_listen, config.host, config.port)
    running = asyncio.create_task(server.serve(sockets=[socket]))
    stopped = asyncio.create_task(stop.wait())
    try:
        if await _start(executor, server, running, stopped):
            service.ready = True
            on_ready(_url(config.host, socket.getsockname()[1]))
            await _work(executor, (stopped, running))
            service.ready = False
            event("draining", waiting=executor.waiting)
            await _drain(executor, config.grace_s, at_once or asyncio.Event())
    finally:
        service.ready = False
        stopped.cancel()
        await executor.stop()
        server.should_exit = True
        await running
        socket.close()
    if executor.failure is not None and executor.failure.done():
        raise executor.failure.result()


async def _start(
    executor: Executor, server: _Server, running: asyncio.Task[None], stopped: asyncio.Task[Any]
) -> bool:
    """Start the workers, and see to it that the server takes requests; False when it was stopped before."""
    starting = asyncio.create_task(executor.start())
    try:
        await asyncio.wait((starting, stopped, running), return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            starting.result()
            while not server.started and not running.done():
                await asyncio.sleep(0.01)
        if running.done():
            running.result()
    finally:
        starting.cancel()
    if server.started and starting.done():
        return True
    event("stopped before it was ready")
    return False


async def _work(executor: Executor, ends: Sequence[asyncio.Future[Any]]) -> None:
    """Returns when one of these comes, or the engine fails."""
    assert executor.failure is not None
    await asyncio.wait((*ends, executor.failure), return_when=asyncio.FIRST_COMPLETED)


async def _drain(executor: Executor, grace_s: float, at_once: asyncio.Event) -> None:
    """Wait for what is open, but no longer than that (real seconds); for nothing once the engine has failed."""
    assert executor.failure is not None
    hurry = asyncio.create_task(at_once.wait())
    draining = asyncio.create_task(executor.drain(grace_s))
    try:
        await asyncio.wait((draining, hurry, executor.failure), return_when=asyncio.FIRST_COMPLETED)
    finally:
        hurry.cancel()
        draining.cancel()


def _listen(host: str, port: int) -> Any:
    import socket

    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Only where the protocol is named does asyncio turn Nagle's algorithm off: else answers wait for 40 ms.
    ours = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        ours.bind((host, port))
        ours.listen(_BACKLOG)  # with that option, an address that is only bound is still anybody's
    except OSError as error:
        ours.close()
        hint = "; --port N listens on another port" if error.errno == errno.EADDRINUSE else ""
        raise InputError(f"{error.strerror}{hint}", where=_url(host, port)) from error
    return ours


def _url(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
