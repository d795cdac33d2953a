"""Prompts are as popular, as similar within a session, and as difficult as asked for; by default as ever."""

from __future__ import annotations

import numpy as np
import pytest

from argus_sim.errors import InputError
from argus_sim.profile import Profile
from argus_sim.provenance import Provenance
from argus_sim.trace import Trace
from argus_sim.trace.arrivals import Poisson, generate
from argus_sim.workload import Workload, stream
from argus_sim.workload.prompts import (
    Bursts,
    Drift,
    PromptsConfig,
    Sessions,
    difficulty,
    neighbours,
    zipf_exponent,
)

ORIGIN = (Provenance(kind="synthetic", source="by hand"),)


@pytest.fixture(scope="module")
def profile() -> Profile:
    return Profile.load("artefact-a100")


@pytest.fixture(scope="module")
def trace() -> Trace:
    return generate(Poisson(duration_s=86_400, rate_per_min=20), np.random.default_rng(1))


def prompts(trace: Trace, profile: Profile, config: PromptsConfig | None, seed: int = 1) -> np.ndarray:
    return Workload.of(trace, profile, 10.0, stream(seed, "prompts"), config).prompt


def test_without_a_section_prompts_are_drawn_as_ever(trace: Trace, profile: Profile) -> None:
    test = np.flatnonzero(~profile.is_train)
    expected = test[stream(1, "prompts").integers(0, len(test), size=len(trace))]
    assert prompts(trace, profile, None).tolist() == expected.tolist()


def test_every_stream_is_of_test_prompts_and_the_same_for_the_same_seed(trace: Trace, profile: Profile) -> None:
    config = PromptsConfig(zipf=1.0, sessions=Sessions(), drift=Drift(), bursts=Bursts())
    chosen = prompts(trace, profile, config)
    assert not profile.is_train[chosen].any()
    assert chosen.tolist() == prompts(trace, profile, config).tolist()
    assert chosen.tolist() != prompts(trace, profile, config, seed=2).tolist()


@pytest.mark.parametrize("exponent", [0.7, 1.2])
def test_popularity_has_the_exponent_asked_for(trace: Trace, profile: Profile, exponent: float) -> None:
    chosen = prompts(trace, profile, PromptsConfig(zipf=exponent))
    counts = np.bincount(chosen, minlength=len(profile.prompts))[np.flatnonzero(~profile.is_train)]
    assert zipf_exponent(counts) == pytest.approx(exponent, abs=0.12)


def test_an_exponent_of_0_favours_no_prompt(trace: Trace, profile: Profile) -> None:
    counts = np.bincount(prompts(trace, profile, PromptsConfig()), minlength=len(profile.prompts))
    test = counts[~profile.is_train]
    assert test.max() < test.mean() + 6 * np.sqrt(test.mean())
    assert np.var(test) == pytest.approx(test.mean(), rel=0.2)


def test_the_exponent_can_come_from_the_prompts_of_the_trace(trace: Trace, profile: Profile) -> None:
    weight = np.arange(1.0, 101) ** -1.1
    drawn = np.random.default_rng(3).choice(100, size=len(trace), p=weight / weight.sum())
    told = Trace("told", trace.arrival_s, trace.duration_s, ORIGIN, prompt=tuple(map(str, drawn)))
    chosen = prompts(told, profile, PromptsConfig(zipf="trace"))
    assert zipf_exponent(np.bincount(chosen)[np.bincount(chosen) > 0]) == pytest.approx(1.1, abs=0.1)
    with pytest.raises(InputError, match="has no prompts to fit the popularity to"):
        prompts(trace, profile, PromptsConfig(zipf="trace"))


def test_difficulty_ranks_prompts_by_what_variants_lose(profile: Profile) -> None:
    rank = difficulty(profile)
    lost = 1 - profile.relative_quality().mean(axis=1)
    assert np.argmax(rank) == np.argmax(lost)
    assert rank.min() >= -1
    assert rank.max() <= 1
    assert np.corrcoef(np.argsort(np.argsort(lost)), rank)[0, 1] > 0.99


def test_drift_makes_prompts_harder_at_its_peak(trace: Trace, profile: Profile) -> None:
    rank = difficulty(profile)[prompts(trace, profile, PromptsConfig(drift=Drift(strength=1.0)))]
    six, eighteen = (np.abs(trace.arrival_s - hour * 3600) < 3600 for hour in (6, 18))
    assert rank[six].mean() > 0.2 > -0.2 > rank[eighteen].mean()


@pytest.mark.parametrize("strength", [0.8, -0.8])
def test_bursts_bring_their_own_mix(profile: Profile, strength: float) -> None:
    rng = np.random.default_rng(4)
    times = np.sort(np.concatenate([rng.uniform(0, 36_000, 6_000), rng.uniform(20_000, 22_000, 4_000)]))
    bursty = Trace("bursty", times, 36_000.0, ORIGIN)
    rank = difficulty(profile)[prompts(bursty, profile, PromptsConfig(bursts=Bursts(strength=strength)))]
    inside = (times >= 20_000) & (times < 22_000)
    assert np.sign(strength) * (rank[inside].mean() - rank[~inside].mean()) > 0.3


def test_a_sliver_at_the_end_is_no_burst(profile: Profile) -> None:
    rng = np.random.default_rng(0)
    times = np.sort(np.concatenate([rng.uniform(0, 1800, 300), rng.uniform(1800, 3600, 900)]))
    config = PromptsConfig(bursts=Bursts(strength=1.0))
    whole = prompts(Trace("whole", times, 3600.0, ORIGIN), profile, config)
    longer = prompts(Trace("longer", np.append(times, 3600.05), 3600.1, ORIGIN), profile, config)
    rank = difficulty(profile)
    assert rank[longer[300:-1]].mean() == pytest.approx(rank[whole[300:]].mean(), abs=0.02)


def test_a_session_keeps_to_similar_prompts(profile: Profile) -> None:
    trace = generate(Poisson(duration_s=7_200, rate_per_min=60), np.random.default_rng(5))
    one = PromptsConfig(sessions=Sessions(mean_length=50, concurrent=1, neighbours=5))
    chosen = prompts(trace, profile, one)
    test = np.flatnonzero(~profile.is_train)
    near = neighbours([profile.prompt_texts[i] for i in test], 5)
    assert near[:, 0].tolist() == list(range(len(test)))
    # In windows of 10 requests of sessions of 50, few distinct prompts: at most 5 per session and two sessions.
    distinct = np.array([len(set(chosen[i : i + 10].tolist())) for i in range(0, len(chosen) - 10, 10)])
    assert np.median(distinct) <= 5
    free = prompts(trace, profile, PromptsConfig())
    assert np.median([len(set(free[i : i + 10].tolist())) for i in range(0, len(free) - 10, 10)]) >= 9


def test_texts_without_words_have_no_neighbours_but_themselves() -> None:
    assert neighbours(["?", "!"], 3).tolist() == [[0, 0], [1, 1]]
    assert neighbours(["a red cube", "two owls", "a red ball"], 2).tolist()[0] == [0, 2]
