"""Ratings become profiles with raters apart; what they disagree about is no effect of prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from argus_sim.errors import InputError
from argus_sim.experiment import Experiment
from argus_sim.experiment.scene import Scene
from argus_sim.profile import Profile
from argus_sim.profile.importing import import_profile
from argus_sim.profile.ratings import components
from tests.make_experiment import content
from tests.make_profile import make_profile


@pytest.fixture
def lender() -> Profile:
    return make_profile({"sdxl": {1: 6.0}, "sd15": {1: 2.0}}, loads_s={"sdxl": 40.0, "sd15": 20.0}, name="lender")


def drawn(rater: float, raters: int = 3, prompts: int = 400, models: int = 4) -> pd.DataFrame:
    rng = np.random.default_rng(1)
    effect = rng.normal(0, 0.8, (prompts, 1)) + np.linspace(-1, 1, models) + rng.normal(0, 0.5, (prompts, models))
    scores = 10 + effect[:, :, None] + rng.normal(0, rater, (prompts, models, raters)) if rater else None
    scores = 10 + np.repeat(effect[:, :, None], raters, axis=2) if scores is None else scores
    p, m, r = np.indices(scores.shape)
    return pd.DataFrame({"prompt": p.ravel(), "model": m.ravel(), "seed": r.ravel() + 1, "score": scores.ravel()})


@pytest.mark.parametrize("rater", [0.0, 0.7])
def test_raters_noise_is_taken_off_the_other_parts(rater: float) -> None:
    found = components(drawn(rater))
    assert found.rater == pytest.approx(rater, abs=0.03)
    assert found.prompt == pytest.approx(0.8, abs=0.1)
    assert found.interaction == pytest.approx(0.5, abs=0.05)
    assert found.model == pytest.approx(float(np.std(np.linspace(-1, 1, 4), ddof=1)), abs=0.1)


def test_one_rating_each_leaves_raters_unknown() -> None:
    found = components(drawn(0.7, raters=1))
    assert np.isnan(found.rater)
    assert found.interaction == pytest.approx(np.hypot(0.5, 0.7), abs=0.05)
    assert "with raters' noise" in found.described()


FILES = {
    "agiqa-3k": (
        "a.csv",
        "model,prompt_idx,prompt,mos_quality,mos_align\n"
        "X,0,a cat,1,2.5\nY,0,a cat,1,3\nX,1,a dog,1,2\nY,1,a dog,1,1\n",
    ),
    "tifa-160": (
        "t.csv",
        "prompt_id,model,prompt,human_scores\np0,X,a cat,2|3\np0,Y,a cat,3|3\np1,X,a dog,2|2\np1,Y,a dog,1|1\n",
    ),
    "aigiqa-20k": (
        "q.csv",
        "model,name,prompt,mos\nX,0,a cat,2.5\nY,0,a cat,3\nX,1,a dog,2\nY,1,a dog,1\nX,2,an owl,4\n",
    ),
    "csv": ("c.csv", "prompt,model,score\na cat,X,2\na cat,X,3\na cat,Y,3\na dog,X,2\na dog,Y,1\n"),
}


@pytest.mark.parametrize("format", FILES)
def test_formats_give_the_same_profile_of_the_same_ratings(tmp_path: Path, lender: Profile, format: str) -> None:
    name, text = FILES[format]
    (tmp_path / name).write_text(text)
    profile = import_profile(format, tmp_path / name, latency_from=lender, latency_of={"Y": "sd15", "X": "sdxl"})
    assert [v.name for v in profile.variants] == ["x", "y"]  # the slowest first
    order = np.argsort(profile.prompt_texts)
    assert [profile.prompt_texts[i] for i in order] == ["a cat", "a dog"]
    np.testing.assert_allclose(profile.quality()[order], [[2.5, 3.0], [2.0, 1.0]])
    assert profile.latency(0, 1).mean_s == 6.0
    assert profile.provenance_of("quality")[0].kind == "recorded"
    assert "as sdxl, chosen by the user" in (profile.provenance_of("latency")[0].derived or "")
    assert "Standard deviations of a score" in profile.manifest.description
    profile.save(tmp_path / "p")
    assert Profile.load(tmp_path / "p").digest() == profile.digest()


def test_an_experiment_reads_ratings_with_lists_and_mappings_among_the_options(tmp_path: Path) -> None:
    rows = [f"prompt {p},{model},{score}" for p in range(40) for model, score in (("X", 2), ("Y", 1))]
    (tmp_path / "c.csv").write_text("\n".join(["prompt,model,score", *rows]))
    options = {"latency_from": "diffserve-a100", "latency_of": {"X": "sdxl", "Y": "sd15"}}
    profile = {"format": "csv", "file": str(tmp_path / "c.csv"), "options": options}
    scene = Scene.of(Experiment.check(content() | {"profile": profile}, where="test"))
    assert [v.name for v in scene.profile.variants] == ["x", "y"]
    assert Scene.of(scene.experiment).profile is scene.profile


def test_imagenhub_keeps_its_three_raters_apart(tmp_path: Path, lender: Profile) -> None:
    head = "uid\tSD\tSDXL\n"
    for rater, rows in enumerate(
        ["a.jpg\t[1,1]\t[0.5,1]\nb.jpg\t[0,0.5]\t[0,1]", "a.jpg\t[0.5, 1]\t[1,1]\nb.jpg\t[1,1]\t[0,1]"], start=1
    ):
        (tmp_path / f"Text-To-Image_rater{rater}.tsv").write_text(head + rows + "\n")
    options: dict[str, Any] = {"latency_from": lender, "latency_of": {"SD": "sd15", "SDXL": "sdxl"}}
    profile = import_profile("imagenhub", tmp_path, **options)
    # The base, SDXL, has 0 from every rater for b.jpg.
    assert profile.prompts == ("a.jpg",)
    np.testing.assert_allclose(profile.quality(), [[0.75, 0.75]])
    assert set(profile.table("quality")["seed"]) == {1, 2}
    seen = import_profile("imagenhub", tmp_path, score="perceptual", **options)
    np.testing.assert_allclose(seen.quality(), [[1.0, 1.0], [1.0, 0.75]])
    (tmp_path / "Text-To-Image_rater1.tsv").write_text(head + "a.jpg\t1\t[0.5,1]\n")
    with pytest.raises(InputError, match=r"ratings look like \[1,0\.5\], found '1'"):
        import_profile("imagenhub", tmp_path, **options)


def test_a_column_of_raters_is_kept(tmp_path: Path, lender: Profile) -> None:
    (tmp_path / "c.csv").write_text("t,m,s,who\na,X,2,eve\na,X,3,bob\na,Y,1,eve\n")
    options = {"prompt": "t", "model": "m", "score": "s", "rater": "who", "origin": "us", "terms": "CC0"}
    profile = import_profile(
        "csv", tmp_path / "c.csv", latency_from=lender, latency_of={"X": "sdxl", "Y": "sd15"}, **options
    )
    table = profile.table("quality")
    assert table.loc[table["variant"] == "y", "seed"].tolist() == [2]
    part = profile.provenance_of("quality")[0]
    assert (part.source, part.licence) == ("us", "CC0")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"latency_of": {"Z": "sdxl"}}, "no ratings of model 'Z'"),
        ({"latency_of": {}}, "latency_of names no model. Allowed: X, Y"),
        ({"latency_of": {"X": "sd15", "Y": "sd51"}}, "no variant 'sd51'"),
        ({}, "needs the option 'latency_of': the variant of that profile"),
        ({"latency_of": "X"}, "format csv: latency_of: must be a mapping, found 'X'"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, lender: Profile, options: dict[str, Any], expected: str) -> None:
    name, text = FILES["csv"]
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=expected):
        import_profile("csv", tmp_path / name, latency_from=lender, **options)
    (tmp_path / name).write_text("prompt,model,score\na,X,good\n")
    with pytest.raises(InputError, match="scores must be numbers >= 0, found 'good'"):
        import_profile("csv", tmp_path / name, latency_from=lender, latency_of={"X": "sdxl"})


@pytest.mark.data
def test_the_recorded_ratings_agree_with_plain_pandas(data: Path) -> None:
    quality = data / "quality"
    cases: list[tuple[str, Path, str, str, dict[str, str], int]] = [
        (
            "agiqa-3k",
            quality / "agiqa3k_mos.csv",
            "prompt_idx",
            "mos_align",
            {"xl2.2_normal": "sdxl", "sd1.5_normal": "sd15", "sd1.5_lowstep": "sdxl-lightning"},
            300,
        ),
        (
            "tifa-160",
            quality / "tifa160_human_clipscore.csv",
            "prompt_id",
            "human_mean",
            {"stable_diffusion_v2_1": "sdxl", "stable_diffusion_v1_5": "sd15"},
            160,
        ),
    ]
    for format, path, prompt, score, models, count in cases:
        profile = import_profile(format, path, latency_from="diffserve-a100", latency_of=models)
        frame = pd.read_csv(path)
        raw = frame[frame["model"].isin(list(models))].pivot(index=prompt, columns="model", values=score)
        base = next(iter(models))
        variants = [v.name for v in profile.variants]
        assert len(profile.prompts) == len(raw) == count
        assert variants[0] == base.replace("_", "-")
        order = raw[[m for name in variants for m in models if m.replace("_", "-") == name]]
        np.testing.assert_allclose(profile.quality(), order.to_numpy(), atol=1e-3)
    path = data / "unclear_licence" / "aigiqa20k_train_mos.csv"
    few = import_profile(
        "aigiqa-20k", path, latency_from="diffserve-a100", latency_of={"SDXL": "sdxl", "SD1.5": "sd15"}
    )
    frame = pd.read_csv(path)
    both = set(frame.loc[frame["model"] == "SDXL", "prompt"]) & set(
        frame.loc[frame["model"] == "SD1.5", "prompt"]
    )
    assert set(few.prompt_texts) == both
