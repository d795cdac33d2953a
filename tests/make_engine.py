"""Engines for tests, with as little around them as they need; nothing of SimPy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from argus_sim.core import affinity
from argus_sim.core.batching import DropRule
from argus_sim.core.catalog import Catalog
from argus_sim.core.engine import Engine
from argus_sim.core.requests import Requests
from argus_sim.policies.base import Policy, Setup
from argus_sim.policies.registry import find
from argus_sim.profile import Profile

NEVER = DropRule("never")


def make_requests(
    arrival_s: Sequence[float] | npt.NDArray[Any],
    slo_s: float | Sequence[float] = 1e9,
    prompt: Sequence[int] | None = None,
) -> Requests:
    """Columns of requests; all of prompt 0 by default."""
    arrival = np.asarray(arrival_s, dtype=np.float64)
    prompts = np.zeros(len(arrival)) if prompt is None else np.asarray(prompt)
    return Requests.of(arrival, arrival + np.asarray(slo_s), prompts.astype(np.int32))


def make_setup(profile: Profile, workers: int, *, slo_s: float = 12.0, seed: int = 0) -> Setup:
    """What a policy may know, and the qualities of all prompts (learning them from text takes a while)."""
    rng = np.random.default_rng(seed)
    return Setup(Catalog.of(profile), workers, slo_s, rng, affinity.perfect(profile))


def make_policy(
    name: str, profile: Profile, workers: int, *, slo_s: float = 12.0, seed: int = 0, **params: Any
) -> Policy:
    """An installed policy."""
    kind = find(name)
    return kind(make_setup(profile, workers, slo_s=slo_s, seed=seed), kind.Params(**params))


def make_engine(
    policy: Policy, requests: Requests, *, drop: DropRule | None = None, staleness_s: float = 0.0
) -> Engine:
    """An engine with the workers and the catalog that its policy was set up for."""
    setup = policy.setup
    return Engine(setup.catalog, policy, requests, setup.workers, drop=drop, staleness_s=staleness_s)
