"""What-if changes of a profile."""

from __future__ import annotations

import re

import numpy as np
import pytest

from argus_sim.core import affinity
from argus_sim.errors import InputError
from argus_sim.profile import Profile
from argus_sim.profile.changes import Batching, ProfileChanges
from tests.make_profile import ladder, make_profile


def test_nothing_to_change_is_the_same_profile() -> None:
    profile = ladder()
    assert ProfileChanges().apply(profile) is profile


def test_latencies_and_loads() -> None:
    profile = make_profile({"big": {1: 4.0, 2: 6.0}, "small": {1: 1.0}}, std_s=0.1, distribution="lognormal")
    changed = ProfileChanges(latency_factor=0.5, load_factor=3.0).apply(profile)
    for v in range(2):
        for b in profile.batch_sizes(v):
            was, now = profile.latency(v, b), changed.latency(v, b)
            assert (now.mean_s, now.std_s) == (was.mean_s / 2, was.std_s / 2)
            assert now.p99_s == pytest.approx(was.p99_s / 2)
    assert changed.load_samples_s("big").tolist() == [30.0]
    np.testing.assert_array_equal(changed.quality(), profile.quality())


@pytest.mark.parametrize("gain", [1.0, 1.65, 2.2, 4.0])
def test_batching_has_the_gain_it_says(gain: float) -> None:
    changed = ProfileChanges(batching=Batching(gain=gain)).apply(ladder())
    for v in range(len(changed.variants)):
        assert changed.batch_sizes(v) == (1, 2, 4)
        one, two, four = (changed.latency(v, b).mean_s for b in (1, 2, 4))
        assert one == ladder().latency(v, 1).mean_s
        assert 4 * one / four == pytest.approx(gain)
        assert two - one == pytest.approx((four - one) / 3)


def test_batches_of_one_and_odd_largest_ones() -> None:
    assert ProfileChanges(batching=Batching(largest=1)).apply(ladder()).batch_sizes(0) == (1,)
    changed = ProfileChanges(batching=Batching(gain=2, largest=6)).apply(ladder())
    assert changed.batch_sizes(0) == (1, 2, 4, 6)
    assert 6 * changed.latency(0, 1).mean_s / changed.latency(0, 6).mean_s == pytest.approx(2.0)
    with pytest.raises(InputError, match=r"batches of 2 cannot gain 3; at most 2 is allowed"):
        ProfileChanges(batching=Batching(gain=3, largest=2)).apply(ladder())


def test_the_spread_of_quality_scales_around_the_means() -> None:
    profile = make_profile({"big": {1: 4.0}, "big/ac-25": {1: 2.0}}, spread=0.02, prompts=200)
    was = profile.quality_relative_to_base()
    for factor in (0.0, 0.5, 2.0):
        now = ProfileChanges(quality_spread=factor).apply(profile).quality_relative_to_base()
        assert now.mean(axis=0) == pytest.approx(was.mean(axis=0))
        assert now.std(axis=0) == pytest.approx(factor * was.std(axis=0), abs=1e-12)
        assert now[:, 0].tolist() == [1.0] * 200
    wild = ProfileChanges(quality_spread=200.0).apply(profile)
    assert wild.quality().min() == 0.0
    said = r"spread of quality over prompts x 200, \d+ qualities that would be below 0 are 0"
    assert re.search(said, str(wild.provenance_of("quality")[0].derived))
    assert "below 0" not in str(ProfileChanges(quality_spread=2.0).apply(profile).provenance_of("quality"))


def test_provenance_says_what_was_changed_and_only_that() -> None:
    profile = Profile.load("artefact-a100")
    changed = ProfileChanges(load_factor=10).apply(profile)
    assert changed.measured_summary()["loads"] == "synthetic"
    assert all("load times x 10" in str(part.derived) for part in changed.provenance_of("loads"))
    assert all("mean of five runs" in str(part.derived) for part in changed.provenance_of("loads"))
    for table in ("latency", "quality", "variants"):
        assert changed.provenance_of(table) == profile.provenance_of(table)
    assert changed.digest() != profile.digest()


def test_times_after_a_pause_change_along() -> None:
    profile = make_profile({"big": {1: 4.0, 2: 6.0}}, after_idle_s={"big": {0.5: 5.0}})
    slower = ProfileChanges(latency_factor=2.0).apply(profile)
    assert [(idle_s, found.mean_s) for idle_s, found in slower.after_idle(0, 1)] == [(0.5, 10.0)]
    assert "latencies x 2" in str(slower.provenance_of("after_idle")[0].derived)
    batched = ProfileChanges(batching=Batching(gain=1.5, largest=2)).apply(profile)
    assert batched.after_idle(0, 1) == profile.after_idle(0, 1)
    assert batched.provenance_of("after_idle") == profile.provenance_of("after_idle")
    # Those of sizes that are no longer measured ones are gone; with them the table, if it had no others.
    tables = {name: profile.table(name) for name in profile.tables}
    tables["after_idle"]["batch_size"] = 2
    assert (
        "after_idle"
        not in ProfileChanges(batching=Batching(largest=2))
        .apply(Profile.from_tables(profile.manifest, tables))
        .tables
    )


@pytest.mark.parametrize("accuracy", [0.0, 0.4, 0.8, 1.0])
def test_a_blurred_predictor_has_the_accuracy_it_says(accuracy: float) -> None:
    profile = make_profile({"big": {1: 4.0}, "big/ac-25": {1: 2.0}}, spread=0.02, prompts=4000)
    truth = profile.relative_quality()
    blurred = affinity.blurred(profile, accuracy, np.random.default_rng(0))
    for v in range(2):
        assert np.corrcoef(blurred.predicted[:, v], truth[:, v])[0, 1] == pytest.approx(accuracy, abs=0.05)
        assert blurred.predicted[:, v].mean() == pytest.approx(truth[:, v].mean(), abs=0.002)
        assert blurred.predicted[:, v].std() == pytest.approx(truth[:, v].std(), rel=0.05)
    if accuracy == 1.0:
        np.testing.assert_allclose(blurred.predicted, affinity.perfect(profile).predicted)
