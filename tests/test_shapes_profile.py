"""The shipped profiles `shapes-cpu` and `shapes-cpu-fast`: measured, and show what Argus lives on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from argus_sim.experiment import Experiment
from argus_sim.experiment.basis import provenance_rows
from argus_sim.experiment.scene import Scene
from argus_sim.profile import Profile
from calibration.figures import affinity_shares

TOLERANCE = 0.05


@pytest.fixture(scope="module")
def profile() -> Profile:
    return Profile.load("shapes-cpu")


def test_everything_is_measured(profile: Profile) -> None:
    assert len(profile.prompts) == 400
    kinds = {part.kind for table in profile.tables for part in profile.provenance_of(table)}
    assert kinds == {"measured"}
    assert np.isfinite(profile.quality()).all()


def test_most_prompts_do_with_less_than_the_base_and_some_do_not(profile: Profile) -> None:
    shares = affinity_shares(profile, "SM", TOLERANCE)
    assert 1.0 - shares[0] >= 0.4
    assert shares[0] >= 0.1


@pytest.mark.parametrize("strategy", ["AC", "SM", "STEPS", "DEEPCACHE"])
def test_the_mean_score_falls_with_the_level(profile: Profile, strategy: str) -> None:
    ladder = list(profile.ladder(strategy))
    assert (np.diff(np.nanmean(profile.quality(), axis=0)[ladder]) < 0).all()
    assert (np.diff([profile.latency(v, 1).p50_s for v in ladder]) < 0).all()


def test_skipping_steps_takes_what_the_parts_predict(profile: Profile) -> None:
    predicted = {
        name: values["ratio"]
        for part in profile.manifest.generator["merged"]
        for name, values in part["models"].get("shapes-large", {}).get("skipping_predicted", {}).items()
    }
    assert len(predicted) == 5
    assert all(0.95 <= ratio <= 1.05 for ratio in predicted.values())


def test_a_similar_cached_prompt_keeps_more_quality(profile: Profile) -> None:
    """Prompts in four groups by the similarity of their neighbour: the last keeps more than the first."""
    similarity = profile.similarity()
    assert similarity is not None
    deepest = profile.variant_id("shapes-large/ac-25")
    kept = profile.quality_relative_to_base()[:, deepest]
    order = np.argsort(similarity, kind="stable")
    groups = [kept[part].mean() for part in np.array_split(order, 4)]
    assert groups[-1] > groups[0] + 0.02
    assert np.corrcoef(similarity, kept)[0, 1] > 0.05


def test_the_shipped_experiment_rests_on_it() -> None:
    experiment = Experiment.load(Path(__file__).parents[1] / "experiments" / "shapes.yaml")
    scene = Scene.of(experiment)
    assert scene.profile.manifest.name == "shapes-cpu"
    assert scene.slo_s == pytest.approx(3 * scene.catalog.mean_s[scene.catalog.base][1])


def test_the_fast_machine_differs_in_nothing_but_its_times(profile: Profile) -> None:
    """And not by one factor: it is a kind of its own."""
    fast = Profile.load("shapes-cpu-fast")
    assert set(fast.measured_summary().values()) == {"measured"}
    assert [v.name for v in fast.variants] == [v.name for v in profile.variants]
    np.testing.assert_array_equal(fast.quality(), profile.quality())
    ratios = [
        profile.latency(v, size).mean_s / fast.latency(v, size).mean_s
        for v in range(len(profile.variants))
        for size in profile.batch_sizes(v)
    ]
    assert 1.4 < min(ratios) < 1.55
    assert 1.9 < max(ratios) < 2.05


def test_the_experiment_on_two_kinds_of_machines_rests_on_both() -> None:
    experiment = Experiment.load(Path(__file__).parents[1] / "experiments" / "heterogeneous.yaml")
    (point,) = [point for point in experiment.points() if point.name.endswith("7slow_4fast")]
    scene = Scene.of(point.experiment)
    assert [(kind.name, kind.workers, kind.hardware.manifest.name) for kind in scene.kinds] == [
        ("slow", 7, "shapes-cpu"),
        ("fast", 4, "shapes-cpu-fast"),
    ]
    kinds = [kind for what, kind, _ in provenance_rows(scene) if not what.startswith("trace ")]
    assert set(kinds) == {"measured"}
