"""The shipped profiles are what the published numbers say, and what is committed is what is rebuilt."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from argus_sim.profile import Profile, shipped_profiles
from calibration import cli
from calibration.prompt_grammar import CLASSES, Prompt, write_prompts
from calibration.published import PUBLISHED, artefact_a100, write_published
from calibration.published_numbers import (
    AC_QUALITY,
    GENTD26_LOADS_S,
    SERVICE_CV,
    SIMILARITY_CDF,
)


@pytest.fixture(scope="module")
def artefact() -> Profile:
    return Profile.load("artefact-a100")


@pytest.fixture(scope="module")
def diffserve() -> Profile:
    return Profile.load("diffserve-a100")


# ---- both


@pytest.mark.parametrize("name", shipped_profiles())
def test_what_was_recorded_states_its_terms(name: str) -> None:
    profile = Profile.load(name)
    parts = [part for table in profile.tables for part in profile.provenance_of(table) if part.kind == "recorded"]
    assert all(part.licence for part in parts), [part.source for part in parts if not part.licence]


@pytest.mark.parametrize("name", list(PUBLISHED))
def test_what_is_committed_is_what_is_rebuilt(name: str) -> None:
    assert Profile.load(name).digest() == PUBLISHED[name]().digest()


@pytest.mark.parametrize("name", list(PUBLISHED))
def test_a_shipped_profile_is_small_and_says_where_it_is_from(name: str) -> None:
    folder = shipped_profiles()[name]
    assert sum(f.stat().st_size for f in folder.iterdir()) < 500_000
    profile = Profile.load(name)
    assert profile.manifest.name == name == folder.name
    # What a generator made is never called anything better, and nothing here was measured by this project.
    kinds = profile.measured_summary()
    assert kinds["quality"] == kinds["prompts"] == "synthetic"
    assert "measured" not in kinds.values()
    for table in profile.tables:
        for part in profile.provenance_of(table):
            assert "://" not in part.source or part.source.startswith("https://")


@pytest.mark.parametrize("name", list(PUBLISHED))
def test_splits_are_halves_with_the_same_mix(name: str) -> None:
    profile = Profile.load(name)
    assert len(profile.prompts) == 4000
    assert abs(profile.is_train.mean() - 0.5) < 0.001
    words = np.array([len(text.split()) for text in profile.prompt_texts])
    assert words[profile.is_train].mean() == pytest.approx(words[~profile.is_train].mean(), rel=0.02)


# ---- artefact-a100


def test_artefact_throughputs_are_the_published_ones(artefact: Profile) -> None:
    published = 1.65 * np.array([14.29, 15.87, 17.86, 20.41, 23.81, 28.57])
    ac = artefact.ladder("AC")
    in_batches_of_two = [2 * 60 / artefact.latency(v, 2).mean_s for v in ac]
    np.testing.assert_allclose(in_batches_of_two, published, rtol=5e-4)
    assert [artefact.variants[v].skipped_steps for v in ac] == [0, 5, 10, 15, 20, 25]
    # Eight GPUs: the artefact's figure has Clipper-HA at 183 and its own system at 371 of 389 a minute.
    assert 8 * in_batches_of_two[0] == pytest.approx(188.6, abs=0.1)
    assert 8 * in_batches_of_two[-1] == pytest.approx(377.1, abs=0.1)


def test_artefact_smaller_models_lie_between_tiny_sd_and_sdxl(artefact: Profile) -> None:
    sm = artefact.ladder("SM")
    assert [artefact.variants[v].name for v in sm] == ["sdxl", "sd15", "small-sd", "tiny-sd"]
    seconds = [artefact.latency(v, 1).mean_s for v in sm]
    assert seconds == pytest.approx([4.2, 2.853, 2.631, 2.429], abs=0.001)
    # Equal steps in parameters are equal steps in time.
    assert (seconds[1] - seconds[3]) / (0.860 - 0.323) == pytest.approx(
        (seconds[0] - seconds[3]) / (2.567 - 0.323)
    )


def test_artefact_mean_qualities_are_exact_in_either_split(artefact: Profile) -> None:
    expected = [1.0, *AC_QUALITY.values(), 0.935, 0.925295, 0.898]
    ratio = artefact.quality_relative_to_base()
    for rows in (artefact.is_train, ~artefact.is_train):
        np.testing.assert_allclose(ratio[rows].mean(axis=0), expected, atol=1e-6)


def test_artefact_loads(artefact: Profile) -> None:
    assert {m: artefact.load_samples_s(m).tolist() for m in artefact.models} == {
        "sdxl": [46.98],
        "sd15": [21.7],
        "small-sd": [15.05],
        "tiny-sd": [11.78],
    }


def test_artefact_similarity_has_the_recorded_shares(artefact: Profile) -> None:
    similarity = artefact.similarity()
    assert similarity is not None
    recorded = np.array([0.2249, 0.4259, 0.2128, 0.0457, 0.0319, 0.0588])
    for rows in (artefact.is_train, ~artefact.is_train):
        level = np.searchsorted([0.65, 0.75, 0.85, 0.90, 0.95], similarity[rows], side="left")
        share = np.bincount(level, minlength=6) / rows.sum()
        np.testing.assert_allclose(share, recorded, atol=1.01 / rows.sum())
    np.testing.assert_allclose(np.quantile(similarity, [0.1, 0.5, 0.99]), [0.604, 0.712, 1.0], atol=0.001)


def test_service_times_hardly_vary(artefact: Profile) -> None:
    latency = artefact.latency(artefact.base, 2)
    assert latency.std_s == pytest.approx(SERVICE_CV * latency.mean_s, rel=1e-3)


def test_assumptions_can_be_swept() -> None:
    swept = artefact_a100(text_signal=0.0, persistence=1.0)
    shipped = Profile.load("artefact-a100")
    assert swept.manifest.generator["text_signal"] == 0.0
    assert swept.digest() != shipped.digest()
    spread = [p.quality_relative_to_base()[:, 5].std() for p in (swept, shipped)]
    assert spread[0] > 1.8 * spread[1]
    np.testing.assert_allclose(swept.quality_relative_to_base().mean(axis=0)[5], AC_QUALITY[25], atol=1e-6)


# ---- diffserve-a100


def test_diffserve_batch_table(diffserve: Profile) -> None:
    sm = diffserve.ladder("SM")
    assert [diffserve.variants[v].name for v in sm] == ["sdxl", "sd15", "sdxl-lightning", "sd-turbo", "sdxs"]
    table = {
        diffserve.variants[v].name: {b: diffserve.latency(v, b).mean_s for b in diffserve.batch_sizes(v)}
        for v in sm
    }
    assert table["sdxl"] == {1: 6.1, 2: 10.65, 4: 20.92, 8: 40.23, 16: 79.11}
    assert table["sdxs"] == {1: 0.05, 2: 0.06, 4: 0.08, 8: 0.13, 16: 0.24, 32: 0.48}
    gain = {name: 2 * cells[1] / cells[2] for name, cells in table.items()}
    assert gain["sdxl"] == pytest.approx(1.15, abs=0.01)
    assert gain["sd15"] == pytest.approx(1.65, abs=0.01)


def test_diffserve_qualities_and_loads(diffserve: Profile) -> None:
    mean = diffserve.quality_relative_to_base().mean(axis=0)
    np.testing.assert_allclose(mean, [1.0, 0.935, 0.9869, 0.9309, 0.8941], atol=1e-4)
    for model in diffserve.models:
        np.testing.assert_array_equal(diffserve.load_samples_s(model), GENTD26_LOADS_S)
    assert diffserve.validate() == (
        "'sd-turbo' gives fewer images per second in batches of 32 than in smaller ones",
    )


# ---- prompts


@pytest.fixture(scope="module")
def prompts() -> list[Prompt]:
    return write_prompts(1200, 5)


def test_prompts_are_distinct_and_seeded(prompts: list[Prompt]) -> None:
    assert len({p.text for p in prompts}) == 1200
    assert write_prompts(30, 5) == prompts[:30]
    assert write_prompts(30, 6) != prompts[:30]
    assert write_prompts(0, 5) == []


def test_classes_are_equally_frequent_and_ordered_by_complexity(prompts: list[Prompt]) -> None:
    by_class = [[p.complexity for p in prompts if p.complexity_class == c] for c in range(1, CLASSES + 1)]
    assert {len(values) for values in by_class} == {200}
    for c, values in enumerate(by_class, start=1):
        assert np.mean(values) == pytest.approx(2 * c, abs=0.25)


def test_features_are_in_the_text(prompts: list[Prompt]) -> None:
    for p in prompts:
        assert (" with " in p.text and "'" in p.text) == (p.written_text == 1)
        assert any(no in p.text for no in ("without any", "but no", "with no")) == (p.negations == 1)
        assert p.complexity >= p.objects >= 1
        assert p.text == p.text.strip()
        assert "  " not in p.text
        assert "{" not in p.text


# ---- command line


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["argus-calibrate", *arguments])
    return cli.main()


def test_command_published(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run(monkeypatch, "published", "--out", str(tmp_path)) == 0
    assert sorted(f.name for f in tmp_path.iterdir()) == sorted(PUBLISHED)
    assert Profile.load(tmp_path / "artefact-a100").digest() in capsys.readouterr().out
    (tmp_path / "artefact-a100" / "mine.txt").write_text("keep")
    assert run(monkeypatch, "published", "--out", str(tmp_path)) == 2
    assert "would delete" in capsys.readouterr().err


def test_command_validate(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "validate", "diffserve-a100") == 0
    out = capsys.readouterr().out
    assert "diffserve-a100: sound" in out
    assert "loads       recorded" in out
    assert "note: 'sd-turbo'" in out
    assert run(monkeypatch, "validate", "diffserve") == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "did you mean 'diffserve-a100'" in captured.err
    assert "Traceback" not in captured.err


def test_write_published_returns_its_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PUBLISHED, "artefact-a100", lambda: Profile.load("artefact-a100"))
    monkeypatch.setitem(PUBLISHED, "diffserve-a100", lambda: Profile.load("diffserve-a100"))
    assert write_published(tmp_path) == [tmp_path / name for name in PUBLISHED]


# ---- the recorded data, where they are at hand


@pytest.mark.data
def test_service_cv_is_that_of_the_katz_logs(data: Path) -> None:
    log = pd.read_csv(data / "latency" / "katz_sdxl_e2e.csv")
    log = log[
        (log.req > 0) & log.config.isin(["diffusers-0c-0l", "nirvana-0c-0l-skip10", "nirvana-0c-0l-skip20"])
    ]
    ratio = log.e2e_s / log.groupby("config").e2e_s.transform("mean")
    assert len(ratio) == 87
    assert float(np.sqrt((ratio - 1).pow(2).sum() / (len(ratio) - 3))) == pytest.approx(SERVICE_CV, abs=5e-5)


@pytest.mark.data
def test_load_quantiles_are_those_of_gentd26(data: Path) -> None:
    log = pd.read_parquet(data / "latency" / "gentd26_component_latency.parquet")
    seconds = log.loc[log["metric"] == "base_model_load", "value"].to_numpy(dtype=float) / 1000
    assert len(seconds) == 7531
    np.testing.assert_allclose(np.quantile(seconds, (np.arange(99) + 0.5) / 99), GENTD26_LOADS_S, atol=0.006)


@pytest.mark.data
def test_similarity_quantiles_are_those_of_the_log(data: Path) -> None:
    scores = pd.read_csv(data / "unclear_licence" / "argus_cache_retrieval_log_20k.csv")["Scores"]
    share, value = np.array(SIMILARITY_CDF).T
    np.testing.assert_allclose([(scores <= v + 5e-5).mean() for v in value[1:-2]], share[1:-2], atol=0.002)
    assert (scores >= 1.0).mean() == pytest.approx(1 - share[-2], abs=1e-3)
