"""What an operator sees of a server: Prometheus metrics and logs of one JSON object per line."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import threading
from collections.abc import Iterator
from queue import Full, Queue
from typing import Any, Final

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from argus_sim.core.engine import Engine
from argus_sim.domain import Variant
from argus_sim.live.seams import Listener, Served

log = logging.getLogger("argus_sim.live")

#: How long the last lines may take, real seconds.
_LAST_LINES_S: Final = 1.0
_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2, 3, 4, 6, 8, 10, 15, 20, 30, 60, 120)


class JsonLines(logging.Formatter):
    """A record as one line of JSON; what is given as ``extra={"fields": {...}}`` is part of it."""

    def format(self, record: logging.LogRecord) -> str:
        line = {"time": self.formatTime(record), "level": record.levelname.lower(), "event": record.getMessage()}
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=True, default=str)


class LogWriter(logging.Handler):
    """Writes lines of JSON in a thread of its own: where nobody reads them, it is the thread that waits for ever.

    What there is no room for is dropped, and counted in a line of its own as soon as there is.

    Args:
        to: The file descriptor; by default stderr. Its Python object is left alone: the end of the program would
            wait for whoever holds its lock.
        room: For so many lines.
    """

    def __init__(self, to: int = 2, room: int = 10_000) -> None:
        super().__init__()
        self.setFormatter(JsonLines())
        self._to = to
        self._lines: Queue[str | None] = Queue(room)
        self._dropped = 0
        self._thread: threading.Thread | None = threading.Thread(target=self._write, daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._lines.put_nowait(self.format(record))
        except Full:
            self._dropped += 1

    def close(self) -> None:
        """Ends once all has been written, or after a moment."""
        thread, self._thread = self._thread, None
        if thread is not None:
            with contextlib.suppress(Full):
                self._lines.put_nowait(None)
            thread.join(_LAST_LINES_S)
        super().close()

    def _write(self) -> None:
        with contextlib.suppress(OSError):  # nobody will read any more
            while (line := self._lines.get()) is not None:
                left = f"{line}\n".encode()
                while left:
                    left = left[os.write(self._to, left) :]
                dropped, self._dropped = self._dropped, 0
                if dropped:
                    event("lines dropped", level=logging.WARNING, lines=dropped)


def event(name: str, *, level: int = logging.INFO, **fields: Any) -> None:
    """Log something that happened."""
    log.log(level, name, extra={"fields": fields})


class Telemetry(Listener):
    """The metrics of a server; times are in seconds of its clock."""

    def __init__(self, variants: tuple[Variant, ...]) -> None:
        self.registry = registry = CollectorRegistry()
        self._variants = {v.name: v for v in variants}
        self._names = [v.name for v in variants]
        self._images = Counter(
            "argus_images", "Images finished.", ("variant", "strategy", "level"), registry=registry
        )
        self._violations = Counter(
            "argus_slo_violations", "Requests late, rejected or lost.", ("kind",), registry=registry
        )
        self._latency = Histogram(
            "argus_latency_seconds", "Arrival to finish.", ("variant",), buckets=_SECONDS, registry=registry
        )
        self._service = Histogram(
            "argus_batch_seconds", "Time a batch ran.", ("variant",), buckets=_SECONDS, registry=registry
        )
        self._sizes = Histogram(
            "argus_batch_size",
            "Images in a batch.",
            ("variant",),
            buckets=(1, 2, 4, 8, 16, 32),
            registry=registry,
        )
        self._loads = Counter("argus_model_loads", "Models put onto workers.", ("model",), registry=registry)
        self._cache = Counter(
            "argus_cache_lookups", "Approximate cache look-ups.", ("answer",), registry=registry
        )
        self._workers = Counter("argus_worker_events", "Workers lost and joined.", ("what",), registry=registry)
        self.http = Counter("argus_http_responses", "HTTP responses.", ("status",), registry=registry)

    def watch(self, engine: Engine) -> None:
        """Report the engine's queues and workers whenever somebody asks."""
        self.registry.register(_EngineCollector(engine, self._names))

    def served(self, result: Served) -> None:
        variant = self._variants[result.variant]
        self._images.labels(variant.name, variant.strategy, str(variant.level)).inc()
        self._latency.labels(variant.name).observe(result.finish_s - result.arrival_s)
        if not result.on_time:
            self._violations.labels("late").inc()

    def rejected(self, reason: str, lost: bool) -> None:
        self._violations.labels("lost" if lost else "rejected").inc()

    def batch(self, variant: int, size: int, seconds: float) -> None:
        self._service.labels(self._names[variant]).observe(seconds)
        self._sizes.labels(self._names[variant]).observe(size)

    def loaded(self, model: str, seconds: float) -> None:
        self._loads.labels(model).inc()
        event("model loaded", model=model, seconds=seconds)

    def worker(self, worker: int, what: str, why: str) -> None:
        self._workers.labels(what).inc()
        event(f"worker {what}", level=logging.WARNING if what == "lost" else logging.INFO, worker=worker, why=why)

    def cache(self, hit: bool) -> None:
        self._cache.labels("hit" if hit else "miss").inc()


class _EngineCollector(Collector):
    def __init__(self, engine: Engine, names: list[str]) -> None:
        self._engine, self._names = engine, names

    def collect(self) -> Iterator[GaugeMetricFamily]:
        depth = GaugeMetricFamily("argus_queue_depth", "Requests that wait.", labels=["variant"])
        for name, queue in zip(self._names, self._engine.queues, strict=True):
            depth.add_metric([name], len(queue))
        yield depth
        status = GaugeMetricFamily("argus_workers", "Workers by what they do.", labels=["status"])
        counts: dict[str, int] = dict.fromkeys(("idle", "busy", "loading", "lost"), 0)
        for worker in self._engine.workers:
            counts[worker.status.name.lower()] += 1
        for name, number in counts.items():
            status.add_metric([name], number)
        yield status
