"""Transcripts: everything that happened to an engine and what it answered, one line of JSON each."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from typing import Any

from argus_sim.core.commands import Command, RunBatch
from argus_sim.core.engine import Engine
from argus_sim.domain import CacheHit


def plain_commands(commands: Sequence[Command]) -> list[list[Any]]:
    """Commands as JSON has them."""
    plain = []
    for command in commands:
        values = command.as_tuple() if isinstance(command, RunBatch) else tuple(command)
        plain.append([type(command).__name__, *(list(v) if isinstance(v, tuple) else v for v in values)])
    return plain


def plain_hit(hit: CacheHit) -> list[float | None]:
    """A cache's answer as JSON has it, which knows no NaN."""
    similarity = None if math.isnan(hit.similarity) else hit.similarity
    return [similarity, hit.max_skipped_steps, hit.latency_s]


def replay(lines: Iterable[str], engine: Engine) -> int:
    """Feed a transcript to a fresh engine of the same policy and seed; returns how many happenings it had.

    Raises:
        ValueError: The engine answers otherwise than it did; names the line.
    """
    number = 0
    for number, text in enumerate(lines, start=1):
        line: dict[str, Any] = json.loads(text)
        then = line.pop("commands", None)
        ((what, details),) = line.items()
        if what == "cache_answered":
            similarity, steps, latency_s = details[2]
            known = math.nan if similarity is None else similarity
            details = [*details[:2], CacheHit(known, int(steps), latency_s)]
        answer = getattr(engine, what)(*details)
        if then is not None and plain_commands(answer) != then:
            raise ValueError(f"line {number}: {what} led to {then}, and now to {plain_commands(answer)}")
    return number
