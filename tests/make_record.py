"""A small seeded builder of run records: a toy cluster, so that metrics and plots have something real to eat.

It is not the simulator and shares no code with it: first come, first served, one queue, batches of up to two,
late requests dropped at dispatch, a level chosen from the backlog.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

import numpy as np

from argus_sim.domain import Outcome
from argus_sim.record import Attempts, FaultRecord, LoadRecord, PlanRecord, RunRecord

VARIANTS = ("sdxl", "sdxl/ac-10", "sdxl/ac-20", "small-sd", "tiny-sd")
SERVICE_S = (4.2, 3.4, 2.5, 1.8, 1.1)
QUALITY = (0.985, 0.965, 0.93, 0.90, 0.84)
REASONS = ("least backlog", "deadline cannot be met", "queue full", "worker lost")


def make_record(
    seed: int = 0,
    *,
    requests: int = 3_000,
    duration_s: float = 4 * 3600.0,
    workers: int = 4,
    levels: Sequence[int] = (0, 1, 2, 3, 4),
    swing: float = 0.7,
    slo_s: float = 12.6,
    faults: bool = True,
) -> RunRecord:
    """A run whose load swings by ``swing`` about its mean, served by the given levels, best first."""
    rng = np.random.default_rng(seed)
    arrival = _arrivals(rng, requests, duration_s, swing)
    start, finish = np.full((2, requests), math.nan)
    variant, worker = np.full((2, requests), -1, dtype=np.int32)
    size, reason = np.zeros((2, requests), dtype=np.int32)
    outcome = np.full(requests, Outcome.REJECTED, dtype=np.int8)
    lost_at = 0.6 * duration_s if faults else math.inf
    free = [0.0] * workers
    busy = 0.0
    queue: deque[int] = deque()
    attempts: list[tuple[float, ...]] = []
    noise = rng.lognormal(0.0, 0.05, requests)
    refused = rng.random(requests) < 0.002
    following = 0
    while following < requests or queue:
        who = min(range(workers), key=free.__getitem__)
        now = free[who]
        if not queue:
            now = max(now, arrival[following])
        while following < requests and arrival[following] <= now:
            if refused[following]:
                reason[following] = 2
            else:
                queue.append(following)
            following += 1
        level = levels[min(len(levels) - 1, len(queue) // workers)]
        batch: list[int] = []
        service_s = SERVICE_S[level]
        while queue and len(batch) < 2:
            row = queue.popleft()
            # A prompt in a hundred is misjudged and finishes late; the others are dropped in time.
            if now + service_s > arrival[row] + slo_s and row % 100:
                outcome[row], reason[row] = Outcome.LOST, 1
            else:
                batch.append(row)
        if not batch:
            free[who] = now
            continue
        service_s *= noise[batch[0]] * (1.0 if len(batch) == 1 else 1.21)
        end = now + service_s
        if who == 0 and now <= lost_at < end:
            outcome[batch], reason[batch] = Outcome.LOST, 3
            attempts += [(row, now, lost_at, who, level, len(batch), 0, True) for row in batch]
            busy += lost_at - now
            free[who] = lost_at + 600.0
        else:
            start[batch], finish[batch], variant[batch], worker[batch] = now, end, level, who
            size[batch] = len(batch)
            outcome[batch] = np.where(end <= arrival[batch] + slo_s, Outcome.ON_TIME, Outcome.LATE)
            busy += service_s
            free[who] = end
    served = outcome <= Outcome.LATE
    mean = np.asarray(QUALITY)[variant]
    spread = np.where(variant == 0, 0.01, 0.03)
    quality = np.clip(rng.normal(mean, spread), 0.0, 1.0)
    return RunRecord(
        variants=VARIANTS,
        prompts=("a red cube", "a blue ball", "two cats"),
        reasons=REASONS,
        arrival_s=arrival,
        start_s=start,
        finish_s=finish,
        deadline_s=arrival + slo_s,
        prompt=np.arange(requests, dtype=np.int32) % 3,
        variant=variant,
        worker=worker,
        batch_size=size,
        outcome=outcome,
        reason=reason,
        relative_quality=np.where(served, quality, math.nan),
        quality_relative_to_base=np.where(served, quality / QUALITY[0], math.nan),
        duration_s=duration_s,
        workers=workers,
        busy_s=busy,
        attempts=of_attempts(attempts),
        loads=[LoadRecord(who, "sdxl", 0.0, 8.0) for who in range(workers)],
        plans=[
            PlanRecord(0.0, "start", {"sdxl": workers}),
            PlanRecord(duration_s / 2 + 30.0, "demand rose", {"sdxl": 1, "tiny-sd+small-sd": workers - 1}),
        ],
        faults=[FaultRecord(lost_at, 0, "lost"), FaultRecord(lost_at + 600.0, 0, "joined")] if faults else [],
    )


def of_attempts(rows: Sequence[tuple[float, ...]]) -> Attempts:
    """Attempts written by hand: ``(request, start, finish, worker, variant, batch size, reason, lost)``."""
    columns = np.array(rows, dtype=np.float64).reshape(len(rows), 8).T
    request, start_s, finish_s, *numbers, lost = columns
    codes = [column.astype(np.int32) for column in numbers]
    return Attempts(request.astype(np.int32), start_s, finish_s, *codes, lost.astype(np.bool_))


def _arrivals(rng: np.random.Generator, requests: int, duration_s: float, swing: float) -> np.ndarray:
    """Two humps a trace, by inverting the cumulative rate at sorted uniforms."""
    at_s = np.linspace(0.0, duration_s, 2_000)
    rate = 1.0 - swing * np.cos(4 * np.pi * at_s / duration_s)
    total = np.concatenate(([0.0], np.cumsum((rate[1:] + rate[:-1]) / 2)))
    return np.interp(np.sort(rng.random(requests)) * total[-1], total, at_s)


def of_requests(
    rows: Sequence[tuple[float, float, float, float, int, int, Outcome, float]],
    *,
    duration_s: float = 120.0,
    workers: int = 2,
    busy_s: float = 0.0,
    attempts: Sequence[tuple[float, ...]] = (),
    plans: Sequence[PlanRecord] = (),
    faults: Sequence[FaultRecord] = (),
) -> RunRecord:
    """A record written by hand: ``(arrival, start, finish, deadline, variant, worker, outcome, quality)``."""
    table = np.array([tuple(map(float, row)) for row in rows], dtype=np.float64).reshape(len(rows), 8)
    arrival, start, finish, deadline, variant, worker, outcome, quality = table.T.copy()
    return RunRecord(
        variants=VARIANTS,
        prompts=("a red cube",),
        reasons=("by hand",),
        arrival_s=arrival,
        start_s=start,
        finish_s=finish,
        deadline_s=deadline,
        prompt=np.zeros(len(rows), dtype=np.int32),
        variant=variant.astype(np.int32),
        worker=worker.astype(np.int32),
        batch_size=(variant >= 0).astype(np.int32),
        outcome=outcome.astype(np.int8),
        reason=np.zeros(len(rows), dtype=np.int32),
        relative_quality=quality,
        quality_relative_to_base=quality * 1.1,
        duration_s=duration_s,
        workers=workers,
        busy_s=busy_s,
        attempts=of_attempts(attempts),
        plans=list(plans),
        faults=list(faults),
    )
