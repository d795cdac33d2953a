"""A request that runs twice: the engine's part, the discriminator, and DiffServe's program."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm, rankdata, spearmanr

from argus_sim.core.catalog import Catalog
from argus_sim.core.commands import RunBatch
from argus_sim.core.engine import Engine
from argus_sim.core.floor import PolicyError
from argus_sim.domain import BatchResult, Request
from argus_sim.errors import InputError
from argus_sim.policies.base import Plan, Refuse, Route
from argus_sim.policies.diffserve import Cascade, _quantile, choose_light, relieve, solve_cascade
from argus_sim.profile import Profile
from argus_sim.simulation.discriminator import RECORDED_CORRELATION, Discriminator, DiscriminatorConfig
from tests.make_cascade import HEAVY, LIGHT, LightFirst, light_and_heavy
from tests.make_cluster import columns_of, make_cluster
from tests.make_engine import NEVER, make_engine, make_policy, make_requests, make_setup
from tests.make_profile import make_profile


@pytest.fixture(scope="module")
def profile() -> Profile:
    return make_profile({"heavy": {1: 4.0, 2: 6.0}, "light": {1: 1.0, 2: 1.5}}, spread=0.05)


class Twice(LightFirst):
    """An image under 0.5 is made again by the heavy model."""

    def review(self, request: Request, variant: int, confidence: float, view: Any) -> Route | None:
        return Route(self.target, "again") if variant == LIGHT and confidence < 0.5 else None

    target = HEAVY


def engine_of(profile: Profile, arrivals: int, policy: type[LightFirst] = Twice) -> Engine:
    return light_and_heavy(profile, policy, np.arange(arrivals, dtype=float), drop=NEVER)


def test_only_bad_images_run_again(profile: Profile) -> None:
    engine = engine_of(profile, 3)
    assert engine.judges
    for row in range(3):
        engine.arrive(0.0, row)
    (first,) = [w for w in engine.workers if w.batch.rows]
    assert (first.index, first.batch.rows) == (0, [0])
    # Request 0 is good; 1 and 2 then run together.
    (command,) = engine.batch_done(1.0, 0, [0.9])
    assert isinstance(command, RunBatch)
    assert command.as_tuple() == (0, LIGHT, (1, 2))
    (command,) = engine.batch_done(2.5, 0, [0.2, 0.5])
    assert command.as_tuple() == (1, HEAVY, (1,))
    assert engine.cascade.passed_on_s == pytest.approx(0.75)  # its half of the light batch
    assert not engine.is_idle()
    assert not engine.batch_done(6.5, 1, [0.0])  # the heavy image is final, whatever it looks like
    assert engine.is_idle()
    columns = engine.log.columns(np.array(engine.requests.deadline_s))
    assert columns["variant"].tolist() == [LIGHT, HEAVY, LIGHT]
    assert columns["batch_size"].tolist() == [1, 1, 2]
    assert columns["finish_s"].tolist() == [1.0, 6.5, 2.5]
    assert [engine.log.reasons[r] for r in columns["reason"]] == ["first", "again", "first"]


def test_a_lost_worker_s_second_run_is_tried_again(profile: Profile) -> None:
    engine = engine_of(profile, 1)
    engine.arrive(0.0, 0)
    engine.batch_done(1.0, 0, [0.0])
    engine.worker_lost(2.0, 1)
    assert engine.workers[0].batch.rows == [0]  # from the start, on the light model
    engine.worker_joined(2.5, 1)
    engine.model_loaded(3.0, 1)
    engine.batch_done(3.0, 0, [0.0])
    engine.batch_done(7.0, 1, [0.0])
    assert engine.log.columns(np.array([1e9]))["variant"].tolist() == [HEAVY]


def test_a_lost_second_image_is_made_again_by_whoever_still_serves_its_variant(profile: Profile) -> None:
    class Three(Twice):
        def plan(self, view: Any) -> Plan:
            return Plan(((LIGHT,), (HEAVY,), (HEAVY,)), "two heavy ones")

    engine = make_engine(
        Three(make_setup(profile, 3), Three.Params()), make_requests(np.arange(1, dtype=float)), drop=NEVER
    )
    engine.start()
    engine.arrive(0.0, 0)
    engine.batch_done(1.0, 0, [0.0])
    (heavy,) = [w.index for w in engine.workers if w.batch.rows]
    engine.worker_lost(2.0, heavy)
    assert [(w.index, w.batch.rows) for w in engine.workers if w.batch.rows] == [(3 - heavy, [0])]
    engine.batch_done(6.0, 3 - heavy, [0.0])
    columns = engine.log.columns(np.array([1e9]))
    assert (columns["variant"].tolist(), columns["finish_s"].tolist()) == ([HEAVY], [6.0])
    assert [engine.log.reasons[r] for r in columns["reason"]] == ["again"]


def test_a_cascade_hears_of_the_batch_that_ran(profile: Profile) -> None:
    """With its size, however many of its images passed."""
    heard: list[BatchResult] = []

    class Listens(Twice):
        def observe(self, result: BatchResult) -> None:
            heard.append(result)

    engine = engine_of(profile, 3, Listens)
    for row in range(3):
        engine.arrive(0.0, row)
    engine.batch_done(1.0, 0, [0.9])
    engine.batch_done(2.5, 0, [0.2, 0.5])
    assert [(result.variant, result.size) for result in heard] == [(LIGHT, 1), (LIGHT, 2)]


def test_a_cascade_needs_confidences(profile: Profile) -> None:
    engine = engine_of(profile, 1)
    engine.arrive(0.0, 0)
    with pytest.raises(ValueError, match="needs a confidence for each of 1 images"):
        engine.batch_done(1.0, 0)
    with pytest.raises(ValueError, match="needs a discriminator"):
        make_cluster(profile, engine.policy, make_requests([0.0]))


def test_a_cascade_can_only_route() -> None:
    class Refuses(Twice):
        def review(self, request: Request, variant: int, confidence: float, view: Any) -> Any:
            return Refuse("no")

    engine = engine_of(make_profile({"heavy": {1: 4.0}, "light": {1: 1.0}}), 1, Refuses)
    engine.arrive(0.0, 0)
    with pytest.raises(PolicyError, match="to an image; allowed are None, Keep"):
        engine.batch_done(1.0, 0, [0.0])


def test_a_cascade_cannot_pass_on_to_the_cache() -> None:
    class ToCache(Twice):
        target = 2

    engine = engine_of(
        make_profile({"heavy": {1: 4.0, 2: 6.0}, "light": {1: 1.0, 2: 1.5}, "heavy/ac-25": {1: 2.0}}), 1, ToCache
    )
    engine.arrive(0.0, 0)
    with pytest.raises(PolicyError, match="a variant that needs no cache"):
        engine.batch_done(1.0, 0, [0.0])


def test_other_policies_are_not_judged(profile: Profile) -> None:
    assert not make_engine(make_policy("clipper-ha", profile, 2), make_requests([0.0])).judges


# -- the discriminator -------------------------------------------------------------------------------------


@pytest.mark.parametrize("correlation", [0.0, 0.7, 1.0])
def test_confidence_is_uniform_and_correlates_as_told(correlation: float) -> None:
    rng = np.random.default_rng(1)
    quality = rng.random((20_000, 2))
    judge = Discriminator(DiscriminatorConfig(correlation=correlation), quality, np.arange(20_000), rng)
    found = np.array(judge.confidence(range(20_000), 1))
    # A uniform sample of this size has decile shares within 0.01 (4.7 standard deviations).
    assert np.histogram(found, bins=10, range=(0, 1))[0] / 20_000 == pytest.approx(np.full(10, 0.1), abs=0.01)
    scores = np.corrcoef(norm.ppf(found), quality[:, 1].argsort().argsort())[0, 1]
    assert spearmanr(found, quality[:, 0]).statistic == pytest.approx(0.0, abs=0.03)
    assert scores == pytest.approx(correlation * 0.977, abs=0.03)  # a normal score against its rank
    # Its luck with two images of a request has nothing in common.
    other = np.array(judge.confidence(range(20_000), 0))
    assert spearmanr(found, other).statistic == pytest.approx(0.0, abs=0.03)


def test_equal_qualities_make_the_judge_no_worse() -> None:
    """As in recorded ratings: half of the images are the best there is, a third share another rating."""
    rng = np.random.default_rng(1)
    quality = np.repeat([1.0, 0.9, 0.8], [10_000, 6_667, 3_333])[:, None] * [1.0, 0.0]
    judge = Discriminator(DiscriminatorConfig(correlation=0.51), quality, np.arange(20_000), rng)
    found = norm.ppf(judge.confidence(range(20_000), 0))
    score = norm.ppf((rankdata(quality[:, 0]) - 0.5) / 20_000)
    assert np.corrcoef(found, score)[0, 1] == pytest.approx(0.51, abs=0.02)  # four standard errors; was 0.45
    assert (found.mean(), found.std()) == pytest.approx((0.0, 1.0), abs=0.03)
    # Nothing tells images apart that are all equally good.
    same = judge.confidence(range(20_000), 1)
    assert spearmanr(same, quality[:, 0]).statistic == pytest.approx(0.0, abs=0.03)


@pytest.mark.data
def test_the_default_is_the_best_recorded_judge(data: Path) -> None:
    """Within a model, normal scores, the second set of raters telling how much noise the first has."""
    folder = data / "quality"
    tifa = pd.read_csv(folder / "tifa160_human_clipscore.csv")
    names = {f"sd{v}dot{w}": f"stable_diffusion_v{v}_{w}" for v, w in ((1, 1), (1, 5), (2, 1))}
    again = pd.read_csv(folder / "dsg_tifa160_likert.csv").rename(columns={"source_id": "prompt_id"})
    again["model"] = again["t2i_model"].replace(
        {"mini-dalle": "mini_dalle", "vq-diffusion": "vq_diffusion", **names}
    )
    images = tifa.merge(again[["model", "prompt_id", "likert_mean"]], on=["model", "prompt_id"])
    assert len(images) == 800
    for column in ("human_mean", "likert_mean"):  # relative to the best image of the prompt
        images[column] /= images.groupby("prompt_id")[column].transform("max")
    images["both"] = (images["human_mean"] + images["likert_mean"]) / 2.0

    def correlation(a: str, b: str) -> float:
        scores = [
            [norm.ppf((rankdata(rows[column]) - 0.5) / len(rows)) for column in (a, b)]
            for _, rows in images[images["model"].isin(names.values())].groupby("model")
        ]
        return float(np.mean([np.corrcoef(*pair)[0, 1] for pair in scores]))

    one = correlation("human_mean", "likert_mean")
    reliability = 2.0 * one / (1.0 + one)  # of the mean of the two
    judges = [c for c in images if c.startswith(("tifa_", "clipscore"))]
    found = {judge: correlation(judge, "both") / reliability**0.5 for judge in judges}
    assert len(found) == 6
    assert max(found, key=lambda judge: found[judge]) == "tifa_mplug-large"
    assert found["tifa_mplug-large"] == pytest.approx(RECORDED_CORRELATION, abs=0.005)
    assert found["clipscore_vitb32"] == pytest.approx(0.33, abs=0.005)
    assert DiscriminatorConfig().correlation == RECORDED_CORRELATION
    # Two images of a prompt are told apart as well as those of different prompts: as if errors were independent.
    ours = images[images["model"].isin(names.values())].copy()
    for column in ("both", "tifa_mplug-large"):
        ours[column] = ours.groupby("model")[column].transform(
            lambda values: norm.ppf((rankdata(values) - 0.5) / len(values))
        )
    judged, quality = (
        ours.pivot(index="prompt_id", columns="model", values=column) for column in ("tifa_mplug-large", "both")
    )
    pairs = list(itertools.combinations(names.values(), 2))
    apart = [np.corrcoef(judged[a] - judged[b], quality[a] - quality[b])[0, 1] for a, b in pairs]
    assert np.mean(apart) == pytest.approx(correlation("tifa_mplug-large", "both"), abs=0.02)


# -- DiffServe ---------------------------------------------------------------------------------------------


def catalog_of(profile: Profile) -> Catalog:
    return Catalog.of(profile)


def test_the_program_defers_as_much_as_fits(profile: Profile) -> None:
    # 6 workers, 2.5/s: batches of 2 need 2.5 x 0.75 -> 2 light workers; 4 heavy ones serve 4 x 2 / 6 = 1.33/s.
    assert solve_cascade(catalog_of(profile), LIGHT, HEAVY, 6, 2.5, 0.0, 12.0) == Cascade(2, 2, 2, 4 / 7.5)
    # At 2/s two workers manage one by one, which is faster.
    assert solve_cascade(catalog_of(profile), LIGHT, HEAVY, 6, 2.0, 0.0, 12.0) == Cascade(2, 1, 2, 4 / 6)
    # A heavy batch of 2 does not fit an SLO of 6 s any more; one by one they serve 4 x 1/4 = 1/s.
    assert solve_cascade(catalog_of(profile), LIGHT, HEAVY, 6, 2.0, 0.0, 6.0) == Cascade(2, 1, 1, 0.5)
    # Nor does anything when requests already wait that long, or when demand exceeds 6 x 1.33/s.
    assert solve_cascade(catalog_of(profile), LIGHT, HEAVY, 6, 2.0, 1.5, 6.0) is None
    assert solve_cascade(catalog_of(profile), LIGHT, HEAVY, 6, 8.1, 0.0, 12.0) is None


def test_the_program_is_optimal() -> None:
    """Against going through every placement and batch size of DiffServe's formulation."""
    rng = np.random.default_rng(4)
    for _ in range(200):
        time_s = {
            name: {b: float(t) for b, t in zip((1, 2, 4), scale * np.sort(rng.uniform(1, 3, 3)), strict=True)}
            for name, scale in (("heavy", 4.0), ("light", 1.0))
        }
        catalog = catalog_of(make_profile(time_s, prompts=2))
        workers, demand, wait_s = int(rng.integers(1, 9)), float(rng.uniform(0.1, 5)), float(rng.uniform(0, 3))
        best = None
        for x1, b1, b2 in itertools.product(range(1, workers + 1), (1, 2, 4), (1, 2, 4)):
            e1, e2 = time_s["light"][b1], time_s["heavy"][b2]
            if x1 * b1 / e1 >= demand - 1e-9 and e1 + e2 + wait_s <= 15.0:
                best = max(best or 0.0, min(1.0, (workers - x1) * b2 / e2 / demand))
        found = solve_cascade(catalog, LIGHT, HEAVY, workers, demand, wait_s, 15.0)
        assert (found is None) == (best is None)
        if found is not None:
            assert found.deferred == pytest.approx(best)


def test_the_default_light_model() -> None:
    wide = make_profile(
        {"big": {1: 9.0}, "mid": {1: 5.0}, "good": {1: 2.0}, "fast": {1: 1.0}},
        quality={"big": 1.0, "mid": 0.99, "good": 0.95, "fast": 0.9},
    )
    assert choose_light(Catalog.of(wide), 0) == 2  # mid is not fast enough
    narrow = make_profile({"big": {1: 3.0}, "mid": {1: 2.0}, "fast": {1: 1.5}})
    assert choose_light(Catalog.of(narrow), 0) == 2
    with pytest.raises(InputError, match="one model only; a cascade needs two"):
        choose_light(Catalog.of(make_profile({"big": {1: 3.0}, "big/ac-25": {1: 1.5}})), 0)


def test_without_an_answer_light_images_come_first(profile: Profile) -> None:
    known = (catalog_of(profile), LIGHT, HEAVY, 8)
    # 2/s and the 30 that wait, within 12 s: 4.5/s need 4 light workers. The others defer 4 x 2 / 6 = 1.33/s of 2,
    assert relieve(*known, 2.0, (30.0, 0.0), 12.0) == Cascade(4, 2, 2, pytest.approx(4 / 6))
    # less what they need for those that wait for them.
    assert relieve(*known, 2.0, (30.0, 8.0), 12.0) == Cascade(4, 2, 2, pytest.approx(2 / 6))
    assert relieve(*known, 2.0, (30.0, 20.0), 12.0) == Cascade(4, 2, 2, 0.0)
    assert relieve(*known, 2.0, (30.0, 0.0), 12.0, 3) == Cascade(3, 2, 2, pytest.approx(5 / 6))
    assert relieve(*known, 20.0, (30.0, 0.0), 12.0) == Cascade(8, 2, 2, 0.0)
    # Two heavy images would take more than half of 11 s, and one after a light one is too late for 4.5 s.
    assert relieve(*known, 2.0, (30.0, 0.0), 11.0).heavy_batch == 1
    assert relieve(*known, 2.0, (0.0, 0.0), 4.5) == Cascade(8, 2, 1, 0.0)


def watching(profile: Profile, workers: int) -> Engine:
    """DiffServe in an engine, with requests at 100/s that have not arrived yet."""
    policy = make_policy("diffserve", profile, workers)
    engine = make_engine(policy, make_requests(np.arange(0.0, 200.0, 0.01), 12.0))
    engine.start()
    return engine


def light_workers(engine: Engine) -> int:
    return sum(worker.serves == (LIGHT,) for worker in engine.workers)


def test_models_change_before_they_have_settled_where_demand_cannot_be_met_otherwise(profile: Profile) -> None:
    engine = watching(profile, 8)
    for second in range(1, 81):
        engine.arrived += 2 if second <= 60 else 6
        engine.tick(float(second))
        if second == 60:
            assert light_workers(engine) == 2
    assert light_workers(engine) >= 5
    for second in range(81, 120):  # back only when settled
        engine.arrived += 2
        engine.tick(float(second))
    assert light_workers(engine) >= 5


def test_one_busy_second_is_no_jump_in_demand(profile: Profile) -> None:
    engine = watching(profile, 8)
    for second in range(1, 56):
        engine.arrived += 9 if second == 53 else 1
        engine.tick(float(second))
    assert engine.policy._demand.forecast_per_s() < 1.5  # type: ignore[attr-defined]


def test_the_wait_for_the_heavy_model_is_counted_in_what_is_deferred(profile: Profile) -> None:
    """Eight that wait for it are 3.8 s of all that arrives, but 6 s of what comes there: more than fits."""
    engine = watching(profile, 6)
    policy: Any = engine.policy
    for second in range(1, 81):
        engine.arrived += 2
        engine.tick(float(second))
        if second == 60:
            assert policy._threshold == pytest.approx(4 / 3 / 2.1, abs=0.01)
            engine.queues[HEAVY].extend(range(8))
    assert policy._threshold == pytest.approx((4 / 3 - 8 / 12) / 2.1, abs=0.01)


def test_nothing_is_deferred_to_a_model_that_still_loads(profile: Profile) -> None:
    engine = watching(profile, 2)
    light, heavy = (next(w.index for w in engine.workers if w.serves == (v,)) for v in (LIGHT, HEAVY))
    engine.worker_lost(1.0, heavy)
    engine.worker_joined(2.0, heavy)
    engine.tick(3.0)
    engine.arrive(3.0, 300)
    engine.batch_done(4.0, light, [0.0])
    assert engine.is_idle()  # the light image is the answer
    engine.model_loaded(12.0, heavy)
    engine.tick(13.0)
    engine.arrive(13.0, 1300)
    (command,) = engine.batch_done(14.0, light, [0.0])
    assert isinstance(command, RunBatch)
    assert command.as_tuple() == (heavy, HEAVY, (1300,))


def test_the_quantile_is_that_of_numpy() -> None:
    rng = np.random.default_rng(0)
    for share in (0.0, 0.5, 1.0, *rng.random(100).tolist()):
        values = rng.random(int(rng.integers(50, 2001)))
        assert _quantile(values, share) == np.quantile(values, share)


def test_a_run_defers_what_the_plan_says(profile: Profile) -> None:
    """At a steady load the heavy model makes the share of images that its workers can."""
    rng = np.random.default_rng(2)
    requests = make_requests(np.cumsum(rng.exponential(0.5, 4000)), 40.0, rng.integers(0, 20, 4000).tolist())
    policy = make_policy("diffserve", profile, 6, slo_s=40.0)
    prompts = np.array(requests.prompt)
    judge = Discriminator(DiscriminatorConfig(), profile.relative_quality(), prompts, np.random.default_rng(3))
    cluster = make_cluster(profile, policy, requests, discriminator=judge)
    cluster.run()
    columns = columns_of(cluster)
    heavy = float((columns["variant"] == HEAVY).mean())
    assert 0.45 < heavy < 4 / 6
    # Relative quality beats that of either choice made blindly at the same share.
    served = columns["variant"] >= 0
    quality = profile.relative_quality()
    prompt = np.array(requests.prompt)
    got = quality[prompt[served], columns["variant"][served]].mean()
    share = float((columns["variant"][served] == HEAVY).mean())
    blind = share * quality[:, HEAVY].mean() + (1 - share) * quality[:, LIGHT].mean()
    assert got > blind + 0.005
    # All time is accounted for: images that were not good enough are not lost from sight.
    assert cluster.engine.cascade.passed_on_s > 0.0
    assert not math.isnan(got)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"light": "heavy"}, "variants of one model, 'heavy'"),
        ({"light": "nope"}, "no variant 'nope'"),
    ],
)
def test_bad_cascades(profile: Profile, params: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_policy("diffserve", profile, 2, **params)
