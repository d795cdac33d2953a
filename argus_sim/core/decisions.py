"""What a policy's decisions mean to the engine."""

from __future__ import annotations

from argus_sim.core.catalog import Catalog
from argus_sim.core.floor import PolicyError, is_variant
from argus_sim.core.outcomes import OutcomeLog
from argus_sim.core.policy import AskCache, Decision, Refuse, Route
from argus_sim.domain import VariantId

#: In place of a variant: the decision was a refusal, or a question to the cache.
REFUSED, ASKED = -1, -2


class Decisions(dict[Decision, tuple[VariantId, int]]):
    """Decision -> its variant (or REFUSED, ASKED) and the code of its reason, worked out once for each.

    Args:
        policy: The name of the policy, for what is wrong with its decisions.
        catalog: Its variants are what may be routed to.
        log: Where reasons have their codes.
    """

    def __init__(self, policy: str, catalog: Catalog, log: OutcomeLog) -> None:
        super().__init__()
        self._policy, self._catalog, self._log = policy, catalog, log

    def __missing__(self, decision: Decision) -> tuple[VariantId, int]:
        """Raises :class:`PolicyError` for what is no decision."""
        match decision:
            case Route(variant=variant) if is_variant(variant, len(self._catalog.variants)):
                pass
            case Refuse():
                variant = REFUSED
            case AskCache():
                variant = ASKED
            case _:
                raise PolicyError(
                    f"policy {self._policy!r} answered {decision!r}; allowed are Refuse, AskCache and "
                    f"Route to a variant from 0 to {len(self._catalog.variants) - 1}"
                )
        known = self[decision] = (variant, self._log.code(decision.reason))
        return known
