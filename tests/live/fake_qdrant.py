"""Enough of Qdrant's REST API for one index, searched exactly; it may be out of order for a while."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

from argus_sim.core.nearest import ExactIndex


class FakeQdrant(ThreadingHTTPServer):
    """A server on a free port of loopback."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.collections: dict[str, ExactIndex] = {}
        self.is_out = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def answer(self, method: str, path: list[str], body: dict[str, Any]) -> Any:
        name = path[1]
        match method, path[2:]:
            case "PUT", []:
                self.collections[name] = ExactIndex(body["vectors"]["size"])
                return True
            case "DELETE", []:
                return self.collections.pop(name, None) is not None
            case "PUT", ["points"]:
                for point in body["points"]:
                    self.collections[name].add(point["id"], np.array(point["vector"], np.float32))
                return {"operation_id": 0, "status": "completed"}
            case "POST", ["points", "delete"]:
                for key in body["points"]:
                    self.collections[name].remove(key)
                return {"operation_id": 0, "status": "completed"}
            case "POST", ["points", "query"]:
                key, score = self.collections[name].nearest(np.array(body["query"]["nearest"], np.float32))
                return {"points": [{"id": key, "version": 0, "score": score}]}
        raise KeyError(path)


class _Handler(BaseHTTPRequestHandler):
    server: FakeQdrant

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        path = self.path.partition("?")[0].strip("/").split("/")
        try:
            if self.server.is_out:
                raise KeyError("out of order")
            status, content = 200, {"result": self.server.answer(self.command, path, json.loads(body or b"{}"))}
        except Exception as error:
            status, content = 500, {"result": str(error)}
        data = json.dumps({**content, "status": "ok", "time": 0.0}).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_PUT = do_POST = do_DELETE = _serve

    def log_message(self, *_: Any) -> None:
        pass


@contextlib.contextmanager
def fake_qdrant() -> Iterator[FakeQdrant]:
    """Running while it is wanted."""
    server = FakeQdrant()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
