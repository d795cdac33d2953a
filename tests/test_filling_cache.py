"""A cache that fills, behind a network: what it answers and when."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from argus_sim.core.cache import LatentCache
from argus_sim.core.commands import Command
from argus_sim.domain import CacheHit, Outcome
from argus_sim.metrics.cache import summarise_cache
from argus_sim.simulation.cluster import SimulatedCluster
from argus_sim.simulation.environment import Environment, StockEnvironment, StreamEnvironment, Tick
from argus_sim.simulation.filling import FillingCache, FillingCacheConfig
from argus_sim.simulation.network import Link
from tests.make_cluster import columns_of, make_cluster
from tests.make_engine import make_policy, make_requests
from tests.make_profile import ladder

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
