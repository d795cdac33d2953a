"""A cache that fills in whole experiments: what a run leaves of it, and what may be configured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from pydantic import ValidationError

from argus_sim.errors import InputError
from argus_sim.experiment import Cluster, Experiment
from argus_sim.experiment.cache_setup import capacity_of, latent_size_bytes, levels_of
from argus_sim.experiment.runner import run_experiment
from argus_sim.experiment.scene import Scene
from argus_sim.experiment.simulate import simulate
from argus_sim.metrics.cache import summarise_cache
from argus_sim.record import RunRecord
from argus_sim.simulation.filling import FillingCacheConfig
from argus_sim.simulation.network import CacheConfig
from tests.make_experiment import content, write_experiment
from tests.make_profile import ladder, make_profile

PROFILE = ladder()
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
