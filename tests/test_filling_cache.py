"""A cache that fills, behind a network: what it answers and when, and what a run leaves of it."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError

from argus_sim.cache_metrics import summarise_cache
from argus_sim.cache_setup import capacity_of, latent_size_bytes, levels_of
from argus_sim.core.cache import LatentCache
from argus_sim.core.commands import Command
from argus_sim.domain import CacheHit, Outcome
from argus_sim.errors import InputError
from argus_sim.experiment import Experiment
from argus_sim.record import RunRecord
from argus_sim.runner import run_experiment
from argus_sim.sections import Cluster
from argus_sim.simulate import Scene, simulate
from argus_sim.simulation.cluster import SimulatedCluster
from argus_sim.simulation.environment import Environment, StockEnvironment, StreamEnvironment, Tick
from argus_sim.simulation.filling import FillingCache, FillingCacheConfig
from argus_sim.simulation.network import CacheConfig, Link
from tests.make_cluster import columns_of, make_cluster
from tests.make_engine import make_policy, make_requests
from tests.make_experiment import content, write_experiment
from tests.make_profile import ladder, make_profile

PROFILE = ladder()
BIG, AC10, AC25, SMALL = range(4)
LEVELS = {10: 0.65, 25: 0.8}
LATENT_BYTES = 1000
#: Texts 0, 1, 2: 1 is similar to 0 at 0.7, 2 to nothing.
VECTORS = np.array([[1.0, 0.0, 0.0], [0.7, 0.51**0.5, 0.0], [0.0, 0.0, 1.0]], dtype=np.float32)


def make_cache(
    text: list[int],
    arrival_s: list[float] | None = None,
    *,
    bandwidth: float | None = None,
    writes: bool = False,
    stored: tuple[int, ...] = (),
    seed: int = 0,
    **config: Any,
) -> FillingCache:
    cache = LatentCache(LEVELS, 3)
    for index in stored:
        cache.insert(index, VECTORS[index])
    network = {"bandwidth_bytes_per_s": bandwidth, "writes": writes}
    return FillingCache(
        FillingCacheConfig.model_validate({"kind": "simulated", "network": network, **config}),
        cache,
        text,
        VECTORS,
        None,
        LATENT_BYTES,
        np.array(arrival_s if arrival_s is not None else np.zeros(len(text))),
        np.random.default_rng(seed),
    )


@dataclass
class Desk:
    """Stands for the cluster: keeps what is to happen, and notes the answers."""

    due: list[tuple[float, int, Tick]] = field(default_factory=list)
    answers: dict[int, tuple[float, CacheHit]] = field(default_factory=dict)
    asked: int = 0

    def at(self, time_s: float, tick: Tick) -> None:
        self.asked += 1
        self.due.append((time_s, self.asked, tick))

    def answered(self, now: float, row: int, hit: CacheHit) -> list[Command]:
        assert row not in self.answers
        self.answers[row] = (now, hit)
        return []

    def ask(self, cache: FillingCache, asked_s: list[float]) -> None:
        """Each row at its time, and everything that follows."""
        for row, now in enumerate(asked_s):
            self.run(until_s=now)
            cache.look_up(now, row, self.at, self.answered)
        self.run()

    def run(self, until_s: float = math.inf) -> None:
        while self.due and min(self.due)[0] <= until_s:
            next_ = min(self.due, key=lambda item: item[:2])
            self.due.remove(next_)
            next_[2].fire(next_[0], next_[2].key)


# -- the link -------------------------------------------------------------------------------------------------


def test_transfers_wait_for_each_other() -> None:
    link = Link(100.0)
    assert [link.send(now, 200) for now in (0.0, 1.0, 5.0, 5.0)] == [2.0, 4.0, 7.0, 9.0]
    assert link.busy_s == 8.0


def test_a_link_without_a_limit() -> None:
    link = Link(None)
    assert [link.send(1.0, 10**12) for _ in range(3)] == [1.0] * 3
    assert link.busy_s == 0.0


def test_who_gives_up_frees_the_link() -> None:
    """One in transfer is cut off at its limit; one whose turn has not come by then never takes any time."""
    link = Link(100.0)
    assert link.send(0.0, 300, until_s=2.0) is None
    assert link.send(0.5, 100, until_s=2.0) is None
    assert link.send(1.0, 100, until_s=4.0) == 3.0
    assert link.busy_s == 3.0


def test_a_transfer_that_ends_at_its_limit_is_in_time() -> None:
    assert Link(100.0).send(0.0, 200, until_s=2.0) == 2.0


@pytest.mark.parametrize("load", [0.5, 0.8])
def test_retrieval_is_an_m_d_1_queue(load: float) -> None:
    """Poisson look-ups, equal latents: a mean wait of load / (2 (1 - load)) transfers (Pollaczek, Khinchine)."""
    n, transfer_s, search_s, replications = 40_000, 0.01, 0.05, 8
    means = []
    for seed in range(replications):
        asked = np.cumsum(np.random.default_rng(seed).exponential(transfer_s / load, n))
        cache = make_cache(
            [0] * n, asked.tolist(), bandwidth=LATENT_BYTES / transfer_s, stored=(0,), latency_s=search_s,
            timeout_s=1e6,
        )  # fmt: skip
        desk = Desk()
        for row, now in enumerate(asked.tolist()):
            cache.look_up(now, row, desk.at, desk.answered)
            _, _, tick = desk.due.pop()  # the search takes the same time for all, so their order stays
            tick.fire(now + search_s, row)
            _, _, tick = desk.due.pop()
            tick.fire(0.0, row)
        latency = np.array([hit.latency_s for _, hit in desk.answers.values()])
        means.append(latency.mean() - search_s - transfer_s)
    exact = transfer_s * load / (2.0 * (1.0 - load))
    half = 3.5 * np.std(means, ddof=1) / math.sqrt(replications)  # t of 7 degrees, 99 %
    assert abs(np.mean(means) - exact) < half
    assert half < 0.1 * exact


# -- answers --------------------------------------------------------------------------------------------------


def test_a_hit_waits_for_its_latents_and_a_miss_does_not() -> None:
    """Look-ups take 0.1 s, a transfer 0.5 s. Row 2 has no neighbour; row 1 may skip 10 steps only."""
    cache, desk = make_cache([0, 1, 2], bandwidth=2000.0, stored=(0,), latency_s=0.1, timeout_s=9.0), Desk()
    desk.ask(cache, [0.0, 0.0, 0.0])
    assert desk.answers[0] == (pytest.approx(0.6), CacheHit(1.0, 25, pytest.approx(0.6)))
    assert desk.answers[1] == (pytest.approx(1.1), CacheHit(0.7, 10, pytest.approx(1.1)))
    assert desk.answers[2] == (pytest.approx(0.1), CacheHit(0.0, 0, pytest.approx(0.1)))


def test_an_empty_cache_misses_and_fills() -> None:
    cache, desk = make_cache([0, 0, 1], latency_s=0.1), Desk()
    cache.look_up(0.0, 0, desk.at, desk.answered)
    desk.run()
    assert desk.answers[0][1].max_skipped_steps == 0
    assert math.isnan(desk.answers[0][1].similarity)
    cache.generated(5.0, [0])
    for row in (1, 2):
        cache.look_up(6.0, row, desk.at, desk.answered)
    desk.run()
    assert [desk.answers[row][1].max_skipped_steps for row in (1, 2)] == [25, 10]
    record = cache.record()
    assert (record.stored, record.evicted, record.held, record.prompts_held, record.started_with) == (
        2,
        0,
        2,
        1,
        0,
    )
    assert record.steps.tolist() == [0, 25, 10]


def test_what_counts_is_there_when_the_search_ends() -> None:
    cache, desk = make_cache([0, 0], latency_s=1.0, timeout_s=5.0), Desk()
    cache.look_up(0.0, 0, desk.at, desk.answered)
    cache.generated(0.5, [1])
    desk.run()
    assert desk.answers[0][1].max_skipped_steps == 25


@pytest.mark.parametrize(("writes", "answer_s"), [(False, 0.6), (True, 1.5)])
def test_writes_share_the_network(writes: bool, answer_s: float) -> None:
    """Two latents of 0.5 s each are written from 0 s on; the look-up ends at 0.1 s."""
    cache, desk = (
        make_cache([0, 2], bandwidth=2000.0, writes=writes, stored=(0,), latency_s=0.1, timeout_s=9.0),
        Desk(),
    )
    cache.generated(0.0, [1])
    cache.generated(0.0, [1])  # nothing new
    desk.ask(cache, [0.0])
    assert desk.answers[0][0] == pytest.approx(answer_s)


def test_a_slow_network_times_out() -> None:
    """One transfer takes 1 s, nobody waits longer than 2 s: the third is cut off, the fourth never begins."""
    cache, desk = make_cache([0] * 4, bandwidth=1000.0, stored=(0,), latency_s=0.5, timeout_s=2.0), Desk()
    desk.ask(cache, [0.0] * 4)
    assert [at_s for at_s, _ in desk.answers.values()] == [1.5, 2.0, 2.0, 2.0]
    assert desk.answers[0][1].max_skipped_steps == 25
    for row in (1, 2, 3):
        assert desk.answers[row][1].max_skipped_steps == 0
        assert math.isnan(desk.answers[row][1].similarity)
    totals = summarise_cache(cache.record(), 10.0)
    assert (totals["lookups"], totals["hits"], totals["misses"], totals["timeouts"]) == (4, 1, 0, 3)
    assert totals["link_utilisation"] == pytest.approx(0.15)


def test_outages_and_slow_times() -> None:
    trouble = [{"at_s": 10.0, "for_s": 5.0}, {"at_s": 20.0, "for_s": 5.0, "latency_s": 0.5}]
    cache, desk = make_cache([0] * 4, stored=(0,), latency_s=0.1, timeout_s=1.0, trouble=trouble), Desk()
    desk.ask(cache, [0.0, 10.0, 20.0, 25.0])
    assert [at_s for at_s, _ in desk.answers.values()] == pytest.approx([0.1, 11.0, 20.5, 25.1])
    assert [hit.max_skipped_steps for _, hit in desk.answers.values()] == [25, 0, 25, 25]


# -- on the cluster -------------------------------------------------------------------------------------------


def run(
    text: list[int], *, env: Environment | None = None, every_s: float = 8.0, workers: int = 1, **config: Any
) -> tuple[SimulatedCluster, FillingCache]:
    n = len(text)
    asked = (np.arange(n) * every_s).tolist()
    cache = make_cache(text, asked, **config)
    policy = make_policy("nirvana", PROFILE, workers, thresholds={10: 0.65, 25: 0.8})
    host = make_cluster(PROFILE, policy, make_requests(asked, 12.0, [2] * n), cache=cache, env=env)
    host.run()
    assert host.finished
    return host, cache


def test_only_images_generated_in_full_are_stored() -> None:
    """0 misses and is stored; 1 hits at 10 steps and is not, or its second request would find itself."""
    host, cache = run([0, 0, 1, 1, 2, 2], latency_s=0.25)
    assert columns_of(host)["variant"].tolist() == [BIG, AC25, AC10, AC10, BIG, AC25]
    assert cache.record().prompts_held == 2
    assert (columns_of(host)["outcome"] == Outcome.ON_TIME).all()


@pytest.mark.parametrize("seed", range(10))
def test_fast_and_stock_environment_agree(seed: int) -> None:
    rng = np.random.default_rng(seed)
    text = rng.integers(0, 3, 200).tolist()
    config: dict[str, Any] = {"latency_s": 0.25, "latency_cv": float(rng.choice([0.0, 0.5])), "timeout_s": 2.0}
    config |= {"bandwidth": 2000.0, "writes": True, "every_s": float(rng.choice([0.25, 1.0, 2.0])), "workers": 4}
    (fast, a), (stock, b) = (
        run(text, env=env(), seed=seed, **config) for env in (StreamEnvironment, StockEnvironment)
    )
    ours, theirs = columns_of(fast), columns_of(stock)
    for name in ours:
        assert np.asarray(ours[name]).tobytes() == np.asarray(theirs[name]).tobytes(), name  # type: ignore[literal-required]
    assert repr(a.record()) == repr(b.record())


# -- a whole experiment ---------------------------------------------------------------------------------------


def an_experiment(folder: Path, cache: dict[str, Any] | None = None, **changes: Any) -> Experiment:
    data = content() | {"policies": ["nirvana", "argus"], "replications": 1} | changes
    data["policies"][0] = {"name": "nirvana", "params": {"thresholds": {10: 0.65, 25: 0.8}}}
    data["cluster"] = {"workers": 2, "cache": {"kind": "simulated", **(cache or {})}}
    return Experiment.load(write_experiment(folder, data))


def record_of(experiment: Experiment, seed: int = 3) -> RunRecord:
    scene = Scene.of(experiment)
    return simulate(scene, experiment.policies[0], scene.trace(experiment.traces[0], seed), seed)


def totals_of(experiment: Experiment, seed: int = 3) -> dict[str, Any]:
    record = record_of(experiment, seed)
    assert record.cache is not None
    return summarise_cache(record.cache, record.duration_s)


def test_a_run_says_what_its_cache_did(tmp_path: Path) -> None:
    """In summary.json, in timeline.parquet and in the report; the table of all runs is as ever."""
    out = tmp_path / "out"
    results = run_experiment(an_experiment(tmp_path), out, jobs=1)
    folder = out / "nirvana" / "rush" / "3"
    totals = json.loads((folder / "summary.json").read_text())["cache"]
    timeline = pd.read_parquet(folder / "timeline.parquet")
    assert (
        totals["lookups"] == totals["hits"] + totals["misses"] + totals["timeouts"] == timeline["arrived"].sum()
    )
    assert timeline["cache_lookups"].sum() == totals["lookups"]
    assert sum(totals["hits_by_steps"].values()) == totals["hits"] > 0
    assert sum(timeline[f"cache_hits:{k}"].sum() for k in totals["hits_by_steps"]) == totals["hits"]
    assert totals["held"] == totals["stored"] - totals["evicted"] == 2 * totals["prompts_held"]
    assert totals["read_bytes"] == totals["hits"] * latent_size_bytes(PROFILE)
    assert "cache" not in results.summary
    page = (out / "report.html").read_text()
    assert "The approximate cache" in page
    assert f">{100 * totals['hit_ratio']:.1f}<" in page
    assert "cache: similarity from cosines of hashed" in page


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    experiment = an_experiment(tmp_path, {"latency_cv": 0.5, "warm_up": {"requests": 5}})
    for name in ("a", "b"):
        run_experiment(experiment, tmp_path / name, jobs=1)
    files = [
        {p.relative_to(tmp_path / n): p.read_bytes() for p in (tmp_path / n).rglob("*") if p.is_file()}
        for n in "ab"
    ]
    assert files[0] == files[1]


def test_a_small_cache_drops_and_hits_less(tmp_path: Path) -> None:
    changes = {"prompts": {"zipf": 0.8}, "traces": [{"name": "long", "generate": LONG}]}
    exact = {"scale": "cosine", "thresholds": {10: 0.99, 25: 0.995}}
    large = totals_of(an_experiment(tmp_path, exact, **changes))
    small = totals_of(an_experiment(tmp_path, {**exact, "capacity_entries": 4, "eviction": "lru"}, **changes))
    assert large["evicted"] == 0 < small["evicted"]
    assert small["held"] <= 4
    assert small["hits"] < large["hits"]


LONG = {"kind": "poisson", "duration_s": 600, "rate_per_min": 20}


def test_a_warm_up_with_earlier_requests_is_not_the_run_itself(tmp_path: Path) -> None:
    """It hits more from the start, and has stored what it began with beforehand."""
    changes = {"traces": [{"name": "long", "generate": LONG}]}
    cold = totals_of(an_experiment(tmp_path, {"scale": "cosine"}, **changes))
    warm = totals_of(an_experiment(tmp_path, {"scale": "cosine", "warm_up": {"requests": 30}}, **changes))
    assert cold["started_with"] == 0 < warm["started_with"]
    assert warm["held"] == warm["started_with"] + warm["stored"] - warm["evicted"]
    assert warm["hits"] >= cold["hits"]
    assert warm["stored"] < cold["stored"]


def test_a_warm_up_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "old.txt").write_text("a prompt number 2\n\nsomething else altogether\n")
    totals = totals_of(an_experiment(tmp_path, {"warm_up": {"file": "old.txt"}}))
    assert totals["started_with"] == 2 * 2


def test_recorded_texts_are_taken_in_their_order(tmp_path: Path) -> None:
    """A known text is its own prompt; an unknown one stands with a prompt of the profile, the same each time."""
    lines = ["nobody knows this one", "a prompt number 4", "nobody knows this one"] * 60
    (tmp_path / "log.csv").write_text("prompt\n" + "\n".join(lines) + "\n")
    experiment = an_experiment(
        tmp_path, {"scale": "cosine"}, prompts={"recorded": {"file": "log.csv", "start": 1}}
    )
    again = Experiment.model_validate_json(experiment.model_dump_json())  # as a process of its own gets it
    assert (again.prompts, again.cluster) == (experiment.prompts, experiment.cluster)
    record = record_of(experiment)
    known = PROFILE.prompts.index("p4")
    assert record.prompt[0] == record.prompt[3] == known
    assert record.prompt[1] == record.prompt[2] != known
    assert record.cache is not None
    # Two texts: each is found from its second time on at the latest.
    assert record.cache.steps.tolist()[4:] == [25] * (len(record) - 4)


def test_recorded_texts_of_the_trace(tmp_path: Path) -> None:
    rows = "\n".join(f"{i}.5,a prompt number {2 * (i % 2)}" for i in range(20))
    (tmp_path / "mine.csv").write_text(f"arrival_s,prompt\n{rows}\n")
    traces = [{"name": "mine", "file": "mine.csv"}]
    record = record_of(an_experiment(tmp_path, traces=traces, prompts={"recorded": {}}))
    assert record.prompt.tolist() == [PROFILE.prompts.index(f"p{2 * (i % 2)}") for i in range(20)]


# -- what may be configured -----------------------------------------------------------------------------------


def test_a_cache_without_a_kind_is_warm() -> None:
    assert Cluster.model_validate({"cache": {"latency_s": 0.1}}).cache == CacheConfig(latency_s=0.1)
    assert Cluster().cache == CacheConfig()


def test_levels_follow_the_part_of_the_steps_that_is_skipped() -> None:
    config = FillingCacheConfig(kind="simulated")
    assert levels_of(config, PROFILE, "x") == {10: 0.75, 25: 0.95}
    other = make_profile({"big": {1: 4.0}, "big/ac-3": {1: 3.9}, "big/ac-12": {1: 3.0}})
    assert levels_of(config, other, "x") == {3: 0.65, 12: 0.79}
    assert levels_of(FillingCacheConfig(kind="simulated", thresholds={3: 0.1, 12: 0.2}), other, "x") == {
        3: 0.1,
        12: 0.2,
    }


def test_latents_have_their_size() -> None:
    assert latent_size_bytes(PROFILE) == 4 * 8 * 8 * 2
    config = FillingCacheConfig(kind="simulated", capacity_bytes=10_000)
    assert capacity_of(config, 131_072 // 64, 2, "x") == 4


@pytest.mark.parametrize(
    ("config", "field"),
    [
        ({"kind": "frozen"}, "kind|frozen"),
        ({"kind": "simulated", "eviction": "mru"}, "eviction"),
        ({"kind": "simulated", "capacity_entries": 10, "capacity_bytes": 10}, "not both"),
        ({"kind": "simulated", "warm_up": {}}, "one of requests and file"),
        ({"kind": "simulated", "network": {"bandwidth_bytes_per_s": 0}}, "bandwidth_bytes_per_s"),
        ({"kind": "warm", "eviction": "lru"}, "eviction"),
    ],
)
def test_a_cache_that_cannot_be(config: dict[str, Any], field: str) -> None:
    with pytest.raises(ValidationError, match=field):
        Cluster.model_validate({"cache": config})


@pytest.mark.parametrize(
    ("cache", "prompts", "says"),
    [
        ({"capacity_entries": 1}, None, "capacity_entries: must hold the 2 latents .*: at least 2, found 1"),
        ({"capacity_bytes": 600}, None, "capacity_bytes: must hold .*: at least 1024, found 600"),
        ({"thresholds": {10: 0.5}}, None, r"thresholds: .*for each of the steps \[10, 25\].*found \[10\]"),
        ({"thresholds": {10: 0.9, 25: 0.5}}, None, "must rise with the steps skipped"),
        ({"embeddings": "none.parquet"}, None, "none.parquet"),
        ({"embeddings": "small.yaml"}, None, "is no file of embeddings"),
        ({"warm_up": {"file": "small.yaml"}}, None, "texts are in .csv or .txt files, not .yaml"),
        ({"warm_up": {"requests": 5}}, {"recorded": {"file": "long.txt"}}, "those of 5 earlier requests"),
        ({}, {"recorded": {"file": "log.txt"}}, "has 3 texts; .* need more"),
        ({}, {"recorded": {}}, "trace 'rush' has no texts; name a file"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_found_before_the_run(
    tmp_path: Path, cache: dict[str, Any], prompts: dict[str, Any] | None, says: str
) -> None:
    (tmp_path / "log.txt").write_text("one\ntwo\nthree\n")
    (tmp_path / "long.txt").write_text("one\ntwo\n" * 100)
    with pytest.raises(InputError, match=says):
        run_experiment(an_experiment(tmp_path, cache, prompts=prompts), tmp_path / "out", jobs=1)
    assert not (tmp_path / "out").exists()


def test_recorded_and_drawn_prompts_exclude_each_other(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="recorded prompts are taken as they are; leave out zipf"):
        an_experiment(tmp_path, prompts={"recorded": {"file": "log.txt"}, "zipf": 1.0})


def test_a_profile_without_cached_variants_says_so(tmp_path: Path) -> None:
    plain = make_profile({"big": {1: 4.0}, "small": {1: 1.0}})
    with pytest.raises(InputError, match="has no ladder AC: nothing could be cached"):
        levels_of(FillingCacheConfig(kind="simulated"), plain, "x")
    deep = make_profile({"big": {1: 4.0}, "big/ac-40": {1: 1.0}})
    with pytest.raises(InputError, match=r"end at 50% of the steps, and .* skips 40 of 50; give thresholds"):
        levels_of(FillingCacheConfig(kind="simulated"), deep, "x")
