"""Clusters of several kinds of GPUs: who is how fast, who gets what, and that all policies cope."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from argus_sim.core.catalog import Catalog, Kind
from argus_sim.core.commands import Reject
from argus_sim.core.endings import DROPPED
from argus_sim.core.engine import Engine
from argus_sim.domain import Outcome
from argus_sim.errors import InputError
from argus_sim.experiment import Experiment, PolicyConfig
from argus_sim.experiment.basis import assumptions
from argus_sim.experiment.scene import Scene
from argus_sim.experiment.simulate import hindsight, simulate
from argus_sim.policies import registry
from argus_sim.policies.base import Plan, keep_or_move
from argus_sim.profile import Profile
from argus_sim.record import RunRecord
from argus_sim.simulation.environment import StockEnvironment
from argus_sim.trace.arrivals import Poisson, generate
from argus_sim.workload import stream
from tests.make_engine import make_policy, make_requests, make_setup
from tests.make_experiment import content
from tests.make_profile import at_speed, ladder, make_profile
from tests.transcripts import Run, Scripted, always, play

BIG, AC10, AC25, SMALL = range(4)
PROFILE = ladder()


def mixed(*speeds: float, workers: int = 1) -> tuple[Kind, ...]:
    """Kinds at these speeds, each with so many workers."""
    return tuple(Kind(f"k{i}", workers, at_speed(PROFILE, speed)) for i, speed in enumerate(speeds))


def with_tails(cells: dict[str, dict[int, tuple[float, float]]]) -> Profile:
    """The profile with latencies of these means and 99th percentiles."""
    plain = make_profile({name: {b: mean_s for b, (mean_s, _) in row.items()} for name, row in cells.items()})
    tables = {name: plain.table(name) for name in plain.tables}
    latency = tables["latency"]
    latency["p50_s"] = latency["p90_s"] = latency["mean_s"]
    latency["p99_s"] = [cells[v][b][1] for v, b in zip(latency["variant"], latency["batch_size"], strict=True)]
    return Profile.from_tables(plain.manifest, tables)


# -- what is known of them ---------------------------------------------------------------------------------


def test_a_catalog_knows_each_kind() -> None:
    catalog = Catalog.of(PROFILE, (Kind("new", 2, PROFILE), Kind("old", 3, at_speed(PROFILE, 0.5))))
    assert [kind.name for kind in catalog.kinds] == ["new", "old"]
    assert catalog.kind_of == (0, 0, 1, 1, 1)
    assert catalog.of_worker(1).mean_s[BIG][1] == 4.0
    assert catalog.of_worker(2).mean_s[BIG][1] == 8.0
    assert catalog.mean_s[BIG][1] == 4.0
    assert catalog.cluster_throughput_per_s(SMALL, 5) == pytest.approx(2 * 1.5 + 3 * 0.75)
    assert catalog.cluster_throughput_per_s(SMALL, 5) == pytest.approx(
        sum(catalog.of_worker(w).throughput_per_s(SMALL) for w in range(5))
    )


def test_a_kind_may_have_a_profile_of_its_own_with_variants_in_another_order() -> None:
    other = make_profile(
        {"big": {1: 2.0, 4: 5.0}, "small": {1: 0.5}, "big/ac-10": {1: 1.5}, "big/ac-25": {1: 1.0}}
    )
    catalog = Catalog.of(PROFILE, (Kind("own", 1, other), Kind("same", 1, PROFILE)))
    assert [row[1] for row in catalog.kinds[0].mean_s] == [2.0, 1.5, 1.0, 0.5]
    assert catalog.kinds[0].batch_sizes[BIG] == (1, 4)
    assert catalog.kinds[1].batch_sizes[BIG] == (1, 2)


def test_other_variants_are_an_error_that_names_them() -> None:
    other = make_profile({"big": {1: 2.0}, "tiny": {1: 0.5}})
    with pytest.raises(
        InputError,
        match=r"clu: kind 'x': profile 'test' must have the variants of 'test'; "
        r"it lacks 'big/ac-10', 'big/ac-25', 'small'; it has beside them 'tiny'",
    ):
        Catalog.of(PROFILE, (Kind("x", 1, other),), where="clu")


# -- who gets what -----------------------------------------------------------------------------------------


def seat(kinds: tuple[Kind, ...], plan: Any, *, slo_s: float = 1000.0, drop: Any = None) -> Engine:
    """A started engine whose requests, at 0, 1, ... 9 s, all go to ``big``."""
    policy = Scripted(plan, always(BIG))
    engine = Engine(
        Catalog.of(PROFILE, kinds), policy, make_requests(np.arange(10.0), slo_s), len(plan), drop=drop
    )
    engine.start()
    return engine


def test_the_faster_kind_works_first_whatever_its_number() -> None:
    engine = seat(mixed(0.5, 2.0, 1.0), [(BIG,)] * 3)
    play(
        engine,
        ("arrive", 0.0, 0, [Run(1, BIG, (0,))]),
        ("arrive", 1.0, 1, [Run(2, BIG, (1,))]),
        ("arrive", 2.0, 2, [Run(0, BIG, (2,))]),
    )


def test_batches_have_the_sizes_of_the_kind_that_runs_them() -> None:
    singles = make_profile({v.name: {1: 1.0} for v in PROFILE.variants})
    engine = seat((Kind("pairs", 1, PROFILE), Kind("singles", 1, singles)), [(BIG,)] * 2)
    play(
        engine,
        ("arrive", 0.0, 0, [Run(1, BIG, (0,))]),
        ("arrive", 1.0, 1, [Run(0, BIG, (1,))]),
        ("arrive", 2.0, 2, []),
        ("arrive", 3.0, 3, []),
        ("arrive", 4.0, 4, []),
        ("batch_done", 5.0, 1, [Run(1, BIG, (2,))]),
        ("batch_done", 6.0, 0, [Run(0, BIG, (3, 4))]),
    )


def busy_slow_and_fast() -> Engine:
    """8 s alone on the slow worker 0, 4 s on the fast worker 1; SLO 10 s. Both run, and request 2 waits."""
    engine = seat(mixed(0.5, 1.0), [(BIG,)] * 2, slo_s=10.0)
    play(
        engine,
        ("arrive", 0.0, 0, [Run(1, BIG, (0,))]),
        ("arrive", 1.0, 1, [Run(0, BIG, (1,))]),
        ("arrive", 2.0, 2, []),
    )
    return engine


def test_a_slow_worker_leaves_what_only_a_fast_one_can_still_do() -> None:
    engine = busy_slow_and_fast()
    play(
        engine,
        ("arrive", 3.0, 3, []),
        # Request 2 has until 12 s and 3 until 13: too late for the slow worker, not for the fast one.
        ("batch_done", 7.0, 0, []),
        # A new one fits, and those before it keep their place.
        ("arrive", 7.0, 7, [Run(0, BIG, (7,))]),
        ("batch_done", 7.5, 1, [Run(1, BIG, (2,))]),
    )
    assert list(engine.queues[BIG]) == [3]


def test_nothing_is_left_for_a_kind_that_is_idle() -> None:
    """A kind of a lower mean and a heavier tail: too late for the SLO there, but not on the plain one."""
    tails = {v.name: {1: (3.0, 30.0)} for v in PROFILE.variants}
    engine = seat((Kind("jittery", 1, with_tails(tails)), Kind("plain", 1, PROFILE)), [(BIG,)] * 2, slo_s=10.0)
    play(
        engine,
        ("arrive", 0.0, 0, [Run(1, BIG, (0,))]),
        ("arrive", 1.0, 1, []),
        ("batch_done", 4.0, 1, [Run(1, BIG, (1,))]),
    )


def test_what_no_kind_can_do_is_dropped_by_any() -> None:
    play(busy_slow_and_fast(), ("batch_done", 9.0, 0, [Reject(2, DROPPED)]))


def test_nobody_waits_for_a_kind_that_is_gone() -> None:
    engine = busy_slow_and_fast()
    play(engine, ("batch_done", 7.0, 0, []))
    answer = engine.worker_lost(7.5, 1)
    assert Reject(2, DROPPED) in answer
    assert engine.is_idle() or [r for w in engine.workers for r in w.batch.rows] == [0]


def test_the_view_tells_the_kinds() -> None:
    engine = seat((Kind("a", 1, PROFILE), Kind("b", 2, at_speed(PROFILE, 2.0))), [(BIG,)] * 3)
    assert [engine.view.kind(w) for w in range(3)] == [0, 1, 1]
    assert engine.view.up_by_kind() == (1, 2)
    engine.worker_lost(1.0, 2)
    assert engine.view.up_by_kind() == (1, 1)


def test_placement_by_kind_moves_as_little_as_it_can() -> None:
    kinds = (Kind("a", 2, PROFILE), Kind("b", 2, at_speed(PROFILE, 2.0)))
    engine = seat(kinds, [(BIG,), (SMALL,), (BIG,), (SMALL,)])
    catalog = engine.catalog
    plan = keep_or_move([{(SMALL,): 1, (BIG,): 1}, {(BIG,): 2}], engine.view, catalog, "x")
    assert plan == Plan(((BIG,), (SMALL,), (BIG,), (BIG,)), "x")
    with pytest.raises(ValueError, match="1 workers wanted, 2 are up"):
        keep_or_move([{(SMALL,): 1}, {(BIG,): 3}], engine.view, catalog, "x")


def test_argus_leaves_levels_that_a_kind_cannot_serve_in_time_to_the_others() -> None:
    """At a fifth of the speed, `big` takes 20 s of 12: the fast worker gets it."""
    kinds = (Kind("slow", 3, at_speed(PROFILE, 0.2)), Kind("fast", 1, PROFILE))
    catalog = Catalog.of(PROFILE, kinds)
    setup = make_setup(PROFILE, 4)
    kind = registry.find("argus")
    policy = kind(type(setup)(catalog, 4, 12.0, setup.rng, setup.predictor), kind.Params())
    engine = Engine(catalog, policy, make_requests(np.arange(10.0), 12.0), 4)
    engine.start()
    assert [w.serves for w in engine.workers] == [(AC25,), (AC25,), (AC25,), (BIG,)]


# -- whole runs --------------------------------------------------------------------------------------------

POLICIES = [
    PolicyConfig.model_validate(policy)
    for policy in (
        {"name": "static", "params": {"placement": {"big": 2, "small": 3}}},
        "clipper-ha",
        "clipper-ht",
        "infaas",
        "sommelier",
        "proteus",
        {"name": "nirvana", "params": {"thresholds": {10: 0.7, 25: 0.9}}},
        "pac",
        "argus",
        "diffserve",
        "argus-x",
    )
    for policy in [{"name": policy} if isinstance(policy, str) else policy]
]


def scene(profile: Profile, cluster: dict[str, Any], kinds: tuple[Kind, ...] = (), **more: Any) -> Scene:
    data = content() | {"profile": "given", "cluster": cluster} | more
    return Scene(Experiment.model_validate(data), profile, Catalog.of(profile, kinds), 12.0, kinds)


def columns(record: RunRecord) -> list[Any]:
    names = ("start_s", "finish_s", "variant", "worker", "batch_size", "outcome", "reason")
    return [getattr(record, name) for name in names]


TROUBLE = [
    {"kind": "crash", "at_s": 40.0, "for_s": 60.0, "workers": [0, 1]},
    {"kind": "crash", "at_s": 150.0, "for_s": 30.0, "workers": [4]},
    {"kind": "slow", "at_s": 100.0, "for_s": 100.0, "workers": [1], "factor": 2.0},
]


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.label)
@pytest.mark.parametrize("drop", ["late", "never"])
def test_every_policy_copes(policy: PolicyConfig, drop: str) -> None:
    """On three kinds, one of them with other batch sizes, with faults: all requests end, none beats hindsight."""
    cells = {"big": 5.0, "big/ac-10": 4.0, "big/ac-25": 2.5, "small": 1.2}
    profile = make_profile(
        {name: {1: s, 2: 1.3 * s} for name, s in cells.items()},
        spread=0.1,
        std_s=0.1,
        distribution="lognormal",
        loads_s={"small": 3.0, "big": 6.0},
    )
    other = make_profile({name: {1: 0.7 * s, 2: s, 4: 1.8 * s} for name, s in cells.items()})
    kinds = (Kind("a", 2, profile), Kind("b", 2, at_speed(profile, 0.4)), Kind("c", 1, other))
    here = scene(profile, {"workers": 5, "faults": TROUBLE}, kinds, drop=drop)
    for seed in range(2):
        trace = generate(Poisson(duration_s=300.0, rate_per_min=70.0 + 60.0 * seed), stream(seed, "arrivals"))
        record = simulate(here, policy, trace, seed)
        assert not (record.outcome == Outcome.UNFINISHED).any()
        reached = float(record.relative_quality[record.outcome == Outcome.ON_TIME].sum())
        assert reached <= hindsight(here, trace, seed).total_quality * (1 + 1e-9)
        twin = simulate(here, policy, trace, seed, env=StockEnvironment())
        for one, two in zip(columns(record), columns(twin), strict=True):
            np.testing.assert_array_equal(one, two)
        sizes = [set(kind.hardware.batch_sizes(0)) for kind in kinds for _ in range(kind.workers)]
        for worker in range(5):
            ran = record.batch_size[record.worker == worker]
            assert set(ran.tolist()) <= sizes[worker]


def test_argus_knows_of_queues_on_several_kinds() -> None:
    """At four fifths of the capacity: the solver, which does not, leaves too little for what waits."""
    kinds = (Kind("a", 4, PROFILE), Kind("b", 4, at_speed(PROFILE, 0.5)))
    here = scene(PROFILE, {"workers": 8}, kinds, drop="late")
    per_s = sum(4 * timings.throughput_per_s(AC25, limit_s=12.0) for timings in here.catalog.kinds)
    trace = generate(Poisson(duration_s=3000.0, rate_per_min=48.0 * per_s), stream(5, "arrivals"))
    late, quality_yield = [], []
    for params in ({}, {"allocation": "solver", "switch": False}):
        record = simulate(here, PolicyConfig.model_validate({"name": "argus", "params": params}), trace, 5)
        on_time = record.outcome == Outcome.ON_TIME
        late.append(1.0 - float(on_time.mean()))
        quality_yield.append(float(np.where(on_time, record.relative_quality, 0.0).mean()))
    assert late[0] < 0.3 * late[1]
    assert quality_yield[0] > quality_yield[1] + 0.02


def test_times_are_those_of_the_kind() -> None:
    """One request at a time and no luck: 4 s on the first worker, 8 s on the second, loads of their own."""
    slow = at_speed(make_profile({v.name: {1: 4.0} for v in PROFILE.variants}, loads_s={"small": 33.0}), 0.5)
    kinds = (Kind("a", 1, PROFILE), Kind("b", 1, slow))
    here = scene(PROFILE, {"workers": 2}, kinds, drop="never")
    trace = generate(Poisson(duration_s=600.0, rate_per_min=20.0), stream(1, "arrivals"))
    record = simulate(here, PolicyConfig.model_validate({"name": "static"}), trace, 1)
    took_s = np.round(record.finish_s - record.start_s, 6)
    alone = record.batch_size == 1
    assert set(took_s[(record.worker == 0) & alone]) == {4.0}
    assert set(took_s[record.worker == 1]) == {8.0}
    swapping = simulate(here, PolicyConfig.model_validate({"name": "sommelier"}), trace, 1)
    loads = {(load.worker, load.model): round(load.finish_s - load.start_s, 6) for load in swapping.loads}
    assert {(w, m): s for (w, m), s in loads.items() if m == "small"} != {}
    assert all(s == {0: 10.0, 1: 33.0}[w] for (w, m), s in loads.items() if m == "small")


@pytest.mark.parametrize("policy", POLICIES[1:], ids=lambda policy: policy.label)
def test_one_kind_as_the_profile_has_it_changes_nothing(policy: PolicyConfig) -> None:
    trace = generate(Poisson(duration_s=300.0, rate_per_min=80.0), stream(1, "arrivals"))
    plain = simulate(scene(PROFILE, {"workers": 3}), policy, trace, 1)
    named = simulate(scene(PROFILE, {"workers": 3}, (Kind("only", 3, PROFILE),)), policy, trace, 1)
    for one, two in zip(columns(plain), columns(named), strict=True):
        np.testing.assert_array_equal(one, two)
    assert len(plain.start_s) > 300


def test_a_batch_limit_holds() -> None:
    trace = generate(Poisson(duration_s=300.0, rate_per_min=120.0), stream(1, "arrivals"))
    for params, largest in (({}, 2), ({"max_batch": 1}, 1)):
        policy = PolicyConfig.model_validate({"name": "argus", "params": params})
        record = simulate(scene(PROFILE, {"workers": 2}), policy, trace, 1)
        assert record.batch_size.max() == largest


def test_a_batch_limit_lowers_the_throughput_that_argus_counts_on() -> None:
    policy = make_policy("argus", PROFILE, 4, max_batch=1)
    assert policy.max_batch == 1
    assert policy.kinds[0].throughput_per_s(BIG) == 0.25  # type: ignore[attr-defined]
    assert policy.setup.catalog.throughput_per_s(BIG) == 0.375


# -- in YAML -----------------------------------------------------------------------------------------------


def check(**cluster: Any) -> Experiment:
    return Experiment.check(content() | {"cluster": cluster}, where="test")


def test_kinds_count_the_workers() -> None:
    experiment = check(kinds=[{"name": "a", "workers": 2}, {"name": "b", "workers": 3, "speed": 0.5}])
    assert experiment.cluster.workers == 5
    assert check(workers=5, kinds=[{"name": "a", "workers": 5}]).cluster.workers == 5
    again = Experiment.model_validate(experiment.model_dump(mode="json"))
    assert again.cluster == experiment.cluster


@pytest.mark.parametrize(
    ("cluster", "message"),
    [
        ({"workers": 4, "kinds": [{"name": "a", "workers": 2}]}, "workers is 4, but the kinds have 2"),
        ({"kinds": [{"name": "a", "workers": 2}] * 2}, "kind 'a' appears twice"),
        ({"kinds": [{"name": "a", "workers": 2, "sped": 2}]}, r"cluster.kinds.0.sped: .*did you mean 'speed'"),
        ({"kinds": [{"name": "a"}]}, r"cluster.kinds.0.workers: is required"),
        ({"kinds": [{"name": "a", "workers": 0}]}, r"cluster.kinds.0.workers: .*found 0"),
        (
            {
                "kinds": [{"name": "a", "workers": 1}],
                "faults": [{"kind": "crash", "at_s": 1, "workers": [1]}],
            },
            "there is no worker 1; they are 0 to 0",
        ),
    ],
)
def test_what_kinds_cannot_be(cluster: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        check(**cluster)


def test_a_policy_that_knows_one_kind_gets_no_other_cluster() -> None:
    kinds = [{"name": "a", "workers": 2}, {"name": "b", "workers": 3, "speed": 0.5}]
    message = (
        "test: policies.0.name: policy 'argus-x' takes all GPUs to be of one kind; cluster.kinds names several"
    )
    with pytest.raises(InputError, match=message):
        Experiment.check(content() | {"policies": ["argus-x"], "cluster": {"kinds": kinds}}, where="test")
    Experiment.check(content() | {"policies": ["argus-x"], "cluster": {"kinds": kinds[:1]}}, where="test")


def test_a_scene_has_kinds_at_their_speed_or_with_their_profile(tmp_path: Any) -> None:
    ladder().save(tmp_path / "profile")
    at_speed(ladder(), 4.0).save(tmp_path / "fast")
    kinds = [
        {"name": "half", "workers": 1, "speed": 0.5},
        {"name": "own", "workers": 1, "profile": "./fast"},
        {"name": "both", "workers": 2, "profile": "./fast", "speed": 0.5},
    ]
    data = content() | {"cluster": {"kinds": kinds}}
    here = Scene.of(Experiment.check(data, where="test", folders=(tmp_path,)))
    assert [kind.mean_s[BIG][1] for kind in here.catalog.kinds] == [8.0, 1.0, 2.0]
    assert here.slo_s == 12.0
    assert here.capacity_per_s == pytest.approx(0.375 * (0.5 + 4.0 + 2 * 2.0))
    origins = dict(assumptions(here))
    assert "latencies x 2" in str(origins["kind half: latency"].derived)
    assert origins["kind half: loads"].derived is None
