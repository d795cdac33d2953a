"""What tests of cascades share: a light and a heavy model, one worker each, and every request light first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy.typing as npt

from argus_sim.core.engine import Engine
from argus_sim.domain import Request
from argus_sim.policies.base import Plan, Route
from argus_sim.policies.static import Static
from argus_sim.profile import Profile
from tests.make_engine import make_engine, make_requests, make_setup

HEAVY, LIGHT = 0, 1


class LightFirst(Static):
    """What to do with the images is for the test to say, in ``review``."""

    def plan(self, view: Any) -> Plan:
        return Plan(((LIGHT,), (HEAVY,)), "one of each")

    @property
    def constant(self) -> Route:
        return Route(LIGHT, "first")

    def route(self, request: Request, view: Any) -> Route:
        return self.constant


def light_and_heavy(
    profile: Profile,
    policy: type[LightFirst],
    arrival_s: Sequence[float] | npt.NDArray[Any],
    slo_s: float = 1e9,
    **options: Any,
) -> Engine:
    """An engine that has started, with these requests still to arrive."""
    made = policy(make_setup(profile, 2), Static.Params(placement={"light": 1, "heavy": 1}))  # type: ignore[call-arg]
    engine = make_engine(made, make_requests(arrival_s, slo_s), **options)
    engine.start()
    return engine
