"""Simulated clusters for tests: the real ones, with as little around them as they need."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from argus_sim.core.batching import DropRule
from argus_sim.core.outcomes import OutcomeColumns
from argus_sim.core.requests import Requests
from argus_sim.policies.base import Policy
from argus_sim.profile import Profile
from argus_sim.simulation.cluster import SimulatedCluster
from argus_sim.simulation.discriminator import Discriminator
from argus_sim.simulation.environment import Environment
from argus_sim.simulation.network import SimulatedCache
from argus_sim.simulation.service import LoadTimes, ServiceTimes
from tests.make_engine import NEVER, make_engine, make_policy, make_requests

Floats = npt.NDArray[np.float64]


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
    env: Environment | None = None,
) -> Served:
    """A plain queue on ``workers`` servers: policy ``static``, one variant, batches of one, nothing dropped.

    Args:
        profile: Of one variant with batch size 1.
        service: Service times, or float64[n] with that of each request.
    """
    if not isinstance(service, ServiceTimes):
        service = ServiceTimes([{1: service.tolist()}], range(len(service)))
    policy = make_policy("static", profile, workers, queue_limit=queue_limit)
    cluster = make_cluster(profile, policy, make_requests(arrival_s), drop=NEVER, service=service, env=env)
    cluster.run()
    assert cluster.finished
    return Served(arrival_s, columns_of(cluster))


def make_cluster(
    profile: Profile,
    policy: Policy,
    requests: Requests,
    *,
    drop: DropRule | None = None,
    staleness_s: float = 0.0,
    cache: SimulatedCache | None = None,
    discriminator: Discriminator | None = None,
    service: ServiceTimes | None = None,
    env: Environment | None = None,
    max_wait_s: float = float("inf"),
    seed: int = 0,
) -> SimulatedCluster:
    """A simulated cluster, ready to run, whose requests reach it as they arrive."""
    return SimulatedCluster(
        make_engine(policy, requests, drop=drop, staleness_s=staleness_s),
        np.array(requests.arrival_s),
        service or ServiceTimes.of(profile, len(requests), np.random.default_rng([seed, 1])),
        LoadTimes(profile, np.random.default_rng([seed, 2])),
        cache,
        discriminator,
        env=env,
        max_wait_s=max_wait_s,
    )


def columns_of(cluster: SimulatedCluster) -> OutcomeColumns:
    """How the requests of a finished run ended."""
    return cluster.engine.log.columns(np.array(cluster.engine.requests.deadline_s))
