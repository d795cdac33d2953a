"""Scorers against the same computation by hand, on a CLIP of the real format."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from argus_sim.errors import InputError
from calibration import scorers

torch = pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("torchmetrics", reason="torchmetrics is not installed")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")

from safetensors.torch import load_file, save_file  # noqa: E402

from tests.calibration.make_pipelines import tiny_scorer  # noqa: E402

TEXTS = ["a red fox", "two owls on a bicycle in the rain", "a lamp"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_scorer(tmp_path_factory.mktemp("scorers") / "judge")


@pytest.fixture(scope="module")
def images() -> Any:
    return np.random.default_rng(0).random((3, 16, 16, 3), dtype=np.float32)


def by_hand(folder: Path, images: Any) -> tuple[Any, float]:
    """(cosines, temperature) with transformers alone."""
    model = transformers.CLIPModel.from_pretrained(folder).eval()
    processor = transformers.CLIPProcessor.from_pretrained(folder)
    inputs = processor(text=TEXTS, images=scorers.pil(images), padding=True, return_tensors="pt")
    with torch.no_grad():
        out = model(**inputs)
    return (out.image_embeds * out.text_embeds).sum(-1).double().numpy(), float(model.logit_scale.detach().exp())


def test_clip_score_is_a_hundred_cosines(folder: Path, images: Any) -> None:
    cosines, _ = by_hand(folder, images)
    scorer = scorers.build(f"clip={folder}", device="cpu")
    assert scorer.metric == "clip_score"
    assert scorer.score(images, TEXTS) == pytest.approx(np.maximum(100.0 * cosines, 0.0), abs=1e-5)


@pytest.mark.parametrize("name", ["clip", "pickscore"])
def test_weights_that_lack_some_do_not_rate(name: str, folder: Path, tmp_path: Path) -> None:
    """transformers would go on with random ones."""
    shutil.copytree(folder, tmp_path / "part")
    weights = load_file(tmp_path / "part" / "model.safetensors")
    lacking = next(key for key in weights if "text_projection" in key)
    save_file(
        {k: w for k, w in weights.items() if k != lacking},
        tmp_path / "part" / "model.safetensors",
        {"format": "pt"},
    )
    with pytest.raises(InputError, match=rf"1 of its weights are not there, {lacking} first"):
        scorers.build(f"{name}={tmp_path / 'part'}", device="cpu")


def test_a_caption_that_is_too_long_is_rated_by_its_beginning(folder: Path, images: Any) -> None:
    beginning = "a red circle on a blue background " * 12
    texts = [beginning + "and a fox", "two green squares below a yellow star " * 12, beginning + "and an owl"]
    model = transformers.CLIPModel.from_pretrained(folder).eval()
    processor = transformers.CLIPProcessor.from_pretrained(folder)
    cut = {"padding": True, "truncation": True, "max_length": 77}
    inputs = processor(text=texts, images=scorers.pil(images), return_tensors="pt", **cut)
    assert inputs["input_ids"].shape[1] == 77
    assert (inputs["input_ids"][:, -1] == 49407).all()  # the end token, where features are read off
    with torch.no_grad():
        out = model(**inputs)
    cosines = (out.image_embeds * out.text_embeds).sum(-1).double().numpy()
    got = scorers.build(f"clip={folder}", device="cpu").score(images, texts)
    assert got == pytest.approx(np.maximum(100.0 * cosines, 0.0), rel=1e-6)  # one by one, and all at once


def test_pick_score_is_the_scaled_cosine(folder: Path, images: Any) -> None:
    cosines, scale = by_hand(folder, images)
    scorer = scorers.build(f"pickscore={folder}", device="cpu")
    assert scorer.metric == "pick_score"
    assert scorer.score(images, TEXTS) == pytest.approx(scale * cosines, abs=1e-5)


def test_scores_do_not_depend_on_the_company(folder: Path, images: Any) -> None:
    for name in ("clip", "pickscore"):
        scorer = scorers.build(f"{name}={folder}", device="cpu")
        alone = [scorer.score(images[i : i + 1], TEXTS[i : i + 1])[0] for i in range(3)]
        assert scorer.score(images, TEXTS) == pytest.approx(alone, abs=1e-5)


def test_the_provenance_names_the_folder_but_not_where_it_lies(folder: Path) -> None:
    origin = scorers.build(f"clip={folder}", device="cpu").origin
    assert "'judge'" in origin
    assert str(folder.parent) not in origin


def test_nearness_to_the_base(images: Any) -> None:
    assert scorers.ssim(images, images) == pytest.approx(1.0)
    noisy = np.clip(images + 0.2, 0.0, 1.0)
    assert (scorers.ssim(noisy, images) < 0.99).all()


def test_lpips_without_torchvision_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    scorers.lpips_obstacle.cache_clear()
    assert scorers.lpips_obstacle() == "the package 'torchvision' is not installed"
    scorers.lpips_obstacle.cache_clear()


def test_lpips_keeps_one_network_and_what_cannot_be_fetched_is_no_error(
    images: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torchmetrics.image.lpip as lpip

    built = []

    class Distance(torch.nn.Module):  # type: ignore[misc, name-defined]
        def forward(self, a: Any, b: Any, normalize: bool) -> Any:
            assert normalize
            return (a - b).abs().mean().reshape(1, 1, 1, 1)

    class Metric:
        def __init__(self, net_type: str) -> None:
            built.append(net_type)
            self.net = Distance()

    monkeypatch.setattr(scorers, "_need", lambda module, package: None)
    monkeypatch.setattr(lpip, "LearnedPerceptualImagePatchSimilarity", Metric)
    for cached in (scorers.lpips_network, scorers.lpips_obstacle):
        cached.cache_clear()
    assert scorers.lpips_obstacle() is None
    for _ in range(2):
        assert scorers.lpips(images, images[::-1]) == pytest.approx(np.abs(images - images[::-1]).mean((1, 2, 3)))
    assert built == ["alex"]

    def offline(net_type: str) -> Any:
        raise OSError("no route to host")

    monkeypatch.setattr(lpip, "LearnedPerceptualImagePatchSimilarity", offline)
    for cached in (scorers.lpips_network, scorers.lpips_obstacle):
        cached.cache_clear()
    assert scorers.lpips_obstacle() == "AlexNet's weights cannot be loaded: no route to host"
    scorers.lpips_obstacle.cache_clear()


def test_distances_between_sets_grow_with_the_shift(folder: Path) -> None:
    rng = np.random.default_rng(2)
    a, b = rng.normal(size=(2, 60, 8)).astype(np.float32)
    same, near, far = (scorers.set_distances(x, a) for x in (a, b, b + 3.0))
    assert same["fid_clip"] == pytest.approx(0.0, abs=1e-3)
    assert same["fid_clip"] < near["fid_clip"] < far["fid_clip"]
    assert near["kid_clip"] < far["kid_clip"]
    assert scorers.set_distances(b, a) == near


def test_features_are_one_row_per_image(folder: Path, images: Any) -> None:
    scorer: Any = scorers.build(f"clip={folder}", device="cpu")
    assert scorer.features(images).shape == (3, 8)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("clipp", "no scorer 'clipp'; did you mean 'clip'"),
        ("clip=/no/such/folder", "is not a folder"),
        ("imagereward", "'image-reward' is not installed"),
        ("hpsv2", "'hpsv2' is not installed"),
    ],
)
def test_wrong_scorers_are_one_message(name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        scorers.build(name, device="cpu")


def test_a_folder_without_weights(tmp_path: Path) -> None:
    for name in ("clip", "pickscore"):
        with pytest.raises(InputError, match="cannot be loaded"):
            scorers.build(f"{name}={tmp_path}", device="cpu")
