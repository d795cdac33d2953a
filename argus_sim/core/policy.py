"""What a policy is to the engine: five questions that it answers and two things that it hears.

The engine is written against these classes; a policy's author imports them from :mod:`argus_sim.policies.base`.

A policy never gets the simulator, the host or what only hindsight knows. It is given a :class:`Setup` before
the run and an immutable :class:`~argus_sim.core.view.ClusterView` with each question, and answers with values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, model_validator

from argus_sim.core.affinity import QualityPredictor
from argus_sim.core.catalog import Catalog
from argus_sim.core.view import ClusterView
from argus_sim.domain import BatchResult, CacheHit, Request, VariantId


class Route(NamedTuple):
    """Serve the request as this variant. ``reason`` ends up in the report."""

    variant: VariantId
    reason: str


@dataclass(frozen=True, slots=True)
class Refuse:
    """Do not serve the request. (No tuple: one with the same words as an ``AskCache`` would equal it.)"""

    reason: str


class AskCache(NamedTuple):
    """Look the prompt up first, then ask again: ``request.hit`` will be set."""

    reason: str


class Again(NamedTuple):
    """A cascade: make another image and keep this one.

    Attributes:
        route: What makes the next image.
        keep: Whose image, of those made so far, the request gets if the next one cannot be made in time.
    """

    route: Route
    keep: VariantId


class Keep(NamedTuple):
    """A cascade: the image that this variant made before, and that was kept, is the answer."""

    variant: VariantId
    reason: str


class Wait(NamedTuple):
    """Leave the batch to fill up, until this time at the latest."""

    until_s: float


Decision = Route | Refuse | AskCache
#: What a cascade may say of an image; None: it is good enough. Who answers ``Route`` throws the image away.
Verdict = Route | Again | Keep | None

#: What one worker serves: variants that all run on the same model.
Serves = tuple[VariantId, ...]


class Plan(NamedTuple):
    """What each worker (by index) is to serve from now on. A model that it does not hold must be loaded."""

    serves: tuple[Serves, ...]
    reason: str


class Params(BaseModel):
    """Base of the parameters of a policy: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="after")
    def _looks_between_plans(self) -> Self:
        """``monitor_s`` and ``period_s``, where a policy has both: see :class:`Policy`."""
        monitor_s, period_s = (getattr(self, name, None) for name in ("monitor_s", "period_s"))
        if monitor_s is not None and period_s is not None and monitor_s > period_s:
            raise ValueError(
                f"monitor_s is {monitor_s:g} s, longer than the {period_s:g} s of period_s; "
                "it is for looks between plans"
            )
        return self


@dataclass(frozen=True)
class Setup:
    """What a policy may know before the run.

    Attributes:
        catalog: Latencies and load times by kind of GPU (``catalog.kinds``, ``catalog.of_worker(w)``), and mean
            qualities.
        workers: How many there are.
        slo_s: The deadline of a request after its arrival.
        rng: The policy's own stream of random numbers.
        predictor: Predicts quality from a prompt's text; trained on the training prompts only.
        future_s: float64[n], when all requests will arrive: only where the experiment says ``forecast: perfect``.
        judged: float64[T, V], what the discriminator says of an image of each training prompt (the rows of
            ``predictor.observed``) by each variant; None where the cluster has none.
    """

    catalog: Catalog
    workers: int
    slo_s: float
    rng: np.random.Generator
    predictor: QualityPredictor
    future_s: npt.NDArray[np.float64] | None = None
    judged: npt.NDArray[np.float64] | None = None


class Policy:
    """Base class. A published system is one subclass in one file, found by the entry point of its name.

    Class attributes:
        name: How experiments call it.
        Params: Its parameters.
        forecasts: Whether it can do with a perfect forecast (``Setup.future_s``).
        mixes: Whether it tells GPUs of several kinds apart (``catalog.kinds``); else it gets no such cluster.
        predicts: Whether it looks at ``Setup.predictor``, so that a perfect one makes a difference.
    """

    name: ClassVar[str]
    Params: ClassVar[type[Params]] = Params
    forecasts: ClassVar[bool] = False
    mixes: ClassVar[bool] = True
    predicts: ClassVar[bool] = False

    def __init__(self, setup: Setup, params: Any) -> None:
        self.setup = setup
        self.params = params

    @property
    def period_s(self) -> float | None:
        """How often :meth:`plan` is called; None for only at the start and when membership changes.

        The parameter of that name, where the policy has one, like the next two.
        """
        period_s: float | None = getattr(self.params, "period_s", None)
        return period_s

    @property
    def monitor_s(self) -> float | None:
        """How often :meth:`monitor` is called; None for never."""
        monitor_s: float | None = getattr(self.params, "monitor_s", None)
        return monitor_s

    @property
    def tick_s(self) -> float | None:
        """How often the host is to call ``Engine.tick``: the shorter of the two, None for never."""
        return min((s for s in (self.monitor_s, self.period_s) if s is not None), default=None)

    @property
    def max_batch(self) -> int | None:
        """No batch is larger than this; None for the largest of the profile. Asked once, before the start."""
        max_batch: int | None = getattr(self.params, "max_batch", None)
        return max_batch

    @property
    def constant(self) -> Decision | None:
        """The decision that every request gets, where there is only one: :meth:`route` is then not called.

        Asked once, before the first arrival.
        """
        return None

    def plan(self, view: ClusterView) -> Plan:
        """Which variants each worker serves."""
        raise NotImplementedError(f"{type(self).__name__} does not define plan: what each worker serves")

    def monitor(self, view: ClusterView) -> bool:
        """True to be asked for a plan at once (demand jumped, say)."""
        return False

    def route(self, request: Request, view: ClusterView) -> Decision:
        """Which variant a request gets, or a refusal."""
        raise NotImplementedError(f"{type(self).__name__} does not define route: which variant a request gets")

    def batch(self, queue: Sequence[int], variant: VariantId, worker: int, view: ClusterView) -> int | Wait:
        """How many of the waiting requests (rows, oldest first) to run now.

        The default takes as many as fill a profiled batch size. The engine's fast path knows that this method
        was not overridden, so an override is only called where there is one.
        """
        timings = self.setup.catalog.of_worker(worker)
        return timings.fit[variant][min(len(queue), timings.max_batch[variant])]

    @classmethod
    def may_judge(cls, params: Any) -> bool:
        """Whether the policy wants a discriminator, where there is one: it is a cascade."""
        return cls.review is not Policy.review

    @property
    def judges(self) -> bool:
        """Whether :meth:`review` is called, and the host needs a discriminator. Asked once, before the start."""
        return self.may_judge(self.params)

    def review(self, request: Request, variant: VariantId, confidence: float, view: ClusterView) -> Verdict:
        """A cascade: whether an image is good enough, or what to do about it.

        Args:
            request: Whose image it is; ``request.images`` are those that were kept before.
            variant: What made it.
            confidence: What the discriminator says of it, in [0, 1]; 1 is best.
            view: The cluster.
        """
        return None

    def observe(self, result: BatchResult) -> None:
        """Feedback: a batch ended. Only called where it is overridden."""

    def observe_cache(self, hit: CacheHit) -> None:
        """Feedback: the cache answered. Only called where it is overridden."""
