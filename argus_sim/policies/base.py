"""What an author of a policy imports from.

The classes stand, documented, in :mod:`argus_sim.core.policy`: the engine is written against them. Here they are
passed on, beside :func:`keep_or_move`, which turns counts into a :class:`Plan`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from argus_sim.core.catalog import Catalog
from argus_sim.core.policy import (
    Again,
    AskCache,
    Decision,
    Keep,
    Params,
    Plan,
    Policy,
    Refuse,
    Route,
    Serves,
    Setup,
    Verdict,
    Wait,
)
from argus_sim.core.view import ClusterView

__all__ = [
    "Again",
    "AskCache",
    "Decision",
    "Keep",
    "Params",
    "Plan",
    "Policy",
    "Refuse",
    "Route",
    "Serves",
    "Setup",
    "Verdict",
    "Wait",
    "keep_or_move",
]


def keep_or_move(
    wanted: dict[Serves, int] | Sequence[dict[Serves, int]],
    view: ClusterView,
    catalog: Catalog,
    reason: str,
    *,
    each_its_own: bool = False,
) -> Plan:
    """Turn counts into a placement with the fewest model loads.

    Workers that already serve what is wanted keep it; then those that hold the right model change what they
    serve, which is free; the rest load, for what they were meant for already where that is wanted. Lost workers
    keep their entry, so that they come back as they were.

    Args:
        wanted: Number of workers for each thing to serve; must sum to the number of workers that are up. One
            for all workers, or one for each kind of ``catalog.kinds``.
        each_its_own: A worker that has yet to load keeps what it is meant for, even if one more has to load then.
    """
    up = [w for w in range(view.workers) if view.is_up(w)]
    serves: list[Serves | None] = [None] * view.workers
    if isinstance(wanted, dict):
        _assign(wanted, up, serves, view, catalog, each_its_own)
        any_serve = next(iter(wanted))
    else:
        for kind, of_kind in enumerate(wanted):
            _assign(of_kind, [w for w in up if view.kind(w) == kind], serves, view, catalog, each_its_own)
        any_serve = next(serve for of_kind in wanted for serve in of_kind)
    return Plan(tuple((view.serves(w) or any_serve) if s is None else s for w, s in enumerate(serves)), reason)


def _assign(
    wanted: dict[Serves, int],
    workers: Sequence[int],
    serves: list[Serves | None],
    view: ClusterView,
    catalog: Catalog,
    each_its_own: bool,
) -> None:
    """Fill in what each of these workers serves."""
    left = dict(wanted)
    if sum(left.values()) != len(workers):
        raise ValueError(f"{sum(left.values())} workers wanted, {len(workers)} are up")

    def settle(suits: Callable[[int, Serves], bool]) -> None:
        for worker in workers:
            if serves[worker] is None:
                for serve, count in left.items():
                    if count and suits(worker, serve):
                        serves[worker] = serve
                        left[serve] -= 1
                        break

    def holds(worker: int, serve: Serves) -> bool:
        return view.holds(worker) == catalog.model[serve[0]]

    # A worker may be meant for what it has yet to load: then another that has the model comes first.
    settle(lambda worker, serve: view.serves(worker) == serve and (each_its_own or holds(worker, serve)))
    settle(holds)
    settle(lambda worker, serve: view.serves(worker) == serve)
    settle(lambda worker, serve: True)
