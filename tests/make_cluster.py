"""Engines and simulated clusters for tests: the real ones, with as little around them as they need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from argus_sim.core import affinity
from argus_sim.core.batching import DropRule
from argus_sim.core.catalog import Catalog
from argus_sim.core.engine import Engine
from argus_sim.core.outcomes import OutcomeColumns
from argus_sim.core.requests import Requests
from argus_sim.policies.base import Policy, Setup
from argus_sim.policies.registry import find
from argus_sim.profile import Profile
from argus_sim.simulation.cluster import SimulatedCluster
from argus_sim.simulation.environment import Environment
from argus_sim.simulation.network import SimulatedCache
from argus_sim.simulation.service import LoadTimes, ServiceTimes

Floats = npt.NDArray[np.float64]

NEVER = DropRule("never")


def make_requests(
    arrival_s: Sequence[float] | Floats, slo_s: float | Sequence[float] = 1e9, prompt: Sequence[int] | None = None
) -> Requests:
    """Columns of requests; all of prompt 0 by default."""
    arrival = np.asarray(arrival_s, dtype=np.float64)
    prompts = np.zeros(len(arrival)) if prompt is None else np.asarray(prompt)
    return Requests.of(arrival, arrival + np.asarray(slo_s), prompts.astype(np.int32))


def make_policy(
    name: str, profile: Profile, workers: int, *, slo_s: float = 12.0, seed: int = 0, **params: Any
) -> Policy:
    """An installed policy that knows the qualities of all prompts (learning them from text takes a while)."""
    kind = find(name)
    rng = np.random.default_rng(seed)
    setup = Setup(Catalog.of(profile), workers, slo_s, rng, affinity.perfect(profile))
    return kind(setup, kind.Params(**params))


@dataclass(frozen=True)
class Served:
    """How a queue served: one entry per request; NaN for what was refused."""

    arrival_s: Floats
    columns: OutcomeColumns

    @property
    def wait_s(self) -> Floats:
        return self.columns["start_s"] - self.arrival_s


def run_queue(
    profile: Profile,
    arrival_s: Floats,
    service: ServiceTimes | Floats,
    workers: int,
    *,
    queue_limit: int | None = None,
    drop: DropRule = NEVER,
    env: Environment | None = None,
) -> Served:
    """A plain queue on ``workers`` servers: policy ``static``, one variant, batches of one.

    Args:
        profile: Of one variant with batch size 1.
        service: Service times, or float64[n] with that of each request.
    """
    n = len(arrival_s)
    if not isinstance(service, ServiceTimes):
        service = ServiceTimes([{1: service.tolist()}], range(n))
    policy = make_policy("static", profile, workers, queue_limit=queue_limit)
    engine = Engine(Catalog.of(profile), policy, make_requests(arrival_s), workers, drop=drop)
    SimulatedCluster(engine, arrival_s, service, env=env).run()
    assert engine.is_idle()
    return Served(arrival_s, engine.log.columns(np.full(n, np.inf)))


def make_cluster(
    profile: Profile,
    policy: Policy,
    requests: Requests,
    workers: int,
    *,
    drop: DropRule | None = None,
    staleness_s: float = 0.0,
    cache: SimulatedCache | None = None,
    service: ServiceTimes | None = None,
    env: Environment | None = None,
    max_wait_s: float = float("inf"),
    seed: int = 0,
) -> SimulatedCluster:
    """A simulated cluster, ready to run, whose requests reach it as they arrive."""
    engine = Engine(Catalog.of(profile), policy, requests, workers, drop=drop, staleness_s=staleness_s)
    return SimulatedCluster(
        engine,
        np.array(requests.arrival_s),
        service or ServiceTimes.of(profile, len(requests), np.random.default_rng([seed, 1])),
        LoadTimes(profile, np.random.default_rng([seed, 2])),
        cache,
        env=env,
        max_wait_s=max_wait_s,
    )


def columns_of(cluster: SimulatedCluster) -> OutcomeColumns:
    """How the requests of a finished run ended."""
    return cluster.engine.log.columns(np.array(cluster.engine.requests.deadline_s))
