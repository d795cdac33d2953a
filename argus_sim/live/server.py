"""The HTTP server: the OpenAI images API in front of an executor."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
import math
import re
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.routing import Route

from argus_sim.live import api
from argus_sim.live.executor import Executor
from argus_sim.live.seams import Rejected, Served
from argus_sim.live.telemetry import Telemetry, event

_Endpoint = Callable[[Request], Awaitable[Response]]


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
            routes=[Route(path, self._answering(call), methods=[method]) for method, path, call in routes],
            exception_handlers=dict.fromkeys((404, 405), self._no_such),
        )

    def _answering(self, call: _Endpoint) -> _Endpoint:
        async def endpoint(request: Request) -> Response:
            return await self._with_id(request, call)

        return endpoint

    async def _no_such(self, request: Request, error: Exception) -> Response:
        async def say(request: Request) -> Response:
            status = getattr(error, "status_code", 404)
            if request.url.path.startswith("/v1/"):
                raise api.ApiError(status, "There is no such endpoint.", code="not_found")
            return PlainTextResponse("there is no such page\n", status)

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
        except Exception:
            logging.getLogger("argus_sim.live").exception("internal error")
            body = api.ApiError(500, "Internal error.", code="internal_error").body
            response = JSONResponse(body, 500)
        response.headers["x-request-id"] = request_id
        self.telemetry.http.labels(str(response.status_code)).inc()
        if request.url.path.startswith("/v1/"):
            seconds = round(time.monotonic() - started_s, 6)
            event("answered", request_id=request_id, status=response.status_code, seconds=seconds)
        return response

    def _check_key(self, request: Request) -> None:
        key = self.config.api_key
        if key is None or not request.url.path.startswith("/v1/"):
            return
        sent = request.headers.get("authorization", "").removeprefix("Bearer ")
        if not hmac.compare_digest(sent.encode(), key.encode()):
            raise api.ApiError(401, "The API key is missing or wrong.", code="invalid_api_key")

    async def generate(self, request: Request) -> Response:
        wish = api.parse(await _body(request), self.config.size)
        number = wish.n or 1
        if not self.ready:
            raise api.rejection(Rejected("the server is not ready", lost=True), 5)
        if self.executor.waiting + number > self.config.max_open:
            raise api.rejection(Rejected("too many requests are waiting", lost=False), self._retry_after_s())
        prompt = self._prompt_of(wish.prompt)
        due_s = api.due_s(request.headers.get("x-argus-due-s")) if self.config.due_times else None
        began = request.headers.get("x-argus-began-s")
        if began is not None and self.executor.clock.held:
            # Else the first request's time on the way would be taken off all others: they would come early.
            self.executor.begin(api.since_s(began) * self.executor.clock.speed)
        seeds = [None if wish.seed is None else wish.seed + i for i in range(number)]
        futures = [self.executor.submit(prompt, wish.prompt, seed, due_s=due_s) for seed in seeds]
        results = await asyncio.gather(*futures, return_exceptions=True)
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

    def _retry_after_s(self) -> int:
        """When a request may do better: once what waits has been served, at the base variant's throughput."""
        engine, catalog = self.executor.engine, self.executor.engine.catalog
        rate = max(engine.workers_up, 1) * catalog.throughput_per_s(catalog.base)
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
        up = self.executor.engine.workers_up
        ready = self.ready and up > 0
        return JSONResponse({"ready": ready, "workers_up": up}, 200 if ready else 503)

    async def metrics(self, request: Request) -> Response:
        return Response(generate_latest(self.telemetry.registry), media_type=CONTENT_TYPE_LATEST)


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


async def serve(service: Service, *, stop: asyncio.Event, on_ready: Callable[[str], None]) -> None:
    """Serve until ``stop`` is set, then answer what is open and end.

    Args:
        on_ready: Told the address as soon as requests are taken.

    Raises:
        OSError: The address cannot be listened on.
        Exception: What the engine failed with, if it did.
    """
    config, executor = service.config, service.executor
    listener = uvicorn.Config(
        service.app(), host=config.host, port=config.port, log_config=None, access_log=False, lifespan="off",
        backlog=2048, timeout_keep_alive=75, timeout_graceful_shutdown=5,
    )  # fmt: skip
    server = _Server(listener)
    socket = await asyncio.to_thread(_bind, config.host, config.port)
    stopped = asyncio.create_task(stop.wait())
    if not await _start(executor, stopped, socket):
        return
    running = asyncio.create_task(server.serve(sockets=[socket]))
    failure = executor.failure
    assert failure is not None
    try:
        while not server.started and not running.done():
            await asyncio.sleep(0.01)
        service.ready = True
        on_ready(f"http://{config.host}:{socket.getsockname()[1]}")
        ends: list[asyncio.Future[Any]] = [stopped, running, failure]
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        service.ready = False
        event("draining", waiting=executor.waiting)
        if not failure.done():
            await executor.drain(config.grace_s)
    finally:
        service.ready = False
        stopped.cancel()
        await executor.stop()
        server.should_exit = True
        await running
        socket.close()
    if failure.done():
        raise failure.result()


async def _start(executor: Executor, stopped: asyncio.Task[Any], socket: Any) -> bool:
    """Start it; False when it was stopped before it was ready. What was there is gone unless it started."""
    starting = asyncio.create_task(executor.start())
    try:
        await asyncio.wait((starting, stopped), return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            starting.result()
            return True
    except BaseException:
        stopped.cancel()
        raise
    finally:
        if not starting.done() or starting.exception() is not None:
            starting.cancel()
            socket.close()
            await executor.stop()
    event("stopped before it was ready")
    return False


def _bind(host: str, port: int) -> Any:
    import socket

    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Only where the protocol is named does asyncio turn Nagle's algorithm off: else answers wait for 40 ms.
    bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    except OSError:
        bound.close()
        raise
    return bound
