"""What a client of the OpenAI images API sends and is sent: bodies of requests, images, reasons for none."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from typing import Any

import aiohttp

PATH = "/v1/images/generations"


def body(prompt: str, fields: Mapping[str, Any] | None = None) -> bytes:
    """The body of a request for one image."""
    return json.dumps({"prompt": prompt, "n": 1, **(fields or {})}, ensure_ascii=False).encode()


def image_in(answer: bytes | bytearray) -> bytes | None:
    """The first image that an answer holds; None where it holds none, but a link."""
    try:
        return base64.b64decode(json.loads(answer)["data"][0]["b64_json"], validate=True)
    except (ValueError, LookupError, TypeError, binascii.Error):
        return None


def reason_of(status: int, body: bytes) -> str:
    """What the server says of a request that it does not serve; of a foreign one the status alone may be left."""
    try:
        message = json.loads(body)["error"]["message"]
    except (ValueError, LookupError, TypeError):
        message = None
    if not isinstance(message, str):
        return f"HTTP {status}"
    return (
        message.removeprefix("Not served: ")[:120] if status in (429, 503) else f"HTTP {status}: {message[:120]}"
    )


def why(error: BaseException) -> str:
    """A failure without addresses or numbers that differ from request to request."""
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, aiohttp.ClientConnectorError | ConnectionRefusedError):
        return "no connection"
    if isinstance(error, aiohttp.ServerDisconnectedError | ConnectionResetError | aiohttp.ClientOSError):
        return "the connection broke"
    return f"no sound answer ({type(error).__name__})"
