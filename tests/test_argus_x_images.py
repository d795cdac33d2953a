"""argus-x with a judge: it makes more than one image where that is worth its price, and only there."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from argus_sim import metrics
from argus_sim.experiment import Experiment
from argus_sim.experiment.basis import assumptions
from argus_sim.experiment.scene import Scene
from argus_sim.experiment.simulate import hindsight, simulate
from argus_sim.profile import Profile
from argus_sim.record import RunRecord
from tests.make_profile import make_profile

NEVER = {"name": "argus-x", "label": "one-image", "params": {"cascade": "never"}}


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Three models that are good at different prompts, of which nothing can be read in the text."""
    made: Profile = make_profile(
        {"heavy": {1: 4.0, 2: 7.0}, "mid": {1: 1.5, 2: 2.5}, "light": {1: 0.7, 2: 1.2}},
        quality={"heavy": 0.9, "mid": 0.85, "light": 0.85},
        spread=0.2,
        prompts=300,
        loads_s={"heavy": 2.0, "mid": 2.0, "light": 2.0},  # short, so that they are repaid at any load
    )
    made.save(tmp_path_factory.mktemp("x") / "profile")
    return str(tmp_path_factory.getbasetemp() / "x0" / "profile")


def scene_of(profile: str, per_min: float, policies: list[Any], **cluster: Any) -> Scene:
    data = {
        "name": "small",
        "profile": profile,
        "traces": [{"name": "t", "generate": {"kind": "poisson", "duration_s": 1800, "rate_per_min": per_min}}],
        "policies": policies,
        "cluster": {"workers": 6} | cluster,
        "slo": {"multiplier": 3},
    }
    return Scene.of(Experiment.check(data, where="test"))


def run(scene: Scene, **options: Any) -> list[RunRecord]:
    trace = scene.trace(scene.experiment.traces[0], 1)
    return [simulate(scene, policy, trace, 1, **options) for policy in scene.experiment.policies]


@pytest.mark.parametrize("load", [0.3, 0.8, 2.0])
def test_a_judge_is_worth_something_at_any_load(profile: str, load: float) -> None:
    scene = scene_of(profile, 60.0 * load * 6 / 3.5, ["argus-x", NEVER, "diffserve", "argus"])
    several, one, diffserve, argus = map(metrics.summarise, run(scene))
    bound = hindsight(scene, scene.trace(scene.experiment.traces[0], 1), 1)
    assert several["quality_yield"] > one["quality_yield"] + 0.01
    # In an overload DiffServe does the same with most requests, light images, and is 0.0066 behind.
    assert several["quality_yield"] > max(diffserve["quality_yield"], argus["quality_yield"]) + 0.005
    assert several["quality_yield"] < bound.quality_yield
    assert several["slo_violation_ratio"] <= one["slo_violation_ratio"] + 0.002


def test_who_waits_for_another_image_is_not_dropped(profile: str) -> None:
    (record,) = run(scene_of(profile, 60.0 * 0.8 * 6 / 3.5, ["argus-x"]))
    again = set(record.attempts.request.tolist())
    assert len(again) > 0.2 * len(record.outcome)
    assert (record.outcome[sorted(again)] <= 1).all()
    assert "an image made before is the best" in {record.reasons[r] for r in record.reason}


def test_a_judge_that_guesses_changes_nothing(profile: str) -> None:
    blind, one = run(scene_of(profile, 90.0, ["argus-x", NEVER], discriminator={"correlation": 0.0}))
    for column in ("variant", "finish_s", "outcome"):
        assert np.array_equal(getattr(blind, column), getattr(one, column), equal_nan=True)
    assert not len(blind.attempts.request)


def test_without_a_judge_it_makes_one_image(profile: str) -> None:
    """As on a live server, which has none yet."""
    alone, one = run(scene_of(profile, 90.0, ["argus-x", NEVER]), judge=False)
    assert np.array_equal(alone.finish_s, one.finish_s, equal_nan=True)
    scene = scene_of(profile, 90.0, ["argus-x"])
    (config,) = scene.experiment.policies
    assert scene.policy(config, 1).judges
    assert not scene.policy(config, 1, judge=False).judges


def test_a_report_says_who_has_a_judge(profile: str) -> None:
    assert any(
        "discriminator of argus-x" in what for what, _ in assumptions(scene_of(profile, 90.0, ["argus-x"]))
    )
    assert not assumptions(scene_of(profile, 90.0, [NEVER]))


def test_a_better_judge_makes_better_images(profile: str) -> None:
    found = [
        metrics.summarise(run(scene_of(profile, 60.0, ["argus-x"], discriminator={"correlation": r}))[0])
        for r in (0.0, 0.5, 1.0)
    ]
    blind, good, perfect = (summary["quality_yield"] for summary in found)
    assert blind + 0.01 < good < perfect - 0.01
