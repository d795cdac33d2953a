"""A profile keeps what it is given, says what is wrong with it all at once, and never fills a hole silently."""

from __future__ import annotations

import doctest
import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import argus_sim.profile.profile
from argus_sim.errors import InputError
from argus_sim.profile import Latency, Manifest, Profile, shipped_profiles
from argus_sim.profile import tables as profile_tables
from argus_sim.provenance import Provenance
from tests.make_profile import ladder, make_profile

Tables = dict[str, pd.DataFrame]


def parts(profile: Profile) -> tuple[Manifest, Tables]:
    return profile.manifest, {name: profile.table(name) for name in profile.tables}


# ---- storing


def test_what_is_saved_is_what_is_loaded(tmp_path: Path) -> None:
    profile = ladder()
    profile.save(tmp_path / "p")
    again = Profile.load(tmp_path / "p")
    assert again.digest() == profile.digest()
    assert again.manifest == profile.manifest
    for table in profile.tables:
        pd.testing.assert_frame_equal(again.table(table), profile.table(table), check_dtype=False)
    assert again.variants == profile.variants
    np.testing.assert_array_equal(again.quality(), profile.quality())


def test_equal_profiles_have_equal_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        ladder().save(tmp_path / name)
    files = sorted(f.name for f in (tmp_path / "a").iterdir())
    assert files == sorted(["profile.json", *(f"{t}.parquet" for t in ladder().tables)])
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_digest_ignores_the_order_of_rows_and_nothing_else() -> None:
    manifest, tables = parts(ladder())
    digest = ladder().digest()
    shuffled = {
        name: frame if name in ("variants", "prompts") else frame.sample(frac=1.0, random_state=3)
        for name, frame in tables.items()
    }
    assert Profile.from_tables(manifest, shuffled).digest() == digest
    changed = tables["quality"].assign(score=tables["quality"]["score"] + 1e-12)
    assert Profile.from_tables(manifest, tables | {"quality": changed}).digest() != digest
    renamed = manifest.model_copy(update={"description": "another"})
    assert Profile.from_tables(renamed, tables).digest() != digest


def test_saving_replaces_a_profile_and_spares_anything_else(tmp_path: Path) -> None:
    ladder().save(tmp_path / "p")
    make_profile({"big": {1: 2.0}}).save(tmp_path / "p")
    assert Profile.load(tmp_path / "p").models == ("big",)
    assert [f.name for f in tmp_path.iterdir()] == ["p"]
    (tmp_path / "p" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"would delete .*notes\.txt"):
        ladder().save(tmp_path / "p")


def test_a_write_that_fails_leaves_the_old_profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ladder().save(tmp_path / "p")

    def full(*_: object, **__: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(profile_tables.pq, "write_table", full)
    with pytest.raises(OSError, match="disk full"):
        make_profile({"big": {1: 2.0}}).save(tmp_path / "p")
    assert Profile.load(tmp_path / "p").digest() == ladder().digest()
    assert [f.name for f in tmp_path.iterdir()] == ["p"]


def test_a_profile_crosses_processes() -> None:
    profile = ladder()
    profile.relative_quality()
    assert pickle.loads(pickle.dumps(profile)).digest() == profile.digest()


# ---- finding


def test_shipped_profiles_are_found_without_importing_the_harness() -> None:
    code = (
        "import sys; from argus_sim.profile import shipped_profiles;"
        "assert {'artefact-a100', 'diffserve-a100'} <= set(shipped_profiles());"
        "assert not any(m == 'calibration' or m.startswith('calibration.') for m in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])


def test_load_says_what_there_is(tmp_path: Path) -> None:
    assert Profile.load("artefact-a100").name == "artefact-a100"
    with pytest.raises(InputError, match="did you mean 'artefact-a100'"):
        Profile.load("artefact-a10")
    with pytest.raises(InputError, match=r"no profile\.json"):
        Profile.load(tmp_path)
    assert all((folder / "profile.json").is_file() for folder in shipped_profiles().values())


def test_broken_files_are_named(tmp_path: Path) -> None:
    ladder().save(tmp_path / "p")
    (tmp_path / "p" / "loads.parquet").write_text("not parquet")
    with pytest.raises(InputError, match=r"loads\.parquet: not a readable Parquet file"):
        Profile.load(tmp_path / "p")
    manifest = json.loads((tmp_path / "p" / "profile.json").read_text())
    manifest["schema_version"], manifest["gpus"] = 2, "x"
    (tmp_path / "p" / "profile.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=r"profile\.json: schema_version: .*gpus"):
        Profile.load(tmp_path / "p")


# ---- asking


def test_ladders_start_at_the_base() -> None:
    profile = ladder()
    assert profile.strategies == ("AC", "SM")
    names = [profile.variants[v].name for v in profile.ladder("AC")]
    assert names == ["big", "big/ac-10", "big/ac-25"]
    assert [profile.variants[v].name for v in profile.ladder("SM")] == ["big", "small"]
    assert profile.variants[profile.base].name == "big"
    assert profile.models == ("big", "small")
    assert profile.variants[1].skipped_steps == 10
    assert profile.variants[1].memory_bytes is None


def test_a_missing_combination_is_an_error_that_names_it() -> None:
    profile = ladder()
    small = profile.variant_id("small")
    assert profile.batch_sizes(small) == (1, 2)
    with pytest.raises(InputError, match=r"'test' has no latency of 'small' in batches of 4; it has 1, 2"):
        profile.latency(small, 4)
    with pytest.raises(InputError, match="did you mean 'small'"):
        profile.variant_id("smal")
    with pytest.raises(InputError, match="no ladder 'BASE'"):
        profile.ladder("BASE")
    with pytest.raises(InputError, match="no load of 'big' from 'host'; it has disk"):
        profile.load_samples_s("big", "host")
    with pytest.raises(InputError, match="no model 'bigg'; did you mean 'big'"):
        profile.load_samples_s("bigg")
    with pytest.raises(InputError, match="no metric 'clip'"):
        profile.quality("clip")
    with pytest.raises(InputError, match="no table 'similarities'; did you mean 'similarity'"):
        profile.table("similarities")
    assert make_profile({"big": {1: 1.0}}).similarity() is None


def test_quality_is_a_mean_over_seeds_and_ratios_follow_from_it() -> None:
    manifest, tables = parts(make_profile({"big": {1: 2.0}, "small": {1: 1.0}}, prompts=2))
    rows = [
        ("p0", "big", "score", 2.0, 0),
        ("p0", "big", "score", 4.0, 1),
        ("p0", "small", "score", 6.0, 0),
        ("p1", "big", "score", 5.0, 0),
        ("p1", "big", "other", -1.0, 0),
    ]
    tables["quality"] = pd.DataFrame(rows, columns=["prompt", "variant", "metric", "score", "seed"])
    profile = Profile.from_tables(manifest, tables)
    nan = np.nan
    np.testing.assert_allclose(profile.quality(), [[3.0, 6.0], [5.0, nan]])
    np.testing.assert_allclose(profile.relative_quality(), [[0.5, 1.0], [1.0, nan]])
    np.testing.assert_allclose(profile.quality_relative_to_base(), [[1.0, 2.0], [1.0, nan]])
    np.testing.assert_allclose(profile.quality("other"), [[nan, nan], [-1.0, nan]])
    with pytest.raises(InputError, match="no ratio of 'other'"):
        profile.relative_quality("other")
    with pytest.raises(ValueError, match="read-only"):
        profile.quality()[0, 0] = 1.0


def test_similarity_is_the_nearest_neighbours() -> None:
    manifest, tables = parts(ladder())
    rest = [(f"p{i}", None, 0.5) for i in range(2, len(tables["prompts"]))]
    rows = [("p1", "p2", 0.7), ("p1", "p3", 0.9), ("p0", None, 0.4), *rest]
    tables["similarity"] = pd.DataFrame(rows, columns=["prompt", "neighbour", "similarity"])
    similarity = Profile.from_tables(manifest, tables).similarity()
    assert similarity is not None
    np.testing.assert_allclose(similarity[:3], [0.4, 0.9, 0.5])
    # A prompt without a neighbour is no hit, and no miss either.
    tables["similarity"] = tables["similarity"].iloc[:-2]
    with pytest.raises(
        InputError, match=r"profile 'test': table similarity has no row for prompt 'p18' and 1 more"
    ):
        Profile.from_tables(manifest, tables).similarity()


def test_splits_and_texts_are_by_position() -> None:
    profile = ladder()
    assert profile.split[:2] == ("test", "train")
    assert profile.is_train.tolist() == [s == "train" for s in profile.split]
    assert profile.prompts[3] == "p3"
    assert profile.prompt_texts[3] == "a prompt number 3"


def test_a_variant_without_the_profiles_resolution_runs_at_its_own() -> None:
    manifest, tables = parts(make_profile({"big": {1: 2.0}, "small": {1: 1.0}}))
    other = tables["latency"].assign(width=32, height=32, mean_s=0.5)
    mixed = pd.concat([tables["latency"], other.loc[other["variant"] == "big"]])
    profile = Profile.from_tables(manifest, tables | {"latency": mixed})
    assert profile.latency(profile.base, 1).mean_s == 2.0
    only_own = pd.concat([tables["latency"].iloc[:1], other.iloc[1:]])
    profile = Profile.from_tables(manifest, tables | {"latency": only_own})
    assert profile.latency(1, 1).mean_s == 0.5
    two = pd.concat([tables["latency"].iloc[:1], other.iloc[1:], other.iloc[1:].assign(width=16)])
    with pytest.raises(InputError, match="'small' has several resolutions"):
        Profile.from_tables(manifest, tables | {"latency": two})


# ---- latency


@pytest.mark.parametrize("cv", [0.0, 0.0016, 0.3, 1.0])
def test_every_distribution_has_the_mean(cv: float) -> None:
    latency = Latency.lognormal(4.0, 4.0 * cv)
    u = (np.arange(200_000) + 0.5) / 200_000
    assert latency.quantile_s(u, "deterministic").mean() == 4.0
    lognormal = latency.quantile_s(u, "lognormal")
    assert lognormal.mean() == pytest.approx(4.0, rel=2e-3)
    assert lognormal.std() == pytest.approx(4.0 * cv, rel=0.03, abs=1e-9)
    assert latency.quantile_s([0.5, 0.9, 0.99], "lognormal") == pytest.approx(
        [latency.p50_s, latency.p90_s, latency.p99_s]
    )
    # Between percentiles and with no tail beyond p99 the mean is kept as far as a lowest value of 0 allows.
    assert latency.quantile_s(u, "empirical").mean() == pytest.approx(4.0, rel=1e-3 if cv < 0.5 else 0.1)


def test_missing_columns_mean_no_spread_and_given_percentiles_are_kept() -> None:
    manifest, tables = parts(make_profile({"big": {1: 2.0}}))
    bare = tables["latency"][["variant", "batch_size", "width", "height", "mean_s"]]
    assert Profile.from_tables(manifest, tables | {"latency": bare}).latency(0, 1) == Latency(2, 0, 2, 2, 2)
    given = bare.assign(std_s=1.0, p50_s=1.5, p90_s=3.0, p99_s=7.0)
    found = Profile.from_tables(manifest, tables | {"latency": given}).latency(0, 1)
    assert found == Latency(2.0, 1.0, 1.5, 3.0, 7.0)


# ---- checking


def _set(table: str, column: str, value: object, rows: slice = slice(0, 1)) -> Callable[[Tables], None]:
    def change(tables: Tables) -> None:
        frame = tables[table].astype({column: object})
        frame.iloc[rows, list(frame.columns).index(column)] = value
        tables[table] = frame

    return change


def _drop(table: str, rows: Callable[[pd.DataFrame], pd.Series]) -> Callable[[Tables], None]:
    def change(tables: Tables) -> None:
        tables[table] = tables[table].loc[~rows(tables[table])]

    return change


def _twice(table: str) -> Callable[[Tables], None]:
    return lambda tables: tables.update({table: pd.concat([tables[table], tables[table].iloc[:1]])})


BROKEN: list[tuple[Callable[[Tables], object], str]] = [
    (lambda t: t.update(latencies=t.pop("latency")), r"unknown table 'latencies'; did you mean 'latency'"),
    (lambda t: t.pop("loads"), "table loads is missing"),
    (lambda t: t.update(loads=t["loads"].rename(columns={"seconds": "second"})), "did you mean 'seconds'"),
    (lambda t: t.update(loads=t["loads"].rename(columns={"seconds": "second"})), "'seconds' is missing"),
    (_set("latency", "mean_s", -1.0), "1 rows whose mean_s is not positive"),
    (_set("latency", "mean_s", np.nan), "1 empty values in column 'mean_s'"),
    (_set("latency", "mean_s", "fast"), "must hold finite floats, found 'fast'"),
    (_set("latency", "mean_s", np.inf), "must hold finite floats"),
    (_set("latency", "std_s", -0.1), "negative values in std_s"),
    (_set("latency", "p50_s", 1.0), "must be given together"),
    (_set("latency", "batch_size", 1.5), "'batch_size' must hold finite ints"),
    (_set("latency", "variant", "bigg"), "unknown variant 'bigg'; did you mean 'big'"),
    (_drop("latency", lambda f: f["variant"] == "small"), "variant 'small' has no row for batch size 1"),
    (_twice("latency"), "table latency: 1 rows repeat a key"),
    (_twice("variants"), "table variants: 1 rows repeat a key"),
    (_twice("quality"), "table quality: 1 rows repeat a key"),
    (_drop("loads", lambda f: f["model"] == "small"), "no load time of model 'small'"),
    (_set("loads", "seconds", -1.0), "table loads: negative seconds"),
    (_set("loads", "source", "tape"), "unknown source 'tape'"),
    (_set("quality", "prompt", "nobody"), "unknown prompt 'nobody'"),
    (_set("quality", "variant", "nothing"), "unknown variant 'nothing'"),
    (_set("quality", "metric", "clip", slice(None)), "no scores in the profile's metric 'score'"),
    (_set("quality", "score", 0.0, slice(None)), "the base scores 0 for 20 prompts"),
    (_set("quality", "score", -1.0), "negative scores"),
    (_drop("quality", lambda f: f["variant"] == "small"), "no score of variant 'small'"),
    (_drop("quality", lambda f: f["prompt"] == "p3"), "no score of the base for 1 prompts, first 'p3'"),
    (_set("prompts", "split", "validation"), "unknown split 'validation'"),
    (_set("prompts", "text", 3), "must hold text, found 3"),
    (_set("similarity", "similarity", 1.5), "outside"),
    (_drop("variants", lambda f: f["variant"] == "big"), "base variant 'big' is not in table variants"),
    (_set("variants", "level", 3, slice(1, 2)), r"ladder 'AC' must have levels 1, 2, \.\.\., found \[2, 3\]"),
    (_set("variants", "skipped_steps", 50), "0 <= skipped_steps < steps"),
    (_set("variants", "strategy", "BASE", slice(3, 4)), "the base 'big' and no other"),
    (_set("after_idle", "idle_s", 0.0), "table after_idle: 1 rows whose idle_s is not positive"),
    (_set("after_idle", "std_s", -1.0), "table after_idle: negative values in std_s"),
    (_set("after_idle", "p90_s", 1.0), "table after_idle: p50_s <= p90_s <= p99_s must be given together"),
    (_set("after_idle", "variant", "bigg"), "1 rows without one in table latency, first 'bigg' in batches of 1"),
    (
        _set("after_idle", "batch_size", 3),
        "1 rows without one in table latency, first 'big' in batches of 3 at 64 x 64",
    ),
    (_twice("after_idle"), "table after_idle: 1 rows repeat a key"),
    (lambda t: t.update(prompts=t["prompts"].iloc[:0], quality=t["quality"].iloc[:0]), "table prompts is empty"),
]


def resting() -> Profile:
    """A ladder of which two variants have been timed after pauses."""
    manifest, tables = parts(ladder())
    rows = [
        ("big", 1, 64, 64, 0.5, 5.0, 0.5),
        ("big", 1, 64, 64, 0.1, 4.5, 0.5),
        ("small", 1, 64, 64, 0.1, 1.2, 0.1),
    ]
    columns = ["variant", "batch_size", "width", "height", "idle_s", "mean_s", "std_s"]
    tables["after_idle"] = pd.DataFrame(rows, columns=columns)
    provenance = manifest.provenance | {"after_idle": manifest.provenance["latency"]}
    return Profile.from_tables(manifest.model_copy(update={"provenance": provenance}), tables)


def test_times_after_a_pause(tmp_path: Path) -> None:
    profile = resting()
    big, small = profile.variant_id("big"), profile.variant_id("small")
    assert [(idle_s, found.mean_s) for idle_s, found in profile.after_idle(big, 1)] == [(0.1, 4.5), (0.5, 5.0)]
    assert [found.std_s for _, found in profile.after_idle(small, 1)] == [0.1]
    assert profile.after_idle(big, 2) == profile.after_idle(profile.variant_id("big/ac-10"), 1) == ()
    profile.save(tmp_path / "p")
    again = Profile.load(tmp_path / "p")
    assert again.digest() == profile.digest() != ladder().digest()
    assert again.after_idle(big, 1) == profile.after_idle(big, 1)
    # Of a variant whose latencies are at the profile's resolution, no times at another one count.
    manifest, tables = parts(profile)
    tables["latency"] = pd.concat([tables["latency"], tables["latency"].assign(width=128)])
    tables["after_idle"]["width"] = 128
    assert Profile.from_tables(manifest, tables).after_idle(big, 1) == ()


@pytest.mark.parametrize(("change", "message"), BROKEN)
def test_what_is_wrong_is_named(change: Callable[[Tables], object], message: str) -> None:
    manifest, tables = parts(resting())
    change(tables)
    with pytest.raises(InputError, match=message):
        Profile.from_tables(manifest, tables)


def test_everything_wrong_is_told_at_once() -> None:
    manifest, tables = parts(ladder())
    for change, _ in (BROKEN[4], BROKEN[17], BROKEN[26]):
        change(tables)
    with pytest.raises(InputError) as caught:
        Profile.from_tables(manifest, tables, where="here")
    text = str(caught.value)
    assert text.startswith("here: profile 'test' has 3 problems:")
    assert all(word in text for word in ("mean_s", "negative seconds", "validation"))


def test_levels_follow_latency_unless_the_difference_is_noise() -> None:
    with pytest.raises(InputError, match=r"ladder 'SM': 'small' \(3 s\) is slower than 'big' \(2 s\)"):
        make_profile({"big": {1: 2.0}, "small": {1: 3.0}})
    make_profile({"big": {1: 2.0}, "small": {1: 2.1}}, std_s=0.05)  # within hypot(0.1, 0.105)
    # Quality is free: recorded ratings often put a faster model above a slower one.
    make_profile({"big": {1: 2.0}, "small": {1: 1.0}}, quality={"big": 0.5, "small": 0.9})


def test_falling_throughput_is_a_remark_not_an_error() -> None:
    profile = make_profile({"big": {1: 1.0, 2: 1.5, 4: 3.5}})
    assert profile.validate() == ("'big' gives fewer images per second in batches of 4 than in smaller ones",)
    assert ladder().validate() == ()


def test_prompts_of_one_split_only_are_remarked_on() -> None:
    profile = ladder()
    tables = {name: profile.table(name) for name in profile.tables}
    tables["prompts"]["split"] = "test"
    remark = "no prompts with split 'train': no experiment can use the profile"
    assert Profile.from_tables(profile.manifest, tables).validate() == (remark,)


def test_every_row_must_have_an_origin() -> None:
    manifest, tables = parts(ladder())

    def build(**provenance: tuple[Provenance, ...]) -> Profile:
        changed = {**manifest.provenance, **provenance}
        return Profile.from_tables(manifest.model_copy(update={"provenance": changed}), tables)

    one = Provenance(kind="published", source="somewhere", covers="big*")
    two = Provenance(kind="measured", source="here", covers="small")
    column = Provenance(kind="recorded", source="there", covers="std_s")
    profile = build(latency=(one, two, column))
    assert profile.measured_summary()["latency"] == "published"
    assert profile.measured_summary()["quality"] == "synthetic"
    assert profile.provenance_of("latency") == (one, two, column)
    with pytest.raises(InputError, match="table latency: no provenance covers 'small'"):
        build(latency=(one,))
    with pytest.raises(InputError, match="covers 'small', which is nothing in it"):
        build(loads=(Provenance(kind="measured", source="here"), two), variants=(one, two), prompts=(two,))
    with pytest.raises(InputError, match="table latency has no provenance"):
        build(latency=())
    with pytest.raises(InputError, match="provenance of a table that is not there: 'load'; did you mean"):
        build(load=(one,))


def test_the_examples_in_the_documentation_run() -> None:
    assert doctest.testmod(argus_sim.profile.profile).failed == 0
