"""Judges of images: how well one fits its prompt, how near it is to another, how alike two sets are.

Images are float arrays in [0, 1] of shape (N, H, W, 3). Weights come from the hub, its cache, or a local folder
of the same format.
"""

from __future__ import annotations

import functools
import importlib.util
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from argus_sim.errors import InputError, did_you_mean
from calibration.failures import first_line
from calibration.pipelines import need_torch

Images = npt.NDArray[np.float32]
Floats = npt.NDArray[np.float64]

#: scorer -> where its weights are found unless a folder is named
HUB: Final = {
    "clip": "openai/clip-vit-large-patch14",
    "pickscore": "yuvalkirstain/PickScore_v1",
    "imagereward": "ImageReward-v1.0",
    "hpsv2": "v2.1",
}


class Scorer(Protocol):
    """Rates an image against its prompt.

    Attributes:
        metric: Name of the score in the quality table.
        origin: What rated it, for the provenance.
    """

    metric: str
    origin: str

    def score(self, images: Images, texts: Sequence[str]) -> Floats:
        """float64[N]: one score per image, higher is better."""


def pil(images: Images) -> list[Any]:
    from PIL import Image

    return [Image.fromarray(np.asarray(np.round(image * 255.0), dtype=np.uint8)) for image in images]


def load_clip(where: str) -> tuple[Any, Any]:
    """(model, processor) of a CLIP whose ``get_*_features`` return tensors, whatever the transformers version."""
    need_torch()
    import transformers

    class PooledCLIP(transformers.CLIPModel):
        def get_text_features(self, input_ids: Any = None, attention_mask: Any = None, **kwargs: Any) -> Any:
            return _tensor(
                super().get_text_features(input_ids=input_ids, attention_mask=attention_mask, **kwargs)
            )

        def get_image_features(self, pixel_values: Any = None, **kwargs: Any) -> Any:
            return _tensor(super().get_image_features(pixel_values=pixel_values, **kwargs))

    try:
        return _whole(PooledCLIP, where).eval(), transformers.AutoProcessor.from_pretrained(where)
    except Exception as error:
        raise _unreadable(where, error) from None


def _whole(kind: Any, where: str) -> Any:
    """A model with all of its weights: transformers makes up at random, with a warning, what a file lacks."""
    model, info = kind.from_pretrained(where, output_loading_info=True)
    if lacking := sorted(info["missing_keys"]):
        raise ValueError(f"{len(lacking)} of its weights are not there, {lacking[0]} first")
    return model


def _tensor(features: Any) -> Any:
    return getattr(features, "pooler_output", features)


def _unreadable(where: str, error: Exception) -> InputError:
    return InputError(
        f"the scorer's weights at {where!r} cannot be loaded: {first_line(error)}"
        " (give a folder as NAME=FOLDER, or --latency-only)",
        where="--scorers",
    )


class _Cutting:
    """A processor that cuts a text at the model's length and keeps its end token.

    CLIP reads a text's features off at the end token. torchmetrics cuts the tokens itself, that one included, and
    every long text is then read off where something else stands.
    """

    def __init__(self, processor: Any, length: int) -> None:
        self._processor, self._length = processor, length

    def __call__(self, **inputs: Any) -> Any:
        cut = {"truncation": True, "max_length": self._length} if "text" in inputs else {}
        return self._processor(**inputs, **cut)


class ClipScorer:
    """CLIPScore, 100 x cosine of image and text, as torchmetrics computes it.

    A text longer than the model reads (77 tokens, of most) is rated by its beginning.
    """

    metric = "clip_score"

    def __init__(self, where: str, *, device: str, origin: str) -> None:
        from torchmetrics.multimodal import CLIPScore

        self.origin, self._device = f"torchmetrics CLIPScore with {origin}", device
        model, processor = load_clip(where)
        cutting: Any = _Cutting(processor, int(model.config.text_config.max_position_embeddings))
        self._metric = CLIPScore(model_name_or_path=lambda: (model, cutting)).to(device)

    def score(self, images: Images, texts: Sequence[str]) -> Floats:
        torch = need_torch()
        pixels = torch.from_numpy(_bytes(images)).permute(0, 3, 1, 2).to(self._device)
        scores = []
        with torch.inference_mode():
            for image, text in zip(pixels, texts, strict=True):
                self._metric.reset()
                self._metric.update(image, text)
                scores.append(float(self._metric.compute()))
        return np.array(scores)

    def features(self, images: Images) -> npt.NDArray[np.float32]:
        """float32[N, D]: image features of length 1, for distances between sets."""
        torch = need_torch()
        with torch.inference_mode():
            inputs = self._metric.processor(images=pil(images), return_tensors="pt")
            features = self._metric.model.get_image_features(inputs["pixel_values"].to(self._device))
            features = features.float() / features.float().norm(dim=-1, keepdim=True)
        return np.asarray(features.cpu().numpy())


class PickScorer:
    """PickScore: the model's temperature x cosine of image and text (Kirstain et al., arXiv 2305.01569)."""

    metric = "pick_score"

    def __init__(self, where: str, *, device: str, origin: str) -> None:
        self.origin, self._device = f"PickScore with {origin}", device
        need_torch()
        import transformers

        try:
            model = _whole(transformers.AutoModel, where).eval()
            self._processor = transformers.AutoProcessor.from_pretrained(where)
        except Exception as error:
            raise _unreadable(where, error) from None
        self._model = model.to(device)  # a device without room for it says nothing of its weights

    def score(self, images: Images, texts: Sequence[str]) -> Floats:
        torch = need_torch()
        length = int(self._model.config.text_config.max_position_embeddings)
        words = self._processor(
            text=list(texts), padding=True, truncation=True, max_length=length, return_tensors="pt"
        ).to(self._device)
        pixels = self._processor(images=pil(images), return_tensors="pt").to(self._device)
        with torch.inference_mode():
            text = _tensor(self._model.get_text_features(**words))
            image = _tensor(self._model.get_image_features(**pixels))
            text = text / text.norm(dim=-1, keepdim=True)
            image = image / image.norm(dim=-1, keepdim=True)
            scores = self._model.logit_scale.exp() * (text * image).sum(dim=-1)
        return np.asarray(scores.double().cpu().numpy())


class ImageRewardScorer:
    """ImageReward (package image-reward), where it is installed."""

    metric = "image_reward"

    def __init__(self, where: str, *, device: str, origin: str) -> None:
        _need("ImageReward", "image-reward")
        import ImageReward

        self.origin = f"ImageReward {origin}"
        self._model = ImageReward.load(where, device=device)

    def score(self, images: Images, texts: Sequence[str]) -> Floats:
        pairs = zip(texts, pil(images), strict=True)
        return np.array([float(self._model.score(text, [image])) for text, image in pairs])


class HpsScorer:
    """HPSv2 (package hpsv2), where it is installed."""

    metric = "hps_v2"

    def __init__(self, where: str, *, device: str, origin: str) -> None:
        _need("hpsv2", "hpsv2")
        self.origin, self._version = f"HPSv2 {origin}", where

    def score(self, images: Images, texts: Sequence[str]) -> Floats:
        import hpsv2

        pairs = zip(texts, pil(images), strict=True)
        return np.array([float(hpsv2.score(i, t, hps_version=self._version)[0]) for t, i in pairs])


_KINDS: Final[dict[str, Any]] = {
    "clip": ClipScorer,
    "pickscore": PickScorer,
    "imagereward": ImageRewardScorer,
    "hpsv2": HpsScorer,
}


def _need(module: str, package: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise InputError(f"the package {package!r} is not installed", where="--scorers")


#: Metrics that can be negative, of which no ratio can be formed.
SIGNED: Final = ("image_reward",)


def metric_of(name: str) -> str:
    """The metric a scorer writes, by the scorer's name (with or without a folder)."""
    kind = name.partition("=")[0]
    if kind not in _KINDS:
        raise InputError(f"no scorer {kind!r}{did_you_mean(kind, _KINDS)}", where="--scorers")
    return str(_KINDS[kind].metric)


def build(name: str, *, device: str) -> Scorer:
    """A scorer by name: ``clip``, ``pickscore``, ``imagereward``, ``hpsv2``, or ``NAME=FOLDER``."""
    kind, _, folder = name.partition("=")
    metric_of(name)
    if folder and not Path(folder).is_dir():
        raise InputError(f"{folder!r} is not a folder", where="--scorers")
    # A folder is named by its last part: where it lies on this machine concerns nobody else.
    origin = f"weights in folder {Path(folder).resolve().name!r}" if folder else HUB[kind]
    scorer: Scorer = _KINDS[kind](folder or HUB[kind], device=device, origin=origin)
    return scorer


def available(name: str) -> bool:
    """Whether a scorer's weights are at hand, in a folder or the hub's cache."""
    kind, _, folder = name.partition("=")
    if folder:
        return Path(folder).is_dir()
    if kind in ("clip", "pickscore"):
        import huggingface_hub

        return isinstance(huggingface_hub.try_to_load_from_cache(HUB[kind], "config.json"), str)
    module = {"imagereward": "ImageReward", "hpsv2": "hpsv2"}[kind]
    return importlib.util.find_spec(module) is not None


def _bytes(images: Images) -> npt.NDArray[np.uint8]:
    return np.asarray(np.round(images * 255.0), dtype=np.uint8)


# ---- against another image, and set against set


def ssim(images: Images, base: Images, *, device: str = "cpu") -> Floats:
    """float64[N]: structural similarity to the base's images (torchmetrics), 1 for equal ones."""
    torch = need_torch()
    from torchmetrics.functional.image import structural_similarity_index_measure

    values: list[Any] = []
    with torch.inference_mode():
        for a, b in _pairs(images, base, device):
            values.append(structural_similarity_index_measure(a, b, data_range=1.0))
    return np.array([float(value) for value in values])


def lpips(images: Images, base: Images, *, device: str = "cpu") -> Floats:
    """float64[N]: learned perceptual distance to the base's images (AlexNet), 0 for equal ones."""
    torch = need_torch()
    network = lpips_network()
    try:
        network.to(device)
        with torch.inference_mode():
            return np.array([float(network(a, b, normalize=True)) for a, b in _pairs(images, base, device)])
    finally:
        network.to("cpu")  # on the device it would count as memory of what is timed next


@functools.cache
def lpips_network() -> Any:
    """torchmetrics' LPIPS network, kept in the host's memory.

    Raises:
        InputError: torchvision, whose AlexNet it is built on, or its weights are not to be had.
    """
    _need("torchvision", "torchvision")
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

    try:
        return LearnedPerceptualImagePatchSimilarity(net_type="alex").net.eval()
    except Exception as error:  # without a connection the weights cannot be fetched
        raise InputError(f"AlexNet's weights cannot be loaded: {first_line(error)}") from None


@functools.cache
def lpips_obstacle() -> str | None:
    """Why images are not rated by LPIPS; None where they are. Fetches AlexNet's weights where it can."""
    try:
        lpips_network()
    except InputError as error:
        return error.message
    return None


def _pairs(images: Images, base: Images, device: str) -> Iterator[tuple[Any, Any]]:
    """Image by image (1, 3, H, W) on the device: a batch of large ones would take memory from the model."""
    torch = need_torch()
    for pair in zip(images, base, strict=True):
        a, b = (torch.from_numpy(np.ascontiguousarray(x)).permute(2, 0, 1)[None].float().to(device) for x in pair)
        yield a, b


def set_distances(features: npt.NDArray[np.float32], base: npt.NDArray[np.float32]) -> dict[str, float]:
    """FID and KID (torchmetrics) between two sets of image features.

    The features are the CLIP scorer's, not Inception's, and the names say so: these are no FID to be compared
    with a paper's.
    """
    torch = need_torch()
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.kid import KernelInceptionDistance

    class AsTheyAre(torch.nn.Module):  # type: ignore[misc, name-defined]
        num_features = int(features.shape[1])

        def forward(self, x: Any) -> Any:
            return x

    size = max(2, min(100, len(features), len(base)) // 2)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        torch.manual_seed(0)  # KID draws subsets
        fid = FrechetInceptionDistance(feature=AsTheyAre())
        kid = KernelInceptionDistance(feature=AsTheyAre(), subsets=50, subset_size=size)
        for metric in (fid, kid):
            metric.update(torch.from_numpy(base), real=True)
            metric.update(torch.from_numpy(features), real=False)
        return {"fid_clip": max(float(fid.compute()), 0.0), "kid_clip": float(kid.compute()[0])}
