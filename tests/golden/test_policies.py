"""Each policy's own logic, without a simulation: what it answers to a view, by what its paper says."""

from __future__ import annotations

from collections import Counter
from functools import lru_cache
from typing import Any

import numpy as np
import pytest

from argus_sim.core import affinity
from argus_sim.core.catalog import Catalog
from argus_sim.core.commands import LoadModel, Reject
from argus_sim.core.engine import Engine
from argus_sim.core.requests import Requests
from argus_sim.core.solvers import allocate
from argus_sim.domain import BatchResult, CacheHit
from argus_sim.errors import InputError
from argus_sim.policies.base import AskCache, Plan, Policy, Route, Setup, Wait
from argus_sim.policies.registry import find, names, parameters
from argus_sim.profile import Profile
from tests.make_profile import make_profile

SLO_S = 12.6


@pytest.fixture(scope="module")
def profile() -> Profile:
    return Profile.load("artefact-a100")


@lru_cache(maxsize=1)
def predictor(profile: Profile) -> affinity.QualityPredictor:
    return affinity.from_text(profile)


def seat(profile: Profile, name: str, *, workers: int = 8, requests: int = 4000, **params: Any) -> Engine:
    """An engine with the policy, its first plan made, and requests at 1/s that have not arrived yet."""
    kind = find(name)
    catalog = Catalog.of(profile)
    test = np.flatnonzero(~profile.is_train)
    rng = np.random.default_rng(5)
    arrival_s = np.arange(requests, dtype=float)
    setup = Setup(catalog, workers, SLO_S, np.random.default_rng(3), predictor(profile))
    policy = kind(setup, parameters(kind, params, where="test"))
    engine = Engine(
        catalog,
        policy,
        Requests.of(arrival_s, arrival_s + SLO_S, rng.choice(test, requests).astype(np.int32)),
        workers,
    )
    engine.start()
    return engine


def ask(engine: Engine, row: int, hit: CacheHit | None = None) -> Any:
    """The policy's decision about a row."""
    request = engine.requests.cursor()
    request.row, request.hit = row, hit
    return engine.policy.route(request, engine.view)


def serving(engine: Engine) -> Counter[str]:
    """How many workers serve what."""
    variants = engine.catalog.variants
    return Counter("+".join(variants[v].name for v in worker.serves) for worker in engine.workers)


def see_demand(engine: Engine, per_min: float, for_s: float = 600.0) -> None:
    """Let the policy watch a steady demand, then plan."""
    steps = int(for_s / 5)
    for step in range(1, steps + 1):
        engine.arrived = round(step * 5 * per_min / 60)
        engine.tick(step * 5.0)
    engine._replan(for_s + 1e-6)


def test_all_policies_of_this_stage_are_installed() -> None:
    assert set(names()) >= {"static", "clipper-ha", "clipper-ht", "proteus", "nirvana", "pac", "argus"}


@pytest.mark.parametrize(("name", "variant"), [("clipper-ha", "sdxl"), ("clipper-ht", "tiny-sd")])
def test_clipper_puts_one_variant_everywhere(profile: Profile, name: str, variant: str) -> None:
    engine = seat(profile, name)
    assert serving(engine) == {variant: 8}
    assert engine.policy.constant == Route(engine.catalog.id_of(variant), "the only variant")


def test_clipper_grows_the_batch_by_one_and_cuts_it_by_a_tenth(profile: Profile) -> None:
    policy: Policy = seat(profile, "clipper-ha").policy
    base = policy.setup.catalog.base

    def limit() -> int:
        return policy.batch(range(10), base, 0, None)  # type: ignore[arg-type, return-value]

    assert limit() == 1
    policy.observe(BatchResult(0, base, 1, 4.2, 0))
    assert limit() == 2
    policy.observe(BatchResult(0, base, 2, SLO_S + 1, 2))  # too slow: 2 x 0.9
    assert limit() == 1


@pytest.mark.parametrize(
    ("similarity", "variant"),
    [
        (0.96, "sdxl/ac-25"),
        (0.95, "sdxl/ac-20"),  # thresholds are exclusive
        (0.91, "sdxl/ac-20"),
        (0.86, "sdxl/ac-15"),
        (0.76, "sdxl/ac-10"),
        (0.66, "sdxl/ac-5"),
        (0.65, "sdxl"),
        (float("nan"), "sdxl"),
    ],
)
def test_nirvana_skips_by_similarity(profile: Profile, similarity: float, variant: str) -> None:
    """The table of the artefact's cache_utils.py."""
    engine = seat(profile, "nirvana")
    assert isinstance(ask(engine, 0), AskCache)
    decision = ask(engine, 0, CacheHit(similarity, 25, 0.05))
    assert engine.catalog.variants[decision.variant].name == variant
    assert len(set(engine.workers[0].serves)) == 6  # the base and all that skip steps


def test_nirvana_skips_no_more_than_is_stored(profile: Profile) -> None:
    engine = seat(profile, "nirvana")
    decision = ask(engine, 0, CacheHit(0.99, 10, 0.05))
    assert engine.catalog.variants[decision.variant].name == "sdxl/ac-10"


@pytest.mark.parametrize("name", ["proteus", "pac", "argus"])
def test_allocation_follows_the_forecast(profile: Profile, name: str) -> None:
    params: dict[str, Any] = {} if name == "proteus" else {"allocation": "solver"}
    engine = seat(profile, name, headroom=1.0, **params)
    assert serving(engine) == {"sdxl": 8}  # no demand yet: the best
    see_demand(engine, 300.0)
    policy: Any = engine.policy
    ladder = policy.ladder
    quality = tuple(float(engine.catalog.quality[v]) for v in ladder)
    rates = tuple(engine.catalog.throughput_per_s(v, limit_s=SLO_S) for v in ladder)
    # The demand is rounded up to 1/128 of the capacity.
    if name == "proteus":
        rates = tuple(engine.catalog.throughput_per_s(v, limit_s=SLO_S / 2) for v in ladder)
    grain = 8 * max(rates) / 128
    expected = allocate(quality, rates, 8, np.ceil(5.0 / grain - 1e-6) * grain)
    variants = engine.catalog.variants
    assert serving(engine) == {variants[v].name: n for v, n in zip(ladder, expected.workers, strict=True) if n}


def test_pac_ignores_prompts_and_meets_the_shares(profile: Profile) -> None:
    engine = seat(profile, "pac", allocation="solver")
    see_demand(engine, 300.0)
    got = Counter(ask(engine, row).variant for row in range(4000))
    share = engine.policy.solve(engine.view).share  # type: ignore[attr-defined]
    for variant, expected in zip(engine.policy.ladder, share, strict=True):  # type: ignore[attr-defined]
        assert got[variant] / 4000 == pytest.approx(expected, abs=0.03)


def all_alike() -> Profile:
    """Whose prompts have the same quality at each level, or nearly."""
    cells = {"big": 4.0, "big/ac-10": 3.2, "big/ac-25": 2.0, "mid": 3.0, "small": 2.2}
    return make_profile({name: {1: s, 2: 1.5 * s} for name, s in cells.items()}, loads_s={"mid": 20.0})


@pytest.mark.parametrize("params", [{}, {"ladder": "SM"}, {"allocation": "solver"}])
@pytest.mark.parametrize("per_min", [100.0, 180.0, 260.0])
def test_pac_allocates_as_argus_does_where_prompts_are_alike(per_min: float, params: dict[str, Any]) -> None:
    """Between them is what knowing the prompt is worth, and nothing else."""
    placed = []
    for name in ("pac", "argus"):
        engine = seat(all_alike(), name, **params)
        see_demand(engine, per_min)
        placed.append(engine.floor.plans)
    assert placed[0] == placed[1]


def test_pac_leaves_a_cache_that_is_out() -> None:
    """As argus does: every worker takes its part of what is served in full, and then the other ladder is used."""
    engine = seat(all_alike(), "pac")
    see_demand(engine, 200.0)
    # As deep as the answer allows where somebody serves that, and in full where nobody does.
    for row in range(50):
        assert ask(engine, row, CacheHit(0.6, 10, 0.05)).variant == engine.catalog.id_of("big/ac-10")
        assert ask(engine, row, CacheHit(0.2, 5, 0.05)).variant == engine.catalog.base
    policy: Any = engine.policy
    for tenth in range(6010, 6100):
        engine.view.now_s = tenth / 10
        policy.observe_cache(CacheHit(float("nan"), 0, 1.0))
    engine._replan(610.0)
    assert all(engine.catalog.base in worker.serves for worker in engine.workers)
    for second in range(611, 900):
        policy.observe_cache(CacheHit(float("nan"), 0, 1.0))
        engine.arrived = round(second * 200 / 60)
        for worker in engine.workers:
            engine.model_loaded(float(second), worker.index)
        engine.tick(float(second))
    assert set(serving(engine)) == {"big", "small"}


def test_argus_meets_the_shares_and_sends_tolerant_prompts_deeper(profile: Profile) -> None:
    engine = seat(profile, "argus", allocation="solver")
    see_demand(engine, 240.0)
    policy: Any = engine.policy
    level = {v: j for j, v in enumerate(policy.ladder)}
    at = np.array([level[ask(engine, row).variant] for row in range(4000)])
    share = policy.solve(engine.view).share
    assert np.allclose(np.bincount(at, minlength=6) / 4000, share, atol=0.03)
    affinity_of = policy.setup.predictor.affinity(policy.ladder, 0.05)[engine.requests.prompts_between(0, 4000)]
    assert at[affinity_of == 5].mean() > at[affinity_of == 0].mean() + 1.0
    # And the quality that is lost is less than by drawing levels blindly.
    quality = profile.relative_quality()[engine.requests.prompts_between(0, 4000)][:, list(policy.ladder)]
    assert quality[np.arange(4000), at].mean() > (quality.mean(axis=0) @ share) + 0.01


def test_argus_serves_in_full_on_a_cache_miss(profile: Profile) -> None:
    engine = seat(profile, "argus")
    assert ask(engine, 0, CacheHit(float("nan"), 0, 1.0)).variant == engine.catalog.base


def test_proteus_sends_nobody_to_wait_for_a_load_in_vain(profile: Profile) -> None:
    """What is planned for workers that load for too long goes, in the planned proportions, to the others."""
    engine = seat(profile, "proteus", headroom=1.0)
    see_demand(engine, 210.0, for_s=10.0)
    policy: Any = engine.policy
    loading = [worker for worker in engine.workers if worker.loading]
    assert 0 < len(loading) < 8
    there = {worker.serves[0] for worker in engine.workers if not worker.loading}

    def sent() -> set[int]:
        return {ask(engine, row).variant for row in range(1000)}

    assert sent() == there
    policy.monitor(engine.view)
    assert sent() == there
    # The last of the loads would end after 22 s: whoever comes now can still be served in time.
    engine.view.now_s = 25.0
    policy._spread(engine.view)
    assert sent() == there | {worker.serves[0] for worker in loading}
    for worker in loading:
        engine.model_loaded(32.0, worker.index)
    policy._spread(engine.view)
    assert not policy._due
    share = np.array(policy._load_per_s) / sum(policy._load_per_s)
    assert policy._upto == pytest.approx(np.cumsum(share)[:-1].tolist())


def test_proteus_waits_until_the_first_request_could_just_make_the_larger_batch(profile: Profile) -> None:
    engine = seat(profile, "proteus")
    base = engine.catalog.base
    engine.arrived = 2
    engine.view.now_s = 0.0
    answer = engine.policy.batch([0], base, 0, engine.view)
    assert answer == Wait(SLO_S - engine.catalog.p99_s[base][2])
    assert engine.policy.batch([0, 1], base, 0, engine.view) == 2  # full: it goes
    engine.view.now_s = SLO_S - 5.0
    assert engine.policy.batch([0], base, 0, engine.view) == 1  # too late for two


def test_static_spreads_over_its_placement_and_refuses_beyond_its_limit(profile: Profile) -> None:
    engine = seat(profile, "static", placement={"sdxl": 6, "tiny-sd": 2}, queue_limit=3)
    assert serving(engine) == {"sdxl": 6, "tiny-sd": 2}
    answers = [engine.arrive(0.0, row) for row in range(20)]
    assert all(worker.batch.rows for worker in engine.workers)
    assert [len(queue) for queue in engine.queues if queue] == [3, 3]
    assert sum(isinstance(c, Reject) for commands in answers for c in commands) == 20 - 8 - 6


def test_impossible_placement_is_an_error(profile: Profile) -> None:
    with pytest.raises(InputError, match=r"places 9 workers.*cluster's 8"):
        seat(profile, "static", placement={"sdxl": 8, "tiny-sd": 1})
    with pytest.raises(InputError, match=r"no variant 'tiny'; did you mean 'tiny-sd'"):
        seat(profile, "static", placement={"tiny": 8})
    with pytest.raises(InputError, match=r"\{\} places 0 workers; allowed are positive counts"):
        seat(profile, "static", placement={})


def test_argus_x_asks_nothing_of_a_model_that_loads(profile: Profile) -> None:
    """It has no queue, but nobody either who could serve one."""
    engine = seat(profile, "argus-x")
    see_demand(engine, 250.0, for_s=10.0)
    policy: Any = engine.policy
    full, light = (engine.catalog.id_of(name) for name in ("sdxl", "tiny-sd"))
    plan = Plan(((light,), *policy._plan.serves[1:]), "one worker is to serve a light model")
    policy._plan, policy._counts = plan, policy._ready(engine.view)
    engine._apply(11.0, plan)
    assert engine.workers[0].loading
    policy._set_prices(engine.view)
    assert [market.work_s[0][0] for market in policy._markets] == [full]
    assert policy._markets[0].workers == 7
    engine.model_loaded(30.0, 0)
    policy._set_prices(engine.view)
    assert [market.workers for market in policy._markets] == [7, 1]


def test_infaas_takes_the_best_variant_in_time_and_steps_one_worker_at_a_time(profile: Profile) -> None:
    engine = seat(profile, "infaas")
    assert serving(engine) == {"sdxl": 8}
    base = engine.catalog.base
    assert ask(engine, 0) == Route(base, "level 0: best in time")
    engine.queues[base].extend(range(8, 60))  # 52 wait: 16.5 s at 3.14/s, later than the SLO
    assert ask(engine, 0) == Route(base, "level 0: least late")
    engine.tick(1.0)
    assert serving(engine) == {"sdxl": 7, "sd15": 1}
    engine.tick(2.0)  # it is still loading: nothing more is decided
    assert serving(engine) == {"sdxl": 7, "sd15": 1}
    loading = next(w for w in engine.workers if w.loading)
    engine.model_loaded(20.0, loading.index)
    engine.tick(20.5)
    assert serving(engine) == {"sdxl": 7, "sd15": 1}
    assert ask(engine, 0).variant == engine.catalog.id_of("sd15")
    engine.queues[base].clear()
    engine.tick(21.0)
    assert serving(engine) == {"sdxl": 8}


def test_infaas_sends_nothing_to_a_worker_that_has_yet_to_finish_its_batch_and_load(profile: Profile) -> None:
    engine = seat(profile, "infaas")
    base, sd15 = engine.catalog.base, engine.catalog.id_of("sd15")
    for row in range(60):
        engine.arrive(0.0, row)
    engine.tick(1.0)
    assert serving(engine) == {"sdxl": 7, "sd15": 1}
    (stepping,) = [w for w in engine.workers if w.serves == (sd15,)]
    assert stepping.batch.rows
    assert ask(engine, 59).variant == base  # at once, without another look
    engine.tick(2.0)  # this step is under way: no other one
    assert serving(engine) == {"sdxl": 7, "sd15": 1}
    assert ask(engine, 59).variant == base
    engine.batch_done(4.2, stepping.index)
    engine.tick(5.0)
    assert stepping.loading
    assert ask(engine, 59).variant == base
    engine.model_loaded(20.0, stepping.index)
    engine.tick(20.5)
    assert ask(engine, 59).variant == sd15


@pytest.mark.parametrize("name", ["infaas", "sommelier"])
def test_the_level_of_a_lost_worker_is_kept_for_it(profile: Profile, name: str) -> None:
    engine = seat(profile, name)
    steps: Any = engine.policy._steps  # type: ignore[attr-defined]
    steps.workers = [6, 0, 0, 2]
    engine._replan(1.0)
    for worker in engine.workers:
        engine.model_loaded(20.0, worker.index)
    placed = serving(engine)
    assert placed == {"sdxl": 6, "tiny-sd": 2}
    lost = next(w for w in engine.workers if w.serves == (engine.catalog.id_of("tiny-sd"),))
    assert not engine.worker_lost(30.0, lost.index)  # nobody loads in its place
    assert steps.workers == [6, 0, 0, 1]
    tiny = engine.catalog.models.index("tiny-sd")
    assert engine.worker_joined(40.0, lost.index) == [LoadModel(lost.index, tiny)]
    assert serving(engine) == placed


def test_proteus_batches_as_its_program_counts_on() -> None:
    """A batch of two takes less than half the SLO in the mean, and more than that in one case of a hundred."""
    wide = make_profile({"big": {1: 4.2, 2: 6.0}, "small": {1: 1.0, 2: 1.4}}, std_s=0.1, distribution="lognormal")
    engine = seat(wide, "proteus")
    big, small = (engine.catalog.id_of(name) for name in ("big", "small"))
    assert engine.catalog.mean_s[big][2] < SLO_S / 2 < engine.catalog.p99_s[big][2]
    assert engine.policy.batch([0, 1, 2], big, 0, engine.view) == 1
    assert engine.policy.batch([0, 1, 2], small, 0, engine.view) == 2


def test_sommelier_places_once_and_then_swaps_one_worker(profile: Profile) -> None:
    engine = seat(profile, "sommelier", headroom=1.0)
    per_s = 4.0
    for second in range(1, 61):
        engine.arrived = round(second * per_s)
        engine.tick(float(second))
    placed = serving(engine)
    policy: Any = engine.policy
    counts = policy.solve(engine.view).workers
    variants = engine.catalog.variants
    assert placed == {variants[v].name: n for v, n in zip(policy.ladder, counts, strict=True) if n}
    assert len(placed) > 1
    for worker in engine.workers:
        if worker.loading:
            engine.model_loaded(61.0, worker.index)
    # Demand triples, and with it the queue: not a new placement, but one worker's swap.
    engine.queues[engine.catalog.base].extend(range(300, 400))
    engine.arrived += 12
    engine.tick(62.0)
    swapped = serving(engine)
    assert swapped["sdxl"] == placed["sdxl"] - 1
    assert sum((swapped - placed).values()) == 1
