"""The OpenAI images API as data: what a request may say, and what an error looks like."""

from __future__ import annotations

import base64
import json
import math
import secrets
import time
from collections import OrderedDict
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from argus_sim.live.seams import Rejected, Served

#: Longest prompt (the API's own limit) and body.
MAX_PROMPT = 32_000
MAX_BODY_BYTES = 256 * 1024
MAX_IMAGES = 10
MAX_SEED = 2**62


#: Time may begin with a request that is due so late at the most, seconds: all ticks until then happen at once.
LATEST_FIRST_S = 3600.0


class ApiError(Exception):
    """An answer in the API's error format."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.headers = status, code, headers or {}
        kind = (
            "invalid_request_error" if status < 429 else "rate_limit_error" if status == 429 else "server_error"
        )
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}


class ImagesRequest(BaseModel):
    """Fields that this server knows; others that the API has are ignored, as clients send them by default.

    ``seed`` is not the API's: the same prompt with the same seed gives the same noise. The second of `n` images
    has the next one.
    """

    model_config = ConfigDict(extra="ignore", strict=True)

    prompt: Annotated[str, Field(min_length=1, max_length=MAX_PROMPT)]
    n: Annotated[int, Field(ge=1, le=MAX_IMAGES)] | None = None
    size: str | None = None
    response_format: Literal["url", "b64_json"] | None = None
    user: Annotated[str, Field(max_length=512)] | None = None
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] | None = None


def parse(body: bytes, size: str) -> ImagesRequest:
    """The request in a body; :class:`ApiError` (400) says what is wrong with it.

    Args:
        size: The only size of images there is, as ``WIDTHxHEIGHT``.
    """
    try:
        text = body.decode("utf-8")
        content = json.loads(text)
        json.dumps(content, ensure_ascii=False).encode("utf-8")  # half a surrogate pair is no text
    except (ValueError, RecursionError):
        raise ApiError(400, "The body is not JSON in UTF-8.", code="invalid_json") from None
    try:
        request = ImagesRequest.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = str(first["loc"][0]) if first["loc"] else None
        raise ApiError(400, f"{where or 'body'}: {first['msg']}", param=where, code="invalid_value") from None
    if request.size not in (None, "auto", size):
        message = f"size: {request.size!r} is not supported; allowed are 'auto' and {size!r}"
        raise ApiError(400, message, param="size", code="invalid_value")
    return request


def due_s(header: str | None, *, first: bool) -> float | None:
    """The time at which a client says that its request was due; :class:`ApiError` (400) where that is none.

    Args:
        first: Time begins with this request.
    """
    if header is None:
        return None
    try:
        value = float(header)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        message = f"x-argus-due-s: {header[:40]!r} is no time in seconds"
        raise ApiError(400, message, param="x-argus-due-s", code="invalid_value")
    if first and value > LATEST_FIRST_S:
        message = f"x-argus-due-s: the first request is due within {LATEST_FIRST_S:g} s, found {value:g}"
        raise ApiError(400, message, param="x-argus-due-s", code="invalid_value")
    return value


def since_s(header: str) -> float:
    """Real seconds since a client on this machine began, which says so by the machine's monotonic clock.

    Raises:
        ApiError: It is no time of this clock within the last minute (400).
    """
    try:
        since_s = time.monotonic() - float(header)
    except ValueError:
        since_s = math.nan
    if not 0 <= since_s <= 60:
        message = f"x-argus-began-s: {header[:40]!r} is not within the last minute of this machine's clock"
        raise ApiError(400, message, param="x-argus-began-s", code="invalid_value")
    return since_s


def rejection(rejected: Rejected, retry_after_s: int) -> ApiError:
    """What a client is told of a request that will not be served."""
    headers = {"retry-after": str(retry_after_s)}
    if rejected.arrival_s is not None:
        headers["x-argus-arrival-s"] = f"{rejected.arrival_s:.6f}"
    if not rejected.lost:
        return ApiError(429, f"Not served: {rejected.reason}", code="rate_limit_exceeded", headers=headers)
    return ApiError(503, f"Not served: {rejected.reason}", code="server_unavailable", headers=headers)


class ImageStore:
    """Images behind links, the oldest forgotten first.

    Args:
        max_bytes: The most that is kept.
    """

    def __init__(self, max_bytes: int = 256 << 20) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._images: OrderedDict[str, bytes] = OrderedDict()

    def put(self, image: bytes) -> str:
        """Keep an image; returns its name, which nobody can guess."""
        name = secrets.token_urlsafe(16)
        self._images[name] = image
        self._bytes += len(image)
        while self._bytes > self._max_bytes and len(self._images) > 1:
            self._bytes -= len(self._images.popitem(last=False)[1])
        return name

    def get(self, name: str) -> bytes | None:
        return self._images.get(name)


def answer(created: int, results: list[Served], *, links: list[str] | None) -> dict[str, Any]:
    """The body of a success: links where there are some, else the images themselves."""
    data: list[dict[str, str]]
    if links is not None:
        data = [{"url": link} for link in links]
    else:
        data = [{"b64_json": base64.b64encode(r.image).decode("ascii")} for r in results]
    return {"created": created, "data": data}
