"""How long a policy's plans take on this machine, for reports.

The simulated clock knows nothing of it. A problem that a policy's solver had before, in this run or in another
of the same process, takes it no time.
"""

from __future__ import annotations

import time

from argus_sim.core.policy import Plan, Policy
from argus_sim.core.view import ClusterView


def time_plans(policy: Policy) -> list[float]:
    """From now on, the seconds that each of the policy's plans takes are added to the list that this returns."""
    took_s: list[float] = []
    plan = policy.plan

    def timed(view: ClusterView) -> Plan:
        start_s = time.perf_counter()
        try:
            return plan(view)
        finally:
            took_s.append(time.perf_counter() - start_s)

    policy.plan = timed  # type: ignore[method-assign]
    return took_s
