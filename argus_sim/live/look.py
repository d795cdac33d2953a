"""What a server says of itself from outside: its ``/healthz`` and ``/metrics``, read over HTTP."""

from __future__ import annotations

import http.client
import math
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass

from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from argus_sim.errors import InputError

#: A server that says more than this about itself is not one of ours.
_MAX_BYTES = 4 << 20
_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class Look:
    """A server at one moment. Counts are since it started; variants are in the order of its profile.

    Attributes:
        at_s: When, on this process's monotonic clock.
        images: Variant -> images made, late ones too.
        waiting: Variant -> requests that wait for it now.
        latency: Variant -> upper bounds (s, the server's clock) and how many images took at most that long.
        violations: late, rejected, lost -> requests.
        workers: idle, busy, loading, lost -> workers now.
        loads: Models put onto workers.
        hits, misses: Answers of the approximate cache.
    """

    at_s: float
    images: dict[str, int]
    waiting: dict[str, int]
    latency: dict[str, dict[float, float]]
    violations: dict[str, int]
    workers: dict[str, int]
    loads: int
    hits: int
    misses: int

    @property
    def answered(self) -> int:
        """Requests that are over, in whatever way."""
        return sum(self.images.values()) + self.violations["rejected"] + self.violations["lost"]

    @property
    def violated(self) -> int:
        return sum(self.violations.values())

    def latency_s(self, share: float, variant: str | None = None) -> float:
        """The time within which this share of the images was made, from the server's buckets.

        Within a bucket images are taken to be spread evenly; NaN without images, infinite past the last bound.

        Args:
            share: In [0, 1].
            variant: One of them; all by default.
        """
        counts: dict[float, float] = {}
        for of, table in self.latency.items():
            for bound, count in table.items():
                counts[bound] = counts.get(bound, 0.0) + count * (variant in (None, of))
        return _quantile(share, counts)


def look(url: str) -> Look:
    """Read a server.

    Args:
        url: Its address, e.g. ``http://127.0.0.1:8000``.

    Raises:
        InputError: Nobody answers there, or it is not a server of ours.
    """
    try:
        host = urllib.parse.urlsplit(url).hostname
    except ValueError:
        host = None
    if not host:
        raise InputError("is no address; one looks like http://127.0.0.1:8000", where=url)
    health = _get(url, "/healthz")
    families = {family.name: family for family in _families(url, _get(url, "/metrics"))}
    if health.strip() != "ok" or not {"argus_images", "argus_queue_depth", "argus_workers"} <= set(families):
        raise _not_ours(url)
    images = _by(families["argus_images"], "variant")
    violations = _by(families.get("argus_slo_violations"), "kind")
    cache = _by(families.get("argus_cache_lookups"), "answer")
    waiting = _by(families["argus_queue_depth"], "variant")
    return Look(
        at_s=time.monotonic(),
        images={variant: images.get(variant, 0) for variant in waiting},
        waiting=waiting,
        latency=_buckets(families.get("argus_latency_seconds")),
        violations={kind: violations.get(kind, 0) for kind in ("late", "rejected", "lost")},
        workers=_by(families["argus_workers"], "status"),
        loads=sum(_by(families.get("argus_model_loads"), "model").values()),
        hits=cache.get("hit", 0),
        misses=cache.get("miss", 0),
    )


class Gone(InputError):
    """Nobody answers at the address (any more)."""


def _not_ours(url: str) -> InputError:
    return InputError("is not a server of argus-sim serve: its /healthz and /metrics say otherwise", where=url)


def _get(url: str, path: str) -> str:
    try:
        with urllib.request.urlopen(url.rstrip("/") + path, timeout=_TIMEOUT_S) as response:
            body: bytes = response.read(_MAX_BYTES + 1)
    except urllib.error.HTTPError as error:
        error.close()
        raise _not_ours(url) from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", error)
        reason = getattr(reason, "strerror", None) or reason
        raise Gone(f"no server answers there ({reason}); argus-sim serve starts one", where=url) from None
    try:
        return body.decode("utf-8") if len(body) <= _MAX_BYTES else ""
    except UnicodeDecodeError:
        raise _not_ours(url) from None


def _families(url: str, text: str) -> list[Metric]:
    try:
        return list(text_string_to_metric_families(text))
    except (ValueError, KeyError, IndexError):
        raise _not_ours(url) from None


def _by(family: Metric | None, label: str) -> dict[str, int]:
    """A counter's or gauge's values by one of its labels, summed over the others."""
    found: dict[str, int] = {}
    for sample in family.samples if family is not None else ():
        if not sample.name.endswith("_created") and label in sample.labels:
            found[sample.labels[label]] = found.get(sample.labels[label], 0) + int(sample.value)
    return found


def _buckets(family: Metric | None) -> dict[str, dict[float, float]]:
    found: dict[str, dict[float, float]] = {}
    for sample in family.samples if family is not None else ():
        if sample.name.endswith("_bucket"):
            found.setdefault(sample.labels["variant"], {})[float(sample.labels["le"])] = sample.value
    return found


def _quantile(share: float, counts: Mapping[float, float]) -> float:
    bounds = sorted(counts)
    total = counts[bounds[-1]] if bounds else 0.0
    if not total:
        return math.nan
    below, before = 0.0, 0.0
    for bound in bounds:
        if counts[bound] >= share * total:
            inside = counts[bound] - before
            part = (share * total - before) / inside if inside else 0.0
            return bound if math.isinf(bound) else below + part * (bound - below)
        below, before = bound, counts[bound]
    return math.inf
