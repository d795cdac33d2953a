"""An imported profile holds the ratings as recorded, and says what in it is borrowed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from argus_sim.errors import InputError
from argus_sim.profile import Profile
from argus_sim.profile.importing import IMPORTERS, import_genai_bench, import_profile
from tests.make_profile import make_profile

RATINGS = """prompt_id,prompt,model,human_mean,human_scores
00001,a red cube,SDXL_Base,4.0,4|5|3
00001,a red cube,SDXL_2_1,2.0,2|2|2
00001,a red cube,SDXL_Turbo,5.0,5|5|5
00002,two owls on a sign,SDXL_Base,2.0,1|2|3
00002,two owls on a sign,SDXL_2_1,1.0,1|1|1
00002,two owls on a sign,SDXL_Turbo,1.5,1|2|7
00002,two owls on a sign,DALLE_3,5.0,5|5|5
"""


@pytest.fixture
def ratings(tmp_path: Path) -> Path:
    path = tmp_path / "ratings.csv"
    path.write_text(RATINGS)
    return path


@pytest.fixture
def lender() -> Profile:
    return make_profile(
        {"sdxl": {1: 6.0, 2: 11.0}, "sd15": {1: 2.0, 2: 2.5}, "sdxl-lightning": {1: 0.5}},
        loads_s={"sdxl": 40.0, "sd15": 20.0, "sdxl-lightning": 41.0},
        name="lender",
    )


def test_ratings_are_kept_one_row_per_rater(ratings: Path, lender: Profile) -> None:
    profile = import_genai_bench(ratings, latency_from=lender)
    assert profile.prompts == ("00001", "00002")
    assert profile.prompt_texts == ("a red cube", "two owls on a sign")
    # Columns are sdxl, sd21, sdxl-turbo; the 7 is outside the scale and left out.
    np.testing.assert_allclose(profile.quality(), [[4.0, 2.0, 5.0], [2.0, 1.0, 1.5]])
    np.testing.assert_allclose(profile.relative_quality(), [[0.8, 0.4, 1.0], [1.0, 0.5, 0.75]])
    table = profile.table("quality")
    assert set(table["seed"]) == {1, 2, 3} == set(profile.manifest.seeds)
    assert len(table) == 17
    assert set(table["metric"]) == {"human_alignment"} == {profile.manifest.metric}


def test_times_after_a_pause_are_borrowed_along(ratings: Path) -> None:
    cells = {"sdxl": {1: 6.0}, "sd15": {1: 2.0}, "sdxl-lightning": {1: 0.5}}
    profile = import_genai_bench(ratings, latency_from=make_profile(cells, after_idle_s={"sd15": {0.2: 2.5}}))
    by_name = {v.name: profile.after_idle(i, 1) for i, v in enumerate(profile.variants)}
    assert [(idle_s, found.mean_s) for idle_s, found in by_name.pop("sd21")] == [(0.2, 2.5)]
    assert set(by_name.values()) == {()}
    assert [part.covers for part in profile.provenance_of("after_idle")] == ["sd21"]
    lender = make_profile(cells | {"other": {1: 0.4}}, after_idle_s={"other": {0.2: 2.5}})
    assert "after_idle" not in import_genai_bench(ratings, latency_from=lender).tables


def test_levels_follow_latency_and_quality_need_not(ratings: Path, lender: Profile) -> None:
    profile = import_genai_bench(ratings, latency_from=lender)
    ladder = profile.ladder("SM")
    assert [profile.variants[v].name for v in ladder] == ["sdxl", "sd21", "sdxl-turbo"]
    assert [profile.latency(v, 1).mean_s for v in ladder] == [6.0, 2.0, 0.5]
    assert profile.latency(ladder[1], 2).mean_s == 2.5
    mean = profile.quality().mean(axis=0)
    assert mean[ladder[2]] > mean[ladder[1]]


def test_what_is_borrowed_says_so(ratings: Path, lender: Profile) -> None:
    profile = import_genai_bench(ratings, latency_from=lender, name="mine")
    assert profile.name == "mine"
    assert "'lender'" in profile.manifest.description
    derived = {part.covers: part.derived for part in profile.provenance_of("latency")}
    assert derived["sdxl"] is None
    assert "SD 1.5" in (derived["sd21"] or "")
    assert "upper bound" in (derived["sdxl-turbo"] or "")
    assert profile.measured_summary() == {
        "variants": "recorded",
        "latency": "synthetic",
        "loads": "synthetic",
        "prompts": "recorded",
        "quality": "recorded",
    }
    assert profile.load_samples_s("sd21").tolist() == [20.0]


def test_recorded_loads_serve_every_model(ratings: Path, lender: Profile, tmp_path: Path) -> None:
    rows = [("base_model_load", 20000.0), ("queue_wait", 3.0), ("base_model_load", 2500.0)]
    for file, write in (("l.csv", pd.DataFrame.to_csv), ("l.parquet", pd.DataFrame.to_parquet)):
        write(pd.DataFrame(rows, columns=["metric", "value"]), tmp_path / file, index=False)
        profile = import_genai_bench(ratings, latency_from=lender, loads_file=tmp_path / file)
        for model in profile.models:
            assert profile.load_samples_s(model).tolist() == [2.5, 20.0]
        assert profile.measured_summary()["loads"] == "recorded"


def test_fewer_models_and_a_lender_by_name(ratings: Path) -> None:
    profile = import_profile(
        "genai-bench", ratings, latency_from="diffserve-a100", models=["SDXL_Turbo", "SDXL_2_1"]
    )
    assert [v.name for v in profile.variants] == ["sd21", "sdxl-turbo"]
    assert profile.variants[profile.base].name == "sd21"


def test_a_prompts_split_is_its_own(ratings: Path, lender: Profile, tmp_path: Path) -> None:
    lines = [f"{i:05d},prompt number {i},SDXL_Base,3,3|3|3" for i in range(600)]
    head, *_ = RATINGS.splitlines()
    path = tmp_path / "many.csv"

    def splits(rows: list[str]) -> dict[str, str]:
        path.write_text("\n".join([head, *rows]))
        profile = import_genai_bench(path, latency_from=lender, models=["SDXL_Base"])
        return dict(zip(profile.prompt_texts, profile.split, strict=True))

    every, some = splits(lines), splits(lines[100:200])
    assert some.items() <= every.items()
    assert list(every.values()).count("train") == pytest.approx(300, abs=60)


def test_an_imported_profile_can_be_stored(ratings: Path, lender: Profile, tmp_path: Path) -> None:
    profile = import_genai_bench(ratings, latency_from=lender)
    profile.save(tmp_path / "p")
    assert Profile.load(tmp_path / "p").digest() == profile.digest()


@pytest.mark.parametrize(
    ("format", "options", "message"),
    [
        ("genai_bench", {}, "unknown format 'genai_bench'; did you mean 'genai-bench'"),
        ("genai-bench", {"latencies_from": "x"}, "no option 'latencies_from'; did you mean 'latency_from'"),
        ("genai-bench", {}, "needs the option 'latency_from': the profile that latencies are borrowed from"),
        ("genai-bench", {"latency_from": "diffserve"}, "did you mean 'diffserve-a100'"),
        ("genai-bench", {"latency_from": "artefact-a100"}, "no variant 'sdxl-lightning'"),
        ("genai-bench", {"latency_from": "diffserve-a100", "models": ["SDXL"]}, "did you mean 'SDXL_"),
        (
            "genai-bench",
            {"latency_from": "diffserve-a100", "loads_file": "none.csv"},
            r"none\.csv: cannot be read",
        ),
    ],
)
def test_what_is_wrong_is_named(ratings: Path, format: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        import_profile(format, ratings, **options)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("human_scores", "scores", "column 'human_scores' is missing"),
        ("SDXL_Turbo", "SDXL_Lightning", "no ratings of model 'SDXL_Turbo'"),
        ("4|5|3", "4|good|3", r"numbers joined by '\|', found '4\|good\|3' for prompt '00001'"),
        ("4|5|3", "", "found .* for prompt '00001'"),
        (
            "00002,two owls on a sign,SDXL_Base",
            "00002,two owls on a sign,DeepFloyd",
            "no score of the base for 1",
        ),
    ],
)
def test_broken_files_are_named(ratings: Path, lender: Profile, old: str, new: str, message: str) -> None:
    ratings.write_text(RATINGS.replace(old, new))
    with pytest.raises(InputError, match=message):
        import_genai_bench(ratings, latency_from=lender)


def test_every_format_is_documented() -> None:
    assert all((importer.__doc__ or "").strip() for importer in IMPORTERS.values())


@pytest.mark.data
def test_the_recorded_ratings_agree_with_plain_pandas(data: Path) -> None:
    path = data / "quality" / "genai_bench_527_human.csv"
    loads = data / "latency" / "gentd26_component_latency.parquet"
    profile = import_genai_bench(path, latency_from="diffserve-a100", loads_file=loads)
    raw = pd.read_csv(path, dtype={"prompt_id": str}).pivot(
        index="prompt_id", columns="model", values="human_mean"
    )
    expected = raw[["SDXL_Base", "SDXL_2_1", "SDXL_Turbo"]].to_numpy()
    np.testing.assert_allclose(profile.quality(), expected, atol=1e-3)
    assert len(profile.prompts) == 527
    assert len(profile.load_samples_s("sd21")) == 7531
    quality = profile.quality()
    assert (quality[:, 2] >= quality[:, 0]).mean() == pytest.approx(0.62, abs=0.005)
