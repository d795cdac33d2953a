"""A cascade that keeps its images: which one a request gets, and when."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from argus_sim.core.cascade import KEPT
from argus_sim.core.commands import Deliver, Reject, WakeUp
from argus_sim.core.engine import Engine
from argus_sim.core.floor import PolicyError
from argus_sim.core.gallery import Gallery
from argus_sim.domain import Outcome, Request
from argus_sim.policies.base import Again, Keep, Route, Verdict
from tests.make_cascade import HEAVY, LIGHT, LightFirst, light_and_heavy
from tests.make_profile import make_profile

PROFILE = make_profile({"heavy": {1: 4.0}, "light": {1: 1.0}})


class Better(LightFirst):
    """An image under 0.5 is followed by a heavy one, and the better of the two is the answer."""

    def review(self, request: Request, variant: int, confidence: float, view: Any) -> Verdict:
        self.shown = request.images
        if variant == LIGHT:
            return Again(Route(HEAVY, "again"), LIGHT) if confidence < 0.5 else None
        (_, light), *_ = request.images
        return Keep(LIGHT, "it was better") if light > confidence else None


def engine_of(slo_s: float = 1e9, arrivals: int = 1, policy: type[LightFirst] = Better, **options: Any) -> Engine:
    engine = light_and_heavy(PROFILE, policy, np.zeros(arrivals), slo_s, **options)
    for row in range(arrivals):
        engine.arrive(0.0, row)
    return engine


def columns(engine: Engine) -> dict[str, Any]:
    found = engine.log.columns(np.array(engine.requests.deadline_s))
    return {name: found[name].tolist() for name in ("variant", "outcome", "start_s", "finish_s")}  # type: ignore[literal-required]


@pytest.mark.parametrize(("second", "variant"), [(0.9, HEAVY), (0.1, LIGHT)])
def test_the_better_image_is_delivered(second: float, variant: int) -> None:
    engine = engine_of()
    wake, _ = engine.batch_done(1.0, 0, [0.3])
    assert wake == WakeUp(1e9)
    found = engine.batch_done(5.0, 1, [second])
    assert engine.policy.shown == ((LIGHT, 0.3),)  # type: ignore[attr-defined]
    assert list(found) == ([] if variant == HEAVY else [Deliver(0, LIGHT)])
    start_s = 1.0 if variant == HEAVY else 5.0
    assert columns(engine) == {
        "variant": [variant],
        "outcome": [Outcome.ON_TIME],
        "start_s": [start_s],
        "finish_s": [5.0],
    }
    # The image that nobody gets is work passed on, and so is one that is given away later than it was made.
    assert engine.cascade.passed_on_s == pytest.approx(1.0 if variant == HEAVY else 5.0)
    assert len(engine.log.attempts().request) == (1 if variant == HEAVY else 2)
    assert not len(engine.cascade.gallery)
    assert engine.is_idle()


def test_what_would_be_dropped_gets_the_image_it_has() -> None:
    """Of two that want the heavy model one waits for 4 s, and could not make its deadline then."""
    engine = engine_of(slo_s=8.0, arrivals=2)
    engine.batch_done(1.0, 0, [0.3])
    engine.batch_done(2.0, 0, [0.3])
    assert Deliver(1, LIGHT) in engine.batch_done(5.0, 1, [0.9])
    assert columns(engine)["variant"] == [HEAVY, LIGHT]
    assert columns(engine)["outcome"] == [Outcome.ON_TIME, Outcome.ON_TIME]
    assert engine.log.reasons[engine.log.reason[1]] == KEPT


def test_nobody_waits_beyond_the_deadline_for_a_better_image() -> None:
    engine = engine_of(slo_s=4.5, arrivals=2)
    engine.batch_done(0.4, 0, [0.3])
    commands = engine.batch_done(0.8, 0, [0.3])
    assert commands == [WakeUp(4.5)]
    assert list(engine.woken(4.4)) == []
    assert list(engine.woken(4.5)) == [Deliver(1, LIGHT)]
    engine.batch_done(4.5, 1, [0.9])
    assert columns(engine)["finish_s"] == [4.5, 4.5]
    assert engine.is_idle()


def test_the_image_survives_the_workers() -> None:
    engine = engine_of()
    engine.batch_done(1.0, 0, [0.3])
    engine.worker_lost(2.0, 0)
    found = engine.worker_lost(3.0, 1)
    assert list(found) == [Deliver(0, LIGHT)]
    assert not any(isinstance(command, Reject) for command in found)
    assert columns(engine)["outcome"] == [Outcome.ON_TIME]


def test_only_what_was_kept_can_be_delivered() -> None:
    class Wrong(Better):
        def review(self, request: Request, variant: int, confidence: float, view: Any) -> Verdict:
            return Keep(HEAVY, "there is none")

    engine = engine_of(policy=Wrong)
    with pytest.raises(PolicyError, match="but kept no such image"):
        engine.batch_done(1.0, 0, [0.3])


def test_a_gallery() -> None:
    gallery = Gallery()
    gallery.keep(3, LIGHT, 0.4, 70, LIGHT)
    gallery.keep(3, HEAVY, 0.2, 80, LIGHT)
    assert gallery.images(3) == ((LIGHT, 0.4), (HEAVY, 0.2))
    assert gallery.take(3, 5) is None
    assert (list(gallery), gallery.images(4)) == ([3], ())
    assert gallery.take(3) == (LIGHT, 70)
    assert gallery.take(3) is None
    with pytest.raises(KeyError):
        gallery.keep(3, LIGHT, 0.4, 70, HEAVY)
