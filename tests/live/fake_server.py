"""A server of the images API that is no good, within the test's own process."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from aiohttp import web

#: Answers the request of this row, where its body says which it is; else of this number, as they come.
Answer = Callable[[int, web.Request], Awaitable[web.StreamResponse]]


async def image(number: int, request: web.Request) -> web.StreamResponse:
    """A success that says nothing beside the image."""
    return web.json_response({"created": 1, "data": [{"b64_json": "aGk="}]})


def refusing(status: int, message: str) -> Answer:
    """Refuses everything, in the API's format."""

    async def answer(number: int, request: web.Request) -> web.StreamResponse:
        return web.json_response({"error": {"message": message}}, status=status)

    return answer


@asynccontextmanager
async def fake(
    answer: Answer = image, workers_up: object = None, speed: object = 1
) -> AsyncIterator[tuple[str, list[dict[str, object]]]]:
    """Its address, and the bodies that it is sent.

    Args:
        answer: To each request for images.
        workers_up, speed: What ``/readyz`` says; without the first there is no such page.
    """
    bodies: list[dict[str, object]] = []

    async def generate(request: web.Request) -> web.StreamResponse:
        body = await request.json()
        bodies.append(body)
        return await answer(body.get("row", len(bodies) - 1), request)

    app = web.Application()
    app.router.add_post("/v1/images/generations", generate)
    if workers_up is not None:

        async def readyz(request: web.Request) -> web.StreamResponse:
            return web.json_response({"workers_up": workers_up, "speed": speed})

        app.router.add_get("/readyz", readyz)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}", bodies
    finally:
        await runner.cleanup()
