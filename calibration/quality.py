"""How good the images are: per prompt, variant and seed.

Approximate caching is rated as it is served: an image starts from the latent that the most similar *other* prompt
had at step K, and the similarity is in the profile beside the score.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from calibration import scorers
from calibration.approximations import Approximation, LatentRecorder, Run
from calibration.latency import Workload
from calibration.pipelines import denoiser, need_torch

Images = npt.NDArray[np.float32]

#: Every image has noise of its own: the seed of prompt p in round s.
_STRIDE: Final = 1_000_003


def image_seed(prompt: int, seed: int) -> int:
    """Seed of the noise of a prompt (by position) in one round of seeds."""
    return seed * _STRIDE + prompt


@dataclass(frozen=True, slots=True)
class Rated:
    """Images of some prompts and what they were rated.

    Attributes:
        images: float32[N, H, W, 3] in [0, 1].
        rows: Of the quality table; None where an image holds something that is not a number.
        features: float32[N, D] of the images, None without a scorer that has any.
        latents: Step -> float[N, C, H, W], those with which the step began.
        bad: Images that hold something that is not a number.
    """

    images: Images
    rows: pd.DataFrame | None
    features: npt.NDArray[np.float32] | None
    latents: dict[int, npt.NDArray[Any]]
    bad: int


def rate(
    work: Workload,
    approximation: Approximation,
    *,
    variant: str,
    prompts: pd.DataFrame,
    first: int,
    seed: int,
    judges: Sequence[scorers.Scorer],
    keep_latents: Sequence[int],
    cached_latents: Callable[[Sequence[int], int], Any],
    base_images: Images | None,
    batch: int,
) -> Rated:
    """Make and rate the images of some prompts; call it within the approximation's context.

    Args:
        prompts: Rows of the prompt table.
        first: Position of the first of them in the whole table.
        keep_latents: Steps whose latents are to be kept, for approximate caching.
        cached_latents: (positions, step) -> the latents that a cache would give those prompts.
        base_images: The base's images of the same prompts and seed; None for the base itself.
        batch: How many images are made at once.
    """
    run = approximation.adjust(Run(work.steps))
    positions = list(range(first, first + len(prompts)))
    texts = list(prompts["text"])
    stored = cached_latents(positions, run.skipped) if run.skipped else None
    seeds = [image_seed(p, seed) for p in positions]
    images, latents = _make(work, run, texts, seeds, stored, keep_latents, batch)
    bad = int((~np.isfinite(images).all(axis=(1, 2, 3))).sum())
    if bad:
        return Rated(images, None, None, latents, bad)
    images = np.clip(images, 0.0, 1.0)
    scores = {judge.metric: judge.score(images, texts) for judge in judges}
    against = images if base_images is None else base_images
    if against.shape == images.shape:  # models of another resolution cannot be compared pixel by pixel
        if min(images.shape[1:3]) >= 11:
            scores["ssim"] = scorers.ssim(images, against, device=work.device)
        if scorers.lpips_obstacle() is None:
            scores["lpips"] = scorers.lpips(images, against, device=work.device)
    rows = pd.DataFrame(
        [
            (prompt, variant, metric, float(value), seed)
            for metric, values in scores.items()
            for prompt, value in zip(prompts["prompt"], values, strict=True)
        ],
        columns=["prompt", "variant", "metric", "score", "seed"],
    )
    eyes = next((judge for judge in judges if hasattr(judge, "features")), None)
    features = eyes.features(images) if eyes is not None else None
    return Rated(images, rows, features, latents, 0)


def _make(
    work: Workload,
    run: Run,
    texts: list[str],
    seeds: list[int],
    stored: npt.NDArray[Any] | None,
    keep_latents: Sequence[int],
    batch: int,
) -> tuple[Images, dict[int, npt.NDArray[Any]]]:
    """Images, and the latents with which the wanted steps began, a few at a time."""
    torch = need_torch()
    images: list[Any] = []
    latents: dict[int, list[Any]] = {}
    for start in range(0, len(texts), batch):
        some = slice(start, start + batch)
        options: dict[str, Any] = {}
        recorder = LatentRecorder(list(keep_latents))
        if keep_latents:
            options["callback_on_step_end"] = recorder
        if stored is not None:
            options["latents"] = torch.from_numpy(stored[some]).to(work.device, denoiser(work.pipe).dtype)
        images.append(np.asarray(work.call(run, texts[some], seeds[some], **options), dtype=np.float32))
        for step, kept in recorder.latents.items():
            latents.setdefault(step, []).append(kept.float().cpu().numpy())
    return np.concatenate(images), {step: np.concatenate(parts) for step, parts in latents.items()}


def contact_sheet(images: Sequence[Sequence[Images]], variants: Sequence[str], title: str) -> bytes:
    """PNG: rows are variants, columns are seeds; each image large enough to look at."""
    from PIL import Image, ImageDraw

    side = max(images[0][0].shape[0], 96)
    label, gap = 170, 4
    width = max(label + len(images[0]) * (side + gap), 420)
    lines = textwrap.wrap(title, width // 7)
    head = 8 + 14 * len(lines)
    sheet = Image.new("RGB", (width, head + len(images) * (side + gap)), "white")
    draw = ImageDraw.Draw(sheet)
    for number, line in enumerate(lines):
        draw.text((4, 3 + 14 * number), line, fill="black")
    for row, (name, shown) in enumerate(zip(variants, images, strict=True)):
        top = head + row * (side + gap)
        draw.text((4, top + side // 2 - 6), name, fill="black")
        for column, picture in enumerate(scorers.pil(np.stack(shown))):
            sheet.paste(
                picture.resize((side, side), Image.Resampling.NEAREST), (label + column * (side + gap), top)
            )
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
