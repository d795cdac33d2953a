"""The shipped profile `shapes-cpu`: that it is measured throughout, and shows what Argus lives on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from argus_sim.experiment import Experiment
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
